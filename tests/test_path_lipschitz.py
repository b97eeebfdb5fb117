"""sigma_1 along a segment, against Jacobians of the whole model with one row of one layer replaced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, assert_close, padded, random_params, random_texts

from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.path_lipschitz import PathLipschitz, fixed_context, path_lipschitz, path_places
from jaxprobe.jacobians.readout import logits_from
from jaxprobe.models import LanguageModel
from jaxprobe.perturb import capture

LENGTHS = [1, 3, 6]  # the first has no context, the second less than Mamba's convolution window

pytestmark = pytest.mark.usefixtures("x64")


class Case:
    """Three texts; text i's path leads half way to the last row of text i + 1, in the context of text i."""

    def __init__(self, name: str):
        config = TINY[name]
        self.lm = lm = LanguageModel(config)
        self.params = params = lm.place(random_params(config), "float64")
        ids, self.lengths = padded(random_texts(LENGTHS, config.vocab_size))
        hidden = jax.jit(capture(lm.forward, "block_out"))(params, ids).captured["block_out"]
        self.hidden = hidden
        self.start = hidden[:, jnp.arange(len(LENGTHS)), self.lengths - 1]
        self.end = (self.start + jnp.roll(self.start, -1, axis=1)) / 2
        self.context = jax.jit(functools.partial(fixed_context, lm))(params, hidden, self.lengths)
        self.run = jax.jit(functools.partial(path_lipschitz, lm), static_argnames=("nodes", "chunk"))

        def logits(layer, text, row):  # of the whole model
            h = jax.lax.dynamic_index_in_dim(hidden[layer], text)
            last = self.lengths[text] - 1
            logits = logits_from(lm, params, layer, h.at[0, last].set(row), last[None] + 1)[0]
            return logits, logits

        jacobian = jax.jacfwd(logits, argnums=2, has_aux=True)
        self.whole = jax.jit(
            lambda layer, text, rows: jax.lax.map(lambda row: jacobian(layer, text, row), rows)
        )

    @functools.cache  # noqa: B019 (a case lives as long as the tests)
    def paths(self, layer: int, nodes: int, chunk: int | None = None) -> PathLipschitz:
        factor = output_factor(self.lm, self.params)
        ends = self.start[layer], self.end[layer]
        return self.run(self.params, factor, self.context, layer, *ends, nodes=nodes, chunk=chunk)

    def along(self, layer: int, text: int, places: np.ndarray) -> tuple[np.ndarray, ...]:
        """b - a, and at each place the Jacobian [g v d] and the logits [g v] of the whole model."""
        a, b = self.start[layer, text], self.end[layer, text]
        return np.array(b - a), *map(np.array, self.whole(layer, text, a + places[:, None] * (b - a)))


@functools.cache
def get(name: str) -> Case:
    with jax.enable_x64(True):
        return Case(name)


@pytest.fixture(params=TINY)
def case(request) -> Case:
    return get(request.param)


def test_places():
    t, weights = path_places(5)
    assert t[0] == 0 and t[-1] == 1 and (np.diff(t) > 0).all()
    assert weights @ t**9 == pytest.approx(1 / 10)  # exact up to degree 2 * 5 - 1


def test_every_number_equals_the_whole_model_s(case):
    places, weights = path_places(40)
    for layer in range(case.lm.config.num_layers):
        paths = case.paths(layer, 40)
        assert paths.sigma1.shape == (len(LENGTHS), 42)
        for text in range(len(LENGTHS)):
            apart, jacobians, logits = case.along(layer, text, places)
            where = f"layer {layer}, text {text}"
            assert_close(paths.sigma1[text], np.linalg.norm(jacobians, 2, axis=(1, 2)), 1e-11, where)
            change = logits[-1] - logits[0]
            assert_close(np.einsum("g,gvd,d->v", weights, jacobians, apart), change, 1e-9, where)
            secant = np.linalg.norm(change) / np.linalg.norm(apart)
            assert_close(paths.secant[text], secant, 1e-11, where)
            assert secant <= paths.sigma1[text, 1:-1].max()
    assert case.run._cache_size() == 1  # the layer is traced


def test_the_residual_shows_whether_the_nodes_are_enough():
    """Two nodes are not, forty are; a few points at a time give what all at once do."""
    case = get("gpt2")
    few, many = case.paths(0, 2, chunk=3), case.paths(0, 40)
    assert (many.residual < 1e-9).all() and (few.residual > 1e-5).all()
    places, weights = path_places(2)
    for text in range(len(LENGTHS)):
        apart, jacobians, logits = case.along(0, text, places)
        change = logits[-1] - logits[0]
        expected = np.linalg.norm(weights @ (jacobians @ apart) - change) / np.linalg.norm(change)
        assert few.residual[text] == pytest.approx(expected, rel=1e-9)
    assert_close(few.sigma1[:, [0, -1]], many.sigma1[:, [0, -1]], 1e-12)
    assert_close(few.secant, many.secant, 1e-12)


def test_a_grid_is_a_lower_estimate_and_holds_both_ends(case):
    _, jacobians, _ = case.along(0, 2, np.linspace(0, 1, 400))
    largest = np.linalg.norm(jacobians, 2, axis=(1, 2))
    path = np.array(case.paths(0, 40).sigma1[2])
    assert path.max() <= largest.max() * (1 + 1e-3)
    assert_close(path[[0, -1]], largest[[0, -1]], 1e-11)
