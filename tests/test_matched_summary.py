"""What the matched protocol says of planted effects: numbers, verdicts, words, and where it says nothing."""

import dataclasses
import math
import re

import matched_synthetic as synthetic
import numpy as np
import pytest

from jaxprobe.matched.accounting_words import share_words
from jaxprobe.matched.picture_tables import picture_tables
from jaxprobe.matched.report_tables import matched_tables
from jaxprobe.matched.rows import MatchedSummary, short_name
from jaxprobe.matched.summary import summarise
from jaxprobe.matched.tables import matched_report
from jaxprobe.matched.verdict import UNLIKE, answer, verdicts
from jaxprobe.report import content, html
from jaxprobe.statistics import inference
from jaxprobe.statistics.inference import Estimate

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
    assert "by nats per byte (p = 1) and nats per word (p = 1) neither is" in second
    assert second.endswith("the chosen units of neither stand out more among random sets (p = 1).")


def ranked(model, percentiles):
    """A model whose chosen units do more than that many of 100 random sets."""
    relations = {}
    for (name, each), below in zip(model.relations.items(), percentiles, strict=True):
        change = each.facts.delta_nats + np.where(np.arange(100) < below, -1.0, 1.0)
        random = each.facts.before + change[:, None] * each.facts.tokens
        relations[name] = dataclasses.replace(each, controls={**each.controls, "random": random})
    return dataclasses.replace(model, relations=relations)


def tables(told, made):
    objects = dict.fromkeys(next(iter(made.values())).relations, 1)
    return {each.name: (each.labels, each.rows) for each in matched_tables(told, objects)}


def test_a_percentile_says_how_special_units_are_and_not_how_sensitive_a_model_is():
    """GPT-2 is hurt more, Mamba's units stand out more; a gap on one relation is not tested."""
    made = synthetic.results(np.full(6, 0.02), np.full(6, 0.3), facts=[20] * 6)
    made = {
        "Mamba": ranked(made["Mamba"], [99, 98, 97, 99, 98, 97]),
        "GPT-2": ranked(made["GPT-2"], [60, 55, 50, 65, 50, 60]),
    }
    told = summarise(made, synthetic.sizes(made), draws=DRAWS)
    compared = told.comparisons["percentile"]
    assert [each.difference.value for each in compared.values()] == [39, 43, 47, 34, 48, 37]
    assert all(each.p_value is None for each in compared.values())
    found = verdicts(told)["percentile"]
    assert found.adjusted == {} and found.more == {} and found.tested
    _, second = answer(told)
    assert "Over all GPT-2 is the more sensitive" in second and "Mamba is the more sensitive" not in second
    assert "GPT-2 is; the chosen units of Mamba stand out more among random sets (p = " in second
    (line,) = [line for line in matched_report(told).splitlines() if line.startswith("percentile ")]
    assert line.endswith(" -")
    assert [row[-3:] for row in tables(told, made)["matched_measures"][1]] == [[0, 6, 0]] * 3 + [[None] * 3]


def test_a_result_depends_on_the_seed_alone():
    a, b, c = (summary(np.full(2, 0.1), seed=seed) for seed in (1, 1, 2))
    assert a == b
    name = synthetic.RELATIONS[0]
    assert a.relations["Mamba"][name].delta["token"] != c.relations["Mamba"][name].delta["token"]
    means = [
        summary(np.arange(2, 9) / 10, np.full(7, 0.1), facts=[20] * 7, seed=seed).accounting.mean
        for seed in (1, 1, 2)
    ]
    assert means[0] == means[1] != means[2]


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
    assert "GPT-2 on none, and on 1 the two are not told apart" in one and "95% confidence" in one
    assert two.startswith("Over all Mamba is the more sensitive: Mamba less GPT-2 is 0.1")
    assert "by nats per byte" in two and "95% interval" in two


def test_a_model_that_gains_more_than_the_other_loses_is_not_the_less_sensitive():
    """Mamba loses more everywhere; on the first three relations GPT-2, which gains, moves further."""
    gains = np.array([-0.3, -0.4, -0.5, -0.02, -0.02, -0.02])
    told = summary(np.full(6, 0.1), gains, facts=[20] * 6)
    verdict = verdicts(told)["token"]
    assert verdict.counts == {"Mamba": 3, UNLIKE: 3} and verdict.neither == 3
    assert verdict.overall == UNLIKE  # 0.1 against -0.21 on average
    one, two = answer(told)
    assert (
        "more sensitive on 3 of 6 relations in nats per token, GPT-2 on none, and on 3 the one that " in one
    )
    assert two.startswith(
        "Over all the two are told apart, but the one that gains moves further: Mamba less GPT-2"
    )
    assert "; the edit helps GPT-2 on 6 of 6 relations; by nats per byte" in two
    assert verdicts(summary(np.full(6, 0.3), gains / 5, facts=[20] * 6))["token"].overall == "Mamba"


def test_noise_is_told_in_units_of_what_it_is_added_to():
    made = synthetic.results(np.full(6, 0.1), np.full(6, 0.1), facts=[20] * 6)
    told = summarise(made, synthetic.sizes(made), draws=DRAWS, noise_std=0.5)
    energy = [each.energy["chosen"][0] / len(each.chosen.units) for each in made["Mamba"].relations.values()]
    assert told.rms["Mamba"] == pytest.approx(np.mean(energy) ** 0.5)
    assert (
        f"the noise's root mean square is {0.5 / told.rms['Mamba']:.2g} times that of Mamba's and"
        in answer(told)[1]
    )
    alone = summarise({"GPT-2": made["GPT-2"]}, synthetic.sizes(made), draws=DRAWS, noise_std=0.5)
    assert (
        f"is {0.5 / alone.rms['GPT-2']:.2g} times that of GPT-2's chosen units; with one model"
        in answer(alone)[1]
    )


def test_the_other_model_may_be_the_more_sensitive():
    effects = [np.full(6, 0.02), np.full(6, 0.3)]
    one, two = answer(summary(*effects))
    assert "Mamba is the more sensitive on none of 6 relations in nats per token and GPT-2 on 6 (" in one
    assert "Over all GPT-2 is the more sensitive: Mamba less GPT-2 is -0." in two


def test_one_model_has_nothing_to_compare():
    made = summary(np.full(6, 0.2), facts=[20] * 6)
    assert not made.comparisons and made.accounting is None and verdicts(made) == {}
    one, two = answer(made)
    assert "shown to make Mamba worse on 6 of 6 relations" in one
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


def test_what_is_not_tested_is_not_called_undecided():
    """Of two relations the mean is not tested: that is another thing than a test without a winner."""
    made = synthetic.results(np.full(2, 0.2), np.full(2, 0.1), facts=[3, 20])
    told = summarise(made, synthetic.sizes(made), draws=99)
    found = {each.name: each for each in matched_tables(told, dict.fromkeys(synthetic.RELATIONS, 1))}
    table = found["matched_effects"]
    assert [row[-1] for row in (*table.rows, *table.foot)] == ["too few facts", "Mamba", "too few relations"]
    assert found["matched_measures"].caption == "Means over relations, too few for an interval or a test."
    assert "few      too few facts or relations (fewer than 5)" in matched_report(told)


def test_one_relation_is_spoken_of_as_one():
    one, _ = answer(summary([0.3, 0.3], [0.05, 0.05], facts=[40, 3]))
    assert one == (
        "Mamba is the more sensitive on the one relation tested (1 more has too few facts to be tested) in "
        "nats per token (a test on paired facts, 95% confidence)."
    )
    one, two = answer(summary([0.3], facts=[40]))
    assert one == (
        "The edit makes Mamba worse on the one relation with enough facts for an interval, of 95% in nats "
        "per token."
    )
    assert two.startswith("On average over 1 relation it costs 0.")


def test_random_sets_have_no_percentile_among_themselves(typical):
    for relations in typical.relations.values():
        for row in relations.values():
            assert {kind for kind, sets in row.controls.items() if sets.percentile is None} == {"random"}
    (line,) = [line for line in matched_report(typical).splitlines() if line.startswith("random ")]
    assert line.split()[2] == "-" and line.split()[8] == "-"


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
    assert "not told from none" in close


def test_no_excess_is_told_apart_from_an_excess_that_is_not_shown():
    """The mean of these logarithms is below 0 in all three; only the first interval is."""
    surely = share_words(summary(np.full(6, 0.05), np.full(6, 0.3), facts=[40] * 6))
    assert "there is no excess to explain (6 of 6 relations): mean log % ratio -" in surely
    assert surely.endswith("].")
    effects = np.full(8, 0.2)
    made = summary(effects * np.tile([0.4, 1.8], 4), effects, facts=[40] * 8)
    excess = made.accounting.mean.log_percentage_ratio
    assert excess.value < 0 < excess.high
    assert "an excess is not told from none (8 of 8 relations): mean log % ratio -" in share_words(made)
    few = share_words(summary(np.full(1, 0.05), np.full(1, 0.3), facts=[40]))
    assert "no excess is seen, on too few relations to tell one from none (1 of 1 relation)" in few


def test_a_mean_that_hangs_on_a_change_near_zero_says_so():
    near = summary(np.full(7, 0.2), np.array([0.1, 1e-3, 0.1, 0.1, 0.1, 0.1, 0.1]), facts=[40] * 7)
    name = synthetic.RELATIONS[1]
    account = near.accounting.relations
    delta = near.relations["GPT-2"][name].delta["token"]
    assert delta.low < 0 < delta.value
    logs = {each: terms.log_percentage_ratio.value for each, terms in account.items()}
    rest = np.mean([value for each, value in logs.items() if each != name])
    said = share_words(near)
    assert f"Take care: capital city, where GPT-2's change is {delta.value:.2g} nats per token" in said
    assert said.endswith(f"without it their mean is {rest:.2g}.") and said in " ".join(
        matched_report(near).split()
    )
    assert "Take care" not in share_words(summary(np.full(7, 0.2), np.full(7, 0.1), facts=[40] * 7))


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


def test_control_sets_say_what_they_share_and_how_near_their_energy_is(typical):
    """By hand: sets without a chosen unit, units in common, and sets further than 1% from the energy."""
    made = synthetic.results(np.full(2, 0.1))
    told = summarise(made, synthetic.sizes(made), draws=DRAWS)
    for name, each in made["Mamba"].relations.items():
        row = told.relations["Mamba"][name]
        for kind, units in each.control_units.items():
            found, common = row.controls[kind], np.isin(units, each.chosen.units).sum(axis=1)
            ratios = each.energy[kind] / each.energy["chosen"]
            assert found.shared == pytest.approx(common.mean()) and found.disjoint_sets == (common == 0).sum()
            assert found.energy == (ratios.min(), ratios.max())
            assert found.far == (np.abs(ratios - 1) > 0.01).sum()
            apart = (each.controls[kind].sum(axis=1) - each.facts.before.sum())[common == 0]
            below = (apart / each.facts.tokens.sum() < each.facts.delta_nats).sum()
            rank = found.disjoint
            assert (rank is None) == (len(apart) < 20)
            assert rank is None or (rank.below, rank.draws) == (below, len(apart))
        among = row.controls["norm_matched"]
        assert among.disjoint == among.chosen and among.disjoint_sets == 20 and among.shared == 0
    report = matched_report(typical)
    (line,) = [line for line in report.splitlines() if line.startswith("norm matched ")]
    assert line.split()[4:8] == ["0", "0.97", "to", "1.03"] and line.split()[8] == "*"
    far = sum(row.controls["norm_matched"].far for row in typical.relations["Mamba"].values())
    assert f"* further than 1% in Mamba: {far} of 160 sets" in report and "remove" not in report
    columns, rows = tables(told, made)["matched_control_sets"]
    assert len(rows) == 2 * 5
    for row in rows:
        cells = dict(zip(columns, row, strict=True))
        name = next(name for name in told.relations["Mamba"] if short_name(name) == cells["relation"])
        sets = told.relations["Mamba"][name].controls[cells["units"].replace(" ", "_")]
        assert (cells["shared"], cells["energy, low"], cells["energy, high"]) == (sets.shared, *sets.energy)
        assert cells["beyond 1%"] == (sets.far if cells["units"] == "norm matched" else None)
    columns, rows = tables(told, made)["matched_controls"]
    random = told.relations["Mamba"][synthetic.RELATIONS[0]].controls["random"]
    cells = dict(zip(columns, rows[0], strict=True))
    assert cells["apart Mamba, sets"] == random.disjoint_sets and 0 < random.disjoint_sets < 100
    assert cells["apart Mamba"] == (random.disjoint and random.disjoint.value)


def test_selectivity_is_own_over_the_mean_of_the_others(typical):
    """By hand, with Fieller's ends of two independent means; in the tables, the matrix and the console."""
    made = synthetic.results(np.full(7, 0.3), np.full(7, 0.1), facts=[20] * 7)
    told = summarise(made, synthetic.sizes(made), draws=DRAWS)
    (matrix,) = [each for each in picture_tables(made, told) if each.name == "matched_selectivity_matrix"]
    names = [short_name(name) for name in synthetic.RELATIONS[:7]]
    assert len(matrix.rows) == 2 * 7 * 7
    for place, (name, each) in enumerate(made["GPT-2"].relations.items()):
        others = {n: r.facts for n, r in made["GPT-2"].relations.items() if n != name}
        nats = {n: each.others[n].sum() - facts.before.sum() for n, facts in others.items()}
        tokens = {n: facts.tokens.sum() for n, facts in others.items()}
        mean = np.mean([nats[n] / tokens[n] for n in others])
        found = told.relations["GPT-2"][name].selectivity
        assert name not in nats and found.others == pytest.approx(mean, rel=1e-12)
        assert found.ratio.value == pytest.approx(each.facts.delta_nats / mean, rel=1e-12)
        assert 0 < found.ratio.low < found.ratio.value < found.ratio.high
        percent = math.expm1(each.facts.delta_nats) / math.expm1(sum(nats.values()) / sum(tokens.values()))
        assert found.percent == pytest.approx(percent, rel=1e-6)
        rows = matrix.rows[7 * (7 + place) : 7 * (8 + place)]
        assert [row[:3] for row in rows] == [[short_name(name), "GPT-2", column] for column in names]
        assert [row[3] for row in rows] == pytest.approx([found.changes[n] for n in synthetic.RELATIONS[:7]])
        assert all(row[4] < row[3] < row[5] for row in rows)
        cells = dict(zip(*(part if i == 0 else part[place] for i, part in enumerate(
            tables(told, made)["matched_selectivity"])), strict=True))  # fmt: skip
        assert cells["selectivity GPT-2, low"] == found.ratio.low and cells["% over % GPT-2"] == found.percent
    better = {
        name: dataclasses.replace(each, others={n: after - 1e3 for n, after in each.others.items()})
        for name, each in made["Mamba"].relations.items()
    }
    gain = {"Mamba": dataclasses.replace(made["Mamba"], relations=better)}
    row = summarise(gain, synthetic.sizes(gain), draws=99).relations["Mamba"][synthetic.RELATIONS[0]]
    assert row.selectivity.ratio is None and row.selectivity.others < 0
    assert "Selectivity: change in nats" in matched_report(told)


def test_the_page_folds_long_tables_alone():
    made = synthetic.results(np.full(3, 0.3))
    told = summarise(made, synthetic.sizes(made), draws=99)
    shown = [*matched_tables(told, dict.fromkeys(synthetic.RELATIONS, 1)), *picture_tables(made, told)]
    page = html.page(content.Report("t", "q", "a", ["p"], [], shown)).decode()
    places = [match.start() for match in re.finditer("<summary>Show the table</summary>", page)]
    starts = [page.rindex('id="table-', 0, place) for place in places]
    folded = ("single_units", "layers", "selectivity_matrix")
    assert starts == [page.index(f'id="table-matched_{name}"') for name in folded]


def test_intervals_of_selectivity_cover():
    """Own skewed facts, other relations that differ: the true ratio lies in 92.5 to 97.5% of intervals."""
    rng, hits = np.random.default_rng(4), 0
    for _ in range(600):
        rest = rng.gamma(4, 0.1 / 4, 23)
        own = rng.gamma(2, 0.3 / 2, 25)
        spread = np.diag([own.var(ddof=1) / 25, rest.var(ddof=1) / 23])
        made = inference.fieller_ends(float(own.mean()), float(rest.mean()), spread, 22)
        hits += made.low is not None and made.low < 3 < made.high
    assert 0.925 <= hits / 600 <= 0.975


def test_names():
    assert short_name("capital_city") == "capital city"
    assert short_name("P36 (capital)") == "P36 (capital)"
