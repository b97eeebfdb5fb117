"""The exact sweeps as compiled programs: which of them a plan needs, on all devices together."""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, ArrayLike, Float, Int, Params, UInt
from jaxprobe.configs import ModelConfig
from jaxprobe.devices import shard_over_texts, to_host
from jaxprobe.jacobians.finite_difference import unit_draws, wrap
from jaxprobe.jacobians.layer_spectra import Directions, Spectra, SpectraByInput
from jaxprobe.jacobians.linearize import both_sweeps, last_token_sweep, sequence_norms, sequence_sweep
from jaxprobe.jacobians.planning import Batch, Plan
from jaxprobe.jacobians.reductions import Reduction, joined_values, joined_values_on_host
from jaxprobe.jacobians.site_jacobian import site_sweep
from jaxprobe.models import LanguageModel
from jaxprobe.sites import BLOCK_OUT

_STATIC = ("lowest", "every", "reduction", "chunk", "site", "values")


def sweep(
    lm: LanguageModel,
    params: Params,
    plan: Plan,
    batch: Batch,
    factor: Float[Array, "*b m d"],
    centred_weight: Float[Array, ""] | None,
    ids: Int[ArrayLike, "b t"],
    hidden: Float[Array, "l b t d"],
    lengths: Int[ArrayLike, " b"],
    draws: UInt[ArrayLike, "_ s b 2"] | None = None,
    carried: Float[Array, "l b t d"] | None = None,
) -> dict[str, Spectra]:
    """Spectra of the plan's layers, by the inputs that it asks for.

    Args:
      lm: the model. params: its parameters.
      plan: what to measure. batch: how it is cut.
      factor: R, from `jaxprobe.jacobians.output_metrics` or `split_factor`. centred_weight: w, from there, or
        None.
      ids: the texts. hidden: `block_out` of every layer. lengths: real tokens of each text.
      draws: `finite_difference.draw_keys` of the plan's layers, where the draws meet the Jacobian.
      carried: the directions that check the Jacobian, where they do.
    """
    made = {}
    for kind in _kinds(plan):
        options = _options(plan, batch, kind)
        own = (ids, hidden, lengths)
        own = own if kind == "site" else (centred_weight, *own[1:], draws, carried)
        found = _program(kind, plan)(lm, params, factor, *own, **options)
        by_input = found._asdict() if isinstance(found, SpectraByInput) else {_INPUT[kind]: found}
        for wrt in (wrt for wrt in plan.wrt if wrt in by_input):  # in one order in all processes
            made[wrt] = by_input[wrt].with_values(partial(values_of, reduction=_reduction(options)))
    return {wrt: made[wrt] for wrt in plan.wrt}


def values_of(squares: Float[Array, "l b m m"], reduction: Reduction) -> Float[ArrayLike, "l b m"]:
    """Singular values of what a sweep left as squares, where that is quickest."""
    if _on_host(reduction):
        return joined_values_on_host(to_host(squares), reduction)
    return _values()(reduction, squares)


def _on_host(reduction: Reduction) -> bool:
    # A GPU has no quick SVD of small matrices. Several processes do not hold the texts of one another.
    slow_on_device = jax.default_backend() == "cpu" or reduction is Reduction.QR
    return slow_on_device and jax.process_count() == 1


def compile_sweeps(lm: LanguageModel, params: Params, plan: Plan, batch: Batch) -> None:
    """Compiles what `sweep` runs for batches of one shape."""
    for kind, lowered in zip(_kinds(plan), lower_sweeps(lm, params, plan, batch), strict=True):
        lowered.compile()
        reduction = _reduction(_options(plan, batch, kind))
        found = lowered.out_info
        for spectra in found if isinstance(found, SpectraByInput) else (found,):
            if spectra.squares is not None and not _on_host(reduction):
                _values().lower(reduction, spectra.squares).compile()


def lower_sweeps(
    lm: LanguageModel, params: Params, plan: Plan, batch: Batch
) -> tuple[jax.stages.Lowered, ...]:
    """The sweeps of a batch, traced and not run: what they take can be read from them once compiled."""
    config, dtype = lm.config, jax.tree.leaves(params)[0].dtype
    d, outputs = config.hidden_size, min(config.vocab_size, config.hidden_size)
    per_text = (batch.rows,) if plan.metric == "fisher" else ()
    shape = jax.ShapeDtypeStruct
    factor = shape((*per_text, outputs, d), dtype)
    hidden = shape((config.num_layers, batch.rows, batch.width, d), dtype)
    of_text = shape((batch.rows,), jnp.int32)
    weight = shape((), dtype) if plan.metric == "logits" else None

    def lower(kind: str) -> jax.stages.Lowered:
        keys, carried = None, None
        if plan.draws_meet_jacobian:
            keys = shape((len(plan.layers), plan.num_samples, batch.rows, 2), jnp.uint32)
            carried = hidden
        own = (weight, hidden, of_text, keys, carried)
        if kind == "site":
            own = (shape((batch.rows, batch.width), jnp.int32), hidden, of_text)
        return _program(kind, plan).lower(lm, params, factor, *own, **_options(plan, batch, kind))

    return tuple(map(lower, _kinds(plan)))


# Each program with the input that it is for; `both` and `site` say themselves what is what.
_INPUT = {"sequence": "sequence", "norms": "sequence", "last": "last"}


def _kinds(plan: Plan) -> tuple[str, ...]:
    """The programs that the plan needs."""
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
    if kind != "norms":
        # Of the last token alone Jacobians are small: their spectra fit where those of the sequence do not.
        reduction = Reduction.GRAM if plan.reduction == "none" else Reduction(plan.reduction)
        options |= {"reduction": reduction, "values": plan.reduction == "none" or not batch.squares}
    return options


def _reduction(options: Mapping[str, Any]) -> Reduction:
    return options.get("reduction", Reduction.GRAM)  # norms alone have no squares


def _program(kind: str, plan: Plan):
    return _programs(plan.metric == "fisher")[kind]


@cache
def _programs(own_factors: bool) -> Mapping[str, Any]:
    # A factor is one for all texts or one for each.
    factor = 0 if own_factors else None
    # Parameters, factor, weight, hidden states, lengths, keys of draws, carried directions.
    given = (None, factor, None, 1, 0, 2, 1)
    # The texts are the second axis of all that has one entry a layer.
    return {
        "both": shard_over_texts(_with_draws(both_sweeps), given, 1, _STATIC),
        "sequence": shard_over_texts(_with_draws(sequence_sweep), given, 1, _STATIC),
        "norms": shard_over_texts(_with_draws(sequence_norms), given, 1, _STATIC),
        "last": shard_over_texts(
            _with_draws(last_token_sweep), given, 1, _STATIC, mostly_products=ModelConfig
        ),
        "site": shard_over_texts(site_sweep, (None, factor, 0, 1, 0), 1, _STATIC),
    }


@cache
def _values():
    return shard_over_texts(lambda reduction, squares: joined_values(squares, reduction), (1,), 1)


def _with_draws(function):
    # Arrays in their places: a keyword would have to be static. Without draws there are no directions.
    def run(lm, params, factor, centred_weight, hidden, lengths, draws, carried, **options):
        if draws is not None:

            def draw(layer, number):
                keys = wrap(draws[layer - options["lowest"], number])
                return unit_draws(keys, lengths, hidden.shape[2:], hidden.dtype)

            options["directions"] = Directions(draw, draws.shape[1], carried)
        return function(lm, params, factor, hidden, lengths, centred_weight=centred_weight, **options)

    return run
