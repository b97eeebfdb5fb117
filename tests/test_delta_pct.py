"""`python -m jaxprobe.delta_pct` from flags to files: what is written, resumed, skipped and refused."""

import csv
import importlib
import json

import checkpoints
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import TINY

from jaxprobe import cli, store
from jaxprobe.flags import delta_pct as flags
from jaxprobe.original import study as delta_study

delta_pct = importlib.import_module("jaxprobe.delta_pct")

RESULTS = "delta_percentage_analysis_results"
RELATIONS = [
    {"relation": "P1", "label": "one", "facts": [
        {"text": "w1 w2 w3", "object": "w3"}, {"text": "w4 w5 w6 w7 w8", "object": "w8"},
        {"text": "w2 w2 w9", "object": "w9"},
    ]},
    {"relation": "P2", "label": "two", "facts": [
        {"text": "w9 w10 w1 w2", "object": "w2"}, {"text": "w3 w1 w7 w5", "object": "w7 w5"},
        {"text": "w6 w2 w8", "object": "w8"},
    ]},
]  # fmt: skip
ENDS = ("delta_nats_per_token", "percentage_change", "absolute_change", "baseline_ppl")
CONTROLS = "w5 w6 w7 w8 w9\nw1 w1 w2 w4 w3 w2\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return {name: checkpoints.write(folder / name, config) for name, config in TINY.items()}


@pytest.fixture
def run(pair, tmp_path, capfd, undrawn):
    """Runs the command on the tiny pair: (exit code, stdout, stderr lines); results go to tmp_path/out."""
    checkpoints.write_json(tmp_path / "relations.json", RELATIONS)
    (tmp_path / "controls.txt").write_text(CONTROLS, encoding="utf-8")

    def call(*arguments, top_k=3):
        given = {
            **pair, "relations": tmp_path / "relations.json", "controls": tmp_path / "controls.txt",
            "out": tmp_path / "out", "top_k": top_k, "compile_cache": "off", "device": "cpu",
        }  # fmt: skip
        flagged = (f"--{name}={value}" for name, value in given.items() if value is not None)
        argv = ["program", *flagged, *arguments]
        code = cli.run(delta_pct.run, flags, delta_pct.__doc__, argv)
        out, err = capfd.readouterr()
        return code, out, err.splitlines()

    return call


def results(tmp_path, name=RESULTS):
    return json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.drawn
def test_files_tables_and_picture(run, tmp_path):
    code, out, err = run()
    assert code == 0 and all(line.endswith(" s left") for line in err)  # nothing but progress
    with (tmp_path / "out" / f"{RESULTS}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "model", "relation", "baseline_ppl", "perturbed_ppl", "absolute_change", "percentage_change",
        "baseline_std", "perturbed_std", "control_baseline_ppl", "control_perturbed_ppl",
        "control_percentage_change", "delta_nats_per_token", "neurons",
        *(f"{name}_{end}" for name in ENDS for end in ("low", "high")),
        *(f"control_delta_nats_per_token{end}" for end in ("", "_low", "_high")),
    ]  # fmt: skip
    assert [(row["model"], row["relation"]) for row in rows] == [
        ("Mamba", "P1 (one)"), ("Mamba", "P2 (two)"), ("GPT-2", "P1 (one)"), ("GPT-2", "P2 (two)"),
    ]  # fmt: skip
    for row in rows:
        value = {name: float(row[name]) for name in list(row)[2:12]}
        assert not any(row[f"{name}_{end}"] for name in ENDS for end in ("low", "high"))  # three sentences
        assert value["absolute_change"] == pytest.approx(value["perturbed_ppl"] - value["baseline_ppl"])
        ratio = value["perturbed_ppl"] / value["baseline_ppl"]
        assert value["percentage_change"] == pytest.approx(100 * (ratio - 1))
        assert value["delta_nats_per_token"] == pytest.approx(np.log(ratio))
        control = value["control_perturbed_ppl"] / value["control_baseline_ppl"]
        assert value["control_percentage_change"] == pytest.approx(100 * (control - 1))
        units = row["neurons"].split(" ")
        assert len(set(units)) == 3 and all(0 <= int(unit) < 6 for unit in units)
    baselines = {(row["model"], row["control_baseline_ppl"]) for row in rows}
    assert len(baselines) == 2  # one a model, whatever the relation

    written = results(tmp_path)
    assert [entry["relation"] for entry in written["results"]] == [row["relation"] for row in rows]
    for entry, row in zip(written["results"], rows, strict=True):
        assert entry["neurons"] == [int(unit) for unit in row["neurons"].split()]
        assert entry["variances"] == sorted(entry["variances"], reverse=True)
        assert entry["perturbed_ppl"] == float(row["perturbed_ppl"])
    protocol = written["manifest"]["protocol"]
    assert (protocol["name"], protocol["version"]) == ("seed", 1)
    assert protocol["sites"] == {
        "Mamba": {"read": "mixer_out", "edit": "block_out"},
        "GPT-2": {"read": "block_out", "edit": "block_out"},
    }
    assert written["manifest"]["truncated_texts"] == {"Mamba": 0, "GPT-2": 0}
    assert (tmp_path / "out" / "images" / "delta_percentage_analysis.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "out" / ".partial").exists()
    for words in ("nats M", "log % ratio", "Control texts", "Answer: The edit ", "P2 (two)"):
        assert words in out


def test_files_of_an_earlier_run_go(run, tmp_path):
    """The page of a run with a report goes with the next that has none; a note of one's own stays."""
    assert run()[0] == 0
    page, notes = tmp_path / "out" / "delta_pct_report.html", tmp_path / "out" / "notes.txt"
    assert page.exists()
    notes.write_text("mine", encoding="utf-8")
    assert run("--noreport")[0] == 0
    assert not page.exists() and notes.exists()


def test_intervals_are_written_where_there_are_sentences_enough(run, tmp_path):
    """Of five and more; in percent the ends are those in nats, and every interval holds its value."""
    words = [f"w{1 + 3 * i % 9} w{1 + i} w{9 - i} w{1 + 2 * i % 9}" for i in range(7)]
    facts = [{"text": text, "object": text.split()[-1]} for text in words]
    checkpoints.write_json(
        tmp_path / "relations.json", [{"relation": "P1", "label": "one", "facts": facts}, RELATIONS[1]]
    )
    code, out, _ = run()
    assert code == 0 and "their mean with its 95% interval" in out
    for row in results(tmp_path)["results"]:
        if row["relation"].startswith("P2"):
            assert all(row[f"{name}_low"] is None for name in ENDS)
            continue
        for name in ENDS:
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
        for end in ("low", "high"):
            nats = row[f"delta_nats_per_token_{end}"]
            assert row[f"percentage_change_{end}"] == pytest.approx(100 * np.expm1(nats))


@pytest.mark.parametrize("protocol", ["seed", "matched"])
def test_batches_fit_the_memory_or_the_run_is_refused(run, tmp_path, protocol):
    of_matched = ("--random_sets=6", "--studies=none") if protocol == "matched" else ()
    given = (f"--protocol={protocol}", *of_matched)
    code, out, err = run("--memory_gb=0.001", *given)
    assert code == 2 and len(err) == 1
    assert "Mamba: a text of" in err[0] and "--memory_gb=" in err[0] and "would do" in err[0]
    assert not list((tmp_path / "out").glob("*.csv"))
    assert run("--memory_gb=-1", *given)[0] == 2
    code, out, _ = run("--memory_gb=64", *given)
    assert code == 0 and "batches of up to 4096 tokens; predicted peak" in out
    written = results(tmp_path, RESULTS if protocol == "seed" else "matched_results")
    assert written["manifest"]["plan"] == {"batch_tokens": {"Mamba": 4096, "GPT-2": 4096}}


def test_an_interrupted_run_resumes(run, tmp_path, monkeypatch):
    computed = []
    compute = delta_study.Study.compute

    def breaking(study, number):
        if len(computed) == 1:
            raise KeyboardInterrupt
        computed.append(number)
        return compute(study, number)

    batches = ("--batch_tokens=24",)
    monkeypatch.setattr(delta_study.Study, "compute", breaking)
    assert run(*batches)[0] == 130
    assert not (tmp_path / "out" / f"{RESULTS}.json").exists()

    def counting(study, number):
        computed.append(number)
        return compute(study, number)

    monkeypatch.setattr(delta_study.Study, "compute", counting)
    code, out, _ = run(*batches)
    assert code == 0 and "Mamba: resumes an interrupted run, 1 of " in out
    resumed = results(tmp_path)["results"]
    monkeypatch.setattr(delta_study.Study, "compute", compute)
    assert run(*batches)[0] == 0
    assert results(tmp_path)["results"] == resumed


def test_the_matched_protocol_from_flags_to_files(run, tmp_path):
    code, out, err = run("--protocol=matched", "--random_sets=6", "--mode=scale", "--scale=0.5,0,1")
    assert code == 0 and all(line.endswith(" s left") for line in err)
    with (tmp_path / "out" / "matched_results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["relation"], row["facts"]) for row in rows] == [
        ("Mamba", "P1 (one)", "1"), ("Mamba", "P2 (two)", "1"),
        ("GPT-2", "P1 (one)", "1"), ("GPT-2", "P2 (two)", "1"),
    ]  # fmt: skip
    written = results(tmp_path, "matched_results")
    protocol = written["manifest"]["protocol"]
    assert (protocol["name"], protocol["version"], protocol["random_sets"]) == ("matched", 2, 6)
    assert protocol["sites"]["Mamba"] == protocol["sites"]["GPT-2"]
    assert protocol["units"] == {"Mamba": 3, "GPT-2": 3}
    relation = written["results"]["Mamba"]["relations"]["P1 (one)"]
    other = written["results"]["GPT-2"]["relations"]["P1 (one)"]
    assert relation["evaluated"] == other["evaluated"] and relation["selected_on"] == other["selected_on"]
    assert relation["scales"] == [0, 0.5, 1] and relation["after_scales"][1] == relation["facts"]["after"]
    assert len(relation["controls"]["random"]["after"]) == 6 and len(relation["units"]) == 6
    assert np.shape(relation["linearity"]["second_order"]) == (7, 1)  # strengths and facts
    assert relation["others"].keys() == {"P2 (two)"}
    assert len(written["results"]["GPT-2"]["layers"]["P2 (two)"]) == 3
    assert "Protocol matched: units of block_out of layer 1 (3 of 6 in Mamba, 3 of 6 in GPT-2)" in out
    assert not (tmp_path / "out" / ".partial").exists()


def test_a_fraction_of_a_site_narrower_than_the_default_number_of_units(run, tmp_path):
    """B has 3 units, fewer than the 10 of --top_k where nothing is said."""
    arguments = ("--protocol=matched", "--site=B", "--studies=none", "--random_sets=2")
    code, _, err = run(*arguments, "--top_fraction=0.25", top_k=None)
    assert code == 0, err
    written = results(tmp_path, "matched_results")
    assert written["manifest"]["protocol"]["units"] == {"Mamba": 1}
    assert run(*arguments, top_k=None)[0] == 2


def test_an_interrupted_matched_run_resumes_to_the_same_bytes(run, tmp_path, monkeypatch):
    arguments = ("--protocol=matched", "--random_sets=2", "--studies=layers", "--batch_tokens=32")
    monkeypatch.setattr("jaxprobe.matched.study._PART_BATCHES", 1)
    assert run(*arguments)[0] == 0
    table, undisturbed = tmp_path / "out" / "matched_results.csv", results(tmp_path, "matched_results")
    rows = table.read_bytes()
    computed, put = [], store.Store.put

    def breaking(kept, name, arrays):
        if len(computed) == 4:
            raise KeyboardInterrupt
        computed.append(name)
        return put(kept, name, arrays)

    monkeypatch.setattr(store.Store, "put", breaking)
    assert run(*arguments)[0] == 130
    monkeypatch.setattr(store.Store, "put", put)
    code, out, _ = run(*arguments)
    assert code == 0 and "Mamba: resumes an interrupted run, 4 of " in out
    assert table.read_bytes() == rows
    for entry in ("results", "summary", "answer"):  # the manifest has a hash of the code
        assert results(tmp_path, "matched_results")[entry] == undisturbed[entry]


def test_a_site_that_one_model_lacks_skips_that_model(run, tmp_path):
    code, out, _ = run("--protocol=matched", "--site=delta", "--studies=none", "--random_sets=2")
    assert code == 0
    assert (
        "GPT-2 is skipped: --site=delta, but it has mixer_out, mlp_act, mlp_out, block_out; "
        "nearest to delta are mixer_out and mlp_act"
    ) in out
    written = results(tmp_path, "matched_results")
    assert written["results"].keys() == {"Mamba"}
    assert written["manifest"]["protocol"]["sites"] == {"Mamba": {"read": "delta", "edit": "delta"}}
    page = (tmp_path / "out" / "matched_report.html").read_text(encoding="utf-8")
    assert "<h1>What does it cost Mamba when 3 units of delta at layer 1 are set to zero?</h1>" in page
    assert "GPT-2 is left out: --site=delta, but it has mixer_out" in page
    assert "With 3 units of delta at layer 1 of Mamba (mamba, layers 0 to 2) set to zero, no relation" in page


def test_matched_models_truncate_alike_and_seed_models_do_not(run, tmp_path):
    long = [{"relation": "P1", "label": "one", "facts": [
        {"text": " ".join(["w1", "w2"] * 12), "object": "w2"}, {"text": "w1 w2 w3", "object": "w3"},
        {"text": "w4 w5 w3", "object": "w3"},
    ]}]  # fmt: skip
    checkpoints.write_json(tmp_path / "long.json", long)
    relations = f"--relations={tmp_path / 'long.json'}"
    code, out, _ = run(relations)
    assert code == 0 and "GPT-2" in out and ", 1 truncated at 16" in out
    assert results(tmp_path)["manifest"]["truncated_texts"] == {"Mamba": 0, "GPT-2": 1}
    assert run(relations, "--protocol=matched", "--studies=none", "--random_sets=2")[0] == 0
    truncated = results(tmp_path, "matched_results")["manifest"]["truncated_texts"]
    assert truncated == {"Mamba": 1, "GPT-2": 1}


@pytest.mark.parametrize("arguments, message", [
    ("--top_k=0", "--top_k must be an integer >= 1, got 0"),
    ("--top_k=7", "Mamba: --top_k must be at most 6, the number of units at site mixer_out of this mamba "
     "model, got 7"),
    ("--layer=3", "Mamba is asked for --layer=3, but it has layers 0 to 2; GPT-2 is asked for "
     "--layer=3, but it has layers 0 to 2"),
    ("--site=delta", "--site=delta needs --protocol=matched: the seed protocol fixes its own sites"),
    ("--mode=scale --scale=0,1",
     "--scale=0,1 needs --protocol=matched: the seed protocol has no such thing"),
    ("--mode=scale --scale=1e16", "--scale must be at most 1e+15 in size, got 1e+16"),
    ("--mode=noise --noise_std=1e16", "--noise_std must be at most 1e+15, got 1e+16"),
    ("--mode=scale --scale=0,x", "--scale must be a number, or several with commas, got '0,x'"),
    ("--random_sets=9", "--random_sets=9 needs --protocol=matched: the seed protocol has no such thing"),
    ("--studies=none", "--studies=none needs --protocol=matched: the seed protocol has no such thing"),
    ("--mode=resample", "--mode=resample needs --protocol=matched: the seed protocol has no such thing"),
    ("--protocol=matched --top_fraction=0.5",
     "--top_k and --top_fraction exclude one another: give one of them"),
    ("--protocol=matched --studies=unit",
     "--studies must be one of units, layers, selectivity, linearity, got 'unit'"),
    ("--protocol=matched --mode=resample",
     "P1 (one): --protocol=matched with --mode=resample needs at least 4 facts, some to choose units by and "
     "others to score, got 3"),
    ("--protocol=matched --site=x", "Mamba is asked for --site=x, but it has gate, conv_out, delta, B, C, "
     "ssm_state, mixer_out, block_out; GPT-2 is asked for --site=x, but it has mixer_out, mlp_act, mlp_out, "
     "block_out"),
    ("--controls={tmp}/none.txt", "{tmp}/none.txt: cannot be read: No such file or directory"),
    ("--out={tmp}/relations.json", "--out={tmp}/relations.json must be a folder, but it is a file"),
])  # fmt: skip
def test_bad_input_is_one_line(run, tmp_path, arguments, message):
    code, _, err = run(*arguments.format(tmp=tmp_path).split())
    assert (code, err) == (2, [f"error: {message.format(tmp=tmp_path)}"])


@pytest.mark.parametrize("protocol", [(), ("--protocol=matched", "--studies=none", "--random_sets=2")])
def test_scores_that_overflow_are_no_results(run, tmp_path, protocol):
    file = checkpoints.write(tmp_path / "huge", TINY["mamba"]) / "model.safetensors"
    tensors = load_file(file)
    save_file({name: of * (1e30 if "in_proj" in name else 1) for name, of in tensors.items()}, file)
    code, out, err = run(f"--mamba={file.parent}", *protocol)
    assert code == 2 and "nan" not in out.split("Answer")[-1]
    assert err[-1].startswith("error: Mamba gives ") and "--dtype=float64" in err[-1]
    assert not list((tmp_path / "out").glob("*results*"))


def test_an_edit_that_changes_nothing_costs_nothing(run):
    code, out, _ = run("--mode=scale", "--scale=1")
    assert code == 0 and "The edit changes neither Mamba nor GPT-2 by more than rounding may" in out


@pytest.mark.parametrize("data, message", [
    (b"", "holds no text; expected one a line"),
    (b"w1 w2\n\xff\xfe w3\n", "line 2 is not UTF-8 text"),
    (b"w1 w2\nw3\n", "Mamba's tokens: text 2 of 2 ('w3') is 1 token long; a next token needs at least 2"),
    (b"w1 w2\nw0 w0\n", "after the first, 'w0 w0' has only padding tokens for Mamba"),
])  # fmt: skip
def test_bad_controls_are_one_line(run, tmp_path, data, message):
    (tmp_path / "bad.txt").write_bytes(data)
    code, _, err = run(f"--controls={tmp_path / 'bad.txt'}")
    assert code == 2 and len(err) == 1 and err[0].startswith(f"error: {tmp_path / 'bad.txt'}")
    assert err[0].endswith(message)


@pytest.mark.parametrize("fact, message", [
    ({"text": "", "object": "w1"},
     "entry 1 (P1), fact 1: field 'text' must be a string that is not empty, got ''"),
    ({"text": "w1 w2"}, "entry 1 (P1), fact 1: field 'object' is missing"),
    ({"text": "w1", "object": "w1"},
     "P1 (one), Mamba's tokens: text 1 of 2 ('w1') is 1 token long; a next token needs at least 2"),
])  # fmt: skip
def test_bad_facts_are_one_line(run, tmp_path, fact, message):
    file = tmp_path / "bad.json"
    facts = [fact, {"text": "w1 w2", "object": "w2"}]
    checkpoints.write_json(file, [{"relation": "P1", "label": "one", "facts": facts}])
    code, _, err = run(f"--relations={file}")
    assert code == 2 and len(err) == 1 and err[0].endswith(message)


def test_noise_is_the_same_whatever_the_batches(run, tmp_path):
    rows = []
    for extra in ("--batch_tokens=4096", "--batch_tokens=16"):
        assert run("--mode=noise", "--noise_std=0.5", "--seed=5", extra)[0] == 0
        rows.append([entry["delta_nats_per_token"] for entry in results(tmp_path)["results"]])
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4, atol=1e-5)
