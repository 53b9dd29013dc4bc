"""Curves over the maturities as latents: log Z by hand, roughness found again, borrowing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import log_density
from scipy import optimize

import emprob as ep
from emprob.errors import ModelError
from emprob.integral.hoist import hoisted
from emprob.models import arbitrage, quote_noise, smile_sabr
from emprob.models.quotes import Quotes
from emprob.models.term_curves import POSITIVE, curves, estimated

TIMES = 0.05 * 1.6 ** np.arange(10.0)
ROUGHNESS = np.array([0.2, 0.3])
PER_EXPIRY = 6
SD = 0.02


def skews(times, code, k, mid, roughness=None):
    """Two curves: level and skew of every maturity."""
    rough = estimated(ROUGHNESS) if roughness is None else roughness
    rows = {"level": (-0.5, 0.4, POSITIVE), "skew": (0.0, 0.5, ())}
    found = curves(times, rough, rows)
    with numpyro.plate("quote", len(k)):
        mean = found["level"][code] * jnp.exp(found["skew"][code] * k)
        numpyro.sample("mid", dist.Normal(mean, SD), obs=mid)


def simulated(seed, empty=None):
    """Arguments of `skews`: quotes of curves that are drawn from their prior.

    The quotes of a maturity that is to be empty are those of the one before it.
    """
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(len(TIMES)), PER_EXPIRY)
    code[code == empty] -= 1
    k = np.tile(np.linspace(-1.0, 1.0, PER_EXPIRY), len(TIMES))
    sd = np.outer(ROUGHNESS, np.sqrt(np.diff(np.log(TIMES), prepend=np.nan)))
    sd[:, 0] = 0.4, 0.5
    log_level, skew = np.cumsum(sd * rng.normal(size=sd.shape), 1) + [[-0.5], [0.0]]
    mid = np.exp(log_level[code] + skew[code] * k)
    return TIMES, code, k, mid + SD * rng.normal(size=len(k))


def by_hand(program, args, params, latents):
    """Laplace's log Z from NumPyro's density alone.

    Args:
        program: of `args`.
        args: its arguments.
        params: by site.
        latents: by site (value, to and from the coordinates), where the search begins.
    """
    start, unravel = ravel_pytree({k: jnp.asarray(back(v)) for k, (v, _, back) in latents.items()})

    def log_joint(u):
        z = unravel(u)
        values = {k: latents[k][1](x) for k, x in z.items()}
        jacobian = sum(jnp.log(jax.vmap(jax.grad(latents[k][1]))(x)).sum() for k, x in z.items())
        return log_density(program, args, {}, {**params, **values})[0] + jacobian

    down = jax.jit(jax.value_and_grad(lambda u: -log_joint(u)))
    curve = jax.jit(jax.hessian(lambda u: -log_joint(u)))
    mode = optimize.minimize(down, start, jac=True, hess=curve, method="trust-exact",
                             options={"gtol": 1e-9}).x  # fmt: skip
    volume = len(mode) * np.log(2 * np.pi) - np.linalg.slogdet(curve(mode))[1]
    return float(log_joint(mode) + 0.5 * volume)


def log_prior(params, typical):
    law = dist.LogNormal(jnp.log(jnp.asarray(typical)), 0.6).to_event(1)
    return float(law.log_prob(params["roughness"]))


SHAPE = (jnp.exp, jnp.log)
PLAIN = (lambda u: u, lambda v: v)
BEGIN = {"level": (0.6 * np.ones(10), *SHAPE), "skew": (np.zeros(10), *PLAIN)}


@pytest.fixture(scope="module")
def fitted():
    return ep.fit(ep.bind(skews, *simulated(0)), progress=False)


# -- log Z -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_log_z_is_laplace_by_hand():
    args = simulated(0)
    model = ep.bind(skews, *args)
    assert model.latents == ("level", "skew")
    for factor in (1.0, 0.5):
        params = {"roughness": jnp.asarray(factor * ROUGHNESS)}
        want = by_hand(skews, args, params, BEGIN)
        ours = float(model.log_partition(params)) + log_prior(params, ROUGHNESS)
        np.testing.assert_allclose(ours, want, rtol=1e-10)


@pytest.mark.slow
def test_the_score_is_the_slope_of_laplace_by_hand():
    args = simulated(0)
    model = ep.bind(skews, *args)
    score = jax.jit(jax.grad(model.objective))({"roughness": jnp.asarray(ROUGHNESS)})["roughness"]
    for i in range(2):
        move = 1e-4 * np.eye(2)[i]
        up, down = (by_hand(skews, args, {"roughness": jnp.asarray(ROUGHNESS + s * move)}, BEGIN)
                    for s in (1, -1))  # fmt: skip
        np.testing.assert_allclose(score[i], (up - down) / 2e-4, rtol=1e-5)


@pytest.mark.slow
def test_importance_sampling_agrees(fitted):
    report = ep.importance(fitted, key=0, n=2000)
    assert report.khat < 0.7
    assert abs(report.log_evidence - report.laplace) < 0.05


@pytest.mark.slow
def test_the_information_is_the_slope_of_the_score(fitted):
    """Second derivatives are differences within; here, of the score, at another step."""
    model, params = fitted.model, {k: jnp.asarray(v) for k, v in fitted.params.items()}
    score = jax.jit(lambda u: jax.grad(lambda v: model.objective(model.constrain(v)))(u))
    u = model.unconstrain(params)
    want = []
    for move in 1e-3 * np.eye(2):
        ends = (score({"roughness": u["roughness"] + s * move})["roughness"] for s in (1, -1))
        want.append(np.subtract(*ends) / 2e-3)
    hessian = jax.jit(jax.hessian(lambda v: model.objective(model.constrain(v))))(u)
    np.testing.assert_allclose(hessian["roughness"]["roughness"], want, rtol=1e-4)


# -- roughness ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_roughness_is_found_again():
    """Of a dozen surfaces: errors on the log scale, in standard errors, are about standard."""
    z = []
    for seed in range(12):
        found = ep.fit(ep.bind(skews, *simulated(seed)), progress=False)
        assert found.converged
        rows = found.summary().loc[["roughness[0]", "roughness[1]"]]
        estimate = rows["estimate"].to_numpy()
        z.append((np.log(estimate) - np.log(ROUGHNESS)) * estimate / rows["se"].to_numpy())
    z = np.asarray(z)
    assert (np.abs(z.mean(0)) < 3 / np.sqrt(len(z))).all(), z
    assert (np.sqrt((z**2).mean(0)) < 1.7).all(), z


@pytest.mark.slow
def test_an_empty_maturity_borrows_from_its_neighbours(fitted):
    empty = 5
    found = ep.fit(ep.bind(skews, *simulated(0, empty)), progress=False)
    level = found.posterior["level"]
    sd = np.sqrt(level.variance) / level.mean  # of the logarithm
    rough = found.params["roughness"][0]
    bridge = rough * np.sqrt(np.log(1.6) / 2)  # of a walk between two known neighbours
    assert 0.9 < sd[empty] / bridge < 1.2
    assert sd[empty] > 3 * np.delete(sd, empty).max()
    seen = fitted.posterior["level"].mean[empty]
    assert abs(np.log(level.mean[empty] / seen)) < 3 * bridge


# -- smiles -------------------------------------------------------------------------------------


def places():
    """Quotes (28,) at four maturities, all of one volatility."""
    times = np.array([0.1, 0.2, 0.4, 0.9])
    code = np.repeat(np.arange(4), 7)
    far = np.tile(np.linspace(-1.3, 1.1, 7), 4) + 0.03 * code  # no two equally far from the money
    k = far * 0.6 * np.sqrt(times)[code]
    flat = np.full(len(k), 0.6)
    parts = k, times, code, np.ones(4), flat, 0.01 * flat, np.where(k < 0, -1.0, 1.0)
    return Quotes(*map(jnp.asarray, parts))


TRUE = {
    "alpha": np.linspace(0.95, 1.05, 4),
    "nu": np.linspace(0.5, 0.6, 4),
    "rho": np.linspace(-0.3, -0.2, 4),
}
TRUE_VOLATILITY = np.asarray(smile_sabr.MODEL.volatility(TRUE, places()))


def smiles():
    """The same with SABR's volatilities and noise, two of them wrong."""
    noise = 0.003 * np.random.default_rng(3).normal(size=len(TRUE_VOLATILITY))
    noise[[5, 17]] += np.array([0.09, -0.07])
    return replace(places(), mid=jnp.asarray(TRUE_VOLATILITY + noise))


@pytest.fixture(scope="module")
def smile_fit():
    """Begun at curves that are nearly right: from the prior's, other modes are in the way."""
    model = ep.bind(smile_sabr.smile_sabr, smiles(), quote_noise.mixture, None)
    init = TRUE | quote_noise.start(smiles(), TRUE_VOLATILITY)
    return ep.fit(model, init=init, progress=False)


@pytest.mark.exhaustive
def test_log_z_of_smiles_is_laplace_by_hand(smile_fit):
    assert smile_fit.converged
    assert smile_fit.model.latents == smile_sabr.CURVES
    params = {k: jnp.asarray(v) for k, v in smile_fit.params.items()}
    tanh = (lambda u: jnp.tanh(u / 2), lambda v: 2 * jnp.arctanh(v))
    near = {k: smile_fit.posterior[k].mean for k in smile_sabr.CURVES}
    begin = {k: (near[k], *pair) for k, pair in zip(near, (SHAPE, SHAPE, tanh))}
    args = smiles(), quote_noise.mixture, None
    want = by_hand(smile_sabr.smile_sabr, args, params, begin)
    np.testing.assert_allclose(smile_fit.objective, want, rtol=1e-9)


@pytest.mark.exhaustive
def test_bad_quotes_do_not_move_curves_that_are_latents(smile_fit):
    means = {k: smile_fit.posterior[k].mean for k in smile_sabr.CURVES}
    off = smile_sabr.MODEL.volatility(means, smiles()) - TRUE_VOLATILITY
    assert np.abs(off).max() < 0.01  # the wrong ones are off by 0.09 and 0.07
    assert np.sqrt(np.mean(off**2)) < 0.005


@pytest.mark.exhaustive
def test_states_of_quotes_beside_latent_curves_are_refused():
    model = ep.bind(smile_sabr.smile_sabr, smiles(), quote_noise.indicator, None)
    with pytest.raises(ModelError, match="'state' has more than one value for each element"):
        ep.fit(model, progress=False)


# -- where the search begins ----------------------------------------------------------------------


TOPS = np.array([1.9, 2.0, 2.1, 2.3])


def two_tops(y):
    """A density with a top on either side of zero, in four dimensions: no quadrature."""
    spread = numpyro.sample("spread", dist.LogNormal(0.0, 0.1))
    z = numpyro.sample("z", dist.Normal(0.2, 1.0).expand([4]).to_event(1))
    numpyro.sample("y", dist.Normal(z**2, 0.3 * spread), obs=y)


@pytest.mark.slow
def test_latents_begin_where_init_says():
    model = ep.bind(two_tops, TOPS, latents=("z",))
    for side in (1.0, -1.0):
        found = ep.fit(model, init={"z": side * np.ones(4)}, progress=False)
        assert found.converged
        assert (np.sign(found.posterior["z"].mean) == side).all()


def test_a_wrong_beginning_is_refused():
    model = ep.bind(two_tops, TOPS, latents=("z",))
    with pytest.raises(ModelError, match=r"init: site 'z' has shape \(4,\), got \(3,\)"):
        ep.fit(model, init={"z": np.ones(3)}, progress=False)
    with pytest.raises(ModelError, match="must lie in its support"):
        ep.fit(model, init={"z": np.full(4, np.nan)}, progress=False)


# -- the program once, the rest of it once ---------------------------------------------------------


@pytest.mark.slow
def test_what_latents_do_not_enter_is_outside():
    def plain(weights, z):
        total = jnp.sort(weights)[0] + jnp.log(weights).sum()
        return (total * jnp.sin(z) + jax.nn.softplus(z)).sum((2, 3))

    def value(weights, z):
        f = hoisted(lambda x: plain(weights, x), z)
        return (f(z) + f(2.0 * z)).sum()

    z = jnp.linspace(-1.0, 1.0, 6).reshape(1, 1, 2, 3)
    weights = jnp.arange(1.0, 4.0)
    assert str(jax.make_jaxpr(jax.hessian(value, 1))(weights, z)).count(" sort[") == 1

    def want(weights, z):
        return (plain(weights, z) + plain(weights, 2.0 * z)).sum()

    ours, theirs = (jax.hessian(f, (0, 1))(weights, z) for f in (value, want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14),
                 ours, theirs)  # fmt: skip


def test_derivatives_go_through_what_is_outside():
    def value(scale):
        return hoisted(lambda z: (jnp.exp(scale) * z**2).sum((2, 3)), jnp.ones((1, 1, 1, 2)))(
            3.0 * jnp.ones((1, 1, 1, 2))
        ).sum()

    np.testing.assert_allclose(jax.grad(value)(0.3), 18 * np.exp(0.3), rtol=1e-14)


def test_a_look_at_several_places_is_one_call():
    calls = []

    def surface(k, code):
        calls.append(k.shape)
        return k + 10.0 * code

    times = jnp.array([0.5, 1.0])
    places = arbitrage.butterfly_grid(0.2, times), (jnp.ones(5), jnp.zeros(5, int))
    on_grid, on_quotes = arbitrage.at_once(surface, *places)
    assert len(calls) == 1
    np.testing.assert_array_equal(on_grid, places[0][0] + 10.0 * jnp.arange(2)[:, None])
    np.testing.assert_array_equal(on_quotes, jnp.ones(5))
