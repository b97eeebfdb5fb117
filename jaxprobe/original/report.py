"""The report of `jaxprobe.delta_pct --protocol=seed`: a picture with a caption, tables, the answer.

Loads matplotlib; import it when there is something to draw.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprobe.console import number
from jaxprobe.figures import render
from jaxprobe.original.columns import FOOT, Filled, estimates, filled_table
from jaxprobe.original.intervals import TERMS
from jaxprobe.original.plots import change_panels
from jaxprobe.original.summary import Accounting, Summary
from jaxprobe.original.tables import control_baselines, heading
from jaxprobe.original.verdict import answer
from jaxprobe.report.content import Column, Figure, Report, Table
from jaxprobe.report.estimates import few_words
from jaxprobe.report.files import file_names
from jaxprobe.run_configs import Perturbation
from jaxprobe.scope import Scope
from jaxprobe.statistics.inference import FEWEST

PAGE = "delta_pct_report.html"
FIGURE = "delta_percentage_analysis"
TABLES = (
    "delta_relations", "delta_perplexity", "delta_baselines", "delta_accounting", "delta_controls",
    "delta_units",
)  # fmt: skip
ALL_FILES = file_names(PAGE, [FIGURE], TABLES)
_NATS = "change of the negative log-likelihood per token: the measure to compare"
_PERCENT = "percentage change of perplexity = 100 (exp(nats) − 1)"
_OVER = (
    "Intervals are over a relation's sentences, with the units as they are; those of means, over relations."
)
_TERMS = {  # term -> heading, meaning
    "log_percentage_ratio": ("log % ratio", "log(% of the first model / % of the second)"),
    "log_absolute_ratio": ("log abs ratio", "log(absolute change of the first / of the second)"),
    "log_baseline_ratio": ("log baseline ratio", "log(baseline of the second / of the first)"),
}


def delta_report(
    summary: Summary,
    scope: Scope,
    perturbation: Perturbation,
    sites: Mapping[str, tuple[str, str]],
    manifest: Mapping[str, Any],
) -> Report:
    """Everything a run of the seed protocol found, drawn and told.

    Args:
      summary: of one or both models.
      scope: what the answer holds for.
      perturbation: what was done.
      sites: model title -> where units were chosen, and where they were edited.
      manifest: of the run.
    """
    first, second = answer(summary)
    return Report(
        title=f"What it costs {' and '.join(summary.relations)} when {scope.edit}",
        question=(
            "How much worse does each model predict factual sentences when the units that vary most "
            "between them are perturbed, and how much of the percentages is the denominator?"
        ),
        answer=f"{scope.about(first)} {second}",
        protocol=[scope.paragraph, *_protocol(perturbation, sites)],
        figures=[_figure(summary)],
        tables=list(_tables(summary)),
        manifest=manifest,
    )


def _figure(summary: Summary) -> Figure:
    return Figure(
        FIGURE,
        "What the edit costs, relation by relation",
        "Left, from above: the cost in nats per token, the measure to compare; the same as percentage and as "
        "absolute change of perplexity; bars to the left of zero are relations that got better. Right: cost "
        "and percentage against the baseline, where points would fall from left to right if a low baseline "
        "made for a high cost (r: the correlation over n relations, with Fisher's 95% interval, which takes "
        "both to be normal), and the baselines, a point a relation. Black lines are 95% intervals over a "
        "relation's sentences; relations with fewer than five have none.",
        "Six panels of costs, changes of perplexity and baselines by relation, for "
        f"{' and '.join(summary.relations)}.",
        render(change_panels(summary)),
    )


def _tables(summary: Summary) -> Iterator[Table]:
    names = summary.names
    few = few_words([name for name in names if summary.sentences(name) < FEWEST], len(names), "sentences")
    relation = Filled(Column("relation"), names, FOOT)
    sentences = Filled(
        Column("sentences", "how many"), [summary.sentences(name) for name in names], [None] * len(FOOT)
    )
    difference = [] if summary.difference is None else estimates(
        "difference", " less ".join(summary.relations), list(summary.differences.values()), summary.difference
    )  # fmt: skip
    yield filled_table(
        "delta_relations",
        "Each relation",
        f"Change in nats per token of its own sentences by the edit. {_OVER} {few}",
        [relation, sentences, *_erased(summary, "delta_nats", "nats", _NATS), *difference],
    )
    yield filled_table(
        "delta_perplexity",
        "The same in perplexity",
        f"In percent, in which the baseline has no part, and absolute, in which it has. {_OVER} {few}",
        [
            relation,
            *_erased(summary, "percentage", "%", _PERCENT),
            *_erased(summary, "absolute", "abs", "absolute change of perplexity = baseline × % / 100"),
        ],
    )
    yield filled_table(
        "delta_baselines",
        "Perplexity before the edit",
        f"Of the same sentences. {_OVER} {few}",
        [relation, *_erased(summary, "baseline_ppl", "baseline", "perplexity before the edit")],
    )
    if summary.accounting is not None:
        yield _accounting_table(summary, summary.accounting, few)
    baselines = (f"{title} {number(each)}" for title, each in control_baselines(summary).items())
    yield filled_table(
        "delta_controls",
        "Control texts under the same edits",
        "Texts of no relation, with each relation's units edited: how specific the units are to it. Their "
        f"perplexity before: {', '.join(baselines)}. Intervals are over these texts.",
        [
            Filled(Column("units of"), names),
            *_control(summary, "delta_nats", "nats", _NATS),
            *_control(summary, "percentage", "%", _PERCENT),
        ],
    )
    yield filled_table(
        "delta_units",
        "The chosen units",
        "Those whose average over a sentence varies most between the relation's sentences, in that order.",
        [
            Filled(Column("relation"), names),
            *(
                Filled(
                    Column(title, "numbers of the units, from 0"),
                    [" ".join(map(str, each.scores.chosen.units)) for each in found.values()],
                )
                for title, found in summary.relations.items()
            ),
        ],
    )


def _erased(summary: Summary, measure: str, label: str, meaning: str) -> list[Filled]:
    return [
        column
        for title, found in summary.relations.items()
        for column in estimates(
            f"{label}, {title}",
            meaning,
            [each.erased[measure] for each in found.values()],
            summary.means[title][measure],
        )
    ]


def _control(summary: Summary, measure: str, label: str, meaning: str) -> list[Filled]:
    return [
        column
        for title, found in summary.relations.items()
        for column in estimates(
            f"{label}, {title}", meaning, [each.control[measure] for each in found.values()]
        )
    ]


def _accounting_table(summary: Summary, accounting: Accounting, few: str) -> Table:
    names, left_out = summary.names, accounting.exact.left_out
    known = [accounting.relations.get(name) for name in names]
    terms = [
        column
        for term in TERMS
        for column in estimates(
            *_TERMS[term],
            [None if each is None else each[term] for each in known],
            None if accounting.mean is None else accounting.mean[term],
        )
    ]
    foot: Sequence[str] = FOOT if accounting.mean else ()
    return filled_table(
        "delta_accounting",
        "What the percentages are made of",
        "Logarithm of the ratio of percentages = that of the absolute changes + that of the baselines, "
        "exactly. This is accounting, not a cause. No value: the logarithm does not exist, for the reason "
        f"given. {_OVER} {few}",
        [
            Filled(Column("relation"), names, foot),
            *terms,
            Filled(
                Column("left out", "why there are no logarithms"),
                [left_out.get(name, "") for name in names],
                [""] * len(foot),
            ),
        ],
    )


def _protocol(perturbation: Perturbation, sites: Mapping[str, tuple[str, str]]) -> list[str]:
    return [
        " ".join(heading(perturbation, sites).split()),
        "Perplexity is exp of the mean negative log-likelihood per token over all of a relation's "
        "sentences, each sentence alone. The percentage has no baseline in it: it is 100 (exp(nats) − 1). "
        "The absolute change has.",
        "Units are chosen on the very sentences that are measured, and stand against no other units, so that "
        "the cost on them is no estimate for new sentences; delta_pct --protocol=matched has the controls.",
        "The interval of a median is one for the median over relations like these, of order statistics: it "
        "assumes only that the relations are independent. With few relations it is wide for good reason. "
        "Other intervals are a studentised bootstrap's, each end no nearer than Student's t puts it.",
    ]
