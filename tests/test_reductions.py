"""Singular values by either reduction, and how the linear algebra behind them is called."""

import re
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, assert_close, random_params

from jaxprobe.jacobians.linearize import both_sweeps
from jaxprobe.jacobians.matrix_free import matrix_free_spectrum
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.path_lipschitz import fixed_context, path_lipschitz
from jaxprobe.jacobians.reductions import (
    Reduction,
    has_kernel,
    join_columns,
    joined_values,
    joined_values_on_host,
)
from jaxprobe.jacobians.site_jacobian import site_sweep
from jaxprobe.kernels.symmetric_eigenvalues import symmetric_eigenvalues
from jaxprobe.models import LanguageModel
from jaxprobe.perturb import capture

both_reductions = pytest.mark.parametrize("reduction", Reduction)


@both_reductions
@pytest.mark.parametrize("rows", [1, 4, 5])
def test_singular_values_of_each_matrix(x64, reduction, rows):
    matrices = jnp.asarray(np.random.default_rng(0).normal(size=(3, rows, 9)))
    expected = np.linalg.svd(matrices, compute_uv=False)
    assert_close(joined_values(join_columns(None, matrices, reduction), reduction), expected, 1e-13)
    joined = join_columns(join_columns(None, matrices[:, :, :5], reduction), matrices[:, :, 5:], reduction)
    assert_close(joined_values(joined, reduction), expected, 1e-13)
    assert_close(joined_values_on_host(np.asarray(joined), reduction), expected, 1e-13)


@pytest.mark.parametrize(
    ("count", "columns", "pieces"), [(1, 24, 12), (2, 24, 8), (1, 13, 13), (1, 17, 1), (20, 24, 1)]
)
def test_on_a_gpu_gram_matrices_are_made_piece_by_piece(x64, monkeypatch, count, columns, pieces):
    matrices = jnp.asarray(np.random.default_rng(2).normal(size=(count, 5, columns)))
    expected = matrices @ jnp.swapaxes(matrices, 1, 2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    made = jax.make_jaxpr(partial(join_columns, None, reduction=Reduction.GRAM))(matrices)
    assert f"[{pieces},{count},2,5]" in str(made)  # the rows above, of which the block below is a turned part
    assert_close(join_columns(None, matrices, Reduction.GRAM), expected, 1e-13)


@pytest.mark.parametrize(
    ("platform", "version", "capability", "width", "item_bytes", "expected"),
    [
        ("gpu", "PJRT C API\ncuda 13000", "9.0", 768, 4, True),
        ("gpu", "cuda 12080", "10.0", 4096, 4, True),
        ("gpu", "cuda 12080", "7.5", 768, 4, False),  # before Ampere
        ("gpu", "cuda 12080", "9.0", 5120, 4, False),
        ("gpu", "cuda 12080", "9.0", 768, 8, False),
        ("gpu", "rocm 60000", "gfx90a", 768, 4, False),
        ("cpu", "cpu", None, 768, 4, False),
    ],
)
def test_which_gpus_have_a_kernel(monkeypatch, platform, version, capability, width, item_bytes, expected):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(platform=platform, client=client, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert has_kernel(width, item_bytes) == expected


def test_eigenvalues_come_from_the_kernel_where_there_is_one(monkeypatch):
    squares = np.random.default_rng(3).normal(size=(2, 12, 30)).astype(np.float32)
    squares = squares @ np.swapaxes(squares, 1, 2)
    squares = jnp.asarray(squares)
    expected = joined_values(squares, Reduction.GRAM)
    monkeypatch.setattr("jaxprobe.jacobians.reductions.has_kernel", lambda width, item_bytes: True)
    kernel = "jaxprobe.kernels.symmetric_eigenvalues.symmetric_eigenvalues"
    monkeypatch.setattr(kernel, partial(symmetric_eigenvalues, interpret=True))
    made = joined_values(squares, Reduction.GRAM)
    assert (made != expected).any()  # the last digits
    assert_close(made, expected, 1e-5)


@both_reductions
def test_values_of_squares_of_any_number_of_axes(x64, reduction):
    squares = np.random.default_rng(1).normal(size=(2, 3, 4, 4))
    if reduction is Reduction.GRAM:
        squares = squares @ np.swapaxes(squares, 2, 3)
    squares[1, 0, [2, 3], [3, 2]] = np.nan  # one matrix leaves the others alone
    for values in (joined_values(jnp.asarray(squares), reduction), joined_values_on_host(squares, reduction)):
        values = np.asarray(values)
        assert values.shape == (2, 3, 4)
        assert np.isnan(values[1, 0]).all()
        for place in [(0, 0), (0, 2), (1, 1)]:
            expected = np.linalg.svd(squares[place], compute_uv=False)
            if reduction is Reduction.GRAM:
                expected = np.sqrt(expected)
            assert_close(values[place], expected, 1e-12)


@both_reductions
@pytest.mark.parametrize("sweep", [both_sweeps, partial(site_sweep, site="mixer_out")])
def test_sweeps_take_one_matrix_at_a_time(sweep, reduction):
    """Two batched LAPACK calls side by side can wait for each other for ever: see `one_at_a_time`."""
    lm = LanguageModel(TINY["mamba"])
    config, texts, tokens = lm.config, 3, 5
    params = jax.eval_shape(lambda: lm.place(random_params(config), "float32"))
    d = config.hidden_size
    factor = jax.ShapeDtypeStruct((d, d), "float32")
    hidden = jax.ShapeDtypeStruct((config.num_layers, texts, tokens, d), "float32")
    lengths = jax.ShapeDtypeStruct((texts,), "int32")
    ids = () if sweep is both_sweeps else (jax.ShapeDtypeStruct((texts, tokens), "int32"),)
    check_one_at_a_time(partial(sweep, lm, reduction=reduction), params, factor, *ids, hidden, lengths)


def test_estimates_take_one_matrix_at_a_time():
    lm = LanguageModel(TINY["mamba"])
    config, texts, tokens = lm.config, 3, 5
    params = lm.place(random_params(config), "float32")
    factor = output_factor(lm, params)
    hidden = capture(lm.forward, "block_out")(params, jnp.ones((texts, tokens), int)).captured["block_out"]
    lengths = jnp.full((texts,), tokens)
    ends = jnp.ones((2, texts, config.hidden_size))
    context = fixed_context(lm, params, hidden, lengths)
    check_one_at_a_time(partial(path_lipschitz, lm), params, factor, context, 0, *ends)
    keys = jax.random.split(jax.random.key(0), (texts,))
    estimate = partial(matrix_free_spectrum, lm, wrt="last", num_products=8)
    check_one_at_a_time(estimate, params, factor, hidden, lengths, 0, keys)


def check_one_at_a_time(function, *arguments):
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cpu",)).as_text()
    shapes = re.findall(r"@lapack_\w+\(.*?: \(tensor<([\dx]+)xf32>", text)
    assert shapes
    assert all(len(shape.split("x")) == 2 or shape.startswith("1x") for shape in shapes), shapes
