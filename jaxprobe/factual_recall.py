"""Factual recall with and without the delta-sensitive units of each relation, for any list of models.

For each relation: perplexity of its sentences and of other texts before and after the edit, how selective the
edit is, and whether the model still recalls the objects of the relation's facts. Writes CSV, JSON, a picture
and a report.
"""

import sys
import time
from typing import TYPE_CHECKING

from jaxprobe import claim, cli, outputs, provenance, runtime, shipped
from jaxprobe.configs import TITLES
from jaxprobe.errors import ProbeError
from jaxprobe.flags import factual_recall as factual_recall_flags
from jaxprobe.relations import Relation, check_several_facts, select_relations
from jaxprobe.run_configs import FactualRecallRun
from jaxprobe.texts import load_controls

if TYPE_CHECKING:
    from jaxprobe.loading import LoadedModel
    from jaxprobe.original.study import Corpus
    from jaxprobe.recall.summary import RelationRecall
    from jaxprobe.store import Store

RESULTS = "factual_recall_results"
RUN_LOG = "factual_recall_run.log"


def run(config: FactualRecallRun) -> None:
    """Measures, prints the tables and writes the files."""
    with claim.claim(config.out):
        _run(config)


def _run(config: FactualRecallRun) -> None:
    started = time.monotonic()
    relations, controls = select_relations(config.relations), load_controls(config.controls)
    check_several_facts(relations)
    machine = runtime.configure(config.compute)
    from jaxprobe.original import run as delta_run  # after JAX is set up
    from jaxprobe.original import tables as delta_tables
    from jaxprobe.recall import records as recall_records
    from jaxprobe.recall import tables as recall_tables
    from jaxprobe.recall.summary import summarise

    perturbation = config.perturbation
    opened = _open_models(config)
    loaded = delta_run.fitting(opened, perturbation)
    corpora = delta_run.tokens(loaded, relations, controls, perturbation)
    protocol = delta_run.protocol_entry(loaded, perturbation)
    manifest = provenance.manifest(
        command="jaxprobe.factual_recall",
        config=config,
        machine=machine,
        checkpoints={title: model.certificate.to_json() for title, model in loaded.items()},
        inputs={"relations": relations, "controls": controls.texts},
        protocol=protocol,
        relations=[relation.name for relation in relations],
        truncated_texts={title: corpus.truncated for title, corpus in corpora.items()},
    )
    store = delta_run.open_store(
        config.out,
        "factual_recall",
        manifest,
        corpora,
        lambda: delta_run.fit_batches(loaded, corpora, perturbation, config.compute, config.memory_gb),
    )
    manifest = {**manifest, "plan": store.plan}
    results = {
        title: _measure(title, model, corpora[title], relations, config, store)
        for title, model in loaded.items()
    }
    summary = summarise(results, config.compute.seed)
    heading = delta_tables.heading(
        perturbation, {title: (entry["read"], entry["edit"]) for title, entry in protocol["sites"].items()}
    )
    print(f"\n{recall_tables.recall_report(summary, heading)}\n")
    from jaxprobe.recall import report as recall_report  # draws: slow to import
    from jaxprobe.report import files as report_files
    from jaxprobe.scope import scope

    tokens = {title: corpus.ids for title, corpus in corpora.items()}
    about = scope(opened, perturbation, tokens, shipped.notice("model", "model"))
    rows = list(recall_records.recall_rows(summary))
    report = recall_report.recall_report(summary, about, heading, manifest)
    files = {
        f"{RESULTS}.csv": outputs.csv_bytes(recall_records.CSV_COLUMNS, rows),
        f"{RESULTS}.json": outputs.json_bytes(recall_records.recall_json(summary, rows, manifest)),
        **report_files.files(report, recall_report.PAGE if config.report else None),
        RUN_LOG: outputs.json_bytes(
            provenance.run_log(config, machine, time.monotonic() - started, controls_origin=controls.origin)
        ),
    }
    print(outputs.told(config.out, outputs.write_files(config.out, files, recall_report.ALL_FILES)))
    store.remove()


def _open_models(config: FactualRecallRun) -> "dict[str, LoadedModel]":
    from jaxprobe import loading

    sources = {provenance.source_name(source): source for source in config.models}
    if len(sources) < len(config.models):
        raise ProbeError(f"--model: each model once, and no two of one name; got {', '.join(config.models)}")
    if not sources:
        print(shipped.notice("model", "model"))
        sources = {TITLES[key]: str(path) for key, path in shipped.MODELS.items()}
    return {title: loading.open_any(source, config.compute) for title, source in sources.items()}


def _measure(
    title: str,
    model: "LoadedModel",
    corpus: "Corpus",
    relations: tuple[Relation, ...],
    config: FactualRecallRun,
    store: "Store",
) -> "dict[str, RelationRecall]":
    from jaxprobe.original import run as delta_run
    from jaxprobe.recall import decoding as recall
    from jaxprobe.recall.summary import RelationRecall

    scores = delta_run.measure(title, model, corpus, config.perturbation, config.compute, store)
    facts = [fact for relation in relations for fact in relation.facts]
    found = iter(
        recall.recall(
            model.lm,
            model.params,
            model.tokenizer,
            facts,
            [row for group in corpus.relations for row in group.ids],
            [entry.chosen.units for entry in scores for _ in entry.before],
            [text for entry in scores for text in entry.before],
            [text for entry in scores for text in entry.after],
            delta_run.edit_spec(model, config.perturbation, config.compute),
            store.plan["batch_tokens"][title],
        )
    )
    return {
        relation.name: RelationRecall(entry, tuple(next(found) for _ in relation.facts))
        for relation, entry in zip(relations, scores, strict=True)
    }


def main() -> int:
    """Entry point of `python -m jaxprobe.factual_recall` and of `jaxprobe-factual-recall`."""
    return cli.run(run, factual_recall_flags, __doc__)


if __name__ == "__main__":
    sys.exit(main())
