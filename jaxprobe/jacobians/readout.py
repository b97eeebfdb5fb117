"""The logits at the last token, from the hidden states of any layer: f_l, whose Jacobian is wanted."""

import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int, Params
from jaxprobe.models import LanguageModel


def last_token_logits(
    lm: LanguageModel, params: Params, h: Float[Array, "b t d"], lengths: Int[Array, " b"]
) -> Float[Array, "b v"]:
    """Logits at each text's last token, from the output of the last block."""
    return lm.unembed(params, last_token_state(lm, params, h, lengths))


def last_token_state(
    lm: LanguageModel, params: Params, h: Float[Array, "b t d"], lengths: Int[Array, " b"]
) -> Float[Array, "b d"]:
    """The final normed state z at each text's last token, from the output of the last block."""
    return lm.normalise(params, h[jnp.arange(h.shape[0]), lengths - 1])


def logits_from(
    lm: LanguageModel,
    params: Params,
    layer: int | Int[Array, ""],
    h: Float[Array, "b t d"],
    lengths: Int[Array, " b"],
) -> Float[Array, "b v"]:
    """f_l(h_l): logits at the last token as a function of `block_out` of a layer, which may be traced."""
    return lm.unembed(params, last_token_state_from(lm, params, layer, h, lengths))


def last_token_state_from(
    lm: LanguageModel,
    params: Params,
    layer: int | Int[Array, ""],
    h: Float[Array, "b t d"],
    lengths: Int[Array, " b"],
) -> Float[Array, "b d"]:
    """z, of which the logits are a linear function, from h_l; the rest as `logits_from`."""
    return last_token_state(lm, params, lm.resume(params, h, layer + 1), lengths)
