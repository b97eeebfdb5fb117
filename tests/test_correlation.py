"""A trend over relations: its line, and an interval of its correlation that says how few they are."""

import numpy as np
import pytest
from scipy.stats import pearsonr

from jaxprobe.statistics.correlation import trend


def test_the_line_and_fishers_interval():
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    y = 0.5 * x + rng.normal(size=12)
    found, known = trend(x, y), pearsonr(x, y)
    interval = known.confidence_interval(0.95)
    assert found is not None and found.points == 12
    assert found.correlation.value == pytest.approx(known.statistic)
    assert (found.correlation.low, found.correlation.high) == pytest.approx((interval.low, interval.high))
    assert found.slope * x.mean() + found.start == pytest.approx(y.mean())
    assert found.words.endswith("], n = 12")


def test_few_points_have_no_interval_and_fewer_no_trend():
    x = np.array([1.0, 2, 3, np.nan, 4])
    found = trend(x, np.array([1.0, 2, 2, 5, 4]))
    assert found is not None and found.points == 4 and found.correlation.low is None
    assert found.words == "r = +0.92, n = 4, too few for an interval"
    assert trend(x[:2], x[:2]) is None and trend(np.ones(5), np.arange(5.0)) is None


def test_x_may_be_put_through_a_scale_first():
    found = trend(np.exp(np.arange(6.0)), 2 * np.arange(6.0), scale=np.log)
    assert found is not None and found.slope == pytest.approx(2)
    assert found.correlation.low == pytest.approx(1)
