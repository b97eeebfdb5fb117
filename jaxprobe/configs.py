"""Frozen, validated configurations. Standard library only, so that flags and converters can share them.

Field names follow the HF configuration where both architectures agree on a meaning; a length is a count
of units, never bytes. Letters in brackets are the axis letters of `jaxprobe/array_typing.py`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from jaxprobe.errors import ProbeError

TITLES = {"mamba": "Mamba", "gpt2": "GPT-2"}  # architecture -> what tables call it

DTypeName = Literal["float32", "float64"]
DeviceName = Literal["auto", "cpu", "gpu"]
Input = Literal["last", "sequence"]  # what moves: the last token's row, or every row
Wrt = Literal["last", "sequence", "both"]
Metric = Literal["logits", "centred", "fisher"]  # of the output
ReductionName = Literal["auto", "qr", "gram", "none"]  # how singular values are had, if at all

# Of a matrix-free estimate (`jaxprobe.jacobians.matrix_free`).
MIN_PROBES = 20  # fewer leave the width of the interval itself too uncertain
MIN_PRODUCTS = 4  # two pairs take one dominating direction out of the remainder

# HF activation names for which JAX has an equal; `jaxprobe/models/activations.py` maps them to functions.
ACTIVATIONS = frozenset({
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu",
    "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh",
})  # fmt: skip


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ProbeError(f"config field {name} must be a positive integer, got {value!r}")


def _require_epsilon(config: "MambaConfig | GPT2Config") -> None:
    value = config.norm_epsilon
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise ProbeError(f"config field norm_epsilon must be a number in [0, 1), got {value!r}")


@dataclass(frozen=True)
class MambaConfig:
    """A Mamba language model (Gu and Dao 2023, arXiv:2312.00752), as HF's `MambaForCausalLM` runs it.

    Raises:
      ProbeError: when a field is out of range.
    """

    vocab_size: int  # [v] >= 1
    hidden_size: int  # [d] width of the residual stream, >= 1
    num_layers: int  # [l] >= 1
    intermediate_size: int  # [e] mixer width; usually 2 * hidden_size, but any value >= 1
    state_size: int  # [n] >= 1
    time_step_rank: int  # [r] >= 1
    conv_kernel: int  # [k] taps of the causal depthwise convolution, >= 1
    use_bias: bool = False  # of in_proj and out_proj
    use_conv_bias: bool = True
    norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    def __post_init__(self):
        _require_positive(
            self, "vocab_size", "hidden_size", "num_layers", "intermediate_size", "state_size",
            "time_step_rank", "conv_kernel",
        )  # fmt: skip
        _require_epsilon(self)

    @property
    def architecture(self) -> str:
        """The key of this architecture in files and tables."""
        return "mamba"

    @property
    def context_length(self) -> int | None:
        """The most tokens the model accepts: None, as the recurrence has no limit."""
        return None


@dataclass(frozen=True)
class GPT2Config:
    """A GPT-2 language model (Radford et al. 2019), as HF's `GPT2LMHeadModel` runs it.

    Raises:
      ProbeError: when a field is out of range, or the heads do not divide the width.
    """

    vocab_size: int  # [v] >= 1
    hidden_size: int  # [d] width of the residual stream, >= 1
    num_layers: int  # [l] >= 1
    num_heads: int  # [h] >= 1, divides hidden_size
    inner_size: int  # [f] width of the MLP, >= 1
    max_positions: int  # [p] learned positions: the most tokens the model accepts, >= 1
    activation: str = "gelu_new"  # one of ACTIVATIONS
    norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True  # divide attention scores by sqrt(head size)
    scale_attn_by_inverse_layer_idx: bool = False  # and by the layer's number, counted from 1
    tie_word_embeddings: bool = True

    def __post_init__(self):
        _require_positive(
            self, "vocab_size", "hidden_size", "num_layers", "num_heads", "inner_size", "max_positions"
        )
        _require_epsilon(self)
        if self.hidden_size % self.num_heads:
            raise ProbeError(
                f"config: the number of heads must divide the width, got {self.num_heads} heads for "
                f"width {self.hidden_size}"
            )
        if self.activation not in ACTIVATIONS:
            raise ProbeError(
                f"config: activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {self.activation!r}"
            )

    @property
    def architecture(self) -> str:
        """The key of this architecture in files and tables."""
        return "gpt2"

    @property
    def context_length(self) -> int | None:
        """The most tokens the model accepts."""
        return self.max_positions


ModelConfig = MambaConfig | GPT2Config


def describe(config: ModelConfig) -> dict[str, object]:
    """The configuration as a JSON-ready dictionary, architecture first."""
    return {"architecture": config.architecture, **dataclasses.asdict(config)}
