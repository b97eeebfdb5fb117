"""Which models to look at, any number of them."""

from absl import flags

from jaxprobe.flags.registry import FLAGS

MODEL = flags.DEFINE_multi_string(
    "model",
    None,
    "Checkpoint: a directory or a hub id. Without it: the pair the package carries",
    flag_values=FLAGS,
)


def to_config() -> tuple[str, ...]:
    """The models named on the command line, in order; empty where none was."""
    return tuple(MODEL.value or ())
