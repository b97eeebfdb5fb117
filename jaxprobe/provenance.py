"""What a run was: the manifest, which decides its values, and the log of this one time that it was run."""

import datetime
import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxprobe import __version__
from jaxprobe.outputs import json_bytes
from jaxprobe.runtime import MATMUL_PRECISION, Machine

MANIFEST_SCHEMA_VERSION = 3  # since 2 times and places are in the run log; since 3 inputs have hashes
_PACKAGE = Path(__file__).resolve().parent
_SOURCES = (".py", ".html", ".css", ".js")
# Fields that decide no value: where something lies (checkpoints and texts are named by their hashes), which
# processes meet where, whether a page is written.
_PLACES = frozenset({"out", "compile_cache", "mamba", "gpt2", "models", "texts", "text", "cluster", "report"})


def manifest(
    *,
    command: str,
    config: Any,
    machine: Machine,
    checkpoints: Mapping[str, Mapping[str, Any]],
    inputs: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """What decides a run's values, JSON-ready: two runs with one manifest give the same bytes of results.

    No times, and not where models, texts and results lie: that is in `run_log`. On a GPU the same bytes need
    the deterministic operations that `jaxprobe.runtime` asks for.

    Args:
      command: the module, such as `jaxprobe.jacobian`.
      config: the run's config, a dataclass with a field `compute`.
      machine: what `configure` returned.
      checkpoints: model name -> conversion certificate.
      inputs: what the models read, by name: texts, relations. Their hashes stand in the manifest.
      **more: further entries, such as `protocol_version` or the scan that auto resolved to.
    """
    return {
        "schema_version": MANIFEST_SCHEMA_VERSION,
        "command": command,
        "config": _without(_PLACES, asdict(config)),
        "versions": versions(),
        "source_sha256": source_sha256(),
        "machine": _without(_PLACES, asdict(machine)),
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "openblas_num_threads": os.environ.get("OPENBLAS_NUM_THREADS"),  # of numpy's LAPACK
        "dtype": config.compute.dtype,
        "matmul_precision": MATMUL_PRECISION,
        "seed": config.compute.seed,
        "checkpoints": {
            name: {**certificate, "source": source_name(certificate["source"])}
            for name, certificate in checkpoints.items()
        },
        "inputs_sha256": {name: _sha256(value) for name, value in inputs.items()},
        **more,
    }


def _sha256(value: Any) -> str:
    return hashlib.sha256(json_bytes(value)).hexdigest()


def run_log(
    config: Any, machine: Machine, seconds: float, *, argv: Sequence[str] | None = None, **more: Any
) -> dict[str, Any]:
    """What may differ between two runs of the same results, JSON-ready: when, where and how they were made.

    Args:
      config: the run's config, a dataclass.
      machine: what `configure` returned.
      seconds: wall time of this process so far; a resumed run's earlier processes are not counted.
      argv: the arguments as typed; default those of this process.
      **more: further entries, such as where the texts are from.
    """
    return {
        "arguments": list(sys.argv[1:] if argv is None else argv),
        "config": asdict(config),
        "machine": asdict(machine),
        "host": socket.gethostname(),
        "git_revision": git_revision(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        **more,
    }


def _without(names: Set[str], value: Any) -> Any:
    """Nested dictionaries without the entries of these names."""
    if not isinstance(value, Mapping):
        return value
    return {key: _without(names, entry) for key, entry in value.items() if key not in names}


def source_name(source: str) -> str:
    """A checkpoint's name wherever it lies: a directory's own name, or the hub id."""
    path = Path(source).expanduser()
    return path.resolve().name if path.is_dir() else source


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of what the numbers and the pictures depend on."""
    import importlib.metadata  # slow to import, and needed only once there are results

    packages = (
        "jax", "jaxlib", "flax", "numpy", "scipy", "matfree", "tokenizers", "safetensors", "matplotlib"
    )  # fmt: skip
    return {
        "jaxprobe": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def source_sha256() -> str:
    """A hash of this package's code, which tells apart two states of a checkout that share a version."""
    digest = hashlib.sha256()
    folders = os.walk(_PACKAGE, followlinks=True)  # in a checkout some are symlinks
    files = [Path(folder) / name for folder, _, names in folders for name in names if name.endswith(_SOURCES)]
    for file in sorted(files):
        digest.update(f"{file.relative_to(_PACKAGE).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()


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
