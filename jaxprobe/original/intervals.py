"""Intervals of the seed's protocol: a relation's sentences resampled, the same ones for both models.

Units are chosen on these very sentences, which the intervals do not know: they are of the cost on sentences
like these with these units.
"""

import zlib
from collections.abc import Mapping, Sequence

from jaxprobe.array_typing import np
from jaxprobe.statistics import inference
from jaxprobe.statistics.fact_scores import FactScores
from jaxprobe.statistics.inference import FEWEST, Estimate
from jaxprobe.statistics.percentage import Change, Terms

MEASURES = ("delta_nats", "percentage", "absolute", "baseline_ppl")  # of a `Change`
TERMS = ("log_percentage_ratio", "log_absolute_ratio", "log_baseline_ratio")  # of `Terms`


def intervals(change: Change, scores: FactScores, name: str) -> dict[str, Estimate]:
    """Each of `MEASURES` with its interval; without one for fewer than five texts.

    Args:
      change: of the texts together. scores: text by text.
      name: what shares it is resampled alike.
    """
    values = {measure: float(getattr(change, measure)) for measure in MEASURES}
    if len(scores.tokens) < FEWEST:
        return {measure: Estimate(value) for measure, value in values.items()}
    tokens = scores.tokens.astype(np.float64)
    before, after = (scores.before, tokens), (scores.after, tokens)
    nats = _estimate(inference.ratio, name, (scores.after - scores.before, tokens))
    found = {
        "delta_nats": nats,
        "percentage": nats.map(lambda end: float(100 * np.expm1(end))),
        "absolute": _estimate(inference.exp_difference, name, after, before),
        "baseline_ppl": _estimate(inference.ratio, name, before).map(lambda end: float(np.exp(end))),
    }
    return {measure: Estimate(values[measure], each.low, each.high) for measure, each in found.items()}


def difference(first: FactScores, second: FactScores, name: str) -> Estimate:
    """The first model's change in nats per token less the second's, on the same texts."""
    columns = [(each.after - each.before, each.tokens.astype(np.float64)) for each in (first, second)]
    return _estimate(inference.difference, name, *columns)


def logarithms(terms: Terms, first: FactScores, second: FactScores, name: str) -> tuple[Estimate, ...]:
    """The three terms of a relation's accounting, of the first model against the second, as `TERMS` has them.

    Without an interval for fewer than five texts, or where too many resamples have no logarithm.
    """
    values = [getattr(terms, term) for term in TERMS]
    if len(first.tokens) < FEWEST:
        return tuple(map(Estimate, values))
    pair = [
        (each.before, each.after - each.before, each.tokens.astype(np.float64)) for each in (first, second)
    ]
    changes = [(change, tokens) for _, change, tokens in pair]
    before = [(nats, tokens) for nats, _, tokens in pair]
    found = (
        _estimate(inference.log_percentage_ratio, name, *changes),
        _estimate(inference.log_absolute_ratio, name, *changes, *before),
        _estimate(inference.difference, name, *reversed(before)),
    )
    return tuple(Estimate(value, each.low, each.high) for value, each in zip(values, found, strict=True))


def over_relations(values: Sequence[float]) -> Estimate:
    """The mean of a value over relations, which are its units."""
    column = np.array(values, np.float64)
    return _estimate(inference.ratio, "relations", (column, np.ones_like(column)))


def means(found: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """Each of `MEASURES` over relations."""
    return {m: over_relations([each[m].value for each in found.values()]) for m in MEASURES}


def _estimate(
    functional: inference.Functional, name: str, *columns: tuple[np.ndarray, np.ndarray]
) -> Estimate:
    draws = inference.resample(len(columns[0][0]), (zlib.crc32(name.encode()),))
    numerators, denominators = (np.stack(side, axis=-1) for side in zip(*columns, strict=True))
    return inference.bootstrap(functional, numerators, denominators, draws).estimate()
