"""The machine: set JAX up once, before any array exists, and say afterwards what a run ran on."""

import datetime
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxprobe import __version__
from jaxprobe.errors import ProbeError
from jaxprobe.run_configs import Compute

SCHEMA_VERSION = 1  # of the manifest
MATMUL_PRECISION = "highest"  # TF32 and bfloat16 passes are off: they break exactness
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Machine:
    """Where a run computes."""

    platform: str  # cpu, gpu or tpu
    device_kind: str
    device_count: int
    cpu_cores: int  # those this process may use
    compile_cache: str | None  # folder, or None where compiled programs are not kept


def configure(compute: Compute) -> Machine:
    """Sets JAX up. Call before any array is made.

    Raises:
      ProbeError: when a GPU is asked for and JAX finds none.
    """
    # Read by XLA's C++ when jaxlib loads: its warnings about the CPU features of cached programs are noise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # LAPACK on CPU is OpenBLAS, whose idle threads spin: with another process on the cores, the QR of a small
    # matrix took 200 times longer with two threads than with one (BUILD_NOTES, "Spinning threads").
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import jax

    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    cache = _compile_cache(compute.compile_cache)
    if compute.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", compute.dtype == "float64")
    jax.config.update("jax_default_matmul_precision", MATMUL_PRECISION)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    try:
        devices = jax.devices("gpu" if compute.device == "gpu" else None)
    except RuntimeError as error:
        if compute.device != "gpu":
            raise ProbeError(f"JAX finds no device to compute on: {error}") from error
        raise ProbeError(
            "--device=gpu, but JAX finds no GPU; install the extra cuda12 or cuda13, or use --device=cpu"
        ) from error
    jax.config.update("jax_default_device", devices[0])
    return Machine(
        platform=devices[0].platform,
        device_kind=devices[0].device_kind,
        device_count=len(devices),
        cpu_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        compile_cache=cache,
    )


def _compile_cache(choice: str | None) -> str | None:
    """The folder of compiled programs, made and tried; None where there is to be none, or none can be."""
    if choice == "off":
        return None
    folder = Path(choice).expanduser() if choice else cache_root() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        print(f"note: compiled programs are not kept: {folder}: {error.strerror}", file=sys.stderr)
        return None
    return str(folder)


def cache_root() -> Path:
    """The folder of everything kept between runs: $JAXPROBE_CACHE, else ~/.cache/jaxprobe."""
    return Path(os.environ.get("JAXPROBE_CACHE") or "~/.cache/jaxprobe").expanduser()


def manifest(
    *,
    command: str,
    config: Any,
    machine: Machine,
    checkpoints: Mapping[str, Mapping[str, Any]],
    seconds: float,
    argv: Sequence[str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What a run was and what it ran on, JSON-ready: enough to repeat it.

    Args:
      command: the module, such as `jaxprobe.jacobian`.
      config: the run's config, a dataclass with a field `compute`.
      machine: what `configure` returned.
      checkpoints: model name -> conversion certificate.
      seconds: wall time so far.
      argv: the arguments as typed; default those of this process.
      **more: further entries, such as `protocol_version` or the scan that auto resolved to.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "arguments": list(sys.argv[1:] if argv is None else argv),
        "config": asdict(config),
        "versions": versions(),
        "git_revision": git_revision(),
        "machine": asdict(machine),
        "dtype": config.compute.dtype,
        "matmul_precision": MATMUL_PRECISION,
        "seed": config.compute.seed,
        "checkpoints": dict(checkpoints),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        **more,
    }


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of what the numbers depend on."""
    import importlib.metadata  # slow to import, and needed only once there are results

    packages = ("jax", "jaxlib", "flax", "numpy", "tokenizers", "safetensors")
    return {
        "jaxprobe": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def git_revision() -> str | None:
    """The commit of the checkout this package runs from, "+dirty" where files differ; None outside one."""
    try:
        top = _git("rev-parse", "--show-toplevel")
        if Path(top).resolve() != _PACKAGE.parent:  # some other project's repository around an installed copy
            return None
        return _git("rev-parse", "HEAD") + ("+dirty" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_PACKAGE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
