"""Matched results made up from known effects, as the tests of tables, records and pictures need them."""

import dataclasses

import numpy as np

from jaxprobe.matched.results import ModelEffects, RelationEffects
from jaxprobe.matched.text_sizes import TextSizes
from jaxprobe.neurons import SensitiveUnits
from jaxprobe.statistics.fact_scores import FactScores

RELATIONS = (
    "subclass_of", "capital_city", "currency", "main_language", "country_in_continent", "state_capital",
    "chemical_symbol", "author", "city_in_country", "birth_country", "star_constellation", "company_hq",
    "person_plays_instrument", "person_plays_pro_sport", "person_plays_position_in_sport",
    "person_occupation", "person_native_language", "landmark_in_country",
    "landmark_on_continent", "product_by_company",
    "food_from_country", "substance_phase", "adj_antonym", "verb_past_tense",
)  # fmt: skip
WIDTH, UNITS, LAYERS = 64, 10, {"Mamba": 5, "GPT-2": 4}
KINDS = {"random": 100, "high_norm": 1, "high_variance": 1, "low_variance": 1, "norm_matched": 20}
OUTLIERS = (7, 41)


def scores(rng, facts: int, effect: float, spread: float, baseline: float) -> FactScores:
    tokens = rng.integers(4, 13, facts)
    before = tokens * baseline * rng.gamma(8, 1 / 8, facts)
    after = before + tokens * (effect + spread * (rng.gamma(2, 1 / 2, facts) - 1))
    return FactScores(before, after, tokens)


def _avoided(kind: str) -> np.ndarray:
    """1 at the units, the chosen ones, that sets of this kind never hold."""
    return (np.arange(WIDTH) < UNITS) & (kind == "norm_matched")


def relation(rng, facts: int, effect: float) -> RelationEffects:
    """One whose edit costs `effect` nats per token on average."""
    made = scores(rng, facts, effect, max(abs(effect), 0.01), rng.uniform(1, 2.5))
    per_token = {
        kind: effect * (rng.gamma(1, 0.25, sets) if sets > 1 else rng.uniform(0, 1.5, 1))
        for kind, sets in KINDS.items()
    }
    controls = {
        kind: made.before + each[:, None] * made.tokens + rng.normal(0, 0.002, (len(each), facts))
        for kind, each in per_token.items()
    }
    units = 0.05 * effect * rng.standard_t(3, WIDTH)
    units[list(OUTLIERS)] = effect * np.array([2.0, 1.2])
    strengths = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.5])
    away = (1 - strengths) ** 2
    return RelationEffects(
        chosen=SensitiveUnits(tuple(range(UNITS)), (1.0,) * UNITS),
        selected_on=tuple(range(25)),
        evaluated=tuple(range(25, 25 + facts)),
        facts=made,
        control_texts=scores(rng, 50, effect / 2, abs(effect), 3.0),
        controls=controls,
        control_units={
            kind: np.argsort(rng.random((sets, WIDTH)) + _avoided(kind), axis=1)[:, :UNITS].astype(np.int32)
            for kind, sets in KINDS.items()
        },
        energy={
            **{kind: 2 * rng.uniform(0.97, 1.03, sets) for kind, sets in KINDS.items()},
            "chosen": np.array([2.0]),
        },
        scales=strengths,
        after_scales=made.before + away[:, None] * (made.after - made.before),
        units=made.before + units[:, None] * made.tokens,
    )


def model(seed: int, effects, layers: int, *, facts=None) -> ModelEffects:
    """Of relations with these effects, in nats per token."""
    rng = np.random.default_rng(seed)
    sizes = np.random.default_rng(99).integers(15, 66, len(effects)) if facts is None else facts
    names = RELATIONS[: len(effects)]
    relations = {
        name: relation(rng, int(size), float(effect))
        for name, size, effect in zip(names, sizes, effects, strict=True)
    }
    relations = {
        name: dataclasses.replace(
            each,
            others={
                other: it.facts.before + rng.uniform(0, 0.8) * (it.facts.after - it.facts.before)
                for other, it in relations.items()
            },
        )
        for name, each in relations.items()
    }
    by_layer = {
        name: each.facts.before + rng.gamma(1, 1, layers)[:, None] * (each.facts.after - each.facts.before)
        for name, each in relations.items()
    }
    return ModelEffects(relations, by_layer)


def results(effects, others=None, *, facts=None) -> dict[str, ModelEffects]:
    """Of Mamba and, with other effects, of GPT-2."""
    made = {"Mamba": model(1, effects, LAYERS["Mamba"], facts=facts)}
    if others is not None:
        made["GPT-2"] = model(2, others, LAYERS["GPT-2"], facts=facts)
    return made


def sizes(made: dict[str, ModelEffects]) -> dict[str, dict[str, TextSizes]]:
    """Four bytes and 0.7 words a token."""
    return {
        title: {
            name: TextSizes(4.0 * each.facts.tokens, 0.7 * each.facts.tokens)
            for name, each in effects.relations.items()
        }
        for title, effects in made.items()
    }
