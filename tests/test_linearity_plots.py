"""Pictures of linearity: what was predicted lies on the diagonal, and marks stand where first order fails."""

import dataclasses
import itertools

import matched_synthetic as synthetic
import numpy as np
import pytest
from matplotlib.lines import Line2D

from jaxprobe.figures import render
from jaxprobe.matched.linearity_plots import predictions, strength_curves
from jaxprobe.matched.linearity_tables import alone_table, strength_table
from jaxprobe.matched.results import Curves, Linearity, ModelEffects, RelationEffects
from jaxprobe.matched.summary import summarise
from jaxprobe.neurons import SensitiveUnits
from jaxprobe.statistics.fact_scores import FactScores

STRENGTHS = np.linspace(0.05, 1, 20)
TOKENS = np.array([4, 6])


def relation(a: float, b: float, unit_effects: list[float] | None = None) -> RelationEffects:
    """Of two facts, whose change is a s + b s^2 in all, half of it in each; single units are linear."""
    change = (a * STRENGTHS + b * STRENGTHS**2) / 2
    before, half = np.array([10.0, 20.0]), np.ones(2) / 2
    alone = None if unit_effects is None else np.outer(unit_effects, half)
    units = None if alone is None else Curves(alone, 0 * alone)
    facts = FactScores(before, before + change[-1], TOKENS)
    return RelationEffects(
        SensitiveUnits((0,), (1.0,)), (0, 1), (2, 3), facts, facts, {}, {}, {},
        units=None if alone is None else before + alone,
        linearity=Linearity(STRENGTHS, np.outer(change, [1, 1]), Curves(a * half, 2 * b * half), units),
    )  # fmt: skip


RESULTS = {
    "Mamba": ModelEffects(
        {"P1": relation(2, 1, [0.5, -1e-4, 1e-4, 2e-4]), "P2": relation(1, 0, [0.0, 1e-4])}
    ),
    "GPT-2": ModelEffects({"P1": relation(-4, -1, [0.1] + 80 * [1e-4]), "P2": relation(0, 0, [0.0])}),
}


def points(axes, marker: str) -> np.ndarray:
    """Of units or, strength by strength, of chosen sets."""
    return np.array([line.get_data() for line in axes.lines if line.get_marker() == marker]).swapaxes(1, 2)


def test_predictions_are_nats_per_token_on_one_pair_of_axes():
    figure = predictions(RESULTS)
    first, gpt2_first, second, gpt2_second = figure.axes
    s, zero = STRENGTHS, 0 * STRENGTHS
    for axes, marker, predicted, measured, other in (
        (first, "o", 0.2 * s, 0.2 * s + 0.1 * s**2, 0.1 * s),
        (second, "o", 0.2 * s + 0.1 * s**2, 0.2 * s + 0.1 * s**2, 0.1 * s),
        (gpt2_first, "s", -0.4 * s, -0.4 * s - 0.1 * s**2, zero),
        (gpt2_second, "s", -0.4 * s - 0.1 * s**2, -0.4 * s - 0.1 * s**2, zero),
    ):
        expected = np.stack([np.stack([predicted, measured], axis=-1), np.stack([other, other], axis=-1)], 1)
        np.testing.assert_allclose(points(axes, marker), expected, atol=1e-12)
        sizes = [line.get_markersize() for line in axes.lines if line.get_marker() == marker]
        assert sizes == sorted(set(sizes))
    for axes in (second, gpt2_second):
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert [label for label in labels if "chosen" in label] == [
            f"a relation's chosen units, strength {strength} (2)" for strength in ("0.05", "1")
        ]
    (units,) = points(first, ".")
    assert len(units) == 6
    np.testing.assert_allclose(units[:, 0], units[:, 1], atol=1e-12)
    assert {axes.get_xlim() for axes in figure.axes} == {axes.get_ylim() for axes in figure.axes}
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert {axes.get_xscale() for axes in figure.axes} == {"symlog"}  # 1e-5 beside 0.5
    assert all(value.startswith(magic) for value, magic in zip(
        render(figure).values(), (b"\x89PNG", b"<?xml", b"%PDF"), strict=True))  # fmt: skip


@pytest.mark.parametrize("titles", [("Mamba",), ("Mamba", "GPT-2")])
@pytest.mark.parametrize("effect", [0.1, 30.0])  # the larger makes the axes logarithmic
def test_no_label_of_a_real_size_is_cut_or_over_another(titles, effect):
    units = [effect, -effect, *[0.09, -0.08] * 20]
    results = {title: ModelEffects({"P1": relation(0.09, 0.01, units)}) for title in titles}
    for figure in (predictions(results), strength_curves(results)):
        render(figure)
        width, height = figure.bbox.size
        for text in figure.texts:
            box = text.get_window_extent()
            assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height, text.get_text()
        for axes in figure.axes:
            (low, high), labels = axes.get_xlim(), axes.get_xticklabels()
            boxes = [each.get_window_extent() for each in labels if low <= each.get_position()[0] <= high]
            assert len(boxes) > 2 and all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_long_names_are_shortened_in_the_titles(recwarn):
    names = [f"RELATION_{number} whose name is much too long (and its label too)" for number in range(5)]
    figure = strength_curves({"Mamba": ModelEffects({name: relation(2, 1) for name in names})})
    render(figure)
    boxes = [axes.title.get_window_extent() for axes in figure.axes[:4]]
    assert boxes[0].x0 >= 0 and boxes[-1].x1 <= figure.bbox.width
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes)) and not recwarn.list


def test_the_table_has_the_points_of_the_picture():
    made = synthetic.results(np.full(2, 0.3))
    told = summarise(made, synthetic.sizes(made), draws=99)
    named = dict(zip(("P1", "P2"), told.relations["Mamba"].values(), strict=True))
    summary = dataclasses.replace(told, relations={"Mamba": named, "GPT-2": named})
    table = strength_table(RESULTS, summary)
    assert table.labels[:2] == ["relation", "strength"] and len(table.rows) == 2 * len(STRENGTHS)
    s = STRENGTHS[3]
    np.testing.assert_allclose([table.rows[3][1], *table.rows[3][2::3]], [
        s, 0.2 * s + 0.1 * s**2, 0.2 * s, 0.2 * s + 0.1 * s**2,
        -0.4 * s - 0.1 * s**2, -0.4 * s, -0.4 * s - 0.1 * s**2,
    ])  # fmt: skip
    assert table.rows[3][3] is table.rows[3][4] is None  # two facts: no interval
    assert strength_table(made, told) is None


def test_single_units_have_their_strengths_in_picture_and_table():
    """Unit 0 is linear; the fact that both effects are of one unit makes measured = predicted."""
    made = synthetic.results(np.full(2, 0.3), np.full(2, 0.3))
    summary = summarise(made, synthetic.sizes(made), draws=99)
    strengths, rng = np.array([0.25, 1.0]), np.random.default_rng(0)
    results = {}
    for title, model in made.items():
        relations = {}
        for name, each in model.relations.items():
            slope = rng.uniform(1, 2, (synthetic.WIDTH, len(each.facts.tokens)))
            curves = Curves(slope, 0.5 * slope)
            alone = strengths[:, None] * slope[:3, None] * (1 + 0.25 * strengths[:, None])
            linearity = Linearity(
                strengths, strengths[:, None] * slope[0], Curves(slope[0], 0 * slope[0]), curves, alone
            )
            relations[name] = dataclasses.replace(each, linearity=linearity)
        results[title] = ModelEffects(relations)
    table = alone_table(results, summary)
    rows = [dict(zip(table.labels, row, strict=True)) for row in table.rows]
    assert len(rows) == 2 * 2 * 3 and [row["unit"] for row in rows[:3]] == [0, 1, 2]
    for row in rows:
        assert (
            row["measured"] == pytest.approx(row["second order"]) == pytest.approx(1.25 * row["first order"])
        )
        assert row["measured, low"] < row["measured"] < row["measured, high"]
        # s / 4 = 0.1 (1 + s / 4), between the two strengths on a line
        assert 0.25 < row["fails at"] < 1
    assert alone_table(made, summary) is None
    (axes, *_) = predictions(results).axes
    (dots,) = [line for line in axes.lines if line.get_marker() == "."]
    assert len(dots.get_xdata()) == 2 * (synthetic.WIDTH + 3)


def test_curves_mark_where_first_order_fails():
    figure = strength_curves(RESULTS)
    p1, p2 = (axes for axes in figure.axes if axes.get_visible())
    assert (p1.get_title(), p2.get_title()) == ("P1", "P2")
    # b s / (a + b s) = 0.1, so s = a / (9 b).
    for marker, expected in (("o", 2 / 9), ("s", 4 / 9)):
        marks = [line for line in p1.lines if line.get_marker() == marker and line.get_markersize() == 7]
        assert marks[0].get_xdata()[0] == pytest.approx(expected, abs=2e-3)
        measured = [line for line in p1.lines if line.get_marker() == marker and line.get_markersize() == 4]
        assert measured[0].get_ydata()[-1] == pytest.approx(0.3 if marker == "o" else -0.5)
    assert not any(isinstance(line, Line2D) and line.get_markersize() == 7 for line in p2.lines)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["Mamba, measured", "GPT-2, measured"] and "first order off by 10%" in labels


def test_models_without_units_or_relations_of_one_model():
    alone = {"GPT-2": ModelEffects({"P1": relation(2, 1)})}
    (first, _) = predictions(alone).axes
    assert points(first, "s").shape == (20, 1, 2) and first.get_xscale() == "linear"
    assert len(strength_curves(alone).axes) == 1
