"""How to compute: number format, device, scan, randomness, batches, cache."""

from typing import get_args

from absl import flags

from jaxprobe.configs import DeviceName, DTypeName
from jaxprobe.flags.registry import FLAGS
from jaxprobe.run_configs import Compute, ScanName

DEFAULTS = Compute()

DTYPE = flags.DEFINE_enum(
    "dtype", DEFAULTS.dtype, get_args(DTypeName), "Number format of all arithmetic.", flag_values=FLAGS
)
DEVICE = flags.DEFINE_enum(
    "device",
    DEFAULTS.device,
    get_args(DeviceName),
    "Where to compute; auto takes a GPU where there is one.",
    flag_values=FLAGS,
)
SCAN = flags.DEFINE_enum(
    "scan",
    DEFAULTS.scan,
    get_args(ScanName),
    "How Mamba's selective scan runs; auto goes by measurements.",
    flag_values=FLAGS,
)
SEED = flags.DEFINE_integer("seed", DEFAULTS.seed, "Seed of every random draw.", flag_values=FLAGS)
BATCH_TOKENS = flags.DEFINE_integer(
    "batch_tokens",
    DEFAULTS.batch_tokens,
    "The most tokens in one batch of each device, padding included.",
    flag_values=FLAGS,
)
COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache",
    DEFAULTS.compile_cache,
    "Folder that keeps compiled programs between runs, or off. Without it: $JAXPROBE_CACHE/xla, else "
    "~/.cache/jaxprobe/xla.",
    flag_values=FLAGS,
)


def to_config() -> Compute:
    """The compute settings.

    Raises:
      ProbeError: when a value is out of range.
    """
    return Compute(
        dtype=DTYPE.value,
        device=DEVICE.value,
        scan=SCAN.value,
        seed=SEED.value,
        batch_tokens=BATCH_TOKENS.value,
        compile_cache=COMPILE_CACHE.value,
    )
