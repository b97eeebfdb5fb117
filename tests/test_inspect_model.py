"""`python -m jaxprobe.inspect_model`: what it prints, and that --verify tells right from wrong."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from checkpoints import edit_config, write
from support import TINY

from jaxprobe import convert, inspect_model, runtime
from jaxprobe.convert import layout
from jaxprobe.errors import ProbeError
from jaxprobe.models import LanguageModel
from jaxprobe.run_configs import InspectRun


@pytest.fixture
def inspect(capsys, monkeypatch):
    """What the command prints; JAX keeps the settings of the tests."""
    monkeypatch.setattr(runtime, "configure", lambda compute: None)

    def call(*models, verify: bool = False) -> str:
        inspect_model.run(InspectRun(models=tuple(map(str, models)), verify=verify))
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("name", TINY)
def test_report(name, inspect, tmp_path):
    folder = write(tmp_path / "model", TINY[name])
    edit_config(folder, flux_capacitance=1.21)
    rows = [line.split() for line in inspect(folder).splitlines()]
    checkpoint = convert.load(folder)
    assert ["num_layers", "3"] in rows and ["unknown_fields", "flux_capacitance"] in rows
    assert ["sha256", checkpoint.certificate.sha256] in rows
    assert ["total", f"{checkpoint.certificate.parameter_count:,}", "100.0%"] in rows
    site = {"mamba": ["ssm_state", "[t,", "30]"], "gpt2": ["mlp_act", "[t,", "9]"]}[name]
    assert site in rows and ["block_out", "[t,", "6]"] in rows
    leaf = {
        "mamba": ["each:", "mixer/conv/kernel", "[4,", "10]", "40"],
        "gpt2": ["each:", "attention/c_attn/kernel", "[6,", "18]", "108"],
    }[name]
    assert leaf in [row[:-1] for row in rows]


def test_two_models_and_a_missing_one(inspect, tmp_path):
    folders = [write(tmp_path / name, config) for name, config in TINY.items()]
    printed = inspect(*folders)
    assert f"Mamba: {folders[0]}" in printed and f"GPT-2: {folders[1]}" in printed
    with pytest.raises(ProbeError, match="no such directory"):
        inspect(tmp_path / "missing")


def test_the_structure_needs_no_jax(tmp_path):
    folder = write(tmp_path / "model", TINY["mamba"])
    code = (
        "import sys; from jaxprobe import inspect_model; code = inspect_model.main();"
        "assert 'jax' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, f"--model={folder}"]
    assert subprocess.run(command, capture_output=True, check=True).stderr == b""


@pytest.mark.parametrize("name", TINY)
def test_verify(name, inspect, tmp_path):
    pytest.importorskip("torch")
    folder = write(tmp_path / "model", TINY[name])
    assert "from HF's in float32\n  logits " in inspect(folder, verify=True)


@pytest.mark.parametrize("name", TINY)
def test_verify_sees_each_parameter(name, tmp_path, monkeypatch):
    """A hundredth more on one leaf, and both logits and gradients are far outside rounding."""
    pytest.importorskip("torch")
    from jaxprobe import verify

    run_hf, theirs = verify._run_hf, []

    def run_hf_once(*arguments):
        theirs.append(theirs[0] if theirs else run_hf(*arguments))
        return theirs[0]

    monkeypatch.setattr(verify, "_run_hf", run_hf_once)
    folder = write(tmp_path / "model", TINY[name])
    checkpoint = convert.load(folder)
    lm = LanguageModel(checkpoint.config)
    right = verify.verify(lm, checkpoint.params, folder)
    assert right.logits.relative < verify.LOGITS_BAR
    assert right.gradients.keys() == {"/".join(path) for path in layout.flatten(checkpoint.params)}
    assert right.worst_gradient()[1].relative < 1e-4
    for path, _ in jax.tree.leaves_with_path(checkpoint.params):
        params = jax.tree.map_with_path(
            lambda at, leaf, path=path: leaf * np.float32(1.01 if at == path else 1), checkpoint.params
        )
        assert verify.verify(lm, params, folder).logits.relative > 2 * verify.LOGITS_BAR, path


def test_a_model_that_differs_from_hf_fails(inspect, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from jaxprobe import verify

    folder = write(tmp_path / "model", TINY["gpt2"])
    monkeypatch.setattr(verify, "LOGITS_BAR", -1.0)
    with pytest.raises(ProbeError, match="gives other logits than HF"):
        inspect(folder, verify=True)


def test_verify_without_torch(inspect, tmp_path, monkeypatch):
    folder = write(tmp_path / "model", TINY["gpt2"])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ProbeError, match=r"needs torch and transformers \(torch is not installed\)"):
        inspect(folder, verify=True)
