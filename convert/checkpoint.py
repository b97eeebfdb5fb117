"""`load`: a HF checkpoint as a configuration, a parameter tree, a tokenizer and a certificate."""

import concurrent.futures
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from jaxprobe.configs import TITLES, DTypeName, ModelConfig
from jaxprobe.convert import cache, fields, hub, layout, weights
from jaxprobe.convert.certificate import Certificate
from jaxprobe.convert.json_files import read_json_object
from jaxprobe.convert.tokenizer import Tokenizer, load_tokenizer
from jaxprobe.errors import ProbeError

_LISTED = 6  # names in one error line

# Causal-mask buffers that old GPT-2 files carry beside their parameters.
_BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


@dataclass(frozen=True)
class Checkpoint:
    """A converted checkpoint."""

    config: ModelConfig
    params: layout.Params
    tokenizer: Tokenizer
    certificate: Certificate


def load(
    id_or_dir: str | os.PathLike, *, dtype: DTypeName = "float32", cache_dir: Path | None = None
) -> Checkpoint:
    """Converts a HF checkpoint, a local directory or a hub id.

    Args:
      id_or_dir: a directory with config.json, safetensors and tokenizer files, or an id of the hub.
      dtype: of the parameters. float16 and bfloat16 on disk, and float32, widen exactly.
      cache_dir: keeps the converted parameters there for the next time. Without it, only checkpoints of
        at least `cache.MINIMUM_BYTES` are kept, in $JAXPROBE_CACHE/params, else ~/.cache/jaxprobe/params.

    Raises:
      ProbeError: naming what is wrong with the checkpoint; see the modules of this package.
    """
    if dtype not in get_args(DTypeName):
        raise ProbeError(f"dtype must be one of {', '.join(get_args(DTypeName))}, got {dtype!r}")
    location = hub.resolve(id_or_dir)
    directory = location.directory
    if not (directory / "config.json").is_file():
        raise ProbeError(f"{directory} has no config.json")
    raw = read_json_object(directory / "config.json")
    _check_architecture(directory, raw.get("model_type"))
    parsed = fields.parse(raw, str(directory / "config.json"))
    tokenizer = load_tokenizer(directory, raw, parsed.config.vocab_size)
    files = tuple(sorted(("config.json", *weights.weight_files(directory))))
    # Hashed meanwhile: that takes one core.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        sha256 = thread.submit(weights.digest, directory, files)
        opened = weights.open_weights(directory)
        names, ignored = _match_keys(opened.headers, parsed.config, directory)
        ignored += _tied_head(opened, names, parsed.config, directory)
        folder = cache.entries_folder(cache_dir, sum((directory / name).stat().st_size for name in files))
        entry = None if folder is None else cache.entry_path(folder, sha256.result(), dtype)
        params = None if entry is None else cache.restore(entry, parsed.config, dtype)
        if params is None:
            params = _read(opened, names, parsed.config, dtype, directory)
            if entry is not None:
                cache.store(entry, params)
    for array in layout.flatten(params).values():
        array.flags.writeable = False  # JAX on CPU takes it as it is: written to, it would change a model
    stored = {opened.headers[key].dtype for key in names.values()}
    certificate = Certificate(
        source=os.fspath(id_or_dir),
        revision=location.revision,
        sha256=sha256.result(),
        files=files,
        architecture=parsed.config.architecture,
        parameter_count=sum(array.size for array in layout.flatten(params).values()),
        storage_dtypes=tuple(weights.FLOAT_DTYPES[name] for name in sorted(stored)),
        dtype=dtype,
        tied=parsed.config.tie_word_embeddings,
        ignored_keys=tuple(sorted(ignored)),
        ignored_fields=parsed.ignored_fields,
        unknown_fields=parsed.unknown_fields,
    )
    return Checkpoint(parsed.config, params, tokenizer, certificate)


def _check_architecture(directory: Path, model_type: object) -> None:
    """Looks whose tensors these are, as fields read for the other architecture mislead with their errors.

    Raises:
      ProbeError: when config.json names one architecture and the tensors are those of another.
    """
    if not isinstance(model_type, str) or model_type not in layout.OWN_KEY:
        return  # `fields.parse` says more
    try:
        keys = list(weights.open_weights(directory).headers)
    except ProbeError:
        return  # told once the weights are needed, after what is wrong with the other files
    owned = {
        name: [key for key in keys if _canonical(key, name) == own] for name, own in layout.OWN_KEY.items()
    }
    for name, found in owned.items():
        if found and not owned[model_type]:
            raise ProbeError(
                f"{directory}: config.json names model_type {model_type!r}, but the tensors are those of "
                f"{TITLES[name]} ({found[0]} is one): the two must be of one model"
            )


def _listing(problems: list[str]) -> str:
    shown = "; ".join(problems[:_LISTED])
    return shown if len(problems) <= _LISTED else f"{shown}; and {len(problems) - _LISTED} more"


def _match_keys(
    headers: Mapping[str, weights.Header], config: ModelConfig, directory: Path
) -> tuple[dict[str, str], list[str]]:
    """Pairs every tensor that the model needs with its name on disk.

    Returns:
      {name in `layout`: name on disk}, and the names on disk of buffers to ignore.

    Raises:
      ProbeError: for tensors that are missing, unexpected, named twice, of another shape or no floats.
    """
    _check_layer_count(headers, config, directory)
    shapes = {key: leaf.hf_shape for leaf in layout.leaves(config) for key in leaf.keys(config.num_layers)}
    names: dict[str, str] = {}
    ignored, problems = [], []
    for key in sorted(headers):
        name = _canonical(key, config.architecture)
        if config.architecture == "gpt2" and _BUFFERS.fullmatch(name):
            ignored.append(key)
        elif name in names:
            problems.append(f"{key} and {names[name]} are the same tensor")
        elif name not in shapes and not (name == layout.HEAD_KEY and config.tie_word_embeddings):
            problems.append(f"unexpected {key}")
        else:
            names[name] = key
            header = headers[key]
            # A tied head has the embedding's shape, [v, d], also where it stands in for the embedding.
            expected = shapes.get(name, (config.vocab_size, config.hidden_size))
            if header.shape != expected:
                problems.append(f"{key} has shape {list(header.shape)}, expected {list(expected)}")
            elif header.dtype not in weights.FLOAT_DTYPES:
                problems.append(
                    f"{key} has dtype {header.dtype}, expected one of {', '.join(weights.FLOAT_DTYPES)}"
                )
    embedding = layout.EMBEDDING_KEY[config.architecture]
    if config.tie_word_embeddings and embedding not in names and layout.HEAD_KEY in names:
        names[embedding] = names.pop(layout.HEAD_KEY)  # a file may keep either of two tied names
    problems += [f"missing {layout.hf_name(name, config)}" for name in shapes if name not in names]
    if problems:
        raise ProbeError(f"{directory}: the weights do not fit config.json: {_listing(problems)}")
    return names, ignored


def _check_layer_count(headers: Mapping[str, weights.Header], config: ModelConfig, directory: Path) -> None:
    """Bounds the names that `_match_keys` writes out by what the files can hold: each layer has a tensor.

    Raises:
      ProbeError: when config.json names more layers than there are tensors.
    """
    if config.num_layers <= len(headers):
        return
    layer = re.compile(re.escape(layout.LAYER_PREFIX[config.architecture]) + r"(\d+)\.")
    found = {match[1] for key in headers if (match := layer.match(_canonical(key, config.architecture)))}
    raise ProbeError(
        f"{directory}: the weights do not fit config.json, which names {config.num_layers} "
        f"layers: they hold {len(found)} (tensors in all: {len(headers)})"
    )


def _canonical(key: str, architecture: str) -> str:
    name = key.removeprefix(layout.BASE_PREFIX[architecture])
    # mamba-ssm's first HF files say "embedding".
    if architecture == "mamba" and name == "embedding.weight":
        return layout.EMBEDDING_KEY["mamba"]
    return name


def _tied_head(
    opened: weights.OpenWeights, names: dict[str, str], config: ModelConfig, directory: Path
) -> list[str]:
    """Drops the copy of the embedding that a tied head may carry; returns the names on disk it dropped.

    Raises:
      ProbeError: when config.json ties a head that differs from the embedding. Releases of transformers
        disagree on what that means (before 5 the embedding wins, from 5 on the head stays as it is), so
        guessing would give numbers that depend on the release compared with.
    """
    if not config.tie_word_embeddings or layout.HEAD_KEY not in names:
        return []
    head = names.pop(layout.HEAD_KEY)
    embedding = names[layout.EMBEDDING_KEY[config.architecture]]
    if not np.array_equal(opened.read(head), opened.read(embedding)):
        raise ProbeError(
            f"{directory}: tie_word_embeddings is true but {head} differs from {embedding}: say in "
            "config.json whether the head is tied"
        )
    return [head]


def _read(
    opened: weights.OpenWeights, names: Mapping[str, str], config: ModelConfig, dtype: str, directory: Path
) -> layout.Params:
    """The parameter tree, read one tensor at a time.

    Raises:
      ProbeError: for tensors that hold NaN or infinity (in `dtype`: a float64 may overflow float32).
    """

    def fill(row: np.ndarray, leaf: layout.Leaf, key: str) -> str | None:
        """Reads a tensor to its place; its name if it is not finite."""
        with np.errstate(over="ignore"):
            row[...] = leaf.from_hf(opened.read(names[key]))
        return None if np.isfinite(row).all() else names[key]

    # Most of the time goes into memory that is touched for the first time, which threads can share.
    with concurrent.futures.ThreadPoolExecutor() as threads:
        jobs = []

        def convert(leaf: layout.Leaf) -> np.ndarray:
            out = _empty(leaf.stacked_shape(config.num_layers), dtype)
            rows = zip(out if leaf.is_stacked else [out], leaf.keys(config.num_layers), strict=True)
            jobs.extend(threads.submit(fill, row, leaf, key) for row, key in rows)
            return out

        params = layout.build_tree(config, convert)
        problems = [name for job in jobs if (name := job.result())]
    if problems:
        raise ProbeError(f"{directory}: NaN or infinite values in {_listing(problems)}")
    return params


def _empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """`np.empty`, but where JAX on CPU takes such an array as it is, without another copy of the weights."""
    alignment = 64  # bytes; XLA's own
    buffer = np.empty(math.prod(shape) * np.dtype(dtype).itemsize + alignment, np.uint8)
    start = -buffer.ctypes.data % alignment
    return buffer[start : buffer.size - alignment + start].view(dtype).reshape(shape)
