"""Sensitivity estimated without exact Jacobians: `--method=matrix_free`, for models too large for the sweep.

In place of the exact norms and spectra stand estimates with what is known of their errors
(`jaxprobe.jacobians.matrix_free`); all else, the original study's finite differences among it, is measured as
`sensitivity` does.
An estimate never stands where an exact value would: in files it has an entry and quantities of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache, partial

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Bool, Float, Params, np
from jaxprobe.configs import TITLES, ModelConfig
from jaxprobe.devices import replicate, shard_over_texts, to_host
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians.forward import forward_pass
from jaxprobe.jacobians.matrix_free import matrix_free_spectrum
from jaxprobe.jacobians.output_metrics import factors
from jaxprobe.jacobians.planning import Batch, Plan, cut
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.sensitivity import summarise as summarise_rest
from jaxprobe.jacobians.sensitivity import work_units as other_units
from jaxprobe.models import LanguageModel
from jaxprobe.run_configs import Effort
from jaxprobe.work import Arrays, WorkUnit, by_text, parts_of

WRT = ("last", "sequence")
_STREAM = 2**31  # sets the keys here apart from those of the draws, which begin with a text's place


@dataclasses.dataclass(frozen=True)
class EstimatedNorms:
    """Of each text's Jacobian at one layer, as `krylov.MatrixFreeSpectrum` has them."""

    frobenius: Float[np.ndarray, " b"]
    frobenius_low: Float[np.ndarray, " b"]  # ends of the 95% confidence interval
    frobenius_high: Float[np.ndarray, " b"]
    singular_values: Float[np.ndarray, "b k"]  # largest first; nan where the Krylov space ended before
    residuals: Float[np.ndarray, "b k"]  # a true singular value is within this of each; at least rounding
    products: int  # with J or its transpose, spent on each text


@dataclasses.dataclass(frozen=True)
class ModelEstimates:
    """All that is measured of one model without exact Jacobians."""

    sensitivity: ModelSensitivity  # whose layers have no exact norms
    estimates: tuple[Mapping[str, EstimatedNorms], ...]  # of the same layers, by wrt


def check_effort(config: ModelConfig, effort: Effort) -> None:
    """Refuses what this model cannot give, before any work.

    Raises:
      ProbeError: more singular values than the map has output directions.
    """
    outputs = min(config.vocab_size, config.hidden_size)
    if effort.num_singular_values > outputs:
        raise ProbeError(
            f"--num_singular_values must be at most {outputs}, the output directions of "
            f"{TITLES[config.architecture]}, got {effort.num_singular_values}"
        )


@cache
def _spectrum(own_factors: bool):
    # Parameters, factor (one for all texts or one for each), hidden states, lengths, layer, keys.
    texts = (None, 0 if own_factors else None, 1, 0, None, 0)
    static = ("wrt", "num_singular_values", "num_products", "num_probes")
    return shard_over_texts(matrix_free_spectrum, texts, 0, static)


def work_units(
    lm: LanguageModel, params: Params, ids: Sequence[Sequence[int]], plan: Plan, effort: Effort
) -> tuple[WorkUnit, ...]:
    """The work of measuring one model on texts, in pieces to be computed in order.

    Args:
      lm: the model. params: its parameters.
      ids: tokens of each text, at least two.
      plan: what to measure; estimates take the place of the exact Jacobians.
      effort: of the estimates.

    Raises:
      ProbeError: as `check_effort`.
    """
    check_effort(lm.config, effort)
    plan = cut(lm.config, ids, plan, platform=jax.default_backend(), devices=jax.device_count())
    params = replicate(params)
    factor = factors(lm, params, plan.metric)
    spectrum = _spectrum(plan.metric == "fisher")

    @lru_cache(maxsize=1)  # units come batch by batch, and the states of all batches may be large
    def inputs(batch: Batch):
        run, bucket = forward_pass(lm, params, ids, batch), batch.bucket(ids)
        return factor(run.logits), run.hidden, bucket.lengths, bucket.index, run.norms

    def estimate(batch: Batch, layer: int, wrt: str) -> Arrays:
        R, hidden, lengths, index, norms = inputs(batch)
        keys = jax.vmap(partial(_key, plan.seed, layer=layer, wrt=wrt))(jnp.asarray(index))
        made = spectrum(lm, params, R, hidden, lengths, layer, keys, wrt=wrt, **dataclasses.asdict(effort))
        count = len(batch.texts)
        names = [field.name for field in dataclasses.fields(made) if field.name != "products"]
        sound = np.isfinite(to_host(getattr(norms, wrt))[layer, :count])
        arrays = {name: to_host(getattr(made, name))[:count] for name in names}
        arrays = {name: _only(sound, array) for name, array in arrays.items()}
        return {"texts": np.asarray(batch.texts), "products": np.asarray(made.products)} | arrays

    units = list(other_units(lm, params, ids, _without_exact(plan)))
    for batch in plan.batches:
        for layer in plan.layers:
            for wrt in plan.wrt:
                name = f"{_prefix(layer, wrt)}{batch.texts[0]}"
                units.append(WorkUnit(name, partial(estimate, batch, layer, wrt)))
    return tuple(units)


def _only(sound: Bool[np.ndarray, " b"], array: Float[np.ndarray, "b ..."]) -> Float[np.ndarray, "b ..."]:
    """The values of texts that have a Jacobian; of the others nan."""
    return np.where(sound.reshape(-1, *[1] * (array.ndim - 1)), array, array.dtype.type(np.nan))


def _key(seed: int, text, *, layer: int, wrt: str):
    key = jax.random.key(seed)
    for part in (_STREAM, text, layer, WRT.index(wrt)):
        key = jax.random.fold_in(key, part)
    return key


def _prefix(layer: int, wrt: str) -> str:
    return f"estimate-{wrt}-{layer}-"


def _without_exact(plan: Plan) -> Plan:
    return dataclasses.replace(plan, wrt=())


def summarise(
    config: ModelConfig, ids: Sequence[Sequence[int]], plan: Plan, results: Mapping[str, Arrays]
) -> ModelEstimates:
    """Puts the results of every work unit together.

    Args:
      config: the model's.
      ids: tokens of each text, as given to `work_units`.
      plan: as given to `work_units`.
      results: by the unit's name.
    """
    layers = []
    for layer in plan.layers:
        layers.append({wrt: _estimated_norms(parts_of(results, _prefix(layer, wrt))) for wrt in plan.wrt})
    return ModelEstimates(summarise_rest(config, ids, _without_exact(plan), results), tuple(layers))


def _estimated_norms(parts: Sequence[Arrays]) -> EstimatedNorms:
    names = [field.name for field in dataclasses.fields(EstimatedNorms) if field.name != "products"]
    made = {name: by_text(parts, name) for name in names}
    rounding = np.finfo(made["singular_values"].dtype).eps * made["singular_values"]
    made["residuals"] = np.maximum(made["residuals"], rounding)  # no residual is known more closely
    arrays = {name: value.astype(np.float64) for name, value in made.items()}
    return EstimatedNorms(**arrays, products=int(parts[0]["products"]))
