"""What follows from singular values alone: closed forms, sampling, and laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from jaxprobe.jacobians.spectra import (
    expected_gain,
    position_participation,
    rms_gain,
    spectral_effective_rank,
    stable_rank,
)

positive = st.floats(1e-3, 1e3)
spectra = st.lists(positive, min_size=1, max_size=12).map(np.array)
laws = settings(max_examples=60, derandomize=True, deadline=None)


def mean_norm(n: int) -> float:
    """E||v|| of v ~ N(0, I_n)."""
    return math.sqrt(2) * special.poch(n / 2, 0.5)


@pytest.mark.parametrize("n", [1, 2, 3, 64, 5000])
def test_a_multiple_of_an_isometry(n):
    assert expected_gain(np.full(n, 2.5), n) == pytest.approx(2.5, rel=1e-10)
    assert rms_gain(np.full(n, 2.5), n) == pytest.approx(2.5, rel=1e-14)


@pytest.mark.parametrize("m", [1, 2, 5, 64])
@pytest.mark.parametrize("n", [64, 1280, 400_000])
def test_m_equal_singular_values(m, n):
    """||Jv|| / s is the norm of m Gaussians; zeros among the singular values change nothing."""
    expected = 3.0 * mean_norm(m) / mean_norm(n)
    assert expected_gain(np.full(m, 3.0), n) == pytest.approx(expected, rel=1e-9)
    assert expected_gain(np.array([0.0, *np.full(m, 3.0), 0.0]), n) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 1e-2, 1e-6])
def test_two_singular_values(ratio):
    """The mean over the circle of sqrt(cos^2 + ratio^2 sin^2), an elliptic integral."""
    expected = 2 / math.pi * special.ellipe(1 - ratio**2)
    assert expected_gain(np.array([ratio, 1.0]), 2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.5, 3.0])
def test_sampling_agrees(decay):
    rng = np.random.default_rng(0)
    sigma, n = 7 * np.exp(-decay * np.arange(6)), 9
    v = rng.standard_normal((40_000, n))
    gains = np.linalg.norm(v[:, :6] * sigma, axis=1) / np.linalg.norm(v, axis=1)
    standard_error = gains.std() / len(gains) ** 0.5
    assert abs(gains.mean() - expected_gain(sigma, n)) < 4 * standard_error
    # The variance that standard scores use is the exact one, rms^2 - mean^2.
    exact = rms_gain(sigma, n) ** 2 - expected_gain(sigma, n) ** 2
    spread = np.square(gains - gains.mean()).std() / len(gains) ** 0.5
    assert abs(gains.var() - exact) < 4 * spread


@laws
@given(spectra, st.floats(-140, 140), st.integers(0, 500))
def test_scale_equivariance(sigma, exponent, extra):
    """Also by factors whose squares no float32 holds."""
    n, factor = len(sigma) + extra, 10.0**exponent
    assert expected_gain(sigma * factor, n) == pytest.approx(expected_gain(sigma, n) * factor, rel=1e-12)


@laws
@given(spectra, st.integers(0, 500))
def test_bounds_and_order(sigma, extra):
    n = len(sigma) + extra
    mean, rms = expected_gain(sigma, n), rms_gain(sigma, n)
    # Of spectra with the same sum of squares, one value has the lowest mean; Jensen gives the other bound.
    lowest = np.linalg.norm(sigma) * math.sqrt(2 / math.pi) / mean_norm(n)
    assert lowest * (1 - 1e-12) <= mean <= rms * (1 + 1e-12)
    assert rms <= sigma.max() * (1 + 1e-12)
    assert expected_gain(sigma[::-1], n) == pytest.approx(mean, rel=1e-13)


@laws
@given(spectra, positive, st.integers(1, 500))
def test_a_larger_spectrum_has_a_larger_gain(sigma, added, extra):
    n = len(sigma) + extra
    assert expected_gain(np.append(sigma, added), n) > expected_gain(sigma, n)


def test_zero_matrix():
    assert expected_gain(np.zeros(4), 10) == rms_gain(np.zeros(4), 10) == 0.0
    assert math.isnan(stable_rank(np.zeros(4)))


def test_float32_input_is_computed_in_float64():
    sigma = np.array([1.0, 1e-3], np.float32)
    assert expected_gain(sigma, 2) == pytest.approx(expected_gain(sigma.astype(np.float64), 2), rel=1e-15)
    assert isinstance(rms_gain(sigma, 2), float) and isinstance(stable_rank(sigma), float)


@laws
@given(spectra, st.floats(-150, 150))
def test_stable_rank(sigma, exponent):
    rank = stable_rank(sigma)
    assert 1 <= rank <= len(sigma) * (1 + 1e-12)
    assert stable_rank(sigma * 10.0**exponent) == pytest.approx(rank, rel=1e-12)
    assert stable_rank(np.full(5, 3.0)) == pytest.approx(5)
    assert rank == pytest.approx(rms_gain(sigma, 1) ** 2 / sigma.max() ** 2, rel=1e-12)


@laws
@given(spectra, st.floats(-150, 150))
def test_spectral_effective_rank(sigma, exponent):
    rank = spectral_effective_rank(sigma)
    assert 1 - 1e-12 <= rank <= len(sigma) * (1 + 1e-12)
    assert spectral_effective_rank(sigma * 10.0**exponent) == pytest.approx(rank, rel=1e-12)
    assert spectral_effective_rank(np.append(sigma, 0.0)) == pytest.approx(rank, rel=1e-12)
    # Two copies of a spectrum have twice the effective rank.
    assert spectral_effective_rank(np.tile(sigma, 2)) == pytest.approx(2 * rank, rel=1e-12)
    assert stable_rank(sigma) <= rank * (1 + 1e-12)


def test_spectral_effective_rank_of_two_values():
    """Shares 3/4 and 1/4: exp of the entropy is 4 / 3^(3/4). Squares would have shares 9/10 and 1/10."""
    assert spectral_effective_rank(np.array([3.0, 1.0])) == pytest.approx(4 / 3**0.75, rel=1e-14)
    assert math.isnan(spectral_effective_rank(np.zeros(3)))


@laws
@given(spectra, st.floats(-150, 150))
def test_position_participation(norms, exponent):
    participation = position_participation(norms)
    assert 1 - 1e-12 <= participation <= len(norms) * (1 + 1e-12)
    assert position_participation(norms * 10.0**exponent) == pytest.approx(participation, rel=1e-12)
    assert position_participation(np.append(norms, 0.0)) == pytest.approx(participation, rel=1e-12)
    assert position_participation(np.tile(norms, 3)) == pytest.approx(3 * participation, rel=1e-12)


def test_position_participation_of_two_positions():
    assert position_participation(np.array([2.0, 1.0])) == pytest.approx(25 / 17, rel=1e-14)
    assert math.isnan(position_participation(np.zeros(3)))
