"""Mamba's mixer on one token, its past held fixed, differentiated for many cotangents at one point.

Between its two projections a token's u and z meet diagonal maps only, but for x_proj with what follows it,
whose rank is r + 2n. So with K the scaled sum of both halves of in_proj, and of that low rank, the mixer's
Jacobian is K times out_proj. That takes d^2 e products, and then d^2 a cotangent in place of 3 d e.

As `jaxprobe.kernels.factored`, this is a tangent rule made of ordinary operations, which `vjp` transposes:
exact, in both modes and to any order.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprobe.array_typing import Array, Float
from jaxprobe.kernels.selective_scan import ScanBackend
from jaxprobe.kernels.tangents import all_zero, dense
from jaxprobe.models.activations import silu
from jaxprobe.taps import NO_TAPS, LayerTap


def mix(mixer: Any, x: Float[Array, "b 1 d"], past: Any) -> Float[Array, "b 1 d"]:
    """What the mixer makes of one token.

    Args:
      mixer: a `MambaMixer`. x: its input. past: a `MambaPast`.
    """
    graph, state = nnx.split(mixer)
    weights, tree = jax.tree.flatten(state)
    return _mix((graph, tree), x, tuple(weights), past)


def jacobian(mixer: Any, x: Float[Array, "b 1 d"], past: Any) -> Float[Array, "b d d"]:
    """The transposed Jacobian of `mix` with respect to x, multiplied out; arguments as there."""

    def slopes(function, at):  # of a function of each channel alone
        return jax.jvp(function, (at,), (jnp.ones_like(at),))

    u, z = jnp.split(mixer.in_proj(x), 2, axis=-1)
    conv_out, by_u = slopes(lambda u: silu(mixer.conv(past.window, u)), u)
    gate, by_z = slopes(silu, z)
    projected = mixer.x_proj(conv_out)
    y, by_conv_out, by_projected = _scan_derivatives(mixer, conv_out, projected, past.state)

    of_u, of_z = jnp.split(mixer.in_proj.kernel[...], 2, axis=-1)
    moved = of_u * by_u
    through = jnp.einsum("bdw,btew->bde", moved @ mixer.x_proj.kernel[...], by_projected)
    between = (moved * by_conv_out + through) * gate + of_z * (y * by_z)
    return between @ mixer.out_proj.kernel[...]


def _scan_derivatives(
    mixer: Any, x: Float[Array, "b 1 e"], projected: Float[Array, "b 1 w"], before: Float[Array, "b e n"]
) -> tuple[Float[Array, "b 1 e"], Float[Array, "b 1 e"], Float[Array, "b 1 e w"]]:
    """Output y of the scan of one token, and its derivatives by the scan's input x and by x_proj's output.

    With h' the state before the token, h = exp(delta A) h' + delta x B and y = C . h + D x. Each channel's
    output depends on its own x and delta, and on all of B and C.
    """

    def read(states: Float[Array, "b 1 e n"]) -> Float[Array, "b 1 e"]:
        return jnp.einsum("bten,btn->bte", states, C, precision="highest")

    delta, B, C = mixer.selective(projected)
    A = mixer.decay_rates()
    kept = jnp.exp(delta[..., None] * A) * before[:, None]
    states = kept + (delta * x)[..., None] * B[:, :, None]
    both, skip = (B * C).sum(axis=-1, keepdims=True), mixer.D[...]
    by_delta = read(A * kept) + x * both
    # The slope of the softplus that delta is of: the logistic function.
    by_step = (by_delta * -jnp.expm1(-delta))[..., None] * mixer.dt_proj.kernel[...].T
    by_B = (delta * x)[..., None] * C[:, :, None]
    by_projected = jnp.concatenate([by_step, by_B, states], axis=-1)
    return read(states) + skip * x, delta * both + skip, by_projected


def _mixer(static, weights):
    graph, tree = static
    mixer = nnx.merge(graph, jax.tree.unflatten(tree, weights))
    mixer.scan = ScanBackend.SEQUENTIAL  # of one token
    return mixer


def _step_by_step(static, x, weights, past):
    return _mixer(static, weights).mix(x, LayerTap(NO_TAPS, 0, jnp.ones(x.shape[:2], bool)), past)


_mix = jax.custom_jvp(_step_by_step, nondiff_argnums=(0,))


@functools.partial(_mix.defjvp, symbolic_zeros=True)
def _mix_jvp(static, primals, tangents):
    dx, *others = tangents
    if not all_zero(jax.tree.leaves(others)):
        moves = jax.tree.map(dense, tangents)
        return jax.jvp(functools.partial(_step_by_step, static), primals, moves)
    x, weights, past = primals
    jacobians = jacobian(_mixer(static, weights), x, past)
    return _step_by_step(static, x, weights, past), jnp.einsum("btd,bde->bte", dense(dx), jacobians)
