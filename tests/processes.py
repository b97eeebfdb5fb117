"""The Jacobian command as processes of their own, on tiny checkpoints: to be killed, or paired."""

import os
import subprocess
import sys
from pathlib import Path

import checkpoints
from support import TINY

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["w1 w2 w3", "w4 w5 w6 w7 w8", "w9 w10 w1 w2", "w3 w1", "w5 w5 w5 w1 w1 w2 w9"]


def jacobian_starter(base: Path):
    """A function that starts the command, with all its output in one pipe.

    It takes the results folder, further arguments, the number of devices that XLA is to make of the CPU, and
    Python to run before the command does, where its module is `jacobian`.
    """
    pair = [f"--{name}={checkpoints.write(base / name, config)}" for name, config in TINY.items()]
    command = [
        *(*pair, *(f"--text={text}" for text in TEXTS)),
        *("--batch_tokens=16", "--num_samples=3", "--device=cpu", f"--compile_cache={base / 'programs'}"),
    ]
    environment = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # seconds of compiling less
        "PYTHONUNBUFFERED": "1",
    }

    def start(out: Path, *more: str, devices: int = 1, before: str = "") -> subprocess.Popen:
        # The module, which a function of the package hides.
        command_of = 'import importlib, sys\njacobian = importlib.import_module("jaxprobe.jacobian")'
        program = ["-c", f"{command_of}\n{before}\nsys.exit(jacobian.main())"]
        run = program if before else ["-m", "jaxprobe.jacobian"]
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"} if devices > 1 else {}
        return subprocess.Popen(
            [sys.executable, *run, *command, f"--out={out}", *more],
            cwd=ROOT, env=environment | flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


def finished(process: subprocess.Popen) -> str:
    """What the process printed; it must have ended well."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out
