"""What the sampled estimate is held against, in rows that console, page and picture share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxprobe.array_typing import Float, np
from jaxprobe.configs import TITLES
from jaxprobe.console import number
from jaxprobe.jacobians.epsilon_sweep import DTYPES, EpsilonStudy
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.verdict import Verdict, scores, verdicts


@dataclass(frozen=True)
class LayerAgreement:
    """The sampled sensitivity of a layer against its exact expectation.

    Attributes:
      model: its title. layer: counted from 0.
      exact: the expectation, mean over the sampled texts. sampled: what the draws gave.
      verdict: of all texts together.
      each: each text's difference in its own exact standard error. chance: the Monte-Carlo part of it.
    """

    model: str
    layer: int
    exact: float
    sampled: float
    verdict: Verdict
    each: Float[np.ndarray, " b"]
    chance: Float[np.ndarray, " b"]


def layer_agreements(models: Mapping[str, ModelSensitivity]) -> list[LayerAgreement]:
    """Every layer that has a verdict."""
    found = verdicts(models)
    return [
        LayerAgreement(
            TITLES[key],
            layer.layer,
            float(layer.expected.mean.mean()),
            float(layer.sampled.mean.mean()),
            found[key][layer.layer],
            scores(layer.sampled.mean - layer.expected.mean, layer.expected.stderr),
            scores(layer.sampled.linear_mean - layer.expected.mean, layer.expected.stderr),
        )
        for key, model in models.items()
        for layer in model.layers
        if layer.layer in found[key] and layer.sampled and layer.expected
        if layer.sampled.linear_mean is not None  # as it never is where something is expected
    ]


@dataclass(frozen=True)
class StepSizes:
    """The step sizes that can be trusted, of one model, layer and number format.

    Attributes:
      model: its title. layer: counted from 0. dtype: the number format.
      ends: smallest and largest; None where no step is usable.
    """

    model: str
    layer: int
    dtype: str
    ends: tuple[float, float] | None

    def holds(self, epsilon: float) -> bool:
        """Whether this step is among them."""
        return self.ends is not None and self.ends[0] <= epsilon <= self.ends[1]

    @property
    def words(self) -> str:
        """The ends, as console and picture show them."""
        return "no step" if self.ends is None else f"{number(self.ends[0])} to {number(self.ends[1])}"


def step_sizes(studies: Mapping[str, EpsilonStudy]) -> Iterator[StepSizes]:
    """Of every model in every number format."""
    for key, study in studies.items():
        for dtype in DTYPES:
            # An error relative to nothing is none.
            ends = study.usable(dtype) if study.linear.mean() > 0 else None
            yield StepSizes(TITLES[key], study.layer, dtype, ends)
