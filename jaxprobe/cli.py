"""The one runner of every command: flags in, one-line errors and exit codes out.

A command module is thin:

    def run(config: JacobianRun) -> None: ...   # imports what is slow inside

    def main() -> int:
        return cli.run(run, jacobian_flags, __doc__)

    if __name__ == "__main__":
        sys.exit(main())

Exit codes: 0 done; 1 a bug, with its traceback; 2 a problem with what the user gave or with the machine, in
one line; 130 interrupted.
"""

import atexit
import contextlib
import errno
import gc
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TextIO

from jaxprobe import runtime
from jaxprobe.errors import ProbeError
from jaxprobe.flags import parsing

runtime.calm_lapack()  # a command imports this module before numpy

OK, USER_ERROR, INTERRUPTED = 0, 2, 130


def run(
    command: Callable[[Any], None],
    flag_module: ModuleType,
    about: str | None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parses the flags, runs the command, and turns what goes wrong into one line.

    Args:
      command: takes the run's config and does everything.
      flag_module: the command's module in `jaxprobe.flags`; its `to_config()` builds the config.
      about: what `--help` says the command does.
      argv: program name and arguments; default `sys.argv`.

    Returns:
      The exit code.
    """
    argv = sys.argv if argv is None else argv
    _collect_less()
    output, errors = _WhileRead(sys.stdout), _WhileRead(sys.stderr)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            return _run(command, flag_module, about, argv)
        finally:
            output.flush()


def _run(
    command: Callable[[Any], None], flag_module: ModuleType, about: str | None, argv: Sequence[str]
) -> int:
    # numpy's, of what is not finite: the results say where that is, in the user's words.
    warnings.simplefilter("ignore", RuntimeWarning)
    try:
        if parsing.wants_help(argv):
            print(parsing.help_text(flag_module, about or ""), end="")
        else:
            parsing.parse(argv)
            command(flag_module.to_config())
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        return _fail(line, USER_ERROR)
    return OK


class _WhileRead:
    """A stream, whose reader may leave (`| head`) or be none: the rest is dropped, the command goes on."""

    def __init__(self, stream: TextIO | None):
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream

    def write(self, text: str) -> int:
        self._tried(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def _tried(self, do: Callable, *given: str) -> None:
        try:
            do(*given)
        except BrokenPipeError:
            # What it still holds goes there too, when Python ends.
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _collect_less() -> None:
    # Tracing makes large graphs that live on; going through them again and again, and once more only to end,
    # took a tenth of a short run.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)


def _fail(line: str, code: int) -> int:
    print(f"error: {line}", file=sys.stderr)
    return code


def one_line(error: Exception) -> str | None:
    """What to tell the user, or None where the traceback is the better answer."""
    if isinstance(error, ProbeError):
        return " ".join(str(error).split())
    # Named, not imported: jax must not be loaded to report an unknown flag.
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "out of memory: give fewer or shorter texts, or a smaller --batch_tokens"
    if isinstance(error, OSError) and error.errno:
        where = f": {error.filename}" if error.filename else ""
        reason = "no space left" if error.errno == errno.ENOSPC else (error.strerror or str(error)).lower()
        return f"{reason}{where}"
    return None
