"""Intervals of the seed protocol: around the original numbers, and none where sentences are few."""

import numpy as np
import pytest

from jaxprobe.original.intervals import (
    MEASURES,
    TERMS,
    difference,
    intervals,
    logarithms,
    over_relations,
    resamples,
)
from jaxprobe.statistics.fact_scores import FactScores
from jaxprobe.statistics.percentage import Change, decompose


def planted(texts: int, rise: float, seed: int = 0) -> tuple[Change, FactScores]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, 13, texts)
    before = tokens * rng.gamma(8, 1 / 8, texts)
    after = before + tokens * rise * rng.gamma(4, 1 / 4, texts)
    change = Change(before.sum() / tokens.sum(), after.sum() / tokens.sum(), 0.0, 0.0)
    return change, FactScores(before, after, tokens)


def test_each_measure_stands_within_its_interval():
    change, scores = planted(30, 0.2)
    found = intervals(change, scores, resamples(30, 0, "P1"))
    assert found == intervals(change, scores, resamples(30, 0, "P1"))
    for other in (resamples(30, 0, "P2"), resamples(30, 1, "P1")):
        assert found != intervals(change, scores, other)
    for measure in MEASURES:
        each = found[measure]
        assert each.value == getattr(change, measure) and each.low < each.value < each.high
    nats, percent = found["delta_nats"], found["percentage"]
    assert percent.high == pytest.approx(100 * np.expm1(nats.high))


def test_fewer_than_five_sentences_have_no_interval():
    change, scores = planted(4, 0.2)
    draws = resamples(4, 0, "P1")
    assert all(each.low is None and each.high is None for each in intervals(change, scores, draws).values())
    assert difference(scores, scores, draws).low is None
    assert over_relations([0.1, 0.2, 0.3], 0).low is None
    skewed = np.random.default_rng(0).lognormal(size=15).tolist()
    assert over_relations(skewed, 0).low is not None and over_relations(skewed, 0) != over_relations(
        skewed, 1
    )


def test_models_are_paired_and_the_accounting_adds_up():
    (strong, first), (weak, second) = planted(30, 0.4), planted(30, 0.1, seed=1)
    draws = resamples(30, 0, "P1")
    same = difference(first, first, draws)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    terms = decompose({"P1": strong}, {"P1": weak}).terms["P1"]
    found = logarithms(terms, first, second, draws)
    percent, absolute, baseline = (found[term] for term in TERMS)
    assert percent.value == pytest.approx(absolute.value + baseline.value)
    for term, each in zip(TERMS, (percent, absolute, baseline), strict=True):
        assert each.low < getattr(terms, term) < each.high
    few = logarithms(terms, *(planted(3, rise)[1] for rise in (0.4, 0.1)), resamples(3, 0, "P1"))
    assert all(each.low is None for each in few.values())
