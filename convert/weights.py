"""Reading safetensors checkpoints: one file or several, the headers first, then tensor by tensor."""

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy before safetensors needs it)
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxprobe.convert.json_files import read_json_object
from jaxprobe.errors import ProbeError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pth", "model.pt")

# safetensors' names of the dtypes that convert to float32 or float64 without scale factors.
FLOAT_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class Header:
    """What a file says of one tensor before its data is read."""

    shape: tuple[int, ...]
    dtype: str  # safetensors' name, such as "BF16"
    file: str
    start: int  # of its data, in bytes from the file's start


class OpenWeights:
    """The tensors of a checkpoint, by the names on disk."""

    def __init__(self, maps: Mapping[str, mmap.mmap], headers: Mapping[str, Header]):
        self._maps = maps
        self.headers = headers

    def read(self, key: str) -> np.ndarray:
        """The tensor of that name, one of FLOAT_DTYPES, as it lies in the file: its memory is the file's."""
        header = self.headers[key]
        dtype = np.dtype(FLOAT_DTYPES[header.dtype])
        return np.ndarray(header.shape, dtype, self._maps[header.file], header.start)


def weight_files(directory: Path) -> tuple[str, ...]:
    """The names of the files that hold a checkpoint's weights, the index among them, sorted.

    Raises:
      ProbeError: when there are none, or only pickled ones, one is missing, or the index is malformed.
    """
    if (directory / SINGLE).is_file():
        return (SINGLE,)
    if (directory / INDEX).is_file():
        names = tuple(sorted({INDEX, *_weight_map(directory).values()}))
        for name in names:
            if not (directory / name).is_file():
                raise ProbeError(f"missing weights file {directory / name}; {INDEX} names it")
        return names
    pickles = [name for name in _PICKLES if (directory / name).is_file()]
    if pickles:
        raise ProbeError(
            f"{directory} holds only pickled weights ({pickles[0]}), which can run code when read; convert "
            "them to model.safetensors: transformers' save_pretrained writes that"
        )
    raise ProbeError(f"{directory} has no weights: expected {SINGLE} or {INDEX}")


def _weight_map(directory: Path) -> dict[str, str]:
    weight_map = read_json_object(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ProbeError(f"{directory / INDEX}: weight_map must map tensor names to files")
    for name in weight_map.values():
        # A name is a file beside the index, never a path out of the checkpoint.
        if not isinstance(name, str) or Path(name).name != name:
            raise ProbeError(
                f"{directory / INDEX}: weight_map must name files of the directory, got {name!r}"
            )
    return weight_map


def open_weights(directory: Path) -> OpenWeights:
    """Opens the safetensors of a checkpoint and reads their headers.

    Raises:
      ProbeError: when a file is truncated or corrupt, or index and files disagree.
    """
    files = [name for name in weight_files(directory) if name != INDEX]
    maps, headers = {}, {}
    for file in files:
        maps[file], entries = _open(directory / file)
        for key, header in entries.items():
            if key in headers:
                raise ProbeError(f"{directory}: tensor {key} is in both {headers[key].file} and {file}")
            headers[key] = header
    for key, file in ({} if files == [SINGLE] else _weight_map(directory)).items():
        if key not in headers or headers[key].file != file:
            raise ProbeError(f"{directory / file}: tensor {key} is missing; {INDEX} says it is there")
    return OpenWeights(maps, headers)


def _open(path: Path) -> tuple[mmap.mmap, dict[str, Header]]:
    # safetensors looks whether header and data fit each other. Its own reader copies each tensor to memory
    # never touched before, which takes most of the time on a virtual machine; a map of the file copies none.
    try:
        with safe_open(path, framework="np"), open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError) as error:
        raise ProbeError(f"{path} is not a whole safetensors file: {error}") from error
    # The format: eight bytes with the header's length, the header, the data.
    data = 8 + int.from_bytes(mapped[:8], "little")
    entries = json.loads(mapped[8:data])
    entries.pop("__metadata__", None)
    return mapped, {
        key: Header(tuple(entry["shape"]), entry["dtype"], path.name, data + entry["data_offsets"][0])
        for key, entry in entries.items()
    }


def digest(directory: Path, names: tuple[str, ...]) -> str:
    """One sha256 of several files: what `sha256sum NAMES | sha256sum` prints in `directory`.

    Raises:
      ProbeError: when a file cannot be read.
    """
    lines = []
    for name in names:
        try:
            with open(directory / name, "rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
        except OSError as error:
            raise ProbeError(f"cannot read {directory / name}: {error.strerror or error}") from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()
