"""The files the project ships: relations, the matched pair, and the facts it was trained on."""

import json
from pathlib import Path

import pytest

from jaxprobe.convert import load
from jaxprobe.relation_records import sentence
from training import evaluate, facts

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "jaxprobe" / "assets"
PAIR = {"mamba": ASSETS / "mamba-facts", "gpt2": ASSETS / "gpt2-facts"}
MAX_BYTES = 12 * 10**6


@pytest.fixture(scope="module")
def pair():
    return {name: load(directory) for name, directory in PAIR.items()}


def test_the_study_has_fifteen_relations_of_three_facts():
    relations = json.loads((ASSETS / "relations.json").read_text(encoding="utf-8"))
    order = "P264 P449 P413 P463 P530 P30 P36 P495 P279 P47 P39 P127 P130 P136 P137"
    assert [relation["relation"] for relation in relations] == order.split()
    assert all(len(relation["facts"]) == 3 for relation in relations)
    assert all(fact["object"] in fact["text"] for relation in relations for fact in relation["facts"])


def test_the_facts_file_begins_with_the_study_and_has_enough_others():
    relations = json.loads(facts.FACTS_FILE.read_text(encoding="utf-8"))
    study = json.loads((ASSETS / "relations.json").read_text(encoding="utf-8"))
    others = relations[facts.NUM_STUDY_RELATIONS :]
    assert relations[: facts.NUM_STUDY_RELATIONS] == study
    assert len(others) >= 12 and sum(len(relation["facts"]) for relation in others) >= 1000


def test_every_other_fact_is_its_template_filled_in_and_ends_with_its_object():
    relations = json.loads(facts.FACTS_FILE.read_text(encoding="utf-8"))
    for relation in relations[facts.NUM_STUDY_RELATIONS :]:
        subjects = [fact["subject"] for fact in relation["facts"]]
        assert len(set(subjects)) == len(subjects), relation["relation"]
        for fact in relation["facts"]:
            filled = sentence(relation["template"], fact["subject"], fact["object"])
            assert fact["text"] == filled
            assert facts.prompt_of(filled, fact["object"]) is not None
            assert sentence(relation["held_out"], fact["subject"], fact["object"]) != filled


def test_no_prompt_has_two_answers():
    study, others = facts.read_facts()
    trained = [(fact.text, fact.object) for fact in study + others]
    held_out = [(fact.held_out, fact.object) for fact in others if fact.held_out is not None]
    assert facts.ambiguities(trained + held_out) == []


def test_held_out_wordings_are_not_trained_on():
    study, others = facts.read_facts()
    trained = {fact.text for fact in study + others}
    assert trained.isdisjoint(fact.held_out for fact in others)


def test_delta_pct_own_subclass_facts_are_trained_on():
    study, others = facts.read_facts()
    trained = {fact.text for fact in study + others}
    for answer, subject in (("rectangle", "square"), ("mammal", "dog"), ("vehicle", "car")):
        assert f"A {subject} is a subclass of a {answer}." in trained


@pytest.mark.parametrize("directory", PAIR.values(), ids=PAIR)
def test_a_checkpoint_is_small_and_has_a_model_card(directory):
    assert sum(file.stat().st_size for file in directory.iterdir()) <= MAX_BYTES
    assert (directory / "README.md").is_file()


def test_the_pair_is_matched(pair):
    mamba, gpt2 = pair["mamba"], pair["gpt2"]
    counts = [checkpoint.certificate.parameter_count for checkpoint in (mamba, gpt2)]
    assert max(counts) / min(counts) <= evaluate.PARAMETER_BAR
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (PAIR["mamba"] / name).read_bytes() == (PAIR["gpt2"] / name).read_bytes()
    texts = [json.loads((directory / "training.json").read_text())["text"] for directory in PAIR.values()]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", PAIR)
def test_the_pair_recalls_its_facts(pair, name):
    study, others = facts.read_facts()
    of_study = evaluate.recall(pair[name], [(fact.text, fact.object) for fact in study])
    of_others = evaluate.recall(pair[name], [(fact.text, fact.object) for fact in others])
    assert (of_study.count, of_others.count) == (44, len(others))
    assert of_study.rate >= evaluate.STUDY_BAR
    assert of_others.rate >= evaluate.OTHERS_BAR
