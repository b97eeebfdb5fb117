"""What the matched protocol says of planted effects: numbers, verdicts, words, and where it says nothing."""

import math

import matched_synthetic as synthetic
import numpy as np
import pytest

from jaxprobe.matched.inference import Estimate
from jaxprobe.matched.rows import MatchedSummary
from jaxprobe.matched.summary import summarise
from jaxprobe.matched.tables import matched_report, share_words, short_name
from jaxprobe.matched.verdict import answer, verdicts

DRAWS = 999


def summary(effects, others=None, facts=None, **options) -> MatchedSummary:
    made = synthetic.results(effects, others, facts=facts)
    return summarise(made, synthetic.sizes(made), **{"draws": DRAWS, **options})


@pytest.fixture(scope="module")
def typical() -> MatchedSummary:
    """Eight relations; Mamba is hurt more on most, the third has three facts, GPT-2 gains on the fourth."""
    strong = np.array([0.3, 0.3, 0.2, 0.3, 0.25, 0.3, 0.2, 0.3])
    weak = np.array([0.05, 0.06, 0.2, -0.1, 0.05, 0.3, 0.04, 0.08])
    return summary(strong, weak, facts=[40, 40, 3, 40, 40, 40, 40, 40])


def test_numbers_are_the_ratio_estimators(typical):
    results = synthetic.results(*[np.full(2, 0.1)] * 2)
    made = summarise(results, synthetic.sizes(results), draws=DRAWS)
    for title, effects in results.items():
        for name, relation in effects.relations.items():
            row, facts = made.relations[title][name], relation.facts
            nats = (facts.after.sum() - facts.before.sum()) / facts.tokens.sum()
            base = facts.before.sum() / facts.tokens.sum()
            assert row.delta["token"].value == pytest.approx(nats, rel=1e-12)
            assert row.delta["byte"].value == pytest.approx(nats / 4, rel=1e-12)
            assert row.delta["word"].value == pytest.approx(nats / 0.7, rel=1e-12)
            assert row.baseline["token"].value == pytest.approx(base, rel=1e-12)
            assert row.percent.value == pytest.approx(100 * math.expm1(nats), rel=1e-12)
            assert row.absolute.value == pytest.approx(math.exp(base + nats) - math.exp(base), rel=1e-10)
            assert row.percent.low == pytest.approx(100 * math.expm1(row.delta["token"].low), rel=1e-12)
            random = relation.controls["random"].sum(axis=1)
            assert row.percentile.below == (random < facts.after.sum()).sum()


def test_what_is_compared_is_paired(typical):
    """A model against itself differs by nothing, without error, on every relation and over all."""
    effects = synthetic.results(np.full(6, 0.1))["Mamba"]
    results = {"Mamba": effects, "GPT-2": effects}
    made = summarise(results, synthetic.sizes(results), draws=DRAWS)
    for measure in ("token", "byte", "word"):
        for each in (*made.comparisons[measure].values(), made.overall[measure]):
            assert each.difference == Estimate(0.0, 0.0, 0.0) and each.p_value == 1
    first, second = answer(made)
    assert "On none of 6 relations are Mamba and GPT-2 told apart" in first
    assert "neither is shown to be the more sensitive at 95% confidence" in second
    assert "by nats per byte (p = 1), nats per word (p = 1) and percentile among random sets" in second


def test_a_result_depends_on_the_seed_alone():
    a, b, c = (summary(np.full(2, 0.1), seed=seed) for seed in (1, 1, 2))
    assert a == b
    name = synthetic.RELATIONS[0]
    assert a.relations["Mamba"][name].delta["token"] != c.relations["Mamba"][name].delta["token"]


def test_verdicts_call_what_was_planted(typical):
    found = verdicts(typical)
    names = synthetic.RELATIONS
    for measure in ("token", "byte", "word"):
        verdict = found[measure]
        assert names[2] not in verdict.more and len(verdict.more) == 7  # three facts
        assert {name for name, more in verdict.more.items() if more is None} == {names[5]}
        assert verdict.counts["Mamba"] == 6 and verdict.overall == "Mamba"
    one, two = answer(typical)
    assert "Mamba is the more sensitive on 6 of 7 relations (1 more has too few facts to be tested)" in one
    assert "GPT-2 on 0, and on 1 the two are not told apart" in one and "95% confidence" in one
    assert two.startswith("Over all Mamba is the more sensitive: Mamba less GPT-2 is 0.1")
    assert "by nats per byte" in two and "95% interval" in two


def test_the_other_model_may_be_the_more_sensitive():
    effects = [np.full(6, 0.02), np.full(6, 0.3)]
    one, two = answer(summary(*effects))
    assert "Mamba is the more sensitive on 0 of 6" in one and "GPT-2 on 6" in one
    assert "Over all GPT-2 is the more sensitive: Mamba less GPT-2 is -0." in two


def test_one_model_has_nothing_to_compare():
    made = summary(np.full(6, 0.2), facts=[20] * 6)
    assert not made.comparisons and made.accounting is None and verdicts(made) == {}
    one, two = answer(made)
    assert "makes Mamba worse on 6 of 6 relations" in one
    assert "with one model there is nothing to compare" in two and "percentile" in two
    assert "GPT-2" not in matched_report(made)


def test_few_facts_and_few_relations_say_so(typical):
    row = typical.relations["Mamba"][synthetic.RELATIONS[2]]
    assert row.too_few and row.delta["token"].low is None and row.percent.low is None
    lines = [line for line in matched_report(typical).splitlines() if line.startswith("currency")]
    assert all("few" in line for line in lines if "[" not in line) and lines
    one, two = answer(summary(np.full(2, 0.2), np.full(2, 0.1), facts=[3, 3]))
    assert one == "No relation has enough facts for a test of its own."
    assert two.startswith("Over all there are too few relations for a test")


def test_the_accounting_adds_up_and_undefined_logarithms_are_words(typical):
    accounting = typical.accounting
    assert accounting is not None and accounting.mean is not None
    improved = synthetic.RELATIONS[3]
    assert accounting.undefined == {improved: "GPT-2 does not get worse"}
    for name, account in {**accounting.relations, "mean": accounting.mean}.items():
        total = account.log_absolute_ratio.value + account.log_baseline_ratio.value
        assert account.log_percentage_ratio.value == pytest.approx(total, abs=1e-9)
        known = account.log_percentage_ratio.low is not None
        assert known == (name != synthetic.RELATIONS[2])
    report = matched_report(typical)
    assert "main language: undefined, as GPT-2 does not get worse" in report and "nan" not in report
    assert accounting.share is not None
    assert accounting.share.value == pytest.approx(
        accounting.mean.log_baseline_ratio.value / accounting.mean.log_percentage_ratio.value
    )


def test_no_excess_and_no_terms_are_said():
    assert "there is no excess to explain" in share_words(summary(np.full(6, 0.05), np.full(6, 0.3)))
    none = share_words(summary(np.full(6, -0.3), np.full(6, 0.3)))
    assert none.endswith("undefined, as on no relation do both models get worse.")
    close = share_words(summary(np.full(6, 0.101), np.full(6, 0.1)))
    assert "without an interval, as the excess itself is not told from none" in close or "no excess" in close


def test_report_fits_the_console(typical):
    lines = matched_report(typical).splitlines()
    assert max(map(len, lines)) <= 110
    assert "the baseline cancels" in "\n".join(lines)


def test_control_sets_are_placed(typical):
    row = typical.relations["Mamba"][synthetic.RELATIONS[0]]
    assert next(iter(row.controls)) == "random" and row.controls["random"].sets == 100
    assert row.controls["high_norm"].chosen is None and row.controls["norm_matched"].chosen is not None
    low, high = row.controls["norm_matched"].energy
    assert 0.97 <= low <= high <= 1.03


def test_names():
    assert short_name("capital_city (capital_city)") == "capital city"
    assert short_name("P36 (capital)") == "P36 (capital)"
