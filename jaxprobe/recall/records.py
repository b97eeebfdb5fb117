"""What `jaxprobe.factual_recall` measures of a model over all relations, and the rows and JSON it writes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxprobe.array_typing import np
from jaxprobe.original.intervals import intervals
from jaxprobe.original.records import interval_ends
from jaxprobe.original.study import RelationScores
from jaxprobe.recall.decoding import Accuracy, FactRecall, accuracy
from jaxprobe.statistics.inference import Estimate, share

RECALL_SCHEMA_VERSION = 2  # since 2 rows have intervals
_ENDS = ("low", "high")
_WITH_ENDS = {"delta_nats": "delta_nats_per_token", "percentage": "percentage_change"}
CSV_COLUMNS = (
    "model", "relation", "delta_nats_per_token", "baseline_ppl", "perturbed_ppl", "percentage_change",
    "other_delta_nats_per_token", "other_baseline_ppl", "other_perturbed_ppl", "other_percentage_change",
    "selectivity", "teacher_forced_before", "teacher_forced_after", "greedy_before", "greedy_after", "facts",
    "facts_scored", "neurons",
    *(f"{of}{column}_{end}" for of in ("", "other_") for column in _WITH_ENDS.values() for end in _ENDS),
    *(f"greedy_{when}_{end}" for when in ("before", "after") for end in _ENDS),
)  # fmt: skip


@dataclass(frozen=True)
class RelationRecall:
    """One relation on one model: perplexities, and recall of its facts."""

    scores: RelationScores
    facts: tuple[FactRecall, ...]

    @property
    def selectivity(self) -> float:
        """The seed's: percentage change of the erased relation over that of other texts (plus 1e-6)."""
        return self.scores.erased.percentage / (self.scores.control.percentage + 1e-6)

    @property
    def greedy(self) -> tuple[Estimate, Estimate] | None:
        """Share of facts whose object is written out, before and after, with exact binomial intervals."""
        return greedy(self.facts)

    @property
    def accuracies(self) -> tuple[Accuracy, Accuracy]:
        """Before and after the edit."""
        return accuracy(self.facts)


def greedy(facts: Sequence[FactRecall]) -> tuple[Estimate, Estimate] | None:
    """Share of facts whose object is written out, before and after; None where no fact can be scored."""
    scored = [fact for fact in facts if fact.left_out is None]
    if not scored:
        return None
    before, after = (
        share(sum(bool(getattr(fact, f"recalled_{when}")) for fact in scored), len(scored))
        for when in ("before", "after")
    )
    return before, after


# Model title -> relation -> what was measured.
Results = Mapping[str, Mapping[str, RelationRecall]]


@dataclass(frozen=True)
class Trend:
    """A straight line through one point per relation."""

    slope: float
    correlation: float


@dataclass(frozen=True)
class Patterns:
    """One model over its relations.

    Attributes:
      nats: mean change on the erased relation, nats per token. other_nats: on the other texts.
      percentage: mean percentage change on the erased relation. other_percentage: on the other texts.
      selectivity: median over relations of the seed's ratio; a mean is ruled by denominators near zero.
      worse: on how many relations perplexity rises.
      most: the relation with the largest change in nats. least: with the smallest.
      trend_nats: change in nats against baseline perplexity; None with fewer than three relations, or where
        there is no spread. trend_percentage: percentage change against it.
      before: accuracies over all facts, without the edit. after: with it.
    """

    nats: float
    other_nats: float
    percentage: float
    other_percentage: float
    selectivity: float
    worse: int
    most: str
    least: str
    trend_nats: Trend | None
    trend_percentage: Trend | None
    before: Accuracy
    after: Accuracy


def patterns(relations: Mapping[str, RelationRecall]) -> Patterns:
    """The pattern analysis of one model."""
    erased = [entry.scores.erased for entry in relations.values()]
    other = [entry.scores.control for entry in relations.values()]
    nats = {name: entry.scores.erased.delta_nats for name, entry in relations.items()}
    baseline = [change.baseline_ppl for change in erased]
    before, after = accuracy([fact for entry in relations.values() for fact in entry.facts])
    return Patterns(
        nats=float(np.mean([change.delta_nats for change in erased])),
        other_nats=float(np.mean([change.delta_nats for change in other])),
        percentage=float(np.mean([change.percentage for change in erased])),
        other_percentage=float(np.mean([change.percentage for change in other])),
        selectivity=float(np.median([entry.selectivity for entry in relations.values()])),
        worse=sum(change.delta_nats > 0 for change in erased),
        most=max(nats, key=nats.__getitem__),
        least=min(nats, key=nats.__getitem__),
        trend_nats=_trend(baseline, list(nats.values())),
        trend_percentage=_trend(baseline, [change.percentage for change in erased]),
        before=before,
        after=after,
    )


def _trend(x: Sequence[float], y: Sequence[float]) -> Trend | None:
    if len(x) < 3 or not np.isfinite([x, y]).all() or not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return None
    return Trend(float(np.polyfit(x, y, 1)[0]), float(np.corrcoef(x, y)[0, 1]))


def recall_rows(results: Results) -> Iterator[dict[str, Any]]:
    """One row per model and relation, with the columns of the CSV file.

    Intervals are 95% ones: of changes over the texts, None for fewer than five; of greedy recall, binomial.
    """
    for title, relations in results.items():
        for name, entry in relations.items():
            erased, other = entry.scores.erased, entry.scores.control
            before, after = entry.accuracies
            of_erased = intervals(erased, entry.scores.facts, name)
            of_other = intervals(other, entry.scores.controls, "controls")
            none = Estimate(math.nan)
            recalled = {
                f"greedy_{when}": each
                for when, each in zip(("before", "after"), entry.greedy or (none, none), strict=True)
            }
            yield {
                "model": title,
                "relation": name,
                "delta_nats_per_token": erased.delta_nats,
                "baseline_ppl": erased.baseline_ppl,
                "perturbed_ppl": erased.perturbed_ppl,
                "percentage_change": erased.percentage,
                "other_delta_nats_per_token": other.delta_nats,
                "other_baseline_ppl": other.baseline_ppl,
                "other_perturbed_ppl": other.perturbed_ppl,
                "other_percentage_change": other.percentage,
                "selectivity": entry.selectivity,
                "teacher_forced_before": before.teacher_forced,
                "teacher_forced_after": after.teacher_forced,
                "greedy_before": before.greedy,
                "greedy_after": after.greedy,
                "facts": len(entry.facts),
                "facts_scored": sum(fact.left_out is None for fact in entry.facts),
                "neurons": " ".join(map(str, entry.scores.chosen.units)),
                **interval_ends(of_erased, _WITH_ENDS),
                **interval_ends(of_other, {name: f"other_{column}" for name, column in _WITH_ENDS.items()}),
                **interval_ends(recalled, {name: name for name in recalled}),
            }


def recall_json(
    results: Results, rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """The rows, of `recall_rows`, every fact, and the pattern analysis of every model."""
    entries = [entry for relations in results.values() for entry in relations.values()]
    return {
        "results": [
            {**row, "neurons": entry.scores.chosen.units, "recall": entry.facts}
            for row, entry in zip(rows, entries, strict=True)
        ],
        "patterns": {title: patterns(relations) for title, relations in results.items()},
        "schema_version": RECALL_SCHEMA_VERSION,
        "manifest": manifest,
    }
