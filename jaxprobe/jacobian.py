"""Exact Jacobians of both models, layer by layer, beside the seed's finite differences.

For every layer l and text, the Jacobian of the map from block_out of l to the logits at the last token: its
Frobenius norm and largest singular value, exactly; the finite-difference sensitivity that estimates the same
thing by sampling; Lipschitz ratios, effective rank and output variance. With --method=matrix_free, for models
too large for that, estimates with their errors in place of the exact numbers. Writes JSON, CSV and pictures.
A run that was killed resumes, and writes the same bytes; when and where it ran stands in a log of its own.

What every number means: docs/definitions.md.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxprobe import batches, claim, cli, outputs, provenance, relations, runtime, shipped, texts
from jaxprobe.errors import ProbeError
from jaxprobe.flags import jacobian as jacobian_flags
from jaxprobe.run_configs import DEFAULT_NUM_TEXTS, SHIPPED, Effort, JacobianRun
from jaxprobe.store import Store

if TYPE_CHECKING:
    from jaxprobe.batches import TokenizedTexts
    from jaxprobe.epsilon_sweep import EpsilonStudy
    from jaxprobe.estimates import ModelEstimates
    from jaxprobe.loading import LoadedModel
    from jaxprobe.planning import Plan
    from jaxprobe.results import ModelSensitivity
    from jaxprobe.runtime import Machine
    from jaxprobe.texts import Texts

RESULTS = "gradient_amplification_results_all_layers"
RUN_LOG = "jacobian_run.log"
SPECTRA = "jacobian_spectra.npz"
AGREEMENT_PICTURE = "images/exact_versus_finite_difference.png"
MAPS_PICTURE = "images/token_layer_maps.png"
EPSILON_PICTURE = "images/epsilon_sweep.png"
ESTIMATE_PICTURE = "images/estimate_profiles.png"
MAPPED_TEXTS = 3
MAX_TOKENS = 128  # the seed truncates there


def run(config: JacobianRun) -> None:
    """Measures, prints the tables and writes the files."""
    with claim.claim(config.out):
        _run(config)


def _run(config: JacobianRun) -> None:
    started = time.monotonic()
    source = _texts(config)
    machine = runtime.configure(config.compute)
    loaded = _open_models(config)
    tokens = {key: _tokenize(key, model, source, config) for key, model in loaded.items()}
    manifest = provenance.manifest(
        command="jaxprobe.jacobian",
        config=config,
        machine=machine,
        checkpoints={key: model.certificate.to_json() for key, model in loaded.items()},
        truncated_texts={key: value.truncated for key, value in tokens.items()},
    )
    asked = {
        key: model
        for key, model in loaded.items()
        if config.layer is None or config.layer < model.lm.config.num_layers
    }
    if config.method == "matrix_free":
        _check_effort(config, asked)
    store = Store.open(
        config.out,
        "jacobian",
        identity={**manifest, "texts": source.texts, "tokens": {key: row.ids for key, row in tokens.items()}},
        plan=lambda: {
            key: dataclasses.asdict(_plan(key, model, tokens[key], config, machine))
            for key, model in asked.items()
        },
    )
    from jaxprobe import estimate_tables, records, tables  # after JAX is set up

    estimated, studies = {}, {}
    if config.method == "exact":
        measured = {key: _measure(key, model, tokens[key], store, config) for key, model in asked.items()}
        if config.epsilon_sweep:
            studies = _sweep_epsilons(asked, tokens, measured, store, config)
        print(f"\n{tables.sensitivity_report(measured, config.metric, studies, config.epsilon)}\n")
    else:
        estimated = {key: _estimate(key, model, tokens[key], store, config) for key, model in asked.items()}
        measured = {key: model.sensitivity for key, model in estimated.items()}
        print(f"\n{estimate_tables.estimate_report(estimated, config.metric)}\n")
    num_layers = {key: model.lm.config.num_layers for key, model in loaded.items()}
    results = records.sensitivity_json(
        measured,
        num_layers,
        source.texts,
        {**manifest, "plan": store.plan},
        metric=config.metric,
        studies=studies,
    )
    rows = [*records.sensitivity_rows(measured), *estimate_tables.estimate_rows(estimated)]
    files = {
        f"{RESULTS}.json": outputs.json_bytes(estimate_tables.with_estimates(results, estimated)),
        f"{RESULTS}.csv": outputs.csv_bytes(records.CSV_COLUMNS, rows),
        **({SPECTRA: outputs.npz_bytes(records.spectra_arrays(measured, studies))} if not estimated else {}),
        **_pictures(measured, estimated, studies, _words(asked, tokens), len(source.texts), config),
        RUN_LOG: outputs.json_bytes(
            provenance.run_log(config, machine, time.monotonic() - started, texts_origin=source.origin)
        ),
    }
    for path in outputs.write_files(config.out, files):
        print(f"wrote {path}")
    # Those of an earlier run would not belong to these results.
    optional = {SPECTRA, AGREEMENT_PICTURE, MAPS_PICTURE, EPSILON_PICTURE, ESTIMATE_PICTURE}
    for name in optional - files.keys():
        (config.out / name).unlink(missing_ok=True)
    store.remove()


def _texts(config: JacobianRun) -> "Texts":
    if config.text:
        source = texts.Texts(config.text, "the texts given by --text")
        return texts.take(source, config.num_texts, len(config.text))
    source = texts.read_texts(config.texts) if config.texts else relations.relation_texts()
    return texts.take(source, config.num_texts, DEFAULT_NUM_TEXTS)


def _open_models(config: JacobianRun) -> "dict[str, LoadedModel]":
    from jaxprobe import loading

    sources = {"mamba": config.mamba, "gpt2": config.gpt2}
    if SHIPPED in sources.values():
        print(shipped.notice())
    loaded = {key: loading.open_model(source, key, config.compute) for key, source in sources.items()}
    depths = {loading.TITLES[key]: model.lm.config.num_layers for key, model in loaded.items()}
    if config.layer is not None:
        if config.layer >= max(depths.values()):
            has = ", ".join(f"{title} has layers 0 to {depth - 1}" for title, depth in depths.items())
            raise ProbeError(f"--layer={config.layer} is beyond both models: {has}")
        for title, depth in depths.items():
            if config.layer >= depth:
                print(f"{title} is skipped: --layer={config.layer}, but its layers are 0 to {depth - 1}")
    return loaded


def _tokenize(key: str, model: "LoadedModel", source: "Texts", config: JacobianRun) -> "TokenizedTexts":
    from jaxprobe.loading import TITLES

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
    cut = f", {tokens.truncated} truncated" if tokens.truncated else ""
    print(
        f"{TITLES[key]} ({model.source}): {lm.num_layers} layers, "
        f"{model.certificate.parameter_count:,} parameters; "
        f"{len(tokens.ids)} texts of {min(map(len, tokens.ids))} to {tokens.longest} tokens{cut}"
    )
    return tokens


def _plan(
    key: str, model: "LoadedModel", tokens: "TokenizedTexts", config: JacobianRun, machine: "Machine"
) -> "Plan":
    import jax

    from jaxprobe import memory
    from jaxprobe.loading import TITLES
    from jaxprobe.planning import Plan, cut
    from jaxprobe.sensitivity import lower_sweep

    plan = Plan(
        layers=tuple(range(model.lm.config.num_layers)) if config.layer is None else (config.layer,),
        wrt=("last", "sequence") if config.wrt == "both" else (config.wrt,),
        metric=config.metric,
        reduction=config.spectra,
        epsilon=config.epsilon,
        num_samples=config.num_samples,
        seed=config.compute.seed,
        batch_tokens=config.compute.batch_tokens,
    )
    plan = cut(model.lm.config, tokens.ids, plan, platform=machine.platform)
    if config.method == "exact" and "sequence" in plan.wrt:
        plan, forecast = memory.fit(
            plan,
            model.lm.config,
            lambda batch: lower_sweep(model.lm, model.params, plan, batch),
            jax.devices()[0],
            config.memory_gb,
            8 if config.compute.dtype == "float64" else 4,
        )
        shapes = sorted({(batch.width, batch.chunk) for batch in plan.batches})
        cuts = ", ".join(f"{chunk} at {width} tokens" for width, chunk in shapes)
        print(f"{TITLES[key]}: {len(plan.batches)} batches; cotangents at once: {cuts}; {forecast}")
    return plan


def _measure(
    key: str, model: "LoadedModel", tokens: "TokenizedTexts", store: Store, config: JacobianRun
) -> "ModelSensitivity":
    from jaxprobe import studies
    from jaxprobe.loading import TITLES
    from jaxprobe.sensitivity import summarise, work_units

    plan = _recorded(store.plan[key])
    units = work_units(model.lm, model.params, tokens.ids, plan)
    results = store.complete(TITLES[key], {unit.name: unit.compute for unit in units})
    measured = summarise(model.lm.config, tokens.ids, plan, results)
    if config.path:
        paths = studies.path_units(model.lm, model.params, tokens.ids, plan, results)
        results = store.complete(f"{TITLES[key]}, paths", {unit.name: unit.compute for unit in paths})
        measured = studies.with_paths(measured, results)
    return measured


def _sweep_epsilons(
    asked: "Mapping[str, LoadedModel]",
    tokens: "Mapping[str, TokenizedTexts]",
    measured: "Mapping[str, ModelSensitivity]",
    store: Store,
    config: JacobianRun,
) -> "dict[str, EpsilonStudy]":
    from jaxprobe import studies
    from jaxprobe.loading import TITLES

    least = min(model.lm.config.num_layers for model in asked.values())
    layer = min(1, least - 1) if config.layer is None else config.layer
    found = {}
    for key, model in asked.items():
        plan = _recorded(store.plan[key])
        unit = studies.sweep_unit(model.lm, model.params, tokens[key].ids, plan, layer, measured[key])
        parts = store.complete(f"{TITLES[key]}, step sizes", {unit.name: unit.compute})
        found[key] = studies.study_from(parts[unit.name])
    return found


def _words(
    asked: "Mapping[str, LoadedModel]", tokens: "Mapping[str, TokenizedTexts]"
) -> dict[str, list[list[str]]]:
    return {
        key: [[model.tokenizer.decode([token]) for token in row] for row in tokens[key].ids[:MAPPED_TEXTS]]
        for key, model in asked.items()
    }


def _check_effort(config: JacobianRun, asked: "Mapping[str, LoadedModel]") -> None:
    from jaxprobe.estimates import check_effort

    for model in asked.values():
        check_effort(model.lm.config, config.effort or Effort())


def _estimate(
    key: str, model: "LoadedModel", tokens: "TokenizedTexts", store: Store, config: JacobianRun
) -> "ModelEstimates":
    from jaxprobe.estimates import summarise, work_units
    from jaxprobe.loading import TITLES

    plan = _recorded(store.plan[key])
    units = work_units(model.lm, model.params, tokens.ids, plan, config.effort or Effort())
    results = store.complete(TITLES[key], {unit.name: unit.compute for unit in units})
    return summarise(model.lm.config, tokens.ids, plan, results)


def _recorded(plan: Mapping[str, Any]) -> "Plan":
    """The plan that a store gives back: JSON knows neither tuples nor batches."""
    from jaxprobe.planning import Batch, Plan

    batches = tuple(Batch(**{**batch, "texts": tuple(batch["texts"])}) for batch in plan["batches"])
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plan.items()
    }
    return Plan(**{**fields, "batches": batches})


def _pictures(
    measured: "dict[str, ModelSensitivity]",
    estimated: "dict[str, ModelEstimates]",
    studies: "dict[str, EpsilonStudy]",
    words: dict[str, list[list[str]]],
    num_texts: int,
    config: JacobianRun,
) -> dict[str, bytes]:
    from jaxprobe import plots

    pictures = {"images/sensitivity_profiles.png": plots.layer_profiles(measured, num_texts, config.metric)}
    if estimated:
        from jaxprobe import estimate_plots

        drawn = estimate_plots.estimate_profiles(estimated, num_texts, config.metric)
        return {**pictures, ESTIMATE_PICTURE: drawn}
    if config.wrt == "last":
        return pictures
    pictures[MAPS_PICTURE] = plots.token_layer_maps(measured, words)
    if config.metric == "logits":
        pictures[AGREEMENT_PICTURE] = plots.exact_versus_sampled(measured, config.num_samples, config.epsilon)
    if studies:
        from jaxprobe import epsilon_plots, verdict

        found = {
            key: {each.layer: made for each in model.layers if (made := verdict.layer_verdict(each))}
            for key, model in measured.items()
        }
        pictures[EPSILON_PICTURE] = epsilon_plots.epsilon_story(studies, found, config.epsilon)
    return pictures


def main() -> int:
    """Entry point of `python -m jaxprobe.jacobian` and of `jaxprobe-jacobian`."""
    return cli.run(run, jacobian_flags, __doc__)


if __name__ == "__main__":
    sys.exit(main())
