"""What the report on Jacobians compares: each measure text by text, and the answer in words."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxprobe.array_typing import Float, np
from jaxprobe.configs import Metric
from jaxprobe.jacobians.estimates import EstimatedNorms, ModelEstimates
from jaxprobe.jacobians.results import LayerSensitivity, ModelSensitivity
from jaxprobe.jacobians.verdict import layer_verdict, layers_apart, not_compared
from jaxprobe.loading import TITLES
from jaxprobe.statistics.paired import MedianInterval, median_interval

# A layer and the estimates made of it, by wrt; none where it was measured exactly.
Layer = tuple[LayerSensitivity, Mapping[str, EstimatedNorms]]
Get = Callable[[LayerSensitivity, Mapping[str, EstimatedNorms]], Float[np.ndarray, " _"] | None]


@dataclass(frozen=True)
class Measure:
    """A quantity of a layer.

    Attributes:
      label: short. meaning: in a sentence.
      get: a layer's values, None where it was not measured.
      by_text: whether they are one for each text, so that models can be compared text by text.
    """

    label: str
    meaning: str
    get: Get
    by_text: bool = True

    def of(self, layers: Sequence[Layer]) -> Float[np.ndarray, "l _"] | None:
        """Its values at every layer; None where one lacks them."""
        rows = [self.get(*layer) for layer in layers]
        return None if any(row is None or not row.size for row in rows) else np.stack(rows)  # pyright: ignore


_ROWS = {"last": "the last token's row moves", "sequence": "every row moves"}
_EXACT = {
    "frobenius": ("‖J‖", "Frobenius norm of the exact Jacobian"),
    "sigma1": ("σ₁", "largest singular value of the exact Jacobian: the worst direction"),
    "relative_gain": ("gain", "‖J‖ ‖h‖ / ‖logits‖, logits centred: free of the units of both"),
    "stable_rank": ("stable rank", "(‖J‖ / σ₁)²: over how many directions the norm is spread"),
    "effective_rank": ("spectral rank", "effective rank of the singular values"),
    "participation": ("tokens", "how many token positions carry ‖J‖"),
}
_ESTIMATED: Mapping[str, tuple[str, str, Callable[[EstimatedNorms], np.ndarray]]] = {
    "frobenius": ("est. ‖J‖", "estimated Frobenius norm of the Jacobian", lambda norms: norms.frobenius),
    "width": (
        "± est. ‖J‖", "half the 95% interval of that estimate",
        lambda norms: (norms.frobenius_high - norms.frobenius_low) / 2,
    ),
    "sigma1": ("est. σ₁", "estimated largest singular value", lambda norms: norms.singular_values[:, 0]),
    "residual": ("± est. σ₁", "what that estimate may be off at most", lambda norms: norms.residuals[:, 0]),
}  # fmt: skip
# Of `last` these say little: one token, and what the output layer makes of one state.
_SEQUENCE_ONLY = ("stable_rank", "effective_rank", "participation")


def _exact(wrt: str, name: str) -> Get:
    return lambda layer, _: getattr(layer.exact[wrt], name) if wrt in layer.exact else None


def _estimated(wrt: str, get: Callable[[EstimatedNorms], np.ndarray]) -> Get:
    return lambda _, estimates: get(estimates[wrt]) if wrt in estimates else None


MEASURES = (
    *(
        Measure(f"{label} {wrt}", f"{meaning}; {_ROWS[wrt]}", _exact(wrt, name))
        for wrt in _ROWS
        for name, (label, meaning) in _EXACT.items()
        if wrt == "sequence" or name not in _SEQUENCE_ONLY
    ),
    *(
        Measure(f"{label} {wrt}", f"{meaning}; {_ROWS[wrt]}", _estimated(wrt, get))
        for wrt in _ROWS
        for label, meaning, get in _ESTIMATED.values()
    ),
    Measure(
        "sampled sensitivity", "the seed's finite differences: change of the logits per change of every row",
        lambda layer, _: layer.sampled.mean if layer.sampled else None,
    ),
    Measure(
        "secant", "change of logits / change of h between neighbouring texts, whose contexts differ",
        lambda layer, _: layer.secant, by_text=False,
    ),
    Measure(
        "path", "largest σ₁ found from a text's last state to its neighbour's: at most the true one",
        lambda layer, _: layer.path.largest if layer.path else None, by_text=False,
    ),
    Measure(
        "rank of states", "effective rank of the last-token states over texts; at most the number of texts",
        lambda layer, _: None if layer.effective_rank is None else np.array([layer.effective_rank]),
        by_text=False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One measure of both models, means over layers.

    Attributes:
      measure: what is compared.
      means: by model, over texts too.
      by_text: by model, of each text; empty where the measure is not one of texts.
      ratio: of the means, Mamba over GPT-2; None for one model, or a GPT-2 of zero.
      interval: of the texts' own ratios; None where there are none.
    """

    measure: Measure
    means: Mapping[str, float]
    by_text: Mapping[str, Float[np.ndarray, " b"]]

    @property
    def ratio(self) -> float | None:
        if len(self.means) < 2 or not self.means["gpt2"]:
            return None
        return self.means["mamba"] / self.means["gpt2"]

    @property
    def ratios(self) -> Float[np.ndarray, " b"] | None:
        """Of each text; None where there are none, or one has no size."""
        if len(self.by_text) < 2 or not (self.by_text["gpt2"] > 0).all():
            return None
        return self.by_text["mamba"] / self.by_text["gpt2"]

    @property
    def interval(self) -> MedianInterval | None:
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


def compare(layers: Mapping[str, Sequence[Layer]]) -> Iterator[Comparison]:
    """Every measure that all the models have."""
    for measure in MEASURES:
        values = {key: measure.of(rows) for key, rows in layers.items()}
        known = {key: value for key, value in values.items() if value is not None}
        if len(known) == len(layers):
            by_text = {key: value.mean(axis=0) for key, value in known.items()} if measure.by_text else {}
            yield Comparison(measure, {key: float(value.mean()) for key, value in known.items()}, by_text)


_MOVES = {
    "logits": "the last token's logits move",
    "centred": "the last token's centred logits move",
    "fisher": "the last token's prediction moves (√(2 KL), in nats)",
}
_CLAIMS = {
    "‖J‖ last": "when the last token's row moves",
    "est. ‖J‖ last": "when the last token's row moves (estimated)",
    "‖J‖ sequence": "when every row moves",
    "est. ‖J‖ sequence": "when every row moves (estimated)",
}
_GAINS = ("gain last", "gain sequence")


def answer(layers: Mapping[str, Sequence[Layer]], metric: Metric, site: str) -> str:
    """Two or three sentences: how much more sensitive, with its confidence, and whether samples agree."""
    if len(layers) < 2:
        only = ", ".join(TITLES[key] for key in layers)
        return f"Only {only} has what was asked for, so there is nothing to compare. {agreement(layers)}"
    found = {comparison.measure.label: comparison for comparison in compare(layers)}
    claims = [
        _claim(found[label], f" times as far {how}") for label, how in _CLAIMS.items() if label in found
    ]
    gains = [found[label] for label in _GAINS if label in found]
    if not all(claims):
        return "None: a model's sensitivity is zero."
    sentences = [
        f"On these texts, per unit that {site} moves, {_MOVES[metric]} in Mamba, against GPT-2, "
        f"{' and '.join(claims)}."
    ]
    if gains and all(map(_claim, gains)):
        order = ", in the same order" if len(gains) > 1 else ""
        intervals = [each.interval for each in gains]
        one = all(each is not None and each.low <= 1 <= each.high for each in intervals)
        sentences.append(
            "Relative to the size of each model's own states and logits the ratio is "
            f"{' and '.join(map(_claim, gains))}{order}{', which can be chance' if one else ''}."
        )
    return " ".join([*sentences, agreement(layers)]).strip()


def _claim(comparison: Comparison, words: str = "") -> str:
    """The ratio with its confidence; empty where there is none."""
    if not comparison.ratio:
        return ""
    found = comparison.interval
    if found is None or not found.confidence:
        return f"{comparison.ratio:.3g}{words} (one text, so no interval)"
    return (
        f"{comparison.ratio:.3g}{words} (texts' median {found.median:.3g}, {100 * found.confidence:.3g}% "
        f"interval {found.low:.3g} to {found.high:.3g})"
    )


def agreement(layers: Mapping[str, Sequence[Layer]]) -> str:
    """Whether what was sampled may stand for what is exact, in a sentence; empty without samples."""
    every = {f"{TITLES[key]} {layer.layer}": layer for key, rows in layers.items() for layer, _ in rows}
    sampled = {name: layer for name, layer in every.items() if layer.sampled is not None}
    if not sampled:
        return ""
    apart, compared = layers_apart({name: layer_verdict(layer) for name, layer in sampled.items()})
    if not compared:
        reason = not_compared(next(iter(sampled.values()))).removeprefix("not compared: ")
        return f"Sampled and exact sensitivities are not compared: {reason}."
    if not apart:
        return f"Sampled and exact sensitivities agree within sampling error at all {compared} layers."
    return (
        f"Sampled and exact sensitivities disagree at {len(apart)} of {compared} layers "
        f"({', '.join(apart)}), where the exact is to be believed."
    )
