"""What is measured of a model's sensitivity, layer by layer: frozen rows of numpy arrays in float64."""

import dataclasses
from collections.abc import Mapping

from jaxprobe.array_typing import Float, np
from jaxprobe.configs import ModelConfig


@dataclasses.dataclass(frozen=True)
class ExactNorms:
    """Of the exact Jacobian of each text."""

    frobenius: Float[np.ndarray, " b"]
    sigma1: Float[np.ndarray, " b"] | None  # None here and below where norms alone were made
    stable_rank: Float[np.ndarray, " b"] | None
    effective_rank: Float[np.ndarray, " b"] | None  # of the spectrum
    singular_values: Float[np.ndarray, "b m"] | None  # largest first
    relative_gain: Float[np.ndarray, " b"] | None  # None under the metric fisher and at other sites
    position_norms: tuple[np.ndarray, ...] | None  # of each text, one for each of its tokens; None for `last`
    participation: Float[np.ndarray, " b"] | None  # of positions; None for `last`

    @property
    def spectrum_error(self) -> Float[np.ndarray, " b"] | None:
        """By how much the singular values' squares miss ||J||_F^2, which is had apart from them; relative."""
        if self.singular_values is None:
            return None
        squares, sums = np.square(self.frobenius), np.square(self.singular_values).sum(axis=1)
        both_zero = np.where(sums > 0, np.inf, 1.0)
        return np.abs(np.divide(sums, squares, out=both_zero, where=squares != 0) - 1)


@dataclasses.dataclass(frozen=True)
class SampledGain:
    """The original study's sensitivity of each sampled text (`sequence`), over its draws."""

    mean: Float[np.ndarray, " b"]  # the original study's number: mean of change / (step + 1e-8)
    # Mean of ||J delta|| / ||delta|| over the same draws; None where `last` alone was asked for.
    linear_mean: Float[np.ndarray, " b"] | None
    curvature: Float[np.ndarray, " b"] | None  # mean of (change - ||J delta||) / ||delta||; None likewise
    # Of every text, sampled or not: ||J v|| of a v against forward mode, relative.
    jacobian_error: Float[np.ndarray, " x"] | None


@dataclasses.dataclass(frozen=True)
class ExpectedGain:
    """What the sampled gain of each text estimates, to first order, from the exact spectrum."""

    mean: Float[np.ndarray, " b"]  # expectation of ||J delta|| / ||delta||
    rms: Float[np.ndarray, " b"]  # its root mean square, ||J||_F / sqrt(t d)
    stderr: Float[np.ndarray, " b"]  # of the mean of the draws: sqrt((rms^2 - mean^2) / draws)


@dataclasses.dataclass(frozen=True)
class PathGain:
    """Along the segment from each text's last state to the next text's, in the text's own context."""

    sigma1: Float[np.ndarray, "p g"]  # at both ends and the nodes between
    secant: Float[np.ndarray, " p"]  # ||f(b) - f(a)|| / ||b - a||; nan where the states are equal
    residual: Float[np.ndarray, " p"]  # of the quadrature, relative: whether the nodes are enough

    @property
    def largest(self) -> Float[np.ndarray, " p"]:
        """The largest sigma_1 found: a lower estimate of the true maximum, which a grid can miss."""
        return self.sigma1.max(axis=1)


@dataclasses.dataclass(frozen=True)
class LayerSensitivity:
    """All that is measured of one layer; at other sites than block_out only what is exact."""

    layer: int
    exact: Mapping[str, ExactNorms]  # by wrt
    sampled: SampledGain | None
    expected: ExpectedGain | None  # None without the Jacobian of the whole sequence in the metric logits
    secant: Float[np.ndarray, " p"] | None  # Lipschitz ratios of neighbouring texts; may be empty
    effective_rank: float | None
    path: PathGain | None = None  # None unless asked for, and where there is one text only

    def exact_values(self, wrt: str, name: str) -> Float[np.ndarray, " b"] | None:
        """A field of `ExactNorms` for each text; None where it was not made."""
        return getattr(self.exact[wrt], name) if wrt in self.exact else None

    def local_lipschitz(self, wrt: str) -> float | None:
        """The largest sigma_1 of any text."""
        sigma1 = self.exact_values(wrt, "sigma1")
        return None if sigma1 is None else float(sigma1.max())


@dataclasses.dataclass(frozen=True)
class ModelSensitivity:
    """All that is measured of one model."""

    config: ModelConfig
    layers: tuple[LayerSensitivity, ...]
    output_variance: float
    num_samples: int
    # How many numbers J lets move, of each text, by wrt.
    inputs: Mapping[str, Float[np.ndarray, " b"]] = dataclasses.field(default_factory=dict)
