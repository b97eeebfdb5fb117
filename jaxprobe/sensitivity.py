"""How sensitive a model's last-token logits are to its hidden states: exact, and as the seed sampled it.

`work_units` cuts the work into pieces whose results are plain arrays, so that a caller can show progress,
keep what is done and resume; `summarise` turns the results into one `LayerSensitivity` per layer.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Float, Params, np
from jaxprobe.batches import Bucket, buckets
from jaxprobe.configs import ModelConfig
from jaxprobe.finite_difference import draw_differences
from jaxprobe.linearize import (
    last_token_logits,
    last_token_sweep,
    output_factor,
    sequence_sweep,
)
from jaxprobe.metrics import effective_rank, output_variance, secant_lipschitz
from jaxprobe.models import LanguageModel
from jaxprobe.sites import BLOCK_OUT
from jaxprobe.spectra import expected_gain, rms_gain, stable_rank
from jaxprobe.taps import Taps

SAMPLED_TEXTS = 20  # the seed samples finite differences on the first 20 texts
# What one batch's cotangents [m b t d], and the intermediates of one pullback, may take: 2^25 floats, 128 MiB
# in float32. More buys no speed on CPU (BUILD_NOTES, "Batch sizes of the sweep").
_CHUNK_ELEMENTS = 2**25

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
      layers: one layer, or all of them from 0 up.
      wrt: inputs of the exact Jacobians, of `last` and `sequence`.
      epsilon: standard deviation of a finite-difference draw.
      num_samples: draws per text.
      seed: of the draws. A text's draws at a layer depend on this, its place and the layer only.
      batch_tokens: the most tokens in a batch, padding included.
    """

    layers: tuple[int, ...]
    wrt: tuple[str, ...] = ("last", "sequence")
    epsilon: float = 0.01
    num_samples: int = 10
    seed: int = 0
    batch_tokens: int = 4096


@dataclasses.dataclass(frozen=True)
class WorkUnit:
    """A piece of the work: a name that is unique within a model, and what computes its arrays."""

    name: str
    compute: Callable[[], Arrays]


@dataclasses.dataclass(frozen=True)
class ExactNorms:
    """Of the exact Jacobian of each text."""

    frobenius: Float[np.ndarray, " b"]
    sigma1: Float[np.ndarray, " b"]
    stable_rank: Float[np.ndarray, " b"]


@dataclasses.dataclass(frozen=True)
class SampledGain:
    """The seed's finite-difference sensitivity of each sampled text (`sequence`), over its draws."""

    mean: Float[np.ndarray, " b"]  # the seed's number: mean of change / (step + 1e-8)
    linear_mean: Float[np.ndarray, " b"]  # mean of ||J delta|| / ||delta|| over the same draws
    curvature: Float[np.ndarray, " b"]  # mean of (change - ||J delta||) / ||delta||


@dataclasses.dataclass(frozen=True)
class ExpectedGain:
    """What the sampled gain of each text estimates, to first order, from the exact spectrum."""

    mean: Float[np.ndarray, " b"]  # expectation of ||J delta|| / ||delta||
    rms: Float[np.ndarray, " b"]  # its root mean square, ||J||_F / sqrt(t d)
    stderr: Float[np.ndarray, " b"]  # of the mean of the draws: sqrt((rms^2 - mean^2) / draws)


@dataclasses.dataclass(frozen=True)
class LayerSensitivity:
    """All that is measured of one layer."""

    layer: int
    exact: Mapping[str, ExactNorms]  # by wrt
    sampled: SampledGain
    expected: ExpectedGain | None  # None where the Jacobian of the whole sequence was not asked for
    secant: Float[np.ndarray, " p"]  # Lipschitz ratios of neighbouring texts; may be empty
    effective_rank: float


@dataclasses.dataclass(frozen=True)
class ModelSensitivity:
    """All that is measured of one model."""

    config: ModelConfig
    layers: tuple[LayerSensitivity, ...]
    output_variance: float
    num_samples: int


@partial(jax.jit, static_argnums=0)
def _hidden(lm: LanguageModel, params: Params, ids, lengths):
    h, captured = lm.run_blocks(params, lm.embed(params, ids), taps=Taps(capture=(BLOCK_OUT,)))
    return captured[BLOCK_OUT], last_token_logits(lm, params, h, lengths)


_factor = jax.jit(output_factor, static_argnums=0)
_sequence = jax.jit(sequence_sweep, static_argnums=0, static_argnames=("lowest", "every", "chunk"))
_last_token = jax.jit(last_token_sweep, static_argnums=0, static_argnames=("lowest", "every"))
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
    config = lm.config
    cotangent = min(config.vocab_size, config.hidden_size) * config.hidden_size  # m d, per token
    limit = min(plan.batch_tokens, max(1, _CHUNK_ELEMENTS // cotangent))
    factor = cache(lambda: _factor(lm, params))
    units = []
    for bucket in buckets(ids, limit, limit=config.context_length):
        units += _bucket_units(lm, params, factor, bucket, plan)
    return tuple(units)


def _bucket_units(lm: LanguageModel, params: Params, factor, bucket: Bucket, plan: Plan) -> list[WorkUnit]:
    ids, lengths = jnp.asarray(bucket.ids), jnp.asarray(bucket.lengths)
    texts = bucket.index[: bucket.count]
    sampled = np.flatnonzero(texts < SAMPLED_TEXTS)
    layers = np.asarray(plan.layers)
    sweep = {"lowest": plan.layers[0], "every": len(layers) > 1}
    hidden = cache(lambda: _hidden(lm, params, ids, lengths))

    def exact() -> Arrays:
        h, logits = hidden()
        arrays = {"logits": logits, "hidden": h[layers][:, np.arange(len(lengths)), lengths - 1]}
        if "sequence" in plan.wrt:
            chunk = _pullback_chunk(lm.config, ids.size)
            spectra = _sequence(lm, params, factor(), h, lengths, chunk=chunk, **sweep)
            arrays["sequence"] = spectra.singular_values
        if "last" in plan.wrt:
            arrays["last"] = _last_token(lm, params, factor(), h, lengths, **sweep).singular_values
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


def _pullback_chunk(config: ModelConfig, tokens: int) -> int:
    # One pullback of a block holds about eight arrays as wide as its widest layer.
    return max(1, _CHUNK_ELEMENTS // (tokens * 32 * config.hidden_size))


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
    whole = "sequence" in plan.wrt
    layers = []
    for place, layer in enumerate(plan.layers):
        spectra = {wrt: _by_text(exact, wrt, axis=1)[place] for wrt in plan.wrt}
        hidden = _by_text(exact, "hidden", axis=1)[place]
        drawn = [arrays for name, arrays in results.items() if name.startswith(f"draws-{layer}-")]
        layers.append(
            LayerSensitivity(
                layer=layer,
                exact={wrt: _exact_norms(values) for wrt, values in spectra.items()},
                sampled=_sampled_gain(drawn),
                expected=_expected_gain(config, ids, plan, spectra["sequence"]) if whole else None,
                secant=secant_lipschitz(hidden, logits),
                effective_rank=effective_rank(hidden),
            )
        )
    return ModelSensitivity(config, tuple(layers), output_variance(logits), plan.num_samples)


def _by_text(parts: Sequence[Arrays], name: str, axis: int) -> np.ndarray:
    order = np.argsort(np.concatenate([part["texts"] for part in parts]))
    return np.take(np.concatenate([part[name] for part in parts], axis=axis), order, axis=axis)


def _exact_norms(singular_values: Float[np.ndarray, "b m"]) -> ExactNorms:
    values = singular_values.astype(np.float64)
    return ExactNorms(
        np.linalg.norm(values, axis=1), values.max(axis=1), np.array([stable_rank(row) for row in values])
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
    config: ModelConfig, ids: Sequence[Sequence[int]], plan: Plan, spectra: Float[np.ndarray, "b m"]
) -> ExpectedGain:
    inputs = [len(row) * config.hidden_size for row in ids[:SAMPLED_TEXTS]]
    pairs = list(zip(spectra, inputs, strict=False))
    mean = np.array([expected_gain(values, n) for values, n in pairs])
    rms = np.array([rms_gain(values, n) for values, n in pairs])
    variance = np.maximum(np.square(rms) - np.square(mean), 0)
    return ExpectedGain(mean, rms, np.sqrt(variance / plan.num_samples))
