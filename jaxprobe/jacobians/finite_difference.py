"""The original study's estimator: how far the logits move when Gaussian noise is added to a hidden state.

delta ~ N(0, epsilon^2) on every entry of h_l, `wrt=sequence`. Beside each draw's `||f(h + delta) - f(h)||`
stands its first-order value `||J delta||` along the same delta, from the exact Jacobian (`linearize`), or
where that was not made from forward mode: their difference is curvature, and what the mean of the first-order
values differs from its exact expectation by (`jaxprobe.jacobians.spectra.expected_gain`) is Monte-Carlo
error.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxprobe.array_typing import Array, ArrayLike, Float, Int, Key, Params, UInt
from jaxprobe.jacobians.planning import DRAWS_AT_ONCE
from jaxprobe.jacobians.readout import last_token_state_from
from jaxprobe.models import LanguageModel


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
    keys: Key[Array, " b"],
    epsilon: ArrayLike,
    num_samples: int,
    *,
    linear: bool = True,
) -> Draws:
    """Draws the finite differences of f_l at h.

    Args:
      lm: the model. params: its parameters.
      h: `block_out` of the layer.
      layer: counted from 0; may be traced.
      lengths: real tokens of each text; padding is not perturbed.
      keys: one per text: a text's draws depend neither on its batch nor on its padding.
      epsilon: standard deviation of the noise.
      num_samples: draws per text; static.
      linear: whether the draws are differentiated too, in forward mode; static.
    """
    # Logits are a linear function of the final state: so is their change of its change, which is taken of
    # the state, before the product with the unembedding.
    f = partial(last_token_state_from, lm, params, layer, lengths=lengths)

    def delta(sample: Int[Array, ""]) -> Float[Array, "b t d"]:
        unit = unit_draws(keys, sample, lengths, h.shape[1:], h.dtype)
        return jnp.asarray(epsilon * unit, h.dtype)

    state = f(h)

    def first_order(samples: Int[Array, " k"]) -> Float[Array, "k b"]:
        moved = jax.vmap(lambda sample: jax.jvp(f, (h,), (delta(sample),))[1])(samples)
        return _logits_size(lm, params, moved)

    def difference(samples: Int[Array, " k"]) -> tuple[Float[Array, "k b"], Float[Array, "k b"]]:
        deltas = jax.vmap(delta)(samples)
        moved = jax.vmap(f)(h + deltas) - state
        return _logits_size(lm, params, moved), jnp.linalg.norm(
            deltas.reshape(*deltas.shape[:2], -1), axis=-1
        )

    changes, steps = _some_at_a_time(difference, num_samples)
    return Draws(changes, _some_at_a_time(first_order, num_samples) if linear else None, steps)


def _some_at_a_time(function: Callable, count: int):
    """A function of the numbers of a few draws, for so many in all: that bounds the memory."""
    groups = -(-count // DRAWS_AT_ONCE)
    size = -(-count // groups)
    made = jax.lax.map(function, jnp.arange(groups * size).reshape(groups, size))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], made)


def _logits_size(lm: LanguageModel, params: Params, states: Float[Array, "k b d"]) -> Float[Array, "k b"]:
    # The vocabulary goes first: XLA:CPU sums along a last axis slowly, and fuses this product with the sum.
    logits = lm.unembedding(params) @ states.reshape(-1, states.shape[-1]).T
    return jnp.linalg.norm(logits, axis=0).reshape(states.shape[:-1])


def text_keys(
    seed: int | UInt[Array, ""], texts: Int[ArrayLike, " b"], layer: int | Int[Array, ""]
) -> Key[Array, " b"]:
    """A key for each text's draws at a layer, from the seed and the text's place among the texts."""
    key = jax.random.key(seed)
    return jax.vmap(lambda text: jax.random.fold_in(jax.random.fold_in(key, text), layer))(jnp.asarray(texts))


def unit_draws(
    keys: Key[Array, " b"],
    sample: Int[Array, ""],
    lengths: Int[Array, " b"],
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> Float[Array, "b t d"]:
    """N(0, 1) on every entry of every real token, from each text's key and the number of the draw.

    Threefry counts row by row, so the draws of a text do not depend on its padding.

    Args:
      keys: of the texts. sample: which draw.
      lengths: real tokens of each text; what follows them is zero.
      shape: [t d]. dtype: of the draws.
    """
    sample_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, sample)
    unit = jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(sample_keys)
    return jnp.where((jnp.arange(shape[0]) < lengths[:, None])[..., None], unit, 0)
