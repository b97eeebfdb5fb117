"""The relations that `--relations` names: the package's own, and those of files, folders and data sets."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jaxprobe.errors import ProbeError
from jaxprobe.relation_records import Fact, Relation
from jaxprobe.relation_sources import DATASET_PREFIX, read_dataset, read_relations, relation_files
from jaxprobe.shipped import ASSETS
from jaxprobe.texts import Texts

__all__ = [
    "ENOUGH_FACTS",
    "FACTS_FILE",
    "Fact",
    "Relation",
    "check_several_facts",
    "load_relations",
    "relation_texts",
    "seed_relations",
    "select_relations",
]

# What the shipped pair memorised; begins with the fifteen of relations.json.
FACTS_FILE = ASSETS / "facts.json"
ENOUGH_FACTS = 30  # of a relation, for a paired comparison over its facts
_SEED_NINE = ("P36", "P449", "P530", "P463", "P264", "P413", "P30", "P495", "P279")
_SEED_P279 = (
    Fact("A square is a subclass of a rectangle.", "rectangle"),
    Fact("A dog is a subclass of a mammal.", "mammal"),
    Fact("A car is a subclass of a vehicle.", "vehicle"),
)


def load_relations(path: str | Path = ASSETS / "relations.json") -> tuple[Relation, ...]:
    """As `relation_sources.read_relations`; default: the study's fifteen."""
    return read_relations(path)


def seed_relations() -> tuple[Relation, ...]:
    """The nine of the original study's percentage analysis, in its order, with its own facts for P279."""
    known = {relation.id: relation for relation in load_relations()}
    return tuple(
        Relation(key, known[key].label, _SEED_P279 if key == "P279" else known[key].facts)
        for key in _SEED_NINE
    )


def select_relations(choice: str) -> tuple[Relation, ...]:
    """The relations of `--relations`: one or more of these, separated by commas, in that order.

    * `seed`, the seed's nine; `all`, the study's fifteen; `facts`, those of the package's facts file that
      have at least ENOUGH_FACTS facts.
    * an id of that file, such as `P36` or `capital_city`.
    * FILE.json, in this project's format or LRE's, or a FOLDER, whose .json files are all read.
    * `hf:ID[:CONFIG[:SPLIT]]`, a data set.

    Prints a line where repeated facts of LRE files or data sets are left out.

    Raises:
      ProbeError: when a name is unknown, a relation comes twice, or a file or data set is malformed.
    """
    whole = "," in choice and os.path.exists(os.path.expanduser(choice))  # a path that holds a comma
    keys = [choice] if whole else [key.strip() for key in choice.split(",")]
    found: dict[str, tuple[str, Relation]] = {}
    facts = {relation.id: relation for relation in load_relations(FACTS_FILE)}
    for origin, relation in (pair for key in keys for pair in _read(key, facts)):
        if relation.id in found:
            before = found[relation.id][0]
            by = "" if before == origin else f", by {before} and by {origin}"
            raise ProbeError(f"--relations: {relation.id} is given twice{by}")
        found[relation.id] = origin, relation
    relations = tuple(relation for _, relation in found.values())
    shortened = [f"{relation.left_out} of {relation.name}" for relation in relations if relation.left_out]
    if shortened:
        print(
            f"--relations: left out {', '.join(shortened)}: facts whose text or subject is there already, "
            "so that none counts twice"
        )
    return relations


def _read(key: str, facts: Mapping[str, Relation]) -> Iterator[tuple[str, Relation]]:
    """(where it is from, relation) for one name, id of `facts`, path or data set."""
    path = os.path.expanduser(key)
    if key == "seed":
        found = seed_relations()
    elif key == "all":
        found = load_relations()
    elif key == "facts":
        found = tuple(relation for relation in facts.values() if len(relation.facts) >= ENOUGH_FACTS)
    elif key in facts:
        found = (facts[key],)
    elif key.startswith(DATASET_PREFIX):
        found = read_dataset(key)
    elif os.path.isdir(path):
        for file in relation_files(path):
            yield from ((str(file), relation) for relation in load_relations(file))
        return
    elif key.endswith(".json") or os.path.isfile(path):
        found = load_relations(path)
    else:
        raise ProbeError(
            f"--relations: no relation {key!r}; expected seed, all, facts, FILE.json, FOLDER, hf:DATASET or "
            f"of {', '.join(facts)}"
        )
    yield from ((key, relation) for relation in found)


def relation_texts() -> Texts:
    """The relation sentences in order: the default texts, each with its relation's id as its group."""
    pairs = [(text, relation.id) for relation in load_relations() for text in relation.texts]
    texts, groups = zip(*pairs, strict=True)
    return Texts(texts, "the relation sentences", groups)


def check_several_facts(relations: Sequence[Relation]) -> None:
    """Refuses relations between whose sentences nothing can vary.

    Raises:
      ProbeError: one has a single fact.
    """
    for relation in relations:
        if len(relation.facts) < 2:
            raise ProbeError(f"{relation.name}: units that vary between facts need at least 2 facts, got 1")
