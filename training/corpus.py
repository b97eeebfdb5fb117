"""The one stream of rows that both models of the pair are trained on, in the same order.

Two kinds of rows take part in every step, in a fixed proportion:

* Fact rows [FACT_TOKENS]: whole sentences, each followed by <|endoftext|>; what is left of a row is filled
  with <|endoftext|>. Every row begins with a sentence, with nothing before it, because that is how the
  sentences are read when the pair is used. All facts are reshuffled and repacked every epoch.
* WikiText rows [TEXT_TOKENS]: contiguous chunks of WikiText-2 valid (Merity et al. 2016, CC BY-SA). Where
  the first chunk begins is drawn anew every epoch, and the chunks are shuffled. Long as the context of
  GPT-2, so that each of its positions is trained.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from training.tokenizer import END_OF_TEXT_ID

FACT_ROWS, FACT_TOKENS = 32, 32  # rows a step, tokens a row
TEXT_ROWS, TEXT_TOKENS = 4, 256


class Stream(NamedTuple):
    """All rows of a training run, int32."""

    facts: np.ndarray  # [steps, FACT_ROWS, FACT_TOKENS]
    text: np.ndarray  # [steps, TEXT_ROWS, TEXT_TOKENS]

    def sha256(self) -> str:
        """Identifies rows and order: the two models of a pair must report the same."""
        digest = hashlib.sha256()
        for rows in self:
            digest.update(np.ascontiguousarray(rows, "<i4").tobytes())
        return digest.hexdigest()


def build(sentences: list[list[int]], text: list[int], steps: int, seed: int) -> Stream:
    """The rows of `steps` training steps; a pure function of its arguments.

    Args:
      sentences: token ids of every fact sentence, each shorter than FACT_TOKENS.
      text: token ids of the running text.
      steps: training steps.
      seed: of all shuffles.
    """
    fact_rng, text_rng = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    fact_rows = _take(_fact_rows(sentences, fact_rng), steps * FACT_ROWS)
    text_rows = _take(_text_rows(np.asarray(text, np.int32), text_rng), steps * TEXT_ROWS)
    return Stream(
        fact_rows.reshape(steps, FACT_ROWS, FACT_TOKENS), text_rows.reshape(steps, TEXT_ROWS, TEXT_TOKENS)
    )


def _fact_rows(sentences: list[list[int]], rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        row: list[int] = []
        for index in rng.permutation(len(sentences)):
            sentence = [*sentences[index], END_OF_TEXT_ID]
            if len(row) + len(sentence) > FACT_TOKENS:
                yield _padded(row)
                row = []
            row += sentence
        yield _padded(row)


def _padded(row: list[int]) -> np.ndarray:
    return np.pad(np.asarray(row, np.int32), (0, FACT_TOKENS - len(row)), constant_values=END_OF_TEXT_ID)


def _text_rows(text: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        start = rng.integers(TEXT_TOKENS)
        chunks = (len(text) - start) // TEXT_TOKENS
        rows = text[start : start + chunks * TEXT_TOKENS].reshape(chunks, TEXT_TOKENS)
        yield from rows[rng.permutation(chunks)]


def _take(rows: Iterator[np.ndarray], count: int) -> np.ndarray:
    return np.stack([next(rows) for _ in range(count)])
