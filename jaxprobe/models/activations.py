"""Activation functions under HF's names (`jaxprobe.configs.ACTIVATIONS`)."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array


@jax.custom_jvp
def silu(x: Array) -> Array:
    """The sigmoid linear unit x sigmoid(x), as `jax.nn.silu`.

    Its tangent rule multiplies once, by the slope; a product's rule would for each factor, and with many
    cotangents at one point that is what takes time.
    """
    return x * jax.nn.sigmoid(x)


@silu.defjvp
def _silu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    s = jax.nn.sigmoid(x)
    return x * s, s * (1 + x * (1 - s)) * dx


def _gelu_exact(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _gelu_fast(x: Array) -> Array:
    # HF writes sqrt(2/pi) with ten digits here.
    return 0.5 * x * (1 + jnp.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))


def _gelu_clipped(x: Array) -> Array:
    return jnp.clip(_gelu_exact(x), -10, 10)


def _laplace(x: Array) -> Array:
    # Ma et al. 2022 (MEGA), equation 11, with HF's rounded constants.
    return 0.5 * (1 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


ACTIVATION_FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": _gelu_exact,
    "gelu_10": _gelu_clipped,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_fast,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu_exact,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": jax.nn.hard_swish,
    "laplace": _laplace,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": silu,
    "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
    "swish": silu,
    "tanh": jnp.tanh,
}
