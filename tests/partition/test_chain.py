"""The chain's log-partition against enumeration, log-space autodiff, hmmlearn, and its edges."""

import itertools
from functools import partial

import hmmlearn.hmm
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emprob.partition.chain import chain_factor
from emprob.partition.chain_paths import filter_chain

CLIPPED = float(np.finfo(np.float64).min)


def enumerate_paths(log_trans, log_emit, active=None):
    """log_beta (K,) of one sequence by summing over all K^T paths, in extended precision."""
    steps, num_states = log_emit.shape
    tables = np.broadcast_to(log_trans, (steps, num_states, num_states)).astype(np.longdouble)
    log_emit = np.asarray(log_emit, np.longdouble)
    if active is not None:
        tables[~np.asarray(active)] = -np.log(num_states)
    out = np.zeros(num_states, np.longdouble)
    for start in range(num_states):
        for path in itertools.product(range(num_states), repeat=steps):
            before = (start, *path[:-1])
            terms = [tables[t, i, j] + log_emit[t, j] for t, (i, j) in enumerate(zip(before, path))]
            out[start] += np.exp(np.sum(np.array(terms, np.longdouble)))
    with np.errstate(divide="ignore"):
        return np.log(out).astype(float)


def reference(log_trans, log_emit, active=None):
    """The textbook recursion in log-space for plain autodiff: finite tables only."""
    steps, num_states = log_emit.shape[:2]
    table = log_trans[..., None] if log_trans.ndim < 4 and log_emit.ndim == 3 else log_trans
    table = jnp.broadcast_to(table, (steps, *table.shape[-log_emit.ndim :]))
    if active is not None:
        live = active.reshape((steps, 1, 1) + active.shape[1:])
        table = jnp.where(live, table, -jnp.log(num_states))

    def step(beta, xs):
        return jax.nn.logsumexp(xs[0] + (xs[1] + beta)[None], axis=1), None

    start = jnp.zeros(log_emit.shape[1:])
    return jax.lax.scan(step, start, (table, log_emit), reverse=True)[0]


def tables(seed, trans_shape, emit_shape, masked=False):
    """Random unnormalised tables, and a mask if asked for."""
    rng = np.random.default_rng(seed)
    log_trans = jnp.array(rng.normal(size=trans_shape))
    log_emit = jnp.array(2.0 * rng.normal(size=emit_shape))
    steps = (emit_shape[0],) + emit_shape[2:]
    return log_trans, log_emit, jnp.array(rng.random(steps) < 0.6) if masked else None


SHAPES = [
    ((3, 3), (5, 3)),
    ((5, 3, 3), (5, 3)),
    ((2, 2), (6, 2)),
    ((3, 3), (4, 3, 2)),
    ((1, 3, 3, 1), (4, 3, 2)),
    ((1, 3, 3, 2), (4, 3, 2)),
    ((4, 3, 3, 1), (4, 3, 2)),
    ((4, 3, 3, 2), (4, 3, 2)),
    ((1, 1), (4, 1)),
    ((3, 3), (1, 3)),
    ((1, 3, 3), (1, 3)),
]
everything = pytest.mark.parametrize(
    ("trans_shape", "emit_shape", "masked"),
    [(*shapes, masked) for shapes in SHAPES for masked in (False, True)],
)


def by_sequence(log_trans, log_emit, active):
    """Split batched tables into what ``enumerate_paths`` takes."""
    if log_emit.ndim == 2:
        return [(np.asarray(log_trans), np.asarray(log_emit), active)]
    log_trans = log_trans[None, :, :, None] if log_trans.ndim == 2 else log_trans
    log_trans = np.broadcast_to(log_trans, (*log_trans.shape[:3], log_emit.shape[2]))
    return [
        (log_trans[..., b], np.asarray(log_emit[..., b]), None if active is None else active[:, b])
        for b in range(log_emit.shape[2])
    ]


@pytest.mark.slow
@everything
@pytest.mark.parametrize("zeros", [0.0, -np.inf, CLIPPED])
def test_value_is_the_sum_over_all_paths(trans_shape, emit_shape, masked, zeros):
    log_trans, log_emit, active = tables(1, trans_shape, emit_shape, masked)
    if zeros:
        rng = np.random.default_rng(5)
        log_trans = jnp.where(rng.random(trans_shape) < 0.3, zeros, log_trans)
        log_emit = jnp.where(rng.random(emit_shape) < 0.2, zeros, log_emit)
    got = np.asarray(chain_factor(log_trans, log_emit, active)).reshape(emit_shape[1], -1).T
    for row, sequence in zip(got, by_sequence(log_trans, log_emit, active), strict=True):
        np.testing.assert_allclose(row, enumerate_paths(*sequence), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@everything
def test_gradient_and_hessian_are_those_of_the_log_space_recursion(trans_shape, emit_shape, masked):
    log_trans, log_emit, active = tables(2, trans_shape, emit_shape, masked)
    cotangent = jnp.array(np.random.default_rng(3).normal(size=emit_shape[1:]))

    def scalar(factor, parts):
        # the square makes the value itself enter the second derivative
        return jnp.sum(cotangent * factor(*parts, active)) ** 2 / 10.0

    def all_orders(factor, parts):
        fun = partial(scalar, factor)
        orders = jax.value_and_grad(fun)(parts), jax.hessian(fun)(parts)
        return *orders, jax.jacrev(jax.grad(fun))(parts)

    parts = (log_trans, log_emit)
    got = jax.jit(partial(all_orders, chain_factor))(parts)
    expected = jax.jit(partial(all_orders, reference))(parts)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [-np.inf, CLIPPED])
def test_gradients_at_structural_zeros_are_zero_and_finite(zero):
    log_trans, log_emit, _ = tables(4, (3, 3), (6, 3))
    log_trans = log_trans.at[1, 0].set(zero).at[2, :2].set(zero)
    log_emit = log_emit.at[2, 1].set(zero)

    def scalar(parts):
        return jax.nn.logsumexp(chain_factor(*parts))

    def large_negative(parts):
        return jax.nn.logsumexp(reference(*(jnp.maximum(x, -300.0) for x in parts)))

    got = jax.grad(scalar)((log_trans, log_emit))
    expected = jax.grad(large_negative)((log_trans, log_emit))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), got, expected)
    assert got[0][1, 0] == 0.0 and got[1][2, 1] == 0.0
    hessians = (
        jax.hessian(scalar)((log_trans, log_emit)),
        jax.jacrev(jax.grad(scalar))((log_trans, log_emit)),
    )
    for leaf in jax.tree.leaves(hessians):
        assert np.isfinite(leaf).all()
    np.testing.assert_allclose(
        jax.hessian(scalar)((log_trans, log_emit))[0][0],
        jax.hessian(large_negative)((log_trans, log_emit))[0][0],
        atol=1e-10,
    )


def forced(gap):
    """A left-right chain whose observations prefer, by exp(gap), a state it can no longer be in."""
    log_trans = jnp.array([[np.log(0.5), np.log(0.5)], [-np.inf, 0.0]])
    log_emit = jnp.zeros((4, 2)).at[1, 1].set(-gap).at[2, 0].set(gap)
    return log_trans, log_emit


@pytest.mark.slow
@pytest.mark.parametrize("gap", [10.0, 300.0, 480.0, 900.0, 5000.0])
@pytest.mark.parametrize("start", [0, 1])
def test_underflow_is_noticed_and_the_gradient_stays_right(gap, start):
    log_trans, log_emit = forced(gap)

    def ours(trans, emit):
        return chain_factor(trans, emit)[start]

    def plain(trans, emit):
        return reference(jnp.where(jnp.isneginf(trans), -1e6, trans), emit)[start]

    for i in range(3):
        np.testing.assert_allclose(
            jax.jit((ours, jax.grad(ours), jax.grad(ours, 1))[i])(log_trans, log_emit),
            (plain, jax.grad(plain), jax.grad(plain, 1))[i](log_trans, log_emit),
            rtol=1e-11,
            atol=1e-12,
        )
    np.testing.assert_allclose(
        jax.hessian(ours, 1)(log_trans, log_emit),
        jax.hessian(plain, 1)(log_trans, log_emit),
        atol=1e-9,
    )


@pytest.mark.slow
def test_a_long_left_right_chain_agrees_with_log_space():
    rng = np.random.default_rng(6)
    log_trans = jnp.log(jnp.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]]))
    log_emit = jnp.array(-8.0 * rng.random((300, 3)))
    finite = jnp.maximum(log_trans, -1e5)
    np.testing.assert_allclose(
        chain_factor(log_trans, log_emit), reference(finite, log_emit), rtol=1e-12
    )
    np.testing.assert_allclose(
        jax.jacrev(partial(chain_factor, log_trans))(log_emit),
        jax.jacrev(partial(reference, finite))(log_emit),
        atol=1e-12,
    )


@pytest.mark.slow
def test_one_underflowing_sequence_leaves_the_others_alone():
    log_trans, hard = forced(900.0)
    easy = jnp.array(np.random.default_rng(7).normal(size=hard.shape))
    both = jnp.stack([easy, hard], -1)
    weights = jnp.array([0.3, 0.7])

    def batched(trans, emit):
        return weights @ chain_factor(trans, emit) @ jnp.array([1.0, -2.0])

    def alone(trans, emit):
        pair = jnp.stack([chain_factor(trans, emit[..., b]) for b in (0, 1)], -1)
        return weights @ pair @ jnp.array([1.0, -2.0])

    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)
    jax.tree.map(
        close,
        jax.value_and_grad(batched, (0, 1))(log_trans, both),
        jax.value_and_grad(alone, (0, 1))(log_trans, both),
    )


def test_tables_on_wild_scales_are_brought_back():
    log_trans, log_emit, _ = tables(8, (5, 3, 3), (5, 3))
    shifts = jnp.array([900.0, -2000.0, 0.0, 5e4, -3.0])
    moved = chain_factor(log_trans + shifts[:, None, None], log_emit - 7000.0)
    np.testing.assert_allclose(
        moved, chain_factor(log_trans, log_emit) + shifts.sum() - 35000.0, rtol=1e-13
    )


@pytest.mark.parametrize("zero", [-np.inf, CLIPPED])
@pytest.mark.parametrize("varying", [(), (4,)])
def test_an_impossible_sequence_is_minus_infinity_with_zero_gradients(zero, varying):
    log_trans, log_emit, _ = tables(9, (*varying, 3, 3), (4, 3))
    log_emit = log_emit.at[2].set(zero)
    value, back = jax.vjp(chain_factor, log_trans, log_emit)
    assert np.isneginf(value).all()
    for leaf in back(jnp.ones(3)):
        assert (np.asarray(leaf) == 0.0).all()


def test_not_a_number_is_not_swallowed():
    log_trans, log_emit, _ = tables(9, (3, 3), (4, 3))
    assert np.isnan(chain_factor(log_trans, log_emit.at[2, 1].set(jnp.nan))).any()


@pytest.mark.slow
def test_single_precision_notices_its_own_underflow():
    log_trans, log_emit = forced(60.0)
    single = (log_trans.astype(jnp.float32), log_emit.astype(jnp.float32))
    got, grads = jax.value_and_grad(lambda p: chain_factor(*p)[1])(single)
    expected, plain = jax.value_and_grad(lambda p: chain_factor(*p)[1])((log_trans, log_emit))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), grads, plain)


def test_no_steps_give_zeros():
    value, back = jax.vjp(chain_factor, jnp.zeros((2, 2)), jnp.zeros((0, 2)))
    assert value.shape == (2,) and (np.asarray(value) == 0.0).all()
    assert (np.asarray(back(jnp.ones(2))[0]) == 0.0).all()
    assert chain_factor(jnp.zeros((2, 2)), jnp.zeros((0, 2, 5))).shape == (2, 5)


@pytest.mark.slow
def test_finished_sequences_count_for_nothing():
    log_trans, log_emit, _ = tables(10, (3, 3), (7, 3))
    log_trans = jax.nn.log_softmax(log_trans, 1)
    padded = log_emit.at[4:].set(0.0)
    active = jnp.arange(7) < 4

    def scalar(trans, emit, mask):
        return jax.nn.logsumexp(chain_factor(trans, emit, mask))

    close = partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-14)
    close(scalar(log_trans, padded, active), scalar(log_trans, log_emit[:4], None))
    close(
        jax.grad(scalar)(log_trans, padded, active), jax.grad(scalar)(log_trans, log_emit[:4], None)
    )


def hmmlearn_model(rng, num_states):
    model = hmmlearn.hmm.GaussianHMM(num_states, "diag", init_params="", params="")
    model.startprob_ = rng.dirichlet(np.ones(num_states))
    model.transmat_ = rng.dirichlet(np.ones(num_states), num_states)
    model.means_ = rng.normal(size=(num_states, 1)) * 2.0
    model.covars_ = rng.random((num_states, 1)) + 0.5
    return model


@pytest.mark.slow
@pytest.mark.parametrize("num_states", [3, 6])
def test_hmmlearn_score_and_posteriors_with_lengths(num_states):
    rng = np.random.default_rng(11)
    model = hmmlearn_model(rng, num_states)
    lengths = [40, 17, 29]
    data = rng.normal(size=(sum(lengths), 1)) * 2.0
    emit = np.zeros((max(lengths), num_states, len(lengths)))
    for b, part in enumerate(np.split(data, np.cumsum(lengths)[:-1])):
        emit[: len(part), :, b] = model._compute_log_likelihood(part)
    active = np.arange(max(lengths))[:, None] < np.array(lengths)

    def log_partition(emit):
        beta = chain_factor(jnp.log(model.transmat_), emit[1:], jnp.array(active[1:]))
        start = jnp.log(model.startprob_)[:, None] + emit[0]
        return jnp.sum(jax.nn.logsumexp(start + beta, axis=0))

    value, weights = jax.value_and_grad(log_partition)(jnp.array(emit))
    score, posteriors = model.score_samples(data, lengths)
    np.testing.assert_allclose(value, score, rtol=1e-12)
    for b, part in enumerate(np.split(posteriors, np.cumsum(lengths)[:-1])):
        np.testing.assert_allclose(weights[: len(part), :, b], part, atol=1e-11)


@pytest.mark.exhaustive
def test_a_batch_of_starts_equals_one_by_one():
    log_trans, log_emit, _ = tables(12, (5, 3, 3), (5, 9, 3))
    log_trans = log_trans.at[0, 1, 0].set(-jnp.inf)
    log_emit = log_emit.at[0, 3].set(jnp.array([0.0, -2000.0, -2000.0]))

    def scalar(trans, emit):
        return jax.nn.logsumexp(chain_factor(trans, emit))

    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)
    fun = jax.value_and_grad(scalar, (0, 1))
    one_by_one = [fun(a, e) for a, e in zip(log_trans, log_emit, strict=True)]
    jax.tree.map(
        close,
        jax.vmap(fun)(log_trans, log_emit),
        jax.tree.map(lambda *x: jnp.stack(x), *one_by_one),
    )
    shared = jax.vmap(fun, (None, 0))(log_trans[1], log_emit)
    jax.tree.map(lambda x, y: close(x[2], y), shared, fun(log_trans[1], log_emit[2]))
    hessians = jax.vmap(jax.hessian(scalar))(log_trans, log_emit)
    close(hessians[3], jax.hessian(scalar)(log_trans[3], log_emit[3]))


@pytest.mark.slow
def test_it_is_traced_once_and_runs_inside_loops():
    log_trans, log_emit, _ = tables(13, (3, 3), (8, 3))
    traces = []

    @jax.jit
    def ascend(emit):
        traces.append(None)

        def scalar(trans):
            return jax.nn.logsumexp(chain_factor(jax.nn.log_softmax(trans, 1), emit))

        def step(carry):
            count, trans = carry
            return count + 1, trans + 0.1 * jax.grad(scalar)(trans)

        _, trans = jax.lax.while_loop(lambda carry: carry[0] < 30, step, (0, log_trans))
        scanned, _ = jax.lax.scan(
            lambda x, _: (x + 0.1 * jax.grad(scalar)(x), None), log_trans, length=30
        )
        return scalar(log_trans), scalar(trans), scanned - trans

    before, after, difference = ascend(log_emit)
    assert after > before
    np.testing.assert_allclose(difference, 0.0, atol=1e-12)
    ascend(log_emit + 1.0)
    assert len(traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trans_shape", "emit_shape", "masked"),
    [((3, 3), (4, 3), False), ((4, 3, 3), (4, 3), True), ((4, 3, 3, 1), (4, 3, 2), True)],
)
def test_the_filter_never_sees_the_future(trans_shape, emit_shape, masked):
    log_trans, log_emit, active = tables(14, trans_shape, emit_shape, masked)
    log_init = jnp.array(np.random.default_rng(15).normal(size=emit_shape[1:]))
    filtered, predictive = filter_chain(log_init, log_trans, log_emit, active)
    total = jax.nn.logsumexp(log_init, 0) + predictive.sum(0)
    beta = chain_factor(log_trans, log_emit, active)
    np.testing.assert_allclose(total, jax.nn.logsumexp(log_init + beta, 0), rtol=1e-12)
    for t in range(emit_shape[0]):
        varies = log_trans.ndim > 2 and log_trans.shape[0] == emit_shape[0]
        past = log_trans[: t + 1] if varies else log_trans
        mask = None if active is None else active[: t + 1]

        @jax.jit
        def evidence(emit, past=past, mask=mask):
            return jnp.sum(jax.nn.logsumexp(log_init + chain_factor(past, emit, mask), 0))

        marginal = jax.grad(evidence)(log_emit[: t + 1])[-1]
        np.testing.assert_allclose(jnp.exp(filtered[t]), marginal, atol=1e-12)


def test_the_filter_ends_at_an_impossible_observation():
    log_trans, log_emit, _ = tables(16, (3, 3), (5, 3))
    filtered, predictive = filter_chain(jnp.zeros(3), log_trans, log_emit.at[2].set(-jnp.inf))
    assert np.isfinite(predictive[:2]).all() and np.isneginf(predictive[2:]).all()
    assert np.isneginf(filtered[2:]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trans_shape", "emit_shape", "mask_shape"),
    [
        ((3, 3, 2), (4, 3, 2), None),
        ((4, 3, 3), (4, 3, 2), None),
        ((2, 3, 3), (4, 3), None),
        ((2, 2), (4, 3), None),
        ((3, 3), (4,), None),
        ((3, 3), (4, 3), (3,)),
        ((3, 3), (4, 3, 2), (4,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(trans_shape, emit_shape, mask_shape):
    active = None if mask_shape is None else jnp.ones(mask_shape, bool)
    with pytest.raises(ValueError, match="expected .* got"):
        chain_factor(jnp.zeros(trans_shape), jnp.zeros(emit_shape), active)
