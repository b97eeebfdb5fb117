"""Perplexity when delta-sensitive units are perturbed, Mamba beside GPT-2, and what the percentages mean.

For each factual relation: the units of one layer that vary most between the relation's sentences are edited,
and the perplexity of those sentences and of control texts is taken before and after. Percentages stand beside
nats per token, with an exact account of how much of Mamba's excess in percent goes with its lower baseline.
Under --protocol=matched units are chosen on facts that are not scored, and compared with other sets of units.
"""

import sys
import time
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxprobe import claim, cli, outputs, provenance, runtime
from jaxprobe.configs import TITLES
from jaxprobe.flags import delta_pct as delta_pct_flags
from jaxprobe.relations import Relation, check_several_facts, select_relations
from jaxprobe.run_configs import DeltaPctRun
from jaxprobe.texts import load_controls

if TYPE_CHECKING:
    from jaxprobe.loading import LoadedModel
    from jaxprobe.original.study import Corpus
    from jaxprobe.scope import Scope
    from jaxprobe.store import Store

RESULTS = "delta_percentage_analysis_results"
MATCHED_RESULTS = "matched_results"
RUN_LOG = "delta_pct_run.log"


def run(config: DeltaPctRun) -> None:
    """Measures, prints the tables and writes the files."""
    with claim.claim(config.out):
        _run(config)


def _run(config: DeltaPctRun) -> None:
    started, perturbation = time.monotonic(), config.perturbation
    relations, controls = select_relations(config.relation_source), load_controls(config.controls)
    matched = perturbation.protocol == "matched"
    machine = runtime.configure(config.compute)
    from jaxprobe import loading
    from jaxprobe.matched import fact_splits
    from jaxprobe.matched import run as matched_run
    from jaxprobe.original import run as delta_run  # after JAX is set up
    from jaxprobe.scope import scope

    if matched:
        fact_splits.check_facts(relations, len(controls.texts), perturbation.mode)
    else:
        check_several_facts(relations)
    pair = loading.open_pair(config.mamba, config.gpt2, config.compute)
    opened = {TITLES[key]: model for key, model in pair.items()}
    loaded = delta_run.fitting(opened, perturbation)
    corpora = delta_run.tokens(loaded, relations, controls, perturbation)
    protocol_entry = matched_run.manifest_entry if matched else delta_run.protocol_entry
    manifest = provenance.manifest(
        command="jaxprobe.delta_pct",
        config=config,
        machine=machine,
        checkpoints={title: model.certificate.to_json() for title, model in loaded.items()},
        inputs={"relations": relations, "controls": controls.texts},
        protocol=protocol_entry(loaded, perturbation),
        relations=[relation.name for relation in relations],
        truncated_texts={title: corpus.truncated for title, corpus in corpora.items()},
    )
    given = perturbation, config.compute, config.memory_gb

    def batch_tokens() -> dict[str, int]:
        if matched:
            return matched_run.fit_batches(loaded, corpora, relations, *given)
        return delta_run.fit_batches(loaded, corpora, *given)

    store = delta_run.open_store(config.out, "delta_pct", manifest, corpora, batch_tokens)
    manifest = {**manifest, "plan": store.plan}
    about = scope(opened, perturbation, {title: corpus.ids for title, corpus in corpora.items()})
    report = _matched if matched else _seed
    files, owned = report(_Job(config, about, loaded, corpora, relations, manifest, store))
    files[RUN_LOG] = outputs.json_bytes(
        provenance.run_log(config, machine, time.monotonic() - started, controls_origin=controls.origin)
    )
    print(outputs.told(config.out, outputs.write_files(config.out, files, owned)))
    store.remove()


class _Job(NamedTuple):
    """What is to be measured."""

    config: DeltaPctRun
    scope: "Scope"  # of the answer
    loaded: "Mapping[str, LoadedModel]"
    corpora: "Mapping[str, Corpus]"
    relations: Sequence[Relation]
    manifest: Mapping[str, Any]
    store: "Store"


def _seed(job: _Job) -> tuple[dict[str, bytes], Set[str]]:
    """Measures under the seed protocol and prints the tables; the files, and names of all it may write."""
    from jaxprobe.original import records as delta_records
    from jaxprobe.original import run as delta_run
    from jaxprobe.original import tables as delta_tables
    from jaxprobe.original.summary import summarise

    config, scope, loaded, corpora, relations, manifest, store = job
    perturbation = config.perturbation
    results = {
        title: delta_records.by_relation(
            relations,
            delta_run.measure(title, model, corpora[title], perturbation, config.compute, store),
        )
        for title, model in loaded.items()
    }
    summary = summarise(results, config.compute.seed)
    sites = {title: (at["read"], at["edit"]) for title, at in manifest["protocol"]["sites"].items()}
    print(f"\n{delta_tables.delta_report(summary, perturbation, sites)}\n")
    from jaxprobe.original import report as delta_report  # draws: slow to import
    from jaxprobe.report.files import files

    rows = list(delta_records.delta_rows(summary))
    report = delta_report.delta_report(summary, scope, perturbation, sites, manifest)
    made = {
        f"{RESULTS}.csv": outputs.csv_bytes(delta_records.CSV_COLUMNS, rows),
        f"{RESULTS}.json": outputs.json_bytes(delta_records.delta_json(summary, rows, manifest)),
        **files(report, delta_report.PAGE if config.report else None),
    }
    return made, delta_report.ALL_FILES


def _matched(job: _Job) -> tuple[dict[str, bytes], Set[str]]:
    """Measures under the matched protocol and prints the tables; the files as those of `_seed`."""
    from jaxprobe.matched import records
    from jaxprobe.matched import run as matched_run
    from jaxprobe.matched.summary import summarise
    from jaxprobe.matched.tables import matched_report as console_report

    config, scope, loaded, corpora, relations, manifest, store = job
    perturbation = config.perturbation
    results = matched_run.measure(loaded, corpora, relations, perturbation, config.compute, store)
    sizes = matched_run.fact_sizes(loaded, corpora, relations, perturbation, results)
    noise_std = perturbation.noise_std if perturbation.mode == "noise" else None
    summary = summarise(results, sizes, seed=config.compute.seed, noise_std=noise_std)
    heading = matched_run.heading(loaded, perturbation)
    print(f"\n{heading}\n{console_report(summary)}\n")
    from jaxprobe.matched.report import ALL_FILES, PAGE, matched_report  # draws: slow to import
    from jaxprobe.report.files import files

    objects, studies = matched_run.distinct_objects(relations, results), matched_run.studies(perturbation)
    report = matched_report(results, summary, objects, scope, heading, studies, manifest)
    rows = records.matched_rows(summary)
    record = records.matched_json(results, sizes, summary, manifest)
    made = {
        f"{MATCHED_RESULTS}.csv": outputs.csv_bytes(records.MATCHED_COLUMNS, rows),
        f"{MATCHED_RESULTS}.json": outputs.json_bytes(record),
        **files(report, PAGE if config.report else None),
    }
    return made, ALL_FILES


def main() -> int:
    """Entry point of `python -m jaxprobe.delta_pct` and of `jaxprobe-delta-pct`."""
    return cli.run(run, delta_pct_flags, __doc__)


if __name__ == "__main__":
    sys.exit(main())
