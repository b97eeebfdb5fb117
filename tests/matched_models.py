"""A tiny corpus for the matched protocol, and what one text costs when it is run whole, alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from support import TINY, random_params, random_texts

from jaxprobe.matched.fact_splits import derangement, split_facts
from jaxprobe.matched.shelves import Treatment
from jaxprobe.matched.study import Group, Plan
from jaxprobe.models import LanguageModel
from jaxprobe.perturb import capture, perturb
from jaxprobe.taps import Edit

RELATIONS = {"P1 (one)": 7, "P2 (two)": 5}
CONTROLS = 3


def tiny_model(key, dtype="float64"):
    lm = LanguageModel(TINY[key])
    return lm, lm.place(random_params(TINY[key]), dtype)


def tiny_plan(
    lm, params, site="block_out", mode="zero", value=0.0, batch_tokens=4096, order=None, **settings
):
    """A plan over two relations and three control texts of 3 to 11 tokens; `order` permutes the relations."""
    count = sum(RELATIONS.values()) + CONTROLS
    lengths = np.random.default_rng(5).choice([3, 7, 11], count).tolist()
    ids = tuple(tuple(map(int, row)) for row in random_texts(lengths, lm.config.vocab_size, seed=6))
    groups, start, donors = [], 0, list(range(count))
    for name, facts in RELATIONS.items():
        split = split_facts(facts, 0, name[:2])
        selection, evaluation = (
            tuple(start + p for p in places) for places in (split.selection, split.evaluation)
        )
        groups.append(Group(name, name[:2], selection, evaluation, split))
        start += facts
    controls = tuple(range(start, count))
    if mode == "resample":
        for name, places in [*((g.id, g.evaluation) for g in groups), ("controls", controls)]:
            for place, donor in zip(places, derangement(len(places), 0, name), strict=True):
                donors[place] = places[donor]
    treatment = Treatment(site, mode, value, seed=4, reference=controls, donors=tuple(donors))
    given = {"layer": 1, "count": 2, "random_sets": 5, "scales": (), "studies": ()} | settings
    groups = tuple(groups if order is None else [groups[i] for i in order])
    return Plan(
        lm=lm, params=params, ids=ids, pad=0, groups=groups, controls=controls, treatment=treatment, seed=0,
        batch_tokens=batch_tokens, **given,
    )  # fmt: skip


@partial(jax.jit, static_argnums=0, static_argnames=("site", "mode"))
def summed_nll(lm, params, row, layer, units, value, *, site, mode):
    """One whole forward pass of one text with one edit of `jaxprobe.perturb`; label 0 is not counted."""
    change = Edit(site, mode, layer, units, value)
    logits = perturb(lm.forward, change)(params, row[None]).logits[0, :-1]
    right = jnp.take_along_axis(jax.nn.log_softmax(logits), row[1:, None], axis=1)[:, 0]
    return -jnp.sum(jnp.where(row[1:] != 0, right, 0))


@partial(jax.jit, static_argnums=0, static_argnames="site")
def values_at(lm, params, row, *, site):
    """[l t w]: the site of one text, unedited."""
    return capture(lm.forward, [site])(params, row[None]).captured[site][:, 0]
