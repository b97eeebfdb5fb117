"""The one exception type that a command turns into one line and a non-zero exit."""


class ProbeError(Exception):
    """A problem with what the user gave, told in one line.

    The message says what was wrong, what was expected and what was got. Command-line modules print it
    without a traceback; a notebook sees an ordinary exception.
    """
