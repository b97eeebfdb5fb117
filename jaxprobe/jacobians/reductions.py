"""From a Jacobian, whose columns come in pieces or whole, to its singular values: first a square, then these.

A sweep makes the squares where the Jacobians are. Their values can be a stage of their own, of the squares of
all layers and texts together: a GPU has a batch of them sooner than one by one, and a CPU's threads take one
each (BUILD_NOTES, "From squares to singular values").
"""

import concurrent.futures
import enum
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, np
from jaxprobe.runtime import lapack_threads

_WIDEST_KERNEL = 4096  # a program holds a few rows of the matrix in registers
_PIECES = 16  # squares made at once on a GPU, one of each piece of each text's columns


class Reduction(enum.Enum):
    """How the singular values of a Jacobian J [m x] are had from it. Its norms never depend on this.

    QR of the long side, then the SVD of the square: every singular value to rounding of the largest.

    GRAM, the eigenvalues of J J^T: a fraction of the time, but squaring costs half the digits of the small
    ones. By Weyl's inequality |s^2 - sigma^2| <= c u ||J||_F^2, where u is the unit roundoff and c at most x,
    but of order 1 in practice, since sums run in blocks. So in float32 singular values below about
    3e-4 ||J||_F are noise, and sigma_1 is right to rounding.
    """

    QR = "qr"
    GRAM = "gram"


def one_at_a_time(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """The function of one matrix, which `vmap` calls for one matrix after the other.

    For linear algebra on CPU. jaxlib 0.10's LAPACK calls share a batch out to the threads of the pool they
    run on and wait for them: two such calls at once, on the two threads of a small machine, wait for ever.
    """
    if jax.default_backend() != "cpu":
        return function
    # The lambda hides the function's other parameters, whose defaults JAX would trace.
    return jax.custom_batching.sequential_vmap(lambda matrix: function(matrix))


def join_columns(
    sofar: Float[Array, "b m m"] | None, columns: Float[Array, "b m x"], reduction: Reduction
) -> Float[Array, "b m m"]:
    """A square with the singular values, or their squares, of all columns joined so far.

    The Gram matrix of the columns, or the transposed triangle of their QR (sequential TSQR, Demmel et al.
    2012, "Communication-optimal parallel and sequential QR and LU factorizations", section 3).

    Args:
      sofar: of the columns before these; zeros serve as well as None where there were none.
      columns: any number of them; at least m in all, unless `sofar` began with zeros.
      reduction: which of the two.
    """
    if reduction is Reduction.GRAM:
        square = _gram(columns)
        return square if sofar is None else sofar + square
    tall = jnp.swapaxes(columns, 1, 2)
    tall = tall if sofar is None else jnp.concatenate([sofar, tall], axis=1)
    return jax.vmap(one_at_a_time(partial(jnp.linalg.qr, mode="r")))(tall)


def _gram(columns: Float[Array, "b m x"]) -> Float[Array, "b m m"]:
    count, m, x = columns.shape
    if jax.default_backend() == "cpu":
        return jnp.einsum("bmx,bnx->bmn", columns, columns)
    # One text's square is too few tiles to fill a GPU: 36 of 128 x 128 at m = 768. Pieces of the long side
    # make more, to be added up. The lower left block is the upper right one turned.
    pieces = max(p for p in range(1, max(_PIECES // count, 1) + 1) if x % p == 0)
    cut = columns.reshape(count, m, pieces, x // pieces)
    above, below = cut[:, : m // 2], cut[:, m // 2 :]
    upper, corner = (
        jnp.einsum("bmpx,bnpx->pbmn", left, right).sum(axis=0)
        for left, right in ((above, cut), (below, below))
    )
    lower = jnp.concatenate([jnp.swapaxes(upper[:, :, m // 2 :], 1, 2), corner], axis=2)
    return jnp.concatenate([upper, lower], axis=1)


def joined_values(squares: Float[Array, "*l m m"], reduction: Reduction) -> Float[Array, "*l m"]:
    """Singular values of what `join_columns` joined, largest first."""
    flat = squares.reshape(-1, *squares.shape[-2:])
    if reduction is Reduction.GRAM:
        values = jnp.sqrt(jnp.maximum(_eigenvalues(flat)[:, ::-1], 0))
    else:
        values = jax.vmap(one_at_a_time(partial(jnp.linalg.svd, compute_uv=False)))(flat)
    return values.reshape(squares.shape[:-1])


def _eigenvalues(squares: Float[Array, "b m m"]) -> Float[Array, "b m"]:
    if has_kernel(squares.shape[-1], squares.dtype.itemsize):
        # Not imported where there is no such GPU: Pallas takes its time to load.
        from jaxprobe.kernels.symmetric_eigenvalues import symmetric_eigenvalues

        return symmetric_eigenvalues(squares)
    return jax.vmap(one_at_a_time(jnp.linalg.eigvalsh))(squares)


def has_kernel(width: int, item_bytes: int) -> bool:
    """Whether eigenvalues of squares so wide are made by `kernels.symmetric_eigenvalues`.

    On an NVIDIA GPU that Triton compiles for: Ampere (compute capability 8) or later.
    """
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    return float(device.compute_capability) >= 8 and item_bytes == 4 and width <= _WIDEST_KERNEL


def joined_values_on_host(
    squares: Float[np.ndarray, "*l m m"], reduction: Reduction
) -> Float[np.ndarray, "*l m"]:
    """As `joined_values`, by numpy's LAPACK, a matrix in each thread where LAPACK leaves threads to us."""

    def values(square: Float[np.ndarray, "m m"]) -> Float[np.ndarray, " m"]:
        try:
            if reduction is Reduction.GRAM:
                return np.sqrt(np.maximum(np.linalg.eigvalsh(square)[::-1], 0))
            return np.linalg.svd(square, compute_uv=False)
        except np.linalg.LinAlgError:  # NaN, or no convergence: JAX has NaN then
            return np.full(len(square), np.nan, square.dtype)

    flat = squares.reshape(-1, *squares.shape[-2:])
    with concurrent.futures.ThreadPoolExecutor(lapack_threads()) as threads:
        return np.reshape(list(threads.map(values, flat)), squares.shape[:-1])
