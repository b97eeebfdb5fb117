"""The report's tables of the accounting of percentages and of the studies: linearity, selectivity."""

import math
from collections.abc import Mapping

from jaxprobe.matched.results import STRENGTHS
from jaxprobe.matched.rows import MatchedSummary, short_name
from jaxprobe.report.content import Cell, Column, Table
from jaxprobe.report.estimates import estimate_cells, estimate_columns, few_words
from jaxprobe.statistics.inference import FEWEST


def few_facts(summary: MatchedSummary) -> str:
    """Which relations have too few facts for an interval, in a sentence; empty where none."""
    first = next(iter(summary.relations.values()))
    return few_words([short_name(name) for name, row in first.items() if row.too_few], len(first))


def accounting_table(summary: MatchedSummary) -> Table:
    """A relation a row: the logarithms of the models' ratios, or why there are none."""
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
        [row(name, accounts.get(name)) for name in summary.names],
        mean,
    )


def linearity_table(summary: MatchedSummary) -> Table:
    """A relation a row: what its whole edit did, and what derivatives predicted of it."""
    columns = [Column("relation")]
    for title in summary.relations:
        columns += [
            *estimate_columns(
                f"measured {title}", "change in nats per token by the whole edit", summary.level
            ),
            *estimate_columns(f"first order {title}", "what the gradient predicts of it", summary.level),
            *estimate_columns(f"second order {title}", "what gradient and curvature predict", summary.level),
            Column(
                f"fails at {title}", "strength from which first order is off by more than 10%, or why none"
            ),
        ]
    rows = []
    for name in summary.names:
        row: list[Cell] = [short_name(name)]
        for each in summary.of_models(name):
            linear = each.linear
            if linear is None:
                row += [None] * 10
                continue
            for estimate in (linear.measured, linear.first_order, linear.second_order):
                row += estimate_cells(estimate)
            row.append(fails_words(linear.fails_at))
        rows.append(row)
    return Table(
        "matched_linearity",
        "How linear the edit is",
        "The change of each relation's facts by the chosen units' edit, measured and predicted from no edit. "
        "The strength at which first order fails is one number of all the facts together, without an "
        f"interval; below {STRENGTHS[0]:g}, the least measured, slope and curvature say where. "
        f"{few_facts(summary)}",
        columns,
        rows,
    )


def fails_words(strength: float | None) -> Cell:
    """A strength of `taylor.first_order_fails`, or why there is none."""
    if strength is None:
        return "at none measured"
    return strength if math.isfinite(strength) else "nothing to predict"


def selectivity_table(summary: MatchedSummary) -> Table:
    """A relation a row: what its units cost its own facts and the others'."""
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
    for name in summary.names:
        row: list[Cell] = [short_name(name)]
        for found in (each.selectivity for each in summary.of_models(name)):
            if found is None:
                row += [None] * 6
            else:
                row += [found.changes[name], found.others, *estimate_cells(found.ratio), found.percent]
        rows.append(row)
    return Table(
        "matched_selectivity",
        "How selective the units are",
        "1: they cost other relations as much. Intervals are Fieller's, over the relation's facts and over "
        "the other relations; none where the mean of the others is not told from 0, or of fewer than "
        f"{FEWEST} others. {few_facts(summary)}",
        columns,
        rows,
    )
