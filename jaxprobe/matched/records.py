"""What the matched protocol writes: a CSV row per model and relation, and JSON with every fact's scores."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxprobe.matched.results import Linearity, MatchedResults, ModelEffects, RelationEffects
from jaxprobe.matched.rows import MEASURES, MatchedSummary, RelationSummary
from jaxprobe.matched.summary import Sizes
from jaxprobe.matched.taylor import predict
from jaxprobe.matched.text_sizes import TextSizes
from jaxprobe.matched.verdict import answer, verdicts
from jaxprobe.statistics.inference import Estimate, Percentile

MATCHED_SCHEMA_VERSION = 2  # since 2 random sets have no percentile among themselves


def _ends(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


_ESTIMATES = {
    **{f"delta_nats_per_{measure}": ("delta", measure) for measure in MEASURES},
    "percentage_change": ("percent", None),
    "absolute_change": ("absolute", None),
    **{f"baseline_nats_per_{measure}": ("baseline", measure) for measure in MEASURES},
    **{f"baseline_perplexity_per_{measure}": ("perplexity", measure) for measure in MEASURES},
    **{f"edited_perplexity_per_{measure}": ("edited_perplexity", measure) for measure in MEASURES},
    "control_delta_nats_per_token": ("control_texts", None),
}
_KINDS = ("random", "high_norm", "high_variance", "low_variance", "norm_matched")
_OF_SETS = ("delta_nats", "percentile", "shared", "energy_low", "energy_high")  # percentile: not of random
MATCHED_COLUMNS = (
    "model", "relation", "facts", *(column for name in _ESTIMATES for column in _ends(name)),
    *_ends("percentile_among_random"), "random_sets",
    *_ends("percentile_among_disjoint"), "disjoint_random_sets",
    *(f"{kind}_{name}" for kind in _KINDS for name in _OF_SETS),
    *_ends("percentile_among_norm_matched"), "norm_matched_beyond_tolerance",
    "others_delta_nats_per_token", *_ends("selectivity_nats"), "selectivity_percent",
    *_ends("difference_nats"), "difference_p", "difference_p_holm", "more_sensitive", "units",
)  # fmt: skip


def matched_rows(summary: MatchedSummary) -> Iterator[dict[str, Any]]:
    """One row per model and relation, with the columns of the CSV file.

    The difference between the models, in nats per token, stands in both models' rows.
    """
    verdict = verdicts(summary).get("token")
    for title, relations in summary.relations.items():
        for name, row in relations.items():
            comparison = summary.comparisons["token"][name] if verdict else None
            yield {
                "model": title,
                "relation": name,
                "facts": row.facts,
                **_estimates(row),
                **_sets(row),
                **_selectivity(row),
                **_cells("difference_nats", comparison.difference if comparison else None),
                "difference_p": comparison.p_value if comparison else None,
                "difference_p_holm": verdict.adjusted.get(name) if verdict else None,
                "more_sensitive": verdict.more.get(name) if verdict else None,
                "units": " ".join(map(str, row.units)),
            }


def _estimates(row: RelationSummary) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, (attribute, measure) in _ESTIMATES.items():
        estimate: Estimate = getattr(row, attribute) if measure is None else getattr(row, attribute)[measure]
        made |= _cells(name, estimate)
    return made


def _cells(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    values = (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)
    return dict(zip(_ends(name), values, strict=True))


def _selectivity(row: RelationSummary) -> dict[str, Any]:
    found = row.selectivity
    return {
        "others_delta_nats_per_token": found and found.others,
        **_cells("selectivity_nats", found and found.ratio),
        "selectivity_percent": found and found.percent,
    }


def _sets(row: RelationSummary) -> dict[str, Any]:
    def among(name: str, rank: Percentile | None) -> dict[str, Any]:
        values = (rank.value, rank.low, rank.high) if rank else (None, None, None)
        return dict(zip(_ends(name), values, strict=True))

    random, matched = row.controls.get("random"), row.controls.get("norm_matched")
    made = among("percentile_among_random", random and random.chosen)
    made |= {"random_sets": random.sets if random else 0}
    made |= among("percentile_among_disjoint", random and random.disjoint)
    made |= {"disjoint_random_sets": random.disjoint_sets if random else 0}
    for kind in _KINDS:
        sets = row.controls.get(kind)
        rank = sets and sets.percentile and sets.percentile.value
        values = (sets.delta_nats, rank, sets.shared, *sets.energy) if sets else [None] * 5
        made |= zip((f"{kind}_{name}" for name in _OF_SETS), values, strict=True)
    made |= among("percentile_among_norm_matched", matched and matched.chosen)
    return made | {"norm_matched_beyond_tolerance": matched.far if matched else None}


def matched_json(
    results: MatchedResults, sizes: Sizes, summary: MatchedSummary, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything: the summary with its verdicts and answer, and the scores that it was made from.

    Scores of the chosen units are fact by fact; those of control sets, of single units and under other
    relations' units are sums over the facts.
    """
    return {
        "answer": answer(summary),
        "summary": summary,
        "verdicts": verdicts(summary),
        "results": {title: _model(effects, sizes[title]) for title, effects in results.items()},
        "schema_version": MATCHED_SCHEMA_VERSION,
        "manifest": manifest,
    }


def _model(effects: ModelEffects, sizes: Mapping[str, TextSizes]) -> dict[str, Any]:
    return {
        "relations": {name: _relation(relation, sizes[name]) for name, relation in effects.relations.items()},
        "layers": effects.layers,
    }


def _relation(effects: RelationEffects, sizes: TextSizes) -> dict[str, Any]:
    return {
        "chosen": effects.chosen,
        "selected_on": effects.selected_on,
        "evaluated": effects.evaluated,
        "facts": effects.facts,
        "sizes": sizes,
        "control_texts": effects.control_texts,
        "controls": {
            kind: {"units": effects.control_units[kind], "after": after.sum(axis=1)}
            for kind, after in effects.controls.items()
        },
        "energy": effects.energy,
        "scales": effects.scales,
        "after_scales": effects.after_scales,
        "others": effects.others and {name: after.sum() for name, after in effects.others.items()},
        "units": None if effects.units is None else effects.units.sum(axis=1),
        "linearity": _linearity(effects.linearity),
    }


def _linearity(linearity: Linearity | None) -> dict[str, Any] | None:
    if linearity is None:
        return None
    units, made = linearity.units, predict(linearity.chosen, linearity.strengths)
    return {
        "strengths": linearity.strengths,
        "measured": linearity.measured,
        "first_order": made.first,
        "second_order": made.second,
        "chosen": linearity.chosen,
        "units": units and {"slope": units.slope.sum(axis=1), "curvature": units.curvature.sum(axis=1)},
        "alone": None if linearity.alone is None else linearity.alone.sum(axis=2),
    }
