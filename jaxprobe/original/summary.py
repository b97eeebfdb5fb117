"""From scores to what is reported of the seed protocol, made once: for the files, the console, the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxprobe.array_typing import np
from jaxprobe.original.intervals import (
    Estimates,
    difference,
    intervals,
    logarithms,
    means,
    over_relations,
    resamples,
)
from jaxprobe.original.study import RelationScores
from jaxprobe.statistics import inference
from jaxprobe.statistics.inference import Estimate
from jaxprobe.statistics.percentage import Change, Decomposition, decompose

# Model title -> relation -> scores; relations by name, such as "P36 (capital)".
Results = Mapping[str, Mapping[str, RelationScores]]

_NEAR_ZERO = 0.1  # of a model's median change


@dataclass(frozen=True)
class RelationSummary:
    """One relation on one model.

    Attributes:
      scores: what was measured.
      erased: each of `intervals.MEASURES`, with intervals over the relation's sentences.
      control: the same of the control texts, over these.
    """

    scores: RelationScores
    erased: Estimates
    control: Estimates


@dataclass(frozen=True)
class Accounting:
    """What the first model's percentages are made of, against the second's.

    Attributes:
      exact: the numbers.
      relations: of the relations with terms, each of `intervals.TERMS`, with intervals over sentences.
      mean: of these over relations; None where no relation has terms.
      share: the denominator's, as in `exact`, with Fieller's interval over relations; None where that is.
      near_zero: relations on which a model's change is less than a tenth of its median change: their
        logarithms are large because a change is small, and one of them can make the mean.
      without: the mean of log(pct_m / pct_g) without these; None where nothing is left.
    """

    exact: Decomposition
    relations: Mapping[str, Estimates]
    mean: Estimates | None
    share: Estimate | None
    near_zero: Sequence[str]
    without: float | None


@dataclass(frozen=True)
class Summary:
    """All that is reported of one or two models.

    Attributes:
      relations: model title -> relation -> summary.
      means: model title -> each of `intervals.MEASURES` over relations.
      differences: relation -> the first model's change in nats per token less the second's; empty for one
        model.
      difference: their mean over relations. accounting: of the percentages. Both None for one model.
    """

    relations: Mapping[str, Mapping[str, RelationSummary]]
    means: Mapping[str, Estimates]
    differences: Mapping[str, Estimate]
    difference: Estimate | None
    accounting: Accounting | None

    @property
    def names(self) -> list[str]:
        """The relations, in order."""
        return list(next(iter(self.relations.values())))

    def sentences(self, name: str) -> int:
        """How many a relation has."""
        return len(next(iter(self.relations.values()))[name].scores.facts.tokens)


def summarise(results: Results, seed: int) -> Summary:
    """Intervals, means and the accounting.

    Args:
      results: of one or two models.
      seed: of the resamples; those of a relation depend on it and on the relation's name alone.
    """
    relations = {
        title: {name: summarise_relation(scores, name, seed) for name, scores in found.items()}
        for title, found in results.items()
    }
    over = {
        title: means([each.erased for each in found.values()], seed) for title, found in relations.items()
    }
    if len(results) == 1:
        return Summary(relations, over, {}, None, None)
    first, second = results.values()
    differences = {
        name: difference(first[name].facts, second[name].facts, _draws(first[name], name, seed))
        for name in first
    }
    mean = over_relations([each.value for each in differences.values()], seed)
    return Summary(relations, over, differences, mean, _accounting(results, seed))


def summarise_relation(scores: RelationScores, name: str, seed: int) -> RelationSummary:
    """One relation on one model; `seed` as in `summarise`."""
    return RelationSummary(
        scores,
        intervals(scores.erased, scores.facts, _draws(scores, name, seed)),
        intervals(
            scores.control, scores.controls, resamples(len(scores.controls.tokens), seed, "control texts")
        ),
    )


def _draws(scores: RelationScores, name: str, seed: int) -> np.ndarray:
    return resamples(len(scores.facts.tokens), seed, name)


def _accounting(results: Results, seed: int) -> Accounting:
    (title, first), (other_title, second) = results.items()
    changes, others = ({name: each.erased for name, each in found.items()} for found in (first, second))
    exact = decompose(changes, others, (title, other_title))
    relations = {
        name: logarithms(terms, first[name].facts, second[name].facts, _draws(first[name], name, seed))
        for name, terms in exact.terms.items()
    }
    if not relations:
        return Accounting(exact, {}, None, None, (), None)
    share = None
    if exact.share is not None:
        baselines, percentages = (
            np.array([getattr(terms, term) for terms in exact.terms.values()])
            for term in ("log_baseline_ratio", "log_percentage_ratio")
        )
        share = inference.fieller(baselines, percentages)
    near_zero = [name for name in relations if any(_is_small(name, each) for each in (changes, others))]
    kept = [terms.log_percentage_ratio for name, terms in exact.terms.items() if name not in near_zero]
    without = math.fsum(kept) / len(kept) if kept else None
    return Accounting(exact, relations, means(list(relations.values()), seed), share, near_zero, without)


def _is_small(name: str, changes: Mapping[str, Change]) -> bool:
    sizes = np.abs([change.delta_nats for change in changes.values()])
    return abs(changes[name].delta_nats) < _NEAR_ZERO * float(np.median(sizes))
