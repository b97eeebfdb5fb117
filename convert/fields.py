"""config.json and its fields: which are handled, which are ignored, and which values are refused.

Every field a file may hold falls in one of four groups: *handled* (it shapes the model), *ignored* (it
cannot change the forward pass in inference), *restricted* (only the values listed run as HF runs them),
and *unknown*, which is none of these and is named in the certificate. Defaults are those of HF
transformers, whose files may leave a field out.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxprobe.configs import ACTIVATIONS, GPT2Config, MambaConfig, ModelConfig
from jaxprobe.errors import ProbeError

_AUTO = "auto"
_KINDS = {
    "integer": lambda x: isinstance(x, int) and not isinstance(x, bool),
    "integer or null": lambda x: x is None or (isinstance(x, int) and not isinstance(x, bool)),
    "integer or 'auto'": lambda x: x == _AUTO or (isinstance(x, int) and not isinstance(x, bool)),
    "finite number": lambda x: isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x),
    "boolean": lambda x: isinstance(x, bool),
    "string": lambda x: isinstance(x, str),
}

# Fields of any HF configuration that leave the forward pass of a causal language model as it is.
_IGNORED_EVERYWHERE = frozenset({
    # bookkeeping of the file
    "architectures", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "_num_labels",
    "auto_map", "dtype", "torch_dtype", "use_bfloat16", "torchscript", "output_attentions",
    "output_hidden_states", "return_dict", "use_cache", "chunk_size_feed_forward", "is_decoder",
    "is_encoder_decoder", "cross_attention_hidden_size", "tie_encoder_decoder", "_attn_implementation",
    "attn_implementation", "_attn_implementation_autoset", "gradient_checkpointing", "task_specific_params",
    "finetuning_task", "problem_type", "id2label", "label2id", "num_labels", "initializer_range",
    # tokenizer (read there)
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id",
    "tokenizer_class", "prefix",
    # generation
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens",
})  # fmt: skip


@dataclass(frozen=True)
class Schema:
    """The fields of one architecture's config.json."""

    hf_class: str
    handled: Mapping[str, tuple[str, object]]  # name -> (kind, HF's default)
    aliases: Mapping[str, str]  # other names HF reads -> the name in `handled`
    ignored: frozenset[str]
    restricted: Mapping[str, tuple[tuple[object, ...], str]]  # name -> (values that are right, why no other)


_RESTRICTED_EVERYWHERE = {
    "quantization_config": ((None,), "quantized weights are not supported"),
    "per_layer_config": ((None,), "layers that differ from one another are not supported"),
    "pruned_heads": ((None, {}), "pruned attention heads are not supported"),
}

_MAMBA = Schema(
    hf_class="MambaForCausalLM",
    handled={
        "vocab_size": ("integer", 50280),
        "hidden_size": ("integer", 768),
        "num_hidden_layers": ("integer", 32),
        "state_size": ("integer", 16),
        "conv_kernel": ("integer", 4),
        "expand": ("finite number", 2),
        "intermediate_size": ("integer", None),  # HF: int(expand * hidden_size), unless the file has it
        "time_step_rank": ("integer or 'auto'", _AUTO),  # ceil(hidden_size / 16)
        "use_bias": ("boolean", False),
        "use_conv_bias": ("boolean", True),
        "layer_norm_epsilon": ("finite number", 1e-5),
        "tie_word_embeddings": ("boolean", True),
    },
    aliases={},
    ignored=_IGNORED_EVERYWHERE | {
        # initial values only
        "rescale_prenorm_residual", "time_step_scale", "time_step_min", "time_step_max",
        "time_step_init_scheme", "time_step_floor",
        # the dtype of the residual stream; we compute in float32 or float64 throughout
        "residual_in_fp32",
        # which of several equal algorithms runs
        "use_mambapy", "use_associative_scan", "use_mamba_kernels", "fused_add_norm",
        # left over from the original repository; HF never reads them
        "d_model", "d_inner", "n_layer", "ssm_cfg", "pad_vocab_size_multiple",
    },
    restricted=_RESTRICTED_EVERYWHERE | {
        "hidden_act": (("silu", "swish"), "the gate is always SiLU in HF, whatever this says"),
        "rms_norm": ((True,), "a LayerNorm Mamba is not supported"),
    },
)  # fmt: skip

_GPT2 = Schema(
    hf_class="GPT2LMHeadModel",
    handled={
        "vocab_size": ("integer", 50257),
        "n_positions": ("integer", 1024),
        "n_embd": ("integer", 768),
        "n_layer": ("integer", 12),
        "n_head": ("integer", 12),
        "n_inner": ("integer or null", None),  # 4 * n_embd
        "activation_function": ("string", "gelu_new"),
        "layer_norm_epsilon": ("finite number", 1e-5),
        "scale_attn_weights": ("boolean", True),
        "scale_attn_by_inverse_layer_idx": ("boolean", False),
        "tie_word_embeddings": ("boolean", True),
    },
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    ignored=_IGNORED_EVERYWHERE | {
        "resid_pdrop", "embd_pdrop", "attn_pdrop",  # dropout is off outside training
        "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
        "summary_first_dropout",  # the double-heads model only
        # the dtype of the attention scores under mixed precision: the same function in float32
        "reorder_and_upcast_attn",
        "n_ctx", "n_special", "predict_special_tokens", "output_past",  # old; HF never reads them
    },
    restricted=_RESTRICTED_EVERYWHERE | {
        "add_cross_attention": ((False,), "cross-attention is not supported"),
        "activation_function": (tuple(sorted(ACTIVATIONS)), "JAX has no equal of another activation"),
    },
)  # fmt: skip

SCHEMAS: Mapping[str, Schema] = {"mamba": _MAMBA, "gpt2": _GPT2}


@dataclass(frozen=True)
class ParsedConfig:
    """A model configuration and the fields of its file that did not go into it."""

    config: ModelConfig
    ignored_fields: tuple[str, ...]
    unknown_fields: tuple[str, ...]


def read_json_object(path: Path) -> dict:
    """The JSON object in a file.

    Raises:
      ProbeError: when the file cannot be read, is not JSON, or holds something else than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProbeError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProbeError(f"{path} must hold a JSON object, got a {type(value).__name__}")
    return value


def parse(raw: Mapping[str, object], where: str) -> ParsedConfig:
    """A configuration from the contents of HF's config.json; `where` names the file in errors.

    Raises:
      ProbeError: for an unknown model_type, a value of the wrong kind or out of range, two names of one
        field that contradict each other, or a value that changes the forward pass and is not supported.
    """
    model_type = raw.get("model_type")
    schema = SCHEMAS.get(model_type) if isinstance(model_type, str) else None
    if schema is None:
        raise ProbeError(f"{where}: model_type must be one of {', '.join(SCHEMAS)}, got {model_type!r}")
    fields = _resolve_aliases(raw, schema, where)
    for name, (kind, _) in schema.handled.items():
        if name in fields and not _KINDS[kind](fields[name]):
            raise ProbeError(f"{where}: {name} must be of kind {kind}, got {fields[name]!r}")
    for name, (allowed, why) in schema.restricted.items():
        if name in fields and fields[name] not in allowed:
            expected = ", ".join(str(value) for value in allowed)
            raise ProbeError(f"{where}: {name} = {fields[name]!r}: {why} (supported: {expected})")
    values = {name: fields.get(name, default) for name, (_, default) in schema.handled.items()}
    try:
        config = _mamba_config(values) if model_type == "mamba" else _gpt2_config(values)
    except ProbeError as error:
        raise ProbeError(f"{where}: {error}") from error
    known = {"model_type"} | set(schema.handled) | set(schema.restricted)
    return ParsedConfig(
        config,
        ignored_fields=tuple(sorted(set(fields) & schema.ignored)),
        unknown_fields=tuple(sorted(set(fields) - known - schema.ignored)),
    )


def _resolve_aliases(raw: Mapping[str, object], schema: Schema, where: str) -> dict[str, object]:
    fields = {name: value for name, value in raw.items() if name not in schema.aliases}
    for alias, name in schema.aliases.items():
        if alias not in raw:
            continue
        if name in raw and raw[name] != raw[alias]:
            raise ProbeError(
                f"{where}: {name} = {raw[name]!r} and {alias} = {raw[alias]!r} are two names of one field "
                "and must agree"
            )
        fields[name] = raw[alias]
    return fields


def _mamba_config(values: dict) -> MambaConfig:
    hidden = values["hidden_size"]
    intermediate, rank = values["intermediate_size"], values["time_step_rank"]
    return MambaConfig(
        vocab_size=values["vocab_size"],
        hidden_size=hidden,
        num_layers=values["num_hidden_layers"],
        intermediate_size=int(values["expand"] * hidden) if intermediate is None else intermediate,
        state_size=values["state_size"],
        time_step_rank=math.ceil(hidden / 16) if rank == _AUTO else rank,
        conv_kernel=values["conv_kernel"],
        use_bias=values["use_bias"],
        use_conv_bias=values["use_conv_bias"],
        norm_epsilon=float(values["layer_norm_epsilon"]),
        tie_word_embeddings=values["tie_word_embeddings"],
    )


def _gpt2_config(values: dict) -> GPT2Config:
    inner = values["n_inner"]
    return GPT2Config(
        vocab_size=values["vocab_size"],
        hidden_size=values["n_embd"],
        num_layers=values["n_layer"],
        num_heads=values["n_head"],
        inner_size=4 * values["n_embd"] if inner is None else inner,
        max_positions=values["n_positions"],
        activation=values["activation_function"],
        norm_epsilon=float(values["layer_norm_epsilon"]),
        scale_attn_weights=values["scale_attn_weights"],
        scale_attn_by_inverse_layer_idx=values["scale_attn_by_inverse_layer_idx"],
        tie_word_embeddings=values["tie_word_embeddings"],
    )


def to_hf(config: ModelConfig, storage_dtype: str, token_ids: Mapping[str, int | None]) -> dict[str, object]:
    """The contents of config.json for `config`, as HF reads it; `token_ids` holds bos, eos and pad."""
    if isinstance(config, MambaConfig):
        fields: dict[str, object] = {
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "intermediate_size": config.intermediate_size,
            # HF 5 wants an integer here and reads intermediate_size after it, so the nearest one will do.
            "expand": max(1, round(config.intermediate_size / config.hidden_size)),
            "state_size": config.state_size,
            "time_step_rank": config.time_step_rank,
            "conv_kernel": config.conv_kernel,
            "use_bias": config.use_bias,
            "use_conv_bias": config.use_conv_bias,
            "hidden_act": "silu",
        }
    else:
        fields = {
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.inner_size,
            "n_positions": config.max_positions,
            "activation_function": config.activation,
            "scale_attn_weights": config.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        }
    return {
        "architectures": [SCHEMAS[config.architecture].hf_class],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        **fields,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_word_embeddings,
        **{f"{name}_token_id": token_ids.get(name) for name in ("bos", "eos", "pad")},
        # Releases of transformers before 5 read torch_dtype, later ones dtype.
        "dtype": storage_dtype,
        "torch_dtype": storage_dtype,
    }
