"""Norms of states and the relative gain: what it must not see."""

import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_close

from jaxprobe.jacobians.relative_gain import relative_gain, state_norms

RNG = np.random.default_rng(0)


def test_norms_of_what_moves():
    hidden = RNG.standard_normal((3, 2, 5, 4)).astype(np.float32)
    lengths = [5, 3]
    norms = state_norms(jnp.asarray(hidden), jnp.asarray(lengths))
    for text, length in enumerate(lengths):
        real = hidden[:, text, :length]
        assert_close(norms.sequence[:, text], np.linalg.norm(real, axis=(1, 2)), 1e-6)
        assert_close(norms.last[:, text], np.linalg.norm(real[:, -1], axis=1), 1e-6)


def gains(W: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Of the map h -> W h, for each row of h."""
    frobenius = np.linalg.norm(W - W.mean(axis=0))
    return relative_gain(np.full(len(h), frobenius), np.linalg.norm(h, axis=1), h @ W.T)


def test_no_unit_and_no_common_offset_enters():
    W, h = RNG.standard_normal((7, 4)), RNG.standard_normal((3, 4))
    expected = gains(W, h)
    assert_close(gains(1e3 * W, h), expected, 1e-13)  # logits in other units
    assert_close(gains(W / 1e3, 1e3 * h), expected, 1e-13)  # states in other units
    assert_close(gains(W + RNG.standard_normal(4), h), expected, 1e-13)  # every logit moved alike
    centred = W - W.mean(axis=0)
    change = np.linalg.norm(h @ centred.T, axis=1) / np.linalg.norm(h, axis=1)
    assert_close(expected, np.linalg.norm(centred) / change, 1e-13)


def test_a_bound_on_relative_change():
    W, h = RNG.standard_normal((7, 4)), RNG.standard_normal((50, 4))
    step = RNG.standard_normal((50, 4))
    out = (W - W.mean(axis=0)).T
    change = np.linalg.norm(step @ out, axis=1) / np.linalg.norm(h @ out, axis=1)
    share = np.linalg.norm(step, axis=1) / np.linalg.norm(h, axis=1)
    assert (change <= gains(W, h) * share).all()


def test_equal_logits_have_no_gain():
    gain = relative_gain(np.ones(2), np.ones(2), np.array([[3.0, 3.0], [0.0, 2.0]]))
    assert np.isnan(gain[0]) and gain[1] == pytest.approx(1 / 2**0.5)


def test_what_is_not_finite_has_no_gain():
    gain = relative_gain(
        np.array([0.0, 1, 1]), np.array([np.inf, 1, 1]), np.array([[0, 1], [0, np.inf], [0, 2]])
    )
    assert np.isnan(gain[:2]).all() and gain[2] == pytest.approx(1 / 2**0.5)
