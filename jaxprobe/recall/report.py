"""The report of `jaxprobe.factual_recall`: its picture with a caption, its tables, the answer.

Loads matplotlib; import it when there is something to draw.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxprobe.array_typing import np
from jaxprobe.figures import render
from jaxprobe.original.intervals import intervals, over_relations
from jaxprobe.recall.plots import recall_panels
from jaxprobe.recall.records import RelationRecall, Results, Trend, greedy, patterns
from jaxprobe.report.content import Cell, Column, Figure, Report, Table
from jaxprobe.report.estimates import estimate_cells, estimate_columns, few_words
from jaxprobe.scope import Scope
from jaxprobe.statistics.inference import FEWEST, LEVEL, Estimate
from jaxprobe.statistics.paired import difference_words, median_interval

PAGE = "factual_recall_report.html"
_MEASURES = {
    "nats": "change of the negative log-likelihood per token: the measure to compare",
    "%": "percentage change of perplexity = 100 (exp(nats) − 1)",
    "ppl": "perplexity of the relation's sentences before the edit",
    "other nats": "nats of texts of no relation, under the same edit",
    "other %": "percentage change of those",
    "selectivity": "% / other %, as the study defines it: of little use where other % is near 0",
    "forced before": "% of the object's tokens that are the likeliest ones, given the true text before them",
    "forced after": "the same with the units edited",
    "greedy before": "% of facts whose object the model writes out whole",
    "greedy after": "the same with the units edited",
}
_NO_ENDS: list[Cell] = [None, None]
_WITHOUT_ENDS = ("selectivity", "forced before", "forced after")


def recall_report(results: Results, scope: Scope, heading: str, manifest: Mapping[str, Any]) -> Report:
    """Everything a run found, drawn and told.

    Args:
      results: of each model.
      scope: what the answer holds for. heading: what was done to the models.
      manifest: of the run.
    """
    return Report(
        title=f"Factual recall when {scope.edit}",
        question=(
            "When the units that vary most between a relation's sentences are perturbed, how much worse does "
            "each model predict these sentences and others, and does it still recall the facts?"
        ),
        answer=scope.about(" ".join(_answer(title, relations) for title, relations in results.items())),
        protocol=[scope.paragraph, *_protocol(heading)],
        figures=[_figure(results)],
        tables=list(_tables(results)),
        manifest=manifest,
    )


def _figure(results: Results) -> Figure:
    return Figure(
        "factual_recall",
        "Cost and recall, relation by relation",
        "Left: what the edit costs on the relation whose units were chosen (dot) and on texts of no relation "
        "(ring); the further the dot lies to the right of its ring, the more selective the edit. Right: the "
        "share of the relation's objects that the model writes out whole, before the edit (ring) and with it "
        "(dot). Black lines are 95% intervals of the dots: of the cost over a relation's sentences, where "
        "there are five and more, of the share over its facts.",
        f"Dots by relation: nats per token, and share of objects recalled, for {' and '.join(results)}.",
        render(recall_panels(results, _dot_ends(results))),
    )


def _dot_ends(results: Results) -> dict[str, tuple[list[Estimate], list[Estimate | None]]]:
    """Of each model, relation by relation: the cost, and the share of objects written out after the edit."""
    return {
        title: (
            [intervals(e.scores.erased, e.scores.facts, name)["delta_nats"] for name, e in found.items()],
            [entry.greedy and entry.greedy[1] for entry in found.values()],
        )
        for title, found in results.items()
    }


def _tables(results: Results) -> Iterator[Table]:
    first = next(iter(results.values()))
    relations = list(first)
    columns = [
        column
        for label, meaning in _MEASURES.items()
        for title in results
        for column in (
            [Column(f"{label}, {title}", meaning)]
            if label in _WITHOUT_ENDS
            else estimate_columns(f"{label}, {title}", meaning, LEVEL)
        )
    ]
    values = {
        title: {relation: _values(relation, entry) for relation, entry in found.items()}
        for title, found in results.items()
    }
    few = [name for name, entry in first.items() if len(entry.scores.facts.tokens) < FEWEST]
    yield Table(
        "recall_relations",
        "Each relation",
        "Its sentences, texts of no relation, and its facts, before and after its units are edited. "
        "Intervals are over its sentences, with the units as they are, and over the other texts; those of "
        f"greedy recall are exact binomial ones over its facts. {few_words(few, len(relations))}",
        [Column("relation"), *columns],
        [
            [
                relation,
                *(cell for label in _MEASURES for of in values.values() for cell in of[relation][label]),
            ]
            for relation in relations
        ],
    )
    found = {title: _patterns(entries) for title, entries in results.items()}
    yield Table(
        "recall_patterns",
        "Patterns",
        "Over relations: means, with intervals over them (selectivity: the median). Greedy recall is over "
        "all facts together.",
        [
            Column("measure"),
            *(column for title in results for column in estimate_columns(title, "over relations", LEVEL)),
        ],
        [
            [label, *(cell for each in found.values() for cell in each[label])]
            for label in next(iter(found.values()))
        ],
    )
    yield Table(
        "recall_facts",
        "Each fact",
        "What the model writes in the object's place, before the edit and with it: as many tokens as the "
        "object has.",
        [
            Column("relation"),
            Column("object", "what completes the sentence"),
            *(
                Column(f"{label}, {title}", meaning)
                for title in results
                for label, meaning in (
                    ("before", "written without the edit"),
                    ("after", "written with the units edited"),
                    ("recalled", "before and after; or why the fact is not scored"),
                )
            ),
        ],
        [
            [
                relation,
                fact.object,
                *(cell for found in results.values() for cell in _fact(found[relation], i)),
            ]
            for relation, entry in next(iter(results.values())).items()
            for i, fact in enumerate(entry.facts)
        ],
    )


def _values(name: str, entry: RelationRecall) -> dict[str, list[Cell]]:
    erased = intervals(entry.scores.erased, entry.scores.facts, name)
    other = intervals(entry.scores.control, entry.scores.controls, "controls")
    selectivity: list[Cell] = [entry.selectivity]
    forced: list[list[Cell]] = [
        [None if each.teacher_forced is None else 100 * each.teacher_forced] for each in entry.accuracies
    ]
    cells = (
        *(estimate_cells(erased[measure]) for measure in ("delta_nats", "percentage", "baseline_ppl")),
        *(estimate_cells(other[measure]) for measure in ("delta_nats", "percentage")),
        selectivity,
        *forced,
        *_greedy_cells(entry.greedy),
    )
    return dict(zip(_MEASURES, cells, strict=True))


def _greedy_cells(found: tuple[Estimate, Estimate] | None) -> list[list[Cell]]:
    return [estimate_cells(each and each.map(lambda share: 100 * share)) for each in found or (None, None)]


def _patterns(relations: Mapping[str, RelationRecall]) -> dict[str, list[Cell]]:
    found = patterns(relations)
    before, after = _greedy_cells(greedy([fact for entry in relations.values() for fact in entry.facts]))

    def mean(of: str, measure: str) -> list[Cell]:
        changes = [getattr(entry.scores, of) for entry in relations.values()]
        return estimate_cells(over_relations([getattr(change, measure) for change in changes]))

    def correlation(trend: Trend | None) -> float | None:
        return None if trend is None else trend.correlation

    plain: dict[str, Cell] = {
        "selectivity": found.selectivity,
        "relations that get worse": found.worse,
        "most sensitive, in nats": found.most,
        "least sensitive, in nats": found.least,
        "correlation of nats with the baseline": correlation(found.trend_nats),
        "correlation of % with the baseline": correlation(found.trend_percentage),
    }
    without_ends: dict[str, list[Cell]] = {label: [each, *_NO_ENDS] for label, each in plain.items()}
    return {
        "nats": mean("erased", "delta_nats"),
        "nats of other texts": mean("control", "delta_nats"),
        "%": mean("erased", "percentage"),
        "% of other texts": mean("control", "percentage"),
        "greedy before, %": before,
        "greedy after, %": after,
        **without_ends,
    }


def _fact(entry: RelationRecall, place: int) -> list[Cell]:
    fact = entry.facts[place]
    if fact.left_out:
        return ["", "", f"not scored: {fact.left_out}"]
    recalled = ", ".join("yes" if each else "no" for each in (fact.recalled_before, fact.recalled_after))
    return [fact.said_before.strip(), fact.said_after.strip(), recalled]


def _answer(title: str, relations: Mapping[str, RelationRecall]) -> str:
    erased = np.array([entry.scores.erased.delta_nats for entry in relations.values()])
    other = np.array([entry.scores.control.delta_nats for entry in relations.values()])
    facts = [fact for entry in relations.values() for fact in entry.facts if fact.left_out is None]
    recalled = "None of its facts' objects can be scored."
    if facts:
        before, after = (
            sum(getattr(fact, f"recalled_{when}") for fact in facts) for when in ("before", "after")
        )
        recalled = f"It writes out {before} of {len(facts)} objects before the edit and {after} with it."
    confidence = difference_words(median_interval(erased - other))
    return (
        f"The edit costs {title} {erased.mean():.3g} nats per token on the relation whose units were chosen, "
        f"and {other.mean():.3g} on other texts{confidence}. {recalled}"
    )


def _protocol(heading: str) -> list[str]:
    return [
        " ".join(heading.split()),
        "Perplexity is exp of the mean negative log-likelihood per token over all of a relation's sentences, "
        "each sentence alone. Recall is greedy: the model writes as many tokens as the object has, from the "
        "sentence before it, and sees nothing of what follows.",
        "Units are chosen on the very sentences that are measured, so the cost on them is no estimate for "
        "new sentences; delta_pct --protocol=matched has the controls. The interval is one for the median "
        "over relations like these, of order statistics: it assumes only that relations are independent.",
    ]
