"""Exact Jacobians of f_l : h_l -> logits at the last token, for every layer l in one reverse sweep.

h_l is `block_out` of layer l. Two inputs are of interest: `last` moves only the last token's row of h_l, with
J in R^{v x d}; `sequence` moves every row, with J in R^{v x td}.

Reduction. The logits are W z, with z in R^d the final normed state. With W = Q R (Q has orthonormal columns),
J and R dz/dh_l have the same singular values: m = min(v, d) cotangents do the work of v. Another output
metric only replaces R (`jaxprobe.jacobians.output_metrics`).
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int, Params
from jaxprobe.configs import GPT2Config
from jaxprobe.jacobians.layer_spectra import (
    Directions,
    Spectra,
    SpectraByInput,
    position_squares,
    reduce_last,
    reduce_sequence,
)
from jaxprobe.jacobians.reductions import Reduction, joined_values
from jaxprobe.kernels.selective_scan import ScanBackend
from jaxprobe.models import LanguageModel

# Hidden sizes from which building the operators of a scan or perceptron repays its compilation (BUILD_NOTES,
# "Operators of the scan").
_OPERATORS_FROM = 256


def sequence_sweep(
    lm: LanguageModel,
    params: Params,
    factor: Float[Array, "*b m d"],
    hidden: Float[Array, "l b t d"],
    lengths: Int[Array, " b"],
    *,
    centred_weight: Float[Array, ""] | None = None,
    lowest: int = 0,
    every: bool = True,
    chunk: int | None = None,
    reduction: Reduction = Reduction.QR,
    values: bool = True,
    directions: Directions | None = None,
) -> Spectra:
    """Spectra of the Jacobian with respect to every row of h_l.

    One reverse pass carries the cotangents [m b t d] of z from the last layer to the first: every layer for
    the price of the deepest. A block is linearised once; only its pullback is batched over m.

    Args:
      lm: the model. params: its parameters.
      factor: R, from `jaxprobe.jacobians.output_metrics`; one for all texts, or one each.
      hidden: `block_out` of every layer of the model.
      lengths: real tokens of each text; what follows them is padding and its Jacobian is zero.
      centred_weight: w, where R is from `split_factor` and `centred_norms` are wanted.
      lowest: the deepest layer wanted; static.
      every: whether every layer from `lowest` up is wanted, or `lowest` alone; static.
      chunk: how many cotangents to pull back at once, to bound memory; all m if None; static.
      reduction: how singular values are had; static.
      values: whether they are made here, layer by layer; if not, the squares are returned; static.
      directions: of h_l, for `Spectra.along` and `carried`.

    Returns:
      Spectra of layers lowest, lowest + 1, ..., or of `lowest` alone.
    """
    reduce = _with_values(partial(reduce_sequence, reduction, centred_weight, directions), reduction, values)
    return _sequence(lm, params, factor, hidden, lengths, reduce, lowest, every, chunk)


def both_sweeps(
    lm: LanguageModel,
    params: Params,
    factor: Float[Array, "*b m d"],
    hidden: Float[Array, "l b t d"],
    lengths: Int[Array, " b"],
    *,
    centred_weight: Float[Array, ""] | None = None,
    lowest: int = 0,
    every: bool = True,
    chunk: int | None = None,
    reduction: Reduction = Reduction.QR,
    values: bool = True,
    directions: Directions | None = None,
) -> SpectraByInput:
    """What `sequence_sweep` and `last_token_sweep` make, from one reverse pass.

    With respect to the last token's row alone, J is the block of the sequence's J that belongs to that row.
    Arguments as `sequence_sweep`.
    """
    texts, last = jnp.arange(hidden.shape[1]), lengths - 1

    def reduce(layer: Int[Array, ""], cotangents: Float[Array, "m b t d"]) -> SpectraByInput:
        return SpectraByInput(
            reduce_sequence(reduction, centred_weight, directions, layer, cotangents),
            reduce_last(reduction, centred_weight, layer, cotangents[:, texts, last]),
        )

    reduce = _with_values(reduce, reduction, values)
    return _sequence(lm, params, factor, hidden, lengths, reduce, lowest, every, chunk)


def sequence_norms(
    lm: LanguageModel,
    params: Params,
    factor: Float[Array, "*b m d"],
    hidden: Float[Array, "l b t d"],
    lengths: Int[Array, " b"],
    *,
    centred_weight: Float[Array, ""] | None = None,
    lowest: int = 0,
    every: bool = True,
    chunk: int,
) -> Spectra:
    """Norms as `sequence_sweep` has them, without its spectra and without ever holding J.

    `chunk` rows of R at a time go down through all the layers, and their squares are added up, so memory does
    not grow with m. Sums of m t d squares in blocks lose no more than a few units of rounding.

    Args:
      lm: the model. params: its parameters.
      factor: R. hidden, lengths, centred_weight, lowest, every: as `sequence_sweep`.
      chunk: how many cotangents to carry at once; static.
    """
    m = factor.shape[-2]
    lm = for_pullbacks(lm, min(chunk, m))
    blocks = -(-m // chunk)
    weight = 1.0 if centred_weight is None else centred_weight
    rows = factor.at[..., 0, :].multiply(jnp.sqrt(weight))
    padded = jnp.pad(rows, [(0, 0)] * (factor.ndim - 2) + [(0, blocks * chunk - m), (0, 0)])

    def squares(layer: Int[Array, ""], cotangents: Float[Array, "m b t d"]) -> Float[Array, "b t"]:
        return position_squares(cotangents)

    def squares_of(rows: Float[Array, "*b m d"]) -> Float[Array, "l b t"]:
        seeds = seed_cotangents(lm, params, rows, hidden[-1], lengths)
        return _sweep(lm, params, seeds, hidden, _block_pullback(lm, None), squares, lowest, every)

    def add(sofar, i):
        rows = jax.lax.dynamic_slice_in_dim(padded, i * chunk, chunk, axis=-2)
        return sofar + squares_of(rows), None

    kept = lm.config.num_layers - lowest if every else 1
    total, _ = jax.lax.scan(add, jnp.zeros((kept, *hidden.shape[1:3]), hidden.dtype), jnp.arange(blocks))
    if centred_weight is None:
        return Spectra(None, jnp.sqrt(total))
    # What the first row's weight has left out.
    offset = squares_of(jnp.sqrt(1 - weight) * factor[..., :1, :])
    return Spectra(None, jnp.sqrt(total + offset), jnp.sqrt(total))


def last_token_sweep(
    lm: LanguageModel,
    params: Params,
    factor: Float[Array, "*b m d"],
    hidden: Float[Array, "l b t d"],
    lengths: Int[Array, " b"],
    *,
    centred_weight: Float[Array, ""] | None = None,
    lowest: int = 0,
    every: bool = True,
    reduction: Reduction = Reduction.QR,
    values: bool = True,
) -> Spectra:
    """Spectra of the Jacobian with respect to the last token's row of h_l; arguments as `sequence_sweep`.

    With its context held fixed (conv window and SSM state, or keys and values), a block is a map R^d -> R^d
    on the last token. The cotangents are pulled back through that step, layer by layer, which gives every
    layer at a cost that does not grow with the length of the text, but for reading the context once. (Its
    whole Jacobian by `jacfwd`, times the cotangents, is the same for d more products a layer: BUILD_NOTES,
    "The last token's sweep".)
    """
    lm = for_pullbacks(lm, factor.shape[-2])
    rows, last = jnp.arange(hidden.shape[1]), lengths - 1
    seeds = _readout_cotangents(lm, params, factor, hidden[-1, rows, last])

    def pull(cotangents, layer, block_params, x):
        past = lm.past(block_params, x, last)
        return pull_back(lambda h: lm.step(block_params, layer, h, past), x[rows, last], cotangents, None)

    reduce = _with_values(partial(reduce_last, reduction, centred_weight), reduction, values)
    return _sweep(lm, params, seeds, hidden, pull, reduce, lowest, every)


def for_pullbacks(lm: LanguageModel, cotangents: int) -> LanguageModel:
    """The model as it is best linearised at one point for so many cotangents.

    If it is not small, the derivative of a scan that was left to `auto` becomes matrix products. Those of
    GPT-2's perceptron and scores (`kernels.factored`), or of Mamba's mixer on one token
    (`models.mamba_token`), are multiplied out where that saves products.
    """
    config = lm.config
    d = config.hidden_size
    if d < _OPERATORS_FROM:
        return lm
    if isinstance(config, GPT2Config):
        build, passed = d * d * config.inner_size, 2 * d * config.inner_size
    else:
        e, between = config.intermediate_size, config.time_step_rank + 2 * config.state_size
        build, passed = d * e * (d + 2 * between), 3 * d * e + 2 * between * e
        lm = dataclasses.replace(lm, scan=ScanBackend.CHUNKWISE) if lm.scan is ScanBackend.AUTO else lm
    return dataclasses.replace(lm, factored=build + cotangents * d * d < cotangents * passed)


def seed_cotangents(
    lm: LanguageModel,
    params: Params,
    factor: Float[Array, "*b m d"],
    h: Float[Array, "b t d"],
    lengths: Int[Array, " b"],
) -> Float[Array, "m b t d"]:
    """R dz/dh of the last block's output h, where a reverse sweep starts; arguments as `sequence_sweep`."""
    rows, last = jnp.arange(len(h)), lengths - 1
    top = _readout_cotangents(lm, params, factor, h[rows, last])
    return jnp.zeros((len(top), *h.shape), h.dtype).at[:, rows, last].set(top)


def pull_back(
    function: Callable[[Array], Array], primal: Array, cotangents: Float[Array, "m ..."], chunk: int | None
) -> Float[Array, "m ..."]:
    """Each cotangent of the function's value pulled back to its argument, `chunk` of them at once or all.

    The function is linearised once, whatever the number of cotangents.
    """
    _, pullback = jax.vjp(function, primal)
    count = len(cotangents)
    chunk = min(chunk or count, count)
    # Where results fit in the cotangents' place they are put there, chunk by chunk: `lax.map` would hold
    # both, and compile a second program for a remainder.
    in_place = chunk < count and count % chunk == 0 and cotangents.shape[1:] == primal.shape
    if not in_place:
        return jax.lax.map(lambda c: pullback(c)[0], cotangents, batch_size=chunk)
    pull_some = jax.vmap(lambda c: pullback(c)[0])

    def body(i, rows):
        some = jax.lax.dynamic_slice_in_dim(rows, i * chunk, chunk)
        return jax.lax.dynamic_update_slice_in_dim(rows, pull_some(some), i * chunk, 0)

    return jax.lax.fori_loop(0, count // chunk, body, cotangents)


def _sequence(lm, params, factor, hidden, lengths, reduce: Callable, lowest: int, every: bool, chunk):
    lm = for_pullbacks(lm, factor.shape[-2])
    seeds = seed_cotangents(lm, params, factor, hidden[-1], lengths)
    return _sweep(lm, params, seeds, hidden, _block_pullback(lm, chunk), reduce, lowest, every)


def _block_pullback(lm, chunk: int | None):
    def pull(cotangents, layer, block_params, x):
        return pull_back(partial(lm.block, block_params, layer), x, cotangents, chunk)

    return pull


def _readout_cotangents(lm, params, factor, h):
    # R dz/dh at the last row, h [b d] -> [m b d].
    jacobians = jax.vmap(jax.jacfwd(partial(lm.normalise, params)))(h)
    return jnp.swapaxes(factor @ jacobians, 0, 1)


def _sweep(lm, params, seeds, hidden, pull: Callable, reduce: Callable, lowest: int, every: bool):
    # Block l maps h_{l-1} to h_l, so pulling back through blocks L-1 .. lowest+1 ends at h_lowest. A block's
    # parameters are taken where they are used: a slice of all of them would be a copy.
    def body(cotangents, layer):
        block_params = lm.block_params(params, layer)
        cotangents = pull(cotangents, layer, block_params, hidden[layer - 1])
        return cotangents, reduce(layer - 1, cotangents) if every else None

    top = lm.config.num_layers - 1
    bottom, below = jax.lax.scan(body, seeds, jnp.arange(lowest + 1, top + 1), reverse=True)
    if not every:
        return jax.tree.map(lambda leaf: leaf[None], reduce(jnp.asarray(lowest), bottom))
    highest = reduce(jnp.asarray(top), seeds)
    return jax.tree.map(lambda lower, leaf: jnp.concatenate([lower, leaf[None]]), below, highest)


def _with_values(reduce: Callable, reduction: Reduction, values: bool) -> Callable:
    if not values:
        return reduce
    return lambda *given: reduce(*given).with_values(partial(joined_values, reduction=reduction))
