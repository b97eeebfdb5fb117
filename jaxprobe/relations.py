"""Factual relations: the fifteen the package carries, the seed's nine, or a user's file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxprobe.errors import ProbeError
from jaxprobe.shipped import ASSETS
from jaxprobe.texts import Texts, read_lines, shorten

_SEED_NINE = ("P36", "P449", "P530", "P463", "P264", "P413", "P30", "P495", "P279")


@dataclass(frozen=True)
class Fact:
    """One sentence, and the object that completes it."""

    text: str
    object: str


@dataclass(frozen=True)
class Relation:
    """Facts of one kind. `id` is Wikidata's, such as P36; `label` says it in words, such as capital."""

    id: str
    label: str
    facts: tuple[Fact, ...]

    @property
    def name(self) -> str:
        """As tables show it: `P36 (capital)`."""
        return f"{self.id} ({self.label})"

    @property
    def texts(self) -> tuple[str, ...]:
        """The sentences, in order."""
        return tuple(fact.text for fact in self.facts)


_SEED_P279 = (
    Fact("A square is a subclass of a rectangle.", "rectangle"),
    Fact("A dog is a subclass of a mammal.", "mammal"),
    Fact("A car is a subclass of a vehicle.", "vehicle"),
)


def load_relations(path: str | Path = ASSETS / "relations.json") -> tuple[Relation, ...]:
    """Reads [{relation, label, facts: [{text, object}]}]; default: the fifteen the package carries.

    Raises:
      ProbeError: when the file cannot be read, or an entry is malformed: it names the entry and the field.
    """
    text = "\n".join(read_lines(path))
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ProbeError(f"{path}: not JSON: {error}") from error
    relations = tuple(
        _relation(entry, f"{path}: entry {number}")
        for number, entry in enumerate(_list(entries, f"{path}: the file"), 1)
    )
    ids = [relation.id for relation in relations]
    for number, identifier in enumerate(ids):
        if identifier in ids[:number]:
            raise ProbeError(f"{path}: entry {number + 1}: relation {identifier} is there already")
    return relations


def _relation(entry: Any, where: str) -> Relation:
    identifier = _string(entry, "relation", where)
    where = f"{where} ({identifier})"
    if "facts" not in entry:
        raise ProbeError(f"{where}: field 'facts' is missing")
    return Relation(
        id=identifier,
        label=_string(entry, "label", where),
        facts=tuple(
            Fact(
                _string(fact, "text", f"{where}, fact {number}"),
                _string(fact, "object", f"{where}, fact {number}"),
            )
            for number, fact in enumerate(_list(entry["facts"], f"{where}: field 'facts'"), 1)
        ),
    )


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ProbeError(f"{where} must be a list with at least one entry, got {shorten(value)}")
    return value


def _string(entry: Any, name: str, where: str) -> str:
    if not isinstance(entry, dict):
        raise ProbeError(f"{where} must be an object with field {name!r}, got {shorten(entry)}")
    if name not in entry:
        raise ProbeError(f"{where}: field {name!r} is missing")
    if not isinstance(entry[name], str) or not entry[name].strip():
        raise ProbeError(
            f"{where}: field {name!r} must be a string that is not empty, got {shorten(entry[name])}"
        )
    return entry[name]


def seed_relations() -> tuple[Relation, ...]:
    """The nine of the seed's percentage analysis, in its order, with its own facts for P279."""
    known = {relation.id: relation for relation in load_relations()}
    return tuple(
        Relation(key, known[key].label, _SEED_P279 if key == "P279" else known[key].facts)
        for key in _SEED_NINE
    )


def select_relations(choice: str) -> tuple[Relation, ...]:
    """The relations of `--relations`: `seed`, `all`, ids such as `P36,P449` of the fifteen, or a JSON file.

    Raises:
      ProbeError: when an id is unknown or given twice, or the file is malformed.
    """
    if choice == "seed":
        return seed_relations()
    if choice.endswith(".json") or Path(choice).is_file():
        return load_relations(choice)
    known = {relation.id: relation for relation in load_relations()}
    if choice == "all":
        return tuple(known.values())
    keys = [key.strip() for key in choice.split(",")]
    for number, key in enumerate(keys):
        if key not in known:
            raise ProbeError(
                f"--relations: no relation {key!r}; expected seed, all, FILE.json or of {', '.join(known)}"
            )
        if key in keys[:number]:
            raise ProbeError(f"--relations: {key} is given twice")
    return tuple(known[key] for key in keys)


def relation_texts() -> Texts:
    """The relation sentences in order: the default texts."""
    return Texts(
        tuple(text for relation in load_relations() for text in relation.texts), "the relation sentences"
    )
