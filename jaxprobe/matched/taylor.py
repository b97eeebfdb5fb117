"""What derivatives at strength 0 (`jaxprobe.matched.linearity`) predict of an edit, and where that fails."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxprobe.array_typing import Float, np
from jaxprobe.matched.results import Curves, Linearity


class Predicted(NamedTuple):
    """Changes of the negative log-likelihood that derivatives at strength 0 predict, in nats."""

    first: Float[np.ndarray, "g ..."]  # s L'
    second: Float[np.ndarray, "g ..."]  # s L' + s^2 L'' / 2


def predict(curves: Curves, strengths: Float[np.ndarray, " g"] | Sequence[float]) -> Predicted:
    """First- and second-order predictions at each strength, along a new first axis."""
    slope, curvature = (np.asarray(part, np.float64) for part in (curves.slope, curves.curvature))
    s = np.asarray(strengths, np.float64).reshape(-1, *(1,) * slope.ndim)
    return Predicted(s * slope, s * slope + s**2 * curvature / 2)


def edit_fails(linearity: Linearity, tolerance: float = 0.1) -> float | None:
    """`first_order_fails` of the chosen units' edit, all facts together."""
    slope, curvature = (float(part.sum()) for part in (linearity.chosen.slope, linearity.chosen.curvature))
    measured = linearity.measured.sum(axis=1)
    return first_order_fails(linearity.strengths, measured, slope, curvature, tolerance)


def curves_alone(linearity: Linearity, chosen: Sequence[int]) -> Curves | None:
    """Of the chosen units that were edited each alone at every strength [k b]; None where none was."""
    if linearity.units is None or linearity.alone is None:
        return None
    units = list(chosen[: len(linearity.alone)])
    return Curves(linearity.units.slope[units], linearity.units.curvature[units])


def first_order_fails(
    strengths: Float[np.ndarray, " g"],
    measured: Float[np.ndarray, " g"],
    slope: float,
    curvature: float,
    tolerance: float = 0.1,
    resolution: float = 1e-5,
) -> float | None:
    """The smallest strength at which first order is off by more than 10% (`tolerance`) of what is measured.

    Between the strengths measured the relative error is taken to be linear. Below the least of them none is
    measured: there the strength is the one at which slope and curvature together differ so far from the slope
    alone. A change smaller than `resolution` counts as of that size: so a prediction that is off by rounding
    alone does not fail there, and one that predicts an effect where there is none does.

    Args:
      strengths: ascending, in (0, 1].
      measured: change of all the facts together at each strength, nats.
      slope: its first derivative by the strength at 0. curvature: the second.
      tolerance: the share of the measured change.
      resolution: nats below which a change is rounding; the default is what float32 leaves of a few hundred
        tokens.

    Returns:
      The strength; None if the prediction holds at all those measured; nan if neither the measured nor the
      predicted change is above the resolution at any strength, so that there is nothing to predict.
    """
    sizes, predicted = np.abs(measured), slope * strengths
    if max(sizes.max(), np.abs(predicted).max()) <= resolution:
        return float("nan")
    error = np.abs(predicted - measured)
    relative = np.where(error <= resolution, 0, error / np.maximum(sizes, resolution))
    over = np.flatnonzero(relative > tolerance)
    if not over.size:
        return None
    high = over[0]
    if high == 0:
        return min(
            _foretold(abs(slope), curvature if slope >= 0 else -curvature, tolerance, resolution),
            float(strengths[0]),
        )
    (low_s, high_s), (low_r, high_r) = strengths[high - 1 : high + 1], relative[high - 1 : high + 1]
    return float(low_s + (tolerance - low_r) / (high_r - low_r) * (high_s - low_s))


def _foretold(slope: float, curvature: float, tolerance: float, resolution: float) -> float:
    # Where s^2 |c| / 2, the error, is the tolerance of |a s + c s^2 / 2| and no rounding; a >= 0.
    if curvature == 0:
        return float("inf")
    signed = 1 - tolerance if curvature > 0 else 1 + tolerance
    of_change = 2 * tolerance * slope / (abs(curvature) * signed)
    of_resolution = float(np.sqrt(2 * resolution / abs(curvature)))
    return max(of_change, of_resolution)
