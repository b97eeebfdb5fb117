"""Estimates from products alone, against Jacobians that are known entry by entry."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, assert_close, padded, random_params, random_texts

from jaxprobe.configs import MIN_PROBES
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians.krylov import MatrixFreeSpectrum, estimate_spectrum
from jaxprobe.jacobians.matrix_free import jacobian_products, matrix_free_spectrum
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.readout import logits_from
from jaxprobe.library import jacobian, load
from jaxprobe.models import LanguageModel
from jaxprobe.perturb import capture

LENGTHS = [1, 5, 3]
SEEDS = 500

pytestmark = pytest.mark.usefixtures("x64")


class Case:
    """A tiny model and three texts, with hidden states and brute-force Jacobians of every layer."""

    def __init__(self, name: str):
        config = TINY[name]
        self.layers = range(config.num_layers)
        self.lm = LanguageModel(config)
        self.params = self.lm.place(random_params(config), "float64")
        ids, self.lengths = padded(random_texts(LENGTHS, config.vocab_size))
        forward = jax.jit(capture(self.lm.forward, "block_out"))
        self.hidden = forward(self.params, ids).captured["block_out"]
        self.factor = output_factor(self.lm, self.params)
        self.keys = jax.random.split(jax.random.key(5), len(LENGTHS))

    @functools.cached_property
    def jacobians(self) -> np.ndarray:
        """[l b v t d] of the last-token logits, padding included."""

        def outputs(layer, h):
            return logits_from(self.lm, self.params, layer, self.hidden[layer] + h, self.lengths)

        every = jax.jit(jax.vmap(jax.jacfwd(outputs, argnums=1), (0, None)))
        return np.array(every(jnp.asarray(self.layers), jnp.zeros(self.hidden.shape[2:])))

    def jacobian(self, wrt: str, layer: int, text: int) -> np.ndarray:
        """[v, t d], padding included, or [v, d]."""
        J = self.jacobians[layer, text]
        return J.reshape(len(J), -1) if wrt == "sequence" else J[:, LENGTHS[text] - 1]


@functools.cache
def get(name: str) -> Case:
    with jax.enable_x64(True):
        return Case(name)


@functools.partial(jax.jit, static_argnames=("num_products", "num_probes", "k"))
def estimate(J, key, num_products: int = 60, num_probes: int = MIN_PROBES, k: int = 3) -> MatrixFreeSpectrum:
    """Of an explicit matrix."""
    return estimate_spectrum(
        lambda v: J @ v,
        lambda u: J.T @ u,
        key,
        num_outputs=J.shape[0],
        dtype=J.dtype,
        num_singular_values=k,
        num_products=num_products,
        num_probes=num_probes,
    )


@functools.partial(jax.jit, static_argnames="num_products")
def over_seeds(matrices, num_products: int) -> MatrixFreeSpectrum:
    """[matrices, seeds]."""
    keys = jax.random.split(jax.random.key(0), SEEDS)
    one = functools.partial(estimate, num_products=num_products, k=2)
    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(matrices, keys)


def rotated(sigma: np.ndarray, columns: int) -> np.ndarray:
    """A matrix with these singular values and random singular vectors."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, len(sigma))))[0] for n in (len(sigma), columns))
    return (left * sigma) @ right.T


PLACES = np.arange(48)
SPECTRA = {
    "flat": np.ones(48),
    "one dominates": np.where(PLACES < 1, 10, 1.0),
    "one and twelve": np.where(PLACES < 1, 4, np.where(PLACES < 13, 1, 0.1)),
    "geometric": 0.9**PLACES,
    "1/i": 1 / (PLACES + 1),
    "1/sqrt(i)": (PLACES + 1) ** -0.5,
    "Gaussian matrix": np.linalg.svd(np.random.default_rng(1).standard_normal((48, 60)), compute_uv=False),
}


@functools.cache
def estimates_of_spectra(num_products: int) -> MatrixFreeSpectrum:
    return over_seeds(jnp.stack([rotated(sigma, 60) for sigma in SPECTRA.values()]), num_products)


def check_coverage(names, made: MatrixFreeSpectrum, norms) -> None:
    """Over many seeds the 95% interval holds the true norm 92.5% to 97.5% of the time."""
    norms = np.asarray(norms)[:, None]
    covered = ((made.frobenius_low <= norms) & (norms <= made.frobenius_high)).mean(axis=1)
    for name, share in zip(names, covered, strict=True):
        assert 0.925 <= share <= 0.975, f"{name}: {share:.1%} of {SEEDS} intervals"


@pytest.mark.parametrize("num_products", [8, 60])
def test_intervals_cover_what_they_say(num_products):
    norms = [np.linalg.norm(sigma) for sigma in SPECTRA.values()]
    check_coverage(SPECTRA, estimates_of_spectra(num_products), norms)


def test_intervals_cover_on_jacobians_of_tiny_models():
    places = [(name, layer) for name in TINY for layer in range(3)]
    matrices = [get(name).jacobian("sequence", layer, 1) for name, layer in places]
    check_coverage(places, over_seeds(jnp.stack(matrices), 4), [np.linalg.norm(J) for J in matrices])


def test_sixty_products_give_the_largest_singular_value():
    made = estimates_of_spectra(60)
    assert made.products == 60 + MIN_PROBES
    for values, sigma in zip(made.singular_values, SPECTRA.values(), strict=True):
        assert_close(values[:, 0], np.full(SEEDS, sigma.max()), 1e-4)


@pytest.mark.parametrize("num_products", [8, 60])
def test_residuals_bound_the_errors(num_products):
    """Far from convergence too, and not by being large."""
    made = estimates_of_spectra(num_products)
    for values, residuals, sigma in zip(made.singular_values, made.residuals, SPECTRA.values(), strict=True):
        error = np.abs(np.asarray(values)[..., None] - sigma).min(axis=-1)
        assert (error <= residuals + 1e-12 * sigma.max()).all()
        assert (residuals < sigma.max()).all()


# GPT-2's whole sequence is in test_estimates_of_a_model: each of these compiles for seconds.
@pytest.mark.parametrize(("name", "wrt"), [("mamba", "sequence"), ("mamba", "last"), ("gpt2", "last")])
def test_products_are_those_of_the_brute_force_jacobian(name, wrt):
    """J^T J entry by entry, padding included, and both products with the same J."""
    case, text = get(name), 2
    unit = case.hidden[0, text] if wrt == "sequence" else case.hidden[0, text, 0]

    @jax.jit
    def both(layer):
        h, length = case.hidden[:, text], case.lengths[text]
        push, pull = jacobian_products(case.lm, case.params, case.factor, h, length, layer, wrt=wrt)
        pushed = jax.vmap(push)(jnp.eye(unit.size).reshape(-1, *unit.shape))
        return pushed.T, jax.vmap(pull)(jnp.eye(len(case.factor))).reshape(len(case.factor), -1)

    for layer in case.layers:
        forward, reverse = both(layer)
        assert_close(reverse, forward, 1e-12, f"layer {layer}")
        expected = case.jacobian(wrt, layer, text)
        assert_close(forward.T @ forward, expected.T @ expected, 1e-11, f"layer {layer}")


def test_estimates_of_a_model():
    """At half of the products that would find everything, with a factor for each text, at every layer."""
    case, scales, inside = get("gpt2"), np.array([1.0, 2.0, 3.0]), []
    half = {"num_singular_values": 2, "num_products": 6}
    run = jax.jit(functools.partial(matrix_free_spectrum, case.lm, wrt="sequence", **half))
    factors = scales[:, None, None] * case.factor
    for layer in case.layers:
        made = run(case.params, factors, case.hidden, case.lengths, layer, case.keys)
        assert made.products == 6 + MIN_PROBES
        for text, scale in enumerate(scales):
            sigma = scale * np.linalg.svd(case.jacobian("sequence", layer, text), compute_uv=False)
            found, residuals = np.asarray(made.singular_values[text]), made.residuals[text]
            assert (found > 0).all() and (found <= sigma[:2] * (1 + 1e-12)).all()
            assert (np.abs(found[:, None] - sigma).min(axis=1) <= residuals + 1e-12 * sigma[0]).all()
            norm = np.linalg.norm(sigma)
            assert made.frobenius[text] == pytest.approx(norm, rel=0.2)
            inside.append(made.frobenius_low[text] <= norm <= made.frobenius_high[text])
    assert run._cache_size() == 1  # the layer is traced
    assert sum(inside) >= len(inside) - 1
    # The last text depends neither on its batch nor on its padding.
    alone = run(case.params, factors[2:], case.hidden[:, 2:, :3], case.lengths[2:], layer, case.keys[2:])
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(made), strict=True):
        assert_close(a[0], b[2], 1e-9)


def test_one_block_and_a_vocabulary_narrower_than_the_stream():
    """No block above the layer and v < d: R times the Jacobian of the final norm, written out."""
    config = dataclasses.replace(TINY["mamba"], num_layers=1, vocab_size=4, tie_word_embeddings=False)
    lm = LanguageModel(config)
    params = lm.place(random_params(config), "float64")
    R, hidden = np.arange(24.0).reshape(4, 6), np.random.default_rng(0).standard_normal((1, 5, 6))
    given = params, jnp.asarray(R), jnp.asarray(hidden), jnp.asarray(5)

    @jax.jit
    def reverse(layer):
        return jax.vmap(jacobian_products(lm, *given, layer, wrt="last")[1])(jnp.eye(4))

    x = hidden[0, -1]
    rms = np.sqrt(np.mean(x**2) + config.norm_epsilon)
    norm = (np.eye(6) - np.outer(x, x) / (6 * rms**2)) / rms
    assert_close(reverse(0), R @ (params["final_norm"]["scale"][:, None] * norm), 1e-12)


def test_a_float32_map_under_float64_arithmetic():
    J = rotated(np.arange(1.0, 7), 9)
    single, double = (
        estimate(jnp.asarray(J, dtype), jax.random.key(0), 6) for dtype in ("float32", "float64")
    )
    assert single.singular_values.dtype == jnp.float64
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True):
        assert_close(a, b, 1e-5, floor=6)


TEXT, LAYER = "The capital of France is", 1


@functools.cache
def shipped():
    """The shipped Mamba in float32, and the exact Jacobian of one text in the metric of R."""
    with jax.enable_x64(False):
        model = load("mamba-facts")
        exact = jacobian(model, TEXT, layer=LAYER, wrt="sequence")
        R = output_factor(model.lm, model.params)
        return model, R, np.asarray(R, np.float64) @ exact.state.reshape(len(exact.state), -1)


def test_every_seed_on_a_jacobian_of_a_shipped_model():
    """A third of the 60 products give sigma_1, and the intervals cover."""
    J = shipped()[2]
    # The estimates see J only through J J^T: a square matrix with the same one costs less.
    made = over_seeds(jnp.asarray(np.linalg.qr(J.T, mode="r").T[None]), 20)
    assert_close(made.singular_values[0, :, 0], np.full(SEEDS, np.linalg.norm(J, 2)), 1e-4)
    check_coverage(["mamba-facts"], made, [np.linalg.norm(J)])


def test_sixty_products_with_a_shipped_model():
    model, R, J = shipped()
    with jax.enable_x64(False):
        lm, params = model.lm, model.params
        ids = jnp.asarray([model.tokenizer.encode(TEXT)])
        hidden = jax.jit(capture(lm.forward, "block_out"))(params, ids).captured["block_out"]
        run = jax.jit(functools.partial(matrix_free_spectrum, lm, wrt="sequence", num_singular_values=3))
        made = run(params, R, hidden, jnp.array([ids.shape[1]]), LAYER, jax.random.key(0)[None])
    assert made.products == 60 + MIN_PROBES
    assert_close(made.singular_values[0], np.linalg.svd(J, compute_uv=False)[:3], 1e-4)
    assert made.frobenius_low[0] < np.linalg.norm(J) < made.frobenius_high[0] < 1.03 * made.frobenius[0]


def test_a_zero_map():
    made = estimate(jnp.zeros((6, 9)), jax.random.key(0))
    assert made.singular_values[0] == made.residuals[0] == 0
    assert made.frobenius == made.frobenius_low == made.frobenius_high == 0
    assert np.isnan(made.singular_values[1:]).all()  # the Krylov space ends at one dimension


def test_more_singular_values_than_the_rank():
    made = estimate(jnp.asarray(rotated(np.array([3.0, 2, 0, 0, 0, 0]), 9)), jax.random.key(0))
    assert_close(made.singular_values, [3, 2, 0], 1e-12)
    assert (made.residuals < 1e-12).all()
    for norm in (made.frobenius, made.frobenius_low, made.frobenius_high):
        assert norm == pytest.approx(13**0.5, rel=1e-12)


def test_a_repeated_singular_value_is_found_once_and_counted_in_the_norm():
    made = estimate(jnp.eye(6, 9), jax.random.key(0))
    assert made.singular_values[0] == pytest.approx(1)
    assert np.isnan(made.singular_values[1:]).all()
    assert made.frobenius_low < 6**0.5 < made.frobenius_high


def test_what_is_not_finite_stays_so():
    made = estimate(jnp.nan * jnp.zeros((6, 9)), jax.random.key(0))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(made))


def test_products_are_counted():
    J, calls = jnp.asarray(rotated(np.arange(1.0, 9), 11)), []

    def counted(matrix):
        def multiply(vector):
            jax.debug.callback(calls.append, vector)  # once for each, where several run at once
            return matrix @ vector

        return multiply

    sizes = {"num_outputs": 8, "dtype": J.dtype, "num_singular_values": 1}
    options = {"num_products": 11, "num_probes": MIN_PROBES}
    run = jax.jit(functools.partial(estimate_spectrum, counted(J), counted(J.T), **sizes, **options))
    made = run(jax.random.key(0))
    jax.effects_barrier()
    assert made.products == len(calls) == 10 + MIN_PROBES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 6}, "between 1 and 5, the output directions of the map, got 6"),
        ({"k": 0}, "between 1 and 5, the output directions of the map, got 0"),
        ({"k": 4, "num_products": 7}, "4 singular values need num_products of at least 8, got 7"),
        ({"num_products": 3, "k": 1}, "num_products must be at least 4, got 3"),
        ({"num_probes": 19}, "num_probes must be at least 20, got 19"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ProbeError, match=message):
        estimate(jnp.eye(5, 7), jax.random.key(0), **options)


def test_refusals_of_a_model():
    case = get("gpt2")
    given = case.lm, case.params, case.factor, case.hidden, case.lengths
    with pytest.raises(ProbeError, match="wrt must be last or sequence, got 'all'"):
        matrix_free_spectrum(*given, 0, case.keys, wrt="all")
    with pytest.raises(ProbeError, match="layer must be between 0 and 2"):
        matrix_free_spectrum(*given, 3, case.keys, wrt="last")
