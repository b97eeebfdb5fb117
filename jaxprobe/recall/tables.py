"""Console tables of `jaxprobe.factual_recall`: strings from results, nothing printed here."""

from collections.abc import Mapping

from jaxprobe.console import table
from jaxprobe.original.tables import number
from jaxprobe.recall.decoding import Accuracy
from jaxprobe.recall.records import Patterns, RelationRecall, Results, Trend, patterns

_LEGEND = """\
  nats       change of the negative log-likelihood per token: the measure to compare
  %          the same as percentage change of perplexity, 100 (exp(nats) - 1)
  ppl, ppl'  perplexity before and after; ' marks what is measured with the units edited
  other      of the control texts, with the relation's units edited
  select.    selectivity: % / other % (the seed's; of little use where other % is near 0)
  forced     share of the object's tokens that are the most likely ones, given the true text before them
  greedy     share of facts whose object the model writes out whole"""
_RECALL = ("forced", "forced'", "greedy", "greedy'")


def recall_report(results: Results, heading: str) -> str:
    """Every console table of the recall analysis, and the answer in a sentence or two.

    Args:
      results: of each model.
      heading: what was done to the models.
    """
    sections = [f"{heading}\n{_LEGEND}"]
    sections += [_model(title, relations) for title, relations in results.items()]
    found = {title: patterns(relations) for title, relations in results.items()}
    if len(results) > 1:
        sections.append(_combined(results))
    sections.append(_patterns(found))
    sections += _left_out(results)
    sections.append(_answer(found))
    return "\n\n".join(sections)


def _model(title: str, relations: Mapping[str, RelationRecall]) -> str:
    rows = []
    for name, entry in relations.items():
        erased, other = entry.scores.erased, entry.scores.control
        values = (
            erased.delta_nats, erased.percentage, erased.baseline_ppl, erased.perturbed_ppl,
            other.delta_nats, other.percentage, other.perturbed_ppl, entry.selectivity,
        )  # fmt: skip
        rows.append([name, *map(number, values), *_accuracies(*entry.accuracies)])
    header = ["relation", "nats", "%", "ppl", "ppl'", "other", "other %", "ppl'", "select.", *_RECALL]
    other = next(iter(relations.values())).scores.control
    return f"{title} (other texts: perplexity {number(other.baseline_ppl)} before)\n" + table(header, rows)


def _accuracies(before: Accuracy, after: Accuracy) -> list[str]:
    values = (before.teacher_forced, after.teacher_forced, before.greedy, after.greedy)
    return [_share(value) for value in values]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _combined(results: Results) -> str:
    names = list(results)
    columns = {"nats": "delta_nats", "%": "percentage", "baseline": "baseline_ppl"}
    header = ["relation", *(f"{column} {i}" for column in columns for i in range(1, len(names) + 1))]
    rows = [
        [relation, *(
            number(getattr(results[title][relation].scores.erased, attribute))
            for attribute in columns.values() for title in names
        )]
        for relation in results[names[0]]
    ]  # fmt: skip
    models = ", ".join(f"{i}: {title}" for i, title in enumerate(names, 1))
    return f"All models ({models})\n" + table(header, rows)


def _patterns(found: Mapping[str, Patterns]) -> str:
    header = ["model", "nats", "other", "%", "other %", "select.", "worse", "r nats", "r %", *_RECALL]
    rows = [
        [
            title, number(p.nats), number(p.other_nats), number(p.percentage), number(p.other_percentage),
            number(p.selectivity), str(p.worse), _correlation(p.trend_nats), _correlation(p.trend_percentage),
            *_accuracies(p.before, p.after),
        ]
        for title, p in found.items()
    ]  # fmt: skip
    ends = "\n".join(
        f"{title}: most sensitive on {p.most}, least on {p.least} (in nats)" for title, p in found.items()
    )
    return (
        "Patterns: means over relations (selectivity: median; forced, greedy: over all facts); worse: on how "
        "many\nrelations perplexity rises; r: correlation over relations with the baseline perplexity\n"
        f"{table(header, rows)}\n{ends}"
    )


def _correlation(trend: Trend | None) -> str:
    return "-" if trend is None else f"{trend.correlation:+.2f}"


def _left_out(results: Results) -> list[str]:
    lines = [
        f"  {title}, {name}, {fact.object!r}: {fact.left_out}"
        for title, relations in results.items()
        for name, entry in relations.items()
        for fact in entry.facts
        if fact.left_out
    ]
    return ["Facts whose recall is not scored\n" + "\n".join(lines)] if lines else []


def _answer(found: Mapping[str, Patterns]) -> str:
    lines = [
        f"Answer: {title} loses {number(p.nats)} nats per token on the erased relation and "
        f"{number(p.other_nats)} on other texts (means over\nrelations); it writes out "
        f"{_share(p.before.greedy)} of the objects before the edit and {_share(p.after.greedy)} after."
        for title, p in found.items()
    ]
    return "\n".join(lines)
