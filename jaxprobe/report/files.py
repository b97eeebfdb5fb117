"""The files of a report: figures, tables and the page, and the names of all that a run may make."""

from collections.abc import Iterable

from jaxprobe.report.content import Report
from jaxprobe.report.html import page
from jaxprobe.report.latex import tabular

_FORMATS = ("png", "svg", "pdf")  # as `jaxprobe.figures.render` makes them


def files(report: Report, page_name: str | None) -> dict[str, bytes]:
    """Every file of a report, by path.

    Args:
      report: its figures go to `images/NAME.SUFFIX`, its tables to `tables/NAME.csv` and `tables/NAME.tex`.
      page_name: of the HTML page; None makes none.
    """
    made = {
        f"images/{figure.name}.{suffix}": data
        for figure in report.figures
        for suffix, data in figure.formats.items()
    }
    for table in report.tables:
        made[f"tables/{table.name}.csv"] = table.csv()
        made[f"tables/{table.name}.tex"] = tabular(table)
    return made | ({page_name: page(report)} if page_name else {})


def file_names(page_name: str, figures: Iterable[str], tables: Iterable[str]) -> frozenset[str]:
    """The paths of the page and of all these figures and tables."""
    return frozenset(
        {
            page_name,
            *(f"images/{name}.{suffix}" for name in figures for suffix in _FORMATS),
            *(f"tables/{name}.{suffix}" for name in tables for suffix in ("csv", "tex")),
        }
    )
