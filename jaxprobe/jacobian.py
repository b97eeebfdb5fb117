"""Exact Jacobians of both models, layer by layer, beside the original study's finite differences.

For every layer l and text, the Jacobian of the map from block_out of l to the logits at the last token: its
Frobenius norm and largest singular value, exactly; the finite-difference sensitivity that estimates the same
thing by sampling; Lipschitz ratios, effective rank and output variance. With --method=matrix_free, for models
too large for that, estimates with their errors in place of the exact numbers. Writes JSON, CSV and pictures.
A run that was killed resumes, and writes the same bytes; when and where it ran stands in a log of its own.

What every number means: docs/definitions.md.
"""

import contextlib
import sys
import time
from typing import TYPE_CHECKING

from jaxprobe import claim, cli, outputs, provenance, relations, runtime, texts
from jaxprobe.flags import jacobian as jacobian_flags
from jaxprobe.run_configs import DEFAULT_NUM_TEXTS, JacobianRun

if TYPE_CHECKING:
    from jaxprobe.jacobians.run import Session
    from jaxprobe.texts import Texts

RESULTS = "gradient_amplification_results_all_layers"
RUN_LOG = "jacobian_run.log"
SPECTRA = "jacobian_spectra.npz"


def run(config: JacobianRun) -> None:
    """Measures, prints the tables and writes the files; of several processes, the first does."""
    started = time.monotonic()
    if config.cluster is None:
        with claim.claim(config.out):
            return _measure(_prepare(config), started)
    runtime.configure(config.compute, config.cluster)
    from jaxprobe import devices  # after JAX is set up
    from jaxprobe.jacobians import run as jacobian_run

    devices.meet()
    if not devices.is_first():
        return jacobian_run.assist(config)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claim.claim(config.out))
            session = _prepare(config)
        except Exception as error:  # of any kind: the others wait for a word
            devices.broadcast({"error": cli.one_line(error) or repr(error)})
            raise
        devices.broadcast({"texts": session.source.texts, "plan": session.store.plan})
        _measure(session, started)


def _prepare(config: JacobianRun) -> "Session":
    source = _texts(config)
    machine = runtime.configure(config.compute)
    from jaxprobe.jacobians import run as jacobian_run  # after JAX is set up

    return jacobian_run.prepare(config, source, machine)


def _measure(session: "Session", started: float) -> None:
    from jaxprobe.jacobians import estimate_tables, records, tables
    from jaxprobe.jacobians import run as jacobian_run
    from jaxprobe.jacobians.answer import answer

    config, source, store = session.config, session.source, session.store
    tokens, asked = session.tokens, session.asked
    estimated, studies = {}, {}
    if config.method == "exact":
        measured = jacobian_run.measure_all(session)
        if config.epsilon_sweep:
            studies = jacobian_run.sweep_epsilons(asked, tokens, measured, store, config)
        shown = tables.sensitivity_report(
            measured, config.metric, studies, config.epsilon, config.site, source.groups
        )
    else:
        estimated = {
            key: jacobian_run.estimate(key, model, tokens[key], store, config) for key, model in asked.items()
        }
        measured = {key: model.sensitivity for key, model in estimated.items()}
        shown = estimate_tables.estimate_report(estimated, config.metric, source.groups)
    print(f"\n{shown}\n")
    num_layers = {key: model.lm.config.num_layers for key, model in session.loaded.items()}
    results = records.sensitivity_json(
        measured,
        num_layers,
        source.texts,
        {**session.manifest, "plan": store.plan},
        metric=config.metric,
        site=config.site,
        studies=studies,
        groups=source.groups,
        answer=answer(measured, config.metric, config.site, source.groups, estimated),
    )
    rows = [*records.sensitivity_rows(measured)]
    if estimated:
        results = estimate_tables.with_estimates(results, estimated)
        rows += estimate_tables.estimate_rows(estimated)
    from jaxprobe.jacobians import report as jacobian_report  # draws: slow to import
    from jaxprobe.report.files import files as report_files

    report = jacobian_report.jacobian_report(
        measured,
        config,
        source.texts,
        {**session.manifest, "plan": store.plan},
        words=jacobian_run.words(asked, tokens),
        estimated=estimated,
        studies=studies,
        groups=source.groups,
    )
    files = {
        f"{RESULTS}.json": outputs.json_bytes(results),
        f"{RESULTS}.csv": outputs.csv_bytes(records.CSV_COLUMNS, rows),
        **({SPECTRA: outputs.npz_bytes(records.spectra_arrays(measured, studies))} if not estimated else {}),
        **report_files(report, jacobian_report.PAGE if config.report else None),
        RUN_LOG: outputs.json_bytes(
            provenance.run_log(
                config, session.machine, time.monotonic() - started, texts_origin=source.origin
            )
        ),
    }
    written = outputs.write_files(config.out, files, owned={SPECTRA} | jacobian_report.ALL_FILES)
    print(outputs.told(config.out, written))
    store.remove()


def _texts(config: JacobianRun) -> "Texts":
    if config.text:
        source = texts.Texts(config.text, "the texts given by --text")
        return texts.take(source, config.num_texts, len(config.text))
    source = texts.read_texts(config.texts) if config.texts else relations.relation_texts()
    return texts.take(source, config.num_texts, DEFAULT_NUM_TEXTS)


def main() -> int:
    """Entry point of `python -m jaxprobe.jacobian` and of `jaxprobe-jacobian`."""
    return cli.run(run, jacobian_flags, __doc__)


if __name__ == "__main__":
    sys.exit(main())
