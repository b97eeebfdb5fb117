"""`export`: a parameter tree as a HF checkpoint directory."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxprobe.configs import ModelConfig
from jaxprobe.convert import fields, layout, tokenizer, weights
from jaxprobe.convert.json_files import read_json_object
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
      config: of the model.
      params: the tree of `layout.param_shapes(config)`; numpy or jax arrays.
      tokenizer_files_from: a directory whose tokenizer files are copied, and whose beginning-, end-of-text
        and padding ids go into config.json.
      dtype: of the tensors on disk; that of the parameters where it is left out. With the one in a
        certificate's `storage_dtypes` a loaded checkpoint is written back bit for bit.

    Raises:
      ProbeError: when the parameters do not fit the configuration, overflow `dtype`, or the directory
        cannot be written or is not empty.
    """
    tensors, stored = _tensors(config, params, dtype)
    target = Path(directory)
    origin = None if tokenizer_files_from is None else Path(tokenizer_files_from)
    token_ids = {} if origin is None else _token_ids(origin, config)
    hf_config = fields.to_hf(config, stored, token_ids)
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ProbeError(f"cannot export to {target}: it exists and is not an empty directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            partial = Path(scratch) / target.name
            partial.mkdir()
            (partial / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
            save_file(tensors, partial / weights.SINGLE, metadata={"format": "pt"})
            # safetensors writes for its owner alone; the weights are as readable as the rest.
            shutil.copymode(partial / "config.json", partial / weights.SINGLE)
            if origin is not None:
                for file in filter(Path.is_file, (origin / name for name in tokenizer.FILES)):
                    shutil.copyfile(file, partial / file.name)
            # Replaces an empty directory, and fails on one that filled up meanwhile.
            os.rename(partial, target)
    except (OSError, SafetensorError) as error:
        raise ProbeError(f"cannot export to {target}: {getattr(error, 'strerror', None) or error}") from error


def _token_ids(origin: Path, config: ModelConfig) -> dict[str, int | None]:
    described = origin / "config.json"
    raw = read_json_object(described) if described.is_file() else {}
    known = tokenizer.load_tokenizer(origin, {"model_type": config.architecture, **raw}, config.vocab_size)
    return {"bos": known.bos_token_id, "eos": known.eos_token_id, "pad": known.pad_token_id}


def _tensors(config: ModelConfig, params: Mapping, dtype: str | None) -> tuple[dict[str, np.ndarray], str]:
    """{HF name: tensor}, checked against the configuration, and the name of their dtype."""
    arrays = {path: np.asarray(leaf) for path, leaf in layout.flatten(dict(params)).items()}
    expected = {leaf.path: leaf for leaf in layout.leaves(config)}
    problems = ["missing " + "/".join(path) for path in expected if path not in arrays]
    problems += ["unexpected " + "/".join(path) for path in arrays if path not in expected]
    for path in (path for path in expected if path in arrays):
        shape = expected[path].stacked_shape(config.num_layers)
        if arrays[path].shape != shape:
            problems.append(f"{'/'.join(path)} has shape {list(arrays[path].shape)}, expected {list(shape)}")
    if problems:
        raise ProbeError(f"cannot export: the parameters do not fit the configuration: {'; '.join(problems)}")
    found = sorted({str(array.dtype) for array in arrays.values()})
    stored = found[0] if dtype is None and len(found) == 1 else dtype
    if stored not in STORAGE_DTYPES:
        raise ProbeError(
            f"cannot export as {stored}: give a dtype of {', '.join(STORAGE_DTYPES)} (the parameters are "
            f"{', '.join(found)})"
        )
    tensors = {}
    for path, leaf in expected.items():
        with np.errstate(over="ignore"):
            array = arrays[path].astype(STORAGE_DTYPES[stored], copy=False)
        if not np.isfinite(array).all():
            raise ProbeError(f"cannot export: {'/'.join(path)} is not finite in {stored}")
        for row, key in zip(array if leaf.is_stacked else [array], leaf.keys(config.num_layers), strict=True):
            tensors[layout.hf_name(key, config)] = np.ascontiguousarray(leaf.to_hf(row))
    return tensors, stored
