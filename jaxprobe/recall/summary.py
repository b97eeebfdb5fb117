"""From perplexities and recalled objects to what `jaxprobe.factual_recall` reports, made once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxprobe.array_typing import np
from jaxprobe.original import summary as original
from jaxprobe.original.intervals import Estimates, means
from jaxprobe.original.study import RelationScores
from jaxprobe.recall.decoding import Accuracy, FactRecall, accuracy
from jaxprobe.statistics.correlation import Trend, trend
from jaxprobe.statistics.inference import Estimate
from jaxprobe.statistics.paired import MedianInterval, median_interval


@dataclass(frozen=True)
class RelationRecall:
    """One relation on one model, as it was measured: perplexities, and recall of its facts."""

    scores: RelationScores
    facts: tuple[FactRecall, ...]


# Model title -> relation -> what was measured.
Results = Mapping[str, Mapping[str, RelationRecall]]


@dataclass(frozen=True)
class RelationSummary:
    """One relation on one model.

    Attributes:
      cost: of the edit, on the relation's sentences and on other texts.
      facts: of the relation.
      before: their recall without the edit. after: with it.
    """

    cost: original.RelationSummary
    facts: tuple[FactRecall, ...]
    before: Accuracy
    after: Accuracy

    @property
    def seed_selectivity(self) -> float:
        """The original's: percentage change of the erased relation over that of other texts (plus 1e-6)."""
        return self.cost.scores.erased.percentage / (self.cost.scores.control.percentage + 1e-6)

    @property
    def selectivity(self) -> float | None:
        """The same; None where other texts do not get worse, so that the ratio says nothing."""
        return self.seed_selectivity if self.cost.scores.control.percentage > 0 else None


@dataclass(frozen=True)
class Patterns:
    """One model over its relations.

    Attributes:
      nats: mean change on the erased relation, nats per token. other_nats: on the other texts.
      percentage: mean percentage change on the erased relation. other_percentage: on the other texts.
      median_difference: of the change in nats on the erased relation less that on other texts.
      selectivity: median of the selectivities there are, as a mean is ruled by denominators near zero; None
        where there is none. selective: how many there are.
      worse: on how many relations perplexity rises.
      most: the relation with the largest change in nats. least: with the smallest.
      trend_nats: change in nats against baseline perplexity; None with fewer than three relations, or where
        there is no spread. trend_percentage: percentage change against it.
      before: accuracies over all facts, without the edit. after: with it.
    """

    nats: Estimate
    other_nats: Estimate
    percentage: Estimate
    other_percentage: Estimate
    median_difference: MedianInterval
    selectivity: float | None
    selective: int
    worse: int
    most: str
    least: str
    trend_nats: Trend | None
    trend_percentage: Trend | None
    before: Accuracy
    after: Accuracy


@dataclass(frozen=True)
class Summary:
    """All that is reported: by model title, every relation and the patterns over them."""

    relations: Mapping[str, Mapping[str, RelationSummary]]
    patterns: Mapping[str, Patterns]

    @property
    def names(self) -> list[str]:
        """The relations, in order."""
        return list(next(iter(self.relations.values())))


def summarise(results: Results, seed: int) -> Summary:
    """Intervals, accuracies and patterns; `seed` as in `jaxprobe.original.summary.summarise`."""
    relations = {
        title: {
            name: RelationSummary(
                original.summarise_relation(entry.scores, name, seed), entry.facts, *accuracy(entry.facts)
            )
            for name, entry in found.items()
        }
        for title, found in results.items()
    }
    return Summary(relations, {title: _patterns(found, seed) for title, found in relations.items()})


def _patterns(relations: Mapping[str, RelationSummary], seed: int) -> Patterns:
    erased = [entry.cost.erased for entry in relations.values()]
    other = [entry.cost.control for entry in relations.values()]
    mean, other_mean = means(erased, seed), means(other, seed)
    nats, baseline = _values(erased, "delta_nats"), _values(erased, "baseline_ppl")
    known = [each.selectivity for each in relations.values() if each.selectivity is not None]
    names = list(relations)
    before, after = accuracy([fact for entry in relations.values() for fact in entry.facts])
    return Patterns(
        nats=mean["delta_nats"],
        other_nats=other_mean["delta_nats"],
        percentage=mean["percentage"],
        other_percentage=other_mean["percentage"],
        median_difference=median_interval(nats - _values(other, "delta_nats")),
        selectivity=float(np.median(known)) if known else None,
        selective=len(known),
        worse=int((nats > 0).sum()),
        most=names[int(np.argmax(nats))],
        least=names[int(np.argmin(nats))],
        trend_nats=trend(baseline, nats),
        trend_percentage=trend(baseline, _values(erased, "percentage")),
        before=before,
        after=after,
    )


def _values(found: Sequence[Estimates], measure: str) -> np.ndarray:
    return np.array([each[measure].value for each in found])
