"""The selective scan: its backends against a loop written out, in value and derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from support import assert_close

from jaxprobe.kernels.selective_scan import ScanBackend, resolve_backend, selective_scan

BACKENDS = [ScanBackend.SEQUENTIAL, ScanBackend.ASSOCIATIVE]
B, T, E, N = 2, 7, 3, 4


def inputs(rng, b=B, t=T, e=E, n=N, dtype="float64"):
    """x, delta, A, B, C, D, initial state."""
    shapes = [(b, t, e), (b, t, e), (e, n), (b, t, n), (b, t, n), (e,), (b, e, n)]
    x, delta, A, *rest = (rng.standard_normal(shape) for shape in shapes)
    return tuple(a.astype(dtype) for a in (x, np.log1p(np.exp(delta)), -np.exp(A), *rest))


def loop(x, delta, A, B, C, D, state, gain=None, offset=None, xp=np):
    """The recurrence as the paper writes it: y [b t e] and every state [b t e n]."""
    ys, states = [], []
    for t in range(x.shape[1]):
        a = xp.exp(delta[:, t, :, None] * A)
        state = a * state + delta[:, t, :, None] * B[:, t, None, :] * x[:, t, :, None]
        state = (1 if gain is None else gain) * state + (0 if offset is None else offset[:, t])
        ys.append((state * C[:, t, None, :]).sum(-1) + D * x[:, t])
        states.append(state)
    return xp.stack(ys, 1), xp.stack(states, 1)


jitted = jax.jit(selective_scan, static_argnames=("backend", "return_states"))


def scan(backend, *arguments, **edits):
    """y and every state, the initial state being the last argument."""
    *arguments, state = map(jnp.asarray, arguments)
    edits = {name: jnp.asarray(value) for name, value in edits.items()}
    return jitted(*arguments, initial_state=state, return_states=True, backend=backend, **edits)


@pytest.fixture
def arguments():
    return inputs(np.random.default_rng(0))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_loop(backend, arguments):
    y, states = scan(backend, *arguments)
    expected_y, expected_states = loop(*arguments)
    assert y.dtype == states.dtype == jnp.float64
    assert_close(y, expected_y, 1e-13)
    assert_close(states, expected_states, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_stays_float32(backend, arguments):
    arguments = tuple(a.astype("float32") for a in arguments)
    y, states = scan(backend, *arguments)
    assert y.dtype == states.dtype == jnp.float32
    assert_close(y, loop(*arguments)[0], 1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("backend", BACKENDS)
def test_last_state_and_zero_start(backend, arguments):
    *arguments, _ = arguments
    y, last = selective_scan(*map(jnp.asarray, arguments), backend=backend)
    expected_y, expected_states = loop(*arguments, state=np.zeros((B, E, N)))
    assert_close(y, expected_y, 1e-13)
    assert_close(last, expected_states[:, -1], 1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_equal_those_of_the_loop(backend, arguments):
    rng = np.random.default_rng(1)
    tangents = tuple(rng.standard_normal(a.shape) for a in arguments)
    written_out = functools.partial(loop, xp=jnp)
    scanned = functools.partial(scan, backend)
    ours = jax.jit(lambda a, d: jax.jvp(scanned, a, d))(arguments, tangents)
    plain = jax.jit(lambda a, d: jax.jvp(written_out, a, d))(arguments, tangents)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-12), ours, plain)
    cotangents = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape)), plain[0])
    ours = jax.jit(lambda a, d: jax.vjp(scanned, *a)[1](d))(arguments, cotangents)
    plain = jax.jit(lambda a, d: jax.vjp(written_out, *a)[1](d))(arguments, cotangents)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-12), ours, plain)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_to_second_order_in_both_modes(backend):
    arguments = inputs(np.random.default_rng(2), b=1, t=3, e=2, n=2)
    check_grads(functools.partial(scan, backend), arguments, order=2, modes=("fwd", "rev"))


@pytest.mark.usefixtures("x64")
def test_gain_and_offset_act_inside_the_recurrence(arguments):
    rng = np.random.default_rng(3)
    gain, offset = rng.standard_normal((E, N)), rng.standard_normal((B, T, E, N))
    for edits in (
        {"state_gain": gain},
        {"state_offset": offset},
        {"state_gain": gain, "state_offset": offset},
        {"state_gain": np.zeros((E, N))},
    ):
        y, states = scan(ScanBackend.AUTO, *arguments, **edits)
        expected = loop(*arguments, gain=edits.get("state_gain"), offset=edits.get("state_offset"))
        assert_close(y, expected[0], 1e-13)
        assert_close(states, expected[1], 1e-13)


@pytest.mark.usefixtures("x64")
def test_an_offset_is_an_input_of_the_recurrence(arguments):
    """dy/d offset is the Jacobian at the state: here, C_t times the decay since the offset's token."""
    _, delta, A, _, C, _, _ = arguments

    def y(offset):
        return scan(ScanBackend.AUTO, *arguments, state_offset=offset)[0]

    jacobian = jax.jacrev(y)(jnp.zeros((B, T, E, N)))  # [b t e, b t e n]
    since = delta[0, 3, 1] + delta[0, 4, 1]
    expected = C[0, 4] * np.exp(since * A[1])
    assert_close(jacobian[0, 4, 1, 0, 2, 1], expected, 1e-13)
    assert not jacobian[0, 1, :, 0, 2].any()
    assert not jacobian[1, 4, :, 0, 2].any()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cut", [1, 5])
def test_a_cut_text_continues_from_its_state(backend, cut, arguments):
    x, delta, A, B_, C, D, start = arguments
    whole, _ = scan(backend, x, delta, A, B_, C, D, start)
    _, states = scan(backend, x[:, :cut], delta[:, :cut], A, B_[:, :cut], C[:, :cut], D, start)
    rest, _ = scan(backend, x[:, cut:], delta[:, cut:], A, B_[:, cut:], C[:, cut:], D, states[:, -1])
    assert_close(rest, whole[:, cut:], 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_of_size_zero_keeps_the_state_to_the_bit(backend, arguments):
    """Padding rests on this: the state before a token is the state after steps of size zero."""
    x, delta, A, B_, C, D, start = (a.astype("float32") for a in arguments)
    stopped = np.where(np.arange(T)[:, None] < 3, delta, 0).astype("float32")
    _, states = scan(backend, x, stopped, A, B_, C, D, start)
    np.testing.assert_array_equal(states[:, 3:], np.repeat(states[:, 2:3], T - 3, 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_long_text_with_fast_decay_stays_finite(backend):
    x, delta, A, B_, C, D, start = inputs(np.random.default_rng(4), t=70, dtype="float32")
    arguments = x, 30 * delta, 10 * A, B_, C, D, start
    assert_close(scan(backend, *arguments)[0], loop(*arguments)[0], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_is_the_batch(backend, arguments):
    x, delta, A, B_, C, D, start = (a.astype("float32") for a in arguments)

    def one(x, delta, B_, C, start):
        return scan(backend, x[None], delta[None], A, B_[None], C[None], D, start[None])[0][0]

    mapped = jax.vmap(one)(*map(jnp.asarray, (x, delta, B_, C, start)))
    assert_close(mapped, scan(backend, x, delta, A, B_, C, D, start)[0], 1e-6)


def test_auto_is_sequential_on_cpu_and_associative_on_an_accelerator():
    auto, sequential, associative = ScanBackend.AUTO, *BACKENDS
    assert resolve_backend(auto, 100, "cpu") is sequential
    assert resolve_backend(auto, 100, "gpu") is associative
    assert resolve_backend(auto, 1, "gpu") is sequential
    for named in BACKENDS:
        for platform in ("cpu", "gpu"):
            assert resolve_backend(named, 100, platform) is named


def test_the_named_associative_scan_refuses_edits_of_the_state(arguments):
    for edit in ({"state_gain": np.ones((E, N))}, {"state_offset": np.zeros((B, T, E, N))}):
        with pytest.raises(ValueError, match="sequential"):
            scan(ScanBackend.ASSOCIATIVE, *arguments, **edit)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tokens", [1, 2, 16, 37])  # one chunk, a full one, three that do not fill theirs
def test_the_chunkwise_derivative_is_that_of_the_sequential_scan(tokens):
    rng = np.random.default_rng(tokens)
    arguments = inputs(rng, t=tokens)
    tangents = tuple(rng.standard_normal(a.shape) for a in arguments)
    cotangents = rng.standard_normal((5, B, tokens, E))

    def both(backend):
        def y(*arguments):
            return selective_scan(*arguments[:-1], initial_state=arguments[-1], backend=backend)[0]

        def derivatives(arguments, tangents, cotangents):
            _, pullback = jax.vjp(y, *arguments)
            return jax.jvp(y, arguments, tangents), jax.vmap(pullback)(cotangents)

        return jax.jit(derivatives)(arguments, tangents, cotangents)

    chunkwise, sequential = both(ScanBackend.CHUNKWISE), both(ScanBackend.SEQUENTIAL)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-12), chunkwise, sequential)


@pytest.mark.usefixtures("x64")
def test_the_chunkwise_derivative_can_be_differentiated():
    *arguments, state = map(jnp.asarray, inputs(np.random.default_rng(5), b=1, t=4, e=2, n=2))

    def y(*arguments):
        return selective_scan(*arguments, initial_state=state, backend=ScanBackend.CHUNKWISE)[0]

    check_grads(jax.jit(y), tuple(arguments), order=2, modes=("fwd", "rev"))


@pytest.mark.usefixtures("x64")
def test_the_chunkwise_backend_with_states_or_edits_is_the_sequential_one(arguments):
    offset = np.random.default_rng(6).standard_normal((B, T, E, N))
    for edits in ({}, {"state_offset": offset}):
        made = scan(ScanBackend.CHUNKWISE, *arguments, **edits)
        expected = scan(ScanBackend.SEQUENTIAL, *arguments, **edits)
        jax.tree.map(np.testing.assert_array_equal, made, expected)
