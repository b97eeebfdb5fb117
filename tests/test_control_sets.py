"""Control sets and splits of facts: what they are made of, how they are drawn, and their calibration."""

import numpy as np
import pytest
from scipy import stats

from jaxprobe.errors import ProbeError
from jaxprobe.matched.control_sets import (
    NORM_TOLERANCE,
    UnitStatistics,
    control_sets,
    norm_matched_sets,
    random_sets,
    unit_statistics,
)
from jaxprobe.matched.fact_splits import check_facts, derangement, split_facts
from jaxprobe.relations import Fact, Relation
from jaxprobe.statistics.inference import percentile


def statistics(width, seed=0):
    rng = np.random.default_rng(seed)
    return UnitStatistics(*rng.gamma(0.5, size=(3, width)))


def test_statistics_over_tokens_from_those_within_texts():
    rng = np.random.default_rng(0)
    texts = [1e3 + rng.standard_normal((length, 5)) for length in (2, 7, 4)]
    got = unit_statistics(
        np.stack([t.mean(0) for t in texts]), np.stack([t.var(0) for t in texts]), np.array([2, 7, 4])
    )
    tokens = np.concatenate(texts)
    np.testing.assert_allclose(got.token_variance, tokens.var(axis=0), rtol=1e-9)
    np.testing.assert_allclose(got.energy, (tokens**2).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.text_variance, np.var([t.mean(0) for t in texts], axis=0), rtol=1e-9)


def test_every_kind_is_what_it_says():
    found = statistics(40)
    chosen = (3, 17, 9)
    sets = control_sets(found, chosen, 20, 7, "P36")
    assert {kind: units.shape for kind, units in sets.items()} == {
        "random": (20, 3), "high_norm": (1, 3), "high_variance": (1, 3), "low_variance": (1, 3),
        "norm_matched": (4, 3),
    }  # fmt: skip
    for units in sets.values():
        assert ((0 <= units) & (units < 40)).all() and all(len(set(row)) == 3 for row in units.tolist())
    assert set(sets["high_norm"][0]) == set(np.argsort(found.energy)[-3:])
    assert set(sets["high_variance"][0]) == set(np.argsort(found.token_variance)[-3:])
    assert set(sets["low_variance"][0]) == set(np.argsort(found.text_variance)[:3])
    assert "norm_matched" not in control_sets(statistics(5), chosen, 2, 7, "P36")


def test_sets_are_drawn_from_the_seed_the_relation_and_their_number_alone():
    first = random_sets(40, 3, 5, 7, "P36")
    assert (random_sets(40, 3, 9, 7, "P36")[:5] == first).all()
    assert (random_sets(40, 3, 5, 8, "P36") != first).any() and (
        random_sets(40, 3, 5, 7, "P3") != first
    ).any()


def test_random_sets_are_uniform():
    """Every unit is as often in a set as any other: chi-squared over 4,000 sets."""
    counts = np.bincount(random_sets(16, 4, 4000, 1, "P1").ravel(), minlength=16)
    # A set holds a unit at most once, which shrinks the variance by (1 - k/w) / (1 - 1/w).
    score = ((counts - 1000) ** 2 / 1000).sum() / ((1 - 4 / 16) / (1 - 1 / 16))
    assert stats.chi2(15).sf(score) > 0.001


def test_norm_matched_sets_are_other_units_of_the_same_energy():
    energy = statistics(300).energy
    chosen = tuple(np.argsort(energy)[200:210].tolist())
    sets = norm_matched_sets(energy, chosen, 30, 7, "P36")
    assert np.isin(sets, chosen).sum() == 0 and len({tuple(sorted(row)) for row in sets.tolist()}) == 30
    target = energy[list(chosen)].sum()
    assert (np.abs(energy[sets].sum(axis=1) - target) <= NORM_TOLERANCE * target).all()
    outlier = np.append(energy, 1e6)  # nothing else comes near: as near as it gets
    assert norm_matched_sets(outlier, (300,), 3, 7, "P36").tolist() == [[int(np.argmax(energy))]] * 3


def test_on_exchangeable_units_percentiles_are_uniform():
    """200 chosen sets that are random themselves, against 99 random ones: Kolmogorov-Smirnov."""
    rng, found = np.random.default_rng(3), []
    for draw in range(200):
        effect = rng.standard_normal(64)  # of each unit; a set's is their sum, and then some
        chosen = rng.choice(64, 6, replace=False)
        sets = random_sets(64, 6, 99, 11, f"P{draw}")
        noise = rng.standard_normal(100) * 1e-6
        effects = effect[np.vstack([chosen, sets])].sum(axis=1) ** 3 + noise
        found.append(percentile(effects[0], effects[1:]).value)
    assert stats.kstest(np.array(found) / 100, "uniform").pvalue > 0.01


@pytest.mark.parametrize("count, selected", [(3, 2), (4, 2), (9, 4), (30, 15), (50, 25), (90, 25)])
def test_splits_hold_out_the_facts_that_are_scored(count, selected):
    split = split_facts(count, 5, "P36")
    assert len(split.selection) == selected
    assert sorted(split.selection + split.evaluation) == list(range(count))
    assert split == split_facts(count, 5, "P36")


def test_splits_differ_by_seed_and_relation():
    splits = {split_facts(40, seed, name) for seed in (0, 1) for name in ("P36", "P30")}
    assert len(splits) == 4


def test_a_derangement_leaves_nothing_in_place_and_takes_every_form():
    found = {tuple(derangement(4, seed, "P36").tolist()) for seed in range(300)}
    assert len(found) == 9  # !4
    assert all(place != donor for order in found for place, donor in enumerate(order))


@pytest.mark.parametrize("facts, controls, mode, message", [
    (2, 5, "zero", "P1 (one): --protocol=matched with --mode=zero needs at least 3 facts, some to choose "
     "units by and others to score, got 2"),
    (3, 5, "resample", "P1 (one): --protocol=matched with --mode=resample needs at least 4 facts, some to "
     "choose units by and others to score, got 3"),
    (9, 1, "resample", "--mode=resample needs at least 2 control texts, got 1"),
])  # fmt: skip
def test_too_few_facts_are_refused(facts, controls, mode, message):
    relation = Relation("P1", "one", tuple(Fact(f"w{i} w1", "w1") for i in range(facts)))
    with pytest.raises(ProbeError) as error:
        check_facts([relation], controls, mode)
    assert str(error.value) == message
