"""The one exception type that a command turns into one line and a non-zero exit."""

_MOST_CHARACTERS = 300


class ProbeError(Exception):
    """A problem with what the user gave, told in one line.

    The message says what was wrong, what was expected and what was got. Command-line modules print it
    without a traceback; a notebook sees an ordinary exception.
    """


def one_line(error: Exception) -> str:
    """Another library's exception as a part of a message: its kind and its words, cut where they go on."""
    text = " ".join(str(error).split())[:_MOST_CHARACTERS]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
