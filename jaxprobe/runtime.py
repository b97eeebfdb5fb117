"""The machine: set JAX up once, before any array exists, and say what a run runs on."""

import logging
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxprobe.errors import ProbeError
from jaxprobe.run_configs import Cluster, Compute

_MEETING_SECONDS = 120
# Without the first, two runs on a GPU may differ in the last digit, and a resumed one from an undisturbed
# one. Without the second, XLA looks so long for tiles of fused norms that GPT-2's sweep takes 2.5 times as
# long to compile (BUILD_NOTES, "On a GPU").
_GPU_FLAGS = {"xla_gpu_deterministic_ops": "true", "xla_disable_hlo_passes": "triton-softmax-rewriter"}
_OPTIMISATION, _EMITTERS = "xla_backend_optimization_level", "xla_cpu_use_fusion_emitters"
_WIDE = 256
_LIBRARY_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
MATMUL_PRECISION = "highest"  # TF32 and bfloat16 passes are off: they break exactness


@dataclass(frozen=True)
class Machine:
    """Where a run computes."""

    platform: str  # cpu, gpu or tpu
    device_kind: str
    device_count: int
    process_count: int
    cpu_cores: int  # those this process may use
    compile_cache: str | None  # folder, or None where compiled programs are not kept


def sound_reductions() -> None:
    """Keeps XLA on CPU from handing sums to YNNPACK. It counts until JAX compiles its first program.

    What jaxlib 0.10.2 fuses with a sum can come out wrong, and nothing is said: the pullback of a LayerNorm
    was 14% off for 64 cotangents of 64 tokens (BUILD_NOTES, "Sums on CPU").
    """
    _add_flags({_LIBRARY_FUSIONS: "-reduce"})


def _add_flags(flags: Mapping[str, str]) -> None:
    # XLA's, for what the user has not set.
    for name, value in flags.items():
        given = os.environ.get("XLA_FLAGS", "")
        if name not in given:
            os.environ["XLA_FLAGS"] = f"{given} --{name}={value}".strip()


@cache
def check_reductions() -> None:
    """Runs a small program, on a CPU, that comes out wrong where `sound_reductions` came too late.

    Raises:
      ProbeError: it is wrong.
    """
    import jax
    import numpy as np

    if jax.default_backend() != "cpu":
        return
    rows = np.arange(3 * 40_000, dtype=np.float32).reshape(-1, 3) % 1000  # at this size, a fifth is wrong
    of_row = jax.vmap(lambda row, matrix: ((matrix @ row) ** 2).sum(), (0, None))
    found = np.asarray(jax.jit(of_row)(rows, np.eye(3, dtype=np.float32)))
    if not np.allclose(found, np.square(rows).sum(axis=1), rtol=1e-3):
        raise ProbeError(
            f"sums that jaxlib {version('jaxlib')} compiles for this CPU are wrong, and JAX began before "
            f"jaxprobe could prevent it: import jaxprobe first, or set XLA_FLAGS=--{_LIBRARY_FUSIONS}=-reduce"
        )


def compiler_options(hidden_size: int, mostly_products: bool = False) -> dict[str, Any]:
    """XLA's options for the programs of a model.

    On a CPU a wide model's time goes into products of matrices, which a library has. XLA's own code, less
    optimised, then runs no slower and compiles faster (BUILD_NOTES, "Compiling and loading less").

    Args:
      hidden_size: of the model.
      mostly_products: whether so much of the program's time does that its other code may be as XLA's older
        generator writes it, which is slower code, sooner written.
    """
    import jax

    if hidden_size < _WIDE or jax.default_backend() != "cpu":
        return {}
    options = {_OPTIMISATION: 1} | ({_EMITTERS: False} if mostly_products else {})
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if name not in given}


def calm_lapack() -> None:
    """Gives each call of LAPACK one thread. It counts for the libraries, numpy's or JAX's, not yet loaded.

    On CPU it is OpenBLAS, whose idle threads spin: with another process on the cores, the QR of a small
    matrix took 200 times longer with two threads than with one (BUILD_NOTES, "Spinning threads").
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def lapack_threads() -> int:
    """How many calls of LAPACK do not get in each other's way: one a core, where each has one thread."""
    return usable_cores() if os.environ.get("OPENBLAS_NUM_THREADS") == "1" else 1


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure(compute: Compute, cluster: Cluster | None = None) -> Machine:
    """Sets JAX up. Call before any array is made; a second call with the same settings changes nothing.

    Args:
      compute: how to compute.
      cluster: processes to meet; this returns when all are there.

    Raises:
      ProbeError: when a GPU is asked for and JAX finds none, or the processes do not meet.
    """
    # Read by XLA's C++ when jaxlib loads: its warnings about the CPU features of cached programs are noise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    calm_lapack()
    if compute.device != "cpu":
        _add_flags(_GPU_FLAGS)
    import jax

    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    cache = _compile_cache(compute.compile_cache)
    if compute.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", compute.dtype == "float64")
    jax.config.update("jax_default_matmul_precision", MATMUL_PRECISION)
    # A text's draws do not depend on its padding, nor a run's on what the environment says of JAX.
    jax.config.update("jax_default_prng_impl", "threefry2x32")
    jax.config.update("jax_threefry_partitionable", True)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if cluster is not None:
        _meet(cluster)
    try:
        devices = jax.devices("gpu" if compute.device == "gpu" else None)
    except RuntimeError as error:
        if compute.device != "gpu":
            raise ProbeError(f"JAX finds no device to compute on: {error}") from error
        raise ProbeError(
            "--device=gpu, but JAX finds no GPU; install the extra cuda12 or cuda13, or use --device=cpu"
        ) from error
    jax.config.update("jax_default_device", jax.local_devices(backend=devices[0].platform)[0])
    return Machine(
        platform=devices[0].platform,
        device_kind=_cpu_name() if devices[0].platform == "cpu" else devices[0].device_kind,
        device_count=len(devices),
        process_count=jax.process_count(),
        cpu_cores=usable_cores(),
        compile_cache=cache,
    )


def _meet(cluster: Cluster) -> None:
    import jax

    if jax.distributed.is_initialized():
        return
    automatic = cluster.coordinator == "auto"
    try:
        jax.distributed.initialize(
            None if automatic else cluster.coordinator,
            cluster.num_processes,
            cluster.process,
            initialization_timeout=_MEETING_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise ProbeError(
            f"--coordinator={cluster.coordinator}: the processes do not meet: {' '.join(str(error).split())}"
        ) from error


def _cpu_name() -> str:
    """The make of the CPU, for which XLA compiles; JAX says no more of it than "cpu"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
