"""Tokenizers, by the `tokenizers` library alone where it can read them."""

from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

from jaxprobe.convert.fields import read_json_object
from jaxprobe.errors import ProbeError

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt",
)  # fmt: skip


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back."""

    vocab_size: int  # ids are below it
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None  # end-of-text where the files name no padding token
    backend: tokenizers.Tokenizer = field(repr=False, compare=False)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, as HF's `tokenizer(text).input_ids`."""
        return self.backend.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)


def load_tokenizer(directory: Path, model_vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint directory.

    Raises:
      ProbeError: when there is none, or its ids exceed the model's vocabulary.
    """
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    raw = read_json_object(directory / "config.json")
    ids = {name: raw.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vocab = backend.get_vocab(with_added_tokens=True)
    largest = max(vocab.values())
    if largest >= model_vocab_size:
        raise ProbeError(
            f"{directory}: the tokenizer's largest id is {largest}, but the model has {model_vocab_size} tokens"
        )
    return Tokenizer(largest + 1, ids["bos"], ids["eos"], ids["pad"], backend)
