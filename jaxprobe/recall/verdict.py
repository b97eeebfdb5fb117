"""What the edit costs each model, and whether it still recalls the facts, in sentences."""

from jaxprobe.original.verdict import median_words, verb
from jaxprobe.recall.summary import Patterns, Summary


def answer(summary: Summary) -> list[str]:
    """The answer of each model, two sentences."""
    return [_model(title, found) for title, found in summary.patterns.items()]


def _model(title: str, found: Patterns) -> str:
    nats, other = found.nats.value, found.other_nats.value
    again = "" if verb(nats) == verb(other) else f"{verb(other)} it "
    recalled = "None of its facts' objects can be scored."
    if found.before.facts:
        recalled = (
            f"It writes out {found.before.recalled} of {found.before.facts} objects before the edit and "
            f"{found.after.recalled} with it."
        )
    return (
        f"The edit {verb(nats)} {title} {abs(nats):.3g} nats per token on the relation whose units were "
        f"chosen and {again}{abs(other):.3g} on other texts{median_words(found.median_difference)}. "
        f"{recalled}"
    )
