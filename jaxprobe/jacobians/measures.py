"""Every measure of a layer, for console, page and pictures; both models compared by each, text by text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxprobe.array_typing import Float, np
from jaxprobe.console import mean, ratio
from jaxprobe.jacobians.estimates import EstimatedNorms, ModelEstimates
from jaxprobe.jacobians.results import LayerSensitivity, ModelSensitivity
from jaxprobe.statistics.paired import MedianInterval, group_means, median_interval

# A layer and the estimates made of it, by wrt; none where it was measured exactly.
Layer = tuple[LayerSensitivity, Mapping[str, EstimatedNorms]]
Get = Callable[[LayerSensitivity, Mapping[str, EstimatedNorms]], Float[np.ndarray, " _"] | None]


@dataclass(frozen=True)
class Measure:
    """A quantity of a layer.

    Attributes:
      label: its name in the report's tables. meaning: in a sentence.
      get: a layer's values, None where it was not measured.
      column: its name on the console, ASCII; empty where it is not shown there.
      panel: title of its panel among the profiles; empty where it has none.
      each: what has a value of its own: a text, a pair of neighbouring texts, or the layer.
      over: makes one number of a layer's values.
      kind: what it is free of, or not; groups the console's tables.
      logarithmic: whether it may span decades.
      error: whether it is an estimate's own error, by which models are not to be compared.
    """

    label: str
    meaning: str
    get: Get
    column: str = ""
    panel: str = ""
    each: Literal["text", "pair", "layer"] = "text"
    over: Callable[..., np.floating] = np.mean
    kind: Literal["exact", "estimated", "sampled"] = "exact"
    logarithmic: bool = True
    error: bool = False

    @property
    def by_text(self) -> bool:
        """Whether its number is a mean over texts, so that models can be compared text by text."""
        return self.each == "text" and self.over is np.mean and not self.error

    def values(self, layer: Layer) -> Float[np.ndarray, " _"] | None:
        """A layer's values; None where it has none."""
        found = self.get(*layer)
        return None if found is None or not found.size else found

    def number(self, layer: Layer) -> float | None:
        """A layer's values as one; None where one is not finite, as a rank of a Jacobian of zeros is not."""
        found = self.values(layer)
        return None if found is None or not np.isfinite(found).all() else float(self.over(found))


# What an input lets move, by wrt.
ROWS = {"last": "the last token's row moves", "sequence": "every row moves"}
_SHORT = {"last": "last", "sequence": "seq"}
_LONG = {"last": "last token", "sequence": "sequence"}
# Field of `ExactNorms` -> console, label, panel, meaning.
_OF_BOTH = {
    "frobenius": ("|J|F", "‖J‖", "Exact ‖J‖ (Frobenius)", "Frobenius norm of the exact Jacobian"),
    "sigma1": ("s1", "σ₁", "Exact σ₁", "largest singular value of the exact Jacobian: the worst direction"),
    "relative_gain": (
        "gain", "gain", "Relative gain", "‖J‖ ‖h‖ / ‖logits‖, logits centred: free of the units of both"
    ),
}  # fmt: skip
# Of `last` these say little: one token, and what the output layer makes of one state.
_OF_SEQUENCE = {
    "stable_rank": (
        "stable rk", "stable rank", "Stable rank, sequence",
        "(‖J‖ / σ₁)²: over how many directions the norm is spread",
    ),
    "effective_rank": (
        "spec rk", "spectral rank", "Effective rank of the spectrum, sequence",
        "effective rank of the singular values",
    ),
    "participation": (
        "tokens", "tokens", "Positions that carry ‖J‖", "how many token positions carry ‖J‖"
    ),
}  # fmt: skip
_ESTIMATED: Mapping[str, tuple[str, Callable[[EstimatedNorms], np.ndarray], bool]] = {
    "est. ‖J‖": ("estimated Frobenius norm of the Jacobian", lambda norms: norms.frobenius, False),
    "± est. ‖J‖": (
        "half the 95% interval of that estimate of one text, the mean of such halves",
        lambda norms: (norms.frobenius_high - norms.frobenius_low) / 2, True,
    ),
    "est. σ₁": ("estimated largest singular value", lambda norms: norms.singular_values[:, 0], False),
    "± est. σ₁": (
        "a singular value of one text lies within this of that estimate, the mean of such distances",
        lambda norms: norms.residuals[:, 0], True,
    ),
}  # fmt: skip


def _exact(wrt: str, name: str) -> Get:
    return lambda layer, _: layer.exact_values(wrt, name)


def _estimated(wrt: str, get: Callable[[EstimatedNorms], np.ndarray]) -> Get:
    return lambda _, estimates: get(estimates[wrt]) if wrt in estimates else None


def _sampled(layer: LayerSensitivity, _) -> Float[np.ndarray, " b"] | None:
    return layer.sampled.mean if layer.sampled else None


def _secant(layer: LayerSensitivity, _) -> Float[np.ndarray, " p"] | None:
    return layer.secant


def _path(layer: LayerSensitivity, _) -> Float[np.ndarray, " p"] | None:
    return layer.path.largest if layer.path else None


NO_VALUE = "no value, as of ranks and gain of a Jacobian of zeros, ratios to zero, and what is not finite"
_SECANT = "change of logits / change of h between neighbouring texts, whose contexts differ"
_PATH = "largest σ₁ found from a text's last state to its neighbour's: at most the true one"

MEASURES = (
    *(
        Measure(
            f"{label} {wrt}", f"{meaning}; {ROWS[wrt]}", _exact(wrt, name), f"{column} {_SHORT[wrt]}",
            f"{panel}, {_LONG[wrt]}",
        )
        for wrt in ROWS
        for name, (column, label, panel, meaning) in _OF_BOTH.items()
    ),
    *(
        Measure(
            f"{label} sequence", f"{meaning}; {ROWS['sequence']}", _exact("sequence", name), column, panel,
            logarithmic=False,
        )
        for name, (column, label, panel, meaning) in _OF_SEQUENCE.items()
    ),
    Measure(
        "local, largest of texts", "largest σ₁ last of any text: the local Lipschitz number",
        _exact("last", "sigma1"), "Lip local", over=np.max,
    ),
    Measure("path, largest of pairs", _PATH, _path, "Lip path", each="pair", over=np.max),
    Measure("path, mean of pairs", _PATH, _path, each="pair"),
    *(
        Measure(
            f"{label} {wrt}", f"{meaning}; {ROWS[wrt]}", _estimated(wrt, get), kind="estimated", error=error
        )
        for wrt in ROWS
        for label, (meaning, get, error) in _ESTIMATED.items()
    ),
    Measure(
        "expected sensitivity", "what the sampled one is on average, from the singular values",
        lambda layer, _: layer.expected.mean if layer.expected else None,
    ),
    Measure(
        "sampled sensitivity", "finite differences: change of the logits per change of every row",
        _sampled, "FD sens", "Sampled finite difference, sequence", kind="sampled",
    ),
    Measure(
        "sampled sensitivity, std over texts", "how far texts differ in it", _sampled, "FD std", over=np.std,
        kind="sampled",
    ),
    Measure(
        "secant, largest of pairs", _SECANT, _secant, "Lip secant", each="pair", over=np.max, kind="sampled"
    ),
    Measure(
        "secant, mean of pairs", _SECANT, _secant, "Lip mean", "Secant ratios of neighbouring texts",
        each="pair", kind="sampled",
    ),
    Measure(
        "rank of states", "effective rank of the last-token states over texts; at most the number of texts",
        lambda layer, _: None if layer.effective_rank is None else np.array([layer.effective_rank]),
        "eff rank", "Effective rank of last-token states", each="layer", kind="sampled", logarithmic=False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One measure of both models, means over layers.

    Attributes:
      measure: what is compared.
      means: by model, over texts too; None where a layer has no number.
      count: texts, or pairs of texts, behind each layer's number; None where it is one of the layer's own.
      by_text: by model, of each text; empty where the measure is not one of texts.
      groups: of each text, its relation; empty where each text stands for itself.
    """

    measure: Measure
    means: Mapping[str, float | None]
    count: int | None
    by_text: Mapping[str, Float[np.ndarray, " b"]]
    groups: Sequence[str] = ()

    @property
    def ratio(self) -> float | None:
        """Of the means, Mamba over GPT-2; None for one model, an estimate's error or a GPT-2 of zero."""
        if len(self.means) < 2 or self.measure.error:
            return None
        return ratio(self.means["mamba"], self.means["gpt2"])

    @property
    def ratios(self) -> Float[np.ndarray, " u"] | None:
        """Of each unit, a relation (the mean of its texts) or a text; None where one has no size."""
        if len(self.by_text) < 2:
            return None
        mamba, gpt2 = (group_means(self.by_text[key], self.groups) for key in ("mamba", "gpt2"))
        known = (gpt2 > 0).all() and np.isfinite([mamba, gpt2]).all()
        return mamba / gpt2 if known else None

    @property
    def interval(self) -> MedianInterval | None:
        """For the median of the units' ratios."""
        ratios = self.ratios
        return None if ratios is None else median_interval(ratios)


def layers_of(
    measured: Mapping[str, ModelSensitivity], estimated: Mapping[str, ModelEstimates]
) -> dict[str, list[Layer]]:
    """Every model's layers with what was estimated of them."""
    return {
        key: list(
            zip(
                model.layers,
                estimated[key].estimates if key in estimated else ({},) * len(model.layers),
                strict=True,
            )
        )
        for key, model in measured.items()
    }


def measured_in(layers: Mapping[str, Sequence[Layer]]) -> list[Measure]:
    """The measures that every layer of every model has."""
    every = [layer for rows in layers.values() for layer in rows]
    return [measure for measure in MEASURES if all(measure.values(layer) is not None for layer in every)]


def compare(layers: Mapping[str, Sequence[Layer]], groups: Sequence[str] = ()) -> Iterator[Comparison]:
    """Every measure that all the models have.

    Args:
      layers: by architecture, as `layers_of` makes them.
      groups: of each text, its relation; empty where each text stands for itself.
    """
    for measure in MEASURES:
        values = {key: [measure.values(layer) for layer in rows] for key, rows in layers.items()}
        known = {key: [row for row in rows if row is not None] for key, rows in values.items()}
        if any(len(known[key]) < len(rows) for key, rows in layers.items()):
            continue
        means = {key: mean(map(measure.number, rows)) for key, rows in layers.items()}
        by_text = {key: np.mean(rows, axis=0) for key, rows in known.items()} if measure.by_text else {}
        count = None if measure.each == "layer" else len(next(iter(known.values()))[0])
        yield Comparison(measure, means, count, by_text, groups)
