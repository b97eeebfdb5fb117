"""A run killed by SIGKILL, whenever, ends with the same bytes of results as one that nobody disturbed."""

import os
import random
import signal
import time

import pytest
from processes import finished, jacobian_starter


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the command as a process of its own, into a folder."""
    return jacobian_starter(tmp_path_factory.mktemp("resume"))


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def parts(out):
    return len(list(out.glob(".partial/jacobian/*.unit")))


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_twice_it_ends_with_the_same_bytes(start, tmp_path):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "disturbed"
    finished(start(undisturbed))
    expected = files(undisturbed)

    process, rng = start(out), random.Random(4)
    count, delay = rng.randint(1, 4), rng.uniform(0, 0.1)
    while parts(out) < count and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    kill(process)
    kept = parts(out)
    assert kept >= count

    process = start(out)
    seen = next(line for line in process.stdout if "Ratio Mamba / GPT-2" in line)  # the files come next
    kill(process)
    assert seen and parts(out) > kept and files(out).keys().isdisjoint(expected)

    said = finished(start(out))
    assert "Mamba: resumes an interrupted run, " in said and "GPT-2: resumes an interrupted run, " in said
    found = files(out)
    assert found.keys() == expected.keys() and sorted(os.listdir(out)) == sorted(os.listdir(undisturbed))
    assert {name for name in found if found[name] != expected[name]} == {"jacobian_run.log"}
