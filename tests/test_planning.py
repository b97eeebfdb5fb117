"""How work is cut: batches hold every text once, padding is the least there is, chunks follow the memory."""

import dataclasses
import itertools
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import TINY, random_params

from jaxprobe import memory
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians import memory as sweep_memory
from jaxprobe.jacobians import studies
from jaxprobe.jacobians.epsilon_sweep import study_bytes
from jaxprobe.jacobians.finite_difference import draw_differences
from jaxprobe.jacobians.planning import Plan, cut, even_chunk
from jaxprobe.jacobians.sweeps import lower_sweeps
from jaxprobe.models import LanguageModel
from jaxprobe.widths import best_widths, scoring_widths

WIDE = dataclasses.replace(TINY["mamba"], hidden_size=1024, vocab_size=5000)


@given(st.lists(st.integers(2, 12), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 9))
def test_the_widths_pad_least(lengths, most, each):
    def padded(widths):
        padding = sum(min(width for width in widths if width >= length) for length in lengths)
        return padding + each * len(widths)

    widths = best_widths(lengths, most, float(each))
    assert len(widths) <= most
    assert widths[-1] == max(lengths)
    choices = itertools.chain.from_iterable(
        itertools.combinations(sorted(set(lengths)), count) for count in range(1, most + 1)
    )
    assert padded(widths) == min(padded(choice) for choice in choices if choice[-1] == max(lengths))


@given(st.lists(st.integers(2, 90), min_size=1, max_size=40))
def test_texts_to_be_scored_are_padded_less_the_more_a_token_costs(lengths):
    cheap = dataclasses.replace(TINY["gpt2"], max_positions=90)
    costly = dataclasses.replace(cheap, hidden_size=1024, inner_size=4096, num_heads=8, num_layers=5000)
    widths = scoring_widths(costly, lengths, platform="cpu")
    assert all(width % 8 == 0 or width == 90 for width in widths)
    assert max(lengths) <= widths[-1] <= 90
    assert len(scoring_widths(cheap, lengths, platform="cpu")) == 1
    for length in lengths if len(set(lengths)) <= 12 else ():
        assert min(width for width in widths if width >= length) - length < 8


@given(st.integers(1, 2000), st.integers(1, 2500))
def test_a_chunk_leaves_no_remainder_unless_it_would_have_to_be_far_smaller(cotangents, most):
    chunk, largest = even_chunk(cotangents, most), min(cotangents, most)
    divisors = [size for size in range(1, largest + 1) if cotangents % size == 0]
    assert chunk == (divisors[-1] if 2 * divisors[-1] > most else largest)


@pytest.mark.parametrize("config", [TINY["mamba"], WIDE])
def test_every_text_is_in_one_batch_and_fits_it(config):
    ids = [[0] * length for length in (5, 3, 40, 7, 2, 12, 12)]
    plan = cut(config, ids, Plan(layers=(0,)), platform="cpu")
    assert sorted(text for batch in plan.batches for text in batch.texts) == list(range(len(ids)))
    for batch in plan.batches:
        assert len(batch.texts) <= batch.rows
        assert all(len(ids[text]) <= batch.width for text in batch.texts)
        assert 1 <= batch.chunk <= min(config.vocab_size, config.hidden_size)
    assert cut(config, ids, plan, platform="gpu") == plan  # a recorded plan is kept


def test_padding_is_weighed_against_compilation():
    """Small models get one width, large ones several, but not where few rows go through them."""
    ids = [[0] * length for length in (8, 8, 9, 30, 40)]

    def widths(config, *wrt, platform="cpu"):
        plan = cut(config, ids, Plan(layers=(0,), wrt=wrt), platform=platform)
        return {batch.width for batch in plan.batches}

    large = dataclasses.replace(WIDE, num_layers=24, intermediate_size=2048)
    assert widths(TINY["mamba"], "last", "sequence") == {40}
    assert widths(large, "last", "sequence") == {9, 30, 40}
    assert widths(large, "last") == {40}
    assert widths(large, "last", "sequence", platform="gpu") == {40}  # which compiles no faster


def test_long_spectra_come_from_gram_matrices_unless_told():
    ids = [[0] * 5]
    assert cut(WIDE, ids, Plan(layers=(0,)), platform="cpu").reduction == "gram"
    assert cut(TINY["gpt2"], ids, Plan(layers=(0,)), platform="cpu").reduction == "qr"
    assert cut(WIDE, ids, Plan(layers=(0,), reduction="qr"), platform="cpu").reduction == "qr"


def test_chunks_shrink_until_the_program_fits(monkeypatch):
    config = dataclasses.replace(
        TINY["gpt2"], hidden_size=96, num_heads=4, inner_size=384, vocab_size=200, max_positions=64
    )
    lm = LanguageModel(config)
    params = lm.place(random_params(config), "float32")
    plan = cut(config, [[0] * 24] * 4, Plan(layers=(0, 1, 2)), platform="cpu")
    device = jax.devices()[0]
    monkeypatch.setattr(memory, "_SMALL", 0)
    monkeypatch.setattr(memory, "COMPILING", 0)
    monkeypatch.setattr(memory, "used_bytes", lambda device: 0)
    monkeypatch.setattr(memory, "peak_bytes", lambda device: 0)

    def fit(gib):
        return sweep_memory.fit(
            plan, config, lambda batch: lower_sweeps(lm, params, plan, batch), device, gib, 4
        )

    roomy, forecast = fit(16.0)
    assert roomy == plan
    assert 0 < forecast.peak < forecast.budget
    tight, smaller = fit(0.95 * forecast.peak / memory.GIB)
    assert tight.batches[0].chunk < plan.batches[0].chunk
    assert smaller.peak <= smaller.budget < forecast.peak
    monkeypatch.setattr(memory, "peak_bytes", lambda device: 2**33)
    assert fit(16.0)[1].peak == 2**33  # what was reached before is part of the whole process's peak
    with pytest.raises(ProbeError, match=r"loading and compiling alone need 8.00 GiB, 4.00 GiB may be used"):
        fit(4.0)
    with pytest.raises(ProbeError, match=r"--memory_gb=\d.* --wrt=last, or --method=matrix_free, or shorter"):
        fit(1e-6)
    plan = dataclasses.replace(plan, wrt=("last",))
    with pytest.raises(ProbeError, match="would do, or a smaller --batch_tokens, or --method=matrix_free"):
        fit(1e-6)
    plan = dataclasses.replace(plan, site="mlp_out")
    with pytest.raises(ProbeError, match=r"--memory_gb=\d\S* would do, or shorter texts"):
        fit(1e-6)


def test_batches_shrink_with_their_share():
    """Where memory is short, a batch holds fewer texts, and values are made layer by layer."""
    config = dataclasses.replace(TINY["mamba"], hidden_size=256, vocab_size=600)
    ids = [[0] * 16] * 8
    usual, lean = (
        cut(config, ids, Plan(layers=(0, 1, 2)), platform="cpu", share=share) for share in (1.0, 1 / 8)
    )
    assert len(usual.batches) == 2
    assert len(lean.batches) == len(ids)
    assert len(cut(WIDE, ids, Plan(layers=(0,)), platform="cpu").batches) == len(ids)  # one fills a cache
    assert usual.batches[0].squares
    assert not cut(config, ids, Plan(layers=(0, 1, 2)), platform="cpu", share=1 / 1024).batches[0].squares
    assert len(cut(config, ids * 8, Plan(layers=(0,)), platform="gpu").batches) < 8


def test_other_work_is_part_of_the_forecast(monkeypatch):
    """--path and --epsilon_sweep: their programs, a text's context, and the parameters in float64."""
    config = TINY["gpt2"]
    lm = LanguageModel(config)
    params = lm.place(random_params(config), "float32")
    plan = cut(config, [[0] * 9] * 3, Plan(layers=(0, 1)), platform="cpu")
    longer = cut(config, [[0] * 12] * 3, Plan(layers=(0, 1)), platform="cpu")
    context = 2 * config.num_layers * 3 * 9 * config.hidden_size * 4  # keys and values
    assert context < studies.path_bytes(lm, params, plan) < studies.path_bytes(lm, params, longer)
    doubled = sum(8 * leaf.size for leaf in jax.tree.leaves(params))
    few, more = (study_bytes(lm, params, [[0] * 9] * texts, 2, 4096) for texts in (1, 3))
    assert doubled < few < more

    monkeypatch.setattr(memory, "_SMALL", 0)
    monkeypatch.setattr(memory, "used_bytes", lambda device: 0)
    monkeypatch.setattr(memory, "peak_bytes", lambda device: 0)

    def fit(gib, needed):
        def lower(batch):
            return lower_sweeps(lm, params, plan, batch)

        return sweep_memory.fit(plan, config, lower, jax.devices()[0], gib, 4, lambda: {"--path": needed})

    assert fit(2.0, 2**30)[1].peak == 2**30 + memory.COMPILING
    with pytest.raises(
        ProbeError, match=r"--path needs 3.38 GiB, 2.00 GiB may be used: --memory_gb=3.4 would"
    ):
        fit(2.0, 3 * 2**30)


def test_what_this_machine_has():
    device = jax.devices()[0]
    assert 0 < memory.used_bytes(device) < 1.1 * memory.peak_bytes(device)  # Linux counts pages loosely
    assert memory.free_bytes(device) > 2**20


def test_a_forecast_is_of_the_largest_batch_whatever_makes_it_large(monkeypatch):
    """Many short texts hold more squares than one long text, which holds more cotangents."""
    config = TINY["gpt2"]
    lm = LanguageModel(config)
    params = lm.place(random_params(config), "float32")
    ids = [[0] * 3, *[[0] * 2] * 9, [0] * 16]
    plan = cut(config, ids, Plan(layers=(0, 1, 2)), platform="cpu")
    few, many, long = (
        dataclasses.replace(plan.batches[0], texts=texts, rows=len(texts), width=width)
        for texts, width in (((0,), 3), (tuple(range(1, 7)), 2), ((10,), 16))
    )
    plan = dataclasses.replace(plan, batches=(few, many, long), draw_batches=())
    for name in ("_SMALL", "COMPILING"):
        monkeypatch.setattr(memory, name, 0)
    for name in ("used_bytes", "peak_bytes"):
        monkeypatch.setattr(memory, name, lambda device: 0)
    compiled = []

    def lower(batch):
        compiled.append(batch)
        return lower_sweeps(lm, params, plan, batch)

    _, forecast = sweep_memory.fit(plan, config, lower, jax.devices()[0], 16.0, 4)
    assert set(compiled) == {many, long}
    programs = [
        memory.program_bytes(program.compile())
        for batch in plan.batches
        for program in lower_sweeps(lm, params, plan, batch)
    ]
    assert forecast.peak == max(programs)


@pytest.mark.parametrize("config", [TINY["mamba"], TINY["gpt2"]], ids=("mamba", "gpt2"))
def test_the_sampled_texts_have_batches_of_their_own(config):
    """The first twenty, each once; fewer shapes than their exact Jacobians get, since padding costs less."""
    ids = [[0] * (2 + place % 9) for place in range(30)]
    plan = cut(config, ids, Plan(layers=(0, 1)), platform="cpu")
    assert sorted(text for batch in plan.draw_batches for text in batch.texts) == list(range(20))
    assert all(len(ids[text]) <= batch.width for batch in plan.draw_batches for text in batch.texts)
    assert not cut(config, ids, Plan(layers=(0,), site="mixer_out"), platform="cpu").draw_batches
    shared = cut(config, ids, Plan(layers=(0, 1)), platform="cpu", devices=8)
    assert all(batch.rows % 8 == 0 for batch in shared.draw_batches)


def test_what_draws_take_is_foretold():
    """At least what their compiled program takes, of either model."""
    for key in ("mamba", "gpt2"):
        config = dataclasses.replace(TINY[key], vocab_size=5000)
        lm = LanguageModel(config)
        params = lm.place(random_params(config), "float32")
        ids = [[0] * 12] * 20
        plan = cut(config, ids, Plan(layers=(0, 1)), platform="cpu")
        (batch,) = plan.draw_batches
        h = np.zeros((batch.rows, batch.width, config.hidden_size), np.float32)
        lengths = np.full(batch.rows, batch.width)
        keys = jax.random.split(jax.random.key(0), (10, batch.rows))
        program = jax.jit(draw_differences, static_argnums=0, static_argnames="linear")
        compiled = program.lower(lm, params, h, 0, lengths, keys, 0.01, linear=False).compile()
        taken, foretold = memory.program_bytes(compiled), 4 * sweep_memory._draws_elements(config, plan)
        assert taken <= foretold


@pytest.mark.parametrize("kernel", [True, False])
def test_eigenvalues_on_a_gpu_are_part_of_the_forecast(monkeypatch, kernel):
    """Of the squares of all inputs that a sweep makes, and of what one's eigenvalues are made in."""
    config = TINY["mamba"]
    monkeypatch.setattr(sweep_memory, "has_kernel", lambda width, item_bytes: kernel)
    gpu, square = types.SimpleNamespace(platform="gpu"), config.hidden_size**2
    ids, layers = [[0] * 5] * 4, (0, 1, 2)

    def needed(device=gpu, **asked):
        plan = cut(config, ids, Plan(layers=layers, **asked), platform="cpu")
        return sweep_memory._values_bytes(config, plan.batches[0], plan, device, 4)

    one = 1.2 if kernel else 3  # cuSOLVER makes vectors too
    assert needed(reduction="gram") == int((2 + one) * 4 * 3 * 4 * square)
    assert needed(reduction="gram", wrt=("last",)) == int((1 + one) * 4 * 3 * 4 * square)
    assert needed(reduction="gram", wrt=("last",), site="mixer_out") == int((2 + one) * 4 * 3 * 4 * square)
    assert needed(reduction="qr") == needed(jax.devices()[0], reduction="gram") == 0  # on the host
