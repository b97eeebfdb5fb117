"""The 130M pair, mamba-130m and gpt2, with random weights made on the spot, and texts to run them on.

Time and memory depend on the sizes of a model, not on what it has learnt.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from jaxprobe.array_typing import Params
from jaxprobe.configs import GPT2Config, MambaConfig, ModelConfig
from jaxprobe.convert.tokenizer import load_tokenizer
from jaxprobe.models import LanguageModel
from jaxprobe.relations import relation_texts
from jaxprobe.run_configs import DEFAULT_NUM_TEXTS

MAMBA_130M = MambaConfig(
    vocab_size=50280, hidden_size=768, num_layers=24, intermediate_size=1536, state_size=16,
    time_step_rank=48, conv_kernel=4,
)  # fmt: skip
GPT2_124M = GPT2Config(
    vocab_size=50257, hidden_size=768, num_layers=12, num_heads=12, inner_size=3072, max_positions=1024
)
SIZES: dict[str, ModelConfig] = {"mamba": MAMBA_130M, "gpt2": GPT2_124M}
TOKENIZERS = {"mamba": "gpt-neox", "gpt2": "gpt2"}  # folders of a model's tokenizer files
SHORTEST, LONGEST = 6, 14  # tokens of a random text: about what the relation sentences have


def random_model(key: str, layers: int | None = None, seed: int = 0) -> tuple[LanguageModel, Params]:
    """A model of full width with fresh weights; only its first `layers` layers, for a smoke run."""
    config = SIZES[key]
    lm = LanguageModel(dataclasses.replace(config, num_layers=min(layers or 10**9, config.num_layers)))
    return lm, jax.jit(lm.init)(jax.random.key(seed))


def default_texts(key: str, tokenizers: str | None) -> list[tuple[int, ...]]:
    """Token ids of the default run's texts, or random ids where there are no tokenizer files.

    Args:
      key: mamba or gpt2.
      tokenizers: a folder with the folders of TOKENIZERS in it, or None.
    """
    vocab = SIZES[key].vocab_size
    if tokenizers is None:
        rng = np.random.default_rng(0)
        lengths = rng.integers(SHORTEST, LONGEST + 1, DEFAULT_NUM_TEXTS)
        return [tuple(rng.integers(0, vocab, n).tolist()) for n in lengths]
    tokenizer = load_tokenizer(Path(tokenizers) / TOKENIZERS[key], {"model_type": key}, vocab)
    return [tuple(tokenizer.encode(text)) for text in relation_texts().texts[:DEFAULT_NUM_TEXTS]]
