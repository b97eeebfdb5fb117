"""The layer a command looks at; commands differ in what they do without it."""

from absl import flags

from jaxprobe.flags.registry import FLAGS

LAYER = flags.DEFINE_integer(
    "layer",
    None,
    "Layer, counted from 0. Without it: all layers in jacobian, layer 1 in delta_pct and factual_recall.",
    flag_values=FLAGS,
)
