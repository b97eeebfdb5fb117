"""The matched protocol on loaded models: its plan for each, resumable work, and what its manifest says."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, get_args

from jaxprobe.loading import LoadedModel
from jaxprobe.matched.collect import summarise
from jaxprobe.matched.control_sets import NORM_TOLERANCE
from jaxprobe.matched.fact_splits import derangement, split_facts
from jaxprobe.matched.linearity import CURVE_ELEMENTS
from jaxprobe.matched.programs import held_bytes, lower_programs
from jaxprobe.matched.results import STRENGTHS, MatchedResults, ModelEffects
from jaxprobe.matched.shelves import Treatment
from jaxprobe.matched.study import Group, Plan, prepare
from jaxprobe.matched.text_sizes import TextSizes, text_sizes
from jaxprobe.neurons import protocol_sites, unit_count
from jaxprobe.original.run import Loaded, fit_title, protocol_entry, token_limits
from jaxprobe.original.study import Corpus
from jaxprobe.relations import Relation
from jaxprobe.run_configs import DEFAULT_RANDOM_SETS, Compute, Perturbation
from jaxprobe.run_configs import Study as StudyName
from jaxprobe.scope import done
from jaxprobe.scoring.finite import require_finite
from jaxprobe.sites import DELTA, site_width
from jaxprobe.store import Store

PROTOCOL_VERSION = 2  # of delta_pct's matched protocol; since 2 no fact both chooses units and is scored


def measure(
    models: Loaded,
    corpora: Mapping[str, Corpus],
    relations: Sequence[Relation],
    perturbation: Perturbation,
    compute: Compute,
    store: Store,
) -> dict[str, ModelEffects]:
    """Measures every model, with progress; the store keeps finished parts, and the size of batches.

    Args:
      models: by title. corpora: their tokens of the relations' and the control texts.
      relations: each with enough facts (`fact_splits.check_facts`).
      perturbation: what is done. compute: how.
      store: of this run.

    Raises:
      ProbeError: a score is not finite.
    """
    results = {}
    for title, model in models.items():
        tokens = store.plan["batch_tokens"][title]
        study = prepare(plan(model, corpora[title], relations, perturbation, compute, tokens))
        results[title] = summarise(study, store.complete(title, study.units()))
        for name, found in results[title].relations.items():
            facts, others = found.facts, found.control_texts
            require_finite(title, f"the facts of {name}", facts.before, facts.after, *found.controls.values())
            require_finite(title, "control texts", others.before, others.after)
    return results


def fit_batches(
    models: Loaded,
    corpora: Mapping[str, Corpus],
    relations: Sequence[Relation],
    perturbation: Perturbation,
    compute: Compute,
    memory_gb: float | None,
) -> dict[str, int]:
    """As `original.run.fit_batches`; other arguments as `measure`."""
    fitted = {}
    for title, model in models.items():
        of_model = plan(model, corpora[title], relations, perturbation, compute, compute.batch_tokens)
        fixed, advice = 0, "shorter texts"
        if "linearity" in of_model.studies:
            fixed, advice = model.item_bytes * CURVE_ELEMENTS, f"{advice}, or --studies without linearity"
        fitted[title] = fit_title(
            title,
            model,
            corpora[title],
            of_model.width,
            partial(lower_programs, of_model),
            held_bytes(of_model, model.item_bytes),
            compute,
            memory_gb,
            fixed=fixed,
            compilers=2,  # many shapes, and studies with programs of their own
            advice=advice,
        )
    return fitted


def plan(
    model: LoadedModel,
    corpus: Corpus,
    relations: Sequence[Relation],
    perturbation: Perturbation,
    compute: Compute,
    batch_tokens: int,
) -> Plan:
    """What is to be measured on a model, in batches of so many tokens; other arguments as `measure`."""
    ends = [0]
    for relation in relations:
        ends.append(ends[-1] + len(relation.facts))
    groups = tuple(
        _group(relation, start, stop, compute.seed)
        for relation, (start, stop) in zip(relations, pairwise(ends), strict=True)
    )
    controls = tuple(range(ends[-1], len(corpus.ids)))
    return Plan(
        lm=model.lm,
        params=model.params,
        ids=corpus.ids,
        pad=corpus.pad,
        groups=groups,
        controls=controls,
        treatment=_treatment(model, groups, controls, perturbation, compute.seed),
        layer=perturbation.layer,
        count=unit_count(model.lm.config, perturbation),
        random_sets=_random_sets(perturbation),
        scales=tuple(sorted(perturbation.scales)),
        studies=studies(perturbation),
        seed=compute.seed,
        batch_tokens=batch_tokens,
    )


def _group(relation: Relation, start: int, stop: int, seed: int) -> Group:
    split = split_facts(stop - start, seed, relation.id)
    selection, evaluation = (
        tuple(start + place for place in places) for places in (split.selection, split.evaluation)
    )
    return Group(relation.name, relation.id, selection, evaluation, split)


def _treatment(model, groups, controls, perturbation: Perturbation, seed: int) -> Treatment:
    mode = perturbation.mode
    donors = list(range(controls[-1] + 1))
    if mode == "resample":
        # A control text takes the activation of another control text: a text of its own kind.
        kinds = [(group.id, group.evaluation) for group in groups] + [("controls", controls)]
        for name, places in kinds:
            for place, donor in zip(places, derangement(len(places), seed, name), strict=True):
                donors[place] = places[donor]
    return Treatment(
        site=protocol_sites(model.lm.config, perturbation).edit,
        mode=mode,
        value=perturbation.value,
        seed=seed,
        reference=controls,
        donors=tuple(donors),
    )


def _random_sets(perturbation: Perturbation) -> int:
    given = perturbation.random_sets
    return DEFAULT_RANDOM_SETS if given is None else given


def studies(perturbation: Perturbation) -> tuple[str, ...]:
    """What is measured besides the effects of sets of units."""
    return get_args(StudyName) if perturbation.studies is None else perturbation.studies


def fact_sizes(
    models: Loaded,
    corpora: Mapping[str, Corpus],
    relations: Sequence[Relation],
    perturbation: Perturbation,
    results: MatchedResults,
) -> dict[str, dict[str, TextSizes]]:
    """Bytes and words of every evaluated fact: model title -> relation -> sizes; arguments as `measure`."""
    limits = token_limits(models, perturbation)
    return {
        title: {
            relation.name: text_sizes(
                model.tokenizer,
                [relation.texts[place] for place in results[title].relations[relation.name].evaluated],
                limits[title],
                corpora[title].pad,
            )
            for relation in relations
        }
        for title, model in models.items()
    }


def distinct_objects(relations: Sequence[Relation], results: MatchedResults) -> dict[str, int]:
    """How many different objects each relation's evaluated facts have; those are the same for both models."""
    evaluated = next(iter(results.values())).relations
    return {
        relation.name: len({relation.facts[place].object for place in evaluated[relation.name].evaluated})
        for relation in relations
    }


def heading(models: Loaded, perturbation: Perturbation) -> str:
    """What is done, in words, for the top of the tables."""
    config = next(iter(models.values())).lm.config
    site = protocol_sites(config, perturbation).edit
    units = ", ".join(
        f"{unit_count(model.lm.config, perturbation)} of {site_width(model.lm.config, site)} in {title}"
        for title, model in models.items()
    )
    edited = f"units of {site} of layer {perturbation.layer} ({units}) are {done(perturbation)}"
    frozen = (
        "\nA step of size zero freezes the state: the token is neither written nor forgotten; its skip stays."
        if (site, perturbation.mode) == (DELTA, "zero")
        else ""
    )
    return (
        f"Protocol matched: {edited}.\n"
        "They are those whose average over a text varies most between some of a relation's facts; every\n"
        "effect is measured on its other facts, and stands beside that of other sets of as many units."
        f"{frozen}"
    )


def manifest_entry(models: Loaded, perturbation: Perturbation) -> dict[str, Any]:
    """What the protocol amounted to, for the manifest."""
    entry = protocol_entry(models, perturbation)
    del entry["units_chosen_on_first_texts"]
    return {
        **entry,
        "version": PROTOCOL_VERSION,
        "units": {title: unit_count(model.lm.config, perturbation) for title, model in models.items()},
        "random_sets": _random_sets(perturbation),
        "norm_tolerance": NORM_TOLERANCE,
        "studies": studies(perturbation),
        "strengths": STRENGTHS,
    }
