"""Relations, plain texts and controls: their order, their count, and precise words on bad files."""

import io
import json
from types import SimpleNamespace

import pytest

from jaxprobe import relations, texts
from jaxprobe.errors import ProbeError

GOOD = {"relation": "P1", "label": "one", "facts": [{"text": "A is B.", "object": "B"}]}


def test_the_default_texts_are_the_relation_sentences_in_file_order():
    source = relations.relation_texts()
    assert len(source.texts) == 45
    assert source.texts[0] == "Taylor Swift is signed to Republic Records."
    assert source.texts[-1] == "Eurostar is operated by Eurostar International Limited."


def test_seed_relations_are_nine_in_order_with_their_own_subclasses():
    nine = relations.select_relations("seed")
    assert [r.id for r in nine] == ["P36", "P449", "P530", "P463", "P264", "P413", "P30", "P495", "P279"]
    assert [fact.object for fact in nine[-1].facts] == ["rectangle", "mammal", "vehicle"]
    assert nine[-1].texts[1] == "A dog is a subclass of a mammal."
    assert nine[0].name == "P36 (capital)"


def test_all_and_ids_keep_the_files_own_facts():
    everything = relations.select_relations("all")
    assert len(everything) == 15
    assert relations.select_relations("P279, P36") == (everything[8], everything[6])
    assert everything[8].facts[1].object == "mobile device"


@pytest.mark.parametrize("choice, message", [
    ("P36,P9", "no relation 'P9'"),
    ("P36,P36", "P36 is given twice"),
    ("", "no relation ''"),
    ("missing.json", "missing.json: cannot be read: No such file"),
])  # fmt: skip
def test_a_wrong_choice_of_relations_is_named(choice, message):
    with pytest.raises(ProbeError, match=message):
        relations.select_relations(choice)


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize("entries, message", [
    ({"a": 1}, "the file must be a list with at least one entry"),
    ([], "the file must be a list with at least one entry"),
    ([GOOD, 3], "entry 2 must be an object with field 'relation', got 3"),
    ([GOOD, without("relation")], "entry 2: field 'relation' is missing"),
    ([without("label")], r"entry 1 \(P1\): field 'label' is missing"),
    ([without("facts")], r"entry 1 \(P1\): field 'facts' is missing"),
    ([GOOD | {"label": 7}], r"entry 1 \(P1\): field 'label' must be a string that is not empty, got 7"),
    ([GOOD | {"facts": []}], r"entry 1 \(P1\): field 'facts' must be a list with at least one entry"),
    ([GOOD | {"facts": [{"text": "A."}]}], r"entry 1 \(P1\), fact 1: field 'object' is missing"),
    ([GOOD | {"facts": GOOD["facts"] + [{"text": " ", "object": "B"}]}], r"fact 2: field 'text' must be"),
    ([GOOD, GOOD], "entry 2: relation P1 is there already"),
])  # fmt: skip
def test_a_malformed_entry_is_named(tmp_path, entries, message):
    file = tmp_path / "relations.json"
    file.write_text(json.dumps(entries))
    with pytest.raises(ProbeError, match=message):
        relations.load_relations(file)


def test_a_file_that_is_not_json_says_where(tmp_path):
    file = tmp_path / "relations.json"
    file.write_text('[\n{"relation": }\n]')
    with pytest.raises(ProbeError, match=r"not JSON: .*line 2"):
        relations.load_relations(file)


def test_lines_of_a_file_keep_their_blanks(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffOne é.\r\n  two\u2028words \nlast\n \n".encode())
    source = texts.read_texts(file)
    assert source.texts == ("One é.", "  two\u2028words ", "last")


def test_standard_input_is_a_file_too(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one text\ntwo\n")))
    assert texts.read_texts("-").texts == ("one text", "two")


@pytest.mark.parametrize("data, message", [
    (None, "cannot be read: No such file"),
    (b"", "holds no text"),
    (b"\n \n", "holds no text"),
    (b"good\nbad \xff\n", "line 2 is not UTF-8"),
    (b"good\n \ngood\n", "line 2 is empty"),
])  # fmt: skip
def test_a_bad_file_of_texts_is_refused(tmp_path, data, message):
    file = tmp_path / "texts.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ProbeError, match=f"texts.txt: {message}"):
        texts.read_texts(file)


def test_asking_for_more_texts_than_there_are_says_how_many_there_are():
    source = relations.relation_texts()
    assert texts.take(source, 45, 30).texts == source.texts
    assert texts.take(source, None, 30).texts == source.texts[:30]
    assert texts.take(source, None, 99).texts == source.texts
    with pytest.raises(ProbeError, match="--num_texts=46, but the relation sentences hold only 45 texts"):
        texts.take(source, 46, 30)


def test_builtin_controls_are_fifty_long_sentences():
    controls = texts.load_controls().texts
    assert len(set(controls)) == 50
    assert all(len(text.split()) > 10 for text in controls)


def test_wikitext_controls_are_the_first_fifty_long_lines():
    long = " ".join(["word"] * 11)
    lines = ["", f" = {long} = \n", " ".join(["word"] * 10), *(f" {long} {n} \n" for n in range(60))]
    chosen = texts.wikitext_controls(lines)
    assert chosen == tuple(f"{long} {n}" for n in range(50))


def test_wikitext_that_cannot_be_loaded_is_an_error_and_no_other_list(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(ProbeError, match=r"cannot be loaded \(no network\)"):
        texts.load_controls("wikitext")
