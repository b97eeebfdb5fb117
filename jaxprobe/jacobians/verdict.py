"""Whether a sampled sensitivity agrees with the exact one, in exact standard errors. numpy in float64."""

import dataclasses
import math
from collections.abc import Mapping
from statistics import NormalDist

from jaxprobe.array_typing import Float, np
from jaxprobe.jacobians.results import LayerSensitivity, ModelSensitivity

# The most by which a product with the Jacobian may differ from forward mode: in float32 rounding makes about
# 1e-5 of it in deep models.
_JACOBIAN_ERROR = 1e-3
# The most by which squares of singular values may miss the squared norm: float32 leaves about 1e-6.
_SPECTRUM_ERROR = 1e-4
_ONE_TEST = 3.0  # standard errors that one layer alone may differ by


def family_limit(tests: int) -> float:
    """Standard errors that chance passes at one or more of so many layers no oftener than 3 at one layer.

    From Sidak's inequality, which holds however normal scores are correlated: each layer is tested at
    1 - (1 - a)^(1 / tests), with a = 0.27% the chance of a normal score beyond 3.
    """
    family = 2 * NormalDist().cdf(-_ONE_TEST)
    return -NormalDist().inv_cdf(-math.expm1(math.log1p(-family) / tests) / 2)


def usual_largest(count: int) -> float:
    """The median of the largest of so many independent |scores|, were they normal."""
    return NormalDist().inv_cdf((1 + 0.5 ** (1 / count)) / 2)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A layer's sampled mean against its exact expectation, in exact standard errors of the mean."""

    monte_carlo: float  # the first-order values of the draws against their exact expectation
    curvature: float  # the draws against their first-order values; where epsilon is tiny, rounding too
    jacobian_error: float = 0.0  # ||J v|| against forward mode, relative: the largest of any text
    limit: float = _ONE_TEST  # what agrees may differ by: `family_limit` of the layers tested together

    @property
    def total(self) -> float:
        """The sampled mean against the exact expectation."""
        return self.monte_carlo + self.curvature

    @property
    def checked(self) -> bool:
        """Whether the Jacobian is what forward mode has."""
        return self.jacobian_error <= _JACOBIAN_ERROR

    @property
    def agrees(self) -> bool:
        """Whether Monte-Carlo and the sum are within the limit, and the Jacobian is what forward mode has."""
        # Each by itself: of nan, which draws that overflow leave, max() may take the other.
        within = abs(self.monte_carlo) <= self.limit and abs(self.total) <= self.limit
        return within and self.checked

    @property
    def faulty(self) -> bool:
        """Whether draws of the exact Jacobian miss their own expectation, which is from its spectrum."""
        return abs(self.monte_carlo) > self.limit

    @property
    def words(self) -> str:
        """What the scores say."""
        if self.agrees:
            return "agrees within sampling error"
        if not self.checked:
            # Of a Jacobian that is finite, forward mode is not where a move of the embeddings overflows.
            if math.isnan(self.jacobian_error):
                return "the Jacobian is unchecked: forward mode is not finite"
            return "the Jacobian fails its check: forward mode has another product with it"
        if self.faulty:
            return "the draws do not agree with the exact expectation"
        return "the step is too large (curvature) or too small (rounding)"


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
    """The verdict on one layer, alone; None where `not_compared` says why."""
    sampled, expected = layer.sampled, layer.expected
    if sampled is None or expected is None or sampled.linear_mean is None or sampled.curvature is None:
        return None
    # Draws that cannot differ have no error to measure by, nor have those of a Jacobian that is not finite.
    if not expected.stderr.any() or not np.isfinite(expected.stderr).all():
        return None
    along = sampled.linear_mean + sampled.curvature  # without the 1e-8 of the original study's denominator
    found = verdict(along, sampled.linear_mean, expected.mean, expected.stderr)
    if sampled.jacobian_error is None:
        return found
    return dataclasses.replace(found, jacobian_error=float(sampled.jacobian_error.max()))


def check(layer: LayerSensitivity) -> bool | None:
    """Whether forward mode, where it was asked, has the Jacobian's products; None where its own overflow."""
    error = None if layer.sampled is None else layer.sampled.jacobian_error
    largest = 0.0 if error is None else float(error.max())
    return None if math.isnan(largest) else largest <= _JACOBIAN_ERROR


def spectrum_holds(layer: LayerSensitivity) -> bool:
    """Whether the singular values, where there are any, have the norm of their Jacobian."""
    errors = [norms.spectrum_error for norms in layer.exact.values()]
    return all((error <= _SPECTRUM_ERROR).all() for error in errors if error is not None)  # not so of nan


def verdicts(models: Mapping[str, ModelSensitivity]) -> dict[str, dict[int, Verdict]]:
    """The verdicts on all layers of all models, tested together: by model and layer, those there are."""
    alone = {
        key: {layer.layer: found for layer in model.layers if (found := layer_verdict(layer))}
        for key, model in models.items()
    }
    tests = sum(map(len, alone.values()))
    return {
        key: {layer: dataclasses.replace(each, limit=family_limit(tests)) for layer, each in found.items()}
        for key, found in alone.items()
    }


def limit_words(limit: float, tests: int) -> str:
    """What the limit is and why, in a sentence."""
    what = f"A layer agrees where Monte-Carlo and the sum of both are within {limit:.3g} standard errors"
    if tests == 1:
        return f"{what}."
    return (
        f"{what}: normal scores put one or more of {tests} layers beyond it no oftener than a single one "
        f"beyond {_ONE_TEST:g}."
    )


def scores(difference: Float[np.ndarray, "*n"], stderr: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """The difference in standard errors; a map of one singular direction per input has none, and scores 0.

    nan where the error is not known.
    """
    return np.divide(difference, stderr, out=np.where(stderr == 0, 0.0, np.nan), where=stderr > 0)


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
    if not np.isfinite(layer.expected.stderr).all():
        return "not compared: the singular values of the exact Jacobian are not finite"
    return "not compared: every draw has the same gain, so there is no sampling error to measure by"
