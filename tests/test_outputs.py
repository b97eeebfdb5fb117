"""Results on disk: whole or not at all, and strict JSON."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxprobe import outputs
from jaxprobe.errors import ProbeError
from jaxprobe.run_configs import JacobianRun


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_files_are_written_with_their_folders(tmp_path):
    outputs.write_files(tmp_path / "out", {"a.json": b"1", "images/b.png": b"2"})
    assert tree(tmp_path) == {"out", "out/a.json", "out/images", "out/images/b.png"}
    assert (tmp_path / "out/a.json").stat().st_mode & 0o444 == 0o444  # not for the owner alone


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_results_and_leaves_nothing_else(tmp_path, monkeypatch, call):
    (tmp_path / "a.json").write_bytes(b"old")
    monkeypatch.setattr(f"jaxprobe.outputs.os.{call}", full_disk)
    with pytest.raises(ProbeError, match="No space left"):
        outputs.write_files(tmp_path, {"a.json": b"new", "b.json": b"new"})
    assert tree(tmp_path) == {"a.json"}
    assert (tmp_path / "a.json").read_bytes() == b"old"


def test_no_file_is_replaced_when_a_later_one_cannot_be(tmp_path):
    (tmp_path / "b.json").mkdir()
    with pytest.raises(ProbeError, match="must be a file"):
        outputs.write_files(tmp_path, {"a.json": b"new", "b.json": b"new"})
    assert tree(tmp_path) == {"b.json"}


def test_what_a_killed_process_left_is_written_over(tmp_path):
    (tmp_path / ".a.json.partial").write_bytes(b"half of somethi")
    outputs.write_files(tmp_path, {"a.json": b"1"})
    assert tree(tmp_path) == {"a.json"}
    assert (tmp_path / "a.json").read_bytes() == b"1"


def test_json_is_strict_and_takes_what_the_program_has():
    value = {
        "config": JacobianRun(out=Path("x")),
        "scalar": np.float32(0.1),
        "array": np.array([[1.0, np.nan], [np.inf, 2.0]]),
        "count": np.int64(3),
        "flag": np.bool_(True),
        1: "é",
    }
    read = json.loads(outputs.json_bytes(value), parse_constant=pytest.fail)
    assert read["config"]["out"] == "x" and read["config"]["compute"]["dtype"] == "float32"
    assert np.float32(read["scalar"]) == np.float32(0.1)
    assert read["array"] == [[1.0, None], [None, 2.0]]
    assert (read["count"], read["flag"], read["1"]) == (3, True, "é")
    with pytest.raises(TypeError, match="no JSON for object"):
        outputs.json_bytes(object())


def test_csv_keeps_every_digit_and_every_column():
    rows = [{"a": 1 / 3, "b": None}, {"a": np.float64(0.1), "b": "x,y"}, {"a": float("nan"), "b": 2}]
    assert outputs.csv_bytes(["a", "b"], rows).decode() == 'a,b\n0.3333333333333333,\n0.1,"x,y"\n,2\n'
    with pytest.raises(ValueError, match="columns"):
        outputs.csv_bytes(["a", "b"], [{"a": 1}])
