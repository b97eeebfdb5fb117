"""The maps: every token named, whatever its letters; one scale of colours; nothing drawn where J is zero."""

import dataclasses

import numpy as np
import pytest
from support import TINY
from test_tables import planted

from jaxprobe import plots

TOKENS = ["The", " price", " $5", "$", "\t", "\ufffd", "京", "\\frac"]


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures drawn, before they are closed."""
    drawn = []
    png = plots.png
    monkeypatch.setattr(plots, "png", lambda figure: (drawn.append(figure), png(figure))[1])
    return drawn


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


def test_maps_name_every_token_and_leave_zero_blank(figures):
    last = np.zeros(len(TOKENS))
    last[-1] = 3.0
    deep = with_blocks([np.geomspace(0.01, 50, len(TOKENS)), last])
    flat = with_blocks([np.full(len(TOKENS), 2.0)])
    picture = plots.token_layer_maps({"mamba": deep, "gpt2": flat}, {key: [TOKENS] for key in TINY})
    assert picture.startswith(b"\x89PNG")
    mamba, gpt2, bar = figures[0].axes
    labels = [label.get_text() for label in mamba.get_xticklabels()]
    assert labels == ["The", "␣price", "␣$5", "$", "\\t", "<byte>", "\\u4eac", "\\frac"]
    assert not any(label.get_parse_math() for label in mamba.get_xticklabels())
    (image,), (other,) = mamba.get_images(), gpt2.get_images()
    drawn = image.get_array()
    np.testing.assert_allclose(drawn[0], np.geomspace(0.01, 50, len(TOKENS)))
    assert drawn.mask[1].tolist() == [True] * 7 + [False]
    assert image.norm is other.norm and (image.norm.vmin, image.norm.vmax) == (0.01, 50)
    assert "Frobenius" in bar.get_ylabel()


def test_a_long_text_names_some_tokens_and_equal_norms_can_be_drawn(figures):
    model = with_blocks([np.full(128, 2.0)])
    assert plots.token_layer_maps({"gpt2": model}, {"gpt2": [["w"] * 128]})
    ticks = figures[0].axes[0].get_xticks()
    assert len(ticks) <= 48 and ticks[0] == 0


def test_profiles_show_the_relative_gain_where_it_exists(figures):
    plots.layer_profiles({"mamba": planted(2), "gpt2": planted(1)}, 4)
    plots.layer_profiles({"gpt2": planted(1, None, compared=False)}, 4, "fisher")
    shown, without = ({axes.get_title() for axes in figure.axes} for figure in figures)
    assert "Relative gain, sequence" in shown and shown - without >= {"Relative gain, last token"}
    assert "metric fisher" in figures[1].get_suptitle()
