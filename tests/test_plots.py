"""The maps: every token named, whatever its letters; one scale of colours; nothing drawn where J is zero."""

import dataclasses
import re

import numpy as np
import pytest
from support import TINY
from test_tables import planted, without_jacobian

from jaxprobe.figures import render, subplots
from jaxprobe.jacobians import plots

TOKENS = ["The", " price", " $5", "$", "\t", "\ufffd", "京", "\\frac"]


def with_blocks(blocks: list[np.ndarray]):
    """A model of one layer a list entry, each with the position norms of one text."""
    model = planted(1)
    (layer,) = model.layers
    layers = tuple(
        dataclasses.replace(
            layer,
            layer=place,
            exact={"sequence": dataclasses.replace(layer.exact["sequence"], position_norms=(norms,))},
        )
        for place, norms in enumerate(blocks)
    )
    return dataclasses.replace(model, layers=layers)


def test_maps_name_every_token_and_leave_zero_blank():
    last = np.zeros(len(TOKENS))
    last[-1] = 3.0
    deep = with_blocks([np.geomspace(0.01, 50, len(TOKENS)), last])
    flat = with_blocks([np.full(len(TOKENS), 2.0)])
    figure = plots.token_layer_maps({"mamba": deep, "gpt2": flat}, {key: [TOKENS] for key in TINY})
    assert render(figure)["png"].startswith(b"\x89PNG")
    mamba, gpt2, bar = figure.axes
    labels = [label.get_text() for label in mamba.get_xticklabels()]
    assert labels == ["The", "␣price", "␣$5", "$", "\\t", "<byte>", "\\u4eac", "\\frac"]
    assert not any(label.get_parse_math() for label in mamba.get_xticklabels())
    (image,), (other,) = mamba.get_images(), gpt2.get_images()
    drawn = image.get_array()
    np.testing.assert_allclose(drawn[0], np.geomspace(0.01, 50, len(TOKENS)))
    assert drawn.mask[1].tolist() == [True] * 7 + [False]
    assert image.norm is other.norm and (image.norm.vmin, image.norm.vmax) == (0.01, 50)
    assert "Frobenius" in bar.get_ylabel()


def test_a_long_text_names_some_tokens_and_equal_norms_can_be_drawn():
    model = with_blocks([np.full(128, 2.0)])
    figure = plots.token_layer_maps({"gpt2": model}, {"gpt2": [["w"] * 128]})
    assert render(figure)["svg"]
    ticks = figure.axes[0].get_xticks()
    assert len(ticks) <= 48 and ticks[0] == 0


def test_profiles_show_the_relative_gain_where_it_exists():
    figures = (
        plots.layer_profiles({"mamba": planted(2), "gpt2": planted(1)}, 4),
        plots.layer_profiles({"gpt2": planted(1, None, compared=False)}, 4, "fisher"),
    )
    shown, without = ({axes.get_title() for axes in figure.axes} for figure in figures)
    assert "Relative gain, sequence" in shown and shown - without >= {"Relative gain, last token"}
    assert "metric fisher" in figures[1].get_suptitle()
    assert "Secant ratios of neighbouring texts\n(3 pairs)" in shown
    assert "Sampled finite difference, sequence" in shown  # of as many texts as the title says


def test_the_same_figure_gives_the_same_bytes_in_every_format():
    first, second = (
        render(plots.layer_profiles({"mamba": planted(2), "gpt2": planted(1)}, 4)) for _ in range(2)
    )
    assert first == second
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert first.keys() == starts.keys()
    for suffix, data in first.items():
        assert data.startswith(starts[suffix])
        assert b"Date>" not in data and b"CreationDate" not in data


def test_a_figure_is_laid_out_whole():
    """Nothing of it may lie outside the picture, in any format: they share one layout."""
    figure, ((left, right),) = subplots(1, 2, (6, 3))
    left.set(ylabel="a label that needs room", title="left")
    right.set(xlabel="below", title="right")
    right.title.set_fontsize(7)
    render(figure)
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    assert right.title.get_fontsize() == 7 and right.get_title() == "right"


def test_a_title_stands_above_labels_on_top():
    figure, ((axes,),) = subplots(1, 1, (4, 3), grid=False)
    axes.xaxis.tick_top()
    axes.set(title="title", xticks=(0, 1), xticklabels=("a", "b"))
    render(figure)
    labels = [label.get_window_extent().y1 for label in axes.get_xticklabels()]
    assert axes.title.get_window_extent().y0 >= max(labels)


def glyph(letter: str) -> str:
    """How SVG names its shape."""
    figure, ((axes,),) = subplots(1, 1, (1, 1))
    axes.set_axis_off()
    axes.set_title(letter)
    return re.findall(r'<use .*?href="(#[^"]+")', render(figure)["svg"].decode())[0]


@pytest.mark.parametrize("label", ["US$ per A$", r"$\foo$", r"a\$b $x^2$"])
def test_text_is_shown_as_it_is_written(label):
    """Wherever a relation's name may stand; powers of ten beside it are still powers."""
    figure, ((left, right),) = subplots(1, 2, (8, 4))
    left.plot([1, 2], [1e-3, 1e3], label=label)
    left.set(yscale="log", title=label, xlabel=label)
    left.annotate(label, (1, 1))
    left.legend()
    right.set_xticks([0, 1], [label, label], rotation=90)
    figure.legend(handles=left.lines)
    figure.suptitle(label)
    drawn = render(figure)["svg"].decode()
    assert drawn.count(glyph("$")) == 8 * label.count("$")
    assert any("10^{-2}" in text.get_text() for text in left.get_yticklabels()) and glyph("{") not in drawn


def texts_in(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [0.0, np.nan])
def test_what_has_no_value_is_said_to_be_nothing(size):
    models = {key: without_jacobian(size) for key in TINY}
    figure = plots.layer_profiles(models, 4)
    render(figure)
    empty = {axes.get_title() for axes in figure.axes if texts_in(axes) == ["nothing to show"]}
    assert "Stable rank, sequence" in empty and "Effective rank of last-token states" not in empty
    assert ("Exact σ₁, sequence" in empty) == bool(np.isnan(size))
    maps = plots.token_layer_maps(models, {key: [["a", "b", "c"]] for key in TINY})
    render(maps)
    assert [texts_in(axes) for axes in maps.axes[:2]] == [["nothing to show"]] * 2
    assert ("or not finite" in maps.get_suptitle()) == bool(np.isnan(size))


@pytest.mark.filterwarnings("error")
def test_points_that_are_not_finite_are_left_out():
    models = {"mamba": without_jacobian(np.nan), "gpt2": planted(1)}
    figure = plots.exact_versus_sampled(models, 10, 0.01)
    render(figure)
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert [label for label in labels if "inside" in label] == ["GPT-2, 100% inside"]


def test_bars_of_equal_values_have_no_length_below_zero():
    equal = np.full(3, 0.1)
    mean = np.array([equal.mean()])
    assert mean > 0.1  # by rounding
    assert (plots.bars(mean, equal[:1], equal[:1]) >= 0).all()
