"""The table of an edit by its strength: what is measured, and what derivatives at strength 0 predict."""

from jaxprobe.matched.picture_tables import over_facts
from jaxprobe.matched.results import MatchedResults
from jaxprobe.matched.rows import MatchedSummary, short_name
from jaxprobe.matched.taylor import predict
from jaxprobe.report.content import Cell, Column, Table
from jaxprobe.report.estimates import estimate_cells, estimate_columns

STRENGTH_TABLE = "matched_strengths"  # the table's name


def strength_table(results: MatchedResults, summary: MatchedSummary) -> Table | None:
    """A row per relation and strength of its chosen units' edit; None where no linearity was measured.

    Args:
      results: of one or both models, which share relations and strengths. summary: of them.
    """
    columns = [Column("relation"), Column("strength", "of the edit: 0 none, 1 whole")]
    for title in results:
        for label, meaning in (
            ("measured", "change in nats per token"),
            ("first order", "what the gradient predicts of it"),
            ("second order", "what gradient and curvature predict"),
        ):
            columns += estimate_columns(f"{label} {title}", meaning, summary.level)
    rows: list[list[Cell]] = []
    for name in summary.names:
        relations = [model.relations[name] for model in results.values()]
        measured = [(each, each.linearity) for each in relations if each.linearity is not None]
        if len(measured) < len(relations):
            continue
        made = [
            over_facts(each, name, changes, summary)
            for each, linearity in measured
            for changes in (linearity.measured, *predict(linearity.chosen, linearity.strengths))
        ]
        for strength, *estimates in zip(measured[0][1].strengths, *made, strict=True):
            cells = [cell for estimate in estimates for cell in estimate_cells(estimate)]
            rows.append([short_name(name), float(strength), *cells])
    caption = "The chosen units' edit at each strength: the points of the picture of how linear it is."
    return (
        Table(STRENGTH_TABLE, "The edit by its strength", caption, columns, rows, folded=True)
        if rows
        else None
    )
