"""The tables of the report on the matched protocol."""

import math
from collections.abc import Iterator, Mapping

from jaxprobe.matched.control_sets import NORM_MATCHED, NORM_TOLERANCE
from jaxprobe.matched.rows import FEWEST_SETS, MatchedSummary, RelationSummary
from jaxprobe.matched.tables import short_name
from jaxprobe.matched.verdict import MEASURE_WORDS, verdicts
from jaxprobe.report.content import Cell, Column, Table
from jaxprobe.report.estimates import estimate_cells, estimate_columns, few_words

TABLES = (
    "matched_effects", "matched_perplexity", "matched_levels", "matched_measures", "matched_controls",
    "matched_control_sets", "matched_accounting", "matched_linearity", "matched_selectivity",
    "matched_selectivity_matrix", "matched_units",
)  # fmt: skip


def matched_tables(summary: MatchedSummary, objects: Mapping[str, int]) -> Iterator[Table]:
    """Those there is something to put into.

    Args:
      summary: what to report. objects: relation -> how many different ones its scored facts have.
    """
    yield _effects(summary, objects)
    yield _perplexity(summary)
    yield _levels(summary)
    yield _measures(summary)
    yield _controls(summary)
    yield _control_sets(summary)
    if summary.accounting is not None:
        yield _accounting(summary)
    if any(row.linear for rows in summary.relations.values() for row in rows.values()):
        yield _linearity(summary)
    if any(row.selectivity for rows in summary.relations.values() for row in rows.values()):
        yield _selectivity(summary)
        yield _matrix(summary)
    yield _units(summary)


def _of_models(summary: MatchedSummary, name: str) -> list[RelationSummary]:
    return [relations[name] for relations in summary.relations.values()]


def _names(summary: MatchedSummary) -> list[str]:
    return list(next(iter(summary.relations.values())))


def _effects(summary: MatchedSummary, objects: Mapping[str, int]) -> Table:
    columns = [
        Column("relation"),
        Column("facts", "how many were scored; no unit was chosen on them"),
        Column("objects", "how many different ones these facts have; intervals count facts as independent"),
    ]
    for title in summary.relations:
        columns += estimate_columns(f"nats {title}", "change in nats per token by the edit", summary.level)
    verdict = verdicts(summary).get("token")
    if verdict:
        columns += estimate_columns("difference", " less ".join(summary.relations), summary.level)
        columns += [
            Column("p", "of no difference between the models, paired facts, two-sided"),
            Column("p, Holm", "corrected for the number of relations"),
            Column("more sensitive", "at the level of all the calls together"),
        ]
    rows = []
    for name in _names(summary):
        of_models = _of_models(summary, name)
        row: list[Cell] = [short_name(name), of_models[0].facts, objects[name]]
        row += [cell for each in of_models for cell in estimate_cells(each.delta["token"])]
        if verdict:
            compared = summary.comparisons["token"][name]
            tested = name in verdict.adjusted
            more = verdict.more[name] or "neither" if tested else "too few facts"
            row += [*estimate_cells(compared.difference), compared.p_value, verdict.adjusted.get(name), more]
        rows.append(row)
    mean: list[Cell] = ["mean", None, None]
    mean += [cell for title in summary.relations for cell in estimate_cells(summary.means["token"][title])]
    if verdict:
        overall = summary.overall["token"]
        mean += [*estimate_cells(overall.difference), overall.p_value, None, verdict.overall or "neither"]
    caption = (
        "Change in nats per token of the facts that units were not chosen on. The mean is over relations, "
        f"and so is its interval. {_few(summary)}"
    )
    return Table("matched_effects", "What the edit costs", caption, columns, rows, [mean])


def _perplexity(summary: MatchedSummary) -> Table:
    columns = [Column("relation")]
    for title in summary.relations:
        columns += [
            *estimate_columns(
                f"% {title}", "change of perplexity in percent: no baseline is in it", summary.level
            ),
            *estimate_columns(f"abs {title}", "change of perplexity: baseline x % / 100", summary.level),
        ]
    rows = []
    for name in _names(summary):
        row: list[Cell] = [short_name(name)]
        for each in _of_models(summary, name):
            row += [*estimate_cells(each.percent), *estimate_cells(each.absolute)]
        rows.append(row)
    caption = f"Perplexity per token, in percent and absolute. {_few(summary)}"
    return Table("matched_perplexity", "The same in perplexity", caption, columns, rows)


def _levels(summary: MatchedSummary) -> Table:
    columns = [
        Column("relation"),
        Column("model"),
        Column("per", "token of the model's own, byte of UTF-8, or word between white space"),
        *estimate_columns("baseline nats", "mean negative log-likelihood before the edit", summary.level),
        *estimate_columns("baseline perplexity", "exp of these nats", summary.level),
        *estimate_columns("edited perplexity", "with the chosen units edited", summary.level),
    ]
    rows: list[list[Cell]] = [
        [
            short_name(name), title, measure,
            *estimate_cells(row.baseline[measure]), *estimate_cells(row.perplexity[measure]),
            *estimate_cells(row.edited_perplexity[measure]),
        ]
        for name in _names(summary)
        for title, row in ((title, relations[name]) for title, relations in summary.relations.items())
        for measure in row.baseline
    ]  # fmt: skip
    return Table(
        "matched_levels",
        "Perplexity per token, byte and word",
        "Before the edit and with it. Bytes and words are those that the scored tokens cover: per byte and "
        f"per word models with other tokenizers compare. {_few(summary)}",
        columns,
        rows,
    )


def _few(summary: MatchedSummary) -> str:
    first = next(iter(summary.relations.values()))
    return few_words([short_name(name) for name, row in first.items() if row.too_few], len(first))


def _measures(summary: MatchedSummary) -> Table:
    columns = [Column("measure")]
    for title in summary.relations:
        columns += estimate_columns(title, "mean over relations", summary.level)
    found = verdicts(summary)
    if found:
        columns += estimate_columns("difference", " less ".join(summary.relations), summary.level)
        columns += [
            Column("p", "of no difference, relations being the units"),
            *(
                Column(f"relations: {title}", "on which it is the more sensitive")
                for title in summary.relations
            ),
            Column("relations: neither", "on which the two are not told apart"),
        ]
    rows = []
    for measure, means in summary.means.items():
        row: list[Cell] = [MEASURE_WORDS[measure]]
        row += [cell for title in summary.relations for cell in estimate_cells(means[title])]
        if found:
            counts = found[measure].counts
            row += [*estimate_cells(summary.overall[measure].difference), summary.overall[measure].p_value]
            row += [counts[title] if counts else None for title in (*summary.relations, None)]
        rows.append(row)
    return Table("matched_measures", "By each measure", "Means over relations.", columns, rows)


def _controls(summary: MatchedSummary) -> Table:
    columns = [Column("relation")]
    for title in summary.relations:
        columns += [
            Column(f"percentile {title}", "of the chosen set's effect among random sets of as many units"),
            Column(f"percentile {title}, low", "exact (Clopper-Pearson) interval over the random sets"),
            Column(f"percentile {title}, high", "its upper end"),
            Column(f"apart {title}", "the same among the random sets that share no unit with the chosen one"),
            Column(f"apart {title}, low", "its exact interval"),
            Column(f"apart {title}, high", "its upper end"),
            Column(f"apart {title}, sets", f"how many these are; fewer than {FEWEST_SETS}: no percentile"),
            *estimate_columns(
                f"control texts {title}",
                "change in nats per token on texts of no relation, which are resampled",
                summary.level,
            ),
        ]
    rows = []
    for name in _names(summary):
        row: list[Cell] = [short_name(name)]
        for each in _of_models(summary, name):
            random = each.controls.get("random")
            for rank in (each.percentile, random and random.disjoint):
                row += [rank.value, rank.low, rank.high] if rank else [None] * 3
            row += [random.disjoint_sets if random else None, *estimate_cells(each.control_texts)]
        rows.append(row)
    return Table(
        "matched_controls",
        "Against random sets of as many units",
        "A chosen set within the random ones does no more than any units would. Random sets may hold chosen "
        "units: the percentile among all of them is uniform if units are exchangeable, the one among those "
        "apart from the chosen set can reach 100. Intervals of percentiles are over sets, with the facts as "
        "they are; those of control texts are over these texts.",
        columns,
        rows,
    )


def _control_sets(summary: MatchedSummary) -> Table:
    columns = [
        Column("relation"),
        Column("model"),
        Column("units", "how the sets are made, each of as many units as the chosen one"),
        Column("sets", "how many"),
        *estimate_columns(
            "nats", "change in nats per token, mean over the sets; facts are resampled", summary.level
        ),
        Column("percentile", "of that among the random sets"),
        Column("shared", "units in common with the chosen set, mean over the sets"),
        Column("energy, low", "sum of the units' mean squares on the selection facts, over the chosen set's"),
        Column("energy, high", "the largest of the sets"),
        Column(
            f"beyond {NORM_TOLERANCE:.0%}", "norm matched sets that are further than that from an energy of 1"
        ),
    ]
    rows: list[list[Cell]] = [
        [
            short_name(name), title, kind.replace("_", " "), sets.sets, *estimate_cells(sets.delta),
            sets.percentile, sets.shared, *sets.energy, sets.far if kind == NORM_MATCHED else None,
        ]
        for name in _names(summary)
        for title, relations in summary.relations.items()
        for kind, sets in relations[name].controls.items()
    ]  # fmt: skip
    return Table(
        "matched_control_sets",
        "Other sets of as many units",
        "What they cost, how many of the chosen units they hold, and how large their units are beside the "
        "chosen ones. Norm matched sets are the nearest in energy that were found. Intervals are over facts, "
        f"with the sets as they are. {_few(summary)}",
        columns,
        rows,
    )


def _accounting(summary: MatchedSummary) -> Table:
    accounting = summary.accounting
    columns = [Column("relation")]
    terms = {
        "log_percentage_ratio": ("log % ratio", "of the first model's percentage to the second's"),
        "log_absolute_ratio": ("log abs ratio", "of the absolute changes"),
        "log_baseline_ratio": ("log baseline ratio", "of the second model's baseline to the first's"),
    }
    for label, meaning in terms.values():
        columns += estimate_columns(label, meaning, summary.level)
    columns.append(Column("undefined", "why there are no logarithms"))
    accounts: Mapping = accounting.relations if accounting else {}
    undefined = accounting.undefined if accounting else {}

    def row(label: str, account) -> list[Cell]:
        cells = [
            cell for term in terms for cell in estimate_cells(getattr(account, term) if account else None)
        ]
        return [short_name(label), *cells, undefined.get(label, "")]

    mean = [row("mean", accounting.mean)] if accounting and accounting.mean else []
    return Table(
        "matched_accounting",
        "What the percentages are made of",
        "log % ratio = log abs ratio + log baseline ratio, exactly: accounting, not a cause.",
        columns,
        [row(name, accounts.get(name)) for name in _names(summary)],
        mean,
    )


def _linearity(summary: MatchedSummary) -> Table:
    columns = [Column("relation")]
    for title in summary.relations:
        columns += [
            *estimate_columns(
                f"measured {title}", "change in nats per token by the whole edit", summary.level
            ),
            *estimate_columns(f"first order {title}", "what the gradient foretells of it", summary.level),
            *estimate_columns(f"second order {title}", "what gradient and curvature foretell", summary.level),
            Column(
                f"fails at {title}", "strength from which first order is off by more than 10%, or why none"
            ),
        ]
    rows = []
    for name in _names(summary):
        row: list[Cell] = [short_name(name)]
        for each in _of_models(summary, name):
            linear = each.linear
            if linear is None:
                row += [None] * 10
                continue
            for estimate in (linear.measured, linear.first_order, linear.second_order):
                row += estimate_cells(estimate)
            row.append(_fails(linear.fails_at))
        rows.append(row)
    return Table(
        "matched_linearity",
        "How linear the edit is",
        "The change of each relation's facts by the chosen units' edit, measured and foretold from no edit. "
        "The strength at which first order fails is one number of all the facts together, without an "
        f"interval. {_few(summary)}",
        columns,
        rows,
    )


def _fails(strength: float | None) -> Cell:
    if strength is None:
        return "at none measured"
    return strength if math.isfinite(strength) else "nothing to foretell"


def _selectivity(summary: MatchedSummary) -> Table:
    columns = [Column("relation")]
    for title in summary.relations:
        columns += [
            Column(f"own {title}", "change in nats per token of the facts of the units' own relation"),
            Column(f"others {title}", "mean of that over the other relations, the same units edited"),
            *estimate_columns(
                f"selectivity {title}", "own over others; none where others is not positive", summary.level
            ),
            Column(
                f"% over % {title}", "the original study's: ratio of percentages, the others' facts together"
            ),
        ]
    rows = []
    for name in _names(summary):
        row: list[Cell] = [short_name(name)]
        for found in (each.selectivity for each in _of_models(summary, name)):
            if found is None:
                row += [None] * 6
            else:
                row += [found.changes[name], found.others, *estimate_cells(found.ratio), found.percent]
        rows.append(row)
    return Table(
        "matched_selectivity",
        "How selective the units are",
        "1: they cost other relations as much. Intervals are Fieller's, over the relation's facts and over "
        f"the other relations; none where the mean of the others is not told from 0. {_few(summary)}",
        columns,
        rows,
    )


def _matrix(summary: MatchedSummary) -> Table:
    names = _names(summary)
    rows: list[list[Cell]] = [
        [short_name(name), title, *(found.changes[column] for column in names)]
        for title, relations in summary.relations.items()
        for name, found in ((name, relations[name].selectivity) for name in names)
        if found
    ]
    return Table(
        "matched_selectivity_matrix",
        "Units of one relation, facts of another",
        "Units chosen on the relation of the row; change in nats per token of the facts of the column's.",
        [Column("units chosen on"), Column("model"), *(Column(short_name(name)) for name in names)],
        rows,
        folded=True,
    )


def _units(summary: MatchedSummary) -> Table:
    return Table(
        "matched_units",
        "The chosen units",
        "Those whose average over a text varies most between the selection facts, in that order.",
        [Column("relation"), *(Column(title, "numbers of the units, from 0") for title in summary.relations)],
        [
            [short_name(name), *(" ".join(map(str, each.units)) for each in _of_models(summary, name))]
            for name in _names(summary)
        ],
    )
