"""The tables of the report on the matched protocol."""

from collections.abc import Iterator, Mapping

from jaxprobe.matched.control_sets import NORM_MATCHED, NORM_TOLERANCE
from jaxprobe.matched.rows import FEWEST_SETS, MatchedSummary, short_name
from jaxprobe.matched.study_tables import (
    accounting_table,
    few_facts,
    linearity_table,
    selectivity_table,
)
from jaxprobe.matched.verdict import MEASURE_WORDS, verdicts
from jaxprobe.report.content import Cell, Column, Table
from jaxprobe.report.estimates import estimate_cells, estimate_columns
from jaxprobe.statistics.inference import FEWEST, Percentile

TABLES = (
    "matched_effects", "matched_perplexity", "matched_levels", "matched_measures", "matched_controls",
    "matched_control_sets", "matched_accounting", "matched_linearity", "matched_selectivity",
    "matched_units",
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
        yield accounting_table(summary)
    if any(row.linear for rows in summary.relations.values() for row in rows.values()):
        yield linearity_table(summary)
    if any(row.selectivity for rows in summary.relations.values() for row in rows.values()):
        yield selectivity_table(summary)
    yield _units(summary)


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
    for name in summary.names:
        of_models = summary.of_models(name)
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
        more = verdict.overall or "neither" if verdict.tested else "too few relations"
        mean += [*estimate_cells(overall.difference), overall.p_value, None, more]
    caption = (
        "Change in nats per token of the facts that units were not chosen on. The mean is over relations, "
        f"and so is its interval. {few_facts(summary)}"
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
    for name in summary.names:
        row: list[Cell] = [short_name(name)]
        for each in summary.of_models(name):
            row += [*estimate_cells(each.percent), *estimate_cells(each.absolute)]
        rows.append(row)
    caption = f"Perplexity per token, in percent and absolute. {few_facts(summary)}"
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
        for name in summary.names
        for title, row in ((title, relations[name]) for title, relations in summary.relations.items())
        for measure in row.baseline
    ]  # fmt: skip
    return Table(
        "matched_levels",
        "Perplexity per token, byte and word",
        "Before the edit and with it. Bytes and words are those that the scored tokens cover: per byte and "
        f"per word models with other tokenizers compare. {few_facts(summary)}",
        columns,
        rows,
    )


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
            Column("relations: neither", "not told apart, or the one that gains moves further"),
        ]
    rows = []
    for measure, means in summary.means.items():
        row: list[Cell] = [MEASURE_WORDS[measure]]
        row += [cell for title in summary.relations for cell in estimate_cells(means[title])]
        if found:
            verdict = found[measure]
            row += [*estimate_cells(summary.overall[measure].difference), summary.overall[measure].p_value]
            called = [*(verdict.counts[title] for title in summary.relations), verdict.neither]
            row += called if verdict.counts else [None] * len(called)
        rows.append(row)
    few = "" if len(summary.names) >= FEWEST else ", too few for an interval or a test"
    return Table("matched_measures", "By each measure", f"Means over relations{few}.", columns, rows)


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
    for name in summary.names:
        row: list[Cell] = [short_name(name)]
        for each in summary.of_models(name):
            random = each.controls.get("random")
            for rank in (each.percentile, random and random.disjoint):
                row += _rank_cells(rank)
            row += [random.disjoint_sets if random else None, *estimate_cells(each.control_texts)]
        rows.append(row)
    return Table(
        "matched_controls",
        "Against random sets of as many units",
        "A chosen set within the random ones is not told from random sets. Random sets may hold chosen "
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
        Column("percentile", "of that among the random sets; of these themselves there is none"),
        Column("percentile, low", "its exact (Clopper-Pearson) interval over the random sets"),
        Column("percentile, high", "its upper end"),
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
            *_rank_cells(sets.percentile), sets.shared, *sets.energy,
            sets.far if kind == NORM_MATCHED else None,
        ]
        for name in summary.names
        for title, relations in summary.relations.items()
        for kind, sets in relations[name].controls.items()
    ]  # fmt: skip
    return Table(
        "matched_control_sets",
        "Other sets of as many units",
        "What they cost, how many of the chosen units they hold, and how large their units are beside the "
        "chosen ones. Norm matched sets are the nearest in energy that were found. Intervals are over facts, "
        f"with the sets as they are. {few_facts(summary)}",
        columns,
        rows,
    )


def _rank_cells(rank: Percentile | None) -> list[Cell]:
    return [rank.value, rank.low, rank.high] if rank else [None] * 3


def _units(summary: MatchedSummary) -> Table:
    return Table(
        "matched_units",
        "The chosen units",
        "Those whose average over a text varies most between the selection facts, in that order.",
        [Column("relation"), *(Column(title, "numbers of the units, from 0") for title in summary.relations)],
        [
            [short_name(name), *(" ".join(map(str, each.units)) for each in summary.of_models(name))]
            for name in summary.names
        ],
    )
