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


def test_a_beginning_of_text_token_that_the_tokenizer_puts_is_not_put_again():
    assert tokenize(["bab", "aba"], Letters(), limit=4, bos=1).ids == ((1, 0, 1), (1, 0, 1, 0))


def test_a_context_of_one_token_is_refused():
    with pytest.raises(ProbeError, match="a context of 1 token leaves no next token"):
        tokenize(["ab"], Letters(), limit=1)


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
widths = st.sets(st.integers(2, 39), max_size=4).map(lambda some: (*sorted(some), 40))


@given(rows, st.integers(1, 300), widths)
def test_every_text_is_in_one_batch_unchanged(ids, batch_tokens, widths):
    seen = []
    for bucket in buckets(ids, batch_tokens, widths):
        size, width = bucket.ids.shape
        assert size == 1 or size * width <= batch_tokens
        assert bucket.ids.dtype == bucket.lengths.dtype == bucket.index.dtype == np.int32
        assert (bucket.index[: bucket.count] >= 0).all() and (bucket.index[bucket.count :] == -1).all()
        for row, length, place in zip(bucket.ids, bucket.lengths, bucket.index, strict=True):
            source = place if place >= 0 else bucket.index[0]  # filler repeats a real text
            assert list(row[:length]) == ids[source]
            assert not row[length:].any()
            assert width == min(each for each in widths if each >= length)
            seen += [int(place)] if place >= 0 else []
    assert sorted(seen) == list(range(len(ids)))


@given(rows, st.integers(1, 300), widths)
def test_a_width_has_one_shape_and_less_than_a_row_of_filler_a_batch(ids, batch_tokens, widths):
    made = buckets(ids, batch_tokens, widths)
    assert len({bucket.ids.shape for bucket in made}) == len({bucket.ids.shape[1] for bucket in made})
    assert sum(len(bucket.index) - bucket.count for bucket in made) < len(made)


@given(rows, st.integers(1, 300), st.integers(2, 8))
def test_every_device_has_a_text_of_its_own(ids, batch_tokens, devices):
    """However long the texts are: filler stands only in place of texts that there are not."""
    width = max(map(len, ids))
    made = buckets(ids, batch_tokens, [width], devices)
    each = {len(bucket.ids) // devices for bucket in made}
    assert len(each) == 1  # one shape
    (rows,) = each
    assert all(len(bucket.ids) == devices * rows for bucket in made)
    assert rows == 1 or devices * rows * width <= batch_tokens
    for bucket in made[:-1]:
        # As many as if texts were dealt out evenly: fewer fillers than devices beyond the last batch's.
        assert bucket.count > devices * (rows - 1)
    if len(ids) >= devices and rows == 1:
        assert len(made) == -(-len(ids) // devices)
