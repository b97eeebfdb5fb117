"""How a run measured, in the paragraphs of its report: what its settings made, and no more."""

from collections.abc import Mapping, Sequence

from jaxprobe.configs import TITLES
from jaxprobe.jacobians.planning import SAMPLED_TEXTS
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.verdict import limit_words, not_compared, verdicts
from jaxprobe.run_configs import JacobianRun

Models = Mapping[str, ModelSensitivity]

_MOVES = {
    "both": "once with only the last token's row moving, once with every row",
    "last": "with only the last token's row moving",
    "sequence": "with every row moving",
}
_VALUES = {
    "qr": "Singular values are had by QR, to rounding of the largest.",
    "gram": (
        "Singular values are had from the Gram matrix, which loses those below about the square root of the "
        "rounding unit times the largest (3e-4 in float32): the largest values do not feel it, the spectral "
        "rank may."
    ),
    "none": "Of every row's Jacobian norms alone were made, no spectra; what needs these is left out.",
}


def protocol(
    measured: Models,
    config: JacobianRun,
    num_texts: int,
    groups: Sequence[str] = (),
    reductions: Mapping[str, str] | None = None,
) -> list[str]:
    """Paragraphs on what was measured and how.

    Args:
      measured: by architecture; a model that was skipped is absent.
      config: of the run.
      num_texts: that were measured.
      groups: of each text, its relation; empty where each text stands for itself.
      reductions: by architecture, how singular values were had; where it is not said, as was asked for.
    """
    sizes = "; ".join(
        f"{TITLES[key]}: {len(model.layers)} of {model.config.num_layers} layers, width "
        f"{model.config.hidden_size}"
        for key, model in measured.items()
    )
    paragraphs = [
        f"{num_texts} texts; {sizes}. For each text and layer, the Jacobian of the map from {config.site} "
        f"of the layer to the output at the last token, {_MOVES[config.wrt]} (--wrt={config.wrt}). Output "
        f"metric: {config.metric}.",
        _jacobians(config, reductions or dict.fromkeys(measured, config.spectra)),
        _sampled(measured, config, num_texts),
        _confidence(groups) if len(measured) > 1 else "",
        f"Computed in {config.compute.dtype} with seed {config.compute.seed}.",
    ]
    return [paragraph for paragraph in paragraphs if paragraph]


def _jacobians(config: JacobianRun, reductions: Mapping[str, str]) -> str:
    if config.method != "exact":
        return (
            "Jacobians are not formed. Norms and singular values are estimated from products with them; each "
            "estimate stands with its error."
        )
    models: dict[str, list[str]] = {way: [] for way in _VALUES}
    for key, reduction in reductions.items():
        for way in _ways(reduction, config.wrt):
            models[way].append(TITLES[key])
    made = [
        ("" if len(models[way]) == len(reductions) else f"{models[way][0]}: ") + words
        for way, words in _VALUES.items()
        if models[way]
    ]
    return " ".join(["Jacobians are exact: every entry, by automatic differentiation.", *made])


def _ways(reduction: str, wrt: str) -> tuple[str, ...]:
    # Without spectra it is those of every row that are not made: the last row keeps its own.
    if reduction != "none" or wrt == "sequence":
        return (reduction,) if reduction in _VALUES else ()
    return ("gram", "none") if wrt == "both" else ("gram",)


def _sampled(measured: Models, config: JacobianRun, num_texts: int) -> str:
    layers = [layer for model in measured.values() for layer in model.layers if layer.sampled is not None]
    if not layers:
        return ""
    drawn = (
        f"Beside them stands the usual sampled estimate: {config.num_samples} random steps of standard "
        f"deviation {config.epsilon:g} on every row, on the first {min(SAMPLED_TEXTS, num_texts)} texts."
    )
    found = [each for by_layer in verdicts(measured).values() for each in by_layer.values()]
    if not found:
        return f"{drawn} It is {not_compared(layers[0])}."
    return (
        f"{drawn} Its expectation and its sampling error follow exactly from the singular values, so what is "
        f"left over can be told from chance. {limit_words(found[0].limit, len(found))}"
    )


def _confidence(groups: Sequence[str]) -> str:
    units, paired = "texts", "text by text"
    grouped = ""
    if groups:
        units, paired = "relations", "relation by relation"
        grouped = (
            "The sentences of a relation say nearly the same, so the mean of each model's measure over them "
            "is one value. "
        )
    return (
        f"{grouped}Confidence is over {units}, the models being paired {paired}: the interval for the median "
        f"of the {units}' ratios needs no assumption about how they are spread, only that the {units} are "
        "independent. It says nothing of other models or of other kinds of text. Each interval stands for "
        "itself."
    )
