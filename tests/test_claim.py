"""One run to a folder: refused early, never two at once, and nothing left behind."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxprobe import claim as claims
from jaxprobe.claim import claim
from jaxprobe.errors import ProbeError

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from jaxprobe.claim import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_claim_leaves_what_was_written_and_nothing_else(tmp_path):
    with claim(tmp_path), claim(tmp_path / "new" / "deeper"):
        assert tree(tmp_path) == {".lock", "new", "new/deeper", "new/deeper/.lock"}
    assert tree(tmp_path) == set()
    with claim(tmp_path / "new"):
        (tmp_path / "new" / "results").touch()
    assert tree(tmp_path) == {"new", "new/results"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ProbeError, OSError])
def test_what_ends_a_run_ends_its_claim_and_passes_through(tmp_path, error):
    with pytest.raises(error, match="this one"), claim(tmp_path / "new"):
        raise error("this one")
    assert tree(tmp_path) == set()


def test_a_folder_that_cannot_be_written_is_refused_early(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProbeError, match="must be a folder, but it is a file"), claim(tmp_path / "file"):
        pass
    with pytest.raises(ProbeError, match="written: Not a directory"), claim(tmp_path / "file" / "below"):
        pass
    monkeypatch.setattr("jaxprobe.claim.os.fsync", full_disk)
    with pytest.raises(ProbeError, match="No space left"), claim(tmp_path / "new"):
        pass
    assert tree(tmp_path) == {"file"}


def test_a_second_run_is_refused_while_the_first_lives_and_not_when_it_was_killed(tmp_path):
    out = tmp_path / "not" / "there"
    command = [sys.executable, "-c", HOLDER, out]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(ProbeError, match=rf"another run \(process {holder.pid} on .*--out="), claim(out):
            pass
        assert tree(tmp_path) == {"not", "not/there", "not/there/.lock"}
        holder.send_signal(signal.SIGKILL)
    assert (out / ".lock").exists()  # a killed process cannot tidy up; the lock is gone all the same
    with claim(out), pytest.raises(ProbeError, match=f"process {os.getpid()} on "), claim(out):
        pass
    assert tree(tmp_path) == {"not", "not/there"}


def test_a_lock_that_its_holder_removed_is_no_lock(tmp_path, monkeypatch):
    """The holder ends between this process's opening of the file and its locking it."""
    lock, flock, locked = tmp_path / ".lock", claims._flock, []

    def after_the_holder_ended(held, out):
        flock(held, out)
        locked.append(os.fstat(held).st_ino)
        if len(locked) == 1:
            lock.rename(tmp_path / "removed")  # keeps its inode from being given to the next file

    monkeypatch.setattr(claims, "_flock", after_the_holder_ended)
    with claim(tmp_path):
        assert lock.stat().st_ino == locked[1] != locked[0]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("jaxprobe.claim.fcntl.flock", no_locks)
    with claim(tmp_path):
        pass
    assert capsys.readouterr().err == (
        f"note: the file system of {tmp_path} has no locks: start no second run into it\n"
    )
