"""What tangent rules need: tangents that are known to be zero, and those same as arrays."""

from collections.abc import Iterable

import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array


def all_zero(tangents: Iterable[Array | SymbolicZero]) -> bool:
    """Whether it is known, before anything is computed, that none of them moves."""
    return all(isinstance(tangent, SymbolicZero) for tangent in tangents)


def dense(tangent: Array | SymbolicZero) -> Array:
    """The tangent as an array."""
    if isinstance(tangent, SymbolicZero):
        return jnp.zeros(tangent.shape, tangent.dtype)
    return jnp.asarray(tangent)
