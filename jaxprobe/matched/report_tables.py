"""The tables of the report on the matched protocol."""

from collections.abc import Iterator, Mapping

from jaxprobe.matched.foretold import first_order_fails, foretold
from jaxprobe.matched.inference import Estimate
from jaxprobe.matched.results import Linearity, MatchedResults
from jaxprobe.matched.rows import MatchedSummary, RelationSummary
from jaxprobe.matched.tables import short_name
from jaxprobe.matched.verdict import MEASURE_WORDS, verdicts
from jaxprobe.report.content import Cell, Column, Table

TABLES = (
    "matched_effects", "matched_perplexity", "matched_measures", "matched_controls", "matched_accounting",
    "matched_linearity", "matched_units",
)  # fmt: skip


def matched_tables(summary: MatchedSummary, results: MatchedResults) -> Iterator[Table]:
    """Those there is something to put into."""
    yield _effects(summary)
    yield _perplexity(summary)
    yield _measures(summary)
    yield _controls(summary)
    if summary.accounting is not None:
        yield _accounting(summary)
    if any(each.linearity for model in results.values() for each in model.relations.values()):
        yield _linearity(results)
    yield _units(summary)


def _ends(label: str, meaning: str, level: float) -> list[Column]:
    interval = f"end of the {100 * level:g}% interval"
    return [
        Column(label, meaning),
        Column(f"{label}, low", f"lower {interval}"),
        Column(f"{label}, high", f"upper {interval}"),
    ]


def _cells(estimate: Estimate | None) -> list[Cell]:
    return [None] * 3 if estimate is None else [estimate.value, estimate.low, estimate.high]


def _of_models(summary: MatchedSummary, name: str) -> list[RelationSummary]:
    return [relations[name] for relations in summary.relations.values()]


def _names(summary: MatchedSummary) -> list[str]:
    return list(next(iter(summary.relations.values())))


def _effects(summary: MatchedSummary) -> Table:
    columns = [Column("relation"), Column("facts", "how many were scored; no unit was chosen on them")]
    for title in summary.relations:
        columns += _ends(f"nats {title}", "change in nats per token by the edit", summary.level)
    verdict = verdicts(summary).get("token")
    if verdict:
        columns += _ends("difference", " less ".join(summary.relations), summary.level)
        columns += [
            Column("p", "of no difference between the models, paired facts, two-sided"),
            Column("p, Holm", "corrected for the number of relations"),
            Column("more sensitive", "at the level of all the calls together"),
        ]
    rows = []
    for name in _names(summary):
        of_models = _of_models(summary, name)
        row: list[Cell] = [short_name(name), of_models[0].facts]
        row += [cell for each in of_models for cell in _cells(each.delta["token"])]
        if verdict:
            compared = summary.comparisons["token"][name]
            tested = name in verdict.adjusted
            more = verdict.more[name] or "neither" if tested else "too few facts"
            row += [*_cells(compared.difference), compared.p_value, verdict.adjusted.get(name), more]
        rows.append(row)
    mean: list[Cell] = ["mean", None]
    mean += [cell for title in summary.relations for cell in _cells(summary.means["token"][title])]
    if verdict:
        overall = summary.overall["token"]
        mean += [*_cells(overall.difference), overall.p_value, None, verdict.overall or "neither"]
    caption = (
        "Change in nats per token of the facts that units were not chosen on. The mean is over relations."
    )
    return Table("matched_effects", "What the edit costs", caption, columns, rows, [mean])


def _perplexity(summary: MatchedSummary) -> Table:
    columns = [Column("relation")]
    for title in summary.relations:
        columns += [
            *_ends(f"% {title}", "change of perplexity in percent: no baseline is in it", summary.level),
            *_ends(f"abs {title}", "change of perplexity: baseline x % / 100", summary.level),
        ]
        columns += [
            Column(f"baseline nats per {measure} {title}", f"before the edit, per {measure}")
            for measure in next(iter(summary.relations[title].values())).baseline
        ]
    rows = []
    for name in _names(summary):
        row: list[Cell] = [short_name(name)]
        for each in _of_models(summary, name):
            row += [*_cells(each.percent), *_cells(each.absolute)]
            row += [baseline.value for baseline in each.baseline.values()]
        rows.append(row)
    return Table(
        "matched_perplexity",
        "The same in perplexity, and the baselines",
        "Bytes and words are those that the scored tokens cover: models with other tokenizers compare.",
        columns,
        rows,
    )


def _measures(summary: MatchedSummary) -> Table:
    columns = [Column("measure")]
    for title in summary.relations:
        columns += _ends(title, "mean over relations", summary.level)
    found = verdicts(summary)
    if found:
        columns += _ends("difference", " less ".join(summary.relations), summary.level)
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
        row += [cell for title in summary.relations for cell in _cells(means[title])]
        if found:
            counts = found[measure].counts
            row += [*_cells(summary.overall[measure].difference), summary.overall[measure].p_value]
            row += [counts[title] for title in (*summary.relations, None)]
        rows.append(row)
    return Table("matched_measures", "By each measure", "Means over relations.", columns, rows)


def _controls(summary: MatchedSummary) -> Table:
    kinds = list(
        dict.fromkeys(
            kind for rows in summary.relations.values() for row in rows.values() for kind in row.controls
        )
    )
    columns = [Column("relation")]
    for title in summary.relations:
        columns += [
            Column(f"percentile {title}", "of the chosen set's effect among random sets of as many units"),
            Column(f"percentile {title}, low", "exact (Clopper-Pearson) interval over the random sets"),
            Column(f"percentile {title}, high", "its upper end"),
            Column(f"control texts {title}", "change in nats per token on texts of no relation"),
            *(
                Column(f"{kind.replace('_', ' ')} {title}", "change in nats per token, mean over such sets")
                for kind in kinds
            ),
        ]
    rows = []
    for name in _names(summary):
        row: list[Cell] = [short_name(name)]
        for each in _of_models(summary, name):
            rank = each.percentile
            row += [rank.value, rank.low, rank.high] if rank else [None] * 3
            row.append(each.control_texts.value)
            row += [each.controls[kind].delta_nats if kind in each.controls else None for kind in kinds]
        rows.append(row)
    return Table(
        "matched_controls",
        "Against other sets of as many units",
        "A chosen set within the random ones does no more than any units would.",
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
        columns += _ends(label, meaning, summary.level)
    columns.append(Column("undefined", "why there are no logarithms"))
    accounts: Mapping = accounting.relations if accounting else {}
    undefined = accounting.undefined if accounting else {}

    def row(label: str, account) -> list[Cell]:
        cells = [cell for term in terms for cell in _cells(getattr(account, term) if account else None)]
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


def _linearity(results: MatchedResults) -> Table:
    columns = [Column("relation")]
    for title in results:
        columns += [
            Column(f"measured {title}", "change in nats per token by the whole edit"),
            Column(f"first order {title}", "what the gradient foretells of it"),
            Column(f"second order {title}", "what gradient and curvature foretell"),
            Column(
                f"fails at {title}",
                "strength from which first order is off by more than 10%; no value: at none measured",
            ),
        ]
    names = list(next(iter(results.values())).relations)
    rows = []
    for name in names:
        row: list[Cell] = [short_name(name)]
        for model in results.values():
            effects = model.relations[name]
            row += _foretold(effects.linearity, int(effects.facts.tokens.sum()))
        rows.append(row)
    return Table(
        "matched_linearity",
        "How linear the edit is",
        "The change of each relation's facts by the chosen units' edit, measured and foretold from no edit.",
        columns,
        rows,
    )


def _foretold(linearity: Linearity | None, tokens: int) -> list[Cell]:
    if linearity is None:
        return [None] * 4
    measured = linearity.measured.sum(axis=1)
    made = foretold(linearity.chosen, linearity.strengths)
    first, second = made.first.sum(axis=1), made.second.sum(axis=1)
    fails = first_order_fails(linearity.strengths, measured, first)
    whole = [float(each[-1]) / tokens for each in (measured, first, second)]
    return [*whole, fails]


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
