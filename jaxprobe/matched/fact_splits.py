"""Which facts of a relation choose its units, which are scored, and whose activation replaces whose.

All of it follows from the run's seed and the relation's id, so that it is the same for every model.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from jaxprobe.array_typing import Int, np
from jaxprobe.errors import ProbeError
from jaxprobe.relations import Relation
from jaxprobe.run_configs import Mode

SELECTION_FACTS = 25  # at most; as many as the original study looks at
_LEAST_FACTS = 3  # two to choose units by, one to score
_SPLIT, _DONORS = 1, 2  # so that the draws for two purposes are independent


@dataclass(frozen=True)
class Split:
    """Places of facts in their relation, ascending: no fact both chooses units and is scored."""

    selection: tuple[int, ...]
    evaluation: tuple[int, ...]


def generator(seed: int, relation: str, *numbers: int) -> np.random.Generator:
    """The random numbers of one purpose for one relation.

    Args:
      seed: the run's. relation: its id.
      *numbers: which purpose, and which of its draws.
    """
    return np.random.default_rng((seed, zlib.crc32(relation.encode()), *numbers))


def check_facts(relations: Sequence[Relation], num_controls: int, mode: Mode) -> None:
    """Refuses relations with too few facts to choose units on some and score others.

    Raises:
      ProbeError: fewer than 3 facts; under mode resample, which replaces a scored text's activation by
        another's, fewer than 4, or fewer than 2 control texts.
    """
    if mode == "resample" and num_controls < 2:
        raise ProbeError(f"--mode=resample needs at least 2 control texts, got {num_controls}")
    least = _LEAST_FACTS + 1 if mode == "resample" else _LEAST_FACTS
    for relation in relations:
        if len(relation.facts) < least:
            raise ProbeError(
                f"{relation.name}: --protocol=matched with --mode={mode} needs at least {least} facts, some "
                f"to choose units by and others to score, got {len(relation.facts)}"
            )


def split_facts(count: int, seed: int, relation: str) -> Split:
    """A random max(2, min(25, count // 2)) of the facts to choose units by; the rest are scored.

    Args:
      count: how many facts the relation has, at least 3.
      seed: the run's. relation: its id.
    """
    order = generator(seed, relation, _SPLIT).permutation(count)
    selected = max(2, min(SELECTION_FACTS, count // 2))
    return Split(
        tuple(sorted(order[:selected].tolist())),
        tuple(sorted(order[selected:].tolist())),
    )


def derangement(count: int, seed: int, relation: str) -> Int[np.ndarray, " b"]:
    """A random permutation that leaves nothing in its place, uniform among them.

    Args:
      count: of how many, at least 2.
      seed: the run's. relation: an id.
    """
    rng, places = generator(seed, relation, _DONORS), np.arange(count)
    while True:  # about one permutation in e will do
        order = rng.permutation(count)
        if (order != places).all():
            return order
