"""The GPU's eigenvalues, their kernels run as plain JAX, against LAPACK's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_close

from jaxprobe.kernels.symmetric_eigenvalues import bisected, symmetric_eigenvalues
from jaxprobe.kernels.tridiagonal import tridiagonal


@pytest.fixture(autouse=True)
def few_launches(monkeypatch):
    """In the compiled loop: as plain JAX each takes a while to compile."""
    monkeypatch.setattr("jaxprobe.kernels.tridiagonal._LAUNCHES", 4)


def symmetric(rng, values):
    """A matrix with these eigenvalues, float64."""
    turn, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    matrix = (turn * values) @ turn.T
    return (matrix + matrix.T) / 2


def check(matrices, units=8):
    """In units of rounding of the largest eigenvalue, whatever the type."""
    found = np.asarray(symmetric_eigenvalues(jnp.asarray(matrices), interpret=True))
    expected = np.linalg.eigvalsh(matrices.astype(float))
    assert found.dtype == matrices.dtype
    assert (np.diff(found) >= 0).all()
    unit = np.finfo(matrices.dtype).eps * np.abs(expected).max(axis=1)
    assert (np.abs(found - expected).max(axis=1) <= units * unit).all()


@pytest.mark.parametrize("width", [1, 2, 3, 7, 33, 70])
def test_any_width_and_scale(width):
    rng = np.random.default_rng(width)
    matrices = [symmetric(rng, rng.normal(size=width)) * scale for scale in (1e-30, 1, 3e30)]
    check(np.stack(matrices).astype("float32"))


def test_spectra_that_are_hard_to_tell_apart():
    rng, n = np.random.default_rng(0), 45
    spectra = [
        np.ones(n),
        np.repeat([1.0, 2.0, -3.0], 15),
        np.logspace(0, -12, n),
        np.r_[1e6, np.zeros(n - 1)],
        1 + 1e-6 * np.arange(n),
    ]
    check(np.stack([symmetric(rng, values) for values in spectra]).astype("float32"))


def test_entries_down_to_the_least_that_there_are():
    """The square of what a short vector is scaled by is beyond all numbers."""
    n = 40
    beside = np.diag(np.logspace(-1, -31, n - 1), 1)
    check((np.diag(np.logspace(0, -30, n)) + beside + beside.T)[None].astype("float32"))


def test_in_float64_to_its_rounding(x64):
    rng = np.random.default_rng(1)
    check(np.stack([symmetric(rng, rng.normal(size=33)) for _ in range(2)]), units=20)  # and LAPACK's own


def test_matrices_that_are_diagonal_or_tridiagonal_already():
    rng, n = np.random.default_rng(2), 37
    diagonal = np.diag(rng.normal(size=n))
    beside = np.diag(rng.normal(size=n - 1), 1)
    check(np.stack([diagonal, diagonal + beside + beside.T, np.zeros((n, n)), np.eye(n)]).astype("float32"))


def test_one_matrix_leaves_the_others_alone():
    matrices = np.stack([symmetric(np.random.default_rng(3), np.arange(40.0))] * 3).astype("float32")
    matrices[0, 2, 7] = matrices[0, 7, 2] = np.nan
    matrices[2, 5, 5] = np.inf
    found = np.asarray(symmetric_eigenvalues(jnp.asarray(matrices), interpret=True))
    assert np.isnan(found[[0, 2]]).all()
    assert_close(found[1], np.arange(40.0), 1e-5)


def test_however_many_programs_share_a_matrix(monkeypatch):
    matrices = np.stack([symmetric(np.random.default_rng(4), np.linspace(-1, 1, 50))]).astype("float32")
    monkeypatch.setattr("jaxprobe.kernels.tridiagonal._TILE", 4 * 64)
    for programs in (1, 3, 16):  # 13 tiles of four rows
        monkeypatch.setattr("jaxprobe.kernels.tridiagonal._PROGRAMS", programs)
        check(matrices)


@pytest.mark.parametrize(
    ("count", "limit"), [(3, "_AT_ONCE"), (5, "_AT_ONCE"), (5, "_NUMBERS"), (1, "_NUMBERS")]
)
def test_however_many_matrices_are_taken_at_once(monkeypatch, count, limit):
    monkeypatch.setattr(f"jaxprobe.kernels.symmetric_eigenvalues.{limit}", 2)  # entries: one matrix
    rng = np.random.default_rng(6)
    check(np.stack([symmetric(rng, rng.normal(size=20)) for _ in range(count)]).astype("float32"))


def test_the_tridiagonal_matrix_is_similar(x64):
    matrix = symmetric(np.random.default_rng(5), np.linspace(-1, 2, 21))
    diagonal, beside = (np.asarray(a)[0] for a in tridiagonal(jnp.asarray(matrix)[None], interpret=True))
    made = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    for power in (1, 2, 3):
        traces = [np.trace(np.linalg.matrix_power(m, power)) for m in (made, matrix)]
        assert_close(*traces, 1e-13)
    values = bisected(jnp.asarray(diagonal)[None], jnp.asarray(beside)[None], interpret=True)
    assert_close(values[0], np.linspace(-1, 2, 21), 1e-13)


@pytest.mark.parametrize("shape", [(12, 768, 768), (1, 771, 771), (200, 300, 300), (2, 2560, 2560)])
def test_the_kernels_can_be_written_for_a_gpu(shape):
    """Triton takes no array whose length is not a power of two, and no out of the ordinary operation."""
    traced = jax.jit(symmetric_eigenvalues).trace(jax.ShapeDtypeStruct(shape, jnp.float32))
    try:
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:  # from jax 0.11 on it asks the GPU for its make
        pytest.skip(str(error))
    assert "triton" in text
