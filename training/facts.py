"""The facts that the shipped pair memorises: the file, its format, and what keeps its prompts unambiguous.

`jaxprobe/assets/facts.json` is a list of relations in the format of `docs/relations.md`, which the commands
read as `--relations=facts`: `{relation, label, facts: [{text, object}]}`. Relations written from triples also
hold `template`, `held_out` (a second wording, never trained on) and a `subject` per fact. The first fifteen
relations are the study's own, as they stand in `relations.json` beside it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxprobe.errors import ProbeError
from jaxprobe.relation_records import sentence
from jaxprobe.relations import FACTS_FILE

NUM_STUDY_RELATIONS = 15


@dataclass(frozen=True)
class Fact:
    """One sentence that states one fact.

    `held_out` is the same fact in a wording that is never trained on; None where there is none.
    """

    relation: str
    text: str
    object: str
    held_out: str | None = None

    @property
    def prompt(self) -> str | None:
        """What comes before the object and its space; None where the object does not come last."""
        return prompt_of(self.text, self.object)


def prompt_of(text: str, answer: str) -> str | None:
    """`text` without its final " answer."; None where the text does not end that way."""
    ending = f" {answer}."
    return text[: -len(ending)] if text.endswith(ending) else None


def read_facts(path: Path = FACTS_FILE) -> tuple[list[Fact], list[Fact]]:
    """The facts of the study's fifteen relations, and all others.

    Raises:
      ProbeError: when the file is not such a list.
    """
    try:
        relations = json.loads(Path(path).read_text(encoding="utf-8"))
        groups = [
            [
                Fact(
                    relation=entry["relation"],
                    text=fact["text"],
                    object=fact["object"],
                    held_out=sentence(entry["held_out"], fact["subject"], fact["object"])
                    if "held_out" in entry
                    else None,
                )
                for fact in entry["facts"]
            ]
            for entry in relations
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProbeError(f"facts file {path}: expected a list of relations, got {error!r}") from error
    study, others = groups[:NUM_STUDY_RELATIONS], groups[NUM_STUDY_RELATIONS:]
    return [fact for group in study for fact in group], [fact for group in others for fact in group]


def ambiguities(texts_and_objects: list[tuple[str, str]]) -> list[str]:
    """Prompts that some other sentence continues differently, each as one line that names both.

    A prompt is ambiguous when a sentence that begins with it does not go on with its object.
    """
    prompts = [(text, prompt_of(text, answer), answer) for text, answer in texts_and_objects]
    return [
        f"{text!r} and {other!r}"
        for text, prompt, answer in prompts
        if prompt is not None
        for other, _ in texts_and_objects
        if other.startswith(f"{prompt} ") and not other.startswith(f"{prompt} {answer}")
    ]
