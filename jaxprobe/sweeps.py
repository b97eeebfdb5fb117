"""The exact sweeps as compiled programs: which of them a plan needs, on all devices together."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, ArrayLike, Float, Int, Params
from jaxprobe.devices import texts_apart
from jaxprobe.linearize import (
    Spectra,
    SpectraByInput,
    both_sweeps,
    last_token_sweep,
    sequence_norms,
    sequence_sweep,
)
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
    made = {}
    for kind in _kinds(plan):
        options = _options(plan, batch, kind)
        own = ids if kind == "site" else mean
        found = _program(kind, plan)(lm, params, factor, own, hidden, lengths, **options)
        made |= found._asdict() if isinstance(found, SpectraByInput) else {_INPUT[kind]: found}
    return {wrt: made[wrt] for wrt in plan.wrt}


def lower_sweep(lm: LanguageModel, params: Params, plan: Plan, batch: Batch) -> jax.stages.Lowered:
    """The largest sweep of a batch, traced and not run: what it takes can be read from it once compiled."""
    config, dtype = lm.config, jax.tree.leaves(params)[0].dtype
    d, outputs = config.hidden_size, min(config.vocab_size, config.hidden_size)
    per_text = (batch.rows,) if plan.metric == "fisher" else ()
    shape = jax.ShapeDtypeStruct
    factor = shape((*per_text, outputs, d), dtype)
    hidden = shape((config.num_layers, batch.rows, batch.width, d), dtype)
    lengths = shape((batch.rows,), jnp.int32)
    kind = _kinds(plan)[0]
    own = shape((outputs,), dtype) if plan.metric == "logits" else None
    if kind == "site":
        own = shape((batch.rows, batch.width), jnp.int32)
    options = _options(plan, batch, kind)
    return _program(kind, plan).lower(lm, params, factor, own, hidden, lengths, **options)


# Each program with the input that it is for; `both` and `site` say themselves what is what.
_INPUT = {"sequence": "sequence", "norms": "sequence", "last": "last"}


def _kinds(plan: Plan) -> tuple[str, ...]:
    """The programs that the plan needs, the largest first."""
    if plan.site != BLOCK_OUT:
        return ("site",)
    whole = "norms" if plan.reduction == "none" else "sequence"
    if len(plan.wrt) > 1:
        return ("norms", "last") if whole == "norms" else ("both",)
    return tuple("last" if wrt == "last" else whole for wrt in plan.wrt)


def _options(plan: Plan, batch: Batch, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = {"lowest": plan.layers[0], "every": len(plan.layers) > 1}
    if kind == "site":
        options["site"] = plan.site
    if kind != "last":
        options["chunk"] = batch.chunk
    if plan.reduction != "none":
        options["reduction"] = Reduction(plan.reduction)
    elif kind == "last":  # whose Jacobians are small: their spectra fit where those of the sequence do not
        options["reduction"] = Reduction.GRAM
    return options


def _program(kind: str, plan: Plan):
    return _programs(plan.metric == "fisher")[kind]


@cache
def _programs(own_factors: bool) -> Mapping[str, Any]:
    # A factor is one for all texts or one for each; then come the mean logit, hidden states and lengths.
    given = (None, 0 if own_factors else None, None, 1, 0)
    of_site = (None, 0 if own_factors else None, 0, 1, 0)
    # The texts are the second axis of all that has one entry a layer.
    return {
        "both": texts_apart(_with_mean(both_sweeps), given, 1, _STATIC),
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
