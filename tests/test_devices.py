"""Texts shared out among devices and processes give one device's results."""

import functools
import json
import socket

import pytest
from processes import finished, jacobian_starter

RESULTS = "gradient_amplification_results_all_layers.json"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the command as a process of its own, into a folder."""
    return jacobian_starter(tmp_path_factory.mktemp("devices"))


# Or decided by it: float32 curves begin at steps so small that they are noise.
MERE_ROUNDING = {
    "verdict",
    "jacobian_error",
    "spectrum_error",
    "manifest",
    "residual",
    "residuals",
    "sigma1_residual",
    "float32",
}


def numbers(value):
    """Every number in nested JSON, by where it stands, but those that are mere rounding or divided by it."""
    if isinstance(value, dict):
        return {
            f"{key}/{path}": n
            for key, entry in value.items()
            if key not in MERE_ROUNDING
            for path, n in numbers(entry).items()
        }
    if isinstance(value, list):
        return {
            f"{place}/{path}": n for place, entry in enumerate(value) for path, n in numbers(entry).items()
        }
    return {"": value} if isinstance(value, float) else {}


def same(a, b):
    """Two results equal to 1e-5 of the largest number of their kind (curvature is a small difference)."""
    a, b = (numbers(json.loads((out / RESULTS).read_text())) for out in (a, b))
    assert a.keys() == b.keys() and len(a) > 200
    kinds = {path: "/".join(part for part in path.split("/") if not part.isdigit()) for path in a}
    scale = {}
    for path, kind in kinds.items():
        kind = kind.replace("curvature", "sampled_mean")
        kinds[path] = kind
        scale[kind] = max(scale.get(kind, 0), abs(a[path]))
    apart = {path: (a[path], b[path]) for path in a if abs(a[path] - b[path]) > 1e-5 * scale[kinds[path]]}
    assert not apart


# A factor for each text; or directions of the draws in the sweep, and values of Gram matrices, of which
# rounding takes the small ones in float32.
KINDS = {
    "fisher": ("--metric=fisher",),
    "gram": ("--spectra=gram", "--dtype=float64"),
    "studies": ("--path", "--epsilon_sweep", "--dtype=float64"),
    "estimates": ("--method=matrix_free", "--dtype=float64"),
}


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """The results of one device, by kind."""

    @functools.cache
    def results(kind: str):
        out = tmp_path_factory.mktemp(kind) / "out"
        finished(start(out, *KINDS[kind]))
        return out

    return results


@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_give_what_one_gives(start, alone, tmp_path, kind):
    # Five texts: some devices have none and compute filler.
    finished(start(tmp_path, *KINDS[kind], devices=8))
    same(alone(kind), tmp_path)
    assert json.loads((tmp_path / RESULTS).read_text())["manifest"]["machine"]["device_count"] == 8


def where_to_meet() -> str:
    """The flag that names a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"--coordinator=127.0.0.1:{free.getsockname()[1]}"


def test_two_processes_give_what_one_gives(start, alone, tmp_path):
    meeting = where_to_meet()
    pair = [
        start(
            tmp_path / f"process{i}", *KINDS["gram"], meeting, "--num_processes=2", f"--process={i}",
            devices=2,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [finished(process) for process in pair]
    same(alone("gram"), tmp_path / "process0")
    assert "wrote" in said[0] and "wrote" not in said[1]
    assert not (tmp_path / "process1").exists()


def test_the_others_hear_why_the_first_gave_up(start, tmp_path):
    meeting = where_to_meet()
    (tmp_path / "taken").write_text("a file where the folder should be")
    pair = [start(tmp_path / "taken", meeting, "--num_processes=2", f"--process={i}") for i in range(2)]
    said = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [2, 2]
    assert "taken" in said[0].splitlines()[-1]
    assert f"the first process gave up: {said[0].splitlines()[-1].removeprefix('error: ')}" in said[1]
    assert "Traceback" not in "".join(said)


LATE_AND_FULL = """
import errno, time
def prepare(config):
    time.sleep(33)  # processes wait 30 s for one another to begin to talk
    raise OSError(errno.ENOSPC, "No space left on device", "results")
jacobian._prepare = prepare
"""


def test_the_first_may_take_long_and_fail_in_any_way(start, tmp_path):
    meeting = where_to_meet()
    first, other = (
        start(tmp_path / "out", meeting, "--num_processes=2", f"--process={i}", before=before)
        for i, before in enumerate((LATE_AND_FULL, ""))
    )
    said = [process.communicate(timeout=300)[0] for process in (first, other)]
    assert [first.returncode, other.returncode] == [2, 2]
    assert said[0].splitlines()[-1] == "error: no space left: results"
    assert said[1].splitlines()[-1] == "error: the first process gave up: no space left: results"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--num_processes=2",), "--num_processes=2 needs --coordinator"),
        (("--coordinator=localhost",), "--num_processes must be given with --coordinator=localhost"),
        (
            ("--coordinator=localhost", "--num_processes=2", "--process=0"),
            "--coordinator must be auto or HOST:PORT, got 'localhost'",
        ),
        (
            ("--coordinator=a:1", "--num_processes=2", "--process=2"),
            "--process must be below --num_processes, got 2",
        ),
        (("--coordinator=auto", "--process=0"), "--process must be left out with --coordinator=auto"),
        (
            ("--coordinator=a:1", "--num_processes=2", "--process=0", "--path"),
            "--path needs one process: leave out --coordinator",
        ),
    ],
    ids=str,
)
def test_what_is_no_cluster(start, tmp_path, more, expected):
    process = start(tmp_path / "out", *more)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and said == f"error: {expected}\n"
