"""Flags of `python -m jaxprobe.inspect_model`."""

from absl import flags

from jaxprobe.flags import compute, model_list
from jaxprobe.flags.registry import FLAGS
from jaxprobe.run_configs import InspectRun

GROUPS = (model_list, compute)

VERIFY = flags.DEFINE_boolean(
    "verify",
    False,
    "Compare logits and gradients with HF's torch module in float32; needs torch.",
    flag_values=FLAGS,
)


def to_config() -> InspectRun:
    """The run that the command line asks for.

    Raises:
      ProbeError: when a value is out of range.
    """
    return InspectRun(models=model_list.to_config(), verify=VERIFY.value, compute=compute.to_config())
