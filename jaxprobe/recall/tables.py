"""Console tables of `jaxprobe.factual_recall`: strings from its summary, nothing printed here."""

from collections.abc import Mapping

from jaxprobe.console import answered, number, table
from jaxprobe.recall.decoding import Accuracy
from jaxprobe.recall.summary import Patterns, RelationSummary, Summary
from jaxprobe.recall.verdict import answer
from jaxprobe.statistics.correlation import Trend
from jaxprobe.statistics.inference import LEVEL, Estimate

_LEGEND = """\
  nats       change of the negative log-likelihood per token: the measure to compare
  %          the same as percentage change of perplexity, 100 (exp(nats) - 1)
  ppl, ppl'  perplexity before and after; ' marks what is measured with the units edited
  other      of the control texts, with the relation's units edited
  select.    selectivity: % / other % (the study's; of little use where other % is near 0);
             -: other texts do not get worse, so there is none
  forced     share of the object's tokens that are the most likely ones, given the true text before them
  greedy     share of facts whose object the model writes out whole"""


def recall_report(summary: Summary, heading: str) -> str:
    """Every console table of the recall analysis, and the answer.

    Args:
      summary: of each model.
      heading: what was done to the models.
    """
    sections = [f"{heading}\n{_LEGEND}"]
    sections += [_model(title, relations) for title, relations in summary.relations.items()]
    if len(summary.relations) > 1:
        sections.append(_combined(summary))
    sections.append(_patterns(summary))
    sections += _left_out(summary)
    sections.append(answered(answer(summary)))
    return "\n\n".join(sections)


def _model(title: str, relations: Mapping[str, RelationSummary]) -> str:
    rows = []
    for name, entry in relations.items():
        erased, other = entry.cost.scores.erased, entry.cost.scores.control
        values = (
            erased.delta_nats, erased.percentage, erased.baseline_ppl, erased.perturbed_ppl,
            other.delta_nats, other.percentage, other.perturbed_ppl,
        )  # fmt: skip
        rows.append([
            name, *map(number, values), "-" if entry.selectivity is None else number(entry.selectivity),
            *_accuracies(entry.before, entry.after),
        ])  # fmt: skip
    header = [
        "relation", "nats", "%", "ppl", "ppl'", "other", "other %", "ppl'", "select.",
        "forced", "forced'", "greedy", "greedy'",
    ]  # fmt: skip
    other = next(iter(relations.values())).cost.scores.control
    return f"{title} (other texts: perplexity {number(other.baseline_ppl)} before)\n" + table(header, rows)


def _accuracies(before: Accuracy, after: Accuracy) -> list[str]:
    forced = [each.teacher_forced for each in (before, after)]
    greedy = [each.greedy and each.greedy.value for each in (before, after)]
    return ["-" if value is None else f"{value:.0%}" for value in (*forced, *greedy)]


def _combined(summary: Summary) -> str:
    columns = {"nats": "delta_nats", "%": "percentage", "baseline": "baseline_ppl"}
    header = [
        "relation", *(f"{column} {i}" for column in columns for i in range(1, len(summary.relations) + 1))
    ]  # fmt: skip
    rows = [
        [relation, *(
            number(found[relation].cost.erased[measure].value)
            for measure in columns.values() for found in summary.relations.values()
        )]
        for relation in summary.names
    ]  # fmt: skip
    models = ", ".join(f"{i}: {title}" for i, title in enumerate(summary.relations, 1))
    return f"All models ({models})\n" + table(header, rows)


def pattern_rows(found: Patterns) -> dict[str, Estimate | int | str | None]:
    """What is said of a model over its relations, by measure, for the console and the report."""
    return {
        "nats": found.nats,
        "nats of other texts": found.other_nats,
        "%": found.percentage,
        "% of other texts": found.other_percentage,
        "selectivity, median": _plain(found.selectivity),
        "relations with a selectivity": found.selective,
        "relations that get worse": found.worse,
        "forced before, %": percent(_plain(found.before.teacher_forced)),
        "forced after, %": percent(_plain(found.after.teacher_forced)),
        "greedy before, %": percent(found.before.greedy),
        "greedy after, %": percent(found.after.greedy),
        "r of nats with the baseline": _correlation(found.trend_nats),
        "r of % with the baseline": _correlation(found.trend_percentage),
        "relations in each r": found.trend_nats and found.trend_nats.points,
        "most sensitive, in nats": found.most,
        "least sensitive, in nats": found.least,
    }


def percent(share: Estimate | None) -> Estimate | None:
    """A share, which may not exist, in percent."""
    return share and share.map(lambda part: 100 * part)


def _plain(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value)


def _correlation(trend: Trend | None) -> Estimate | None:
    return trend and trend.correlation


def _patterns(summary: Summary) -> str:
    found = {title: pattern_rows(each) for title, each in summary.patterns.items()}
    rows = [[label, *(_cell(each[label]) for each in found.values())] for label in next(iter(found.values()))]
    return (
        f"Patterns over relations [{100 * LEVEL:g}% interval; none of fewer than five relations, too few]: "
        "means; forced, greedy: over\nall facts; r: correlation with the baseline perplexity\n"
        + table(["measure", *found], rows)
    )


def _cell(value: Estimate | int | str | None) -> str:
    if not isinstance(value, Estimate):
        return "-" if value is None else str(value)
    if value.low is None or value.high is None:
        return number(value.value)
    return f"{number(value.value)} [{number(value.low)}, {number(value.high)}]"


def _left_out(summary: Summary) -> list[str]:
    lines = [
        f"  {title}, {name}, {fact.object!r}: {fact.left_out}"
        for title, relations in summary.relations.items()
        for name, entry in relations.items()
        for fact in entry.facts
        if fact.left_out
    ]
    return ["Facts whose recall is not scored\n" + "\n".join(lines)] if lines else []
