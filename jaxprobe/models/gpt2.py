"""GPT-2 in Flax NNX (Radford et al. 2019; pre-norm blocks, learned positions), as HF runs it."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprobe import sites
from jaxprobe.array_typing import Array, Bool, Float, Int
from jaxprobe.configs import GPT2Config
from jaxprobe.kernels import factored
from jaxprobe.models.activations import ACTIVATION_FUNCTIONS
from jaxprobe.taps import LayerTap


class GPT2Past(NamedTuple):
    """What a block remembers of the tokens before: all that a step on the next token needs."""

    keys: Float[Array, "b p h c"]
    values: Float[Array, "b p h c"]
    seen: Bool[Array, "b p"]  # which of the positions are before the next token


class GPT2Attention(nnx.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPT2Config, factored: bool, rngs: nnx.Rngs):
        self.config, self.factored = config, factored
        d = config.hidden_size
        self.c_attn = _linear(d, 3 * d, rngs)
        self.c_proj = _linear(d, d, rngs, residual_layers=config.num_layers)

    def __call__(
        self, x: Float[Array, "b t d"], layer: int | Int[Array, ""], past: GPT2Past | None = None
    ) -> Float[Array, "b t d"]:
        tokens = x.shape[1]
        # The past is kept apart from the tokens at hand: joined to them, its keys and values would carry
        # derivatives, all zero, through every product.
        if past is None and self._factors(tokens):
            products, values = self._factored(x)
            sources = [(products, values, _causal(tokens))]
        else:
            queries, keys, values = self._project(x)
            sources = [(_products(queries, keys), values, _causal(tokens))]
            if past is not None:
                products = _products(queries, past.keys)
                sources = [(products, past.values, past.seen[:, None, :]), *sources]
        scale = self._scale(layer, x.dtype)
        scores = [jnp.where(allowed[:, None], products * scale, -jnp.inf) for products, _, allowed in sources]
        weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
        parts = jnp.split(weights, [part.shape[-1] for part in scores[:-1]], axis=-1)
        read = (
            jnp.einsum("bhtp,bphc->bthc", part, values)
            for part, (_, values, _) in zip(parts, sources, strict=True)
        )
        return self.c_proj(functools.reduce(operator.add, read).reshape(x.shape))

    def past(self, x: Float[Array, "b t d"], last: Int[Array, " b"]) -> GPT2Past:
        """Keys and values of every token before token `last` of each text."""
        _, keys, values = self._project(x)
        return GPT2Past(keys, values, jnp.arange(x.shape[1]) < last[:, None])

    def _project(self, x):
        return map(self._by_head, jnp.split(self.c_attn(x), 3, axis=-1))

    def _factors(self, tokens: int) -> bool:
        # Vectors of all heads and tokens, for queries and for keys, against both projections.
        return self.factored and 2 * self.config.num_heads * tokens <= self.config.hidden_size

    def _factored(self, x):
        kernels = jnp.split(self.c_attn.kernel[...], 3, axis=-1)
        biases = jnp.split(self.c_attn.bias[...], 3)  # pyright: ignore[reportOptionalSubscript]
        (W_q, b_q), (W_k, b_k), (W_v, b_v) = zip(kernels, biases, strict=True)
        products = factored.scores(self.config.num_heads, x, W_q, b_q, W_k, b_k)
        return products, self._by_head(x @ W_v + b_v)

    def _by_head(self, array):
        return array.reshape(*array.shape[:-1], self.config.num_heads, -1)

    def _scale(self, layer, dtype):
        config = self.config
        scale = (config.hidden_size // config.num_heads) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            return scale / (jnp.asarray(layer, dtype) + 1)
        return scale


class GPT2MLP(nnx.Module):
    """Two-layer perceptron."""

    def __init__(self, config: GPT2Config, factored: bool, rngs: nnx.Rngs):
        self.activation, self.factored = config.activation, factored
        self.c_fc = _linear(config.hidden_size, config.inner_size, rngs)
        self.c_proj = _linear(config.inner_size, config.hidden_size, rngs, residual_layers=config.num_layers)

    def __call__(self, x: Float[Array, "b t d"], tap: LayerTap) -> Float[Array, "b t d"]:
        activation = ACTIVATION_FUNCTIONS[self.activation]
        if self.factored and not tap.touches(sites.MLP_ACT):
            weights = (
                getattr(layer, name)[...] for layer in (self.c_fc, self.c_proj) for name in ("kernel", "bias")
            )
            return factored.perceptron(activation, x, *weights)
        return self.c_proj(tap(sites.MLP_ACT, activation(self.c_fc(x))))


class GPT2Block(nnx.Module):
    """Pre-norm residual block: y = x + attention(LayerNorm(x)), then y + MLP(LayerNorm(y))."""

    def __init__(self, config: GPT2Config, factored: bool, rngs: nnx.Rngs):
        self.ln_1 = _layer_norm(config, rngs)
        self.attention = GPT2Attention(config, factored, rngs)
        self.ln_2 = _layer_norm(config, rngs)
        self.mlp = GPT2MLP(config, factored, rngs)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        layer: int | Int[Array, ""],
        tap: LayerTap,
        past: GPT2Past | None = None,
    ) -> Float[Array, "b t d"]:
        y = x + tap(sites.MIXER_OUT, self.attention(self.ln_1(x), layer, past))
        return tap(sites.BLOCK_OUT, y + tap(sites.MLP_OUT, self.mlp(self.ln_2(y), tap)))

    def past(self, x: Float[Array, "b t d"], last: Int[Array, " b"]) -> GPT2Past:
        """What the block remembers just before token `last` of each text, whose input was x."""
        return self.attention.past(self.ln_1(x), last)


class GPT2(nnx.Module):
    """Embeddings, stacked blocks [l ...], final norm and, where it is not tied, the unembedding.

    `factored`: blocks are differentiated by `jaxprobe.kernels.factored`, for many cotangents at one point.
    """

    def __init__(self, config: GPT2Config, factored: bool, rngs: nnx.Rngs):
        d, v = config.hidden_size, config.vocab_size
        normal = nnx.initializers.normal(0.02)
        self.embedding = nnx.Embed(v, d, embedding_init=normal, rngs=rngs)
        self.position_embedding = nnx.Embed(config.max_positions, d, embedding_init=normal, rngs=rngs)
        self.final_norm = _layer_norm(config, rngs)
        tied = config.tie_word_embeddings
        self.unembedding = (
            nnx.data(None) if tied else nnx.Linear(d, v, use_bias=False, kernel_init=normal, rngs=rngs)
        )

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stack(rngs):
            return GPT2Block(config, factored, rngs)

        self.blocks = stack(rngs)

    def embed(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Input of the first block: token plus position."""
        # nnx.Embed's own call would cast to the dtype it was built in.
        positions = self.position_embedding.embedding[: ids.shape[1]]
        return self.embedding.embedding[ids] + positions


def _causal(tokens: int) -> Bool[Array, "_ t p"]:
    return jnp.tril(jnp.ones((tokens, tokens), bool))[None]


def _products(queries: Float[Array, "b t h c"], keys: Float[Array, "b p h c"]) -> Float[Array, "b h t p"]:
    return jnp.einsum("bthc,bphc->bhtp", queries, keys)


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs, residual_layers: int | None = None) -> nnx.Linear:
    # Radford et al. 2019, section 2.3: projections into the residual stream start smaller with depth.
    std = 0.02 if residual_layers is None else 0.02 / (2 * residual_layers) ** 0.5
    return nnx.Linear(inputs, outputs, kernel_init=nnx.initializers.normal(std), rngs=rngs)


def _layer_norm(config: GPT2Config, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 cancels badly; the study needs the derivative to be right too.
    return nnx.LayerNorm(config.hidden_size, epsilon=config.norm_epsilon, use_fast_variance=False, rngs=rngs)
