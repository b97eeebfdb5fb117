"""Several processes, such as one a machine, that share the texts of one run."""

from absl import flags

from jaxprobe.errors import ProbeError
from jaxprobe.flags.registry import FLAGS
from jaxprobe.run_configs import Cluster

COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT where the first process is to be met, the same for all; or auto, where the cluster says so "
    "(Slurm, Open MPI, Kubernetes, Cloud TPU). Every process is started with the same flags.",
    flag_values=FLAGS,
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many there are; not with --coordinator=auto.", flag_values=FLAGS
)
PROCESS = flags.DEFINE_integer(
    "process",
    None,
    "Which of them this is, from 0; the first writes the results. Not with --coordinator=auto.",
    flag_values=FLAGS,
)


def to_config() -> Cluster | None:
    """The cluster; None where there is none.

    Raises:
      ProbeError: when a value is out of range, missing, or given without --coordinator.
    """
    if COORDINATOR.value is not None:
        return Cluster(COORDINATOR.value, NUM_PROCESSES.value, PROCESS.value)
    for flag in (NUM_PROCESSES, PROCESS):
        if flag.value is not None:
            raise ProbeError(f"--{flag.name}={flag.value} needs --coordinator")
    return None
