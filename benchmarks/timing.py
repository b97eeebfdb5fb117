"""What the benchmarks share: a stopwatch that waits for the device, and a table."""

import statistics
import time
from collections.abc import Callable, Sequence

import jax

from jaxprobe.console import table


def seconds(compute: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """(first call, with compilation; median of the calls after it)."""
    first, *after = (_once(compute) for _ in range(repeats + 1))
    return first, statistics.median(after)


def warm(compute: Callable[[], object], repeats: int, queued: int = 1) -> list[float]:
    """Seconds a call, of so many repeats after one that compiles.

    Args:
      compute: what is timed. repeats: how often.
      queued: calls that are begun one after the other before the last is waited for. Of many short
        ones on a GPU the time to begin each, which a program that makes them all does not spend, is hidden.
    """

    def several() -> object:
        for _ in range(queued - 1):
            compute()
        return compute()

    return [once / queued for once in (_once(several) for _ in range(repeats + 1))][1:]


def _once(compute: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(compute())
    return time.perf_counter() - start


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, and where it was measured."""
    device = jax.devices()[0]
    print(f"{title} ({device.platform}: {device.device_kind}, jax {jax.__version__})")
    print(table(header, rows), end="\n\n", flush=True)
