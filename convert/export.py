"""`export`: a parameter tree as a HF checkpoint directory."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from jaxprobe.configs import ModelConfig
from jaxprobe.convert import fields, layout, tokenizer, weights
from jaxprobe.errors import ProbeError

STORAGE_DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


def export(
    directory: str | os.PathLike,
    config: ModelConfig,
    params: Mapping,
    *,
    tokenizer_files_from: str | os.PathLike | None = None,
    dtype: str | None = None,
) -> None:
    """Writes config.json, model.safetensors and tokenizer files that HF's `from_pretrained` reads.

    The directory appears whole or not at all.

    Args:
      directory: must not exist, or be empty.
      params: the tree of `layout.param_shapes(config)`; numpy or jax arrays.
      tokenizer_files_from: a directory whose tokenizer files are copied, and whose beginning-, end-of-text
        and padding ids go into config.json.
      dtype: of the tensors on disk; that of each parameter where it is left out. With the one in a
        certificate's `storage_dtypes` a loaded checkpoint is written back bit for bit.

    Raises:
      ProbeError: when the parameters do not fit the configuration, overflow `dtype`, or the directory
        cannot be written or is not empty.
    """
    if dtype is not None and dtype not in STORAGE_DTYPES:
        raise ProbeError(f"dtype must be one of {', '.join(STORAGE_DTYPES)}, got {dtype!r}")
    tensors = _tensors(config, params, dtype)
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ProbeError(f"cannot export to {target}: it exists and is not an empty directory")
    token_ids: dict[str, int | None] = {}
    if tokenizer_files_from is not None:
        source = tokenizer.load_tokenizer(Path(tokenizer_files_from), config.vocab_size)
        token_ids = {"bos": source.bos_token_id, "eos": source.eos_token_id, "pad": source.pad_token_id}
    [stored] = {str(array.dtype) for array in tensors.values()}
    hf_config = fields.to_hf(config, stored, token_ids)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            partial = Path(scratch) / target.name
            partial.mkdir()
            (partial / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
            save_file(tensors, partial / weights.SINGLE, metadata={"format": "pt"})
            for name in tokenizer.FILES if tokenizer_files_from is not None else ():
                file = Path(tokenizer_files_from) / name
                if file.is_file():
                    shutil.copyfile(file, partial / name)
            # Replaces an empty directory, and fails on one that filled up meanwhile.
            os.rename(partial, target)
    except OSError as error:
        raise ProbeError(f"cannot export to {target}: {error.strerror or error}") from error


def _tensors(config: ModelConfig, params: Mapping, dtype: str | None) -> dict[str, np.ndarray]:
    """{HF name: tensor}, checked against the configuration."""
    arrays = {path: np.asarray(leaf) for path, leaf in layout.flatten(dict(params)).items()}
    expected = {leaf.path: leaf for leaf in layout.leaves(config)}
    problems = ["missing " + "/".join(path) for path in expected if path not in arrays]
    problems += ["unexpected " + "/".join(path) for path in arrays if path not in expected]
    for path in expected.keys() & arrays.keys():
        shape = expected[path].stacked_shape(config.num_layers)
        if arrays[path].shape != shape:
            problems.append(f"{'/'.join(path)} has shape {list(arrays[path].shape)}, expected {list(shape)}")
    if problems:
        raise ProbeError(f"cannot export: the parameters do not fit the configuration: {'; '.join(problems)}")
    prefix = layout.BASE_PREFIX[config.architecture]
    tensors = {}
    for path, leaf in expected.items():
        array = arrays[path]
        target = array.dtype if dtype is None else STORAGE_DTYPES[dtype]
        with np.errstate(over="ignore"):
            array = array.astype(target, copy=False)
        if not np.isfinite(array).all():
            raise ProbeError(f"cannot export: {'/'.join(path)} is not finite in {target}")
        for row, key in zip(array if leaf.is_stacked else [array], leaf.keys(config.num_layers), strict=True):
            name = key if key == layout.HEAD_KEY else prefix + key
            tensors[name] = np.ascontiguousarray(leaf.to_hf(row))
    return tensors
