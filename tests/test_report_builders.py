"""What the reports say of planted results, and that every run's own kind of result can be reported."""

import dataclasses

import numpy as np
import pytest
from test_epsilon_plots import study
from test_tables import TEXTS, planted

from jaxprobe.jacobians import report as jacobian_report
from jaxprobe.jacobians import report_tables as jacobian_tables
from jaxprobe.jacobians.estimate_tables import estimate_report
from jaxprobe.jacobians.estimates import EstimatedNorms, ModelEstimates
from jaxprobe.jacobians.report_protocol import protocol
from jaxprobe.neurons import SensitiveUnits
from jaxprobe.original import report as delta_report
from jaxprobe.original import summary as delta_summary
from jaxprobe.original import verdict as delta_verdict
from jaxprobe.original.study import RelationScores
from jaxprobe.original.tables import delta_report as delta_console
from jaxprobe.recall import records as recall_records
from jaxprobe.recall import report as recall_report
from jaxprobe.recall import summary as recall_summary
from jaxprobe.recall.decoding import FactRecall
from jaxprobe.recall.summary import RelationRecall
from jaxprobe.recall.tables import recall_report as recall_console
from jaxprobe.report import html
from jaxprobe.report.content import Report, Table
from jaxprobe.report.files import files
from jaxprobe.run_configs import JacobianRun, Perturbation
from jaxprobe.scope import Scope
from jaxprobe.statistics.fact_scores import FactScores
from jaxprobe.statistics.percentage import Change

WORDS = [["a", " b", " c"]]


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> list:
    """The figures, drawn but not rendered: that takes seconds, and other tests do it."""
    made = []

    def render(figure):
        made.append(figure)
        return {"png": b"", "svg": b'<svg width="72pt" height="72pt"></svg>', "pdf": b""}

    for module in (jacobian_report, delta_report, recall_report):
        monkeypatch.setattr(module, "render", render)
    return made


def told(models, config=None, **more) -> Report:
    texts = [f"text {number}" for number in range(TEXTS)]
    words = dict.fromkeys(models, WORDS)
    return jacobian_report.jacobian_report(models, config or JacobianRun(), texts, {}, words=words, **more)


def pair(mamba, gpt2) -> dict:
    return {"mamba": mamba, "gpt2": gpt2}


def table(report: Report, name: str) -> Table:
    (found,) = [each for each in report.tables if each.name == name]
    return found


def row(report: Report, name: str, first: str) -> dict:
    found = table(report, name)
    (line,) = [line for line in (*found.rows, *found.foot) if line[0] == first]
    return dict(zip(found.labels, line, strict=True))


def test_the_answer_has_the_planted_ratio_and_its_confidence():
    mamba = planted(3, 0.5)
    (layer,) = mamba.layers
    last = dataclasses.replace(layer.exact["last"], frobenius=np.array([2.0, 3, 4, 9]))
    mamba = dataclasses.replace(
        mamba, layers=(dataclasses.replace(layer, exact={**layer.exact, "last": last}),)
    )
    report = told(pair(mamba, planted(1, 1.0)))
    assert "4.5 times as far when the last token's row moves (median 3.5, no interval) and" in report.answer
    assert "4 texts, taken as independent; too few for 95% intervals." in report.answer
    assert "3 times as far when every row moves" in report.answer
    assert "they move 0.5 times as far when the last token's row moves (median 0.5" in report.answer
    assert "agree within sampling error at all 2 layers" in report.answer
    found = row(report, "jacobian_measures", "‖J‖ last")
    assert (found["Mamba"], found["GPT-2"], found["ratio"], found["median"]) == (4.5, 1.0, 4.5, 3.5)
    assert (found["low"], found["high"], found["confidence"], found["Mamba larger"]) == (2, 9, 87.5, 4)
    assert row(report, "jacobian_texts", "text 3")["‖J‖ last, Mamba"] == 9


def test_a_disagreement_is_placed():
    answer = told(pair(planted(2), planted(1, curvature=4.0))).answer
    assert "disagree at 1 of 2 layers (GPT-2 0), where the exact is to be believed" in answer


def estimates(model) -> ModelEstimates:
    (layer,) = model.layers
    middle, low, high = (size * np.ones(TEXTS) for size in (2.0, 1.5, 2.5))
    sigma, residual = (size * np.ones((TEXTS, 1)) for size in (1.0, 0.1))
    norms = EstimatedNorms(middle, low, high, sigma, residual, 9)
    bare = dataclasses.replace(model, layers=(dataclasses.replace(layer, exact={}, expected=None),))
    return ModelEstimates(bare, ({"last": norms, "sequence": norms},))


def test_every_kind_of_run_makes_a_whole_page(drawn):
    both = pair(planted(2, path=True), planted(1, path=True))
    fisher = pair(planted(2, None, compared=False), planted(1, None, compared=False))
    estimated = pair(estimates(planted(1)), estimates(planted(1)))
    measured = {key: each.sensitivity for key, each in estimated.items()}
    kinds = {
        "both": told(both, studies={key: study(0) for key in both}),
        "one model": told({"gpt2": planted(1)}),
        "last": told(both, JacobianRun(wrt="last")),
        "fisher": told(fisher, JacobianRun(metric="fisher")),
        "matrix_free": told(measured, JacobianRun(method="matrix_free"), estimated=estimated),
    }
    figures = {name: [figure.name for figure in report.figures] for name, report in kinds.items()}
    profiles, maps, agreement = "sensitivity_profiles", "token_layer_maps", "exact_versus_finite_difference"
    assert figures == {
        "both": [profiles, maps, agreement, "epsilon_sweep"],
        "one model": [profiles, maps, agreement],
        "last": [profiles],
        "fisher": [profiles, maps],
        "matrix_free": [profiles, "estimate_profiles"],
    }
    assert len(drawn) == sum(map(len, figures.values()))
    for report in kinds.values():
        assert files(report, jacobian_report.PAGE).keys() <= jacobian_report.ALL_FILES
        assert report.answer and all(report.protocol)
    assert set(figures["both"]) | set(figures["matrix_free"]) == set(jacobian_report.FIGURES)
    assert {each.name for each in kinds["both"].tables} == set(jacobian_tables.TABLES)
    assert "nothing to compare" in kinds["one model"].answer
    assert "as estimated" in kinds["matrix_free"].answer and "not compared" in kinds["matrix_free"].answer
    error = row(kinds["matrix_free"], "jacobian_measures", "± est. ‖J‖ last")
    assert error["Mamba"] == 0.5 and error["ratio"] is error["median"] is error["Mamba larger"] is None
    assert [line[-1] for line in table(kinds["both"], "jacobian_step_sizes").rows] == ["usable"] * 4


def test_estimates_are_told_in_their_metric_and_answered():
    said = estimate_report({key: estimates(planted(1)) for key in ("mamba", "gpt2")}, "centred")
    assert "How far the last token's centred logits move per unit" in said and "Answer: " in said
    assert said.isascii()


def method(models, reduction="qr", **settings) -> str:
    return " ".join(
        protocol(models, JacobianRun(**settings), TEXTS, reductions=dict.fromkeys(models, reduction))
    )


def test_the_method_is_told_as_the_settings_have_it():
    both = pair(planted(2), planted(1))
    usual = method(both)
    assert "on the first 4 texts. Its expectation" in usual and "by QR" in usual and "within 3.2" in usual
    assert "once with every row (--wrt=both)" in usual
    gram = method(both, reduction="gram", wrt="sequence")
    assert "which loses those below" in gram and "QR" not in gram and "with every row moving (--wrt" in gram
    assert "norms alone were made, no spectra" in method(both, reduction="none", spectra="none")
    assert "norms alone" not in method(both, reduction="none", spectra="none", wrt="last")
    fisher = pair(planted(2, None, compared=False), planted(1, None, compared=False))
    said = method(fisher, metric="fisher")
    assert "It is not compared: finite differences are of the logits" in said and "within 3" not in said
    undrawn = {
        key: dataclasses.replace(
            model, layers=(dataclasses.replace(model.layers[0], sampled=None, expected=None),)
        )
        for key, model in both.items()
    }
    assert "sampled estimate" not in method(undrawn, site="mixer_out")


def test_both_kinds_of_lipschitz_number_have_a_name_of_their_own():
    report = told(pair(planted(2, path=True), planted(1, path=True)))
    labels = [line[0] for line in table(report, "jacobian_measures").rows]
    for measure in ("secant", "path"):
        assert f"{measure}, largest of pairs" in labels and f"{measure}, mean of pairs" in labels
    assert row(report, "jacobian_measures", "secant, mean of pairs")["texts"] == TEXTS - 1


def scores(nats: float) -> RelationScores:
    change, control = Change(2.0, 2.0 + nats, 0.1, 0.2), Change(3.0, 3.0, 0.1, 0.1)
    tokens = np.array([5, 3, 4])
    facts = FactScores(2.0 * tokens, (2.0 + nats) * tokens, tokens)
    others = FactScores(np.full(6, 9.0), np.full(6, 9.0), np.full(6, 3))
    return RelationScores(SensitiveUnits((4, 2), (1.0, 0.5)), (), (), change, control, facts, others)


@pytest.fixture
def results() -> dict:
    return {
        "Mamba": {f"P{number}": scores(0.1 * number) for number in range(1, 7)},
        "GPT-2": {f"P{number}": scores(-0.05 if number == 1 else 0.05) for number in range(1, 7)},
    }


def scope(*titles: str) -> Scope:
    return Scope("3 units", "set to zero", dict.fromkeys(titles, "x, layers 0 to 2"), ("Only so far.",))


SITES = {"Mamba": ("mixer_out", "block_out"), "GPT-2": ("block_out", "block_out")}


def test_the_seeds_protocol_is_reported_with_its_limits(results):
    summary = delta_summary.summarise(results, 0)
    report = delta_report.delta_report(summary, scope(*results), Perturbation(), SITES, {})
    assert "costs Mamba 0.35 and GPT-2 0.0333 nats per token" in report.answer
    assert "more sensitive on 6 of 6 relations (median difference +0.3, 96.9% interval +0.15 to +0.55)" in (
        report.answer
    )
    assert report.title == "What it costs Mamba and GPT-2 when 3 units are set to zero"
    assert report.answer.startswith(
        "With 3 units of Mamba (x, layers 0 to 2) and GPT-2 (x, layers 0 to 2) set"
    )
    assert report.answer.endswith("this cannot say why.")
    assert "Only so far." in report.protocol[0]
    sixth = row(report, "delta_relations", "P6")
    assert (sixth["nats, Mamba"], sixth["difference"]) == pytest.approx((0.6, 0.55))
    assert row(report, "delta_relations", "mean")["nats, GPT-2"] == pytest.approx(0.2 / 6)
    assert table(report, "delta_relations").caption.endswith(
        "Fewer than 5 sentences, too few for an interval: every relation."
    )
    low, high = (row(report, "delta_relations", f"mean, {end}")["nats, Mamba"] for end in ("low", "high"))
    assert "nats, Mamba, low" not in sixth and low < 0.35 < high  # three sentences, six relations
    other = row(report, "delta_controls", "P6")
    assert other["nats, Mamba, low"] == other["nats, Mamba"] == other["nats, Mamba, high"] == 0
    assert max(len(each.columns) for each in report.tables) <= 13
    left = row(report, "delta_accounting", "P1")
    assert left["log % ratio"] is None and "GPT-2" in left["left out"]
    assert row(report, "delta_units", "P1")["Mamba"] == "4 2"
    assert "chosen at mixer_out" in report.protocol[1]
    assert html.page(report).startswith(b"<!doctype html>") and files(report, None)


def answered(mamba: list[float], gpt2: list[float]) -> str:
    """The second sentence of the answer, of two models with these costs."""
    pair = {
        title: {f"P{number}": scores(nats) for number, nats in enumerate(costs, 1)}
        for title, costs in (("Mamba", mamba), ("GPT-2", gpt2))
    }
    return delta_verdict.answer(delta_summary.summarise(pair, 0))[1]


def test_who_gains_more_is_not_called_the_less_sensitive():
    pair = {"Mamba": [-0.01, -0.02, 0.1], "GPT-2": [-0.5, -0.4, 0.2]}
    found = {title: {f"P{i}": scores(nats) for i, nats in enumerate(costs)} for title, costs in pair.items()}
    first, _ = delta_verdict.answer(delta_summary.summarise(found, 0))
    assert "Mamba is the more sensitive on 0 of 3 relations (on 2 neither: the one that gains" in first


def test_an_excess_is_called_so_only_where_it_is_told_from_none():
    rising = [0.10, 0.12, 0.11, 0.13, 0.12, 0.10]
    more, less = [3 * cost for cost in rising], rising[::-1]
    assert "the denominator's share of that excess is 0%, 95% interval" in answered(more, less)
    assert "which is no excess that a lower baseline could explain; units" in answered(less, more)
    mixed = answered([0.1, 0.3, 0.1, 0.3, 0.1, -0.3], [0.3, 0.1, 0.3, 0.1, 0.2, 0.1])
    assert "an excess is not told from none" in mixed and "1 left out, which has no logarithm" in mixed
    assert "relations are too few for an interval" in answered(more[:3], less[:3])
    assert "nothing to decompose" in answered([-0.1], [0.1])


def test_a_change_near_zero_that_makes_the_ratio_is_named():
    found = answered([0.2, 0.2, 0.2, 0.2, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1, 0.1, 0.001])
    assert "extreme on P6; without, it is 2.11 times" in found
    assert "extreme" not in answered([0.2, 0.2], [0.1, 0.1])


def test_a_cost_below_zero_is_a_saving_on_console_and_page(results):
    swapped = {"Mamba": results["Mamba"], "GPT-2": {name: scores(-0.05) for name in results["GPT-2"]}}
    summary = delta_summary.summarise(swapped, 0)
    report = delta_report.delta_report(summary, scope(*swapped), Perturbation(), SITES, {})
    console = " ".join(delta_console(summary, Perturbation(), SITES).split())
    first, second = delta_verdict.answer(summary)
    assert first.startswith("The edit costs Mamba 0.35 and saves GPT-2 0.05 nats per token")
    assert f"Answer: {first} {second}" in console and second in report.answer
    assert "P6 has no logarithms, as GPT-2 does not get worse" in console


def test_one_model_of_the_seeds_protocol(results):
    one = {"Mamba": results["Mamba"]}
    summary = delta_summary.summarise(one, 0)
    report = delta_report.delta_report(summary, scope("Mamba"), Perturbation(), SITES, {})
    assert "nothing to compare" in report.answer and report.answer.count(". ") == 1
    assert "over 6 relations (median +0.35, 96.9% interval +0.1 to +0.6)" in report.answer
    assert [each.name for each in report.tables] == [
        name for name in delta_report.TABLES if name != "delta_accounting"
    ]


def test_recall_is_reported_beside_its_cost(results):
    """Any list of models; a fact that is not scored is named, and counted nowhere."""
    facts = (
        FactRecall("Rome", 1, 1, 0, " Rome", " Paris", True, False),
        FactRecall("Oslo", 1, 1, 1, " Oslo", " Oslo", True, True),
        FactRecall("Amtrak", 0, 0, 0, "", "", False, False, "its object stands first"),
    )
    found = {"a/model": {name: RelationRecall(entry, facts) for name, entry in results["Mamba"].items()}}
    summary = recall_summary.summarise(found, 0)
    report = recall_report.recall_report(summary, scope(*found), "units are\nset to zero.", {})
    assert "costs a/model 0.35 nats per token on the relation whose units were chosen and 0 on other" in (
        report.answer
    )
    assert "(median difference +0.35, 96.9% interval +0.1 to +0.6)" in report.answer
    assert "writes out 12 of 12 objects before the edit and 6 with it" in report.answer
    costs, shares = (row(report, name, "P3") for name in ("recall_relations", "recall_shares"))
    assert costs["nats"] == pytest.approx(0.3) and costs["other nats"] == 0
    assert (shares["facts"], shares["greedy before"], shares["greedy after"]) == (2, 100, 50)
    assert [each.name for each in report.tables] == list(recall_report.TABLES)
    assert max(len(each.columns) for each in report.tables) <= 13
    assert row(report, "recall_patterns", "most sensitive, in nats")["a/model"] == "P6"
    lines = table(report, "recall_facts").rows
    assert list(lines[0]) == ["P1", "Rome", "Rome", "Paris", "yes, no"]
    assert list(lines[2]) == ["P1", "Amtrak", "", "", "not scored: its object stands first"]
    assert report.title == "Factual recall when 3 units are set to zero"
    assert report.protocol[1] == "units are set to zero."
    assert html.page(report).startswith(b"<!doctype html>")


def test_selectivity_is_shown_where_other_texts_get_worse(results):
    """The study's ratio stays in the rows; the median is over those that mean something."""
    worse = dataclasses.replace(scores(0.2), control=Change(3.0, 3.1, 0.1, 0.1))
    found = {"a/model": {"P1": RelationRecall(worse, ()), "P2": RelationRecall(scores(0.1), ())}}
    summary = recall_summary.summarise(found, 0)
    ratio = 100 * np.expm1(0.2) / (100 * np.expm1(0.1) + 1e-6)
    report = recall_report.recall_report(summary, scope(*found), "", {})
    assert row(report, "recall_perplexity", "P1")["selectivity"] == pytest.approx(ratio)
    assert row(report, "recall_perplexity", "P2")["selectivity"] is None
    assert row(report, "recall_patterns", "selectivity, median")["a/model"] == pytest.approx(ratio)
    assert row(report, "recall_patterns", "relations with a selectivity")["a/model"] == 1
    rows = list(recall_records.recall_rows(summary))
    assert rows[1]["selectivity"] == pytest.approx(100 * np.expm1(0.1) / 1e-6, rel=1e-6)
    (line,) = [line for line in recall_console(summary, "").splitlines() if line.startswith("P2 ")]
    assert line.split()[8:] == ["-"] * 5 and "None of its facts' objects can be scored." in report.answer


def test_models_whose_values_are_had_in_two_ways_are_named():
    models = pair(planted(3), planted(1))
    said = " ".join(protocol(models, JacobianRun(), 4, reductions={"mamba": "gram", "gpt2": "qr"}))
    assert "GPT-2: Singular values are had by QR" in said
    assert "Mamba: Singular values are had from the Gram matrix" in said
