"""A quantity of two models on the same texts, without assuming how it is spread over texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxprobe.array_typing import Float, np
from jaxprobe.statistics.inference import LEVEL


@dataclass(frozen=True)
class MedianInterval:
    """A sample's median, and order statistics that hold the median of what it was drawn from.

    Attributes:
      median: of the sample.
      low: an end of the interval. high: the other; the sample's own extremes where it is small.
      confidence: the least chance that the interval holds the median, exact for independent draws of any
        continuous distribution: 1 - 2 P(Binomial(n, 1/2) < k) for the k-th smallest and largest values. It is
        below 0.95 for fewer than six.
    """

    median: float
    low: float
    high: float
    confidence: float


def median_interval(values: Float[np.ndarray, " b"], level: float = LEVEL) -> MedianInterval:
    """The narrowest interval between the k-th smallest and largest values with at least this confidence.

    Where not even the whole range has it, the whole range, with the confidence that it has.
    """
    ordered, count = np.sort(values), len(values)
    # Twice the chance of k or fewer of `count` fair coins; by logarithms, as its parts may be huge or tiny.
    coins = np.arange(1, count)
    choices = np.cumsum(np.log(np.concatenate([[1.0], (count - coins + 1) / coins])))
    outside = np.cumsum(np.exp(choices - (count - 1) * math.log(2)))
    place = max(int(np.searchsorted(outside, 1 - level, side="right")) - 1, 0)
    return MedianInterval(
        float(np.median(ordered)),
        float(ordered[place]),
        float(ordered[-1 - place]),
        float(1 - outside[place]),
    )


def group_means(values: Float[np.ndarray, " b"], groups: Sequence[str]) -> Float[np.ndarray, " g"]:
    """The mean of each group's values, in order of appearance; with no groups the values themselves.

    Texts of one relation say nearly the same, so they are no independent draws; their means are nearer to it.

    Args:
      values: one a text. groups: of each text, and maybe of more that follow.
    """
    if not groups:
        return values
    of_value = np.array(groups[: len(values)])
    return np.array([values[of_value == group].mean() for group in dict.fromkeys(of_value)])


def difference_words(found: MedianInterval, name: str = "median difference") -> str:
    """A median in words, to be put behind a claim; empty where there is no confidence in it.

    Args:
      found: the median. name: what it is called.
    """
    if not found.confidence:
        return ""
    return (
        f" ({name} {found.median:+.3g}, {100 * found.confidence:.3g}% interval {found.low:+.3g} "
        f"to {found.high:+.3g})"
    )
