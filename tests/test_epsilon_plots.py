"""The picture draws what there is to draw, in the cases that differ."""

import dataclasses
import io

import matplotlib.image
import numpy as np
import pytest

from jaxprobe.figures import render
from jaxprobe.jacobians.agreement import step_sizes
from jaxprobe.jacobians.epsilon_plots import epsilon_story
from jaxprobe.jacobians.epsilon_sweep import EPSILONS, EpsilonStudy
from jaxprobe.jacobians.verdict import Verdict


def study(error: float) -> EpsilonStudy:
    rng = np.random.default_rng(0)
    linear = rng.uniform(1, 2, (10, 4))
    change = linear * (1 + error + EPSILONS**2)[:, None, None]
    rounded = change * (1 + 1e-6 / EPSILONS)[:, None, None]
    moments = np.full(4, 1.5), np.full(4, 1 / 12)
    return EpsilonStudy(1, EPSILONS, {"float32": rounded, "float64": change}, linear, *moments)


def titles(figure) -> str:
    return "\n".join(axes.get_title() for axes in figure.axes)


def test_two_models():
    verdicts = {layer: Verdict(0.5 * layer, 0.1) for layer in range(7)}
    figure = epsilon_story(
        {"mamba": study(0), "gpt2": study(0)}, dict.fromkeys(["mamba", "gpt2"], verdicts), 0.01
    )
    height, width, _ = matplotlib.image.imread(io.BytesIO(render(figure)["png"])).shape
    assert width > 1200 and height > width
    words = titles(figure)
    assert "float32 0.0002154 to 0.04642, float64 1e-06 to 0.04642" in words
    assert "Mamba, each layer" in words and "GPT-2, each layer" in words
    assert "6 of 7 agree (limit 3)" in words  # 0.5 * 6 + 0.1 is beyond it


def test_one_model_one_layer_and_no_usable_step():
    figure = epsilon_story({"gpt2": study(0.5)}, {"gpt2": {3: Verdict(0.0, 8.0)}}, 0.02)
    words = titles(figure)
    assert "float32 no step, float64 no step" in words and "0 of 1 agree" in words
    assert figure.axes[3].get_xticks().tolist() == [3]


def test_no_error_is_cut_off():
    small = dataclasses.replace(study(0), epsilons=EPSILONS / 100)
    change = {dtype: small.linear * (1 + small.epsilons**2)[:, None, None] for dtype in small.change}
    figure = epsilon_story(
        {"gpt2": dataclasses.replace(small, change=change)}, {"gpt2": {1: Verdict(0.0, 0.0)}}, 0.01
    )
    axes = figure.axes[1]
    assert all(
        values[values > 0].min() > axes.get_ylim()[0]
        for values in (np.asarray(line.get_ydata()) for line in axes.lines[:2])
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [0.0, np.nan])
def test_a_jacobian_without_size_has_nothing_to_show(size):
    whole = study(0)
    none = dataclasses.replace(
        whole,
        change={dtype: np.full_like(change, size) for dtype, change in whole.change.items()},
        linear=np.full_like(whole.linear, size),
        expected=np.full(4, size),
        variance=np.full(4, size),
    )
    figure = epsilon_story({"gpt2": none}, {"gpt2": {}}, 0.01)
    assert render(figure)["png"] and "none compared" in titles(figure)
    assert all([text.get_text() for text in axes.texts] == ["nothing to show"] for axes in figure.axes)
    assert [sizes.ends for sizes in step_sizes({"gpt2": none})] == [None, None]
