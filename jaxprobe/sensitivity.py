"""How sensitive a model's last-token logits are to its hidden states: exact, and as the seed sampled it.

`work_units` cuts the work into pieces whose results are plain arrays, so that a caller can show progress,
keep what is done and resume; `summarise` turns the results into one `LayerSensitivity` per layer.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Params, np
from jaxprobe.configs import ModelConfig
from jaxprobe.finite_difference import draw_differences
from jaxprobe.linearize import Reduction, last_token_logits, last_token_sweep, sequence_sweep
from jaxprobe.metrics import effective_rank, output_variance, secant_lipschitz
from jaxprobe.models import LanguageModel
from jaxprobe.output_metrics import mean_logit, output_factor
from jaxprobe.planning import Batch, Plan, cut
from jaxprobe.relative_gain import relative_gain, state_norms
from jaxprobe.results import ExactNorms, ExpectedGain, LayerSensitivity, ModelSensitivity, SampledGain
from jaxprobe.sites import BLOCK_OUT
from jaxprobe.spectra import (
    expected_gain,
    position_participation,
    rms_gain,
    spectral_effective_rank,
    stable_rank,
)
from jaxprobe.taps import Taps

SAMPLED_TEXTS = 20  # the seed samples finite differences on the first 20 texts

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class WorkUnit:
    """A piece of the work: a name that is unique within a model, and what computes its arrays."""

    name: str
    compute: Callable[[], Arrays]


@partial(jax.jit, static_argnums=0)
def hidden_states(lm: LanguageModel, params: Params, ids, lengths):
    """block_out of every layer [l b t d], last-token logits [b v] and `StateNorms` of padded texts."""
    h, captured = lm.run_blocks(params, lm.embed(params, ids), taps=Taps(capture=(BLOCK_OUT,)))
    hidden = captured[BLOCK_OUT]
    return hidden, last_token_logits(lm, params, h, lengths), state_norms(hidden, lengths)


_factor = jax.jit(output_factor, static_argnums=(0, 2))
_mean_logit = jax.jit(mean_logit, static_argnums=0)
_SWEEP_OPTIONS = ("lowest", "every", "reduction")
_sequence = jax.jit(sequence_sweep, static_argnums=0, static_argnames=(*_SWEEP_OPTIONS, "chunk"))
_last_token = jax.jit(last_token_sweep, static_argnums=0, static_argnames=_SWEEP_OPTIONS)
_draws = jax.jit(draw_differences, static_argnums=0, static_argnames="num_samples")


def work_units(
    lm: LanguageModel, params: Params, ids: Sequence[Sequence[int]], plan: Plan
) -> tuple[WorkUnit, ...]:
    """The work of measuring one model on texts, in pieces to be computed in order.

    Args:
      lm: the model. params: its parameters.
      ids: tokens of each text, at least two.
      plan: what to measure.
    """
    plan = cut(lm.config, ids, plan, platform=jax.default_backend())
    # One for all batches, except where the metric is of each text's own.
    factor = cache(lambda: _factor(lm, params, plan.metric))
    mean = cache(lambda: _mean_logit(lm, params, factor()))
    units = []
    for batch in plan.batches:
        units += _batch_units(lm, params, factor, mean, ids, batch, plan)
    return tuple(units)


def lower_sweep(lm: LanguageModel, params: Params, plan: Plan, batch: Batch) -> jax.stages.Lowered:
    """The exact sweep of a batch, traced and not run: what it takes can be read from it once compiled."""
    config, dtype = lm.config, jax.tree.leaves(params)[0].dtype
    d, outputs = config.hidden_size, min(config.vocab_size, config.hidden_size)
    per_text = (batch.rows,) if plan.metric == "fisher" else ()
    shape = jax.ShapeDtypeStruct
    return _sequence.lower(
        lm,
        params,
        shape((*per_text, outputs, d), dtype),
        shape((config.num_layers, batch.rows, batch.width, d), dtype),
        shape((batch.rows,), jnp.int32),
        chunk=batch.chunk,
        **_sweep_options(plan, shape((outputs,), dtype)),
    )


def _sweep_options(plan: Plan, mean) -> dict[str, Any]:
    return {
        "lowest": plan.layers[0],
        "every": len(plan.layers) > 1,
        "reduction": Reduction(plan.reduction),
        "mean": mean if plan.metric == "logits" else None,
    }


def _batch_units(lm, params, factor, mean, texts_ids, batch: Batch, plan: Plan) -> list[WorkUnit]:
    bucket = batch.bucket(texts_ids)
    ids, lengths = jnp.asarray(bucket.ids), jnp.asarray(bucket.lengths)
    texts = bucket.index[: bucket.count]
    sampled = np.flatnonzero(texts < SAMPLED_TEXTS)
    layers = np.asarray(plan.layers)
    hidden = cache(lambda: hidden_states(lm, params, ids, lengths))

    def exact() -> Arrays:
        h, logits, norms = hidden()
        last = h[layers][:, np.arange(len(lengths)), lengths - 1]
        arrays = {"logits": logits, "hidden": last}
        if plan.wrt:
            R = _factor(lm, params, plan.metric, logits) if plan.metric == "fisher" else factor()
            options = _sweep_options(plan, mean() if plan.metric == "logits" else None)
        sweeps = {"sequence": partial(_sequence, chunk=batch.chunk), "last": _last_token}
        for wrt in plan.wrt:
            made = sweeps[wrt](lm, params, R, h, lengths, **options)
            arrays[wrt] = made.singular_values
            arrays[f"{wrt}_positions"] = made.position_norms
            arrays[f"{wrt}_states"] = getattr(norms, wrt)[layers]
            if made.mean_norms is not None:
                arrays[f"{wrt}_means"] = made.mean_norms
        # Rows of texts: the first axis of the logits, the second of what has one entry a layer.
        real = np.s_[: bucket.count]
        rows = {name: real if name == "logits" else (slice(None), real) for name in arrays}
        return {"texts": texts} | {name: np.asarray(value)[rows[name]] for name, value in arrays.items()}

    def draws(layer: int) -> Arrays:
        key = jax.random.key(plan.seed)
        keys = jax.vmap(lambda text: jax.random.fold_in(jax.random.fold_in(key, text), layer))(texts[sampled])
        h = hidden()[0][layer, sampled]
        made = _draws(
            lm, params, h, layer, lengths[sampled], keys, plan.epsilon, num_samples=plan.num_samples
        )
        return {"texts": texts[sampled]} | {name: np.asarray(value) for name, value in made._asdict().items()}

    units = [WorkUnit(f"exact-{texts[0]}", exact)]
    if sampled.size:
        units += [WorkUnit(f"draws-{layer}-{texts[0]}", partial(draws, layer)) for layer in plan.layers]
    return units


def summarise(
    config: ModelConfig, ids: Sequence[Sequence[int]], plan: Plan, results: Mapping[str, Arrays]
) -> ModelSensitivity:
    """Puts the results of every work unit together.

    Args:
      config: the model's.
      ids: tokens of each text, as given to `work_units`.
      plan: as given to `work_units`.
      results: by the unit's name.
    """
    exact = [arrays for name, arrays in results.items() if name.startswith("exact")]
    logits = _by_text(exact, "logits", axis=0)
    compared = "sequence" in plan.wrt and plan.metric == "logits"
    layers = []
    for place, layer in enumerate(plan.layers):
        norms = {wrt: _exact_norms(exact, wrt, place, ids, plan, logits) for wrt in plan.wrt}
        hidden = _by_text(exact, "hidden", axis=1)[place]
        drawn = [arrays for name, arrays in results.items() if name.startswith(f"draws-{layer}-")]
        layers.append(
            LayerSensitivity(
                layer=layer,
                exact=norms,
                sampled=_sampled_gain(drawn),
                expected=_expected_gain(config, ids, plan, norms["sequence"]) if compared else None,
                secant=secant_lipschitz(hidden, logits),
                effective_rank=effective_rank(hidden),
            )
        )
    return ModelSensitivity(config, tuple(layers), output_variance(logits), plan.num_samples)


def _by_text(parts: Sequence[Arrays], name: str, axis: int) -> np.ndarray:
    order = np.argsort(np.concatenate([part["texts"] for part in parts]))
    return np.take(np.concatenate([part[name] for part in parts], axis=axis), order, axis=axis)


def _rows_by_text(parts: Sequence[Arrays], name: str, place: int) -> list[np.ndarray]:
    # For arrays [l b t], whose t differs from batch to batch.
    rows = {text: part[name][place, row] for part in parts for row, text in enumerate(part["texts"])}
    return [rows[text].astype(np.float64) for text in sorted(rows)]


def _exact_norms(parts: Sequence[Arrays], wrt: str, place: int, ids, plan: Plan, logits) -> ExactNorms:
    values = _by_text(parts, wrt, axis=1)[place].astype(np.float64)
    positions = _rows_by_text(parts, f"{wrt}_positions", place)
    frobenius = np.array([np.linalg.norm(row) for row in positions])
    centred = None
    if plan.metric == "centred":
        centred = frobenius
    elif plan.metric == "logits":
        means = np.array([np.linalg.norm(row) for row in _rows_by_text(parts, f"{wrt}_means", place)])
        # A common offset of the logits is orthogonal to what remains of them (`output_metrics.mean_logit`).
        centred = np.sqrt(np.maximum(np.square(frobenius) - logits.shape[1] * np.square(means), 0))
    states = _by_text(parts, f"{wrt}_states", axis=1)[place]
    blocks = None
    if wrt == "sequence":
        blocks = tuple(row[: len(text)] for row, text in zip(positions, ids, strict=True))
    return ExactNorms(
        frobenius=frobenius,
        sigma1=values.max(axis=1),
        stable_rank=np.array([stable_rank(row) for row in values]),
        effective_rank=np.array([spectral_effective_rank(row) for row in values]),
        singular_values=values,
        relative_gain=None if centred is None else relative_gain(centred, states, logits),
        position_norms=blocks,
        participation=np.array([position_participation(row) for row in blocks]) if blocks else None,
    )


def _sampled_gain(drawn: Sequence[Arrays]) -> SampledGain:
    change, linear, step = (
        _by_text(drawn, name, axis=1).astype(np.float64) for name in ("change", "linear", "step")
    )
    return SampledGain(
        mean=(change / (step + 1e-8)).mean(axis=0),  # the seed's denominator
        linear_mean=(linear / step).mean(axis=0),
        curvature=((change - linear) / step).mean(axis=0),
    )


def _expected_gain(
    config: ModelConfig, ids: Sequence[Sequence[int]], plan: Plan, norms: ExactNorms
) -> ExpectedGain:
    inputs = [len(row) * config.hidden_size for row in ids[:SAMPLED_TEXTS]]
    pairs = list(zip(norms.singular_values, inputs, strict=False))
    mean = np.array([expected_gain(values, n) for values, n in pairs])
    rms = np.array([rms_gain(values, n) for values, n in pairs])
    variance = np.maximum(np.square(rms) - np.square(mean), 0)
    return ExpectedGain(mean, rms, np.sqrt(variance / plan.num_samples))
