"""HF's torch models with random weights, in true float64 where asked, and what they compute."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import transformers
from checkpoints import write_tokenizer
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.mamba import modeling_mamba

from jaxprobe.configs import ModelConfig
from jaxprobe.convert import layout

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def build(config: transformers.PreTrainedConfig, seed: int = 0) -> transformers.PreTrainedModel:
    """A float32 model of this configuration in which no parameter is at a special value."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            layer_norm = any(part.startswith(("ln_", "norm")) for part in name.split("."))
            if name.endswith(".D") or (layer_norm and name.endswith("weight")):
                values = 1 + values / 2
            elif parameter.ndim == 1 or name.endswith("A_log"):
                values = values / 2
            elif "wte" not in name and "embeddings" not in name:
                values = values / min(parameter.shape[0], parameter[0].numel()) ** 0.5
            parameter.copy_(values)
    return model


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """The model as HF writes it, with a tokenizer."""
    write_tokenizer(folder, model.config.vocab_size)
    model.save_pretrained(folder)
    return folder


class _DoubleTorch(SimpleNamespace):
    """The torch module, but that its float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


@contextlib.contextmanager
def islands_in_double():
    """HF computes norms, the residual stream, A, the scan's input and the logits in float32 by name."""
    with (
        mock.patch.object(modeling_mamba, "torch", _DoubleTorch()),
        mock.patch.object(modeling_gpt2, "torch", _DoubleTorch()),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield


def logits_and_gradients(
    model: transformers.PreTrainedModel, ids: np.ndarray, double: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits [b t v], and the gradient of the mean NLL of tokens 1.. for every parameter by HF's name."""
    model = model.double() if double else model.float()
    model.zero_grad()
    tokens = torch.tensor(ids, dtype=torch.long)
    with islands_in_double() if double else contextlib.nullcontext():
        logits = model(tokens, use_cache=False).logits
    assert logits.dtype == (torch.float64 if double else torch.float32)
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    torch.nn.functional.cross_entropy(flat, tokens[:, 1:].reshape(-1)).backward()
    gradients = {name: np.asarray(parameter.grad) for name, parameter in model.named_parameters()}
    return logits.detach().numpy(), gradients


def as_tree(config: ModelConfig, tensors: dict[str, np.ndarray]) -> dict:
    """Tensors by HF's name in the layout of the parameter tree."""
    prefix = layout.BASE_PREFIX[config.architecture]

    def gather(leaf: layout.Leaf) -> np.ndarray:
        names = [key if key == layout.HEAD_KEY else prefix + key for key in leaf.keys(config.num_layers)]
        rows = [leaf.from_hf(tensors[name]) for name in names]
        return np.stack(rows) if leaf.is_stacked else rows[0]

    return layout.build_tree(config, gather)
