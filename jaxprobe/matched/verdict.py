"""Which model is the more sensitive, at what confidence, in two sentences; nothing printed here.

Per relation the difference between the models is tested on paired facts, two-sided, and Holm's correction
over the relations keeps the chance of even one wrong call below one less the level. The mean over relations
is one test for each measure; nats per token, the primary measure, is the one that the answer is about.

A percentile among random sets says how far the chosen units stand out from others of the same model, not how
sensitive the model is: it is compared over relations only, and in other words.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from jaxprobe.array_typing import np
from jaxprobe.console import how_many
from jaxprobe.matched.rows import Comparison, MatchedSummary
from jaxprobe.statistics.inference import Estimate, holm

MEASURE_WORDS = {
    "token": "nats per token",
    "byte": "nats per byte",
    "word": "nats per word",
    "percentile": "percentile among random sets",
}


@dataclass(frozen=True)
class Verdict:
    """By one measure.

    Attributes:
      adjusted: relation -> Holm's adjusted p-value, of the relations that have enough facts to be tested.
      more: relation -> the more sensitive model, None where the two are not told apart; of the same.
      overall: the more sensitive model over relations (by percentile: whose chosen units stand out more), or
        None.
      tested: whether there were enough relations for an overall test.
    """

    adjusted: Mapping[str, float]
    more: Mapping[str, str | None]
    overall: str | None
    tested: bool

    @property
    def counts(self) -> Mapping[str | None, int]:
        """How many relations each model is more sensitive on; under None, on how many neither."""
        return Counter(self.more.values())


def verdicts(summary: MatchedSummary) -> dict[str, Verdict]:
    """The verdict by each measure; empty for one model."""
    if len(summary.relations) < 2:
        return {}
    first, second = summary.relations
    error = 1 - summary.level

    def more(comparison: Comparison, p_value: float | None) -> str | None:
        if p_value is None or p_value > error:
            return None
        return first if comparison.difference.value > 0 else second

    made = {}
    for measure, comparisons in summary.comparisons.items():
        tested = {name: each.p_value for name, each in comparisons.items() if each.p_value is not None}
        adjusted = dict(zip(tested, map(float, holm(np.array(list(tested.values())))), strict=True))
        overall = summary.overall[measure]
        made[measure] = Verdict(
            adjusted=adjusted,
            more={name: more(comparisons[name], p_value) for name, p_value in adjusted.items()},
            overall=more(overall, overall.p_value),
            tested=overall.p_value is not None,
        )
    return made


def answer(summary: MatchedSummary) -> tuple[str, str]:
    """The answer in two sentences: relation by relation, and over all."""
    if len(summary.relations) == 1:
        return _one_model(summary)
    found = verdicts(summary)
    return _by_relation(summary, found["token"]), _overall(summary, found)


def _by_relation(summary: MatchedSummary, verdict: Verdict) -> str:
    first, second = summary.relations
    number, counts = len(verdict.more), verdict.counts
    left_out = len(summary.comparisons["token"]) - number
    few = f" ({left_out} more {_have(left_out)} too few facts to be tested)" if left_out else ""
    if not number:
        return "No relation has enough facts for a test of its own."
    if number == 1:
        (more,) = verdict.more.values()
        called = f"{more} is the more sensitive" if more else f"{first} and {second} are not told apart"
        how = f"(a test on paired facts, {_percent(summary.level)} confidence)"
        return f"{called} on the one relation tested{few} in nats per token {how}."
    how = (
        f"(tests on paired facts, Holm's correction for {number} relations, {_percent(summary.level)} "
        "confidence in all the calls together)"
    )
    if counts[None] == number:
        return (
            f"On none of {number} relations{few} are {first} and {second} told apart in nats per token {how}."
        )
    one, other = _count(counts[first]), _count(counts[second])
    start = f"{first} is the more sensitive on {one} of {number} relations{few} in nats per token"
    if not counts[None]:
        return f"{start} and {second} on {other} {how}."
    return f"{start}, {second} on {other}, and on {counts[None]} the two are not told apart {how}."


def _overall(summary: MatchedSummary, found: Mapping[str, Verdict]) -> str:
    first, second = summary.relations
    primary, overall = found["token"], summary.overall["token"]
    size = f"{first} less {second} is {words(overall.difference, summary.level)} nats per token"
    if not primary.tested:
        return f"Over all there are too few relations for a test: {size}."
    size = f"{size}, {p_words(overall.p_value)}, relations being the units"
    if primary.overall:
        start = f"Over all {primary.overall} is the more sensitive"
    else:
        start = f"Over all neither is shown to be the more sensitive at {_percent(summary.level)} confidence"
    return f"{start}: {size}; {_others(summary, found)}."


def _others(summary: MatchedSummary, found: Mapping[str, Verdict]) -> str:
    """What the other measures say, those of one answer together."""
    groups: dict[str, list[str]] = {}
    for measure, verdict in found.items():
        if measure not in ("token", "percentile"):
            said = f"{verdict.overall} is" if verdict.overall else "neither is"
            value = f"{p_words(summary.overall[measure].p_value)}"
            groups.setdefault(said, []).append(f"{MEASURE_WORDS[measure]} ({value})")
    parts = [f"by {_list(names)} {said}" for said, names in groups.items()]
    if "percentile" in found:
        whose, p_value = found["percentile"].overall or "neither", summary.overall["percentile"].p_value
        parts.append(f"the chosen units of {whose} stand out more among random sets ({p_words(p_value)})")
    return "; ".join(parts)


def _one_model(summary: MatchedSummary) -> tuple[str, str]:
    ((title, rows),) = summary.relations.items()
    tested = [row.delta["token"] for row in rows.values() if row.delta["token"].low is not None]
    worse = sum(each.low is not None and each.low > 0 for each in tested)
    level = _percent(summary.level)
    if not tested:
        each = "No relation has enough facts for an interval of its own"
    elif len(tested) == 1:
        shown = "makes" if worse else "is not shown to make"
        each = (
            f"The edit {shown} {title} worse on the one relation with enough facts for an interval, "
            f"of {level} in nats per token"
        )
    else:
        each = (
            f"The edit makes {title} worse on {_count(worse)} of {len(tested)} relations, by {level} "
            "intervals of nats per token, each for itself"
        )
    mean = summary.means["token"][title]
    among = summary.means.get("percentile")
    rank = ""
    if among is not None:
        where = words(among[title], summary.level, 1)
        rank = f", and the chosen units lie at percentile {where} among random sets"
    return (
        f"{each}.",
        f"On average over {how_many(len(rows), 'relation')} it costs {words(mean, summary.level)} nats per "
        f"token{rank}; with one model there is nothing to compare.",
    )


def words(estimate: Estimate, level: float, decimals: int | None = None) -> str:
    """A number with its interval: `0.031 (95% interval 0.010 to 0.052)`."""

    def number(value: float) -> str:
        return f"{value:.3g}" if decimals is None else f"{value:.{decimals}f}"

    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    ends = f"{number(estimate.low)} to {number(estimate.high)}"
    return f"{number(estimate.value)} ({_percent(level)} interval {ends})"


def p_words(p_value: float | None) -> str:
    """A p-value as one writes it: `p = 0.012`, `p < 0.001`."""
    if p_value is None:
        return "not tested"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def _count(number: int) -> str:
    return str(number or "none")


def _percent(level: float) -> str:
    return f"{100 * level:g}%"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _list(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
