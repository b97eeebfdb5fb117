"""What the Jacobian command does with its models, once JAX is set up: opens them, cuts the work, measures."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import jax

from jaxprobe import batches, devices, loading, progress, provenance, shipped
from jaxprobe.batches import TokenizedTexts
from jaxprobe.configs import TITLES, ModelConfig
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians import studies
from jaxprobe.jacobians.epsilon_sweep import EpsilonStudy, study_bytes
from jaxprobe.jacobians.memory import SMALLEST_CHUNK
from jaxprobe.jacobians.memory import fit as fit_memory
from jaxprobe.jacobians.planning import LEAST_CHUNK, SAMPLED_TEXTS, Batch, Plan, cut, layer_by_layer
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.sensitivity import summarise, work_units
from jaxprobe.jacobians.sweeps import lower_sweeps
from jaxprobe.loading import LoadedModel
from jaxprobe.memory import Forecast
from jaxprobe.run_configs import SHIPPED, Effort, JacobianRun
from jaxprobe.runtime import Machine
from jaxprobe.sites import site_widths
from jaxprobe.store import Store
from jaxprobe.texts import Texts
from jaxprobe.work import WorkUnit

if TYPE_CHECKING:
    from jaxprobe.jacobians.estimates import (
        ModelEstimates,
    )  # needs another library: only where it is asked for

MAPPED_TEXTS = 3
_SHARES = (1.0, 1 / 8, 1 / 64)  # of what a batch may usually take, tried in turn where memory is short
MAX_TOKENS = 128  # the seed truncates there


@dataclasses.dataclass(frozen=True)
class Session:
    """A run that is about to measure: everything is open, everything was checked.

    Attributes:
      config: what was asked for.
      source: the texts. tokens: of each model, by architecture.
      machine: where it runs.
      loaded: both models. asked: those that have the layer and the site.
      manifest: what decides the values.
      store: of finished parts; it holds the plan.
    """

    config: JacobianRun
    source: Texts
    machine: Machine
    loaded: Mapping[str, LoadedModel]
    asked: Mapping[str, LoadedModel]
    tokens: Mapping[str, TokenizedTexts]
    manifest: Mapping[str, Any]
    store: Store


def prepare(config: JacobianRun, source: Texts, machine: Machine) -> Session:
    """Opens the models and the store, and cuts the work.

    Raises:
      ProbeError: something does not fit, or the store is of another run.
    """
    loaded = _open_models(config)
    asked = _fitting(loaded, config)
    tokens = {key: tokenize(key, model, source, config) for key, model in loaded.items()}
    manifest = provenance.manifest(
        command="jaxprobe.jacobian",
        config=config,
        machine=machine,
        checkpoints={key: model.certificate.to_json() for key, model in loaded.items()},
        inputs={"texts": source.texts},
        truncated_texts={key: value.truncated for key, value in tokens.items()},
    )
    if config.method == "matrix_free":
        check_estimates(config, asked)
    # The texts stand here themselves, not as their hash: a refusal quotes the one that differs.
    decisive = {name: value for name, value in manifest.items() if name != "inputs_sha256"}
    store = Store.open(
        config.out,
        "jacobian",
        identity={**decisive, "texts": source.texts, "tokens": {key: row.ids for key, row in tokens.items()}},
        plan=lambda: {
            key: dataclasses.asdict(make_plan(key, model, tokens[key], config, machine))
            for key, model in asked.items()
        },
    )
    return Session(config, source, machine, loaded, asked, tokens, manifest, store)


def _open_models(config: JacobianRun) -> dict[str, LoadedModel]:
    sources = {"mamba": config.mamba, "gpt2": config.gpt2}
    if SHIPPED in sources.values():
        print(shipped.notice())
    return {key: loading.open_model(source, key, config.compute) for key, source in sources.items()}


def _fitting(loaded: Mapping[str, LoadedModel], config: JacobianRun) -> dict[str, LoadedModel]:
    """The models that have --layer and --site."""

    def why_not(model: ModelConfig) -> str | None:
        if config.layer is not None and config.layer >= model.num_layers:
            return f"--layer={config.layer}, but its layers are 0 to {model.num_layers - 1}"
        if config.site not in site_widths(model):
            return f"--site={config.site}, but it has {', '.join(site_widths(model))}"
        return None

    return loading.fitting(loaded, why_not)


def tokenize(key: str, model: LoadedModel, source: Texts, config: JacobianRun) -> TokenizedTexts:
    """A model's tokens of the texts, at least two each.

    Raises:
      ProbeError: a text is too short, or the tokenizer does not fit the model or the flags.
    """
    tokenizer, lm = model.tokenizer, model.lm.config
    if config.add_bos and tokenizer.bos_token_id is None:
        raise ProbeError(f"--add_bos: the {TITLES[key]} tokenizer names no beginning-of-text token")
    tokens = batches.tokenize(
        source.texts,
        tokenizer,
        limit=min(MAX_TOKENS, lm.context_length or MAX_TOKENS),
        bos=tokenizer.bos_token_id if config.add_bos else None,
        vocab_size=lm.vocab_size,
    )
    shortened = f", {tokens.truncated} truncated" if tokens.truncated else ""
    print(
        f"{TITLES[key]} ({model.source}): {lm.num_layers} layers, "
        f"{model.certificate.parameter_count:,} parameters; "
        f"{len(tokens.ids)} texts of {min(map(len, tokens.ids))} to {tokens.longest} tokens{shortened}"
    )
    return tokens


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


def measure_all(session: Session) -> dict[str, ModelSensitivity]:
    """The exact numbers of every model beside the sampled ones; what the store has is not computed again."""
    units = _all_units(session.asked, session.tokens, session.store.plan)
    later = sum(unit.cost for of_model in units.values() for unit in of_model)
    measured = {}
    for key, model in session.asked.items():
        later -= sum(unit.cost for unit in units[key])
        measured[key] = _measure(key, model, units.pop(key), later, session)
    return measured


def _all_units(
    asked: Mapping[str, LoadedModel], tokens: Mapping[str, TokenizedTexts], plans: Mapping[str, Any]
) -> dict[str, tuple[WorkUnit, ...]]:
    # Several processes meet where weights are put on all devices: each must have them all before any work.
    return {
        key: work_units(model.lm, model.params, tokens[key].ids, _recorded(plans[key]))
        for key, model in asked.items()
    }


def _measure(
    key: str, model: LoadedModel, units: Sequence[WorkUnit], later: float, session: Session
) -> ModelSensitivity:
    store, config, tokens = session.store, session.config, session.tokens[key]
    plan = _recorded(store.plan[key])
    results = store.complete(TITLES[key], units, announce=devices.tell, later=later)
    measured = summarise(model.lm.config, tokens.ids, plan, results)
    if config.path:
        paths = studies.path_units(model.lm, model.params, tokens.ids, plan, results)
        results = store.complete(f"{TITLES[key]}, paths", paths)
        measured = studies.with_paths(measured, results)
    return measured


def assist(config: JacobianRun) -> None:
    """Takes part, in a process that is not the first, in what the first does; nothing is written here.

    Raises:
      ProbeError: the first process gave up before the work began.
    """
    said = devices.tell(None)
    if "error" in said:
        raise ProbeError(f"the first process gave up: {said['error']}")
    source = Texts(tuple(said["texts"]), "the first process")
    asked = _fitting(_open_models(config), config)
    tokens = {key: tokenize(key, model, source, config) for key, model in asked.items()}
    for key, units in _all_units(asked, tokens, said["plan"]).items():
        by_name = {unit.name: unit for unit in units}
        for name in progress.track(devices.tell(None), TITLES[key]):
            by_name[name].compute()


def sweep_epsilons(
    asked: Mapping[str, LoadedModel],
    tokens: Mapping[str, TokenizedTexts],
    measured: Mapping[str, ModelSensitivity],
    store: Store,
    config: JacobianRun,
) -> dict[str, EpsilonStudy]:
    """The study of step sizes of one layer of each model."""
    least = min(model.lm.config.num_layers for model in asked.values())
    layer = min(1, least - 1) if config.layer is None else config.layer
    found = {}
    for key, model in asked.items():
        plan = _recorded(store.plan[key])
        unit = studies.sweep_unit(model.lm, model.params, tokens[key].ids, plan, layer, measured[key])
        parts = store.complete(f"{TITLES[key]}, step sizes", [unit])
        found[key] = studies.study_from(parts[unit.name])
    return found


def words(
    asked: Mapping[str, LoadedModel], tokens: Mapping[str, TokenizedTexts]
) -> dict[str, list[list[str]]]:
    """The first texts' tokens as text, for the labels of a picture."""
    return {
        key: [[model.tokenizer.decode([token]) for token in row] for row in tokens[key].ids[:MAPPED_TEXTS]]
        for key, model in asked.items()
    }


def check_estimates(config: JacobianRun, asked: Mapping[str, LoadedModel]) -> None:
    """Refuses more singular values than a model's Jacobian has.

    Raises:
      ProbeError: that many were asked for.
    """
    from jaxprobe.jacobians.estimates import check_effort

    for model in asked.values():
        check_effort(model.lm.config, config.effort or Effort())


def estimate(
    key: str, model: LoadedModel, tokens: TokenizedTexts, store: Store, config: JacobianRun
) -> "ModelEstimates":
    """Estimates with their errors in place of the exact numbers, as `measure`."""
    from jaxprobe.jacobians import estimates

    plan = _recorded(store.plan[key])
    units = estimates.work_units(model.lm, model.params, tokens.ids, plan, config.effort or Effort())
    results = store.complete(TITLES[key], units)
    return estimates.summarise(model.lm.config, tokens.ids, plan, results)


def _recorded(plan: Mapping[str, Any]) -> Plan:
    """The plan that a store gives back: JSON knows neither tuples nor batches."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plan.items()
    }
    for name in ("batches", "draw_batches"):
        fields[name] = tuple(Batch(**{**batch, "texts": tuple(batch["texts"])}) for batch in plan[name])
    return Plan(**fields)
