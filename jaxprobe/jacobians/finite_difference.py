"""The original study's estimator: how far the logits move when Gaussian noise is added to a hidden state.

delta ~ N(0, epsilon^2) on every entry of h_l, `wrt=sequence`. Beside each draw's `||f(h + delta) - f(h)||`
stands its first-order value `||J delta||` along the same delta, from the exact Jacobian (`linearize`), or
where that was not made from forward mode: their difference is curvature, and what the mean of the first-order
values differs from its exact expectation by (`jaxprobe.jacobians.spectra.expected_gain`) is Monte-Carlo
error.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxprobe.array_typing import Array, ArrayLike, Float, Int, Key, Params, UInt, np
from jaxprobe.jacobians.planning import DRAWS_AT_ONCE
from jaxprobe.jacobians.readout import last_token_state_from
from jaxprobe.models import LanguageModel

# Whatever JAX's own default is: a text's draws must not depend on its padding (`unit_draws`).
_GENERATOR = "threefry2x32"


class Draws(NamedTuple):
    """Euclidean norms, one per draw and text."""

    change: Float[Array, "s b"]  # ||f(h + delta) - f(h)||
    linear: Float[Array, "s b"] | None  # ||J delta||; None where it was not asked for
    step: Float[Array, "s b"]  # ||delta||


def draw_differences(
    lm: LanguageModel,
    params: Params,
    h: Float[Array, "b t d"],
    layer: int | Int[Array, ""],
    lengths: Int[Array, " b"],
    keys: Key[Array, "s b"],
    epsilon: ArrayLike,
    *,
    state: Float[Array, "b d"] | None = None,
    linear: bool = True,
) -> Draws:
    """Draws the finite differences of f_l at h.

    Args:
      lm: the model. params: its parameters.
      h: `block_out` of the layer.
      layer: counted from 0; may be traced.
      lengths: real tokens of each text; padding is not perturbed.
      keys: one per draw and text: a text's draws depend neither on its batch nor on its padding.
      epsilon: standard deviation of the noise.
      state: the final state that h leads to, where it is known: a program that makes it is twice as long.
      linear: whether the draws are differentiated too, in forward mode; static.
    """
    # Logits are a linear function of the final state: so is their change of its change, which is taken of
    # the state, before the product with the unembedding.
    f = partial(last_token_state_from, lm, params, layer, lengths=lengths)

    def delta(keys: Key[Array, " b"]) -> Float[Array, "b t d"]:
        return jnp.asarray(epsilon * unit_draws(keys, lengths, h.shape[1:], h.dtype), h.dtype)

    unmoved = f(h) if state is None else state

    def first_order(keys: Key[Array, "k b"]) -> Float[Array, "k b"]:
        moved = jax.vmap(lambda keys: jax.jvp(f, (h,), (delta(keys),))[1])(keys)
        return _logits_size(lm, params, moved)

    def difference(keys: Key[Array, "k b"]) -> tuple[Float[Array, "k b"], Float[Array, "k b"]]:
        deltas = jax.vmap(delta)(keys)
        moved = jax.vmap(f)(h + deltas) - unmoved
        return _logits_size(lm, params, moved), jnp.linalg.norm(
            deltas.reshape(*deltas.shape[:2], -1), axis=-1
        )

    changes, steps = _some_at_a_time(difference, keys)
    return Draws(changes, _some_at_a_time(first_order, keys) if linear else None, steps)


def _some_at_a_time(function: Callable, keys: Key[Array, "s b"]):
    """A function of the keys of a few draws, for all of them: that bounds the memory."""
    count = len(keys)
    groups = -(-count // DRAWS_AT_ONCE)
    size = -(-count // groups)
    filled = keys[jnp.minimum(jnp.arange(groups * size), count - 1)]
    made = jax.lax.map(function, filled.reshape(groups, size, -1))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], made)


def _logits_size(lm: LanguageModel, params: Params, states: Float[Array, "k b d"]) -> Float[Array, "k b"]:
    # The vocabulary goes first: XLA:CPU sums along a last axis slowly, and fuses this product with the sum.
    logits = lm.unembedding(params) @ states.reshape(-1, states.shape[-1]).T
    return jnp.linalg.norm(logits, axis=0).reshape(states.shape[:-1])


def draw_keys(
    seed: int, texts: Sequence[int] | Int[np.ndarray, " b"], layers: Sequence[int], count: int
) -> UInt[np.ndarray, "l s b 2"]:
    """Data of a key for each draw of each text at each layer, for `wrap` where they are used.

    A key comes from the seed, the text's place among the texts, the layer and the number of the draw. They
    are made here, once: programs that make their own take a third of a second longer to compile, each.

    Args:
      seed: of the run. texts: each one's place. layers: counted from 0. count: draws per text and layer.
    """
    made = [
        [np.asarray(_draw_keys(np.uint32(seed), np.int32(text), np.int32(layer), count)) for text in texts]
        for layer in layers
    ]
    return np.moveaxis(np.array(made), 1, 2)


@partial(jax.jit, static_argnums=3)
def _draw_keys(seed: ArrayLike, text: ArrayLike, layer: ArrayLike, count: int) -> UInt[Array, "s 2"]:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed, impl=_GENERATOR), text), layer)
    return jax.random.key_data(jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count)))


def wrap(key_data: UInt[Array, "*s 2"]) -> Key[Array, "*s"]:
    """The keys whose data `draw_keys` made."""
    return jax.random.wrap_key_data(key_data, impl=_GENERATOR)


def unit_draws(
    keys: Key[Array, " b"], lengths: Int[Array, " b"], shape: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "b t d"]:
    """N(0, 1) on every entry of every real token, from each text's key.

    Threefry counts row by row, so the draws of a text do not depend on its padding.

    Args:
      keys: of a draw of each text.
      lengths: real tokens of each text; what follows them is zero.
      shape: [t d]. dtype: of the draws.
    """
    unit = jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
    return jnp.where((jnp.arange(shape[0]) < lengths[:, None])[..., None], unit, 0)
