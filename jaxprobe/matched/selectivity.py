"""How selective an edit is: units chosen on one relation, changes on the facts of every other."""

from collections.abc import Mapping

from jaxprobe.array_typing import np
from jaxprobe.matched.results import RelationEffects
from jaxprobe.matched.rows import Selectivity
from jaxprobe.statistics import inference

_OFFSET = 1e-6  # the original study's, beside a percentage that may be zero


def change(relations: Mapping[str, RelationEffects], row: str, column: str) -> float:
    """In nats per token of the column's facts, under the row's units; nan where it was not measured."""
    facts, others = relations[column].facts, relations[row].others or {}
    after = facts.after if row == column else others.get(column)
    return np.nan if after is None else float((after.sum() - facts.before.sum()) / facts.tokens.sum())


def selectivity(relations: Mapping[str, RelationEffects], name: str, level: float) -> Selectivity | None:
    """Of one relation's units; None where they were not tried on other relations.

    Args:
      relations: of one model. name: of the relation.
      level: of the interval.
    """
    others = {other: after for other, after in (relations[name].others or {}).items() if other != name}
    if not others:
        return None
    changes = {column: change(relations, name, column) for column in relations}
    facts, rest = relations[name].facts, np.array([changes[other] for other in others])
    mean, own = float(rest.mean()), changes[name]
    ratio, fewest = None, min(len(facts.tokens), len(rest))
    if mean > 0 and fewest < inference.FEWEST:
        ratio = inference.Estimate(own / mean)
    elif mean > 0:
        # Facts are the units of the numerator and the other relations those of the denominator, so the two
        # errors are independent; degrees of freedom are those of the smaller number.
        residuals = facts.after - facts.before - own * facts.tokens
        variance = residuals.var(ddof=1) / (len(residuals) * facts.tokens.mean() ** 2)
        covariance = np.diag([variance, rest.var(ddof=1) / len(rest)])
        ratio = inference.fieller_ends(own, mean, covariance, fewest - 1, level)
    nats = sum(after.sum() - relations[other].facts.before.sum() for other, after in others.items())
    tokens = sum(relations[other].facts.tokens.sum() for other in others)
    with np.errstate(over="ignore", invalid="ignore"):
        percent = float(100 * np.expm1(own) / (100 * np.expm1(nats / tokens) + _OFFSET))
    return Selectivity(changes, mean, ratio, percent)
