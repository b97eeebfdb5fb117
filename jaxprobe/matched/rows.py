"""The frozen rows of the matched protocol's report: what `jaxprobe.matched.summary` makes of the scores."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxprobe.statistics.inference import FEWEST, Estimate, Percentile

FEWEST_SETS = 20  # for a percentile among those that share no unit with the chosen one
MEASURES = ("token", "byte", "word")  # what nats are counted per; the first is the primary measure


@dataclass(frozen=True)
class ControlSets:
    """Control sets of one kind: their effect, where it and the chosen set's lie, and how alike the sets are.

    Attributes:
      sets: how many.
      delta: of nats per token, mean over the sets; its interval is over facts, with the sets as they are.
      percentile: of that mean among the random sets; None where there are none, and of these themselves.
      chosen: of the chosen set among these; None where there is one set only.
      disjoint: of the chosen set among those of these that share no unit with it; None where they are fewer
        than `FEWEST_SETS`.
      disjoint_sets: how many those are.
      shared: units that a set has in common with the chosen one, mean over the sets.
      energy: smallest and largest sum of the units' mean squares, over the chosen set's.
      far: how many sets are further than `NORM_TOLERANCE` from the chosen set's energy.
    """

    sets: int
    delta: Estimate
    percentile: Percentile | None
    chosen: Percentile | None
    disjoint: Percentile | None
    disjoint_sets: int
    shared: float
    energy: tuple[float, float]
    far: int

    @property
    def delta_nats(self) -> float:
        """Change in nats per token, mean over the sets."""
        return self.delta.value


@dataclass(frozen=True)
class Linear:
    """The whole edit in nats per token: measured, and predicted by derivatives at the unedited model."""

    measured: Estimate
    first_order: Estimate
    second_order: Estimate
    fails_at: float | None  # as `jaxprobe.matched.taylor.first_order_fails`


@dataclass(frozen=True)
class Selectivity:
    """What the units chosen on one relation cost each relation.

    Attributes:
      changes: relation -> change in nats per token of its facts; the relation's own among them.
      others: mean of these over the other relations.
      ratio: the relation's own change over that mean; None where the others do not get worse.
      percent: the original study's: the ratio of percentage changes, the others' facts taken together.
    """

    changes: Mapping[str, float]
    others: float
    ratio: Estimate | None
    percent: float


@dataclass(frozen=True)
class RelationSummary:
    """One relation on one model.

    Attributes:
      facts: how many were evaluated.
      units: the chosen ones, most sensitive first.
      baseline: nats per token, byte and word before the edit. delta: change of the same.
      perplexity: exp of the baseline, per token, byte and word. edited_perplexity: the same with the edit.
      percent, absolute: change of perplexity (per token).
      control_texts: change in nats per token on texts of no relation, with the same units edited.
      controls: kind of control set -> what is said of it; "random" first where there is one.
      linear: of the edit, where that was studied. selectivity: likewise.
    """

    facts: int
    units: tuple[int, ...]
    baseline: Mapping[str, Estimate]
    delta: Mapping[str, Estimate]
    perplexity: Mapping[str, Estimate]
    edited_perplexity: Mapping[str, Estimate]
    percent: Estimate
    absolute: Estimate
    control_texts: Estimate
    controls: Mapping[str, ControlSets]
    linear: Linear | None = None
    selectivity: Selectivity | None = None

    @property
    def percentile(self) -> Percentile | None:
        """Of the chosen set's effect among the random sets'; None without several of those."""
        return self.controls["random"].chosen if "random" in self.controls else None

    @property
    def too_few(self) -> bool:
        """Whether there are too few facts for an interval."""
        return self.facts < FEWEST


@dataclass(frozen=True)
class Comparison:
    """The first model against the second on one relation, or over all."""

    difference: Estimate  # first less second
    # Two-sided, of no difference; None where there are too few facts or relations, and for one relation's
    # percentiles.
    p_value: float | None


@dataclass(frozen=True)
class Account:
    """log(pct_m / pct_g) = log(abs_m / abs_g) + log(base_g / base_m), each with its interval."""

    log_percentage_ratio: Estimate
    log_absolute_ratio: Estimate
    log_baseline_ratio: Estimate


@dataclass(frozen=True)
class Accounting:
    """How much of the first model's excess in percentages goes with its lower baseline.

    Attributes:
      relations: where both models get worse. undefined: of the others, why there is no logarithm.
      mean: over relations, which are its units; None where no relation has terms.
      share: the denominator's part of the excess; None where the mean excess is not positive.
    """

    relations: Mapping[str, Account]
    undefined: Mapping[str, str]
    mean: Account | None
    share: Estimate | None


@dataclass(frozen=True)
class MatchedSummary:
    """All that is reported of one or two models.

    Attributes:
      relations: model title -> relation -> summary.
      means: measure (of `MEASURES`, or "percentile") -> model title -> mean over relations.
      comparisons: measure -> relation -> comparison. overall: measure -> comparison of the means. All empty
        for one model.
      accounting: None for one model.
      level: of every interval, and one less the error of every verdict.
      seed: of the resamples.
      rms: model title -> root mean square of the chosen units on the selection facts, over relations.
      noise_std: standard deviation of the noise; None where the edit is another.
    """

    relations: Mapping[str, Mapping[str, RelationSummary]]
    means: Mapping[str, Mapping[str, Estimate]]
    comparisons: Mapping[str, Mapping[str, Comparison]]
    overall: Mapping[str, Comparison]
    accounting: Accounting | None
    level: float
    seed: int
    rms: Mapping[str, float]
    noise_std: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the relations, in order; both models have the same."""
        return tuple(next(iter(self.relations.values())))

    def of_models(self, name: str) -> list[RelationSummary]:
        """A relation on each model."""
        return [relations[name] for relations in self.relations.values()]


def short_name(relation: str) -> str:
    """A relation's name as tables and pictures show it: `capital_city` in words."""
    return relation.replace("_", " ")
