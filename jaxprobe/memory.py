"""How much memory there is, how much a process has taken, and what a run may take of it."""

import dataclasses
import math
import os
import resource
import sys
from pathlib import Path
from typing import Any

import jax

GIB = 2**30
SHARE = 0.7  # of what is free, unless the user says otherwise
COMPILING = 2**28 + 2**27  # bytes that XLA takes to compile the command's programs
_SMALL = 2**28  # bytes: an estimate below this need not be checked by compiling


def free_bytes(device: Any) -> int:
    """Bytes that a process can still take: of the device, or of this machine (and its cgroup) for a CPU."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return int(stats.get("bytes_limit", 0)) - int(stats.get("bytes_in_use", 0))
    limits = [_available()]
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, now = ((Path(folder) / name).read_text().strip() for name in (limit, used))
            limits.append(int(most) - int(now))
        except (OSError, ValueError):  # no such cgroup, or no limit ("max")
            continue
    return min(limits)


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def used_bytes(device: Any) -> int:
    """Bytes that this process holds now."""
    if device.platform != "cpu":
        return int((device.memory_stats() or {}).get("bytes_in_use", 0))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes(device)


def peak_bytes(device: Any) -> int:
    """The most bytes that this process has held so far."""
    if device.platform != "cpu":
        return int((device.memory_stats() or {}).get("peak_bytes_in_use", 0))
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that a compiled program takes beside its arguments: what XLA has planned for it, to the byte."""
    stats = compiled.memory_analysis()
    if stats is None:
        return 0
    return stats.temp_size_in_bytes + stats.output_size_in_bytes + stats.generated_code_size_in_bytes


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a plan will take."""

    peak: int  # bytes, of the whole process: at its largest batch, or before
    budget: int  # bytes

    def __str__(self) -> str:
        return f"predicted peak {self.peak / GIB:.2f} GiB of {self.budget / GIB:.2f} allowed"


def budget(device: Any, memory_gb: float | None) -> tuple[int, int]:
    """Bytes that the process holds now, and that it may hold: `memory_gb` GiB, or a share of what is free."""
    used = used_bytes(device)
    return used, int(memory_gb * GIB) if memory_gb else used + int(SHARE * free_bytes(device))


def is_small(estimate: int, used: int, allowed: int) -> bool:
    """Whether a generous estimate, in bytes, need not be checked by compiling; the others as of `budget`."""
    return estimate < min(_SMALL, (allowed - used) // 4)


def short(peak: int, allowed: int) -> str:
    """How much is needed and may be used, in bytes, and which limit would do: part of an error."""
    return (
        f"{peak / GIB:.2f} GiB, {allowed / GIB:.2f} GiB may be used: "
        f"--memory_gb={math.ceil(10 * peak / GIB) / 10} would do"
    )
