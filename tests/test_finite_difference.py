"""The original study's estimator against its first-order value, its exact expectation, and itself."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, assert_close, padded, random_params, random_texts

from jaxprobe.array_typing import Array, Key
from jaxprobe.jacobians.finite_difference import Draws, draw_differences, unit_draws
from jaxprobe.jacobians.readout import logits_from
from jaxprobe.jacobians.spectra import expected_gain, rms_gain
from jaxprobe.models import LanguageModel
from jaxprobe.perturb import capture

LENGTHS = [2, 4, 3]

pytestmark = pytest.mark.usefixtures("x64")


class Case:
    """A tiny model and three texts of different lengths; `draw` is one program for every layer."""

    def __init__(self, name: str):
        config = TINY[name]
        self.num_layers = config.num_layers
        self.lm = LanguageModel(config)
        self.params = self.lm.place(random_params(config), "float64")
        self.ids, self.lengths = padded(random_texts(LENGTHS, config.vocab_size))
        self.keys = jax.random.split(jax.random.key(7), len(LENGTHS))
        forward = jax.jit(capture(self.lm.forward, "block_out"))
        self.hidden = forward(self.params, self.ids).captured["block_out"]
        self.draw = jax.jit(functools.partial(draw_differences, self.lm))

    def __call__(self, layer: int, epsilon: float, num_samples: int) -> Draws:
        keys = self.keys_of(num_samples)
        return self.draw(self.params, self.hidden[layer], layer, self.lengths, keys, epsilon)

    def keys_of(self, num_samples: int) -> Key[Array, "s b"]:
        """Of each draw of each text."""
        fold_in = jax.vmap(jax.random.fold_in, (0, None))
        return jax.vmap(functools.partial(fold_in, self.keys))(jnp.arange(num_samples))

    @functools.cached_property
    def jacobians(self) -> np.ndarray:
        """[l b v t d] of the last-token logits, padding included."""

        def outputs(layer, h):
            moved = self.hidden[layer] + h
            return logits_from(self.lm, self.params, layer, moved, self.lengths)

        every = jax.jit(jax.vmap(jax.jacfwd(outputs, argnums=1), (0, None)))
        return np.array(every(jnp.arange(self.num_layers), jnp.zeros(self.hidden.shape[2:])))

    def gains(self, layer: int, text: int) -> tuple[float, float]:
        """Exact mean and root mean square of ||J delta|| / ||delta||."""
        jacobian = self.jacobians[layer, text, :, : LENGTHS[text]]
        jacobian = jacobian.reshape(len(jacobian), -1)
        sigma = np.linalg.svd(jacobian, compute_uv=False)
        return expected_gain(sigma, jacobian.shape[1]), rms_gain(sigma, jacobian.shape[1])


@functools.cache
def get(name: str) -> Case:
    with jax.enable_x64(True):
        return Case(name)


@pytest.fixture(params=TINY)
def case(request) -> Case:
    return get(request.param)


def test_from_its_own_state_each_layer_gives_the_models_logits(case):
    """What the Jacobians and differences here are of: the rest of the model, from the next block on."""
    with jax.enable_x64(True):
        logits = case.lm.forward(case.params, case.ids).logits[jnp.arange(len(LENGTHS)), case.lengths - 1]
        for layer, h in enumerate(case.hidden):
            made = logits_from(case.lm, case.params, layer, h, case.lengths)
            np.testing.assert_allclose(made, logits, rtol=1e-9, atol=1e-12)


def deltas(case: Case, epsilon: float, num_samples: int) -> np.ndarray:
    """[s b t d]: sample s of a text is drawn from its key with s folded in, real tokens first."""
    shape = case.hidden.shape[2:]
    draws = np.zeros((num_samples, *case.hidden.shape[1:]))
    for sample in range(num_samples):
        for text, length in enumerate(LENGTHS):
            key = jax.random.fold_in(case.keys[text], sample)
            draws[sample, text, :length] = epsilon * jax.random.normal(key, shape)[:length]
    return draws


def test_every_field_from_the_same_delta(case):
    draws = {layer: case(layer, 0.1, 3) for layer in range(case.num_layers)}
    assert case.draw._cache_size() == 1  # the layer is traced
    delta = deltas(case, 0.1, 3)
    f = jax.jit(functools.partial(logits_from, case.lm, case.params))
    for layer, h in enumerate(case.hidden):
        base = f(layer, h, case.lengths)
        change = jnp.stack([f(layer, h + d, case.lengths) - base for d in delta])
        linear = np.einsum("bvtd,sbtd->sbv", case.jacobians[layer], delta)
        assert_close(draws[layer].change, np.linalg.norm(change, axis=-1), 1e-11)
        assert_close(draws[layer].linear, np.linalg.norm(linear, axis=-1), 1e-11)
        assert_close(draws[layer].step, np.linalg.norm(delta, axis=(2, 3)), 1e-12)


def test_curvature_vanishes_with_epsilon(case):
    """It is of order epsilon: ten times smaller for a tenth of epsilon, with the same draws."""

    def curvature(epsilon):
        draws = case(0, epsilon, 12)
        return np.array((draws.change - draws.linear) / draws.step)

    sizes = [np.abs(curvature(epsilon)).mean() for epsilon in (1e-2, 1e-3, 1e-4)]
    assert sizes[0] > 1e-6
    for larger, smaller in itertools.pairwise(sizes):
        assert 7 < larger / smaller < 14


def test_the_mean_of_many_draws_is_the_expected_gain(case):
    """Within 4 standard errors by the exact variance; and the variance itself, loosely."""
    draws = case(1, 1e-3, 1200)
    gains = np.array(draws.linear / draws.step)
    for text in range(len(LENGTHS)):
        mean, rms = case.gains(1, text)
        deviation = (rms**2 - mean**2) ** 0.5
        assert abs(gains[:, text].mean() - mean) < 4 * deviation / len(gains) ** 0.5
        assert gains[:, text].std() == pytest.approx(deviation, rel=0.15)
    independent = np.corrcoef(gains.T)[np.triu_indices(len(LENGTHS), 1)]
    assert np.abs(independent).max() < 4 / len(gains) ** 0.5


def test_a_text_depends_neither_on_its_batch_nor_on_its_padding(case):
    together, pick = case(1, 0.01, 3), slice(2, 3)
    h = case.hidden[1, pick, : LENGTHS[2]]
    alone = case.draw(case.params, h, 1, case.lengths[pick], case.keys_of(3)[:, pick], 0.01)
    jax.tree.map(lambda a, b: assert_close(a[:, 0], b[:, 2], 1e-9), alone, together)


def test_more_draws_begin_with_the_fewer_and_all_differ(case):
    few, many = case(2, 0.01, 3), case(2, 0.01, 12)
    jax.tree.map(lambda a, b: assert_close(a, b[:3], 1e-9), few, many)
    assert len(np.unique(np.array(many.step))) == many.step.size


def test_padding_is_not_perturbed(case):
    """||delta||^2 / epsilon^2 is a chi-square of (real tokens) x d."""
    draws = case(0, 0.5, 1200)
    freedom = np.array(LENGTHS) * case.hidden.shape[-1]
    squares = np.square(np.array(draws.step) / 0.5)
    assert (np.abs(squares.mean(axis=0) - freedom) < 4 * np.sqrt(2 * freedom / len(squares))).all()


def test_draws_are_differentiated_where_that_is_asked_for(case):
    """The differences are the same without."""
    layer = 1
    keys = case.keys_of(4)
    arguments = (case.lm, case.params, case.hidden[layer], layer, case.lengths, keys, 0.01)
    every, none = draw_differences(*arguments), draw_differences(*arguments, linear=False)
    assert none.linear is None
    assert_close(none.change, every.change, 1e-9)
    units = np.stack([unit_draws(of_draw, case.lengths, case.hidden.shape[2:], float) for of_draw in keys])
    linear = 0.01 * np.linalg.norm(np.einsum("bvtd,sbtd->sbv", case.jacobians[layer], units), axis=-1)
    assert_close(every.linear, linear, 1e-11)
