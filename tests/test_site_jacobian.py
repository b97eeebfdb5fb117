"""Jacobians with respect to every site against Jacobians of the whole model, entry by entry."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, assert_close, padded, random_params, random_texts

from jaxprobe.errors import ProbeError
from jaxprobe.jacobians.layer_spectra import SpectraByInput
from jaxprobe.jacobians.linearize import last_token_sweep, sequence_sweep
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.reductions import Reduction
from jaxprobe.jacobians.site_jacobian import site_sweep
from jaxprobe.kernels.selective_scan import ScanBackend
from jaxprobe.models import LanguageModel
from jaxprobe.perturb import capture
from jaxprobe.sites import site_widths
from jaxprobe.taps import Edit, Taps

MODELS = {
    # v > d, tied. ssm_state takes three slabs, the last not full; B and C have fewer columns than rows.
    "mamba": dataclasses.replace(
        TINY["mamba"], hidden_size=4, intermediate_size=17, state_size=2, conv_kernel=2, use_bias=False
    ),
    # v < d, untied, and a site of one unit.
    "gpt2": dataclasses.replace(TINY["gpt2"], tie_word_embeddings=False, vocab_size=4, inner_size=1),
}
LENGTHS = {"mamba": [1, 4, 2], "gpt2": [4, 1, 2]}

pytestmark = pytest.mark.usefixtures("x64")


class Case:
    """A tiny model and texts, with every site's spectra by sweep and Jacobians by brute force."""

    def __init__(self, name: str):
        self.config = MODELS[name]
        self.lm = LanguageModel(self.config)
        self.params = self.lm.place(random_params(self.config), "float64")
        self.ids, self.lengths = padded(random_texts(LENGTHS[name], self.config.vocab_size))
        self.sites = site_widths(self.config)
        captured = jax.jit(capture(self.lm.forward, "block_out"))(self.params, self.ids).captured
        self.hidden = captured["block_out"]
        self.factor = output_factor(self.lm, self.params)
        self.arguments = self.params, self.factor, self.ids, self.hidden, self.lengths

    def sweep(
        self, *sites: str, scan: ScanBackend = ScanBackend.AUTO, **options
    ) -> dict[str, SpectraByInput]:
        lm = LanguageModel(self.config, scan)
        return jax.jit(lambda *given: {site: site_sweep(lm, *given, site=site, **options) for site in sites})(
            *self.arguments
        )

    @functools.cached_property
    def spectra(self) -> dict[str, SpectraByInput]:
        return self.sweep(*self.sites)

    @functools.cached_property
    def jacobians(self) -> dict[str, np.ndarray]:
        """[l b v t w] of each site. Texts do not meet, so the sum over texts gives each its own."""
        last = jnp.arange(len(self.lengths)), self.lengths - 1

        def outputs(layer, offsets):
            edits = tuple(
                Edit(site, "add", layer, jnp.arange(width), offsets[site])
                for site, width in self.sites.items()
            )
            logits = self.lm.forward(self.params, self.ids, self.lengths, Taps(edits)).logits
            return logits[last].sum(axis=0)

        offsets = {site: jnp.zeros((*self.ids.shape, width)) for site, width in self.sites.items()}
        jacobian = jax.jit(jax.jacrev(outputs, argnums=1))
        layers = [jacobian(layer, offsets) for layer in range(self.config.num_layers)]
        return {site: np.stack([np.moveaxis(of[site], 0, 1) for of in layers]) for site in self.sites}


@functools.cache
def get(name: str) -> Case:
    with jax.enable_x64(True):
        return Case(name)


def assert_same(actual, expected, tolerance: float, what: str = "") -> None:
    jax.tree.map(lambda a, b: assert_close(a, b, tolerance, what), actual, expected)


@pytest.mark.parametrize("name", MODELS)
def test_every_site_equals_brute_force(name):
    case = get(name)
    m = len(case.factor)
    for site, width in case.sites.items():
        found, jacobians = case.spectra[site], case.jacobians[site]
        assert jacobians.any(axis=(2, 3, 4)).all(), f"{site}: a Jacobian that is nothing tests nothing"
        for layer, text in np.ndindex(jacobians.shape[:2]):
            where = f"{site}, layer {layer}, text {text}"
            length = LENGTHS[name][text]
            whole = jacobians[layer, text]  # [v t w]
            norms = np.linalg.norm(whole, axis=(0, 2))
            assert_close(found.sequence.position_norms[layer, text], norms, 1e-11, where)
            assert not norms[length:].any()
            assert_close(found.last.position_norms[layer, text], norms[length - 1 : length], 1e-11, where)
            parts = (found.sequence, whole[:, :length]), (found.last, whole[:, length - 1])
            for spectra, jacobian in parts:
                expected = np.linalg.svd(jacobian.reshape(len(jacobian), -1), compute_uv=False)
                count = min(m, len(expected))
                assert expected[count:].max(initial=0) < 1e-12 * expected[0]
                values = np.array(spectra.singular_values[layer, text])
                assert values.shape == (m,)
                assert_close(values[:count], expected[:count], 1e-11, where)
                assert not values[count:].any()
        assert found.sequence.singular_values.shape == (*jacobians.shape[:2], m)
        assert jacobians.shape[-1] == width


@pytest.mark.parametrize(("name", "wrt"), [("mamba", "sequence"), ("gpt2", "last")])
def test_at_block_out_it_is_the_sweep_over_hidden_states(name, wrt):
    case = get(name)
    sweep = {"sequence": sequence_sweep, "last": last_token_sweep}[wrt]
    expected = jax.jit(functools.partial(sweep, case.lm))(case.params, case.factor, case.hidden, case.lengths)
    assert_same(getattr(case.spectra["block_out"], wrt), expected, 1e-12)


@pytest.mark.parametrize(
    ("site", "others"),
    [("ssm_state", {}), ("B", {"chunk": 3, "scan": ScanBackend.CHUNKWISE})],  # of 4: a remainder of one
)
def test_reductions_chunks_and_scans_agree(site, others):
    """To the half of the digits that GRAM keeps (see `Reduction`), and zeros by number stay zeros."""
    case = get("mamba")
    gram = case.sweep(site, reduction=Reduction.GRAM, **others)[site]
    for ours, exact in zip(gram, case.spectra[site], strict=True):
        assert_close(ours.position_norms, exact.position_norms, 1e-12)
        assert_close(ours.singular_values**2, exact.singular_values**2, 1e-13)
        zeros = np.array(exact.singular_values) == 0
        assert zeros.any() == (site == "B")
        assert not np.array(ours.singular_values)[zeros].any()


def test_from_a_layer_up():
    whole = get("gpt2").spectra["mlp_out"]
    part = get("gpt2").sweep("mlp_out", lowest=1)["mlp_out"]
    assert_same(part, jax.tree.map(lambda leaf: leaf[1:], whole), 1e-12)


@pytest.mark.parametrize(
    ("name", "site", "layer", "jit"), [("mamba", "conv_out", 1, True), ("gpt2", "mlp_out", 2, False)]
)
def test_padding_batch_and_jit_change_nothing(name, site, layer, jit):
    """One layer of one text alone, without its padding."""
    case, text = get(name), 2
    length = LENGTHS[name][text]
    run = functools.partial(site_sweep, case.lm, site=site, lowest=layer, every=False)
    alone = (jax.jit(run) if jit else run)(
        case.params,
        case.factor,
        case.ids[text:, :length],
        case.hidden[:, text:, :length],
        case.lengths[text:],
    )
    together = jax.tree.map(lambda leaf: leaf[layer : layer + 1, text:], case.spectra[site])
    assert_same(alone.last, together.last, 1e-11)
    assert_close(alone.sequence.singular_values, together.sequence.singular_values, 1e-11)
    assert_close(alone.sequence.position_norms, together.sequence.position_norms[..., :length], 1e-11)


def test_what_a_model_lacks_is_refused():
    for name, site, options, words in [
        ("gpt2", "delta", {}, "no site 'delta'"),
        ("mamba", "mlp_out", {}, "no site 'mlp_out'"),
        ("mamba", "B", {"lowest": 3}, "layer must be between 0 and 2"),
        ("mamba", "ssm_state", {"scan": ScanBackend.ASSOCIATIVE}, "inside the recurrence"),
    ]:
        with pytest.raises(ProbeError, match=words):
            get(name).sweep(site, **options)
