"""The matched protocol's page: what its title, answer and tables say, and which of them have intervals."""

import dataclasses

import matched_synthetic as synthetic
import numpy as np
import pytest

from jaxprobe.matched import report as matched_report
from jaxprobe.matched.results import Curves, Linearity
from jaxprobe.matched.summary import summarise
from jaxprobe.scope import Scope

FACTS = [30, 30, 3, 30, 30, 30]


def with_linearity(effects):
    """Relations whose edits are linear, so that first order predicts them; one that does nothing."""
    relations = {}
    for place, (name, each) in enumerate(effects.relations.items()):
        change = (each.facts.after - each.facts.before) * (place > 0)
        strengths = np.array([0.25, 0.5, 1.0])
        curves = Curves(change, np.full_like(change, 0.2))
        linear = Linearity(strengths, strengths[:, None] * change, curves, None)
        relations[name] = dataclasses.replace(each, linearity=linear)
    return dataclasses.replace(effects, relations=relations)


@pytest.fixture(scope="module")
def results():
    made = synthetic.results(np.full(6, 0.3), np.full(6, 0.1), facts=FACTS)
    return {title: with_linearity(effects) for title, effects in made.items()}


def told(results, monkeypatch):
    monkeypatch.setattr(matched_report, "render", lambda figure: {})
    models = dict.fromkeys(results, "x, layers 0 to 4")
    scope = Scope("10 units of block_out at layer 1", "set to zero", models, ("Only so far.",))
    objects = dict(zip(synthetic.RELATIONS, (30, 7, 3, 30, 30, 2), strict=False))
    summary = summarise(results, synthetic.sizes(results), draws=199)
    return summary, matched_report.matched_report(
        results, summary, objects, scope, "Done so.", ["linearity"], {}
    )


def rows(report, name) -> list[dict]:
    (table,) = [each for each in report.tables if each.name == name]
    return [dict(zip(table.labels, row, strict=True)) for row in (*table.rows, *table.foot)]


def test_title_answer_and_protocol_say_what_they_hold_for(results, monkeypatch):
    _, report = told(results, monkeypatch)
    assert report.title == (
        "Is Mamba more sensitive than GPT-2 when 10 units of block_out at layer 1 are set to zero?"
    )
    assert report.answer.startswith(
        "With 10 units of block_out at layer 1 of Mamba (x, layers 0 to 4) and GPT-2 (x, layers 0 to 4) set "
        "to zero, Mamba is the more sensitive on 5 of 5 relations (1 more has too few"
    )
    assert report.protocol[0].endswith("Only so far.")
    words = " ".join(report.protocol)
    assert "several may share an object" in words and "split once" in words and "one draw" in words


def test_one_model_is_not_asked_whether_it_is_the_more_sensitive(results, monkeypatch):
    _, report = told({"Mamba": results["Mamba"]}, monkeypatch)
    assert report.title.startswith("What does it cost Mamba when 10 units")
    assert "more sensitive" not in report.question and "GPT-2" not in report.answer


def test_every_table_of_effects_has_intervals_or_says_why_not(results, monkeypatch):
    summary, report = told(results, monkeypatch)
    few = "Fewer than 5 facts, too few for an interval: currency."
    for name, column in {
        "matched_effects": "nats Mamba", "matched_perplexity": "abs GPT-2", "matched_control_sets": "nats",
        "matched_levels": "edited perplexity", "matched_linearity": "second order Mamba",
    }.items():  # fmt: skip
        (table,) = [each for each in report.tables if each.name == name]
        assert table.caption.endswith(few)
        for row in rows(report, name):
            assert (row[f"{column}, low"] is None) == (row["relation"] == "currency"), name
    for row in rows(report, "matched_controls"):
        assert (
            row["control texts Mamba, low"] <= row["control texts Mamba"] <= row["control texts Mamba, high"]
        )
    assert [row["objects"] for row in rows(report, "matched_effects")] == [30, 7, 3, 30, 30, 2, None]
    random = summary.relations["Mamba"][synthetic.RELATIONS[0]].controls["random"]
    facts = results["Mamba"].relations[synthetic.RELATIONS[0]].facts
    sets = results["Mamba"].relations[synthetic.RELATIONS[0]].controls["random"]
    assert random.delta_nats == pytest.approx((sets.sum(1).mean() - facts.before.sum()) / facts.tokens.sum())


def test_what_pictures_show_is_in_tables_too(results, monkeypatch):
    summary, report = told(results, monkeypatch)
    names = synthetic.RELATIONS[:6]
    factors = rows(report, "matched_scales")
    assert len(factors) == 7 * 6 and [row["relation"] for row in factors[-6:]] == ["mean"] * 6
    for place, name in enumerate(names):
        none, *_, half_again = factors[6 * place : 6 * place + 6]
        delta = summary.relations["Mamba"][name].delta["token"]
        assert (none["factor"], half_again["factor"]) == (0, 1.5)
        for end, value in (("", delta.value), (", low", delta.low), (", high", delta.high)):
            assert none[f"nats Mamba{end}"] == (value if value is None else pytest.approx(value, rel=0.15))
    mean = np.mean([summary.relations["GPT-2"][name].delta["token"].value for name in names])
    assert factors[-6]["nats GPT-2"] == pytest.approx(mean) and factors[-6]["nats GPT-2, low"] < mean
    units = rows(report, "matched_single_units")
    assert len(units) == synthetic.WIDTH and units[3]["chosen Mamba"] == 6 and units[60]["chosen GPT-2"] == 0
    most = max(units, key=lambda row: row["nats Mamba"])
    assert most["unit"] == synthetic.OUTLIERS[0] and most["nats Mamba, low"] > 0
    layers = rows(report, "matched_layers")
    assert len(layers) == 6 * synthetic.LAYERS["Mamba"]
    assert layers[4]["nats GPT-2"] is None and layers[4]["nats Mamba, low"] < layers[4]["nats Mamba"]
    facts, scored = results["Mamba"].relations[names[0]].facts, results["Mamba"].layers[names[0]][4]
    assert layers[4]["nats Mamba"] == pytest.approx((scored - facts.before).sum() / facts.tokens.sum())


def test_perplexity_per_token_byte_and_word(results, monkeypatch):
    summary, report = told(results, monkeypatch)
    found = rows(report, "matched_levels")
    assert len(found) == 6 * 2 * 3
    assert [row["per"] for row in found[:3]] == ["token", "byte", "word"]
    for row in found[:3]:
        each = summary.relations["Mamba"][synthetic.RELATIONS[0]]
        before = each.baseline[row["per"]].value
        assert row["baseline perplexity"] == pytest.approx(np.exp(before))
        assert row["edited perplexity"] == pytest.approx(np.exp(before + each.delta[row["per"]].value))


def test_where_first_order_does_not_fail_is_in_words(results, monkeypatch):
    _, report = told(results, monkeypatch)
    fails = [row["fails at Mamba"] for row in rows(report, "matched_linearity")]
    assert fails == ["nothing to predict", *["at none measured"] * 5]
