"""Exact Jacobians of f_l : h_l -> logits at the last token, for every layer l in one reverse sweep.

h_l is `block_out` of layer l. Two inputs are of interest: `last` moves only the last token's row of h_l, with
J in R^{v x d}; `sequence` moves every row, with J in R^{v x td}.

Reduction. The logits are W z, with z in R^d the final normed state. With W = Q R (Q has orthonormal columns),
J and R dz/dh_l have the same singular values: m = min(v, d) cotangents do the work of v. Another output
metric only replaces R.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int, Params
from jaxprobe.models import LanguageModel


class Spectra(NamedTuple):
    """What is kept of the Jacobians of one or more layers l."""

    singular_values: Float[Array, "l b m"]  # of J, largest first
    position_norms: Float[Array, "l b t"]  # Frobenius norm of J's block for each input token


def output_factor(lm: LanguageModel, params: Params) -> Float[Array, "m d"]:
    """R of the QR decomposition of the unembedding W: W^T W = R^T R without squaring W's condition."""
    return jnp.linalg.qr(lm.unembedding(params), mode="r")


def sequence_sweep(
    lm: LanguageModel,
    params: Params,
    factor: Float[Array, "m d"],
    hidden: Float[Array, "l b t d"],
    lengths: Int[Array, " b"],
    *,
    lowest: int = 0,
    every: bool = True,
    chunk: int | None = None,
) -> Spectra:
    """Spectra of the Jacobian with respect to every row of h_l.

    One reverse pass carries the cotangents [m b t d] of z from the last layer to the first: every layer for
    the price of the deepest. A block is linearised once; only its pullback is batched over m.

    Args:
      lm: the model. params: its parameters.
      factor: R, from `output_factor`.
      hidden: `block_out` of every layer of the model.
      lengths: real tokens of each text; what follows them is padding and its Jacobian is zero.
      lowest: the deepest layer wanted; static.
      every: whether every layer from `lowest` up is wanted, or `lowest` alone; static.
      chunk: how many cotangents to pull back at once, to bound memory; all m if None; static.

    Returns:
      Spectra of layers lowest, lowest + 1, ..., or of `lowest` alone.
    """
    rows, last = jnp.arange(hidden.shape[1]), lengths - 1
    top = _readout_jacobian(lm, params, factor, hidden[-1, rows, last])
    seeds = jnp.zeros((factor.shape[0], *hidden.shape[1:]), hidden.dtype).at[:, rows, last].set(top)

    def pull(cotangents, layer, block_params, x):
        _, pullback = jax.vjp(partial(lm.block, block_params, layer), x)
        return jax.lax.map(lambda c: pullback(c)[0], cotangents, batch_size=chunk or len(cotangents))

    return _sweep(lm, params, seeds, hidden, pull, _sequence_spectra, lowest, every)


def last_token_sweep(
    lm: LanguageModel,
    params: Params,
    factor: Float[Array, "m d"],
    hidden: Float[Array, "l b t d"],
    lengths: Int[Array, " b"],
    *,
    lowest: int = 0,
    every: bool = True,
) -> Spectra:
    """Spectra of the Jacobian with respect to the last token's row of h_l; arguments as `sequence_sweep`.

    With its context held fixed (conv window and SSM state, or keys and values), a block is a map R^d -> R^d
    on the last token. `jacfwd` of that step, chained over layers, gives every layer at a cost that does not
    grow with the length of the text, but for reading the context once.
    """
    rows, last = jnp.arange(hidden.shape[1]), lengths - 1
    seeds = _readout_jacobian(lm, params, factor, hidden[-1, rows, last])

    def pull(cotangents, layer, block_params, x):
        past = lm.past(block_params, x, last)

        def step(h, past):  # of one text
            return lm.step(block_params, layer, h[None], jax.tree.map(lambda leaf: leaf[None], past))[0]

        jacobians = jax.vmap(jax.jacfwd(step))(x[rows, last], past)
        return jnp.einsum("mbi,bij->mbj", cotangents, jacobians)

    return _sweep(lm, params, seeds, hidden, pull, _last_token_spectra, lowest, every)


def last_token_logits(
    lm: LanguageModel, params: Params, h: Float[Array, "b t d"], lengths: Int[Array, " b"]
) -> Float[Array, "b v"]:
    """Logits at each text's last token, from the output of the last block."""
    last = h[jnp.arange(h.shape[0]), lengths - 1]
    return lm.unembed(params, lm.normalise(params, last))


def logits_from(
    lm: LanguageModel,
    params: Params,
    layer: int | Int[Array, ""],
    h: Float[Array, "b t d"],
    lengths: Int[Array, " b"],
) -> Float[Array, "b v"]:
    """f_l(h_l): logits at the last token as a function of `block_out` of a layer, which may be traced."""
    return last_token_logits(lm, params, lm.resume(params, h, layer + 1), lengths)


def _readout_jacobian(lm, params, factor, h):
    # R dz/dh at the last row, h [b d] -> [m b d].
    jacobians = jax.vmap(jax.jacfwd(partial(lm.normalise, params)))(h)
    return jnp.einsum("mi,bij->mbj", factor, jacobians)


def _sweep(lm, params, seeds, hidden, pull: Callable, spectra: Callable, lowest: int, every: bool) -> Spectra:
    # Block l maps h_{l-1} to h_l, so pulling back through blocks L-1 .. lowest+1 ends at h_lowest.
    blocks = jax.tree.map(lambda leaf: leaf[lowest + 1 :], params["blocks"])
    layers = jnp.arange(lowest + 1, lm.config.num_layers)

    def body(cotangents, inputs):
        cotangents = pull(cotangents, *inputs)
        return cotangents, spectra(cotangents) if every else None

    inputs = (layers, blocks, hidden[lowest:-1])
    bottom, below = jax.lax.scan(body, seeds, inputs, reverse=True)
    if not every:
        return jax.tree.map(lambda leaf: leaf[None], spectra(bottom))
    return jax.tree.map(lambda lower, top: jnp.concatenate([lower, top[None]]), below, spectra(seeds))


def _sequence_spectra(cotangents: Float[Array, "m b t d"]) -> Spectra:
    per_text = jnp.moveaxis(cotangents, 1, 0)
    norms = jnp.sqrt(jnp.sum(jnp.square(per_text), axis=(1, 3)))
    return Spectra(_singular_values(per_text.reshape(*per_text.shape[:2], -1)), norms)


def _last_token_spectra(cotangents: Float[Array, "m b d"]) -> Spectra:
    per_text = jnp.moveaxis(cotangents, 1, 0)
    norms = jnp.sqrt(jnp.sum(jnp.square(per_text), axis=(1, 2)))
    return Spectra(_singular_values(per_text), norms[:, None])


def _singular_values(matrices: Float[Array, "b m x"]) -> Float[Array, "b m"]:
    # Through a QR of the long side, never the Gram matrix: squaring would lose half the digits.
    square = jnp.linalg.qr(jnp.swapaxes(matrices, 1, 2), mode="r")
    return jnp.linalg.svd(square, compute_uv=False)
