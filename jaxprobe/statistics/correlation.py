"""A straight line through one point per relation, and how sure its correlation is."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxprobe.array_typing import Float, np
from jaxprobe.statistics.inference import FEWEST, LEVEL, Estimate


@dataclass(frozen=True)
class Trend:
    """The least-squares line y = start + slope x.

    Attributes:
      slope: of y by x. start: y at x = 0.
      correlation: Pearson's r with Fisher's (1915) interval, tanh(artanh r -/+ z / sqrt(points - 3)), which
        takes x and y to be normal together; without an interval for fewer than five points.
      points: how many it is of.
    """

    slope: float
    start: float
    correlation: Estimate
    points: int

    @property
    def words(self) -> str:
        """`r = -0.52 [-0.88, +0.22], n = 9`."""
        each = self.correlation
        if each.low is None or each.high is None:
            return f"r = {each.value:+.2f}, n = {self.points}, too few for an interval"
        return f"r = {each.value:+.2f} [{each.low:+.2f}, {each.high:+.2f}], n = {self.points}"


def trend(
    x: Float[np.ndarray, " b"],
    y: Float[np.ndarray, " b"],
    level: float = LEVEL,
    scale: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Trend | None:
    """The trend of the points that are finite; None for fewer than three of these, or without spread.

    Args:
      x: one a point. y: likewise.
      level: of the interval. scale: what x is put through first, such as the logarithm.
    """
    from scipy.special import ndtri

    points = np.array([x, y], np.float64)
    x_all, y_all = points[:, np.isfinite(points).all(axis=0)]
    number = len(x_all)
    if number < 3 or not (np.ptp(x_all) > 0 and np.ptp(y_all) > 0):
        return None
    scaled = scale(x_all)
    slope, start = np.polyfit(scaled, y_all, 1)
    r = float(np.clip(np.corrcoef(scaled, y_all)[0, 1], -1, 1))
    correlation = Estimate(r)
    if number >= FEWEST:
        half = ndtri((1 + level) / 2) / np.sqrt(number - 3)
        with np.errstate(divide="ignore"):  # of r = 1
            low, high = np.tanh(np.arctanh(r) + np.array([-half, half]))
        correlation = Estimate(r, float(low), float(high))
    return Trend(float(slope), float(start), correlation, number)
