"""What a percentage change of perplexity means, and how much of its excess is the denominator's.

With b and p the mean negative log-likelihoods per token before and after, in nats:

    absolute change    exp(p) - exp(b)                    depends on the baseline
    percentage change  100 (exp(p) - exp(b)) / exp(b) = 100 (exp(p - b) - 1): no baseline in it at all
    delta nats         p - b                              the primary measure

Per relation, exactly, of a model m and a model g:

    log(pct_m / pct_g) = log(abs_m / abs_g) + log(base_g / base_m)

so a smaller baseline goes with a larger percentage for a given absolute change. That is accounting, not
causation: the same perturbation has no reason to cost two models the same absolute change.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxprobe.array_typing import np

# Why a percentage cannot be blamed on its baseline, wherever percentages are shown.
NO_BASELINE = "the baseline cancels, so a low one cannot inflate it"


@dataclass(frozen=True)
class Change:
    """Perplexity of one set of texts before and after an edit.

    Attributes:
      baseline_nats: mean negative log-likelihood per token, before. perturbed_nats: after.
      baseline_std: population standard deviation over texts of each text's perplexity. perturbed_std: after.
    """

    baseline_nats: float
    perturbed_nats: float
    baseline_std: float
    perturbed_std: float

    @property
    def baseline_ppl(self) -> float:
        """Perplexity before."""
        return _exp(self.baseline_nats)

    @property
    def perturbed_ppl(self) -> float:
        """Perplexity after; infinite where it exceeds the largest float."""
        return _exp(self.perturbed_nats)

    @property
    def delta_nats(self) -> float:
        """Change of the mean negative log-likelihood per token: log(perturbed / baseline)."""
        return self.perturbed_nats - self.baseline_nats

    @property
    def absolute(self) -> float:
        """Change of perplexity."""
        return self.perturbed_ppl - self.baseline_ppl

    @property
    def percentage(self) -> float:
        """Change of perplexity in percent of the baseline: 100 (exp(delta nats) - 1)."""
        with np.errstate(over="ignore"):
            return float(100 * np.expm1(self.delta_nats))


def _exp(nats: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(nats))


@dataclass(frozen=True)
class Terms:
    """The accounting of one relation: percentage = absolute + baseline."""

    log_percentage_ratio: float  # log(pct_m / pct_g)
    log_absolute_ratio: float  # log(abs_m / abs_g)
    log_baseline_ratio: float  # log(base_g / base_m)


@dataclass(frozen=True)
class Decomposition:
    """How much of m's excess in percentages over g goes with its lower baseline, over relations.

    Attributes:
      terms: of the relations where both changes are positive and finite.
      left_out: of the others, why.
      share: mean log(base_g/base_m) / mean log(pct_m/pct_g): the denominator's part of the excess, which may
        lie outside 0 to 1; None where m has no excess, or no relation has terms.
    """

    terms: Mapping[str, Terms]
    left_out: Mapping[str, str]
    share: float | None

    @property
    def mean(self) -> Terms | None:
        """The means over relations; None where there are none."""
        if not self.terms:
            return None
        rows = [
            (t.log_percentage_ratio, t.log_absolute_ratio, t.log_baseline_ratio) for t in self.terms.values()
        ]
        return Terms(*(math.fsum(column) / len(rows) for column in zip(*rows, strict=True)))


def decompose(
    m: Mapping[str, Change], g: Mapping[str, Change], titles: tuple[str, str] = ("m", "g")
) -> Decomposition:
    """The accounting of m's percentages against g's.

    Args:
      m: changes by relation. g: of the same relations.
      titles: what the two models are called where a relation is left out.
    """
    terms, left_out = {}, {}
    for relation, ours in m.items():
        theirs = g[relation]
        reasons = [
            f"{title} {reason}"
            for title, change in zip(titles, (ours, theirs), strict=True)
            if (reason := _unusable(change))
        ]
        if reasons:
            left_out[relation] = " and ".join(reasons)
        else:
            terms[relation] = Terms(
                math.log(ours.percentage / theirs.percentage),
                math.log(ours.absolute / theirs.absolute),
                theirs.baseline_nats - ours.baseline_nats,
            )
    unweighed = Decomposition(terms, left_out, None)
    mean = unweighed.mean
    if mean is None or mean.log_percentage_ratio <= 0:
        return unweighed
    return Decomposition(terms, left_out, mean.log_baseline_ratio / mean.log_percentage_ratio)


def _unusable(change: Change) -> str | None:
    if not math.isfinite(change.absolute) or not math.isfinite(change.percentage):
        return "has no finite perplexity"
    return None if change.absolute > 0 else "does not get worse"
