"""What a report holds: words, figures and tables, and the files they make."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxprobe import outputs

Cell = str | int | float | None  # None and what is not finite: no value

_ONE_LINE = 40  # letters
_LONGEST_WORD = 14  # letters of a text; a longer word breaks in print
# Letters of a row that paper holds: upright; on its side; there with turned headings; and in small type.
_PRINTED = {"": 105, "wide": 165, "wide turned": 176, "wide turned small": 232}
_TURNED = 20  # letters of a line of a turned heading
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
      name: of its files, `images/NAME.png` and so on; of letters, digits and underscores.
      title: a few words.
      caption: what it shows and how to read it.
      alt: what a reader who cannot see it needs to know.
      formats: suffix -> bytes, as `jaxprobe.figures.render` makes them; the page shows "svg".
    """

    name: str
    title: str
    caption: str
    alt: str
    formats: Mapping[str, bytes]


@dataclass(frozen=True)
class Column:
    """A column: its heading, which no other column of the table has, and what the heading means."""

    label: str
    meaning: str = ""


@dataclass(frozen=True)
class Table:
    """A table; its rows can be sorted by any column.

    Attributes:
      name: of its files, `tables/NAME.csv` and `.tex`; of letters, digits and underscores.
      title: a few words.
      caption: what it shows.
      columns: left to right; the first names the row.
      rows: each with a cell a column.
      foot: further rows, such as means, which stay below the others however these are sorted.
      folded: whether the page shows it only when asked to.

    Raises:
      ValueError: when a row has another number of cells, or two columns share a label.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    foot: Sequence[Sequence[Cell]] = ()
    folded: bool = False

    def __post_init__(self):
        if len(set(self.labels)) < len(self.columns):
            raise ValueError(f"table {self.name}: two columns share a label: {', '.join(self.labels)}")
        for row in (*self.rows, *self.foot):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name}: {len(row)} cells in a row of {len(self.columns)} columns"
                )

    @property
    def labels(self) -> list[str]:
        """The headings."""
        return [column.label for column in self.columns]

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it holds numbers only."""
        lines = [*self.rows, *self.foot]
        return [
            all(row[place] is None or isinstance(row[place], int | float) for row in lines)
            for place in range(len(self.columns))
        ]

    @property
    def wraps(self) -> list[bool]:
        """Of each column, whether it holds a text too long for one line."""
        lines = [*self.rows, *self.foot]
        return [
            any(isinstance(row[place], str) and len(str(row[place])) > _ONE_LINE for row in lines)
            for place in range(len(self.columns))
        ]

    @property
    def print_class(self) -> str:
        """What the page's style needs to know so that the table is no wider than paper."""
        flat = turned = 0
        for place, label in enumerate(self.labels):
            texts = [shown(row[place]) for row in (*self.rows, *self.foot)]
            body = max(map(_longest_word, texts), default=1)
            lines = -(-len(label) // _TURNED)
            turned += 1 + max(body, 3 * lines)  # a line is as high as three letters are wide
            flat += 2 + max(body, _longest_word(label))
        for name, room in _PRINTED.items():
            if (turned if "turned" in name else flat) <= room:
                return name
        return "wide turned small fixed"

    @property
    def breaks(self) -> list[bool]:
        """Of each column, whether it holds a word so long that paper may need it broken."""
        return [
            any(len(word) > _LONGEST_WORD for text in texts if isinstance(text, str) for word in text.split())
            for texts in zip(self.labels, *self.rows, *self.foot, strict=True)
        ]

    def csv(self) -> bytes:
        """Every row, floats with every digit; no value is an empty cell."""
        rows = [dict(zip(self.labels, row, strict=True)) for row in (*self.rows, *self.foot)]
        return outputs.csv_bytes(self.labels, rows)


@dataclass(frozen=True)
class Report:
    """What one run found.

    Attributes:
      title: of the page.
      question: that the run was to answer.
      answer: in a few sentences, with its confidence.
      protocol: how it was measured, a paragraph each.
      figures: in order of reading.
      tables: in order of reading.
      manifest: what decided the values, of anything JSON can hold.
    """

    title: str
    question: str
    answer: str
    protocol: Sequence[str]
    figures: Sequence[Figure]
    tables: Sequence[Table]
    manifest: Mapping[str, Any] = field(default_factory=dict)


def _longest_word(text: str) -> int:
    # A power of ten may stand on a line of its own.
    return min(_LONGEST_WORD, max(map(len, re.split(r"\s|(?=\N{MULTIPLICATION SIGN})", text)), default=0))


def digits(value: int | float) -> tuple[str, int | None]:
    """A finite number for reading: four significant digits, and the power of ten beside them or None."""
    if isinstance(value, int) or value == 0:
        return f"{value:.0f}", None
    number, _, exponent = f"{value:#.4g}".partition("e")
    return number.rstrip("."), int(exponent) if exponent else None


def shown(cell: Cell) -> str:
    """A cell for reading: a number with its `digits`, a real minus and raised powers; a dash for no value."""
    if isinstance(cell, str):
        return cell
    if cell is None or not math.isfinite(cell):
        return "\N{EN DASH}"
    number, exponent = digits(cell)
    power = "" if exponent is None else f"\N{MULTIPLICATION SIGN}10{str(exponent).translate(_RAISED)}"
    return f"{number}{power}".replace("-", "\N{MINUS SIGN}")
