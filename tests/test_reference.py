"""The reference checkpoints: logits and exact Jacobians as an independent float64 program found them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import REFERENCE, assert_close, needs_reference, padded

from jaxprobe import convert
from jaxprobe.configs import DTypeName
from jaxprobe.jacobians.linearize import last_token_sweep, sequence_sweep
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.spectra import expected_gain, rms_gain
from jaxprobe.models import LanguageModel
from jaxprobe.perturb import capture

pytestmark = needs_reference

MODELS = ["mamba-mini", "gpt2-mini"]
DTYPES = ["float32", "float64"]
# HF computes part of Mamba in float32 even on a float64 model.
LOGITS = {
    ("mamba-mini", "float32"): 2e-5,
    ("gpt2-mini", "float32"): 2e-5,
    ("mamba-mini", "float64"): 5e-6,
    ("gpt2-mini", "float64"): 1e-10,
}
NORMS = {"float32": 1e-4, "float64": 1e-6}


@dataclasses.dataclass(frozen=True)
class Read:
    """A checkpoint read once: all texts in one padded batch."""

    lm: LanguageModel
    params: dict
    hidden: jax.Array  # [l b t d]
    logits: jax.Array  # [b t v]
    lengths: jax.Array
    expected: dict
    spectra: dict


@functools.cache
def read(name: str, dtype: DTypeName) -> Read:
    folder = REFERENCE / "expected" / name
    expected = json.loads((folder / "jacobian.json").read_text(encoding="utf-8"))
    checkpoint = convert.load(REFERENCE / "models" / name, dtype=dtype)
    texts = [np.array(checkpoint.tokenizer.encode(text)) for text in expected["texts"]]
    stored = np.load(folder / "logits.npz")
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(text, stored[f"ids_{i}"])
    lm = LanguageModel(checkpoint.config)
    params = lm.place(checkpoint.params, dtype)
    ids, lengths = padded(texts)
    logits, captured = jax.jit(capture(lm.forward, "block_out"))(params, ids)
    spectra = dict(np.load(folder / "spectra.npz"))
    return Read(lm, params, captured["block_out"], logits, lengths, expected, spectra)


@pytest.fixture(params=DTYPES)
def dtype(request):
    with jax.enable_x64(request.param == "float64"), jax.default_matmul_precision("highest"):
        yield request.param


@pytest.mark.parametrize("name", MODELS)
def test_logits(name, dtype):
    reading, stored = read(name, dtype), np.load(REFERENCE / "expected" / name / "logits.npz")
    key = "logits64_{}" if dtype == "float64" else "logits_{}"
    for i, length in enumerate(reading.lengths):
        ours, theirs = reading.logits[i, :length], stored[key.format(i)]
        assert ours.dtype == dtype
        if dtype == "float64":
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=LOGITS[name, dtype])
        else:
            assert_close(ours, theirs, LOGITS[name, dtype], f"text {i}")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wrt", ["sequence", "last"])
def test_jacobians(name, dtype, wrt):
    """Frobenius norms and sigma_1 of all texts; every singular value and position of the first three."""
    reading = read(name, dtype)
    sweep = jax.jit(functools.partial(sequence_sweep if wrt == "sequence" else last_token_sweep, reading.lm))
    factor = output_factor(reading.lm, reading.params)
    singular_values, position_norms, *_ = sweep(reading.params, factor, reading.hidden, reading.lengths)
    assert singular_values.dtype == dtype
    for layer in range(reading.lm.config.num_layers):
        expected = reading.expected["layers"][str(layer)]
        sigma = np.asarray(singular_values[layer], np.float64)
        frobenius = np.linalg.norm(sigma, axis=1)
        np.testing.assert_allclose(frobenius, expected[f"frobenius_{wrt}"], rtol=NORMS[dtype])
        np.testing.assert_allclose(sigma[:, 0], expected[f"sigma1_{wrt}"], rtol=NORMS[dtype])
        for text in range(3):
            stored = reading.spectra[f"{wrt}_l{layer}_t{text}"]
            full = np.zeros(len(stored))  # J has more singular values than the width; the rest are zero
            full[: sigma.shape[1]] = sigma[text]
            assert_close(full, stored, NORMS[dtype], f"layer {layer}, text {text}")
            if wrt == "sequence":
                norms = reading.spectra[f"position_fro_l{layer}_t{text}"]
                assert_close(position_norms[layer, text, : len(norms)], norms, NORMS[dtype])
                assert not position_norms[layer, text, len(norms) :].any()


@pytest.mark.parametrize("name", MODELS)
def test_the_expected_gain_predicts_the_sampled_sensitivities(name):
    """400 draws with epsilon 0.01, for every layer and the first three texts."""
    folder = REFERENCE / "expected" / name
    expected = json.loads((folder / "jacobian.json").read_text(encoding="utf-8"))["layers"]
    scores = []
    with np.load(folder / "spectra.npz") as spectra:
        for layer, fields in expected.items():
            for text, (mean, error) in enumerate(
                fields["finite_difference_eps0.01_mean_and_stderr_first3texts"]
            ):
                sigma = spectra[f"sequence_l{layer}_t{text}"]
                inputs = 64 * len(spectra[f"position_fro_l{layer}_t{text}"])
                gain = expected_gain(sigma, inputs)
                exact_error = np.sqrt((rms_gain(sigma, inputs) ** 2 - gain**2) / 400)
                assert error == pytest.approx(exact_error, rel=0.25)
                scores.append((mean - gain) / exact_error)
    assert np.abs(scores).max() < 4
    # Layers of a text share their draws, so this is loose.
    assert 0.3 < np.std(scores) < 2


def test_the_expected_gains_of_the_design():
    for name, values in [("gpt2-mini", (3.332, 4.767, 3.488)), ("mamba-mini", (6.975, 8.998, 6.823))]:
        with np.load(REFERENCE / "expected" / name / "spectra.npz") as spectra:
            for text, value in enumerate(values):
                inputs = 64 * len(spectra[f"position_fro_l1_t{text}"])
                assert round(expected_gain(spectra[f"sequence_l1_t{text}"], inputs), 3) == value


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_text_alone(name, dtype):
    """Batch and padding move the logits by rounding only."""
    reading = read(name, dtype)
    stored = np.load(REFERENCE / "expected" / name / "logits.npz")
    ids = jnp.asarray(stored["ids_1"], jnp.int32)[None]
    alone = jax.jit(reading.lm.forward)(reading.params, ids).logits[0]
    tolerance = {"float32": 5e-6, "float64": 1e-13}[dtype]
    assert_close(alone, reading.logits[1, : ids.shape[1]], tolerance)
