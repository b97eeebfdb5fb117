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
    selected = mixer.selective(projected)
    y, by_conv_out = slopes(lambda conv_out: mixer.run_scan(conv_out, *selected, past.state)[0], conv_out)
    by_projected = _by_projected(mixer, conv_out, projected, past.state)

    of_u, of_z = jnp.split(mixer.in_proj.kernel[...], 2, axis=-1)
    moved = of_u * by_u
    through = jnp.einsum("bdw,bew->bde", moved @ mixer.x_proj.kernel[...], by_projected)
    between = (moved * by_conv_out + through) * gate + of_z * (y * by_z)
    return between @ mixer.out_proj.kernel[...]


def _by_projected(mixer, conv_out, projected, state) -> Float[Array, "b e w"]:
    """The derivative of the scan's output with respect to x_proj's: for the step size, B and C each in turn.

    With respect to all of it at once every entry would move a state of its own. B and C are parts of x_proj's
    output as they are (`MambaMixer.selective`).
    """
    r = mixer.config.time_step_rank

    def read(B, C, delta, conv_out, state):
        tokens = jax.tree.map(lambda leaf: leaf[None, None], (conv_out, delta, B, C))
        return mixer.run_scan(*tokens, state[None])[0][0, 0]

    def of_one(conv_out, projected, state):
        def step_size(step):
            return mixer.selective(jnp.concatenate([step, projected[r:]])[None, None])[0][0, 0]

        delta, B, C = (leaf[0, 0] for leaf in mixer.selective(projected[None, None]))
        of_delta = functools.partial(read, B, C, conv_out=conv_out, state=state)
        _, by_delta = jax.jvp(of_delta, (delta,), (jnp.ones_like(delta),))
        by_B, by_C = (jax.jacfwd(read, place)(B, C, delta, conv_out, state) for place in range(2))
        by_step = by_delta[:, None] * jax.jacfwd(step_size)(projected[:r])
        return jnp.concatenate([by_step, by_B, by_C], axis=-1)

    return jax.vmap(of_one)(conv_out[:, 0], projected[:, 0], state)


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
