"""Console tables of the matched protocol: strings from its summary, nothing printed here."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxprobe.array_typing import np
from jaxprobe.console import answered, paragraph, table
from jaxprobe.matched.accounting_words import share_words
from jaxprobe.matched.control_sets import NORM_MATCHED, NORM_TOLERANCE
from jaxprobe.matched.rows import (
    FEWEST_SETS,
    Account,
    ControlSets,
    MatchedSummary,
    RelationSummary,
    short_name,
)
from jaxprobe.matched.verdict import answer, verdicts
from jaxprobe.statistics.inference import FEWEST, Estimate, Percentile
from jaxprobe.statistics.percentage import NO_BASELINE

_SHORT = {"token": "nats/token", "byte": "nats/byte", "word": "nats/word", "percentile": "percentile"}
_LEGEND = """\
  nats     change of the negative log-likelihood per token: the measure to compare
  %        change of perplexity in percent = 100 (exp(nats) - 1):
           {no_baseline}
  abs      change of perplexity = baseline perplexity x % / 100: the baseline has a part in it
  [ ]      {level:g}% interval over facts, paired between models; over relations in the rows of means
  few      too few facts or relations (fewer than {fewest}) for an interval or a test"""


def matched_report(summary: MatchedSummary) -> str:
    """Every console table of the matched protocol, and the answer in two sentences."""
    sections = [
        _LEGEND.format(level=100 * summary.level, no_baseline=NO_BASELINE, fewest=FEWEST),
        _effects(summary), _perplexities(summary), _ranks(summary),
        *_disjoint_ranks(summary), _controls(summary), _measures(summary),
        *_selectivity(summary), *_accounting(summary),
    ]  # fmt: skip
    sections.append(answered(answer(summary)))
    return "\n\n".join(sections)


def _effects(summary: MatchedSummary) -> str:
    columns: dict[str, list[Estimate]] = {
        f"nats {title}": [*_of(rows, lambda row: row.delta["token"]), summary.means["token"][title]]
        for title, rows in summary.relations.items()
    }
    if summary.overall:
        both = [*summary.comparisons["token"].values(), summary.overall["token"]]
        columns[" less ".join(title[0] for title in summary.relations)] = [each.difference for each in both]
    return "Change in nats per token of the evaluated facts\n" + _estimates(summary, columns)


def _perplexities(summary: MatchedSummary) -> str:
    percent, absolute, baseline = {}, {}, {}
    for title, rows in summary.relations.items():
        percent[f"% {title}"] = [row.percent for row in rows.values()]
        absolute[f"abs {title}"] = [row.absolute for row in rows.values()]
        baseline[f"baseline {title}"] = [row.perplexity["token"] for row in rows.values()]
    parts = {"in percent": percent, "absolute": absolute}
    return "\n\n".join([
        *(f"Change of perplexity, {what}\n" + _estimates(summary, cells, means=False)
          for what, cells in parts.items()),
        "Perplexity before the edit\n" + _estimates(summary, baseline, means=False),
    ])  # fmt: skip


def _ranks(summary: MatchedSummary) -> str:
    """Where the chosen units lie among random sets, and which model each relation's test names."""
    verdict = verdicts(summary).get("token")
    header = ["relation", "facts", *(f"percentile {title}" for title in summary.relations)]
    if verdict:
        header += ["p", "p Holm", "more sensitive"]
    rows = []
    for name in summary.names:
        summaries = summary.of_models(name)
        row = [short_name(name), str(summaries[0].facts), *(_rank(each.percentile) for each in summaries)]
        if verdict:
            p_value = summary.comparisons["token"][name].p_value
            row += (
                ["-", "-", "few"]
                if p_value is None
                else [_p(p_value), _p(verdict.adjusted[name]), verdict.more[name] or "neither"]
            )
        rows.append(row)
    title = (
        "Percentile of the chosen units' effect among random sets of as many units [exact interval over sets]"
    )
    if verdict:
        title += ",\nand the test of each relation's difference in nats per token"
    return f"{title}\n" + table(header, rows)


def _disjoint_ranks(summary: MatchedSummary) -> list[str]:
    """The same among random sets that share no unit with the chosen one: only there can it reach 100."""
    if not all("random" in row.controls for rows in summary.relations.values() for row in rows.values()):
        return []
    rows = []
    for name in summary.names:
        row = [short_name(name)]
        for relations in summary.relations.values():
            random = relations[name].controls["random"]
            row += [_rank(random.disjoint), str(random.disjoint_sets)]
        rows.append(row)
    header = ["relation", *(label for title in summary.relations for label in (title, "sets"))]
    title = (
        "The percentile among those random sets that share no unit with the chosen one, and how many these\n"
        f"are (-: fewer than {FEWEST_SETS})"
    )
    return [f"{title}\n" + table(header, rows)]


def _controls(summary: MatchedSummary) -> str:
    kinds = list(dict.fromkeys(
        kind for rows in summary.relations.values() for row in rows.values() for kind in row.controls
    ))  # fmt: skip
    header = ["units"]
    for title in summary.relations:
        header += [f"nats {title}", "percentile", "shared", "energy"]
    rows = [["chosen", *(cell for title in summary.relations for cell in _chosen_cells(summary, title))]]
    for kind in kinds:
        row = [kind.replace("_", " ")]
        for relations in summary.relations.values():
            sets = [each.controls[kind] for each in relations.values() if kind in each.controls]
            row += [
                _number(_mean([each.delta_nats for each in sets])),
                _number(_mean([each.percentile.value for each in sets if each.percentile is not None])),
                _number(_mean([each.shared for each in sets])),
                _energy(sets, marked=kind == NORM_MATCHED),
            ]
        rows.append(row)
    title = (
        "Control sets of as many units: change in nats per token, percentile among random sets and units\n"
        "shared with the chosen set, means over relations; energy (sum of the units' mean squares on the\n"
        "selection facts) over the chosen set's, smallest to largest"
    )
    return "\n".join([title, table(header, rows), *_far(summary)])


def _chosen_cells(summary: MatchedSummary, title: str) -> list[str]:
    among = summary.means.get("percentile")
    rank = _number(among[title].value) if among else "-"
    return [_number(summary.means["token"][title].value), rank, "all", "1"]


def _energy(sets: Sequence[ControlSets], *, marked: bool) -> str:
    if not sets:
        return "-"
    low, high = min(each.energy[0] for each in sets), max(each.energy[1] for each in sets)
    ends = f"{low:.2f} to {high:.2f}" if math.isfinite(low + high) else "-"
    return f"{ends} *" if marked and any(each.far for each in sets) else ends


def _far(summary: MatchedSummary) -> Iterator[str]:
    """Of norm-matched sets that do not match, how many there are."""
    for title, rows in summary.relations.items():
        sets = [row.controls[NORM_MATCHED] for row in rows.values() if NORM_MATCHED in row.controls]
        if far := sum(each.far for each in sets):
            of = f"{far} of {sum(each.sets for each in sets)} sets"
            yield f"* further than {NORM_TOLERANCE:.0%} in {title}: {of}, the nearest that were found"


def _measures(summary: MatchedSummary) -> str:
    found = verdicts(summary)
    header = ["by", *summary.relations]
    if found:
        first, second = summary.relations
        header += ["difference", "p", "relations"]
    rows = []
    for measure, means in summary.means.items():
        estimates = list(means.values())
        if found:
            estimates.append(summary.overall[measure].difference)
        row = [_SHORT[measure], *_column(estimates)]
        if found:
            counts = found[measure].counts
            called = (counts[first], counts[second], found[measure].neither)
            tally = " / ".join(map(str, called)) if counts else "-"
            row += [_p(summary.overall[measure].p_value), tally]
        rows.append(row)
    title = "Means over relations by each measure"
    if found:
        title += f"; relations where {first} / {second} / neither is the more sensitive"
    return f"{title}\n" + table(header, rows)


def _selectivity(summary: MatchedSummary) -> list[str]:
    undefined = Estimate(math.nan)
    columns = {}
    for title, rows in summary.relations.items():
        found = [row.selectivity for row in rows.values()]
        if not any(found):
            return []
        ratios = [(each and each.ratio) or undefined for each in found]
        few = len(rows) - 1 < FEWEST  # other relations
        without = ["few" if few or row.too_few else "unbounded" for row in rows.values()]
        columns[title] = _column(ratios, without)
    rows = [list(row) for row in zip(map(short_name, summary.names), *columns.values(), strict=True)]
    title = (
        "Selectivity: change in nats per token of the relation that units were chosen on, over the mean of\n"
        "the others' with the same units edited [interval over its facts and the other relations];\n"
        "-: the others do not get worse; unbounded: that mean is not told from 0"
    )
    return [f"{title}\n" + table(["relation", *columns], rows)]


def _accounting(summary: MatchedSummary) -> list[str]:
    accounting = summary.accounting
    if accounting is None:
        return []
    first, second = summary.relations
    terms = ("log_percentage_ratio", "log_absolute_ratio", "log_baseline_ratio")
    accounts: dict[str, Account] = dict(accounting.relations)
    if accounting.mean is not None:
        accounts["mean"] = accounting.mean
    without = [
        "few" if name == "mean" or summary.relations[first][name].too_few else "unbounded"
        for name in accounts
    ]
    columns = [_column([getattr(each, term) for each in accounts.values()], without) for term in terms]
    rows = [[short_name(name), *cells] for name, *cells in zip(accounts, *columns, strict=True)]
    title = (
        f"Accounting of {first}'s percentages against {second}'s: log(% / %) = log(abs / abs)\n"
        f"+ log(baseline of {second} / of {first}), exactly, where both get worse. No cause is implied."
    )
    parts = [f"{title}\n" + table(["relation", "log % ratio", "= log abs", "+ log baseline"], rows)]
    parts += [f"{short_name(name)}: undefined, as {why}" for name, why in accounting.undefined.items()]
    parts.append(paragraph(share_words(summary)))
    return ["\n".join(parts)]


def _of(
    rows: Mapping[str, RelationSummary], get: Callable[[RelationSummary], Estimate]
) -> Iterator[Estimate]:
    return (get(row) for row in rows.values())


def _estimates(
    summary: MatchedSummary, columns: Mapping[str, Sequence[Estimate]], *, means: bool = True
) -> str:
    names = [*map(short_name, summary.names), *(["mean"] if means else [])]
    cells = [_column(column) for column in columns.values()]
    return table(["relation", *columns], [list(row) for row in zip(names, *cells, strict=True)])


def _column(estimates: Sequence[Estimate], without: Sequence[str] = ()) -> list[str]:
    """Cells of one column, `0.048 [0.031, 0.067]`, with the decimals that show three digits of the median.

    Args:
      estimates: of the column.
      without: what stands for the interval where there is none; default: few.
    """
    sizes = np.abs([each.value for each in estimates])
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    size = float(np.median(sizes)) if sizes.size else 1.0
    decimals = int(np.clip(2 - math.floor(math.log10(size)), 0, 6))
    any_interval = bool(without) or any(each.low is not None for each in estimates)

    def cell(each: Estimate, without: str) -> str:
        if not math.isfinite(each.value):
            return "-"
        value = f"{each.value:.{decimals}f}"
        if each.low is not None and each.high is not None:
            return f"{value} [{each.low:.{decimals}f}, {each.high:.{decimals}f}]"
        return f"{value} {without}" if any_interval else value

    return [cell(*each) for each in zip(estimates, without or ["few"] * len(estimates), strict=True)]


def _rank(percentile: Percentile | None) -> str:
    if percentile is None:
        return "-"
    return f"{percentile.value:.1f} [{percentile.low:.1f}, {percentile.high:.1f}]"


def _p(p_value: float | None) -> str:
    if p_value is None:
        return "-"
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
