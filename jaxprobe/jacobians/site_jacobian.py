"""Exact Jacobians of the logits at the last token with respect to any site of any layer.

Let s_l [t w] be what a site (`jaxprobe.sites`) of layer l holds, and o an offset added to it there. What is
had is the derivative of the logits by o at o = 0, all else being computed from the edited value as always.
At `block_out` that is the Jacobian of `jacobians.linearize`. At `ssm_state` the offset is a term added to the
recurrence's input, so that moving the state at one token moves the states after it. The offset at B moves
the scan's B alone, not the convolution that it was computed from.

As in `jacobians.linearize`, m = min(v, d) rows of R stand for the v logits, and one reverse pass carries the
cotangents of `block_out` down through the layers. On the way each layer's are pulled back to its site.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int, Params
from jaxprobe.jacobians.layer_spectra import Spectra, SpectraByInput
from jaxprobe.jacobians.linearize import for_pullbacks, pull_back, seed_cotangents
from jaxprobe.jacobians.reductions import Reduction, join_columns, joined_values
from jaxprobe.models import LanguageModel
from jaxprobe.sites import check_layer, site_width
from jaxprobe.taps import Edit, Taps

# The most units of a site whose columns are held at once, in widths d: as a rule those of `mlp_act`, and an
# eighth of `ssm_state`. The pullback to the site is repeated for each slab of units; on CPU at d = 768 one
# took about twice as long as the slab's Gram matrix and a quarter as long as its QR.
_SLAB_WIDTHS = 4


def site_sweep(
    lm: LanguageModel,
    params: Params,
    factor: Float[Array, "*b m d"],
    ids: Int[Array, "b t"],
    hidden: Float[Array, "l b t d"],
    lengths: Int[Array, " b"],
    site: str,
    *,
    lowest: int = 0,
    every: bool = True,
    chunk: int | None = None,
    reduction: Reduction = Reduction.QR,
    values: bool = True,
) -> SpectraByInput:
    """Spectra of the Jacobians of the last token's logits with respect to a site of each layer.

    Beside the cotangents carried, [m b t d], it holds the columns of a slab of at most four widths d of the
    site's units, [m b t 4d], whatever the site's width.

    Args:
      lm: the model. params: its parameters.
      factor: R, from `jaxprobe.jacobians.output_metrics`; one for all texts, or one each.
      ids: the texts, from which comes the input of block 0.
      hidden: `block_out` of every layer of the model.
      lengths: real tokens of each text; what follows them is padding and its Jacobian is zero.
      site: its name; static.
      lowest: the deepest layer wanted; static.
      every: whether every layer from `lowest` up is wanted, or `lowest` alone; static.
      chunk: how many cotangents to pull back at once, to bound memory; all m if None; static.
      reduction: how singular values are had; static.
      values: whether they are made here, layer by layer; if not, the squares are returned; static.

    Returns:
      Spectra of layers lowest, lowest + 1, ..., or of `lowest` alone, for every token's row of the site
      (t * w columns) and for the last token's (w). A text has at most (its tokens) * w singular values, or w
      for the last token: where m is larger, the rest of the m are exactly zero.

    Raises:
      ProbeError: the model has no such site or layer, or its scan is `associative` and the site `ssm_state`.
    """
    width = site_width(lm.config, site)
    check_layer(lm.config, lowest)
    lm = for_pullbacks(lm, factor.shape[-2])
    seeds = seed_cotangents(lm, params, factor, hidden[-1], lengths)

    def spectra(cotangents, layer, block_params, x):
        def columns(units: Int[Array, " k"]) -> Float[Array, "m b t k"]:
            def moved(offset):
                taps = Taps((Edit(site, "add", layer, units, offset),))
                return lm.tapped_block(block_params, layer, x, taps=taps)[0]

            return pull_back(moved, jnp.zeros((*x.shape[:2], len(units)), x.dtype), cotangents, chunk)

        found = _reduced(columns, width, cotangents, lengths, reduction)
        return found.with_values(partial(joined_values, reduction=reduction)) if values else found

    def carry(cotangents, layer, block_params, x):
        return pull_back(partial(lm.block, block_params, layer), x, cotangents, chunk)

    def visit(cotangents, inputs):
        found = spectra(cotangents, *inputs)
        keep = inputs[0] == lowest  # nothing is below
        return jax.lax.cond(keep, lambda c, *_: c, carry, cotangents, *inputs), found

    before = jnp.concatenate([lm.embed(params, ids)[None], hidden[:-1]])
    inputs = jnp.arange(lm.config.num_layers), params["blocks"], before
    if every:
        wanted = jax.tree.map(lambda leaf: leaf[lowest:], inputs)
        return jax.lax.scan(visit, seeds, wanted, reverse=True)[1]
    above = jax.tree.map(lambda leaf: leaf[lowest + 1 :], inputs)
    bottom, _ = jax.lax.scan(lambda c, given: (carry(c, *given), None), seeds, above, reverse=True)
    found = spectra(bottom, *jax.tree.map(lambda leaf: leaf[lowest], inputs))
    return jax.tree.map(lambda leaf: leaf[None], found)


def _reduced(columns, width: int, cotangents, lengths, reduction: Reduction) -> SpectraByInput:
    """Spectra of the Jacobian whose columns for some units, [m b t k], are columns(units)."""
    m, batch, tokens, d = cotangents.shape
    texts, last = jnp.arange(batch), lengths - 1
    slabs = math.ceil(width / (_SLAB_WIDTHS * d))
    size = math.ceil(width / slabs)

    def add(sofar, units):
        whole, end, squares = sofar
        rows = jnp.moveaxis(columns(units), 1, 0)
        whole = join_columns(whole, rows.reshape(batch, m, -1), reduction)
        end = join_columns(end, rows[texts, :, last], reduction)
        return (whole, end, squares + jnp.sum(jnp.square(rows), axis=(1, 3))), None

    nothing = jnp.zeros((batch, m, m), cotangents.dtype)
    start = nothing, nothing, jnp.zeros((batch, tokens), cotangents.dtype)
    # The last slab may name units past the site's last. An edit of those is dropped: their columns are zero.
    (whole, end, squares), _ = jax.lax.scan(add, start, jnp.arange(slabs * size).reshape(slabs, size))
    norms = jnp.sqrt(squares)
    # A Jacobian has as many singular values as rows or columns, whichever are fewer.
    return SpectraByInput(
        Spectra(None, norms, squares=whole, ranks=lengths * width),
        Spectra(None, norms[texts, last][:, None], squares=end, ranks=jnp.full_like(lengths, width)),
    )
