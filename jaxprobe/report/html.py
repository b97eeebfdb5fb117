"""The report as one HTML page that needs nothing else: no network, no fonts, no other file."""

import base64
import hashlib
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from jaxprobe import outputs
from jaxprobe.report.content import Cell, Report, Table, shown

_FOLDER = Path(__file__).parent


def page(report: Report) -> bytes:
    """The page, UTF-8. The same report gives the same bytes.

    All text is escaped; beside that the page's own policy lets no script or style run but the two here, by
    their hashes, and nothing be fetched. Tables can be sorted and saved as CSV, pictures saved as SVG.
    """
    from markupsafe import Markup  # jinja2's own; slow to import, as that is

    style, script = ((_FOLDER / name).read_text(encoding="utf-8").strip() for name in ("page.css", "page.js"))
    policy = "; ".join([
        "default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'",
        f"style-src {_hash(style)}", f"script-src {_hash(script)}",
    ])  # fmt: skip
    text = _template().render(
        report=report,
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        manifest=outputs.json_bytes(report.manifest).decode(),
    )
    return text.encode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "classes": _classes, "shown": _breakable, "sort_key": _sort_key, "data": _data, "pixels": _pixels,
    }  # fmt: skip
    return environment.from_string((_FOLDER / "page.html").read_text(encoding="utf-8"))


def _classes(table: Table) -> list[str | None]:
    """Of each column, what the page's style needs to know of its cells."""
    kinds = {"number": table.numeric, "long": table.wraps, "breaks": table.breaks}
    return [
        " ".join(name for name, holds in zip(kinds, column, strict=True) if holds) or None
        for column in zip(*kinds.values(), strict=True)
    ]


def _breakable(cell: Cell) -> Any:
    """A cell for reading; in print a number may have its power of ten on the next line."""
    from markupsafe import Markup, escape

    text = escape(shown(cell))
    return (
        text
        if isinstance(cell, str)
        else text.replace("\N{MULTIPLICATION SIGN}", Markup("<wbr>\N{MULTIPLICATION SIGN}"))
    )


def _sort_key(cell: Cell) -> dict[str, Any]:
    """What the page's script sorts a cell by, as an attribute."""
    if isinstance(cell, str):
        return {"data-text": cell}
    if cell is None or not math.isfinite(cell):
        return {"data-missing": ""}
    return {"data-number": repr(cell)}


def _data(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _pixels(svg: bytes) -> dict[str, int]:
    """The size of matplotlib's SVG, which is in points, in CSS pixels: room for it before it is drawn."""
    size = dict(re.findall(rb' (width|height)="([0-9.]+)pt"', svg[: svg.index(b">", svg.index(b"<svg"))]))
    return {name.decode(): round(float(points) * 96 / 72) for name, points in size.items()}
