"""Sets of units to compare a chosen set with, all of its size: pure functions of activations and a seed.

An effect says something about the chosen units only beside what other units of the same number do:

    random         drawn uniformly; a set may share units with the chosen one
    high_norm      the largest mean square activation
    high_variance  the largest variance over all tokens
    low_variance   the smallest variance over texts of the average over a text's tokens
    norm_matched   none of the chosen units, random but for exchanges that bring the energy (the sum of the
                   units' mean square activations) as close as it gets to that of the chosen set

Energy is of the facts that units are chosen on. It is what an edit removes only where that is zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxprobe.array_typing import Float, Int, np
from jaxprobe.matched.fact_splits import generator

RANDOM, NORM_MATCHED = "random", "norm_matched"
NORM_TOLERANCE = 0.01  # of the chosen set's energy: no closer match is sought
_PURPOSES = {RANDOM: 11, NORM_MATCHED: 12}


@dataclass(frozen=True)
class UnitStatistics:
    """A site's units over the texts by which units are chosen.

    Attributes:
      text_variance: over texts, of the average over a text's tokens.
      token_variance: over all tokens of all texts.
      energy: mean square over all tokens of all texts.
    """

    text_variance: Float[np.ndarray, " w"]
    token_variance: Float[np.ndarray, " w"]
    energy: Float[np.ndarray, " w"]


def unit_statistics(
    means: Float[np.ndarray, "b w"], spreads: Float[np.ndarray, "b w"], lengths: Int[np.ndarray, " b"]
) -> UnitStatistics:
    """Statistics over texts from those within each text.

    Args:
      means: average over each text's tokens. spreads: population variance over them.
      lengths: tokens of each text.
    """
    # A variance as energy - mean^2 would cancel where a unit is far from zero.
    weights = lengths / lengths.sum()
    means, spreads = means.astype(np.float64), spreads.astype(np.float64)
    return UnitStatistics(
        text_variance=means.var(axis=0),
        token_variance=weights @ (spreads + (means - weights @ means) ** 2),
        energy=weights @ (spreads + means**2),
    )


def control_sets(
    statistics: UnitStatistics, chosen: Sequence[int], count: int, seed: int, relation: str
) -> dict[str, Int[np.ndarray, "_ k"]]:
    """The sets by kind: `count` random ones, a fifth as many norm-matched ones, and one of every other kind.

    Args:
      statistics: of the site's w units.
      chosen: the chosen units. Where w - k < k there are no k others, and no norm-matched sets.
      count: how many random sets.
      seed: the run's. relation: its id.
    """
    width, k = len(statistics.energy), len(chosen)
    sets = {
        RANDOM: random_sets(width, k, count, seed, relation),
        "high_norm": _top(-statistics.energy, k),
        "high_variance": _top(-statistics.token_variance, k),
        "low_variance": _top(statistics.text_variance, k),
    }
    if width >= 2 * k:
        sets[NORM_MATCHED] = norm_matched_sets(statistics.energy, chosen, -(-count // 5), seed, relation)
    return sets


def random_sets(width: int, k: int, count: int, seed: int, relation: str) -> Int[np.ndarray, "s k"]:
    """`count` sets of k different units of `width`, each drawn afresh: set i does not depend on `count`."""
    rngs = (generator(seed, relation, _PURPOSES[RANDOM], number) for number in range(count))
    return np.stack([rng.choice(width, k, replace=False) for rng in rngs]).astype(np.int32)


def norm_matched_sets(
    energy: Float[np.ndarray, " w"], chosen: Sequence[int], count: int, seed: int, relation: str
) -> Int[np.ndarray, "s k"]:
    """Sets of other units with about the energy of the chosen ones.

    From a random set, members in random order are exchanged for the unit that leaves the sum closest to the
    target, until it is within 1% or every member has had its turn.
    """
    target = energy[list(chosen)].sum()
    rngs = (generator(seed, relation, _PURPOSES[NORM_MATCHED], number) for number in range(count))
    return np.stack([_match(energy, chosen, target, rng) for rng in rngs]).astype(np.int32)


def _match(energy, chosen, target, rng) -> Int[np.ndarray, " k"]:
    free = np.ones(len(energy), bool)
    free[list(chosen)] = False
    members = rng.choice(np.flatnonzero(free), len(chosen), replace=False)
    free[members] = False
    for place in rng.permutation(len(members)):
        total = energy[members].sum()
        if abs(total - target) <= NORM_TOLERANCE * target:
            break
        free[members[place]] = True  # it may stay
        others = np.flatnonzero(free)
        wanted = target - (total - energy[members[place]])
        members[place] = others[np.argmin(np.abs(energy[others] - wanted))]
        free[members[place]] = False
    return members


def _top(order: Float[np.ndarray, " w"], k: int) -> Int[np.ndarray, "1 k"]:
    return np.argsort(order, kind="stable")[None, :k].astype(np.int32)
