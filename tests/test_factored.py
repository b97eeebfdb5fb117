"""Parts of GPT-2 differentiated for many cotangents: the same derivatives, from other products."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from support import TINY, assert_close, padded, random_params, random_texts

from jaxprobe.jacobians.linearize import for_pullbacks, last_token_sweep, sequence_sweep
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.site_jacobian import site_sweep
from jaxprobe.kernels import factored
from jaxprobe.kernels.factored import perceptron, scores
from jaxprobe.models import LanguageModel
from jaxprobe.models.activations import ACTIVATION_FUNCTIONS

pytestmark = pytest.mark.usefixtures("x64")

B, T, D, F, E, H = 2, 3, 6, 5, 4, 3
# Attention's scores are factored where all heads' and tokens' vectors are no more than the width.
CONFIG = dataclasses.replace(TINY["gpt2"], hidden_size=24, inner_size=31)
LENGTHS = [2, 6]


def perceptron_of(name):
    rng = np.random.default_rng(0)
    shapes = (B, T, D), (D, F), (F,), (F, E), (E,)
    arguments = tuple(jnp.asarray(rng.standard_normal(shape)) for shape in shapes)
    activation = ACTIVATION_FUNCTIONS[name]
    return (
        functools.partial(perceptron, activation),
        functools.partial(factored._perceptron, activation),
        arguments,
    )


def scores_of(_):
    rng = np.random.default_rng(1)
    shapes = (B, T, D), (D, D), (D,), (D, D), (D,)
    arguments = tuple(jnp.asarray(rng.standard_normal(shape)) for shape in shapes)
    return functools.partial(scores, H), functools.partial(factored._scores, H), arguments


PARTS = {
    "perceptron": (perceptron_of, "gelu_new"),
    "perceptron, another": (perceptron_of, "relu2"),
    "scores": (scores_of, None),
}


@pytest.mark.parametrize("which", PARTS)
@pytest.mark.parametrize("weights", [False, True])
def test_the_derivatives_are_those_of_the_plain_function(which, weights):
    make, name = PARTS[which]
    part, plain, arguments = make(name)
    moved = len(arguments) if weights else 1  # weights too, or the input alone

    def derivatives(function):
        def of_moved(*arrays):
            return function(*arrays, *arguments[moved:])

        value, pullback = jax.vjp(of_moved, *arguments[:moved])
        tangents = tuple(map(jnp.ones_like, arguments[:moved]))
        cotangents = jnp.asarray(np.random.default_rng(3).standard_normal((7, *value.shape)))
        return value, jax.jvp(of_moved, arguments[:moved], tangents), jax.vmap(pullback)(cotangents)

    made, expected = (jax.jit(derivatives, static_argnums=0)(function) for function in (part, plain))
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-12), made, expected)


@pytest.mark.parametrize("which", ["perceptron", "scores"])
def test_they_can_be_differentiated_again(which):
    make, name = PARTS[which]
    part, _, (x, *weights) = make(name)
    check_grads(jax.jit(lambda x: part(x, *weights)), (x,), order=2, modes=("fwd", "rev"))


class Case:
    def __init__(self):
        self.plain = LanguageModel(CONFIG)
        self.factored = LanguageModel(CONFIG, factored=True)
        self.params = self.plain.place(random_params(CONFIG), "float64")
        self.ids, self.lengths = padded(random_texts(LENGTHS, CONFIG.vocab_size))
        taps_free = jax.jit(lambda params: _hidden(self.plain, params, self.ids))
        self.hidden = taps_free(self.params)
        self.factor = output_factor(self.plain, self.params)


def _hidden(lm, params, ids):
    h, states = lm.embed(params, ids), []
    for layer in range(lm.config.num_layers):
        h = lm.block(lm.block_params(params, layer), layer, h)
        states.append(h)
    return jnp.stack(states)


@pytest.fixture(scope="module")
def case():
    with jax.enable_x64(True):
        return Case()


@pytest.mark.parametrize("sweep", [sequence_sweep, last_token_sweep])
def test_a_factored_model_has_the_same_jacobians(case, sweep):
    made, expected = (
        jax.jit(functools.partial(sweep, lm))(case.params, case.factor, case.hidden, case.lengths)
        for lm in (case.factored, case.plain)
    )
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-11), made, expected)


@pytest.mark.parametrize("site", ["mlp_act", "mlp_out"])
def test_a_factored_model_can_be_moved_inside_its_perceptron(case, site):
    made, expected = (
        jax.jit(functools.partial(site_sweep, lm, site=site))(
            case.params, case.factor, case.ids, case.hidden, case.lengths
        )
        for lm in (case.factored, case.plain)
    )
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-11), made, expected)


@pytest.mark.parametrize("tokens", [6, 7])
def test_scores_are_factored_for_short_texts_only(case, tokens, monkeypatch):
    used = []
    monkeypatch.setattr(factored, "scores", lambda *given: used.append(given) or scores(*given))
    jax.eval_shape(lambda p, h: case.factored.block(case.factored.block_params(p, 0), 0, h),
                   case.params, jnp.zeros((1, tokens, 24)))  # fmt: skip
    assert len(used) == (tokens == 6)


def test_a_wide_model_is_factored_where_enough_cotangents_pay_for_it():
    wide = LanguageModel(dataclasses.replace(CONFIG, hidden_size=256, num_heads=4, inner_size=1024))
    # d^2 f products to build, and d^2 in place of 2 d f for each: 147 cotangents and more.
    assert not for_pullbacks(wide, 146).factored
    assert for_pullbacks(wide, 147).factored
    assert not for_pullbacks(LanguageModel(CONFIG), 10**6).factored  # small: not worth compiling
    assert not wide.factored
