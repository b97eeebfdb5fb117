"""Parts of a transformer's block, differentiated for many cotangents at one point.

All of a derivative but the cotangent is fixed by the point at which it is taken. Products of weights that a
cotangent would pass one after the other can so be multiplied out once, in the order that costs least:

- A perceptron y = act(x W + b) V + c of one token has the Jacobian W diag(act'(x W + b)) V, a d x d matrix.
  With f inner units it takes d^2 f products to build, and then d^2 a cotangent in place of 2 d f.
- Attention's scores s_tp = (x_t W_q)_h . (x_p W_k)_h move with x_t along W_q,h k_p,h and with x_p along
  W_k,h q_t,h: t h vectors of each kind. A cotangent takes 2 t h d products a token, not the 2 d^2 of both
  projections.

As `jaxprobe.kernels.chunkwise`, these are tangent rules made of ordinary operations, which `vjp` transposes;
they are exact, in both modes and to any order. Axis letters: b text, t and p token, d and e width, f inner
unit, h head, c channel of a head.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprobe.kernels.tangents import all_zero, dense

Activation = Callable[[Array], Array]


def _perceptron(
    activation: Activation,
    x: Float[Array, "b t d"],
    W: Float[Array, "d f"],
    b: Float[Array, " f"],
    V: Float[Array, "f e"],
    c: Float[Array, " e"],
) -> Float[Array, "b t e"]:
    """act(x W + b) V + c, of every token alone."""
    return activation(x @ W + b) @ V + c


perceptron = jax.custom_jvp(_perceptron, nondiff_argnums=(0,))


@partial(perceptron.defjvp, symbolic_zeros=True)
def _perceptron_jvp(activation, primals, tangents):
    dx, *of_weights = tangents
    if not all_zero(of_weights):
        return jax.jvp(partial(_perceptron, activation), primals, tuple(map(dense, tangents)))
    x, W, b, V, c = primals
    inner = x @ W + b
    y, slopes = jax.jvp(activation, (inner,), (jnp.ones_like(inner),))

    def jacobian(slope: Float[Array, " f"]) -> Float[Array, "d e"]:
        return W @ (slope[:, None] * V)

    jacobians = jax.lax.map(jacobian, slopes.reshape(-1, slopes.shape[-1]))
    jacobians = jacobians.reshape(*x.shape[:2], *jacobians.shape[1:])
    return y @ V + c, jnp.einsum("btd,btde->bte", dense(dx), jacobians)


def _scores(
    heads: int,
    x: Float[Array, "b t d"],
    W_q: Float[Array, "d d"],
    b_q: Float[Array, " d"],
    W_k: Float[Array, "d d"],
    b_k: Float[Array, " d"],
) -> Float[Array, "b h t p"]:
    """Queries times keys of every head, both of x; neither scaled nor masked."""
    queries, keys = _by_head(x @ W_q + b_q, heads), _by_head(x @ W_k + b_k, heads)
    return jnp.einsum("bthc,bphc->bhtp", queries, keys)


scores = jax.custom_jvp(_scores, nondiff_argnums=(0,))


@partial(scores.defjvp, symbolic_zeros=True)
def _scores_jvp(heads, primals, tangents):
    dx, *of_weights = tangents
    if not all_zero(of_weights):
        return jax.jvp(partial(_scores, heads), primals, tuple(map(dense, tangents)))
    x, W_q, b_q, W_k, b_k = primals
    dx = dense(dx)
    queries, keys = _by_head(x @ W_q + b_q, heads), _by_head(x @ W_k + b_k, heads)
    by_query = jnp.einsum("dhc,bphc->bhpd", _by_head(W_q, heads), keys)
    by_key = jnp.einsum("dhc,bthc->bhtd", _by_head(W_k, heads), queries)
    moved = jnp.einsum("btd,bhpd->bhtp", dx, by_query) + jnp.einsum("bpd,bhtd->bhtp", dx, by_key)
    return jnp.einsum("bthc,bphc->bhtp", queries, keys), moved


def _by_head(array: Float[Array, "*b d"], heads: int) -> Float[Array, "*b h c"]:
    return array.reshape(*array.shape[:-1], heads, -1)
