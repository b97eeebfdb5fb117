"""Texts as token ids, batched by length. numpy only: no jax here."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from jaxprobe.errors import ProbeError
from jaxprobe.texts import shorten


@runtime_checkable
class Encoder(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str) -> Sequence[int]: ...


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of each text, in order."""

    ids: tuple[tuple[int, ...], ...]
    truncated: int  # how many texts were cut at the limit

    @property
    def longest(self) -> int:
        """Tokens in the longest text."""
        return max(map(len, self.ids))


def tokenize(
    texts: Sequence[str],
    tokenizer: Encoder,
    *,
    limit: int,
    bos: int | None = None,
    vocab_size: int | None = None,
) -> TokenizedTexts:
    """Token ids of every text, cut at `limit` tokens.

    Args:
      texts: at least one.
      tokenizer: anything with `encode(text)`.
      limit: the most tokens of a text, `bos` included, >= 2.
      bos: a token to put first, where the tokenizer does not.
      vocab_size: the model's; ids must be below it.

    Raises:
      ProbeError: when there is no text, a text is empty or one token long, an id is not in the vocabulary, or
        the limit leaves no next token.
    """
    if not texts:
        raise ProbeError("there is no text to measure")
    if limit < 2:
        raise ProbeError(f"a context of {limit} token leaves no next token to predict; at least 2 are needed")
    rows, truncated = [], 0
    for number, text in enumerate(texts, 1):
        where = f"text {number} of {len(texts)} ({shorten(text)})"
        if not text.strip():
            raise ProbeError(f"{where} is empty")
        row = list(map(int, tokenizer.encode(text)))
        if bos is not None and row[:1] != [bos]:
            row.insert(0, bos)
        if len(row) < 2:
            raise ProbeError(f"{where} is {len(row)} token long; a next token needs at least 2")
        if vocab_size is not None and max(row) >= vocab_size:
            raise ProbeError(
                f"{where}: token id {max(row)}, but the model's vocabulary has {vocab_size} entries"
            )
        truncated += len(row) > limit
        rows.append(tuple(row[:limit]))
    return TokenizedTexts(tuple(rows), truncated)


@dataclass(frozen=True)
class Bucket:
    """Texts of about one length, padded on the right to one shape.

    Filler rows, which bring the batch to a fixed size, repeat the first text and have index -1.
    """

    ids: np.ndarray  # int32 [b,t]; 0 in the padding
    lengths: np.ndarray  # int32 [b]; real tokens of each row
    index: np.ndarray  # int32 [b]; place of each row among the texts, -1 for filler

    @property
    def count(self) -> int:
        """Real rows; they come first."""
        return int((self.index >= 0).sum())


def buckets(
    ids: Sequence[Sequence[int] | np.ndarray], batch_tokens: int, widths: Sequence[int], devices: int = 1
) -> tuple[Bucket, ...]:
    """Texts padded to a few widths (`jaxprobe.widths` chooses them), so that jit compiles few programs.

    The texts of one width are split evenly into batches of one shape, with filler to make them equal.

    Args:
      ids: tokens of each text.
      batch_tokens: the most tokens in a batch, padding included; a batch has at least a row for each device
        all the same.
      widths: ascending, the last at least as long as any text.
      devices: that share a batch: filler makes its rows a multiple of them.
    """
    groups: dict[int, list[int]] = {}
    for place, row in enumerate(ids):
        groups.setdefault(widths[bisect.bisect_left(widths, len(row))], []).append(place)
    made = []
    for width, places in sorted(groups.items()):
        most = devices * max(1, batch_tokens // width // devices)
        rows = -(-len(places) // -(-len(places) // most))
        filled = rows + -rows % devices
        made += [fill_bucket(ids, places[i : i + rows], filled, width) for i in range(0, len(places), rows)]
    return tuple(made)


def fill_bucket(
    ids: Sequence[Sequence[int] | np.ndarray], places: Sequence[int], rows: int, width: int
) -> Bucket:
    """The texts at these places, padded to `width`, and filler up to so many rows."""
    filled = [*places, *[places[0]] * (rows - len(places))]
    padded = np.zeros((rows, width), np.int32)
    for row, place in enumerate(filled):
        padded[row, : len(ids[place])] = ids[place]
    index = np.full(rows, -1, np.int32)
    index[: len(places)] = places
    return Bucket(padded, np.array([len(ids[place]) for place in filled], np.int32), index)
