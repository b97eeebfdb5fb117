"""Recall of objects, and `python -m jaxprobe.factual_recall` from flags to files."""

import csv
import importlib
import json
import re

import checkpoints
import numpy as np
import pytest
from support import REFERENCE, TINY, needs_reference, random_params
from test_delta_pct import CONTROLS, RELATIONS

from jaxprobe import cli, convert
from jaxprobe.batches import tokenize
from jaxprobe.flags import factual_recall as flags
from jaxprobe.models import LanguageModel
from jaxprobe.original.study import Corpus, prepare, summarise
from jaxprobe.recall.decoding import FactRecall, accuracy, find_object, recall
from jaxprobe.relations import Fact, load_relations
from jaxprobe.scoring.edited import EditSpec

factual_recall = importlib.import_module("jaxprobe.factual_recall")
RESULTS = "factual_recall_results"
FACTS = tuple(Fact(**fact) for relation in RELATIONS for fact in relation["facts"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return {name: checkpoints.write(folder / name, config) for name, config in TINY.items()}


@needs_reference
def test_the_objects_tokens_spell_the_object():
    tokenizer = convert.load(REFERENCE / "models" / "gpt2-mini").tokenizer
    for relation in load_relations():
        for fact in relation.facts:
            ids = tokenizer.encode(fact.text)
            target = find_object(tokenizer, fact, len(ids))
            if fact.object == "Amtrak":
                assert "stands first" in (target.left_out or "")
            else:
                assert target.left_out is None
                assert tokenizer.decode(ids[target.start : target.stop]).strip() == fact.object


def test_objects_that_cannot_be_scored(pair):
    tokenizer = convert.load(pair["gpt2"]).tokenizer
    for fact, length, reason in [
        (Fact("w1 w2 w3", "w9"), 3, "not in its text"),
        (Fact("w1 w2 w3", "w1"), 3, "stands first"),
        (Fact("w1 w2 w3", "w3"), 2, "cut off"),
    ]:
        assert reason in (find_object(tokenizer, fact, length).left_out or "")
    target = find_object(tokenizer, Fact("w2 w3 w2 w3 w4", "w2 w3"), 5)
    assert (target.start, target.stop) == (2, 4)  # the last occurrence


@pytest.mark.parametrize("mode", ["zero", "noise"])
@pytest.mark.parametrize("key", TINY)
def test_greedy_recall_is_teacher_forcing_with_every_token_right(pair, key, mode, x64):
    """True of every edit that looks only backwards; with a random model both outcomes occur."""
    tokenizer = convert.load(pair[key]).tokenizer
    config, rng = TINY[key], np.random.default_rng(1)
    lm = LanguageModel(config)
    params = lm.place(random_params(config, seed=2), "float64")
    texts = [" ".join(f"w{i}" for i in rng.integers(1, 11, size=n)) for n in rng.integers(4, 9, size=40)]
    facts = [Fact(text, text.rpartition(" ")[2]) for text in texts]
    tokens = tokenize(texts, tokenizer, limit=16)
    spec = EditSpec("block_out", 1, mode, 1.0)
    corpus = Corpus((tokens,), tokenize(texts[:1], tokenizer, limit=16), None)
    study = prepare(lm, params, corpus, spec, read_site="block_out", top_k=3, batch_tokens=4096)
    (scores,) = summarise(study, [study.compute(i) for i in range(len(study.batches))])
    units = [scores.chosen.units] * len(facts)
    found = recall(lm, params, tokenizer, facts, tokens.ids, units, scores.before, scores.after, spec, 4096)
    for fact in found:
        assert fact.recalled_before == (fact.right_before == fact.tokens)
        assert fact.recalled_after == (fact.right_after == fact.tokens)
    assert 0 < sum(fact.recalled_before for fact in found) < len(found)


def test_accuracies_count_tokens_and_facts():
    def fact(tokens, right, recalled, left_out=None):
        return FactRecall("x", tokens, right, 0, "", "", recalled, False, left_out)

    before, after = accuracy([fact(3, 3, True), fact(1, 0, False), fact(0, 0, False, "cut off")])
    assert (before.teacher_forced, before.greedy.value) == (0.75, 0.5)
    assert (before.recalled, before.facts) == (1, 2) and before.greedy.low < 0.5 < before.greedy.high
    assert (after.teacher_forced, after.greedy.value, after.greedy.low) == (0.0, 0.0, 0.0)
    assert accuracy([fact(0, 0, False, "cut off")])[0].greedy is None


@pytest.fixture
def run(pair, tmp_path, capfd):
    checkpoints.write_json(tmp_path / "relations.json", RELATIONS)
    (tmp_path / "controls.txt").write_text(CONTROLS, encoding="utf-8")

    def call(*arguments, models=tuple(TINY)):
        argv = [
            "program", *(f"--model={pair.get(model, model)}" for model in models),
            f"--relations={tmp_path / 'relations.json'}", f"--controls={tmp_path / 'controls.txt'}",
            f"--out={tmp_path / 'out'}", "--top_k=3", "--compile_cache=off", "--device=cpu", *arguments,
        ]  # fmt: skip
        code = cli.run(factual_recall.run, flags, factual_recall.__doc__, argv)
        out, err = capfd.readouterr()
        return code, out, err.splitlines()

    return call


def test_files_and_tables(run, tmp_path):
    code, out, err = run()
    assert code == 0 and all(line.endswith(" s left") for line in err)
    written = json.loads((tmp_path / "out" / f"{RESULTS}.json").read_text(encoding="utf-8"))
    with (tmp_path / "out" / f"{RESULTS}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["relation"]) for row in rows] == [
        (model, relation) for model in TINY for relation in ("P1 (one)", "P2 (two)")
    ]
    for entry in written["results"]:
        selectivity = entry["percentage_change"] / (entry["other_percentage_change"] + 1e-6)
        assert entry["selectivity"] == pytest.approx(selectivity)
        scored = entry["recall"]
        assert len(scored) == entry["facts"] == entry["facts_scored"]
        assert entry["greedy_before"] == pytest.approx(np.mean([fact["recalled_before"] for fact in scored]))
        for when in ("before", "after"):  # binomial over facts; of changes three sentences give no interval
            low, high = (entry[f"greedy_{when}_{end}"] for end in ("low", "high"))
            assert 0 <= low <= entry[f"greedy_{when}"] <= high <= 1 and high - low > 0.5
        assert entry["delta_nats_per_token_low"] is None and entry["other_percentage_change_high"] is None
    for model, found in written["patterns"].items():
        mine = [entry for entry in written["results"] if entry["model"] == model]
        assert found["nats"] == pytest.approx(np.mean([entry["delta_nats_per_token"] for entry in mine]))
        assert found["trend_nats"] is None  # two relations make no trend
    assert written["manifest"]["protocol"]["version"] == 1
    for words in ("All models (1: mamba, 2: gpt2)", "Patterns", "greedy", "Answer: The edit "):
        assert words in out
    assert not (tmp_path / "out" / ".partial").exists()
    page = (tmp_path / "out" / "factual_recall_report.html").read_text(encoding="utf-8")
    for sentence in written["answer"].split(". "):  # the console's lines are broken, the page's escaped
        assert " ".join(sentence.split()) in " ".join(out.replace("Answer: ", "").split())
    assert re.search("the edit (costs|saves) mamba", page) and re.search("The edit (costs|saves) gpt2", page)
    assert (tmp_path / "out" / "tables" / "recall_facts.csv").exists()


def test_the_same_model_twice_is_refused(run):
    code, _, err = run(models=("gpt2", "gpt2"))
    assert code == 2 and len(err) == 1 and "--model: each model once" in err[0]


def test_a_missing_model_is_one_line(run, tmp_path):
    code, _, err = run(models=(str(tmp_path / "none"),))
    assert code == 2 and len(err) == 1
