"""The verdict on a layer."""

import numpy as np
import pytest

from jaxprobe.jacobians.verdict import Verdict, verdict


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
