"""Where results go."""

from pathlib import Path

from absl import flags

from jaxprobe.flags.registry import FLAGS

OUT = flags.DEFINE_string(
    "out", "results", "Folder for the results; made where it is missing.", flag_values=FLAGS
)


def to_config() -> Path:
    """The output folder."""
    return Path(OUT.value).expanduser()
