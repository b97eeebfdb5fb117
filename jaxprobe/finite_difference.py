"""The seed's estimator: how far the logits move when Gaussian noise is added to a hidden state.

delta ~ N(0, epsilon^2) on every entry of h_l, `wrt=sequence`. Beside each draw's `||f(h + delta) - f(h)||`
stands its first-order value `||J delta||` along the same delta, from the exact Jacobian (`linearize`) or,
where that was not made, from a forward-mode derivative: their difference is curvature, and what the mean of
the first-order values differs from its exact expectation by (`jaxprobe.spectra.expected_gain`) is
Monte-Carlo error.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxprobe.array_typing import Array, ArrayLike, Float, Int, Key, Params
from jaxprobe.linearize import logits_from
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
      linear: whether first-order values are made too; static.
    """
    f = partial(logits_from, lm, params, layer, lengths=lengths)
    norm = partial(jnp.linalg.norm, axis=-1)
    base = f(h)

    def draw(sample: Int[Array, ""]) -> Draws:
        unit = unit_draws(keys, sample, lengths, h.shape[1:], h.dtype)
        delta = (epsilon * unit).astype(h.dtype)
        first_order = norm(jax.jvp(f, (h,), (delta,))[1]) if linear else None
        step = norm(delta.reshape(delta.shape[0], -1))
        return Draws(norm(f(h + delta) - base), first_order, step)

    # Ten at a time bounds the memory whatever the number of draws.
    return jax.lax.map(draw, jnp.arange(num_samples), batch_size=min(num_samples, 10))


def text_keys(
    seed: int | Int[Array, ""], texts: Int[ArrayLike, " b"], layer: int | Int[Array, ""]
) -> Key[Array, " b"]:
    """A key for each text's draws at a layer, from the seed and the text's place among the texts."""
    key = jax.random.key(seed)
    return jax.vmap(lambda text: jax.random.fold_in(jax.random.fold_in(key, text), layer))(jnp.asarray(texts))


def unit_directions(
    seed: int | Int[Array, ""],
    texts: Int[ArrayLike, " b"],
    layer: int | Int[Array, ""],
    lengths: Int[Array, " b"],
    shape: tuple[int, ...],
    dtype: DTypeLike,
    num_samples: int,
) -> Float[Array, "b s t d"]:
    """Every delta / epsilon of `draw_differences` with the keys of these texts; arguments as there."""
    keys = text_keys(seed, texts, layer)
    draws = partial(unit_draws, keys, lengths=lengths, shape=shape, dtype=dtype)
    return jax.vmap(draws, out_axes=1)(jnp.arange(num_samples))


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
