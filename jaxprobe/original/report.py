"""The report of `jaxprobe.delta_pct --protocol=seed`: the seed's picture with a caption, tables, the answer.

Loads matplotlib; import it when there is something to draw.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprobe.array_typing import np
from jaxprobe.figures import render
from jaxprobe.original import plots as delta_plots
from jaxprobe.original.intervals import TERMS, difference, intervals, logarithms, means, over_relations
from jaxprobe.original.records import Results, decomposition
from jaxprobe.original.tables import heading
from jaxprobe.report.content import Cell, Column, Figure, Report, Table
from jaxprobe.report.estimates import estimate_cells, estimate_columns, few_words
from jaxprobe.run_configs import Perturbation
from jaxprobe.scope import Scope
from jaxprobe.statistics.inference import FEWEST, LEVEL, Estimate
from jaxprobe.statistics.paired import difference_words, median_interval
from jaxprobe.statistics.percentage import Decomposition

PAGE = "delta_pct_report.html"
_LIMIT = "units being chosen on the very sentences measured, against no other units, this cannot say why"
_MEASURES = {  # attribute of a change -> heading, meaning
    "delta_nats": ("nats", "change of the negative log-likelihood per token: the measure to compare"),
    "percentage": ("%", "percentage change of perplexity = 100 (exp(nats) − 1)"),
    "absolute": ("abs", "absolute change of perplexity = baseline × % / 100"),
    "baseline_ppl": ("baseline", "perplexity before the edit"),
}
# Model title -> relation -> measure -> its estimate.
_Found = Mapping[str, Mapping[str, Mapping[str, Estimate]]]


def delta_report(
    results: Results,
    scope: Scope,
    perturbation: Perturbation,
    sites: Mapping[str, tuple[str, str]],
    manifest: Mapping[str, Any],
) -> Report:
    """Everything a run of the seed's protocol found, drawn and told.

    Args:
      results: of one or both models.
      scope: what the answer holds for.
      perturbation: what was done.
      sites: model title -> where units were chosen, and where they were edited.
      manifest: of the run.
    """
    accounting = decomposition(results)
    found = {
        title: {name: intervals(each.erased, each.facts, name) for name, each in scores.items()}
        for title, scores in results.items()
    }
    return Report(
        title=f"What it costs {' and '.join(results)} when {scope.edit}",
        question=(
            "How much worse does each model predict factual sentences when the units that vary most "
            "between them are perturbed, and how much of the percentages is the denominator?"
        ),
        answer=_answer(results, scope, accounting),
        protocol=[scope.paragraph, *_protocol(perturbation, sites)],
        figures=[_figure(results, found)],
        tables=list(_tables(results, found, accounting)),
        manifest=manifest,
    )


def _figure(results: Results, found: _Found) -> Figure:
    return Figure(
        "delta_percentage_analysis",
        "Changes of perplexity, relation by relation",
        "Top left: if a low baseline made for a high percentage, points would fall from left to right (r "
        "is the correlation). Top right and bottom right: the change of perplexity of each relation, "
        "absolute and in percent; bars to the left of zero are relations that got better. Bottom left: the "
        "baselines, a point a relation. Black lines in all four are 95% intervals over a relation's "
        "sentences; relations with fewer than five have none.",
        f"Four panels of baselines and changes of perplexity by relation, for {' and '.join(results)}.",
        render(delta_plots.percentage_panels(results, found)),
    )


def _tables(results: Results, found: _Found, accounting: Decomposition | None) -> Iterator[Table]:
    relations = list(next(iter(results.values())))
    few = few_words([name for name in relations if _facts(results, name) < FEWEST], len(relations))
    pair = list(results.values()) if len(results) == 2 else []
    rows: list[list[Cell]] = []
    for name in relations:
        row: list[Cell] = [name, _facts(results, name), *_of_measures(found, name)]
        if pair:
            first, second = (scores[name].facts for scores in pair)
            row += estimate_cells(difference(first, second, name))
        rows.append(row)
    mean: list[Cell] = ["mean", None]
    mean += _of_measures({title: {"mean": means(each)} for title, each in found.items()}, "mean")
    columns = [Column("relation"), Column("sentences", "how many"), *_columns(results)]
    if pair:
        first, second = ([each["delta_nats"].value for each in rows.values()] for rows in found.values())
        mean += estimate_cells(over_relations(list(np.subtract(first, second))))
        columns += estimate_columns("nats, difference", " less ".join(results), LEVEL)
    yield Table(
        "delta_relations",
        "Each relation",
        "Its own sentences before and after the edit. Intervals are over its sentences, with the units as "
        f"they are; those of means are over relations. {few}",
        columns,
        rows,
        [mean],
    )
    if accounting is not None:
        yield _accounting_table(results, accounting, few)
    controls = {
        title: {name: intervals(each.control, each.controls, "controls") for name, each in scores.items()}
        for title, scores in results.items()
    }
    yield Table(
        "delta_controls",
        "Control texts under the same edits",
        "Texts of no relation, with each relation's units edited: how specific the units are to it. "
        "Intervals are over these texts.",
        [Column("units of"), *_columns(results)],
        [[name, *_of_measures(controls, name)] for name in relations],
    )
    yield Table(
        "delta_units",
        "The chosen units",
        "Those whose average over a sentence varies most between the relation's sentences, in that order.",
        [Column("relation"), *(Column(title, "numbers of the units, from 0") for title in results)],
        [
            [relation, *(" ".join(map(str, results[title][relation].chosen.units)) for title in results)]
            for relation in relations
        ],
    )


def _facts(results: Results, name: str) -> int:
    return len(next(iter(results.values()))[name].facts.tokens)


def _columns(results: Results) -> list[Column]:
    return [
        column
        for label, meaning in _MEASURES.values()
        for title in results
        for column in estimate_columns(f"{label}, {title}", meaning, LEVEL)
    ]


def _of_measures(found: _Found, name: str) -> list[Cell]:
    return [
        cell
        for measure in _MEASURES
        for rows in found.values()
        for cell in estimate_cells(rows[name][measure])
    ]


def _accounting_table(results: Results, accounting: Decomposition, few: str) -> Table:
    first, second = results.values()
    known = accounting.terms
    logs = {
        name: logarithms(terms, first[name].facts, second[name].facts, name) for name, terms in known.items()
    }
    mean = [over_relations([getattr(each, term) for each in known.values()]) for term in TERMS if known]
    labels = (
        ("log % ratio", "log(% of the first model / % of the second)"),
        ("log abs ratio", "log(absolute change of the first / of the second)"),
        ("log baseline ratio", "log(baseline of the second / of the first)"),
    )

    def cells(estimates: Sequence[Estimate]) -> list[Cell]:
        return [cell for each in estimates or [None] * len(TERMS) for cell in estimate_cells(each)]

    return Table(
        "delta_accounting",
        "What the percentages are made of",
        "Logarithm of the ratio of percentages = that of the absolute changes + that of the baselines, "
        "exactly. This is accounting, not a cause. No value: the logarithm does not exist, for the reason "
        f"given. Intervals are over sentences; those of the means are over relations. {few}",
        [
            Column("relation"),
            *(column for label in labels for column in estimate_columns(*label, LEVEL)),
            Column("left out", "why there are no logarithms"),
        ],
        [[name, *cells(logs.get(name, ())), accounting.left_out.get(name, "")] for name in first],
        [["mean", *cells(mean), ""]],
    )


def _answer(results: Results, scope: Scope, accounting: Decomposition | None) -> str:
    nats = {
        title: np.array([each.erased.delta_nats for each in scores.values()])
        for title, scores in results.items()
    }
    if accounting is None:
        ((title, values),) = nats.items()
        confidence = difference_words(median_interval(values), "median")
        cost = (
            f"the edit costs {title} {values.mean():.3g} nats per token on average over {len(values)} "
            f"relations{confidence}."
        )
        return f"{scope.about(cost)} With one model there is nothing to compare; {_LIMIT}."
    first, second = nats
    difference = nats[first] - nats[second]
    middle = median_interval(difference)
    chance = ", which can be chance" if middle.low <= 0 <= middle.high else ""
    cost = (
        f"the edit costs {first} {nats[first].mean():.3g} and {second} {nats[second].mean():.3g} nats per "
        f"token on average; {first} is the more sensitive on {(difference > 0).sum()} of {len(difference)} "
        f"relations{difference_words(middle)}{chance}."
    )
    return f"{scope.about(cost)} {_share(first, second, accounting)}; {_LIMIT}."


def _share(first: str, second: str, accounting: Decomposition) -> str:
    mean, count = accounting.mean, len(accounting.terms)
    if mean is None:
        return "There is nothing to decompose, as on no relation do both models get worse"
    times = (
        f"In percent {first} changes {math.exp(mean.log_percentage_ratio):.3g} times as much as {second} "
        f"({count} of {count + len(accounting.left_out)} relations)"
    )
    if accounting.share is None:
        return f"{times}, which is no excess that a lower baseline could explain"
    return f"{times}, and the denominator's share of that excess is {100 * accounting.share:.1f}%"


def _protocol(perturbation: Perturbation, sites: Mapping[str, tuple[str, str]]) -> list[str]:
    return [
        " ".join(heading(perturbation, sites).split()),
        "Perplexity is exp of the mean negative log-likelihood per token over all of a relation's "
        "sentences, each sentence alone. The percentage has no baseline in it: it is 100 (exp(nats) − 1). "
        "The absolute change has.",
        "Units are chosen on the very sentences that are measured, and stand against no other units, so that "
        "the cost on them is no estimate for new sentences; delta_pct --protocol=matched has the controls.",
        "The interval is one for the median difference over relations like these, of order statistics: it "
        "assumes only that the relations are independent. With few sentences a relation it is wide for "
        "good reason.",
    ]
