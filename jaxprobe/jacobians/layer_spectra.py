"""What a reverse sweep keeps of the Jacobians of its layers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int
from jaxprobe.jacobians.planning import DRAWS_AT_ONCE
from jaxprobe.jacobians.reductions import Reduction, join_columns


class Spectra(NamedTuple):
    """What is kept of the Jacobians of one or more layers l."""

    singular_values: Float[Array, "l b m"] | None  # of J, largest first; None where they were not made
    position_norms: Float[Array, "l b t"]  # Frobenius norm of J's block for each input token
    centred_norms: Float[Array, "l b t"] | None = None  # the same of the centred logits' Jacobian
    along: Float[Array, "l b s"] | None = None  # ||J u|| of the directions u that were given
    carried: Float[Array, "l b"] | None = None  # ||J v|| of the one direction v of each layer
    squares: Float[Array, "l b m m"] | None = None  # `reductions.join_columns`, until values are made of them
    ranks: Int[Array, "l b"] | None = None  # the most of these values that can differ from zero; m if None

    def with_values(self, values_of: Callable[[Array], Array]) -> "Spectra":
        """With singular values in place of the squares.

        Args:
          values_of: `reductions.joined_values`, or the same on the host, of one way of joining.
        """
        if self.squares is None:
            return self
        values = values_of(self.squares)
        if self.ranks is not None:
            values = jnp.where(jnp.arange(values.shape[-1]) < self.ranks[..., None], values, 0)
        return self._replace(singular_values=values, squares=None, ranks=None)


class SpectraByInput(NamedTuple):
    """Spectra of the Jacobians with respect to both inputs."""

    sequence: Spectra  # every token's row moves
    last: Spectra  # the last token's alone, of one position

    def with_values(self, values_of: Callable[[Array], Array]) -> "SpectraByInput":
        """Both `Spectra.with_values`."""
        return SpectraByInput(*(spectra.with_values(values_of) for spectra in self))


class Directions(NamedTuple):
    """Directions in which h_l moves: many u, made where they are used, and one v."""

    of: Callable[[Int[Array, ""], Int[Array, ""]], Float[Array, "b t d"]]  # u, by layer and number
    count: int
    carried: Float[Array, "l b t d"]  # v, of every layer of the model


def reduce_sequence(
    reduction: Reduction,
    centred_weight: Float[Array, ""] | None,
    directions: Directions | None,
    layer: Int[Array, ""],
    cotangents: Float[Array, "m b t d"],
) -> Spectra:
    """What is kept of one layer's Jacobians, whose rows the cotangents are; axes without l, no values yet."""
    rows = jnp.moveaxis(cotangents, 1, 0)
    flat = rows.reshape(*rows.shape[:2], -1)
    norms, centred = position_norms(cotangents, centred_weight)
    along = carried = None
    if directions is not None:

        def size(direction: Float[Array, "b t d"]) -> Float[Array, " b"]:
            # One axis: no copy for the product.
            return jnp.linalg.norm(jnp.einsum("bmx,bx->bm", flat, direction.reshape(len(flat), -1)), axis=-1)

        numbers, at_once = jnp.arange(directions.count), min(directions.count, DRAWS_AT_ONCE)
        along = jax.lax.map(lambda number: size(directions.of(layer, number)), numbers, batch_size=at_once).T
        carried = size(directions.carried[layer])
    squares = join_columns(None, flat, reduction)
    return Spectra(None, norms, centred, along, carried, squares)


def position_norms(
    cotangents: Float[Array, "m b t d"], centred_weight: Float[Array, ""] | None
) -> tuple[Float[Array, "b t"], Float[Array, "b t"] | None]:
    """Frobenius norms of J's block for each input token, and those of the centred logits' Jacobian.

    Args:
      cotangents: the rows of J. centred_weight: w, from `split_factor`; None if not wanted.
    """
    if centred_weight is None:
        return jnp.sqrt(position_squares(cotangents)), None
    first, rest = position_squares(cotangents[:1]), position_squares(cotangents[1:])
    return jnp.sqrt(rest + first), jnp.sqrt(rest + centred_weight * first)


def position_squares(cotangents: Float[Array, "m b t d"]) -> Float[Array, "b t"]:
    """Squared Frobenius norms of J's block for each input token."""
    return jnp.sum(jnp.square(cotangents), axis=0) @ jnp.ones(cotangents.shape[-1], cotangents.dtype)


def reduce_last(
    reduction: Reduction,
    centred_weight: Float[Array, ""] | None,
    layer: Int[Array, ""],
    cotangents: Float[Array, "m b d"],
) -> Spectra:
    """`reduce_sequence` where the last token's row alone moves: of one position."""
    return reduce_sequence(reduction, centred_weight, None, layer, cotangents[:, :, None])
