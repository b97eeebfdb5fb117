"""How a model's part of a run is cut to fit the memory, and how a store gives that back."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax

from jaxprobe.batches import TokenizedTexts
from jaxprobe.configs import TITLES
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians import studies
from jaxprobe.jacobians.epsilon_sweep import study_bytes
from jaxprobe.jacobians.memory import SMALLEST_CHUNK
from jaxprobe.jacobians.memory import fit as fit_memory
from jaxprobe.jacobians.planning import LEAST_CHUNK, SAMPLED_TEXTS, Batch, Plan, cut, layer_by_layer
from jaxprobe.jacobians.sweeps import lower_sweeps
from jaxprobe.loading import LoadedModel
from jaxprobe.memory import Forecast
from jaxprobe.run_configs import JacobianRun
from jaxprobe.runtime import Machine

_SHARES = (1.0, 1 / 8, 1 / 64)  # of what a batch may usually take, tried in turn where memory is short


def make_plan(
    key: str, model: LoadedModel, tokens: TokenizedTexts, config: JacobianRun, machine: Machine
) -> Plan:
    """What to measure of a model, in batches and chunks that fit the memory.

    Raises:
      ProbeError: it does not fit, however it is cut.
    """
    plan = Plan(
        layers=tuple(range(model.lm.config.num_layers)) if config.layer is None else (config.layer,),
        site=config.site,
        wrt=("last", "sequence") if config.wrt == "both" else (config.wrt,),
        metric=config.metric,
        reduction=config.spectra,
        epsilon=config.epsilon,
        num_samples=config.num_samples,
        seed=config.compute.seed,
        batch_tokens=config.compute.batch_tokens,
    )
    devices = {"platform": machine.platform, "devices": machine.device_count}
    if config.method != "exact":
        return cut(model.lm.config, tokens.ids, plan, **devices)
    usual, *smaller = (cut(model.lm.config, tokens.ids, plan, share=share, **devices) for share in _SHARES)
    plans = dict.fromkeys((usual, layer_by_layer(usual), *smaller))
    plan, forecast = _fit_one(model, tokens, tuple(plans), config)
    shapes = sorted({(batch.width, batch.chunk) for batch in plan.batches})
    chunks = ", ".join(f"{chunk} at {width} tokens" for width, chunk in shapes)
    count = len(plan.batches)
    batches_of = f"{count} batch{'es' if count > 1 else ''}"
    at_once = "" if plan.last_alone else f"cotangents at once: {chunks}; "
    print(f"{TITLES[key]}: {batches_of} of texts; {at_once}{forecast}")
    return plan


def _fit_one(
    model: LoadedModel, tokens: TokenizedTexts, plans: Sequence[Plan], config: JacobianRun
) -> tuple[Plan, Forecast]:
    """The first plan that fits the memory, from the roomiest to the leanest."""
    lm, params = model.lm, model.params

    @cache
    def of_epsilons() -> int:  # the same for all plans
        sampled = tokens.ids[:SAMPLED_TEXTS]
        return study_bytes(lm, params, sampled, plans[0].num_samples, plans[0].batch_tokens)

    def fit(plan: Plan, least_chunk: int) -> tuple[Plan, Forecast]:
        def besides() -> dict[str, int]:
            needs = {}
            if config.path and len(tokens.ids) > 1:
                needs["--path"] = studies.path_bytes(lm, params, plan)
            if config.epsilon_sweep:
                needs["--epsilon_sweep"] = of_epsilons()
            return needs

        return fit_memory(
            plan,
            lm.config,
            lambda batch: lower_sweeps(lm, params, plan, batch),
            jax.devices()[0],
            config.memory_gb,
            8 if config.compute.dtype == "float64" else 4,
            besides,
            least_chunk,
        )

    for plan in plans[:-1]:
        with contextlib.suppress(ProbeError):
            return fit(plan, LEAST_CHUNK)
    return fit(plans[-1], SMALLEST_CHUNK)


def recorded_plan(plan: Mapping[str, Any]) -> Plan:
    """The plan that a store gives back: JSON knows neither tuples nor batches."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plan.items()
    }
    for name in ("batches", "draw_batches"):
        fields[name] = tuple(Batch(**{**batch, "texts": tuple(batch["texts"])}) for batch in plan[name])
    return Plan(**fields)
