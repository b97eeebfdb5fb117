"""Which model is the more sensitive, at what confidence, in two sentences; nothing printed here.

Per relation the difference between the models is tested on paired facts, two-sided, and Holm's correction
over the relations keeps the chance of even one wrong call below one less the level. The mean over relations
is one test for each measure; nats per token, the primary measure, is the one that the answer is about.

An edit may also help. The more sensitive model is then the one that loses more, if it also moves further than
the one that gains; where that moves further, the two are told apart and neither is called (`UNLIKE`).

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


UNLIKE = "neither: one gains more"


@dataclass(frozen=True)
class Verdict:
    """By one measure.

    Attributes:
      adjusted: relation -> Holm's adjusted p-value, of the relations that have enough facts to be tested.
      more: relation -> the more sensitive model, UNLIKE, or None where the two are not told apart; of the
        same.
      overall: the more sensitive model over relations (by percentile: whose chosen units stand out more),
        UNLIKE, or None.
      tested: whether there were enough relations for an overall test.
    """

    adjusted: Mapping[str, float]
    more: Mapping[str, str | None]
    overall: str | None
    tested: bool

    @property
    def counts(self) -> Mapping[str | None, int]:
        """How many relations each model is more sensitive on; on the others it is UNLIKE, or None."""
        return Counter(self.more.values())

    @property
    def neither(self) -> int:
        """On how many relations no model is called the more sensitive."""
        return self.counts[None] + self.counts[UNLIKE]


def verdicts(summary: MatchedSummary) -> dict[str, Verdict]:
    """The verdict by each measure; empty for one model."""
    if len(summary.relations) < 2:
        return {}
    first, second = summary.relations
    error = 1 - summary.level

    def more(comparison: Comparison, p_value: float | None, changes: Mapping[str, float]) -> str | None:
        if p_value is None or p_value > error:
            return None
        called, other = (first, second) if comparison.difference.value > 0 else (second, first)
        return called if abs(changes[called]) >= abs(changes[other]) else UNLIKE

    made = {}
    for measure, comparisons in summary.comparisons.items():
        tested = {name: each.p_value for name, each in comparisons.items() if each.p_value is not None}
        adjusted = dict(zip(tested, map(float, holm(np.array(list(tested.values())))), strict=True))
        overall = summary.overall[measure]
        means = {title: each.value for title, each in summary.means[measure].items()}
        made[measure] = Verdict(
            adjusted=adjusted,
            more={
                name: more(comparisons[name], p_value, _changes(summary, name, measure))
                for name, p_value in adjusted.items()
            },
            overall=more(overall, overall.p_value, means),
            tested=overall.p_value is not None,
        )
    return made


def _changes(summary: MatchedSummary, name: str, measure: str) -> dict[str, float]:
    return {title: rows[name].delta[measure].value for title, rows in summary.relations.items()}


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
        called = f"{more} is the more sensitive"
        if more in (None, UNLIKE):
            told = "not told apart" if more is None else "told apart, but the one that gains moves further,"
            called = f"{first} and {second} are {told}"
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
    parts = [
        f"{first} is the more sensitive on {one} of {number} relations{few} in nats per token",
        f"{second} on {other}",
    ]
    if counts[UNLIKE]:
        parts.append(f"on {counts[UNLIKE]} the one that gains moves further than the one that loses more")
    if counts[None]:
        parts.append(f"on {counts[None]} the two are not told apart")
    comma = "," if len(parts) > 2 else ""
    return f"{', '.join(parts[:-1])}{comma} and {parts[-1]} {how}."


def _overall(summary: MatchedSummary, found: Mapping[str, Verdict]) -> str:
    first, second = summary.relations
    primary, overall = found["token"], summary.overall["token"]
    size = f"{first} less {second} is {words(overall.difference, summary.level)} nats per token"
    if not primary.tested:
        return f"Over all there are too few relations for a test: {size}."
    size = f"{size}, {p_words(overall.p_value)}, relations being the units, for this one split of their facts"
    if primary.overall == UNLIKE:
        start = "Over all the two are told apart, but the one that gains moves further"
    elif primary.overall:
        start = f"Over all {primary.overall} is the more sensitive"
    else:
        start = f"Over all neither is shown to be the more sensitive at {_percent(summary.level)} confidence"
    parts = (_gains(summary), _others(summary, found), _noise(summary))
    return f"{start}: {size}; {'; '.join(filter(None, parts))}."


def _gains(summary: MatchedSummary) -> str:
    """On how many relations the edit helps each model; empty where it helps none."""
    helped = {
        title: sum(row.delta["token"].value < 0 for row in rows.values())
        for title, rows in summary.relations.items()
    }
    said = [f"{title} on {number}" for title, number in helped.items() if number]
    return f"the edit helps {_list(said)} of {len(summary.names)} relations" if said else ""


def _noise(summary: MatchedSummary) -> str:
    """How large the noise is beside what it is added to; empty without noise."""
    if summary.noise_std is None:
        return ""
    said = [
        f"{summary.noise_std / size:.2g} times that of {title}'s"
        for title, size in summary.rms.items()
        if size
    ]
    return f"the noise's root mean square is {_list(said)} chosen units" if said else ""


def _others(summary: MatchedSummary, found: Mapping[str, Verdict]) -> str:
    """What the other measures say, those of one answer together."""
    groups: dict[str, list[str]] = {}
    for measure, verdict in found.items():
        if measure not in ("token", "percentile"):
            said = "neither is" if verdict.overall in (None, UNLIKE) else f"{verdict.overall} is"
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
            f"The edit is shown to make {title} worse on {_count(worse)} of {len(tested)} relations, by "
            f"{level} intervals of nats per token, each for itself"
        )
    mean = summary.means["token"][title]
    among = summary.means.get("percentile")
    rank = ""
    if among is not None:
        where = words(among[title], summary.level, 1)
        sets = min(row.controls["random"].sets for row in rows.values())
        rank = f", and the chosen units lie at percentile {where} among {sets} random sets"
    return (
        f"{each}.",
        f"On average over {how_many(len(rows), 'relation')} it costs {words(mean, summary.level)} nats per "
        f"token{rank}; {_ending(_noise(summary))}with one model there is nothing to compare.",
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


def _ending(words: str) -> str:
    return f"{words}; " if words else ""


def _count(number: int) -> str:
    return str(number or "none")


def _percent(level: float) -> str:
    return f"{100 * level:g}%"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _list(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
