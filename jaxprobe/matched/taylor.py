"""What derivatives at strength 0 (`jaxprobe.matched.linearity`) predict of an edit, and where that fails."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxprobe.array_typing import Float, np
from jaxprobe.matched.results import Curves


class Predicted(NamedTuple):
    """Changes of the negative log-likelihood that derivatives at strength 0 predict, in nats."""

    first: Float[np.ndarray, "g ..."]  # s L'
    second: Float[np.ndarray, "g ..."]  # s L' + s^2 L'' / 2


def predict(curves: Curves, strengths: Float[np.ndarray, " g"] | Sequence[float]) -> Predicted:
    """First- and second-order predictions at each strength, along a new first axis."""
    slope, curvature = (np.asarray(part, np.float64) for part in (curves.slope, curves.curvature))
    s = np.asarray(strengths, np.float64).reshape(-1, *(1,) * slope.ndim)
    return Predicted(s * slope, s * slope + s**2 * curvature / 2)


def first_order_fails(
    strengths: Float[np.ndarray, " g"],
    measured: Float[np.ndarray, " g"],
    predicted: Float[np.ndarray, " g"],
    tolerance: float = 0.1,
    resolution: float = 1e-5,
) -> float | None:
    """The smallest strength at which first order is off by more than 10% (`tolerance`) of what is measured.

    The relative error, 0 at strength 0, is taken to be linear between the strengths measured. A measured
    change smaller than `resolution` counts as of that size: so a prediction that is off by rounding alone
    does not fail there, and one that predicts an effect where there is none does.

    Args:
      strengths: ascending, in (0, 1].
      measured: change of all the facts together at each strength, nats.
      predicted: what the first derivative predicts.
      tolerance: the share of the measured change.
      resolution: nats below which a change is rounding; the default is what float32 leaves of a few hundred
        tokens.

    Returns:
      The strength; None if the prediction holds at all those measured; nan if neither the measured nor the
      predicted change is above the resolution at any strength, so that there is nothing to predict.
    """
    sizes = np.abs(measured)
    if max(sizes.max(), np.abs(predicted).max()) <= resolution:
        return float("nan")
    error = np.abs(np.asarray(predicted) - measured)
    relative = np.where(error <= resolution, 0, error / np.maximum(sizes, resolution))
    over = np.flatnonzero(relative > tolerance)
    if not over.size:
        return None
    s, r = np.concatenate([[0.0], strengths]), np.concatenate([[0.0], relative])
    low, high = over[0], over[0] + 1
    return float(s[low] + (tolerance - r[low]) / (r[high] - r[low]) * (s[high] - s[low]))
