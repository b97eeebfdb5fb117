"""What the matched protocol measures: scores fact by fact, so that whatever is reported can be resampled.

Within a relation all arrays are over its b evaluated facts, in one order, the same for both models.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxprobe.array_typing import Float, Int, np
from jaxprobe.neurons import SensitiveUnits
from jaxprobe.statistics.fact_scores import FactScores

STRENGTHS = (0.03125, 0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)  # of an edit, at which its linearity is measured


@dataclass(frozen=True)
class Curves:
    """Derivatives of each fact's summed negative log-likelihood by the strength of an edit, at strength 0.

    Strength s moves a unit from its value x (s = 0) to x + s (edited(x) - x), so s = 1 is the edit whole.
    """

    slope: Float[np.ndarray, "*w b"]  # first derivative, nats
    curvature: Float[np.ndarray, "*w b"]  # second


@dataclass(frozen=True)
class Linearity:
    """How an edit's effect grows with its strength, and what first and second derivatives predict."""

    strengths: Float[np.ndarray, " g"]  # ascending, in (0, 1]
    measured: Float[np.ndarray, "g b"]  # change of each fact's summed negative log-likelihood, nats
    chosen: Curves  # of the chosen units together, [b]
    units: Curves | None  # of each unit alone, [w b]; None where single units were not asked for
    # Change where the first so many chosen units are edited each alone; None as before.
    alone: Float[np.ndarray, "k g b"] | None = None


@dataclass(frozen=True)
class RelationEffects:
    """One relation on one model.

    Attributes:
      chosen: the units, chosen on the selection facts.
      selected_on: places of the selection facts in the relation. evaluated: of the b evaluated ones.
      facts: the evaluated facts with the chosen units edited.
      control_texts: texts of no relation, with the same units edited.
      controls: kind of control set ("random", "high_norm", ...) -> each fact's summed negative log-likelihood
        under each of its s sets.
      control_units: the units of those sets.
      energy: sum over units of the mean square activation on the selection facts, of the chosen set and by
        kind.
      scales: factors of a strength sweep, and `after_scales`, the scores under each; None without a sweep.
      others: relation -> its evaluated facts' summed negative log-likelihood under this relation's units.
      units: the same of this relation's facts with each unit alone edited.
      linearity: of this relation's edit.
    """

    chosen: SensitiveUnits
    selected_on: tuple[int, ...]
    evaluated: tuple[int, ...]
    facts: FactScores
    control_texts: FactScores
    controls: Mapping[str, Float[np.ndarray, "_ b"]]
    control_units: Mapping[str, Int[np.ndarray, "_ k"]]
    energy: Mapping[str, Float[np.ndarray, " _"]]
    scales: Float[np.ndarray, " g"] | None = None
    after_scales: Float[np.ndarray, "g b"] | None = None
    others: Mapping[str, Float[np.ndarray, " _"]] | None = None
    units: Float[np.ndarray, "w b"] | None = None
    linearity: Linearity | None = None


@dataclass(frozen=True)
class ModelEffects:
    """All that the matched protocol measures of one model.

    Attributes:
      relations: by name, such as "P36 (capital)".
      layers: relation -> summed negative log-likelihood of its evaluated facts, units being chosen and edited
        at each layer in turn; None where that was not asked for.
    """

    relations: Mapping[str, RelationEffects]
    layers: Mapping[str, Float[np.ndarray, "l b"]] | None = None


# Model title -> effects; both models have the same relations and the same evaluated facts.
MatchedResults = Mapping[str, ModelEffects]
