"""The parts of a matched study put together: what was measured, relation by relation."""

from collections.abc import Mapping, Sequence

from jaxprobe.array_typing import Float, np
from jaxprobe.matched.results import STRENGTHS, Curves, Linearity, ModelEffects, RelationEffects
from jaxprobe.matched.study import Group, Study
from jaxprobe.statistics.fact_scores import FactScores
from jaxprobe.work import Arrays


def summarise(study: Study, results: Mapping[str, Arrays]) -> ModelEffects:
    """Puts the parts together.

    Args:
      study: what was computed.
      results: of all its `parts`, by name.
    """
    plan = study.plan

    def of(name: str, entry: str) -> list[np.ndarray]:
        return [arrays[entry] for part, arrays in results.items() if part.startswith(f"{name}-")]

    scores = study.effects.split(np.concatenate(of("effects", "nll")))
    alone = None if study.alone is None else study.alone.split(np.concatenate(of("units", "nll")))
    curves = _gathered(study, of) if "linearity" in plan.studies else {}
    ends = np.cumsum([len(group.evaluation) for group in plan.groups])
    relations = {}
    for number, group in enumerate(plan.groups):
        sets = study.sets[number]
        facts = _fact_scores(study, scores[group.name, "facts"], group.evaluation)
        theirs = {
            name: Curves(*(a[..., ends[number] - len(group.evaluation) : ends[number]] for a in pair))
            for name, pair in curves.items()
        }
        relations[group.name] = RelationEffects(
            chosen=study.chosen[number],
            selected_on=group.split.selection,
            evaluated=group.split.evaluation,
            facts=facts,
            control_texts=_fact_scores(study, scores[group.name, "control_texts"], plan.controls),
            controls={kind: scores[group.name, "controls", kind] for kind in sets},
            control_units=sets,
            energy=study.energy[number],
            scales=np.array(plan.scales) if plan.scales else None,
            after_scales=scores.get((group.name, "scales")),
            others=_others(study, group, scores) if "selectivity" in plan.studies else None,
            units=None if alone is None else alone[(group.name,)],
            linearity=None if not theirs else Linearity(
                strengths=np.array(STRENGTHS),
                measured=scores[group.name, "strengths"] - facts.before,
                chosen=theirs["chosen"],
                units=theirs.get("units"),
                alone=_alone(alone, group, facts),
            ),
        )  # fmt: skip
    layers = None
    if "layers" in plan.studies:
        names = [group.name for group in plan.groups]
        by_group = np.split(np.stack(of("layer", "nll")), ends[:-1], axis=1)
        layers = dict(zip(names, by_group, strict=True))
    return ModelEffects(relations, layers)


def _fact_scores(study: Study, scores: Float[np.ndarray, "2 b"], texts: Sequence[int]) -> FactScores:
    return FactScores(scores[0], scores[1], study.shelves.counted[list(texts)])


def _alone(
    scores: Mapping[tuple[str, ...], Float[np.ndarray, "_ b"]] | None, group: Group, facts: FactScores
) -> Float[np.ndarray, "k g _"] | None:
    if scores is None:
        return None
    changes = scores[group.name, "strengths"] - facts.before
    return changes.reshape(-1, len(STRENGTHS), changes.shape[-1])


def _others(study: Study, group: Group, scores) -> dict[str, Float[np.ndarray, " b"]]:
    others = [other for other in study.plan.groups if other is not group]
    if not others:
        return {}
    texts = study.effects.grids[group.name, "others"].texts
    after = dict(zip(texts, scores[group.name, "others"][0], strict=True))
    return {other.name: np.array([after[text] for text in other.evaluation]) for other in others}


def _gathered(study: Study, of) -> dict[str, list[np.ndarray]]:
    """Slopes and curvatures of all evaluated texts, in their order."""
    order = np.argsort(np.concatenate([batch.places[: batch.count] for batch in study.curve_batches]))
    names = ("chosen", "units") if "units" in study.plan.studies else ("chosen",)
    return {
        name: [
            np.concatenate(of("curves", f"{name}-{which}"), axis=-1)[..., order]
            for which in ("slope", "curvature")
        ]
        for name in names
    }
