"""Relations and their sources: what is read, how the rest is refused, and what a template makes of it."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import REFERENCE

from jaxprobe import relations
from jaxprobe.errors import ProbeError
from jaxprobe.relation_records import Fact, sentence
from jaxprobe.relation_sources import read_dataset, read_relations
from jaxprobe.relations import ENOUGH_FACTS, FACTS_FILE, load_relations, select_relations

LRE = REFERENCE.parent / "data" / "lre"
needs_lre = pytest.mark.skipif(
    not LRE.is_dir(), reason=f"the LRE relations are not at {LRE} (set JAXPROBE_REFERENCE)"
)
GOOD = {"relation": "P1", "label": "one", "facts": [{"text": "A is B.", "object": "B"}]}
FILLED = GOOD | {"template": "{subject} is {object}.", "facts": [{"subject": "a", "object": "b"}]}
SAMPLES = [
    {"subject": "big", "object": "bigger"}, {"subject": " small ", "object": "smaller"},
    {"subject": "big", "object": "bigger"}, {"subject": "big", "object": "larger"},
]  # fmt: skip
LRE_GOOD = {
    "name": "adjective comparative", "prompt_templates": ["more than {} is", "{} becomes"],
    "prompt_templates_zs": ["unused {}"], "properties": {"symmetric": False}, "samples": SAMPLES,
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def call(content, name="relations.json"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
        return file

    return call


def test_seed_relations_are_nine_in_order_with_their_own_subclasses():
    nine = select_relations("seed")
    assert [r.id for r in nine] == ["P36", "P449", "P530", "P463", "P264", "P413", "P30", "P495", "P279"]
    assert [fact.object for fact in nine[-1].facts] == ["rectangle", "mammal", "vehicle"]
    assert nine[-1].texts[1] == "A dog is a subclass of a mammal."
    assert nine[0].name == "P36 (capital)"


def test_all_and_ids_keep_the_files_own_facts():
    everything = select_relations("all")
    assert len(everything) == 15
    assert select_relations("P279, P36") == (everything[8], everything[6])
    assert everything[8].facts[1].object == "mobile device"


def test_facts_are_the_memorised_relations_with_enough_facts():
    chosen = select_relations("facts")
    assert len(chosen) == 24
    assert all(len(relation.facts) >= ENOUGH_FACTS == 30 for relation in chosen)
    assert chosen[0].facts[0] == Fact("A dog is a subclass of a mammal.", "mammal", "dog")
    assert [relation.name for relation in chosen[1:3]] == ["capital_city", "currency"]
    every = load_relations(FACTS_FILE)
    assert {r.id for r in every[15:]} - {r.id for r in chosen} == {
        "fruit_outside_color",
        "person_band_lead_singer",
    }
    assert all(fact.subject for relation in every[15:] for fact in relation.facts)


def test_ids_of_every_known_relation_are_taken_together():
    every = load_relations(FACTS_FILE)
    assert select_relations(",".join(relation.id for relation in every)) == every


def test_sources_are_joined_in_their_order(write):
    file = write([GOOD])
    chosen = select_relations(f"capital_city, {file},seed")
    assert [relation.id for relation in chosen[:3]] == ["capital_city", "P1", "P36"]
    assert len(chosen) == 11


def test_a_path_may_hold_a_comma(write):
    assert select_relations(str(write([GOOD], "a,b.json")))[0].id == "P1"


@pytest.mark.parametrize("choice, message", [
    ("P36,P9", "no relation 'P9'; expected seed, .*, FILE.json, FOLDER, hf:DATASET or of P264, .*, author,"),
    ("P36,P36", "P36 is given twice$"),
    ("all,P36", "P36 is given twice, by all and by P36"),
    ("", "no relation ''"),
    ("P36,", "no relation ''"),
    ("missing.json", "missing.json: cannot be read: No such file"),
])  # fmt: skip
def test_a_wrong_choice_of_relations_is_named(choice, message):
    with pytest.raises(ProbeError, match=message):
        select_relations(choice)


def without(entry, name):
    return {key: value for key, value in entry.items() if key != name}


TWICE = [
    {"text": "A is B.", "object": "B"},
    {"text": "C is B.", "object": "B"},
    {"text": "A is B.", "object": "A"},
]


@pytest.mark.parametrize("content, message", [
    ([], "the file must be a list with at least one entry"),
    (3, "the file must be a list with at least one entry, got 3"),
    (GOOD, "the file must be a list of relations, or an LRE relation with name, .*, got {"),
    ([GOOD, 3], "entry 2 must be an object with field 'relation', got 3"),
    ([GOOD, without(GOOD, "relation")], "entry 2: field 'relation' is missing"),
    ([without(GOOD, "label")], r"entry 1 \(P1\): field 'label' is missing"),
    ([without(GOOD, "facts")], r"entry 1 \(P1\): field 'facts' is missing"),
    ([GOOD | {"label": 7}], r"entry 1 \(P1\): field 'label' must be a string that is not empty, got 7"),
    ([GOOD | {"facts": []}], r"entry 1 \(P1\): field 'facts' must be a list with at least one entry"),
    ([GOOD | {"facts": [{"text": "A."}]}], r"entry 1 \(P1\), fact 1: field 'object' is missing"),
    ([GOOD | {"facts": [{"object": "A"}]}], r"entry 1 \(P1\), fact 1: field 'text' is missing"),
    ([GOOD | {"facts": [*GOOD["facts"], {"text": " ", "object": "B"}]}], r"fact 2: field 'text' must be"),
    ([GOOD | {"facts": [{"text": "A.", "object": "A", "subject": 1}]}], "field 'subject' must .* got 1"),
    ([GOOD | {"facts": TWICE}], r"entry 1 \(P1\), fact 3: field 'text' is that of fact 1; .* got 'A is B.'"),
    ([FILLED | {"facts": [{"object": "b"}]}], r"entry 1 \(P1\), fact 1: field 'subject' is missing"),
    ([FILLED | {"template": "It is {object}."}], r"\(P1\): field 'template' must hold .* got 'It"),
    ([FILLED | {"template": "{subject} is {objct}."}], r"field 'template' has a place {objct}; it takes"),
    ([GOOD | {"relation": "P\n1"}], r"entry 1: field 'relation' must be one line, got 'P.n1'"),
    ([GOOD | {"label": "\ud800"}], r"field 'label' must be Unicode text, got a lone surrogate in '.ud800'"),
    ([GOOD, GOOD], "entry 2: relation P1 is there already"),
    (without(LRE_GOOD, "name"), r"relations.json: field 'name' is missing"),
    (without(LRE_GOOD, "prompt_templates"), r"relations.json: field 'prompt_templates' is missing"),
    (without(LRE_GOOD, "samples"), r"relations.json: field 'samples' is missing"),
    (LRE_GOOD | {"samples": {}}, r"field 'samples' must be a list with at least one entry, got {}"),
    (LRE_GOOD | {"prompt_templates": []}, r"field 'prompt_templates' must be a list with at least one entry"),
    (LRE_GOOD | {"prompt_templates": [5]}, r"field 'prompt_templates', entry 1 must be a string, got 5"),
    (LRE_GOOD | {"prompt_templates": ["{} \udfff"]}, r"entry 1 must be Unicode text, got a lone surrogate"),
    (LRE_GOOD | {"prompt_templates": ["is"]}, r"field 'prompt_templates', entry 1 must hold the subject's"),
    (LRE_GOOD | {"samples": [SAMPLES[0], {"subject": "x"}]}, r"json: sample 2: field 'object' is missing"),
    (LRE_GOOD | {"samples": [{"subject": "x", "object": 17}]}, r"sample 1: field 'object' must be .* got 17"),
])  # fmt: skip
def test_a_malformed_entry_is_named(write, content, message):
    with pytest.raises(ProbeError, match=message) as error:
        read_relations(write(content))
    assert "relations.json: " in str(error.value) and "\n" not in str(error.value)


FIELDS = [
    "relation",
    "label",
    "facts",
    "text",
    "object",
    "subject",
    "template",
    "samples",
    "prompt_templates",
    "name",
]
anything = st.recursive(
    st.none() | st.integers() | st.sampled_from(["", "x", "{}", "{subject} {object}", "{y}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=20,
)
facts_like = st.fixed_dictionaries({"text": anything, "object": anything}, optional={"subject": anything})


@given(
    anything
    | st.lists(facts_like).map(lambda facts: [GOOD | {"facts": facts}])
    | st.builds(lambda key, value: [FILLED | {key: value}], st.sampled_from(FIELDS), anything)
    | st.builds(lambda key, value: LRE_GOOD | {key: value}, st.sampled_from(FIELDS), anything)
)
def test_whatever_json_a_file_holds_it_is_relations_or_one_line(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "anything.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    try:
        found = read_relations(file)
    except ProbeError as error:
        assert "\n" not in str(error) and str(error).startswith(f"{file}: ")
    else:
        assert all(relation.facts and all(map(str.strip, relation.texts)) for relation in found)


@pytest.mark.parametrize("text, message", [
    ('[\n{"relation": }\n]', r"not JSON: .*line 2"),
    ("[" * 10**5, "not JSON: maximum recursion depth"),
])  # fmt: skip
def test_a_file_that_is_not_json_says_where(tmp_path, text, message):
    file = tmp_path / "relations.json"
    file.write_text(text)
    with pytest.raises(ProbeError, match=message):
        load_relations(file)


def test_a_template_takes_the_place_of_texts_and_a_text_of_its_own_wins(write):
    facts = [{"subject": "the sky ", "object": "blue"}, {"text": "Odd: x y", "subject": "x", "object": "y"}]
    [relation] = load_relations(write([FILLED | {"facts": facts}]))
    assert relation.facts == (Fact("The sky is blue.", "blue", "the sky"), Fact("Odd: x y", "y", "x"))


def test_an_lre_file_keeps_the_first_fact_of_each_subject_and_says_so(write, capsys):
    [relation] = select_relations(str(write(LRE_GOOD)))
    assert relation.facts == (
        Fact("More than big is bigger.", "bigger", "big"),
        Fact("More than small is smaller.", "smaller", "small"),
    )
    assert relation.name == "adjective comparative" and relation.left_out == 2
    [line] = capsys.readouterr().out.splitlines()
    assert "left out 2 of adjective comparative: facts whose text or subject is there already" in line


def test_a_folder_is_read_to_its_depths_in_order_of_paths(write, tmp_path):
    write(LRE_GOOD | {"name": "last"}, "lre/b/a.json")
    write(LRE_GOOD | {"name": "first"}, "lre/a/z.json")
    write([GOOD], "lre/a/zz.json")
    write(3, "lre/a/notes.txt")
    chosen = select_relations(f"{tmp_path / 'lre'},P36")
    assert [relation.id for relation in chosen] == ["first", "P1", "last", "P36"]


def test_a_bad_folder_is_refused_in_the_words_of_its_file(write, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProbeError, match=r"empty: expected a folder with \.json files of relations"):
        select_relations(str(tmp_path / "empty"))
    write(LRE_GOOD, "lre/a.json")
    write(LRE_GOOD, "lre/b.json")
    with pytest.raises(ProbeError, match=r"adjective comparative is given twice, by .*a\.json and .*b\.json"):
        select_relations(str(tmp_path / "lre"))
    write({"x": 1}, "lre/b.json")
    with pytest.raises(ProbeError, match=r"b\.json: the file must be a list of relations"):
        select_relations(str(tmp_path / "lre"))


@needs_lre
def test_every_lre_file_renders_and_keeps_its_objects(capsys):
    chosen = select_relations(str(LRE))
    assert len(chosen) == 47 and len({relation.name for relation in chosen}) == 47
    files = {data["name"]: data for data in map(json.loads, (f.read_text() for f in LRE.rglob("*.json")))}
    for relation in chosen:
        data = files[relation.id]
        before, after = data["prompt_templates"][0].split("{}")
        assert len(relation.facts) + relation.left_out == len(data["samples"])
        pairs = {(s["subject"].strip(), s["object"].strip()) for s in data["samples"]}
        assert len({fact.subject for fact in relation.facts}) == len(relation.facts)
        for fact in relation.facts:
            assert (fact.subject, fact.object) in pairs
            expected = f"{before}{fact.subject}{after} {fact.object}".removesuffix(".") + "."
            assert fact.text.lower() == expected.lower() and not fact.text[0].islower()
    by_name = {relation.name: relation for relation in chosen}
    assert by_name["country capital city"].texts[0] == "The capital city of United States is Washington D.C."
    assert by_name["word sentiment"].texts[0] == "The sentiment of 'happy' is positive."
    assert [
        by_name[name].left_out for name in ("product by company", "adjective antonym", "company CEO")
    ] == [28, 17, 0]
    assert "28 of product by company" in capsys.readouterr().out


words = st.text(min_size=1).map(str.strip).filter(bool)


@given(subject=words, answer=words, before=st.text(string.ascii_letters + " ,'", max_size=9), after=words)
def test_any_subject_and_object_survive_with_the_object_last(subject, answer, before, after):
    after = after.replace("{", "(").replace("}", ")")
    text = sentence(f"{before}{{}} {after}", subject, answer)
    assert text.endswith(f" {answer}") or text.endswith(f" {answer}.")
    assert text == sentence(f"{before}{{subject}} {after} ", subject, answer)
    rest = f"{before}{subject} {after} {answer}"
    assert text.removesuffix(".") == (rest[:1].upper() + rest[1:]).removesuffix(".")
    assert answer.endswith("..") or not text.endswith("..")


def test_a_sentence_does_not_fill_in_what_was_filled_in():
    assert sentence("{subject} is {object}", "a {object}", "a {subject}") == "A {object} is a {subject}"
    assert sentence("{} or {subject}: {object}", r"\1", r"\g<0>") == r"\1 or \1: \g<0>"


@pytest.fixture
def dataset(write, tmp_path, monkeypatch):
    """Rows -> the source name of a local data set with them."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def call(rows):
        folder = tmp_path / "set"
        folder.mkdir()
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return f"hf:{folder}"

    return call


ROWS = [
    {"relation": "capital", "text": "Rome is Italy's.", "object": "Italy"},
    {"relation": "colour", "text": "Snow is white.", "object": "white"},
    {"relation": "capital", "text": "Paris is France's.", "object": "France"},
    {"relation": "capital", "text": "Rome is Italy's.", "object": "Italy"},
]


def test_rows_of_a_data_set_are_grouped_by_relation(dataset):
    capital, colour = read_dataset(dataset(ROWS))
    assert capital.name == "capital" and capital.left_out == 1 and colour.left_out == 0
    assert capital.facts == (Fact("Rome is Italy's.", "Italy"), Fact("Paris is France's.", "France"))
    assert colour.texts == ("Snow is white.",)


def test_a_data_set_may_hold_subjects_and_templates(dataset):
    rows = [
        {"relation": "r", "subject": "rome", "object": "Italy", "template": "{} is in"},
        {"relation": "r", "subject": "oslo", "object": "Norway", "template": "{object} has {subject}."},
    ]
    [relation] = select_relations(f"P36,{dataset(rows)}")[1:]
    assert relation.facts == (
        Fact("Rome is in Italy.", "Italy", "rome"),
        Fact("Norway has oslo.", "Norway", "oslo"),
    )


def test_a_split_is_asked_for_where_there_are_several(dataset, tmp_path):
    source = dataset(ROWS)
    (tmp_path / "set" / "test.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    with pytest.raises(ProbeError, match=r"set: expected hf:.*set::SPLIT with SPLIT one of train, test"):
        read_dataset(source)
    assert [relation.id for relation in read_dataset(f"{source}::test")] == ["colour"]


@pytest.mark.parametrize("rows, message", [
    ([{"relation": "r", "text": "A."}],
     "expected columns relation and object, and text or else subject and template; got relation, text"),
    ([ROWS[0], {"relation": "r", "text": "A.", "object": None}], "row 2: field 'object' is missing"),
    ([{"relation": "r", "text": "A.", "object": 3}], "row 1: field 'object' must be a string .* got 3"),
    ([{"relation": "r", "subject": "a", "object": "b", "template": "x"}], "row 1: field 'template' must"),
])  # fmt: skip
def test_a_malformed_data_set_is_named(dataset, rows, message):
    source = dataset(rows)
    with pytest.raises(ProbeError, match=message) as error:
        read_dataset(source)
    assert str(error.value).startswith(f"{source}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["hf:", "hf::c", "hf:a:b:c:d"])
def test_a_data_set_has_a_name_of_three_parts_at_most(source):
    with pytest.raises(ProbeError, match=rf"{source}: expected hf:ID\[:CONFIG\[:SPLIT\]\]"):
        select_relations(source)


def test_a_data_set_that_cannot_be_loaded_is_one_line(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(ProbeError, match=r"^hf:some/facts:en: the data set cannot be loaded \(no network\)$"):
        relations.select_relations("hf:some/facts:en")
