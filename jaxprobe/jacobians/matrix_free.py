"""The Jacobian's largest singular values and Frobenius norm estimated, for models too large for exact sweeps.

J = R dz/dh_l is never formed: its products and those of its transpose feed `jaxprobe.jacobians.krylov`, and
what is kept are that module's vectors, as many [t d] as there are pairs of products and probes, and the
linearisation of one block at a time. Nothing here is exact, and nothing here is called so.
"""

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int, Key, Params
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians.krylov import MatrixFreeSpectrum, Product, estimate_spectrum
from jaxprobe.models import LanguageModel
from jaxprobe.sites import check_layer


def matrix_free_spectrum(
    lm: LanguageModel,
    params: Params,
    factor: Float[Array, "*b m d"],
    hidden: Float[Array, "l b t d"],
    lengths: Int[Array, " b"],
    layer: int | Int[Array, ""],
    keys: Key[Array, " b"],
    *,
    wrt: str,
    num_singular_values: int = 1,
    num_products: int = 60,
    num_probes: int = 20,
) -> MatrixFreeSpectrum:
    """Estimates for the Jacobian of each text's last-token logits with respect to block_out of one layer.

    One compiled program serves every layer, and its size does not grow with the depth.

    Args:
      lm: the model. params: its parameters.
      factor: R, from `output_factor`, for all texts or one for each.
      hidden: `block_out` of every layer of the model.
      lengths: real tokens of each text; what follows them is padding.
      layer: counted from 0; may be traced.
      keys: one per text: a text's estimates depend neither on its batch nor on its padding.
      wrt: "last", only the last token's row moves, or "sequence", every row.
      num_singular_values, num_products, num_probes: as `estimate_spectrum`.

    Raises:
      ProbeError: as `estimate_spectrum`, or the model lacks the layer, or `wrt` is something else.
    """
    if isinstance(layer, int):
        check_layer(lm.config, layer)
    per_text = 0 if factor.ndim == 3 else None

    def one(factor, hidden, length, key):
        push, pull = jacobian_products(lm, params, factor, hidden, length, layer, wrt=wrt)
        return estimate_spectrum(
            push,
            pull,
            key,
            num_outputs=len(factor),
            dtype=hidden.dtype,
            num_singular_values=num_singular_values,
            num_products=num_products,
            num_probes=num_probes,
        )

    return jax.vmap(one, in_axes=(per_text, 1, 0, 0))(factor, hidden, lengths, keys)


def jacobian_products(
    lm: LanguageModel,
    params: Params,
    factor: Float[Array, "m d"],
    hidden: Float[Array, "l t d"],
    length: Int[Array, ""],
    layer: int | Int[Array, ""],
    *,
    wrt: str,
) -> tuple[Product, Product]:
    """The products v -> J v and u -> J^T u of one text, v being [t d] (`sequence`) or [d] (`last`) and u [m].

    Each block above `layer` is linearised anew at its known input for every product: twice the arithmetic of
    keeping the linearisations, but no memory for them, and loops whose bounds may be traced. For `last` the
    context of every block is read once and held fixed, so a product does not grow with the text.

    Args:
      lm: the model. params: its parameters. factor: R.
      hidden: `block_out` of every layer, for one text of `length` real tokens.
      layer: counted from 0; may be traced.
      wrt: "last" or "sequence".

    Raises:
      ProbeError: `wrt` is something else.
    """
    if wrt not in ("last", "sequence"):
        raise ProbeError(f"wrt must be last or sequence, got {wrt!r}")
    last, num_layers = length - 1, lm.config.num_layers

    def read(layer: Int[Array, ""]):  # what block `layer` remembers of the tokens before the last
        return lm.past(lm.block_params(params, layer), hidden[layer - 1][None], last[None])

    # The input of block 0 is not in `hidden`, nor is its past ever asked for.
    pasts = jax.lax.map(read, jnp.arange(num_layers)) if wrt == "last" else None

    def block(layer) -> tuple[Product, Array]:  # and the input at which it is linearised
        block_params, h = lm.block_params(params, layer), hidden[layer - 1]
        if wrt == "sequence":
            return lambda h: lm.block(block_params, layer, h[None])[0], h
        past = jax.tree.map(lambda leaf: leaf[layer], pasts)
        return lambda h: lm.step(block_params, layer, h[None], past)[0], h[last]

    def readout(h):
        return factor @ lm.normalise(params, h[last] if wrt == "sequence" else h)

    top = hidden[-1] if wrt == "sequence" else hidden[-1, last]

    def push(tangent: Array) -> Array:
        def through(layer, tangent):
            f, h = block(layer)
            return jax.jvp(f, (h,), (tangent,))[1]

        tangent = jax.lax.fori_loop(layer + 1, num_layers, through, tangent)
        return jax.jvp(readout, (top,), (tangent,))[1]

    def pull(cotangent: Array) -> Array:
        def back(step, cotangent):
            f, h = block(num_layers - 1 - step)
            return jax.vjp(f, h)[1](cotangent)[0]

        cotangent = jax.vjp(readout, top)[1](cotangent)[0]
        return jax.lax.fori_loop(0, num_layers - 1 - layer, back, cotangent)

    return push, pull
