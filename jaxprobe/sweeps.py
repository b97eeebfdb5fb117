"""The exact sweeps as compiled programs: which of them a plan needs, on all devices together."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, ArrayLike, Float, Int, Params
from jaxprobe.devices import texts_apart
from jaxprobe.linearize import Spectra, last_token_sweep, sequence_norms, sequence_sweep
from jaxprobe.models import LanguageModel
from jaxprobe.planning import Batch, Plan
from jaxprobe.reductions import Reduction
from jaxprobe.site_jacobian import site_sweep
from jaxprobe.sites import BLOCK_OUT

_STATIC = ("lowest", "every", "reduction", "chunk", "site")


def sweep(
    lm: LanguageModel,
    params: Params,
    plan: Plan,
    batch: Batch,
    factor: Float[Array, "*b m d"],
    mean: Float[Array, " m"] | None,
    ids: Int[ArrayLike, "b t"],
    hidden: Float[Array, "l b t d"],
    lengths: Int[ArrayLike, " b"],
) -> dict[str, Spectra]:
    """Spectra of the plan's layers, by the inputs that it asks for.

    Args:
      lm: the model. params: its parameters.
      plan: what to measure. batch: how it is cut.
      factor: R, from `jaxprobe.output_metrics`. mean: the mean logit in its terms, or None.
      ids: the texts. hidden: `block_out` of every layer. lengths: real tokens of each text.
    """
    if plan.site != BLOCK_OUT:
        made = _program("site", plan)(
            lm, params, factor, ids, hidden, lengths, site=plan.site, chunk=batch.chunk, **_options(plan)
        )
        return {wrt: getattr(made, wrt) for wrt in plan.wrt}
    made = {}
    for wrt in plan.wrt:
        options = _options(plan, wrt) | ({"chunk": batch.chunk} if wrt == "sequence" else {})
        made[wrt] = _program(wrt, plan)(lm, params, factor, mean, hidden, lengths, **options)
    return made


def lower_sweep(lm: LanguageModel, params: Params, plan: Plan, batch: Batch) -> jax.stages.Lowered:
    """The largest sweep of a batch, traced and not run: what it takes can be read from it once compiled."""
    config, dtype = lm.config, jax.tree.leaves(params)[0].dtype
    d, outputs = config.hidden_size, min(config.vocab_size, config.hidden_size)
    per_text = (batch.rows,) if plan.metric == "fisher" else ()
    shape = jax.ShapeDtypeStruct
    factor = shape((*per_text, outputs, d), dtype)
    hidden = shape((config.num_layers, batch.rows, batch.width, d), dtype)
    lengths = shape((batch.rows,), jnp.int32)
    options = {"chunk": batch.chunk, **_options(plan)}
    if plan.site != BLOCK_OUT:
        ids = shape((batch.rows, batch.width), jnp.int32)
        return _program("site", plan).lower(
            lm, params, factor, ids, hidden, lengths, site=plan.site, **options
        )
    mean = shape((outputs,), dtype) if plan.metric == "logits" else None
    return _program("sequence", plan).lower(lm, params, factor, mean, hidden, lengths, **options)


def _options(plan: Plan, wrt: str = "sequence") -> dict[str, Any]:
    options: dict[str, Any] = {"lowest": plan.layers[0], "every": len(plan.layers) > 1}
    if plan.reduction != "none":
        return {**options, "reduction": Reduction(plan.reduction)}
    # The last token's Jacobians are small: their spectra fit where those of the sequence do not.
    return {**options, "reduction": Reduction.GRAM} if wrt == "last" else options


def _program(kind: str, plan: Plan):
    if kind == "sequence" and plan.reduction == "none":
        kind = "norms"
    return _programs(plan.metric == "fisher")[kind]


@cache
def _programs(own_factors: bool) -> Mapping[str, Any]:
    # A factor is one for all texts or one for each; then come the mean logit, hidden states and lengths.
    given = (None, 0 if own_factors else None, None, 1, 0)
    of_site = (None, 0 if own_factors else None, 0, 1, 0)
    # The texts are the second axis of all that has one entry a layer.
    return {
        "sequence": texts_apart(_with_mean(sequence_sweep), given, 1, _STATIC),
        "norms": texts_apart(_with_mean(sequence_norms), given, 1, _STATIC),
        "last": texts_apart(_with_mean(last_token_sweep), given, 1, _STATIC),
        "site": texts_apart(site_sweep, of_site, 1, _STATIC),
    }


def _with_mean(function):
    # The mean logit as an argument in its place: a keyword would have to be static.
    def run(lm, params, factor, mean, hidden, lengths, **options):
        return function(lm, params, factor, hidden, lengths, mean=mean, **options)

    return run
