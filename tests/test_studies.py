"""Relative gain by brute force, and paths as parts of a run: the right pairs, contexts and units."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, assert_close, padded, random_params, random_texts

from jaxprobe.jacobians.planning import Plan, cut
from jaxprobe.jacobians.readout import logits_from
from jaxprobe.jacobians.sensitivity import summarise, work_units
from jaxprobe.jacobians.studies import path_units, with_paths
from jaxprobe.jacobians.text_statistics import SECANT_PAIRS
from jaxprobe.models import LanguageModel
from jaxprobe.perturb import capture

LENGTHS = (5, 3, 9, 2)
LAYER = 1


class Case:
    """A layer of a tiny model, measured on four texts, each a batch of its own."""

    def __init__(self, name: str, metric: str):
        config = TINY[name]
        self.lm = LanguageModel(config)
        self.params = self.lm.place(random_params(config), "float64")
        self.ids = tuple(tuple(map(int, text)) for text in random_texts(LENGTHS, config.vocab_size))
        plan = Plan(layers=(LAYER,), metric=metric, num_samples=3, batch_tokens=1)
        self.plan = cut(config, self.ids, plan, platform="cpu")
        units = work_units(self.lm, self.params, self.ids, self.plan)
        self.results = {unit.name: unit.compute() for unit in units}
        self.model = summarise(config, self.ids, self.plan, self.results)


@functools.cache
def get(name: str, metric: str = "logits") -> Case:
    return Case(name, metric)


@functools.cache
def jacobians(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By brute force, of each text: J of the logits [b v t d], h [b t d] and logits [b v]."""
    case = get(name)
    ids, lengths = padded([*map(np.array, case.ids)])

    @jax.jit
    def compute(params):
        h = capture(case.lm.forward, "block_out")(params, ids).captured["block_out"][LAYER]
        f = functools.partial(logits_from, case.lm, params, LAYER, lengths=lengths)
        return jax.jacfwd(lambda moved: f(h + moved))(jnp.zeros(h.shape[1:])), h, f(h)

    return tuple(map(np.asarray, compute(case.params)))


@pytest.mark.parametrize(("name", "metric"), [("mamba", "logits"), ("gpt2", "centred")])
def test_the_relative_gain_is_of_centred_logits(name, metric, x64):
    case = get(name, metric)
    J, h, logits = jacobians(name)
    assert np.abs(logits.mean(axis=1)).min() > 0.01, "a common offset there is"
    exact = case.model.layers[0].exact
    for text, length in enumerate(LENGTHS):
        centred = J[text] - J[text].mean(axis=0)
        size = np.linalg.norm(logits[text] - logits[text].mean())
        last, real = np.s_[length - 1 : length], np.s_[:length]
        for wrt, rows in {"last": last, "sequence": real}.items():
            gain = np.linalg.norm(centred[:, rows]) * np.linalg.norm(h[text, rows]) / size
            assert exact[wrt].relative_gain[text] == pytest.approx(gain, rel=1e-9)


@pytest.mark.parametrize("name", TINY)
def test_paths_join_neighbours_in_the_first_ones_context(name, x64):
    case = get(name)
    units = path_units(case.lm, case.params, case.ids, case.plan, case.results)
    results = {unit.name: unit.compute() for unit in reversed(units)}  # in any order
    model = with_paths(case.model, results)
    _, hidden, logits = jacobians(name)
    path = model.layers[0].path
    assert path.sigma1.shape == (len(LENGTHS) - 1, 10)
    # Where it begins, at the text's own state, it is the local number.
    assert_close(path.sigma1[:, 0], case.model.layers[0].exact["last"].sigma1[:-1], 1e-9)
    logits_at = jax.jit(functools.partial(logits_from, case.lm, case.params, LAYER))
    lengths = np.array(LENGTHS)
    last = hidden[np.arange(len(LENGTHS)), lengths - 1]
    moved = hidden.copy()
    moved[np.arange(len(LENGTHS)), lengths - 1] = np.roll(last, -1, axis=0)
    change = np.linalg.norm(logits_at(moved, lengths=lengths) - logits, axis=1)[:-1]
    assert_close(path.secant, change / np.linalg.norm(np.diff(last, axis=0), axis=1), 1e-9)
    assert (path.secant <= path.largest * (1 + path.residual)).all()


def test_paths_are_of_the_first_pairs_and_a_single_text_has_none():
    lm = LanguageModel(TINY["gpt2"])
    for count, expected in ((SECANT_PAIRS + 5, SECANT_PAIRS), (3, 2), (1, 0)):
        ids, states = [[1, 2]] * count, np.zeros((1, count, 6))
        plan = cut(lm.config, ids, Plan(layers=(0,), batch_tokens=1), platform="cpu")
        exact = {"exact-0": {"texts": np.arange(count), "hidden": states}}
        made = path_units(lm, {}, ids, plan, exact)
        assert [unit.name for unit in made] == [f"path-0-{text}" for text in range(expected)]
