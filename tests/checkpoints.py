"""Small HF checkpoint directories for the tests of `jaxprobe.convert`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import load_file, save_file
from support import random_params
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxprobe import convert
from jaxprobe.configs import ModelConfig

Tensors = dict[str, np.ndarray]


def write_tokenizer(folder: Path, words: int = 11) -> Path:
    """A tokenizer of whole words w0, w1, ..., of which w0 ends a text."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {f"w{i}": i for i in range(words)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["w0"])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w0"}
    )
    return folder


def byte_level_tokenizer(merges: int = 40) -> tokenizers.Tokenizer:
    """A byte-level BPE like GPT-2's, with <|endoftext|> first."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=257 + merges,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "The capital of France is Paris. The capital of Norway is Oslo. They are capitals, both of them."
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def write(folder: Path, config: ModelConfig, dtype: str = "float32", seed: int = 0) -> Path:
    """A whole checkpoint with random weights."""
    tokenizer = write_tokenizer(folder.parent / f"{folder.name}-tokenizer", config.vocab_size)
    params = random_params(config, seed, "float32")
    convert.export(folder, config, params, tokenizer_files_from=tokenizer, dtype=dtype)
    return folder


def write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def edit_config(folder: Path, remove: tuple[str, ...] = (), **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {k: v for k, v in (raw | changes).items() if k not in remove})


def edit_tensors(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Rewrites the weights with what `change` returns, or with what it changed in place."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    changed = change(tensors)
    save_file(tensors if changed is None else changed, file, metadata={"format": "pt"})


def shard(folder: Path, parts: int = 3) -> None:
    """Splits the weights over several files with an index, as HF does for large models."""
    tensors = load_file(folder / "model.safetensors")
    names = {
        key: f"model-{i % parts + 1:05}-of-{parts:05}.safetensors" for i, key in enumerate(sorted(tensors))
    }
    for file in set(names.values()):
        part = {key: tensor for key, tensor in tensors.items() if names[key] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": names})
    (folder / "model.safetensors").unlink()


def assert_same(a: dict, b: dict) -> None:
    """Two trees with the same leaves, bit for bit."""
    assert a.keys() == b.keys()
    for key in a:
        if isinstance(a[key], dict):
            assert_same(a[key], b[key])
        else:
            assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape), key
            assert np.ascontiguousarray(a[key]).tobytes() == np.ascontiguousarray(b[key]).tobytes(), key
