"""Files the package carries: the default relations, the control texts, and a matched pair of small models."""

from pathlib import Path

from jaxprobe.run_configs import SHIPPED

ASSETS = Path(__file__).resolve().parent / "assets"
MODELS = {"mamba": ASSETS / "mamba-facts", "gpt2": ASSETS / "gpt2-facts"}


def checkpoint(choice: str, architecture: str) -> str:
    """The directory or hub id that `--mamba` or `--gpt2` means.

    Args:
      choice: the flag's value; `shipped` means the package's own model.
      architecture: `mamba` or `gpt2`.
    """
    return str(MODELS[architecture]) if choice == SHIPPED else choice
