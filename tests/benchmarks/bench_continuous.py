"""Programs with continuous latents beside the libraries that fit such models, one at a time.

Run ``python tests/benchmarks/bench_continuous.py [workload ...]``; without names, all workloads.
As in `bench_em`: a process for each workload, every library one thread on one core, float64, CPU;
the first call of each is apart (compiling), warm calls go round-robin and the minimum counts; wall
and CPU milliseconds, of which CPU is the one to trust on a busy machine. All start from the same
parameters where the peer lets us, and log-likelihoods are compared wherever the models are the
same. Whole fits are compared by the log-likelihood of both solutions, by our own `log_partition`.

dynamax, girth and gpboost run in processes of their own: set ``DYNAMAX_PYTHON``, ``GIRTH_PYTHON``
and ``GPBOOST_PYTHON`` to interpreters that have them (and jax, for `bench_em`); without, this one
is tried. A peer that cannot be imported is skipped with a line that says so.
"""

import bench_em  # noqa: F401 - sets the threads of every pool, so it comes first

# isort: split
import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from bench_em import LOG_2PI, hand_steps, race, report, use_one_core

HERE = pathlib.Path(__file__).resolve()
STATSMODELS = "statsmodels"


# -- data and starts ----------------------------------------------------------------------------


def chain_data(T, d, p, missing=0.0, seed=0):
    """Rows (T, p) of a linear-Gaussian chain of width d, some cells NaN, and a start."""
    rng = np.random.default_rng(seed)
    C, x, rows = rng.normal(size=(p, d)), np.zeros(d), []
    for _ in range(T):
        x = 0.8 * x + rng.normal(size=d)
        rows.append(C @ x + rng.normal(size=p))
    y = np.array(rows)
    y = np.where(rng.uniform(size=y.shape) < missing, np.nan, y)
    start = {
        "A": 0.7 * np.eye(d), "C": C + 0.3 * rng.normal(size=C.shape), "q": np.full(d, 1.2),
        "r": np.full(p, 1.2),
    }  # fmt: skip
    return y, start


def factor_data(n, d, k, seed=0):
    """Centred rows (n, d) of a factor analysis with k factors, and a start."""
    rng = np.random.default_rng(seed)
    W, scale = rng.normal(size=(d, k)), rng.uniform(0.5, 1.5, size=d)
    x = rng.normal(size=(n, k)) @ W.T + scale * rng.normal(size=(n, d))
    start = {"W": W + 0.3 * rng.normal(size=W.shape), "psi": np.ones(d)}
    return x - x.mean(0), start


def answers_data(n, items, missing, seed=0):
    """Answers (n, items) to questions with slopes and intercepts; NaN is missing."""
    rng = np.random.default_rng(seed)
    slope, intercept = rng.uniform(0.5, 2.0, size=items), rng.normal(size=items)
    logits = intercept + slope * rng.normal(size=(n, 1))
    y = (rng.uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    return np.where(rng.uniform(size=y.shape) < missing, np.nan, y)


def groups_data(groups, each, seed=0):
    """Binary y (N,), x (N, 2) with a column of ones, group (N,)."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), each)
    x = np.column_stack([np.ones(len(group)), rng.normal(size=len(group))])
    logits = x @ np.array([-1.0, 0.8]) + rng.normal(0.0, 0.7, size=groups)[group]
    y = (rng.uniform(size=len(group)) < 1 / (1 + np.exp(-logits))).astype(float)
    return y, x, group


# -- emprob -------------------------------------------------------------------------------------


def bind_chain(y, start):
    """x_t = A x_{t-1} + q e_t,  y_t = C x_t + r u_t,  x_0 ~ Normal(0, I), as a user writes it."""
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan

    import emprob as ep

    positive, d = dist.constraints.positive, len(start["q"])

    def program(y):
        A, C = numpyro.param("A", start["A"]), numpyro.param("C", start["C"])
        q = numpyro.param("q", start["q"], constraint=positive)
        r = numpyro.param("r", start["r"], constraint=positive)

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(A @ x, q).to_event(1))
            numpyro.sample("y", dist.Normal(C @ x, r).to_event(1), obs=y)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(jnp.zeros(d), 1.0).to_event(1)), y)

    return ep.bind(program, y, prior=False)


def bind_factors(x, start):
    """x_n = W z_n + psi u_n,  z_n ~ Normal(0, I)."""
    import numpyro
    import numpyro.distributions as dist

    import emprob as ep

    k = start["W"].shape[1]

    def program(x):
        W = numpyro.param("W", start["W"])
        psi = numpyro.param("psi", start["psi"], constraint=dist.constraints.positive)
        with numpyro.plate("n", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(k), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z @ W.T, psi).to_event(1), obs=x)

    return ep.bind(program, x, prior=False)


def em_steps(model, start, steps):
    """`steps` EM steps in one compiled call of the driver's own loop; log-likelihoods."""
    import emprob as ep
    from emprob.loop import advance, begin, init

    method, params = ep.EM(), jax.tree.map(jnp.asarray, start)
    loop = begin(init(model, method, params))

    def call():
        _, _, trace = advance(model, method, loop, steps, 10**6, -1.0, 256)
        return np.asarray(trace.log_likelihood)[:steps]

    return call


def whole_fit(model, method=None):
    """`ep.fit` from binding's own start, tests at the optimum included."""
    import emprob as ep

    def call():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ep.fit(model, method, num_starts=1, max_steps=3000, progress=False)

    return call


def timed_bind(bind, y, start):
    """The bound model; its seconds are printed, for some of the work on the rows is done there."""
    wall, cpu = time.perf_counter(), time.process_time()
    model = bind(y, start)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    print(f"  emprob binds once in {spent[0]:.2f} s wall {spent[1]:.2f} s cpu, not in the steps")
    return model


# -- hand-written JAX ---------------------------------------------------------------------------


def inverse(m):
    """Of positive definite (..., 2, 2), elementwise: a library call costs more than the pass."""
    det = m[..., 0, 0] * m[..., 1, 1] - m[..., 0, 1] * m[..., 1, 0]
    trace = m[..., 0, 0] + m[..., 1, 1]
    return (trace[..., None, None] * jnp.eye(2) - m) / det[..., None, None], det


def product(a, b):
    return jnp.sum(a[..., :, :, None] * b[..., None, :, :], -2)


def smooth(A, Q, y_info, emission):
    """Means and covariances of x_0..x_T, cross-covariances, and the log-partition over them.

    Information form: `y_info` (T, 2) is C'R^-1 y and `emission` C'R^-1 C; x_0 ~ Normal(0, I). The
    loops do the least, the rest is done for all steps at once.
    """
    side, T = A / Q[:, None], len(y_info)
    # of each step once the earlier ones are integrated out, with the transition out of it
    block = jnp.diag(1 / Q) + emission + A.T @ side

    def forward(carry, info):
        precision, h = carry
        gain = product(side, inverse(precision)[0])
        new = block - product(gain, side.T), info + jnp.sum(gain * h, 1)
        return new, carry

    carry = jnp.eye(2) + A.T @ side, jnp.zeros(2)
    (precision, h), (precisions, hs) = jax.lax.scan(forward, carry, y_info)
    S, dets = inverse(precisions)
    means = jnp.sum(S * hs[:, None], 2)
    back = product(S, jnp.broadcast_to(side.T, (T, 2, 2)))
    V, det = inverse(precision - A.T @ side)
    m = V @ h

    def backward(carry, inputs):
        V, m = carry
        S, mean, back = inputs
        # not fused into the second product, which would compute it once per row
        moved = jax.lax.optimization_barrier(product(back, V))
        new = S + product(moved, back.T), mean + jnp.sum(back * m, 1)
        return new, carry

    first, (V, m) = jax.lax.scan(backward, (V, m), (S, means, back), reverse=True)
    cross = product(V, back.swapaxes(1, 2))
    log_z = 0.5 * (jnp.sum(hs * means) + h @ m[-1])
    return first, V, m, cross, log_z - 0.5 * (jnp.sum(jnp.log(dets)) + jnp.log(det))


def hand_chain(y, params):
    """One EM iteration of `bind_chain` of width two without missing cells."""
    A, C, Q, R = params["A"], params["C"], params["q"] ** 2, params["r"] ** 2
    T = len(y)
    weighted = C / R[:, None]
    (V0, m0), V, m, cross, log_z = smooth(A, Q, y @ weighted, C.T @ weighted)
    yy = jnp.sum(y * y, 0)
    constant = T * (jnp.sum(jnp.log(Q)) + jnp.sum(jnp.log(R)) + len(R) * LOG_2PI)
    value = log_z - 0.5 * (constant + jnp.sum(yy / R))
    now = jnp.sum(V, 0) + m.T @ m
    before = now - V[-1] - jnp.outer(m[-1], m[-1]) + V0 + jnp.outer(m0, m0)
    both = jnp.sum(cross, 0) + m[1:].T @ m[:-1] + jnp.outer(m[0], m0)
    A, ym = both @ inverse(before)[0], y.T @ m
    C = ym @ inverse(now)[0]
    q, r = (jnp.diag(now) - jnp.sum(A * both, 1)) / T, (yy - jnp.sum(C * ym, 1)) / T
    return {"A": A, "C": C, "q": jnp.sqrt(q), "r": jnp.sqrt(r)}, value


# -- peers in this process ----------------------------------------------------------------------


def installed(name):
    """Whether a peer can be imported; a line where it cannot."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"  {name} is skipped: {error}")
        return False
    return True


def statsmodels_steps(y, start, steps):
    """DynamicFactorMQ's EM iterations. The covariance of its factors is full."""
    from statsmodels.tsa.statespace.dynamic_factor_mq import DynamicFactorMQ
    from statsmodels.tsa.statespace.initialization import Initialization

    d, A, Q = len(start["q"]), start["A"], np.diag(start["q"] ** 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = DynamicFactorMQ(
            y, factors=1, factor_multiplicities=d, idiosyncratic_ar1=False, standardize=False
        )
    first = np.concatenate([
        start["C"].ravel(), A.ravel(), np.sqrt(Q)[np.tril_indices(d)], start["r"] ** 2
    ])  # fmt: skip
    init = Initialization(peer.k_states, "known", constant=np.zeros(d), stationary_cov=A @ A.T + Q)

    def call():
        values, params = [], first
        for _ in range(steps):
            result, params = peer._em_iteration(params, init=init)
            values.append(np.sum(result.llf_obs))
        return np.array(values)

    return call


def sklearn_factors(x, start, steps, svd_method):
    """FactorAnalysis: each iteration has an SVD of the rows and the best loadings given psi."""
    from sklearn.decomposition import FactorAnalysis

    peer = FactorAnalysis(
        start["W"].shape[1], tol=0.0, max_iter=steps, svd_method=svd_method,
        noise_variance_init=start["psi"] ** 2, random_state=0,
    )  # fmt: skip

    def call():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.array(peer.fit(x).loglike_)

    return call


# -- peers in a process of their own ------------------------------------------------------------


def dynamax_peer(T, d, p, steps):
    """LinearGaussianSSM: its own E- and M-step, jitted once by hand. Its covariances are full."""
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    y, start = chain_data(T, d, p)
    A, Q = jnp.asarray(start["A"]), jnp.diag(start["q"] ** 2)
    peer = LinearGaussianSSM(d, p, has_dynamics_bias=False, has_emissions_bias=False)
    params, props = peer.initialize(
        initial_mean=jnp.zeros(d), initial_covariance=A @ A.T + Q, dynamics_weights=A,
        dynamics_covariance=Q, emission_weights=jnp.asarray(start["C"]),
        emission_covariance=jnp.diag(start["r"] ** 2),
    )  # fmt: skip
    rows = jnp.asarray(y)[None]

    @jax.jit
    def run(params, rows):
        def step(params, _):
            statistics, values = jax.vmap(lambda e: peer.e_step(params, e, None))(rows)
            return peer.m_step(params, props, statistics, None)[0], values.sum()

        return jax.lax.scan(step, params, length=steps)[1]

    return {"dynamax": lambda: np.asarray(run(params, rows)).tolist()}


def girth_peer(n, items, missing_percent):
    """twopl_mml with its default settings; it stops before its limit of iterations."""
    from girth import INVALID_RESPONSE, twopl_mml

    y = answers_data(n, items, missing_percent / 100)
    data = np.where(np.isnan(y), INVALID_RESPONSE, y).astype(int).T

    def call():
        found = twopl_mml(data)
        slope = np.asarray(found["Discrimination"])
        intercept = -slope * np.asarray(found["Difficulty"])
        return {"slope": slope.tolist(), "intercept": intercept.tolist()}

    return {"girth": call}


def gpboost_peer(groups, each):
    """GPModel: Laplace's approximation, its default optimiser, without and with standard errors."""
    import gpboost

    y, x, group = groups_data(groups, each)

    def fit(errors):
        peer = gpboost.GPModel(group_data=group, likelihood="bernoulli_logit")
        peer.fit(y=y, X=x, params={"trace": False})
        variance = np.ravel(peer.get_cov_pars(std_err=errors, format_pandas=False))[0]
        beta = np.atleast_2d(peer.get_coef(std_err=errors, format_pandas=False))[0]
        value = -float(peer.get_current_neg_log_likelihood())
        return {"tau": float(variance) ** 0.5, "beta": beta.tolist(), "its own value": value}

    return {"gpboost": lambda: fit(False), "gpboost with SEs": lambda: fit(True)}


PEERS = {"dynamax": dynamax_peer, "girth": girth_peer, "gpboost": gpboost_peer}


def elsewhere(peer, sizes, rounds):
    """Seconds and values of a peer in the interpreter named by `<PEER>_PYTHON`."""
    python = os.environ.get(f"{peer.upper()}_PYTHON", sys.executable)
    command = [python, str(HERE), "--peer", peer, json.dumps(sizes), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        print(f"  {peer} is skipped: {reason}")
        return {}, {}
    return json.loads(done.stdout.splitlines()[-1])


def time_peer(peer, sizes, rounds):
    """In the other interpreter: print the seconds and values as JSON."""
    print(json.dumps(race(PEERS[peer](*json.loads(sizes)), int(rounds))))


# -- workloads ----------------------------------------------------------------------------------


def progress_report(values):
    """Equal log-likelihoods of the common start, and how far the same number of steps brought each.

    Models and M-steps part from there: full covariances, one block of parameters after another.
    """
    for name, value in values.items():
        np.testing.assert_allclose(value[0], values["emprob"][0], rtol=1e-6, err_msg=name)
        print(f"  {name:<18} log-likelihood before iteration {len(value)}: {value[-1]:.3f}")


def chain_workload(T, d, p, steps, rounds, missing=0.0):
    y, start = chain_data(T, d, p, missing)
    calls = {"emprob": em_steps(timed_bind(bind_chain, y, start), start, steps)}
    if d == 2 and not missing:
        calls["hand-written JAX"] = hand_steps(hand_chain, y, start, steps)
    if installed(STATSMODELS):
        calls[STATSMODELS] = statsmodels_steps(y, start, steps)
    best, values = race(calls, rounds)
    if not missing:  # dynamax has no missing cells
        foreign = elsewhere("dynamax", [T, d, p, steps], rounds)
        best, values = best | foreign[0], values | foreign[1]
    title = f"linear-Gaussian chain T={T} state={d} series={p} missing={missing:.0%}"
    report(title, best, {"emprob": values["emprob"]}, steps, {"hand-written JAX": 1.3})
    progress_report(values)


def factor_workload(n, d, k, steps, rounds):
    x, start = factor_data(n, d, k)
    calls = {"emprob": em_steps(timed_bind(bind_factors, x, start), start, steps)}
    if installed("sklearn"):
        for method in ("lapack", "randomized"):
            calls[f"sklearn {method}"] = sklearn_factors(x, start, steps, method)
    best, values = race(calls, rounds)
    report(f"factor analysis n={n} d={d} k={k}", best, {"emprob": values["emprob"]}, steps, {})
    for name, value in values.items():  # each iteration of scikit-learn's goes further
        print(f"  {name:<18} log-likelihood before iteration {len(value)}: {value[-1]:.3f}")


def fits_report(title, best, values, scores):
    """Whole fits: seconds, the ratio of ours to theirs, and log-likelihoods by our own integral."""
    print(f"{title}: whole fit", flush=True)
    ours = best["emprob"]
    for name, (wall, cpu) in best.items():
        line = f"  {name:<19}{wall:9.3f} s wall{cpu:9.3f} s cpu"
        if not name.startswith("emprob"):
            line += f"   ratio {ours[0] / wall:6.3f} wall {ours[1] / cpu:6.3f} cpu"
        for rule, score in scores.items():
            line += f"   {rule} {score(name, values[name]):.4f}"
        print(line, flush=True)
    for name, value in values.items():
        if name.startswith("emprob"):
            compiled = f"compiling {value.seconds['compile']:.1f} s"
            work = f"{value.num_steps} steps, {value.num_maps} maps"
            print(f"  {name}: {value.status.word}, {work}; first call {compiled}")


def scorer(model):
    """log p(data | params) of a solution, whoever found it."""
    log_partition = jax.jit(lambda m, p: m.log_partition(p))

    def score(_, found):
        params = found.params if hasattr(found, "params") else found
        params = {k: jnp.asarray(params[k]) for k in model.params}
        return float(log_partition(model, params))

    return score


def answers_workload(n, items, missing, rounds):
    import emprob as ep
    from emprob.models.item_response import two_parameter

    y = answers_data(n, items, missing)
    model = ep.bind(two_parameter, y, prior=False)
    best, values = race({"emprob": whole_fit(model, ep.Squarem(ep.EM(ep.Grid())))}, rounds)
    foreign = elsewhere("girth", [n, items, round(100 * missing)], rounds)
    title = f"two-parameter item response {n} x {items} missing={missing:.0%}"
    scores = {"log-likelihood": scorer(model)}
    fits_report(title, best | foreign[0], values | foreign[1], scores)


def groups_workload(groups, each, rounds):
    import emprob as ep
    from emprob.fit import with_rule
    from emprob.models.logistic_random_effects import random_intercept

    y, x, group = groups_data(groups, each)
    model = ep.bind(random_intercept, y, np.ones(len(y)), x, group, groups, prior=False)
    calls = {
        "emprob": whole_fit(model, ep.MAP(estep=ep.Laplace(1))),
        "emprob EM": whole_fit(model, ep.EM(ep.Laplace(1))),
    }
    if groups < 10_000:  # what gpboost cannot: 15 nodes
        calls["emprob order 15"] = whole_fit(model, ep.MAP(estep=ep.Laplace(15)))
        calls["emprob EM order 15"] = whole_fit(model, ep.EM(ep.Laplace(15)))
    best, values = race(calls, rounds)
    foreign = elsewhere("gpboost", [groups, each], rounds)
    scores = {
        f"order {order}": scorer(with_rule(model, ep.EM(ep.Laplace(order)))) for order in (1, 15)
    }
    title = f"random-intercept logistic {groups} groups x {each}"
    fits_report(title, best | foreign[0], values | foreign[1], scores)


WORKLOADS = {
    "chain": functools.partial(chain_workload, 10_000, 2, 2, 10, 10),
    "chain_missing": functools.partial(chain_workload, 10_000, 2, 2, 10, 10, 0.1),
    "chain_wide": functools.partial(chain_workload, 10_000, 8, 16, 4, 5),
    "answers": functools.partial(answers_workload, 5000, 50, 0.2, 2),
    "groups": functools.partial(groups_workload, 20_000, 20, 5),
    "groups_few": functools.partial(groups_workload, 2000, 20, 5),
    "factors": functools.partial(factor_workload, 100_000, 50, 5, 5, 3),
}


def main(names):
    for name in names or WORKLOADS:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, str(HERE), "--worker", name], cwd=folder, check=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        use_one_core()
        WORKLOADS[sys.argv[2]]()
    elif sys.argv[1:2] == ["--peer"]:
        time_peer(*sys.argv[2:])
    else:
        main(sys.argv[1:])
