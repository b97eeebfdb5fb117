"""Delta-sensitive units: those of a site whose average over a text's tokens varies most from text to text."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxprobe.array_typing import Float, np
from jaxprobe.configs import ModelConfig
from jaxprobe.errors import ProbeError
from jaxprobe.run_configs import Perturbation
from jaxprobe.sites import (
    BLOCK_OUT,
    CONV_OUT,
    DELTA,
    GATE,
    MIXER_OUT,
    MLP_ACT,
    SSM_STATE,
    B,
    C,
    site_width,
    site_widths,
)

# What Mamba's mixer has inside and GPT-2 has not.
_MAMBAS_OWN = frozenset({GATE, CONV_OUT, DELTA, B, C, SSM_STATE})
SENSITIVE_TEXTS = 25  # the original study looks at the first 25 texts
# A change to what a protocol means raises its number, which every manifest carries.
PROTOCOL_VERSIONS = {"seed": 1, "matched": 1}


@dataclass(frozen=True)
class Sites:
    """Where the units are chosen, and where they are edited."""

    read: str
    edit: str


@dataclass(frozen=True)
class SensitiveUnits:
    """The chosen units, most sensitive first, and each one's variance over texts."""

    units: tuple[int, ...]
    variances: tuple[float, ...]


def protocol_sites(config: ModelConfig, perturbation: Perturbation) -> Sites:
    """The sites that a protocol reads and edits.

    The original study chooses units by the mixer's output on Mamba but by the residual stream on GPT-2, and
    then edits the residual stream of both: two sites on one side of its comparison. `matched` uses one site.
    """
    if perturbation.protocol == "seed":
        return Sites(MIXER_OUT if config.architecture == "mamba" else BLOCK_OUT, BLOCK_OUT)
    site = perturbation.site or BLOCK_OUT
    return Sites(site, site)


def why_not(config: ModelConfig, perturbation: Perturbation) -> str | None:
    """Why a perturbation does not apply to a model: it lacks the layer or the site. None where it applies."""
    if perturbation.layer >= config.num_layers:
        return f"--layer={perturbation.layer}, but it has layers 0 to {config.num_layers - 1}"
    site, widths = protocol_sites(config, perturbation).read, site_widths(config)
    if site not in widths:
        near = (
            f"; nearest to {site} are {MIXER_OUT} and {MLP_ACT}"
            if site in _MAMBAS_OWN and MLP_ACT in widths
            else ""
        )
        return f"--site={site}, but it has {', '.join(widths)}{near}"
    return None


def unit_count(config: ModelConfig, perturbation: Perturbation) -> int:
    """How many units are edited: top_k, or the fraction of the site's width, rounded, at least one."""
    if perturbation.top_fraction is None:
        return perturbation.top_k
    width = site_width(config, protocol_sites(config, perturbation).read)
    return max(1, round(perturbation.top_fraction * width))


def check_top_k(config: ModelConfig, perturbation: Perturbation) -> None:
    """Refuses more units than the site is wide, which a fraction never asks for.

    Raises:
      ProbeError: it says how wide.
    """
    site = protocol_sites(config, perturbation).read
    width = site_width(config, site)
    if unit_count(config, perturbation) > width:
        raise ProbeError(
            f"--top_k must be at most {width}, the number of units at site {site} of this "
            f"{config.architecture} model, got {perturbation.top_k}"
        )


def most_sensitive(means: Float[np.ndarray, "b w"] | Sequence, top_k: int) -> SensitiveUnits:
    """The top_k units of largest population variance over the first 25 texts, largest first.

    Of units with equal variance the lower index comes first.

    Args:
      means: the site's activation, averaged over each text's tokens.
      top_k: how many, at most w.
    """
    variance = np.var(np.asarray(means, np.float64)[:SENSITIVE_TEXTS], axis=0)
    chosen = np.argsort(-variance, kind="stable")[:top_k]
    return SensitiveUnits(
        tuple(int(unit) for unit in chosen), tuple(float(variance[unit]) for unit in chosen)
    )
