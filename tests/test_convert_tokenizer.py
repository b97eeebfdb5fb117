"""Tokenizers: the ids of HF's AutoTokenizer, mostly without importing it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import byte_level_tokenizer, write_json, write_tokenizer

from jaxprobe.convert import tokenizer as ours
from jaxprobe.errors import ProbeError

END = "<|endoftext|>"
TEXTS = [
    "", "The capital of France is", " Two  spaces,\n\n\ta tab", f"{END}Paris {END}",
    "cafe\u0301 naïve 漢字 🙂", "x" * 40, "a        b", "<s> </s>", "\u200bzero width", "Paris",
]  # fmt: skip
PADDING = byte_level_tokenizer().id_to_token(5)
MAMBA, GPT2 = {"model_type": "mamba"}, {"model_type": "gpt2"}
BACKEND = {"tokenizer_class": "PreTrainedTokenizerFast"}
ROBERTA = {"tokenizer_class": "RobertaTokenizer"}  # a class that only transformers knows
ADDED = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


def bare(tokenizer: dict) -> None:
    tokenizer["added_tokens"] = []


def truncating(tokenizer: dict) -> None:
    tokenizer["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    tokenizer["padding"] = {
        "strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": END,
    }  # fmt: skip


def starting_with_end(tokenizer: dict) -> None:
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": END, "type_id": 0}}, sequence],
        "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
    }


def as_vocab_and_merges(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    write_json(folder / "vocab.json", tokenizer["model"]["vocab"])
    merges = "".join(f"{a} {b}\n" for a, b in tokenizer["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    (folder / "tokenizer.json").unlink()


# (config.json, tokenizer_config.json, how tokenizer.json is changed, whether `tokenizers` alone will do)
CASES = {
    "mamba, nothing said": (MAMBA, None, None, True),
    "gpt2, nothing said": (GPT2, None, None, True),
    "as stored": (MAMBA, BACKEND | {"eos_token": END}, None, True),
    "as stored, prefix space": (MAMBA, BACKEND | {"add_prefix_space": True}, None, True),
    "as stored, begins with a token": (MAMBA, BACKEND, starting_with_end, True),
    "as stored, truncates": (MAMBA, BACKEND, truncating, True),
    "named but not added": (MAMBA, BACKEND | {"eos_token": END}, bare, True),
    "gpt2, not added": (GPT2, None, bare, True),
    "special tokens split": (GPT2, {"split_special_tokens": True}, None, True),
    "as stored, special tokens split": (MAMBA, BACKEND | {"split_special_tokens": True}, None, True),
    "extra tokens": (GPT2, {"additional_special_tokens": ["France"]}, None, True),
    "prefix space": (GPT2, {"add_prefix_space": True}, None, True),
    "neox, prefix space": (
        MAMBA,
        {"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": True},
        None,
        True,
    ),
    "listed": (GPT2, {"added_tokens_decoder": {"0": {"content": END, **ADDED}}}, None, True),
    "listed, not added": (GPT2, {"added_tokens_decoder": {"0": {"content": END, **ADDED}}}, bare, True),
    "listed, new": (GPT2, {"added_tokens_decoder": {"297": {"content": "of", **ADDED}}}, None, False),
    "neox, begins with a token": (MAMBA, None, starting_with_end, False),
    "gpt2, begins with a token": (GPT2, None, starting_with_end, False),
    "adds a token": (GPT2, {"add_bos_token": True}, None, False),
    "another class": (GPT2, ROBERTA, None, False),
}


def write(folder: Path, config: dict, settings: dict | None = None, change=None) -> Path:
    folder.mkdir(exist_ok=True)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    if change is not None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        change(tokenizer)
        write_json(folder / "tokenizer.json", tokenizer)
    if settings is not None:
        write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "config.json", config)
    return folder


def assert_as_hf(folder: Path, config: dict, texts: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = ours.load_tokenizer(folder, config, 10**6)
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == theirs(text).input_ids, text
        assert tokenizer.decode(ids) == theirs.decode(ids), text


# What vocab.json and merges.txt can say as well.
PLAIN = [
    case
    for case, (_, said, change, _) in CASES.items()
    if change is None and "tokenizer_class" not in (said or {})
]


@pytest.mark.parametrize(
    ("case", "vocab_and_merges"), [*((case, False) for case in CASES), *((case, True) for case in PLAIN)]
)
def test_ids_are_those_of_hf(case, vocab_and_merges, tmp_path):
    config, said, change, alone = CASES[case]
    folder = write(tmp_path, config, said, change)
    if vocab_and_merges:
        as_vocab_and_merges(folder)
    settings = ours._settings(folder)
    name = ours._class_name(settings, config)
    backend = ours._read(folder, name, settings)
    assert backend is not None and ours._is_whole(backend, folder, name, settings) == alone
    assert_as_hf(folder, config, TEXTS)


DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="the real tokenizers are not part of the repository")
@pytest.mark.parametrize(("name", "config"), [("gpt2", GPT2), ("gpt-neox", MAMBA)])
def test_real_tokenizers(name, config, tmp_path):
    for file in (DATA / "tokenizers" / name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_json(tmp_path / "config.json", config)
    lines = (DATA / "wikitext-2" / "valid.txt").read_text(encoding="utf-8").splitlines()
    assert_as_hf(tmp_path, config, TEXTS + lines[:300])
    size = {"gpt2": 50257, "gpt-neox": 50277}[name]
    assert ours.load_tokenizer(tmp_path, config, size).vocab_size == size
    with pytest.raises(
        ProbeError, match=f"ids go up to {size - 1}, the model's vocabulary only to {size - 2}"
    ):
        ours.load_tokenizer(tmp_path, config, size - 1)


@pytest.mark.parametrize(
    ("config", "settings", "special", "expected"),
    [
        (GPT2, None, None, (0, 0, 0)),
        (GPT2, {"bos_token": "T", "eos_token": {"content": "h"}}, None, ("T", "h", "h")),
        (GPT2, {"eos_token": "h", "pad_token": "x"}, None, (0, "h", "x")),
        (GPT2, {"eos_token": "h"}, {"eos_token": "T", "pad_token": {"content": "x"}}, (0, "T", "x")),
        (GPT2, {"eos_token": "h", "added_tokens_decoder": {}}, {"eos_token": "T"}, (0, "h", "h")),
        (GPT2 | {"bos_token_id": 5, "eos_token_id": [7, 8], "pad_token_id": 9}, None, None, (5, 7, 7)),
        (GPT2 | {"bos_token_id": 5}, {"pad_token": PADDING, "eos_token": "h"}, None, (0, "h", 5)),
        (GPT2 | {"bos_token_id": 10**6, "eos_token_id": None}, None, None, (0, 0, 0)),
        (GPT2 | {"bos_token_id": -1, "eos_token_id": -1, "pad_token_id": -1}, None, None, (0, 0, 0)),
        (GPT2 | {"bos_token_id": 5, "eos_token_id": [-1]}, None, None, (5, 0, 0)),
        (GPT2 | {"bos_token_id": 2**32, "eos_token_id": 2**40, "pad_token_id": 2**64}, None, None, (0, 0, 0)),
    ],
)
def test_special_ids(config, settings, special, expected, tmp_path):
    """Of the tokenizer's files, else config.json's; padding is the end of text unless the tokenizer says."""
    folder = write(tmp_path, config, settings)
    if special is not None:
        write_json(folder / "special_tokens_map.json", special)
    tokenizer = ours.load_tokenizer(folder, config, 1000)
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == tuple(tokenizer.backend.token_to_id(x) if isinstance(x, str) else x for x in expected)


def test_a_default_token_of_the_class_outside_the_vocabulary(tmp_path):
    """HF's GPT-NeoX class adds <|padding|> after the last id; that alone must not refuse a model."""
    config = MAMBA
    folder = write(tmp_path, config, None, starting_with_end)  # goes through AutoTokenizer, which adds it
    size = byte_level_tokenizer().get_vocab_size()
    tokenizer = ours.load_tokenizer(folder, config, size)
    assert tokenizer.vocab_size == size
    with pytest.raises(ProbeError, match=r"'<\|padding\|>', a special token outside the model's vocabulary"):
        tokenizer.encode("of <|padding|>")


def test_a_token_to_pad_with_that_the_model_has_no_row_for(tmp_path):
    """People add one and leave the embedding as it is: HF loads that, since no text holds it."""
    size = byte_level_tokenizer().get_vocab_size()

    def padded(tokenizer: dict) -> None:
        tokenizer["added_tokens"].append({"id": size, "content": "[PAD]", **ADDED})

    folder = write(tmp_path, GPT2, BACKEND | {"eos_token": END, "pad_token": "[PAD]"}, padded)
    tokenizer = ours.load_tokenizer(folder, GPT2, size)
    assert (tokenizer.vocab_size, tokenizer.pad_token_id) == (size, size)
    with pytest.raises(ProbeError, match=r"'\[PAD\]', a special token outside the model's vocabulary"):
        tokenizer.encode("a [PAD]")


def test_common_tokenizers_do_not_import_transformers(tmp_path):
    write(tmp_path, GPT2)
    code = (
        "import sys, pathlib; from jaxprobe.convert.tokenizer import load_tokenizer;"
        f"load_tokenizer(pathlib.Path({str(tmp_path)!r}), {GPT2}, 1000).encode('a');"
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer: expected tokenizer.json"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "cannot read the tokenizer"),
        (lambda d: (d / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is not valid JSON"),
        (lambda d: write_json(d / "tokenizer_config.json", {"auto_map": ["a.B"]}), "code of its own"),
    ],
)  # fmt: skip
def test_broken_tokenizers(spoil, message, tmp_path):
    write(tmp_path, GPT2)
    spoil(tmp_path)
    with pytest.raises(ProbeError, match=message) as error:
        ours.load_tokenizer(tmp_path, GPT2, 1000)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"additional_special_tokens": 5}, "additional_special_tokens must be a list of tokens, got 5$"),
        ({"additional_special_tokens": "abc"}, "additional_special_tokens must be a list .*, got 'abc'$"),
        ({"extra_special_tokens": False}, "extra_special_tokens must be a list of tokens, got False$"),
        ({"additional_special_tokens": ["a", 5]}, "each of additional_special_tokens must .* got 5$"),
        ({"additional_special_tokens": [None]}, "each of additional_special_tokens .* got None$"),
        ({"extra_special_tokens": {"image_token": ["a"]}}, r"each of extra_special_tokens .* got \['a'\]$"),
        ({"eos_token": 5}, "eos_token must be a token: a text, or an object with .* got 5$"),
        ({"eos_token": {"text": "h"}}, "eos_token must be a token.* got {'text': 'h'}$"),
        ({"eos_token": {"content": "h", "lstrip": "no"}}, "eos_token must be a token.*'lstrip': 'no'}$"),
        ({"pad_token": "\ud800"}, r"pad_token must be a token.* got '\\ud800'$"),
        ({"added_tokens_decoder": None}, "added_tokens_decoder must be an object from ids to .* got None$"),
        ({"added_tokens_decoder": [1]}, r"added_tokens_decoder must be an object .* got \[1\]$"),
        ({"added_tokens_decoder": {"x": {"content": "h"}}}, "added_tokens_decoder must be an id, got 'x'$"),
        ({"added_tokens_decoder": {"0": 5}}, r"added_tokens_decoder\[0\] must be an object with .* got 5$"),
        ({"added_tokens_decoder": {"0": {"special": True}}}, r"added_tokens_decoder\[0\] must be an object"),
        ({"added_tokens_decoder": {"0": {"content": END, "special": "yes"}}}, "'special': 'yes'}$"),
        ({"add_prefix_space": "false"}, "add_prefix_space must be true or false, got 'false'$"),
        ({"tokenizer_class": 5}, "tokenizer_class must be the name of a class, got 5$"),
        ({"eos_token": ["h" * 99] * 99}, "^.{,500}$"),
    ],
)  # fmt: skip
def test_fields_of_a_wrong_kind(said, message, tmp_path):
    folder = write(tmp_path, GPT2, said)
    with pytest.raises(ProbeError, match=message) as error:
        ours.load_tokenizer(folder, GPT2, 1000)
    assert str(error.value).startswith(f"{folder / 'tokenizer_config.json'}: ")
    assert "\n" not in str(error.value)


def test_fields_of_a_wrong_kind_in_other_files(tmp_path):
    with pytest.raises(
        ProbeError, match=r"config\.json: tokenizer_class must be the name of a class, got 5$"
    ):
        ours.load_tokenizer(write(tmp_path, GPT2), GPT2 | {"tokenizer_class": 5}, 1000)
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": 5})
    with pytest.raises(ProbeError, match=r"special_tokens_map\.json: eos_token must be a token"):
        ours.load_tokenizer(tmp_path, GPT2, 1000)


def test_fields_that_may_be_null(tmp_path):
    names = (*ours._NAMED, *ours._LISTED, *ours._SWITCHES, "tokenizer_class")
    folder = write(tmp_path, GPT2, dict.fromkeys(names))
    assert ours.load_tokenizer(folder, GPT2, 1000).eos_token_id == 0


def test_a_vocabulary_without_merges(tmp_path, monkeypatch):
    as_vocab_and_merges(write(tmp_path, GPT2))
    (tmp_path / "merges.txt").unlink()
    monkeypatch.setattr(ours, "_from_transformers", None)  # takes seconds to say less
    for settings in (GPT2, MAMBA, GPT2 | BACKEND):
        with pytest.raises(ProbeError, match=r"vocab\.json needs merges\.txt beside it, which is missing$"):
            ours.load_tokenizer(tmp_path, settings, 1000)


@pytest.mark.parametrize(
    ("settings", "failure", "message"),
    [
        ({"padding_side": "up", **ROBERTA}, None, "ValueError: .* current value: up"),
        (ROBERTA, KeyError("merges"), r"KeyError: 'merges'"),
        (
            ROBERTA,
            AttributeError("'int' object has no attribute 'items'\nx"),
            r"AttributeError: .* 'items' x",
        ),
    ],
)
def test_what_transformers_cannot_read(settings, failure, message, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    write(tmp_path, GPT2, settings)
    if failure is not None:

        def fail(*_, **__):
            raise failure

        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    said = rf"cannot read the tokenizer in tokenizer\.json and tokenizer_config\.json \({message}.*\)$"
    with pytest.raises(ProbeError, match=said) as error:
        ours.load_tokenizer(tmp_path, GPT2, 1000)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("torch", ["", "sys.modules['torch'] = None;"], ids=["torch", "no torch"])
def test_transformers_is_silent(torch, tmp_path):
    """It would warn of ids outside the vocabulary, and at its import where there is no torch."""
    pytest.importorskip("transformers")
    config = GPT2 | {"vocab_size": 297, "bos_token_id": 50256, "eos_token_id": -1}
    write(tmp_path, config, ROBERTA)
    code = (
        f"import logging, sys, pathlib; {torch} from jaxprobe.convert.tokenizer import load_tokenizer;"
        "log = logging.getLogger('transformers');"
        f"load_tokenizer(pathlib.Path({str(tmp_path)!r}), {config}, 1000);"
        "print('transformers' in sys.modules, log.isEnabledFor(logging.WARNING))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_half_a_surrogate_pair(tmp_path):
    tokenizer = ours.load_tokenizer(write(tmp_path, GPT2), GPT2, 1000)
    with pytest.raises(ProbeError, match=r"not valid Unicode at character 2: 'ab\\udc80'"):
        tokenizer.encode("ab\udc80")


def test_ids_beyond_the_vocabulary(tmp_path):
    write_tokenizer(tmp_path, 12)
    assert ours.load_tokenizer(tmp_path, MAMBA, 12).vocab_size == 12
    with pytest.raises(ProbeError, match="ids go up to 11, the model's vocabulary only to 10"):
        ours.load_tokenizer(tmp_path, MAMBA, 11)
