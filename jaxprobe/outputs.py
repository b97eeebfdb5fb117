"""Results on disk: whole or not at all, and a journal that lets long work resume.

A file is written beside its final place, flushed to the disk, then renamed over it, so that an interruption,
a full disk or a second process never leaves half of one.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from jaxprobe.errors import ProbeError

_PROBE_BYTES = 1 << 16


def check_writable(out: Path) -> None:
    """Finds out, before any long work, whether results can be written to `out`; leaves nothing behind.

    Raises:
      ProbeError: when `out` is a file, cannot be made or written, or the disk is full.
    """
    try:
        if out.exists() and not out.is_dir():
            raise ProbeError(f"--out={out} must be a folder, but it is a file")
        missing = [folder for folder in (out, *out.parents) if not folder.exists()]
        try:
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=out, prefix=".probe-") as probe:
                probe.write(bytes(_PROBE_BYTES))
                probe.flush()
                os.fsync(probe.fileno())
        finally:
            for folder in missing:
                with contextlib.suppress(OSError):  # never made, or in use by now
                    folder.rmdir()
    except OSError as error:
        raise ProbeError(f"--out={out} cannot be written: {error.strerror}") from error


def write_files(out: Path, files: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Writes all the files under `out`, or none: every one is on the disk before the first is renamed.

    Args:
      out: the results folder; it and sub-folders are made.
      files: path relative to `out` -> contents.

    Returns:
      The paths written, in order.

    Raises:
      ProbeError: when one cannot be written.
    """
    staged: dict[Path, str] = {}
    try:
        try:
            for name, data in files.items():
                target = out / name
                if target.is_dir():
                    raise ProbeError(f"{target} must be a file, but it is a folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                staged[target] = _stage(target, data)
            for target, temporary in staged.items():
                os.replace(temporary, target)
        finally:
            for temporary in staged.values():
                Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise ProbeError(f"results cannot be written to {out}: {error.strerror}") from error
    return tuple(staged)


def _stage(target: Path, data: bytes) -> str:
    """Writes `data` to a temporary file beside `target`; returns its path."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it readable by its owner alone
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def json_bytes(value: Any) -> bytes:
    """Strict JSON, UTF-8, indented: dataclasses as objects, arrays as lists, NaN and infinities as null."""
    return (json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def plain(value: Any, *, finite: bool = True) -> Any:
    """The value in JSON's own types. With `finite`, NaN and infinities, which JSON lacks, become None."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return None if finite and not math.isfinite(value) else float(value)
        case PurePath():
            return str(value)
        case Mapping():
            return {str(key): plain(entry, finite=finite) for key, entry in value.items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in dataclasses.fields(value)]
            return {name: plain(getattr(value, name), finite=finite) for name in names}
        case Sequence() | set() | frozenset():
            return [plain(entry, finite=finite) for entry in value]
        case _ if hasattr(value, "tolist"):  # an array or a scalar of numpy's or JAX's
            return plain(value.tolist(), finite=finite)
    raise TypeError(f"no JSON for {type(value).__name__}")


def csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A table, UTF-8: floats with every digit, an empty cell for None and for what is not finite.

    Raises:
      ValueError: when a row has other columns.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        if row.keys() != set(columns):
            raise ValueError(f"a row has the columns {sorted(row)}, expected {sorted(columns)}")
        writer.writerow(plain(row))
    return text.getvalue().encode()


class Journal:
    """Finished units of long work, one small file each, so that an interrupted run resumes.

    The units live in `out/.partial/KEY`, where KEY is a hash of everything that decides their values: another
    config, checkpoint or code version finds none of them.

        journal = Journal(out, {"config": config, "checkpoints": hashes, "schema_version": 1})
        value = journal.get("mamba-3")
        if value is None:
            value = journal.put("mamba-3", compute())
        ...
        journal.remove()  # the results are written
    """

    def __init__(self, out: Path, key: Mapping[str, Any]):
        digest = hashlib.sha256(json.dumps(plain(key), sort_keys=True).encode()).hexdigest()
        self.folder = out / ".partial" / digest[:32]

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.json"))

    def get(self, unit: str) -> Any:
        """The unit's value, or None where it is not finished (or its file is damaged)."""
        try:
            return json.loads((self.folder / f"{unit}.json").read_bytes())
        except (OSError, ValueError):
            return None

    def put(self, unit: str, value: Any) -> Any:
        """Keeps the unit's value, anything JSON-ready; returns it as `get` will, NaN and infinities included.

        Raises:
          ProbeError: when it cannot be written.
        """
        value = plain(value, finite=False)
        write_files(self.folder, {f"{unit}.json": json.dumps(value).encode()})
        return value

    def remove(self) -> None:
        """Forgets every unit, once the results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run's units are there, or nothing is
            self.folder.parent.rmdir()
