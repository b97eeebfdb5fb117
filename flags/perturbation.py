"""Which units are perturbed, how, and on which texts."""

from typing import get_args

from absl import flags

from jaxprobe.errors import ProbeError
from jaxprobe.flags import layer, site
from jaxprobe.flags.registry import FLAGS
from jaxprobe.run_configs import DEFAULT_RANDOM_SETS, Mode, Perturbation, Protocol, Study

DEFAULTS = Perturbation()

TOP_K = flags.DEFINE_integer(
    "top_k", DEFAULTS.top_k, "How many units, those of largest variance over texts.", flag_values=FLAGS
)
TOP_FRACTION = flags.DEFINE_float(
    "top_fraction",
    None,
    "Instead of --top_k: what part of the site's units, above 0 and at most 1. --protocol=matched only.",
    flag_values=FLAGS,
)
PROTOCOL = flags.DEFINE_enum(
    "protocol",
    DEFAULTS.protocol,
    get_args(Protocol),
    "seed: the original study to the digit, which reads and edits different sites; matched: one site on both "
    "models and, in delta_pct, units chosen on facts that are not scored, with control sets beside them.",
    flag_values=FLAGS,
)
MODE = flags.DEFINE_enum(
    "mode",
    DEFAULTS.mode,
    get_args(Mode),
    "What happens to the chosen units: set to zero, to their mean over the text or (matched) over the "
    "control texts, given noise, scaled, or (matched) given the activation of another fact.",
    flag_values=FLAGS,
)
NOISE_STD = flags.DEFINE_float(
    "noise_std",
    DEFAULTS.noise_std,
    "Standard deviation of the noise of --mode=noise.",
    flag_values=FLAGS,
)
SCALE = flags.DEFINE_list(
    "scale",
    [str(DEFAULTS.scale)],
    "Factor of --mode=scale. Several, as 0.5,0,0.25, are a sweep (--protocol=matched only); the first is "
    "then the factor of everything else that is measured.",
    flag_values=FLAGS,
)
RANDOM_SETS = flags.DEFINE_integer(
    "random_sets",
    None,
    "Random sets of units, as many as the chosen ones, to compare with. --protocol=matched only; without it: "
    f"{DEFAULT_RANDOM_SETS}.",
    flag_values=FLAGS,
)
STUDIES = flags.DEFINE_list(
    "studies",
    None,
    f"What is measured besides under --protocol=matched: none, or of {', '.join(get_args(Study))}. Without "
    "it: all of them.",
    flag_values=FLAGS,
)
RELATIONS = flags.DEFINE_string(
    "relations",
    None,
    "Factual relations, separated by commas: seed (the original study's nine), all (fifteen), facts (the 24 "
    "with at least 30 facts that the shipped pair memorised), ids such as P36 or capital_city, FILE.json or "
    "FOLDER (this project's format or LRE's), hf:ID[:CONFIG[:SPLIT]] (a data set); see docs/relations.md. "
    "Without it: seed in delta_pct, there facts under --protocol=matched; all in factual_recall.",
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
    if TOP_K.present and TOP_FRACTION.present:
        raise ProbeError("--top_k and --top_fraction exclude one another: give one of them")
    factors = _factors()
    return Perturbation(
        layer=DEFAULTS.layer if layer.LAYER.value is None else layer.LAYER.value,
        top_k=TOP_K.value,
        protocol=PROTOCOL.value,
        site=site.SITE.value,
        mode=MODE.value,
        noise_std=NOISE_STD.value,
        scale=factors[0],
        scales=factors if len(factors) > 1 else (),
        top_fraction=TOP_FRACTION.value,
        random_sets=RANDOM_SETS.value,
        studies=_studies(),
    )


def _factors() -> tuple[float, ...]:
    try:
        return tuple(float(factor) for factor in SCALE.value)
    except ValueError:
        raise ProbeError(
            f"--scale must be a number, or several with commas, got {','.join(SCALE.value)!r}"
        ) from None


def _studies() -> tuple[str, ...] | None:
    if STUDIES.value is None:
        return None
    return () if STUDIES.value == ["none"] else tuple(STUDIES.value)  # Perturbation checks the names
