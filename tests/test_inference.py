"""Intervals cover, tests hold their level, ranks are exact: by simulation, closed forms and brute force."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxprobe.statistics import inference
from jaxprobe.statistics.inference import Estimate

FACTS, SIMULATIONS, CHUNK, DRAWS = 30, 1000, 50, 999
of_facts = pytest.mark.parametrize("facts", [15, FACTS, 65])  # as the splits of the shipped relations leave
BINOMIAL = 3 * math.sqrt(0.95 * 0.05 / SIMULATIONS)  # three standard errors of a simulated coverage


def skewed(rng, shape):
    """Mean 1, skewness 1.4 in mixture with exact zeros: an edit that matters to some facts only."""
    return np.where(rng.random(shape) < 0.8, rng.gamma(2, 0.625, shape), 0)


def lognormal(rng, shape):
    """Mean 1, skewness 2.9."""
    return np.exp(rng.normal(-0.245, 0.7, shape))


def heavy(rng, shape):
    """Mean 1, Student's t of 4 degrees: both tails heavy."""
    return 1 + 0.7 * rng.standard_t(4, shape)


def sums(rng, effects, means, shape=(CHUNK, FACTS)):
    """Changes of facts' summed scores [s b j] and their tokens, which models share but for the tokenizer."""
    tokens = rng.integers(4, 13, shape)
    common = rng.gamma(8, 1 / 8, shape)  # a fact that is easy to hurt is so in both models
    counts = np.stack([tokens + rng.integers(0, 3, shape) for _ in effects], axis=-1).astype(float)
    drawn = [mean * common * effect(rng, shape) for mean, effect in zip(means, effects, strict=True)]
    return np.stack(drawn, axis=-1) * counts, counts


def coverage(functional, truth, facts, columns) -> float:
    """Of the truth by 95% intervals of simulated relations, `columns(rng)` making some of them."""
    rng, draws, held = np.random.default_rng(0), inference.resample(facts, (1,), DRAWS), []
    for _ in range(SIMULATIONS // CHUNK):
        low, high = inference.bootstrap(functional, *columns(rng), draws).interval()
        held.append((low <= truth) & (truth <= high))
    return float(np.mean(held))


SHAPES = {"skewed": skewed, "lognormal": lognormal, "heavy": heavy}


@of_facts
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_of_a_change_cover(shape, facts):
    found = coverage(
        inference.ratio, 0.2, facts, lambda rng: sums(rng, [SHAPES[shape]], [0.2], (CHUNK, facts))
    )
    assert 0.925 <= found <= 0.975


@of_facts
@pytest.mark.parametrize(
    "first, second",
    [("skewed", "skewed"), ("skewed", "heavy"), ("lognormal", "lognormal"), ("lognormal", "heavy")],
)
def test_intervals_of_a_difference_cover(first, second, facts):
    effects = [SHAPES[first], SHAPES[second]]
    found = coverage(
        inference.difference, 0.1, facts, lambda rng: sums(rng, effects, [0.3, 0.2], (CHUNK, facts))
    )
    assert 0.925 <= found <= 0.975


@of_facts
@pytest.mark.parametrize("first, second", [("skewed", "skewed"), ("lognormal", "skewed"), ("heavy", "heavy")])
def test_intervals_of_log_ratios_cover(first, second, facts):
    """Of percentages and, with baselines that differ from fact to fact, of absolute changes."""
    effects, baselines = [SHAPES[first], SHAPES[second]], [1.5, 2.0]
    truth = math.log(math.expm1(0.3) / math.expm1(0.2))

    def changes(rng):
        return sums(rng, effects, [0.3, 0.2], (CHUNK, facts))

    def with_baselines(rng):
        change, tokens = changes(rng)
        return np.concatenate([change, before(rng, tokens, baselines)], axis=-1), np.tile(tokens, 2)

    assert 0.925 <= coverage(inference.log_percentage_ratio, truth, facts, changes) <= 0.975
    truth += baselines[0] - baselines[1]
    assert 0.925 <= coverage(inference.log_absolute_ratio, truth, facts, with_baselines) <= 0.975


def before(rng, tokens, means):
    """Scores before the edit of facts [s b j], in nats, gamma distributed from fact to fact."""
    return means * tokens * rng.gamma(6, 1 / 6, tokens.shape)


@of_facts
def test_intervals_of_an_absolute_change_cover(facts):
    def columns(rng):
        change, tokens = sums(rng, [skewed], [0.2], (CHUNK, facts))
        scores = before(rng, tokens, [1.5])
        return np.concatenate([scores + change, scores], axis=-1), np.repeat(tokens, 2, axis=-1)

    truth = math.exp(1.7) - math.exp(1.5)
    assert 0.925 <= coverage(inference.exp_difference, truth, facts, columns) <= 0.975


def relations(rng, number):
    """Two models' effects on relations [s r], facts and all: relations differ, and so do their facts."""
    true = rng.gamma(3, 1 / 3, (CHUNK, number, 1)) * [0.3, 0.2]
    facts = lognormal(rng, (CHUNK, number, FACTS, 2)) * rng.gamma(8, 1 / 8, (CHUNK, number, FACTS, 1))
    return (true[..., None, :] * facts).mean(axis=2)


def test_intervals_of_means_over_relations_cover():
    number, rng, held = 24, np.random.default_rng(4), []
    draws = inference.resample(number, (1,), DRAWS)
    for _ in range(SIMULATIONS // CHUNK):
        effects = relations(rng, number)
        ones = np.ones((CHUNK, number, 1))
        for values, truth in ((effects[..., :1], 0.3), (effects[..., :1] - effects[..., 1:], 0.1)):
            low, high = inference.bootstrap(inference.ratio, values, ones, draws).interval()
            held.append((low <= truth) & (truth <= high))
    held = np.array(held).reshape(-1, 2, CHUNK).mean(axis=(0, 2))
    assert (held >= 0.925).all() and (held <= 0.975).all(), held


@pytest.mark.parametrize("number", [24, 30])
def test_intervals_of_the_denominators_share_cover(number):
    rng, held = np.random.default_rng(6), []
    for _ in range(SIMULATIONS):
        baseline = rng.gamma(2, 0.1, number) - 0.1  # mean 0.1, skewed
        absolute = 0.4 + 0.35 * rng.standard_t(5, number)
        share = inference.fieller(baseline, baseline + absolute)
        if share.low is not None and share.high is not None:
            held.append(share.low <= 0.2 <= share.high)
    assert len(held) > 0.99 * SIMULATIONS
    assert 0.925 <= np.mean(held) <= 0.975


def test_a_ratio_whose_denominator_may_be_zero_has_no_ends():
    rng = np.random.default_rng(0)
    made = inference.fieller(rng.normal(1, 0.1, 30), rng.normal(0, 1, 30))
    assert made.low is None and made.high is None and math.isfinite(made.value)


def test_fieller_holds_what_a_t_test_does_not_refuse():
    rng = np.random.default_rng(1)
    y, x = rng.normal(1, 1, 20), rng.normal(2, 1, 20)
    made = inference.fieller(y, x)
    for end in (made.low, made.high):
        assert stats.ttest_1samp(y - end * x, 0).pvalue == pytest.approx(0.05, abs=1e-9)


@pytest.mark.parametrize("facts", [15, 65])
def test_the_paired_test_holds_its_level(facts):
    rng, draws = np.random.default_rng(7), inference.resample(facts, (1,), DRAWS)
    refused = []
    for _ in range(20):
        columns = sums(rng, [lognormal, heavy], [0.2, 0.2], (CHUNK, facts))
        refused.append(inference.bootstrap(inference.difference, *columns, draws).p_value() <= 0.05)
    assert 0.02 <= np.mean(refused) <= 0.05 + BINOMIAL


def test_calls_on_models_that_do_not_differ_are_rarely_wrong():
    """In 200 studies of 8 relations on which the models are equal, one or more wrong calls in at most 5%."""
    rng, draws, wrong = np.random.default_rng(12), inference.resample(20, (1,), DRAWS), []
    for _ in range(25):
        columns = sums(rng, [skewed, lognormal], [0.2, 0.2], (64, 20))
        p_values = inference.bootstrap(inference.difference, *columns, draws).p_value().reshape(8, 8)
        wrong += [bool((inference.holm(study) <= 0.05).any()) for study in p_values]
    assert sum(wrong) <= stats.binom.ppf(0.999, len(wrong), 0.05)


def test_a_test_and_its_interval_agree():
    rng = np.random.default_rng(8)
    values = rng.gamma(1, 1, (40, 20, 1)) - 0.8
    made = inference.bootstrap(
        inference.ratio, values, np.ones_like(values), inference.resample(20, (2,), 1999)
    )
    low, high = made.interval()
    np.testing.assert_array_equal((low > 0) | (high < 0), made.p_value() < 0.05)


def test_both_models_are_resampled_alike():
    """A difference that is the same for every fact has no error, however much the facts differ."""
    change = np.random.default_rng(9).gamma(1, 1, 20)
    columns = np.stack([change + 0.5, change], axis=-1)
    made = inference.bootstrap(
        inference.difference, columns, np.ones_like(columns), inference.resample(20, (0,), 199)
    )
    assert [made.value, *made.interval()] == pytest.approx([0.5] * 3)


def test_alike_and_few_units():
    zeros, ones = np.zeros((6, 1)), np.ones((6, 1))
    none = inference.bootstrap(inference.ratio, zeros, ones, inference.resample(6, (0,), 99))
    assert none.estimate() == Estimate(0.0, 0.0, 0.0) and none.p_value() == 1
    few = inference.bootstrap(
        inference.ratio, np.arange(4.0)[:, None], ones[:4], inference.resample(4, (0,), 99)
    )
    assert few.estimate() == Estimate(1.5)


def test_a_logarithm_that_resamples_do_not_have_has_no_interval():
    rng = np.random.default_rng(10)
    columns = np.stack([rng.normal(0.1, 0.1, 30), rng.normal(0.02, 0.2, 30)], axis=-1)
    columns += [0.1, 0.02] - columns.mean(axis=0)
    made = inference.bootstrap(
        inference.log_percentage_ratio, columns, np.ones_like(columns), inference.resample(30, (0,), 999)
    ).estimate()
    assert math.isfinite(made.value) and made.low is None and made.high is None


@pytest.mark.parametrize(
    "functional, count",
    [
        (inference.ratio, 1), (inference.difference, 2), (inference.exp_difference, 2),
        (inference.log_percentage_ratio, 2), (inference.log_absolute_ratio, 4),
    ],
)  # fmt: skip
def test_derivatives(functional, count):
    at, step = np.array([0.3, 0.2, 1.1, 1.4])[:count], 1e-6
    _, gradient = functional(at)
    for place, move in enumerate(step * np.eye(count)):
        slope = (functional(at + move)[0] - functional(at - move)[0]) / (2 * step)
        assert gradient[place] == pytest.approx(slope, rel=1e-6)


def test_holm_by_its_steps():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(inference.holm(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(inference.holm(np.array([0.6, 0.7])), [1, 1])
    assert inference.holm(np.array([])).size == 0


def test_a_percentile_and_its_exact_interval():
    made = inference.percentile(0.5, np.array([0.1, 0.2, 0.5, 0.5, 0.9]))
    assert (made.value, made.below, made.ties, made.draws) == (60.0, 2, 2, 5)
    assert stats.binom.sf(1, 5, made.low / 100) == pytest.approx(0.025)  # as if no tie lay below
    assert stats.binom.cdf(4, 5, made.high / 100) == pytest.approx(0.025)  # as if both did
    top = inference.percentile(1.0, np.linspace(0, 0.9, 100))
    assert (top.value, top.high) == (100, 100) and top.low == pytest.approx(100 * 0.025 ** (1 / 100))


def test_percentiles_of_exchangeable_draws_are_uniform():
    rng = np.random.default_rng(11)
    found = [inference.percentile(float(draws[0]), draws[1:]).value for draws in rng.normal(size=(200, 201))]
    assert stats.kstest(np.array(found) / 100, "uniform").pvalue > 0.01


def test_a_share_has_the_exact_binomial_interval():
    for hits, number in ((0, 7), (3, 7), (7, 7), (40, 44)):
        found = inference.share(hits, number)
        exact = stats.binomtest(hits, number).proportion_ci(0.95, "exact")
        assert (found.value, found.low, found.high) == pytest.approx((hits / number, exact.low, exact.high))
