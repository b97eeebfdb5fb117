"""Mamba and GPT-2 written out in numpy for one text, token by token: what the JAX models must equal.

`visit(site, layer, value)` sees every site in order of computation and returns the value to go on with; it
sees `ssm_state` once per token, [e*n], inside the recurrence.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import erf, expit

from jaxprobe.configs import GPT2Config, MambaConfig, ModelConfig

Visit = Callable[[str, int, np.ndarray], np.ndarray]


def untouched(site: str, layer: int, value: np.ndarray) -> np.ndarray:
    return value


def forward(config: ModelConfig, params: dict, ids: np.ndarray, visit: Visit = untouched) -> np.ndarray:
    """Logits [t v] of one text."""
    h = params["embedding"]["embedding"][ids]
    if isinstance(config, GPT2Config):
        h = h + params["position_embedding"]["embedding"][: len(ids)]
    for layer in range(config.num_layers):
        block = select(params["blocks"], layer)
        if isinstance(config, MambaConfig):
            h = mamba_block(config, block, layer, h, visit)
        else:
            h = gpt2_block(config, block, layer, h, visit)
    if isinstance(config, MambaConfig):
        z = rms_norm(h, params["final_norm"], config.norm_epsilon)
    else:
        z = layer_norm(h, params["final_norm"], config.norm_epsilon)
    if config.tie_word_embeddings:
        return z @ params["embedding"]["embedding"].T
    return z @ params["unembedding"]["kernel"]


def select(tree: dict, layer: int) -> dict:
    return {k: select(v, layer) if isinstance(v, dict) else v[layer] for k, v in tree.items()}


def mamba_block(c: MambaConfig, block: dict, layer: int, h: np.ndarray, visit: Visit) -> np.ndarray:
    p, e, n, r = block["mixer"], c.intermediate_size, c.state_size, c.time_step_rank
    uz = linear(rms_norm(h, block["norm"], c.norm_epsilon), p["in_proj"])
    u, z = uz[:, :e], uz[:, e:]
    gate = visit("gate", layer, silu(z))
    convolved = np.zeros_like(u)
    for t in range(len(u)):
        for lag in range(min(t + 1, c.conv_kernel)):
            convolved[t] += p["conv"]["kernel"][c.conv_kernel - 1 - lag] * u[t - lag]
    x = visit("conv_out", layer, silu(convolved + p["conv"].get("bias", 0)))
    selective = linear(x, p["x_proj"])
    delta = visit("delta", layer, softplus(linear(selective[:, :r], p["dt_proj"])))
    B = visit("B", layer, selective[:, r : r + n])
    C = visit("C", layer, selective[:, r + n :])
    A = -np.exp(p["A_log"])
    state, y = np.zeros((e, n), h.dtype), np.zeros_like(u)
    for t in range(len(u)):
        state = np.exp(delta[t, :, None] * A) * state + delta[t, :, None] * B[t] * x[t, :, None]
        state = visit("ssm_state", layer, state.reshape(-1)).reshape(e, n)
        y[t] = state @ C[t] + p["D"] * x[t]
    return visit("block_out", layer, h + visit("mixer_out", layer, linear(y * gate, p["out_proj"])))


def gpt2_block(c: GPT2Config, block: dict, layer: int, h: np.ndarray, visit: Visit) -> np.ndarray:
    tokens, width = h.shape
    size = width // c.num_heads
    qkv = linear(layer_norm(h, block["ln_1"], c.norm_epsilon), block["attention"]["c_attn"])
    mixed = np.zeros_like(h)
    for head in range(c.num_heads):
        q, k, v = (qkv[:, i * width + head * size :][:, :size] for i in range(3))
        for t in range(tokens):
            scores = k[: t + 1] @ q[t]
            if c.scale_attn_weights:
                scores = scores / np.sqrt(size)
            if c.scale_attn_by_inverse_layer_idx:
                scores = scores / (layer + 1)
            weights = np.exp(scores - scores.max())
            mixed[t, head * size : (head + 1) * size] = weights / weights.sum() @ v[: t + 1]
    h = h + visit("mixer_out", layer, linear(mixed, block["attention"]["c_proj"]))
    inner = linear(layer_norm(h, block["ln_2"], c.norm_epsilon), block["mlp"]["c_fc"])
    active = visit("mlp_act", layer, ACTIVATIONS[c.activation](inner))
    return visit("block_out", layer, h + visit("mlp_out", layer, linear(active, block["mlp"]["c_proj"])))


def linear(x: np.ndarray, p: dict) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0)


def rms_norm(x: np.ndarray, p: dict, epsilon: float) -> np.ndarray:
    return p["scale"] * x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def layer_norm(x: np.ndarray, p: dict, epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return p["scale"] * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) + p["bias"]


def silu(x: np.ndarray) -> np.ndarray:
    return x * expit(x)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0)


ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "tanh": np.tanh,
}
