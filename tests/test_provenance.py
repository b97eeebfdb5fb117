"""The manifest decides a run's values and says nothing else; the log says the rest."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from jaxprobe import outputs, provenance, runtime
from jaxprobe.run_configs import Compute, JacobianRun

ROOT = Path(__file__).resolve().parents[1]
CPU = runtime.Machine("cpu", "a make of CPU", 1, 1, 2, None)


def manifest(config=None, machine=CPU, source="gpt2", texts=("one",)):
    certificate = {"source": source, "sha256": "0"}
    return provenance.manifest(
        command="jaxprobe.jacobian", config=config or JacobianRun(), machine=machine,
        checkpoints={"gpt2": certificate}, inputs={"texts": texts}, protocol_version=1,
    )  # fmt: skip


def test_the_manifest_is_enough_to_repeat_a_run():
    made = manifest(JacobianRun(layer=1, epsilon=0.5, compute=Compute(seed=3)), source="state-spaces/mamba")
    assert made["config"]["layer"] == 1 and made["config"]["epsilon"] == 0.5 and made["seed"] == 3
    assert made["checkpoints"] == {"gpt2": {"source": "state-spaces/mamba", "sha256": "0"}}
    packages = {"jaxprobe", "jax", "jaxlib", "flax", "numpy", "python", "matplotlib"}
    assert packages <= made["versions"].keys()
    assert made["machine"]["device_kind"] == "a make of CPU" and made["matmul_precision"] == "highest"
    assert made["protocol_version"] == 1 and len(made["source_sha256"]) == 64


def test_the_manifest_holds_no_time_and_no_place(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere" / "model"
    elsewhere.mkdir(parents=True)
    (tmp_path / "model").mkdir()
    config = JacobianRun(mamba="a", gpt2=str(tmp_path / "model"), texts="a.txt", out=tmp_path / "a")
    moved = JacobianRun(
        mamba="b",
        gpt2=str(elsewhere),
        texts="b.txt",
        out=tmp_path / "b",
        compute=Compute(compile_cache="off"),
    )
    first = manifest(config, source=config.gpt2)
    monkeypatch.setattr(sys, "argv", ["program", "--else"])
    second = manifest(moved, replace(CPU, compile_cache="somewhere"), source=moved.gpt2)
    assert outputs.json_bytes(first) == outputs.json_bytes(second)
    assert str(tmp_path) not in json.dumps(outputs.plain(first))


def test_the_manifest_tells_other_texts_apart():
    """Counts and lengths may be the same: the texts decide the values."""
    first, same, other = (manifest(texts=texts) for texts in (("a", "b"), ("a", "b"), ("b", "a")))
    assert first == same
    assert first["inputs_sha256"] != other["inputs_sha256"]


def test_the_log_says_when_and_where(tmp_path):
    config = JacobianRun(mamba="m", out=tmp_path)
    made = provenance.run_log(config, CPU, 1.23456, argv=["--layer=1"], texts_origin="a.txt")
    assert made["config"]["out"] == tmp_path and made["config"]["mamba"] == "m"
    assert made["arguments"] == ["--layer=1"] and made["texts_origin"] == "a.txt"
    assert made["seconds"] == 1.235 and made["finished"].endswith("+00:00")


def test_the_hash_of_the_code_covers_every_folder(tmp_path, monkeypatch):
    for name in ("jaxprobe", "kernels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("1")
    os.symlink("../kernels", tmp_path / "jaxprobe" / "kernels")
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "jaxprobe")
    hashes = [provenance.source_sha256()]
    for change in (
        lambda: (tmp_path / "kernels" / "a.py").write_text("2"),
        lambda: (tmp_path / "jaxprobe" / "a.py").rename(tmp_path / "jaxprobe" / "b.py"),
    ):
        change()
        hashes.append(provenance.source_sha256())
    assert len(set(hashes)) == 3
    (tmp_path / "jaxprobe" / "notes.txt").write_text("no code")
    assert provenance.source_sha256() == hashes[-1]


def test_a_revision_is_given_only_for_this_projects_own_checkout(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "x"]
    subprocess.run(["git", "-C", tmp_path, *commit], check=True)
    (tmp_path / "lib" / "jaxprobe").mkdir(parents=True)
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "lib" / "jaxprobe")
    assert provenance.git_revision() is None  # installed inside somebody else's repository
    (tmp_path / "jaxprobe").mkdir()
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "jaxprobe")
    assert len(provenance.git_revision() or "") == 40
    (tmp_path / "new").write_text("")
    assert (provenance.git_revision() or "").endswith("+dirty")
