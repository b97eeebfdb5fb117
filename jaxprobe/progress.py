"""Progress of long loops, on stderr: a bar with the time left on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0
_BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"


def track(
    items: Sequence[T], label: str, *, costs: Sequence[float] | None = None, later: float = 0.0
) -> Iterator[T]:
    """Yields the items and shows how far it is, and how long the rest will take.

    Args:
      items: what to go through.
      label: what is being done, such as "Mamba".
      costs: of the items, in any one unit; all the same if None.
      later: the cost of what follows these items elsewhere: the time left is until the end of that.
    """
    costs = [1.0] * len(items) if costs is None else costs
    whole = sum(costs) + later
    if sys.stderr.isatty():
        with tqdm(total=whole, desc=label, file=sys.stderr, leave=False, bar_format=_BAR) as bar:
            for item, cost in zip(items, costs, strict=True):
                bar.set_postfix_str(str(item))
                yield item
                bar.update(cost)
        return
    started = told = time.monotonic()
    spent = 0.0
    for done, (item, cost) in enumerate(zip(items, costs, strict=True)):
        now = time.monotonic()
        if spent and now - told >= SECONDS_BETWEEN_LINES:
            told = now
            left = (whole - spent) * (now - started) / spent
            of_all = " of all" if later else ""
            print(
                f"{label}: {done} of {len(items)} parts done, about {left:.0f} s{of_all} left",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        yield item
        spent += cost
