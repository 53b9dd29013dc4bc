"""Programs that other people wrote, and stranger ones: all go through `bind` as they are.

The first part restates NumPyro's own examples (repository pyro-ppl/numpyro, Apache-2.0, Copyright
Contributors to the Pyro project) on small simulated data. log Z is compared with NumPyro's own
enumeration by funsor.
"""

import argparse
import importlib.util
import itertools
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from jax import nn
from jax.scipy.special import expit, logit
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.funsor import config_enumerate, enum
from numpyro.contrib.funsor.infer_util import log_density
from numpyro.distributions import constraints
from numpyro.handlers import mask
from numpyro.infer.reparam import LocScaleReparam
from numpyro.ops.indexing import Vindex

import emprob as ep
from emprob.bind import random_params
from emprob.posterior import marginals

_spec = importlib.util.spec_from_file_location(
    "brute", pathlib.Path(__file__).with_name("brute.py")
)
brute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(brute)

RNG = np.random.default_rng(20260101)
PARALLEL = {"enumerate": "parallel"}


# -- examples/annotation.py ----------------------------------------------------------------------


def multinomial(annotations):
    num_classes = int(np.max(annotations)) + 1
    num_items, num_positions = annotations.shape
    with numpyro.plate("class", num_classes):
        zeta = numpyro.sample("zeta", dist.Dirichlet(jnp.ones(num_classes)))
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(num_classes)))
    with numpyro.plate("item", num_items, dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi), infer={"enumerate": "parallel"})
        with numpyro.plate("position", num_positions):
            numpyro.sample("y", dist.Categorical(zeta[c]), obs=annotations)


def dawid_skene(positions, annotations):
    num_annotators = int(np.max(positions)) + 1
    num_classes = int(np.max(annotations)) + 1
    num_items, num_positions = annotations.shape
    with numpyro.plate("annotator", num_annotators, dim=-2):
        with numpyro.plate("class", num_classes):
            beta = numpyro.sample("beta", dist.Dirichlet(jnp.ones(num_classes)))
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(num_classes)))
    with numpyro.plate("item", num_items, dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi), infer={"enumerate": "parallel"})
        with numpyro.plate("position", num_positions):
            numpyro.sample("y", dist.Categorical(Vindex(beta)[positions, c, :]), obs=annotations)


def mace(positions, annotations):
    num_annotators = int(np.max(positions)) + 1
    num_classes = int(np.max(annotations)) + 1
    num_items, num_positions = annotations.shape
    with numpyro.plate("annotator", num_annotators):
        epsilon = numpyro.sample("epsilon", dist.Dirichlet(jnp.full(num_classes, 10)))
        theta = numpyro.sample("theta", dist.Beta(0.5, 0.5))
    with numpyro.plate("item", num_items, dim=-2):
        c = numpyro.sample("c", dist.DiscreteUniform(0, num_classes - 1), infer=PARALLEL)
        with numpyro.plate("position", num_positions):
            s = numpyro.sample("s", dist.Bernoulli(1 - theta[positions]), infer=PARALLEL)
            probs = jnp.where(s[..., None] == 0, nn.one_hot(c, num_classes), epsilon[positions])
            numpyro.sample("y", dist.Categorical(probs), obs=annotations)


def hierarchical_dawid_skene(positions, annotations):
    num_annotators = int(np.max(positions)) + 1
    num_classes = int(np.max(annotations)) + 1
    num_items, num_positions = annotations.shape
    with numpyro.plate("class", num_classes):
        zeta = numpyro.sample("zeta", dist.Normal(0, 1).expand([num_classes - 1]).to_event(1))
        omega = numpyro.sample("Omega", dist.HalfNormal(1).expand([num_classes - 1]).to_event(1))
    with numpyro.plate("annotator", num_annotators, dim=-2):
        with numpyro.plate("class", num_classes):
            with handlers.reparam(config={"beta": LocScaleReparam(0)}):
                beta = numpyro.sample("beta", dist.Normal(zeta, omega).to_event(1))
            beta = jnp.pad(beta, [(0, 0)] * (jnp.ndim(beta) - 1) + [(0, 1)])
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(num_classes)))
    with numpyro.plate("item", num_items, dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi), infer={"enumerate": "parallel"})
        with numpyro.plate("position", num_positions):
            logits = Vindex(beta)[positions, c, :]
            numpyro.sample("y", dist.Categorical(logits=logits), obs=annotations)


def item_difficulty(annotations):
    num_classes = int(np.max(annotations)) + 1
    num_items, num_positions = annotations.shape
    with numpyro.plate("class", num_classes):
        eta = numpyro.sample("eta", dist.Normal(0, 1).expand([num_classes - 1]).to_event(1))
        chi = numpyro.sample("Chi", dist.HalfNormal(1).expand([num_classes - 1]).to_event(1))
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(num_classes)))
    with numpyro.plate("item", num_items, dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi), infer={"enumerate": "parallel"})
        with handlers.reparam(config={"theta": LocScaleReparam(0)}):
            theta = numpyro.sample("theta", dist.Normal(eta[c], chi[c]).to_event(1))
            theta = jnp.pad(theta, [(0, 0)] * (jnp.ndim(theta) - 1) + [(0, 1)])
        with numpyro.plate("position", annotations.shape[-1]):
            numpyro.sample("y", dist.Categorical(logits=theta), obs=annotations)


def logistic_random_effects(positions, annotations):
    num_annotators = int(np.max(positions)) + 1
    num_classes = int(np.max(annotations)) + 1
    num_items, num_positions = annotations.shape
    with numpyro.plate("class", num_classes):
        zeta = numpyro.sample("zeta", dist.Normal(0, 1).expand([num_classes - 1]).to_event(1))
        omega = numpyro.sample("Omega", dist.HalfNormal(1).expand([num_classes - 1]).to_event(1))
        chi = numpyro.sample("Chi", dist.HalfNormal(1).expand([num_classes - 1]).to_event(1))
    with numpyro.plate("annotator", num_annotators, dim=-2):
        with numpyro.plate("class", num_classes):
            with handlers.reparam(config={"beta": LocScaleReparam(0)}):
                beta = numpyro.sample("beta", dist.Normal(zeta, omega).to_event(1))
                beta = jnp.pad(beta, [(0, 0)] * (jnp.ndim(beta) - 1) + [(0, 1)])
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(num_classes)))
    with numpyro.plate("item", num_items, dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi), infer={"enumerate": "parallel"})
        with handlers.reparam(config={"theta": LocScaleReparam(0)}):
            theta = numpyro.sample("theta", dist.Normal(0, chi[c]).to_event(1))
            theta = jnp.pad(theta, [(0, 0)] * (jnp.ndim(theta) - 1) + [(0, 1)])
        with numpyro.plate("position", num_positions):
            logits = Vindex(beta)[positions, c, :] - theta
            numpyro.sample("y", dist.Categorical(logits=logits), obs=annotations)


# -- examples/hmm_enum.py ------------------------------------------------------------------------


def hmm_1(sequences, lengths, args, include_prior=True):
    num_sequences, max_length, data_dim = sequences.shape
    with mask(mask=include_prior):
        probs_x = numpyro.sample(
            "probs_x", dist.Dirichlet(0.9 * jnp.eye(args.hidden_dim) + 0.1).to_event(1)
        )
        probs_y = numpyro.sample(
            "probs_y", dist.Beta(0.1, 0.9).expand([args.hidden_dim, data_dim]).to_event(2)
        )

    def transition_fn(carry, y):
        x_prev, t = carry
        with numpyro.plate("sequences", num_sequences, dim=-2):
            with mask(mask=(t < lengths)[..., None]):
                x = numpyro.sample("x", dist.Categorical(probs_x[x_prev]), infer=PARALLEL)
                with numpyro.plate("tones", data_dim, dim=-1):
                    numpyro.sample("y", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=y)
        return (x, t + 1), None

    x_init = jnp.zeros((num_sequences, 1), dtype=jnp.int32)
    scan(transition_fn, (x_init, 0), jnp.swapaxes(sequences, 0, 1))


def hmm_2(sequences, lengths, args, include_prior=True):
    num_sequences, max_length, data_dim = sequences.shape
    with mask(mask=include_prior):
        probs_x = numpyro.sample(
            "probs_x", dist.Dirichlet(0.9 * jnp.eye(args.hidden_dim) + 0.1).to_event(1)
        )
        probs_y = numpyro.sample(
            "probs_y", dist.Beta(0.1, 0.9).expand([args.hidden_dim, 2, data_dim]).to_event(3)
        )

    def transition_fn(carry, y):
        x_prev, y_prev, t = carry
        with numpyro.plate("sequences", num_sequences, dim=-2):
            with mask(mask=(t < lengths)[..., None]):
                x = numpyro.sample("x", dist.Categorical(probs_x[x_prev]), infer=PARALLEL)
                with numpyro.plate("tones", data_dim, dim=-1) as tones:
                    y = numpyro.sample("y", dist.Bernoulli(probs_y[x, y_prev, tones]), obs=y)
        return (x, y, t + 1), None

    x_init = jnp.zeros((num_sequences, 1), dtype=jnp.int32)
    y_init = jnp.zeros((num_sequences, data_dim), dtype=jnp.int32)
    scan(transition_fn, (x_init, y_init, 0), jnp.swapaxes(sequences, 0, 1))


def hmm_3(sequences, lengths, args, include_prior=True):
    num_sequences, max_length, data_dim = sequences.shape
    hidden_dim = int(args.hidden_dim**0.5)
    with mask(mask=include_prior):
        probs_w = numpyro.sample(
            "probs_w", dist.Dirichlet(0.9 * jnp.eye(hidden_dim) + 0.1).to_event(1)
        )
        probs_x = numpyro.sample(
            "probs_x", dist.Dirichlet(0.9 * jnp.eye(hidden_dim) + 0.1).to_event(1)
        )
        probs_y = numpyro.sample(
            "probs_y", dist.Beta(0.1, 0.9).expand([args.hidden_dim, 2, data_dim]).to_event(3)
        )

    def transition_fn(carry, y):
        w_prev, x_prev, t = carry
        with numpyro.plate("sequences", num_sequences, dim=-2):
            with mask(mask=(t < lengths)[..., None]):
                w = numpyro.sample("w", dist.Categorical(probs_w[w_prev]), infer=PARALLEL)
                x = numpyro.sample("x", dist.Categorical(probs_x[x_prev]), infer=PARALLEL)
                with numpyro.plate("tones", data_dim, dim=-1) as tones:
                    numpyro.sample("y", dist.Bernoulli(probs_y[w, x, tones]), obs=y)
        return (w, x, t + 1), None

    w_init = jnp.zeros((num_sequences, 1), dtype=jnp.int32)
    x_init = jnp.zeros((num_sequences, 1), dtype=jnp.int32)
    scan(transition_fn, (w_init, x_init, 0), jnp.swapaxes(sequences, 0, 1))


def hmm_4(sequences, lengths, args, include_prior=True):
    num_sequences, max_length, data_dim = sequences.shape
    hidden_dim = int(args.hidden_dim**0.5)
    with mask(mask=include_prior):
        probs_w = numpyro.sample(
            "probs_w", dist.Dirichlet(0.9 * jnp.eye(hidden_dim) + 0.1).to_event(1)
        )
        probs_x = numpyro.sample(
            "probs_x",
            dist.Dirichlet(0.9 * jnp.eye(hidden_dim) + 0.1).expand_by([hidden_dim]).to_event(2),
        )
        probs_y = numpyro.sample(
            "probs_y", dist.Beta(0.1, 0.9).expand([hidden_dim, hidden_dim, data_dim]).to_event(3)
        )

    def transition_fn(carry, y):
        w_prev, x_prev, t = carry
        with numpyro.plate("sequences", num_sequences, dim=-2):
            with mask(mask=(t < lengths)[..., None]):
                w = numpyro.sample("w", dist.Categorical(probs_w[w_prev]), infer=PARALLEL)
                x = numpyro.sample(
                    "x", dist.Categorical(Vindex(probs_x)[w, x_prev]), infer=PARALLEL
                )
                with numpyro.plate("tones", data_dim, dim=-1) as tones:
                    numpyro.sample("y", dist.Bernoulli(probs_y[w, x, tones]), obs=y)
        return (w, x, t + 1), None

    w_init = jnp.zeros((num_sequences, 1), dtype=jnp.int32)
    x_init = jnp.zeros((num_sequences, 1), dtype=jnp.int32)
    scan(transition_fn, (w_init, x_init, 0), jnp.swapaxes(sequences, 0, 1))


def hmm_6(sequences, lengths, args, include_prior=False):
    num_sequences, max_length, data_dim = sequences.shape
    with mask(mask=include_prior):
        probs_x = numpyro.sample(
            "probs_x",
            dist.Dirichlet(0.9 * jnp.eye(args.hidden_dim) + 0.1)
            .expand([args.hidden_dim, args.hidden_dim])
            .to_event(2),
        )
        probs_y = numpyro.sample(
            "probs_y", dist.Beta(0.1, 0.9).expand([args.hidden_dim, data_dim]).to_event(2)
        )

    def transition_fn(carry, y):
        x_prev, x_curr, t = carry
        with numpyro.plate("sequences", num_sequences, dim=-2):
            with mask(mask=(t < lengths)[..., None]):
                probs_x_t = Vindex(probs_x)[x_prev, x_curr]
                x_prev, x_curr = (
                    x_curr,
                    numpyro.sample("x", dist.Categorical(probs_x_t), infer=PARALLEL),
                )
                with numpyro.plate("tones", data_dim, dim=-1):
                    probs_y_t = probs_y[x_curr.squeeze(-1)]
                    numpyro.sample("y", dist.Bernoulli(probs_y_t), obs=y)
        return (x_prev, x_curr, t + 1), None

    x_prev = jnp.zeros((num_sequences, 1), dtype=jnp.int32)
    x_curr = jnp.zeros((num_sequences, 1), dtype=jnp.int32)
    scan(transition_fn, (x_prev, x_curr, 0), jnp.swapaxes(sequences, 0, 1), history=2)


# -- examples/capture_recapture.py ----------------------------------------------------------------


def capture_recapture(first, phi_of, capture_history, rho):
    """The part that the five models of the example share, `phi_of` apart."""
    N, T = capture_history.shape

    def transition_fn(carry, y):
        first_capture_mask, z = carry
        phi = phi_of()
        with numpyro.plate("animals", N, dim=-1):
            with handlers.mask(mask=first_capture_mask):
                mu_z_t = first_capture_mask * phi * z + (1 - first_capture_mask)
                z = numpyro.sample(
                    "z", dist.Bernoulli(dist.util.clamp_probs(mu_z_t)), infer=PARALLEL
                )
                mu_y_t = rho * z
                numpyro.sample("y", dist.Bernoulli(dist.util.clamp_probs(mu_y_t)), obs=y)
        first_capture_mask = first_capture_mask | y.astype(bool)
        return (first_capture_mask, z), None

    z = jnp.ones(N, dtype=jnp.int32)
    scan(transition_fn, (first, z), jnp.swapaxes(capture_history[:, 1:], 0, 1))


def capture_1(capture_history, sex):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
    first = capture_history[:, 0].astype(bool)
    capture_recapture(first, lambda: phi, capture_history, rho)


def capture_2(capture_history, sex):
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
    first = capture_history[:, 0].astype(bool)
    phi_of = lambda: numpyro.sample("phi", dist.Uniform(0.0, 1.0))  # noqa: E731
    capture_recapture(first, phi_of, capture_history, rho)


def capture_3(capture_history, sex):
    phi_mean = numpyro.sample("phi_mean", dist.Uniform(0.0, 1.0))
    phi_logit_mean = logit(phi_mean)
    phi_sigma = numpyro.sample("phi_sigma", dist.Uniform(0.0, 10.0))
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
    first = capture_history[:, 0].astype(bool)

    def phi_of():
        with handlers.reparam(config={"phi_logit": LocScaleReparam(0)}):
            phi_logit_t = numpyro.sample("phi_logit", dist.Normal(phi_logit_mean, phi_sigma))
        return expit(phi_logit_t)

    capture_recapture(first, phi_of, capture_history, rho)


def capture_4(capture_history, sex):
    phi_male = numpyro.sample("phi_male", dist.Uniform(0.0, 1.0))
    phi_female = numpyro.sample("phi_female", dist.Uniform(0.0, 1.0))
    phi = sex * phi_male + (1.0 - sex) * phi_female
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
    first = capture_history[:, 0].astype(bool)
    capture_recapture(first, lambda: phi, capture_history, rho)


def capture_5(capture_history, sex):
    phi_beta = sex * numpyro.sample("phi_beta", dist.Normal(0.0, 10.0))
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
    first = capture_history[:, 0].astype(bool)
    phi_of = lambda: expit(phi_beta + numpyro.sample("phi_gamma", dist.Normal(0.0, 10.0)))  # noqa: E731
    capture_recapture(first, phi_of, capture_history, rho)


# -- toy_mixture_model_discrete_enumeration.py, gmm.ipynb, discrete_imputation.ipynb, ... ----------


def toy_mixture(prior, obs, num_obs):
    p_A = numpyro.sample("p_A", dist.Beta(1, 1))
    p_B = numpyro.sample("p_B", dist.Beta(jnp.ones(2), jnp.ones(2)).to_event(1))
    p_C = numpyro.sample("p_C", dist.Beta(jnp.ones(2), jnp.ones(2)).to_event(1))
    with numpyro.plate("data_plate", num_obs):
        A = numpyro.sample("A", dist.Bernoulli(p_A), obs=obs["A"])
        B = numpyro.sample("B", dist.Bernoulli(Vindex(p_B)[A]), infer={"enumerate": "parallel"})
        numpyro.sample("C", dist.Bernoulli(Vindex(p_C)[B]), obs=obs["C"])


@config_enumerate
def gmm_notebook(data):
    K = 2
    weights = numpyro.sample("weights", dist.Dirichlet(0.5 * jnp.ones(K)))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with numpyro.plate("components", K):
        locs = numpyro.sample("locs", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", len(data)):
        assignment = numpyro.sample("assignment", dist.Categorical(weights))
        numpyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def zero_inflated_regression(X, Y):
    """examples/zero_inflated_poisson.py: the gate is a mixture inside the distribution."""
    D_X = X.shape[1]
    b1 = numpyro.sample("b1", dist.Normal(0.0, 1.0).expand([D_X]).to_event(1))
    b2 = numpyro.sample("b2", dist.Normal(0.0, 1.0).expand([D_X]).to_event(1))
    q = expit(jnp.dot(X, b1[:, None])).reshape(-1)
    lam = jnp.exp(jnp.dot(X, b2[:, None]).reshape(-1))
    with numpyro.plate("obs", X.shape[0]):
        numpyro.sample("Y", dist.ZeroInflatedPoisson(gate=q, rate=lam), obs=Y)


def dihedral_mixture(data, num_data, num_mix_comp=2):
    """examples/ssbvm_mixture.py, the hyperpriors fixed."""
    mix_weights = numpyro.sample("mix_weights", dist.Dirichlet(jnp.ones((num_mix_comp,))))
    with numpyro.plate("mixture", num_mix_comp):
        phi_loc = numpyro.sample("phi_loc", dist.VonMises(jnp.pi, 2.0))
        psi_loc = numpyro.sample("psi_loc", dist.VonMises(0.0, 0.1))
        phi_conc = numpyro.sample("phi_conc", dist.Beta(2.0, 2.0))
        psi_conc = numpyro.sample("psi_conc", dist.Beta(2.0, 2.0))
        corr_scale = numpyro.sample("corr_scale", dist.Beta(2.0, 10.0))
    with numpyro.plate("obs_plate", num_data, dim=-1):
        assign = numpyro.sample("mix_comp", dist.Categorical(mix_weights), infer=PARALLEL)
        sine = dist.SineBivariateVonMises(
            phi_loc=phi_loc[assign],
            psi_loc=psi_loc[assign],
            phi_concentration=10 * phi_conc[assign],
            psi_concentration=10 * psi_conc[assign],
            weighted_correlation=corr_scale[assign],
        )
        return numpyro.sample("phi_psi", sine, obs=data)


def semi_supervised_hmm(transition_prior, emission_prior, categories, words, unsupervised):
    """examples/hmm.py: the forward recursion is the user's own, in a factor."""
    num_categories, num_words = transition_prior.shape[0], emission_prior.shape[0]
    transition_prob = numpyro.sample(
        "transition_prob",
        dist.Dirichlet(jnp.broadcast_to(transition_prior, (num_categories, num_categories))),
    )
    emission_prob = numpyro.sample(
        "emission_prob",
        dist.Dirichlet(jnp.broadcast_to(emission_prior, (num_categories, num_words))),
    )
    numpyro.sample("categories", dist.Categorical(transition_prob[categories[:-1]]),
                   obs=categories[1:])  # fmt: skip
    numpyro.sample("words", dist.Categorical(emission_prob[categories]), obs=words)
    trans, emit = jnp.log(transition_prob), jnp.log(emission_prob)

    def forward(log_prob, word):
        log_prob = jax.nn.logsumexp(log_prob[:, None] + trans + emit[:, word], axis=0)
        return log_prob, None

    log_prob, _ = jax.lax.scan(forward, emit[:, unsupervised[0]], unsupervised[1:])
    numpyro.factor("forward_log_prob", jax.nn.logsumexp(log_prob, axis=0, keepdims=True))


def imputation(A, B, Y):
    """notebooks/source/discrete_imputation.ipynb, impmissmodel."""
    ntotal = A.shape[0]
    A_isobs = A >= 0
    mu_A = numpyro.sample("mu_A", dist.Normal(0, 2.5))
    b_B_A = numpyro.sample("b_B_A", dist.Normal(0, 2.5))
    b_A = numpyro.sample("b_A", dist.Normal(0, 2.5))
    b_B = numpyro.sample("b_B", dist.Normal(0, 2.5))
    s_Y = numpyro.sample("s_Y", dist.HalfCauchy(2.5))
    with numpyro.plate("obsmodel", 2):
        p_Aobs = numpyro.sample("p_Aobs", dist.Beta(1, 1))
    with numpyro.plate("obs", ntotal):
        eta_A = mu_A + B * b_B_A
        Aimp = numpyro.sample("A", dist.Bernoulli(logits=eta_A).mask(False), infer=PARALLEL)
        log_prob = dist.Bernoulli(logits=eta_A).log_prob(Aimp)
        log_prob = jnp.where(A_isobs & (Aimp != A), -jnp.inf, log_prob)
        numpyro.factor("obs_A", log_prob)
        eta_Y = b_A * Aimp + b_B * B
        numpyro.sample("obs_Y", dist.Normal(eta_Y, s_Y), obs=Y)
        eta_Aobs = jnp.where(Aimp, p_Aobs[0], p_Aobs[1])
        numpyro.sample("obs_Aobs", dist.Bernoulli(probs=eta_Aobs), obs=A_isobs)


def truncated_counts(x):
    """notebooks/source/truncated_distributions.ipynb: an unknown lower bound of the support."""
    low = numpyro.sample("low", dist.Categorical(0.2 * jnp.ones((5,))))
    rate = numpyro.sample("rate", dist.LogNormal(1, 1))
    with numpyro.plate("observations", len(x)):
        below = dist.Poisson(rate).log_prob(jnp.arange(5)[:, None])
        lost = jnp.where(jnp.arange(5)[:, None] < low, jnp.exp(below), 0.0).sum(-2, keepdims=True)
        numpyro.factor("bound", jnp.where(x < low, -jnp.inf, 0.0) - jnp.log1p(-lost))
        numpyro.sample("x", dist.Poisson(rate), obs=x)


@dataclass(frozen=True)
class Case:
    """A program with its arguments.

    Attributes:
        latents: given to `bind`; None: by the rule.
        plates: dimensions that plates use, for NumPyro's enumeration; 1 by default.
        masked: log of the number of values of masked latents, which NumPyro counts.
        shapes: shape and number of values of the latents: compare with full enumeration instead
            (NumPyro's own fails on many programs with a scan).
        integer: dtype of the latents, where the program's carry asks for one.
    """

    name: str
    program: Callable
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    latents: tuple[str, ...] | None = None
    plates: int = 1
    masked: float = 0.0
    shapes: dict[str, tuple[tuple[int, ...], int]] | None = None
    integer: Any = int


POSITIONS = np.array([0, 0, 1, 2])
ANNOTATIONS = RNG.integers(0, 3, (6, 4))
SEQUENCES, LENGTHS = RNG.integers(0, 2, (2, 4, 3), np.int32), np.array([4, 2])
OFF = float((4 - LENGTHS).sum() * np.log(2.0))
PATH = ((4, 2, 1), 2)
HIDDEN = argparse.Namespace(hidden_dim=2)
CAPTURES = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]])
SEX = np.array([0.0, 1.0, 1.0])
ALIVE = {"z": ((3, 3), 2)}
BEFORE = float(np.log(2.0) * sum(np.argmax(row) for row in CAPTURES))
TOY = {"A": RNG.integers(0, 2, 9), "C": RNG.integers(0, 2, 9)}
CAUSES = np.array([0, 1, -1, 1, -1, 0, -1])

EXAMPLES = [
    Case("annotation: multinomial", multinomial, (ANNOTATIONS,), plates=2),
    Case("annotation: Dawid-Skene", dawid_skene, (POSITIONS, ANNOTATIONS), plates=2),
    Case(
        "annotation: MACE",
        mace,
        (POSITIONS[:3], ANNOTATIONS[:2, :3]),
        shapes={"c": ((2, 1), 3), "s": ((2, 3), 2)},
    ),
    Case(
        "annotation: hierarchical",
        hierarchical_dawid_skene,
        (POSITIONS, ANNOTATIONS),
        plates=2,
        latents=("c",),
    ),
    Case("annotation: item difficulty", item_difficulty, (ANNOTATIONS,), plates=2, latents=("c",)),
    Case(
        "annotation: logistic",
        logistic_random_effects,
        (POSITIONS, ANNOTATIONS),
        plates=2,
        latents=("c",),
    ),
    Case(
        "hmm_enum 1",
        hmm_1,
        (SEQUENCES, LENGTHS),
        {"args": HIDDEN},
        masked=OFF,
        shapes={"x": PATH},
        integer=np.int32,
    ),
    Case(
        "hmm_enum 2",
        hmm_2,
        (SEQUENCES, LENGTHS),
        {"args": HIDDEN},
        masked=OFF,
        shapes={"x": PATH},
        integer=np.int32,
    ),
    Case(
        "hmm_enum 3",
        hmm_3,
        (SEQUENCES, LENGTHS),
        {"args": argparse.Namespace(hidden_dim=4)},
        masked=2 * OFF,
        shapes={"w": PATH, "x": PATH},
        integer=np.int32,
    ),
    Case(
        "hmm_enum 4",
        hmm_4,
        (SEQUENCES, LENGTHS),
        {"args": argparse.Namespace(hidden_dim=4)},
        masked=2 * OFF,
        shapes={"w": PATH, "x": PATH},
        integer=np.int32,
    ),
    Case(
        "hmm_enum 6",
        hmm_6,
        (SEQUENCES, LENGTHS),
        {"args": HIDDEN},
        masked=OFF,
        shapes={"x": PATH},
        integer=np.int32,
    ),
    Case(
        "capture_recapture 1",
        capture_1,
        (CAPTURES, SEX),
        shapes=ALIVE,
        integer=np.int32,
        masked=BEFORE,
    ),
    Case(
        "capture_recapture 2",
        capture_2,
        (CAPTURES, SEX),
        shapes=ALIVE,
        integer=np.int32,
        masked=BEFORE,
        latents=("z",),
    ),
    Case(
        "capture_recapture 3",
        capture_3,
        (CAPTURES, SEX),
        shapes=ALIVE,
        integer=np.int32,
        masked=BEFORE,
        latents=("z",),
    ),
    Case(
        "capture_recapture 4",
        capture_4,
        (CAPTURES, SEX),
        shapes=ALIVE,
        integer=np.int32,
        masked=BEFORE,
    ),
    Case(
        "capture_recapture 5",
        capture_5,
        (CAPTURES, SEX),
        shapes=ALIVE,
        integer=np.int32,
        masked=BEFORE,
        latents=("z",),
    ),
    Case("toy mixture", toy_mixture, ({"A": 1.0}, TOY, 9)),
    Case("gmm notebook", gmm_notebook, (np.array([0.0, 1.0, 10.0, 11.0, 12.0]),)),
    Case(
        "zero-inflated regression",
        zero_inflated_regression,
        (RNG.normal(size=(12, 2)), RNG.poisson(1.0, 12)),
    ),
    Case("dihedral mixture", dihedral_mixture, (RNG.uniform(-3, 3, (8, 2)), 8)),
    Case(
        "semi-supervised HMM",
        semi_supervised_hmm,
        (
            np.ones(2),
            np.full(3, 0.5),
            RNG.integers(0, 2, 6),
            RNG.integers(0, 3, 6),
            RNG.integers(0, 3, 8),
        ),
        shapes={},
    ),
    Case(
        "discrete imputation",
        imputation,
        (CAUSES, RNG.integers(0, 2, 7), RNG.normal(size=7)),
        shapes={"A": ((7,), 2)},
        masked=7 * float(np.log(2.0)),
    ),
    Case(
        "truncated counts",
        truncated_counts,
        (np.array([3, 4, 2, 6, 3]),),
        shapes={"low": ((), 5)},
    ),
]


@jax.jit
def _log_z(model, params):
    return model.log_partition(params), model.log_prior(params)


def theirs(case: Case, params: dict) -> Callable:
    """The joint density by NumPyro's enumeration over funsors, or by full enumeration."""
    if case.shapes is not None:
        program = partial(case.program, **case.kwargs)
        return brute.Brute(program, case.args, params, case.shapes, case.integer).log_z_at
    known = enum(config_enumerate(case.program), first_available_dim=-1 - case.plates)
    return lambda p: float(log_density(known, case.args, case.kwargs, p)[0])


def check(case: Case) -> None:
    model = ep.bind(case.program, *case.args, latents=case.latents, **case.kwargs)
    assert len(model.plan.sites) > 0
    points = [random_params(model, seed) for seed in (11, 12)]
    exact = theirs(case, points[0])
    for params in points:
        log_z, log_prior = _log_z(model, params)
        want = exact(params) - case.masked
        assert float(log_z + log_prior) == pytest.approx(want, abs=1e-9, rel=1e-9)
    fit(model)


def fit(model) -> None:
    """A few steps: finite, monotone, and the posterior of every latent is a distribution."""
    start = {k: np.asarray(v) for k, v in random_params(model, 5).items()}
    method = ep.EM() if model.latents else ep.MAP()
    trace = []
    for state, info in itertools.islice(ep.steps(model, method, init=start), 4):
        trace.append(float(info.objective))
        params = state.params
    assert np.isfinite(trace).all()
    assert (np.diff(trace) > -1e-9 * np.abs(trace[:-1])).all(), trace
    for name in set(model.latents) - set(model.structure.continuous):
        latent = marginals(model, params)[name]
        np.testing.assert_allclose(latent.probs.sum(-1), 1.0, atol=1e-9)


# One program of each kind runs by default; the rest with -m "".
QUICK = {
    "annotation: multinomial", "annotation: item difficulty", "hmm_enum 1", "hmm_enum 6",
    "capture_recapture 2", "toy mixture", "discrete imputation", "DiscreteUniform latent",
    "factor in a scan", "scale and mask", "numpyro.param", "loop over sites", "T = 1",
    "two scans", "scan without inputs", "closure over data", "multinomial",
}  # fmt: skip


def parametrised(cases):
    slow = pytest.mark.exhaustive
    return [pytest.param(c, id=c.name, marks=() if c.name in QUICK else slow) for c in cases]


@pytest.mark.slow
@pytest.mark.parametrize("case", parametrised(EXAMPLES))
def test_examples_of_numpyro(case):
    check(case)


@pytest.mark.exhaustive
def test_continuous_latents_beside_discrete_ones_are_integrated():
    """The annotation model with item difficulties, with nothing said about its latents."""
    model = ep.bind(item_difficulty, ANNOTATIONS)
    assert model.latents == ("c", "theta_decentered")
    fit(model)


@pytest.mark.slow
def test_a_chain_of_states_whose_law_is_latent_is_bound_and_refused_by_the_exact_e_steps():
    """A continuous latent at each step, and a discrete chain: a branch for every path."""
    model = ep.bind(capture_2, CAPTURES, SEX)
    assert "phi" in model.latents
    assert "only by simulation" in model.plan["phi"].handled_by
    with pytest.raises(ep.ModelError, match=r"'phi'.*MonteCarlo"):
        ep.fit(model, ep.EM(), progress=False)


# -- stranger programs ---------------------------------------------------------------------------


def bernoulli_probit(y, x):
    w = numpyro.sample("w", dist.Beta(2.0, 2.0))
    with numpyro.plate("side", 2):
        b = numpyro.sample("b", dist.Normal(0.0, 2.0))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(w))
        numpyro.sample("y", dist.BernoulliLogits(b[z] * x), obs=y)


def uniform_switch(y):
    """A change point: a DiscreteUniform latent that is compared with the time of each row."""
    with numpyro.plate("regime", 2):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    when = numpyro.sample("when", dist.DiscreteUniform(0, len(y) - 1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Poisson(jnp.where(jnp.arange(len(y)) < when, rate[0], rate[1])),
                       obs=y)  # fmt: skip


def logits_gating(y, x):
    """Mixture of experts: logits from vector covariates, one component fixed at zero."""
    gate = numpyro.sample("gate", dist.Normal(0, 1).expand([x.shape[1], 2]).to_event(2))
    with numpyro.plate("expert", 3):
        b = numpyro.sample("b", dist.Normal(0, 3).expand([x.shape[1]]).to_event(1))
    s = numpyro.sample("s", dist.LogNormal(0, 1))
    logits = jnp.concatenate([x @ gate, jnp.zeros((len(x), 1))], -1)
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(logits=logits))
        numpyro.sample("y", dist.Normal((b[z] * x).sum(-1), s), obs=y)


def mixture_of_mixtures(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("k", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
    inner = numpyro.sample("inner", dist.Beta(2, 2))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        parts = dist.Normal(mu[z][..., None] + jnp.array([0.0, 1.0]), jnp.array([1.0, 3.0]))
        mixing = dist.Categorical(jnp.stack([inner, 1 - inner]))
        numpyro.sample("y", dist.MixtureSameFamily(mixing, parts), obs=y)


def zero_inflated_states(y):
    with numpyro.plate("k", 2):
        gate = numpyro.sample("gate", dist.Beta(1, 1))
        rate = numpyro.sample("rate", dist.Gamma(2, 1))
        A = numpyro.sample("A", dist.Dirichlet(jnp.ones(2)))

    def body(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.ZeroInflatedPoisson(gate[z], rate[z]), obs=y)
        return z, None

    scan(body, 0, y)


def lkj_mixture(y):
    K, D = 2, y.shape[1]
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(K)))
    with numpyro.plate("k", K):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([D]).to_event(1))
        sd = numpyro.sample("sd", dist.HalfNormal(2).expand([D]).to_event(1))
        L = numpyro.sample("L", dist.LKJCholesky(D, 2.0))
    tril = sd[..., None] * L
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.MultivariateNormal(mu[z], scale_tril=tril[z]), obs=y)


def factor_in_plate(y, bonus):
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
        numpyro.factor("nudge", jnp.where(z == 1, bonus, 0.0))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def factor_in_scan(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    stay = numpyro.sample("stay", dist.Beta(5, 1))

    def body(z_prev, y):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
        numpyro.factor("sticky", jnp.where(z == z_prev, jnp.log(stay), jnp.log1p(-stay)))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    scan(body, 0, y)


def scaled_and_masked(y, use):
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        with handlers.scale(scale=0.5), handlers.mask(mask=use):
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def reparametrised(y):
    m = numpyro.sample("m", dist.Normal(0, 3))
    t = numpyro.sample("t", dist.HalfNormal(2))
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    with handlers.reparam(config={"mu": LocScaleReparam(0)}):
        with numpyro.plate("k", 3):
            mu = numpyro.sample("mu", dist.Normal(m, t))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def with_params(y):
    w = numpyro.param("w", jnp.array([0.3, 0.7]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]), constraint=constraints.ordered_vector)
    s = numpyro.param("s", 1.0, constraint=constraints.interval(0.1, 5.0))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], s), obs=y)


def events_with_gaps(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("k", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([y.shape[1]]).to_event(1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0).to_event(1), obs=y)


def events_without_gaps(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("k", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([y.shape[1]]).to_event(1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        seen = dist.Normal(mu[z], 1.0).mask(~np.isnan(y)).to_event(1)
        numpyro.sample("y", seen, obs=jnp.nan_to_num(y))


def multinomial_topics(counts):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("k", 2):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(counts.shape[1])))
    total = counts.sum(-1)
    with numpyro.plate("n", len(counts)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Multinomial(total, p[z], total_count_max=int(total.max())),
                       obs=counts)  # fmt: skip


def dirichlet_multinomial(counts):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("k", 2):
        a = numpyro.sample("a", dist.Gamma(2, 1).expand([counts.shape[1]]).to_event(1))
    with numpyro.plate("n", len(counts)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.DirichletMultinomial(a[z], counts.sum(-1)), obs=counts)


def stacked_plates(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    with numpyro.plate_stack("p", y.shape):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def subsample_none(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    with numpyro.plate("n", len(y), subsample_size=None) as index:
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=jnp.asarray(y)[index])


def python_loop(y):
    """A short chain written as a loop, no plate and no scan."""
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    A = numpyro.sample("A", dist.Dirichlet(jnp.ones((2, 2))).to_event(1))
    z = 0
    for t in range(len(y)):
        z = numpyro.sample(f"z_{t}", dist.Categorical(A[z]))
        numpyro.sample(f"y_{t}", dist.Normal(mu[z], 1.0), obs=y[t])


def one_component(y, K=1):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(K)))
    with numpyro.plate("k", K):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def short_chain(y):
    with numpyro.plate("k", 2):
        A = numpyro.sample("A", dist.Dirichlet(2 * jnp.ones(2)))
        mu = numpyro.sample("mu", dist.Normal(0, 5))

    def body(carry, y):
        z, t = carry
        z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, jnp.ones(2) / 2, A[z])))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return (z, t + 1), None

    scan(body, (0, 0), y)


def two_scans(y, x):
    with numpyro.plate("k", 2):
        A = numpyro.sample("A", dist.Dirichlet(2 * jnp.ones(2)))
        mu = numpyro.sample("mu", dist.Normal(0, 5))

    def body(name):
        def step(z, y):
            z = numpyro.sample(f"z_{name}", dist.Categorical(A[z]))
            numpyro.sample(f"y_{name}", dist.Normal(mu[z], 1.0), obs=y)
            return z, None

        return step

    scan(body("a"), 0, y)
    scan(body("b"), 1, x)


def scan_without_inputs(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    stay = numpyro.sample("stay", dist.Beta(5, 2))
    rows = jnp.asarray(y)

    def body(carry, _):
        z, t = carry
        z = numpyro.sample("z", dist.Bernoulli(jnp.where(z == 1, stay, 1 - stay)))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=rows[t])
        return (z, t + 1), None

    scan(body, (0, 0), None, length=len(y))


def dict_carry(data):
    with numpyro.plate("k", 2):
        A = numpyro.sample("A", dist.Dirichlet(2 * jnp.ones(2)))
        mu = numpyro.sample("mu", dist.Normal(0, 5))
    phi = numpyro.sample("phi", dist.Normal(0, 1))

    def body(carry, row):
        z = numpyro.sample("z", dist.Categorical(A[carry["state"]]))
        loc = mu[z] + phi * carry["last"] + 0.1 * row["x"]
        numpyro.sample("y", dist.Normal(loc, 1.0), obs=row["y"])
        return {"state": z, "last": row["y"]}, None

    scan(body, {"state": 0, "last": jnp.zeros(())}, data)


def one_hot_einsum(y, table):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    b = numpyro.sample("b", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        loc = jnp.einsum("...k,kd,d->...", nn.one_hot(z, 3), table, b)
        numpyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def closure(y, K):
    held = jnp.asarray(y)

    def program():
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(K)))
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([K]).to_event(1))
        with numpyro.plate("n", len(held)):
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=held)

    return program


def keywords(y, *, options, scale=1.0):
    w = numpyro.sample("w", dist.Dirichlet(options["prior"] * jnp.ones(options["K"])))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([options["K"]]).to_event(1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], scale), obs=y)


def pandas_columns(frame):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    with numpyro.plate("n", frame.shape[0]):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=frame)


def beta_binomial_mixture(y, total):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("k", 2):
        m = numpyro.sample("m", dist.Beta(2, 2))
        c = numpyro.sample("c", dist.Gamma(2, 0.1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.BetaBinomial(m[z] * c[z], (1 - m[z]) * c[z], total), obs=y)


def deterministic_ordered(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    low = numpyro.sample("low", dist.Normal(0, 5))
    gap = numpyro.sample("gap", dist.HalfNormal(5))
    mu = numpyro.deterministic("mu", jnp.stack([low, low + gap]))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        nu = numpyro.deterministic("mean_of_row", mu[z])
        numpyro.sample("y", dist.StudentT(5.0, nu, 1.0), obs=y)


Y8 = RNG.normal(0, 2, 8)
X8 = RNG.normal(0, 1, (8, 2))
COUNTS = RNG.poisson(2.0, 6)
WORDS = RNG.multinomial(7, [0.2, 0.5, 0.3], 6)
WITH_GAPS = np.where(RNG.random((6, 3)) < 0.3, np.nan, RNG.normal(0, 2, (6, 3)))
Z4, Z8 = {"z": ((4,), 2)}, {"z": ((8,), 2)}

STRANGE = [
    Case("Bernoulli latent", bernoulli_probit, (RNG.integers(0, 2, 8), X8[:, 0]), shapes=Z8),
    Case("DiscreteUniform latent", uniform_switch, (COUNTS,), shapes={"when": ((), 6)}),
    Case("logits of vector covariates", logits_gating, (Y8[:5], X8[:5]), shapes={"z": ((5,), 3)}),
    Case("mixture inside a mixture", mixture_of_mixtures, (Y8,), shapes=Z8),
    Case("zero-inflated states", zero_inflated_states, (COUNTS,), shapes={"z": ((6,), 2)}),
    Case("LKJ", lkj_mixture, (X8,), shapes=Z8),
    Case("factor in a plate", factor_in_plate, (Y8, 0.7), shapes=Z8),
    Case("factor in a scan", factor_in_scan, (Y8[:4],), shapes=Z4),
    Case("scale and mask", scaled_and_masked, (Y8, Y8 > -1), shapes=Z8),
    Case("reparam", reparametrised, (Y8[:5],), shapes={"z": ((5,), 3)}),
    Case("numpyro.param", with_params, (Y8,), shapes=Z8),
    Case("multinomial", multinomial_topics, (WORDS,), shapes={"z": ((6,), 2)}),
    Case("Dirichlet-multinomial", dirichlet_multinomial, (WORDS,), shapes={"z": ((6,), 2)}),
    Case("plate_stack", stacked_plates, (X8[:3],), shapes={"z": ((3, 2), 2)}),
    Case("subsample_size=None", subsample_none, (Y8,), shapes=Z8),
    Case("loop over sites", python_loop, (Y8[:4],), shapes={f"z_{t}": ((), 2) for t in range(4)}),
    Case("one component", one_component, (Y8,), shapes={"z": ((8,), 1)}),
    Case("T = 1", short_chain, (Y8[:1],), shapes={"z": ((1,), 2)}),
    Case("T = 2", short_chain, (Y8[:2],), shapes={"z": ((2,), 2)}),
    Case("two scans", two_scans, (Y8[:3], Y8[3:7]), shapes={"z_a": ((3,), 2), "z_b": ((4,), 2)}),
    Case("scan without inputs", scan_without_inputs, (Y8[:4],), shapes=Z4),
    Case("dicts in a scan", dict_carry, ({"y": Y8[:4], "x": Y8[4:]},), shapes=Z4),
    Case(
        "einsum of one-hot",
        one_hot_einsum,
        (Y8[:5], RNG.normal(size=(3, 2))),
        shapes={"z": ((5,), 3)},
    ),
    Case("closure over data", closure(Y8, 2), (), shapes=Z8),
    Case(
        "keyword dict",
        keywords,
        (Y8,),
        {"options": {"prior": 2.0, "K": 2}, "scale": 0.5},
        shapes=Z8,
    ),
    Case("beta-binomial", beta_binomial_mixture, (RNG.integers(0, 6, 8), 6), shapes=Z8),
    Case("Student-t of a deterministic", deterministic_ordered, (Y8,), shapes=Z8),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", parametrised(STRANGE))
def test_strange_programs(case):
    check(case)


@pytest.mark.slow
def test_gaps_in_events_are_integrated_out():
    model = ep.bind(events_with_gaps, WITH_GAPS)
    params = random_params(model, 11)
    want = brute.Brute(events_without_gaps, (WITH_GAPS,), params, {"z": ((6,), 2)})
    assert float(sum(_log_z(model, params))) == pytest.approx(want.log_z, abs=1e-9)
    assert "missing" in str(model.plan["y"].handled_by)
    fit(model)


def test_pandas_series_is_data():
    series = pd.Series(Y8, index=pd.date_range("2020-01-01", periods=8))
    params = {"w": jnp.array([0.4, 0.6]), "mu": jnp.array([-1.0, 1.5])}
    got = _log_z(ep.bind(pandas_columns, series), params)
    assert got == _log_z(ep.bind(pandas_columns, Y8), params)


def test_namespace_argument_is_not_data():
    args = argparse.Namespace(hidden_dim=2, title="a text", nothing=None)
    model = ep.bind(hmm_1, SEQUENCES, LENGTHS, args=args)
    assert model.plan["x"].role == "latent"
    assert model.plan["x"].structure.startswith("chain")


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=[])
@dataclass(frozen=True)
class Held:
    """A user's own class that makes arrays of JAX of what it is given."""

    values: Any

    def __post_init__(self):
        if isinstance(self.values, np.ndarray):
            object.__setattr__(self, "values", jnp.asarray(self.values))


@pytest.mark.slow
def test_arrays_that_a_class_converts_are_data():
    """Not static: the next data of the same shape share the compiled code."""
    models = [ep.bind(lambda held: pandas_columns(held.values), Held(y)) for y in (Y8, Y8 + 1)]
    assert [len(m.data.leaves) for m in models] == [1, 1]
    assert models[0].structure.static == models[1].structure.static
