"""HF checkpoints in and out: `load` and `export`, with everything the conversion checks along the way."""

from jaxprobe.convert.certificate import Certificate
from jaxprobe.convert.checkpoint import Checkpoint, load
from jaxprobe.convert.export import export
from jaxprobe.convert.layout import param_shapes
from jaxprobe.convert.tokenizer import Tokenizer

__all__ = ["Certificate", "Checkpoint", "Tokenizer", "export", "load", "param_shapes"]
