"""What `jaxprobe.delta_pct` writes: the seed's table, and JSON with the accounting of the percentages."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprobe.original.intervals import intervals
from jaxprobe.original.study import RelationScores
from jaxprobe.relations import Relation
from jaxprobe.statistics.inference import Estimate
from jaxprobe.statistics.percentage import Change, Decomposition, decompose

DELTA_SCHEMA_VERSION = 2  # since 2 rows have intervals
# The measures of `delta_intervals` that have an interval, and their columns, whose ends are _low and _high.
_WITH_ENDS = {
    "delta_nats": "delta_nats_per_token",
    "percentage": "percentage_change",
    "absolute": "absolute_change",
    "baseline_ppl": "baseline_ppl",
}
CSV_COLUMNS = (
    "model", "relation", "baseline_ppl", "perturbed_ppl", "absolute_change", "percentage_change",
    "baseline_std", "perturbed_std", "control_baseline_ppl", "control_perturbed_ppl",
    "control_percentage_change", "delta_nats_per_token", "neurons",
    *(f"{column}_{end}" for column in _WITH_ENDS.values() for end in ("low", "high")),
    "control_delta_nats_per_token", "control_delta_nats_per_token_low", "control_delta_nats_per_token_high",
)  # fmt: skip

# Model title -> relation -> scores; relations by name, such as "P36 (capital)".
Results = Mapping[str, Mapping[str, RelationScores]]


def by_relation(relations: Sequence[Relation], scores: Sequence[RelationScores]) -> dict[str, RelationScores]:
    """One model's scores under the relations' names."""
    return {relation.name: entry for relation, entry in zip(relations, scores, strict=True)}


def delta_rows(results: Results) -> Iterator[dict[str, Any]]:
    """One row per model and relation, with the columns of the CSV file.

    Intervals are 95% ones over a relation's sentences, None for fewer than five; of the controls, over these.
    """
    for title, relations in results.items():
        for name, scores in relations.items():
            erased, control = scores.erased, scores.control
            ends = interval_ends(intervals(erased, scores.facts, name), _WITH_ENDS)
            of_control = intervals(control, scores.controls, "controls")
            yield {
                "model": title,
                "relation": name,
                "baseline_ppl": erased.baseline_ppl,
                "perturbed_ppl": erased.perturbed_ppl,
                "absolute_change": erased.absolute,
                "percentage_change": erased.percentage,
                "baseline_std": erased.baseline_std,
                "perturbed_std": erased.perturbed_std,
                "control_baseline_ppl": control.baseline_ppl,
                "control_perturbed_ppl": control.perturbed_ppl,
                "control_percentage_change": control.percentage,
                "delta_nats_per_token": erased.delta_nats,
                "neurons": " ".join(map(str, scores.chosen.units)),
                **ends,
                "control_delta_nats_per_token": control.delta_nats,
                **interval_ends(of_control, {"delta_nats": "control_delta_nats_per_token"}),
            }


def interval_ends(found: Mapping[str, Estimate], columns: Mapping[str, str]) -> dict[str, float | None]:
    """The ends of some measures' intervals, under the names of their columns with _low and _high."""
    return {
        f"{column}_{end}": getattr(found[measure], end)
        for measure, column in columns.items()
        for end in ("low", "high")
    }


def decomposition(results: Results) -> Decomposition | None:
    """The accounting of the first model against the second; None where one was skipped."""
    if len(results) != 2:
        return None
    first, second = (
        {name: scores.erased for name, scores in relations.items()} for relations in results.values()
    )
    titles = tuple(results)
    return decompose(first, second, (titles[0], titles[1]))


def delta_json(
    results: Results, rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """The rows, of `delta_rows`, with the variances of the units beside them, and the decomposition."""
    entries = [
        {
            **row,
            "neurons": scores.chosen.units,
            "variances": scores.chosen.variances,
        }
        for row, scores in zip(rows, _scores(results), strict=True)
    ]
    return {
        "results": entries,
        "comparison": _comparison(results),
        "schema_version": DELTA_SCHEMA_VERSION,
        "manifest": manifest,
    }


def _scores(results: Results) -> Iterator[RelationScores]:
    return (scores for relations in results.values() for scores in relations.values())


def _comparison(results: Results) -> dict[str, Any] | None:
    accounting = decomposition(results)
    if accounting is None:
        return None
    return {
        "models": list(results),
        "relations": accounting.terms,
        "left_out": accounting.left_out,
        "mean": accounting.mean,
        "denominator_share": accounting.share,
        "averages": {
            title: averages([scores.erased for scores in relations.values()])
            for title, relations in results.items()
        },
    }


def averages(changes: Sequence[Change]) -> dict[str, float]:
    """Means over relations."""

    def mean(name: str) -> float:
        return sum(getattr(change, name) for change in changes) / len(changes)

    return {
        "delta_nats_per_token": mean("delta_nats"),
        "percentage_change": mean("percentage"),
        "absolute_change": mean("absolute"),
        "baseline_ppl": mean("baseline_ppl"),
    }
