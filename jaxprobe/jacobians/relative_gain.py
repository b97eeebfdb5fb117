"""Sensitivity free of units: how large a share of the output a small share of the state moves.

||J||_F grows with the scale of the logits and falls with that of the hidden states: by itself it would call a
model fragile for its units alone. The relative gain ||J||_F ||h|| / ||logits|| has none: to first order it
bounds the relative change of the logits over the relative change of h. Logits are centred, in J and in the
norm, since a common offset changes no prediction.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int, np


class StateNorms(NamedTuple):
    """||h_l|| of what a Jacobian lets move, by layer and text."""

    last: Float[Array, "l b"]  # the last token's row
    sequence: Float[Array, "l b"]  # every row of the text, padding left out


def state_norms(hidden: Float[Array, "l b t d"], lengths: Int[Array, " b"]) -> StateNorms:
    """Euclidean norms of the hidden states, nan where the squares of a state there, or above, overflow.

    A model's own norms make zeros of such a state: what lies below has no Jacobian that is to be believed.

    Args:
      hidden: `block_out` of every layer.
      lengths: real tokens of each text; what follows them is padding.
    """
    rows = jnp.linalg.norm(hidden, axis=-1)
    last = jnp.take_along_axis(rows, (lengths - 1)[None, :, None], axis=2)[..., 0]
    real = jnp.arange(hidden.shape[2]) < lengths[:, None]
    return StateNorms(*map(_finite_above, (last, jnp.linalg.norm(jnp.where(real, rows, 0), axis=-1))))


def _finite_above(norms: Float[Array, "l b"]) -> Float[Array, "l b"]:
    overflown = jax.lax.cummax((~jnp.isfinite(norms)).astype(jnp.int32), reverse=True)
    return jnp.where(overflown > 0, jnp.nan, norms)


def relative_gain(
    centred_frobenius: Float[np.ndarray, " b"],
    state_norm: Float[np.ndarray, " b"],
    logits: Float[np.ndarray, "b v"],
) -> Float[np.ndarray, " b"]:
    """||J||_F ||h|| / ||logits|| of each text, with centred logits. numpy in float64.

    Args:
      centred_frobenius: of the Jacobian of the centred logits (`jaxprobe.jacobians.output_metrics`, centred).
      state_norm: of the same input that J lets move, from `state_norms`.
      logits: of the last token; centred here.

    Returns:
      nan where all the logits of a text are equal, and where they or its state are not finite.
    """
    finite = np.isfinite(state_norm) & np.isfinite(logits).all(axis=1)
    frobenius, state, of = (
        array[finite].astype(np.float64) for array in (centred_frobenius, state_norm, logits)
    )
    size = np.linalg.norm(of - of.mean(axis=1, keepdims=True), axis=1)
    gain = np.full(len(logits), np.nan)
    gain[finite] = np.divide(frobenius * state, size, out=np.full(len(size), np.nan), where=size > 0)
    return gain
