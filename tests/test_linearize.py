"""The Jacobian sweeps against Jacobians of the whole model, entry by entry."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain_models
import pytest
from support import TINY, assert_close, padded, random_params, random_texts

from jaxprobe.jacobians.layer_spectra import Directions, Spectra
from jaxprobe.jacobians.linearize import (
    both_sweeps,
    for_pullbacks,
    last_token_sweep,
    sequence_norms,
    sequence_sweep,
)
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.readout import last_token_logits, logits_from
from jaxprobe.jacobians.reductions import Reduction, joined_values
from jaxprobe.jacobians.split_factor import split_factor
from jaxprobe.kernels.selective_scan import ScanBackend
from jaxprobe.models import LanguageModel
from jaxprobe.perturb import add, capture, perturb

SWEEPS = {"sequence": sequence_sweep, "last": last_token_sweep}
LENGTHS = [1, 2, 3, 6]  # 1, 2 and 3 are shorter than Mamba's convolution window
MODELS = {
    **TINY,  # v > d, tied
    "mamba-untied": dataclasses.replace(
        TINY["mamba"], tie_word_embeddings=False, vocab_size=4, use_conv_bias=False, conv_kernel=1
    ),  # v < d, and a convolution that remembers nothing
    "gpt2-untied": dataclasses.replace(
        TINY["gpt2"], tie_word_embeddings=False, vocab_size=4, scale_attn_by_inverse_layer_idx=False
    ),
}

pytestmark = pytest.mark.usefixtures("x64")


class Case:
    """A tiny model and four texts, with hidden states and brute-force Jacobians of every layer."""

    def __init__(self, name: str):
        self.config = MODELS[name]
        self.lm = LanguageModel(self.config)
        self.plain_params = random_params(self.config)
        self.params = self.lm.place(self.plain_params, "float64")
        self.texts = random_texts(LENGTHS, self.config.vocab_size)
        self.ids, self.lengths = padded(self.texts)
        self.rows, self.last = jnp.arange(len(LENGTHS)), self.lengths - 1
        captured = jax.jit(capture(self.lm.forward, "block_out"))(self.params, self.ids).captured
        self.hidden = captured["block_out"]
        self.factor = output_factor(self.lm, self.params)

    @functools.cached_property
    def jacobians(self) -> np.ndarray:
        """[l b v t d] in reverse mode. Texts do not meet, so the sum over texts gives each its own."""

        def outputs(layer, moved):
            return self.moved_logits(layer, moved).sum(axis=0)

        every = jax.vmap(jax.jacrev(outputs, argnums=1), (0, None))
        moved = jnp.zeros(self.hidden.shape[1:])
        return np.moveaxis(jax.jit(every)(jnp.arange(self.config.num_layers), moved), 1, 2)

    def moved_logits(self, layer, moved):
        """Last-token logits [b v] of the whole model, with `moved` added to what block `layer` returns."""
        edit = add("block_out", layer, range(self.config.hidden_size), moved)
        logits = perturb(self.lm.forward, edit)(self.params, self.ids).logits
        return logits[self.rows, self.last]

    @functools.cache  # noqa: B019 (a case lives as long as the tests)
    def sweep(self, wrt: str, scan: ScanBackend = ScanBackend.AUTO, **options) -> Spectra:
        run = jax.jit(functools.partial(SWEEPS[wrt], LanguageModel(self.config, scan), **options))
        return run(self.params, self.factor, self.hidden, self.lengths)


@functools.cache
def get(name: str) -> Case:
    with jax.enable_x64(True):
        return Case(name)


@pytest.fixture(params=MODELS)
def case(request) -> Case:
    return get(request.param)


@pytest.fixture(params=TINY)
def tied(request) -> Case:
    return get(request.param)


def test_brute_force_agrees_with_itself(tied):
    """Forward mode, and differences of the numpy models, give the same Jacobians as reverse mode."""
    case = tied

    def moved(layer, value):  # the same for every text
        return case.moved_logits(layer, jnp.broadcast_to(value, case.hidden.shape[1:]))

    forward = jax.jit(jax.vmap(jax.jacfwd(moved, argnums=1), (0, None)))
    ours = forward(jnp.arange(case.config.num_layers), jnp.zeros(case.hidden.shape[2:]))
    assert_close(ours, case.jacobians, 1e-12)

    def plain(step):  # of the last text, with one entry of one layer's output moved
        def visit(site, layer, value):
            if (site, layer) == ("block_out", 1):
                value = value.copy()
                value[4, 2] += step
            return value

        return plain_models.forward(case.config, case.plain_params, case.texts[-1], visit)[-1]

    numeric = (plain(1e-5) - plain(-1e-5)) / 2e-5
    assert_close(case.jacobians[1, -1, :, 4, 2], numeric, 1e-7)


def test_the_factor_has_the_gram_matrix_of_the_unembedding(case):
    config, params = case.config, case.plain_params
    W = params["embedding"]["embedding"] if config.tie_word_embeddings else params["unembedding"]["kernel"].T
    assert case.factor.shape == (min(config.vocab_size, config.hidden_size), config.hidden_size)
    assert_close(case.factor.T @ case.factor, W.T @ W, 1e-12)


@pytest.mark.parametrize("wrt", SWEEPS)
@pytest.mark.parametrize("reduction", Reduction)
def test_values_made_later_are_those_made_in_the_sweep(tied, wrt, reduction):
    later = tied.sweep(wrt, reduction=reduction, values=False)
    assert later.singular_values is None
    made = later.with_values(functools.partial(joined_values, reduction=reduction))
    assert made.squares is None
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-12), made, tied.sweep(wrt, reduction=reduction))


def test_sizes_along_directions_equal_brute_force(case):
    """||J u|| of every layer and text, the directions being of that layer and text."""
    every = jnp.asarray(np.random.default_rng(0).normal(size=(len(case.hidden), 12, *case.hidden.shape[1:])))
    directions = Directions(lambda layer, number: every[layer, number], 11, every[:, 11])
    run = functools.partial(sequence_sweep, case.lm, directions=directions)
    made = jax.jit(run)(case.params, case.factor, case.hidden, case.lengths)
    expected = np.linalg.norm(np.einsum("lbvtd,lsbtd->lbsv", case.jacobians, every), axis=-1)
    assert_close(made.along, expected[..., :11], 1e-11)
    assert_close(made.carried, expected[..., 11], 1e-11)


@pytest.mark.parametrize("wrt", SWEEPS)
def test_sweep_equals_brute_force(case, wrt):
    spectra = case.sweep(wrt)
    layers, batch = case.hidden.shape[:2]
    m = min(case.config.vocab_size, case.config.hidden_size)
    assert spectra.singular_values.shape == (layers, batch, m)
    for layer in range(layers):
        for text, length in enumerate(LENGTHS):
            jacobian = case.jacobians[layer, text]  # [v t d]
            if wrt == "last":
                jacobian = jacobian[:, length - 1 : length]
            expected = np.linalg.svd(jacobian.reshape(len(jacobian), -1), compute_uv=False)
            assert expected[m:].max(initial=0) < 1e-12 * expected[0]
            where = f"layer {layer}, text {text}"
            assert_close(spectra.singular_values[layer, text], expected[:m], 1e-11, where)
            norms = np.linalg.norm(jacobian, axis=(0, 2))
            assert_close(spectra.position_norms[layer, text], norms, 1e-11, where)
    if wrt == "sequence":
        padding = np.arange(6) >= np.array(LENGTHS)[:, None]
        assert not np.array(spectra.position_norms)[:, padding].any()


@pytest.mark.parametrize(("name", "wrt"), [("mamba", "last"), ("gpt2", "sequence")])
def test_lowest_and_every(name, wrt):
    case = get(name)
    whole = case.sweep(wrt)
    for options, kept in [
        ({"lowest": 1}, slice(1, 3)),
        ({"lowest": 1, "every": False}, slice(1, 2)),
        ({"lowest": 2}, slice(2, 3)),  # the last layer: no block to pull back through
    ]:
        part = case.sweep(wrt, **options)
        jax.tree.map(lambda a, b, kept=kept: assert_close(a, b[kept], 1e-12), part, whole)


@pytest.mark.parametrize("chunk", [3, 4])  # of 6: without and with a remainder
@pytest.mark.parametrize("name", TINY)
def test_chunks_of_cotangents_change_nothing(name, chunk):
    case = get(name)
    chunked = case.sweep("sequence", chunk=chunk)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-12), chunked, case.sweep("sequence"))


@pytest.mark.parametrize("wrt", SWEEPS)
@pytest.mark.parametrize("scan", [ScanBackend.ASSOCIATIVE, ScanBackend.CHUNKWISE])
def test_scan_backends_agree(wrt, scan):
    case = get("mamba")
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-11), case.sweep(wrt, scan), case.sweep(wrt))


def test_a_wide_model_left_to_auto_is_linearised_chunkwise():
    narrow, wide = (LanguageModel(dataclasses.replace(MODELS["mamba"], hidden_size=d)) for d in (255, 256))
    assert for_pullbacks(narrow, 100).scan is ScanBackend.AUTO
    assert for_pullbacks(wide, 100).scan is ScanBackend.CHUNKWISE
    named = dataclasses.replace(wide, scan=ScanBackend.SEQUENTIAL)
    assert for_pullbacks(named, 100).scan is ScanBackend.SEQUENTIAL


@pytest.mark.parametrize("wrt", SWEEPS)
def test_gram_gives_the_same_norms_and_the_squares_of_the_values(tied, wrt):
    gram, qr = tied.sweep(wrt, reduction=Reduction.GRAM), tied.sweep(wrt)
    assert_close(gram.position_norms, qr.position_norms, 1e-13)
    assert_close(jnp.square(gram.singular_values), jnp.square(qr.singular_values), 1e-12)


@pytest.mark.parametrize("wrt", SWEEPS)
def test_norms_of_the_centred_logits_come_beside(case, wrt):
    factor, weight = split_factor(case.lm, case.params)
    made = jax.jit(functools.partial(SWEEPS[wrt], case.lm))(
        case.params, factor, case.hidden, case.lengths, centred_weight=weight
    )
    centred = case.jacobians - case.jacobians.mean(axis=2, keepdims=True)
    for norms, jacobians in ((made.centred_norms, centred), (made.position_norms, case.jacobians)):
        expected = np.linalg.norm(jacobians, axis=(2, 4))  # [l b t]
        if wrt == "last":
            expected = np.take_along_axis(expected, np.asarray(case.last)[None, :, None], axis=2)
        assert_close(norms, expected, 1e-12)


@pytest.mark.parametrize("wrt", [*SWEEPS, "norms"])
@pytest.mark.parametrize("common", [30.0, 1e3])
@pytest.mark.parametrize("name", ["mamba-untied", "gpt2-untied"])  # hidden states without the offset
def test_a_common_offset_that_hides_the_rest_does_not_cancel_it(name, wrt, common):
    """In float32, where ||J||^2 less the offset's would leave nothing."""
    case = get(name)
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), case.params)
    kernel = single["unembedding"]["kernel"]
    single["unembedding"] = {"kernel": kernel + common * kernel[:, :1]}
    run = functools.partial(sequence_norms, chunk=5) if wrt == "norms" else SWEEPS[wrt]
    run = jax.jit(functools.partial(run, case.lm))
    hidden = jnp.asarray(case.hidden, jnp.float32)
    plain, centred = (output_factor(case.lm, single, metric) for metric in ("logits", "centred"))
    factor, weight = split_factor(case.lm, single)
    made = run(single, factor, hidden, case.lengths, centred_weight=weight)
    expected = run(single, centred, hidden, case.lengths).position_norms
    assert float(made.position_norms[0, 0].max()) > 5 * float(expected[0, 0].max())
    assert_close(made.centred_norms, expected, 1e-5)
    assert_close(made.position_norms, run(single, plain, hidden, case.lengths).position_norms, 1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"lowest": 1, "every": False, "reduction": Reduction.GRAM, "chunk": 3}]
)
def test_both_inputs_from_one_pass(case, options):
    """The sequence's sweep holds the last token's Jacobian, whose own sweep never sees other rows."""
    factor, weight = split_factor(case.lm, case.params)
    run = jax.jit(functools.partial(both_sweeps, case.lm, **options))
    made = run(case.params, factor, case.hidden, case.lengths, centred_weight=weight)
    of_last = {name: value for name, value in options.items() if name != "chunk"}
    for wrt, of_input in (("sequence", options), ("last", of_last)):
        alone = jax.jit(functools.partial(SWEEPS[wrt], case.lm, **of_input))
        expected = alone(case.params, factor, case.hidden, case.lengths, centred_weight=weight)
        # GRAM squares: its values near zero are right to the root of rounding only.
        tolerance = 1e-7 if "reduction" in options else 1e-11
        jax.tree.map(lambda a, b: assert_close(a, b, tolerance), getattr(made, wrt), expected)  # noqa: B023


@pytest.mark.parametrize("wrt", SWEEPS)
def test_padding_and_batch_change_nothing(tied, wrt):
    text, length = 2, LENGTHS[2]
    arguments = tied.hidden[:, text : text + 1, :length], tied.lengths[text : text + 1]
    alone = jax.jit(functools.partial(SWEEPS[wrt], tied.lm))(tied.params, tied.factor, *arguments)
    together = tied.sweep(wrt)
    assert_close(alone.singular_values[:, 0], together.singular_values[:, text], 1e-11)
    width = alone.position_norms.shape[-1]
    assert_close(alone.position_norms[:, 0], together.position_norms[:, text, :width], 1e-11)


def test_without_jit():
    case = get("gpt2")
    arguments = case.lm, case.params, case.factor, case.hidden, case.lengths
    eager = last_token_sweep(*arguments)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-12), eager, case.sweep("last"))


def test_an_output_metric_replaces_the_factor():
    """Centred logits: R from the centred W gives the singular values of the centred J."""
    tied = get("gpt2")
    W = tied.lm.unembedding(tied.params)
    centred = jnp.linalg.qr(W - W.mean(axis=0), mode="r")
    run = jax.jit(functools.partial(sequence_sweep, tied.lm, lowest=1, every=False))
    spectra = run(tied.params, centred, tied.hidden, tied.lengths)
    jacobian = tied.jacobians[1, -1].reshape(tied.config.vocab_size, -1)
    expected = np.linalg.svd(jacobian - jacobian.mean(axis=0), compute_uv=False)
    assert_close(spectra.singular_values[0, -1], expected[: len(centred)], 1e-11)


def test_a_step_equals_the_block_at_the_last_token(case):
    """For every layer and every place that can be last, the first included."""
    lm, params = case.lm, case.params
    text = case.hidden[:, -1]
    tokens = text.shape[1]
    repeated = jnp.repeat(text[:, None], tokens, axis=1)  # [l b t d]: text b ends at token b

    @jax.jit
    def both(layer, block_params, x):
        last = jnp.arange(tokens)
        past = lm.past(block_params, x, last)
        return lm.step(block_params, layer, x[last, last], past), lm.block(block_params, layer, x)[0]

    for layer in range(1, case.config.num_layers):
        stepped, whole = both(layer, lm.block_params(params, layer), repeated[layer - 1])
        assert_close(whole, text[layer], 1e-12)
        assert_close(stepped, text[layer], 1e-12)


def test_logits_from_every_layer(tied):
    case = tied
    expected = case.moved_logits(0, jnp.zeros(case.hidden.shape[1:]))
    traces = []

    @jax.jit
    def resumed(layer, h):
        traces.append(layer)
        return logits_from(case.lm, case.params, layer, h, case.lengths)

    for layer, h in enumerate(case.hidden):
        assert_close(resumed(layer, h), expected, 1e-12)
    assert len(traces) == 1
    assert_close(last_token_logits(case.lm, case.params, case.hidden[-1], case.lengths), expected, 1e-12)


def test_the_path_integral_of_the_jacobian_is_the_change_of_the_logits(tied):
    """Gauss-Legendre along a segment of h_0, the last row moving: hence secant <= largest node's sigma_1."""
    lm, params, length = tied.lm, tied.params, LENGTHS[-1]
    a = tied.hidden[0, -1]
    b = a.at[-1].add(jax.random.normal(jax.random.key(0), a.shape[1:]))
    nodes, weights = np.polynomial.legendre.leggauss(24)
    points = a + (np.array([-1, *nodes, 1])[:, None, None] + 1) / 2 * (b - a)
    lengths = jnp.full(len(points), length)

    @jax.jit
    def along(points):
        f = functools.partial(logits_from, lm, params, 0, lengths=lengths)
        return jax.jvp(f, (points,), (jnp.broadcast_to(b - a, points.shape),))

    @jax.jit
    def largest(points):
        hidden = [points]
        for layer in range(1, tied.config.num_layers):
            hidden.append(lm.block(lm.block_params(params, layer), layer, hidden[-1]))
        spectra = last_token_sweep(lm, params, tied.factor, jnp.stack(hidden), lengths, every=False)
        return spectra.singular_values.max()

    logits, slopes = along(points)
    change = logits[-1] - logits[0]
    assert_close(weights / 2 @ slopes[1:-1], change, 1e-11)
    secant = jnp.linalg.norm(change) / jnp.linalg.norm(b - a)
    assert 0 < secant <= largest(points)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_norms_without_the_jacobian_are_its_norms(case, chunk):
    """Rows of R go down in blocks, the last one short; one text at a time, a factor each, gives the same."""
    factor, weight = split_factor(case.lm, case.params)
    run = jax.jit(functools.partial(sequence_norms, case.lm, chunk=chunk))
    whole = case.sweep("sequence")
    made = run(case.params, factor, case.hidden, case.lengths, centred_weight=weight)
    assert made.singular_values is None
    assert_close(made.position_norms, whole.position_norms, 1e-13)
    swept = sequence_sweep(case.lm, case.params, factor, case.hidden, case.lengths, centred_weight=weight)
    assert_close(made.centred_norms, swept.centred_norms, 1e-12)
    factors = jnp.stack([case.factor * scale for scale in (1, 2, 3, 4)])
    scaled = run(case.params, factors, case.hidden, case.lengths).position_norms
    assert_close(scaled, whole.position_norms * np.array([1, 2, 3, 4])[:, None], 1e-13)
    alone = jax.jit(functools.partial(sequence_norms, case.lm, chunk=chunk, lowest=1, every=False))
    one = alone(case.params, case.factor, case.hidden, case.lengths).position_norms
    assert_close(one, whole.position_norms[1:2], 1e-13)


def test_float32_is_kept(case):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), case.params)
    arguments = params, case.factor.astype(jnp.float32), case.hidden.astype(jnp.float32), case.lengths
    for sweep in SWEEPS.values():
        spectra = jax.eval_shape(functools.partial(sweep, case.lm), *arguments)
        assert {leaf.dtype for leaf in jax.tree.leaves(spectra)} == {jnp.dtype("float32")}
