"""Bytes and words of what is scored, held to what the tokens themselves spell."""

import pytest

from jaxprobe.convert.tokenizer import load_tokenizer
from jaxprobe.matched.text_sizes import text_sizes
from jaxprobe.shipped import ASSETS

TEXTS = ["France's capital is Paris.", "Zürich lies in Switzerland", "  Two  spaces ", "naïve café: 京都"]


@pytest.fixture(scope="module")
def tokenizer():
    folder = ASSETS / "mamba-facts"
    return load_tokenizer(folder, {"model_type": "mamba"}, 4096)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_those_of_the_tokens_after_the_first(tokenizer, text):
    ids = tokenizer.encode(text)
    sizes = text_sizes(tokenizer, [text], limit=512)
    # In a byte-level vocabulary a token's name has one character a byte.
    spelled = sum(len(tokenizer.backend.id_to_token(token)) for token in ids[1:])
    assert sizes.bytes.tolist() == [spelled]


def test_what_is_cut_off_and_padding_do_not_count(tokenizer):
    text = TEXTS[0]
    ids = tokenizer.encode(text)
    names = [tokenizer.backend.id_to_token(token) for token in ids]
    cut = text_sizes(tokenizer, [text], limit=4).bytes
    assert cut.tolist() == [sum(map(len, names[1:4]))]
    without = text_sizes(tokenizer, [text], limit=512, pad=ids[-1]).bytes
    assert without.tolist() == [sum(map(len, names[1:])) - len(text[-1])]


def test_a_word_scored_in_part_counts_by_that_part(tokenizer):
    first = tokenizer.backend.encode(TEXTS[0]).offsets[0][1]
    sizes = text_sizes(tokenizer, [TEXTS[0]], limit=512)
    word = len("France's")
    assert sizes.words.tolist() == [pytest.approx(3 + max(word - first, 0) / word)]
