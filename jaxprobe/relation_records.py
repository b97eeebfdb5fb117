"""A factual relation and its facts, and how a template becomes a sentence."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One sentence, and the object that completes it; whom or what it is about, where that is known."""

    text: str
    object: str
    subject: str | None = None


@dataclass(frozen=True)
class Relation:
    """Facts of one kind.

    Attributes:
      id: as `--relations` takes it, such as Wikidata's P36.
      label: says it in words, such as capital; equal to the id where the id does.
      facts: no two with the same text.
      left_out: how many entries of its source were not kept, as `distinct` says.
    """

    id: str
    label: str
    facts: tuple[Fact, ...]
    left_out: int = 0

    @property
    def name(self) -> str:
        """As tables show it: `P36 (capital)`, or `capital_city` where the label is the id."""
        return self.id if self.label == self.id else f"{self.id} ({self.label})"

    @property
    def texts(self) -> tuple[str, ...]:
        """The sentences, in order."""
        return tuple(fact.text for fact in self.facts)


def sentence(template: str, subject: str, answer: str) -> str:
    """The template filled in, its first letter a capital.

    Args:
      template: holds `{subject}`, or `{}` for short; without an `{object}`, the object comes last, after a
        space, and a full stop ends the sentence unless the object itself ends like one ("Washington D.C.").
      subject: put in as it stands, braces and all.
      answer: the object, likewise.
    """
    if "{object}" not in template:
        template = template.rstrip() + " {object}" + ("" if answer.endswith((".", "!", "?")) else ".")
    values = {"": subject, "subject": subject, "object": answer}
    text = re.sub(r"\{(subject|object|)\}", lambda place: values[place[1]], template)
    return text[:1].upper() + text[1:]


def template_fault(template: str) -> str | None:
    """What is wrong with a template, in words; None where `sentence` can fill it in."""
    places = re.findall(r"\{\w*\}", template)
    unknown = [place for place in places if place not in ("{}", "{subject}", "{object}")]
    if unknown:
        return f"has a place {unknown[0]}; it takes {{subject}} (or {{}}) and {{object}}"
    if not {"{}", "{subject}"} & set(places):
        return "must hold the subject's place, {subject} or {}"
    return None


def distinct(facts: Iterable[Fact]) -> tuple[tuple[Fact, ...], int]:
    """The facts whose text and whose subject, where known, come for the first time; and how many do not.

    The same text twice would count twice in every mean and bootstrap over facts; a subject with a second
    object is no fact of its own either, and leaves open which object recalls it.
    """
    kept, texts, subjects, left_out = [], set(), set(), 0
    for fact in facts:
        if fact.text in texts or fact.subject in subjects:
            left_out += 1
            continue
        kept.append(fact)
        texts.add(fact.text)
        if fact.subject is not None:
            subjects.add(fact.subject)
    return tuple(kept), left_out
