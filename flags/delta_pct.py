"""Flags of `python -m jaxprobe.delta_pct`."""

from jaxprobe.flags import compute, layer, memory, models, output, perturbation, report, site
from jaxprobe.run_configs import DeltaPctRun

GROUPS = (models, layer, site, perturbation, compute, memory, output, report)


def to_config() -> DeltaPctRun:
    """The run that the command line asks for.

    Raises:
      ProbeError: when a value is out of range, or two values contradict one another.
    """
    return DeltaPctRun(
        mamba=models.MAMBA.value,
        gpt2=models.GPT2.value,
        perturbation=perturbation.to_config(),
        relations=perturbation.RELATIONS.value,
        controls=perturbation.CONTROLS.value,
        report=report.to_config(),
        out=output.to_config(),
        compute=compute.to_config(),
        memory_gb=memory.to_config(),
    )
