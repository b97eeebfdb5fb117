"""Perturbation and capture as pure function transforms.

    forward = LanguageModel(config).forward
    edited = perturb(forward, [zero("delta", layer=1, units=[3, 5])])
    both = capture(edited, ["block_out"])
    logits, captured = both(params, ids)

A transformed forward has the signature of `LanguageModel.forward` and composes with `jit`, `vmap`, `grad` and
with further transforms; the order in which edits and captures are added does not matter, except that edits
of the same site act in the order given. There are no hooks and there is no state.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprobe.array_typing import Array, ArrayLike, Int, Key, UInt, np
from jaxprobe.errors import ProbeError
from jaxprobe.models import Output
from jaxprobe.taps import NO_TAPS, Edit, Mode, Taps

Forward = Callable[..., Output]
Units = Sequence[int] | Int[Array, " k"] | Int[np.ndarray, " k"]
Layer = int | Int[Array, ""]


def perturb(forward: Forward, edits: Edit | Iterable[Edit]) -> Forward:
    """The forward function of the model with these edits applied.

    >>> import jax.numpy as jnp
    >>> import jaxprobe
    >>> from jaxprobe.perturb import zero
    >>> model = jaxprobe.load("mamba-facts")
    >>> ids = jnp.array([model.tokenizer.encode("France's capital is Paris.")])
    >>> edited = jaxprobe.perturb(model.lm.forward, zero("delta", layer=1, units=[3, 5]))
    >>> bool((edited(model.params, ids).logits != model.lm.forward(model.params, ids).logits).any())
    True

    Args:
      forward: `LanguageModel.forward`, or an already transformed one.
      edits: one edit or several; see `zero`, `mean`, `noise`, `scale`, `replace`, `add`.

    Returns:
      A function with the same signature. Calling it raises ProbeError for a site the model lacks, or a layer
      or unit out of range.
    """
    added = (edits,) if isinstance(edits, Edit) else tuple(edits)

    def perturbed(params, ids, lengths=None, taps: Taps = NO_TAPS) -> Output:
        return forward(params, ids, lengths, dataclasses.replace(taps, edits=added + taps.edits))

    return perturbed


def capture(forward: Forward, sites: str | Iterable[str]) -> Forward:
    """The forward function that also returns activations: `Output.captured[site]`, [l b t w].

    >>> import jax.numpy as jnp
    >>> import jaxprobe
    >>> model = jaxprobe.load("gpt2-facts")
    >>> ids = jnp.array([model.tokenizer.encode("France's capital is Paris.")])
    >>> captured = jaxprobe.capture(model.lm.forward, ["block_out"])(model.params, ids).captured
    >>> captured["block_out"].shape == (model.lm.config.num_layers, *ids.shape, model.lm.config.hidden_size)
    True

    Args:
      forward: `LanguageModel.forward`, or an already transformed one.
      sites: names of sites (`jaxprobe.sites`); what is captured is the value after its edits.

    Returns:
      A function with the same signature. Calling it raises ProbeError for a site the model lacks.
    """
    added = (sites,) if isinstance(sites, str) else tuple(sites)

    def capturing(params, ids, lengths=None, taps: Taps = NO_TAPS) -> Output:
        kept = tuple(dict.fromkeys(taps.capture + added))
        return forward(params, ids, lengths, dataclasses.replace(taps, capture=kept))

    return capturing


def zero(site: str, layer: Layer, units: Units) -> Edit:
    """Sets the units to zero."""
    return _edit(site, "zero", layer, units)


def mean(site: str, layer: Layer, units: Units) -> Edit:
    """Sets each unit to its mean over the text's tokens."""
    return _edit(site, "mean", layer, units)


def noise(
    site: str, layer: Layer, units: Units, key: Key[Array, "*b"] | UInt[Array, "*b 2"], std: ArrayLike = 1.0
) -> Edit:
    """Adds N(0, std^2), drawn for every text, token and unit.

    Args:
      site: where. layer: counted from 0. units: indices of units.
      key: one key, from which text i of the batch takes the i-th; or one key per text [b], in which case a
        text's draw does not depend on the batch it is in. Of `jax.random.key`, or `PRNGKey`'s old form.
      std: standard deviation.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    return _edit(site, "noise", layer, units, std, key)


def scale(site: str, layer: Layer, units: Units, factor: ArrayLike) -> Edit:
    """Multiplies the units by a factor."""
    return _edit(site, "scale", layer, units, factor)


def replace(site: str, layer: Layer, units: Units, value: ArrayLike) -> Edit:
    """Sets the units to a value, broadcast to [b t k]."""
    return _edit(site, "replace", layer, units, value)


def add(site: str, layer: Layer, units: Units, value: ArrayLike) -> Edit:
    """Adds a value, broadcast to [b t k]. Differentiate with respect to it for the Jacobian at the site."""
    return _edit(site, "add", layer, units, value)


def _edit(site: str, mode: Mode, layer: Layer, units: Units, value: ArrayLike = 0.0, key=None) -> Edit:
    # Kept as numpy's unless they are traced, so that they can be checked where the forward pass is.
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(units))
    kept = jnp.asarray(units) if traced else np.asarray(units)
    if kept.size and not jnp.issubdtype(kept.dtype, jnp.integer):
        raise ProbeError(f"units are indices, so whole numbers, got {kept.dtype} (of a mask: its nonzero)")
    narrow = kept.astype(np.int32)
    if not traced and (narrow != kept).any():
        raise ProbeError(f"units are indices, got {kept[narrow != kept][0]}")
    if not jnp.issubdtype(jnp.result_type(layer), jnp.integer):
        raise ProbeError(f"layer is a whole number, counted from 0, got {layer!r}")
    return Edit(site, mode, layer, narrow, value, key)
