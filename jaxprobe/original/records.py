"""What `jaxprobe.delta_pct` writes: the original table, and JSON with the accounting of percentages."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprobe.original.intervals import TERMS
from jaxprobe.original.study import RelationScores
from jaxprobe.original.summary import Summary
from jaxprobe.original.verdict import answer
from jaxprobe.relations import Relation
from jaxprobe.statistics.inference import Estimate

# Since 2 rows have intervals; since 3 averages, terms and the share have them too, and there is an answer.
DELTA_SCHEMA_VERSION = 3
# Measures that have an interval, and their columns, whose ends are _low and _high.
_COLUMNS = {
    "delta_nats": "delta_nats_per_token",
    "percentage": "percentage_change",
    "absolute": "absolute_change",
    "baseline_ppl": "baseline_ppl",
}
CSV_COLUMNS = (
    "model", "relation", "baseline_ppl", "perturbed_ppl", "absolute_change", "percentage_change",
    "baseline_std", "perturbed_std", "control_baseline_ppl", "control_perturbed_ppl",
    "control_percentage_change", "delta_nats_per_token", "neurons",
    *(f"{column}_{end}" for column in _COLUMNS.values() for end in ("low", "high")),
    "control_delta_nats_per_token", "control_delta_nats_per_token_low", "control_delta_nats_per_token_high",
)  # fmt: skip


def by_relation(relations: Sequence[Relation], scores: Sequence[RelationScores]) -> dict[str, RelationScores]:
    """One model's scores under the relations' names."""
    return {relation.name: entry for relation, entry in zip(relations, scores, strict=True)}


def with_ends(columns: Mapping[str, Estimate]) -> dict[str, float | None]:
    """Values under the names of their columns, and the ends of intervals under these and _low, _high."""
    values: dict[str, float | None] = {column: each.value for column, each in columns.items()}
    return values | interval_ends(columns)


def interval_ends(columns: Mapping[str, Estimate]) -> dict[str, float | None]:
    """The ends of intervals alone, as `with_ends` names them."""
    return {
        f"{column}_{end}": getattr(each, end) for column, each in columns.items() for end in ("low", "high")
    }


def delta_rows(summary: Summary) -> Iterator[dict[str, Any]]:
    """One row per model and relation, with the columns of the CSV file.

    Intervals are 95% ones over a relation's sentences, None for fewer than five; of the controls, over these.
    """
    for title, relations in summary.relations.items():
        for name, entry in relations.items():
            erased, control = entry.scores.erased, entry.scores.control
            yield {
                "model": title,
                "relation": name,
                "perturbed_ppl": erased.perturbed_ppl,
                "baseline_std": erased.baseline_std,
                "perturbed_std": erased.perturbed_std,
                "control_baseline_ppl": control.baseline_ppl,
                "control_perturbed_ppl": control.perturbed_ppl,
                "control_percentage_change": control.percentage,
                "neurons": " ".join(map(str, entry.scores.chosen.units)),
                **with_ends({column: entry.erased[measure] for measure, column in _COLUMNS.items()}),
                **with_ends({"control_delta_nats_per_token": entry.control["delta_nats"]}),
            }


def delta_json(
    summary: Summary, rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """The rows, of `delta_rows`, with the variances of the units, the accounting and the answer."""
    chosen = [entry.scores.chosen for relations in summary.relations.values() for entry in relations.values()]
    return {
        "results": [
            {**row, "neurons": each.units, "variances": each.variances}
            for row, each in zip(rows, chosen, strict=True)
        ],
        "comparison": _comparison(summary),
        "answer": " ".join(answer(summary)),
        "schema_version": DELTA_SCHEMA_VERSION,
        "manifest": manifest,
    }


def _comparison(summary: Summary) -> dict[str, Any] | None:
    accounting, difference = summary.accounting, summary.difference
    if accounting is None or difference is None:
        return None
    share = accounting.share
    return {
        "models": list(summary.relations),
        "relations": {name: with_ends(terms) for name, terms in accounting.relations.items()},
        "left_out": accounting.exact.left_out,
        "near_zero": accounting.near_zero,
        "mean": accounting.mean and with_ends({term: accounting.mean[term] for term in TERMS}),
        "denominator_share": accounting.exact.share,
        **interval_ends({"denominator_share": share or Estimate(float("nan"))}),
        "averages": {
            title: with_ends({column: found[measure] for measure, column in _COLUMNS.items()})
            for title, found in summary.means.items()
        },
        **with_ends({"delta_nats_difference": difference}),
    }
