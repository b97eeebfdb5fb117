"""From a directory or a hub id to a local directory."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from jaxprobe.convert import tokenizer
from jaxprobe.errors import ProbeError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

# Nothing else is fetched: no pickles, no copies of the weights for other frameworks.
PATTERNS = (
    "config.json", "generation_config.json", *tokenizer.FILES,
    "model.safetensors", "model.safetensors.index.json", "model-*.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lies on this machine."""

    directory: Path
    revision: str | None  # the hub commit, where it came from the hub


def resolve(id_or_dir: str | os.PathLike) -> Location:
    """The directory of a checkpoint, downloaded from the hub where it is no local one.

    HF_HUB_OFFLINE, HF_HOME and the local hub cache are honoured; with no network, what the cache holds is
    used.

    Raises:
      ProbeError: when it is neither a directory nor an id that hub or cache can serve.
    """
    name = os.fspath(id_or_dir)
    path = Path(name).expanduser()
    if path.is_dir():
        return Location(path, None)
    if path.exists():
        raise ProbeError(f"a model must be a directory or a hub id, got the file {name}")
    if not _HUB_ID.fullmatch(name):
        raise ProbeError(f"no such directory, and not a hub id: {name!r}")
    return _download(name)


def _download(hub_id: str) -> Location:
    import huggingface_hub  # imported here: it takes 0.3 s that local directories need not pay

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    try:
        directory = huggingface_hub.snapshot_download(
            hub_id, allow_patterns=list(PATTERNS), local_files_only=offline
        )
    except Exception as error:  # the client's own, requests', httpx' and the file system's: all end here
        reason = "HF_HUB_OFFLINE is set and it is not in the local cache" if offline else _one_line(error)
        raise ProbeError(f"{hub_id!r} is no local directory, and no hub model I can get: {reason}") from error
    path = Path(directory)
    return Location(path, path.name if path.parent.name == "snapshots" else None)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
