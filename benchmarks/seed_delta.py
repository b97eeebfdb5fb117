"""The original study's percentage analysis as a torch user runs it: HF modules, hooks, one text at a time.

No jax here. Mamba's CUDA kernels are not among HF's own code, so without them its scan is a loop over tokens.
For each relation: the activations of its texts through a hook, the units of largest variance,
the perplexity of its texts and of the control texts, and both again under a hook that zeroes those units.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVATION_TEXTS = 25  # the original study looks at the first 25 texts

Ids = Sequence[Sequence[int]]  # of each text


class Scores(NamedTuple):
    """One relation on one model; perplexities before and after."""

    units: tuple[int, ...]
    variances: tuple[float, ...]
    erased: tuple[float, float]  # of the relation's texts
    control: tuple[float, float]  # of the control texts


class Network:
    """A HF Mamba or GPT-2 model, and the modules whose outputs the original study reads and edits.

    Args:
      directory: a HF checkpoint directory.
      layer: counted from 0.
    """

    def __init__(self, directory: str | Path, layer: int):
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.model.to(DEVICE).eval().requires_grad_(False)
        if self.model.config.model_type == "mamba":
            self.edited = self.model.backbone.layers[layer]
            self.read = self.edited.mixer
        else:
            self.edited = self.read = self.model.transformer.h[layer]

    def logits(self, text: Sequence[int]) -> torch.Tensor:
        """Of every token [T, V]."""
        return self.model(torch.tensor([list(text)], device=DEVICE), use_cache=False).logits[0]


@torch.inference_mode()
def measure(
    network: Network, relations: Sequence[Ids], controls: Ids, pad: int | None, top_k: int
) -> list[Scores]:
    """Every relation in turn, as the original study does: nothing is kept from one relation to the next.

    Args:
      network: the model.
      relations: token ids of each relation's texts.
      controls: token ids of the control texts.
      pad: a label that is not counted.
      top_k: how many units are zeroed.
    """
    made = []
    for texts in relations:
        variances = np.var(_mean_activations(network, texts[:ACTIVATION_TEXTS]), axis=0)
        units = np.argsort(-variances, kind="stable")[:top_k]
        before = _perplexity(network, texts, pad), _perplexity(network, controls, pad)
        with _zeroed(network.edited, torch.tensor(units, device=DEVICE)):
            after = _perplexity(network, texts, pad), _perplexity(network, controls, pad)
        made.append(
            Scores(
                tuple(units.tolist()), tuple(variances[units].tolist()),
                *zip(before, after, strict=True),
            )
        )  # fmt: skip
    return made


def _mean_activations(network: Network, texts: Ids) -> np.ndarray:
    kept = []

    def keep(module, inputs, output):
        kept.append(_hidden(output)[0].mean(dim=0))

    handle = network.read.register_forward_hook(keep)
    try:
        for text in texts:
            network.logits(text)
    finally:
        handle.remove()
    return torch.stack(kept).double().cpu().numpy()


@contextmanager
def _zeroed(module: torch.nn.Module, units: torch.Tensor) -> Iterator[None]:
    def zero(module, inputs, output):
        hidden = _hidden(output).clone()
        hidden[..., units] = 0
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = module.register_forward_hook(zero)
    try:
        yield
    finally:
        handle.remove()


def _hidden(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output  # a block's, before transformers 5


def _perplexity(network: Network, texts: Ids, pad: int | None) -> float:
    nats, count = 0.0, 0
    for text in texts:
        labels = torch.tensor(text[1:], device=DEVICE)
        kept = torch.ones_like(labels, dtype=torch.bool) if pad is None else labels != pad
        logits = network.logits(text)[:-1]
        nats += torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="sum").item()
        count += int(kept.sum())
    return float(np.exp(nats / count))
