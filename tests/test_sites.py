"""Sites: every one captured and edited, against the models written out in numpy."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import plain_models
import pytest
from support import TINY, assert_close, padded, random_params, random_texts

from jaxprobe.configs import GPT2Config
from jaxprobe.errors import ProbeError
from jaxprobe.kernels.selective_scan import ScanBackend
from jaxprobe.models import LanguageModel, Output
from jaxprobe.perturb import add, capture, mean, noise, perturb, replace, scale, zero
from jaxprobe.sites import site_widths
from jaxprobe.taps import NO_TAPS, Edit, Taps

LENGTHS = [5, 2, 3]
FACTOR = -1.5
MODES = {edit.__name__: edit for edit in (zero, mean, noise, scale, replace, add)}
MODELS = {
    **TINY,
    "gpt2-plain": dataclasses.replace(
        TINY["gpt2"], scale_attn_by_inverse_layer_idx=False, scale_attn_weights=False, activation="tanh",
        tie_word_embeddings=False,
    ),
    "mamba-plain": dataclasses.replace(
        TINY["mamba"], use_bias=False, use_conv_bias=False, conv_kernel=1, tie_word_embeddings=False
    ),
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("x64")


class Case:
    """A tiny model, its parameters and three texts of different lengths."""

    def __init__(self, name: str):
        self.config = MODELS[name]
        self.lm = LanguageModel(self.config)
        self.plain_params = random_params(self.config)
        self.texts = random_texts(LENGTHS, self.config.vocab_size)
        self.sites = site_widths(self.config)
        with jax.enable_x64(True):
            self.params = self.lm.place(self.plain_params, "float64")
            self.ids, self.lengths = padded(self.texts)
        self.forward = jax.jit(self.lm.forward)

    def run(self, *edits: Edit, capture: tuple[str, ...] | None = None):
        """Jitted with the edits as arguments: a new layer, unit or value compiles nothing."""
        taps = Taps(edits, tuple(self.sites) if capture is None else capture)
        return self.forward(self.params, self.ids, self.lengths, taps)

    def plain(self, text: int, visit=plain_models.untouched) -> np.ndarray:
        return plain_models.forward(self.config, self.plain_params, self.texts[text], visit)


CASES: dict[str, Case] = {}


@pytest.fixture(params=TINY)
def case(request) -> Case:
    return CASES.setdefault(request.param, Case(request.param))


@pytest.fixture
def mamba() -> Case:
    return CASES.setdefault("mamba", Case("mamba"))


def recorder(record: dict, change=plain_models.untouched):
    """A visitor that keeps every value, after the change: record[site, layer], [t w]."""

    def visit(site, layer, value):
        value = change(site, layer, value)
        if site == "ssm_state":
            record.setdefault((site, layer), []).append(value)
        else:
            record[site, layer] = value
        return value

    return visit


def assert_equals_plain(case: Case, output, change=lambda text: plain_models.untouched) -> None:
    """Logits and every captured site of every text equal the plain model's under the same change."""
    for text, length in enumerate(LENGTHS):
        record = {}
        logits = case.plain(text, recorder(record, change(text)))
        for (site, layer), value in record.items():
            captured = output.captured[site][layer, text, :length]
            assert_close(captured, np.array(value), 1e-11, f"text {text}, {site} of layer {layer}")
        assert_close(output.logits[text, :length], logits, 1e-11, f"logits of text {text}")


@pytest.mark.parametrize("name", MODELS)
def test_every_site_is_captured(name):
    case = CASES.setdefault(name, Case(name))
    output = case.run()
    shape = (case.config.num_layers, *case.ids.shape)
    assert {site: v.shape for site, v in output.captured.items()} == {
        site: (*shape, width) for site, width in case.sites.items()
    }
    assert {v.dtype for v in output.captured.values()} == {jnp.dtype("float64")}
    assert_equals_plain(case, output)


def test_the_sites_are_those_of_the_design():
    assert set(site_widths(TINY["gpt2"])) == {"block_out", "mixer_out", "mlp_out", "mlp_act"}
    assert set(site_widths(TINY["mamba"])) == {
        "block_out", "mixer_out", "delta", "B", "C", "conv_out", "gate", "ssm_state"
    }  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_edit_at_every_site_of_every_layer(case, mode):
    """One program per mode: each site has an edit, and all but one are at a layer the model lacks."""
    units = {site: jnp.array([width - 1, 0][: min(2, width)]) for site, width in case.sites.items()}
    value, key = jnp.array([0.75, -1.5]), jax.random.key(3)
    unedited = case.run()

    @jax.jit
    def run(layers):
        edits = []
        for site, layer in zip(case.sites, layers, strict=True):
            arguments = {
                "scale": (FACTOR,), "replace": (value,), "add": (value,), "noise": (key, 0.5),
            }.get(mode, ())  # fmt: skip
            edits.append(MODES[mode](site, layer, units[site], *arguments))
        return case.lm.forward(case.params, case.ids, case.lengths, Taps(tuple(edits), tuple(case.sites)))

    nowhere = case.config.num_layers
    for index, site in enumerate(case.sites):
        for layer in range(case.config.num_layers):
            output = run(jnp.full(len(case.sites), nowhere).at[index].set(layer))
            change = plainly(mode, site, layer, np.array(units[site]), np.array(value), unedited, key)
            assert_equals_plain(case, output, change)


def plainly(mode, site, layer, units, value, unedited, key):
    """The edit as its definition reads, for one text at a time."""
    shape = (max(LENGTHS), len(units))
    # The draw is pinned: one key per text, folded in by its place; rows of it are tokens.
    drawn = [np.array(0.5 * jax.random.normal(jax.random.fold_in(key, text), shape)) for text in range(3)]

    def change(text: int):
        tokens = iter(range(LENGTHS[text]))
        average = np.array(unedited.captured[site])[layer, text, : LENGTHS[text]].mean(axis=0)

        def visit(at, in_layer, array):
            if (at, in_layer) != (site, layer):
                return array
            here = next(tokens) if site == "ssm_state" else slice(0, LENGTHS[text])
            array = array.copy()
            match mode:
                case "zero":
                    array[..., units] = 0
                case "mean":
                    array[..., units] = average[units]
                case "noise":
                    array[..., units] += drawn[text][here]
                case "scale":
                    array[..., units] *= FACTOR
                case "replace":
                    array[..., units] = value
                case "add":
                    array[..., units] += value
            return array

        return visit

    return change


def test_an_edit_leaves_what_comes_before_it_as_it_was_to_the_bit(case):
    """One program: an edit at every site, of which one adds something."""

    def run(chosen=None):
        edits = [add(site, 1, [0], 3.0 if site == chosen else 0.0) for site in case.sites]
        return case.run(*edits).captured

    before, sites = run(), list(case.sites)
    for place, site in enumerate(sites):
        after = run(site)
        for other in sites:
            np.testing.assert_array_equal(after[other][0], before[other][0])
        for other in sites[:place]:
            np.testing.assert_array_equal(after[other][1], before[other][1])
        assert not np.array_equal(after[site][1], before[site][1])
        assert not np.array_equal(after["block_out"][2], before["block_out"][2])


def recurrent_and_not(case: Case) -> list[str]:
    return ["block_out", "ssm_state"] if "ssm_state" in case.sites else ["block_out"]


def test_edits_of_one_site_act_in_the_order_given(case):
    for site in recurrent_and_not(case):
        logits = case.run(scale(site, 1, [0], 3.0), add(site, 1, [0], 2.0)).logits

        def change(text, site=site):
            def visit(at, layer, value):
                if (at, layer) == (site, 1):
                    value = value.copy()
                    value[..., 0] = 3 * value[..., 0] + 2
                return value

            return visit

        for text, length in enumerate(LENGTHS):
            assert_close(logits[text, :length], case.plain(text, change(text)), 1e-11)


def test_edits_of_different_units_commute_and_a_repeated_unit_counts_once(case):
    for site in recurrent_and_not(case):
        together = case.run(scale(site, 0, [0, 1], 0.5), scale(site, 0, [2, 2], 1.0))
        first, second = scale(site, 0, [0, 0], 0.5), scale(site, 0, [1, 1], 0.5)
        np.testing.assert_array_equal(case.run(first, second).logits, together.logits)
        np.testing.assert_array_equal(case.run(second, first).logits, together.logits)


def test_transforms_nest_and_commute():
    """A stand-in for the model returns the taps that reach it."""

    def forward(params, ids, lengths=None, taps=NO_TAPS):
        assert (params, ids, lengths) == ("params", "ids", "lengths")
        return Output(cast(Any, taps), {})

    def taps(transformed) -> Any:
        return transformed("params", "ids", "lengths").logits

    a, b = zero("block_out", 0, [1]), scale("block_out", 0, [1], 2.0)
    assert taps(perturb(forward, a)).edits == (a,)
    assert taps(perturb(forward, [])) == NO_TAPS
    for both in (
        perturb(perturb(forward, a), b),
        perturb(forward, [a, b]),
        perturb(forward, (edit for edit in (a, b))),
    ):
        for _ in range(2):  # a generator is not used up by the first call
            first, second = taps(both).edits
            assert first is a and second is b
    for nested in (
        capture(perturb(forward, a), ["B", "C"]),
        perturb(capture(forward, ("B", "C")), a),
        capture(perturb(capture(forward, "B"), a), ["C", "B"]),
    ):
        assert sorted(taps(nested).capture) == ["B", "C"]
        assert taps(nested).edits[0] is a
    assert taps(forward) == NO_TAPS


def test_capturing_changes_nothing_and_sees_what_the_edit_left(case):
    plain = case.run(capture=())
    assert plain.captured == {}
    assert_close(case.run().logits, plain.logits, 1e-14)
    edited = perturb(case.lm.forward, zero("mixer_out", 1, [2, 4]))
    captured = jax.jit(capture(edited, "mixer_out"))(case.params, case.ids).captured
    assert captured.keys() == {"mixer_out"}
    assert not captured["mixer_out"][1][..., jnp.array([2, 4])].any()
    assert captured["mixer_out"][::2].all()


def test_jit_vmap_and_grad_go_through(case):
    def logits(layer, value):
        edit = add("mixer_out", layer, [1, 3], value)
        return perturb(case.lm.forward, edit)(case.params, case.ids, case.lengths).logits

    jitted = jax.jit(logits)
    layers, value = jnp.arange(case.config.num_layers), jnp.array([0.5, -0.25])
    one_by_one = jnp.stack([jitted(layer, value) for layer in layers])
    assert_close(logits(1, value), one_by_one[1], 1e-13)
    assert_close(jax.jit(jax.vmap(logits, (0, None)))(layers, value), one_by_one, 1e-13)
    backward = jax.jit(jax.jacrev(logits, argnums=1))(1, value)
    forward = jax.jit(jax.jacfwd(logits, argnums=1))(1, value)
    step = 1e-5 * jnp.eye(2)
    numeric = jnp.stack([(jitted(1, value + s) - jitted(1, value - s)) / 2e-5 for s in step], axis=-1)
    assert_close(backward, forward, 1e-12)
    assert_close(forward, numeric, 1e-7)


def test_one_program_serves_every_layer_unit_and_value(case):
    count = case.forward._cache_size()
    for layer, unit, factor in [(0, 0, 0.5), (2, 3, 2.0), (1, 1, -1.0)]:
        case.run(scale("block_out", layer, [unit], factor), capture=())
    assert case.forward._cache_size() == count + 1


def test_a_state_held_at_zero_leaves_only_the_skip_connection(mamba):
    everything = range(mamba.sites["ssm_state"])
    output = mamba.run(zero("ssm_state", 1, everything))
    assert not output.captured["ssm_state"][1].any()
    without_skip = jax.tree.map(lambda a: a, mamba.params)
    kernel = without_skip["blocks"]["mixer"]["x_proj"]["kernel"]
    columns = jnp.arange(kernel.shape[2]) >= mamba.config.time_step_rank + mamba.config.state_size
    without_skip["blocks"]["mixer"]["x_proj"]["kernel"] = kernel.at[1].multiply(~columns)  # C = 0 in layer 1
    assert_close(output.logits, mamba.lm.forward(without_skip, mamba.ids).logits, 1e-12)


def test_an_edit_of_the_state_propagates(mamba):
    """An offset at the first token only is still in the state at the last."""
    offset = jnp.zeros((1, mamba.ids.shape[1], 1)).at[:, 0].set(10.0)
    edited = mamba.run(add("ssm_state", 0, [0], offset)).captured["ssm_state"][0, 0]
    moved = edited - mamba.run().captured["ssm_state"][0, 0]
    assert moved[0, 0] == pytest.approx(10)
    assert (jnp.abs(moved[1:, 0]) > 1e-6).all()
    assert not moved[:, 1:].any()


def test_noise_of_a_text_depends_on_its_key_alone(mamba):
    keys = jax.random.split(jax.random.key(5), 3)

    def edits(keys):
        return tuple(noise(site, 1, [0, 2], keys) for site in ("mixer_out", "ssm_state"))

    together = mamba.run(*edits(keys)).logits
    alone = mamba.forward(mamba.params, mamba.ids[1:2, : LENGTHS[1]], None, Taps(edits(keys[1:2]))).logits
    assert_close(alone[0], together[1, : LENGTHS[1]], 1e-12)


def test_noise_is_normal_and_fresh_for_every_text_token_and_unit(case):
    """Mean, variance and correlations of 300 x 100 x 5 draws, within 5 standard errors."""
    edit = noise("block_out", 0, range(5), jax.random.key(0), 3.0)
    values = jnp.ones((300, 100, 6))
    gain, offset = edit.affine(values, jnp.ones((300, 100), bool))
    draws = np.array(offset) / 3
    assert gain == 1 and draws.shape == (300, 100, 5)
    n = draws.size
    assert abs(draws.mean()) < 5 / n**0.5
    assert abs(draws.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((draws**4).mean() - 3) < 5 * (96 / n) ** 0.5
    for neighbours in (
        draws[1:] * draws[:-1],
        draws[:, 1:] * draws[:, :-1],
        draws[..., 1:] * draws[..., :-1],
    ):
        assert abs(neighbours.mean()) < 5 / neighbours.size**0.5


def test_without_lengths_every_token_counts(case):
    taps = Taps((mean("block_out", 2, [1]),), ("block_out",))
    captured = case.forward(case.params, case.ids, None, taps).captured["block_out"]
    values = case.run().captured["block_out"][2, 1, :, 1]
    assert_close(captured[2, 1, :, 1], jnp.full(len(values), values.mean()), 1e-12)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: zero("nowhere", 0, [0]), "no site 'nowhere'; it has .*block_out"),
        (lambda: zero("block_out", 3, [0]), "layer must be between 0 and 2 .* got 3"),
        (lambda: zero("block_out", -1, [0]), "layer must be between 0 and 2 .* got -1"),
        (lambda: zero("block_out", 0, [1, 6]), "units 0 to 5, got 6"),
        (lambda: zero("block_out", 0, [-1]), "units 0 to 5, got -1"),
    ],
)
def test_bad_edits_are_refused_in_one_line(name, edit, message):
    case = CASES.setdefault(name, Case(name))
    for wrap in (lambda f: f, jax.jit):
        with pytest.raises(ProbeError, match=message) as caught:
            wrap(perturb(case.lm.forward, edit()))(case.params, case.ids)
        assert "\n" not in str(caught.value)


def test_an_edit_made_within_jit_is_checked_too(case):
    run = jax.jit(lambda params, ids: perturb(case.lm.forward, zero("block_out", 1, [99]))(params, ids))
    with pytest.raises(ProbeError, match="got 99"):
        run(case.params, case.ids)


def test_layers_and_units_are_whole_numbers():
    with pytest.raises(ProbeError, match="units are indices, so whole numbers, got bool"):
        zero("block_out", 0, [True, False, True])
    with pytest.raises(ProbeError, match="units are indices, got 4294967297"):
        zero("block_out", 0, [1, 2**32 + 1])
    with pytest.raises(ProbeError, match="layer is a whole number, counted from 0, got True"):
        zero("block_out", True, [0])
    assert zero("block_out", 0, []).units.shape == (0,)


def test_what_is_not_finite_can_be_replaced(mamba):
    """Zero times infinity is no zero."""
    for site in ("block_out", "delta", "conv_out", "ssm_state"):
        broken, unit = scale(site, 1, [2], np.inf), [2]
        for mend in (zero(site, 1, unit), replace(site, 1, unit, 0.0)):
            assert_close(mamba.run(broken, mend).logits, mamba.run(zero(site, 1, unit)).logits, 1e-12)


def test_old_keys_of_noise_are_taken(case):
    old, new = (
        case.run(noise("block_out", 1, [0], make(3))) for make in (jax.random.PRNGKey, jax.random.key)
    )
    np.testing.assert_array_equal(old.logits, new.logits)


def test_ids_and_lengths_that_do_not_fit_are_refused(case):
    vocabulary = case.config.vocab_size
    for ids, got in (([[0, vocabulary]], vocabulary), ([[-1, 0]], -1)):
        with pytest.raises(ProbeError, match=f"ids are 0 to {vocabulary - 1}, got {got}"):
            case.lm.forward(case.params, jnp.array(ids))
    known = jnp.array([[-1, 0]])
    with pytest.raises(ProbeError, match="got -1"):
        jax.jit(lambda params: case.lm.forward(params, known).logits)(case.params)
    padding = jnp.where(jnp.arange(case.ids.shape[1]) < case.lengths[:, None], case.ids, -1)
    got, want = (case.lm.forward(case.params, ids, case.lengths).logits for ids in (padding, case.ids))
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(got[row, :length], want[row, :length])
    if limit := case.config.context_length:
        for wrap in (lambda f: f, jax.jit):
            with pytest.raises(ProbeError, match=f"context is {limit} tokens, got texts of {limit + 1}"):
                wrap(case.lm.forward)(case.params, jnp.zeros((1, limit + 1), jnp.int32))


def test_float64_that_would_be_float32_is_refused(case):
    with jax.enable_x64(False), pytest.raises(ProbeError, match="jax_enable_x64"):
        case.lm.place(case.plain_params, "double")


def test_bad_captures_and_backends_are_refused(mamba):
    gpt2 = CASES.setdefault("gpt2", Case("gpt2"))
    for case, site in ((mamba, "mlp_act"), (gpt2, "delta")):
        with pytest.raises(ProbeError, match=f"{case.config.architecture} model has no site '{site}'"):
            capture(case.lm.forward, site)(case.params, case.ids)
    associative = LanguageModel(mamba.config, ScanBackend.ASSOCIATIVE)
    edited = perturb(associative.forward, zero("ssm_state", 0, [0]))
    with pytest.raises(ProbeError, match="sequential"):
        edited(mamba.params, mamba.ids)
    captured = capture(associative.forward, "ssm_state")(mamba.params, mamba.ids)
    assert_close(captured.captured["ssm_state"], mamba.run().captured["ssm_state"], 1e-12)


def test_padding_reaches_no_real_token(case):
    taps = Taps((mean("block_out", 1, [0]),), tuple(case.sites))
    other = jnp.where(jnp.arange(case.ids.shape[1]) < case.lengths[:, None], case.ids, 7)
    ours, theirs = (case.forward(case.params, ids, case.lengths, taps) for ids in (case.ids, other))
    for text, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(ours.logits[text, :length], theirs.logits[text, :length])


def test_float32_in_float32_out():
    """With float64 enabled or not, nothing is widened on the way."""
    for config in TINY.values():
        lm = LanguageModel(config)
        params = lm.place(random_params(config), "float32")
        ids = jnp.ones((1, 3), jnp.int32)
        edits = [
            scale("block_out", 0, [0], 0.5),
            noise("mixer_out", 1, [0], jax.random.key(0)),
        ]
        edits += [] if isinstance(config, GPT2Config) else [zero("ssm_state", 0, [0])]
        transformed = capture(perturb(lm.forward, edits), site_widths(config))
        output = jax.eval_shape(transformed, params, ids)
        assert {leaf.dtype for leaf in jax.tree.leaves(output)} == {jnp.dtype("float32")}
