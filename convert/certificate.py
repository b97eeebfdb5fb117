"""What was converted, in a form that goes into every run's manifest."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Certificate:
    """The identity of a converted checkpoint, and everything the conversion left aside.

    `sha256` covers `files` (config.json and the weights): it is what
    `sha256sum FILES | sha256sum` prints, with FILES in the order of `files`.
    """

    source: str  # the directory or hub id, as it was given
    revision: str | None  # the hub commit, where there is one
    sha256: str
    files: tuple[str, ...]  # names, sorted
    architecture: str
    parameter_count: int  # a tied head counts once
    storage_dtypes: tuple[str, ...]  # of the tensors on disk, sorted; more than one when they are mixed
    dtype: str  # of the converted parameters
    tied: bool  # the output head is the embedding
    ignored_keys: tuple[str, ...]  # tensors that are no parameters: causal-mask buffers, a tied head's copy
    ignored_fields: tuple[str, ...]  # config fields known not to change the forward pass
    unknown_fields: tuple[str, ...]  # config fields nobody has judged: read them before trusting a number

    def to_json(self) -> dict[str, Any]:
        """The certificate as a JSON-ready dictionary."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
