"""Sites: the named activations that can be captured and edited, one per layer.

Every site is seen as [b t w]: a row of `w` units per token. `ssm_state` is flattened from [e n], so its unit
`i` is channel `i // n`, state `i % n`.
"""

from jaxprobe.configs import GPT2Config, MambaConfig, ModelConfig
from jaxprobe.errors import ProbeError

BLOCK_OUT = "block_out"  # residual stream after the block
MIXER_OUT = "mixer_out"  # Mamba mixer or GPT-2 attention, before it is added to the residual stream
MLP_OUT = "mlp_out"  # GPT-2 MLP, before it is added to the residual stream
MLP_ACT = "mlp_act"  # GPT-2 MLP after its activation function
DELTA = "delta"  # Mamba step size, after the softplus
B = "B"  # Mamba input matrix, as it enters the scan
C = "C"  # Mamba output matrix, as it enters the scan
CONV_OUT = "conv_out"  # Mamba convolution after its SiLU; feeds x_proj and the scan
GATE = "gate"  # SiLU(z), which multiplies the scan's output
SSM_STATE = "ssm_state"  # the recurrence's state, after the update and before the readout


def site_widths(config: ModelConfig) -> dict[str, int]:
    """The sites that a model has, in order of computation, with the number of units w of each."""
    d = config.hidden_size
    match config:
        case MambaConfig(intermediate_size=e, state_size=n):
            return {
                GATE: e, CONV_OUT: e, DELTA: e, B: n, C: n, SSM_STATE: e * n, MIXER_OUT: d, BLOCK_OUT: d,
            }  # fmt: skip
        case GPT2Config(inner_size=f):
            return {MIXER_OUT: d, MLP_ACT: f, MLP_OUT: d, BLOCK_OUT: d}


def site_width(config: ModelConfig, site: str) -> int:
    """The number of units at a site.

    Raises:
      ProbeError: the model has no such site; the message names those it has.
    """
    widths = site_widths(config)
    if site not in widths:
        raise ProbeError(f"a {config.architecture} model has no site {site!r}; it has {', '.join(widths)}")
    return widths[site]


def check_layer(config: ModelConfig, layer: int) -> int:
    """The layer, if the model has it.

    Raises:
      ProbeError: it has not; layers count from 0.
    """
    if not 0 <= layer < config.num_layers:
        raise ProbeError(
            f"layer must be between 0 and {config.num_layers - 1} for this {config.architecture} model, "
            f"got {layer}"
        )
    return layer
