"""`python -m jaxprobe.jacobian` from flags to files: what is written, resumed, skipped and refused."""

import csv
import importlib
import json
import shutil
import threading

import checkpoints
import numpy as np
import pytest
from support import TINY

from jaxprobe import cli, provenance, work
from jaxprobe.claim import claim
from jaxprobe.flags import jacobian as jacobian_flags
from jaxprobe.jacobians import run as jacobian_run
from jaxprobe.store import Store

# The package shows functions of these names.
jacobian = importlib.import_module("jaxprobe.jacobian")
sensitivity = importlib.import_module("jaxprobe.jacobians.sensitivity")

TEXTS = ["w1 w2 w3", "w4 w5 w6 w7 w8", "w9 w10 w1 w2"]
RESULTS = "gradient_amplification_results_all_layers"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return {name: checkpoints.write(folder / name, config) for name, config in TINY.items()}


@pytest.fixture
def run(pair, tmp_path, capfd, undrawn):
    """Runs the command on the tiny pair: (exit code, stdout, stderr lines); results go to tmp_path/out."""

    def call(*arguments, texts=TEXTS, **sources):
        paths = {**pair, **sources}
        argv = [
            "program",
            *(f"--{name}={path}" for name, path in paths.items()),
            *(f"--text={t}" for t in texts),
        ]
        argv += [
            f"--out={tmp_path / 'out'}",
            "--compile_cache=off",
            "--num_samples=3",
            "--device=cpu",
            *arguments,
        ]
        code = cli.run(jacobian.run, jacobian_flags, jacobian.__doc__, argv)
        out, err = capfd.readouterr()
        return code, out, err.splitlines()

    return call


def results(tmp_path):
    return json.loads((tmp_path / "out" / f"{RESULTS}.json").read_text(encoding="utf-8"))


@pytest.mark.drawn
def test_files_hold_every_number_once(run, tmp_path):
    code, out, err = run("--path")
    assert code == 0 and all(line.endswith(" s left") for line in err)  # nothing but progress
    written = results(tmp_path)
    assert written["texts"] == TEXTS
    assert (written["mamba_num_layers"], written["gpt2_num_layers"]) == (3, 3)
    for name in TINY:
        assert list(written[name]) == ["0", "1", "2"]
        for layer in written[name].values():
            for wrt in ("last", "sequence"):
                exact = {name: values for name, values in layer["exact"][wrt].items() if values is not None}
                assert {len(values) for values in exact.values()} == {3}
                assert layer["local_lipschitz"][wrt] == max(exact["sigma1"])
                assert [values[0] for values in exact["sigma"]] == exact["sigma1"]
                assert max(exact["spectrum_error"]) < 1e-5
            assert layer["exact"]["last"].keys() - exact.keys() == set()
            drawn = layer["finite_difference"]
            assert {len(values) for values in drawn.values()} == {3}
            assert layer["gradient_sensitivity"]["mean"] == pytest.approx(np.mean(drawn["sampled_mean"]))
            assert layer["gradient_sensitivity"]["std"] == pytest.approx(np.std(drawn["sampled_mean"]))
            assert layer["output_variance"] == written["output_variance"][name]
            assert layer["lipschitz"]["max"] >= layer["lipschitz"]["mean"] > 0
            path = layer["path_lipschitz"]
            assert len(path["sigma1_found"]) == 2 and path["max"] == max(path["sigma1_found"])
            assert layer["lipschitz_numbers"] == {
                "secant": layer["lipschitz"]["max"],
                "local": layer["local_lipschitz"]["last"],
                "path": path["max"],
            }
            expected, linear = np.array(drawn["expected_mean"]), np.array(drawn["linear_mean"])
            error = np.linalg.norm(drawn["sampled_stderr"]) / 3
            assert layer["verdict"]["monte_carlo"] == pytest.approx((linear - expected).mean() / error)
            assert layer["verdict"]["curvature"] == pytest.approx(np.mean(drawn["curvature"]) / error)
            assert layer["verdict"]["words"] in out
    manifest = written["manifest"]
    assert manifest["dtype"] == "float32" and manifest["matmul_precision"] == "highest"
    assert {len(certificate["sha256"]) for certificate in manifest["checkpoints"].values()} == {64}
    assert manifest["truncated_texts"] == {"mamba": 0, "gpt2": 0}
    assert manifest["plan"]["gpt2"]["layers"] == [0, 1, 2]
    assert str(tmp_path.parent) not in json.dumps(manifest)  # where it ran is in the log
    log = json.loads((tmp_path / "out" / "jacobian_run.log").read_text(encoding="utf-8"))
    assert log["config"]["out"] == str(tmp_path / "out") and log["seconds"] > 0

    rows = list(csv.DictReader((tmp_path / "out" / f"{RESULTS}.csv").open(encoding="utf-8")))
    keys = [tuple(row[column] for column in ("model", "layer", "text", "quantity")) for row in rows]
    assert len(set(keys)) == len(keys)
    table = dict(zip(keys, (float(row["value"]) for row in rows), strict=True))
    assert table["gpt2", "2", "1", "exact_last_sigma1"] == written["gpt2"]["2"]["exact"]["last"]["sigma1"][1]
    assert table["mamba", "", "", "output_variance"] == written["output_variance"]["mamba"]
    with np.load(tmp_path / "out" / "jacobian_spectra.npz") as arrays:
        spectra = dict(arrays)
    for name in TINY:
        assert spectra[f"{name}/layers"].tolist() == [0, 1, 2]
        blocks = spectra[f"{name}/sequence/position_norms"]
        assert (~np.isnan(blocks[0])).sum(axis=1).tolist() == [3, 5, 4]
        for wrt in ("last", "sequence"):
            values = spectra[f"{name}/{wrt}/singular_values"]
            assert values.shape == (3, 3, 6)
            exact = written[name]["1"]["exact"][wrt]
            assert values[1].tolist() == exact["sigma"]  # six there are, fewer than ten
            np.testing.assert_allclose(np.linalg.norm(values[1], axis=1), exact["frobenius"], rtol=1e-5)
        np.testing.assert_allclose(np.sqrt(np.nansum(blocks[1] ** 2, axis=1)), exact["frobenius"], rtol=1e-12)
        found = spectra[f"{name}/path/sigma1"][2].max(axis=1)
        assert found.tolist() == written[name]["2"]["path_lipschitz"]["sigma1_found"]
    for picture in ("sensitivity_profiles", "exact_versus_finite_difference", "token_layer_maps"):
        for suffix, start in {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}.items():
            assert (tmp_path / "out" / "images" / f"{picture}.{suffix}").read_bytes().startswith(start)
    assert not (tmp_path / "out" / ".partial").exists()
    assert "Mamba: 3 layers" in out and "Ratio Mamba / GPT-2" in out and "Answer: " in out


def test_what_was_not_asked_for_is_null(run, tmp_path):
    stale = tmp_path / "out" / "images" / "exact_versus_finite_difference.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert run("--wrt=last", "--layer=1")[0] == 0
    layer = results(tmp_path)["mamba"]["1"]
    assert layer["exact"]["sequence"] is None and layer["exact"]["last"]["participation"] is None
    assert layer["path_lipschitz"] is layer["lipschitz_numbers"]["path"] is None
    assert layer["verdict"]["monte_carlo"] is layer["verdict"]["curvature"] is None
    assert "the whole sequence was not computed" in layer["verdict"]["words"]
    assert results(tmp_path)["epsilon_sweep"] is None
    missing = {name for name, value in layer["finite_difference"].items() if value is None}
    assert missing == {
        "expected_mean", "rms", "sampled_stderr", "linear_mean", "curvature", "jacobian_error"
    }  # fmt: skip
    assert not stale.exists()


def test_another_metric_is_not_compared_with_differences_of_logits(run, tmp_path):
    code, out, _ = run("--wrt=sequence", "--layer=1", "--metric=fisher", "--spectra=gram")
    assert code == 0 and "not compared: finite differences are of the logits" in out
    assert "output metric fisher" in out and "gain seq" not in out
    written = results(tmp_path)
    assert written["metric"] == written["manifest"]["plan"]["mamba"]["metric"] == "fisher"
    assert written["manifest"]["plan"]["mamba"]["reduction"] == "gram"
    layer = written["mamba"]["1"]
    assert layer["finite_difference"]["expected_mean"] is layer["exact"]["sequence"]["relative_gain"] is None
    assert layer["finite_difference"]["sampled_mean"] is not None
    assert {path.stem for path in (tmp_path / "out" / "images").iterdir()} == {
        "sensitivity_profiles",
        "token_layer_maps",
    }


def test_one_text_has_no_neighbour_and_no_secant(run, tmp_path):
    assert run("--layer=0", "--path", texts=TEXTS[:1])[0] == 0
    layer = results(tmp_path)["gpt2"]["0"]
    assert layer["lipschitz"] == {"max": None, "mean": None}
    assert layer["path_lipschitz"] is layer["lipschitz_numbers"]["secant"] is None


def test_long_texts_are_cut_at_the_context_and_counted(run, tmp_path):
    code, out, _ = run("--layer=2", "--wrt=last", texts=["w1 " * 200, "w2 " * 16])
    assert code == 0 and "1 truncated" in out
    assert results(tmp_path)["manifest"]["truncated_texts"] == {"mamba": 1, "gpt2": 1}  # at 128, and at 16


def test_a_layer_beyond_one_model_skips_it(run, tmp_path, pair):
    deeper = checkpoints.write(
        tmp_path / "deeper", TINY["mamba"].__class__(**{**vars(TINY["mamba"]), "num_layers": 5})
    )
    code, out, _ = run("--layer=4", "--wrt=last", mamba=deeper)
    assert code == 0 and "GPT-2 is skipped: --layer=4, but its layers are 0 to 2" in out
    written = results(tmp_path)
    assert written["gpt2"] == {} and list(written["mamba"]) == ["4"]
    assert written["output_variance"]["gpt2"] is None


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


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_shapes_programs_are_compiled_once_in_a_thread(run, monkeypatch):
    threads, compile_exact = [], sensitivity._compile_exact

    def told(*given):
        threads.append(threading.current_thread())
        compile_exact(*given)

    monkeypatch.setattr(sensitivity, "_compile_exact", told)
    assert run()[0] == 0
    assert len(threads) == 2 and threading.main_thread() not in threads  # both models' texts go together


def test_preparing_early_changes_nothing_and_leaves_out_what_is_kept(run, tmp_path, monkeypatch):
    """As on a GPU; the second run finds Mamba's parts done."""
    assert run()[0] == 0
    expected = results(tmp_path)
    prepared, early = [], lambda early: work.prepared_in_threads(True)
    monkeypatch.setattr(jacobian_run, "prepared_in_threads", early)
    compile_exact = sensitivity._compile_exact
    monkeypatch.setattr(
        sensitivity, "_compile_exact", lambda lm, *given: prepared.append(lm) or compile_exact(lm, *given)
    )
    with monkeypatch.context() as patch:
        counting(patch, stop=4)  # Mamba's exact part and draws of three layers
        assert run()[0] == 130
    prepared.clear()
    assert run()[0] == 0 and results(tmp_path) == expected
    assert [lm.config.architecture for lm in prepared] == ["gpt2"]


def test_an_interrupted_run_resumes_to_the_same_files(run, tmp_path, monkeypatch):
    asked = ("--wrt=sequence", "--layer=1", "--path", "--epsilon_sweep")
    with monkeypatch.context() as patch:
        parts = counting(patch)
        assert run(*asked)[0] == 0
    expected = files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    stop = parts.index("GPT-2, paths-path-1-0")
    with monkeypatch.context() as patch:
        counting(patch, stop)
        code, _, err = run(*asked)
    assert (code, err) == (130, ["error: interrupted"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".partial"}
    with monkeypatch.context() as patch:
        missing = counting(patch)
        code, out, _ = run(*asked)
    assert code == 0 and missing == parts[stop:]
    assert "Mamba: resumes an interrupted run" in out and "GPT-2: resumes an interrupted run" in out
    found = files(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} == {"jacobian_run.log"}
    written = results(tmp_path)
    with np.load(tmp_path / "out" / "jacobian_spectra.npz") as arrays:
        spectra = dict(arrays)
    for name in TINY:
        sweep, layer = written["epsilon_sweep"][name], written[name]["1"]["finite_difference"]
        drawn = spectra[f"{name}/epsilon_sweep/float64"]
        assert sweep["layer"] == 1 and drawn.shape == (len(sweep["epsilons"]), 3, 3)
        assert sweep["sampled"]["float64"] == pytest.approx(drawn.mean(axis=(1, 2)))
        # The same draws, held against the same spectrum.
        first_order = spectra[f"{name}/epsilon_sweep/first_order"].mean(axis=0)
        np.testing.assert_allclose(first_order, layer["linear_mean"], rtol=1e-4)
        assert sweep["exact_mean"] == pytest.approx(np.mean(layer["expected_mean"]))
    assert (tmp_path / "out" / "images" / "epsilon_sweep.png").is_file()


def test_an_unfinished_run_is_not_mixed_with_another(run, tmp_path, pair, monkeypatch):
    with monkeypatch.context() as patch:
        counting(patch, 1)
        assert run("--layer=2", "--wrt=last")[0] == 130
    before = files(tmp_path / "out")

    def refused_with(message, *arguments, **given):
        code, _, (line,) = run("--layer=2", "--wrt=last", *arguments, **given)
        assert code == 2 and message in line
        assert f"{tmp_path / 'out' / '.partial' / 'jacobian'} holds an unfinished run with " in line

    refused_with("--epsilon=0.01, but this run has --epsilon=0.02", "--epsilon=0.02")
    other = checkpoints.write(tmp_path / "other" / "gpt2", TINY["gpt2"], seed=1)
    refused_with("checkpoints.gpt2.sha256=", gpt2=other)
    refused_with("texts.2='w9 w10 w1 w2', but this run has texts.2='w9 w10 w1 w3'",
                 texts=[*TEXTS[:2], "w9 w10 w1 w3"])  # fmt: skip
    with monkeypatch.context() as patch:
        versions = provenance.versions() | {"jax": "0.99"}
        patch.setattr("jaxprobe.provenance.versions", lambda: versions)
        refused_with("but this run has versions.jax='0.99'")
    assert files(tmp_path / "out") == before
    moved = checkpoints.write(tmp_path / "moved" / "gpt2", TINY["gpt2"])  # the same weights
    code, out, _ = run("--layer=2", "--wrt=last", gpt2=moved)
    assert code == 0 and "Mamba: resumes an interrupted run, 1 of " in out


def test_a_second_run_into_a_folder_is_refused_before_it_loads_a_model(run, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxprobe.loading.open_model", lambda *_: pytest.fail("a model is loaded"))
    with claim(tmp_path / "out"):
        code, _, (line,) = run()
        assert code == 2 and "another run (process " in line and f"--out={tmp_path / 'out'}: wait" in line
    assert not (tmp_path / "out").exists()


BROKEN = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "truncated": lambda folder: truncate(folder / "model.safetensors"),
    "nan": lambda folder: checkpoints.edit_tensors(
        folder, lambda t: {k: v * np.float32("nan") for k, v in t.items()}
    ),
    "misshaped": lambda folder: checkpoints.edit_tensors(folder, lambda t: {k: v[:1] for k, v in t.items()}),
    "pickle": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "unknown architecture": lambda folder: checkpoints.edit_config(folder, model_type="rwkv"),
    "the other architecture": lambda folder: None,
    "few words": lambda folder: checkpoints.write_tokenizer(folder, 99),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
}


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("fault, message", [
    ("no config", "has no config.json"),
    ("truncated", "model.safetensors"),
    ("nan", "NaN"),
    ("misshaped", "shape"),
    ("pickle", "pytorch_model.bin"),
    ("unknown architecture", "rwkv"),
    ("the other architecture", "must be a Mamba checkpoint"),
    ("few words", "vocab"),
    ("no tokenizer", "tokenizer"),
])  # fmt: skip
def test_a_bad_checkpoint_is_one_line_and_leaves_nothing(run, tmp_path, fault, message):
    architecture = "gpt2" if fault == "the other architecture" else "mamba"
    folder = checkpoints.write(tmp_path / "broken", TINY[architecture])
    BROKEN[fault](folder)
    refused(run(mamba=folder), message, tmp_path)


def test_norms_alone_leave_out_what_needs_the_spectrum(run, tmp_path):
    assert run()[0] == 0
    whole = results(tmp_path)
    code, out, _ = run("--spectra=none")
    assert code == 0 and "without its spectrum the exact expectation is not known" in out
    assert "s1 seq" not in out and "s1 last" in out
    norms = results(tmp_path)
    for name in TINY:
        for number, layer in norms[name].items():
            exact, full = layer["exact"], whole[name][number]["exact"]
            assert exact["sequence"]["sigma1"] is None and exact["sequence"]["sigma"] is None
            assert exact["sequence"]["frobenius"] == pytest.approx(full["sequence"]["frobenius"], rel=1e-5)
            gain = pytest.approx(full["sequence"]["relative_gain"], rel=1e-4)
            assert exact["sequence"]["relative_gain"] == gain
            assert exact["last"]["sigma1"] == pytest.approx(full["last"]["sigma1"], rel=1e-5)
            assert layer["finite_difference"]["expected_mean"] is None
    assert not (tmp_path / "out" / "images" / "exact_versus_finite_difference.png").exists()


def test_another_site_moves_alone(run, tmp_path):
    """Adding to mixer_out is adding to block_out; what is not of the site stays away."""
    assert run()[0] == 0
    stream = results(tmp_path)
    code, out, _ = run("--site=mixer_out")
    assert code == 0 and "per unit that mixer_out of a layer moves" in out and "FD sens" not in out
    mixer = results(tmp_path)
    assert mixer["site"] == "mixer_out"
    for number, layer in mixer["mamba"].items():
        for wrt, exact in layer["exact"].items():
            assert exact["frobenius"] == pytest.approx(
                stream["mamba"][number]["exact"][wrt]["frobenius"], rel=1e-5
            )
        assert layer["finite_difference"] is None and layer["gradient_sensitivity"]["mean"] is None
        assert layer["verdict"]["words"] == "not compared: finite differences are of block_out"
    assert mixer["gpt2"]["0"]["exact"]["last"]["frobenius"] != pytest.approx(
        stream["gpt2"]["0"]["exact"]["last"]["frobenius"], rel=1e-3
    )  # there the MLP reads it too
    code, out, _ = run("--site=delta", "--wrt=last")
    assert code == 0 and "GPT-2 is skipped: --site=delta, but it has mixer_out, mlp_act" in out
    assert results(tmp_path)["gpt2"] == {}


@pytest.mark.parametrize("arguments, texts, message", [
    (
        ["--layer=3"], TEXTS,
        "Mamba is asked for --layer=3, but its layers are 0 to 2; GPT-2 is asked for --layer=3, but its "
        "layers are 0 to 2",
    ),
    (["--site=Delta"], TEXTS, "GPT-2 is asked for --site=Delta, but it has mixer_out, mlp_act, mlp_out"),
    (["--site=delta", "--path"], TEXTS, "--path needs --site=block_out, got --site=delta"),
    (["--spectra=none", "--epsilon_sweep"], TEXTS, "--epsilon_sweep needs singular values"),
    (["--layer=-1"], TEXTS, "--layer must be an integer >= 0"),
    (["--layer=one"], TEXTS, "--layer must be an integer"),
    (["--num_texts=4"], TEXTS, "hold only 3 texts"),
    (["--num_texts=99"], [], "the relation sentences hold only 45 texts"),
    (["--texts=/nowhere.txt"], [], "/nowhere.txt: cannot be read"),
    ([], ["w1 w2", ""], "text 2 of 2 ('') is empty"),
    ([], ["w1 w2", "w3"], "text 2 of 2 ('w3') is 1 token long"),
    (["--add_bos"], TEXTS, "names no beginning-of-text token"),
    (["--device=gpu"], TEXTS, "JAX finds no GPU"),
    (["--metric=nats"], TEXTS, "--metric"),
    (["--metric=fisher", "--path"], TEXTS, "--path needs --metric=logits or centred"),
    (["--wrt=last", "--epsilon_sweep"], TEXTS, "--epsilon_sweep needs --wrt=sequence or both"),
    (["--metric=centred", "--epsilon_sweep"], TEXTS, "got --wrt=both --metric=centred"),
    (["--mystery"], TEXTS, "mystery"),
    (["stray"], TEXTS, "stray"),
    (["--out=/dev/null/results"], TEXTS, "--out=/dev/null/results"),
])  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, arguments, texts, message):
    if "--device=gpu" in arguments:
        import jax

        if jax.default_backend() == "gpu":
            pytest.skip("there is a GPU")
    refused(run(*arguments, texts=texts), message, tmp_path)


def refused(outcome, message, tmp_path):
    code, _, err = outcome
    assert code == 2
    (line,) = err
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()
