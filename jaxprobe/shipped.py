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


def is_shipped(source: str) -> bool:
    """Whether a checkpoint, by its directory or hub id, is one of the package's own."""
    return source in map(str, MODELS.values())


def notice(mamba_flag: str = "mamba", gpt2_flag: str = "gpt2") -> str:
    """The line that a command prints first where it runs on the package's own models.

    Args:
      mamba_flag: the command's flag for a Mamba checkpoint. gpt2_flag: for a GPT-2 checkpoint.
    """
    return (
        "Small models shipped with jaxprobe (they show the method, not the world); the study's own pair: "
        f"--{mamba_flag}=state-spaces/mamba-130m-hf --{gpt2_flag}=gpt2"
    )
