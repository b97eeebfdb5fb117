"""Where results go."""

from pathlib import Path

from absl import flags

OUT = flags.DEFINE_string("out", "results", "Folder for the results; made where it is missing.")


def to_config() -> Path:
    """The output folder."""
    return Path(OUT.value).expanduser()
