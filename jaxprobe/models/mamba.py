"""Mamba in Flax NNX. Symbols as in the paper (Gu and Dao 2023, arXiv:2312.00752, algorithm 2, section 3.4).

With x the input of the mixer, u and z the halves of in_proj(x):

    conv_out = SiLU(conv(u))                           gate = SiLU(z)
    delta, B, C = selective projections of conv_out    y = selective_scan(conv_out; delta, A, B, C, D)
    mixer_out = out_proj(y * gate)
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprobe import sites
from jaxprobe.array_typing import Array, Float, Int
from jaxprobe.configs import MambaConfig
from jaxprobe.kernels.selective_scan import ScanBackend, selective_scan
from jaxprobe.models import mamba_token
from jaxprobe.models.activations import silu
from jaxprobe.taps import LayerTap


class MambaPast(NamedTuple):
    """What a block remembers of the tokens before: all that a step on the next token needs."""

    window: Float[Array, "b p e"]  # the last conv_kernel - 1 inputs of the convolution
    state: Float[Array, "b e n"]  # the SSM state


class CausalConv(nnx.Module):
    """Depthwise causal convolution over tokens. Tap k-1 of the kernel [k e] is the current token."""

    def __init__(self, config: MambaConfig, rngs: nnx.Rngs):
        taps, width = config.conv_kernel, config.intermediate_size
        bound = taps**-0.5  # torch's default for a convolution with one input channel
        shape = (taps, width)
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))
        self.bias = nnx.Param(jnp.zeros(width)) if config.use_conv_bias else nnx.data(None)

    def __call__(self, window: Float[Array, "b p e"], u: Float[Array, "b t e"]) -> Float[Array, "b t e"]:
        kernel = self.kernel[...]
        padded = jnp.concatenate([window, u], axis=1)
        taps = (kernel[k] * padded[:, k : k + u.shape[1]] for k in range(kernel.shape[0]))
        out = functools.reduce(operator.add, taps)
        return out if self.bias is None else out + self.bias[...]


class MambaMixer(nnx.Module):
    """The selective state-space mixer."""

    def __init__(self, config: MambaConfig, scan: ScanBackend, factored: bool, rngs: nnx.Rngs):
        self.config, self.scan, self.factored = config, scan, factored
        d, e, n, r = config.hidden_size, config.intermediate_size, config.state_size, config.time_step_rank
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default for Linear
        self.in_proj = nnx.Linear(d, 2 * e, use_bias=config.use_bias, kernel_init=uniform, rngs=rngs)
        self.conv = CausalConv(config, rngs)
        self.x_proj = nnx.Linear(e, r + 2 * n, use_bias=False, kernel_init=uniform, rngs=rngs)
        self.dt_proj = nnx.Linear(r, e, kernel_init=uniform, bias_init=_step_bias, rngs=rngs)
        self.A_log = nnx.Param(jnp.log(jnp.tile(jnp.arange(1.0, n + 1), (e, 1))))  # S4D-real, section 3.6
        self.D = nnx.Param(jnp.ones(e))
        self.out_proj = nnx.Linear(e, d, use_bias=config.use_bias, kernel_init=uniform, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t d"], tap: LayerTap, past: MambaPast | None = None
    ) -> Float[Array, "b t d"]:
        if past is not None and self.factored and x.shape[1] == 1 and not any(map(tap.touches, _INNER_SITES)):
            return mamba_token.mix(self, x, past)
        return self.mix(x, tap, self.empty_past(x) if past is None else past)

    def mix(self, x: Float[Array, "b t d"], tap: LayerTap, past: MambaPast) -> Float[Array, "b t d"]:
        """The mixer, operation by operation."""
        u, z = jnp.split(self.in_proj(x), 2, axis=-1)
        gate = tap(sites.GATE, silu(z))
        conv_out = tap(sites.CONV_OUT, silu(self.conv(past.window, u)))
        delta, B, C = self.selective(self.x_proj(conv_out))
        delta, B, C = tap(sites.DELTA, delta), tap(sites.B, B), tap(sites.C, C)
        y = self._scan(conv_out, delta, B, C, past.state, tap)
        return self.out_proj(y * gate)

    def empty_past(self, x: Float[Array, "b t d"]) -> MambaPast:
        """The past of the first token: a window and a state of zeros."""
        c = self.config
        window = jnp.zeros((x.shape[0], c.conv_kernel - 1, c.intermediate_size), x.dtype)
        return MambaPast(window, jnp.zeros((x.shape[0], c.intermediate_size, c.state_size), x.dtype))

    def past(self, x: Float[Array, "b t d"], last: Int[Array, " b"]) -> MambaPast:
        """What the mixer remembers just before token `last` of each text."""
        empty = self.empty_past(x)
        u, _ = jnp.split(self.in_proj(x), 2, axis=-1)
        conv_out = silu(self.conv(empty.window, u))
        delta, B, C = self.selective(self.x_proj(conv_out))
        # A step of size zero leaves the state as it is: the state after the whole text is that before `last`.
        before = (jnp.arange(x.shape[1]) < last[:, None])[..., None]
        _, state = self.run_scan(conv_out, jnp.where(before, delta, 0), B, C, empty.state)
        padded = jnp.concatenate([empty.window, u], axis=1)
        # Row i of `padded` is token i - (k-1), so the k-1 rows from `last` on end at token last - 1.
        rows = last[:, None] + jnp.arange(self.config.conv_kernel - 1)
        return MambaPast(jnp.take_along_axis(padded, rows[..., None], axis=1), state)

    def selective(self, projected: Float[Array, "b t w"]):
        """The step size [b t e] and the matrices B and C [b t n], from what x_proj makes."""
        r, n = self.config.time_step_rank, self.config.state_size
        step, B, C = jnp.split(projected, [r, r + n], axis=-1)
        return jax.nn.softplus(self.dt_proj(step)), B, C

    def run_scan(self, conv_out, delta, B, C, state, **edits):
        """The selective scan with the mixer's A and D; the rest as `selective_scan` takes it."""
        return selective_scan(
            conv_out, delta, self.decay_rates(), B, C, self.D[...],
            initial_state=state, backend=self.scan, **edits,
        )  # fmt: skip

    def decay_rates(self) -> Float[Array, "e n"]:
        """A, negative."""
        return -jnp.exp(self.A_log[...])

    def _scan(self, conv_out, delta, B, C, state, tap: LayerTap):
        edited = tap.edits_site(sites.SSM_STATE)
        if not tap.touches(sites.SSM_STATE):
            return self.run_scan(conv_out, delta, B, C, state)[0]
        batch, tokens, e = conv_out.shape
        flat, full = (batch, tokens, -1), (batch, tokens, e, state.shape[-1])
        y, states = self.run_scan(conv_out, delta, B, C, state, return_states=True)
        if edited:
            gain, offset = tap.recurrent(sites.SSM_STATE, states.reshape(flat))
            edits = {"state_gain": gain.reshape(state.shape[1:]), "state_offset": offset.reshape(full)}
            y, states = self.run_scan(conv_out, delta, B, C, state, return_states=True, **edits)
        tap.keep(sites.SSM_STATE, states.reshape(flat))
        return y


# A tap there comes between the projections.
_INNER_SITES = (sites.GATE, sites.CONV_OUT, sites.DELTA, sites.B, sites.C, sites.SSM_STATE)


class MambaBlock(nnx.Module):
    """Pre-norm residual block: x + mixer(RMSNorm(x))."""

    def __init__(self, config: MambaConfig, scan: ScanBackend, factored: bool, rngs: nnx.Rngs):
        self.norm = _rms_norm(config, rngs)
        self.mixer = MambaMixer(config, scan, factored, rngs)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        layer: int | Int[Array, ""],
        tap: LayerTap,
        past: MambaPast | None = None,
    ) -> Float[Array, "b t d"]:
        del layer  # every Mamba block computes the same function of its parameters
        return tap(sites.BLOCK_OUT, x + tap(sites.MIXER_OUT, self.mixer(self.norm(x), tap, past)))

    def past(self, x: Float[Array, "b t d"], last: Int[Array, " b"]) -> MambaPast:
        """What the block remembers just before token `last` of each text, whose input was x."""
        return self.mixer.past(self.norm(x), last)


class Mamba(nnx.Module):
    """Embedding, stacked blocks [l ...], final norm and, where it is not tied, the unembedding.

    `factored`: a block on one token is differentiated by `jaxprobe.models.mamba_token`, for many cotangents
    at one point.
    """

    def __init__(self, config: MambaConfig, scan: ScanBackend, factored: bool, rngs: nnx.Rngs):
        d, v = config.hidden_size, config.vocab_size
        normal = nnx.initializers.normal(0.02)
        self.embedding = nnx.Embed(v, d, embedding_init=normal, rngs=rngs)
        self.final_norm = _rms_norm(config, rngs)
        tied = config.tie_word_embeddings
        self.unembedding = (
            nnx.data(None) if tied else nnx.Linear(d, v, use_bias=False, kernel_init=normal, rngs=rngs)
        )

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stack(rngs):
            return MambaBlock(config, scan, factored, rngs)

        self.blocks = stack(rngs)

    def embed(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Input of the first block."""
        return self.embedding.embedding[ids]  # nnx.Embed would cast to the dtype it was built in


def _rms_norm(config: MambaConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.hidden_size, epsilon=config.norm_epsilon, use_fast_variance=False, rngs=rngs)


def _step_bias(key, shape, dtype=jnp.float32, out_sharding=None) -> Float[Array, " e"]:
    # Section 3.6: the initial step size softplus(bias) is log-uniform in [0.001, 0.1].
    low, high = jnp.log(1e-3), jnp.log(1e-1)
    step = jnp.exp(jax.random.uniform(key, shape, dtype) * (high - low) + low)
    return step + jnp.log(-jnp.expm1(-step))  # inverse of the softplus
