"""The frozen rows of the matched protocol's report: what `jaxprobe.matched.summary` makes of the scores."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxprobe.matched.inference import FEWEST, Estimate, Percentile

MEASURES = ("token", "byte", "word")  # what nats are counted per; the first is the primary measure


@dataclass(frozen=True)
class ControlSets:
    """Control sets of one kind: their effect, and where it and the chosen set's lie."""

    sets: int
    delta_nats: float  # per token, mean over the sets
    percentile: float | None  # of that mean among the random sets, where there are any
    chosen: Percentile | None  # of the chosen set among these; None where there is one set only
    energy: tuple[float, float]  # smallest and largest removed energy, over the chosen set's


@dataclass(frozen=True)
class RelationSummary:
    """One relation on one model.

    Attributes:
      facts: how many were evaluated.
      units: the chosen ones, most sensitive first.
      baseline: nats per token, byte and word before the edit. delta: change of the same.
      percent, absolute: change of perplexity (per token).
      control_texts: change in nats per token on texts of no relation, with the same units edited.
      controls: kind of control set -> what is said of it; "random" first where there is one.
    """

    facts: int
    units: tuple[int, ...]
    baseline: Mapping[str, Estimate]
    delta: Mapping[str, Estimate]
    percent: Estimate
    absolute: Estimate
    control_texts: Estimate
    controls: Mapping[str, ControlSets]

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
    p_value: float | None  # two-sided, of no difference; None where there are too few facts or relations


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
      share: the denominator's part of the excess; None where there is no excess.
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
    """

    relations: Mapping[str, Mapping[str, RelationSummary]]
    means: Mapping[str, Mapping[str, Estimate]]
    comparisons: Mapping[str, Mapping[str, Comparison]]
    overall: Mapping[str, Comparison]
    accounting: Accounting | None
    level: float
