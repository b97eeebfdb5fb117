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


def warm(compute: Callable[[], object], repeats: int) -> list[float]:
    """Every call's seconds, after one that compiles."""
    return [_once(compute) for _ in range(repeats + 1)][1:]


def _once(compute: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(compute())
    return time.perf_counter() - start


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, and where it was measured."""
    device = jax.devices()[0]
    print(f"{title} ({device.platform}: {device.device_kind}, jax {jax.__version__})")
    print(table(header, rows), end="\n\n", flush=True)
