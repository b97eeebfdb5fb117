"""Which units are perturbed, how, and on which texts."""

from typing import get_args

from absl import flags

from jaxprobe.errors import ProbeError
from jaxprobe.flags import layer
from jaxprobe.flags.registry import FLAGS
from jaxprobe.run_configs import Mode, Perturbation, Protocol

DEFAULTS = Perturbation()

TOP_K = flags.DEFINE_integer(
    "top_k", DEFAULTS.top_k, "How many units, those of largest variance over texts.", flag_values=FLAGS
)
PROTOCOL = flags.DEFINE_enum(
    "protocol",
    DEFAULTS.protocol,
    get_args(Protocol),
    "seed: the original study to the digit, which reads and edits different sites; matched: one site on both "
    "models.",
    flag_values=FLAGS,
)
SITE = flags.DEFINE_string(
    "site",
    None,
    "Site read and edited under --protocol=matched; without it: block_out. Refused under seed.",
    flag_values=FLAGS,
)
MODE = flags.DEFINE_enum(
    "mode", DEFAULTS.mode, get_args(Mode), "What happens to the chosen units.", flag_values=FLAGS
)
NOISE_STD = flags.DEFINE_float(
    "noise_std",
    DEFAULTS.noise_std,
    "Standard deviation of the noise of --mode=noise.",
    flag_values=FLAGS,
)
SCALE = flags.DEFINE_float("scale", DEFAULTS.scale, "Factor of --mode=scale.", flag_values=FLAGS)
RELATIONS = flags.DEFINE_string(
    "relations",
    None,
    "Factual relations: seed (the original study's nine), all (fifteen), ids such as P36,P449 (of the "
    "fifteen), or FILE.json. Without it: seed in delta_pct, all in factual_recall.",
    flag_values=FLAGS,
)
CONTROLS = flags.DEFINE_string(
    "controls",
    "builtin",
    "Control texts: builtin (fifty of the package's own), wikitext, or FILE.txt, one a line.",
    flag_values=FLAGS,
)


def to_config() -> Perturbation:
    """The perturbation that the command line asks for.

    Raises:
      ProbeError: when a value is out of range, or a setting is given for a mode that does not use it.
    """
    for flag, mode in ((NOISE_STD, "noise"), (SCALE, "scale")):
        if flag.present and MODE.value != mode:
            raise ProbeError(f"--{flag.name} needs --mode={mode}, got --mode={MODE.value}")
    return Perturbation(
        layer=DEFAULTS.layer if layer.LAYER.value is None else layer.LAYER.value,
        top_k=TOP_K.value,
        protocol=PROTOCOL.value,
        site=SITE.value,
        mode=MODE.value,
        noise_std=NOISE_STD.value,
        scale=SCALE.value,
    )
