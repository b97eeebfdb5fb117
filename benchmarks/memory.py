"""What a plan says it will take against what it takes: `--memory_gb` is to be believed.

    python -m benchmarks.memory [--layers=3 --tokens=12,64,128]

At the 130M sizes with random weights, one text, exact Jacobians of all layers; each case in a process of its
own, whose peak is the operating system's (a CPU's) or the allocator's (a GPU's). Cases: all the memory there
is, 1.15 times what the smallest chunks need, and norms alone. Bar: measured / predicted within 0.75 to 1.25.
"""

import json
import subprocess
import sys

import jax
import numpy as np
from absl import app, flags

from benchmarks.sizes import SIZES, random_model
from benchmarks.timing import show
from jaxprobe import memory
from jaxprobe.errors import ProbeError
from jaxprobe.loading import TITLES
from jaxprobe.planning import Plan, cut
from jaxprobe.run_configs import Compute
from jaxprobe.runtime import configure
from jaxprobe.sensitivity import work_units
from jaxprobe.sweeps import lower_sweep

LAYERS = flags.DEFINE_integer("layers", 3, "How many layers of each model.")
TOKENS = flags.DEFINE_list("tokens", ["12", "64", "128"], "Lengths of the text.")
CASE = flags.DEFINE_string("case", None, "One case, as JSON: what a process of its own is given.")
TIGHT = 1.15


def run_case(key: str, tokens: int, reduction: str, tight: bool) -> dict[str, float]:
    """Plans, runs and measures one case, in this process."""
    machine = configure(Compute())
    lm, params = random_model(key, LAYERS.value)
    ids = [np.random.default_rng(0).integers(0, lm.config.vocab_size, tokens).tolist()]
    layers = tuple(range(lm.config.num_layers))
    plan = Plan(layers, wrt=("sequence",), reduction=reduction)  # pyright: ignore[reportArgumentType]
    plan = cut(lm.config, ids, plan, platform=machine.platform)
    device = jax.devices()[0]

    def fit(gib: float | None):
        return memory.fit(plan, lm.config, lambda batch: lower_sweep(lm, params, plan, batch), device, gib, 4)

    limit = None
    if tight:
        try:
            fit(1e-3)
        except ProbeError as error:  # it names what would do
            limit = TIGHT * float(str(error).partition("--memory_gb=")[2].split()[0])
    fitted, forecast = fit(limit)
    for unit in work_units(lm, params, ids, fitted):
        unit.compute()
    gib = memory.GIB
    return {
        "chunk": fitted.batches[0].chunk,
        "limit": limit or 0,
        "predicted": forecast.peak / gib,
        "measured": memory.peak_bytes(device) / gib,
    }


def row(key: str, tokens: int, reduction: str, tight: bool) -> list[str]:
    """One case in a process of its own."""
    case = json.dumps([key, tokens, reduction, tight])
    command = [sys.executable, "-m", "benchmarks.memory", f"--layers={LAYERS.value}", f"--case={case}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    made = json.loads(done.stdout.splitlines()[-1])
    return [
        TITLES[key], str(tokens), {"auto": "all", "none": "norms"}[reduction],
        f"{made['limit']:.2f}" if tight else "-", str(made["chunk"]), f"{made['predicted']:.2f}",
        f"{made['measured']:.2f}", f"{made['measured'] / made['predicted']:.2f}",
    ]  # fmt: skip


def main(_) -> None:
    """Prints the table, or in a process of its own the measurements of one case."""
    if CASE.value:
        print(json.dumps(run_case(*json.loads(CASE.value))))
        return
    header = [
        "model", "tokens", "made", "limit GiB", "chunk", "predicted GiB", "measured GiB",
        "measured / predicted",
    ]  # fmt: skip
    for key in SIZES:
        for tokens in TOKENS.value:
            cases = (("auto", False), ("auto", True), ("none", False))
            rows = [row(key, int(tokens), reduction, tight) for reduction, tight in cases]
            show(f"{LAYERS.value} layers, one text", header, rows)


if __name__ == "__main__":
    app.run(main)
