"""Console tables of `jaxprobe.delta_pct`: strings from its summary, nothing printed here."""

from collections.abc import Callable, Mapping, Sequence

from jaxprobe.console import answered, number, table
from jaxprobe.original.intervals import TERMS
from jaxprobe.original.summary import Accounting, Summary
from jaxprobe.original.verdict import answer
from jaxprobe.run_configs import Perturbation
from jaxprobe.scope import done
from jaxprobe.statistics.inference import LEVEL, Estimate

_LEGEND = """\
  nats  change of the negative log-likelihood per token = log(perturbed / baseline): the measure to compare
  %     percentage change of perplexity = 100 (exp(nats) - 1): the baseline has no part in it
  abs   absolute change of perplexity = baseline x % / 100: the baseline does"""


def delta_report(summary: Summary, perturbation: Perturbation, sites: Mapping[str, tuple[str, str]]) -> str:
    """Every console table of the percentage analysis, and the answer.

    Args:
      summary: of one or both models.
      perturbation: what was done.
      sites: model title -> where units were chosen, and where they were edited.
    """
    sections = [f"{heading(perturbation, sites)}\n{_LEGEND}", _values(summary)]
    if summary.accounting is not None:
        sections.append(_ratios(summary, summary.accounting))
    return "\n\n".join([*sections, _controls(summary), answered(answer(summary))])


def heading(perturbation: Perturbation, sites: Mapping[str, tuple[str, str]]) -> str:
    """What was done: the edit, the protocol and its sites; arguments as `delta_report`."""
    where = "; ".join(f"{title}: chosen at {read}, edited at {edit}" for title, (read, edit) in sites.items())
    one = perturbation.top_k == 1
    units = "1 unit" if one else f"{perturbation.top_k} units"
    which = "the one that varies most between the sentences, is" if one else (
        "those that vary most between the sentences, are"
    )  # fmt: skip
    return (
        f"Perplexity of each relation's sentences before and after an edit: {units} of layer "
        f"{perturbation.layer},\n{which} {done(perturbation)}.\n"
        f"Protocol {perturbation.protocol}. {where}."
    )


def _values(summary: Summary) -> str:
    columns = {"nats": "delta_nats", "%": "percentage", "abs": "absolute", "baseline": "baseline_ppl"}
    header = ["relation", *(f"{name} {_initial(title)}" for name in columns for title in summary.relations)]
    rows = [
        [relation, *(
            number(found[relation].erased[measure].value)
            for measure in columns.values() for found in summary.relations.values()
        )]
        for relation in summary.names
    ]  # fmt: skip
    over = [found[measure] for measure in columns.values() for found in summary.means.values()]
    rows += _mean_rows(over, number)
    initials = ", ".join(f"{_initial(title)}: {title}" for title in summary.relations)
    return (
        f"Each relation ({initials}), and their mean with its {100 * LEVEL:g}% interval over relations; the "
        f"intervals of\neach are in the files\n{table(header, rows)}"
    )


def _mean_rows(over: Sequence[Estimate], shown: Callable[[float], str]) -> list[list[str]]:
    """Means over relations, and the ends of their intervals."""

    def row(label: str, ends: Sequence[float | None]) -> list[str]:
        return [label, *("-" if end is None else shown(end) for end in ends)]

    return [
        row("mean", [each.value for each in over]),
        row("  from", [each.low for each in over]),
        row("  to", [each.high for each in over]),
    ]


def _ratios(summary: Summary, accounting: Accounting) -> str:
    first, second = summary.relations
    rows = []
    for relation in summary.names:
        a, b = (found[relation].scores.erased for found in summary.relations.values())
        terms = accounting.relations.get(relation)
        rows.append([
            relation, _ratio(a.delta_nats, b.delta_nats), _ratio(a.absolute, b.absolute),
            _ratio(b.baseline_ppl, a.baseline_ppl),
            *("-" if terms is None else _log(terms[term].value) for term in TERMS),
        ])  # fmt: skip
    if accounting.mean is not None:
        means = _mean_rows([accounting.mean[term] for term in TERMS], _log)
        rows += [[label, "", "", "", *cells] for label, *cells in means]
    title = (
        f"Ratios: nats and abs, {first} / {second}; baseline, {second} / {first}. Where both models get "
        "worse,\nlog % ratio = log abs ratio + log baseline ratio, exactly. This is accounting, not a cause."
    )
    header = ["relation", "nats", "abs", "baseline", "log % ratio", "= log abs", "+ log baseline"]
    left_out = [f"{name} has no logarithms, as {why}" for name, why in accounting.exact.left_out.items()]
    return "\n".join([title, table(header, rows), *left_out])


def _controls(summary: Summary) -> str:
    columns = {"nats": "delta_nats", "%": "percentage", "perturbed": "perturbed_ppl"}
    header = ["units of", *(f"{name} {_initial(title)}" for name in columns for title in summary.relations)]
    rows = [
        [relation, *(
            number(getattr(found[relation].scores.control, attribute))
            for attribute in columns.values() for found in summary.relations.values()
        )]
        for relation in summary.names
    ]  # fmt: skip
    return (
        "Control texts with the same units edited (baseline perplexity: "
        f"{', '.join(f'{title} {number(each)}' for title, each in control_baselines(summary).items())})\n"
        + table(header, rows)
    )


def control_baselines(summary: Summary) -> dict[str, float]:
    """Model title -> perplexity of the control texts before any edit."""
    return {
        title: next(iter(found.values())).control["baseline_ppl"].value
        for title, found in summary.relations.items()
    }


def _initial(title: str) -> str:
    return title[0]


def _log(value: float) -> str:
    return f"{value:+.3f}"


def _ratio(a: float, b: float) -> str:
    return number(a / b) if min(a, b) > 0 else "-"
