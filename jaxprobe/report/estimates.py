"""Estimates with their intervals as columns of a report's tables."""

from collections.abc import Sequence

from jaxprobe.report.content import Cell, Column
from jaxprobe.statistics.inference import FEWEST, Estimate


def estimate_columns(label: str, meaning: str, level: float) -> list[Column]:
    """A value's column and those of its interval's ends."""
    interval = f"end of the {100 * level:g}% interval"
    return [
        Column(label, meaning),
        Column(f"{label}, low", f"lower {interval}"),
        Column(f"{label}, high", f"upper {interval}"),
    ]


def estimate_cells(estimate: Estimate | None) -> list[Cell]:
    """The cells of these three columns."""
    return [None] * 3 if estimate is None else [estimate.value, estimate.low, estimate.high]


def few_words(few: Sequence[str], number: int, what: str = "facts") -> str:
    """Which of a number of relations have too few for an interval, in a sentence; empty where none."""
    if not few:
        return ""
    who = "every relation" if len(few) == number else ", ".join(few)
    return f"Fewer than {FEWEST} {what}, too few for an interval: {who}."
