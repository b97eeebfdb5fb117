"""From a directory or a hub id to a local directory."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from jaxprobe.convert import tokenizer
from jaxprobe.errors import ProbeError, one_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

_TIMEOUT_S = 10.0

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
    if name and path.is_dir():
        return Location(path, None)
    if name and path.exists():
        raise ProbeError(f"a model must be a directory or a hub id, got the file {name}")
    if not _HUB_ID.fullmatch(name):
        raise ProbeError(f"no such directory, and not a hub id: {name!r}")
    return _download(name)


def _download(hub_id: str) -> Location:
    import huggingface_hub  # imported here: it takes 0.3 s that local directories need not pay
    from huggingface_hub.errors import RepositoryNotFoundError

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    reason = "HF_HUB_OFFLINE is set"
    if not offline:
        try:
            # snapshot_download asks the same without a time limit, and would hang on a silent network.
            huggingface_hub.HfApi().model_info(hub_id, timeout=_TIMEOUT_S)
        except RepositoryNotFoundError as error:
            raise ProbeError(
                f"{hub_id!r} is no local directory, and the hub has no such model (or it is private)"
            ) from error
        except Exception as error:  # of the client or of whichever network library it uses
            offline, reason = True, f"the hub cannot be reached ({one_line(error)})"
    try:
        directory = huggingface_hub.snapshot_download(
            hub_id, allow_patterns=list(PATTERNS), local_files_only=offline
        )
    except Exception as error:
        # A snapshot may lack only files we can do without; if not, the caller names what is missing.
        partial = getattr(error, "snapshot_path", None)
        if partial is None:
            reason = f"{reason} and the local cache does not hold it" if offline else one_line(error)
            raise ProbeError(f"{hub_id!r} is no local directory, and {reason}") from error
        directory = partial
    path = Path(directory)
    return Location(path, path.name if path.parent.name == "snapshots" else None)
