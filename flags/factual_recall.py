"""Flags of `python -m jaxprobe.factual_recall`."""

from jaxprobe.flags import compute, layer, memory, model_list, output, perturbation, report, site
from jaxprobe.run_configs import FactualRecallRun

GROUPS = (model_list, layer, site, perturbation, compute, memory, output, report)


def to_config() -> FactualRecallRun:
    """The run that the command line asks for.

    Raises:
      ProbeError: when a value is out of range, or two values contradict one another.
    """
    return FactualRecallRun(
        models=model_list.to_config(),
        perturbation=perturbation.to_config(),
        relations=perturbation.RELATIONS.value or FactualRecallRun.relations,
        controls=perturbation.CONTROLS.value,
        out=output.to_config(),
        compute=compute.to_config(),
        memory_gb=memory.to_config(),
        report=report.to_config(),
    )
