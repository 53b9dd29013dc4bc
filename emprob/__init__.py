"""EM and MAP for NumPyro programs with latent variables, beside full Bayesian inference."""

__version__ = "0.1.0"
