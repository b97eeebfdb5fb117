"""The verdict on a layer."""

import dataclasses

import numpy as np
import pytest
from test_tables import planted, without_jacobian

from jaxprobe.jacobians.verdict import (
    Verdict,
    family_limit,
    layer_verdict,
    not_compared,
    scores,
    usual_largest,
    verdict,
    verdicts,
)


def test_scores_are_in_standard_errors_of_the_mean_over_texts():
    expected, stderr = np.array([1.0, 2.0]), np.array([0.3, 0.4])  # of the mean: sqrt(0.09 + 0.16) / 2 = 0.25
    found = verdict(expected + 1.0, expected + 0.5, expected, stderr)
    assert (found.monte_carlo, found.curvature, found.total) == pytest.approx((2, 2, 4))


def test_gaussian_means_have_scores_of_variance_one():
    rng = np.random.default_rng(0)
    stderr = np.array([0.1, 0.5, 2.0])
    scores = [verdict(x, x, np.zeros(3), stderr).total for x in rng.normal(0, stderr, (2000, 3))]
    assert np.std(scores) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(
    ("monte_carlo", "curvature", "words"),
    [
        (-2.9, 0.5, "agrees within sampling error"),
        (2.0, 2.0, "the step is too large (curvature) or too small (rounding)"),
        (-3.1, 2.0, "the draws do not agree with the exact expectation"),
    ],
)
def test_words(monte_carlo, curvature, words):
    assert Verdict(monte_carlo, curvature).words == words


def test_the_limit_keeps_the_chance_of_one_test_however_many_layers():
    assert family_limit(1) == pytest.approx(3, abs=1e-12)
    scores = np.abs(np.random.default_rng(0).standard_normal((100_000, 30))).max(axis=1)
    assert np.mean(scores > family_limit(30)) == pytest.approx(0.0027, abs=5e-4)
    assert np.median(scores) == pytest.approx(usual_largest(30), abs=0.02)


def test_layers_of_both_models_are_tested_together():
    deep = planted(1, draws=3.3)
    layers = tuple(dataclasses.replace(deep.layers[0], layer=number) for number in range(6))
    alone = verdicts({"gpt2": deep})["gpt2"][0]
    many = verdicts({"mamba": dataclasses.replace(deep, layers=layers), "gpt2": deep})
    assert alone.limit == pytest.approx(3) and not alone.agrees
    assert [found.limit for found in many["mamba"].values()] == [many["gpt2"][0].limit] * 6
    assert many["gpt2"][0].limit == family_limit(7) > 3.3 and many["gpt2"][0].agrees


def test_a_draw_without_variance_scores_nothing():
    assert scores(np.array([1.0, 2.0]), np.array([0.0, 4.0])).tolist() == [0, 0.5]


def test_what_is_not_finite_is_not_compared_and_does_not_agree():
    (layer,) = without_jacobian(np.nan).layers
    assert layer_verdict(layer) is None
    assert not_compared(layer) == "not compared: the singular values of the exact Jacobian are not finite"
    assert np.isnan(scores(np.array([np.nan]), np.array([np.nan]))).all()
    overflow = Verdict(0.1, np.nan)
    assert not overflow.agrees and overflow.words.startswith("the step is too large")
    assert Verdict(0.1, 0.1, np.nan).words.startswith("the Jacobian is unchecked")
