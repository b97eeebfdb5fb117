"""Finished parts of long work, kept so that a run killed at any moment resumes to the same results.

The store of a command is the folder `OUT/.partial/COMMAND`:

    header.json  the run's identity, everything that decides its values; and its plan, how the work is cut
    NAME.unit    a finished part: the SHA-256 of the header and of what follows, then arrays as numpy's .npz

The header is written before any part and removed before any, so what a kill leaves is either a run to resume
or nothing to keep. Two processes must not share a store: `jaxprobe.claim` sees to that.
"""

import contextlib
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from jaxprobe import progress
from jaxprobe.errors import ProbeError
from jaxprobe.outputs import plain, write_files
from jaxprobe.texts import shorten
from jaxprobe.work import WorkUnit

Arrays = dict[str, np.ndarray]

_HEADER = "header.json"
_PART = ".unit"  # ends the name of a finished part
_SEAL_BYTES = hashlib.sha256().digest_size
_MOST_NAMED = 3  # differences that a refusal names


@dataclass(frozen=True)
class Store:
    """The finished parts of one run.

        store = Store.open(out, "jacobian", identity=manifest, plan=make_plan)
        arrays = store.complete("Mamba", [WorkUnit("exact-0", lambda: compute(store.plan, 0)), ...])
        ...
        store.remove()  # the results are written

    Attributes:
      folder: where the parts are.
      plan: how the work is cut, as the first of the resumed runs planned it, in JSON's own types.
      header: the header's bytes; every part is sealed with them.
    """

    folder: Path
    plan: Mapping[str, Any]
    header: bytes

    @classmethod
    def open(
        cls, out: Path, command: str, *, identity: Mapping[str, Any], plan: Callable[[], Mapping[str, Any]]
    ) -> "Store":
        """The store of the unfinished run in `out`, or a new one.

        Args:
          out: the results folder.
          command: the command's name; each has a store of its own.
          identity: all that decides the values, JSON-ready, nested as deep as one likes, causes before what
            follows from them: a refusal names the first entry that differs. Under `config` are flags.
          plan: makes the plan, JSON-ready. Called for a new store only: a plan may depend on what the moment
            offers, such as free memory, and a resumed run keeps the one that it began with.

        Raises:
          ProbeError: when the unfinished run there has another identity, or a new store cannot be written.
        """
        folder = out / ".partial" / command
        header, asked = _read_header(folder), json.loads(json.dumps(plain(identity, finite=False)))
        if header is not None and json.loads(header)["identity"] != asked and not _has_parts(folder):
            header = None  # that run finished nothing: it was refused, or killed at once
        if header is None:
            shutil.rmtree(folder, ignore_errors=True)  # parts of nobody's: a removal that was killed
            header = json.dumps({"identity": asked, "plan": plain(plan())}).encode()
            write_files(folder, {_HEADER: header})
        kept = json.loads(header)
        _refuse_another(folder, kept["identity"], asked)
        return cls(folder, kept["plan"], header)

    def has(self, title: str, unit: WorkUnit) -> bool:
        """Whether a unit under a title is kept, sound or not."""
        return self._file(f"{title}-{unit.name}").exists()

    def get(self, name: str) -> Arrays | None:
        """The arrays of a part, or None where it is not finished. A damaged one is not, and that is said."""
        file = self._file(name)
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return _say(f"{file} cannot be read ({error.strerror}) and is computed again")
        seal, arrays = data[:_SEAL_BYTES], data[_SEAL_BYTES:]
        if seal != self._seal(arrays):
            return _say(f"{file} is damaged and is computed again")
        return _arrays(arrays)

    def put(self, name: str, arrays: Mapping[str, Any]) -> Arrays:
        """Keeps the arrays of a part: all of them or, killed in the middle, none.

        Returns:
          The arrays as `get` will give them, in layout too: numpy may sum another layout in another order.

        Raises:
          ProbeError: when they cannot be written.
        """
        buffer = io.BytesIO()
        plain_arrays: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
        np.savez(buffer, **plain_arrays)
        data = buffer.getvalue()
        file = self._file(name)
        write_files(file.parent, {file.name: self._seal(data) + data})
        return _arrays(data)

    def complete(
        self,
        title: str,
        units: Sequence[WorkUnit],
        announce: Callable[[list[str]], object] = lambda missing: None,
        later: float = 0.0,
    ) -> dict[str, Arrays]:
        """The arrays of every unit, in order: what is kept, and the rest computed and kept, with progress.

        Args:
          title: of the work, such as the model's name; units of two titles may share a name.
          units: the pieces of the work.
          announce: told the names of those to be computed, in order, before the first is.
          later: the cost of what follows under other titles.
        """
        kept = {unit.name: self.get(f"{title}-{unit.name}") for unit in units}
        missing = [unit for unit in units if kept[unit.name] is None]
        if len(missing) < len(units):
            done = len(units) - len(missing)
            print(f"{title}: resumes an interrupted run, {done} of {len(units)} parts are done")
        announce([unit.name for unit in missing])
        for unit in progress.track(missing, title, costs=[unit.cost for unit in missing], later=later):
            kept[unit.name] = self.put(f"{title}-{unit.name}", unit.compute())
        return {name: arrays for name, arrays in kept.items() if arrays is not None}

    def remove(self) -> None:
        """Forgets every part, once the results are written."""
        # Without its header the rest is nobody's, should this be the moment of the kill.
        (self.folder / _HEADER).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another command's store is there
            self.folder.parent.rmdir()

    def _file(self, name: str) -> Path:
        return self.folder / f"{quote(name, safe='')}{_PART}"  # a name may hold a model's id with its slash

    def _seal(self, data: bytes) -> bytes:
        return hashlib.sha256(hashlib.sha256(self.header).digest() + data).digest()


def _arrays(data: bytes) -> Arrays:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _say(problem: str) -> None:
    print(f"note: {problem}", file=sys.stderr)


def _read_header(folder: Path) -> bytes | None:
    try:
        header = (folder / _HEADER).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProbeError(f"{folder / _HEADER} cannot be read: {error.strerror}") from error
    try:
        if json.loads(header).keys() == {"identity", "plan"}:
            return header
    except (ValueError, AttributeError):
        pass
    return _say(f"{folder / _HEADER} is damaged: all parts of that run are computed again")


def _has_parts(folder: Path) -> bool:
    return any(folder.glob(f"*{_PART}"))


def _refuse_another(folder: Path, kept: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    before, now = dict(_entries(kept)), dict(_entries(mine))
    differ = [path for path in {**before, **now} if before.get(path) != now.get(path)]
    if not differ:
        return
    named = [path for path in differ if path[0] == differ[0][0]]  # the rest may well follow from these
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    theirs, ours = (
        ", ".join(_named(path, side.get(path)) for path in named[:_MOST_NAMED]) for side in (before, now)
    )
    raise ProbeError(
        f"{folder} holds an unfinished run with {theirs}{more}, but this run has {ours}{more}: "
        "finish that one as it was started, or remove that folder"
    )


def _entries(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every leaf of nested dictionaries and lists, with the keys that lead to it."""
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _entries(entry, (*path, str(key)))
    else:
        yield path, value


def _named(path: tuple[str, ...], value: Any) -> str:
    """An entry as a refusal names it: a flag as one types it."""
    flag = next(key for key in reversed(path) if not key.isdigit())  # a list's entries have numbers
    name = f"--{flag}" if path[0] == "config" else ".".join(path)
    return (
        f"no {name}"
        if value is None
        else f"{name}={value if isinstance(value, int | float) else shorten(value)}"
    )
