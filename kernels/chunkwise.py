"""The selective scan with its derivative as matrix products, for pulling back many cotangents at one point.

Everything about the derivative of the recurrence but its input is fixed by the point at which it is taken.
With h_t = a_t h_{t-1} + b_t as in `selective_scan`, an infinitesimal change of the inputs gives

    dh_t = a_t dh_{t-1} + du_t
    du_t = delta_t B_t dx_t + (A a_t h_{t-1} + x_t B_t) ddelta_t + delta_t x_t dB_t
    dy_t = C_t . dh_t + h_t . dC_t

and so, with decay_{q,s} = exp(A (delta_{s+1} + ... + delta_q)),

    dy_q = sum_{s <= q} C_q . (decay_{q,s} du_s) + h_q . dC_q.

The sums over n are done once: dy/dx and dy/ddelta are lower-triangular matrices per channel, dy/dB is one
matrix over channels and states. As in the chunkwise forms of linear attention and of Mamba-2 (Dao and Gu
2024, arXiv:2405.21060, section 6) they are built for chunks of q tokens, and a recurrence over the k chunks
carries the state between them: memory and work grow with t q, not t^2.

All of it is of one text. Axis letters, beside those of `selective_scan`: k chunk, q and s token within one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CHUNK = 16  # the most tokens in a chunk; BUILD_NOTES, "Operators of the scan"


class Operators(NamedTuple):
    """The derivative of every chunk's outputs, and of the state after it, with respect to their causes."""

    x: Float[Array, "q k s e"]  # dy_q / dx_s
    delta: Float[Array, "q k s e"]  # dy_q / ddelta_s
    B: Float[Array, "q k s n e"]  # dy_q / dB_s
    C: Float[Array, "k q n e"]  # dy_q / dC_q: the state
    state: Float[Array, "k q n e"]  # dy_q / d(state before the chunk)
    x_end: Float[Array, "k s n e"]  # d(state after the chunk) / dx_s
    delta_end: Float[Array, "k s n e"]
    B_end: Float[Array, "k s n e"]
    state_end: Float[Array, "k n e"]  # d(state after the chunk) / d(state before it)


def build_operators(
    x: Float[Array, "t e"],
    delta: Float[Array, "t e"],
    A: Float[Array, "e n"],
    B: Float[Array, "t n"],
    C: Float[Array, "t n"],
    initial_state: Float[Array, "e n"],
    states: Float[Array, "t e n"],
) -> Operators:
    """The derivative of the recurrence at a point; arguments as in `selective_scan`, and all its states."""
    before = jnp.concatenate([initial_state[None], states[:-1]])
    x, delta, B, C, states, before = map(_chunks, (x, delta, B, C, states, before))
    # Channels last: they are the long axis, along which everything runs.
    A, states, before = A.T, states.swapaxes(2, 3), before.swapaxes(2, 3)
    along = (..., None, slice(None))  # [k s e] -> [k s 1 e]
    step = jnp.exp(delta[along] * A)
    by_x = delta[along] * B[..., None]  # du_s / dx_s [k s n e]
    by_delta = A * step * before + x[along] * B[..., None]
    by_B = (delta * x)[along]
    places = jnp.arange(x.shape[1])

    def advance(carry, inputs):
        # decay[s] = exp(A (delta_{s+1} + ... + delta_q)) for s <= q, else 0.
        decay, from_start = carry
        q, step_q, C_q = inputs
        decay = jnp.where((places == q)[:, None, None], 1, step_q[:, None] * decay)
        from_start = step_q * from_start
        read = C_q[:, None, :, None] * decay
        made = (
            _sum_states(read * by_x),
            _sum_states(read * by_delta),
            read * by_B,
            C_q[..., None] * from_start,
        )
        return (decay, from_start), made

    start = jnp.zeros_like(by_x), jnp.ones_like(step[:, 0])
    inputs = places, jnp.moveaxis(step, 1, 0), jnp.moveaxis(C, 1, 0)
    (end, whole), (by_input, by_step, by_matrix, by_state) = jax.lax.scan(advance, start, inputs)
    return Operators(
        x=by_input,
        delta=by_step,
        B=by_matrix,
        C=states,
        state=jnp.moveaxis(by_state, 0, 1),
        x_end=end * by_x,
        delta_end=end * by_delta,
        B_end=end * by_B,
        state_end=whole,
    )


def _sum_states(array: Float[Array, "k s n e"]) -> Float[Array, "k s e"]:
    # Term by term: XLA's own sum over an axis in the middle does not run along the last one.
    return sum(jnp.unstack(array, axis=2))


def apply_operators(
    operators: Operators,
    x: Float[Array, "t e"],
    delta: Float[Array, "t e"],
    B: Float[Array, "t n"],
    C: Float[Array, "t n"],
) -> Float[Array, "t e"]:
    """The change of y to first order, for infinitesimal changes of the inputs: linear in them.

    Written for the sake of its transpose. Sums of products of rows become, output by output, one loop over
    channels, where one contraction would become as many small matrix products as there are channels. The
    halves of a chunk are joined there, and what is joined is finished: it is not computed again in every use.
    """
    tokens = x.shape[0]
    x, delta, B, C = map(_chunks, (x, delta, B, C))
    size = x.shape[1]
    middle = size // 2
    x_halves, delta_halves = (jnp.split(array, [middle], axis=1) for array in (x, delta))
    halves = list(zip((0, middle), (middle, size), x_halves, delta_halves, strict=True))

    def along(
        by_x: Float[Array, "k s e"], by_delta: Float[Array, "k s e"], reached: int
    ) -> Float[Array, "k e"]:
        # What the tokens before `reached` add.
        return sum(
            (by_x[:, low:high] * dx + by_delta[:, low:high] * ddelta).sum(axis=1)
            for low, high, dx, ddelta in halves
            if low < reached
        )

    state = None
    if len(x) > 1:
        by_x, by_delta = (jnp.unstack(made, axis=2) for made in (operators.x_end, operators.delta_end))
        ends = jnp.stack([along(*both, size) for both in zip(by_x, by_delta, strict=True)], axis=1)
        ends += jnp.einsum("ksne,ksn->kne", operators.B_end, B)
        state = _carried(operators.state_end, ends)

    def output(q: int) -> Float[Array, "k e"]:
        # One product for B and C. Channels first, as its transpose needs them: else each pullback would make
        # that copy anew.
        by_both = jnp.concatenate([operators.B[q, :, : q + 1], operators.C[:, q, None]], axis=1)
        both = jnp.concatenate([B[:, : q + 1], C[:, q, None]], axis=1)
        y = jnp.einsum("kesn,ksn->ke", jnp.moveaxis(by_both, 3, 1), both)
        y += along(operators.x[q], operators.delta[q], q + 1)
        return y if state is None else y + (operators.state[:, q] * state).sum(axis=1)

    y = jnp.stack([output(q) for q in range(size)], axis=1)
    return y.reshape(-1, y.shape[-1])[:tokens]


def _carried(gain: Float[Array, "k n e"], ends: Float[Array, "k n e"]) -> Float[Array, "k n e"]:
    # The change of the state before each chunk, from what each chunk adds to the state after it.
    def step(state, inputs):
        g, end = inputs
        return g * state + end, state

    return jax.lax.scan(step, jnp.zeros_like(ends[0]), (gain, ends))[1]


def _chunks(array: Float[Array, "t ..."]) -> Float[Array, "k q ..."]:
    # Zeros after the text: a step of size zero leaves the state as it is.
    tokens = array.shape[0]
    size = -(-tokens // -(-tokens // CHUNK))  # chunks of one size, as few as CHUNK allows
    padding = [(0, -tokens % size), *[(0, 0)] * (array.ndim - 1)]
    return jnp.pad(array, padding).reshape(-1, size, *array.shape[1:])
