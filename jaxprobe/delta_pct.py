"""Perplexity when delta-sensitive units are perturbed, Mamba beside GPT-2, and what the percentages mean.

For each factual relation: the units of one layer that vary most between the relation's sentences are edited,
and the perplexity of those sentences and of control texts is taken before and after. Percentages stand beside
nats per token, with an exact account of how much of Mamba's excess in percent goes with its lower baseline.
"""

import sys
import time
from typing import TYPE_CHECKING

from jaxprobe import claim, cli, outputs, provenance, runtime, shipped
from jaxprobe.flags import delta_pct as delta_pct_flags
from jaxprobe.relations import select_relations
from jaxprobe.run_configs import SHIPPED, DeltaPctRun
from jaxprobe.texts import load_controls

if TYPE_CHECKING:
    from jaxprobe.loading import LoadedModel

RESULTS = "delta_percentage_analysis_results"
PICTURE = "delta_percentage_analysis"
RUN_LOG = "delta_pct_run.log"


def run(config: DeltaPctRun) -> None:
    """Measures, prints the tables and writes the files."""
    with claim.claim(config.out):
        _run(config)


def _run(config: DeltaPctRun) -> None:
    started = time.monotonic()
    relations, controls = select_relations(config.relations), load_controls(config.controls)
    machine = runtime.configure(config.compute)
    from jaxprobe import delta_records, delta_run, delta_tables  # after JAX is set up

    perturbation = config.perturbation
    loaded = delta_run.fitting(_open_models(config), perturbation)
    corpora = delta_run.tokens(loaded, relations, controls, perturbation)
    protocol = delta_run.protocol_entry(loaded, perturbation)
    manifest = provenance.manifest(
        command="jaxprobe.delta_pct",
        config=config,
        machine=machine,
        checkpoints={title: model.certificate.to_json() for title, model in loaded.items()},
        protocol=protocol,
        relations=[relation.name for relation in relations],
        truncated_texts={title: corpus.truncated for title, corpus in corpora.items()},
    )
    store = delta_run.open_store(config.out, "delta_pct", manifest, corpora)
    results = {
        title: delta_records.by_relation(
            relations,
            delta_run.measure(title, model, corpora[title], perturbation, config.compute, store),
        )
        for title, model in loaded.items()
    }
    sites = {title: (entry["read"], entry["edit"]) for title, entry in protocol["sites"].items()}
    print(f"\n{delta_tables.delta_report(results, perturbation, sites)}\n")
    from jaxprobe import delta_plots, figures  # slow to import

    files = {
        f"{RESULTS}.csv": outputs.csv_bytes(delta_records.CSV_COLUMNS, delta_records.delta_rows(results)),
        f"{RESULTS}.json": outputs.json_bytes(delta_records.delta_json(results, manifest)),
        **figures.image_files({PICTURE: delta_plots.percentage_panels(results)}),
        RUN_LOG: outputs.json_bytes(
            provenance.run_log(config, machine, time.monotonic() - started, controls_origin=controls.origin)
        ),
    }
    for path in outputs.write_files(config.out, files):
        print(f"wrote {path}")
    store.remove()


def _open_models(config: DeltaPctRun) -> "dict[str, LoadedModel]":
    from jaxprobe import loading

    sources = {"mamba": config.mamba, "gpt2": config.gpt2}
    if SHIPPED in sources.values():
        print(shipped.notice())
    return {
        loading.TITLES[key]: loading.open_model(source, key, config.compute)
        for key, source in sources.items()
    }


def main() -> int:
    """Entry point of `python -m jaxprobe.delta_pct` and of `jaxprobe-delta-pct`."""
    return cli.run(run, delta_pct_flags, __doc__)


if __name__ == "__main__":
    sys.exit(main())
