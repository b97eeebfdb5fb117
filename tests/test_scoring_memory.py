"""Batches of texts to be scored fit the memory: what is foretold is of the programs that then run."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matched_models import tiny_model, tiny_plan
from support import TINY, random_texts

from jaxprobe import memory
from jaxprobe.batches import TokenizedTexts
from jaxprobe.errors import ProbeError
from jaxprobe.matched import edit_effects, linearity, shelves
from jaxprobe.matched.programs import held_bytes, lower_programs
from jaxprobe.matched.study import prepare
from jaxprobe.original import study as delta_study
from jaxprobe.scoring import edited as edited_texts
from jaxprobe.scoring import memory as scoring_memory
from jaxprobe.scoring import perplexity
from jaxprobe.scoring.edited import EditSpec

GIB = memory.GIB
MODES = {"zero": 0.0, "mean": 0.0, "reference_mean": 0.0, "noise": 1.5, "scale": -0.5, "resample": 0.0}


@pytest.fixture
def fit(monkeypatch):
    """Fits batches whose programs take a MiB a token, in a process that holds nothing yet."""
    for name in ("used_bytes", "peak_bytes"):
        monkeypatch.setattr(memory, name, lambda device: 0)
    for name in ("_SMALL", "COMPILING"):
        monkeypatch.setattr(memory, name, 0)
    monkeypatch.setattr(memory, "program_bytes", lambda compiled: compiled)
    monkeypatch.setattr(memory, "free_bytes", lambda device: GIB)

    def call(asked, longest, gib, held=0):
        def lower(tokens):
            tried.append(tokens)
            return [types.SimpleNamespace(compile=lambda: tokens * 2**20)]

        ids, device = [[0] * 3, [0] * longest], jax.devices()[0]
        return scoring_memory.fit_batch_tokens(
            asked, ids, TINY["mamba"], 6, lower, held=held, item_bytes=4, device=device, memory_gb=gib
        )

    tried = call.tried = []
    return call


def test_batches_shrink_until_they_fit(fit):
    tokens, forecast = fit(4096, 100, 1.0)
    assert (tokens, fit.tried) == (1024, [4096, 1024])
    assert (forecast.peak, forecast.budget) == (GIB, GIB)
    assert fit(4096, 100, 0.5)[0] == 256
    assert fit(4096, 100, 5.0)[0] == 4096  # what was asked for, and no more
    assert fit(4096, 100, None)[0] == 256  # 70% of what is free
    assert fit(4096, 100, 1.0, held=GIB - 2**27)[0] == 100  # one text at a time


def test_what_cannot_fit_is_refused_with_the_limit_that_would_do(fit):
    with pytest.raises(ProbeError, match=r"100 tokens needs 0.10 GiB, 0.05 GiB may .* --memory_gb=0.1 "):
        fit(4096, 100, 0.05)
    assert fit(4096, 100, 0.1)[0] == 100


def shapes(tree):
    return sorted(np.shape(leaf) for leaf in jax.tree.leaves(tree))


def elements(shapes):
    return sum(map(math.prod, shapes))


def recorded(monkeypatch, module, name):
    """The shapes that a compiled function was called with, and those it was lowered with, as that happens."""
    calls, lowered, function = [], [], getattr(module, name)

    def call(lm, *args, **static):
        calls.append(shapes(args))
        return function(lm, *args, **static)

    def lower(lm, *args, **static):
        lowered.append(shapes(args))
        return function.lower(lm, *args, **static)

    call.lower = lower
    monkeypatch.setattr(module, name, call)
    return calls, lowered


@pytest.mark.parametrize("key", ["mamba", "gpt2"])
@pytest.mark.parametrize("mode", ["zero", "noise"])
def test_the_programs_of_the_seeds_protocol_are_those_that_run(key, mode, monkeypatch):
    lm, params = tiny_model(key, "float32")
    rows = [tuple(map(int, row)) for row in random_texts([3, 5, 9, 4, 9, 9], lm.config.vocab_size)]
    groups = (TokenizedTexts(tuple(rows[:2]), 0), TokenizedTexts(tuple(rows[2:4]), 0))
    corpus = delta_study.Corpus(groups, TokenizedTexts(tuple(rows[4:]), 0), None)
    spec = EditSpec("block_out", 1, mode, 1.0)
    given = {"read_site": "mixer_out", "top_k": 2, "batch_tokens": 30}
    read = recorded(monkeypatch, perplexity, "read_program")
    monkeypatch.setattr(edited_texts, "read_program", perplexity.read_program)
    edited = recorded(monkeypatch, edited_texts, "_edited")
    scored = [row for group in groups for row in (*group.ids, *rows[4:])]
    edited_texts.lower_scores(lm, params, scored, spec, **given)
    study = delta_study.prepare(lm, params, corpus, spec, **given)
    for number in range(len(study.batches)):
        study.compute(number)
    assert edited[1] == [max(edited[0])]
    assert [max(read[0])] <= read[1]  # texts are read once, and scored with the units of each relation


@pytest.mark.parametrize("key", ["mamba", "gpt2"])
@pytest.mark.parametrize("mode", MODES)
def test_the_programs_of_the_matched_protocol_are_as_large_as_those_that_run(key, mode, monkeypatch):
    lm, params = tiny_model(key, "float32")
    studies = ("linearity", "units")
    plan = tiny_plan(lm, params, mode=mode, value=MODES[mode], batch_tokens=40, studies=studies)
    names = {shelves: ("_read",), edit_effects: ("_edited",), linearity: ("_set_curves", "_unit_curves")}
    found = [recorded(monkeypatch, module, name) for module in names for name in names[module]]
    assert len(list(lower_programs(plan, plan.batch_tokens))) == len(found)
    for unit in prepare(plan).units():
        unit.compute()
    for calls, (lowered,) in found:  # batches are split evenly, so they may be somewhat smaller
        largest = max(map(elements, calls))
        assert largest <= elements(lowered) <= 2 * largest


@pytest.mark.parametrize("key", ["mamba", "gpt2"])
@pytest.mark.parametrize("site", ["block_out", "ssm_state", "mlp_act"])
def test_an_estimate_that_is_not_checked_is_generous(key, site):
    """For either protocol it is at least what the compiled programs take."""
    lm, params = tiny_model(key, "float32")
    if site not in ("block_out", {"mamba": "ssm_state", "gpt2": "mlp_act"}[key]):
        pytest.skip("the other model's site")
    plan = tiny_plan(lm, params, site=site, batch_tokens=400, studies=())
    taken = [memory.program_bytes(lowered.compile()) for lowered in lower_programs(plan, 400)]
    spec = EditSpec(site, 1, "zero")
    given = {"read_site": site, "top_k": 2, "batch_tokens": 400}
    lowered = edited_texts.lower_scores(lm, params, plan.ids * 9, spec, **given)
    taken += [memory.program_bytes(each.compile()) for each in lowered]
    assert 0 < max(taken) <= 4 * scoring_memory._estimate(lm.config, plan.width, 400, 133)


def test_what_is_held_is_counted():
    lm, params = tiny_model("gpt2", "float32")
    for mode, value in (("zero", 0.0), ("resample", 0.0)):
        plan = tiny_plan(lm, params, mode=mode, value=value)
        kept = jax.tree.leaves([(s.h, s.offsets) for s in prepare(plan).shelves.shelves])
        assert sum(leaf.nbytes for leaf in map(jnp.asarray, kept)) <= held_bytes(plan, 4)
