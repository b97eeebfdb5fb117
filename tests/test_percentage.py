"""The accounting of percentages: exact per relation, and what is said where it does not apply."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprobe.statistics.percentage import Change, decompose

nats = st.floats(0.05, 8)
rises = st.floats(0.01, 3)


def change(baseline, rise):
    return Change(baseline, baseline + rise, 0.0, 0.0)


@given(nats, st.floats(-3, 3))
def test_a_percentage_has_no_baseline_in_it(baseline, rise):
    made = change(baseline, rise)
    assert made.percentage == pytest.approx(100 * (math.exp(rise) - 1), rel=1e-9, abs=1e-9)
    assert made.percentage == pytest.approx(100 * made.absolute / made.baseline_ppl, rel=1e-9, abs=1e-9)
    assert made.delta_nats == pytest.approx(math.log(made.perturbed_ppl / made.baseline_ppl), abs=1e-12)


@given(st.lists(st.tuples(nats, rises, nats, rises), min_size=1, max_size=6))
def test_the_terms_add_up_relation_by_relation(values):
    m = {str(i): change(b, r) for i, (b, r, _, _) in enumerate(values)}
    g = {str(i): change(b, r) for i, (_, _, b, r) in enumerate(values)}
    made = decompose(m, g)
    assert not made.left_out and made.terms.keys() == m.keys()
    for key, terms in made.terms.items():
        total = terms.log_absolute_ratio + terms.log_baseline_ratio
        assert terms.log_percentage_ratio == pytest.approx(total, abs=1e-9)
        assert terms.log_percentage_ratio == pytest.approx(
            math.log(math.expm1(m[key].delta_nats) / math.expm1(g[key].delta_nats)), abs=1e-9
        )
    mean = made.mean
    assert mean is not None
    if made.share is None:
        assert mean.log_percentage_ratio <= 0
    else:
        assert made.share * mean.log_percentage_ratio == pytest.approx(mean.log_baseline_ratio, abs=1e-12)


def test_a_share_may_lie_outside_0_to_1():
    twice = decompose({"r": change(1.0, 0.2)}, {"r": change(3.0, 0.1)})
    assert twice.share is not None and twice.share > 1
    negative = decompose({"r": change(3.0, 0.2)}, {"r": change(1.0, 0.1)})
    assert negative.share is not None and negative.share < 0


def test_no_excess_has_no_share():
    assert decompose({"r": change(1.0, 0.1)}, {"r": change(3.0, 0.2)}).share is None
    assert decompose({"r": change(1.0, 0.1)}, {"r": change(1.0, 0.1)}).share is None


def test_relations_that_do_not_get_worse_are_left_out_with_the_reason():
    m = {"a": change(1.0, -0.1), "b": change(1.0, 0.2), "c": change(1.0, 0.1)}
    g = {"a": change(1.0, 0.0), "b": change(1.0, 0.1), "c": change(1.0, 2000.0)}
    made = decompose(m, g, ("Mamba", "GPT-2"))
    assert list(made.terms) == ["b"]
    assert made.left_out == {
        "a": "Mamba does not get worse and GPT-2 does not get worse",
        "c": "GPT-2 has no finite perplexity",
    }
    nothing = decompose({"a": m["a"]}, {"a": g["a"]})
    assert nothing.mean is None and nothing.share is None
