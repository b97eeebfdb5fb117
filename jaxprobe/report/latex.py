r"""Tables for papers: a `tabular` with the rules of the package booktabs, to be \\input into a document."""

import math
import re

from jaxprobe.report.content import Cell, Table, digits

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    # Letters and signs that pdfLaTeX knows in formulas only.
    "‖": r"$\|$", "σ": r"$\sigma$", "ε": r"$\varepsilon$", "δ": r"$\delta$", "Δ": r"$\Delta$", "±": r"$\pm$",
    "×": r"$\times$", "−": r"$-$", "≤": r"$\leq$", "≥": r"$\geq$", "∞": r"$\infty$", "₁": r"$_1$",
    "→": r"$\rightarrow$", "²": r"$^2$",
}  # fmt: skip
_FOUND = re.compile("|".join(map(re.escape, _SPECIAL)))


def escape(text: str) -> str:
    """Text as LaTeX prints it, on one line."""
    return _FOUND.sub(lambda found: _SPECIAL[found[0]], " ".join(text.split()))


def tabular(table: Table) -> bytes:
    """The table as LaTeX, UTF-8: numbers as they are read; what it is and its columns mean, as comments."""
    about = [
        r"Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.",
        f"{table.title}. {table.caption}",
        *(f"{column.label}: {column.meaning}" for column in table.columns if column.meaning),
    ]
    lines = [f"% {' '.join(line.split())}" for line in about]
    lines += [rf"\begin{{tabular}}{{{_alignment(table)}}}", r"\toprule"]
    lines += [_row([escape(label) for label in table.labels]), r"\midrule"]
    lines += [_row([_cell(cell) for cell in row]) for row in table.rows]
    if table.foot:
        lines += [r"\midrule", *(_row([_cell(cell) for cell in row]) for row in table.foot)]
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines).encode()


def _alignment(table: Table) -> str:
    columns = zip(table.numeric, table.wraps, strict=True)
    return "".join("r" if number else r"p{0.4\linewidth}" if wraps else "l" for number, wraps in columns)


def _row(cells: list[str]) -> str:
    # A bracket after the end of a row would be read as its argument.
    first = f"{{}}{cells[0]}" if cells[0].startswith("[") else cells[0]
    return " & ".join([first, *cells[1:]]) + r" \\"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    if cell is None or not math.isfinite(cell):
        return "--"
    number, exponent = digits(cell)
    return f"${number}$" if exponent is None else rf"${number}\times 10^{{{exponent}}}$"
