"""What the seed protocol says of the models, in sentences; nothing printed here."""

import math

from jaxprobe.array_typing import np
from jaxprobe.console import how_many
from jaxprobe.original.summary import Accounting, Summary
from jaxprobe.statistics.inference import FEWEST, LEVEL, Estimate
from jaxprobe.statistics.paired import MedianInterval, difference_words, median_interval

_ROUNDING = 1e-5  # nats per token: float32 may make as much of an edit that changes nothing
_LIMIT = "units being chosen on the very sentences measured, against no other units, this cannot say why"


def answer(summary: Summary) -> tuple[str, str]:
    """The answer: what the edit costs, and what the percentages are made of."""
    if summary.accounting is None:
        return _one_model(summary)
    return _cost(summary), f"{share_words(summary.accounting, *summary.relations)}; {_LIMIT}."


def verb(nats: float) -> str:
    """What an edit does that changes the nats per token by this: a negative cost is a saving."""
    return "saves" if nats < 0 else "costs"


def median_words(found: MedianInterval, name: str = "median difference") -> str:
    """The median behind a claim, with its interval and whether it can be chance."""
    if not found.confidence:
        return " (one relation, so no interval)"
    chance = ", which can be chance" if found.low <= 0 <= found.high else ""
    return f"{difference_words(found, name)}{chance}"


def _one_model(summary: Summary) -> tuple[str, str]:
    ((title, found),) = summary.means.items()
    nats, values = found["delta_nats"].value, _costs(summary, title)
    return (
        f"The edit {verb(nats)} {title} {abs(nats):.3g} nats per token on average over "
        f"{how_many(len(values), 'relation')}{median_words(median_interval(values), 'median')}.",
        f"With one model there is nothing to compare; {_LIMIT}.",
    )


def _cost(summary: Summary) -> str:
    (first, a), (second, b) = ((title, each["delta_nats"].value) for title, each in summary.means.items())
    other_verb = "" if verb(a) == verb(b) else f"{verb(b)} "
    costs = [_costs(summary, title) for title in (first, second)]
    if np.abs(costs).max() < _ROUNDING:
        by = f"by more than rounding may ({_ROUNDING:g} nats per token)"
        return f"The edit changes neither {first} nor {second} {by}."
    difference, farther = costs[0] - costs[1], np.abs(costs[0]) - np.abs(costs[1])
    more = ((difference > 0) & (farther >= 0)).sum()
    # As in the matched protocol: who loses more is not called so where the other, which gains, moves farther.
    unlike = (difference * farther < 0).sum()
    neither = f" (on {unlike} neither: the one that gains more moves farther)" if unlike else ""
    return (
        f"The edit {verb(a)} {first} {abs(a):.3g} and {other_verb}{second} {abs(b):.3g} nats per token on "
        f"average; {first} is the more sensitive on {more} of {len(difference)} "
        f"relations{neither}{median_words(median_interval(difference))}."
    )


def share_words(accounting: Accounting, first: str, second: str) -> str:
    """Whether the first model changes more in percent than the second, and the denominator's share."""
    if accounting.mean is None:
        return "There is nothing to decompose, as on no relation do both models get worse"
    excess, number = accounting.mean["log_percentage_ratio"], len(accounting.relations)
    ratio = excess.map(math.exp)
    left_out = len(accounting.exact.left_out)
    over = [f"geometric mean over {how_many(number, 'relation')}{_ends(ratio, '{:.3g}')}"]
    if left_out:
        over.append(f"{left_out} left out, {'which has' if left_out == 1 else 'which have'} no logarithm")
    start = f"In percent {first} changes {ratio.value:.3g} times as much as {second} ({'; '.join(over)})"
    return f"{start}{_excess(excess, accounting.share, number)}{_driven(accounting)}"


def _excess(excess: Estimate, share: Estimate | None, number: int) -> str:
    few = "relations are too few for an interval" if number < FEWEST else "there is no interval"
    if excess.low is None or excess.high is None:
        if share is None:
            return f", so no excess is seen; {few} that could tell one from none"
        return f", and the denominator's share of that excess is {_percent(share)}; {few}"
    if excess.low <= 0 <= excess.high:
        return ", so an excess is not told from none"
    if share is None:
        return ", which is no excess that a lower baseline could explain"
    return f", and the denominator's share of that excess is {_percent(share)}"


def _driven(accounting: Accounting) -> str:
    if not accounting.near_zero:
        return ""
    left = (
        "nothing is left" if accounting.without is None else f"it is {math.exp(accounting.without):.3g} times"
    )
    return (
        ". A change near zero (under a tenth of the model's median) makes the ratio extreme on "
        f"{', '.join(accounting.near_zero)}; without, {left}"
    )


def _percent(share: Estimate) -> str:
    part = share.map(lambda value: 100 * value)
    return f"{part.value:.3g}%{_ends(part, '{:.3g}%')}"


def _ends(each: Estimate, form: str) -> str:
    if each.low is None or each.high is None:
        return ""
    return f", {100 * LEVEL:g}% interval {form.format(each.low)} to {form.format(each.high)}"


def _costs(summary: Summary, title: str) -> np.ndarray:
    return np.array([each.erased["delta_nats"].value for each in summary.relations[title].values()])
