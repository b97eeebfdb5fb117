"""The matched protocol on one model: every mode and study against single texts run whole, one by one."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import matched_synthetic
import numpy as np
import pytest
from matched_models import summed_nll, tiny_model, tiny_plan, values_at
from support import TINY, random_params

from jaxprobe.matched import summary
from jaxprobe.matched.collect import summarise
from jaxprobe.matched.results import STRENGTHS
from jaxprobe.matched.study import prepare
from jaxprobe.models import LanguageModel

MODES = {"zero": 0.0, "mean": 0.0, "reference_mean": 0.0, "noise": 1.5, "scale": -0.5, "resample": 0.0}


def measure(plan):
    study = prepare(plan)
    return summarise(study, {unit.name: unit.compute() for unit in study.units()})


def score(plan, text, units, layer=1, value=0.0, mode="replace"):
    row, units = jnp.asarray(plan.ids[text], jnp.int32), jnp.asarray(units, jnp.int32)
    return float(
        summed_nll(plan.lm, plan.params, row, layer, units, value, site=plan.treatment.site, mode=mode)
    )


def expected(plan, text, units, layer=1, strength=1.0):
    """The score of one text, its units replaced by what they should be, in a whole forward pass."""
    at = plan.treatment

    def site(place):
        row = jnp.asarray(plan.ids[place], jnp.int32)
        return np.asarray(values_at(plan.lm, plan.params, row, site=at.site)[layer])

    own = site(text)[:, units]
    match at.mode:
        case "zero":
            edited = np.zeros_like(own)
        case "scale":
            edited = at.value * own
        case "mean":
            edited = np.broadcast_to(own.mean(axis=0), own.shape)
        case "reference_mean":
            mean = np.concatenate([site(place) for place in plan.controls])[:, units].mean(axis=0)
            edited = np.broadcast_to(mean, own.shape)
        case "resample":
            donor = site(at.donors[text])[:, units]
            edited = donor[np.minimum(np.arange(len(own)), len(donor) - 1)]
        case "noise":
            digest = zlib.crc32(np.array(plan.ids[text], np.int32).tobytes())
            key = jax.random.fold_in(jax.random.key(at.seed), digest)
            edited = own + at.value * np.asarray(jax.random.normal(key, own.shape, own.dtype))
    return score(plan, text, units, layer, own + strength * (edited - own))


def close(plan, got, texts, units, **how):
    want = [expected(plan, text, list(units), **how) for text in texts]
    np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("key", TINY)
def test_every_mode_equals_whole_passes_of_single_texts(key, mode, x64):
    """Before and after, on facts and control texts, for chosen units and control sets, inside the block."""
    plan = tiny_plan(*tiny_model(key), "mixer_out", mode, MODES[mode])
    effects = measure(plan)
    for group in plan.groups:
        found = effects.relations[group.name]
        units = found.chosen.units
        close(plan, found.facts.before, group.evaluation, units, strength=0)
        close(plan, found.facts.after, group.evaluation, units)
        close(plan, found.control_texts.before, plan.controls, units, strength=0)
        close(plan, found.control_texts.after, plan.controls, units)
        assert found.controls.keys() == {
            "random",
            "high_norm",
            "high_variance",
            "low_variance",
            "norm_matched",
        }
        for kind, sets in found.control_units.items():
            close(plan, found.controls[kind][-1], group.evaluation, sets[-1].tolist())
        rows = [np.array(plan.ids[text][1:]) for text in group.evaluation]
        assert found.facts.tokens.tolist() == [(row != 0).sum() for row in rows]


@pytest.mark.parametrize("key", TINY)
def test_every_study_equals_whole_passes_of_single_texts(key, x64):
    studies = ("units", "layers", "selectivity", "linearity")
    plan = tiny_plan(*tiny_model(key), "block_out", "resample", studies=studies)
    effects = measure(plan)
    first, second = plan.groups
    for group, other in ((first, second), (second, first)):
        found = effects.relations[group.name]
        units = found.chosen.units
        assert found.others.keys() == {other.name}
        close(plan, found.others[other.name], other.evaluation, units)
        for unit in (0, 5):
            close(plan, found.units[unit], group.evaluation, [unit])
        for row in (1, 4):
            got = found.facts.before + found.linearity.measured[row]
            close(plan, got, group.evaluation, units, strength=STRENGTHS[row])
        for place, row in ((0, 2), (len(units) - 1, 5)):
            got = found.facts.before + found.linearity.alone[place, row]
            close(plan, got, group.evaluation, [units[place]], strength=STRENGTHS[row])
        assert found.linearity.alone.shape[:2] == (len(units), len(STRENGTHS))
    for layer in range(plan.lm.config.num_layers):
        for group, chosen in zip(plan.groups, plan.choose(plan.shelve(layer)), strict=True):
            close(plan, effects.layers[group.name][layer], group.evaluation, chosen.units, layer=layer)


@pytest.mark.parametrize("site, mode", [
    ("delta", "resample"), ("ssm_state", "zero"),
])  # fmt: skip
def test_mambas_own_sites(site, mode, x64):
    plan = tiny_plan(*tiny_model("mamba"), site, mode)
    effects = measure(plan)
    for group in plan.groups:
        found = effects.relations[group.name]
        units = found.chosen.units
        if site == "ssm_state":  # what an edit does to later tokens' state is not a replacement of values
            want = [score(plan, text, units, mode="zero") for text in group.evaluation]
            np.testing.assert_allclose(found.facts.after, want, rtol=1e-10)
        else:
            close(plan, found.facts.after, group.evaluation, units)


@pytest.mark.parametrize("key, mode", [("mamba", "noise"), ("gpt2", "resample")])
def test_neither_batches_nor_padding_nor_order_change_anything(key, mode, x64):
    lm, params = tiny_model(key)
    one, other = (
        measure(tiny_plan(lm, params, mode=mode, value=MODES[mode], studies=("units",), **how))
        for how in ({}, {"batch_tokens": 16, "order": (1, 0)})
    )
    for name, found in one.relations.items():
        same = other.relations[name]
        assert same.chosen.units == found.chosen.units
        for a, b in (
            (found.facts.after, same.facts.after), (found.control_texts.after, same.control_texts.after),
            (found.controls["random"], same.controls["random"]), (found.units, same.units),
        ):  # fmt: skip
            np.testing.assert_allclose(a, b, rtol=1e-11)


def test_a_sweep_is_the_factors_one_by_one_and_one_is_no_edit(x64):
    factors = (0.0, 0.25, 1.0, -2.0)
    plan = tiny_plan(*tiny_model("gpt2"), mode="scale", value=1.0, scales=factors)
    effects = measure(plan)
    for group in plan.groups:
        found = effects.relations[group.name]
        assert found.scales.tolist() == list(factors)
        for factor, after in zip(factors, found.after_scales, strict=True):
            units = found.chosen.units
            want = [score(plan, text, units, value=factor, mode="scale") for text in group.evaluation]
            np.testing.assert_allclose(after, want, rtol=1e-10)
        assert (found.after_scales[2] == found.facts.before).all()


@pytest.mark.parametrize("key, mode", [("mamba", "resample"), ("gpt2", "noise")])
def test_curves_are_the_slope_and_curvature_of_what_is_measured(key, mode, x64):
    """Central differences over strengths of the scores themselves."""
    how = {"mode": mode, "value": MODES[mode], "studies": ("units", "linearity")}
    plan = tiny_plan(*tiny_model(key), **how)
    found = measure(plan).relations["P1 (one)"]
    group, step = plan.groups[0], 1e-4
    for place, text in enumerate(group.evaluation):
        curves, units = found.linearity.chosen, list(found.chosen.units)
        at = [expected(plan, text, units, 1, s) for s in (-step, 0, step)]
        assert curves.slope[place] == pytest.approx((at[2] - at[0]) / (2 * step), rel=1e-5, abs=1e-8)
        want = (at[2] - 2 * at[1] + at[0]) / step**2
        assert curves.curvature[place] == pytest.approx(want, rel=1e-3, abs=1e-5)
        at = [expected(plan, text, [4], 1, s) for s in (-step, step)]
        slope = found.linearity.units.slope[4, place]
        assert slope == pytest.approx((at[1] - at[0]) / (2 * step), rel=1e-5, abs=1e-8)


def test_units_are_chosen_on_facts_that_are_not_scored(x64):
    """Other tokens in an evaluated fact change its scores, never the units."""
    plan = tiny_plan(*tiny_model("gpt2"))
    group = plan.groups[0]
    assert set(group.selection).isdisjoint(group.evaluation)
    ids = list(plan.ids)
    for place in group.evaluation:
        ids[place] = (*ids[place][:-1], (ids[place][-1] + 1) % 10 + 1, 3)
    other = measure(dataclasses.replace(plan, ids=tuple(ids)))
    same = measure(plan)
    assert other.relations[group.name].chosen == same.relations[group.name].chosen
    assert (other.relations[group.name].facts.after != same.relations[group.name].facts.after).any()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("key", TINY)
def test_a_planted_critical_unit_is_found(key, count):
    """One unit alone carries every prediction: it is chosen, ranks above sets without it, and stands out."""
    unit, width = 29, 48
    config = dataclasses.replace(TINY[key], hidden_size=width, num_layers=2)
    params = random_params(config, dtype="float32")
    for name in ("c_proj", "out_proj"):
        _silence(params["blocks"], name)
    params["final_norm"]["scale"][:] = np.where(np.arange(width) == unit, 2, 1e-3)
    params["final_norm"].get("bias", np.zeros(1))[:] = 0
    params.get("position_embedding", {"embedding": np.zeros(1)})["embedding"][:] = 0
    params["embedding"]["embedding"][:, unit] = 0
    params["embedding"]["embedding"][[3, 7], unit] = 5, -5  # so a 3 foretells a 3, and a 7 a 7
    lm = LanguageModel(config)
    plan = tiny_plan(lm, lm.place(params), count=count, random_sets=100, studies=("units",))
    ids = list(plan.ids)
    for group in plan.groups:
        for number, place in enumerate(group.selection + group.evaluation):
            ids[place] = (3 + 4 * (number % 2),) * len(ids[place])
    effects = measure(dataclasses.replace(plan, ids=tuple(ids)))
    told = summary.summarise({"it": effects}, matched_synthetic.sizes({"it": effects}), draws=99)
    for name, found in effects.relations.items():
        assert found.chosen.units[0] == unit and len(found.chosen.units) == count
        assert found.facts.delta_nats > 0.5
        random = told.relations["it"][name].controls["random"]
        shares = np.isin(found.control_units["random"], found.chosen.units)
        assert random.disjoint.value == random.disjoint.high == 100 and random.disjoint.low > 95
        assert random.disjoint_sets == random.disjoint.draws == (~shares.any(axis=1)).sum() < 100
        assert random.shared == pytest.approx(shares.mean() * count)
        alone = (found.units - found.facts.before).sum(axis=1)
        assert alone.argmax() == unit and alone[unit] > 100 * np.abs(np.delete(alone, unit)).max()


def _silence(tree, name):
    for key, value in tree.items():
        if isinstance(value, dict):
            _silence(value, name)
        if key == name:
            for leaf in value.values():
                leaf[:] = 0
