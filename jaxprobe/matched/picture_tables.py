"""The tables behind pictures: factors of a sweep, every unit alone, every layer, relation by relation."""

import zlib
from collections.abc import Iterator, Sequence

from jaxprobe.array_typing import Float, np
from jaxprobe.matched.common_plots import over_relations, per_token
from jaxprobe.matched.results import MatchedResults, RelationEffects
from jaxprobe.matched.rows import MatchedSummary, short_name
from jaxprobe.report.content import Cell, Column, Table
from jaxprobe.report.estimates import estimate_cells, estimate_columns
from jaxprobe.statistics import inference
from jaxprobe.statistics.inference import Estimate

PICTURE_TABLES = (
    "matched_scales",
    "matched_single_units",
    "matched_layers",
    "matched_selectivity_matrix",
)  # their names
_NATS = "change in nats per token"


def picture_tables(results: MatchedResults, summary: MatchedSummary) -> Iterator[Table]:
    """Those of what was measured.

    Args:
      results: of one or both models. summary: of them.
    """
    relations = [each for model in results.values() for each in model.relations.values()]
    if all(each.after_scales is not None for each in relations):
        yield _factors(results, summary)
    if all(each.units is not None for each in relations):
        yield _units(results, summary)
    if all(model.layers is not None for model in results.values()):
        yield _layers(results, summary)
    if any(each.others for each in relations):
        yield _matrix(results, summary)


def over_facts(
    effects: RelationEffects, name: str, changes: Float[np.ndarray, "g b"], summary: MatchedSummary
) -> list[Estimate]:
    """Each row's change in nats per token of a relation's facts, resampled as for its other numbers.

    Args:
      effects: of the relation. name: its name.
      changes: of each fact's summed negative log-likelihood.
      summary: whose seed and level are used.
    """
    tokens = np.broadcast_to(effects.facts.tokens.astype(np.float64), changes.shape)
    draws = inference.resample(changes.shape[1], (summary.seed, zlib.crc32(name.encode())))
    made = inference.bootstrap(inference.ratio, changes[..., None], tokens[..., None], draws)
    return made.estimates(summary.level)


def _side_by_side(columns: Sequence[Sequence[Estimate]]) -> Iterator[list[Cell]]:
    """Rows of the models' estimates, with nothing where one has fewer."""
    for place in range(max(map(len, columns))):
        yield [
            cell for each in columns for cell in estimate_cells(each[place] if place < len(each) else None)
        ]


def _factors(results: MatchedResults, summary: MatchedSummary) -> Table:
    columns = [Column("relation"), Column("factor", "of the chosen units: 1 leaves them, 0 removes them")]
    for title in results:
        columns += estimate_columns(f"nats {title}", _NATS, summary.level)
    rows: list[list[Cell]] = []
    scales = next(iter(next(iter(results.values())).relations.values())).scales
    factors = [] if scales is None else scales.tolist()
    for name in summary.names:
        made = [
            over_facts(each, name, each.after_scales - each.facts.before, summary)
            for each in (model.relations[name] for model in results.values())
            if each.after_scales is not None
        ]
        rows += [[short_name(name), s, *cells] for s, cells in zip(factors, _side_by_side(made), strict=True)]
    swept = [
        np.stack([per_token(each, each.after_scales) for each in model.relations.values()])
        for model in results.values()
    ]
    made = [over_relations(values, summary.seed).estimates(summary.level) for values in swept]
    means = [["mean", s, *cells] for s, cells in zip(factors, _side_by_side(made), strict=True)]
    caption = (
        "The chosen units multiplied by each factor. Intervals are over facts, those of the means over "
        "relations; none where these are fewer than five."
    )
    return Table("matched_scales", "Units multiplied by a factor", caption, columns, rows, means)


def _units(results: MatchedResults, summary: MatchedSummary) -> Table:
    columns, made, chosen = [Column("unit", "its number, from 0")], [], []
    for title, model in results.items():
        columns += estimate_columns(f"nats {title}", f"{_NATS}, mean over relations", summary.level)
        columns.append(Column(f"chosen {title}", "by how many relations"))
        alone = np.array([per_token(each, each.units) for each in model.relations.values()])
        made.append(over_relations(alone, summary.seed).estimates(summary.level))
        counts = np.zeros(alone.shape[1], int)
        for each in model.relations.values():
            counts[list(each.chosen.units)] += 1
        chosen.append(counts.tolist())
    rows: list[list[Cell]] = []
    for unit in range(max(map(len, made))):
        row: list[Cell] = [unit]
        for estimates, counts in zip(made, chosen, strict=True):
            known = unit < len(estimates)
            row += [*estimate_cells(estimates[unit] if known else None), counts[unit] if known else None]
        rows.append(row)
    caption = (
        "Each unit of the site edited alone. Intervals are over relations, each unit's for itself; none "
        "where these are fewer than five."
    )
    return Table("matched_single_units", "Every unit alone", caption, columns, rows, folded=True)


def _layers(results: MatchedResults, summary: MatchedSummary) -> Table:
    columns = [Column("relation"), Column("layer", "from 0; units are chosen at each anew")]
    for title in results:
        columns += estimate_columns(f"nats {title}", _NATS, summary.level)
    rows: list[list[Cell]] = []
    for name in summary.names:
        made = [
            over_facts(
                model.relations[name], name, model.layers[name] - model.relations[name].facts.before, summary
            )
            for model in results.values()
            if model.layers is not None
        ]
        rows += [[short_name(name), layer, *cells] for layer, cells in enumerate(_side_by_side(made))]
    caption = (
        "The edit at every layer of either model. Intervals are over facts; none where they are too few."
    )
    return Table("matched_layers", "Every layer", caption, columns, rows, folded=True)


def _matrix(results: MatchedResults, summary: MatchedSummary) -> Table:
    columns = [
        Column("units chosen on"),
        Column("model"),
        Column("facts of", "the relation whose facts were scored"),
    ]
    columns += estimate_columns("nats", _NATS, summary.level)
    rows: list[list[Cell]] = []
    for title, model in results.items():
        for name, chosen in model.relations.items():
            after = {**(chosen.others or {}), name: chosen.facts.after}
            for column in (column for column in summary.names if column in after):
                scored = model.relations[column]
                changes = (after[column] - scored.facts.before)[None]
                (estimate,) = over_facts(scored, column, changes, summary)
                rows.append([short_name(name), title, short_name(column), *estimate_cells(estimate)])
    caption = "Units of one relation, facts of each. Intervals are over facts; none where they are too few."
    title = "Units of one relation, facts of another"
    return Table("matched_selectivity_matrix", title, caption, columns, rows, folded=True)
