"""The command line, parsed: absl's flags with one-line errors, a complete `--help`, and no stray arguments.

absl's own runner exits 1 on `--help`, shows there only flags defined in the main module (none, under a
console script), and hands stray arguments on without a word. So the groups are listed here, each under its
title, from the modules that define them.
"""

import re
import textwrap
from collections.abc import Sequence
from types import ModuleType

from absl import flags

from jaxprobe.errors import ProbeError
from jaxprobe.flags.registry import FLAGS

HELP_FLAGS = frozenset({"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"})
_NOT_A_NUMBER = re.compile(r"flag --(\w+)=(.*): (?:invalid literal|could not convert)", re.DOTALL)


def parse(argv: Sequence[str]) -> None:
    """Sets FLAGS from `argv`, whose first entry is the program's name.

    Raises:
      ProbeError: on an unknown flag, an empty value or one of the wrong type, or an argument that is not a
        flag.
    """
    FLAGS.unparse_flags()  # back to the defaults, should this process have parsed before
    try:
        stray = FLAGS(list(argv))[1:]
    except (flags.Error, ValueError) as error:
        raise ProbeError(_one_line(str(error))) from error
    if stray:
        raise ProbeError(f"expected only flags (--name=value), got the argument {stray[0]!r}")
    for name in FLAGS:
        if FLAGS[name].present and FLAGS[name].value in ("", [], [""]):  # such as --texts=$UNSET
            raise ProbeError(f"--{name} must not be empty: leave it out for its default")


def _one_line(message: str) -> str:
    match = _NOT_A_NUMBER.match(message)
    if match:
        name, value = match.groups()
        return f"--{name} must be {FLAGS[name].parser.syntactic_help}, got {value!r}"
    return " ".join(message.split())


def wants_help(argv: Sequence[str]) -> bool:
    """Whether the arguments ask for help, in any of absl's spellings."""
    return not HELP_FLAGS.isdisjoint(argv[1:])


def help_text(command: ModuleType, about: str) -> str:
    """What `--help` prints.

    Args:
      command: the command's flag module; it names the other groups in GROUPS.
      about: what the command does: its module's docstring.
    """
    name = command.__name__.rpartition(".")[2]
    parts = [f"usage: python -m jaxprobe.{name} [--flag=value ...]", textwrap.dedent(about).strip()]
    for group in (command, *command.GROUPS):
        title = (group.__doc__ or "").splitlines()[0]
        rendered = FLAGS.module_help(group).strip("\n").partition("\n")[2]
        if rendered:
            parts.append(f"{title}\n{rendered}")
    return "\n\n".join(parts) + "\n"
