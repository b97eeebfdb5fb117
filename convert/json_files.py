"""JSON files of a checkpoint, read with errors of one line."""

import json
from pathlib import Path

from jaxprobe.errors import ProbeError


def read_json_object(path: Path) -> dict:
    """The JSON object in a file.

    Raises:
      ProbeError: when the file cannot be read, is not JSON, or holds something else than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProbeError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProbeError(f"{path} must hold a JSON object, got a {type(value).__name__}")
    return value
