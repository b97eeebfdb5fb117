"""Factors of the output metrics, against the metric written out and against Jacobians of the whole model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, assert_close, random_params, unembedding_only

from jaxprobe.errors import ProbeError
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.readout import logits_from
from jaxprobe.models import LanguageModel

METRICS = ("logits", "centred", "fisher")
MODELS = {
    **TINY,  # v > d
    "mamba-narrow": dataclasses.replace(TINY["mamba"], tie_word_embeddings=False, vocab_size=4),  # v < d
}
IDS = jnp.array([[3, 1, 2, 0], [1, 1, 0, 3]])
LENGTHS = jnp.array([4, 4])
LAYER = 0

pytestmark = pytest.mark.usefixtures("x64")


def form(W: np.ndarray, metric: str, logits: np.ndarray) -> np.ndarray:
    """W^T M W of one text, written out."""
    v = len(W)
    if metric == "logits":
        return W.T @ W
    if metric == "centred":
        return W.T @ (np.eye(v) - 1 / v) @ W
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return W.T @ (np.diag(p) - np.outer(p, p)) @ W


class Case:
    """Two texts: the outputs as functions of h_l, and their Jacobians."""

    def __init__(self, name: str):
        config = MODELS[name]
        self.lm = lm = LanguageModel(config)
        self.params = params = lm.place(random_params(config), "float64")
        self.h = lm.resume(params, lm.embed(params, IDS), 0, stop=LAYER + 1)

        def outputs(h):
            logits = logits_from(lm, params, LAYER, h, LENGTHS)
            centred = logits - logits.mean(axis=-1, keepdims=True)
            # On the sphere of 2 sqrt(p) Euclidean length is Fisher length: another way to the same metric.
            return {"logits": logits, "centred": centred, "fisher": 2 * jnp.sqrt(jax.nn.softmax(logits))}

        def state(h):
            return lm.normalise(params, lm.resume(params, h, LAYER + 1)[:, -1])

        def everything(moved):  # the same for both texts, which do not meet
            h = self.h + moved
            return outputs(h), state(h)

        self.outputs = jax.jit(outputs)
        self.jacobians, self.dz = jax.jit(jax.jacfwd(everything))(jnp.zeros(self.h.shape[1:]))  # [b . t d]
        self.logits = np.array(self.outputs(self.h)["logits"])

    def factor(self, metric: str) -> np.ndarray:
        """[b m d], the same for every text but for fisher."""
        factor = jax.jit(output_factor, static_argnums=(0, 2))(self.lm, self.params, metric, self.logits)
        assert factor.ndim == (3 if metric == "fisher" else 2)
        return np.broadcast_to(factor, (len(IDS), *factor.shape[-2:]))


@functools.cache
def get(name: str) -> Case:
    with jax.enable_x64(True):
        return Case(name)


@pytest.fixture(params=MODELS)
def case(request) -> Case:
    return get(request.param)


@pytest.mark.parametrize("metric", METRICS)
def test_the_jacobian_of_the_output_has_the_singular_values_of_the_factored_one(case, metric):
    config, factor = case.lm.config, case.factor(metric)
    m = min(config.vocab_size, config.hidden_size)
    assert factor.shape[1:] == (m, config.hidden_size)
    for text in range(len(IDS)):
        jacobian = np.array(case.jacobians[metric][text])
        expected = np.linalg.svd(jacobian.reshape(len(jacobian), -1), compute_uv=False)
        dz = np.array(case.dz[text]).reshape(config.hidden_size, -1)
        actual = np.linalg.svd(factor[text] @ dz, compute_uv=False)
        assert_close(actual[:m], expected[:m], 1e-12, f"text {text}")


def test_the_fisher_metric_is_twice_the_divergence_to_second_order(case):
    """KL(p(h) || p(h + e)) = e^T J^T F J e / 2 + O(e^3); the mean over +e and -e leaves O(e^4)."""
    e = 1e-3 * jax.random.normal(jax.random.key(0), case.h.shape)

    def divergence(step):
        log_p, log_q = (jax.nn.log_softmax(case.outputs(h)["logits"]) for h in (case.h, case.h + step))
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    measured = (divergence(e) + divergence(-e)) / 2
    factor = case.factor("fisher")
    length = np.linalg.norm(np.einsum("bmi,bitd,btd->bm", factor, case.dz, e), axis=1)
    np.testing.assert_allclose(measured, length**2 / 2, rtol=1e-4)
    J = np.array(case.jacobians["logits"])
    F = [form(np.eye(J.shape[1]), "fisher", row) for row in case.logits]
    moved = np.einsum("bvtd,btd->bv", J, e)
    np.testing.assert_allclose(length**2, np.einsum("bv,bvw,bw->b", moved, F, moved), rtol=1e-11)


@pytest.mark.parametrize(
    ("metric", "v"), [("logits", 131), ("centred", 131), *[("fisher", v) for v in (5, 48, 96, 131)]]
)
def test_a_vocabulary_of_any_number_of_blocks(metric, v):
    """Width 6, so 48 rows are one block, 96 are two, and 131 leave a rest."""
    rng = np.random.default_rng(v)
    W, logits = rng.standard_normal((v, 6)), 3 * rng.standard_normal((2, v))
    lm, params = unembedding_only(W)
    factor = np.array(output_factor(lm, params, metric, jnp.asarray(logits)))
    for text, R in enumerate(np.broadcast_to(factor, (2, *factor.shape[-2:]))):
        assert_close(R.T @ R, form(W, metric, logits[text]), 1e-13)


@pytest.mark.parametrize("metric", ["centred", "fisher"])
def test_a_common_offset_of_the_logits_changes_nothing(metric):
    """A row added to every row of W moves every logit alike; in float32 too, and where p is near certain."""
    rng = np.random.default_rng(0)
    v, d = 60, 6
    W, offset = rng.standard_normal((v, d)), 1000 * rng.standard_normal(d)
    logits = rng.standard_normal((1, v))
    logits[0, 7] = 20  # all but 1e-7 of the probability
    exact = np.linalg.eigvalsh(form(W.astype(np.float32).astype(float), metric, logits[0]))[::-1] ** 0.5

    def singular_values(W, dtype):
        lm, params = unembedding_only(np.asarray(W, dtype))
        R = output_factor(lm, params, metric, jnp.asarray(logits, dtype))
        assert R.dtype == dtype
        return np.linalg.svd(np.array(R, np.float64).reshape(-1, d), compute_uv=False)

    assert_close(singular_values(W, np.float32), exact, 3e-6)
    moved = singular_values(W + offset, np.float64), singular_values(W, np.float64)
    assert_close(*moved, 1e-10)
    # In float32 the offset itself costs W three of its seven digits, and no more may be lost.
    rounded = (W + offset).astype(np.float32)
    true = np.linalg.eigvalsh(form(rounded.astype(float) - offset, metric, logits[0]))[::-1] ** 0.5
    assert_close(singular_values(rounded, np.float32), true, 1e-3)


def test_no_precision_is_lost_to_squaring():
    """Singular values of W over eleven decades, which no Gram matrix in float64 holds."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal(shape))[0] for shape in [(100, 6), (6, 6)])
    expected = np.logspace(0, -11, 6)
    lm, params = unembedding_only(left * expected @ right)
    actual = np.linalg.svd(np.array(output_factor(lm, params)), compute_uv=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_what_is_refused():
    lm, params = unembedding_only(np.ones((5, 6)))
    with pytest.raises(ProbeError, match=r"fisher needs each text's logits"):
        output_factor(lm, params, "fisher")
