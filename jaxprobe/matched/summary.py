"""From scores to what is reported: effects with intervals, ranks among random sets, and the accounting.

Facts are resampled, the same ones for both models, so differences between models are paired. What is said
over relations has relations as its units: its interval holds for relations like these, not for these alone.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from jaxprobe.array_typing import Float, np
from jaxprobe.matched.control_sets import NORM_TOLERANCE
from jaxprobe.matched.results import Linearity, MatchedResults, RelationEffects
from jaxprobe.matched.rows import (
    FEWEST_SETS,
    MEASURES,
    Account,
    Accounting,
    Comparison,
    ControlSets,
    Linear,
    MatchedSummary,
    RelationSummary,
)  # fmt: skip
from jaxprobe.matched.selectivity import selectivity
from jaxprobe.matched.taylor import edit_fails, predict
from jaxprobe.matched.text_sizes import TextSizes
from jaxprobe.statistics import inference
from jaxprobe.statistics.fact_scores import FactScores
from jaxprobe.statistics.inference import FEWEST, LEVEL, RESAMPLES, Estimate
from jaxprobe.statistics.percentage import Change, decompose

Sizes = Mapping[str, Mapping[str, TextSizes]]  # model title -> relation -> of its evaluated facts


def summarise(
    results: MatchedResults,
    sizes: Sizes,
    *,
    seed: int = 0,
    level: float = LEVEL,
    draws: int = RESAMPLES,
    noise_std: float | None = None,
) -> MatchedSummary:
    """Effects, intervals, ranks and the accounting.

    Args:
      results: of one or two models.
      sizes: bytes and words that the scored tokens of each evaluated fact cover.
      seed: of the resamples; those of a relation depend on it and on the relation's name alone.
      level: of the intervals.
      draws: how many resamples.
      noise_std: standard deviation of the noise, where the edit is that.
    """
    titles = tuple(results)
    names = tuple(results[titles[0]].relations)
    over = _Relations(len(names), seed, draws, level)
    relations: dict[str, dict[str, RelationSummary]] = {title: {} for title in titles}
    comparisons: dict[str, dict[str, Comparison]] = {measure: {} for measure in MEASURES}
    accounts = {}
    for name in names:
        facts = _facts(results, sizes, name, seed, level, draws)
        for title, effects in results.items():
            control = _control(effects.relations[name].control_texts, seed, level, draws)
            made = facts.summary(title, effects.relations[name], control)
            relations[title][name] = replace(made, selectivity=selectivity(effects.relations, name, level))
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
    rms = {title: _rms(effects.relations.values()) for title, effects in results.items()}
    if len(titles) == 1:
        return MatchedSummary(relations, means, {}, {}, None, level, seed, rms, noise_std)
    first, second = titles
    if "percentile" in values:
        # Not tested relation by relation: with the facts as they are, enough random sets make any gap sure.
        gaps = values["percentile"][first] - values["percentile"][second]
        comparisons["percentile"] = {
            name: Comparison(Estimate(float(gap)), None) for name, gap in zip(names, gaps, strict=True)
        }
    overall = {
        measure: over.difference(measure, found[first] - found[second]) for measure, found in values.items()
    }
    changes = [
        {name: _change(effects.relations[name].facts) for name in names} for effects in results.values()
    ]
    accounting = over.accounting(accounts, (first, second), changes)
    return MatchedSummary(relations, means, comparisons, overall, accounting, level, seed, rms, noise_std)


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

    def after(self, title: str, measure: str = "token") -> tuple[np.ndarray, np.ndarray]:
        return self.scores[title].after, self.counts[title][measure]

    def ratios(self, column: Callable[[str, str], tuple], title: str) -> dict[str, Estimate]:
        return {measure: self.estimate(inference.ratio, column(title, measure)) for measure in MEASURES}

    def summary(self, title: str, effects: RelationEffects, control: Estimate) -> RelationSummary:
        facts, tokens = effects.facts, self.counts[title]["token"]
        delta, baseline = self.ratios(self.change, title), self.ratios(self.before, title)
        edited = self.ratios(self.after, title)
        return RelationSummary(
            facts=len(facts.tokens),
            units=effects.chosen.units,
            baseline=baseline,
            delta=delta,
            perplexity={measure: nats.map(_exp) for measure, nats in baseline.items()},
            edited_perplexity={measure: nats.map(_exp) for measure, nats in edited.items()},
            percent=delta["token"].map(_percentage),
            absolute=self.estimate(inference.exp_difference, (facts.after, tokens), (facts.before, tokens)),
            control_texts=control,
            controls=_control_sets(effects, self.level, partial(self.mean, tokens)),
            linear=self.linear(effects.linearity, tokens),
        )

    def mean(self, tokens: Float[np.ndarray, " b"], change: Float[np.ndarray, " b"]) -> Estimate:
        return self.estimate(inference.ratio, (change, tokens))

    def linear(self, linearity: Linearity | None, tokens: Float[np.ndarray, " b"]) -> Linear | None:
        if linearity is None:
            return None
        measured, made = linearity.measured, predict(linearity.chosen, linearity.strengths)
        whole = (self.mean(tokens, each[-1]) for each in (measured, made.first, made.second))
        return Linear(*whole, fails_at=edit_fails(linearity))

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
    """Relations as the units, so many of them."""

    number: int
    seed: int
    draws: int
    level: float

    def bootstrap(self, values: Float[np.ndarray, " b"]) -> inference.Bootstrap:
        drawn = inference.resample(self.number, (self.seed,), self.draws)
        return _bootstrap(inference.ratio, [(values, np.ones_like(values))], drawn)

    def mean(self, measure: str, values: Float[np.ndarray, " b"]) -> Estimate:
        made = self.bootstrap(values).estimate(self.level)
        return made.map(lambda end: min(max(end, 0.0), 100.0)) if measure == "percentile" else made

    def difference(self, measure: str, values: Float[np.ndarray, " b"]) -> Comparison:
        made = _comparison(self.bootstrap(values), self.level)
        if measure != "percentile":
            return made
        bounded = made.difference.map(lambda end: min(max(end, -100.0), 100.0))
        return Comparison(bounded, made.p_value)

    def accounting(
        self, accounts: Mapping[str, Account], pair: tuple[str, str], changes: Sequence[Mapping[str, Change]]
    ) -> Accounting:
        exact = decompose(changes[0], changes[1], pair)
        relations = {name: accounts[name] for name in exact.terms}
        if exact.mean is None:
            return Accounting(relations, exact.left_out, None, None)
        names = ("log_percentage_ratio", "log_absolute_ratio", "log_baseline_ratio")
        columns = [np.array([getattr(terms, name) for terms in exact.terms.values()]) for name in names]
        part = replace(self, number=len(relations))
        mean = Account(*(part.mean(name, column) for name, column in zip(names, columns, strict=True)))
        share = None if exact.share is None else inference.fieller(columns[2], columns[0], self.level)
        return Accounting(relations, exact.left_out, mean, share)


def _bootstrap(functional: inference.Functional, columns, draws: np.ndarray) -> inference.Bootstrap:
    """Of (numerator, denominator) columns over the units."""
    numerators, denominators = (np.stack(side, axis=-1) for side in zip(*columns, strict=True))
    return inference.bootstrap(functional, numerators, denominators, draws)


def _rms(relations: Iterable[RelationEffects]) -> float:
    squares = [each.energy["chosen"][0] / len(each.chosen.units) for each in relations]
    return float(np.sqrt(np.mean(squares)))


def _exp(nats: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(nats))


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


def _control_sets(
    effects: RelationEffects, level: float, over_facts: Callable[[np.ndarray], Estimate]
) -> dict[str, ControlSets]:
    facts = effects.facts
    tokens, before = facts.tokens.sum(), facts.before.sum()
    changes = {kind: (after.sum(axis=1) - before) / tokens for kind, after in effects.controls.items()}
    random, chosen = changes.get("random"), effects.energy["chosen"][0]
    made = {}
    for kind in sorted(changes, key=lambda kind: kind != "random"):
        change, energy = changes[kind], effects.energy[kind]
        # Chosen units that are zero on every fact have no energy to be compared with.
        ratios = np.divide(energy, chosen, out=np.full(len(energy), np.nan), where=chosen > 0)
        mean = float(change.mean())
        shared = np.isin(effects.control_units[kind], effects.chosen.units).sum(axis=1)
        apart = change[shared == 0]
        made[kind] = ControlSets(
            sets=len(change),
            delta=over_facts(effects.controls[kind].mean(axis=0) - facts.before),
            percentile=(
                None if random is None or kind == "random" else inference.percentile(mean, random, level)
            ),
            chosen=inference.percentile(facts.delta_nats, change, level) if len(change) > 1 else None,
            disjoint=(
                inference.percentile(facts.delta_nats, apart, level) if len(apart) >= FEWEST_SETS else None
            ),
            disjoint_sets=len(apart),
            shared=float(shared.mean()),
            energy=(float(ratios.min()), float(ratios.max())),
            far=int((np.abs(ratios - 1) > NORM_TOLERANCE).sum()),
        )
    return made


def _change(facts: FactScores) -> Change:
    """As the accounting takes it."""
    tokens = facts.tokens.sum()
    with np.errstate(over="ignore", invalid="ignore"):
        spreads = [float(np.exp(nats / facts.tokens).std()) for nats in (facts.before, facts.after)]
    return Change(float(facts.before.sum() / tokens), float(facts.after.sum() / tokens), *spreads)
