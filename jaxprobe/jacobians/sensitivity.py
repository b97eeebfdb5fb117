"""How sensitive a model's last-token logits are to its hidden states: exact, and as it is usually sampled.

`work_units` cuts the work into pieces whose results are plain arrays, so that a caller can show progress,
keep what is done and resume; `summarise` turns the results into one `LayerSensitivity` per layer.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Float, Params, np
from jaxprobe.configs import GPT2Config, ModelConfig
from jaxprobe.devices import from_first, replicate, shard_over_texts, to_host
from jaxprobe.jacobians.finite_difference import draw_differences, draw_keys, wrap
from jaxprobe.jacobians.forward import ForwardPass, compile_forward, forward_pass
from jaxprobe.jacobians.output_metrics import compile_fisher_factors, factors
from jaxprobe.jacobians.planning import SAMPLED_TEXTS, Batch, Plan, cut, draws_cost, exact_cost
from jaxprobe.jacobians.readout import last_token_state
from jaxprobe.jacobians.relative_gain import relative_gain
from jaxprobe.jacobians.results import (
    ExactNorms,
    ExpectedGain,
    LayerSensitivity,
    ModelSensitivity,
    SampledGain,
)
from jaxprobe.jacobians.spectra import (
    expected_gain,
    position_participation,
    rms_gain,
    spectral_effective_rank,
    stable_rank,
)
from jaxprobe.jacobians.split_factor import split_factor
from jaxprobe.jacobians.sweeps import compile_sweeps, sweep
from jaxprobe.jacobians.text_statistics import effective_rank, output_variance, secant_lipschitz
from jaxprobe.models import LanguageModel
from jaxprobe.sites import BLOCK_OUT, site_width
from jaxprobe.work import Arrays, WorkUnit, by_text, parts_of


def _draw(lm, params, hidden, layer, lengths, key_data, epsilon, *, linear):
    state = last_token_state(lm, params, hidden[-1], lengths)
    given = hidden[layer], layer, lengths, wrap(key_data), epsilon
    return draw_differences(lm, params, *given, state=state, linear=linear)


_draws = shard_over_texts(_draw, (None, 1, None, 0, 1, None), 1, ("linear",), mostly_products=GPT2Config)


def work_units(
    lm: LanguageModel, params: Params, ids: Sequence[Sequence[int]], plan: Plan
) -> tuple[WorkUnit, ...]:
    """The work of measuring one model on texts, in pieces to be computed in order, on all devices together.

    Args:
      lm: the model. params: its parameters.
      ids: tokens of each text, at least two.
      plan: what to measure.
    """
    plan = cut(lm.config, ids, plan, platform=jax.default_backend(), devices=jax.device_count())
    params = replicate(params)
    if plan.metric == "logits":
        split = cache(lambda: from_first(split_factor(lm, params)))
        factor, centred_weight = lambda _: split()[0], lambda: split()[1]
    else:
        factor, centred_weight = factors(lm, params, plan.metric), lambda: None
    # The factor is prepared beside the programs, where it is one for all texts.
    shared = () if plan.metric == "fisher" else (partial(factor, None),)

    @lru_cache(maxsize=1)  # units come batch by batch, and the states of all batches may be large
    def states(batch: Batch) -> ForwardPass:
        return forward_pass(lm, params, ids, batch, plan.seed if plan.draws_meet_jacobian else None)

    @cache
    def compiling(compile_some: Callable, shape: Batch) -> Callable:  # once for all batches of a shape
        return partial(compile_some, lm, params, shape, plan)

    units = []
    for batch in plan.batches:
        shape = dataclasses.replace(batch, texts=())
        prepare = (*(compiling(some, shape) for some in (_compile_states, _compile_exact)), *shared)
        own = partial(states, batch), ids, batch, plan, prepare
        units.append(_exact_unit(lm, params, factor, centred_weight, *own))
    for batch in plan.draw_batches:
        shape = dataclasses.replace(batch, texts=())
        prepare = tuple(compiling(some, shape) for some in (_compile_states, _compile_draws))
        own = partial(states, batch), ids, batch, plan, prepare
        units += (_draw_unit(lm, params, *own, layer) for layer in plan.layers)
    return tuple(units)


def _exact_unit(
    lm, params, factor, centred_weight, states, texts_ids, batch: Batch, plan: Plan, prepare
) -> WorkUnit:
    bucket = batch.bucket(texts_ids)
    ids, lengths = bucket.ids, bucket.lengths
    texts = bucket.index[: bucket.count]
    layers = np.asarray(plan.layers)

    def exact() -> Arrays:
        run = states()
        arrays = {"logits": run.logits, "hidden": run.last}
        made = {}
        if plan.wrt:
            draws = None
            if plan.draws_meet_jacobian:
                draws = draw_keys(plan.seed, bucket.index, plan.layers, plan.num_samples)
            of_texts = (ids, run.hidden, lengths, draws, run.carried)
            made = sweep(lm, params, plan, batch, factor(run.logits), centred_weight(), *of_texts)
        for wrt, spectra in made.items():
            arrays[f"{wrt}_states"] = getattr(run.norms, wrt)
            arrays[f"{wrt}_positions"] = spectra.position_norms
            arrays |= {wrt: spectra.singular_values} if spectra.singular_values is not None else {}
            arrays |= {f"{wrt}_centred": spectra.centred_norms} if spectra.centred_norms is not None else {}
            if spectra.along is not None:
                arrays |= {"along": spectra.along, "carried": spectra.carried, "moved": run.moved}
        host = {name: to_host(array) for name, array in arrays.items()}
        of_all_layers = {"hidden", *(f"{wrt}_states" for wrt in made)}
        host |= {name: host[name][layers] for name in of_all_layers}
        # Rows of texts: the first axis of what has none of layers, else the second.
        real = np.s_[: bucket.count]
        rows = {name: real if name in ("logits", "moved") else (slice(None), real) for name in host}
        return {"texts": texts} | {name: array[rows[name]] for name, array in host.items()}

    return WorkUnit(f"exact-{texts[0]}", exact, exact_cost(lm.config, batch, plan), prepare)


def _compile_states(lm, params, shape: Batch, plan: Plan) -> None:
    compile_forward(lm, params, shape, plan.draws_meet_jacobian)


def _compile_exact(lm, params, shape: Batch, plan: Plan) -> None:
    if plan.metric == "fisher":
        compile_fisher_factors(lm, params, shape.rows)
    if plan.draws_meet_jacobian:
        draw_keys(plan.seed, (0,), plan.layers[:1], plan.num_samples)  # runs: it is nothing
    if plan.wrt:
        compile_sweeps(lm, params, plan, shape)


def _draw_unit(lm, params, states, texts_ids, batch: Batch, plan: Plan, prepare, layer: int) -> WorkUnit:
    def draws() -> Arrays:
        bucket = batch.bucket(texts_ids)
        (keys,) = draw_keys(plan.seed, bucket.index, (layer,), plan.num_samples)
        made = _draws(
            lm, params, states().hidden, layer, bucket.lengths, keys, plan.epsilon,
            linear=plan.draws_differentiated,
        )  # fmt: skip
        kept = {name: value for name, value in made._asdict().items() if value is not None}
        host = {name: to_host(value)[:, : bucket.count] for name, value in kept.items()}
        return {"texts": np.asarray(batch.texts)} | host

    cost = draws_cost(lm.config, batch, plan, layer)
    return WorkUnit(f"draws-{layer}-{batch.texts[0]}", draws, cost, prepare)


def _compile_draws(lm, params, batch: Batch, plan: Plan) -> None:
    draw_keys(plan.seed, (0,), plan.layers[:1], plan.num_samples)
    d, dtype, shape = lm.config.hidden_size, jax.tree.leaves(params)[0].dtype, jax.ShapeDtypeStruct
    hidden = shape((lm.config.num_layers, batch.rows, batch.width, d), dtype)
    lengths, keys = shape((batch.rows,), jnp.int32), shape((plan.num_samples, batch.rows, 2), jnp.uint32)
    given = hidden, plan.layers[0], lengths, keys, plan.epsilon
    _draws.lower(lm, params, *given, linear=plan.draws_differentiated).compile()


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
    exact = parts_of(results, "exact")
    logits = by_text(exact, "logits")
    hidden = by_text(exact, "hidden", axis=1)
    own = plan.site == BLOCK_OUT  # whose draws, ratios and ranks these are
    layers = []
    for place, layer in enumerate(plan.layers):
        norms = {wrt: _exact_norms(exact, wrt, place, ids, plan, logits) for wrt in plan.wrt}
        drawn = parts_of(results, f"draws-{layer}-")
        layers.append(
            LayerSensitivity(
                layer=layer,
                exact=norms,
                sampled=_sampled_gain(drawn, exact, place, plan) if own else None,
                expected=_expected_gain(config, ids, plan, norms.get("sequence")),
                secant=secant_lipschitz(hidden[place], logits) if own else None,
                effective_rank=effective_rank(hidden[place]) if own else None,
            )
        )
    width = float(site_width(config, plan.site))
    inputs = {"last": np.full(len(ids), width), "sequence": np.array([width * len(row) for row in ids])}
    return ModelSensitivity(config, tuple(layers), output_variance(logits), plan.num_samples, inputs)


def _rows_by_text(parts: Sequence[Arrays], name: str, place: int) -> list[np.ndarray]:
    # For arrays [l b t], whose t differs from batch to batch.
    rows = {text: part[name][place, row] for part in parts for row, text in enumerate(part["texts"])}
    return [rows[text].astype(np.float64) for text in sorted(rows)]


def _exact_norms(parts: Sequence[Arrays], wrt: str, place: int, ids, plan: Plan, logits) -> ExactNorms:
    states = by_text(parts, f"{wrt}_states", axis=1)
    sound = np.where(np.isfinite(states[place]), 1.0, np.nan)  # where not, no J is to be had

    def rows(name: str) -> list[np.ndarray]:
        found = _rows_by_text(parts, f"{wrt}_{name}", place)
        return [row * of for row, of in zip(found, sound, strict=True)]

    positions = rows("positions")
    frobenius = np.array([np.linalg.norm(row) for row in positions])
    centred = None
    if plan.site != BLOCK_OUT:  # whose norm is that of no state
        pass
    elif plan.metric == "centred":
        centred = frobenius
    elif plan.metric == "logits":
        centred = np.array([np.linalg.norm(row) for row in rows("centred")])
    values = None
    if wrt in parts[0]:
        values = by_text(parts, wrt, axis=1)[place].astype(np.float64) * sound[:, None]
    blocks = None
    if wrt == "sequence":
        blocks = tuple(row[: len(text)] for row, text in zip(positions, ids, strict=True))
    return ExactNorms(
        frobenius=frobenius,
        sigma1=None if values is None else values.max(axis=1),
        stable_rank=None if values is None else np.array([stable_rank(row) for row in values]),
        effective_rank=None if values is None else np.array([spectral_effective_rank(row) for row in values]),
        singular_values=values,
        relative_gain=None if centred is None else relative_gain(centred, states[place], logits),
        position_norms=blocks,
        participation=np.array([position_participation(row) for row in blocks]) if blocks else None,
    )


def _sampled_gain(drawn: Sequence[Arrays], exact: Sequence[Arrays], place: int, plan: Plan) -> SampledGain:
    change, step = (by_text(drawn, name, axis=1).astype(np.float64) for name in ("change", "step"))
    linear = apart = None
    if plan.draws_meet_jacobian:
        along = by_text(exact, "along", axis=1)[place, : step.shape[1]].astype(np.float64)
        linear = plan.epsilon * along.T
        carried = by_text(exact, "carried", axis=1)[place].astype(np.float64)
        apart = _apart(carried, by_text(exact, "moved").astype(np.float64))
    elif plan.draws_differentiated:
        linear = by_text(drawn, "linear", axis=1).astype(np.float64)
    return SampledGain(
        mean=(change / (step + 1e-8)).mean(axis=0),  # the original study's denominator
        linear_mean=None if linear is None else (linear / step).mean(axis=0),
        curvature=None if linear is None else ((change - linear) / step).mean(axis=0),
        jacobian_error=apart,
    )


def _apart(values: Float[np.ndarray, " b"], others: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    # The difference, relative; both may be zero, and forward mode may overflow: then it is nan.
    both = np.isfinite(values) & np.isfinite(others)
    difference = np.abs(np.subtract(values, others, out=np.full_like(values, np.nan), where=both))
    return np.divide(difference, others, out=difference.copy(), where=both & (others > 0))


def _expected_gain(
    config: ModelConfig, ids: Sequence[Sequence[int]], plan: Plan, norms: ExactNorms | None
) -> ExpectedGain | None:
    # Of the original study's draws: they are of block_out, the whole sequence and the logits.
    if norms is None or norms.singular_values is None or (plan.site, plan.metric) != (BLOCK_OUT, "logits"):
        return None
    inputs = [len(row) * config.hidden_size for row in ids[:SAMPLED_TEXTS]]
    pairs = list(zip(norms.singular_values, inputs, strict=False))
    mean = np.array([expected_gain(values, n) for values, n in pairs])
    rms = np.array([rms_gain(values, n) for values, n in pairs])
    variance = np.maximum(np.square(rms) - np.square(mean), 0)
    return ExpectedGain(mean, rms, np.sqrt(variance / plan.num_samples))
