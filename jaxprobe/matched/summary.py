"""From scores to what is reported: effects with intervals, ranks among random sets, and the accounting.

Facts are resampled, the same ones for both models, so differences between models are paired. What is said
over relations has relations as its units: its interval holds for relations like these, not for these alone.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxprobe.array_typing import Float, np
from jaxprobe.matched import inference
from jaxprobe.matched.inference import FEWEST, LEVEL, RESAMPLES, Estimate
from jaxprobe.matched.results import FactScores, MatchedResults, RelationEffects
from jaxprobe.matched.rows import (
    MEASURES,
    Account,
    Accounting,
    Comparison,
    ControlSets,
    MatchedSummary,
    RelationSummary,
)  # fmt: skip
from jaxprobe.matched.text_sizes import TextSizes
from jaxprobe.percentage import Change, decompose

Sizes = Mapping[str, Mapping[str, TextSizes]]  # model title -> relation -> of its evaluated facts


def summarise(
    results: MatchedResults, sizes: Sizes, *, seed: int = 0, level: float = LEVEL, draws: int = RESAMPLES
) -> MatchedSummary:
    """Effects, intervals, ranks and the accounting.

    Args:
      results: of one or two models.
      sizes: bytes and words that the scored tokens of each evaluated fact cover.
      seed: of the resamples; those of a relation depend on it and on the relation's name alone.
      level: of the intervals.
      draws: how many resamples.
    """
    titles = tuple(results)
    names = tuple(results[titles[0]].relations)
    over = _Relations(inference.resample(len(names), (seed,), draws), level)
    relations: dict[str, dict[str, RelationSummary]] = {title: {} for title in titles}
    comparisons: dict[str, dict[str, Comparison]] = {measure: {} for measure in MEASURES}
    accounts = {}
    for name in names:
        facts = _facts(results, sizes, name, seed, level, draws)
        for title, effects in results.items():
            control = _control(effects.relations[name].control_texts, seed, level, draws)
            relations[title][name] = facts.summary(title, effects.relations[name], control)
        if len(titles) == 2:
            for measure in MEASURES:
                comparisons[measure][name] = facts.difference(titles, measure)
            accounts[name] = facts.account(titles)
    values = {measure: _values(relations, measure) for measure in (*MEASURES, "percentile")}
    values = {measure: found for measure, found in values.items() if found}
    means = {
        measure: {title: over.mean(measure, column) for title, column in found.items()}
        for measure, found in values.items()
    }
    if len(titles) == 1:
        return MatchedSummary(relations, means, {}, {}, None, level)
    first, second = titles
    if "percentile" in values:
        comparisons["percentile"] = {
            name: _percentiles_differ(relations[first][name], relations[second][name]) for name in names
        }
    overall = {
        measure: _comparison(over.bootstrap(found[first] - found[second]), level)
        for measure, found in values.items()
    }
    changes = [
        {name: _change(effects.relations[name].facts) for name in names} for effects in results.values()
    ]
    accounting = over.accounting(accounts, (first, second), changes)
    return MatchedSummary(relations, means, comparisons, overall, accounting, level)


@dataclass(frozen=True)
class _Facts:
    """A relation's facts on every model, and how they are resampled."""

    scores: Mapping[str, FactScores]
    counts: Mapping[str, Mapping[str, np.ndarray]]  # model title -> measure -> how many of it each fact has
    draws: Float[np.ndarray, "s b"]
    level: float

    def estimate(self, functional: inference.Functional, *columns) -> Estimate:
        return _bootstrap(functional, columns, self.draws).estimate(self.level)

    def change(self, title: str, measure: str = "token") -> tuple[np.ndarray, np.ndarray]:
        facts = self.scores[title]
        return facts.after - facts.before, self.counts[title][measure]

    def before(self, title: str, measure: str = "token") -> tuple[np.ndarray, np.ndarray]:
        return self.scores[title].before, self.counts[title][measure]

    def summary(self, title: str, effects: RelationEffects, control: Estimate) -> RelationSummary:
        facts, tokens = effects.facts, self.counts[title]["token"]
        delta = {measure: self.estimate(inference.ratio, self.change(title, measure)) for measure in MEASURES}
        return RelationSummary(
            facts=len(facts.tokens),
            units=effects.chosen.units,
            baseline={
                measure: self.estimate(inference.ratio, self.before(title, measure)) for measure in MEASURES
            },
            delta=delta,
            percent=delta["token"].map(_percentage),
            absolute=self.estimate(inference.exp_difference, (facts.after, tokens), (facts.before, tokens)),
            control_texts=control,
            controls=_control_sets(effects, self.level),
        )

    def difference(self, pair: Sequence[str], measure: str) -> Comparison:
        columns = [self.change(title, measure) for title in pair]
        return _comparison(_bootstrap(inference.difference, columns, self.draws), self.level)

    def account(self, pair: Sequence[str]) -> Account:
        changes, before = [self.change(title) for title in pair], [self.before(title) for title in pair]
        return Account(
            self.estimate(inference.log_percentage_ratio, *changes),
            self.estimate(inference.log_absolute_ratio, *changes, *before),
            self.estimate(inference.difference, *reversed(before)),
        )


def _facts(results: MatchedResults, sizes: Sizes, name: str, seed: int, level: float, draws: int) -> _Facts:
    scores = {title: effects.relations[name].facts for title, effects in results.items()}
    counts = {
        title: {
            "token": facts.tokens.astype(np.float64),
            "byte": sizes[title][name].bytes,
            "word": sizes[title][name].words,
        }
        for title, facts in scores.items()
    }
    units = len(next(iter(scores.values())).tokens)
    return _Facts(scores, counts, inference.resample(units, (seed, zlib.crc32(name.encode())), draws), level)


@dataclass(frozen=True)
class _Relations:
    """Relations as the units."""

    draws: Float[np.ndarray, "s b"]
    level: float

    def bootstrap(self, values: Float[np.ndarray, " b"]) -> inference.Bootstrap:
        return _bootstrap(inference.ratio, [(values, np.ones_like(values))], self.draws)

    def mean(self, measure: str, values: Float[np.ndarray, " b"]) -> Estimate:
        made = self.bootstrap(values).estimate(self.level)
        return made.map(lambda end: min(max(end, 0.0), 100.0)) if measure == "percentile" else made

    def accounting(
        self, accounts: Mapping[str, Account], pair: tuple[str, str], changes: Sequence[Mapping[str, Change]]
    ) -> Accounting:
        exact = decompose(changes[0], changes[1], pair)
        relations = {name: accounts[name] for name in exact.terms}
        if exact.mean is None:
            return Accounting(relations, exact.left_out, None, None)
        names = ("log_percentage_ratio", "log_absolute_ratio", "log_baseline_ratio")
        columns = [np.array([getattr(terms, name) for terms in exact.terms.values()]) for name in names]
        part = _Relations(inference.resample(len(relations), (len(relations),), len(self.draws)), self.level)
        mean = Account(*(part.mean(name, column) for name, column in zip(names, columns, strict=True)))
        share = None if exact.share is None else inference.fieller(columns[2], columns[0], self.level)
        return Accounting(relations, exact.left_out, mean, share)


def _bootstrap(functional: inference.Functional, columns, draws: np.ndarray) -> inference.Bootstrap:
    """Of (numerator, denominator) columns over the units."""
    numerators, denominators = (np.stack(side, axis=-1) for side in zip(*columns, strict=True))
    return inference.bootstrap(functional, numerators, denominators, draws)


def _percentage(nats: float) -> float:
    with np.errstate(over="ignore"):
        return float(100 * np.expm1(nats))


def _control(control: FactScores, seed: int, level: float, draws: int) -> Estimate:
    columns = [(control.after - control.before, control.tokens.astype(np.float64))]
    texts = inference.resample(len(control.tokens), (seed,), draws)
    return _bootstrap(inference.ratio, columns, texts).estimate(level)


def _comparison(made: inference.Bootstrap, level: float) -> Comparison:
    return Comparison(made.estimate(level), float(made.p_value()) if made.degrees + 1 >= FEWEST else None)


def _values(relations: Mapping[str, Mapping[str, RelationSummary]], measure: str) -> dict[str, np.ndarray]:
    """A measure's value on every relation, by model; empty where it is not to be had."""
    found = {}
    for title, rows in relations.items():
        if measure != "percentile":
            found[title] = np.array([row.delta[measure].value for row in rows.values()])
            continue
        percentiles = [row.percentile for row in rows.values()]
        if any(each is None for each in percentiles):
            return {}
        found[title] = np.array([each.value for each in percentiles if each is not None])
    return found


def _percentiles_differ(m: RelationSummary, g: RelationSummary) -> Comparison:
    """Fisher's exact test of the shares of random sets that lie below; a tie counts half, rounded down."""
    from scipy.stats import fisher_exact

    ours, theirs = m.percentile, g.percentile
    if ours is None or theirs is None:
        raise ValueError("a relation without random sets has no percentile")
    below = [(each.below + each.ties // 2, each.draws) for each in (ours, theirs)]
    _, p_value = np.asarray(fisher_exact([[count, draws - count] for count, draws in below]), np.float64)
    return Comparison(Estimate(ours.value - theirs.value), float(p_value))


def _control_sets(effects: RelationEffects, level: float) -> dict[str, ControlSets]:
    facts = effects.facts
    tokens, before = facts.tokens.sum(), facts.before.sum()
    changes = {kind: (after.sum(axis=1) - before) / tokens for kind, after in effects.controls.items()}
    random, chosen = changes.get("random"), effects.energy["chosen"][0]
    made = {}
    for kind in sorted(changes, key=lambda kind: kind != "random"):
        change, ratios = changes[kind], effects.energy[kind] / chosen
        mean = float(change.mean())
        made[kind] = ControlSets(
            sets=len(change),
            delta_nats=mean,
            percentile=None if random is None else inference.percentile(mean, random, level).value,
            chosen=inference.percentile(facts.delta_nats, change, level) if len(change) > 1 else None,
            energy=(float(ratios.min()), float(ratios.max())),
        )
    return made


def _change(facts: FactScores) -> Change:
    """As the accounting takes it."""
    tokens = facts.tokens.sum()
    with np.errstate(over="ignore", invalid="ignore"):
        spreads = [float(np.exp(nats / facts.tokens).std()) for nats in (facts.before, facts.after)]
    return Change(float(facts.before.sum() / tokens), float(facts.after.sum() / tokens), *spreads)
