"""Plain texts: from a file or standard input, or the control texts. Errors name the file and the line."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxprobe.errors import ProbeError
from jaxprobe.shipped import ASSETS

NUM_CONTROLS = 50


@dataclass(frozen=True)
class Texts:
    """Texts in order, and where they are from, in words.

    Attributes:
      texts: in order.
      origin: where they are from.
      groups: of each text, what it has in common with others, such as its relation; empty where each text
        stands for itself.
    """

    texts: tuple[str, ...]
    origin: str
    groups: tuple[str, ...] = ()


def shorten(value: object) -> str:
    """The value as an error message quotes it, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 file, or of standard input for "-", without their ends."""
    name = "standard input" if str(path) == "-" else str(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else Path(path).expanduser().read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ProbeError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ProbeError(f"{name}: line {line} is not UTF-8 text") from error
    return [line.removesuffix("\r") for line in text.split("\n")]


def read_texts(path: str | Path) -> Texts:
    """One text a line, UTF-8; "-" is standard input. Blank lines may end the file, not stand inside it.

    Raises:
      ProbeError: when the file is missing, empty or not UTF-8, or a line inside it is empty.
    """
    name = "standard input" if str(path) == "-" else str(path)
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ProbeError(f"{name}: holds no text; expected one a line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ProbeError(f"{name}: line {number} is empty; expected one text a line")
    return Texts(tuple(lines), name)


def take(source: Texts, count: int | None, default: int) -> Texts:
    """The first `count` texts; with None the first `default`, or all where there are fewer.

    Raises:
      ProbeError: when there are fewer than `count`.
    """
    if count is not None and count > len(source.texts):
        raise ProbeError(f"--num_texts={count}, but {source.origin} hold only {len(source.texts)} texts")
    first = slice(default if count is None else count)
    return Texts(source.texts[first], source.origin, source.groups[first])


def load_controls(choice: str = "builtin") -> Texts:
    """The control texts of `--controls`: `builtin`, `wikitext`, or a file with one a line.

    `wikitext` is the original study's list: of WikiText-2 (wikitext-2-v1) train, the first fifty lines of
    more than ten words that do not start with "=".

    Raises:
      ProbeError: when the file or the data set cannot be read; there is no other list to fall back to.
    """
    if choice == "builtin":
        return Texts(read_texts(ASSETS / "controls.txt").texts, "the builtin control texts")
    if choice == "wikitext":
        return Texts(wikitext_controls(_wikitext_lines()), "WikiText-2 train")
    return read_texts(choice)


def wikitext_controls(lines: Iterable[str]) -> tuple[str, ...]:
    """The first fifty lines of more than ten words that do not start with "=", stripped."""
    chosen = []
    for line in map(str.strip, lines):
        if len(line.split()) > 10 and not line.startswith("="):
            chosen.append(line)
            if len(chosen) == NUM_CONTROLS:
                break
    return tuple(chosen)


def _wikitext_lines() -> Iterable[str]:
    try:
        import datasets
        import huggingface_hub

        huggingface_hub.logging.set_verbosity_error()  # each retry would be a line of its own
        return datasets.load_dataset("Salesforce/wikitext", "wikitext-2-v1", split="train")["text"]
    except Exception as error:  # datasets raises many kinds: no network, no cache, a changed data set
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProbeError(
            f"--controls=wikitext: Salesforce/wikitext cannot be loaded ({reason}); use builtin or FILE.txt"
        ) from error
