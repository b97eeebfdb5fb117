"""Where every tensor lives: the parameter tree of this project beside the names HF gives the same tensors.

One table per architecture says, for each leaf of the tree, its HF name, its shape and how HF stores it.
Shape checks, loading and export all read this table and nothing else.

The tree is a nested dictionary; a leaf of a block carries a leading layer axis [l]; every kernel is
[in, out]. Axis letters: v vocabulary, d width, l layers, e mixer width, n state, r time-step rank,
k convolution taps, p positions, f MLP width.
"""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxprobe.configs import GPT2Config, MambaConfig, ModelConfig

Params = dict[str, Any]  # nested; the leaves are arrays
ShapeTree = dict[str, Any]  # nested; the leaves are tuples of integers


class Stored(enum.Enum):
    """How HF stores a leaf."""

    SAME = "same"  # vectors, embeddings, and GPT-2's Conv1D, which is already [in, out]
    TRANSPOSED = "transposed"  # torch.nn.Linear: [out, in]
    CONVOLUTION = "convolution"  # depthwise torch.nn.Conv1d: [e, 1, k] for our [k, e]


@dataclass(frozen=True)
class Leaf:
    """One leaf of the parameter tree and the HF tensor, or one tensor per layer, that it comes from."""

    path: tuple[str, ...]
    key: str  # HF name without the base-model prefix; "{}" stands for the layer's number
    shape: tuple[int, ...]  # in the tree, without the layer axis
    stored: Stored = Stored.SAME

    @property
    def is_stacked(self) -> bool:
        """Whether the leaf has a leading layer axis."""
        return "{}" in self.key

    def keys(self, num_layers: int) -> list[str]:
        """The HF names behind this leaf, in layer order."""
        return [self.key.format(i) for i in range(num_layers)] if self.is_stacked else [self.key]

    def stacked_shape(self, num_layers: int) -> tuple[int, ...]:
        """The shape of the leaf in the tree."""
        return (num_layers, *self.shape) if self.is_stacked else self.shape

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """The shape of one HF tensor."""
        if self.stored is Stored.TRANSPOSED:
            return self.shape[::-1]
        if self.stored is Stored.CONVOLUTION:
            return (self.shape[1], 1, self.shape[0])
        return self.shape

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        """One HF tensor as it stands in the tree (a view where possible)."""
        if self.stored is Stored.TRANSPOSED:
            return tensor.T
        if self.stored is Stored.CONVOLUTION:
            return tensor[:, 0, :].T
        return tensor

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `from_hf`."""
        if self.stored is Stored.TRANSPOSED:
            return array.T
        if self.stored is Stored.CONVOLUTION:
            return array.T[:, None, :]
        return array


def _mamba_leaves(config: MambaConfig) -> Iterator[Leaf]:
    v, d, e, n = config.vocab_size, config.hidden_size, config.intermediate_size, config.state_size
    r, k = config.time_step_rank, config.conv_kernel
    mixer, layer = ("blocks", "mixer"), "layers.{}.mixer."
    yield Leaf(("embedding", "embedding"), "embeddings.weight", (v, d))
    yield Leaf(("blocks", "norm", "scale"), "layers.{}.norm.weight", (d,))
    yield Leaf((*mixer, "in_proj", "kernel"), layer + "in_proj.weight", (d, 2 * e), Stored.TRANSPOSED)
    if config.use_bias:
        yield Leaf((*mixer, "in_proj", "bias"), layer + "in_proj.bias", (2 * e,))
    yield Leaf((*mixer, "conv", "kernel"), layer + "conv1d.weight", (k, e), Stored.CONVOLUTION)
    if config.use_conv_bias:
        yield Leaf((*mixer, "conv", "bias"), layer + "conv1d.bias", (e,))
    yield Leaf((*mixer, "x_proj", "kernel"), layer + "x_proj.weight", (e, r + 2 * n), Stored.TRANSPOSED)
    yield Leaf((*mixer, "dt_proj", "kernel"), layer + "dt_proj.weight", (r, e), Stored.TRANSPOSED)
    yield Leaf((*mixer, "dt_proj", "bias"), layer + "dt_proj.bias", (e,))
    yield Leaf((*mixer, "A_log"), layer + "A_log", (e, n))
    yield Leaf((*mixer, "D"), layer + "D", (e,))
    yield Leaf((*mixer, "out_proj", "kernel"), layer + "out_proj.weight", (e, d), Stored.TRANSPOSED)
    if config.use_bias:
        yield Leaf((*mixer, "out_proj", "bias"), layer + "out_proj.bias", (d,))
    yield Leaf(("final_norm", "scale"), "norm_f.weight", (d,))
    if not config.tie_word_embeddings:
        yield Leaf(("unembedding", "kernel"), HEAD_KEY, (d, v), Stored.TRANSPOSED)


def _gpt2_leaves(config: GPT2Config) -> Iterator[Leaf]:
    v, d, f, p = config.vocab_size, config.hidden_size, config.inner_size, config.max_positions

    def norm(name: str, path: tuple[str, ...]) -> Iterator[Leaf]:
        yield Leaf((*path, "scale"), name + ".weight", (d,))
        yield Leaf((*path, "bias"), name + ".bias", (d,))

    def conv1d(name: str, path: tuple[str, ...], width_in: int, width_out: int) -> Iterator[Leaf]:
        yield Leaf((*path, "kernel"), name + ".weight", (width_in, width_out))
        yield Leaf((*path, "bias"), name + ".bias", (width_out,))

    yield Leaf(("embedding", "embedding"), "wte.weight", (v, d))
    yield Leaf(("position_embedding", "embedding"), "wpe.weight", (p, d))
    yield from norm("h.{}.ln_1", ("blocks", "ln_1"))
    yield from conv1d("h.{}.attn.c_attn", ("blocks", "attention", "c_attn"), d, 3 * d)
    yield from conv1d("h.{}.attn.c_proj", ("blocks", "attention", "c_proj"), d, d)
    yield from norm("h.{}.ln_2", ("blocks", "ln_2"))
    yield from conv1d("h.{}.mlp.c_fc", ("blocks", "mlp", "c_fc"), d, f)
    yield from conv1d("h.{}.mlp.c_proj", ("blocks", "mlp", "c_proj"), f, d)
    yield from norm("ln_f", ("final_norm",))
    if not config.tie_word_embeddings:
        yield Leaf(("unembedding", "kernel"), HEAD_KEY, (d, v), Stored.TRANSPOSED)


# The language-model head sits outside the base model, so its name never takes the prefix.
HEAD_KEY = "lm_head.weight"
BASE_PREFIX = {"mamba": "backbone.", "gpt2": "transformer."}
LAYER_PREFIX = {"mamba": "layers.", "gpt2": "h."}  # of the names of a layer; its number follows
OWN_KEY = {"mamba": "layers.0.mixer.A_log", "gpt2": "h.0.attn.c_attn.weight"}  # only this architecture has it
EMBEDDING_KEY = {"mamba": "embeddings.weight", "gpt2": "wte.weight"}


def hf_name(key: str, config: ModelConfig) -> str:
    """The name under which HF saves the tensor that a leaf calls `key`."""
    return key if key == HEAD_KEY else BASE_PREFIX[config.architecture] + key


def leaves(config: ModelConfig) -> tuple[Leaf, ...]:
    """Every leaf of the parameter tree of `config`."""
    table = _mamba_leaves(config) if isinstance(config, MambaConfig) else _gpt2_leaves(config)
    return tuple(table)


def build_tree(config: ModelConfig, value: Callable[[Leaf], object]) -> dict[str, Any]:
    """The parameter tree with `value(leaf)` at each leaf."""
    tree: dict = {}
    for leaf in leaves(config):
        *parents, name = leaf.path
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value(leaf)
    return tree


def param_shapes(config: ModelConfig) -> ShapeTree:
    """The shape of every parameter of a model with this configuration, as a tree."""
    return build_tree(config, lambda leaf: leaf.stacked_shape(config.num_layers))


def flatten(tree: Params, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """A nested dictionary as {path: leaf}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, (*prefix, name)))
        else:
            flat[(*prefix, name)] = value
    return flat


def shapes_of(tree: Params) -> ShapeTree:
    """The shape of every array of a tree, as a tree."""
    return {k: shapes_of(v) if isinstance(v, dict) else tuple(v.shape) for k, v in tree.items()}
