"""Loading checkpoints: the right numbers in the right places, and one clear line for a bad one."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import hf_models
import ml_dtypes
import numpy as np
import plain_models
import pytest
import torch
import transformers
from checkpoints import assert_same, edit_config, edit_tensors, shard, write, write_json
from safetensors.numpy import load_file, save_file
from support import GPT2, MAMBA, REFERENCE, TINY, assert_close, needs_reference

from jaxprobe import convert
from jaxprobe.convert import fields, layout
from jaxprobe.errors import ProbeError

UNTIED = {name: dataclasses.replace(config, tie_word_embeddings=False) for name, config in TINY.items()}


@pytest.fixture
def mamba(tmp_path):
    return write(tmp_path / "mamba", MAMBA)


@pytest.fixture
def gpt2(tmp_path):
    return write(tmp_path / "gpt2", GPT2)


# --- the numbers ---------------------------------------------------------------------------------------


def hf_model(config, folder, dtype=torch.float32):
    """A HF model with random weights, saved in `folder`."""
    described: dict[str, Any] = fields.to_hf(config, "float32", {})
    model = hf_models.build(transformers.AutoConfig.for_model(**described))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    hf_models.save(model, folder)
    return model.float()


@pytest.mark.parametrize("config", [*TINY.values(), *UNTIED.values()], ids=str)
def test_hf_weights_give_hf_logits(config, tmp_path):
    """The plain numpy model, with what we load, says what HF's module says: names, axes and order agree."""
    model = hf_model(config, tmp_path)
    loaded = convert.load(tmp_path, dtype="float64")
    assert loaded.config == config
    assert loaded.certificate.unknown_fields == ()
    assert loaded.certificate.parameter_count == sum(p.numel() for p in model.parameters())
    ids = np.arange(9) % config.vocab_size
    with torch.no_grad():
        logits = model(torch.tensor(ids[None])).logits[0].numpy()
    assert_close(plain_models.forward(config, loaded.params, ids), logits, 2e-5)


@needs_reference
@pytest.mark.parametrize("name", ["mamba-mini", "gpt2-mini"])
def test_reference_checkpoints(name):
    loaded = convert.load(REFERENCE / "models" / name, dtype="float64")
    expected = np.load(REFERENCE / "expected" / name / "logits.npz")
    actual = plain_models.forward(loaded.config, loaded.params, expected["ids_0"])
    assert_close(actual, expected["logits64_0"], 5e-6)
    relations = json.loads((REFERENCE / "relations.json").read_text(encoding="utf-8"))
    texts = [fact["text"] for relation in relations for fact in relation["facts"]][:12]
    for i, text in enumerate(texts):
        assert loaded.tokenizer.encode(text) == expected[f"ids_{i}"].tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", TINY)
def test_storage_dtypes_widen_exactly(name, dtype, tmp_path):
    folder = write(tmp_path / "model", TINY[name], dtype)
    loaded = convert.load(folder, dtype="float64")
    assert loaded.certificate.storage_dtypes == (dtype,)
    key = {"mamba": "backbone.norm_f.weight", "gpt2": "transformer.ln_f.weight"}[name]
    stored = load_file(folder / "model.safetensors")[key]
    assert stored.dtype == np.dtype(getattr(ml_dtypes, dtype, dtype))
    assert (loaded.params["final_norm"]["scale"] == stored.astype(np.float64)).all()
    assert convert.load(folder).params["final_norm"]["scale"].dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_saved_by_hf(dtype, tmp_path):
    model = hf_model(MAMBA, tmp_path, dtype)
    kernel = convert.load(tmp_path).params["blocks"]["mixer"]["conv"]["kernel"]
    theirs = model.state_dict()
    for layer in range(MAMBA.num_layers):
        weight = theirs[f"backbone.layers.{layer}.mixer.conv1d.weight"].numpy()
        assert (kernel[layer].T == weight[:, 0]).all()


@pytest.mark.parametrize("name", TINY)
def test_sharded_and_single_files_agree(name, tmp_path):
    folder = write(tmp_path / "model", TINY[name])
    whole = convert.load(folder)
    shard(folder)
    parts = convert.load(folder)
    assert_same(whole.params, parts.params)
    assert parts.certificate.files == (
        "config.json",
        *(f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)),
        "model.safetensors.index.json",
    )


# --- names and extras ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "prefix"), [("mamba", "backbone."), ("gpt2", "transformer.")])
def test_base_model_prefix_is_optional(name, prefix, tmp_path):
    folder = write(tmp_path / "model", TINY[name])
    expected = convert.load(folder).params
    edit_tensors(folder, lambda tensors: {key.removeprefix(prefix): t for key, t in tensors.items()})
    assert_same(convert.load(folder).params, expected)


def test_old_name_of_mambas_embedding(mamba):
    expected = convert.load(mamba).params
    edit_tensors(
        mamba, lambda t: t.update({"backbone.embedding.weight": t.pop("backbone.embeddings.weight")})
    )
    assert_same(convert.load(mamba).params, expected)


def test_causal_mask_buffers_are_dropped_and_named(gpt2):
    expected = convert.load(gpt2).params
    mask = {f"transformer.h.{i}.attn.bias": np.tril(np.ones((1, 1, 16, 16), np.uint8)) for i in range(3)}
    masked = {f"transformer.h.{i}.attn.masked_bias": np.array(-1e4, np.float32) for i in range(3)}
    edit_tensors(gpt2, lambda tensors: tensors | mask | masked)
    loaded = convert.load(gpt2)
    assert_same(loaded.params, expected)
    assert loaded.certificate.ignored_keys == tuple(sorted([*mask, *masked]))


@pytest.mark.parametrize(
    ("name", "embedding"), [("mamba", "backbone.embeddings.weight"), ("gpt2", "transformer.wte.weight")]
)
def test_a_tied_head(name, embedding, tmp_path):
    folder = write(tmp_path / "model", TINY[name])
    expected = convert.load(folder)
    assert expected.certificate.tied and "unembedding" not in expected.params

    edit_tensors(folder, lambda tensors: tensors | {"lm_head.weight": tensors[embedding]})
    copied = convert.load(folder)
    assert copied.certificate.ignored_keys == ("lm_head.weight",)
    assert_same(copied.params, expected.params)

    edit_tensors(folder, lambda tensors: {k: t for k, t in tensors.items() if k != embedding})
    assert_same(convert.load(folder).params, expected.params)

    edit_tensors(folder, lambda tensors: tensors | {embedding: tensors["lm_head.weight"] + 1})
    with pytest.raises(ProbeError, match=r"tie_word_embeddings is true but lm_head\.weight differs"):
        convert.load(folder)


def test_untied_head(tmp_path):
    folder = write(tmp_path / "model", UNTIED["gpt2"])
    loaded = convert.load(folder)
    assert not loaded.certificate.tied
    stored = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert (loaded.params["unembedding"]["kernel"] == stored.T).all()
    edit_tensors(folder, lambda tensors: {k: t for k, t in tensors.items() if k != "lm_head.weight"})
    with pytest.raises(ProbeError, match=r"missing lm_head\.weight"):
        convert.load(folder)


def test_reordered_and_upcast_attention_is_the_same_function(tmp_path):
    """HF's flag changes the dtype of the scores under mixed precision only, so it is among the ignored."""
    hf_model(GPT2, tmp_path)
    logits = []
    for flag in (False, True):
        edit_config(tmp_path, reorder_and_upcast_attn=flag)
        model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
        with torch.no_grad():
            logits.append(model(torch.arange(9)[None]).logits.numpy())
    assert_close(logits[1], logits[0], 1e-6)
    assert "reorder_and_upcast_attn" in convert.load(tmp_path).certificate.ignored_fields


# --- the certificate -----------------------------------------------------------------------------------


def test_certificate(mamba):
    edit_config(mamba, flux_capacitance=1.21)
    certificate = convert.load(mamba).certificate
    told = certificate.to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["unknown_fields"] == ["flux_capacitance"] and "architectures" in told["ignored_fields"]
    assert (told["source"], told["revision"], told["architecture"]) == (str(mamba), None, "mamba")
    assert (told["dtype"], told["storage_dtypes"], told["tied"]) == ("float32", ["float32"], True)
    sums = subprocess.run(["sha256sum", *told["files"]], cwd=mamba, capture_output=True, check=True).stdout
    assert told["sha256"] == hashlib.sha256(sums).hexdigest()


def test_mixed_storage_dtypes_are_recorded(mamba):
    edit_tensors(
        mamba, lambda t: t | {"backbone.norm_f.weight": t["backbone.norm_f.weight"].astype(np.float16)}
    )
    assert convert.load(mamba).certificate.storage_dtypes == ("float16", "float32")


# --- bad checkpoints -----------------------------------------------------------------------------------


def remove(*names):
    def change(tensors):
        return {key: tensor for key, tensor in tensors.items() if key not in names}

    return change


def put(name, value):
    def change(tensors):
        return tensors | {name: value(tensors[name]) if callable(value) else value}

    return change


NORM = "backbone.layers.1.norm.weight"
ONES = np.ones(6, np.float32)
A_LOG = "backbone.layers.2.mixer.A_log"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(NORM), f"missing {NORM}$"),
        (remove(NORM, A_LOG), f"missing {NORM}; missing {A_LOG}$"),
        (put("backbone.layers.3.mixer.D", ONES), "unexpected backbone.layers.3.mixer.D$"),
        (put("score.weight", ONES), "unexpected score.weight$"),
        (put("backbone.norm_f.bias", ONES), "unexpected backbone.norm_f.bias$"),
        (put(A_LOG, lambda a: a.T.copy()), r"A_log has shape \[3, 10\], expected \[10, 3\]$"),
        (put("backbone.embeddings.weight", lambda a: a[:10].copy()), r"shape \[10, 6\], expected \[11, 6\]$"),
        (put(NORM, lambda a: a.astype(np.int32)), "dtype I32, expected one of F16, BF16, F32, F64$"),
        (put(NORM, lambda a: a * np.nan), f"NaN or infinite values in {NORM}$"),
        (put(A_LOG, lambda a: np.where(a == a[2, 1], np.inf, a)), f"infinite values in {A_LOG}$"),
        (put(NORM, lambda a: a.astype(np.float64) * 1e300), f"infinite values in {NORM}$"),
        (put("layers.1.norm.weight", ONES), "are the same tensor$"),
        (lambda t: dict.fromkeys("abc", ONES), "unexpected a; unexpected b; .*; missing .*; and 35 more$"),
        (lambda t: {}, r"which names 3 layers: they hold 0 \(tensors in all: 0\)$"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(change, message, mamba):
    edit_tensors(mamba, change)
    with pytest.raises(ProbeError, match=message) as error:
        convert.load(mamba)
    assert str(mamba) in str(error.value) and "\n" not in str(error.value)


def test_layers_beyond_the_configuration(gpt2):
    edit_config(gpt2, n_layer=2)
    with pytest.raises(ProbeError, match=r"unexpected transformer\.h\.2\..*and 6 more"):
        convert.load(gpt2)


@pytest.mark.parametrize(("name", "other"), [("mamba", "gpt2"), ("gpt2", "mamba")])
@pytest.mark.parametrize("prefix", [True, False])
def test_tensors_of_the_other_architecture(name, other, prefix, tmp_path):
    folder = write(tmp_path / "model", TINY[name])
    edit_config(folder, model_type=other)
    if not prefix:
        base = layout.BASE_PREFIX[name]
        edit_tensors(folder, lambda tensors: {key.removeprefix(base): t for key, t in tensors.items()})
    title = {"mamba": r"Mamba \(.*A_log is one\)", "gpt2": r"GPT-2 \(.*c_attn\.weight is one\)"}[name]
    said = f"config.json names model_type '{other}', but the tensors are those of {title}: "
    with pytest.raises(ProbeError, match=said) as error:
        convert.load(folder)
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_config_comes_before_what_is_wrong_with_the_weights(mamba):
    edit_config(mamba, hidden_act="gelu")
    truncate(mamba)
    with pytest.raises(ProbeError, match="hidden_act"):
        convert.load(mamba)


@pytest.mark.parametrize("layers", [10**6, 10**9])
@pytest.mark.parametrize(("name", "tensors"), [("mamba", 38), ("gpt2", 40)])
def test_more_layers_than_the_weights_can_hold(name, tensors, layers, tmp_path, monkeypatch):
    """The names of a billion layers' tensors would fill any memory; they are never written out."""

    def keys(leaf, num_layers):
        raise AssertionError(f"wrote out the names of {num_layers} layers")

    folder = write(tmp_path / "model", TINY[name])
    edit_config(folder, **{{"mamba": "num_hidden_layers", "gpt2": "n_layer"}[name]: layers})
    monkeypatch.setattr(layout.Leaf, "keys", keys)
    with pytest.raises(ProbeError) as error:
        convert.load(folder)
    assert str(error.value) == (
        f"{folder}: the weights do not fit config.json, which names {layers} layers: they hold 3 "
        f"(tensors in all: {tensors})"
    )


SHARD = "model-{:05}-of-00003.safetensors"


def truncate(folder):
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)


def only_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shard_then(change):
    def spoil(folder):
        shard(folder)
        change(folder)

    return spoil


def edit_index(folder, change):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    change(index)
    write_json(file, index)


def swap_names(index):
    files = set(index["weight_map"].values())
    index["weight_map"][NORM] = min(files - {index["weight_map"][NORM]})


def copy_shard(folder):
    both = load_file(folder / SHARD.format(1)) | load_file(folder / SHARD.format(2))
    save_file(both, folder / SHARD.format(2))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda d: edit_config(d, model_type="llama"), "model_type must be one of"),
        (lambda d: edit_config(d, hidden_act="gelu"), "hidden_act"),
        (truncate, "model.safetensors is not a whole safetensors file"),
        (lambda d: (d / "model.safetensors").write_bytes(bytes(20)), "not a whole safetensors file"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
        (only_pickle, "holds only pickled weights .pytorch_model.bin.*save_pretrained"),
        (lambda d: (d / "model.safetensors").unlink(), "has no weights"),
        (shard_then(lambda d: (d / SHARD.format(2)).unlink()), "missing weights file .*-00002-"),
        (shard_then(lambda d: edit_index(d, swap_names)), f"tensor {NORM} is missing"),
        (shard_then(lambda d: edit_index(d, dict.clear)), "weight_map must map"),
        (shard_then(lambda d: edit_index(d, lambda i: i["weight_map"].update(x="../x"))), "got '../x'"),
        (shard_then(copy_shard), "is in both"),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer"),
    ],
)  # fmt: skip
def test_broken_directories(spoil, message, mamba):
    spoil(mamba)
    with pytest.raises(ProbeError, match=message) as error:
        convert.load(mamba)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", range(0, 2000, 97))
def test_truncation_anywhere_is_refused(size, mamba):
    os.truncate(mamba / "model.safetensors", size)
    with pytest.raises(ProbeError, match="not a whole safetensors file"):
        convert.load(mamba)


def test_param_shapes_are_those_of_loaded_parameters(mamba, gpt2):
    def shapes(tree):
        return {k: shapes(v) if isinstance(v, dict) else v.shape for k, v in tree.items()}

    for folder in (mamba, gpt2):
        loaded = convert.load(folder)
        assert shapes(loaded.params) == convert.param_shapes(loaded.config)


def test_importing_is_light():
    heavy = {"jax", "orbax", "transformers", "huggingface_hub", "torch", "flax"}
    code = f"import sys, jaxprobe.convert; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
