"""Estimates of the largest singular values and Frobenius norm of J, from products with J and J^T alone.

Singular values: Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation (Golub and Kahan 1965,
section 3; `matfree.decomp.bidiag`), run on J^T, so that the random start lies in the small output space and
knows nothing of padding. K pairs of products give J^T V = U B and J U = V B^T + beta v e_K^T with orthonormal
U and V and a bidiagonal B [K K]. The singular values of B approach the largest of J from below.

Frobenius norm: Hutch++ (Meyer, Musco, Musco and Woodruff 2021, algorithm 1) with that Krylov space in place
of a sketch. The part of ||J||_F^2 inside it is ||B||_F^2 and costs nothing more; the remainder is the mean of
x_i = ||J^T (I - V V^T) g_i||^2 over Gaussian probes g_i.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from matfree import decomp

from jaxprobe.array_typing import Array, Float, Key
from jaxprobe.configs import MIN_PROBES, MIN_PRODUCTS
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians.reductions import one_at_a_time

_PROBE_CHUNK = 10  # probes pulled back at once, to bound the memory


_QUANTILE = 1.959964  # of the standard normal at 97.5%


Product = Callable[[Array], Array]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["singular_values", "residuals", "frobenius", "frobenius_low", "frobenius_high"],
    meta_fields=["products"],
)
@dataclasses.dataclass(frozen=True)
class MatrixFreeSpectrum:
    """Estimates for one Jacobian, or for a batch b of them.

    Attributes:
      singular_values: the k largest found, largest first. A true singular value lies within `residuals` of
        each (to rounding), but one that J has several times may be found once only. nan where the Krylov
        space ended before: what is missing is then zero or repeats a value found.
      residuals: ||J u - sigma v|| for the unit vectors u [t d] and v [m] found with sigma, which have
        J^T v = sigma u; that is beta |last component of the left singular vector of B|.
      frobenius: estimate of ||J||_F.
      frobenius_low: lower end of the 95% confidence interval of ||J||_F.
      frobenius_high: upper end. The interval speaks of sampling, not of rounding.
      products: products with J or J^T that were spent on each Jacobian, those for the norm included.
    """

    singular_values: Float[Array, "*b k"]
    residuals: Float[Array, "*b k"]
    frobenius: Float[Array, "*b"]
    frobenius_low: Float[Array, "*b"]
    frobenius_high: Float[Array, "*b"]
    products: int


def estimate_spectrum(
    push: Product,
    pull: Product,
    key: Key[Array, ""],
    *,
    num_outputs: int,
    dtype: DTypeLike,
    num_singular_values: int,
    num_products: int,
    num_probes: int,
) -> MatrixFreeSpectrum:
    """Estimates for one linear map J, given as its products.

    The interval. y_i = J^T (I - V V^T) g_i is Gaussian, so x_i = ||y_i||^2 is a weighted sum of chi-squares,
    as skewed as the remainder's spectrum is uneven. Its degrees of freedom nu = tr(C)^2 / tr(C^2), with C the
    covariance of y, have unbiased estimates above and below: the means over i != j of x_i x_j and (y_i.y_j)^2
    (the scatter of the x_i would be a far poorer guide). With nu from them, nu sum x_i / E x is taken to be a
    chi-square of num_probes nu degrees of freedom (Satterthwaite 1946), its quantiles by Wilson and Hilferty
    (1931). This is right where one direction dominates (nu = 1), and where all are alike. Simulated with the
    fewest products and probes allowed, such intervals held the norm 93.8% to 95.3% of the time over nine
    spectra and 94.0% to 94.3% on Jacobians of tiny models; t intervals of plain Hutchinson 89% to 95%.

    Args:
      push: v -> J v. pull: u -> J^T u, with u [m].
      key: of the start of the bidiagonalisation and of the probes.
      num_outputs: m.
      dtype: of u and v; everything else runs in JAX's default float type.
      num_singular_values: k.
      num_products: the most products for the singular values, J and J^T counted alike; 2 m span everything.
      num_probes: probes of the remainder, a product each.

    Raises:
      ProbeError: more singular values than output directions or than pairs of products, or too few products
        or probes.
    """
    pairs = min(num_products // 2, num_outputs)
    if not 1 <= num_singular_values <= num_outputs:
        raise ProbeError(
            f"num_singular_values must be between 1 and {num_outputs}, the output directions of the map, "
            f"got {num_singular_values}"
        )
    if num_singular_values > pairs:
        raise ProbeError(
            f"{num_singular_values} singular values need num_products of at least {2 * num_singular_values}, "
            f"got {num_products}"
        )
    if num_products < MIN_PRODUCTS:
        raise ProbeError(f"num_products must be at least {MIN_PRODUCTS}, got {num_products}")
    if num_probes < MIN_PROBES:
        raise ProbeError(f"num_probes must be at least {MIN_PROBES}, got {num_probes}")
    # matfree allocates in JAX's default float type, which may be wider than the model's.
    wide = jax.dtypes.canonicalize_dtype(float)
    start_key, probe_key = jax.random.split(key)
    start = jax.random.normal(start_key, (num_outputs,), wide)
    probes = jax.random.normal(probe_key, (num_probes, num_outputs), wide)

    def wide_push(v: Array) -> Array:
        return push(v.astype(dtype)).astype(wide)

    def wide_pull(u: Array) -> Array:
        return pull(u.astype(dtype)).astype(wide)

    values, residuals, basis = _bidiagonalise(wide_push, wide_pull, start, pairs)
    captured = jnp.nansum(jnp.square(values))
    mean, low, high = _remainder(wide_pull, probes - (probes @ basis.T) @ basis)
    return MatrixFreeSpectrum(
        singular_values=values[:num_singular_values],
        residuals=residuals[:num_singular_values],
        frobenius=jnp.sqrt(captured + mean),
        frobenius_low=jnp.sqrt(captured + low),
        frobenius_high=jnp.sqrt(captured + high),
        products=2 * pairs + num_probes,
    )


def _bidiagonalise(
    push: Product, pull: Product, start: Float[Array, " m"], pairs: int
) -> tuple[Float[Array, " s"], Float[Array, " s"], Float[Array, "s m"]]:
    # Singular values of B, their residuals, and V.
    transpose = jax.custom_vjp(pull)  # matfree takes the products with J as the reverse mode of J^T
    transpose.defvjp(lambda u: (pull(u), None), lambda _, v: (push(v),))
    (_, basis), (diagonal, above), residual, _ = decomp.bidiag(pairs, materialize=False)(transpose, start)
    # A Krylov space that ends early (as a zero map's does) leaves 0/0 from there on: what was found stands.
    found = jnp.isfinite(diagonal)
    B = jnp.diag(jnp.where(found, diagonal, 0)) + jnp.diag(jnp.where(found[1:], above, 0), 1)
    left, values, _ = one_at_a_time(jnp.linalg.svd)(B)
    beta = jnp.nan_to_num(jnp.linalg.norm(residual))
    real = jnp.arange(pairs) < jnp.sum(found)
    values, residuals = (jnp.where(real, array, jnp.nan) for array in (values, beta * jnp.abs(left[-1])))
    return values, residuals, jnp.where(found[:, None], basis, 0)


def _remainder(pull: Product, probes: Float[Array, "s m"]) -> tuple[Array, Array, Array]:
    # Mean of ||J^T g||^2 over the probes g, and the ends of its 95% confidence interval.
    images = jax.lax.map(pull, probes, batch_size=min(len(probes), _PROBE_CHUNK))
    images = images.reshape(len(probes), -1)
    gram = images @ images.T
    squares = jnp.diag(gram)
    mean = jnp.mean(squares)
    unit = jnp.where(mean > 0, mean, 1)
    apart = ~jnp.eye(len(probes), dtype=bool)
    above = jnp.sum(jnp.outer(squares / unit, squares / unit), where=apart)
    below = jnp.sum(jnp.square(gram / unit), where=apart)
    freedom = len(probes) * jnp.where(below > 0, above / below, 1)
    spread = 2 / (9 * freedom)
    low, high = (mean / (1 - spread + z * jnp.sqrt(spread)) ** 3 for z in (_QUANTILE, -_QUANTILE))
    return mean, low, high
