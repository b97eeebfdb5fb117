"""How much memory a command may take."""

from absl import flags

from jaxprobe.flags.registry import FLAGS

MEMORY_GB = flags.DEFINE_float(
    "memory_gb",
    None,
    "The most memory that the process may take, in GiB; batches, and chunks of cotangents, are made to fit. "
    "Without it: what it holds already and 70% of what is free.",
    flag_values=FLAGS,
)


def to_config() -> float | None:
    """The limit, or None."""
    return MEMORY_GB.value
