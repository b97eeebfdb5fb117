"""`silu` has a tangent rule of its own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads
from support import assert_close

from jaxprobe.models.activations import silu


def test_silu_and_its_derivatives_are_those_of_jax(x64):
    x = jnp.linspace(-30, 30, 401)
    for order in range(4):
        ours, theirs = silu, jax.nn.silu
        for _ in range(order):
            ours, theirs = jax.grad(ours), jax.grad(theirs)
        assert_close(jax.vmap(ours)(x), jax.vmap(theirs)(x), 1e-13, floor=1e-3)
    check_grads(lambda x: silu(jnp.asarray(x)), (x,), order=2, modes=("fwd", "rev"))


def test_silu_is_finite_where_its_exponential_is_not():
    for value in (-1e4, 1e4):
        assert np.isfinite([silu(jnp.float32(value)), jax.grad(silu)(jnp.float32(value))]).all()
    assert jax.grad(silu)(jnp.float32(1e4)) == 1
