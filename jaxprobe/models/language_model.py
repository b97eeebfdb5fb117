"""The one interface to both architectures: pure functions of (params, inputs).

A `LanguageModel` holds no arrays. It is hashable, so it can be closed over or be a static argument of `jit`,
and every method is a pure function that composes with `jit`, `vmap`, `jvp` and `vjp`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from jaxprobe.array_typing import Array, Bool, Float, Int, Key, Params, np
from jaxprobe.configs import GPT2Config, MambaConfig, ModelConfig
from jaxprobe.errors import ProbeError
from jaxprobe.kernels.selective_scan import ScanBackend
from jaxprobe.models.gpt2 import GPT2, GPT2Past
from jaxprobe.models.mamba import Mamba, MambaPast
from jaxprobe.taps import NO_TAPS, LayerTap, Taps, check_taps

Past = MambaPast | GPT2Past


class Output(NamedTuple):
    """What a forward pass returns."""

    logits: Float[Array, "b t v"]
    captured: dict[str, Float[Array, "l b t w"]]  # by site; empty unless sites were asked for


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A Mamba or GPT-2 language model as pure functions.

    Texts are padded on the right: both architectures are causal, so padding cannot reach a real token, and
    the logits of real tokens do not depend on it. `lengths` is needed only by an edit that averages over
    tokens.

    Attributes:
      config: the architecture and its sizes.
      scan: how Mamba's recurrence is evaluated; GPT-2 has none.
      factored: whether GPT-2's blocks are differentiated by `jaxprobe.kernels.factored`, and Mamba's on one
        token by `jaxprobe.models.mamba_token`: dear to set up and then cheap for each of many cotangents.
    """

    config: ModelConfig
    scan: ScanBackend = ScanBackend.AUTO
    factored: bool = False

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters (each paper's initialisation): a nested dictionary, blocks stacked on axis l."""
        return nnx.to_pure_dict(nnx.state(_build(self, nnx.Rngs(key)), nnx.Param))

    def place(self, params: Params, dtype: str = "float32") -> Params:
        """Parameters from `jaxprobe.convert`, cast and put on the device.

        Raises:
          ProbeError: float64 is asked for and off in JAX, which would make float32 of it.
        """
        if np.dtype(dtype) == np.float64:
            check_float64()
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)

    def forward(
        self,
        params: Params,
        ids: Int[Array, "b t"],
        lengths: Int[Array, " b"] | None = None,
        taps: Taps = NO_TAPS,
    ) -> Output:
        """Logits of every token, with edits applied and sites captured as `taps` says.

        Args:
          params: parameters of this model.
          ids: token ids, padded on the right.
          lengths: real tokens of each text; all of them if None.
          taps: see `jaxprobe.perturb`, which fills it.

        Raises:
          ProbeError: texts are longer than the model's context, an id is none of the vocabulary's (where ids
            are not traced), or the taps do not fit.
        """
        _check_ids(ids, lengths, self.config.vocab_size)
        h, captured = self.run_blocks(params, self.embed(params, ids), lengths, taps)
        return Output(self.unembed(params, self.normalise(params, h)), captured)

    def embed(self, params: Params, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Input of block 0.

        Raises:
          ProbeError: texts are longer than the model's context.
        """
        limit = self.config.context_length
        if limit is not None and ids.shape[1] > limit:
            raise ProbeError(f"the model's context is {limit} tokens, got texts of {ids.shape[1]}")
        return self._merge(params).embed(ids)

    def run_blocks(
        self,
        params: Params,
        h: Float[Array, "b t d"],
        lengths: Int[Array, " b"] | None = None,
        taps: Taps = NO_TAPS,
    ) -> tuple[Float[Array, "b t d"], dict[str, Float[Array, "l b t w"]]]:
        """All blocks, by one scan over layers: the compiled size does not grow with depth."""
        check_taps(taps, self.config, self.scan)
        mask = _mask(h, lengths)

        def body(h, inputs):
            layer, block_params = inputs
            tap = LayerTap(taps, layer, mask)
            h = self._block(block_params)(h, layer, tap)
            return h, tap.captured

        return jax.lax.scan(body, h, (jnp.arange(self.config.num_layers), params["blocks"]))

    def resume(
        self,
        params: Params,
        h: Float[Array, "b t d"],
        start: int | Int[Array, ""],
        lengths: Int[Array, " b"] | None = None,
        taps: Taps = NO_TAPS,
        stop: int | Int[Array, ""] | None = None,
    ) -> Float[Array, "b t d"]:
        """Blocks `start` to `stop - 1`, or to the last, from the input h of block `start`; captures nothing.

        Either bound may be traced, so one compiled program serves every layer; it is then differentiable in
        forward mode only.
        """
        check_taps(taps, self.config, self.scan)
        mask = _mask(h, lengths)

        def body(layer, h):
            return self._block(self.block_params(params, layer))(h, layer, LayerTap(taps, layer, mask))

        return jax.lax.fori_loop(start, self.config.num_layers if stop is None else stop, body, h)

    def block_params(self, params: Params, layer: int | Int[Array, ""]) -> Params:
        """Parameters of one block."""
        return jax.tree.map(lambda leaf: leaf[layer], params["blocks"])

    def block(
        self, block_params: Params, layer: int | Int[Array, ""], h: Float[Array, "b t d"]
    ) -> Float[Array, "b t d"]:
        """One block on whole texts."""
        return self.tapped_block(block_params, layer, h)[0]

    def tapped_block(
        self,
        block_params: Params,
        layer: int | Int[Array, ""],
        h: Float[Array, "b t d"],
        lengths: Int[Array, " b"] | None = None,
        taps: Taps = NO_TAPS,
    ) -> tuple[Float[Array, "b t d"], dict[str, Float[Array, "b t w"]]]:
        """One block on whole texts, with edits applied and sites captured; `layer` may be traced."""
        check_taps(taps, self.config, self.scan)
        tap = LayerTap(taps, layer, _mask(h, lengths))
        return self._block(block_params)(h, layer, tap), tap.captured

    def past(self, block_params: Params, h: Float[Array, "b t d"], last: Int[Array, " b"]) -> Past:
        """What a block remembers just before token `last` of each text.

        For Mamba the window of the convolution and the SSM state, for GPT-2 keys and values.
        """
        return self._block(block_params).past(h, last)

    def step(
        self, block_params: Params, layer: int | Int[Array, ""], h: Float[Array, "b d"], past: Past
    ) -> Float[Array, "b d"]:
        """One block on one token per text, its past held fixed: a map R^d -> R^d."""
        tokens = h[:, None]
        tap = LayerTap(NO_TAPS, layer, _mask(tokens, None))
        return self._block(block_params)(tokens, layer, tap, past)[:, 0]

    def normalise(self, params: Params, h: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The final norm: z, of which the logits are a linear function."""
        return self._merge(params).final_norm(h)

    def unembedding(self, params: Params) -> Float[Array, "v d"]:
        """W, with logits = W z."""
        if self.config.tie_word_embeddings:
            return params["embedding"]["embedding"]
        return params["unembedding"]["kernel"].T

    def unembed(self, params: Params, z: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Logits W z."""
        return z @ self.unembedding(params).T

    def _merge(self, params: Params) -> Any:
        return _merge(_abstract(self)[0], params)

    def _block(self, block_params: Params) -> Any:
        return _merge(_abstract(self)[1], block_params)


def check_float64() -> None:
    """Refuses what needs float64 where JAX would make float32 of it."""
    if not jax.config.read("jax_enable_x64"):
        raise ProbeError('dtype="float64" needs jax.config.update("jax_enable_x64", True) first')


def _check_ids(ids, lengths, vocab_size: int) -> None:
    # Of padding any will do: it reaches no real token.
    if isinstance(ids, Tracer) or isinstance(lengths, Tracer) or not ids.size:
        return
    real = np.asarray(ids)  # under jit, jax's own min would be traced
    if lengths is not None:
        real = real[np.arange(real.shape[1]) < np.asarray(lengths)[:, None]]
    low, high = int(real.min(initial=0)), int(real.max(initial=0))
    if low < 0 or high >= vocab_size:
        raise ProbeError(f"token ids are 0 to {vocab_size - 1}, got {low if low < 0 else high}")


def _build(lm: LanguageModel, rngs: nnx.Rngs) -> Mamba | GPT2:
    match lm.config:
        case MambaConfig():
            return Mamba(lm.config, lm.scan, lm.factored, rngs)
        case GPT2Config():
            return GPT2(lm.config, lm.factored, rngs)


@functools.cache
def _abstract(lm: LanguageModel) -> tuple[Any, Any]:
    """Graph and abstract state of the model, and of a block."""
    model = nnx.eval_shape(lambda: _build(lm, nnx.Rngs(0)))
    # The stacked blocks and one block have the same graph; only the leaves' shapes differ.
    return nnx.split(model), nnx.split(model.blocks)


def _merge(abstract: Any, params: Params) -> Any:
    graph, state = abstract
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: the cached one stays abstract
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def _mask(h: Float[Array, "b t d"], lengths: Int[Array, " b"] | None) -> Bool[Array, "b t"]:
    if lengths is None:
        return jnp.ones(h.shape[:2], bool)
    return jnp.arange(h.shape[1]) < lengths[:, None]
