"""The table of an edit by its strength: what is measured, and what derivatives at strength 0 predict."""

from jaxprobe.array_typing import Float, np
from jaxprobe.matched.results import Linearity, MatchedResults, RelationEffects
from jaxprobe.matched.rows import short_name
from jaxprobe.matched.taylor import predict
from jaxprobe.report.content import Cell, Column, Table

STRENGTH_TABLE = "matched_strengths"  # the table's name


def strength_table(results: MatchedResults) -> Table | None:
    """A row per relation and strength of its chosen units' edit; None where no linearity was measured.

    Args:
      results: of one or both models, which share relations and strengths.
    """
    columns = [Column("relation"), Column("strength", "of the edit: 0 none, 1 whole")]
    for title in results:
        columns += [
            Column(f"measured {title}", "change in nats per token"),
            Column(f"first order {title}", "what the gradient predicts of it"),
            Column(f"second order {title}", "what gradient and curvature predict"),
        ]
    rows: list[list[Cell]] = []
    for name in next(iter(results.values())).relations:
        relations = [model.relations[name] for model in results.values()]
        strengths = [each.linearity.strengths for each in relations if each.linearity is not None]
        if len(strengths) == len(relations):
            changes = np.hstack([_changes(each, each.linearity) for each in relations if each.linearity])
            rows += [
                [short_name(name), float(s), *map(float, row)]
                for s, row in zip(strengths[0], changes, strict=True)
            ]
    caption = "The chosen units' edit at each strength: the points of the picture of how linear it is."
    return Table(STRENGTH_TABLE, "The edit by its strength", caption, columns, rows) if rows else None


def _changes(effects: RelationEffects, linearity: Linearity) -> Float[np.ndarray, "g 3"]:
    made = predict(linearity.chosen, linearity.strengths)
    of_facts = np.stack([linearity.measured, made.first, made.second], axis=1)
    return of_facts.sum(axis=-1) / effects.facts.tokens.sum()
