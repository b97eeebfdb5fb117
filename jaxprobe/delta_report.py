"""The report of `jaxprobe.delta_pct --protocol=seed`: the seed's picture with a caption, tables, the answer.

Loads matplotlib; import it when there is something to draw.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprobe import delta_plots
from jaxprobe.array_typing import np
from jaxprobe.delta_records import Results, averages, decomposition
from jaxprobe.delta_tables import heading
from jaxprobe.figures import render
from jaxprobe.paired import difference_words, median_interval
from jaxprobe.percentage import Decomposition, Terms
from jaxprobe.report.content import Cell, Column, Figure, Report, Table
from jaxprobe.run_configs import Perturbation

PAGE = "delta_pct_report.html"
_MEASURES = {  # attribute of a change -> heading, meaning, entry of `averages`
    "delta_nats": (
        "nats", "change of the negative log-likelihood per token: the measure to compare",
        "delta_nats_per_token",
    ),
    "percentage": ("%", "percentage change of perplexity = 100 (exp(nats) − 1)", "percentage_change"),
    "absolute": ("abs", "absolute change of perplexity = baseline × % / 100", "absolute_change"),
    "baseline_ppl": ("baseline", "perplexity before the edit", "baseline_ppl"),
}  # fmt: skip


def delta_report(
    results: Results,
    perturbation: Perturbation,
    sites: Mapping[str, tuple[str, str]],
    manifest: Mapping[str, Any],
) -> Report:
    """Everything a run of the seed's protocol found, drawn and told.

    Args:
      results: of one or both models.
      perturbation: what was done.
      sites: model title -> where units were chosen, and where they were edited.
      manifest: of the run.
    """
    accounting = decomposition(results)
    return Report(
        title="Perplexity when delta-sensitive units are perturbed",
        question=(
            "How much worse does each model predict factual sentences when the units that vary most "
            "between them are perturbed, and how much of the percentages is the denominator?"
        ),
        answer=_answer(results, accounting),
        protocol=_protocol(perturbation, sites),
        figures=[_figure(results)],
        tables=list(_tables(results, accounting)),
        manifest=manifest,
    )


def _figure(results: Results) -> Figure:
    return Figure(
        "delta_percentage_analysis",
        "Changes of perplexity, relation by relation",
        "Top left: if a low baseline made for a high percentage, points would fall from left to right (r "
        "is the correlation). Top right and bottom right: the change of perplexity of each relation, "
        "absolute and in percent; bars to the left of zero are relations that got better. Bottom left: the "
        "baselines, a point a relation.",
        f"Four panels of baselines and changes of perplexity by relation, for {' and '.join(results)}.",
        render(delta_plots.percentage_panels(results)),
    )


def _tables(results: Results, accounting: Decomposition | None) -> Iterator[Table]:
    relations = list(next(iter(results.values())))
    means = {title: averages([each.erased for each in scores.values()]) for title, scores in results.items()}
    yield Table(
        "delta_relations",
        "Each relation",
        "Its own sentences before and after the edit.",
        _columns(results),
        [[relation, *_changes(results, relation, "erased")] for relation in relations],
        [["mean", *(means[title][entry] for _, _, entry in _MEASURES.values() for title in results)]],
    )
    if accounting is not None:
        yield _accounting_table(accounting, relations)
    yield Table(
        "delta_controls",
        "Control texts under the same edits",
        "Texts of no relation, with each relation's units edited: how specific the units are to it.",
        _columns(results, "units of"),
        [[relation, *_changes(results, relation, "control")] for relation in relations],
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


def _columns(results: Results, first: str = "relation") -> list[Column]:
    return [
        Column(first),
        *(
            Column(f"{label}, {title}", meaning)
            for label, meaning, _ in _MEASURES.values()
            for title in results
        ),
    ]


def _changes(results: Results, relation: str, texts: str) -> list[Cell]:
    return [
        float(getattr(getattr(results[title][relation], texts), name))
        for name in _MEASURES
        for title in results
    ]


def _accounting_table(accounting: Decomposition, relations: Sequence[str]) -> Table:
    def logs(terms: Terms | None) -> list[Cell]:
        if terms is None:
            return [None] * 3
        return [terms.log_percentage_ratio, terms.log_absolute_ratio, terms.log_baseline_ratio]

    return Table(
        "delta_accounting",
        "What the percentages are made of",
        "Logarithm of the ratio of percentages = that of the absolute changes + that of the baselines, "
        "exactly. This is accounting, not a cause. No value: the logarithm does not exist, for the reason "
        "given.",
        [
            Column("relation"),
            Column("log % ratio", "log(% of the first model / % of the second)"),
            Column("log abs ratio", "log(absolute change of the first / of the second)"),
            Column("log baseline ratio", "log(baseline of the second / of the first)"),
            Column("left out", "why there are no logarithms"),
        ],
        [[name, *logs(accounting.terms.get(name)), accounting.left_out.get(name, "")] for name in relations],
        [["mean", *logs(accounting.mean), ""]],
    )


def _answer(results: Results, accounting: Decomposition | None) -> str:
    nats = {
        title: np.array([each.erased.delta_nats for each in scores.values()])
        for title, scores in results.items()
    }
    if accounting is None:
        ((title, values),) = nats.items()
        return (
            f"The edit costs {title} {values.mean():.3g} nats per token on average over {len(values)} "
            "relations. With one model there is nothing to compare."
        )
    first, second = nats
    difference = nats[first] - nats[second]
    confidence = difference_words(median_interval(difference))
    return (
        f"The edit costs {first} {nats[first].mean():.3g} and {second} {nats[second].mean():.3g} nats per "
        f"token on average; {first} is the more sensitive on {(difference > 0).sum()} of {len(difference)} "
        f"relations{confidence}. {_share(first, second, accounting)} As units are chosen on the very "
        "sentences that are measured, and against no other units, this cannot say why; the protocol matched "
        "can."
    )


def _share(first: str, second: str, accounting: Decomposition) -> str:
    mean, count = accounting.mean, len(accounting.terms)
    if mean is None:
        return "There is nothing to decompose: on no relation do both models get worse."
    times = (
        f"In percent {first} changes {math.exp(mean.log_percentage_ratio):.3g} times as much as {second} "
        f"({count} of {count + len(accounting.left_out)} relations)"
    )
    if accounting.share is None:
        return f"{times}: no excess that a lower baseline could explain."
    return f"{times}, and the denominator's share of that excess is {100 * accounting.share:.1f}%."


def _protocol(perturbation: Perturbation, sites: Mapping[str, tuple[str, str]]) -> list[str]:
    return [
        " ".join(heading(perturbation, sites).split()),
        "Perplexity is exp of the mean negative log-likelihood per token over all of a relation's "
        "sentences, each sentence alone. The percentage has no baseline in it: it is 100 (exp(nats) − 1). "
        "The absolute change has.",
        "The interval is one for the median difference over relations like these, of order statistics: it "
        "assumes only that the relations are independent. With few sentences a relation it is wide for "
        "good reason.",
    ]
