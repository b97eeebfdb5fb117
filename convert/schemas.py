"""What the fields of config.json are to each architecture: handled, ignored or restricted to some values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxprobe.configs import ACTIVATIONS

AUTO = "auto"


def _is_finite(x: object) -> bool:
    try:
        return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
    except OverflowError:  # an integer beyond the largest float
        return False


KINDS = {
    "integer": lambda x: isinstance(x, int) and not isinstance(x, bool),
    "integer or null": lambda x: x is None or (isinstance(x, int) and not isinstance(x, bool)),
    "integer or 'auto'": lambda x: x == AUTO or (isinstance(x, int) and not isinstance(x, bool)),
    "finite number": _is_finite,
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
        "time_step_rank": ("integer or 'auto'", AUTO),  # ceil(hidden_size / 16)
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
