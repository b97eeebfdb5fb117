"""The answer of the Jacobian analysis: each claim with its interval, called by what the interval holds."""

import dataclasses

import numpy as np
import pytest
from support import TINY
from test_tables import planted, without_jacobian

from jaxprobe.jacobians.answer import answer
from jaxprobe.jacobians.measures import compare, layers_of
from jaxprobe.jacobians.results import ExactNorms, LayerSensitivity
from jaxprobe.jacobians.text_statistics import effective_rank
from jaxprobe.statistics.paired import group_means


def with_norms(norms: np.ndarray):
    """A model with a norm for each text, the last token's row moving, and nothing else."""
    none = dict.fromkeys(field.name for field in dataclasses.fields(ExactNorms))
    exact = {"last": ExactNorms(**{**none, "frobenius": norms})}  # pyright: ignore
    layer = LayerSensitivity(0, exact, None, None, None, None)
    return dataclasses.replace(planted(1), layers=(layer,))


def first(mamba: np.ndarray, groups=()) -> str:
    """The first sentence on two models whose texts' ratios are these."""
    return answer({"mamba": with_norms(mamba), "gpt2": with_norms(np.ones(len(mamba)))}, groups=groups)[0]


def test_a_claim_whose_interval_holds_one_is_no_claim():
    around = np.array([0.5, 0.8, 0.9, 1.1, 1.2, 1.9, 2.5])
    assert "(median 1.1, 98.4% interval 0.5 to 2.5: not told apart)" in first(around)
    above = first(around + 1)
    assert "(median 2.1, 98.4% interval 1.5 to 3.5)." in above


def test_each_claim_stands_for_itself():
    (told, *_), (one, *_) = (
        answer({"mamba": with_norms(around), "gpt2": with_norms(np.ones(7))})
        for around in (np.linspace(2, 4, 7), np.linspace(0.5, 2, 7))
    )
    assert "not told apart" not in told and "not told apart" in one


def test_texts_of_a_relation_count_once():
    texts = np.repeat([2.0, 3, 4, 5, 6, 7], 3) + np.tile([-0.5, 0, 0.5], 6)
    groups = [f"P{number // 3}" for number in range(18)]
    alone, grouped = first(texts), first(texts, groups)
    assert "interval 3 to 6)" in alone  # of 18 that are taken as independent
    assert "(median 4.5, 96.9% interval 2 to 7)" in grouped
    few = answer({"mamba": with_norms(texts[:15]), "gpt2": with_norms(np.ones(15))}, groups=groups)
    assert "(median 4, no interval)." in few[0] and few[-1].endswith("one value; too few for 95% intervals.")
    assert "one relation, so no interval" in first(texts[:3], groups)


def test_draws_on_fewer_texts_say_of_how_many_relations():
    models = {"mamba": planted(3), "gpt2": planted(1)}
    assert answer(models, groups=("a", "a", "b", "c"))[2].endswith("on the first 4 texts (of 3 relations).")
    assert answer(models)[2].endswith("on the first 4 texts.")


def test_the_mean_of_a_group_is_one_value():
    values, groups = np.array([1.0, 2, 3, 10]), ["a", "b", "a", "c", "c"]
    assert group_means(values, groups).tolist() == [2, 2, 10]  # the first texts only, as draws have them
    assert group_means(values, ()).tolist() == values.tolist()


def test_a_layer_of_unequal_depth_is_said():
    mamba = planted(2)
    deep = dataclasses.replace(mamba, config=dataclasses.replace(TINY["mamba"], num_layers=7))
    assert answer({"mamba": deep, "gpt2": planted(1)})[-1] == (
        "What is compared, layer 0 of Mamba's 7, layer 0 of GPT-2's 3, does not lie at the same share of the "
        "depth."
    )
    assert "share of the depth" not in answer({"mamba": mamba, "gpt2": planted(1)})[-1]


def test_states_that_are_not_finite_have_no_rank():
    assert np.isnan(effective_rank(np.array([[1.0, np.nan], [2.0, 3.0]])))


def test_no_sensitivity_is_no_answer():
    nothing = with_norms(np.zeros(4))
    assert answer({"mamba": with_norms(np.ones(4)), "gpt2": nothing}) == (
        "None: a model's sensitivity is zero, or its numbers are too large or small for this number format "
        "(--dtype=float64 tells).",
    )


def test_a_largest_value_has_no_interval_over_texts():
    models = {"mamba": planted(3, path=True), "gpt2": planted(1, path=True)}
    found = {each.measure.label: each for each in compare(layers_of(models, {}))}
    largest = found["local, largest of texts"]
    assert largest.ratio == pytest.approx(3) and largest.interval is None
    assert found["secant, mean of pairs"].count == 3 and found["rank of states"].count is None


def test_a_jacobian_that_is_not_finite_is_named_and_nothing_is_claimed():
    for models in (
        {"mamba": without_jacobian(np.nan), "gpt2": planted(1)},
        {"mamba": without_jacobian(np.nan)},
    ):
        (said,) = answer(models)
        assert said.startswith("None: the Jacobian, or the square of a state, is not finite at Mamba 0 (")


@pytest.mark.parametrize("lost", [0.0, np.inf, np.nan])
def test_draws_lost_to_their_step_cost_their_own_sentence_only(lost):
    gpt2 = planted(1)
    drawn = dataclasses.replace(gpt2.layers[0].sampled, mean=np.full(4, lost), curvature=np.full(4, lost - 1))
    gpt2 = dataclasses.replace(gpt2, layers=(dataclasses.replace(gpt2.layers[0], sampled=drawn),))
    sentences = answer({"mamba": planted(3), "gpt2": gpt2})
    assert sentences[:2] == answer({"mamba": planted(3), "gpt2": planted(1)})[:2]
    assert sentences[2].startswith("Finite differences compare nothing: GPT-2's are zero or not finite")
    assert "disagree at 1 of 2 layers (GPT-2 0), where the exact is to be believed" in sentences[3]


@pytest.mark.parametrize(
    ("error", "words"), [(0.5, "not to be believed at GPT-2 0"), (np.nan, "unchecked at GPT-2 0")]
)
def test_a_jacobian_that_fails_its_check_is_not_believed(error, words):
    gpt2 = planted(1, draws=9.0)
    drawn = dataclasses.replace(gpt2.layers[0].sampled, jacobian_error=np.array([0, 0, error, 0]))
    gpt2 = dataclasses.replace(gpt2, layers=(dataclasses.replace(gpt2.layers[0], sampled=drawn),))
    said = answer({"mamba": planted(3), "gpt2": gpt2})
    assert said[0].startswith(f"Exact values are {words}")
    assert "agree within sampling error at all 1 other layers" in said[4]
    assert not any("is to be believed" in sentence for sentence in answer({"gpt2": gpt2})[1:])


def test_singular_values_without_the_norm_are_not_believed():
    gpt2 = planted(1)
    (layer,) = gpt2.layers
    last = layer.exact["last"]
    for off, said in ((1e-6, False), (1e-3, True), (np.nan, True)):
        values = last.singular_values * (1 + off)
        wrong = dataclasses.replace(last, singular_values=values)
        np.testing.assert_allclose(wrong.spectrum_error, 2 * off, rtol=1e-2)
        exact = {**layer.exact, "last": wrong}
        models = {
            "mamba": planted(3),
            "gpt2": dataclasses.replace(gpt2, layers=(dataclasses.replace(layer, exact=exact),)),
        }
        assert ("Spectra are not to be believed at GPT-2 0" in " ".join(answer(models))) is said


def test_where_inputs_differ_in_number_moves_of_one_length_are_compared():
    """Norms 2 and 1 over 4 and 16 inputs: in a random direction the first model moves four times as far."""

    def model(norm: float, gain: float, inputs: float):
        rows = {"last": np.full(4, float(inputs)), "sequence": np.full(4, 3.0 * inputs)}
        return dataclasses.replace(planted(norm, gain), inputs=rows)

    same, uneven = (answer({"mamba": model(2, 0.5, 4), "gpt2": model(1, 1, inputs)}) for inputs in (4, 16))
    assert " 2 times as far" in same[0] and " 0.5 times as far" in same[1] and "inputs" not in " ".join(same)
    assert " 4 times as far" in uneven[0] and " 1 times as far" in uneven[1]
    assert "J has not as many inputs in both models: compared are" in " ".join(uneven)


def test_inputs_of_what_was_not_measured_do_not_count():
    models = {"mamba": with_norms(np.full(4, 2.0)), "gpt2": with_norms(np.ones(4))}  # of `last` alone
    longer = {"last": np.full(4, 5.0), "sequence": np.full(4, 45.0)}
    shorter = longer | {"sequence": np.full(4, 20.0)}
    made = {
        key: dataclasses.replace(model, inputs=inputs)
        for (key, model), inputs in zip(models.items(), (longer, shorter), strict=True)
    }
    assert answer(made) == answer(models)
