"""Derivatives by the strength of an edit against brute force, against differences, and as predictions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, assert_close, padded, random_params, random_texts

from jaxprobe.errors import ProbeError
from jaxprobe.kernels.selective_scan import ScanBackend
from jaxprobe.matched.linearity import (
    PartialEdit,
    Texts,
    _unit_curves,
    set_curves,
    unit_curves,
)
from jaxprobe.matched.results import Curves
from jaxprobe.matched.taylor import first_order_fails, predict
from jaxprobe.models import LanguageModel
from jaxprobe.perturb import add, perturb, scale
from jaxprobe.sites import site_width
from jaxprobe.taps import Edit

PAD, LAYER, WIDTH = 1, 1, 8  # as batches of texts up to 8 tokens are padded
UNITS = np.array([[0, 2], [1, 2], [2, 0]])  # of each text

pytestmark = pytest.mark.usefixtures("x64")


class Case:
    """A tiny model and three padded texts, one of which has the padding token inside."""

    def __init__(self, name: str):
        config = TINY[name]
        self.lm = LanguageModel(config)
        self.params = self.lm.place(random_params(config), "float64")
        self.rows = random_texts([6, 3, 5], config.vocab_size)
        self.rows[0][2] = PAD
        self.ids, self.lengths = padded([*self.rows, np.zeros(WIDTH, np.int32)])
        self.ids, self.lengths = self.ids[:3], self.lengths[:3]
        real = jnp.arange(1, WIDTH) < self.lengths[:, None]
        self.counted = real & (self.ids[:, 1:] != PAD)
        below = jax.jit(lambda p: self.lm.resume(p, self.lm.embed(p, self.ids), 0, stop=LAYER))
        self.h = below(self.params)

    def texts(self, values) -> Texts:
        return Texts(self.h, self.ids, self.lengths, self.counted, jnp.asarray(values))

    def nll(self, edits) -> jax.Array:
        """Of each text [b], by the whole forward pass."""
        logits = perturb(self.lm.forward, edits)(self.params, self.ids, self.lengths).logits[:, :-1]
        logs = jax.nn.log_softmax(logits)
        right = jnp.take_along_axis(logs, self.ids[:, 1:, None], axis=2)[..., 0]
        return -jnp.sum(jnp.where(self.counted, right, 0), axis=1)

    def changes(self, units, strengths, site: str) -> np.ndarray:
        """Of each text's negative log-likelihood [g b] as its units [b k] are zeroed in part."""

        @jax.jit
        def at(units, strength):
            return self.nll(scale(site, LAYER, units, 1 - strength))

        every = [[at(row, s)[b] for b, row in enumerate(units)] for s in (0.0, *strengths)]
        return np.array(every)[1:] - np.array(every)[:1]


@functools.cache
def get(name: str) -> Case:
    with jax.enable_x64(True):
        return Case(name)


@functools.partial(jax.jit, static_argnums=0)
def derivatives(f) -> tuple[jax.Array, jax.Array]:
    """By a reverse pass, and that differentiated again."""

    def slope(s):
        made = jax.jacrev(f)(s)
        return made, made

    return jax.jacfwd(slope, has_aux=True)(0.0)[::-1]


@pytest.mark.parametrize(
    ("name", "site", "mode"), [("mamba", "delta", "zero"), ("gpt2", "mlp_act", "replace")]
)
def test_every_unit_is_differentiated_as_brute_force_has_it(name, site, mode):
    """A reverse pass and a Hessian of the whole forward pass, padded; one program for all layers."""
    case, width = get(name), site_width(TINY[name], site)
    drawn = np.random.default_rng(0).standard_normal((3, WIDTH, width))
    values = jnp.zeros(3) if mode == "zero" else jnp.asarray(drawn)

    def alone(strength):
        def one(unit):
            edits = [scale(site, LAYER, unit[None], 1 - strength)]
            if mode == "replace":
                edits.append(add(site, LAYER, unit[None], strength * values[..., unit[None]]))
            return case.nll(edits)

        return jax.vmap(one)(jnp.arange(width))

    arguments = case.lm, case.params, case.texts(values)
    made = unit_curves(*arguments, LAYER, site=site, mode=mode)
    for what, expected in zip(("slope", "curvature"), derivatives(alone), strict=True):
        assert_close(getattr(made, what), expected, 1e-9, what)
    chosen = set_curves(*arguments, jnp.asarray(UNITS), LAYER, site=site, mode=mode)
    summed = [made.slope[units, text].sum() for text, units in enumerate(UNITS)]
    assert_close(chosen.slope, summed, 1e-10)
    compiled = _unit_curves._cache_size()
    unit_curves(*arguments, 2, site=site, mode=mode)
    assert _unit_curves._cache_size() == compiled


# At ssm_state the displacement itself changes with the strength.
@pytest.mark.parametrize(("name", "site"), [("mamba", "ssm_state"), ("gpt2", "block_out")])
def test_predictions_err_as_the_next_power_of_the_strength(name, site):
    """Measured over predicted goes to one; errors fall as s^2 at first and as s^3 at second order."""
    case, edit = get(name), {"site": site, "mode": "zero"}
    arguments = case.lm, case.params, case.texts(np.zeros(3)), jnp.asarray(UNITS), LAYER
    strengths = np.geomspace(1e-3, 1e-2, 5)
    measured = case.changes(UNITS, strengths, site)
    made = predict(set_curves(*arguments, **edit), strengths)
    assert np.abs(measured / made.first - 1).max() < 0.05
    for order, error in ((2, measured - made.first), (3, measured - made.second)):
        powers = np.polyfit(np.log(strengths), np.log(np.abs(error)), 1)[0]
        np.testing.assert_allclose(powers, order, atol=0.1)


@pytest.mark.parametrize("mode", ["zero", "mean", "scale", "replace", "add", "noise"])
def test_an_edit_in_part_lies_between_nothing_and_the_whole(mode):
    """x + s (edited(x) - x), unit by unit."""
    rng = np.random.default_rng(0)
    x, strength = jnp.asarray(rng.standard_normal((2, 5, 4))), jnp.asarray([0.0, 0.3, 1.0])
    mask = jnp.arange(5) < jnp.array([[5], [3]])
    value = jnp.asarray(rng.standard_normal((2, 5, 3)) if mode in ("replace", "add") else 0.7)
    given = "delta", mode, 0, jnp.array([3, 0, 1]), value, jax.random.key(0)
    gain, offset = PartialEdit(*given, strength).affine(x, mask)
    whole_gain, whole_offset = Edit(*given).affine(x, mask)
    chosen = x[..., given[3]]
    edited = whole_gain * chosen + whole_offset
    assert_close(gain * chosen + offset, chosen + strength * (edited - chosen), 1e-12)


def test_predictions_are_the_polynomials():
    curves = Curves(np.array([[2.0, -1.0]]), np.array([[4.0, 0.0]]))
    made = predict(curves, [0.5, 1.0])
    assert made.first.tolist() == [[[1.0, -0.5]], [[2.0, -1.0]]]
    assert made.second.tolist() == [[[1.5, -0.5]], [[4.0, -1.0]]]


S = np.linspace(0.05, 1, 20)


@pytest.mark.parametrize("sign", [1, -1])
def test_first_order_fails_where_the_curvature_says(sign):
    """Of L(s) = a s + b s^2 the relative error is b s / (a + b s)."""
    a, b = 2.0 * sign, 0.5 * sign
    expected = 0.1 * a / (b * 0.9)
    assert first_order_fails(S, a * S + b * S**2, a, 2 * b) == pytest.approx(expected, abs=1e-3)
    coarse = np.array([0.25, 1.0])
    assert 0.25 < first_order_fails(coarse, a * coarse + b * coarse**2, a, 2 * b) < 1
    assert first_order_fails(S, a * S + b * S**2, a, 2 * b, tolerance=0.25) is None


@pytest.mark.parametrize("bend", [200.0, -200.0])
def test_below_the_least_strength_measured_the_curvature_says_where(bend):
    """What is measured there is far beyond it: a line to it would say nothing."""
    slope = 2.0
    measured = slope * S + np.sign(bend) * (1 - np.cos(abs(bend) ** 0.5 * S))  # curvature `bend` at 0
    fails = first_order_fails(S, measured, slope, curvature := bend)
    assert fails < S[0] / 10
    assert abs(slope * fails / (slope * fails + curvature * fails**2 / 2) - 1) == pytest.approx(0.1)
    # No curvature, yet it fails at the least strength: no more is known.
    assert first_order_fails(S, 0.8 * S, 1.0, 0.0) == S[0]
    # An error below what rounding leaves is none.
    assert first_order_fails(S, 1e3 * S, 0.0, 1e3) == pytest.approx((2e-5 / 1e3) ** 0.5)


def test_first_order_and_effects_of_nothing():
    assert first_order_fails(S, 3 * S, 3.0, 0.0) is None
    assert math.isnan(first_order_fails(S, 1e-7 * S, -1e-6, 0.0))  # rounding: nothing to predict
    assert first_order_fails(S, S + 5e-6 * np.sin(40 * S), 1.0, 0.0) is None  # off by rounding alone
    # The effect returns to zero where the prediction does not.
    assert 0 < first_order_fails(S, S * (1 - S), 1.0, -2.0) < 0.15
    assert 0 < first_order_fails(S, 0 * S, 1.0, 0.0) <= S[0]


def test_refusals():
    case = get("mamba")
    arguments = case.lm, case.params, case.texts(np.zeros(3))
    with pytest.raises(ProbeError, match="no site 'mlp_act'"):
        unit_curves(*arguments, LAYER, site="mlp_act", mode="zero")
    with pytest.raises(ProbeError, match="layer must be between 0 and 2"):
        unit_curves(*arguments, 3, site="delta", mode="zero")
    parallel = LanguageModel(case.lm.config, ScanBackend.ASSOCIATIVE)
    with pytest.raises(ProbeError, match="sequential"):
        set_curves(parallel, *arguments[1:], jnp.asarray(UNITS), LAYER, site="ssm_state", mode="zero")
