"""One run to a results folder: a second one finds out before it does any work."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxprobe.errors import ProbeError

_TRIED_BYTES = 1 << 16
_ATTEMPTS = 100  # to lock a file that other runs make and remove
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # what file systems without locks answer


@contextlib.contextmanager
def claim(out: Path) -> Iterator[None]:
    """Holds `out` for this process, from before any long work until the results are written.

    The claim is a lock on `out/.lock` that the kernel drops with the process, so a killed run blocks nobody.
    Leaves behind what was written into `out`, and otherwise nothing, not even the folder.

    Raises:
      ProbeError: when another run holds `out`, `out` is a file or cannot be made or written, or the disk is
        full.
    """
    lock = out / ".lock"
    made: list[Path] = []
    try:
        try:
            if out.exists() and not out.is_dir():
                raise ProbeError(f"--out={out} must be a folder, but it is a file")
            made = [folder for folder in (out, *out.parents) if not folder.exists()]
            held = _hold(lock)
        except OSError as error:
            raise ProbeError(f"--out={out} cannot be written: {error.strerror}") from error
        try:
            _try_writing(out, held)
            yield
        finally:
            lock.unlink(missing_ok=True)  # while it is held: nobody else's is removed
            os.close(held)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # in use by now
                folder.rmdir()


def _hold(lock: Path) -> int:
    """The descriptor of the file, made where it is missing and locked for as long as it stays open."""
    for _ in range(_ATTEMPTS):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another run ended and took its folder with it
            continue
        try:
            _flock(held, lock.parent)
            if _is_file_at(held, lock):
                return held
        except BaseException:
            os.close(held)
            raise
        os.close(held)  # its holder ended, and removed it, between the opening and the locking
    raise ProbeError(f"--out={lock.parent} cannot be claimed: {lock} appears and vanishes")


def _flock(held: int, out: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(held, 200, 0).decode(errors="replace").partition("\n")[0] or "a process"
        raise ProbeError(
            f"another run ({holder}) is writing into --out={out}: wait for it to end, or give another --out"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"note: the file system of {out} has no locks: start no second run into it", file=sys.stderr)


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _try_writing(out: Path, held: int) -> None:
    """Signs the lock, for the message to a second run, and so finds out whether a file can be written."""
    signature = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
    try:
        with open(held, "wb", closefd=False) as file:
            file.truncate(0)
            file.write(signature.ljust(_TRIED_BYTES))
            file.flush()
            os.fsync(held)
    except OSError as error:
        raise ProbeError(f"--out={out} cannot be written: {error.strerror}") from error
