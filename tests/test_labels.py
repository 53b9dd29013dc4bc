"""Labels that can be exchanged are found by trying, and put back in order."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import emprob as ep
from emprob.labels import LabelGroup, align_labels, apply_labels, find_labels, permute, symmetry

DATA = np.random.default_rng(0).normal(size=40) * 2


def mixture(x, concentration=(1.0, 1.0, 1.0)):
    k = len(concentration)
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.array(concentration)))
    with numpyro.plate("components", k):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
    sd = numpyro.sample("sd", dist.HalfNormal(3.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], sd), obs=x)


def one_special(x):
    """The first component has its mean at nought; the other two can be exchanged."""
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("components", 3):
        scale = numpyro.sample("scale", dist.HalfNormal(3.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(jnp.where(z == 0, 1.0, 0.0), scale[z]), obs=x)


def hmm(y):
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("states", 3):
        transition = numpyro.sample("A", dist.Dirichlet(jnp.ones(3)))
        mu = numpyro.sample("mu", dist.Normal(0, 5))
    coefficients = numpyro.sample("b", dist.Normal(0, 1).expand([3]).to_event(1))
    first = numpyro.sample("z0", dist.Categorical(pi))

    def step(z, row):
        z = numpyro.sample("z", dist.Categorical(transition[z]))
        level = mu[z] + (coefficients * jnp.array([1.0, 2.0, 4.0])).sum()
        numpyro.sample("y", dist.Normal(level, 1.0), obs=row)
        return z, None

    scan(step, first, y)


def two_mixtures(x):
    weights = [numpyro.sample(f"w{i}", dist.Dirichlet(jnp.ones(2))) for i in range(2)]
    with numpyro.plate("components", 2):
        means = [numpyro.sample(f"m{i}", dist.Normal(0, 5)) for i in range(2)]
    with numpyro.plate("data", len(x)):
        for i in range(2):
            z = numpyro.sample(f"z{i}", dist.Categorical(weights[i]))
            numpyro.sample(f"x{i}", dist.Normal(means[i][z], 1.0), obs=x + i)


@functools.cache
def groups_of_hmm():
    return groups_of(hmm, DATA)


def groups_of(program, *args, **kwargs):
    model = ep.bind(program, *args, **kwargs)
    return model, symmetry(model, model.notes.value.initial)


@pytest.mark.slow
def test_mixture_labels():
    _, groups = groups_of(mixture, DATA)
    assert [(set(g.axes), g.labels) for g in groups] == [({("pi", 0), ("mu", 0)}, (0, 1, 2))]


@pytest.mark.slow
def test_a_transition_matrix_has_two_axes_and_coefficients_of_the_same_length_have_none():
    _, groups = groups_of_hmm()
    (group,) = groups
    assert set(group.axes) == {("pi", 0), ("A", 0), ("A", 1), ("mu", 0)}


def test_a_prior_that_tells_components_apart_leaves_those_it_does_not():
    _, groups = groups_of(mixture, DATA, concentration=(1.0, 2.0, 2.0))
    assert [g.labels for g in groups] == [(1, 2)]
    _, groups = groups_of(mixture, DATA, concentration=(1.0, 2.0, 3.0))
    assert groups == ()


def test_the_prior_does_not_count_when_the_model_is_bound_without_it():
    model = ep.bind(mixture, DATA, concentration=(1.0, 2.0, 3.0), prior=False)
    (group,) = symmetry(model, model.notes.value.initial)
    assert group.labels == (0, 1, 2)


def test_a_component_with_a_law_of_its_own_stays():
    _, groups = groups_of(one_special, DATA)
    assert [g.labels for g in groups] == [(1, 2)]


def test_two_latents_have_a_group_each():
    _, groups = groups_of(two_mixtures, DATA)
    assert {frozenset(g.axes) for g in groups} == {
        frozenset({("w0", 0), ("m0", 0)}),
        frozenset({("w1", 0), ("m1", 0)}),
    }


def test_every_permutation_of_a_group_keeps_the_objective():
    model, (group,) = groups_of_hmm()
    rng = np.random.default_rng(1)
    params = {
        "pi": rng.dirichlet(np.ones(3)), "A": rng.dirichlet(np.ones(3), 3),
        "mu": rng.normal(size=3), "b": rng.normal(size=3),
    }  # fmt: skip
    objective = jax.jit(model.objective)
    level = float(objective(params))
    for order in itertools.permutations(range(3)):
        other = permute(params, group.axes, np.array(order))
        assert float(objective(other)) == pytest.approx(level, rel=1e-11)


def shuffled(reference, group, count, noise, seed):
    """Draws around a reference with labels in random orders, and the draws before shuffling."""
    rng = np.random.default_rng(seed)
    draws = {k: v + noise * rng.normal(size=(2, count, *v.shape)) for k, v in reference.items()}
    orders = np.array([[rng.permutation(group.size) for _ in range(count)] for _ in range(2)])
    return apply_labels(draws, [group], [orders]), draws


def test_shuffled_draws_come_back():
    group = LabelGroup((("A", 0), ("A", 1), ("mu", 0)), 4, (0, 1, 2, 3))
    rng = np.random.default_rng(2)
    reference = {"A": rng.normal(size=(4, 4)), "mu": np.arange(4.0), "other": np.arange(4.0)}
    mixed, straight = shuffled(reference, group, 50, 0.1, 3)
    mixed["other"] = straight["other"]
    back = align_labels(reference, mixed, [group])
    for name in reference:
        np.testing.assert_array_equal(back[name], straight[name])


def test_a_wide_parameter_does_not_outvote_one_that_separates():
    """Weights near a corner in the reference, diffuse in the draws; means far apart."""
    group = LabelGroup((("pi", 0), ("mu", 0)), 3, (0, 1, 2))
    reference = {"pi": np.array([0.0, 0.0, 1.0]), "mu": np.array([0.0, 2.0, -2.0])}
    rng = np.random.default_rng(4)
    draws = {
        "pi": rng.dirichlet(np.ones(3), (2, 100)),
        "mu": reference["mu"] + 0.1 * rng.normal(size=(2, 100, 3)),
    }
    orders = np.array([[rng.permutation(3) for _ in range(100)] for _ in range(2)])
    back = align_labels(reference, apply_labels(draws, [group], [orders]), [group])
    np.testing.assert_array_equal(back["mu"], draws["mu"])


def test_the_order_of_a_single_value_is_the_best_of_all():
    group = LabelGroup((("a", 0), ("b", 0)), 4, (0, 1, 2, 3))
    rng = np.random.default_rng(5)
    reference = {"a": rng.normal(size=4), "b": rng.normal(size=(4, 2))}
    value = {"a": rng.normal(size=4), "b": rng.normal(size=(4, 2))}
    (order,) = find_labels(reference, value, [group])

    def table(params):
        return np.column_stack([params["a"], params["b"]])

    scale = np.concatenate([table(reference), table(value)]).std(0)
    costs = {
        p: (((table(reference) - table(value)[list(p)]) / scale) ** 2).sum()
        for p in itertools.permutations(range(4))
    }
    assert tuple(order) == min(costs, key=costs.get)


def test_labels_outside_the_group_do_not_move():
    group = LabelGroup((("mu", 0),), 3, (1, 2))
    reference = {"mu": np.array([5.0, 0.0, 1.0])}
    back = align_labels(reference, {"mu": np.array([0.0, 1.1, 0.1])}, [group])
    np.testing.assert_array_equal(back["mu"], [0.0, 0.1, 1.1])


def test_finding_labels_leaves_the_width_of_floats_alone():
    with jax.enable_x64(False):
        _, groups = groups_of(mixture, DATA)
        assert len(groups) == 1
