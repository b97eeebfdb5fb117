"""config.json and its fields: which are handled, which are ignored, and which values are refused.

Every field a file may hold falls in one of four groups: *handled* (it shapes the model), *ignored* (it
cannot change the forward pass in inference), *restricted* (only the values listed run as HF runs them),
and *unknown*, which is none of these and is named in the certificate. Defaults are those of HF
transformers, whose files may leave a field out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxprobe.configs import GPT2Config, MambaConfig, ModelConfig
from jaxprobe.convert.schemas import AUTO, KINDS, SCHEMAS, Schema
from jaxprobe.errors import ProbeError


@dataclass(frozen=True)
class ParsedConfig:
    """A model configuration and the fields of its file that did not go into it."""

    config: ModelConfig
    ignored_fields: tuple[str, ...]
    unknown_fields: tuple[str, ...]


def parse(raw: Mapping[str, object], where: str) -> ParsedConfig:
    """A configuration from the contents of HF's config.json; `where` names the file in errors.

    Raises:
      ProbeError: for an unknown model_type, a value of the wrong kind or out of range, two names of one
        field that contradict each other, or a value that changes the forward pass and is not supported.
    """
    model_type = raw.get("model_type")
    schema = SCHEMAS.get(model_type) if isinstance(model_type, str) else None
    if schema is None:
        if model_type is None and _is_original(raw):
            raise ProbeError(
                f"{where}: this is Mamba in the original format of state-spaces/mamba; expected model_type, "
                "as in the conversion for transformers: on the hub, that name with -hf at its end"
            )
        raise ProbeError(f"{where}: model_type must be one of {', '.join(SCHEMAS)}, got {model_type!r}")
    fields = _resolve_aliases(raw, schema, where)
    for name, (kind, _) in schema.handled.items():
        if name in fields and not KINDS[kind](fields[name]):
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
    except OverflowError as error:
        raise ProbeError(f"{where}: a size is beyond any model: {error}") from error
    known = {"model_type"} | set(schema.handled) | set(schema.restricted)
    return ParsedConfig(
        config,
        ignored_fields=tuple(sorted(set(fields) & schema.ignored)),
        unknown_fields=tuple(sorted(set(fields) - known - schema.ignored)),
    )


def _is_original(raw: Mapping[str, object]) -> bool:
    """Whether the fields are those that the original repository writes for Mamba; for Mamba-2 they differ."""
    blocks = raw.get("ssm_cfg")
    is_first = not isinstance(blocks, dict) or blocks.get("layer", "Mamba1") == "Mamba1"
    return is_first and {"d_model", "n_layer", "ssm_cfg"} <= raw.keys()


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
        time_step_rank=math.ceil(hidden / 16) if rank == AUTO else rank,
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
