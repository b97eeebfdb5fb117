"""Converted parameters kept between runs, as Orbax checkpoints keyed by the hash of their source.

An entry is a directory `SHA256-DTYPE-v1` with the Orbax checkpoint and a manifest that gives each leaf's
shape and checksum. It is written beside its place and renamed into it, so it is whole or absent, whoever
else writes at the same time. An entry that fails its checksums is set aside and rebuilt. Nothing that goes
wrong here stops a run: the parameters can always be converted again.

Below 2 GiB of weights an entry saves less than importing Orbax takes, so smaller checkpoints are left alone
unless a directory is asked for.
"""

import json
import logging
import os
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np

from jaxprobe.configs import ModelConfig
from jaxprobe.convert import layout
from jaxprobe.errors import one_line

MINIMUM_BYTES = 2 << 30  # of weights; below it, reading the source takes no longer than reading an entry
_VERSION = "v1"  # of the parameter tree and of the manifest
_MANIFEST = "manifest.json"
_PARAMS = "params"

_log = logging.getLogger("jaxprobe.convert")


def entries_folder(cache_dir: Path | None, weight_bytes: int) -> Path | None:
    """Where entries are kept; None for a small source without a directory asked for."""
    if cache_dir is None:
        if weight_bytes < MINIMUM_BYTES:
            return None
        cache_dir = Path(os.environ.get("JAXPROBE_CACHE") or "~/.cache/jaxprobe").expanduser() / "params"
    return cache_dir.absolute()


def entry_path(folder: Path, sha256: str, dtype: str) -> Path:
    """Where the parameters of a source are kept."""
    return folder / f"{sha256}-{dtype}-{_VERSION}"


def restore(entry: Path, config: ModelConfig, dtype: str) -> layout.Params | None:
    """The parameters of an entry; None where there is none, or a damaged one, which is said and cleared."""
    if not entry.is_dir():
        return None
    try:
        manifest = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
        params = _checkpointer().restore(entry / _PARAMS)
        if _describe(params) != manifest or layout.shapes_of(params) != layout.param_shapes(config):
            raise ValueError("its contents differ from its manifest")
        if {str(array.dtype) for array in layout.flatten(params).values()} != {dtype}:
            raise ValueError(f"it is not {dtype}")
        return params
    except Exception as error:  # Orbax, tensorstore, JSON and the file system each have their own
        _log.warning("rebuilding the damaged cache entry %s: %s", entry, one_line(error))
        _set_aside(entry)
        return None


def store(entry: Path, params: layout.Params) -> None:
    """Keeps parameters in an entry; where that fails, says so and goes on."""
    scratch = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))
        partial = scratch / entry.name
        partial.mkdir()
        _checkpointer().save(partial / _PARAMS, params)
        (partial / _MANIFEST).write_text(json.dumps(_describe(params)), encoding="utf-8")
        if not entry.exists():
            os.rename(partial, entry)
    except Exception as error:
        # When another process put its own entry there first, that one is as good as ours.
        if not entry.is_dir():
            _log.warning("cannot keep converted parameters in %s: %s", entry.parent, one_line(error))
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _checkpointer():
    import orbax.checkpoint as ocp  # takes seconds to import

    # Weights hardly compress, and compressing them makes saving and restoring twice as slow.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def _describe(params: layout.Params) -> dict[str, list]:
    """{path: [shape, checksum of the bytes]}, as it comes back from JSON."""
    return {
        "/".join(path): [list(array.shape), zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)]
        for path, array in layout.flatten(params).items()
    }


def _set_aside(entry: Path) -> None:
    """Removes an entry in one step as others see it."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".damaged-", dir=entry.parent))
        os.rename(entry, scratch / entry.name)
        shutil.rmtree(scratch, ignore_errors=True)
    except OSError:
        pass  # another process was faster, or it cannot be removed: then it stays, and is never believed
