"""The tables of the report on Jacobians."""

from collections.abc import Iterator, Mapping, Sequence

from jaxprobe.array_typing import np
from jaxprobe.configs import TITLES
from jaxprobe.jacobians.agreement import layer_agreements, step_sizes
from jaxprobe.jacobians.epsilon_sweep import TOLERANCE, EpsilonStudy
from jaxprobe.jacobians.measures import NO_VALUE, Comparison, Layer, compare, measured_in
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.verdict import limit_words, usual_largest
from jaxprobe.report.content import Cell, Column, Table

# What a run may leave behind, of which one with other settings makes only some.
TABLES = (
    "jacobian_measures", "jacobian_layers", "jacobian_agreement", "jacobian_step_sizes", "jacobian_texts"
)  # fmt: skip

Layers = Mapping[str, Sequence[Layer]]


def report_tables(
    measured: Mapping[str, ModelSensitivity],
    layers: Layers,
    texts: Sequence[str],
    groups: Sequence[str],
    studies: Mapping[str, EpsilonStudy],
    epsilon: float,
) -> Iterator[Table]:
    """Those there is something to put into.

    Args:
      measured: by architecture.
      layers: of the same, as `layers_of` makes them.
      texts: as measured.
      groups: of each text, its relation; empty where each text stands for itself.
      studies: sweeps over step sizes, by architecture.
      epsilon: the step size of the run.
    """
    compared = list(compare(layers, groups))
    yield _measures(compared, list(layers), "relations" if groups else "texts")
    yield _by_layer(layers)
    if agreement := _agreement(measured):
        yield agreement
    if studies:
        yield _step_sizes(studies, epsilon)
    yield _texts(compared, texts, groups)


def _measures(compared: Sequence[Comparison], models: Sequence[str], units: str) -> Table:
    two = len(models) == 2
    columns = [
        Column("measure"),
        *(
            Column(TITLES[key], "mean over texts and layers, unless the measure says otherwise")
            for key in models
        ),
        Column("texts", "how many texts, or pairs of neighbouring texts, it is over at each layer"),
    ]
    if two:
        columns += [
            Column("ratio", "Mamba / GPT-2, of these means"),
            Column("median", f"of the ratios of the {units}"),
            Column(
                "low", f"end of an interval for the median ratio of {units} like these, of order statistics"
            ),
            Column("high", "the other end"),
            Column(
                "confidence",
                f"percent: the interval's exact confidence, {units} being independent; below 95 for fewer "
                "than six",
            ),
            Column("Mamba larger", f"{units} on which Mamba's value is the larger"),
            Column("units", f"how many {units} were compared"),
        ]
    rows = [
        [
            each.measure.label, *each.means.values(), each.count, *(_ratio_cells(each) if two else ()),
            each.measure.meaning,
        ]
        for each in compared
    ]  # fmt: skip
    once = " The texts of a relation say nearly the same, so their mean counts once."
    return Table(
        "jacobian_measures",
        "Both models, measure by measure" if two else "Measure by measure",
        "Means over the layers measured. last: only the last token's row moves; sequence: every row."
        + (once if two and units == "relations" else ""),
        [*columns, Column("what it is")],
        rows,
    )


def _ratio_cells(comparison: Comparison) -> list[Cell]:
    found, ratios = comparison.interval, comparison.ratios
    if found is None or ratios is None or found.confidence == 0:
        return [comparison.ratio, *[None] * 6]
    larger = int((ratios > 1).sum())
    interval = found.median, found.low, found.high, 100 * found.confidence
    return [comparison.ratio, *interval, larger, len(ratios)]


def _by_layer(layers: Layers) -> Table:
    asked = measured_in(layers)
    rows = [
        [TITLES[key], layer[0].layer, *(measure.number(layer) for measure in asked)]
        for key, each in layers.items()
        for layer in each
    ]
    columns = [Column("model"), Column("layer", "counted from 0")]
    return Table(
        "jacobian_layers",
        "Every layer",
        "Means over as many texts, or pairs of them, as Table 1 says, unless the measure says otherwise."
        + (f" A dash: {NO_VALUE}." if any(None in row for row in rows) else ""),
        [*columns, *(Column(measure.label, measure.meaning) for measure in asked)],
        rows,
    )


def _agreement(measured: Mapping[str, ModelSensitivity]) -> Table | None:
    compared = layer_agreements(measured)
    if not compared:
        return None
    rows = [
        [
            each.model, each.layer, each.exact, each.sampled, each.verdict.monte_carlo,
            each.verdict.curvature, float(np.abs(each.each).max()), each.verdict.words,
        ]
        for each in compared
    ]  # fmt: skip
    texts = len(compared[0].each)
    columns = [
        Column("model"),
        Column("layer", "counted from 0"),
        Column("exact", "expected sensitivity to noise on every row, from the singular values"),
        Column("sampled", "the same by finite differences"),
        Column("Monte-Carlo", "the draws' first-order part less the exact value, in exact standard errors"),
        Column("curvature", "the rest of the difference, in the same unit"),
        Column(
            "max |z|",
            f"the difference of one text, the largest of {texts}; of normal ones {usual_largest(texts):.2g} "
            "would be usual",
        ),
        Column("verdict", limit_words(compared[0].verdict.limit, len(compared))),
    ]
    return Table(
        "jacobian_agreement",
        "Exact against finite differences",
        f"Means over the {texts} sampled texts.",
        columns,
        rows,
    )


def _step_sizes(studies: Mapping[str, EpsilonStudy], epsilon: float) -> Table:
    rows = []
    for each in step_sizes(studies):
        low, high = each.ends or (None, None)
        usable = "usable" if each.holds(epsilon) else "not usable"
        rows.append([each.model, each.layer, each.dtype, low, high, usable])
    columns = [
        Column("model"), Column("layer", "counted from 0"), Column("numbers", "number format"),
        Column("from", "smallest usable step"), Column("to", "largest usable step"),
        Column(f"{epsilon:g}", "the step size of this run"),
    ]  # fmt: skip
    return Table(
        "jacobian_step_sizes",
        "Which step sizes can be trusted",
        f"Steps whose mean is within {TOLERANCE:.0%} of the same draws' first order.",
        columns,
        rows,
    )


def _texts(compared: Sequence[Comparison], texts: Sequence[str], groups: Sequence[str]) -> Table:
    comparison = next((each for each in compared if each.by_text), None)
    by_text = comparison.by_text if comparison else {}
    columns, rows = [Column("text"), Column("number", "in order, from 0")], []
    for number, text in enumerate(texts):
        relation = groups[number : number + 1]
        rows.append([text, number, *relation, *(float(values[number]) for values in by_text.values())])
    label = comparison.measure.label if comparison else ""
    columns += [Column("relation", "that the text is from")] if groups else []
    columns += [Column(f"{label}, {TITLES[key]}", "mean over layers") for key in by_text]
    return Table(
        "jacobian_texts",
        "Every text",
        "The texts, with the first measure of Table 1 for each.",
        columns,
        rows,
    )
