"""Flags of `python -m jaxprobe.jacobian`."""

from typing import get_args

from absl import flags

from jaxprobe.configs import Wrt
from jaxprobe.flags import compute, layer, models, output
from jaxprobe.flags.registry import FLAGS
from jaxprobe.run_configs import DEFAULT_NUM_TEXTS, JacobianRun

GROUPS = (models, layer, compute, output)

NUM_TEXTS = flags.DEFINE_integer(
    "num_texts",
    DEFAULT_NUM_TEXTS,
    "How many texts, in order. Unless given, fewer will do, and every --text is taken.",
    flag_values=FLAGS,
)
TEXTS = flags.DEFINE_string(
    "texts",
    None,
    "File of texts, UTF-8, one a line; - is standard input. Without it: the relation sentences.",
    flag_values=FLAGS,
)
TEXT = flags.DEFINE_multi_string("text", None, "One text. Excludes --texts", flag_values=FLAGS)
ADD_BOS = flags.DEFINE_boolean(
    "add_bos",
    False,
    "Put the tokenizer's beginning-of-text token before every text.",
    flag_values=FLAGS,
)
WRT = flags.DEFINE_enum(
    "wrt",
    "both",
    get_args(Wrt),
    "What moves at the layer's output: the last token's row only (last), every row (sequence), or one after "
    "the other (both).",
    flag_values=FLAGS,
)
EPSILON = flags.DEFINE_float(
    "epsilon", 0.01, "Standard deviation of a finite-difference draw.", flag_values=FLAGS
)
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 10, "Finite-difference draws per text.", flag_values=FLAGS)


def to_config() -> JacobianRun:
    """The run that the command line asks for.

    Raises:
      ProbeError: when a value is out of range, or --text and --texts are both given.
    """
    return JacobianRun(
        mamba=models.MAMBA.value,
        gpt2=models.GPT2.value,
        layer=layer.LAYER.value,
        num_texts=NUM_TEXTS.value if NUM_TEXTS.present else None,
        texts=TEXTS.value,
        text=tuple(TEXT.value or ()),
        add_bos=ADD_BOS.value,
        wrt=WRT.value,
        epsilon=EPSILON.value,
        num_samples=NUM_SAMPLES.value,
        out=output.to_config(),
        compute=compute.to_config(),
    )
