"""Distances between outputs, each as a factor R: ||R dz|| is the length of a small change of the output.

The logits are W z, with W in R^{v x d} and z the final normed state, and every metric here is a quadratic
form W^T M W = R^T R. So the Jacobian of the output in that metric and R dz/dh have the same singular values,
and another metric only replaces R:

    logits    M = I                   Euclidean distance of the logits
    centred   M = I - 1 1^T / v       the same without a common offset, which no prediction sees
    fisher    M = diag(p) - p p^T     KL(p || p') = ||R dz||^2 / 2 in nats, to second order; p = softmax(W z)

Here R comes from a QR of diag(w) (W - 1 c^T), not from the product W^T M W: squaring would lose half the
digits. The command's own factor of the logits (`jaxprobe.jacobians.split_factor`) squares float32 in float64.
(Fisher information as the metric of a distribution: Amari, "Natural gradient works efficiently in learning",
1998, section 2.)
"""

from collections.abc import Callable
from functools import cache, partial
from typing import get_args

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Params
from jaxprobe.configs import Metric
from jaxprobe.errors import ProbeError
from jaxprobe.models import LanguageModel

# Rows of W in one step of the blocked QR, in widths d. A step also decomposes the d rows of the R so far, so
# 8 spends an eighth more arithmetic and holds 9 d rows in place of another copy of all v.
_BLOCK_WIDTHS = 8


def output_factor(
    lm: LanguageModel,
    params: Params,
    metric: Metric = "logits",
    logits: Float[Array, "b v"] | None = None,
) -> Float[Array, "*b m d"]:
    """R with R^T R = W^T M W; m = min(v, d).

    Args:
      lm: the model. params: its parameters.
      metric: of the output; static.
      logits: of each text's last token: fisher is the metric at that point; not read by the others.

    Returns:
      [m d], or [b m d] for fisher, one for each text.

    Raises:
      ProbeError: a metric of another name, or fisher without logits.
    """
    W = lm.unembedding(params)
    ones = jnp.ones(len(W), W.dtype)
    match metric:
        case "logits":
            return _triangle(W, ones)
        case "centred":
            return _triangle(W, ones, [W.mean(axis=0)])
        case "fisher" if logits is not None:
            return jax.lax.map(lambda row: _fisher(W, row), logits)
        case "fisher":
            raise ProbeError("the metric fisher needs each text's logits, got none")
    raise ProbeError(f"the output metric must be one of {', '.join(get_args(Metric))}, got {metric!r}")


_output_factor = jax.jit(output_factor, static_argnums=(0, 2))


def factors(
    lm: LanguageModel, params: Params, metric: Metric
) -> Callable[[Array | None], Float[Array, "*b m d"]]:
    """R from the logits [b v] of a batch's last tokens.

    Where it is the same for all texts it is computed once, and the logits may be None.
    """
    if metric == "fisher":
        return partial(_output_factor, lm, params, metric)
    shared = cache(lambda: _output_factor(lm, params, metric))
    return lambda logits: shared()


def compile_fisher_factors(lm: LanguageModel, params: Params, rows: int) -> None:
    """Compiles what `factors` runs for batches of so many texts under the metric fisher."""
    logits = jax.ShapeDtypeStruct((rows, lm.config.vocab_size), jax.tree.leaves(params)[0].dtype)
    _output_factor.lower(lm, params, "fisher", logits).compile()


def _fisher(W: Float[Array, "v d"], logits: Float[Array, " v"]) -> Float[Array, "m d"]:
    # Rows are measured from the likeliest token's. Where it has nearly all the probability its own row of
    # W - p^T W would cancel, and with sum p = 1 only to rounding a common offset would come in.
    likeliest = jnp.argmax(logits)
    p = jax.nn.softmax(logits)
    others = p.at[likeliest].set(0)
    reference = W[likeliest]
    return _triangle(W, jnp.sqrt(p), [reference, others @ W - others.sum() * reference])


def _triangle(W, weights, offsets=()) -> Float[Array, "m d"]:
    """R of the QR of diag(weights) (W - offset - ...), offsets taken off each row in turn; by blocks of rows.

    Sequential TSQR (Demmel et al. 2012, "Communication-optimal parallel and sequential QR and LU
    factorizations", section 3): as stable as a Householder QR of the whole.
    """
    v, d = W.shape
    rows = min(v, _BLOCK_WIDTHS * d)

    def scaled(start, size):
        part = jax.lax.dynamic_slice_in_dim(W, start, size)
        weight = jax.lax.dynamic_slice_in_dim(weights, start, size)
        for offset in offsets:
            part -= offset
        return weight[:, None] * part

    def step(i, triangle):
        return jnp.linalg.qr(jnp.concatenate([triangle, scaled(i * rows, rows)]), mode="r")

    triangle = jnp.linalg.qr(scaled(0, rows), mode="r")
    if v == rows:
        return triangle
    triangle = jax.lax.fori_loop(1, v // rows, step, triangle)
    rest = scaled(v - v % rows, v % rows)
    return jnp.linalg.qr(jnp.concatenate([triangle, rest]), mode="r")
