"""How long a text is to no tokenizer in particular: bytes and words, of the part that a model is scored on.

A text's first token is never predicted, and how much of the text it covers depends on the tokenizer. So what
is counted is what the scored tokens cover: nats per byte are those of the tokens that spell these bytes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxprobe.array_typing import Float, np

if TYPE_CHECKING:
    from jaxprobe.convert.tokenizer import Tokenizer

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class TextSizes:
    """Of each text, the part that is scored."""

    bytes: Float[np.ndarray, " b"]  # of UTF-8
    words: Float[np.ndarray, " b"]  # separated by white space; a word scored in part counts by that part


def text_sizes(tokenizer: "Tokenizer", texts: Sequence[str], limit: int, pad: int | None = None) -> TextSizes:
    """Bytes and words that the scored tokens of each text cover.

    Scored are the tokens 1.. up to the limit, but not the padding token. A character that the first token
    spells in part counts as the first token's.

    Args:
      tokenizer: the model's.
      texts: what was scored.
      limit: tokens at which they were cut.
      pad: the token that is never counted.
    """
    scored = [_scored(tokenizer, text, limit, pad) for text in texts]
    return TextSizes(
        np.array([_bytes(text, marks) for text, marks in zip(texts, scored, strict=True)], np.float64),
        np.array([_words(text, marks) for text, marks in zip(texts, scored, strict=True)], np.float64),
    )


def _scored(tokenizer: "Tokenizer", text: str, limit: int, pad: int | None) -> np.ndarray:
    """Which characters the scored tokens cover."""
    encoded = tokenizer.backend.encode(text)
    marks = np.zeros(len(text), bool)
    # Offsets may leave out white space, which belongs to the token after it, or at the end to the last.
    whole = len(encoded.ids) <= limit
    marks[encoded.offsets[0][1] : len(text) if whole else encoded.offsets[limit - 1][1]] = True
    for token, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
        if token == pad:
            marks[start:stop] = False
    return marks


def _bytes(text: str, marks: np.ndarray) -> int:
    return sum(len(character.encode()) for character, mark in zip(text, marks, strict=True) if mark)


def _words(text: str, marks: np.ndarray) -> float:
    return float(sum(marks[word.start() : word.end()].mean() for word in _WORD.finditer(text)))
