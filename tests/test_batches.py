"""Tokens and batches: what is refused, what is cut, and that no text is lost or changed by batching."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprobe.batches import buckets, tokenize
from jaxprobe.errors import ProbeError


class Letters:
    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]


def test_texts_are_cut_at_the_limit_and_counted():
    tokenized = tokenize(["abcdef", "abc", "abcd"], Letters(), limit=4)
    assert tokenized.ids == ((0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 3))
    assert tokenized.truncated == 1
    assert tokenized.longest == 4


def test_a_beginning_of_text_token_counts():
    tokenized = tokenize(["a", "bcd"], Letters(), limit=3, bos=9)
    assert tokenized.ids == ((9, 0), (9, 1, 2))
    assert tokenized.truncated == 1


@pytest.mark.parametrize("texts, message", [
    ([], "no text"),
    (["ab", " "], r"text 2 of 2 \(' '\) is empty"),
    (["ab", "a"], r"text 2 of 2 \('a'\) is 1 token long"),
    (["abz"], r"token id 25, but the model's vocabulary has 25 entries"),
])  # fmt: skip
def test_a_text_that_cannot_be_measured_is_named(texts, message):
    with pytest.raises(ProbeError, match=message):
        tokenize(texts, Letters(), limit=8, vocab_size=25)


rows = st.lists(st.lists(st.integers(1, 99), min_size=2, max_size=40), min_size=1, max_size=30)


@given(rows, st.integers(1, 300))
def test_every_text_is_in_one_batch_unchanged(ids, batch_tokens):
    seen = []
    for bucket in buckets(ids, batch_tokens, limit=40):
        size, width = bucket.ids.shape
        assert size == 1 or size * width <= batch_tokens
        assert bucket.ids.dtype == bucket.lengths.dtype == bucket.index.dtype == np.int32
        assert (bucket.index[: bucket.count] >= 0).all() and (bucket.index[bucket.count :] == -1).all()
        for row, length, place in zip(bucket.ids, bucket.lengths, bucket.index, strict=True):
            source = place if place >= 0 else bucket.index[0]  # filler repeats a real text
            assert list(row[:length]) == ids[source]
            assert not row[length:].any()
            seen += [int(place)] if place >= 0 else []
    assert sorted(seen) == list(range(len(ids)))


@given(rows)
def test_shapes_are_few(ids):
    shapes = {bucket.ids.shape for bucket in buckets(ids, 512, limit=40)}
    widths = [width for _, width in shapes]
    assert len(set(widths)) == len(widths)  # the batches of one length have one shape
    assert len(shapes) == 1 or set(widths) <= {16, 32, 40}


@given(rows, st.integers(1, 300))
def test_filler_is_less_than_one_row_a_batch(ids, batch_tokens):
    made = buckets(ids, batch_tokens, limit=40)
    assert sum(len(bucket.index) - bucket.count for bucket in made) < len(made)


def test_texts_of_similar_length_make_one_batch():
    (bucket,) = buckets([[1] * n for n in (9, 11, 13, 17)], 512)
    assert bucket.ids.shape == (4, 24)
    assert len(buckets([[1] * n for n in (6, 7, 8, 90)], 512)) == 2  # one would be mostly padding


def test_no_batch_is_wider_than_the_model_takes():
    assert [bucket.ids.shape for bucket in buckets([[1] * 39], 512, limit=39)] == [(1, 39)]
    apart = buckets([[1] * n for n in (2, 2, 2, 39)], 64, limit=39)
    assert [bucket.ids.shape for bucket in apart] == [(3, 16), (1, 39)]
