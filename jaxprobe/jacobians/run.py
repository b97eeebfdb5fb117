"""What the Jacobian command does with its models, once JAX is set up: opens them, cuts the work, measures."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxprobe import batches, devices, loading, progress, provenance
from jaxprobe.batches import TokenizedTexts
from jaxprobe.configs import TITLES, ModelConfig
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians import studies
from jaxprobe.jacobians.epsilon_sweep import EpsilonStudy
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.run_plan import make_plan, recorded_plan
from jaxprobe.jacobians.sensitivity import summarise, work_units
from jaxprobe.loading import LoadedModel
from jaxprobe.run_configs import Effort, JacobianRun
from jaxprobe.runtime import Machine
from jaxprobe.sites import site_widths
from jaxprobe.store import Store
from jaxprobe.texts import Texts
from jaxprobe.work import WorkUnit, prepared_in_threads

if TYPE_CHECKING:
    from jaxprobe.jacobians.estimates import ModelEstimates

MAPPED_TEXTS = 3
MAX_TOKENS = 128  # the original study truncates there


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
    loaded = loading.open_pair(config.mamba, config.gpt2, config.compute)
    asked = _fitting(loaded, config)
    tokens = {key: tokenize(key, model, source, config) for key, model in loaded.items()}
    manifest = provenance.manifest(
        command="jaxprobe.jacobian",
        config=config,
        machine=machine,
        checkpoints={key: model.certificate.to_json() for key, model in loaded.items()},
        inputs={"texts": source.texts, "text_relations": source.groups},
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


def measure_all(session: Session) -> dict[str, ModelSensitivity]:
    """The exact numbers of every model beside the sampled ones; what the store has is not computed again."""
    units = _all_units(session.asked, session.tokens, session.store.plan)
    later = sum(unit.cost for of_model in units.values() for unit in of_model)
    measured = {}
    # On a CPU compiling takes the cores from the products that run meanwhile (BUILD_NOTES).
    with prepared_in_threads(early=session.machine.platform != "cpu") as prepared:
        if (
            session.machine.device_count == 1
        ):  # where several share the arrays, shapes alone do not say which program runs
            for key, of_model in units.items():
                done = partial(session.store.has, TITLES[key])
                units[key] = tuple(unit if done(unit) else prepared(unit) for unit in of_model)
        for key, model in session.asked.items():
            later -= sum(unit.cost for unit in units[key])
            measured[key] = _measure(key, model, units.pop(key), later, session)
    return measured


def _all_units(
    asked: Mapping[str, LoadedModel], tokens: Mapping[str, TokenizedTexts], plans: Mapping[str, Any]
) -> dict[str, tuple[WorkUnit, ...]]:
    # Several processes meet where weights are put on all devices: each must have them all before any work.
    return {
        key: work_units(model.lm, model.params, tokens[key].ids, recorded_plan(plans[key]))
        for key, model in asked.items()
    }


def _measure(
    key: str, model: LoadedModel, units: Sequence[WorkUnit], later: float, session: Session
) -> ModelSensitivity:
    store, config, tokens = session.store, session.config, session.tokens[key]
    plan = recorded_plan(store.plan[key])
    results = store.complete(TITLES[key], units, announce=devices.broadcast, later=later)
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
    said = devices.broadcast(None)
    if "error" in said:
        raise ProbeError(f"the first process gave up: {said['error']}")
    source = Texts(tuple(said["texts"]), "the first process")
    asked = _fitting(loading.open_pair(config.mamba, config.gpt2, config.compute), config)
    tokens = {key: tokenize(key, model, source, config) for key, model in asked.items()}
    for key, units in _all_units(asked, tokens, said["plan"]).items():
        by_name = {unit.name: unit for unit in units}
        for name in progress.track(devices.broadcast(None), TITLES[key]):
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
        plan = recorded_plan(store.plan[key])
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
    """Estimates with their errors in place of the exact numbers, as `measure_all`."""
    from jaxprobe.jacobians import estimates

    plan = recorded_plan(store.plan[key])
    units = estimates.work_units(model.lm, model.params, tokens.ids, plan, config.effort or Effort())
    results = store.complete(TITLES[key], units)
    return estimates.summarise(model.lm.config, tokens.ids, plan, results)
