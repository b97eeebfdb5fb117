"""Whether a run is also told as a page."""

from absl import flags

from jaxprobe.flags.registry import FLAGS

REPORT = flags.DEFINE_boolean(
    "report",
    True,
    "Also everything as one HTML page, which needs no other file and no network.",
    flag_values=FLAGS,
)


def to_config() -> bool:
    """Whether the page is wanted."""
    return REPORT.value
