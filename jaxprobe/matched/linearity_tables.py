"""Tables of an edit by its strength: what is measured, and what derivatives at strength 0 predict."""

from jaxprobe.matched.picture_tables import over_facts
from jaxprobe.matched.results import MatchedResults
from jaxprobe.matched.rows import MatchedSummary, short_name
from jaxprobe.matched.study_tables import fails_words
from jaxprobe.matched.taylor import curves_alone, first_order_fails, predict
from jaxprobe.report.content import Cell, Column, Table
from jaxprobe.report.estimates import estimate_cells, estimate_columns

STRENGTH_TABLE, ALONE_TABLE = "matched_strengths", "matched_unit_linearity"  # the tables' names
_PARTS = {
    "measured": "change in nats per token",
    "first order": "what the gradient predicts of it",
    "second order": "what gradient and curvature predict",
}


def strength_table(results: MatchedResults, summary: MatchedSummary) -> Table | None:
    """A row per relation and strength of its chosen units' edit; None where no linearity was measured.

    Args:
      results: of one or both models, which share relations and strengths. summary: of them.
    """
    columns = [Column("relation"), Column("strength", "of the edit: 0 none, 1 whole")]
    for title in results:
        for label, meaning in _PARTS.items():
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


def alone_table(results: MatchedResults, summary: MatchedSummary) -> Table | None:
    """A row per relation, model and chosen unit edited alone; None where that was not measured.

    Args:
      results: of one or both models. summary: of them.
    """
    columns = [Column("relation"), Column("model"), Column("unit", "one of the relation's chosen ones")]
    for label, meaning in _PARTS.items():
        columns += estimate_columns(label, meaning, summary.level)
    columns.append(Column("fails at", "strength from which first order is off by more than 10%, or why none"))
    rows: list[list[Cell]] = []
    for name in summary.names:
        for title, effects in ((title, model.relations[name]) for title, model in results.items()):
            linearity = effects.linearity
            curves = None if linearity is None else curves_alone(linearity, effects.chosen.units)
            if linearity is None or linearity.alone is None or curves is None:
                continue
            whole = predict(curves, linearity.strengths[-1:])
            parts = (linearity.alone[:, -1], whole.first[0], whole.second[0])
            estimates = [over_facts(effects, name, part, summary) for part in parts]
            for place, unit in enumerate(effects.chosen.units[: len(linearity.alone)]):
                slope, curvature = (float(part[place].sum()) for part in (curves.slope, curves.curvature))
                measured = linearity.alone[place].sum(axis=1)
                cells = [cell for each in estimates for cell in estimate_cells(each[place])]
                fails = fails_words(first_order_fails(linearity.strengths, measured, slope, curvature))
                rows.append([short_name(name), title, unit, *cells, fails])
    caption = (
        "The first ten chosen units of each relation, each edited alone at every strength measured; "
        "the changes are of the whole edit."
    )
    return (
        Table(ALONE_TABLE, "How linear single units are", caption, columns, rows, folded=True)
        if rows
        else None
    )
