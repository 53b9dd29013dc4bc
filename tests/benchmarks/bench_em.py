"""emprob's EM step beside its peers and beside hand-written JAX EM for the same model.

Run ``python tests/benchmarks/bench_em.py [workload ...]``; without names, all workloads. Each
workload has a process of its own on one core, as not every library can be told to use one thread;
float64, CPU. The first call of each peer is apart (compiling); warm calls go round-robin over the
peers and the minimum counts. Beside wall milliseconds per EM iteration stand CPU milliseconds: on a
busy machine these are the ones to trust. All peers start from the same parameters, and their
log-likelihoods after the timed steps are compared, so that equal work is timed.

dynamax is timed where it can be imported; set ``DYNAMAX_PYTHON`` to another interpreter to time it
in an environment of its own.
"""

import os

for pool in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{pool}_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 "
    + os.environ.get("XLA_FLAGS", "")
)
os.environ["JAX_ENABLE_X64"] = "1"

import functools  # noqa: E402
import json  # noqa: E402
import pathlib  # noqa: E402
import resource  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

HERE = pathlib.Path(__file__).resolve()
LOG_2PI = float(np.log(2 * np.pi))


# -- data and starts ----------------------------------------------------------------------------


def chain_data(steps, K, D, batch, seed=0):
    """Rows (steps, batch, D) with regimes of about ten steps, and a start."""
    rng = np.random.default_rng(seed)
    regime = np.repeat(rng.integers(K, size=(steps // 10 + 1, batch)), 10, 0)[:steps]
    centres = 2.0 * rng.normal(size=(K, D)) + 3.0 * np.arange(K)[:, None] / K
    y = centres[regime] + rng.normal(size=(steps, batch, D))
    start = {
        "pi": np.full(K, 1 / K),
        "A": 0.8 * np.eye(K) + 0.2 / K,
        "mu": centres + 0.3 * rng.normal(size=(K, D)),
        "cov": np.tile(1.5 * np.eye(D), (K, 1, 1)),
    }
    return y, start


def mixture_data(n, K, D, seed=0):
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.normal(size=(K, D))
    y = centres[rng.integers(K, size=n)] + rng.normal(size=(n, D))
    start = {
        "pi": np.full(K, 1 / K),
        "mu": centres + 0.3 * rng.normal(size=(K, D)),
        "cov": np.tile(1.5 * np.eye(D), (K, 1, 1)),
    }
    return y, start


# -- emprob -------------------------------------------------------------------------------------


def programs():
    """NumPyro programs, as a user would write them."""
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan
    from numpyro.distributions import constraints

    flat = lambda support, event=(): dist.ImproperUniform(support, (), event)  # noqa: E731

    def emission(K, D):
        with numpyro.plate("states", K):
            if D == 1:
                mu = numpyro.sample("mu", flat(constraints.real))
                scale = numpyro.sample("scale", flat(constraints.positive))
                return lambda z: dist.Normal(mu[z], scale[z])
            mu = numpyro.sample("mu", flat(constraints.real_vector, (D,)))
            cov = numpyro.sample("cov", flat(constraints.positive_definite, (D, D)))
        return lambda z: dist.MultivariateNormal(mu[z], covariance_matrix=cov[z])

    def laws(K):
        pi = numpyro.sample("pi", flat(constraints.simplex, (K,)))
        with numpyro.plate("from", K):
            return pi, numpyro.sample("A", flat(constraints.simplex, (K,)))

    def hmm(y, K, D):
        pi, A = laws(K)
        law = emission(K, D)

        def body(carry, y):
            z, t = carry
            z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, pi, A[z])))
            numpyro.sample("y", law(z), obs=y)
            return (z, t + 1), None

        scan(body, (0, 0), y)

    def sequences(y, K, D):
        pi, A = laws(K)
        law = emission(K, D)

        def body(carry, y):
            z, t = carry
            with numpyro.plate("sequences", y.shape[0]):
                z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, pi, A[z])))
                numpyro.sample("y", law(z), obs=y)
            return (z, t + 1), None

        scan(body, (jnp.zeros(y.shape[1], int), 0), y)

    def mixture(y, K, D):
        pi = numpyro.sample("pi", flat(constraints.simplex, (K,)))
        law = emission(K, D)
        with numpyro.plate("rows", y.shape[0]):
            z = numpyro.sample("z", dist.Categorical(pi))
            numpyro.sample("y", law(z), obs=y)

    return {"hmm": hmm, "sequences": sequences, "mixture": mixture}


def emprob_params(start):
    """The start in the parametrisation of the programs."""
    D = start["mu"].shape[1]
    params = {k: start[k] for k in ("pi", "A") if k in start}
    if D == 1:
        params |= {"mu": start["mu"][:, 0], "scale": np.sqrt(start["cov"][:, 0, 0])}
    else:
        params |= {"mu": start["mu"], "cov": start["cov"]}
    return params


def bind(name, y, start):
    import emprob as ep

    K, D = start["mu"].shape
    if name == "hmm":
        y = y[:, 0]
    y = y[..., 0] if D == 1 else y
    return ep.bind(programs()[name], y, K, D)


def emprob_steps(name, y, start, steps):
    """`steps` EM steps in one compiled call of the driver's own loop; log-likelihoods."""
    import emprob as ep
    from emprob.loop import advance, begin, init

    model, method = bind(name, y, start), ep.EM()
    params = jax.tree.map(jnp.asarray, emprob_params(start))
    loop = begin(init(model, method, params))

    def call():
        _, _, trace = advance(model, method, loop, steps, 10**6, -1.0, 256)
        return np.asarray(trace.log_likelihood)[:steps]

    return call


def emprob_fit(name, y, start, steps):
    """The whole of `ep.fit`, tests at the optimum included; milliseconds per step it took."""
    import warnings

    import emprob as ep

    model, init = bind(name, y, start), emprob_params(start)

    def call():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = ep.fit(model, ep.EM(), init=init, max_steps=steps, tol=1e-12, progress=False)
        return np.asarray(fit.trace["log_likelihood"])[:steps]

    return call


# -- hand-written JAX ---------------------------------------------------------------------------


def log_normal_1d(y, mu, var):
    """(T, B, 1) -> (T, K, B)."""
    gap = y[:, None, :, 0] - mu[:, None]
    return -0.5 * (gap * gap / var[:, None] + jnp.log(var)[:, None] + LOG_2PI)


def design(y):
    """Statistics of a normal: 1, y, and the products y_i y_j with i <= j."""
    D = y.shape[-1]
    i, j = np.triu_indices(D)
    ones = jnp.ones((*y.shape[:-1], 1))
    return jnp.concatenate([ones, y, y[..., i] * y[..., j]], -1)


def normal_weights(mu, cov):
    """Natural parameters (P, K) against `design`."""
    D = mu.shape[1]
    i, j = np.triu_indices(D)
    precision = jnp.linalg.inv(cov)
    linear = jnp.einsum("kij,kj->ki", precision, mu)
    logdet = jnp.linalg.slogdet(cov)[1]
    constant = -0.5 * (D * LOG_2PI + logdet + jnp.sum(mu * linear, -1))
    quadratic = jnp.where(i == j, -0.5, -1.0) * precision[:, i, j]
    return jnp.concatenate([constant[:, None], linear, quadratic], -1).T


def normal_mstep(S, D):
    """Means and covariances from sums of `design`, (K, P)."""
    i, j = np.triu_indices(D)
    n, mu = S[:, 0], S[:, 1 : 1 + D] / S[:, :1]
    second = S[:, 1 + D :] / S[:, :1]
    full = jnp.zeros((S.shape[0], D, D)).at[:, i, j].set(second).at[:, j, i].set(second)
    return n, mu, full - mu[:, :, None] * mu[:, None, :]


def forward_backward(pi, A, log_emit):
    """Scaled recursions on (T, K, B): log-likelihood, marginals, summed pairs.

    The loops carry what they need and add the pairs up on the way; products of up to 3 x 3 are
    written out as broadcast sums, wider ones are a dot: what was measured to be fastest.
    """
    K = A.shape[0]
    top = jnp.max(log_emit, 1, keepdims=True)
    b = jnp.exp(log_emit - top)

    def push(A, u):
        return (u.T @ A.T).T if K > 3 else sum(A[:, j, None] * u[j] for j in range(K))

    def backward(carry, b):  # a message and one over its sum
        message, scale = carry
        message = push(A, b * scale * message)
        total = sum(message) if K <= 3 else jnp.sum(message, 0)
        return (message, 1.0 / total), carry

    def forward(carry, inputs):  # posterior over message
        rate, pairs = carry
        b, message, scale = inputs
        gain = b * scale
        pairs = pairs + rate[:, None] * (gain * message)
        rate = push(A.T, rate) * gain
        return (rate, pairs), rate * message

    ones = jnp.ones_like(b[0])
    behind = jax.lax.scan(backward, (ones, ones[0]), b[1:], reverse=True)
    (first, _), (message, scale) = behind
    total = jnp.sum(pi[:, None] * b[0] * first, 0)
    rate = pi[:, None] * b[0] / total
    start = (rate, jnp.zeros((K, *b.shape[1:])))
    (_, pairs), gamma = jax.lax.scan(forward, start, (b[1:], message, scale))
    gamma = jnp.concatenate([(rate * first)[None], gamma])
    value = jnp.sum(jnp.log(total)) - jnp.sum(jnp.log(scale)) + jnp.sum(top)
    return value, gamma, A * jnp.sum(pairs, 2)


def hand_hmm(y, params):
    """One EM iteration of a Gaussian HMM; y (T, B, D)."""
    D = y.shape[-1]
    if D == 1:
        log_emit = log_normal_1d(y, params["mu"][:, 0], params["cov"][:, 0, 0])
    else:
        W = normal_weights(params["mu"], params["cov"])
        log_emit = jnp.einsum("tbp,pk->tkb", design(y), W)
    value, gamma, pairs = forward_backward(params["pi"], params["A"], log_emit)
    if D == 1:
        x = y[:, None, :, 0]
        n, first = gamma.sum((0, 2)), (gamma * x).sum((0, 2))
        mu = (first / n)[:, None]
        cov = ((gamma * (x - mu) ** 2).sum((0, 2)) / n)[:, None, None]
    else:
        n, mu, cov = normal_mstep(jnp.einsum("tkb,tbp->kp", gamma, design(y)), D)
    first = gamma[0].sum(-1)
    new = {"pi": first / first.sum(), "A": pairs / pairs.sum(1, keepdims=True), "mu": mu}
    return {**new, "cov": cov}, value


def hand_mixture(y, params, rows=1024):
    """One EM iteration of a Gaussian mixture: two matrix products per block of rows."""
    N, D = y.shape
    W = normal_weights(params["mu"], params["cov"]).at[0].add(jnp.log(params["pi"]))

    def block(carry, y):
        value, S = carry
        phi = design(y)
        logits = phi @ W
        top = jnp.max(logits, 1, keepdims=True)
        e = jnp.exp(logits - top)
        total = jnp.sum(e, 1, keepdims=True)
        return (value + jnp.sum(jnp.log(total) + top), S + (e / total).T @ phi), None

    count, rest = divmod(N, rows)
    carry = (jnp.zeros(()), jnp.zeros(W.T.shape))
    carry, _ = jax.lax.scan(block, carry, y[: count * rows].reshape(count, rows, D))
    if rest:
        carry, _ = block(carry, y[count * rows :])
    n, mu, cov = normal_mstep(carry[1], D)
    return {"pi": n / N, "mu": mu, "cov": cov}, carry[0]


@functools.partial(jax.jit, static_argnames=("step", "steps"))
def many(step, y, params, steps):
    def body(params, _):
        return step(y, params)

    return jax.lax.scan(body, params, length=steps)[1]


def hand_steps(step, y, start, steps):
    y, params = jnp.asarray(y), jax.tree.map(jnp.asarray, start)
    return lambda: np.asarray(many(step, y, params, steps))


# -- peers --------------------------------------------------------------------------------------


def hmmlearn_steps(y, start, steps, implementation):
    from hmmlearn.hmm import GaussianHMM

    T, B, D = y.shape
    rows, lengths = np.ascontiguousarray(y.swapaxes(0, 1).reshape(-1, D)), [T] * B
    K = len(start["pi"])

    def call():
        peer = GaussianHMM(
            K, "diag" if D == 1 else "full", covars_prior=0.0, covars_weight=0.0,
            means_weight=0.0, implementation=implementation,
        )  # fmt: skip
        peer.startprob_, peer.transmat_, peer.n_features = start["pi"], start["A"], D
        peer.means_ = start["mu"]
        peer.covars_ = start["cov"][:, :, 0] if D == 1 else start["cov"]
        values = []
        for _ in range(steps):
            statistics, value = peer._do_estep(rows, lengths)
            peer._do_mstep(statistics)
            values.append(value)
        return np.array(values)

    return call


def sklearn_steps(y, start, steps):
    from sklearn.mixture import GaussianMixture

    def call():
        peer = GaussianMixture(
            len(start["pi"]), reg_covar=0.0, weights_init=start["pi"], means_init=start["mu"],
            precisions_init=np.linalg.inv(start["cov"]),
        )  # fmt: skip
        peer._initialize(y, None)
        values = []
        for _ in range(steps):
            value, log_resp = peer._e_step(y)
            peer._m_step(y, log_resp)
            values.append(value * len(y))
        return np.array(values)

    return call


def dynamax_steps(y, start, steps):
    """Its own E- and M-step, jitted once by hand: called as documented it compiles every time."""
    from dynamax.hidden_markov_model import GaussianHMM

    K, D = start["mu"].shape
    peer = GaussianHMM(K, D)
    params, props = peer.initialize(
        initial_probs=jnp.asarray(start["pi"]), transition_matrix=jnp.asarray(start["A"]),
        emission_means=jnp.asarray(start["mu"]), emission_covariances=jnp.asarray(start["cov"]),
    )  # fmt: skip
    rows = jnp.asarray(y.swapaxes(0, 1))
    state = peer.initialize_m_step_state(params, props)

    @jax.jit
    def run(params, state, rows):
        def step(carry, _):
            params, state = carry
            statistics, values = jax.vmap(lambda e: peer.e_step(params, e, None))(rows)
            return peer.m_step(params, props, statistics, state), values.sum()

        return jax.lax.scan(step, (params, state), length=steps)[1]

    return lambda: np.asarray(run(params, state, rows))


def foreign_dynamax(name, rounds):
    """Time dynamax in the interpreter named by DYNAMAX_PYTHON; seconds, or None."""
    python = os.environ.get("DYNAMAX_PYTHON")
    if python is None:
        return None
    command = [python, str(HERE), "--dynamax", name, str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"  dynamax failed: {done.stderr.strip().splitlines()[-1]}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


# -- timing -------------------------------------------------------------------------------------


def race(calls, rounds):
    """Minimum wall and CPU seconds per call, round-robin, the first call of each apart."""
    best = dict.fromkeys(calls, (np.inf, np.inf))
    values = {name: call() for name, call in calls.items()}
    for _ in range(rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = tuple(map(min, best[name], spent))
    return best, values


def report(title, best, values, steps, goals):
    """One line per peer and our ratio to it, with the goal where there is one."""
    ours = best["emprob"]
    print(f"{title}: EM iteration, {steps} per call", flush=True)
    for name, (wall, cpu) in best.items():
        line = f"  {name:<18}{1e3 * wall / steps:10.3f} ms wall{1e3 * cpu / steps:10.3f} ms cpu"
        if not name.startswith("emprob"):
            line += f"   ratio {ours[0] / wall:6.3f} wall {ours[1] / cpu:6.3f} cpu"
            line += f"   goal {goals[name]}" if name in goals else ""
        print(line, flush=True)
    for name, value in values.items():
        if name not in ("dynamax", "emprob ep.fit"):  # dynamax has priors that cannot be off
            np.testing.assert_allclose(values["emprob"], value, rtol=1e-6, err_msg=name)


def chain_workload(T, K, D, B, steps, rounds, goal, whole_fit=0):
    y, start = chain_data(T, K, D, B)
    program = "hmm" if B == 1 else "sequences"
    calls = {
        "emprob": emprob_steps(program, y, start, steps),
        "hand-written JAX": hand_steps(hand_hmm, y, start, steps),
        "hmmlearn log": hmmlearn_steps(y, start, steps, "log"),
        "hmmlearn scaling": hmmlearn_steps(y, start, steps, "scaling"),
    }
    if whole_fit:
        calls["emprob ep.fit"] = emprob_fit(program, y, start, steps)
    try:
        calls["dynamax"] = dynamax_steps(y, start, steps)
    except ImportError:
        if "DYNAMAX_PYTHON" not in os.environ:
            print("dynamax is not installed here; set DYNAMAX_PYTHON to time it elsewhere")
    best, values = race(calls, rounds)
    elsewhere = foreign_dynamax(f"{T},{K},{D},{B},{steps}", rounds)
    if elsewhere is not None:
        best["dynamax"] = tuple(elsewhere)
    goals = {"hmmlearn log": goal, "hmmlearn scaling": goal, "hand-written JAX": 1.3}
    report(f"HMM T={T} K={K} d={D} sequences={B}", best, values, steps, goals)


def time_dynamax(shape, rounds):
    """In the other interpreter: print the seconds as JSON."""
    T, K, D, B, steps = map(int, shape.split(","))
    y, start = chain_data(T, K, D, B)
    best, _ = race({"dynamax": dynamax_steps(y, start, steps)}, int(rounds))
    print(json.dumps(best["dynamax"]))


def mixture_workload(n, K, D, steps, rounds):
    y, start = mixture_data(n, K, D)
    calls = {
        "emprob": emprob_steps("mixture", y, start, steps),
        "hand-written JAX": hand_steps(hand_mixture, y, start, steps),
        "scikit-learn": sklearn_steps(y, start, steps),
    }
    best, values = race(calls, rounds)
    goals = {"scikit-learn": 0.25, "hand-written JAX": 1.3}
    report(f"mixture n={n} K={K} d={D}", best, values, steps, goals)


def gradient_workload(T=1000, K=3, steps=100, rounds=20):
    """Gradient of log p(data | params) in all parameters: ours, and NumPyro's enumeration.

    Gradients follow each other inside compiled code, as in NUTS: no call from Python is timed.
    """
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan
    from numpyro.contrib.funsor import config_enumerate, enum, log_density

    y, start = chain_data(T, K, 1, 1)
    params = jax.tree.map(jnp.asarray, emprob_params(start))
    model = bind("hmm", y, start)
    row = jnp.asarray(y[:, 0, 0])

    @config_enumerate
    def program(y, p):
        z = numpyro.sample("z0", dist.Categorical(p["pi"]))
        numpyro.sample("y0", dist.Normal(p["mu"][z], p["scale"][z]), obs=y[0])

        def body(z, y):
            z = numpyro.sample("z", dist.Categorical(p["A"][z]))
            numpyro.sample("y", dist.Normal(p["mu"][z], p["scale"][z]), obs=y)
            return z, None

        scan(body, z, y[1:])

    seeded = enum(numpyro.handlers.seed(program, 0), -1)
    values = {
        "emprob": lambda p, data: data.log_partition(p),
        "NumPyro funsor": lambda p, data: log_density(seeded, (data, p), {}, {})[0],
    }
    data = {"emprob": model, "NumPyro funsor": row}

    @functools.partial(jax.jit, static_argnames="f")
    def gradients(f, p, data):
        def step(p, _):
            value, slope = jax.value_and_grad(f)(p, data)
            return jax.tree.map(lambda x, s: x - 1e-12 * s, p, slope), (value, slope)

        return jax.tree.map(lambda x: x[0], jax.lax.scan(step, p, length=steps)[1])

    calls = {
        name: lambda f=f, data=data[name]: jax.block_until_ready(gradients(f, params, data))
        for name, f in values.items()
    }
    best, found = race(calls, rounds)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-8), *found.values()
    )
    fused, funsor = best["emprob"], best["NumPyro funsor"]
    print(f"gradient of log Z, T={T} K={K}, {steps} per call:")
    for name, (wall, cpu) in best.items():
        print(f"  {name:<18}{1e3 * wall / steps:10.3f} ms wall{1e3 * cpu / steps:10.3f} ms cpu")
    times = f"{funsor[0] / fused[0]:.1f} (wall), {funsor[1] / fused[1]:.1f} (cpu)"
    print(f"  times faster: {times}   goal 4")


def memory_workload(T=1_000_000, K=5):
    """Peak resident memory of a fresh process that makes one E-step and one M-step."""
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # noqa: E731
    y, start = chain_data(T, K, 1, 1)
    imported = peak()
    call = emprob_steps("hmm", y, start, 1)
    bound = peak()
    call()
    print(
        f"memory T={T} K={K}: peak {peak():.0f} MB of the whole process; {imported:.0f} MB with "
        f"JAX and the data alone, {bound:.0f} MB after bind   goal 1000"
    )


WORKLOADS = {
    "hmm_small": lambda: chain_workload(1000, 2, 1, 1, 100, 20, 1.0, whole_fit=1),
    "hmm_long": lambda: chain_workload(100_000, 3, 1, 1, 10, 10, 0.5),
    "hmm_wide": lambda: chain_workload(100_000, 8, 4, 1, 4, 5, 0.35),
    "hmm_many": lambda: chain_workload(1000, 3, 1, 100, 10, 10, 0.3),
    "mixture": lambda: mixture_workload(100_000, 16, 16, 5, 5),
    "mixture_long": lambda: mixture_workload(1_000_000, 16, 16, 2, 2),
    "gradient": gradient_workload,
    "memory": memory_workload,
}


def use_one_core():
    """This process and those it starts, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main(names):
    for name in names or WORKLOADS:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, str(HERE), "--worker", name], cwd=folder, check=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        use_one_core()
        WORKLOADS[sys.argv[2]]()
    elif sys.argv[1:2] == ["--dynamax"]:
        time_dynamax(*sys.argv[2:])
    else:
        main(sys.argv[1:])
