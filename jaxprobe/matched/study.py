"""The matched protocol on one model: what editing each relation's units does beside what other units do.

For every relation: units are chosen on some of its facts, and every effect is measured on the others: of the
chosen units, of control sets of as many units, of each unit alone, on the other relations' facts, at every
layer. All of it is lists of jobs (`jaxprobe.matched.edit_effects`), cut into parts to be computed one by one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax.numpy as jnp

from jaxprobe.array_typing import Float, Int, Params, np
from jaxprobe.matched import linearity
from jaxprobe.matched.control_sets import control_sets, unit_statistics
from jaxprobe.matched.edit_effects import JobBatch, job_batches
from jaxprobe.matched.edit_grids import Grid, Work
from jaxprobe.matched.fact_splits import Split
from jaxprobe.matched.results import STRENGTHS
from jaxprobe.matched.shelves import Shelves, Treatment, shelve
from jaxprobe.models import LanguageModel
from jaxprobe.neurons import SensitiveUnits, most_sensitive
from jaxprobe.scoring.perplexity import Ids
from jaxprobe.sites import site_width
from jaxprobe.work import Arrays, WorkUnit

ALONE = 10  # chosen units at most that are edited each alone at every strength of linearity
_PART_BATCHES = 16  # that a killed run has to do again at most


@dataclass(frozen=True)
class Group:
    """A relation's place among the texts."""

    name: str  # such as "P36 (capital)"
    id: str
    selection: tuple[int, ...]  # places among all texts
    evaluation: tuple[int, ...]
    split: Split  # places in the relation


@dataclass(frozen=True)
class Plan:
    """What is to be measured on a model.

    Attributes:
      lm: the model. params: its parameters.
      ids: tokens of every text. pad: tokens that are never scored.
      groups: the relations. controls: places of the control texts.
      treatment: the edit. layer: where.
      count: units in a set.
      random_sets: how many.
      scales: factors of a sweep; none without one.
      studies: what is measured besides.
      seed: of the control sets.
      batch_tokens: the most tokens in a batch, padding included.
    """

    lm: LanguageModel
    params: Params = field(repr=False)
    ids: tuple[Ids, ...] = field(repr=False)
    pad: int | None
    groups: tuple[Group, ...]
    controls: tuple[int, ...]
    treatment: Treatment
    layer: int
    count: int
    random_sets: int
    scales: tuple[float, ...]
    studies: tuple[str, ...]
    seed: int
    batch_tokens: int

    @property
    def width(self) -> int:
        """Units of the site."""
        return site_width(self.lm.config, self.treatment.site)

    def shelve(self, layer: int) -> Shelves:
        """Every text up to a layer."""
        return shelve(
            self.lm, self.params, self.ids, self.pad, self.treatment, layer=layer,
            batch_tokens=self.batch_tokens,
        )  # fmt: skip

    def curve_tokens(self, batch_tokens: int) -> int:
        """Tokens in a batch of curves, which with each unit alone is about as much work as another part."""
        return _PART_BATCHES * batch_tokens // self.width if "units" in self.studies else batch_tokens

    def choose(self, shelves: Shelves) -> tuple[SensitiveUnits, ...]:
        """Each relation's units, by its selection facts."""
        return tuple(most_sensitive(shelves.means[list(g.selection)], self.count) for g in self.groups)


@dataclass(frozen=True)
class Study:
    """The work on one model: `parts`, to be computed one by one, which `jaxprobe.matched.collect` then joins.

    Attributes:
      plan: what is measured.
      shelves: the texts at the plan's layer.
      chosen: each relation's units.
      sets: each relation's control sets, by kind. energy: sum of mean squares of them and of the chosen one.
      effects: of sets of units. alone: of each unit alone, where that is asked for.
    """

    plan: Plan
    shelves: Shelves = field(repr=False)
    chosen: tuple[SensitiveUnits, ...]
    sets: tuple[Mapping[str, Int[np.ndarray, "_ _"]], ...] = field(repr=False)
    energy: tuple[Mapping[str, Float[np.ndarray, " _"]], ...] = field(repr=False)
    effects: Work = field(repr=False)
    alone: Work | None = field(repr=False)

    def units(self) -> list[WorkUnit]:
        """The pieces of the work."""
        units = []
        works = {"effects": self.effects} | ({} if self.alone is None else {"units": self.alone})
        for name, work in works.items():
            for first in range(0, len(work.batches), _PART_BATCHES):
                batches = slice(first, first + _PART_BATCHES)
                units.append(WorkUnit(f"{name}-{first}", partial(_scores, self, work, batches)))
        if "layers" in self.plan.studies:
            for layer in range(self.plan.lm.config.num_layers):
                units.append(WorkUnit(f"layer-{layer}", partial(_layer, self.plan, layer)))
        if "linearity" in self.plan.studies:
            for i, batch in enumerate(self.curve_batches):
                units.append(WorkUnit(f"curves-{i}", partial(_curves, self, batch)))
        return units

    @property
    def evaluated(self) -> tuple[list[int], Int[np.ndarray, "b k"]]:
        """Every evaluated text, and its relation's units."""
        groups = zip(self.plan.groups, self.chosen, strict=True)
        pairs = [(text, chosen.units) for group, chosen in groups for text in group.evaluation]
        return [text for text, _ in pairs], np.array([units for _, units in pairs])

    @property
    def curve_batches(self) -> tuple[JobBatch, ...]:
        """The evaluated texts in batches."""
        tokens = self.plan.curve_tokens(self.plan.batch_tokens)
        return job_batches(self.shelves, np.array(self.evaluated[0]), tokens)


def prepare(plan: Plan) -> Study:
    """Runs every text once up to the layer, chooses units and control sets, and lists the edited work."""
    shelves = plan.shelve(plan.layer)
    chosen = plan.choose(shelves)
    sets, energy = [], []
    for group, units in zip(plan.groups, chosen, strict=True):
        on = list(group.selection)
        statistics = unit_statistics(shelves.means[on], shelves.spreads[on], shelves.lengths[on])
        drawn = control_sets(statistics, units.units, plan.random_sets, plan.seed, group.id)
        sets.append(drawn)
        of = {**drawn, "chosen": np.array([units.units])}
        energy.append({kind: statistics.energy[places].sum(axis=1) for kind, places in of.items()})
    effects = dict(_grids(plan, chosen, sets))
    alone = {}
    if "units" in plan.studies:
        each = np.arange(plan.width)[:, None]
        alone = {(group.name,): Grid.whole(plan.treatment, each, group.evaluation) for group in plan.groups}
        if "linearity" in plan.studies:
            alone |= {
                (group.name, "strengths"): _each_stepwise(plan, units.units[:ALONE], group)
                for group, units in zip(plan.groups, chosen, strict=True)
            }
    return Study(
        plan, shelves, chosen, tuple(sets), tuple(energy),
        Work.of(effects, shelves, plan.batch_tokens),
        Work.of(alone, shelves, plan.batch_tokens) if alone else None,
    )  # fmt: skip


def _grids(plan: Plan, chosen, controls) -> Iterator[tuple[tuple[str, ...], Grid]]:
    everything = {place for group in plan.groups for place in group.evaluation}
    for group, units, sets in zip(plan.groups, chosen, controls, strict=True):

        def stepwise(*strengths: float, texts: Sequence[int] = group.evaluation, units=units) -> Grid:
            same = np.array([units.units] * len(strengths))
            return Grid(same, *plan.treatment.mixture(np.array(strengths)), tuple(texts))

        # Strength 0 is the model as it is, scored by the same program: what does nothing changes nothing.
        yield (group.name, "facts"), stepwise(0.0, 1.0)
        yield (group.name, "control_texts"), stepwise(0.0, 1.0, texts=plan.controls)
        for kind, places in sets.items():
            yield (group.name, "controls", kind), Grid.whole(plan.treatment, places, group.evaluation)
        if plan.scales:
            factors = np.array(plan.scales)
            same = np.array([units.units] * len(factors))
            yield (group.name, "scales"), Grid(same, factors, np.zeros_like(factors), group.evaluation)
        if "linearity" in plan.studies:
            yield (group.name, "strengths"), stepwise(*STRENGTHS)
        others = sorted(everything - set(group.evaluation))
        if "selectivity" in plan.studies and others:
            yield (group.name, "others"), stepwise(1.0, texts=others)


def _each_stepwise(plan: Plan, units: Sequence[int], group: Group) -> Grid:
    """Each of the units alone at every strength, strengths running fastest."""
    strengths = np.tile(STRENGTHS, len(units))
    repeated = np.repeat(np.array(units), len(STRENGTHS))[:, None]
    return Grid(repeated, *plan.treatment.mixture(strengths), group.evaluation)


def _scores(study: Study, work: Work, batches: slice) -> Arrays:
    plan = study.plan
    return {"nll": work.run(plan.lm, plan.params, study.shelves, plan.treatment, batches)}


def _layer(plan: Plan, layer: int) -> Arrays:
    shelves = plan.shelve(layer)
    grids = {
        (group.name,): Grid.whole(plan.treatment, np.array([units.units]), group.evaluation)
        for group, units in zip(plan.groups, plan.choose(shelves), strict=True)
    }
    work = Work.of(grids, shelves, plan.batch_tokens)
    scores = work.split(work.run(plan.lm, plan.params, shelves, plan.treatment))
    return {"nll": np.concatenate([of_group[0] for of_group in scores.values()])}


def _curves(study: Study, batch: JobBatch) -> Arrays:
    plan, (places, units) = study.plan, study.evaluated
    shelf = study.shelves.shelves[batch.shelf]
    rows = study.shelves.row[np.array(places)[batch.places]]
    value = jnp.full(len(rows), plan.treatment.value, shelf.h.dtype)
    texts = linearity.Texts(
        h=shelf.h[rows],
        ids=shelf.ids[rows],
        lengths=shelf.lengths[rows],
        counted=shelf.scored[rows],
        values=value if shelf.offsets is None else shelf.offsets[rows],
        keys=None if shelf.keys is None else shelf.keys[rows],
    )
    chosen = jnp.asarray(units[batch.places], jnp.int32)
    made = {
        "chosen": linearity.set_curves(
            plan.lm,
            plan.params,
            texts,
            chosen,
            plan.layer,
            site=plan.treatment.site,
            mode=plan.treatment.as_edit,
        )
    }
    if "units" in plan.studies:
        made["units"] = linearity.unit_curves(
            plan.lm, plan.params, texts, plan.layer, site=plan.treatment.site, mode=plan.treatment.as_edit
        )
    return {
        f"{name}-{order}": getattr(curves, order)[..., : batch.count].astype(np.float64)
        for name, curves in made.items() for order in ("slope", "curvature")
    }  # fmt: skip
