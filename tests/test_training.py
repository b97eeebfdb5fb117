"""The training folder: rows, the loop and its saved states. The trained pair itself is in test_assets.py."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support import REFERENCE

from jaxprobe.configs import GPT2Config, MambaConfig
from jaxprobe.errors import ProbeError
from jaxprobe.models import LanguageModel
from training import corpus, facts, loop, pair, tokenizer

SENTENCES = [[n, n + 1, n + 2, *range(5, 5 + n % 7)] for n in range(20, 60)]
ROOT = Path(__file__).resolve().parents[1]
LRE = REFERENCE.parent / "data" / "lre" / "data"
TEXT = list(np.random.default_rng(0).integers(1, 90, 3000))
SETTINGS = pair.Settings(steps=6, learning_rate=1e-2, warmup_steps=2)
MODELS = {
    "mamba": MambaConfig(90, 8, 2, 16, 4, 2, 3),
    "gpt2": GPT2Config(90, 8, 2, 2, 16, max_positions=corpus.TEXT_TOKENS),
}


def part(stream, start, end):
    return corpus.Stream(stream.facts[start:end], stream.text[start:end])


@pytest.fixture(scope="module")
def stream():
    return corpus.build(SENTENCES, TEXT, SETTINGS.steps, seed=3)


def test_the_rows_are_a_function_of_the_seed(stream):
    assert corpus.build(SENTENCES, TEXT, SETTINGS.steps, seed=3).sha256() == stream.sha256()
    assert corpus.build(SENTENCES, TEXT, SETTINGS.steps, seed=4).sha256() != stream.sha256()


def test_every_fact_row_is_whole_sentences_from_its_first_token(stream):
    known = {tuple(sentence) for sentence in SENTENCES}
    for row in stream.facts.reshape(-1, corpus.FACT_TOKENS):
        text = " ".join(map(str, row)).removesuffix(" 0")
        sentences = [tuple(map(int, s.split())) for s in (text + " ").split(" 0 ") if s.strip(" 0")]
        assert row[0] != tokenizer.END_OF_TEXT_ID
        assert sentences and known.issuperset(sentences)


def test_every_epoch_holds_every_sentence_once():
    rng = np.random.default_rng(0)
    rows = corpus._fact_rows(SENTENCES, rng)
    epoch: list[int] = []
    while epoch.count(tokenizer.END_OF_TEXT_ID) == 0 or len([n for n in epoch if n]) < sum(
        map(len, SENTENCES)
    ):
        epoch += next(rows).tolist()
    assert sorted(n for n in epoch if n) == sorted(n for sentence in SENTENCES for n in sentence)


def test_text_rows_are_contiguous(stream):
    text = " ".join(map(str, TEXT))
    for row in stream.text.reshape(-1, corpus.TEXT_TOKENS):
        assert " ".join(map(str, row)) in text


@pytest.mark.parametrize("name", ["gpt2"])  # the loop is the same for both
def test_an_interrupted_run_reaches_the_same_parameters(name, stream, tmp_path):
    lm = LanguageModel(MODELS[name])
    chunk = loop.make_chunk(lm, SETTINGS)
    unbroken = loop.initial_state(lm, SETTINGS)
    resumed = loop.initial_state(lm, SETTINGS)
    for start in range(0, SETTINGS.steps, 2):
        unbroken, losses = chunk(unbroken, part(stream, start, start + 2))
        resumed, _ = chunk(resumed, part(stream, start, start + 2))
        loop.save_state(tmp_path / "state.npz", resumed, "this run")
        resumed = loop.restore_state(tmp_path / "state.npz", loop.initial_state(lm, SETTINGS), "this run")
        assert all(np.isfinite(value).all() for value in losses)
    assert int(resumed.step) == SETTINGS.steps
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(unbroken), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_state_of_another_run_or_a_torn_one_is_refused(tmp_path):
    lm = LanguageModel(MODELS["gpt2"])
    state = loop.initial_state(lm, SETTINGS)
    path = tmp_path / "state.npz"
    loop.save_state(path, state, "this run")
    with pytest.raises(ProbeError, match="other settings"):
        loop.restore_state(path, state, "another run")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ProbeError, match="not a training state"):
        loop.restore_state(path, state, "this run")


def test_the_pair_has_matched_sizes():
    def size(config):
        shapes = jax.eval_shape(LanguageModel(config).init, jax.random.key(0))
        return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    counts = [size(config) for config in pair.MODELS.values()]
    assert max(counts) <= 2_000_000 and max(counts) / min(counts) <= 1.05


def test_an_ambiguous_prompt_is_found():
    known = [("Rome is in Italy.", "Italy"), ("Rome is in the heart of Europe.", "Europe")]
    assert len(facts.ambiguities(known)) == 1
    assert facts.ambiguities([known[0], ("Rome is in Italy and in Europe.", "Europe")]) == []


@pytest.mark.skipif(not LRE.is_dir(), reason=f"the LRE relations are not at {LRE} (set JAXPROBE_REFERENCE)")
def test_the_facts_file_is_what_its_sources_make(tmp_path):
    command = ["-m", "training.build_facts", f"--lre={LRE}", f"--out={tmp_path / 'facts.json'}"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "facts.json").read_bytes() == facts.FACTS_FILE.read_bytes()


def test_the_tokenizer_gives_back_every_byte_and_knows_one_special_token():
    bpe = tokenizer.train(["a text to learn from, a text to give back"] * 5, vocab_size=300)
    text = "ünïcode \x00 text\n\n  and <unk> spaces "
    assert bpe.decode(bpe.encode(text).ids) == text
    assert bpe.token_to_id(tokenizer.END_OF_TEXT) == tokenizer.END_OF_TEXT_ID
    assert tokenizer.END_OF_TEXT_ID not in bpe.encode(text).ids
