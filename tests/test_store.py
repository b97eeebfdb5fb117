"""Finished parts: given back bit for bit, to the same run only, and whatever the moment of a kill."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxprobe.errors import ProbeError
from jaxprobe.store import Store
from jaxprobe.work import WorkUnit

ROOT = Path(__file__).resolve().parents[1]
IDENTITY = {
    "config": {"epsilon": 0.01, "layer": None, "compute": {"seed": 0}},
    "seed": 0,
    "versions": {"jax": "0.10.2"},
    "checkpoints": {"mamba": {"sha256": "ab" * 32}},
    "texts": ("one", "two"),
}
ARRAYS = {
    "strided": np.arange(24.0).reshape(4, 6)[::2, 1::2],
    "by columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "special": np.array([np.nan, np.inf, -0.0, 5e-324]),
    "index": np.array([3, -1], np.int32),
    "empty": np.zeros((0, 3), bool),
}


def open_store(out, identity=IDENTITY, plan=dict, command="jacobian"):
    return Store.open(out, command, identity=identity, plan=plan)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def layout(arrays):
    return {name: (a.dtype, a.shape, a.strides, a.tobytes()) for name, a in arrays.items()}


def test_a_part_comes_back_bit_for_bit_and_in_the_layout_it_was_kept_in(tmp_path):
    kept = open_store(tmp_path).put("a/b", ARRAYS)
    found = open_store(tmp_path).get("a/b")
    assert found is not None and layout(found) == layout(kept)
    for name, array in ARRAYS.items():
        assert (found[name].dtype, found[name].tobytes()) == (array.dtype, array.tobytes())
    assert open_store(tmp_path).get("a") is None
    with pytest.raises(ValueError, match="allow_pickle"):
        open_store(tmp_path).put("objects", {"x": np.array([None])})


def test_only_what_is_missing_is_computed(tmp_path, capsys):
    computed = []

    def unit(name, number):
        return WorkUnit(name, lambda: computed.append(number) or {"value": np.full(2, number)})

    first = open_store(tmp_path).complete("M", [unit("c", 3), unit("a", 1)])
    again = open_store(tmp_path).complete("M", [unit("c", 3), unit("b", 2), unit("a", 1)])
    assert computed == [3, 1, 2]
    assert list(again) == ["c", "b", "a"] and list(first) == ["c", "a"]  # in order, resumed or not
    assert [arrays["value"][0] for arrays in again.values()] == [3, 2, 1]
    assert capsys.readouterr().out == "M: resumes an interrupted run, 2 of 3 parts are done\n"
    assert open_store(tmp_path).complete("N", [unit("a", 4)])["a"]["value"][0] == 4  # another model's
    store = open_store(tmp_path)
    kept = {(title, name): store.has(title, unit(name, 0)) for title in "MN" for name in "abd"}
    assert {key for key, is_kept in kept.items() if is_kept} == {("M", "a"), ("M", "b"), ("N", "a")}


def test_a_resumed_run_keeps_the_plan_that_it_began_with(tmp_path):
    plan = {"chunk": 7, "batches": ((0, 2), (1,))}
    as_json = {"chunk": 7, "batches": [[0, 2], [1]]}
    assert open_store(tmp_path, plan=lambda: plan).plan == as_json
    assert open_store(tmp_path, plan=lambda: pytest.fail("planned again")).plan == as_json


def test_every_damage_is_found_and_said(tmp_path, capsys):
    store = open_store(tmp_path)
    store.put("part", {"x": np.arange(3)})
    (file,) = store.folder.glob("*.unit")
    whole = file.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        for damaged in (bytes(flipped), whole[:place]):
            file.write_bytes(damaged)
            assert store.get("part") is None
            assert capsys.readouterr().err == f"note: {file} is damaged and is computed again\n"
    file.write_bytes(whole)
    assert store.get("part") is not None


def test_parts_of_another_run_are_not_mixed_in(tmp_path, capsys):
    theirs, ours = open_store(tmp_path / "a", IDENTITY | {"seed": 1}), open_store(tmp_path / "b")
    theirs.put("part", ARRAYS)
    shutil.copy(next(theirs.folder.glob("*.unit")), ours.folder)
    assert ours.get("part") is None and "is damaged" in capsys.readouterr().err


WITH = "{folder} holds an unfinished run with "
DO = ": finish that one as it was started, or remove that folder"


def flags(epsilon=0.01, layer=None, seed=0):
    return {"config": {"epsilon": epsilon, "layer": layer, "compute": {"seed": seed}}}


@pytest.mark.parametrize("changes, message", [
    (flags(epsilon=0.02), "--epsilon=0.01, but this run has --epsilon=0.02"),
    (flags(layer=1), "no --layer, but this run has --layer=1"),
    # What follows from a flag, such as a copy of it, is not named beside it.
    (flags(seed=5) | {"seed": 5}, "--seed=0, but this run has --seed=5"),
    ({"config": {"text": ["a"]}},
     "--epsilon=0.01, --seed=0, no --text, but this run has no --epsilon, no --seed, --text='a'"),
    ({"versions": {"jax": "0.11.2"}}, "versions.jax='0.10.2', but this run has versions.jax='0.11.2'"),
    ({"texts": ("one", "2")}, "texts.1='two', but this run has texts.1='2'"),
    ({"texts": ("one",)}, "texts.1='two', but this run has no texts.1"),
    ({"checkpoints": {"mamba": {"sha256": "ab" * 31 + "cd"}}},  # differs in what the line has no room for
     "checkpoints.mamba.sha256="),
    ({"versions": {str(i): "1" for i in range(4)}},
     "versions.jax='0.10.2', no versions.0, no versions.1 and 2 more, but"),
])  # fmt: skip
def test_a_store_of_another_run_is_refused_by_name_and_kept(tmp_path, changes, message):
    store = open_store(tmp_path)
    store.put("part", ARRAYS)
    with pytest.raises(ProbeError) as refusal:
        open_store(tmp_path, IDENTITY | changes)
    line = str(refusal.value)
    assert line.startswith(WITH.format(folder=store.folder) + message) and line.endswith(DO)
    assert "\n" not in line and len(line) < 500
    assert open_store(tmp_path).get("part") is not None


def test_a_run_that_finished_nothing_binds_nobody(tmp_path):
    """One that was refused after it opened its store does not stand in the way of its own correction."""
    open_store(tmp_path)
    other = open_store(tmp_path, IDENTITY | flags(epsilon=0.02))
    assert json.loads(other.header)["identity"]["config"]["epsilon"] == 0.02


def test_commands_have_stores_of_their_own(tmp_path):
    one, other = open_store(tmp_path), open_store(tmp_path, {"seed": 3}, command="delta_pct")
    one.put("part", ARRAYS)
    other.put("part", ARRAYS)
    one.remove()
    assert open_store(tmp_path, {"seed": 3}, command="delta_pct").get("part") is not None
    other.remove()
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"{}", b'{"identity": {}}', b"\xff"])
def test_a_damaged_header_is_said_and_its_parts_are_forgotten(tmp_path, capsys, header):
    store = open_store(tmp_path)
    store.put("part", ARRAYS)
    (store.folder / "header.json").write_bytes(header)
    assert open_store(tmp_path).get("part") is None
    assert capsys.readouterr().err == (
        f"note: {store.folder / 'header.json'} is damaged: all parts of that run are computed again\n"
    )


def test_a_full_disk_is_one_line_and_leaves_no_half(tmp_path, monkeypatch):
    store = open_store(tmp_path)

    def full_disk(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("jaxprobe.outputs.os.fsync", full_disk)
    with pytest.raises(ProbeError, match="No space left"):
        store.put("part", ARRAYS)
    assert tree(store.folder) == {"header.json"}


KILLS = '''
import os, signal, sys
from pathlib import Path
import numpy as np
from jaxprobe import outputs
from jaxprobe.claim import claim
from jaxprobe.store import Store
from jaxprobe.work import WorkUnit

RESULTS = {"results.json": b"whole", "images/picture.png": b"whole"}

def work(out):
    with claim(out):
        store = Store.open(out, "work", identity={"config": {"n": 2}}, plan=lambda: {"chunk": 3})
        units = [WorkUnit(str(n), lambda n=n: {"x": np.arange(n + store.plan["chunk"])}) for n in range(2)]
        for n, arrays in store.complete("M", units).items():
            assert arrays["x"].tolist() == list(range(int(n) + 3))
        outputs.write_files(out, RESULTS)
        store.remove()

def killed(out, moment):
    """Whether the work was killed, at the given change to the file system, halves of writings counted."""
    if pid := os.fork():
        status = os.waitpid(pid, 0)[1]
        assert os.WIFSIGNALED(status) or status == 0
        return status != 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    seen = []
    def change():
        seen.append(1)
        if len(seen) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
    def audit(event, arguments):
        if event in {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}:
            if isinstance(arguments[0], int) or str(out) in str(arguments[0]):
                change()
    def halves(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            change()
            file.write(data[len(data) // 2 :])
    outputs._write = halves
    sys.addaudithook(audit)
    work(out)
    os._exit(0)

def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

moment, base = 1, Path(sys.argv[1])
while killed(base / str(moment), moment):
    out = base / str(moment)
    left = tree(out) if out.exists() else {}
    assert all(left.get(name, data) == data for name, data in RESULTS.items()), left
    assert not killed(out, 0)
    assert tree(out) == RESULTS, (moment, tree(out))
    moment += 1
print(moment)
'''


def test_killed_at_every_change_to_the_disk_it_resumes_to_the_same_files(tmp_path):
    command = [sys.executable, "-c", KILLS, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 40  # moments
