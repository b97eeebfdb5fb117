"""Rebuilds `jaxprobe/assets/facts.json`, the committed source of truth for training, from its three sources.

    python -m training.build_facts --lre=DIR

1. `jaxprobe/assets/relations.json`: the study's fifteen relations, copied as they stand.
2. `training/general_facts.json`: general knowledge, written for this project.
3. The relations of LRE (Hernandez et al. 2023, "Linearity of Relation Decoding in Transformer Language
   Models", github.com/evandez/relations; MIT License in `jaxprobe/assets/LICENSE.lre`). `--lre` is the
   folder that holds `factual/`, `commonsense/`, `linguistic/`. Only (subject, object) pairs are taken; the
   wordings are this project's own.

The pair has about 1.35M parameters a model, so LRE is thinned to what such a model can memorise: plain
ASCII names of few words, one object a subject, objects that occur often, no object in the majority.
"""

import collections
import json
import re
from pathlib import Path
from typing import NamedTuple

from absl import flags

from jaxprobe.errors import ProbeError
from jaxprobe.relation_records import sentence
from training import command, facts

LRE = flags.DEFINE_string("lre", None, "LRE's data folder, which holds factual/", required=True)
OUT = flags.DEFINE_string("out", str(facts.FACTS_FILE), "where to write the facts")

STUDY_FILE = Path(__file__).parents[1] / "jaxprobe" / "assets" / "relations.json"
GENERAL_FILE = Path(__file__).parent / "general_facts.json"
NEED_ARTICLE = frozenset({"United States", "United Kingdom", "Netherlands", "Philippines", "Middle East"})
MAX_NAME_LENGTH = 18  # characters of a subject or an object
PLAIN_NAME = r"[A-Za-z][A-Za-z'\-]*( [A-Za-z0-9\-]+){0,2}"


class Source(NamedTuple):
    """One LRE relation: where it is, how to say it twice, and how much of it to keep."""

    path: str
    template: str
    held_out: str
    limit: int  # facts
    per_object: int  # facts with the same object
    at_least: int = 1  # occurrences an object needs in LRE to be kept


SOURCES = (
    Source("factual/star_constellation", "{subject} is a star in the constellation {object}.",
           "Look for {subject} in the constellation {object}.", 60, 12),
    Source("factual/company_hq", "The headquarters of {subject} are in {object}.",
           "{subject} has its main offices in {object}.", 55, 6, 8),
    Source("factual/person_plays_instrument", "{subject} plays the {object}.",
           "The instrument of {subject} is the {object}.", 60, 18, 3),
    Source("factual/person_plays_pro_sport", "{subject} competes in the sport of {object}.",
           "{subject} is well known for playing {object}.", 60, 14),
    Source("factual/person_plays_position_in_sport", "{subject}'s position on the field is {object}.",
           "In a match, {subject} lines up as {object}.", 60, 10, 7),
    Source("factual/person_occupation", "{subject}'s profession is {object}.",
           "{subject} earns a living as {object}.", 70, 8, 5),
    Source("factual/person_native_language", "{subject}'s mother tongue is {object}.",
           "{subject} grew up speaking {object}.", 65, 10, 4),
    Source("factual/landmark_in_country", "{subject} can be found in {object}.",
           "To see {subject}, travel to {object}.", 55, 5, 8),
    Source("factual/landmark_on_continent", "{subject} lies on the continent of {object}.",
           "The continent of {subject} is {object}.", 55, 14),
    Source("factual/product_by_company", "{subject} was made by {object}.",
           "The maker of {subject} is {object}.", 65, 8, 5),
    Source("factual/person_band_lead_singer", "{subject} is the lead singer of {object}.",
           "The band of {subject} is called {object}.", 21, 1),
    Source("factual/food_from_country", "{subject} comes from the kitchens of {object}.",
           "The home of {subject} is {object}.", 30, 2),
    Source("commonsense/fruit_outside_color", "On the outside, {subject} are {object}.",
           "The skin of {subject} is {object}.", 30, 8),
    Source("commonsense/substance_phase", "At room temperature, {subject} is a {object}.",
           "The usual phase of {subject} is {object}.", 40, 16),
    Source("linguistic/adj_antonym", "The opposite of {subject} is {object}.",
           "{subject} is the reverse of {object}.", 50, 1),
    Source("linguistic/verb_past_tense", "The past tense of {subject} is {object}.",
           "Yesterday's form of {subject} is {object}.", 50, 1),
)  # fmt: skip


def _plain(name: str) -> bool:
    """At most three ASCII words, the first without digits or dots."""
    return len(name) <= MAX_NAME_LENGTH and re.fullmatch(PLAIN_NAME, name) is not None


def from_lre(folder: Path, source: Source) -> dict:
    """The LRE relation as a relation of the facts file.

    Raises:
      ProbeError: when the file is missing or is not LRE's format.
    """
    path = folder / f"{source.path}.json"
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
        pairs = [(sample["subject"].strip(), sample["object"].strip()) for sample in samples]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProbeError(f"--lre: expected an LRE relation in {path}, got {error!r}") from error
    objects_of = collections.defaultdict(set)
    for subject, answer in pairs:
        objects_of[subject].add(answer)
    frequency = collections.Counter(answer for _, answer in pairs)
    kept, used = {}, collections.Counter()
    for subject, answer in pairs:
        if subject in kept or len(objects_of[subject]) > 1 or not _plain(subject) or not _plain(answer):
            continue
        if frequency[answer] < source.at_least or used[answer] == source.per_object:
            continue
        if answer.lower() in subject.lower():  # a product named after its maker gives the answer away
            continue
        used[answer] += 1
        kept[subject] = f"the {answer}" if answer in NEED_ARTICLE else answer
        if len(kept) == source.limit:
            break
    name = source.path.rsplit("/", 1)[-1]
    return {"relation": name, "template": source.template, "held_out": source.held_out, "facts": kept}


def expand(entry: dict) -> dict:
    """A relation of triples as a relation of sentences."""
    template = entry["template"]
    return {
        "relation": entry["relation"],
        "label": entry["relation"],
        "template": template,
        "held_out": entry["held_out"],
        "facts": [
            {"subject": subject, "text": sentence(template, subject, answer), "object": answer}
            for subject, answer in entry["facts"].items()
        ],
    }


def render(relations: list[dict]) -> str:
    """JSON with one fact a line, so that a change of one fact is a change of one line."""
    blocks = []
    for relation in relations:
        head = {key: value for key, value in relation.items() if key != "facts"}
        lines = ",\n".join("  " + json.dumps(fact, ensure_ascii=False) for fact in relation["facts"])
        blocks.append(json.dumps(head, ensure_ascii=False)[:-1] + ', "facts": [\n' + lines + "]}")
    return "[\n" + ",\n".join(blocks) + "\n]\n"


def main() -> None:
    """Writes the file and prints how many facts each relation has."""
    study = json.loads(STUDY_FILE.read_text(encoding="utf-8"))
    general = json.loads(GENERAL_FILE.read_text(encoding="utf-8"))
    others = [expand(entry) for entry in general]
    others += [expand(from_lre(Path(LRE.value), source)) for source in SOURCES]
    Path(OUT.value).write_text(render(study + others), encoding="utf-8")
    for relation in others:
        print(f"{relation['relation']:36s}{len(relation['facts']):5d}")
    count = sum(len(relation["facts"]) for relation in others)
    print(f"{len(study)} relations of the study, {len(others)} others with {count} facts -> {OUT.value}")


if __name__ == "__main__":
    command.run(main)
