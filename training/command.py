"""What the commands of this folder share: no stray arguments, one line for a problem the user can solve."""

import sys
from collections.abc import Callable

from absl import app

from jaxprobe.errors import ProbeError


def run(command: Callable[[], None]) -> None:
    """Parses absl's flags and runs `command`; a ProbeError ends in one line and exit code 2."""

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        try:
            command()
        except ProbeError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(main)
