"""Measuring a model: nothing depends on how the work is cut, and each statistic takes the right texts."""

import dataclasses
import functools
import importlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import REFERENCE, TINY, assert_close, needs_reference, random_params, random_texts

from jaxprobe.convert import load
from jaxprobe.jacobians import linearize, sweeps
from jaxprobe.jacobians import text_statistics as metrics
from jaxprobe.jacobians.finite_difference import draw_differences, unit_draws
from jaxprobe.jacobians.forward import forward
from jaxprobe.jacobians.planning import Plan, cut
from jaxprobe.jacobians.readout import logits_from
from jaxprobe.jacobians.sensitivity import summarise, work_units
from jaxprobe.jacobians.spectra import expected_gain, rms_gain
from jaxprobe.jacobians.verdict import layer_verdict
from jaxprobe.models import LanguageModel
from jaxprobe.taps import Taps

# The package shows functions of these names.
sensitivity = importlib.import_module("jaxprobe.jacobians.sensitivity")

LENGTHS = (5, 3, 9, 7, 2, 12)
EVERYTHING = Plan(layers=(0, 1, 2), num_samples=2)


@functools.cache
def measure(config, ids, plan, dtype="float64"):
    lm = LanguageModel(config)
    params = lm.place(random_params(config), dtype)
    results = {unit.name: unit.compute() for unit in work_units(lm, params, ids, plan)}
    return summarise(config, ids, plan, results)


def flat(model):
    """Every array and number of a result, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(dataclasses.asdict(model))
    return {
        jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves if not isinstance(leaf, str)
    }


@pytest.mark.parametrize("name", TINY)
def test_states_whose_squares_overflow_have_no_jacobian(name):
    """Their norm makes zeros of them, whose Jacobian would be zero."""
    config, ids = TINY[name], texts(TINY[name])
    lm, params = LanguageModel(config), random_params(config, dtype="float32")
    params["embedding"]["embedding"] = params["embedding"]["embedding"] * np.float32(1e25)
    params = lm.place(params, "float32")
    plan = Plan(layers=tuple(range(config.num_layers)), num_samples=2)
    results = {unit.name: unit.compute() for unit in work_units(lm, params, ids, plan)}
    for layer in summarise(config, ids, plan, results).layers:
        for norms in layer.exact.values():
            assert np.isnan(norms.frobenius).all() and np.isnan(norms.sigma1).all()
            assert np.isnan(norms.relative_gain).all()


def test_a_state_that_overflows_above_the_one_layer_asked_for():
    config, ids = TINY["gpt2"], texts(TINY["gpt2"])
    lm, params = LanguageModel(config), random_params(config, dtype="float32")
    params["blocks"]["mlp"]["c_proj"]["bias"][-1] = 1e25  # of the last block alone
    params = lm.place(params, "float32")
    for layers in ((0, 1, 2), (0,)):
        plan = Plan(layers=layers, num_samples=2)
        results = {unit.name: unit.compute() for unit in work_units(lm, params, ids, plan)}
        for layer in summarise(config, ids, plan, results).layers:
            assert all(np.isnan(norms.frobenius).all() for norms in layer.exact.values())


def texts(config, lengths=LENGTHS):
    return tuple(tuple(map(int, text)) for text in random_texts(lengths, config.vocab_size))


@pytest.mark.parametrize("name", TINY)
def test_batches_change_nothing(name, x64):
    config = TINY[name]
    ids, plan = texts(config), EVERYTHING
    together = flat(measure(config, ids, plan))
    apart = flat(measure(config, ids, dataclasses.replace(plan, batch_tokens=1)))
    assert together.keys() == apart.keys()
    for path, value in together.items():
        assert_close(apart[path], value, 1e-9, path, floor=1e-3)


PREPARED = {
    "default": Plan(layers=(0, 1, 2), num_samples=2),
    "gram": Plan(layers=(0, 1, 2), reduction="gram", num_samples=2),
    "last": Plan(layers=(1,), wrt=("last",), num_samples=2, epsilon=1e-3),
    "norms": Plan(layers=(0, 1, 2), reduction="none", num_samples=2),
    "fisher": Plan(layers=(1, 2), wrt=("sequence",), metric="fisher", num_samples=2),
    "site": Plan(layers=(0, 1, 2), site="mixer_out", num_samples=2),
}


@pytest.mark.parametrize("on_host", [True, False])  # whether values come from squares there, as on a CPU
@pytest.mark.parametrize("asked", PREPARED)
@pytest.mark.parametrize("name", TINY)
def test_what_is_prepared_is_all_that_runs(name, asked, on_host, caplog, monkeypatch):
    """Programs that are prepared are those that run, to the last shape and dtype: none is compiled later."""
    monkeypatch.setattr(sweeps, "_on_host", lambda reduction: on_host)
    config, plan = TINY[name], PREPARED[asked]
    lm, ids = LanguageModel(config), texts(config)
    params = lm.place(random_params(config), "float32")
    jax.clear_caches()
    for unit in work_units(lm, params, ids, plan):
        for prepare in unit.prepare:
            prepare()
        caplog.clear()
        with jax.log_compiles():
            unit.compute()
        late = set(re.findall(r"Compiling jit\((\w+)\)", caplog.text))
        assert not late & {"run", "output_factor", "_draw_keys"}, unit.name  # small ones of a site are let be


@pytest.mark.parametrize("name", TINY)
def test_one_layer_alone_is_that_layer_of_all(name, x64):
    config = TINY[name]
    ids, plan = texts(config), EVERYTHING
    everything = measure(config, ids, plan)
    for layer in everything.layers:
        (alone,) = measure(config, ids, dataclasses.replace(plan, layers=(layer.layer,))).layers
        for (path, a), b in zip(flat(alone).items(), flat(layer).values(), strict=True):
            assert_close(a, b, 1e-9, path, floor=1e-3)


def test_each_statistic_takes_its_first_texts(x64, monkeypatch):
    """The reference data has too few texts to catch a wrong 20, 20 pairs or 50."""
    config = TINY["gpt2"]
    ids, plan = texts(config, [2 + i % 9 for i in range(53)]), Plan(layers=(1,), num_samples=2)
    result = measure(config, ids, plan)
    (layer,) = result.layers
    assert layer.sampled.mean.shape == layer.expected.mean.shape == (20,)
    assert layer.secant.shape == (20,)
    assert layer.sampled.jacobian_error.shape == (53,)  # what is exact is checked for every text
    assert layer.sampled.jacobian_error.max() < 1e-12
    assert layer.exact["last"].sigma1.shape == layer.exact["sequence"].frobenius.shape == (53,)
    (head,) = measure(config, ids[:50], plan).layers
    assert layer.effective_rank == pytest.approx(head.effective_rank, rel=1e-9)
    (shorter,) = measure(config, ids[:49], plan).layers
    assert layer.effective_rank != pytest.approx(shorter.effective_rank, rel=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_first_order_values_are_the_same_from_the_jacobian_and_without_it(name, x64):
    """The metric `centred` has another Jacobian than the draws, which then differentiate for themselves."""
    ids, plan = texts(TINY[name]), EVERYTHING
    assert plan.draws_meet_jacobian
    other = dataclasses.replace(plan, metric="centred")
    assert not other.draws_meet_jacobian
    for a, b in zip(*(measure(TINY[name], ids, p).layers for p in (plan, other)), strict=True):
        assert_close(a.sampled.linear_mean, b.sampled.linear_mean, 1e-10)
        assert a.sampled.jacobian_error.max() < 1e-12
        assert b.sampled.jacobian_error is None
        assert_close(a.sampled.curvature, b.sampled.curvature, 1e-8, floor=1e-3)


def test_draws_do_not_depend_on_jaxs_default_generator(x64):
    ids, plan = texts(TINY["gpt2"]), dataclasses.replace(EVERYTHING, layers=(1,))
    usual = flat(measure(TINY["gpt2"], ids, plan).layers[0])
    jax.clear_caches()  # programs that are compiled keep their generator
    with jax.default_prng_impl("rbg"):
        other = flat(measure.__wrapped__(TINY["gpt2"], ids, plan).layers[0])
    jax.clear_caches()
    for (path, a), b in zip(usual.items(), other.values(), strict=True):
        assert_close(a, b, 1e-12, path)


def test_the_largest_seed_is_one_like_any_other():
    """It does not fit the integers that JAX has while float64 is off."""
    ids, plan = texts(TINY["gpt2"]), dataclasses.replace(EVERYTHING, layers=(1,))
    largest, other = (
        measure(TINY["gpt2"], ids, dataclasses.replace(plan, seed=seed), "float32").layers[0].sampled
        for seed in (2**32 - 1, 1)
    )
    assert np.isfinite(largest.mean).all()
    assert not np.isclose(largest.mean, other.mean).any()


@pytest.mark.parametrize("name", TINY)
def test_a_move_of_the_embeddings_arrives_at_every_layer_as_its_jacobian_says(name, x64):
    """v_l = dh_l/dx u of one u, against brute force; and J_l v_l is the move of the logits."""
    config = TINY[name]
    lm = LanguageModel(config)
    params = lm.place(random_params(config), "float64")
    tokens, lengths = jnp.asarray(random_texts((6, 6), config.vocab_size)), jnp.array([6, 4])
    keys = jax.random.split(jax.random.key(3), 2)
    made = forward(lm, params, tokens, lengths, keys)
    hidden, carried = np.asarray(made.hidden), np.asarray(made.carried)
    plain = forward(lm, params, tokens, lengths, None)
    assert plain.carried is None and plain.moved is None
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-12), made[:4], plain[:4])
    assert (made.last[:, 1] == hidden[:, 1, 3]).all()

    def states(x):
        return lm.run_blocks(params, x, taps=Taps(capture=("block_out",)))[1]["block_out"]

    x = lm.embed(params, tokens)
    unit = np.asarray(unit_draws(keys, lengths, x.shape[1:], x.dtype))
    assert (unit[1, 4:] == 0).all() and (unit[0] != 0).all() and (unit[0, :4] != unit[1, :4]).all()
    expected = jnp.einsum("lbtdcpe,cpe->lbtd", jax.jacrev(states)(x), unit)
    assert_close(carried, expected, 1e-10)
    for layer in range(config.num_layers):
        f = functools.partial(logits_from, lm, params, layer, lengths=lengths)
        jacobian = jax.jacfwd(f)(hidden[layer])  # [b v b t d]
        sizes = np.linalg.norm(np.einsum("bvctd,ctd->bv", jacobian, carried[layer]), axis=-1)
        assert_close(made.moved, sizes, 1e-10)


def test_a_wrong_jacobian_fails_its_check(x64, monkeypatch):
    """Its own products are wrong in the same way: without forward mode they would agree with it."""
    ids, plan = texts(TINY["gpt2"]), EVERYTHING
    plain = linearize.pull_back
    wrong = functools.partial(measure.__wrapped__, TINY["gpt2"], ids, plan)
    monkeypatch.setattr("jaxprobe.jacobians.linearize.pull_back", lambda *given: 1.1 * plain(*given))
    jax.clear_caches()
    top, below = wrong().layers[-1], wrong().layers[0]
    jax.clear_caches()
    assert layer_verdict(top).jacobian_error < 1e-12  # nothing is pulled back to the last layer
    assert layer_verdict(below).jacobian_error == pytest.approx(1.1**2 - 1)
    assert "fails its check" in layer_verdict(below).words
    assert not layer_verdict(below).agrees


@pytest.mark.parametrize("name", TINY)
def test_values_layer_by_layer_are_the_same(name, x64, monkeypatch):
    """Where the squares of all layers would take too much."""
    config, ids = TINY[name], texts(TINY[name])
    together = flat(measure(config, ids, EVERYTHING))
    monkeypatch.setattr("jaxprobe.jacobians.planning._SQUARES", 0)
    apart = flat(measure.__wrapped__(config, ids, EVERYTHING))
    for path, value in together.items():
        assert_close(apart[path], value, 1e-9, path, floor=1e-3)


# Commands have XLA's newer code generator for most of their programs, tests the older (conftest).
@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_the_exact_side_matches_a_jacobian_taken_at_once(name, newer, x64, monkeypatch):
    options = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 2} if newer else {}
    monkeypatch.setattr("jaxprobe.devices.compiler_options", lambda *_: options)
    config = TINY[name]
    lm, ids = LanguageModel(config), texts(config, (5, 3))
    params = lm.place(random_params(config), "float64")
    plan = Plan(layers=(1,), num_samples=4)
    (layer,) = measure.__wrapped__(config, ids, plan).layers
    for place, row in enumerate(ids):
        tokens, lengths = jnp.array([row], jnp.int32), jnp.array([len(row)])
        _, captured = lm.run_blocks(params, lm.embed(params, tokens), taps=Taps(capture=("block_out",)))
        h = captured["block_out"][1]
        f = functools.partial(logits_from, lm, params, 1, lengths=lengths)
        whole = np.asarray(jax.jacfwd(f)(h)[0, :, 0])  # [v t d]
        sigma = np.linalg.svd(whole.reshape(config.vocab_size, -1), compute_uv=False)
        last = np.linalg.svd(whole[:, -1], compute_uv=False)
        inputs = len(row) * config.hidden_size
        assert_close(layer.exact["sequence"].frobenius[place], np.linalg.norm(whole), 1e-9)
        assert_close(layer.exact["sequence"].sigma1[place], sigma[0], 1e-9)
        assert_close(layer.exact["last"].frobenius[place], np.linalg.norm(last), 1e-9)
        assert_close(layer.exact["last"].sigma1[place], last[0], 1e-9)
        assert_close(layer.expected.rms[place], rms_gain(sigma, inputs), 1e-9)
        assert_close(layer.expected.mean[place], expected_gain(sigma, inputs), 1e-9)
        variance = rms_gain(sigma, inputs) ** 2 - expected_gain(sigma, inputs) ** 2
        assert_close(layer.expected.stderr[place], np.sqrt(variance / 4), 1e-6)


def test_the_sampled_side_is_the_seeds_estimator(x64):
    config = TINY["mamba"]
    lm, ids = LanguageModel(config), texts(config)[:1]
    params = lm.place(random_params(config), "float64")
    (layer,) = measure(config, ids, Plan(layers=(2,), num_samples=3, epsilon=0.1, seed=5)).layers
    tokens, lengths = jnp.array(ids, jnp.int32), jnp.array([len(ids[0])])
    _, captured = lm.run_blocks(params, lm.embed(params, tokens), taps=Taps(capture=("block_out",)))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), 2)
    keys = jnp.stack([jax.random.fold_in(key, sample) for sample in range(3)])[:, None]
    draws = draw_differences(lm, params, captured["block_out"][2], 2, lengths, keys, 0.1)
    change, linear, step = (np.asarray(value)[:, 0] for value in draws)
    assert_close(layer.sampled.mean[0], np.mean(change / (step + 1e-8)), 1e-9)
    assert_close(layer.sampled.linear_mean[0], np.mean(linear / step), 1e-9)
    assert_close(layer.sampled.curvature[0], np.mean((change - linear) / step), 1e-7)


def test_a_seed_decides_the_draws_and_nothing_else(x64):
    config, plan = TINY["gpt2"], Plan(layers=(0,), num_samples=2)
    ids = texts(config)
    first, other = (measure(config, ids, dataclasses.replace(plan, seed=seed)).layers[0] for seed in (0, 1))
    assert (first.sampled.mean != other.sampled.mean).all()
    assert (first.exact["last"].sigma1 == other.exact["last"].sigma1).all()


def test_wrt_leaves_out_what_was_not_asked_for():
    config = TINY["gpt2"]
    (layer,) = measure(
        config, texts(config), Plan(layers=(1,), wrt=("last",), num_samples=2), "float32"
    ).layers
    assert set(layer.exact) == {"last"} and layer.expected is None and layer.sampled.mean.size
    (layer,) = measure(
        config, texts(config), Plan(layers=(1,), wrt=("sequence",), num_samples=2), "float32"
    ).layers
    assert set(layer.exact) == {"sequence"} and layer.expected is not None


def test_pullbacks_in_pieces_change_nothing(x64):
    config, ids = TINY["mamba"], texts(TINY["mamba"])
    plan = cut(config, ids, EVERYTHING, platform="cpu")
    batches = tuple(dataclasses.replace(batch, chunk=4) for batch in plan.batches)  # of 6: a remainder too
    whole, pieces = (
        flat(measure(config, ids, plan)),
        flat(measure(config, ids, dataclasses.replace(plan, batches=batches))),
    )
    for path, value in whole.items():
        assert_close(pieces[path], value, 1e-9, path, floor=1e-3)


def test_secant_ratios_leave_out_texts_that_coincide():
    hidden = np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    logits = np.array([[0.0], [1.0], [11.0]])
    assert metrics.secant_lipschitz(hidden, logits).tolist() == [2.0]
    assert metrics.secant_lipschitz(hidden[:1], logits[:1]).size == 0


def test_effective_rank_of_equal_directions_is_their_number():
    assert metrics.effective_rank(np.eye(5, 7)) == pytest.approx(5, rel=1e-6)
    assert metrics.effective_rank(np.outer(np.arange(1, 5), np.ones(3))) == pytest.approx(1, rel=1e-4)


def test_output_variance_is_the_populations():
    assert metrics.output_variance(np.array([[0.0, 2.0], [2.0, 2.0]])) == 0.5


@needs_reference
@pytest.mark.parametrize("name", ["mamba-mini", "gpt2-mini"])
def test_reference_numbers_in_float32(name):
    checkpoint = load(REFERENCE / "models" / name)
    expected = json.loads((REFERENCE / "expected" / name / "jacobian.json").read_text())
    ids = [checkpoint.tokenizer.encode(text) for text in expected["texts"]]
    lm = LanguageModel(checkpoint.config)
    params = lm.place(checkpoint.params)
    plan = Plan(layers=tuple(range(checkpoint.config.num_layers)), num_samples=2)
    with jax.default_matmul_precision("highest"):
        results = {unit.name: unit.compute() for unit in work_units(lm, params, ids, plan)}
    model = summarise(checkpoint.config, ids, plan, results)
    assert model.output_variance == pytest.approx(expected["output_variance"], rel=1e-5)
    for layer in model.layers:
        wanted = expected["layers"][str(layer.layer)]
        assert layer.secant.max() == pytest.approx(wanted["lipschitz_secant_max"], rel=1e-4)
        assert layer.secant.mean() == pytest.approx(wanted["lipschitz_secant_mean"], rel=1e-4)
        assert layer.effective_rank == pytest.approx(wanted["effective_rank"], rel=1e-5)
        for wrt in ("last", "sequence"):
            for norm in ("frobenius", "sigma1"):
                values = getattr(layer.exact[wrt], norm)
                np.testing.assert_allclose(values, wanted[f"{norm}_{wrt}"], rtol=1e-4)
