"""Progress of long loops, on stderr: a bar with the time left on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows how far it is.

    Args:
      items: what to go through.
      label: what is being done, such as "mamba: layers".
      total: how many items; needed where `items` has no length.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total, file=sys.stderr, leave=False, dynamic_ncols=True)
        return
    started = told = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - told >= SECONDS_BETWEEN_LINES:
            told = now
            print(f"{label}: {_state(done, total, now - started)}", file=sys.stderr, flush=True)
        yield item


def _state(done: int, total: int | None, seconds: float) -> str:
    if total is None:
        return f"{done} done"
    return f"{done} of {total}, about {(total - done) * seconds / done:.0f} s left"
