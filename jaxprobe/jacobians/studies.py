"""Studies that build on the exact measurement, as parts of the same long work: paths, and step sizes.

Both start from results of `jacobians.sensitivity`: a path joins the last states that the exact part found,
and a sweep over step sizes is held against its singular values.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Float, Params, np
from jaxprobe.devices import replicate, shard_over_texts, to_host
from jaxprobe.jacobians.epsilon_sweep import DTYPES, EpsilonStudy, epsilon_study
from jaxprobe.jacobians.forward import forward_pass
from jaxprobe.jacobians.output_metrics import factors
from jaxprobe.jacobians.path_lipschitz import fixed_context, path_lipschitz
from jaxprobe.jacobians.planning import SAMPLED_TEXTS, Batch, Plan
from jaxprobe.jacobians.results import ModelSensitivity, PathGain
from jaxprobe.jacobians.text_statistics import SECANT_PAIRS
from jaxprobe.memory import program_bytes
from jaxprobe.models import LanguageModel
from jaxprobe.work import Arrays, WorkUnit, by_text, parts_of

_context = shard_over_texts(fixed_context, (None, 1, 0), 1)
# Parameters, factor, context, layer, ends of the segments.
_path = shard_over_texts(path_lipschitz, (None, None, 1, None, 0, 0), 0, ("nodes", "chunk"))


def path_units(
    lm: LanguageModel,
    params: Params,
    ids: Sequence[Sequence[int]],
    plan: Plan,
    results: Mapping[str, Arrays],
) -> tuple[WorkUnit, ...]:
    """Segments from each text's last-token state to the next text's, the secant's pairs, layer by layer.

    Args:
      lm: the model. params: its parameters.
      ids: tokens of each text.
      plan: with its batches; its metric must not depend on the text.
      results: of the units of `jaxprobe.jacobians.sensitivity`.
    """
    pairs = min(SECANT_PAIRS, len(ids) - 1)
    params = replicate(params)
    states = by_text(parts_of(results, "exact"), "hidden", axis=1)
    factor = factors(lm, params, plan.metric)
    units = []
    for batch in plan.batches:
        rows = [row for row, text in enumerate(batch.texts) if text < pairs]
        if rows:
            units += _batch_units(lm, params, factor, states, ids, batch, np.array(rows), plan)
    return tuple(units)


def path_bytes(lm: LanguageModel, params: Params, plan: Plan) -> int:
    """Bytes that the largest of `path_units` takes of one device: its program, and its texts' context."""
    batch = max(plan.batches, key=lambda batch: batch.rows * batch.width)
    d, dtype = lm.config.hidden_size, jax.tree.leaves(params)[0].dtype
    shape = jax.ShapeDtypeStruct
    hidden = shape((lm.config.num_layers, batch.rows, batch.width, d), dtype)
    context = jax.eval_shape(partial(fixed_context, lm), params, hidden, shape((batch.rows,), jnp.int32))
    factor, state = shape((min(lm.config.vocab_size, d), d), dtype), shape((batch.rows, d), dtype)
    program = _path.lower(lm, params, factor, context, 0, state, state, chunk=1).compile()
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(context)) // jax.device_count()
    return held + program_bytes(program)


def _batch_units(lm, params, factor, states, ids, batch: Batch, rows, plan: Plan) -> list[WorkUnit]:
    bucket = batch.bucket(ids)
    # Every row of the batch takes part, so that devices can share them; the last text goes nowhere.
    starts = np.where(bucket.index < 0, bucket.index[0], bucket.index)
    ends = np.minimum(starts + 1, len(ids) - 1)
    texts = starts[rows]

    @cache
    def context():
        return _context(lm, params, forward_pass(lm, params, ids, batch).hidden, bucket.lengths)

    def segments(place: int, layer: int) -> Arrays:
        # One node at a time: the tangents of one already are a batch of d.
        segment = states[place, starts], states[place, ends]
        made = _path(lm, params, factor(None), context(), layer, *segment, chunk=1)
        return {"texts": texts} | {name: to_host(value)[rows] for name, value in made._asdict().items()}

    return [
        WorkUnit(f"path-{layer}-{texts[0]}", partial(segments, place, layer))
        for place, layer in enumerate(plan.layers)
    ]


def with_paths(model: ModelSensitivity, results: Mapping[str, Arrays]) -> ModelSensitivity:
    """What was measured of a model, with the results of `path_units`."""
    layers = []
    for layer in model.layers:
        parts = parts_of(results, f"path-{layer.layer}-")
        path = _path_gain(parts, next(iter(layer.exact.values())).frobenius) if parts else None
        layers.append(dataclasses.replace(layer, path=path))
    return dataclasses.replace(model, layers=tuple(layers))


def _path_gain(parts: Sequence[Arrays], norms: Float[np.ndarray, " b"]) -> PathGain:
    names = (field.name for field in dataclasses.fields(PathGain))
    found = {name: by_text(parts, name).astype(np.float64) for name in names}
    # Where a text has no Jacobian, as its states overflow, nor has its context's path.
    found["sigma1"][~np.isfinite(norms[: len(found["sigma1"])])] = np.nan
    return PathGain(**found)


def sweep_unit(
    lm: LanguageModel,
    params: Params,
    ids: Sequence[Sequence[int]],
    plan: Plan,
    layer: int,
    model: ModelSensitivity,
) -> WorkUnit:
    """The sweep over step sizes of one layer, on the sampled texts, with the draws of the plan.

    Args:
      lm: the model. params: its parameters.
      ids: tokens of each text.
      plan: of the measurement.
      layer: one of the plan's.
      model: what was measured, with the exact Jacobian of the whole sequence.
    """

    def compute() -> Arrays:
        measured = next(entry for entry in model.layers if entry.layer == layer)
        values = measured.exact["sequence"].singular_values
        if values is None:
            raise ValueError("a sweep over step sizes needs the singular values of the whole sequence")
        study = epsilon_study(
            lm,
            params,
            ids[:SAMPLED_TEXTS],
            layer,
            values[:SAMPLED_TEXTS],
            num_samples=plan.num_samples,
            seed=plan.seed,
            batch_tokens=plan.batch_tokens,
        )
        change = {f"change_{dtype}": study.change[dtype] for dtype in DTYPES}
        same = ("layer", "epsilons", "linear", "expected", "variance")
        return change | {name: np.asarray(getattr(study, name)) for name in same}

    return WorkUnit(f"epsilon-{layer}", compute)


def study_from(arrays: Arrays) -> EpsilonStudy:
    """The study that `sweep_unit` computed."""
    return EpsilonStudy(
        layer=int(arrays["layer"]),
        change={dtype: arrays[f"change_{dtype}"] for dtype in DTYPES},
        **{name: arrays[name] for name in ("epsilons", "linear", "expected", "variance")},
    )
