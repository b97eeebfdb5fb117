"""What a plan says it will take against what it takes: `--memory_gb` is to be believed.

    python -m benchmarks.memory [--layers=3 --tokens=12,64,128 --jobs=1]

At the 130M sizes with random weights, one text (two for the last case), exact Jacobians of all layers; each
case in a process of its own, whose peak is the operating system's (a CPU's) or the allocator's (a GPU's).
Several at once, with --jobs, share a GPU only with XLA_PYTHON_CLIENT_PREALLOCATE=false.
Cases: all the memory there is, 1.15 times what the smallest chunks need, norms alone, and with --path and
--epsilon_sweep. Bar: measured / predicted within 0.75 to 1.25.
"""

import concurrent.futures
import json
import subprocess
import sys

import jax
import numpy as np
from absl import app, flags

from benchmarks.sizes import SIZES, random_model
from benchmarks.timing import show
from jaxprobe import memory
from jaxprobe.configs import TITLES
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians import memory as sweep_memory
from jaxprobe.jacobians import studies
from jaxprobe.jacobians.epsilon_sweep import study_bytes
from jaxprobe.jacobians.planning import Batch, Plan, cut
from jaxprobe.jacobians.sensitivity import summarise, work_units
from jaxprobe.jacobians.sweeps import lower_sweeps
from jaxprobe.run_configs import Compute
from jaxprobe.runtime import configure

LAYERS = flags.DEFINE_integer("layers", 3, "How many layers of each model.")
TOKENS = flags.DEFINE_list("tokens", ["12", "64", "128"], "Lengths of the text.")
JOBS = flags.DEFINE_integer("jobs", 1, "Cases at once.", lower_bound=1)
CASE = flags.DEFINE_string("case", None, "One case, as JSON: what a process of its own is given.")
TIGHT = 1.15


CASES = ("all", "tight", "norms", "studies")


def run_case(key: str, tokens: int, case: str) -> dict[str, float]:
    """Plans, runs and measures one of CASES, in this process."""
    machine = configure(Compute())
    lm, params = random_model(key, LAYERS.value)
    texts = 2 if case == "studies" else 1  # a path leads from a text to the next
    ids = np.random.default_rng(0).integers(0, lm.config.vocab_size, (texts, tokens)).tolist()
    layers = tuple(range(lm.config.num_layers))
    plan = Plan(layers, wrt=("sequence",), reduction="none" if case == "norms" else "auto")
    plan = cut(lm.config, ids, plan, platform=machine.platform)
    device = jax.devices()[0]

    def besides() -> dict[str, int]:
        if case != "studies":
            return {}
        return {
            "--path": studies.path_bytes(lm, params, plan),
            "--epsilon_sweep": study_bytes(lm, params, ids, plan.num_samples, plan.batch_tokens),
        }

    def lower(batch: Batch):
        return lower_sweeps(lm, params, plan, batch)

    def fit(gib: float | None):
        return sweep_memory.fit(plan, lm.config, lower, device, gib, 4, besides)

    limit = None
    if case == "tight":
        try:
            fit(1e-3)
        except ProbeError as error:  # it names what would do
            limit = TIGHT * float(str(error).partition("--memory_gb=")[2].split()[0])
    fitted, forecast = fit(limit)
    results = {unit.name: unit.compute() for unit in work_units(lm, params, ids, fitted)}
    if case == "studies":
        for unit in studies.path_units(lm, params, ids, fitted, results):
            unit.compute()
        measured = summarise(lm.config, ids, fitted, results)
        studies.sweep_unit(lm, params, ids, fitted, 1, measured).compute()
    gib = memory.GIB
    return {
        "chunk": fitted.batches[0].chunk,
        "limit": limit or 0,
        "predicted": forecast.peak / gib,
        "measured": memory.peak_bytes(device) / gib,
    }


def row(key: str, tokens: int, case: str) -> list[str]:
    """One case in a process of its own."""
    arguments = [f"--layers={LAYERS.value}", f"--case={json.dumps([key, tokens, case])}"]
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{TITLES[key]}, {tokens} tokens, {case}: {done.stderr}")
    made = json.loads(done.stdout.splitlines()[-1])
    limit = f"{made['limit']:.2f}" if case == "tight" else "-"
    ratio = made["measured"] / made["predicted"]
    numbers = (f"{value:.2f}" for value in (made["predicted"], made["measured"], ratio))
    return [TITLES[key], str(tokens), case, limit, str(made["chunk"]), *numbers]


def main(_) -> None:
    """Prints the table, or in a process of its own the measurements of one case."""
    if CASE.value:
        print(json.dumps(run_case(*json.loads(CASE.value))))
        return
    header = [
        "model", "tokens", "case", "limit GiB", "chunk", "predicted GiB", "measured GiB",
        "measured / predicted",
    ]  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(JOBS.value) as pool:
        cases = [(key, int(tokens), case) for key in SIZES for tokens in TOKENS.value for case in CASES]
        rows = pool.map(row, *zip(*cases, strict=True))
        for _ in range(0, len(cases), len(CASES)):
            show(f"{LAYERS.value} layers", header, [next(rows) for _ in CASES])


if __name__ == "__main__":
    app.run(main)
