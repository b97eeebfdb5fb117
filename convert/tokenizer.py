"""Tokenizers: the same ids as HF's `AutoTokenizer`, without importing transformers where that is safe.

Importing `AutoTokenizer` takes about ten seconds, `tokenizers` a twentieth of one. A checkpoint is read
with `tokenizers` alone when its files say a byte-level BPE that needs nothing else (GPT-2's and
GPT-NeoX's do); anything with a rule of its own goes through `AutoTokenizer`, so the ids never differ.
"""

import contextlib
import logging
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxprobe.convert.json_files import read_json_object
from jaxprobe.errors import ProbeError, one_line

_SENTENCEPIECE = ("tokenizer.model", "spiece.model")
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", *_SENTENCEPIECE,
)  # fmt: skip

# HF classes that run tokenizer.json as it stands.
_AS_STORED = ("PreTrainedTokenizer", "TokenizersBackend")
# HF classes that build a byte-level BPE of their own around the vocabulary, and whether it normalizes (NFC).
_BYTE_LEVEL = {"GPT2Tokenizer": False, "GPTNeoXTokenizer": True}
# The class HF takes where no file names one.
_DEFAULT_CLASS = {"gpt2": "GPT2Tokenizer", "mamba": "GPTNeoXTokenizer"}
_END_OF_TEXT = "<|endoftext|>"  # bos, eos and unk of both classes where no file names them
_DEFAULT_TOKENS = (_END_OF_TEXT, "<|padding|>")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTED = ("additional_special_tokens", "extra_special_tokens")
_SIDES = ("lstrip", "rstrip", "single_word", "normalized")  # flags of a token; `special` is one more
_TOKEN_OBJECT = "an object with content (a text) and flags (true or false)"
_TOKEN = f"a token: a text, or {_TOKEN_OBJECT}"
_SWITCHES = ("add_prefix_space", "add_bos_token", "add_eos_token")


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back."""

    vocab_size: int  # every id is below it
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None  # end-of-text where the tokenizer's files name no padding token
    backend: tokenizers.Tokenizer = field(repr=False, compare=False)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, as HF's `tokenizer(text).input_ids`.

        Raises:
          ProbeError: when the text spells out a special token that the model has no embedding for, or holds
            half a surrogate pair, which is how Python passes on arguments that are not UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ProbeError(f"the text is not valid Unicode at character {error.start}: {text!r}") from error
        ids = self.backend.encode(text).ids
        if ids and max(ids) >= self.vocab_size:
            token = self.backend.id_to_token(max(ids))
            raise ProbeError(f"the text holds {token!r}, a special token outside the model's vocabulary")
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)


def load_tokenizer(directory: Path, config: Mapping[str, object], model_vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint directory.

    Args:
      directory: holds tokenizer.json, or vocab.json and merges.txt, and what HF saves beside them.
      config: the contents of the checkpoint's config.json.
      model_vocab_size: rows of the embedding.

    Raises:
      ProbeError: when there is no tokenizer, it cannot be read, or its ids exceed the model's vocabulary.
    """
    settings = _settings(directory)
    _check_class(config, directory / "config.json")
    name = _class_name(settings, config)
    if settings.get("auto_map"):
        raise ProbeError(f"{directory}: the tokenizer brings code of its own (auto_map), which is never run")
    backend = _read(directory, name, settings)
    known = {} if backend is None else backend.get_vocab(with_added_tokens=True)
    if backend is None or not _is_whole(backend, directory, name, settings):
        backend = _from_transformers(directory, name)
    else:
        _complete(backend, name, settings)
    # HF's classes add their default tokens past the end of a vocabulary that lacks them, and people a token
    # to pad with. No ordinary text holds one, so a model without embeddings for them is none the worse;
    # `encode` refuses them.
    padding = _text(settings.get("pad_token"))
    vocab = backend.get_vocab(with_added_tokens=True)
    spare = {text for text in _DEFAULT_TOKENS if text not in known}
    if padding is not None and vocab.get(padding, 0) >= model_vocab_size:
        spare.add(padding)
    ids = [index for text, index in vocab.items() if text not in spare]
    largest = max(ids, default=0)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(settings.get("split_special_tokens"))  # as any other text
    if largest >= model_vocab_size:
        raise ProbeError(
            f"{directory}: the tokenizer's ids go up to {largest}, the model's vocabulary only to "
            f"{model_vocab_size - 1}"
        )
    bos, eos = (_special_id(backend, which, settings, config) for which in ("bos", "eos"))
    pad = eos if padding is None else backend.token_to_id(padding)
    return Tokenizer(largest + 1, bos, eos, pad, backend)


def _settings(directory: Path) -> dict:
    """tokenizer_config.json with special_tokens_map.json laid over it, as HF does."""
    config, special = directory / "tokenizer_config.json", directory / "special_tokens_map.json"
    settings = read_json_object(config) if config.is_file() else {}
    _check(settings, config)
    if special.is_file() and "added_tokens_decoder" not in settings:
        named = read_json_object(special)
        _check(named, special)
        settings.update(named)
    return settings


def _check(settings: Mapping, file: Path) -> None:
    """Refuses what is neither a token nor a list of tokens where the rest of this module reads one.

    Raises:
      ProbeError: naming the field, what it must be and what it is.
    """

    def require(holds: bool, name: str, expected: str, value: object) -> None:
        if not holds:
            raise ProbeError(f"{file}: {name} must be {expected}, got {reprlib.repr(value)}")

    _check_class(settings, file)
    for name in _SWITCHES:
        value = settings.get(name)
        require(value is None or isinstance(value, bool), name, "true or false", value)
    for name in _NAMED:
        value = settings.get(name)
        require(value is None or _is_token(value), name, _TOKEN, value)
    for name in _LISTED:
        listed = settings.get(name)
        require(listed is None or isinstance(listed, (list, dict)), name, "a list of tokens", listed)
        for value in listed.values() if isinstance(listed, dict) else listed or ():
            require(_is_token(value), f"each of {name}", _TOKEN, value)
    name = "added_tokens_decoder"
    added = settings.get(name, {})
    require(isinstance(added, dict), name, "an object from ids to tokens", added)
    for index, value in added.items():
        require(index.isascii() and index.isdigit(), f"each name in {name}", "an id", index)
        is_object = isinstance(value, dict) and _is_token(value)
        require(is_object, f"{name}[{index}]", _TOKEN_OBJECT, value)


def _check_class(said: Mapping, file: Path) -> None:
    name = said.get("tokenizer_class")
    if name is not None and not isinstance(name, str):
        raise ProbeError(f"{file}: tokenizer_class must be the name of a class, got {reprlib.repr(name)}")


def _is_token(value: object) -> bool:
    """Whether a JSON value is a token: its text, or an object with the text and flags that are booleans."""
    flags = [value[key] for key in (*_SIDES, "special") if key in value] if isinstance(value, dict) else []
    text = _text(value)
    # json reads half a surrogate pair, which no tokenizer takes.
    is_text = text is not None and not any("\ud800" <= character <= "\udfff" for character in text)
    return is_text and all(isinstance(flag, bool) for flag in flags)


def _class_name(settings: Mapping, config: Mapping) -> str:
    declared = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if declared is None:
        return _DEFAULT_CLASS.get(str(config.get("model_type")), "TokenizersBackend")
    return str(declared).removesuffix("Fast")


def _read(directory: Path, name: str, settings: Mapping) -> tokenizers.Tokenizer | None:
    """The tokenizer in the files, or None where they are in a form that only transformers reads."""
    pipeline, vocab, merges = (directory / file for file in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if pipeline.is_file():
            return tokenizers.Tokenizer.from_file(str(pipeline))
        if vocab.is_file() and merges.is_file() and name in _BYTE_LEVEL:
            return tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ProbeError(f"{directory}: cannot read the tokenizer: {error}") from error
    if not any((directory / file).is_file() for file in ("vocab.json", *_SENTENCEPIECE)):
        raise ProbeError(
            f"{directory} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt"
        )
    is_bpe = name in _BYTE_LEVEL or name in _AS_STORED
    if is_bpe and not merges.is_file() and not any((directory / file).is_file() for file in _SENTENCEPIECE):
        raise ProbeError(f"{directory}: vocab.json needs merges.txt beside it, which is missing")
    return None


def _is_whole(backend: tokenizers.Tokenizer, directory: Path, name: str, settings: Mapping) -> bool:
    """Whether `_complete` makes of the tokenizer all that HF's class of that name would."""
    if not _knows_added_tokens(backend, directory, settings):
        return False
    if name not in _BYTE_LEVEL:
        return name in _AS_STORED
    model, splitter = backend.model, backend.pre_tokenizer
    return (
        isinstance(model, models.BPE)
        and not (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix)
        and not (model.byte_fallback or model.ignore_merges)
        and (splitter is None or (isinstance(splitter, pre_tokenizers.ByteLevel) and splitter.use_regex))
        and isinstance(backend.normalizer, (normalizers.NFC, type(None)))
        and isinstance(backend.post_processor, (processors.ByteLevel, type(None)))  # these add no token
        and not (settings.get("add_bos_token") or settings.get("add_eos_token"))
    )


def _complete(backend: tokenizers.Tokenizer, name: str, settings: Mapping) -> None:
    """What HF lays over the tokenizer in the files: the class's own pipeline, and named special tokens."""
    if name in _BYTE_LEVEL:
        # `None` is how a pipeline says that it has no normalizer; the stubs do not know it.
        backend.normalizer = normalizers.NFC() if _BYTE_LEVEL[name] else None  # type: ignore[assignment]
        spaced = bool(settings.get("add_prefix_space"))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
        backend.decoder = decoders.ByteLevel()
    for token in settings.get("added_tokens_decoder", {}).values():
        if token["content"] not in _atoms(backend):
            known = ("content", *_SIDES, "special")  # the library prints a line for any other
            backend.add_tokens([tokenizers.AddedToken(**{key: token[key] for key in known if key in token})])
    _add_named_tokens(backend, name, settings)


def _knows_added_tokens(backend: tokenizers.Tokenizer, directory: Path, settings: Mapping) -> bool:
    """Whether the added tokens that other files list have those ids in the tokenizer already."""
    listed = settings.get("added_tokens_decoder", {})
    extra = directory / "added_tokens.json"
    return all(_is_known(backend, index, token) for index, token in listed.items()) and all(
        text in _atoms(backend) and backend.token_to_id(text) == index
        for text, index in (read_json_object(extra) if extra.is_file() else {}).items()
    )


def _is_known(backend: tokenizers.Tokenizer, index: str, listed: Mapping) -> bool:
    if str(backend.token_to_id(listed["content"])) != index:
        return False
    known = backend.get_added_tokens_decoder().get(int(index))
    return known is None or all(
        getattr(known, key, value) == value for key, value in listed.items() if key != "__type"
    )


def _atoms(backend: tokenizers.Tokenizer) -> set[str]:
    """The tokens that are found in a text before it is split."""
    return {token.content for token in backend.get_added_tokens_decoder().values()}


def _add_named_tokens(backend: tokenizers.Tokenizer, name: str, settings: Mapping) -> None:
    """Makes the named special tokens atoms of the text, as HF does with those the tokenizer lacks."""
    named = [settings.get(key) for key in _NAMED]
    for key in _LISTED:
        listed = settings.get(key) or []
        named += listed.values() if isinstance(listed, dict) else listed
    if name in _BYTE_LEVEL and backend.token_to_id(_END_OF_TEXT) is not None:
        named.append(_END_OF_TEXT)
    for token in named:
        text = _text(token)
        if text is not None and text not in _atoms(backend):
            flags = token if isinstance(token, dict) else {}
            sides = {key: bool(flags.get(key)) for key in _SIDES}
            backend.add_special_tokens([tokenizers.AddedToken(text, special=True, **sides)])


def _text(token: object) -> str | None:
    """The text of a special token, which the files write as a string or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _special_id(backend: tokenizers.Tokenizer, which: str, settings: Mapping, config: Mapping) -> int | None:
    text = _text(settings.get(f"{which}_token"))
    if text is not None:
        return backend.token_to_id(text)
    index = config.get(f"{which}_token_id")
    if isinstance(index, list) and index:
        index = index[0]  # HF allows several ends of text; the first is the one it pads with
    # A negative id, usually -1, is how some files say "none"; the tokenizers library takes 32 bits.
    if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < 2**32:
        named, padding = backend.id_to_token(index), _text(settings.get("pad_token"))
        if named is not None and named != padding:  # a config's default of 0 may be the padding's
            return index
    return backend.token_to_id(_END_OF_TEXT)


@contextlib.contextmanager
def _without_logging() -> Iterator[None]:
    """Nothing is logged inside: transformers warns of config.json's ids, of classes and of a missing torch.

    Its own verbosity can only be set once it is imported, and the import is among what it warns in.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _from_transformers(directory: Path, name: str) -> tokenizers.Tokenizer:
    with _without_logging():
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ProbeError(
                f"{directory}: a tokenizer of class {name} with these settings needs the transformers package"
            ) from error
        try:
            loaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        except Exception as error:  # its own, tokenizers', the file system's, and plain TypeErrors
            files = " and ".join(file for file in FILES if (directory / file).is_file())
            raise ProbeError(
                f"{directory}: transformers cannot read the tokenizer in {files} ({one_line(error)})"
            ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ProbeError(f"{directory}: a tokenizer of class {name} has no fast form")
    return backend
