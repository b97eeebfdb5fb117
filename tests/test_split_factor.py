"""The factor of logits and centred logits in one, against both metrics written out."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, assert_close, unembedding_only

from jaxprobe.jacobians import split_factor as module
from jaxprobe.jacobians.split_factor import split_factor
from jaxprobe.models import LanguageModel

pytestmark = pytest.mark.usefixtures("x64")


def centred(W: np.ndarray) -> np.ndarray:
    return W - W.mean(axis=0)


def split(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R of the logits, and of the centred logits, in float64."""
    R, weight = split_factor(*unembedding_only(W))
    assert R.shape == (min(W.shape), W.shape[1]) and R.dtype == weight.dtype == W.dtype and 0 <= weight <= 1
    plain = np.array(R, np.float64)
    return plain, np.concatenate([np.sqrt(float(weight)) * plain[:1], plain[1:]])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("v", [1, 2, 5, 6, 7, 131, 9001])  # the last in five pieces
@pytest.mark.parametrize("kind", ["any", "offset", "alike", "no mean", "low rank", "zero"])
def test_it_is_of_both_metrics(v, kind, dtype):
    """Width 6, any vocabulary; the mean row lies among the others' differences or does not."""
    rng = np.random.default_rng(v)
    W = rng.standard_normal((v, 6))
    W = {
        "any": W,
        "offset": W + 1e5 * rng.standard_normal(6),
        "alike": np.repeat(W[:1], v, axis=0),
        "no mean": centred(W),
        "low rank": W[:, :2] @ rng.standard_normal((2, 6)) + rng.standard_normal(6),
        "zero": 0 * W,
    }[kind].astype(dtype)
    plain, without_offset = split(W)
    exact, u = W.astype(np.float64), float(np.finfo(dtype).eps)
    assert_close(plain.T @ plain, exact.T @ exact, 1000 * u)
    expected = centred(exact).T @ centred(exact)
    rounding = 1e-16 * np.abs(exact).max() ** 2  # of W less its mean
    # Where rows do not differ at all, what is next to nothing is set by the size of W itself.
    least = (10 * u) ** 2 * np.square(exact).sum() if kind == "alike" or v == 1 else 0
    atol = 1000 * u * np.abs(expected).max() + rounding + least
    np.testing.assert_allclose(without_offset.T @ without_offset, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("rows", [4, 20])  # less, and more, than two widths
def test_pieces_and_an_untied_head_change_nothing(rows, monkeypatch):
    W = np.random.default_rng(0).standard_normal((131, 6))
    config = dataclasses.replace(TINY["gpt2"], vocab_size=131, hidden_size=6, tie_word_embeddings=False)
    params = {"unembedding": {"kernel": jnp.asarray(W.T)}}
    monkeypatch.setattr(module, "_ROWS", rows)
    R, weight = split_factor(LanguageModel(config), params)
    assert_close(R.T @ R, W.T @ W, 1e-14)
    assert_close(weight, split_factor(*unembedding_only(W))[1], 1e-12)


@pytest.mark.parametrize(("dtype", "decades", "rtol"), [("float64", 11, 1e-4), ("float32", 6, 2e-2)])
def test_no_precision_is_lost_to_squaring(dtype, decades, rtol):
    """Small singular values of W less its mean row, which no Gram matrix in W's own dtype holds."""
    rng = np.random.default_rng(0)
    left = np.linalg.qr(centred(rng.standard_normal((100, 6))))[0]
    right = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    W = (left * np.logspace(0, -decades, 6) @ right).astype(dtype)
    expected = np.linalg.svd(centred(W.astype(np.float64)), compute_uv=False)
    found = np.linalg.svd(split(W)[1], compute_uv=False)
    np.testing.assert_allclose(found, expected, rtol=rtol)
    squared = np.linalg.eigvalsh(centred(W).T @ centred(W))[::-1]
    assert not np.allclose(np.sqrt(np.maximum(squared, 0)), expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_makes_nothing_finite(value):
    W = np.ones((7, 3), np.float32)
    W[2, 1] = value
    R, weight = split_factor(*unembedding_only(W))
    assert np.isnan(R).all() and np.isnan(weight)
