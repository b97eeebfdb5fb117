"""The sweep over step sizes, against the estimator it is a sweep of, and the shape theory gives it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, assert_close, padded, random_params, random_texts

from jaxprobe.jacobians.epsilon_sweep import EpsilonStudy, epsilon_study, sweep_epsilons
from jaxprobe.jacobians.finite_difference import draw_differences
from jaxprobe.jacobians.readout import logits_from
from jaxprobe.models import LanguageModel
from jaxprobe.perturb import capture

LENGTHS = [2, 5, 3]
LAYER = 1
EPSILONS = np.logspace(-7, 1, 9)
DRAWS = 60


class Case:
    """A tiny model in float32, three texts in two batches, and the study of layer 1."""

    def __init__(self, name: str):
        config = TINY[name]
        self.lm = LanguageModel(config)
        self.params = self.lm.place(random_params(config), "float32")
        self.texts = [tuple(text.tolist()) for text in random_texts(LENGTHS, config.vocab_size)]
        self.study = epsilon_study(
            self.lm, self.params, self.texts, LAYER, self.singular_values(),
            epsilons=EPSILONS, num_samples=DRAWS, seed=5, batch_tokens=32,
        )  # fmt: skip

    def singular_values(self) -> np.ndarray:
        ids, lengths = padded([*map(np.array, self.texts)])

        @jax.jit
        def jacobians(params):
            h = capture(self.lm.forward, "block_out")(params, ids).captured["block_out"][LAYER]
            f = functools.partial(logits_from, self.lm, params, LAYER, lengths=lengths)
            return jax.jacfwd(lambda moved: f(h + moved))(jnp.zeros(h.shape[1:]))  # [b v t d]

        with jax.enable_x64(True):
            made = np.array(jacobians(self.lm.place(random_params(self.lm.config), "float64")))
        return np.stack([np.linalg.svd(J.reshape(len(J), -1), compute_uv=False) for J in made])


@functools.cache
def get(name: str) -> Case:
    return Case(name)


@pytest.fixture(params=TINY)
def case(request) -> Case:
    return get(request.param)


def test_equals_the_estimator_at_each_epsilon():
    """In float32, along the very draws of a run with the same seed; and the texts keep their order."""
    case = get("gpt2")
    ids, lengths = padded([*map(np.array, case.texts)])
    key = jax.random.key(5)
    texts = [jax.random.fold_in(jax.random.fold_in(key, i), LAYER) for i in range(len(LENGTHS))]
    keys = jnp.stack([jnp.stack([jax.random.fold_in(text, s) for text in texts]) for s in range(DRAWS)])
    hidden = jax.jit(capture(case.lm.forward, "block_out"))(case.params, ids).captured["block_out"]
    draw = jax.jit(functools.partial(draw_differences, case.lm))
    for place in (4, 7):
        draws = draw(case.params, hidden[LAYER], LAYER, lengths, keys, EPSILONS[place])
        assert_close(case.study.change["float32"][place], draws.change / draws.step, 1e-3)
        assert_close(case.study.linear, draws.linear / draws.step, 1e-5)


def test_float64_approaches_the_first_order_value(case):
    """Of every draw: the error is proportional to epsilon, until rounding sets in."""
    error = np.abs(case.study.change["float64"] - case.study.linear).max(axis=(1, 2))
    small = (EPSILONS > 5e-7) & (EPSILONS < 5e-4)
    np.testing.assert_allclose(error[small] / EPSILONS[small], error[small][0] / EPSILONS[small][0], rtol=0.1)
    assert error[small].max() < 1e-2 * case.study.linear.mean()


def test_floor_plateau_and_rise(case):
    study = case.study
    low, high = (study.usable(dtype) for dtype in ("float32", "float64"))
    assert low is not None and high is not None
    error = study.error("float32")
    assert error[0] > 0.02 and error[-1] > 0.1, "a rounding floor below, curvature above"
    assert low[0] > high[0] == EPSILONS[0], "float64 has no floor on this grid"
    assert low[1] == high[1] < EPSILONS[-1], "curvature is no matter of rounding"
    assert (error[(low[0] <= EPSILONS) & (low[1] >= EPSILONS)] < 0.01).all()


def test_draws_have_the_exact_mean_and_variance(case):
    study = case.study
    scores = (study.linear - study.expected) / np.sqrt(study.variance)
    count = scores.size
    assert abs(scores.mean()) < 4 / count**0.5
    assert abs(scores.var() - 1) < 4 * np.square(scores).std() / count**0.5
    assert abs(study.linear.mean() - study.exact) < 4 * study.stderr
    np.testing.assert_allclose(study.scores("float64", 1.2e-5), scores, atol=1e-2)  # nearest: 1e-5


def study_of(errors: list[float]) -> EpsilonStudy:
    change = 2 * (1 + np.array(errors))[:, None, None] * np.ones((1, 4, 3))
    epsilons = 10.0 ** np.arange(-len(errors), 0)
    return EpsilonStudy(0, epsilons, {"float32": change}, np.full((4, 3), 2.0), np.ones(3), np.full(3, 4.0))


def test_the_usable_range_is_the_longest_run():
    study = study_of([0.5, 0.001, 0.5, -0.005, 0.0, 0.009, -0.5])
    np.testing.assert_allclose(study.error("float32"), [0.5, 0.001, 0.5, 0.005, 0, 0.009, 0.5], atol=1e-15)
    assert study.usable("float32") == (1e-4, 1e-2)
    assert study.usable("float32", tolerance=0.002) == (1e-6, 1e-6)  # of equal runs the first
    assert study_of([0.5, 0.5]).usable("float32") is None
    assert study_of([0.0, 0.0]).usable("float32") == (1e-2, 1e-1)
    assert study.stderr == pytest.approx((4 / 12) ** 0.5)


def test_both_number_formats_in_one_program_each():
    """Parameters decide the format; x64 is off again afterwards."""
    case = get("gpt2")
    assert jnp.ones(1).dtype == jnp.float32
    ids, lengths = padded([*map(np.array, case.texts)])
    keys = jax.random.split(jax.random.key(0), (2, len(LENGTHS)))
    run = functools.partial(sweep_epsilons, case.lm)
    gains = jax.eval_shape(run, case.params, ids, lengths, 0, keys, jnp.ones(4))
    assert {leaf.dtype for leaf in gains} == {jnp.dtype("float32")}
    assert (gains.change.shape, gains.linear.shape) == ((4, 2, 3), (2, 3))
