"""What the accounting of percentages comes to, in words: the denominator's share, and what it hangs on."""

from jaxprobe.array_typing import np
from jaxprobe.console import how_many
from jaxprobe.matched.rows import Accounting, MatchedSummary, short_name
from jaxprobe.statistics.inference import FEWEST, Estimate


def share_words(summary: MatchedSummary) -> str:
    """The denominator's share of the first model's excess in percent, in a sentence; empty for one model.

    A second sentence warns where one relation carries the mean.
    """
    accounting = summary.accounting
    if accounting is None:
        return ""
    number = len(accounting.relations)
    start = "Denominator's share of the excess in percent"
    of = f"({number} of {how_many(number + len(accounting.undefined), 'relation')})"
    if accounting.mean is None:
        return f"{start}: undefined, as on no relation do both models get worse."
    excess = accounting.mean.log_percentage_ratio
    held = excess.low is not None and excess.high is not None and excess.low <= 0 <= excess.high
    if accounting.share is None or held:
        said = f"{_no_excess(excess)} {of}: mean log % ratio {_interval(excess)}"
    else:
        said = _share(accounting.share.map(lambda part: 100 * part), of, number)
    return f"{start}: {said}.{_hangs_on(summary, accounting)}"


def _share(share: Estimate, of: str, number: int) -> str:
    if share.low is None or share.high is None:
        why = "too few relations" if number < FEWEST else "the excess itself is not told from none"
        return f"{share.value:.0f}% {of}, without an interval, as {why}"
    return f"{share.value:.0f}% [{share.low:.0f}, {share.high:.0f}] {of}"


def _no_excess(excess: Estimate) -> str:
    """Of a mean that is not positive: what that shows."""
    if excess.high is None:
        return "no excess is seen, on too few relations to tell one from none"
    return "an excess is not told from none" if excess.high > 0 else "there is no excess to explain"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2g}"
    return f"{estimate.value:.2g} [{estimate.low:.2g}, {estimate.high:.2g}]"


def _hangs_on(summary: MatchedSummary, accounting: Accounting) -> str:
    """A warning where one relation makes most of the spread of the logarithms by a change near zero.

    A logarithm grows without bound as either change goes to 0, so that a mean of them can be the one of a
    relation whose change is nothing but noise.
    """
    values = np.array([each.log_percentage_ratio.value for each in accounting.relations.values()])
    squares = (values - values.mean()) ** 2
    place = int(squares.argmax())
    if len(values) < 3 or squares[place] <= squares.sum() / 2:
        return ""
    name = list(accounting.relations)[place]
    changes = {title: rows[name].delta["token"] for title, rows in summary.relations.items()}
    near_zero = [
        f"{title}'s change is {each.value:.2g} nats per token, not told from 0,"
        for title, each in changes.items()
        if each.low is None or each.low <= 0
    ]
    if not near_zero:
        return ""
    return (
        f" Take care: {short_name(name)}, where {' and '.join(near_zero)} makes "
        f"{squares[place] / squares.sum():.0%} of the spread of these logarithms; "
        f"without it their mean is {np.delete(values, place).mean():.2g}."
    )
