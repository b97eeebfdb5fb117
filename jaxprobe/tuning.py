"""How much work to give a device at once: what was measured to run best, for a CPU and for an accelerator."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What suits a kind of device. None of it changes a result by more than rounding.

    Attributes:
      cotangents: numbers that one batch's cotangents [m b t d] may take before texts go one by one. On a CPU
        what stays in cache, 16 MiB in float32; a GPU wants many at once (BUILD_NOTES, "Batch sizes of the
        sweep").
      cotangent_rows: cotangents times tokens pulled back at once: enough for a matrix product to run at
        speed, few enough for its operands to stay in cache (BUILD_NOTES, "Operators of the scan").
      cotangent_rows_gpt2: the same for GPT-2, whose products multiplied out are of one token each
        (`kernels.factored`): their rows are the cotangents alone.
      activations: numbers that the activations of a batch of draws may take.
      scored_tokens: whose logits are held at once, for the same reasons (BUILD_NOTES, "Scoring tokens").
      compiling_sweeps: about how many numbers the device multiplies while what one more width of sweeps needs
        is compiled (3 s a model).
      compiling_draws: the same for finite differences, at the speed that their smaller products run at.
      compiling_scores: the same for the programs that score texts.
    """

    cotangents: int
    cotangent_rows: int
    cotangent_rows_gpt2: int
    activations: int
    scored_tokens: int
    compiling_sweeps: float
    compiling_draws: float
    compiling_scores: float


_CPU = Tuning(
    cotangents=2**22,
    cotangent_rows=2**10,
    cotangent_rows_gpt2=1600,
    activations=2**25,
    scored_tokens=2**7,
    compiling_sweeps=4e11,
    compiling_draws=1.5e11,
    compiling_scores=3e10,
)
_ACCELERATOR = Tuning(
    cotangents=2**27,
    cotangent_rows=2**15,
    cotangent_rows_gpt2=2**15,
    activations=2**27,
    scored_tokens=2**10,
    compiling_sweeps=1e14,
    compiling_draws=5e13,
    compiling_scores=6e13,
)


def tuning(platform: str) -> Tuning:
    """Of "cpu", or of "gpu" and the like."""
    return _CPU if platform == "cpu" else _ACCELERATOR
