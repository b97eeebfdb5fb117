"""All eigenvalues of many symmetric matrices on a GPU, without their vectors: Pallas kernels (Triton).

cuSOLVER, which `jax.numpy.linalg.eigvalsh` calls, makes the vectors too and takes four times as long
(BUILD_NOTES, "From squares to singular values"). Here each matrix is made tridiagonal, and bisection finds
its eigenvalues (Barth, Martin and Wilkinson 1967, "Calculation of the eigenvalues of a symmetric tridiagonal
matrix by the method of bisection").
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from jaxprobe.kernels.tridiagonal import tridiagonal

_AT_ONCE, _NUMBERS = 24, 24 * 768**2  # matrices, and their entries
_LANES, _POINTS = 32, 4  # of the bisection: eigenvalues a program, and points that cut each one's interval


def symmetric_eigenvalues(matrices: Float[Array, "b x x"], interpret: bool = False) -> Float[Array, "b x"]:
    """Eigenvalues in rising order, each off by a few units of rounding of the largest; NaN where A has any.

    Args:
      matrices: finite or not. A program holds a few rows in registers, so some thousands wide at most.
      interpret: run the kernels as plain JAX, on any device.
    """

    def values(matrices: Float[Array, "b x x"]) -> Float[Array, "b x"]:
        scale = jnp.max(jnp.abs(matrices), axis=(1, 2), keepdims=True)
        scale = jnp.where(scale == 0, 1, scale)
        diagonal, beside = tridiagonal(matrices / scale, interpret)
        return bisected(diagonal, beside, interpret) * scale[:, :, 0]

    # 24 of width 768 took 12 ms, 96 together 51, and once over a second, for no reason that was found.
    b, n, _ = matrices.shape
    groups = -(-b // max(1, min(_AT_ONCE, _NUMBERS // n**2)))
    if groups <= 1:
        return values(matrices)
    size = -(-b // groups)
    padded = jnp.pad(matrices, ((0, groups * size - b), (0, 0), (0, 0)))
    return jax.lax.map(values, padded.reshape(groups, size, n, n)).reshape(-1, n)[:b]


def bisected(
    diagonal: Float[Array, "b x"], beside: Float[Array, "b y"], interpret: bool = False
) -> Float[Array, "b x"]:
    """Eigenvalues of symmetric tridiagonal matrices in rising order, to rounding of the largest.

    Args:
      diagonal: of each. beside: what stands beside it. interpret: as for `symmetric_eigenvalues`.
    """
    b, n = diagonal.shape
    sizes = jnp.pad(jnp.abs(beside), ((0, 0), (1, 1)))
    around = sizes[:, 1:] + sizes[:, :-1]
    low, high = (diagonal - around).min(axis=1), (diagonal + around).max(axis=1)  # Gershgorin's
    norm = jnp.maximum(jnp.abs(low), jnp.abs(high))
    eps = float(jnp.finfo(diagonal.dtype).eps)
    within = jnp.stack([low - 4 * eps * norm, high + 4 * eps * norm], axis=1)
    least = jnp.maximum(eps**2 * norm, jnp.finfo(diagonal.dtype).tiny)[:, None]
    squares = jnp.pad(beside * beside, ((0, 0), (1, 0)))
    passes = math.ceil(math.log(8 / eps) / math.log(_POINTS + 1))

    def whole(length: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, length), lambda m, _: (m, 0))

    return pl.pallas_call(
        partial(_bisect, n, passes),
        grid=(b, pl.cdiv(n, _LANES)),
        in_specs=[whole(n), whole(n), whole(2), whole(1)],
        out_specs=whole(n),
        out_shape=jax.ShapeDtypeStruct((b, n), diagonal.dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="bisect",
    )(diagonal, squares, within, least)


def _bisect(n, passes, diagonal, squares, within, least, out):
    """A program's eigenvalues: an interval each, cut at points by how many eigenvalues lie below."""
    wanted = pl.program_id(1) * _LANES + jnp.arange(_LANES)
    least = least[0, 0]
    cuts = (1 + jnp.arange(_POINTS)).astype(least.dtype) / (_POINTS + 1)

    def cut(_, interval):
        low, high = interval
        points = low[:, None] + (high - low)[:, None] * cuts[None, :]

        def count(k, carry):  # of negative pivots of the matrix less a point
            pivot, below = carry
            pivot = diagonal[0, k] - points - squares[0, k] / pivot
            pivot = jnp.where(jnp.abs(pivot) < least, -least, pivot)
            return pivot, below + jnp.where(pivot < 0, 1, 0)

        begin = jnp.ones_like(points), jnp.zeros(points.shape, jnp.int32)
        _, below = jax.lax.fori_loop(0, n, count, begin)
        above = below > wanted[:, None]
        low = jnp.maximum(low, jnp.where(above, low[:, None], points).max(axis=1))
        return low, jnp.minimum(high, jnp.where(above, points, high[:, None]).min(axis=1))

    interval = (jnp.full((_LANES,), within[0, side]) for side in (0, 1))
    low, high = jax.lax.fori_loop(0, passes, cut, tuple(interval))
    triton.store(out.at[0, wanted], 0.5 * (low + high), mask=wanted < n)
