"""Prices of options in JAX: vectorised, differentiable in every parameter, float64 for the digits.

| module | what |
|---|---|
| `black` | Black-76, Black–Scholes, implied volatility to machine precision |
| `sabr`, `svi` | smiles in closed form and their arbitrage conditions |
| `characteristic`, `fourier` | Heston, Bates, Merton: laws by characteristic function, and prices |
| `paths`, `exotics`, `american` | simulation and what needs it |
| `affine` | geometric Asians and variance swaps, exact |
| `greeks` | derivatives of any price |

Everything is on the forward and undiscounted unless it says otherwise; `sign` is 1 for a call and
-1 for a put, `time` is in years, `log_moneyness` is log(strike / forward), and `deviation` is the
volatility times the root of the time. What has no price (NaN, beyond the bounds) is NaN.
"""
