"""What a field of a run's config may be: each check raises a ProbeError that names the flag."""

import math
import numbers
from collections.abc import Mapping
from typing import get_args

from jaxprobe.errors import ProbeError

# Of what is drawn or edited: float32 must hold its squares, else what comes out looks sound.
LARGEST = 1e15


def require(condition: bool, flag: str, expected: str, got: object) -> None:
    """Refuses a value with what was expected of its flag."""
    if not condition:
        raise ProbeError(f"--{flag} must be {expected}, got {got!r}")


def require_count(flag: str, value: int, least: int = 1) -> None:
    """Of an integer."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    require(whole and value >= least, flag, f"an integer >= {least}", value)


def require_seed(seed: int) -> None:
    """Of the seed of every random draw."""
    require_count("seed", seed, least=0)
    require(seed < 2**32, "seed", "below 2**32", seed)


def require_positive(flag: str, value: float) -> None:
    """Of a finite number above zero."""
    require(math.isfinite(value) and value > 0, flag, "a finite number > 0", value)


def require_step(flag: str, value: float) -> None:
    """Of a finite-difference step: float32 must hold the squares of its draws."""
    require_positive(flag, value)
    require(1e-15 <= value <= LARGEST, flag, "between 1e-15 and 1e15", value)


def require_memory(memory_gb: float | None) -> None:
    """Of a limit in GiB, which may be None."""
    if memory_gb is not None:
        require_positive("memory_gb", memory_gb)


def require_choice(flag: str, value: str, choices: object) -> None:
    """Of one of a Literal's names."""
    names = get_args(choices)
    require(value in names, flag, f"one of {', '.join(names)}", value)


def exclude(asked: Mapping[str, bool], needed: str) -> None:
    """Refuses the first flag that was asked for where something else is needed for it."""
    for flag, given in asked.items():
        if given:
            raise ProbeError(f"--{flag} needs {needed}")
