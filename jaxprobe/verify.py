"""A model held against HF's torch module, run in float32 on the same checkpoint.

Compared are the logits, and the gradient of the mean negative log-likelihood of tokens 1.. with respect to
every parameter: what a wrong axis, a missing bias or another epsilon cannot pass.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int, Params, np
from jaxprobe.configs import ModelConfig
from jaxprobe.convert import layout
from jaxprobe.errors import ProbeError
from jaxprobe.models import LanguageModel

LOGITS_BAR = (
    2e-5  # largest difference of the logits, relative to the largest logit; float32 rounding stays below
)
TEXTS, TOKENS = 2, 16  # of random ids


@dataclass(frozen=True)
class Difference:
    """How far two arrays are apart."""

    largest: float  # absolute difference
    scale: float  # largest absolute entry of HF's array

    @property
    def relative(self) -> float:
        """The largest difference in units of the largest entry; 0 where both arrays are zero."""
        return self.largest / self.scale if self.scale else self.largest

    def __str__(self) -> str:
        return f"{self.largest:.3g} ({self.relative:.3g} of the largest entry, {self.scale:.3g})"


@dataclass(frozen=True)
class Verification:
    """Differences from HF."""

    logits: Difference
    gradients: dict[str, Difference]  # by the parameter's path

    def worst_gradient(self) -> tuple[str, Difference]:
        """The parameter whose gradient is relatively the furthest off."""
        return max(self.gradients.items(), key=lambda item: item[1].relative)


def verify(lm: LanguageModel, params: Params, directory: Path, seed: int = 0) -> Verification:
    """Runs both implementations on the same random token ids.

    Args:
      lm: the model.
      params: its parameters, as converted from `directory`.
      directory: the checkpoint.
      seed: of the ids.

    Raises:
      ProbeError: when torch or transformers is missing, or HF cannot load the checkpoint, or HF's logits are
        not finite.
    """
    tokens = min(TOKENS, lm.config.context_length or TOKENS)
    rng = np.random.default_rng(seed)
    ids = rng.integers(lm.config.vocab_size, size=(TEXTS, tokens), dtype=np.int32)
    their_logits, tensors = _run_hf(directory, ids)
    if not np.isfinite(their_logits).all():
        raise ProbeError(
            f"HF's own logits of {directory} are not finite, so there is nothing to compare with"
        )
    ours, our_logits = _gradients_and_logits(lm, params, jnp.asarray(ids))
    ours, theirs = layout.flatten(ours), layout.flatten(_as_tree(lm.config, tensors))
    return Verification(
        _difference(our_logits, their_logits),
        {"/".join(path): _difference(ours[path], gradient) for path, gradient in theirs.items()},
    )


@partial(jax.jit, static_argnums=0)
def _gradients_and_logits(
    lm: LanguageModel, params: Params, ids: Int[Array, "b t"]
) -> tuple[Params, Float[Array, "b t v"]]:
    def mean_nll(params):
        logits = lm.forward(params, ids).logits
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], axis=-1)
        return -jnp.mean(chosen), logits

    return jax.grad(mean_nll, has_aux=True)(params)


def _run_hf(
    directory: Path, ids: Int[np.ndarray, "b t"]
) -> tuple[Float[np.ndarray, "b t v"], dict[str, np.ndarray]]:
    """HF's logits, and the gradient of the mean NLL by the names of its parameters, in float32."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ProbeError(
            f"comparing with HF needs torch and transformers ({error.name} is not installed): "
            "pip install torch transformers"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(directory).float().eval()
    except Exception as error:  # torch's, safetensors' and its own
        raise ProbeError(f"HF cannot load {directory}: {' '.join(str(error).split())[:300]}") from error
    tokens = torch.tensor(ids, dtype=torch.long)
    logits = model(tokens, use_cache=False).logits
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    torch.nn.functional.cross_entropy(flat, tokens[:, 1:].reshape(-1)).backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach().numpy(), gradients


def _as_tree(config: ModelConfig, tensors: dict[str, np.ndarray]) -> Params:
    """Tensors by HF's names as a tree of this project."""

    def gather(leaf: layout.Leaf) -> np.ndarray:
        rows = [leaf.from_hf(tensors[layout.hf_name(key, config)]) for key in leaf.keys(config.num_layers)]
        return np.stack(rows) if leaf.is_stacked else rows[0]

    return layout.build_tree(config, gather)


def _difference(ours: Array, theirs: np.ndarray) -> Difference:
    apart = np.abs(np.asarray(ours, np.float64) - theirs)
    return Difference(float(apart.max()), float(np.abs(theirs).max()))
