"""Path Lipschitz: the largest sigma_1 found along the segment between two states of one fixed context.

a is the last token's row of h_l in a text, b any other row; the context of every layer above l (conv window
and SSM state, or keys and values) is the text's own and is held fixed (`wrt=last`). With f the logits as a
function of that row and J its Jacobian,

    f(b) - f(a) = integral_0^1 J(a + t (b - a)) (b - a) dt,

so the secant of the segment, ||f(b) - f(a)|| / ||b - a||, is at most the largest sigma_1 on it. The points
are Gauss-Legendre nodes, whose sum in place of the integral shows whether they are enough, and both ends. A
grid can miss a peak: its largest sigma_1 is a lower estimate of the true maximum, and is to be named so.

Neither number compares with the secant of two texts (`text_statistics.secant_lipschitz`), whose ends lie in
different contexts.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int, Params, np
from jaxprobe.jacobians.reductions import one_at_a_time
from jaxprobe.models import LanguageModel
from jaxprobe.models.language_model import Past


class PathLipschitz(NamedTuple):
    """Along one segment per text."""

    sigma1: Float[Array, "b g"]  # at the ends (first and last) and the nodes between; exact at each
    secant: Float[Array, " b"]  # ||f(b) - f(a)|| / ||b - a|| in the one context
    residual: Float[Array, " b"]  # ||sum_k w_k J(t_k)(b - a) - (f(b) - f(a))|| / ||f(b) - f(a)||


def path_places(nodes: int) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
    """Where on the segment, t from 0 to 1, the points lie, and their quadrature weights: 0 at the ends."""
    t, weights = np.polynomial.legendre.leggauss(nodes)
    return np.array([0, *(t + 1) / 2, 1]), np.array([0, *weights / 2, 0])


def fixed_context(
    lm: LanguageModel, params: Params, hidden: Float[Array, "l b t d"], lengths: Int[Array, " b"]
) -> Past:
    """What every block remembers just before the last token of each text; leaves [l b ...].

    Args:
      lm: the model. params: its parameters.
      hidden: `block_out` of every layer.
      lengths: real tokens of each text.
    """
    # Block l reads h_{l-1}. Block 0 is above no layer: what stands at its place is never read.
    inputs = (params["blocks"], jnp.roll(hidden, 1, axis=0))
    return jax.lax.map(lambda block: lm.past(block[0], block[1], lengths - 1), inputs)


def path_lipschitz(
    lm: LanguageModel,
    params: Params,
    factor: Float[Array, "m d"],
    context: Past,
    layer: int | Int[Array, ""],
    start: Float[Array, "b d"],
    end: Float[Array, "b d"],
    *,
    nodes: int = 8,
    chunk: int | None = None,
) -> PathLipschitz:
    """sigma_1 of the last-token Jacobian along the segment from `start` to `end` in each text's context.

    Args:
      lm: the model. params: its parameters.
      factor: R of the output metric, the same for every point (logits or centred); lengths of outputs are in
        that metric.
      context: of the texts, from `fixed_context`.
      layer: of the states; may be traced, so that one compiled program serves every layer.
      start: a, the last token's row of h_l.
      end: b; where it equals a, secant and residual are nan.
      nodes: of the Gauss-Legendre rule; static.
      chunk: points to differentiate at once, d tangents of a step each, to bound memory; all if None; static.
    """
    places, weights = (jnp.asarray(values, start.dtype) for values in path_places(nodes))

    def along(text):
        a, b, past = text
        state = partial(_final_state, lm, params, past, layer)

        spectral_norm = one_at_a_time(partial(jnp.linalg.norm, ord=2))

        def at(place):
            jacobian, z = jax.jacfwd(state, has_aux=True)(a + place * (b - a))
            jacobian = factor @ jacobian
            return spectral_norm(jacobian), jacobian @ (b - a), factor @ z

        sigma1, slopes, outputs = jax.lax.map(at, places, batch_size=chunk or len(places))
        change = outputs[-1] - outputs[0]
        size = jnp.linalg.norm(change)
        residual = jnp.linalg.norm(weights @ slopes - change) / size
        return PathLipschitz(sigma1, size / jnp.linalg.norm(b - a), residual)

    return jax.lax.map(along, (start, end, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), context)))


def _final_state(lm, params, past, layer, h):
    # Of one text: z as a function of the last token's row of h_l, [d] -> [d]; twice, to have its value too.

    def body(above, h):
        remembered = jax.tree.map(lambda leaf: leaf[above][None], past)
        return lm.step(lm.block_params(params, above), above, h, remembered)

    h = jax.lax.fori_loop(layer + 1, lm.config.num_layers, body, h[None])
    z = lm.normalise(params, h[0])
    return z, z
