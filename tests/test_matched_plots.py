"""The pictures of the matched protocol: what they hold, no label over another, one model alone."""

import dataclasses

import matched_synthetic as synthetic
import numpy as np
import pytest
from matplotlib.text import Text

from jaxprobe import figures
from jaxprobe.matched import linearity_plots, map_plots, report
from jaxprobe.matched import plots as matched_plots
from jaxprobe.matched.common_plots import Drawing, brief_name, sorted_names
from jaxprobe.matched.summary import summarise


def random_sets(results):
    return matched_plots.random_sets(results, summarise(results, synthetic.sizes(results), draws=199))


MAKERS = {
    "random_sets": random_sets,
    "single_units": matched_plots.single_units,
    "layers": map_plots.layer_maps,
    "selectivity": map_plots.selectivity_maps,
    "scales": matched_plots.factor_sweep,
}


@pytest.fixture(scope="module")
def results():
    effects = np.random.default_rng(5).gamma(2, 0.05, 24)
    facts = [3, *[20] * 23]
    return synthetic.results(effects, 0.6 * effects, facts=facts)


@pytest.fixture(scope="module")
def summary(results):
    return summarise(results, synthetic.sizes(results), draws=199)


def overlapping(labels) -> bool:
    boxes = sorted(
        (label.get_window_extent() for label in labels if label.get_text()), key=lambda b: (b.y0, b.x0)
    )
    return any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[place + 1 :] if a is not b)


def check(figure) -> None:
    files = figures.render(figure)
    assert files["png"].startswith(b"\x89PNG")
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert not overlapping(labels), axes.get_title()
    width = figure.bbox.width
    for each in (*figure.legends, *figure.texts):
        box = each.get_window_extent()
        assert 0 <= box.x0 and box.x1 <= width, "cut off"


def test_every_picture_is_described_and_has_a_name_of_its_own():
    drawn = [each for module in (matched_plots, map_plots, linearity_plots) for each in vars(module).values()]
    drawn = [each for each in drawn if isinstance(each, Drawing)]
    assert {each.name for each in drawn} == {"effects", *MAKERS, "predictions", "strengths"}
    assert len(drawn) == 8 and all(all(each[:4]) for each in drawn)
    files = {f"images/matched_{each.name}.png" for each in drawn}
    assert files == {name for name in report.ALL_FILES if name.endswith(".png")}


def test_effects_of_24_relations_sorted_with_intervals(summary):
    figure = matched_plots.effects(summary)
    check(figure)
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    values = {brief_name(n): row.delta["token"].value for n, row in summary.relations["Mamba"].items()}
    assert labels[0] == "mean over relations" and labels[1:] == sorted(values, key=values.__getitem__)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["Mamba", "GPT-2", "too few facts or relations for an interval"]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert len(hollow) == 2  # the relation of three facts, on both models


@pytest.mark.parametrize("name", MAKERS)
def test_labels_of_24_relations_do_not_overlap(name, results):
    check(MAKERS[name](results))


@pytest.mark.parametrize("name", MAKERS)
def test_one_model_alone(name, results):
    check(MAKERS[name]({"GPT-2": results["GPT-2"]}))


def test_models_are_in_the_legend_where_every_relation_has_too_few_facts():
    results = synthetic.results(np.full(2, 0.3), np.full(2, 0.1), facts=[3, 3])
    figure = matched_plots.effects(summarise(results, synthetic.sizes(results), draws=99))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["Mamba", "GPT-2", "too few facts or relations for an interval"]


LONG = [
    "x<script>alert(1)</script> (café & <b>bold</b> _under$score% \\alpha)",
    "in_which_continent_a_country_lies (continent on which the country lies)",
    "COUNTRY_OF_CITIZENSHIP_OF_A_PERSON (WHOSE PASSPORT THE PERSON HOLDS)",
    "two\nlines " + "w" * 100,
    "short",
]


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", ["effects", *MAKERS])
def test_long_names_are_shortened_and_nothing_is_cut(monkeypatch, recwarn, name, count, models):
    monkeypatch.setattr(synthetic, "RELATIONS", LONG)
    costs = np.linspace(0.1, 0.3, count)
    made = synthetic.results(costs, costs if models > 1 else None)
    told = summarise(made, synthetic.sizes(made), draws=99)
    figure = matched_plots.effects(told) if name == "effects" else MAKERS[name](made)
    check(figure)
    assert [str(each.message) for each in recwarn] == []  # as of a layout that was given up
    words = [each for each in figure.findobj(Text) if any(map(str.isalpha, each.get_text()))]
    width, height = figure.bbox.size  # of the PDF, the last that was drawn
    for each in words:
        box = each.get_window_extent()
        assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height, each
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>":
            assert min(axes.get_window_extent().size) > 60, "no room left for the values"
    for legend in figure.legends:
        others = set(words) - set(legend.findobj(Text))
        assert not any(legend.get_window_extent().overlaps(each.get_window_extent()) for each in others)


def test_a_long_name_keeps_its_ends():
    assert all(brief_name(name) == name.replace("_", " ") for name in synthetic.RELATIONS)
    for name in LONG[:4]:
        start, end = brief_name(name).split("…")
        whole = " ".join(name.replace("_", " ").split())
        assert whole.startswith(start) and whole.endswith(end) and len(start + end) <= 29


def test_the_chosen_sets_interval_is_drawn_where_there_is_one(results, summary):
    for axes, title in zip(matched_plots.random_sets(results, summary).axes, results, strict=True):
        drawn = {tuple(line.get_xdata()) for line in axes.lines}
        ends = [each.delta["token"] for each in summary.relations[title].values()]
        assert sum((each.low, each.high) in drawn for each in ends) == 23  # not of the one of three facts


def test_units_ringed_or_named_have_intervals_over_relations(results):
    few = synthetic.results(np.full(4, 0.3))
    for made, bars in ((results, 2), (few, 1)):  # beside the stems of all units
        for axes in matched_plots.single_units(made).axes:
            stems = [each for each in axes.collections if hasattr(each, "get_segments")]
            assert len(stems) == bars
            if bars > 1:
                ringed = {*range(synthetic.UNITS), *synthetic.OUTLIERS}
                assert {round(x) for ((x, _), _) in stems[1].get_segments()} >= ringed


def test_a_pictures_own_intervals_come_of_the_runs_seed(results, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "render", lambda figure: drawn.append(figure) or {})
    for seed in (1, 2):
        told = summarise(results, synthetic.sizes(results), draws=99, seed=seed)
        list(report._figures(results, told, ("units",)))
        makers = (matched_plots.single_units, matched_plots.factor_sweep)
        for figure, draw in zip(drawn[-2:], makers, strict=True):
            same, other = (bars(draw(results, seed=number)) for number in (seed, 3 - seed))
            assert bars(figure) == same != other


def test_a_sweep_passes_through_the_unedited_model():
    made = synthetic.results(np.full(2, 0.3))
    for name, each in made["Mamba"].relations.items():
        keep = [5, 0, 1, 2]  # 1.5 first; no factor 1
        fewer = dataclasses.replace(each, scales=each.scales[keep], after_scales=each.after_scales[keep])
        made["Mamba"].relations[name] = fewer
    (axes,) = matched_plots.factor_sweep(made).axes
    line = axes.lines[-3]  # before those at 0 and 1
    assert line.get_xdata().tolist() == [0, 0.25, 0.5, 1, 1.5] and line.get_ydata()[3] == 0


def bars(figure) -> list:
    """The ends of the lines drawn last: the intervals."""
    lines = [each for each in figure.axes[0].collections if hasattr(each, "get_segments")]
    return np.array(lines[-1].get_segments()).tolist()


def test_maps_share_one_scale_and_hold_the_changes(results):
    figure = map_plots.layer_maps(results)
    first, second = (axes.get_images()[0] for axes in figure.axes[:2])
    assert first.norm is second.norm and first.norm.vmin == -first.norm.vmax
    top = sorted_names(results)[-1]
    relation, layers = results["Mamba"].relations[top], results["Mamba"].layers[top]
    change = (layers.sum(axis=1) - relation.facts.before.sum()) / relation.facts.tokens.sum()
    np.testing.assert_allclose(first.get_array()[0], change)
    matrix = map_plots.selectivity_maps(results).axes[0].get_images()[0].get_array()
    assert matrix.shape == (24, 24) and matrix[0, 0] == pytest.approx(relation.facts.delta_nats)


def test_outlying_units_are_named(results):
    for axes in matched_plots.single_units(results).axes:
        named = {int(text.get_text()) for text in axes.texts}
        assert named >= set(synthetic.OUTLIERS) and len(named) <= 6


def test_values_that_would_crowd_the_others_make_the_axis_logarithmic():
    effects = np.array([0.01, 0.02, 0.015, 0.01, 0.02, 5.0])
    figure = random_sets(synthetic.results(effects, effects))
    check(figure)
    assert all(axes.get_xscale() == "symlog" and "beyond" in axes.get_xlabel() for axes in figure.axes)
