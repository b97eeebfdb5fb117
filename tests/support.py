"""What several test files share: tiny models with generous random weights, and the reference data."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprobe.configs import GPT2Config, MambaConfig, ModelConfig
from jaxprobe.convert import param_shapes
from jaxprobe.models import LanguageModel

# Every size differs from every other, so that a swapped axis cannot go unnoticed.
MAMBA = MambaConfig(
    vocab_size=11, hidden_size=6, num_layers=3, intermediate_size=10, state_size=3, time_step_rank=2,
    conv_kernel=4, use_bias=True, norm_epsilon=1e-3,
)  # fmt: skip
GPT2 = GPT2Config(
    vocab_size=11, hidden_size=6, num_layers=3, num_heads=2, inner_size=9, max_positions=16,
    norm_epsilon=1e-3, scale_attn_by_inverse_layer_idx=True,
)  # fmt: skip
TINY = {"mamba": MAMBA, "gpt2": GPT2}


def random_params(config: ModelConfig, seed: int = 0, dtype: str = "float64") -> dict:
    """Numpy parameters in which nothing is at a special value: no bias zero, no scale one."""
    rng = np.random.default_rng(seed)

    def draw(tree: dict, name: str = "") -> dict:
        return {
            key: draw(value, key) if isinstance(value, dict) else leaf(key, value)
            for key, value in tree.items()
        }

    def leaf(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape)
        match name:
            case "kernel":
                values /= np.sqrt(shape[-2])
            case "scale" | "D":
                values = 1 + values / 2
            case "bias" | "A_log":
                values /= 2
        return values.astype(dtype)

    return draw(param_shapes(config))


def unembedding_only(W: np.ndarray) -> tuple[LanguageModel, dict]:
    """A model of which only W [v d] is read."""
    v, d = W.shape
    config = dataclasses.replace(MAMBA, vocab_size=v, hidden_size=d)
    return LanguageModel(config), {"embedding": {"embedding": jnp.asarray(W)}}


def padded(texts: list[np.ndarray]) -> tuple[jax.Array, jax.Array]:
    """ids [b t] with a token of the texts' own in the padding, and lengths [b]."""
    ids = np.ones((len(texts), max(map(len, texts))), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    return jnp.asarray(ids), jnp.asarray([len(text) for text in texts], jnp.int32)


def random_texts(lengths: list[int], vocab_size: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(vocab_size, size=n, dtype=np.int32) for n in lengths]


def assert_close(actual, expected, tolerance: float, what: str = "", floor: float = 0) -> None:
    """Largest difference, relative to the largest expected entry, or to the floor if that is larger."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    assert np.isfinite(actual).all(), f"{what}: not finite"
    if expected.size:
        error = np.abs(actual - expected).max() / max(np.abs(expected).max(), floor, 1e-300)
        assert error <= tolerance, f"{what}: {error:.2e} of the largest entry, allowed {tolerance:.0e}"


REFERENCE = Path(
    os.environ.get("JAXPROBE_REFERENCE") or Path(__file__).resolve().parents[2] / "shared" / "reference"
)
needs_reference = pytest.mark.skipif(
    not (REFERENCE / "models").is_dir(),
    reason=f"the reference checkpoints are not at {REFERENCE} (set JAXPROBE_REFERENCE)",
)
