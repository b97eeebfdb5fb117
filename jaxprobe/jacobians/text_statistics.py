"""The original study's statistics of hidden states and logits over texts. numpy in float64.

Every standard deviation and variance is the population's.
"""

from jaxprobe.array_typing import Float, np

RANK_TEXTS = 50  # the original study's effective rank is over the first 50 texts
SECANT_PAIRS = 20  # its Lipschitz estimate is over the first 20 pairs of neighbouring texts


def output_variance(logits: Float[np.ndarray, "b v"]) -> float:
    """Variance over texts of the last-token logits, mean over the vocabulary."""
    return float(np.var(logits.astype(np.float64), axis=0).mean())


def effective_rank(hidden: Float[np.ndarray, "b d"]) -> float:
    """Exponential of the entropy of the normalised singular values of last-token hidden states.

    Roy and Vetterli 2007, with the original study's two offsets of 1e-8, over the first 50 texts. It cannot
    exceed the number of texts or the width. nan where a state is not finite.
    """
    if not np.isfinite(hidden[:RANK_TEXTS]).all():
        return np.nan
    sigma = np.linalg.svd(hidden[:RANK_TEXTS].astype(np.float64), compute_uv=False)
    share = sigma / (sigma.sum() + 1e-8)
    return float(np.exp(-np.sum(share * np.log(share + 1e-8))))


def secant_lipschitz(
    hidden: Float[np.ndarray, "b d"], logits: Float[np.ndarray, "b v"]
) -> Float[np.ndarray, " p"]:
    """||logits_i - logits_{i+1}|| / ||h_i - h_{i+1}|| at the last token, for the first 20 pairs of texts.

    Pairs at most 1e-8 apart are left out. The two texts of a pair have different contexts, so these ratios
    bound the Lipschitz constant of no single map, and none bounds them.
    """
    hidden = hidden[: SECANT_PAIRS + 1].astype(np.float64)
    logits = logits[: SECANT_PAIRS + 1].astype(np.float64)
    apart = np.linalg.norm(np.diff(hidden, axis=0), axis=1)
    moved = np.linalg.norm(np.diff(logits, axis=0), axis=1)
    distinct = apart > 1e-8
    return moved[distinct] / apart[distinct]
