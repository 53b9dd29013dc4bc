"""Gaussian integrals, moments, draws, filters and paths against dense linear algebra."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emprob.partition import gaussian, gaussian_chain, gaussian_paths
from emprob.partition.gaussian_chain import Potentials

log_integral, smooth, draw, filter_, dense, paths = (
    jax.jit(function)
    for function in (
        gaussian_chain.log_integral,
        gaussian_chain.smooth,
        gaussian_chain.draw,
        gaussian_chain.filter,
        gaussian.dense,
        gaussian_paths.paths,
    )
)

STEPS = [1, 2, 7, 300]
SIZES = [1, 2, 3, 5]
shapes = pytest.mark.parametrize(
    ("steps", "size"), [(steps, size) for steps in STEPS for size in SIZES]
)
small_shapes = pytest.mark.parametrize(
    ("steps", "size"), [(steps, size) for steps in STEPS[:-1] for size in SIZES]
)
scaled = pytest.mark.parametrize("spread", [0.0, 4.0])


def potentials(seed, steps, size):
    """Random factors by step: all of them, and those that are the latents' prior."""
    rng = np.random.default_rng(seed)
    moves = 0.8 * rng.normal(size=(steps - 1, size, size))
    root = np.eye(size) + 0.3 * rng.normal(size=(steps, size, size))
    noise = root @ root.transpose(0, 2, 1)
    back = np.einsum("tki,tkl->til", moves, noise[1:])
    shift = rng.normal(size=(steps, size))
    prior = Potentials(
        own=noise,
        below=-back.transpose(0, 2, 1),
        carried=np.einsum("til,tlj->tij", back, moves),
        h_own=shift,
        h_carried=-np.einsum("tki,tk->ti", moves, shift[1:]),
    )
    seen = rng.normal(size=(steps, 2, size))
    late = rng.normal(size=(steps - 1, 1, size))
    full = prior._replace(
        own=prior.own + np.einsum("tki,tkj->tij", seen, seen),
        carried=prior.carried + np.einsum("tki,tkj->tij", late, late),
        h_own=prior.h_own + rng.normal(size=(steps, size)),
    )
    return jax.tree.map(jnp.asarray, (full, prior))


def system(seed, steps, size):
    """Random well-conditioned diag, below, h."""
    full = jax.tree.map(np.array, potentials(seed, steps, size)[0])
    full.own[:-1] += full.carried
    full.h_own[:-1] += full.h_carried
    return jax.tree.map(jnp.asarray, (full.own, full.below, full.h_own))


def scales(seed, shape, spread):
    """Units of the latents, between 10^-spread and 10^spread."""
    return 10.0 ** np.random.default_rng(seed).uniform(-spread, spread, shape)


def rescaled(parts, units):
    """The same integral over z / units."""
    diag, below, h = parts
    return (
        diag * units[:, :, None] * units[:, None, :],
        below * units[1:, :, None] * units[:-1, None, :],
        h * units,
    )


def matrix(diag, below):
    """J in full."""
    steps, size = diag.shape[:2]
    full = jnp.zeros((steps, size, steps, size), diag.dtype)
    t = np.arange(steps)
    full = full.at[t, :, t, :].set(0.5 * (diag + diag.swapaxes(1, 2)))
    full = full.at[t[1:], :, t[:-1], :].set(below)
    full = full.at[t[:-1], :, t[1:], :].set(below.swapaxes(1, 2))
    return full.reshape(steps * size, steps * size)


def dense_log_integral(diag, below, h):
    whole, flat = matrix(diag, below), h.ravel()
    quadratic = flat @ jnp.linalg.solve(whole, flat)
    log_det = jnp.linalg.slogdet(whole)[1]
    return 0.5 * (quadratic - log_det + h.size * jnp.log(2.0 * jnp.pi))


def dense_moments(diag, below, h):
    """Means (T, D) and the whole covariance (T, D, T, D), in numpy."""
    covariance = np.linalg.inv(np.asarray(jax.jit(matrix)(diag, below)))
    means = covariance @ np.ravel(h)
    return means.reshape(h.shape), covariance.reshape(*h.shape, *h.shape)


def blocks(covariance):
    """Covariances of each step and of neighbours, from the whole."""
    t = np.arange(len(covariance))
    return covariance[t, :, t, :], covariance[t[:-1], :, t[1:], :]


@pytest.mark.slow
@shapes
@scaled
def test_the_integral_and_the_moments_are_those_of_dense_algebra(steps, size, spread):
    plain = system(1, steps, size)
    units = scales(2, (steps, size), spread)
    parts = rescaled(plain, units)
    got = smooth(*parts)
    means, covariance = dense_moments(*plain)
    covariances, cross = blocks(covariance)
    close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    assert got.positive_definite
    close(got.means * units, means)
    close(got.covariances * units[:, :, None] * units[:, None], covariances)
    close(got.cross * units[:-1, :, None] * units[1:, None], cross)
    expected = jax.jit(dense_log_integral)(*plain) - np.sum(np.log(units))
    np.testing.assert_allclose(log_integral(*parts), expected, rtol=1e-12, atol=1e-10)


@pytest.mark.slow
@shapes
def test_the_gradient_is_that_of_dense_algebra(steps, size):
    parts = system(3, steps, size)
    got = jax.jit(jax.value_and_grad(log_integral, (0, 1, 2)))(*parts)
    expected = jax.jit(jax.value_and_grad(dense_log_integral, (0, 1, 2)))(*parts)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), got, expected)


@pytest.mark.exhaustive
@small_shapes
def test_the_hessian_is_that_of_dense_algebra_in_both_modes(steps, size):
    parts = system(4, steps, size)
    whole, unravel = jax.flatten_util.ravel_pytree(parts)

    def squared(function, x):
        # the square makes the value itself enter the second derivative
        return function(*unravel(x)) ** 2 / 10.0

    ours = partial(squared, log_integral)
    expected = jax.jit(jax.hessian(partial(squared, dense_log_integral)))(whole)
    tolerance = 1e-10 * np.abs(expected).max()
    for hessian in (jax.hessian(ours), jax.jacrev(jax.jacrev(ours))):
        np.testing.assert_allclose(jax.jit(hessian)(whole), expected, atol=tolerance)


def differentiable():
    """Functions of (full, prior), each with several outputs."""

    def parts_of(full, prior):
        diag = full.own.at[:-1].add(full.carried)
        return diag, full.below, full.h_own.at[:-1].add(full.h_carried)

    return {
        "smooth": lambda *x: smooth(*parts_of(*x))[:3],
        "draw": lambda *x: draw(*parts_of(*x), jnp.cos(x[0].h_own)),
        "filter": lambda *x: filter_(*x)[:4],
        "paths": lambda *x: paths(*smooth(*parts_of(*x))[:3]),
        "dense": lambda *x: dense(x[0].own, x[0].h_own)[:4],
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", list(differentiable()))
def test_everything_is_differentiable_twice(name, size):
    point, unravel = jax.flatten_util.ravel_pytree(potentials(5, 3, size))
    rng = np.random.default_rng(6)
    way = jnp.array(rng.normal(size=point.shape))

    def scalar(x):
        leaves = jax.tree.leaves(differentiable()[name](*unravel(x)))
        flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
        return jnp.sum(jnp.sin(flat) * jnp.cos(jnp.arange(flat.size)))

    function, slope = jax.jit(scalar), jax.jit(jax.grad(scalar))
    curvature = jax.jit(lambda x: jax.jvp(jax.grad(scalar), (x,), (way,))[1])
    ahead, behind = point + 1e-6 * way, point - 1e-6 * way
    change = (function(ahead) - function(behind)) / 2e-6
    np.testing.assert_allclose(slope(point) @ way, change, rtol=1e-5, atol=1e-5)
    change = (slope(ahead) - slope(behind)) / 2e-6
    np.testing.assert_allclose(curvature(point), change, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@small_shapes
@scaled
def test_a_draw_is_affine_in_the_noise_with_the_exact_covariance(steps, size, spread):
    plain = system(7, steps, size)
    units = scales(8, (steps, size), spread)
    parts = rescaled(plain, units)
    means, covariance = dense_moments(*plain)
    noise = jnp.array(np.random.default_rng(9).normal(size=(steps, size)))
    jacobian = jax.jit(jax.jacfwd(draw, 3))(*parts, noise) * units[..., None, None]
    close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    close(draw(*parts, jnp.zeros((steps, size))) * units, means)
    close(
        draw(*parts, noise) * units,
        means + np.tensordot(jacobian, noise, 2),
    )
    close(np.tensordot(jacobian, jacobian, ((2, 3), (2, 3))), covariance)


def upto(full, last, t):
    """diag, below, h of the factors of the steps before t, and of ``last``'s factors of t."""
    full, last = (jax.tree.map(np.asarray, x) for x in (full, last))
    own = np.concatenate([full.own[:t], last.own[t : t + 1]])
    h = np.concatenate([full.h_own[:t], last.h_own[t : t + 1]])
    below, carried, h_carried = (
        np.concatenate([x[: max(t - 1, 0)], y[max(t - 1, 0) : t]])
        for x, y in zip(full[1:3] + full[4:], last[1:3] + last[4:])
    )
    own[:t] += carried
    h[:t] += h_carried
    return own, below, h


@pytest.mark.exhaustive
@small_shapes
def test_the_filter_is_the_posterior_of_the_steps_so_far(steps, size):
    full, prior = potentials(10, steps, size)
    got = filter_(full, prior)
    assert got.positive_definite
    close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    for t in range(steps):
        means, covariance = dense_moments(*upto(full, full, t))
        close(got.means[t], means[t])
        close(got.covariances[t], covariance[t, :, t])
        means, covariance = dense_moments(*upto(full, prior, t))
        close(got.predicted_means[t], means[t])
        close(got.predicted_covariances[t], covariance[t, :, t])


def kalman(data, move, noise, loading, error):
    """The textbook recursion from N(0, I): filtered and predicted moments."""
    size = len(move)
    mean, covariance, rows = np.zeros(size), np.eye(size), []
    for t, x in enumerate(data):
        if t:
            mean, covariance = move @ mean, move @ covariance @ move.T + noise
        gain = covariance @ loading.T @ np.linalg.inv(loading @ covariance @ loading.T + error)
        rows.append((mean, covariance))
        mean = mean + gain @ (x - loading @ mean)
        covariance = covariance - gain @ loading @ covariance
        rows[-1] = (mean, covariance, *rows[-1])
    return [np.stack(column) for column in zip(*rows)]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_filter_is_the_kalman_filter(size):
    rng = np.random.default_rng(11)
    steps, move = 300, 0.9 * np.eye(size) + 0.1 * rng.normal(size=(size, size)) / size
    noise, error = 0.3 * np.eye(size) + 0.1, np.array([[0.5]])
    loading, data = rng.normal(size=(1, size)), rng.normal(size=(steps, 1))
    sharp = np.linalg.inv(noise)
    seen = loading.T @ np.linalg.inv(error)
    first = (np.arange(steps) == 0)[:, None, None]
    prior = Potentials(
        own=jnp.where(first, jnp.eye(size), sharp),
        below=jnp.broadcast_to(-sharp @ move, (steps - 1, size, size)),
        carried=jnp.broadcast_to(move.T @ sharp @ move, (steps - 1, size, size)),
        h_own=jnp.zeros((steps, size)),
        h_carried=jnp.zeros((steps - 1, size)),
    )
    full = prior._replace(own=prior.own + seen @ loading, h_own=data @ seen.T)
    got = filter_(full, prior)
    for ours, theirs in zip(got, kalman(data, move, noise, loading, error)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_filter_never_sees_the_future():
    full, prior = potentials(12, 7, 2)
    early = filter_(
        jax.tree.map(lambda x: x[: len(x) - 3], full),
        jax.tree.map(lambda x: x[: len(x) - 3], prior),
    )
    late = filter_(full, prior)
    for ours, longer in zip(early[:4], late[:4]):
        np.testing.assert_allclose(ours, longer[:4], rtol=1e-13)


def moments_of(atoms):
    """Moments of equally weighted paths (n, T, D)."""
    means = atoms.mean(0)
    apart = atoms - means
    covariances = np.einsum("nti,ntj->tij", apart, apart) / len(atoms)
    cross = np.einsum("nti,ntj->tij", apart[:, :-1], apart[:, 1:]) / len(atoms)
    return means, covariances, cross


@pytest.mark.exhaustive
@pytest.mark.parametrize(("steps", "size"), [(t, d) for t in (1, 2, 7, 2000) for d in SIZES])
@scaled
def test_averages_over_the_paths_are_the_moments(steps, size, spread):
    moments = smooth(*system(13, steps, size))
    units = scales(14, (steps, size), spread)
    inputs = (
        moments.means * units,
        moments.covariances * units[:, :, None] * units[:, None],
        moments.cross * units[:-1, :, None] * units[1:, None],
    )
    atoms = np.asarray(paths(*inputs)) / units
    assert atoms.shape == (2 * size + 1, steps, size)
    for ours, exact in zip(moments_of(atoms), moments[:3]):
        np.testing.assert_allclose(ours, exact, rtol=1e-10, atol=1e-10)


def simulated(seed, moves, roots):
    """Moments of z_t = move z_{t-1} + root e_t, from the whole covariance's recursion."""
    rng = np.random.default_rng(seed)
    size = moves.shape[1]
    covariances, cross = [np.eye(size) + 0.5], []
    for move, root in zip(moves, roots):
        cross.append(covariances[-1] @ move.T)
        covariances.append(move @ covariances[-1] @ move.T + root @ root.T)
    means = rng.normal(size=(len(moves) + 1, size))
    return jnp.array(means), jnp.array(np.stack(covariances)), jnp.array(np.stack(cross))


def orthogonal(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("innovation", [0.0, 1e-12, 1e-8, 1e-4])
def test_paths_through_steps_that_are_almost_deterministic(size, innovation):
    rng = np.random.default_rng(15)
    moves = np.stack([orthogonal(rng, size) for _ in range(200)])
    inputs = simulated(16, moves, np.broadcast_to(innovation * np.eye(size), moves.shape))
    for ours, exact in zip(moments_of(np.asarray(paths(*inputs))), inputs):
        np.testing.assert_allclose(ours, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_paths_with_a_singular_innovation(size):
    rng = np.random.default_rng(17)
    moves = np.stack([0.95 * orthogonal(rng, size) for _ in range(200)])
    roots = np.zeros_like(moves)
    roots[:, 0, 0] = 1.0
    moves[50:60] = np.eye(size)
    roots[50:60] = 0.0
    inputs = simulated(18, moves, roots)
    for ours, exact in zip(moments_of(np.asarray(paths(*inputs))), inputs):
        np.testing.assert_allclose(ours, exact, rtol=1e-10, atol=1e-10)
    slopes = jax.jit(jax.grad(lambda *x: jnp.sum(paths(*x) ** 2), (0, 1, 2)))(*inputs)
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_one_dimension_that_only_turns_its_sign(sign):
    inputs = simulated(19, np.full((9, 1, 1), sign), np.zeros((9, 1, 1)))
    atoms = np.asarray(paths(*inputs)) - inputs[0]
    # a correlation rounded to 1 - 2e-16 is an angle of 2e-8: only the moments are exact
    np.testing.assert_allclose(atoms[:, 1:], sign * atoms[:, :-1], atol=1e-7)
    np.testing.assert_allclose(np.mean(atoms**2, 0), inputs[1][:, 0], rtol=1e-14)
    np.testing.assert_allclose(
        np.mean(atoms[:, 1:] * atoms[:, :-1], 0), inputs[2][:, 0], rtol=1e-14
    )


def test_paths_are_exact_for_a_quadratic_of_neighbours():
    parts = system(20, 7, 3)
    means, covariance = dense_moments(*parts)
    moments = smooth(*parts)
    rng = np.random.default_rng(21)
    weight, slope = rng.normal(size=(6, 6)), rng.normal(size=6)
    atoms = np.asarray(paths(*moments[:3]))
    pairs = np.concatenate([atoms[:, :-1], atoms[:, 1:]], -1)
    ours = np.einsum("nti,ij,ntj->t", pairs, weight, pairs) / len(atoms) + pairs.mean(0) @ slope
    for t in range(6):
        mean = np.concatenate([means[t], means[t + 1]])
        whole = covariance[t : t + 2, :, t : t + 2].reshape(6, 6)
        exact = np.sum(weight * (whole + np.outer(mean, mean))) + mean @ slope
        np.testing.assert_allclose(ours[t], exact, rtol=1e-10)


@pytest.mark.parametrize("size", [*SIZES, 8])
@scaled
def test_dense_blocks_are_those_of_numpy(size, spread):
    rng = np.random.default_rng(22)
    half = rng.normal(size=(6, size, size + 2))
    precision, linear = half @ half.transpose(0, 2, 1), rng.normal(size=(6, size))
    units = scales(23, (6, size), spread)
    pair = units[:, :, None] * units[:, None]
    got = jax.jit(jax.vmap(dense))(jnp.array(precision * pair), jnp.array(linear * units))
    covariance = np.linalg.inv(precision)
    mean = np.einsum("bij,bj->bi", covariance, linear)
    value = 0.5 * np.sum(linear * mean, 1) - 0.5 * np.linalg.slogdet(precision)[1]
    value = value + 0.5 * size * np.log(2.0 * np.pi) - np.log(units).sum(1)
    close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    close(got.log_integral, value)
    close(got.mean * units, mean)
    close(got.covariance * pair, covariance)
    root = got.root * units[:, :, None]
    close(root @ root.swapaxes(1, 2), covariance)
    assert np.asarray(got.positive_definite).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", SIZES)
def test_derivatives_of_dense_blocks_are_the_moments(size):
    parts = system(24, 4, size)
    precision, linear = parts[0], parts[2]
    value = jax.jit(jax.grad(lambda a, h: dense(a, h).log_integral.sum(), (0, 1)))
    blocks = dense(precision, linear)
    second = blocks.covariance + blocks.mean[:, :, None] * blocks.mean[:, None]
    slopes = value(precision, linear)
    np.testing.assert_allclose(slopes[0], -0.5 * second, atol=1e-11)
    np.testing.assert_allclose(slopes[1], blocks.mean, atol=1e-11)

    def one(a, h):
        return dense(a[None], h[None]).log_integral[0]

    def reference(a, h):
        return dense_log_integral(a[None], jnp.zeros((0, size, size)), h[None])

    for ours, exact in zip(
        jax.tree.leaves(jax.jit(jax.hessian(one, (0, 1)))(precision[0], linear[0])),
        jax.tree.leaves(jax.jit(jax.hessian(reference, (0, 1)))(precision[0], linear[0])),
    ):
        np.testing.assert_allclose(ours, exact, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_blocks_that_are_not_positive_definite_are_named(size):
    rng = np.random.default_rng(25)
    turn = orthogonal(rng, size)
    signs = np.ones((3, size))
    signs[1, 0] = -1.0
    signs[2, :2] = -1.0  # an even number of them leaves the determinant positive
    precision = jnp.array(np.einsum("ij,bj,kj->bik", turn, signs, turn))
    got = dense(precision, jnp.ones((3, size)))
    assert got.positive_definite.tolist() == [True, False, False]
    for leaf in got[:4]:
        assert np.isfinite(leaf[0]).all() and np.isnan(leaf[1:]).any()
    assert np.isnan(got.log_integral[1:]).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("where", [0, 6])
def test_a_chain_that_is_not_positive_definite_is_never_silent(size, where):
    diag, below, h = system(26, 7, size)
    bad = diag.at[where].add(-50.0 * jnp.eye(size))
    got = smooth(bad, below, h)
    assert not got.positive_definite and smooth(diag, below, h).positive_definite
    for leaf in got[:3]:
        assert np.isnan(leaf).all()
    assert np.isnan(log_integral(bad, below, h))
    assert np.isnan(draw(bad, below, h, h)).all()
    full, prior = potentials(26, 7, size)
    assert filter_(full, prior).positive_definite
    bad_prior = prior._replace(own=prior.own.at[where].add(-50.0 * jnp.eye(size)))
    assert not filter_(full, bad_prior).positive_definite


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_plate_of_series_equals_one_by_one(size):
    series = [system(seed, 7, size) for seed in (27, 28, 29)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *series)

    def everything(diag, below, h):
        moments = smooth(diag, below, h)
        slopes = jax.value_and_grad(log_integral, (0, 1, 2))(diag, below, h)
        return moments, slopes, draw(diag, below, h, h), paths(*moments[:3])

    everything = jax.jit(everything)
    together = jax.jit(jax.vmap(everything))(*stacked)
    for i, parts in enumerate(series):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x[i], y, rtol=1e-11, atol=1e-12),  # noqa: B023
            together,
            everything(*parts),
        )


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [1, 2, 4])
def test_single_precision_stays_single_and_close(size):
    parts = system(30, 300, size)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), parts)
    got, exact = smooth(*single), smooth(*parts)
    for ours, theirs in zip(got[:3], exact[:3]):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    value = log_integral(*single)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, log_integral(*parts), rtol=1e-5)
    atoms = paths(*got[:3])
    assert atoms.dtype == jnp.float32
    for ours, theirs in zip(moments_of(np.asarray(atoms, np.float64)), exact[:3]):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert draw(*single, single[2]).dtype == jnp.float32
    assert dense(single[0], single[2]).log_integral.dtype == jnp.float32


def test_shapes_that_do_not_fit_are_refused():
    diag, below, h = system(31, 4, 2)
    full, prior = potentials(31, 4, 2)
    moments = smooth(diag, below, h)
    calls = [
        partial(smooth, diag, below[:2], h),
        partial(log_integral, diag[:, :1], below, h),
        partial(draw, diag, below, h, h[:3]),
        partial(filter_, full._replace(below=below[:1]), prior),
        partial(paths, moments.means, moments.covariances, moments.cross[:2]),
        partial(dense, diag, h[:, :1]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="expected .* got"):
            call()
