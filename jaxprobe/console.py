"""Tables and numbers as the console shows them: strings, nothing printed here."""

import math
import textwrap
from collections.abc import Iterable, Sequence

from jaxprobe.array_typing import np

_WIDTH = 110  # of a line of words


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Right-aligned columns; the first is left-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def paragraph(words: str, indent: str = "") -> str:
    """Words in lines that fit a terminal; all but the first are indented."""
    return textwrap.fill(words, _WIDTH, subsequent_indent=indent)


def answered(sentences: Sequence[str]) -> str:
    """The answer of a command, its sentences one under the other."""
    first, *others = sentences
    return "\n".join(
        [paragraph(f"Answer: {first}", "  "), *(paragraph(f"  {each}", "  ") for each in others)]
    )


def mean(values: Iterable[float | None]) -> float | None:
    """The mean; None where a value is missing."""
    values = list(values)
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def ratio(a: float | None, b: float | None) -> float | None:
    """The quotient; None where there is none."""
    return None if a is None or b is None or b == 0 else a / b


def number(value: float | None) -> str:
    """Four digits, as tables show a number; - where there is none, or it is not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"


def score(value: float, spec: str = "+.2f") -> str:
    """A number of standard errors; - where it is not finite."""
    return format(value, spec) if math.isfinite(value) else "-"


def how_many(number: int, noun: str) -> str:
    """`1 text`, `2 texts`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
