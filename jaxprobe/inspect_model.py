"""What a checkpoint holds: layers, parameters, sites with their shapes, tokenizer and conversion certificate.

With --verify, and torch installed, also the largest differences of logits and gradients from HF's own module.
"""

import sys
from typing import TYPE_CHECKING

from jaxprobe import cli
from jaxprobe.errors import ProbeError
from jaxprobe.flags import inspect_model as inspect_flags
from jaxprobe.run_configs import InspectRun

if TYPE_CHECKING:
    from jaxprobe.convert import Checkpoint
    from jaxprobe.run_configs import Compute


def run(config: InspectRun) -> None:
    """Prints the structure of each model, and how far it is from HF where asked."""
    from jaxprobe import convert, runtime, shipped, structure

    if config.verify:
        runtime.configure(config.compute)
    if not config.models:
        print(shipped.notice("model", "model") + "\n")
    for model in config.models or tuple(map(str, shipped.MODELS.values())):
        checkpoint = convert.load(model, dtype=config.compute.dtype)
        print(structure.report(checkpoint) + "\n")
        if config.verify:
            _verify(model, checkpoint, config.compute)


def _verify(model: str, checkpoint: "Checkpoint", compute: "Compute") -> None:
    from jaxprobe import verify
    from jaxprobe.convert import hub
    from jaxprobe.kernels.selective_scan import ScanBackend
    from jaxprobe.models import LanguageModel

    lm = LanguageModel(checkpoint.config, ScanBackend(compute.scan))
    params = lm.place(checkpoint.params, compute.dtype)
    found = verify.verify(lm, params, hub.resolve(model).directory, compute.seed)
    name, gradient = found.worst_gradient()
    print(f"Largest differences of this model in {compute.dtype} from HF's in float32")
    print(f"  logits     {found.logits}")
    print(f"  gradients  {gradient} in {name}\n")
    if not found.logits.relative <= verify.LOGITS_BAR:
        raise ProbeError(f"{model} gives other logits than HF: the difference is not one of rounding")


def main() -> int:
    """Entry point of `python -m jaxprobe.inspect_model` and of `jaxprobe-inspect`."""
    return cli.run(run, inspect_flags, __doc__)


if __name__ == "__main__":
    sys.exit(main())
