"""From a name on the command line to a model ready to run."""

import dataclasses
from collections.abc import Callable, Mapping

import jax

from jaxprobe import shipped
from jaxprobe.array_typing import Params
from jaxprobe.configs import TITLES, ModelConfig
from jaxprobe.convert import Certificate, Checkpoint, Tokenizer, load
from jaxprobe.errors import ProbeError
from jaxprobe.kernels.selective_scan import ScanBackend
from jaxprobe.models import LanguageModel
from jaxprobe.run_configs import SHIPPED, Compute


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: `lm.forward(params, ids)`."""

    source: str  # as it was asked for
    lm: LanguageModel
    params: Params
    tokenizer: Tokenizer
    certificate: Certificate

    @property
    def item_bytes(self) -> int:
        """Bytes of a number."""
        return jax.tree.leaves(self.params)[0].dtype.itemsize


def open_pair(mamba: str, gpt2: str, compute: Compute) -> dict[str, LoadedModel]:
    """Both models, by architecture; where one is the package's own, that is said. As `open_model`."""
    sources = {"mamba": mamba, "gpt2": gpt2}
    if SHIPPED in sources.values():
        print(shipped.notice())
    return {key: open_model(source, key, compute) for key, source in sources.items()}


def open_model(source: str, architecture: str, compute: Compute) -> LoadedModel:
    """Loads a checkpoint of a given architecture and puts its parameters on the device.

    Args:
      source: a directory, a hub id, or SHIPPED for the one that the package carries.
      architecture: "mamba" or "gpt2".
      compute: number format and scan backend.

    Raises:
      ProbeError: the checkpoint cannot be loaded, or is of the other architecture.
    """
    checkpoint = load(shipped.checkpoint(source, architecture), dtype=compute.dtype)
    if checkpoint.config.architecture != architecture:
        raise ProbeError(
            f"--{architecture}={source} must be a {TITLES[architecture]} checkpoint, got one of architecture "
            f"{checkpoint.config.architecture}"
        )
    return _place(source, checkpoint, compute)


def open_any(source: str, compute: Compute) -> LoadedModel:
    """Loads a checkpoint of either architecture and puts its parameters on the device.

    Args:
      source: a directory or a hub id.
      compute: number format and scan backend.

    Raises:
      ProbeError: the checkpoint cannot be loaded.
    """
    return _place(source, load(source, dtype=compute.dtype), compute)


def fitting(
    models: Mapping[str, LoadedModel], why_not: Callable[[ModelConfig], str | None]
) -> dict[str, LoadedModel]:
    """The models that have what is asked of them; the others are skipped, and that is said.

    Args:
      models: by architecture, or by the title that tables show.
      why_not: what is asked for and what the model has instead; None where it fits.

    Raises:
      ProbeError: it fits none.
    """
    reasons = {key: why_not(model.lm.config) for key, model in models.items()}
    told = {TITLES.get(key, key): reason for key, reason in reasons.items() if reason}
    if len(told) == len(models):
        raise ProbeError("; ".join(f"{title} is asked for {reason}" for title, reason in told.items()))
    for title, reason in told.items():
        print(f"{title} is skipped: {reason}")
    return {key: model for key, model in models.items() if not reasons[key]}


def _place(source: str, checkpoint: Checkpoint, compute: Compute) -> LoadedModel:
    lm = LanguageModel(checkpoint.config, ScanBackend(compute.scan))
    params = lm.place(checkpoint.params, compute.dtype)
    return LoadedModel(source, lm, params, checkpoint.tokenizer, checkpoint.certificate)
