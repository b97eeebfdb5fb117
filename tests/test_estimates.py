"""`python -m jaxprobe.jacobian --method=matrix_free` on tiny models, against brute-force Jacobians."""

import csv
import dataclasses
import functools
import importlib
import json

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, padded
from test_tables import without_jacobian

from jaxprobe import cli
from jaxprobe.figures import render
from jaxprobe.flags import jacobian as jacobian_flags
from jaxprobe.jacobians.estimate_plots import estimate_profiles
from jaxprobe.jacobians.estimate_tables import estimate_report
from jaxprobe.jacobians.estimates import EstimatedNorms, ModelEstimates, summarise, work_units
from jaxprobe.jacobians.planning import Plan
from jaxprobe.jacobians.readout import logits_from
from jaxprobe.library import load
from jaxprobe.perturb import capture
from jaxprobe.run_configs import Effort, JacobianRun
from jaxprobe.store import Store

jacobian = importlib.import_module("jaxprobe.jacobian")  # the package shows a function of this name

RESULTS = "gradient_amplification_results_all_layers"
WIDTH, VOCABULARY = 40, 50  # wide enough that 30 products leave a remainder for the probes
TEXTS = [" ".join(f"w{(7 * i * i + 3 * i * k + 1) % 49 + 1}" for k in range(2 + i % 5)) for i in range(10)]
FEW = ("--method=matrix_free", "--num_products=30", "--num_samples=2")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    wider = {"hidden_size": WIDTH, "vocab_size": VOCABULARY}
    return {
        name: checkpoints.write(folder / name, dataclasses.replace(config, **wider))
        for name, config in TINY.items()
    }


def call(pair, out, *arguments) -> int:
    """The exit code; results go to `out`."""
    given = [f"--{name}={path}" for name, path in pair.items()] + [f"--text={text}" for text in TEXTS]
    argv = ["program", *given, f"--out={out}", "--compile_cache=off", "--device=cpu", *arguments]
    return cli.run(jacobian.run, jacobian_flags, jacobian.__doc__, argv)


def results(out) -> dict:
    return json.loads((out / f"{RESULTS}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(pair, tmp_path_factory):
    """The folder of one run with all layers and both inputs."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert call(pair, out, *FEW, "--num_singular_values=2") == 0
    return out


@pytest.fixture(scope="module")
def brute_force(pair):
    """By model: the Jacobians of the logits [l b v t d], logits [b v] and lengths [b]."""
    found = {}
    for name, folder in pair.items():
        model = load(str(folder))
        ids, lengths = padded([np.array(model.tokenizer.encode(text), np.int32) for text in TEXTS])
        logits, captured = capture(model.lm.forward, "block_out")(model.params, ids)

        def outputs(h, states, layer, length, model=model):
            return logits_from(model.lm, model.params, layer, states + h[None], length[None])[0]

        each = jax.vmap(jax.jacfwd(outputs), (None, 0, None, 0))
        every = jax.jit(jax.vmap(each, (None, 0, 0, None)))
        zero = jnp.zeros((ids.shape[1], WIDTH))
        hidden = captured["block_out"]
        jacobians = every(zero, hidden[:, :, None], jnp.arange(len(hidden)), lengths)
        last = np.asarray(logits)[np.arange(len(TEXTS)), lengths - 1]
        found[name] = np.asarray(jacobians, np.float64), last.astype(np.float64), np.asarray(lengths)
    return found


def norms(J, lengths, wrt):
    """Frobenius norm and singular values of each text's Jacobian [b v t d]."""
    flat = (lambda j, n: j[:, n - 1]) if wrt == "last" else (lambda j, n: j.reshape(len(j), -1))
    rows = np.stack([flat(j, n) for j, n in zip(J, lengths, strict=True)])
    return np.linalg.norm(rows, axis=(1, 2)), np.linalg.svd(rows, compute_uv=False)


def test_intervals_hold_the_exact_norms_and_singular_values_are_found(written, brute_force):
    inside = []
    for name, (J, _, lengths) in brute_force.items():
        for layer, of_layer in results(written)[name].items():
            for wrt, found in of_layer["estimate"].items():
                frobenius, sigma = norms(J[int(layer)], lengths, wrt)
                low, high = np.array(found["frobenius_low"]), np.array(found["frobenius_high"])
                inside.append((low <= frobenius) & (frobenius <= high))
                assert ((high - low) / frobenius).max() < 0.2 and (low < found["frobenius"]).all()
                np.testing.assert_allclose(found["sigma1"], sigma[:, 0], rtol=1e-4)
                apart = np.abs(np.array(found["singular_values"]) - sigma[:, :2])
                assert (apart <= np.array(found["residuals"]) + 1e-5 * sigma[:, :1]).all()
                assert np.min(found["residuals"]) > 0  # what rounding hides is not called nothing
                assert found["sigma1_residual"] == [row[0] for row in found["residuals"]]
                assert found["products"] == 30 + 20
    assert 0.9 <= np.mean(inside) < 1, f"{np.mean(inside):.1%} of {np.size(inside)} intervals"


def test_no_estimate_under_an_exact_name(written):
    exact_only = {"expected_mean", "rms", "sampled_stderr"}
    found = results(written)
    for name in TINY:
        for layer in found[name].values():
            assert layer["exact"] is None
            assert layer["local_lipschitz"] == {"last": None, "sequence": None}
            drawn = layer["finite_difference"]
            assert {drawn[key] for key in exact_only} == {None}
            assert layer["gradient_sensitivity"]["mean"] == pytest.approx(np.mean(drawn["sampled_mean"]))
            assert layer["lipschitz"]["max"] >= layer["lipschitz"]["mean"] > 0
            assert layer["effective_rank"] > 1 and layer["output_variance"] > 0
    config = found["manifest"]["config"]
    assert config["method"] == "matrix_free" and config["effort"]["num_products"] == 30
    rows = list(csv.DictReader((written / f"{RESULTS}.csv").open(encoding="utf-8")))
    keys = [(row["model"], row["layer"], row["text"], row["quantity"]) for row in rows]
    assert len(set(keys)) == len(keys) and not any("exact" in row["quantity"] for row in rows)
    table = dict(zip(keys, (row["value"] for row in rows), strict=True))
    expected = found["gpt2"]["1"]["estimate"]["sequence"]
    for quantity, value in {
        "frobenius_high": expected["frobenius_high"][3],
        "sigma2": expected["singular_values"][3][1],
        "sigma2_residual": expected["residuals"][3][1],
        "products": expected["products"],
    }.items():
        assert float(table["gpt2", "1", "3", f"estimate_sequence_{quantity}"]) == value
    files = {path.name for path in written.iterdir() if path.is_file()}
    assert files == {f"{RESULTS}.json", f"{RESULTS}.csv", "jacobian_run.log", "jacobian_report.html"}
    pictures = {path.stem for path in (written / "images").iterdir()}
    assert pictures == {"sensitivity_profiles", "estimate_profiles"}


@pytest.mark.parametrize("metric", ["centred", "fisher"])
def test_another_metric_of_the_output(pair, brute_force, metric):
    model, (J, logits, lengths) = load(str(pair["gpt2"])), brute_force["gpt2"]
    ids = [model.tokenizer.encode(text) for text in TEXTS]
    plan = Plan(layers=(1,), wrt=("last",), metric=metric, num_samples=2)
    units = work_units(model.lm, model.params, ids, plan, Effort(num_singular_values=2, num_products=30))
    found = summarise(model.lm.config, ids, plan, {unit.name: unit.compute() for unit in units})
    assert found.sensitivity.layers[0].exact == {}
    p = np.asarray(jax.nn.softmax(logits, axis=1), np.float64)
    if metric == "centred":
        J = J[1] - J[1].mean(axis=1, keepdims=True)
    else:
        J = np.sqrt(p)[..., None, None] * (J[1] - np.einsum("bv,bvtd->btd", p, J[1])[:, None])
    frobenius, sigma = norms(J, lengths, "last")
    made = found.estimates[0]["last"]
    np.testing.assert_allclose(made.singular_values[:, 0], sigma[:, 0], rtol=1e-4)
    assert np.mean((made.frobenius_low <= frobenius) & (frobenius <= made.frobenius_high)) >= 0.8


def counting(patch, stop=None):
    """The names of the parts that are kept from now on; instead of part `stop` comes a Ctrl-C."""
    put, kept = Store.put, []

    def counted(store, name, arrays):
        if len(kept) == stop:
            raise KeyboardInterrupt
        kept.append(name)
        return put(store, name, arrays)

    patch.setattr(Store, "put", counted)
    return kept


def test_an_interrupted_run_resumes_to_the_same_results(pair, written, tmp_path, monkeypatch, capfd):
    run = functools.partial(call, pair, tmp_path / "out", *FEW, "--num_singular_values=2")
    with monkeypatch.context() as patch:
        kept = counting(patch, 7)
        assert run() == 130
    assert kept[-1].startswith("Mamba-estimate-")
    with monkeypatch.context() as patch:
        rest = counting(patch)
        assert call(pair, tmp_path / "out", *FEW, "--num_singular_values=1") == 2
        assert "--num_singular_values=2, but this run has --num_singular_values=1" in capfd.readouterr().err
        assert run() == 0
    assert not set(kept) & set(rest) and "Mamba: resumes an interrupted run" in capfd.readouterr().out
    found, expected = results(tmp_path / "out"), results(written)
    assert {**found, "manifest": None} == {**expected, "manifest": None}
    csv_files = [folder / f"{RESULTS}.csv" for folder in (tmp_path / "out", written)]
    assert csv_files[0].read_bytes() == csv_files[1].read_bytes()


@pytest.mark.parametrize("arguments, message", [
    (["--num_products=60"], "--num_products=60 needs --method=matrix_free"),
    (["--method=exact", "--num_probes=30"], "--num_probes=30 needs --method=matrix_free"),
    (["--num_singular_values=1"], "--num_singular_values=1 needs --method=matrix_free"),
    (["--method=sampled"], "method"),
    ([*FEW, "--num_probes=19"], "--num_probes must be an integer >= 20, got 19"),
    ([*FEW, "--num_products=3"], "--num_products must be an integer >= 4, got 3"),
    ([*FEW, "--num_singular_values=0"], "--num_singular_values must be an integer >= 1, got 0"),
    ([*FEW, "--num_singular_values=16"], "--num_products must be at least 2 for each of --num_singular_val"),
    ([*FEW, "--num_products=90", "--num_singular_values=41"], "at most 40, the output directions of Mamba"),
    ([*FEW, "--spectra=qr"], "--spectra needs --method=exact"),
    ([*FEW, "--epsilon_sweep"], "--epsilon_sweep needs --method=exact"),
    ([*FEW, "--memory_gb=4"], "--memory_gb needs --method=exact"),
    ([*FEW, "--path"], "--path needs --method=exact"),
])  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(pair, tmp_path, capfd, arguments, message):
    assert call(pair, tmp_path / "out", *arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_a_run_by_hand_is_checked_too():
    assert JacobianRun(method="matrix_free").effort is None  # its defaults
    with pytest.raises(Exception, match="needs --method=matrix_free"):
        JacobianRun(effort=Effort())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "size, said", [(0.0, "a model's sensitivity is zero"), (np.nan, "not finite at Mamba 0")]
)
def test_a_jacobian_without_size_is_told_and_drawn(size, said):
    one = np.full(4, size)
    norms = EstimatedNorms(one, one, one, one[:, None], one[:, None], 40)
    model = without_jacobian(size)
    layers = tuple(dataclasses.replace(layer, exact={}) for layer in model.layers)
    models = dict.fromkeys(
        TINY, ModelEstimates(dataclasses.replace(model, layers=layers), ({"last": norms},))
    )
    shown = estimate_report(models, "logits")
    assert said in shown and "nan" not in shown.split() and ("-: no value" in shown) == bool(np.isnan(size))
    figure = estimate_profiles(models, 4, "logits")
    render(figure)
    empty = [bool(axes.texts) for axes in figure.axes]
    assert empty == [bool(np.isnan(size))] * 2
