"""The tables of the report on Jacobians."""

from collections.abc import Iterator, Mapping, Sequence

from jaxprobe.array_typing import np
from jaxprobe.jacobians.epsilon_sweep import DTYPES, TOLERANCE, EpsilonStudy
from jaxprobe.jacobians.measures import MEASURES, Layer, compare
from jaxprobe.jacobians.verdict import layer_verdict
from jaxprobe.loading import TITLES
from jaxprobe.report.content import Cell, Column, Table

# What a run may leave behind, of which one with other settings makes only some.
TABLES = (
    "jacobian_measures", "jacobian_layers", "jacobian_agreement", "jacobian_step_sizes", "jacobian_texts"
)  # fmt: skip


def report_tables(
    layers: Mapping[str, Sequence[Layer]],
    texts: Sequence[str],
    studies: Mapping[str, EpsilonStudy],
    epsilon: float,
) -> Iterator[Table]:
    """Those there is something to put into.

    Args:
      layers: by architecture, as `layers_of` makes them.
      texts: as measured.
      studies: sweeps over step sizes, by architecture.
      epsilon: the step size of the run.
    """
    yield _measures(layers)
    yield _by_layer(layers)
    if agreement := _agreement(layers):
        yield agreement
    if studies:
        yield _step_sizes(studies, epsilon)
    yield _texts(layers, texts)


def _measures(layers: Mapping[str, Sequence[Layer]]) -> Table:
    two = len(layers) == 2
    columns = [Column("measure"), *(Column(TITLES[key], "mean over texts and layers") for key in layers)]
    if two:
        columns += [
            Column("ratio", "Mamba / GPT-2, of these means"),
            Column("median", "of the texts' own ratios"),
            Column(
                "low", "end of an interval for the median ratio over texts like these, of order statistics"
            ),
            Column("high", "the other end"),
            Column(
                "confidence", "percent: the interval's exact confidence; below 95 for fewer than six texts"
            ),
            Column("Mamba larger", "texts on which Mamba's value is the larger"),
            Column("texts", "how many were compared"),
        ]
    rows = []
    for comparison in compare(layers):
        row: list[Cell] = [comparison.measure.label, *comparison.means.values()]
        if two:
            row.append(comparison.ratio)
            found, ratios = comparison.interval, comparison.ratios
            if found is None or ratios is None or found.confidence == 0:
                row += [None] * 6
            else:
                larger = int((ratios > 1).sum())
                row += [found.median, found.low, found.high, 100 * found.confidence, larger, len(ratios)]
        rows.append([*row, comparison.measure.meaning])
    return Table(
        "jacobian_measures",
        "Both models, measure by measure" if two else "Measure by measure",
        "Means over the layers measured. last: only the last token's row moves; sequence: every row.",
        [*columns, Column("what it is")],
        rows,
    )


def _by_layer(layers: Mapping[str, Sequence[Layer]]) -> Table:
    asked = [measure for measure in MEASURES if all(measure.of(rows) is not None for rows in layers.values())]
    rows = [
        [TITLES[key], layer[0].layer, *(float(np.mean(measure.get(*layer))) for measure in asked)]  # pyright: ignore
        for key, each in layers.items()
        for layer in each
    ]
    columns = [Column("model"), Column("layer", "counted from 0")]
    return Table(
        "jacobian_layers",
        "Every layer",
        "Means over texts.",
        [*columns, *(Column(measure.label, measure.meaning) for measure in asked)],
        rows,
    )


def _agreement(layers: Mapping[str, Sequence[Layer]]) -> Table | None:
    rows = []
    for key, each in layers.items():
        for layer, _ in each:
            verdict, expected, sampled = layer_verdict(layer), layer.expected, layer.sampled
            if verdict is None or expected is None or sampled is None:
                return None
            means = float(expected.mean.mean()), float(sampled.mean.mean())
            words = verdict.words
            rows.append([TITLES[key], layer.layer, *means, verdict.monte_carlo, verdict.curvature, words])
    columns = [
        Column("model"),
        Column("layer", "counted from 0"),
        Column("exact", "expected sensitivity to noise on every row, from the singular values"),
        Column("sampled", "the same by finite differences"),
        Column("Monte-Carlo", "the draws' first-order part less the exact value, in exact standard errors"),
        Column("curvature", "the rest of the difference, in the same unit"),
        Column("verdict", "agrees where both are within three standard errors"),
    ]
    return Table(
        "jacobian_agreement",
        "Exact against finite differences",
        "Means over the sampled texts.",
        columns,
        rows,
    )


def _step_sizes(studies: Mapping[str, EpsilonStudy], epsilon: float) -> Table:
    rows = []
    for key, study in studies.items():
        for dtype in DTYPES:
            ends = study.usable(dtype)
            low, high = ends or (None, None)
            inside = ends is not None and ends[0] <= epsilon <= ends[1]
            rows.append([TITLES[key], study.layer, dtype, low, high, "usable" if inside else "not usable"])
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


def _texts(layers: Mapping[str, Sequence[Layer]], texts: Sequence[str]) -> Table:
    comparison = next((each for each in compare(layers) if each.by_text), None)
    columns, rows = [Column("text"), Column("number", "in order, from 0")], []
    by_text = comparison.by_text if comparison else {}
    for number, text in enumerate(texts):
        rows.append([text, number, *(float(values[number]) for values in by_text.values())])
    label = comparison.measure.label if comparison else ""
    columns += [Column(f"{label}, {TITLES[key]}", "mean over layers") for key in by_text]
    return Table(
        "jacobian_texts",
        "Every text",
        "The texts, with the first measure of Table 1 for each.",
        columns,
        rows,
    )
