"""Intervals of the seed protocol: a relation's sentences resampled, the same ones for both models.

Units are chosen on these very sentences, which the intervals do not know: they are of the cost on sentences
like these with these units. Everything of fewer than five sentences, or relations, is without an interval.
"""

import zlib
from collections.abc import Mapping, Sequence

from jaxprobe.array_typing import Float, np
from jaxprobe.statistics import inference
from jaxprobe.statistics.fact_scores import FactScores
from jaxprobe.statistics.inference import Estimate
from jaxprobe.statistics.percentage import Change, Terms

MEASURES = ("delta_nats", "percentage", "absolute", "baseline_ppl")  # of a `Change`
TERMS = ("log_percentage_ratio", "log_absolute_ratio", "log_baseline_ratio")  # of `Terms`

Estimates = Mapping[str, Estimate]  # by measure or term
_Draws = Float[np.ndarray, "s b"]
_Column = tuple[np.ndarray, np.ndarray]  # numerator and denominator of each unit


def resamples(texts: int, seed: int, name: str) -> Float[np.ndarray, "s b"]:
    """How often each text is drawn in each resample; what shares seed, name and number is resampled alike."""
    return inference.resample(texts, (seed, zlib.crc32(name.encode())))


def intervals(change: Change, scores: FactScores, draws: Float[np.ndarray, "s b"]) -> Estimates:
    """Each of `MEASURES` with its interval.

    Args:
      change: of the texts together. scores: text by text.
      draws: of the texts, as `resamples` makes them.
    """
    before, after, rise = _columns(scores)
    nats = _estimate(inference.ratio, draws, rise)
    with np.errstate(over="ignore"):  # a perplexity may be infinite
        found = {
            "delta_nats": nats,
            "percentage": nats.map(lambda end: float(100 * np.expm1(end))),
            "absolute": _estimate(inference.exp_difference, draws, after, before),
            "baseline_ppl": _estimate(inference.ratio, draws, before).map(lambda end: float(np.exp(end))),
        }
    return {each: _around(getattr(change, each), found[each]) for each in MEASURES}


def difference(first: FactScores, second: FactScores, draws: Float[np.ndarray, "s b"]) -> Estimate:
    """The first model's change in nats per token less the second's, on the same texts."""
    return _estimate(inference.difference, draws, _columns(first)[2], _columns(second)[2])


def logarithms(
    terms: Terms, first: FactScores, second: FactScores, draws: Float[np.ndarray, "s b"]
) -> Estimates:
    """The `TERMS` of a relation's accounting, of the first model against the second.

    Without an interval where too many resamples have no logarithm, either.
    """
    (before, _, rise), (other_before, _, other_rise) = _columns(first), _columns(second)
    found = (
        _estimate(inference.log_percentage_ratio, draws, rise, other_rise),
        _estimate(inference.log_absolute_ratio, draws, rise, other_rise, before, other_before),
        _estimate(inference.difference, draws, other_before, before),
    )
    return {term: _around(getattr(terms, term), each) for term, each in zip(TERMS, found, strict=True)}


def over_relations(values: Sequence[float], seed: int) -> Estimate:
    """The mean of a value over relations, which are its units."""
    column = np.array(values, np.float64)
    draws = inference.resample(len(column), (seed,))
    return _estimate(inference.ratio, draws, (column, np.ones_like(column)))


def means(found: Sequence[Estimates], seed: int) -> Estimates:
    """The mean over relations of each measure or term that these have."""
    return {key: over_relations([each[key].value for each in found], seed) for key in found[0]}


def _columns(scores: FactScores) -> tuple[_Column, _Column, _Column]:
    # Nats before, nats after and their change, per token.
    tokens = scores.tokens.astype(np.float64)
    return (scores.before, tokens), (scores.after, tokens), (scores.after - scores.before, tokens)


def _around(value: float, found: Estimate) -> Estimate:
    # The original study's own digits: sums over texts round differently.
    return Estimate(float(value), found.low, found.high)


def _estimate(functional: inference.Functional, draws: _Draws, *columns: _Column) -> Estimate:
    numerators, denominators = (np.stack(side, axis=-1) for side in zip(*columns, strict=True))
    return inference.bootstrap(functional, numerators, denominators, draws).estimate()
