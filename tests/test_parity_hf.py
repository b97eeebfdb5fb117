"""Mamba and GPT-2 against HF's torch modules: odd configurations, logits and every gradient."""

import functools
import tempfile
from pathlib import Path

import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from support import assert_close
from transformers.activations import ACT2FN

from jaxprobe import convert
from jaxprobe.configs import ACTIVATIONS, MambaConfig
from jaxprobe.errors import ProbeError
from jaxprobe.models import LanguageModel
from jaxprobe.models.activations import ACTIVATION_FUNCTIONS

# Of the largest logit; and, per parameter, of its largest gradient entry, or of 1% of the largest of all
# where that is more: nearly all of a gradient may cancel, as that of the keys' bias does.
FLOAT32, FLOAT64 = 2e-5, 1e-10

few = settings(
    max_examples=3,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # every example compiles: shrinking would take minutes
)


def sizes(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


mamba_fields = st.fixed_dictionaries({
    "vocab_size": sizes(3, 23),
    "hidden_size": sizes(4, 21),
    "num_hidden_layers": sizes(1, 3),
    "state_size": sizes(1, 6),
    "time_step_rank": st.just("auto") | sizes(1, 5),
    "conv_kernel": sizes(1, 5),
    "expand": sizes(1, 3),
    "intermediate_size": st.none() | sizes(1, 30),
    "use_bias": st.booleans(),
    "use_conv_bias": st.booleans(),
    "layer_norm_epsilon": st.sampled_from([1e-12, 1e-5, 0.1]),
    "tie_word_embeddings": st.booleans(),
    "residual_in_fp32": st.booleans(),
})  # fmt: skip

gpt2_fields = st.fixed_dictionaries({
    "vocab_size": sizes(3, 23),
    "heads": sizes(1, 4),
    "head_size": sizes(3, 7),
    "n_layer": sizes(1, 3),
    "n_inner": st.none() | sizes(1, 30),
    "n_positions": sizes(9, 20),
    "activation_function": st.sampled_from(sorted(ACTIVATIONS)),
    "layer_norm_epsilon": st.sampled_from([1e-12, 1e-5, 0.1]),
    "scale_attn_weights": st.booleans(),
    "scale_attn_by_inverse_layer_idx": st.booleans(),
    "reorder_and_upcast_attn": st.booleans(),
    "tie_word_embeddings": st.booleans(),
})  # fmt: skip


@few
@example(  # what the original models are, but for size
    fields={
        "vocab_size": 13, "hidden_size": 18, "num_hidden_layers": 2, "state_size": 4,
        "time_step_rank": "auto", "conv_kernel": 4, "expand": 2, "intermediate_size": None,
        "use_bias": False, "use_conv_bias": True,
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "residual_in_fp32": True,
    },
    tokens=9, seed=0,
)  # fmt: skip
@example(  # everything else
    fields={
        "vocab_size": 5, "hidden_size": 9, "num_hidden_layers": 3, "state_size": 3, "time_step_rank": 5,
        "conv_kernel": 2, "expand": 3, "intermediate_size": 7, "use_bias": True, "use_conv_bias": False,
        "layer_norm_epsilon": 0.1, "tie_word_embeddings": False, "residual_in_fp32": False,
    },
    tokens=5, seed=1,
)  # fmt: skip
@example(  # a window longer than the text
    fields={
        "vocab_size": 7, "hidden_size": 6, "num_hidden_layers": 1, "state_size": 1, "time_step_rank": 1,
        "conv_kernel": 5, "expand": 1, "intermediate_size": 11, "use_bias": True, "use_conv_bias": True,
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False, "residual_in_fp32": True,
    },
    tokens=3, seed=2,
)  # fmt: skip
@given(fields=mamba_fields, tokens=sizes(3, 9), seed=sizes(0, 99))
def test_mamba(fields, tokens, seed):
    width = fields["intermediate_size"]
    fields = {k: v for k, v in fields.items() if v is not None}
    checkpoint = check_parity(transformers.MambaConfig(**fields), tokens, seed)
    assert isinstance(checkpoint.config, MambaConfig)
    assert width is None or checkpoint.config.intermediate_size == width


@few
@example(  # what the original models are, but for size
    fields={
        "vocab_size": 13, "heads": 3, "head_size": 4, "n_layer": 2, "n_inner": None, "n_positions": 12,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
    },
    tokens=9, seed=0,
)  # fmt: skip
@example(  # everything else
    fields={
        "vocab_size": 5, "heads": 2, "head_size": 5, "n_layer": 3, "n_inner": 7, "n_positions": 9,
        "activation_function": "quick_gelu", "layer_norm_epsilon": 0.1, "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True,
        "tie_word_embeddings": False,
    },
    tokens=5, seed=1,
)  # fmt: skip
@given(fields=gpt2_fields, tokens=sizes(3, 9), seed=sizes(0, 99))
def test_gpt2(fields, tokens, seed):
    fields = dict(fields)
    heads, head_size = fields.pop("heads"), fields.pop("head_size")
    config = transformers.GPT2Config(
        n_head=heads, n_embd=heads * head_size, bos_token_id=0, eos_token_id=0, **fields
    )
    check_parity(config, tokens, seed)


def check_parity(config, tokens: int, seed: int) -> convert.Checkpoint:
    """Through a checkpoint on disk: logits and gradients in float32 and in float64."""
    theirs = hf_models.build(config, seed)
    ids = np.random.default_rng(seed).integers(config.vocab_size, size=(2, tokens), dtype=np.int32)
    with tempfile.TemporaryDirectory() as folder:
        hf_models.save(theirs, Path(folder))
        narrow, wide = (convert.load(folder, dtype=dtype) for dtype in ("float32", "float64"))
    assert narrow.certificate.parameter_count == sum(p.numel() for p in theirs.parameters())
    compare(narrow, ids, *hf_models.logits_and_gradients(theirs, ids, double=False), FLOAT32)
    with jax.enable_x64(True):
        compare(wide, ids, *hf_models.logits_and_gradients(theirs, ids, double=True), FLOAT64)
    return narrow


def compare(checkpoint: convert.Checkpoint, ids, logits, gradients, tolerance: float) -> None:
    lm = LanguageModel(checkpoint.config)
    ids = jnp.asarray(ids)

    def mean_nll(params):
        logits = lm.forward(params, ids).logits
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], axis=-1)
        return -jnp.mean(chosen), logits

    params = lm.place(checkpoint.params, checkpoint.certificate.dtype)
    ours, our_logits = jax.jit(jax.grad(mean_nll, has_aux=True))(params)
    assert our_logits.dtype == logits.dtype == checkpoint.certificate.dtype
    assert_close(our_logits, logits, tolerance, "logits")
    expected = hf_models.as_tree(checkpoint.config, gradients)
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    floor = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) / 100
    for path, leaf in jax.tree.leaves_with_path(expected):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        ours_leaf = functools.reduce(lambda tree, key: tree[key], name.split("/"), ours)
        assert_close(ours_leaf, leaf, tolerance, f"gradient of {name}", floor)


def test_activation_names_are_those_of_hf():
    assert set(ACTIVATION_FUNCTIONS) == ACTIVATIONS <= set(ACT2FN)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation(name):
    """Value and slope where functions bend, clip and saturate, and far out."""
    grid = np.concatenate([np.linspace(-15.03, 15.01, 400), [-1e4, 1e4]])
    theirs = torch.tensor(grid, requires_grad=True)
    value = ACT2FN[name](theirs)
    value.sum().backward()
    ours, slopes = jax.vmap(jax.value_and_grad(ACTIVATION_FUNCTIONS[name]))(jnp.asarray(grid))
    # torch's softplus is the identity above 20, where it is off by 2e-9.
    tolerance = 1e-9 if name in ("mish", "sqrtsoftplus") else 1e-12
    np.testing.assert_allclose(ours, value.detach(), atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(slopes, np.asarray(theirs.grad), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["prelu", "xielu"])
def test_an_activation_with_parameters_of_its_own_is_refused(name, tmp_path):
    config = transformers.GPT2Config(n_embd=4, n_head=2, n_layer=1, vocab_size=5, activation_function=name)
    config.save_pretrained(tmp_path)
    with pytest.raises(ProbeError, match=name):
        convert.load(tmp_path)
