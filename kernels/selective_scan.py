"""Selective scan of Mamba (Gu and Dao 2023, arXiv:2312.00752, section 3.2 and equation 2a).

Per text, channel e and state n, with the zero-order hold for A and Euler's rule for B (as the paper's code):

    a_t = exp(delta_t A)          b_t = delta_t B_t x_t
    h_t = a_t h_{t-1} + b_t       y_t = C_t . h_t + D x_t

Axis letters: b text, t token, e channel, n state.
"""

import enum
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprobe.kernels import chunkwise
from jaxprobe.kernels.tangents import all_zero, dense


class ScanBackend(enum.Enum):
    """How the recurrence is evaluated. All agree to rounding; they differ in speed and memory."""

    AUTO = "auto"  # see `resolve_backend`
    ASSOCIATIVE = "associative"  # jax.lax.associative_scan: depth log t, memory t * e * n
    SEQUENTIAL = "sequential"  # jax.lax.scan over t: the specification
    CHUNKWISE = (
        "chunkwise"  # sequential, with the derivative as matrix products: `jaxprobe.kernels.chunkwise`
    )


def resolve_backend(backend: ScanBackend, num_tokens: int, platform: str | None = None) -> ScanBackend:
    """Turns AUTO into a concrete backend; other values pass through.

    On CPU the sequential scan is faster at every size measured (BUILD_NOTES, "Scan backend"). On an
    accelerator a loop of t small kernels is bound by launches, so the associative scan is chosen there
    for more than one token.

    Args:
      backend: the backend asked for.
      num_tokens: length of the recurrence.
      platform: "cpu", "gpu", ...; JAX's default backend if None.
    """
    if backend is not ScanBackend.AUTO:
        return backend
    platform = platform or jax.default_backend()
    return ScanBackend.SEQUENTIAL if platform == "cpu" or num_tokens == 1 else ScanBackend.ASSOCIATIVE


def selective_scan(
    x: Float[Array, "b t e"],
    delta: Float[Array, "b t e"],
    A: Float[Array, "e n"],
    B: Float[Array, "b t n"],
    C: Float[Array, "b t n"],
    D: Float[Array, " e"],
    *,
    initial_state: Float[Array, "b e n"] | None = None,
    state_gain: Float[Array, "e n"] | None = None,
    state_offset: Float[Array, "b t e n"] | None = None,
    return_states: bool = False,
    backend: ScanBackend = ScanBackend.AUTO,
) -> tuple[Float[Array, "b t e"], Float[Array, "b e n"] | Float[Array, "b t e n"]]:
    """Runs the recurrence over t; differentiable in both modes, to any order, with every backend.

    `state_gain` g and `state_offset` o act inside the recurrence, after the update and before the readout,
    so that what they do propagates: h_t = g (a_t h_{t-1} + b_t) + o_t. An offset alone is a term added to
    the recurrence's input: differentiate with respect to it for the Jacobian at the state. A caller who
    gives either chooses the sequential backend.

    Args:
      x: input of the recurrence.
      delta: step sizes, after the softplus.
      A: negative decay rates. B, C: input and output matrices. D: skip connection.
      initial_state: h_{-1}; zeros if None.
      state_gain: factor on every state after its update; ones if None.
      state_offset: term added to every state after its update; zeros if None.
      return_states: whether to return all states in place of the last.
      backend: how to evaluate.

    Returns:
      y and the last state, or y and every state [b t e n] if `return_states`.

    Raises:
      ValueError: the associative backend was named together with a gain or an offset.
    """
    edited = state_gain is not None or state_offset is not None
    if edited and backend is ScanBackend.ASSOCIATIVE:
        raise ValueError("the state is edited inside the recurrence: use the sequential scan")
    resolved = ScanBackend.SEQUENTIAL if edited else resolve_backend(backend, x.shape[1])
    if initial_state is None:
        initial_state = jnp.zeros((x.shape[0], x.shape[2], A.shape[1]), x.dtype)

    def of_text(x, delta, B, C, initial_state, offset):
        if resolved is ScanBackend.ASSOCIATIVE:
            return _associative(x, delta, A, B, C, initial_state, return_states)
        if resolved is ScanBackend.CHUNKWISE and not return_states:
            y = _chunkwise(x, delta, A, B, C, initial_state)
            # The last state is dropped where it is unused.
            return y, _sequential(x, delta, A, B, C, initial_state, None, None, False)[1]
        return _sequential(x, delta, A, B, C, initial_state, state_gain, offset, return_states)

    y, kept = _over_texts(of_text)(x, delta, B, C, initial_state, state_offset)
    return y + D * x, kept


def _over_texts(function):
    """`vmap`, but for one text without an axis b.

    A caller who maps over texts or cotangents has one text here, and an axis of length one in their midst
    makes XLA:CPU's loops slow: the sequential scan's six times (BUILD_NOTES, "Scan backend").
    """

    def mapped(*arrays):
        if arrays[0].shape[0] > 1:
            return jax.vmap(function)(*arrays)
        return jax.tree.map(lambda a: a[None], function(*jax.tree.map(lambda a: a[0], arrays)))

    return mapped


def _sequential(x, delta, A, B, C, initial_state, gain, offset, keep_states):
    # Inside, channels are the last axis: the long one, along which everything runs.
    # a_t and b_t are formed inside the step, and again in the reverse pass: keeping them costs t * e * n
    # memory and, on CPU, more time than the exponential does.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(h, inputs):
        x_t, delta_t, B_t, C_t, offset_t = inputs
        h = jnp.exp(delta_t * A) * h + (delta_t * x_t) * B_t[:, None]
        if gain is not None:
            h = gain * h
        if offset_t is not None:
            h = h + offset_t
        return h, (jnp.matmul(C_t, h, precision="highest"), h if keep_states else None)

    A, gain, offset = (None if array is None else jnp.swapaxes(array, -1, -2) for array in (A, gain, offset))
    last, (y, states) = jax.lax.scan(step, initial_state.T, (x, delta, B, C, offset))
    return y, jnp.swapaxes(states if keep_states else last, -1, -2)


def _associative(x, delta, A, B, C, initial_state, keep_states):
    a = jnp.exp(delta[..., None] * A)
    b = (delta * x)[..., None] * B[:, None, :]
    b = b.at[0].add(a[0] * initial_state)

    # (a1, b1) then (a2, b2) is h -> a2 (a1 h + b1) + b2 (Blelloch 1990, section 1.4.1).
    def then(first, second):
        (a1, b1), (a2, b2) = first, second
        return a1 * a2, a2 * b1 + b2

    _, states = jax.lax.associative_scan(then, (a, b))
    return jnp.sum(states * C[:, None, :], axis=-1), states if keep_states else states[-1]


@jax.custom_jvp
def _chunkwise(x, delta, A, B, C, initial_state):
    return _sequential(x, delta, A, B, C, initial_state, None, None, False)[0]


@functools.partial(_chunkwise.defjvp, symbolic_zeros=True)
def _chunkwise_jvp(primals, tangents):
    x, delta, A, B, C, initial_state = primals
    y, states = _sequential(*primals, None, None, True)
    dx, ddelta, dA, dB, dC, dstate = tangents
    operators = chunkwise.build_operators(*primals, states)
    dy = chunkwise.apply_operators(operators, *map(dense, (dx, ddelta, dB, dC)))
    if not all_zero((dA, dstate)):

        def of_rest(A, initial_state):
            return _sequential(x, delta, A, B, C, initial_state, None, None, False)[0]

        dy += jax.jvp(of_rest, (A, initial_state), (dense(dA), dense(dstate)))[1]
    return y, dy
