"""Which two models to compare."""

from absl import flags

from jaxprobe.flags.registry import FLAGS
from jaxprobe.run_configs import SHIPPED

MAMBA = flags.DEFINE_string(
    "mamba",
    SHIPPED,
    "Mamba checkpoint: a directory or a hub id, such as state-spaces/mamba-130m-hf; "
    f"{SHIPPED!r} is the small one that the package carries.",
    flag_values=FLAGS,
)
GPT2 = flags.DEFINE_string(
    "gpt2",
    SHIPPED,
    f"GPT-2 checkpoint: a directory or a hub id, such as gpt2; {SHIPPED!r} is the small one that the "
    "package carries.",
    flag_values=FLAGS,
)
