"""Long work in pieces whose results are plain arrays: to show progress, to keep what is done, to resume."""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

from jaxprobe.array_typing import np

Arrays = Mapping[str, np.ndarray]

_THREADS = 2


@dataclasses.dataclass(frozen=True)
class WorkUnit:
    """A piece of the work: a name that is unique within a model, and what computes its arrays."""

    name: str
    compute: Callable[[], Arrays]
    cost: float = 1.0  # about how long it takes beside others, in any one unit
    prepare: tuple[Callable[[], object], ...] = ()  # makes what it runs and needs; units may share these

    def __str__(self) -> str:
        return self.name


@contextlib.contextmanager
def prepared_in_threads(early: bool) -> Iterator[Callable[[WorkUnit], WorkUnit]]:
    """Gives units back that are prepared in threads, what they share once, and wait for that.

    Args:
      early: whether what is to be prepared is begun when a unit is given, in that order, while others run;
        else when it is the unit's turn, all of its own together.
    """
    threads = concurrent.futures.ThreadPoolExecutor(_THREADS, "prepare")
    begun = cache(threads.submit)

    def in_threads(unit: WorkUnit) -> WorkUnit:
        def begin() -> list[concurrent.futures.Future]:
            return [begun(prepare) for prepare in unit.prepare]

        def compute() -> Arrays:
            for each in begin():
                each.result()
            return unit.compute()

        if early:
            begin()
        return dataclasses.replace(unit, compute=compute)

    try:
        yield in_threads
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def parts_of(results: Mapping[str, Arrays], prefix: str) -> list[Arrays]:
    """The results of the units whose name begins so."""
    return [arrays for name, arrays in results.items() if name.startswith(prefix)]


def by_text(parts: Sequence[Arrays], name: str, axis: int = 0) -> np.ndarray:
    """An array of all parts together, in the order of the texts; each part names its own under `texts`.

    Args:
      parts: that have the array. name: of it.
      axis: which runs over the texts.
    """
    order = np.argsort(np.concatenate([part["texts"] for part in parts]))
    return np.take(np.concatenate([part[name] for part in parts], axis=axis), order, axis=axis)
