"""config.json: what is handled, ignored, unknown and refused."""

import json

import pytest

from jaxprobe.configs import GPT2Config, MambaConfig
from jaxprobe.convert import fields
from jaxprobe.convert.json_files import read_json_object
from jaxprobe.errors import ProbeError

# As on the hub: fields that HF's own models write, and those of the original repositories beside them.
HUB_MAMBA = {
    "architectures": ["MambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4, "d_inner": 1536,
    "d_model": 768, "eos_token_id": 0, "expand": 2, "fused_add_norm": True, "hidden_act": "silu",
    "hidden_size": 768, "initializer_range": 0.1, "intermediate_size": 1536, "layer_norm_epsilon": 1e-05,
    "model_type": "mamba", "n_layer": 24, "num_hidden_layers": 24, "pad_token_id": 0,
    "pad_vocab_size_multiple": 8, "rescale_prenorm_residual": False, "residual_in_fp32": True,
    "rms_norm": True, "ssm_cfg": {},
    "state_size": 16, "time_step_floor": 0.0001, "time_step_init_scheme": "random", "time_step_max": 0.1,
    "time_step_min": 0.001, "time_step_rank": 48, "time_step_scale": 1.0, "torch_dtype": "float32",
    "transformers_version": "4.39.0.dev0", "use_bias": False, "use_cache": True, "use_conv_bias": True,
    "vocab_size": 50280,
}  # fmt: skip
HUB_GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
    "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "task_specific_params": {"text-generation": {"do_sample": True}},
    "vocab_size": 50257,
}  # fmt: skip
# As state-spaces/mamba writes it: none of HF's names.
ORIGINAL = {
    "d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": True,
    "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8,
}  # fmt: skip


def parse(**raw):
    return fields.parse(raw, "config.json")


def test_the_hubs_mamba_and_gpt2():
    mamba, gpt2 = parse(**HUB_MAMBA), parse(**HUB_GPT2)
    assert mamba.config == MambaConfig(50280, 768, 24, 1536, 16, 48, 4)
    assert gpt2.config == GPT2Config(50257, 768, 12, 12, 3072, 1024)
    assert mamba.unknown_fields == gpt2.unknown_fields == ()
    assert {"ssm_cfg", "d_inner", "fused_add_norm"} <= set(mamba.ignored_fields)
    assert {"n_ctx", "task_specific_params"} <= set(gpt2.ignored_fields)


@pytest.mark.parametrize("name", ["MambaConfig", "GPT2Config"])
def test_left_out_fields_take_the_defaults_of_hf(name):
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, name)()
    empty = parse(model_type=theirs.model_type)
    assert empty == fields.ParsedConfig(parse(**_plain(theirs)).config, (), ())


def test_every_field_hf_writes_is_judged():
    transformers = pytest.importorskip("transformers")
    for config in (transformers.MambaConfig(), transformers.GPT2Config()):
        assert parse(**_plain(config)).unknown_fields == ()


def _plain(config) -> dict:
    return {"model_type": config.model_type} | json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (dict(hidden_size=40), dict(intermediate_size=80, time_step_rank=3)),
        (dict(hidden_size=40, expand=1.5), dict(intermediate_size=60)),
        (dict(hidden_size=40, expand=3, intermediate_size=50), dict(intermediate_size=50)),
        (dict(hidden_size=40, time_step_rank="auto"), dict(time_step_rank=3)),
        (dict(hidden_size=40, time_step_rank=7), dict(time_step_rank=7)),
        (dict(hidden_act="swish"), {}),
        (dict(residual_in_fp32=False, use_mambapy=True, rescale_prenorm_residual=True), {}),
        (dict(layer_norm_epsilon=0), dict(norm_epsilon=0.0)),
        (dict(tie_word_embeddings=False, use_bias=True, use_conv_bias=False),
         dict(tie_word_embeddings=False, use_bias=True, use_conv_bias=False)),
    ],
)  # fmt: skip
def test_mamba_values(raw, expected):
    config = parse(model_type="mamba", **raw).config
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (dict(n_embd=24), dict(inner_size=96)),
        (dict(n_embd=24, n_inner=None), dict(inner_size=96)),
        (dict(n_embd=24, n_inner=50), dict(inner_size=50)),
        (dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=9),
         dict(hidden_size=24, num_layers=3, num_heads=2, max_positions=9)),
        (dict(hidden_size=24, n_embd=24), dict(hidden_size=24)),
        (dict(activation_function="relu", scale_attn_weights=False), dict(activation="relu")),
    ],
)  # fmt: skip
def test_gpt2_values(raw, expected):
    config = parse(model_type="gpt2", **raw).config
    assert {name: getattr(config, name) for name in expected} == expected


def test_unknown_fields_are_named():
    assert parse(model_type="mamba", warp_factor=9, ssm_cfg=None).unknown_fields == ("warp_factor",)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (dict(), "model_type must be one of mamba, gpt2, got None"),
        (ORIGINAL, "is Mamba in the original format .* expected model_type, as in the conversion .* -hf at"),
        (ORIGINAL | dict(ssm_cfg={"layer": "Mamba1"}), "is Mamba in the original format"),
        (ORIGINAL | dict(ssm_cfg={"layer": "Mamba2"}), "model_type must be one of mamba, gpt2, got None"),
        (ORIGINAL | dict(ssm_cfg={"layer": ["x"]}), "model_type must be one of"),
        (ORIGINAL | dict(model_type="rwkv"), "model_type must be one of mamba, gpt2, got 'rwkv'"),
        (dict(d_model=8, n_layer=2), "model_type must be one of"),
        (dict(model_type="mamba2"), "model_type .* got 'mamba2'"),
        (dict(model_type="falcon_mamba"), "falcon_mamba"),
        (dict(model_type=["mamba"]), "model_type"),
        (dict(model_type="mamba", hidden_act="relu"), "hidden_act = 'relu'"),
        (dict(model_type="mamba", rms_norm=False), "rms_norm = False"),
        (dict(model_type="mamba", hidden_size="768"), "hidden_size must be of kind integer, got '768'"),
        (dict(model_type="mamba", hidden_size=768.0), "hidden_size"),
        (dict(model_type="mamba", hidden_size=True), "hidden_size"),
        (dict(model_type="mamba", hidden_size=None), "hidden_size"),
        (dict(model_type="mamba", state_size=0), "state_size must be a positive integer"),
        (dict(model_type="mamba", use_bias=1), "use_bias must be of kind boolean, got 1"),
        (dict(model_type="mamba", time_step_rank="automatic"), "time_step_rank"),
        (dict(model_type="mamba", expand=float("inf")), "expand"),
        (dict(model_type="mamba", expand=1e308), "a size is beyond any model: .* infinity"),
        (dict(model_type="mamba", expand=10**400), "expand must be of kind finite number, got 10000"),
        (dict(model_type="mamba", hidden_size=10**400), "a size is beyond any model"),
        (dict(model_type="mamba", layer_norm_epsilon=10**400), "layer_norm_epsilon must be of kind finite"),
        (dict(model_type="mamba", layer_norm_epsilon=float("nan")), "layer_norm_epsilon"),
        (dict(model_type="mamba", layer_norm_epsilon="1e-5"), "layer_norm_epsilon"),
        (dict(model_type="mamba", tie_word_embeddings=None), "tie_word_embeddings"),
        (dict(model_type="mamba", per_layer_config={"0": {}}), "per_layer_config"),
        (dict(model_type="gpt2", add_cross_attention=True), "add_cross_attention = True"),
        (dict(model_type="gpt2", activation_function="swiglu"), "activation_function = 'swiglu'"),
        (dict(model_type="gpt2", quantization_config={"bits": 4}), "quantization_config"),
        (dict(model_type="gpt2", pruned_heads={"0": [1]}), "pruned_heads"),
        (dict(model_type="gpt2", n_layer=2, num_hidden_layers=3), "n_layer = 2 and num_hidden_layers = 3"),
        (dict(model_type="gpt2", n_embd=10, n_head=3), "the number of heads must divide the width"),
        (dict(model_type="gpt2", n_inner="auto"), "n_inner"),
    ],
)
def test_refused(raw, message):
    with pytest.raises(ProbeError, match=message) as error:
        fields.parse(raw, "config.json")
    assert str(error.value).startswith("config.json: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "must hold a JSON object, got a list"),
    ],
)
def test_files_that_hold_no_object(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ProbeError, match=message):
        read_json_object(tmp_path / "config.json")
