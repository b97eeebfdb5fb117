"""What the console says of planted results: which is more fragile by which measure, and what disagrees."""

import dataclasses

import numpy as np
import pytest
from support import TINY

from jaxprobe.jacobians.answer import answer
from jaxprobe.jacobians.measures import layers_of
from jaxprobe.jacobians.report_tables import report_tables
from jaxprobe.jacobians.results import (
    ExactNorms,
    ExpectedGain,
    LayerSensitivity,
    ModelSensitivity,
    PathGain,
    SampledGain,
)
from jaxprobe.jacobians.tables import sensitivity_report

TEXTS = 4


def norms(size: float, gain: float | None) -> ExactNorms:
    values = np.geomspace(1, 1 / 100, 5) * np.ones((TEXTS, 1))
    values *= size / np.linalg.norm(values[0])
    one = np.ones(TEXTS)
    return ExactNorms(
        frobenius=size * one, sigma1=size * one, stable_rank=one, effective_rank=3 * one,
        singular_values=values, relative_gain=None if gain is None else gain * one,
        position_norms=(np.ones(3),) * TEXTS, participation=2 * one,
    )  # fmt: skip


def degenerate(size: float) -> ExactNorms:
    """Of a Jacobian all of whose entries are 0, or nan: it has neither ranks nor gain."""
    of, none = np.full(TEXTS, size), np.full(TEXTS, np.nan)
    return ExactNorms(of, of, none, none, np.full((TEXTS, 5), size), none, (np.full(3, size),) * TEXTS, none)


def without_jacobian(size: float) -> ModelSensitivity:
    """`planted` with such a Jacobian, whose draws are what draws of it are."""
    model, of = planted(1), np.full(TEXTS, size)
    layer = dataclasses.replace(
        model.layers[0],
        exact=dict.fromkeys(("last", "sequence"), degenerate(size)),
        sampled=SampledGain(of, of, of, of),
        expected=ExpectedGain(of, of, of),
        secant=np.full(TEXTS - 1, size),
    )
    return dataclasses.replace(model, layers=(layer,))


def planted(size: float, gain: float | None = 1.0, *, draws=0.0, curvature=0.0, compared=True, path=False):
    """One layer whose draws miss the exact mean by so many standard errors of the mean over texts."""
    error = 0.1 * np.ones(TEXTS)
    linear = 1 + draws * error / 2  # the error of the mean of four
    bend = curvature * error / 2
    layer = LayerSensitivity(
        layer=0,
        exact={"last": norms(size, gain), "sequence": norms(2 * size, gain)},
        sampled=SampledGain(linear + bend, linear, bend, np.full(TEXTS, 1e-6)),
        expected=ExpectedGain(np.ones(TEXTS), np.ones(TEXTS), error) if compared else None,
        secant=np.ones(TEXTS - 1),
        effective_rank=2.0,
        path=PathGain(np.full((3, 2), 7.0), np.ones(3), np.zeros(3)) if path else None,
    )
    return ModelSensitivity(TINY["gpt2"], (layer,), 1.0, 10)


def report(mamba: ModelSensitivity, gpt2: ModelSensitivity, **options) -> str:
    return sensitivity_report({"mamba": mamba, "gpt2": gpt2}, **options)


def test_the_answer_is_the_pages():
    models = {"mamba": planted(3, 0.5), "gpt2": planted(1, 1.0)}
    said = sensitivity_report(models).split("Answer: ")[1]
    assert " ".join(said.split()) == " ".join(answer(models)) and said.isascii()


@pytest.mark.parametrize(
    ("off", "words"),
    [
        ({"draws": 4.0}, "the draws do not agree with the exact expectation"),
        ({"curvature": -4.0}, "the step is too large (curvature) or too small (rounding)"),
    ],
)
def test_a_disagreement_is_said_and_placed(off, words):
    """Draws that miss their own expectation speak against what is exact as much as against them."""
    said = report(planted(1), planted(1, **off))
    told = " ".join(said.split())
    then = "draws of the exact Jacobian miss" if "draws" in off else "the exact is to be believed"
    assert f"disagree at 1 of 2 layers (GPT-2 0), where {then}" in told
    (row,) = [line for line in said.splitlines() if line.endswith(words)]
    assert row.startswith("GPT-2") and f"{next(iter(off.values())):+.2f}" in row
    assert sum(line.endswith("agrees within sampling error") for line in said.splitlines()) == 1


def test_another_metric_has_no_comparison_and_fisher_no_gain():
    models = [planted(1, None, compared=False)] * 2
    said = report(*models, metric="fisher")
    assert "not compared: finite differences are of the logits" in said
    assert "gain seq" not in said and "relative gain" not in said
    assert "prediction moves (sqrt(2 KL), KL in nats) per unit" in said


def test_lines_fit_a_terminal():
    said = report(planted(1234.5, path=True), planted(1.5, 1e-3, draws=4.0, path=True))
    assert "Lip path" in said and max(map(len, said.splitlines())) <= 120


def test_what_numbers_are_over_is_said():
    said = report(planted(1), planted(1))
    for words in (
        "Means over 4 texts.",
        "over 8 pairs of a text and a layer",
        "first 4 texts",
        "of 3 pairs of",
    ):
        assert words in said
    assert "within 3.2 standard errors" in said and "largest of 4; of normal ones 1.4 would be usual" in said


@pytest.mark.parametrize("size", [0.0, np.nan])
def test_what_has_no_value_is_a_dash(size):
    models = {"mamba": without_jacobian(size), "gpt2": planted(1)}
    said = sensitivity_report(models)
    assert not {"nan", "+nan", "inf"} & set(said.split())
    assert "-         no value, as of ranks and gain of a Jacobian of zeros" in said
    row = next(line.split() for line in said.splitlines() if line.startswith("0 "))
    assert row.count("-") == (5 if size == 0 else 10)
    tables = report_tables(models, layers_of(models, {}), ["t"] * TEXTS, (), {}, 0.01)
    by_layer = next(table for table in tables if table.name == "jacobian_layers")
    assert "A dash: no value" in by_layer.caption and None in by_layer.rows[0]
