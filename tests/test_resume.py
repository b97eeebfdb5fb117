"""A run killed by SIGKILL, whenever, ends with the same bytes of results as one that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import pytest
from support import TINY

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["w1 w2 w3", "w4 w5 w6 w7 w8", "w9 w10 w1 w2", "w3 w1", "w5 w5 w5 w1 w1 w2 w9"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the command as a process of its own, into a folder."""
    base = tmp_path_factory.mktemp("resume")
    pair = [f"--{name}={checkpoints.write(base / name, config)}" for name, config in TINY.items()]
    command = [
        *(sys.executable, "-m", "jaxprobe.jacobian", *pair, *(f"--text={text}" for text in TEXTS)),
        *("--batch_tokens=16", "--num_samples=3", "--device=cpu", f"--compile_cache={base / 'programs'}"),
    ]
    environment = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # seconds of compiling less
        "PYTHONUNBUFFERED": "1",
    }

    def call(out, *more):
        return subprocess.Popen(
            [*command, f"--out={out}", *more],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return call


def finished(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def parts(out):
    return len(list(out.glob(".partial/jacobian/*.unit")))


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_twice_it_ends_with_the_same_bytes(start, tmp_path):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "disturbed"
    finished(start(undisturbed))
    expected = files(undisturbed)

    process, rng = start(out), random.Random(4)
    count, delay = rng.randint(1, 4), rng.uniform(0, 0.1)
    while parts(out) < count and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    kill(process)
    kept = parts(out)
    assert kept >= count

    process = start(out)
    seen = next(line for line in process.stdout if "Ratio Mamba / GPT-2" in line)  # the files come next
    kill(process)
    assert seen and parts(out) > kept and files(out).keys().isdisjoint(expected)

    said = finished(start(out))
    assert "Mamba: resumes an interrupted run, " in said and "GPT-2: resumes an interrupted run, " in said
    found = files(out)
    assert found.keys() == expected.keys() and sorted(os.listdir(out)) == sorted(os.listdir(undisturbed))
    assert {name for name in found if found[name] != expected[name]} == {"jacobian_run.log"}
