"""The model card of a checkpoint of the pair, filled in from what was measured; `card.md` is its text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxprobe.configs import TITLES


def render(
    name: str, models: Mapping[str, Mapping[str, Any]], training: Mapping[str, Any], table: str
) -> str:
    """The card of `name`.

    Args:
      name: "mamba" or "gpt2".
      models: what `training.evaluate.measure` says of both.
      training: the checkpoint's training.json.
      table: both models' numbers as text.
    """
    counts = [model["parameters"] for model in models.values()]
    [other] = set(models) - {name}
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return template.format(
        name=name,
        other=other,
        title=TITLES[name],
        parameters=models[name]["parameters"],
        size_difference=max(counts) / min(counts) - 1,
        learning_rate=training["settings"]["learning_rate"],
        table="\n".join(f"    {line}".rstrip() for line in table.splitlines()),
        context=" It reads at most 256 tokens." if name == "gpt2" else "",
        **training["text"],
    )
