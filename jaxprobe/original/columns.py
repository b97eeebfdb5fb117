"""A report's tables column by column, where a value's interval takes columns only if some row has one."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxprobe.report.content import Cell, Column, Table
from jaxprobe.report.estimates import estimate_cells, estimate_columns
from jaxprobe.statistics.inference import LEVEL, Estimate

FOOT = ("mean", "mean, low", "mean, high")


@dataclass(frozen=True)
class Filled:
    """A column with its cells, a row each, and those of the table's foot, which is the same number in all."""

    column: Column
    cells: Sequence[Cell]
    foot: Sequence[Cell] = ()


def estimates(
    label: str, meaning: str, found: Sequence[Estimate | None], mean: Estimate | None = None
) -> list[Filled]:
    """A value's column, and those of its interval's ends where some row has them.

    Args:
      label: heading. meaning: of the value.
      found: a row each.
      mean: over relations, for the foot: the value, and below it the ends. Without: no foot.
    """
    value, low, high = zip(*map(estimate_cells, found), strict=True)
    feet = ([], []) if mean is None else (estimate_cells(mean), [None] * len(FOOT))
    columns = estimate_columns(label, meaning, LEVEL)
    made = [Filled(columns[0], value, feet[0])]
    if any(end is not None for end in (*low, *high)):
        made += [Filled(columns[1], low, feet[1]), Filled(columns[2], high, feet[1])]
    return made


def filled_table(name: str, title: str, caption: str, columns: Sequence[Filled]) -> Table:
    """The table of these columns."""
    return Table(
        name,
        title,
        caption,
        [each.column for each in columns],
        list(zip(*(each.cells for each in columns), strict=True)),
        list(zip(*(each.foot for each in columns), strict=True)),
    )
