"""Mamba and GPT-2 in Flax NNX behind one interface, `LanguageModel`."""

from jaxprobe.models.language_model import LanguageModel, Output, Past

__all__ = ["LanguageModel", "Output", "Past"]
