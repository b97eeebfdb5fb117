"""Relations from outside: files in this project's format or LRE's, and data sets; see docs/relations.md."""

import json
from pathlib import Path
from typing import Any

from jaxprobe.errors import ProbeError
from jaxprobe.relation_records import Fact, Relation, distinct, template_fault
from jaxprobe.relation_records import sentence as fill
from jaxprobe.texts import read_lines, shorten

DATASET_PREFIX = "hf:"


def read_relations(path: str | Path) -> tuple[Relation, ...]:
    """The relations of a JSON file: a list in this project's format, or one relation in LRE's.

    LRE: Hernandez et al. 2023, "Linearity of Relation Decoding in Transformer Language Models"; sentences
    follow the first of the file's `prompt_templates`.

    Raises:
      ProbeError: when the file cannot be read, or an entry is malformed: it names the file, the entry and
        the field. Also where two facts of a relation in this project's format have the same text.
    """
    try:
        content = json.loads("\n".join(read_lines(path)))
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{path}: not JSON: {error}") from error
    if isinstance(content, dict):
        return (_lre_relation(content, str(path)),)
    relations = tuple(
        _own_relation(entry, f"{path}: entry {number}")
        for number, entry in enumerate(_filled(content, f"{path}: the file"), 1)
    )
    ids = [relation.id for relation in relations]
    for number, identifier in enumerate(ids):
        if identifier in ids[:number]:
            raise ProbeError(f"{path}: entry {number + 1}: relation {identifier} is there already")
    return relations


def relation_files(folder: str | Path) -> list[Path]:
    """Every .json file under a folder, at any depth, sorted by path.

    Raises:
      ProbeError: when there is none.
    """
    files = sorted(Path(folder).rglob("*.json"))
    if not files:
        raise ProbeError(f"{folder}: expected a folder with .json files of relations, found none under it")
    return files


def read_dataset(source: str) -> tuple[Relation, ...]:
    """The relations of `hf:ID[:CONFIG[:SPLIT]]`, in the order in which they first appear.

    A row is one fact: columns `relation` and `object`, and `text`, or else `subject` and `template`. The ID
    is what `datasets.load_dataset` takes, so a local folder of JSON, CSV or Parquet files too.

    Raises:
      ProbeError: when the data set cannot be loaded (from the hub, where it is not in datasets' cache), when
        it has several splits and none is named, or when a column or a value is missing.
    """
    name, config, split, *more = [*source.removeprefix(DATASET_PREFIX).split(":"), "", ""]
    if not name or any(more):
        raise ProbeError(f"{source}: expected {DATASET_PREFIX}ID[:CONFIG[:SPLIT]]")
    rows = _load_dataset(source, name, config or None, split or None)
    columns = set(rows.column_names)
    if not (
        {"relation", "object"} <= columns and ({"text"} <= columns or {"subject", "template"} <= columns)
    ):
        raise ProbeError(
            f"{source}: expected columns relation and object, and text or else subject and template; "
            f"got {', '.join(rows.column_names)}"
        )
    facts: dict[str, list[Fact]] = {}
    for number, row in enumerate(rows, 1):
        where = f"{source}: row {number}"
        entry = {
            key: value for key, value in row.items() if value is not None
        }  # null is datasets' word for absent
        template = None if "template" not in entry else _template(entry, "template", where)
        facts.setdefault(_title(entry, "relation", where), []).append(_fact(entry, where, template))
    if not facts:
        raise ProbeError(f"{source}: has no rows; expected one a fact")
    return tuple(Relation(key, key, *distinct(group)) for key, group in facts.items())


def _load_dataset(source: str, name: str, config: str | None, split: str | None) -> Any:
    try:
        import datasets  # slow to import
        import huggingface_hub

        huggingface_hub.logging.set_verbosity_error()  # each retry would be a line of its own
        data = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # datasets raises many kinds: no network, no cache, no such split
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ProbeError(f"{source}: the data set cannot be loaded ({reason})") from error
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        expected = f"{DATASET_PREFIX}{name}:{config or ''}:SPLIT"
        raise ProbeError(f"{source}: expected {expected} with SPLIT one of {', '.join(map(str, data))}")
    return next(iter(data.values()))


def _own_relation(entry: Any, where: str) -> Relation:
    identifier = _title(entry, "relation", where)
    where = f"{where} ({identifier})"
    template = _template(entry, "template", where) if "template" in entry else None
    label = _title(entry, "label", where)
    facts = []
    first: dict[str, int] = {}  # text -> number of its fact
    for number, item in enumerate(_items(entry, "facts", where), 1):
        fact = _fact(item, f"{where}, fact {number}", template)
        if fact.text in first:
            raise ProbeError(
                f"{where}, fact {number}: field 'text' is that of fact {first[fact.text]}; expected a text "
                f"of its own, got {shorten(fact.text)}"
            )
        first[fact.text] = number
        facts.append(fact)
    return Relation(identifier, label, tuple(facts))


def _lre_relation(content: dict[str, Any], where: str) -> Relation:
    if not {"prompt_templates", "samples"} & content.keys():
        raise ProbeError(
            f"{where}: the file must be a list of relations, or an LRE relation with name, prompt_templates "
            f"and samples, got {shorten(content)}"
        )
    name = _title(content, "name", where)
    templates = _items(content, "prompt_templates", where)
    template = _checked(templates[0], f"{where}: field 'prompt_templates', entry 1")
    samples = _items(content, "samples", where)
    facts = [_fact(sample, f"{where}: sample {number}", template) for number, sample in enumerate(samples, 1)]
    return Relation(name, name, *distinct(facts))


def _fact(entry: Any, where: str, template: str | None) -> Fact:
    answer = _string(entry, "object", where)
    if "text" in entry or template is None:
        subject = _string(entry, "subject", where) if "subject" in entry else None
        return Fact(_string(entry, "text", where), answer, subject)
    subject, answer = _string(entry, "subject", where).strip(), answer.strip()
    return Fact(fill(template, subject, answer), answer, subject)


def _template(entry: Any, name: str, where: str) -> str:
    return _checked(_string(entry, name, where), f"{where}: field {name!r}")


def _checked(template: Any, where: str) -> str:
    if not isinstance(template, str):
        raise ProbeError(f"{where} must be a string, got {shorten(template)}")
    fault = template_fault(template)
    if fault:
        raise ProbeError(f"{where} {fault}, got {shorten(template)}")
    return _text(template, where)


def _items(entry: dict[str, Any], name: str, where: str) -> list[Any]:
    if name not in entry:
        raise ProbeError(f"{where}: field {name!r} is missing")
    return _filled(entry[name], f"{where}: field {name!r}")


def _filled(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ProbeError(f"{where} must be a list with at least one entry, got {shorten(value)}")
    return value


def _title(entry: Any, name: str, where: str) -> str:
    value = _string(entry, name, where).strip()
    if len(value.splitlines()) > 1:
        raise ProbeError(f"{where}: field {name!r} must be one line, got {shorten(value)}")
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
    return _text(entry[name], f"{where}: field {name!r}")


def _text(value: str, where: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in value):  # JSON can spell them, UTF-8 cannot
        raise ProbeError(f"{where} must be Unicode text, got a lone surrogate in {shorten(value)}")
    return value
