"""The rows and the JSON that `jaxprobe.factual_recall` writes."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprobe.original.records import with_ends
from jaxprobe.recall.summary import Summary
from jaxprobe.recall.verdict import answer
from jaxprobe.statistics.inference import Estimate

# Since 2 rows have intervals; since 3 patterns have them too, and there is an answer.
RECALL_SCHEMA_VERSION = 3
_ENDS = ("low", "high")
_COLUMNS = {"delta_nats": "delta_nats_per_token", "percentage": "percentage_change"}
CSV_COLUMNS = (
    "model", "relation", "delta_nats_per_token", "baseline_ppl", "perturbed_ppl", "percentage_change",
    "other_delta_nats_per_token", "other_baseline_ppl", "other_perturbed_ppl", "other_percentage_change",
    "selectivity", "teacher_forced_before", "teacher_forced_after", "greedy_before", "greedy_after", "facts",
    "facts_scored", "neurons",
    *(f"{of}{column}_{end}" for of in ("", "other_") for column in _COLUMNS.values() for end in _ENDS),
    *(f"greedy_{when}_{end}" for when in ("before", "after") for end in _ENDS),
)  # fmt: skip
_NONE = Estimate(math.nan)


def recall_rows(summary: Summary) -> Iterator[dict[str, Any]]:
    """One row per model and relation, with the columns of the CSV file.

    Intervals are 95% ones: of changes over the texts, None for fewer than five; of greedy recall, binomial.
    Selectivity is the original study's, whatever its denominator.
    """
    for title, relations in summary.relations.items():
        for name, entry in relations.items():
            scores, erased, other = entry.cost.scores, entry.cost.erased, entry.cost.control
            yield {
                "model": title,
                "relation": name,
                "baseline_ppl": scores.erased.baseline_ppl,
                "perturbed_ppl": scores.erased.perturbed_ppl,
                "other_baseline_ppl": scores.control.baseline_ppl,
                "other_perturbed_ppl": scores.control.perturbed_ppl,
                "selectivity": entry.seed_selectivity,
                "teacher_forced_before": entry.before.teacher_forced,
                "teacher_forced_after": entry.after.teacher_forced,
                "facts": len(entry.facts),
                "facts_scored": entry.before.facts,
                "neurons": " ".join(map(str, scores.chosen.units)),
                **with_ends({column: erased[measure] for measure, column in _COLUMNS.items()}),
                **with_ends({f"other_{column}": other[measure] for measure, column in _COLUMNS.items()}),
                **with_ends({
                    "greedy_before": entry.before.greedy or _NONE,
                    "greedy_after": entry.after.greedy or _NONE,
                }),
            }  # fmt: skip


def recall_json(
    summary: Summary, rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """The rows, of `recall_rows`, every fact, the pattern analysis of every model, and the answer."""
    entries = [entry for relations in summary.relations.values() for entry in relations.values()]
    return {
        "results": [
            {**row, "neurons": entry.cost.scores.chosen.units, "recall": entry.facts}
            for row, entry in zip(rows, entries, strict=True)
        ],
        "patterns": {title: _flat(patterns) for title, patterns in summary.patterns.items()},
        "answer": " ".join(answer(summary)),
        "schema_version": RECALL_SCHEMA_VERSION,
        "manifest": manifest,
    }


def _flat(entry: Any) -> dict[str, Any]:
    """A dataclass's fields, an estimate's interval beside its value as in the rows."""
    made: dict[str, Any] = {}
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        if isinstance(value, Estimate) or (value is None and "Estimate" in str(field.type)):
            made |= with_ends({field.name: value or _NONE})
        else:
            made[field.name] = _flat(value) if dataclasses.is_dataclass(value) else value
    return made
