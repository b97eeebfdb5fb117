"""Perplexities, chosen units and edits against the reference computed in torch, and against padding."""

import dataclasses
import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import REFERENCE, TINY, needs_reference, random_params, random_texts

from jaxprobe import convert
from jaxprobe.batches import TokenizedTexts, tokenize
from jaxprobe.models import LanguageModel
from jaxprobe.neurons import most_sensitive, protocol_sites
from jaxprobe.original.study import Corpus, prepare, summarise
from jaxprobe.perturb import perturb
from jaxprobe.relations import load_relations
from jaxprobe.run_configs import Perturbation
from jaxprobe.scoring.edited import EditSpec
from jaxprobe.scoring.perplexity import TextScores, counted, mean_nll, score_tokens, text_perplexities
from jaxprobe.sites import site_width, site_widths
from jaxprobe.taps import Edit
from jaxprobe.texts import read_texts

MODELS = {"mamba": "mamba-mini", "gpt2": "gpt2-mini"}
TOLERANCE = 1e-5  # relative, of perplexities
DTYPES = ["float32", "float64"]


@pytest.fixture(params=DTYPES)
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def open_reference(key, dtype):
    checkpoint = convert.load(REFERENCE / "models" / MODELS[key], dtype=dtype)
    lm = LanguageModel(checkpoint.config)
    tokenizer = checkpoint.tokenizer
    limit = min(512, checkpoint.config.context_length or 512)
    corpus = Corpus(
        tuple(
            tokenize(r.texts, tokenizer, limit=limit) for r in load_relations(REFERENCE / "relations.json")
        ),
        tokenize(read_texts(REFERENCE / "controls.txt").texts, tokenizer, limit=limit),
        tokenizer.pad_token_id,
    )
    return lm, lm.place(checkpoint.params, dtype), corpus


def study_of(lm, params, corpus, spec, read_site, top_k=10, batch_tokens=4096):
    return prepare(lm, params, corpus, spec, read_site=read_site, top_k=top_k, batch_tokens=batch_tokens)


def measure(study):
    return summarise(study, [study.compute(number) for number in range(len(study.batches))])


def same_units(chosen, units, variances=None):
    """Equal as lists, but for units whose variances agree to 1e-5."""
    return all(
        a == b or (b in chosen.units and np.isclose(chosen.variances[chosen.units.index(b)], v, rtol=1e-5))
        for a, b, v in zip(chosen.units, units, variances or chosen.variances, strict=True)
    )


def without_controls(corpus):
    """One short control text, where the reference has nothing to compare with."""
    return dataclasses.replace(corpus, controls=TokenizedTexts((corpus.controls.ids[0][:4],), 0))


def expected(key, file):
    return json.loads((REFERENCE / "expected" / MODELS[key] / file).read_text())


def assert_change(change, want, prefix=""):
    for name in ("baseline_ppl", "perturbed_ppl"):
        assert getattr(change, name) == pytest.approx(want[prefix + name], rel=TOLERANCE), prefix + name


@needs_reference
@pytest.mark.parametrize("key", MODELS)
def test_every_layer_under_the_seeds_protocol(key, dtype):
    lm, params, corpus = open_reference(key, dtype)
    wanted = expected(key, "delta_pct.json")
    sites = protocol_sites(lm.config, Perturbation())
    assert len(wanted) == lm.config.num_layers
    for layer, relations in wanted.items():
        spec = EditSpec(sites.edit, int(layer), "zero")
        measured = measure(study_of(lm, params, without_controls(corpus), spec, sites.read))
        for scores, want in zip(measured, relations.values(), strict=True):
            assert same_units(scores.chosen, want["neurons"], want["variance"])
            np.testing.assert_allclose(scores.chosen.variances, want["variance"], rtol=1e-4)
            assert_change(scores.erased, want)
            error = 2 * TOLERANCE * want["perturbed_ppl"]
            assert scores.erased.absolute == pytest.approx(want["absolute_change"], abs=error)
            percent = 100 * error / want["baseline_ppl"]
            assert scores.erased.percentage == pytest.approx(want["percentage_change"], abs=percent)


@needs_reference
@pytest.mark.parametrize("key", MODELS)
def test_control_texts_under_a_relations_edit(key):
    lm, params, corpus = open_reference(key, "float32")
    sites = protocol_sites(lm.config, Perturbation())
    wanted = list(expected(key, "delta_pct.json")["1"].values())[:2]
    corpus = dataclasses.replace(corpus, relations=corpus.relations[:2])
    measured = measure(study_of(lm, params, corpus, EditSpec(sites.edit, 1, "zero"), sites.read))
    for scores, want in zip(measured, wanted, strict=True):
        assert_change(scores.control, want, "control_")


@needs_reference
@pytest.mark.parametrize("key, dtype", [("mamba", "float64"), ("gpt2", "float32")], indirect=["dtype"])
def test_every_site_and_mode(key, dtype):
    lm, params, corpus = open_reference(key, dtype)
    wanted = expected(key, "sites_layer1.json")
    relations = wanted["relations"]
    sites = [name for name in next(iter(relations.values())) if name != "baseline_ppl"]
    assert set(sites) <= site_widths(lm.config).keys()
    for site in sites:
        specs = {
            "zero": EditSpec(site, wanted["layer"], "zero"),
            "mean": EditSpec(site, wanted["layer"], "mean"),
            "scale_0.5": EditSpec(site, wanted["layer"], "scale", 0.5),
        }
        top_k = min(10, site_width(lm.config, site))
        study = study_of(lm, params, without_controls(corpus), specs["zero"], site, top_k)
        for name, spec in specs.items():
            measured = measure(dataclasses.replace(study, spec=spec))
            for scores, want in zip(measured, relations.values(), strict=True):
                assert same_units(scores.chosen, want[site]["units"])
                assert scores.erased.baseline_ppl == pytest.approx(want["baseline_ppl"], rel=TOLERANCE)
                got = scores.erased.perturbed_ppl
                assert got == pytest.approx(want[site][name], rel=TOLERANCE), (site, name)


def tiny(key, lengths=(2, 3, 5, 9, 16), seed=0):
    """A random model and a corpus of two relations and two controls."""
    config = TINY[key]
    rows = tuple(tuple(map(int, row)) for row in random_texts(list(lengths), config.vocab_size, seed))
    groups = (rows[:2], rows[2:3], rows[3:])
    relations = tuple(TokenizedTexts(group, 0) for group in groups[:-1])
    corpus = Corpus(relations, TokenizedTexts(groups[-1], 0), pad=0)
    lm = LanguageModel(config)
    return lm, lm.place(random_params(config), "float64"), corpus


EDITS = {"zero": 0.0, "mean": 0.0, "noise": 1.5, "scale": -0.5}


@pytest.mark.parametrize("mode", ["mean", "noise"])
@pytest.mark.parametrize("key", TINY)
def test_neither_batches_nor_padding_change_anything(key, mode, x64):
    lm, params, corpus = tiny(key)
    spec = EditSpec("block_out", 1, mode, EDITS[mode], seed=3)
    together, alone = (
        measure(study_of(lm, params, corpus, spec, "mixer_out", 3, batch_tokens))
        for batch_tokens in (4096, 1)
    )
    for a, b in zip(together, alone, strict=True):
        assert a.chosen.units == b.chosen.units
        for one, other in zip((*a.before, *a.after), (*b.before, *b.after), strict=True):
            np.testing.assert_allclose(one.nll, other.nll, rtol=1e-12, atol=1e-12)
        assert a.control.perturbed_nats == pytest.approx(b.control.perturbed_nats, rel=1e-12)


@pytest.mark.parametrize("mode", EDITS)
@pytest.mark.parametrize("key", TINY)
def test_equals_one_whole_forward_pass_per_text(key, mode, x64):
    """The shortcut over the lower blocks against `perturb(forward)` on each text alone."""
    lm, params, corpus = tiny(key)
    spec = EditSpec("mixer_out", 1, mode, EDITS[mode], seed=3)
    study = study_of(lm, params, corpus, spec, "block_out", 3)
    for scores, group in zip(measure(study), corpus.relations, strict=True):
        for after, row in zip(scores.after, group.ids, strict=True):
            forward = perturb(lm.forward, edit_of(spec, scores.chosen.units, row))
            logits = forward(params, jnp.asarray([row], jnp.int32)).logits[0]
            logp = jax.nn.log_softmax(logits)[np.arange(len(row) - 1), np.array(row[1:])]
            np.testing.assert_allclose(after.nll, -logp, rtol=1e-11, atol=1e-12)
            assert (after.hits == (np.argmax(np.asarray(logits), 1)[:-1] == np.array(row[1:]))).all()


def edit_of(spec, units, row):
    key = None
    if spec.mode == "noise":
        digest = zlib.crc32(np.array(row, np.int32).tobytes())
        key = jax.random.fold_in(jax.random.key(spec.seed), digest)
    return Edit(spec.site, spec.mode, spec.layer, jnp.asarray(units, jnp.int32), spec.value, key)


def scored(key, change=lambda unembedding: unembedding):
    """score_tokens of more tokens than it takes at once, and the logits they are of."""
    config = dataclasses.replace(TINY[key], tie_word_embeddings=False)
    lm = LanguageModel(config)
    params = lm.place(random_params(config), "float64")
    params["unembedding"]["kernel"] = change(params["unembedding"]["kernel"])
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.standard_normal((5, 31, config.hidden_size)))
    ids = jnp.asarray(rng.integers(0, config.vocab_size, (5, 31)))
    logits = lm.unembed(params, lm.normalise(params, h[:, :-1]))
    return jax.jit(functools.partial(score_tokens, lm))(params, h, ids), logits, ids[:, 1:]


@pytest.mark.parametrize("key", MODELS)
def test_tokens_are_scored_as_the_softmax_has_them(key, x64):
    (nll, hits), logits, labels = scored(key)
    logs = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(nll, -jnp.take_along_axis(logs, labels[..., None], 2)[..., 0], rtol=1e-12)
    assert (hits == (jnp.argmax(logits, axis=2) == labels)).all()
    assert 0 < hits.sum() < hits.size


def test_of_equally_likely_tokens_the_first_is_the_most_likely(x64):
    (nll, hits), logits, labels = scored("gpt2", jnp.zeros_like)
    np.testing.assert_allclose(nll, np.log(logits.shape[-1]), rtol=1e-12)
    assert (hits == (labels == 0)).all()


def test_nothing_is_right_where_a_logit_is_not_a_number(x64):
    (nll, hits), _, _ = scored("gpt2", lambda kernel: kernel.at[0, 0].set(jnp.nan))
    assert jnp.isnan(nll).all()
    assert not hits.any()


def test_noise_depends_on_the_seed(x64):
    lm, params, corpus = tiny("gpt2")
    spec = EditSpec("block_out", 1, "noise", 1.0, seed=0)
    study = study_of(lm, params, corpus, spec, "block_out", 3)
    first, again, other = (
        measure(dataclasses.replace(study, spec=dataclasses.replace(spec, seed=seed)))[
            0
        ].erased.perturbed_nats
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_padding_labels_are_not_counted():
    assert counted((4, 0, 5, 0), 0).tolist() == [False, True, False]
    assert counted((4, 0, 5, 0), None).all()
    scores = [
        TextScores(np.array([1.0, 9.0]), np.zeros(2, bool)),
        TextScores(np.array([4.0]), np.zeros(1, bool)),
    ]
    masks = [np.array([True, False]), np.array([True])]
    assert mean_nll(scores, masks) == 2.5  # over the tokens of all texts together
    np.testing.assert_allclose(text_perplexities(scores, masks), np.exp([1.0, 4.0]))


def test_units_are_chosen_on_the_first_25_texts_alone():
    means = np.zeros((30, 3))
    means[:25, 1] = np.arange(25)
    means[25:, 2] = 1e6
    assert most_sensitive(means, 1).units == (1,)


def test_of_equal_variances_the_lower_index_is_first():
    means = np.array([[0.0, 1, 0, 5], [2.0, 3, 0, 7]])
    chosen = most_sensitive(means, 4)
    assert chosen.units == (0, 1, 3, 2)
    assert chosen.variances == (1.0, 1.0, 1.0, 0.0)
