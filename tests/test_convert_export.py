"""Export: what HF loads without a word, and what we read back bit for bit."""

import json
import os

import jax
import numpy as np
import pytest
from checkpoints import assert_same, write, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from support import MAMBA, TINY, random_params

from jaxprobe import convert
from jaxprobe.configs import DTypeName, GPT2Config, MambaConfig, ModelConfig
from jaxprobe.errors import ProbeError

SIZE = st.integers(1, 5)
EPSILON = st.sampled_from([0.0, 1e-12, 1e-5, 0.1])
MAMBAS = st.builds(
    MambaConfig, vocab_size=SIZE, hidden_size=SIZE, num_layers=SIZE, intermediate_size=SIZE, state_size=SIZE,
    time_step_rank=SIZE, conv_kernel=SIZE, use_bias=st.booleans(), use_conv_bias=st.booleans(),
    norm_epsilon=EPSILON, tie_word_embeddings=st.booleans(),
)  # fmt: skip
GPT2S = st.builds(
    lambda heads, head_size, **fields: GPT2Config(num_heads=heads, hidden_size=heads * head_size, **fields),
    heads=SIZE, head_size=SIZE, vocab_size=SIZE, num_layers=SIZE, inner_size=SIZE, max_positions=SIZE,
    activation=st.sampled_from(["gelu_new", "relu", "silu"]), norm_epsilon=EPSILON,
    scale_attn_weights=st.booleans(), scale_attn_by_inverse_layer_idx=st.booleans(),
    tie_word_embeddings=st.booleans(),
)  # fmt: skip
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


@settings(max_examples=25, deadline=None)
@given(config=st.one_of(MAMBAS, GPT2S), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_round_trips_are_bit_exact(config: ModelConfig, dtype, seed, tmp_path_factory):
    root = tmp_path_factory.mktemp("round")
    first = write(root / "first", config, dtype, seed)
    computed: DTypeName = "float64" if dtype == "float64" else "float32"
    loaded = convert.load(first, dtype=computed)
    assert loaded.config == config
    [stored] = loaded.certificate.storage_dtypes
    convert.export(root / "second", config, loaded.params, tokenizer_files_from=first, dtype=stored)
    assert_same(tensors_of(root / "second"), tensors_of(first))
    again = convert.load(root / "second", dtype=computed)
    assert_same(again.params, loaded.params)
    assert (again.config, again.tokenizer) == (loaded.config, loaded.tokenizer)


@settings(max_examples=6, deadline=None)
@given(config=st.one_of(MAMBAS, GPT2S), dtype=st.sampled_from(["float16", "bfloat16", "float32"]))
def test_hf_loads_every_export(config: ModelConfig, dtype, tmp_path_factory):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path_factory.mktemp("hf") / "model", config, dtype)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == getattr(torch, dtype)
    saved = folder.parent / "saved"
    model.save_pretrained(saved)
    assert_same(tensors_of(saved), tensors_of(folder))  # HF names, keeps and leaves out the same tensors
    write_tokenizer(saved, config.vocab_size)
    assert convert.load(saved).config == config


@pytest.mark.parametrize("name", TINY)
def test_configuration_and_special_tokens(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path / "model", TINY[name], "bfloat16")
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (None, 0, 0)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert raw["dtype"] == raw["torch_dtype"] == "bfloat16"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("w1 w5").input_ids == [1, 5]


def test_jax_arrays_export_as_numpy_ones_do(tmp_path):
    params = random_params(MAMBA, dtype="float32")
    convert.export(tmp_path / "numpy", MAMBA, params)
    convert.export(tmp_path / "jax", MAMBA, jax.tree.map(jax.numpy.asarray, params))
    assert_same(tensors_of(tmp_path / "jax"), tensors_of(tmp_path / "numpy"))
    raw = json.loads((tmp_path / "jax" / "config.json").read_text(encoding="utf-8"))
    assert raw["bos_token_id"] is raw["eos_token_id"] is raw["pad_token_id"] is None


def changed(**leaves) -> dict:
    return random_params(MAMBA, dtype="float32") | leaves


@pytest.mark.parametrize(
    ("params", "dtype", "message"),
    [
        (changed(extra={"x": np.ones(1, np.float32)}), None, "unexpected extra/x"),
        (changed(final_norm={}), None, "missing final_norm/scale"),
        (changed(final_norm={"scale": np.ones(5, np.float32)}), None, r"shape \[5\], expected \[6\]"),
        (changed(final_norm={"scale": np.full(6, 1e5, np.float32)}), "float16", "not finite in float16"),
        (changed(final_norm={"scale": np.full(6, np.nan, np.float32)}), None, "not finite"),
        (changed(final_norm={"scale": np.ones(6, np.float64)}), None, "float32, float64"),
        (changed(final_norm={"scale": np.ones(6, np.int32)}), "int32", "cannot export as int32"),
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit(params, dtype, message, tmp_path):
    with pytest.raises(ProbeError, match=message):
        convert.export(tmp_path / "model", MAMBA, params, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_existing_directories_are_never_overwritten(tmp_path):
    params = random_params(MAMBA, dtype="float32")
    folder = tmp_path / "model"
    folder.mkdir()
    convert.export(folder, MAMBA, params)  # an empty one is filled
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ProbeError, match="not an empty directory"):
        convert.export(folder, MAMBA, params)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ProbeError, match="not an empty directory"):
        convert.export(tmp_path / "file", MAMBA, params)
    with pytest.raises(ProbeError, match=r"cannot export to .*file/model"):
        convert.export(tmp_path / "file" / "model", MAMBA, params)


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(ProbeError, match=r"cannot export to .*: No space left on device$"):
        convert.export(tmp_path / "model", MAMBA, random_params(MAMBA, dtype="float32"))
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path):
    write_tokenizer(tmp_path / "tokenizer", MAMBA.vocab_size + 1)
    with pytest.raises(ProbeError, match="ids go up to 11, the model's vocabulary only to 10"):
        convert.export(
            tmp_path / "model", MAMBA, random_params(MAMBA), tokenizer_files_from=tmp_path / "tokenizer"
        )
    assert not (tmp_path / "model").exists()


def test_the_weights_are_as_readable_as_the_config(tmp_path):
    folder = write(tmp_path / "exported", TINY["gpt2"])
    modes = {(folder / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1
