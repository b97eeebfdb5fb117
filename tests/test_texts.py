"""Plain texts and controls: their order, their count, and precise words on bad files."""

import io
from types import SimpleNamespace

import pytest

from jaxprobe import relations, texts
from jaxprobe.errors import ProbeError


def test_the_default_texts_are_the_relation_sentences_in_file_order():
    source = relations.relation_texts()
    assert len(source.texts) == 45
    assert source.texts[0] == "Taylor Swift is signed to Republic Records."
    assert source.texts[-1] == "Eurostar is operated by Eurostar International Limited."
    assert len(source.groups) == 45 and source.groups[0] == "P264" and len(set(source.groups)) == 15


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
    assert texts.take(source, 5, 30).groups == source.groups[:5]
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
