"""Exact Jacobians of every layer against what others run: same machine, same run, same weights, 130M sizes.

    python -m benchmarks.jacobian_vs_peers --tokenizers=DIR [--texts=2 --models=mamba,gpt2 --layers=3]

(a) the seed's sampled estimator in torch (`benchmarks.seed_estimator`), entering at the layer, and also by
whole passes, as with a forward hook; (b) `torch.func.jacrev` of the normed final state; (c) `jax.jacrev` of
the same. Ours is what the Jacobian command computes, with its reductions to spectra; (b) and (c) have none.
Weights are random, exported for HF. Run it on a quiet machine: the threads of torch wait for one another, so
another job on the cores slows (a) most.
"""

import json
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks import peers, seed_estimator, sizes, startup
from benchmarks.timing import show
from jaxprobe import runtime
from jaxprobe.configs import TITLES
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.planning import SAMPLED_TEXTS
from jaxprobe.relations import relation_texts
from jaxprobe.run_configs import DEFAULT_NUM_TEXTS, Compute

MODELS = flags.DEFINE_list("models", list(sizes.SIZES), "Of mamba and gpt2.")
TEXTS = flags.DEFINE_integer("texts", 2, "Texts timed: those of the most usual length.", lower_bound=1)
LAYERS = flags.DEFINE_integer(
    "layers", None, "Only the first so many layers, for a smoke run.", lower_bound=2
)
REPEATS = flags.DEFINE_integer("repeats", 3, "Repeats of (a), and of ours once compiled.", lower_bound=1)
CHUNK = flags.DEFINE_integer("chunk", 64, "Cotangents that (b) carries at once.")
TOKENIZERS = flags.DEFINE_string(
    "tokenizers", None, "Folder with gpt2/ and gpt-neox/ tokenizer files; random token ids without it."
)
PROCESS_LAYER, PROCESS_TEXTS = 1, 5
OURS = {
    "exact": "ours: exact, all layers, both inputs",
    "draws": "ours: the command's own draws, all layers",
}
SAMPLED = {
    "resumed": "(a) torch, 10 draws a layer, one at a time",
    "whole": "(a) the same by whole passes",
    "batched": "(a) torch, 10 draws a layer, batched",
}
DEFAULT = {"ours": "ours", "resumed": "(a)", "whole": "(a) by whole passes", "batched": "(a) batched"}


def measure(key: str, folder: str) -> dict[str, float]:
    """Prints the table of one model; returns the seconds that the bars need."""
    of = peers.subject(key, folder, TEXTS.value, LAYERS.value, TOKENIZERS.value)
    count, depth, middle = len(of.ids), len(of.layers), len(of.layers) // 2
    load = os.getloadavg()[0]
    sampled, gains = peers.time_sampled(of, REPEATS.value)
    ours = peers.time_ours(of, REPEATS.value)
    c = {layer: peers.jax_jacobian(of, layer) for layer in (0, middle, depth - 1)}
    by_torch, b = peers.torch_jacobian(of, middle, CHUNK.value)
    # The time grows by the same amount with every block above the layer.
    summed = float(np.interp(of.layers, list(c), [seconds for _, seconds in c.values()]).sum())

    exact = statistics.median(ours.after["exact"]) / count

    def row(name: str, *seconds: float) -> list[str]:
        median = statistics.median(seconds)
        numbers = (median, min(seconds), max(seconds))
        return [name, *(f"{value:.2f}" for value in numbers), f"{median / exact:.3g}"]

    def texts(seconds: list[float]) -> list[float]:
        return [value / count for value in seconds]

    rows = [row(name, *texts(ours.after[part])) for part, name in OURS.items()]
    rows.append(row("ours: factor of the unembedding, once a model", ours.factor))
    rows += [row(name, *texts(sampled[way])) for way, name in SAMPLED.items()]
    rows.append(row(f"(b) torch.func.jacrev, layer {middle} alone", b))
    rows += [row(f"(c) jax.jacrev, layer {layer} alone", seconds) for layer, (_, seconds) in c.items()]
    rows.append(row("(c) sum over layers, linear between those", summed))
    lengths = ", ".join(str(len(text)) for text in of.ids)
    show(
        f"{TITLES[key]}, {depth} layers: seconds a text, of {lengths} tokens; (b) and (c): the first; "
        f"load before {load:.1f}",
        ["what", "median", "least", "most", "over ours"],
        rows,
    )
    print("first calls, compilation included: ", ", ".join(f"{p} {s:.1f} s" for p, s in ours.first.items()))
    factor = np.asarray(output_factor(of.lm, of.params))
    layers = ours.measured.layers
    norms = {layer: np.linalg.norm(np.tensordot(factor, jacobian, 1)) for layer, (jacobian, _) in c.items()}
    off = max(abs(norm / layers[layer].exact["sequence"].frobenius[0] - 1) for layer, norm in norms.items())
    apart = np.abs(by_torch - c[middle][0]).max() / np.abs(by_torch).max()
    expected = [layer.expected.mean.mean() for layer in layers if layer.expected is not None]
    against = gains / np.array(expected)
    print(f"(b) and (c) within {apart:.0e} of the largest entry; ||J||_F of ours and (c) within {off:.0e};")
    print(f"(a) over its exact expectation: {against.min():.3f} to {against.max():.3f}\n", flush=True)
    share = SAMPLED_TEXTS / count
    return {
        "exact": statistics.median(ours.after["exact"]),
        "a": statistics.median(sampled["resumed"]),
        "c over ours": summed / exact,
        "default, ours": ours.default_run(of),
        **{f"default, {way}": share * statistics.median(seconds) for way, seconds in sampled.items()},
    }


def processes(folder: str) -> dict[str, float]:
    """Wall seconds of whole processes: one layer, five texts, both models of FOLDER/KEY."""
    directories = {key: f"{folder}/{key}" for key in sizes.SIZES}
    models = [f"--{key}={directory}" for key, directory in directories.items()]
    common = [f"--layer={PROCESS_LAYER}", f"--num_texts={PROCESS_TEXTS}", f"--compile_cache={folder}/cache"]
    command = ["jaxprobe.jacobian", "--wrt=last", *common, f"--out={folder}/out", *models]
    job = {"models": list(directories.values()), "layer": PROCESS_LAYER}
    texts = list(relation_texts().texts[:PROCESS_TEXTS])
    ids = [sizes.default_texts(key, TOKENIZERS.value)[:PROCESS_TEXTS] for key in sizes.SIZES]
    seconds = {"ours, cold": startup.run(command), "ours, warm": startup.run(command)}
    jobs = {
        "(a)": {"way": "resumed", "texts": texts},
        "(a) by whole passes": {"way": "whole", "texts": texts},
        "(a) given token ids": {"way": "resumed", "ids": ids},
    }
    for name, given in jobs.items():
        path = Path(folder) / "job.json"
        path.write_text(json.dumps({**job, **given}), encoding="utf-8")
        seconds[name] = startup.run(["benchmarks.seed_estimator", str(path)])
    return seconds


def bar(name: str, ratio: float, limit: float, *, least: bool = False) -> None:
    """Prints whether a ratio keeps to its limit."""
    met = ratio >= limit if least else ratio <= limit
    print(f"{'met' if met else 'not met'}: {name}: {ratio:.3g}, wanted {'>=' if least else '<='} {limit:g}")


def main(_) -> None:
    """Prints the tables and the bars."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch
    machine = runtime.configure(Compute(compile_cache="off"))
    with tempfile.TemporaryDirectory() as folder:
        measured = {key: measure(key, folder) for key in MODELS.value}
        whole = processes(folder) if TOKENIZERS.value and len(measured) == len(sizes.SIZES) else None
    total = {name: sum(m[name] for m in measured.values()) for name in next(iter(measured.values()))}
    scaled = f"scaled from {TEXTS.value} texts to {DEFAULT_NUM_TEXTS}, {SAMPLED_TEXTS} of them sampled"
    print(f"Default run of {' and '.join(measured)}, without start-up and loading, {scaled}:", end=" ")
    print(", ".join(f"{name} {total[f'default, {key}']:.0f} s" for key, name in DEFAULT.items()))
    if whole is None:
        print("Whole processes were not measured: they need --tokenizers and both models")
    else:
        print(f"Whole processes, --layer={PROCESS_LAYER} --num_texts={PROCESS_TEXTS}:",
              ", ".join(f"{name} {seconds:.1f} s" for name, seconds in whole.items()))  # fmt: skip
    print()
    if (machine.platform == "gpu") != (seed_estimator.DEVICE == "cuda"):
        print(
            f"not measured: bars against (a): jax is on {machine.platform}, torch on {seed_estimator.DEVICE}"
        )
    elif machine.platform == "gpu":
        bar("exact all layers over (a), same texts", total["exact"] / total["a"], 0.1)
    else:
        for way, name in (("resumed", "(a)"), ("whole", "(a) by whole passes")):
            bar(f"default run over {name}", total["default, ours"] / total[f"default, {way}"], 1)
            if whole is not None:
                for ours in ("ours, cold", "ours, warm"):
                    bar(f"whole process, {ours}, over {name}", whole[ours] / whole[name], 1)
    for key, values in measured.items():
        bar(f"(c) summed over layers, over ours, {TITLES[key]}", values["c over ours"], 8, least=True)


if __name__ == "__main__":
    app.run(main)
