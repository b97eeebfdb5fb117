"""The functions of `import jaxprobe`: their examples run, and they agree with what the commands compute."""

import dataclasses
import doctest
import importlib
import subprocess
import sys

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY

import jaxprobe
from jaxprobe import shipped
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians import estimates, sensitivity, studies
from jaxprobe.jacobians.planning import Plan
from jaxprobe.jacobians.readout import logits_from
from jaxprobe.perturb import noise, scale, zero
from jaxprobe.run_configs import Effort

PUBLIC = ("capture", "delta_sensitive", "jacobian", "load", "perplexity", "perturb", "sensitivity")
TEXTS = ["w1 w2 w3", "w4 w5 w6 w7 w8", "w9 w10 w1 w2", "w2 w0 w5"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return {name: str(checkpoints.write(folder / name, config)) for name, config in TINY.items()}


@pytest.mark.skipif(
    not all(path.is_dir() for path in shipped.MODELS.values()), reason="the shipped models are not there"
)
@pytest.mark.parametrize("module", ["jaxprobe.library", "jaxprobe.perturb"])
def test_examples_run(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0 and found.failed == 0


def test_every_public_name_is_a_documented_function_with_an_example():
    for name in PUBLIC:
        function = getattr(jaxprobe, name)
        assert callable(function) and name in dir(jaxprobe)
        assert ">>> " in (function.__doc__ or "")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jaxprobe.nothing


def test_a_function_stays_visible_after_its_modules_namesake_is_imported():
    code = (
        "import jaxprobe, jaxprobe.perturb, jaxprobe.jacobian;"
        "names = ('perturb', 'jacobian');"
        "print([callable(getattr(jaxprobe, name)) for name in names])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, True]"


def nll(model, ids, edits=()):
    logits = jaxprobe.perturb(model.lm.forward, edits)(model.params, jnp.asarray([ids], jnp.int32)).logits[0]
    return -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize("key", TINY)
def test_perplexity_is_of_each_text_alone(pair, key, x64):
    model = jaxprobe.load(pair[key], dtype="float64")
    ids = [np.array(model.tokenizer.encode(text)) for text in TEXTS]
    counts = [row[1:] != 0 for row in ids]  # w0 ends a text, and pads
    for edits in ((), scale("mixer_out", 1, [0, 2], 0.5)):
        values = np.concatenate([nll(model, row, edits)[mask] for row, mask in zip(ids, counts, strict=True)])
        for batch_tokens in (4096, 1):
            got = jaxprobe.perplexity(model, TEXTS, edits=edits, batch_tokens=batch_tokens)
            assert got == pytest.approx(np.exp(values.mean()), rel=1e-12)


def test_edits_that_do_not_fit_are_refused(pair):
    model = jaxprobe.load(pair["mamba"])
    for edit, got in (
        (zero("block_out", 99, [0]), 99), (zero("block_out", -1, [0]), -1), (zero("delta", 0, [-1]), -1)
    ):  # fmt: skip
        with pytest.raises(ProbeError, match=f"got {got}"):
            jaxprobe.perplexity(model, TEXTS, edits=edit)


def overflowing(model):
    """The model with a state above layer 1 whose square overflows."""
    params = jax.tree.map(lambda leaf: leaf, model.params)  # dictionaries of its own
    last = params["blocks"]["mlp"]["c_proj"]
    last["bias"] = last["bias"].at[-1].set(1e25)
    return dataclasses.replace(model, params=params)


def test_below_a_state_that_overflows_there_is_no_jacobian(pair):
    model = overflowing(jaxprobe.load(pair["gpt2"]))
    for wrt in ("last", "sequence"):
        assert np.isnan(jaxprobe.jacobian(model, TEXTS[1], layer=1, wrt=wrt).frobenius)
    plan, ids = Plan(layers=(1,), num_samples=1), [model.tokenizer.encode(text) for text in TEXTS]
    effort = Effort(num_singular_values=1, num_products=4)
    units = estimates.work_units(model.lm, model.params, ids, plan, effort)
    found = estimates.summarise(model.lm.config, ids, plan, {unit.name: unit.compute() for unit in units})
    for norms in found.estimates[0].values():
        assert np.isnan(norms.frobenius).all() and np.isnan(norms.singular_values).all()
    plan = sensitivity.cut(model.lm.config, ids, plan, platform="cpu")
    units = sensitivity.work_units(model.lm, model.params, ids, plan)
    results = {unit.name: unit.compute() for unit in units}
    paths = studies.path_units(model.lm, model.params, ids, plan, results)
    measured = sensitivity.summarise(model.lm.config, ids, plan, results)
    with_paths = studies.with_paths(measured, {unit.name: unit.compute() for unit in paths})
    assert np.isnan(with_paths.layers[0].path.sigma1).all()


def test_seeds_out_of_range_are_refused(pair):
    model = jaxprobe.load(pair["gpt2"])
    for seed in (-1, 2**32, True):
        with pytest.raises(ProbeError, match="--seed must be"):
            jaxprobe.sensitivity(model, TEXTS[:1], seed=seed)


def test_noise_differs_between_texts_and_not_between_batches(pair, x64):
    model = jaxprobe.load(pair["mamba"], dtype="float64")
    edit = noise("block_out", 1, [0, 1], jax.random.key(3))
    together = jaxprobe.perplexity(model, [TEXTS[0]] * 2, edits=edit)
    assert together == pytest.approx(jaxprobe.perplexity(model, [TEXTS[0]] * 2, edits=edit, batch_tokens=1))
    assert together != pytest.approx(jaxprobe.perplexity(model, [TEXTS[0]], edits=edit), rel=1e-6)
    with pytest.raises(ProbeError, match="one key"):
        jaxprobe.perplexity(
            model, TEXTS[:2], edits=dataclasses.replace(edit, key=jax.random.split(jax.random.key(0)))
        )


@pytest.mark.parametrize("key", TINY)
def test_jacobian_of_a_text(pair, key, x64):
    model = jaxprobe.load(pair[key], dtype="float64")
    ids = jnp.asarray([model.tokenizer.encode(TEXTS[1])], jnp.int32)
    layer = 1
    h = jaxprobe.capture(model.lm.forward, "block_out")(model.params, ids).captured["block_out"][layer]
    lengths = jnp.array([ids.shape[1]])

    def f(rows):
        return logits_from(model.lm, model.params, layer, h.at[:].set(rows), lengths)[0]

    whole = np.asarray(jax.jacfwd(f)(h))[:, 0]
    for wrt, want in (("sequence", whole), ("last", whole[:, -1:])):
        made = jaxprobe.jacobian(model, TEXTS[1], layer=layer, wrt=wrt)
        np.testing.assert_allclose(made.matrix, want, atol=1e-12)
        assert made.frobenius == pytest.approx(np.linalg.norm(want))
        sigma = np.linalg.svd(want.reshape(len(want), -1), compute_uv=False)
        np.testing.assert_allclose(made.singular_values, sigma[: len(made.singular_values)], atol=1e-12)
    exact = jaxprobe.sensitivity(model, [TEXTS[1]], layers=[layer], num_samples=1).layers[0].exact
    assert exact["last"].sigma1[0] == pytest.approx(made.sigma1)


def test_delta_sensitive_reads_the_seeds_site_unless_told(pair):
    for key, site in {"mamba": "mixer_out", "gpt2": "block_out"}.items():
        model = jaxprobe.load(pair[key])
        chosen = jaxprobe.delta_sensitive(model, TEXTS, top_k=4)
        assert chosen == jaxprobe.delta_sensitive(model, TEXTS, top_k=4, site=site)
        ids = [jnp.asarray([model.tokenizer.encode(text)], jnp.int32) for text in TEXTS]
        means = [
            jaxprobe.capture(model.lm.forward, site)(model.params, row).captured[site][1, 0].mean(0)
            for row in ids
        ]
        assert list(chosen.units) == list(np.argsort(-np.var(np.array(means), axis=0))[:4])


@pytest.mark.parametrize("call, message", [
    (lambda m: jaxprobe.perplexity(m, []), "there is no text"),
    (lambda m: jaxprobe.perplexity(m, ["w1"]), "1 token long"),
    (lambda m: jaxprobe.perplexity(m, ["w1 w0"]), "padding tokens only"),
    (lambda m: jaxprobe.perplexity(m, TEXTS, edits=zero("delta", 1, [0])), "no site 'delta'"),
    (lambda m: jaxprobe.delta_sensitive(m, TEXTS, layer=3), "layer must be between 0 and 2"),
    (lambda m: jaxprobe.delta_sensitive(m, TEXTS, top_k=7), "at most 6"),
    (lambda m: jaxprobe.delta_sensitive(m, TEXTS, site="delta"), "no site 'delta'"),
    (lambda m: jaxprobe.jacobian(m, TEXTS[0], layer=3), "layer must be between 0 and 2"),
    (lambda m: jaxprobe.jacobian(m, TEXTS[0], layer=1, wrt="first"), "wrt must be one of last, sequence"),
    (lambda m: jaxprobe.sensitivity(m, TEXTS, layers=[0, 2]), "one layer, or None for all"),
    (lambda m: jaxprobe.load(m.source, dtype="float64"), "jax_enable_x64"),
])  # fmt: skip
def test_bad_input_is_a_probe_error(pair, call, message):
    with pytest.raises(ProbeError, match=message):
        call(jaxprobe.load(pair["gpt2"]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"wrt": ["rows"]}, "wrt must be one of last, sequence, got 'rows'"),
        ({"epsilon": 0.0}, "epsilon must be a finite number > 0"),
        ({"num_samples": 0}, "num_samples must be an integer >= 1"),
        ({"max_tokens": 1}, "a context of 1 token leaves no next token"),
    ],
)
def test_sensitivity_refuses_what_it_cannot_measure(pair, given, words):
    with pytest.raises(ProbeError, match=words):
        jaxprobe.sensitivity(jaxprobe.load(pair["mamba"]), TEXTS, **given)


def test_one_input_may_be_named_alone(pair):
    (layer,) = jaxprobe.sensitivity(jaxprobe.load(pair["gpt2"]), TEXTS, layers=[1], wrt="last").layers
    assert set(layer.exact) == {"last"}


def test_units_that_vary_between_texts_need_two(pair):
    with pytest.raises(ProbeError, match="at least 2 texts, got 1"):
        jaxprobe.delta_sensitive(jaxprobe.load(pair["mamba"]), TEXTS[:1], top_k=2)
