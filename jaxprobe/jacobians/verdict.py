"""Whether a sampled sensitivity agrees with the exact one, in exact standard errors. numpy in float64."""

import dataclasses
from collections.abc import Mapping

from jaxprobe.array_typing import Float, np
from jaxprobe.jacobians.results import LayerSensitivity

# The most by which a product with the Jacobian may differ from forward mode: in float32 rounding makes about
# 1e-5 of it in deep models.
_JACOBIAN_ERROR = 1e-3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A layer's sampled mean against its exact expectation, in exact standard errors of the mean."""

    monte_carlo: float  # the first-order values of the draws against their exact expectation
    curvature: float  # the draws against their first-order values; where epsilon is tiny, rounding too
    jacobian_error: float = 0.0  # ||J delta|| against forward mode, relative: the largest of any text

    @property
    def total(self) -> float:
        """The sampled mean against the exact expectation."""
        return self.monte_carlo + self.curvature

    @property
    def agrees(self) -> bool:
        """Whether both are within three standard errors, and the Jacobian is what forward mode has."""
        return self.jacobian_error <= _JACOBIAN_ERROR and abs(self.monte_carlo) <= 3 and abs(self.total) <= 3

    @property
    def words(self) -> str:
        """What the scores say; what is within three standard errors agrees."""
        if not self.jacobian_error <= _JACOBIAN_ERROR:
            return "the Jacobian fails its check: forward mode has another product with it"
        if abs(self.monte_carlo) > 3:
            return "the draws do not agree with the exact expectation"
        if abs(self.total) > 3:
            return "the step is too large (curvature) or too small (rounding)"
        return "agrees within sampling error"


def verdict(
    sampled: Float[np.ndarray, " b"],
    linear: Float[np.ndarray, " b"],
    expected: Float[np.ndarray, " b"],
    stderr: Float[np.ndarray, " b"],
) -> Verdict:
    """The verdict on one layer.

    Args:
      sampled: each text's mean over draws of ||f(h + delta) - f(h)|| / ||delta||.
      linear: that of ||J delta|| / ||delta||, from the same draws.
      expected: its exact expectation. stderr: the exact standard error of `linear`, positive.
    """
    error = np.linalg.norm(stderr) / len(stderr)
    return Verdict(
        float((linear - expected).mean() / error),
        float((sampled - linear).mean() / error),
    )


def layer_verdict(layer: LayerSensitivity) -> Verdict | None:
    """The verdict on what was measured of a layer; None where `not_compared` says why."""
    sampled, expected = layer.sampled, layer.expected
    # Draws that cannot differ have no error to measure by.
    if sampled is None or expected is None or not expected.stderr.any():
        return None
    along = sampled.linear_mean + sampled.curvature  # without the 1e-8 of the seed's denominator
    found = verdict(along, sampled.linear_mean, expected.mean, expected.stderr)
    if sampled.jacobian_error is None:
        return found
    return dataclasses.replace(found, jacobian_error=float(sampled.jacobian_error.max()))


def layers_apart(verdicts: Mapping[str, Verdict | None]) -> tuple[tuple[str, ...], int]:
    """Those of the named layers whose samples do not agree, and how many have a verdict at all."""
    known = {name: found for name, found in verdicts.items() if found is not None}
    return tuple(name for name, found in known.items() if not found.agrees), len(known)


def not_compared(layer: LayerSensitivity) -> str:
    """Why a layer has no verdict."""
    if "sequence" not in layer.exact:
        return "not compared: the exact Jacobian of the whole sequence was not computed"
    if layer.sampled is None:
        return "not compared: finite differences are of block_out"
    if layer.exact["sequence"].singular_values is None:
        return "not compared: without its spectrum the exact expectation is not known"
    if layer.expected is None:
        return "not compared: finite differences are of the logits, the exact values of another output metric"
    return "not compared: every draw has the same gain, so there is no sampling error to measure by"
