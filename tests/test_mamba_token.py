"""Mamba's step of one token differentiated for many cotangents: the same derivatives, from other products."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from support import TINY, assert_close, padded, random_params, random_texts

from jaxprobe.jacobians.linearize import for_pullbacks, last_token_sweep
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.models import LanguageModel, mamba_token
from jaxprobe.perturb import capture
from jaxprobe.taps import LayerTap, Taps

pytestmark = pytest.mark.usefixtures("x64")

LENGTHS = [2, 6, 1]
CONFIGS = {
    "plain": TINY["mamba"],
    "biased": dataclasses.replace(TINY["mamba"], use_bias=True, use_conv_bias=True, intermediate_size=13),
    "bare": dataclasses.replace(TINY["mamba"], use_bias=False, use_conv_bias=False, conv_kernel=1),
}


class Case:
    """A model, three texts, and one block's step on their last tokens."""

    def __init__(self, name: str):
        self.config = CONFIGS[name]
        self.plain = LanguageModel(self.config)
        self.factored = LanguageModel(self.config, factored=True)
        self.params = self.plain.place(random_params(self.config), "float64")
        ids, self.lengths = padded(random_texts(LENGTHS, self.config.vocab_size))
        self.hidden = jax.jit(capture(self.plain.forward, "block_out"))(self.params, ids).captured[
            "block_out"
        ]
        self.factor = output_factor(self.plain, self.params)
        block = self.plain.block_params(self.params, 1)
        self.x = self.hidden[0, jnp.arange(len(LENGTHS)), self.lengths - 1]
        self.given = block, self.plain.past(block, self.hidden[0], self.lengths - 1)

    def step(self, lm: LanguageModel, x, given=None):
        block, past = given or self.given
        return lm.step(block, 1, x, past)


@functools.cache
def get(name: str) -> Case:
    with jax.enable_x64(True):
        return Case(name)


@pytest.fixture(params=CONFIGS)
def case(request) -> Case:
    return get(request.param)


def test_the_derivatives_are_those_of_the_plain_step(case):
    """By the token alone, and by the weights and the past too."""

    def derivatives(lm):
        step = functools.partial(case.step, lm)
        value, pullback = jax.vjp(step, case.x)
        cotangents = jnp.asarray(np.random.default_rng(3).standard_normal((7, *value.shape)))
        moves = jax.tree.map(jnp.ones_like, (case.x, case.given))
        return (
            value,
            jax.jvp(step, (case.x,), (jnp.ones_like(case.x),))[1],
            jax.vmap(pullback)(cotangents),
            jax.jvp(step, (case.x, case.given), moves)[1],
            jax.grad(lambda given: step(case.x, given).sum())(case.given),
        )

    made, expected = (jax.jit(derivatives, static_argnums=0)(lm) for lm in (case.factored, case.plain))
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-11), made, expected)


def test_it_can_be_differentiated_again(case):
    check_grads(
        jax.jit(functools.partial(case.step, case.factored)), (case.x,), order=2, modes=("fwd", "rev")
    )


def test_the_last_tokens_jacobians_are_the_same(case):
    made, expected = (
        jax.jit(functools.partial(last_token_sweep, lm))(case.params, case.factor, case.hidden, case.lengths)
        for lm in (case.factored, case.plain)
    )
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-11), made, expected)


def test_only_a_step_of_one_token_is_multiplied_out(case, monkeypatch):
    """Not a whole text, nor a step inside of which something is read."""
    used = []
    monkeypatch.setattr(mamba_token, "jacobian", lambda *given: used.append(given) or 1 / 0)
    block, past = case.given

    def whole(x):
        return case.factored.block(block, 1, x)

    def read(x):
        tap = LayerTap(Taps(capture=("gate",)), 1, jnp.ones((len(LENGTHS), 1), bool))
        made = case.factored._block(block)(x[:, None], 1, tap, past)[:, 0]
        assert "gate" in tap.captured
        return made

    jax.eval_shape(lambda x: jax.vjp(whole, x)[1](x), case.hidden[0])
    jax.eval_shape(lambda x: jax.vjp(read, x)[1](x), case.x)
    assert not used
    with pytest.raises(ZeroDivisionError):
        jax.eval_shape(lambda x: jax.vjp(functools.partial(case.step, case.factored), x)[1](x), case.x)


def test_a_wide_model_is_multiplied_out_where_enough_cotangents_pay_for_it():
    config = dataclasses.replace(
        TINY["mamba"], hidden_size=256, intermediate_size=512, state_size=16, time_step_rank=16
    )
    wide = LanguageModel(config)
    # d e (d + 2 (r + 2n)) products to build, and d^2 in place of 3 d e + 2 (r + 2n) e for each cotangent.
    assert not for_pullbacks(wide, 122).factored
    assert for_pullbacks(wide, 123).factored
    assert not for_pullbacks(LanguageModel(TINY["mamba"]), 10**6).factored  # small: not worth compiling
    assert not wide.factored
