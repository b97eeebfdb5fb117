"""What a torch user would run: the seed's sampled estimator on HF modules, and `torch.func.jacrev`.

    python -m benchmarks.seed_estimator JOB.json

JOB.json: {"models": [DIRECTORY, ...], "layer": 1, "way": "resumed"} and in it "texts": [TEXT, ...], or "ids",
for each model a list of the token ids of each text. No jax here: as a process of its own it starts as fast as
torch does.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

DRAWS, EPSILON = 10, 0.01  # the seed's
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Network:
    """A HF Mamba or GPT-2 model, eager, as blocks that can be entered at any layer.

    Args:
      directory: a HF checkpoint directory.
    """

    def __init__(self, directory: str | Path):
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory, attn_implementation="eager", dtype=torch.float32
        )
        model.to(DEVICE).eval().requires_grad_(False)
        self.head = model.lm_head
        if model.config.model_type == "mamba":
            self.blocks, self.norm = model.backbone.layers, model.backbone.norm_f
            self._tokens, self._positions = model.backbone.embeddings, None
        else:
            self.blocks, self.norm = model.transformer.h, model.transformer.ln_f
            self._tokens, self._positions = model.transformer.wte, model.transformer.wpe

    def hidden_states(self, ids: Sequence[int]) -> list[torch.Tensor]:
        """The output of every block, [1, T, D] each."""
        h, states = self._embed(ids), []
        for layer in range(len(self.blocks)):
            h = self._block(layer, h)
            states.append(h)
        return states

    def whole_pass(self, ids: Sequence[int], layer: int, delta: torch.Tensor) -> torch.Tensor:
        """Logits of the last token [1, V] of a text, with delta added to a block's output, as by a hook."""
        h = self._embed(ids)
        for below in range(layer + 1):
            h = self._block(below, h)
        return self.logits(h + delta, layer)

    def _embed(self, ids: Sequence[int]) -> torch.Tensor:
        h = self._tokens(torch.tensor([list(ids)], device=DEVICE))
        if self._positions is not None:
            h = h + self._positions(torch.arange(len(ids), device=DEVICE))
        return h

    def final_state(self, h: torch.Tensor, layer: int) -> torch.Tensor:
        """The normed final state of the last token [B, D], from the output h [B, T, D] of a block."""
        for above in range(layer + 1, len(self.blocks)):
            h = self._block(above, h)
        return self.norm(h[:, -1])

    def logits(self, h: torch.Tensor, layer: int) -> torch.Tensor:
        """Logits of the last token [B, V], from the output h [B, T, D] of a block."""
        return self.head(self.final_state(h, layer))

    def _block(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        if self._positions is None:
            return self.blocks[layer](h)
        # A GPT-2 block masks nothing by itself: HF's model hands each block the causal mask.
        future = torch.full((h.shape[1], h.shape[1]), float("-inf"), device=DEVICE).triu(1)
        out = self.blocks[layer](h, attention_mask=future[None, None])
        return out[0] if isinstance(out, tuple) else out  # a tuple before transformers 5


# How draws are run: from the layer on, all in one batch; from the layer on, one at a time; or one at a time
# through the whole network, as with a forward hook.
WAYS = ("batched", "resumed", "whole")


@torch.inference_mode()
def sampled_gains(network: Network, ids: Sequence[int], layers: Sequence[int], way: str) -> list[float]:
    """The original number for one text at each layer: mean of ||f(h + delta) - f(h)|| / (||delta|| + 1e-8).

    delta ~ N(0, EPSILON^2) on every entry of h, DRAWS draws. The hidden states and the unperturbed logits are
    computed once per text.

    Args:
      network: the model.
      ids: the text.
      layers: counted from 0.
      way: of WAYS.
    """
    states = network.hidden_states(ids)
    base = network.logits(states[-1], len(states) - 1)
    gains = []
    for layer in layers:
        h, draws = states[layer], []
        for _ in range(1 if way == "batched" else DRAWS):
            delta = EPSILON * torch.randn(DRAWS if way == "batched" else 1, *h.shape[1:], device=DEVICE)
            moved = (
                network.whole_pass(ids, layer, delta) if way == "whole" else network.logits(h + delta, layer)
            )
            draws.append((moved - base).norm(dim=-1) / (delta.flatten(1).norm(dim=-1) + 1e-8))
        gains.append(torch.cat(draws).mean().item())
    return gains


@torch.inference_mode()
def block_outputs(network: Network, ids: Sequence[int]) -> list[np.ndarray]:
    """`block_out` of every layer for one text, [1, T, D] each."""
    return [h.cpu().numpy() for h in network.hidden_states(ids)]


def final_state_jacobian(network: Network, ids: Sequence[int], layer: int, chunk: int) -> np.ndarray:
    """Jacobian of the normed final state with respect to `block_out` of a layer [D, T, D]: D cotangents.

    Args:
      network: the model.
      ids: the text.
      layer: counted from 0.
      chunk: how many cotangents `torch.func.jacrev` carries at once.
    """
    h = torch.tensor(block_outputs(network, ids)[layer], device=DEVICE)
    jacobian = torch.func.jacrev(lambda h: network.final_state(h, layer)[0], chunk_size=chunk)(h)
    return jacobian[:, 0].cpu().numpy()


def main(path: str) -> None:
    """Prints the sampled sensitivity of each model at one layer, over the job's texts."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    for number, directory in enumerate(job["models"]):
        network = Network(directory)
        if "texts" in job:
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
            ids = [tokenizer(text).input_ids for text in job["texts"]]
        else:
            ids = job["ids"][number]
        gains = [sampled_gains(network, row, [job["layer"]], job["way"])[0] for row in ids]
        print(f"{directory}: {np.mean(gains):.6g} +- {np.std(gains):.2g} over {len(gains)} texts")


if __name__ == "__main__":
    main(sys.argv[1])
