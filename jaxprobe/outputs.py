"""Results on disk: every file whole or not at all.

A file is written beside its final place, flushed to the disk, then renamed over it, so that an interruption,
a full disk or a kill never leaves half of one under its name.
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from jaxprobe.errors import ProbeError


def write_files(out: Path, files: Mapping[str, bytes], owned: Set[str] = frozenset()) -> tuple[Path, ...]:
    """Writes files under `out`, each whole or not at all: all are on the disk before the first is renamed.

    What a killed process leaves, `.NAME.partial` beside the file, is written over by the next to write that
    file: one process at a time may write into `out` (see `jaxprobe.claim`).

    Args:
      out: the results folder; it and sub-folders are made.
      files: path relative to `out` -> contents.
      owned: paths that a run of this kind may write. Those that this one did not are of an earlier run, whose
        results these are not, and are removed.

    Returns:
      The paths written, in order.

    Raises:
      ProbeError: when one cannot be written.
    """
    staged: dict[Path, Path] = {}
    try:
        try:
            for name, data in files.items():
                target = out / name
                if target.is_dir():
                    raise ProbeError(f"{target} must be a file, but it is a folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                staged[target] = target.with_name(f".{target.name}.partial")
                _write(staged[target], data)
            for target, temporary in staged.items():
                os.replace(temporary, target)
            for name in owned - files.keys():
                (out / name).unlink(missing_ok=True)
            for folder in {out, *(target.parent for target in staged)}:
                _sync_folder(folder)
        finally:
            for temporary in staged.values():
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ProbeError(f"results cannot be written to {out}: {error.strerror}") from error
    return tuple(staged)


def told(out: Path, paths: Sequence[Path]) -> str:
    """Where the files are, in a line each, and in one for all of a sub-folder."""
    folders = dict.fromkeys(path.parent for path in paths if path.parent != out)
    lines = [f"wrote {path}" for path in paths if path.parent == out]
    for folder in folders:
        names = sorted({path.stem for path in paths if path.parent == folder})
        suffixes = ", ".join(dict.fromkeys(path.suffix[1:] for path in paths if path.parent == folder))
        lines.append(f"wrote {folder}/: {', '.join(names)} ({suffixes})")
    return "\n".join(lines)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Puts a folder's list of files on the disk: without that a loss of power can undo a renaming."""
    with contextlib.suppress(OSError):  # some network file systems cannot, and keep their lists otherwise
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as numpy's .npz, uncompressed; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    plain_arrays: dict[str, Any] = dict(arrays)  # numpy's signature has a flag among its keywords
    np.savez(buffer, **plain_arrays)
    return buffer.getvalue()


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
