"""The whole percentage analysis against the original study's in torch: same machine, run and weights.

    python -m benchmarks.delta_vs_torch --tokenizers=DIR --controls=FILE [--relations=2 --texts=4 --layers=3]

The 130M pair with random weights, exported for HF; the seed protocol at layer 1, ten units zeroed; the
seed's nine relations and the first fifty of FILE's lines of more than ten words that are no headings. Both
sides start from models in memory and token ids. Ours is what `jaxprobe.delta_pct` computes: cold with no
compiled programs, warm with them. Torch is `benchmarks.seed_delta`. Both must come to the same units and
perplexities. Beside them the floor: plain matrix products of the multiply-adds that no program can spare,
every text through all layers once, every edited text through the layers above the edit.

Then the command as a process of its own, start-up, loading and pictures included, against torch's bare work.
Run it on a quiet machine.
"""

import dataclasses
import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import seed_delta, sizes, startup
from benchmarks.timing import show, warm
from jaxprobe import runtime
from jaxprobe.configs import TITLES, ModelConfig
from jaxprobe.convert.export import export
from jaxprobe.loading import LoadedModel, open_model
from jaxprobe.neurons import protocol_sites
from jaxprobe.original import run as delta_run
from jaxprobe.original.study import Corpus, RelationScores, prepare, summarise
from jaxprobe.relations import Relation, seed_relations
from jaxprobe.run_configs import Compute, Perturbation
from jaxprobe.texts import Texts, read_lines, wikitext_controls
from jaxprobe.widths import linear_maps

TOKENIZERS = flags.DEFINE_string("tokenizers", None, "Folder with gpt2/ and gpt-neox/ tokenizer files.")
CONTROLS = flags.DEFINE_string("controls", None, "A file of WikiText lines.")
MODELS = flags.DEFINE_list("models", list(sizes.SIZES), "Of mamba and gpt2.")
RELATIONS = flags.DEFINE_integer("relations", 9, "The first so many of the seed's nine.", lower_bound=1)
TEXTS = flags.DEFINE_integer("texts", 50, "Control texts.", lower_bound=1)
LAYERS = flags.DEFINE_integer(
    "layers", None, "Only the first so many layers, for a smoke run.", lower_bound=2
)
REPEATS = flags.DEFINE_integer("repeats", 3, "Repeats of torch, and of ours cold and warm.", lower_bound=1)
flags.mark_flags_as_required(["tokenizers", "controls"])

PERTURBATION, COMPUTE = Perturbation(), Compute(compile_cache="off")
TOLERANCE = 1e-4  # relative, of perplexities
BARS = {"cpu": 3.0, "gpu": 20.0}
_FLOOR_ROWS = 1024  # of a matrix product: about a batch's tokens


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of one model's whole analysis."""

    torch: list[float]
    cold: list[float]
    warm: list[float]
    floor: float
    multiply_adds: float

    @classmethod
    def together(cls, parts: list["Measured"]) -> "Measured":
        """Of several models, repeat by repeat."""

        def repeats(name: str) -> list[float]:
            return [sum(values) for values in zip(*(getattr(part, name) for part in parts), strict=True)]

        return cls(
            repeats("torch"), repeats("cold"), repeats("warm"),
            sum(part.floor for part in parts), sum(part.multiply_adds for part in parts),
        )  # fmt: skip


def make_model(key: str, folder: str) -> str:
    """Random weights as a checkpoint directory."""
    lm, params = sizes.random_model(key, LAYERS.value)
    files = f"{TOKENIZERS.value}/{sizes.TOKENIZERS[key]}"
    export(f"{folder}/{key}", lm.config, jax.tree.map(np.asarray, params), tokenizer_files_from=files)
    return f"{folder}/{key}"


def ours(model: LoadedModel, corpus: Corpus) -> tuple[RelationScores, ...]:
    """What `jaxprobe.delta_pct` computes between tokens and tables."""
    study = prepare(
        model.lm, model.params, corpus, delta_run.edit_spec(model, PERTURBATION, COMPUTE),
        read_site=protocol_sites(model.lm.config, PERTURBATION).read,
        top_k=PERTURBATION.top_k, batch_tokens=COMPUTE.batch_tokens,
    )  # fmt: skip
    return summarise(study, [study.compute(number) for number in range(len(study.batches))])


def measure(key: str, directory: str, relations: tuple[Relation, ...], controls: Texts) -> Measured:
    """Times both sides in turn and compares what they come to."""
    model = open_model(directory, key, COMPUTE)
    corpus = delta_run.tokens({TITLES[key]: model}, relations, controls, PERTURBATION)[TITLES[key]]
    network = seed_delta.Network(directory, PERTURBATION.layer)
    groups = [group.ids for group in corpus.relations]
    peer = partial(seed_delta.measure, network, groups, corpus.controls.ids, corpus.pad, PERTURBATION.top_k)
    seconds: dict[str, list[float]] = {"torch": [], "cold": [], "warm": []}
    made, theirs = (), []
    network.logits(groups[0][0])  # torch's first call sets up its threads and buffers
    for repeat in range(REPEATS.value):
        jax.clear_caches()
        for what in ("cold", "warm"):
            made = _timed(seconds[what], partial(ours, model, corpus))
        theirs = _timed(seconds["torch"], peer)
        last = ", ".join(f"{what} {values[-1]:.1f} s" for what, values in seconds.items())
        print(f"{TITLES[key]}, repeat {repeat + 1}: {last}", flush=True)
    compare(key, relations, made, theirs)
    return Measured(seconds["torch"], seconds["cold"], seconds["warm"], *floor(model.lm.config, corpus))


def _timed(into: list[float], compute):
    start = time.perf_counter()
    made = compute()
    into.append(time.perf_counter() - start)
    return made


def compare(key: str, relations, made, theirs) -> None:
    """Says how far apart the results are.

    Raises:
      SystemExit: units differ that are not tied, or perplexities by more than TOLERANCE.
    """
    apart, faults = 0.0, []
    for relation, mine, other in zip(relations, made, theirs, strict=True):
        for unit, peer, variance in zip(mine.chosen.units, other.units, other.variances, strict=True):
            tied = unit in other.units and np.isclose(
                variance, other.variances[other.units.index(unit)], rtol=1e-5
            )
            if unit != peer and not tied:
                faults.append(f"{relation.name}: units {mine.chosen.units}, torch {other.units}")
                break
        for change, pair in ((mine.erased, other.erased), (mine.control, other.control)):
            for a, b in zip((change.baseline_ppl, change.perturbed_ppl), pair, strict=True):
                apart = max(apart, abs(a / b - 1))
    if not apart <= TOLERANCE:
        faults.append(f"perplexities {apart:.1e} apart, wanted <= {TOLERANCE:.0e}")
    if faults:
        raise SystemExit(f"{TITLES[key]}: results differ: " + "; ".join(faults))
    print(f"{TITLES[key]}: the same units in all {len(made)} relations; perplexities within {apart:.0e}\n")


def floor(config: ModelConfig, corpus: Corpus) -> tuple[float, float]:
    """Seconds of the matrix products that no program can spare, and their multiply-adds.

    Linear maps of the blocks and the unembedding, without padding; attention, scan and everything else free.
    """
    relations = [sum(map(len, group.ids)) for group in corpus.relations]
    control = sum(map(len, corpus.controls.ids))
    read, edited = sum(relations) + control, sum(relations) + len(relations) * control
    texts = len(corpus.ids) + sum(len(group.ids) for group in corpus.relations)
    texts += len(relations) * len(corpus.controls.ids)
    above = config.num_layers - 1 - PERTURBATION.layer
    in_blocks = config.num_layers * read + above * edited
    maps = [(*shape, in_blocks) for shape in linear_maps(config)]
    maps.append(
        (config.hidden_size, config.vocab_size, read + edited - texts)
    )  # each text's last token predicts none
    product, seconds, count = jax.jit(jnp.matmul), 0.0, 0
    for inputs, outputs, rows in maps:
        a, w = jnp.ones((_FLOOR_ROWS, inputs)), jnp.ones((inputs, outputs))
        seconds += min(warm(partial(product, a, w), 5)) * rows / _FLOOR_ROWS
        count += inputs * outputs * rows
    return seconds, float(count)


def process(directories: dict[str, str], folder: str, relations, controls: Texts) -> dict[str, float]:
    """Wall seconds of the command as a process, cold and warm."""
    files = {"relations": Path(folder) / "relations.json", "controls": Path(folder) / "controls.txt"}
    entries = [
        {"relation": r.id, "label": r.label, "facts": [{"text": f.text, "object": f.object} for f in r.facts]}
        for r in relations
    ]
    files["relations"].write_text(json.dumps(entries), encoding="utf-8")
    files["controls"].write_text("\n".join(controls.texts) + "\n", encoding="utf-8")
    command = ["jaxprobe.delta_pct", "--protocol=seed", f"--compile_cache={folder}/cache"]
    command += [f"--{key}={directory}" for key, directory in directories.items()]
    command += [f"--{flag}={path}" for flag, path in files.items()]
    return {what: startup.run([*command, f"--out={folder}/{what}"]) for what in ("cold", "warm")}


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def row(title: str, m: Measured) -> list[str]:
    """A line of the table."""
    medians = {name: statistics.median(getattr(m, name)) for name in ("torch", "cold", "warm")}
    return [
        title, *(_spread(getattr(m, name)) for name in medians), f"{m.floor:.2f}",
        f"{m.multiply_adds / 1e9:,.0f}", f"{medians['torch'] / medians['cold']:.2f}",
        f"{medians['torch'] / medians['warm']:.2f}", f"{medians['warm'] / m.floor:.2f}",
        f"{medians['torch'] / m.floor:.2f}",
    ]  # fmt: skip


def main(_) -> None:
    """Prints the tables and the bars."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch
    runtime.configure(COMPUTE)
    relations = seed_relations()[: RELATIONS.value]
    path = str(CONTROLS.value)
    controls = Texts(wikitext_controls(read_lines(path))[: TEXTS.value], path)
    with tempfile.TemporaryDirectory() as folder:
        directories = {key: make_model(key, folder) for key in MODELS.value}
        measured = {key: measure(key, path, relations, controls) for key, path in directories.items()}
        total = report(measured, len(relations), len(controls.texts))
        if len(measured) == 2:
            for what, seconds in process(directories, folder, relations, controls).items():
                print(
                    f"the command as a process, {what}: {seconds:.1f} s; torch's bare work takes "
                    f"{total / seconds:.2f} times as long"
                )


def report(measured: dict[str, Measured], relations: int, controls: int) -> float:
    """Prints the table and the bars; returns torch's seconds."""
    total = Measured.together(list(measured.values()))
    rows = [row(TITLES[key], m) for key, m in measured.items()]
    show(
        f"relations: {relations}, control texts: {controls}; seconds, median (least to most) "
        f"of {REPEATS.value}; load {os.getloadavg()[0]:.1f}",
        [
            "model", "torch", "ours, cold", "ours, warm", "floor", "10^9 multiply-adds", "torch / cold",
            "torch / warm", "warm / floor", "torch / floor",
        ],
        [*rows, row("all", total)] if len(rows) > 1 else rows,
    )  # fmt: skip
    torch_seconds = statistics.median(total.torch)
    if (jax.default_backend() == "gpu") != (seed_delta.DEVICE == "cuda"):
        print(f"not measured: the bar: jax is on {jax.default_backend()}, torch on {seed_delta.DEVICE}")
        return torch_seconds
    wanted = BARS[jax.default_backend()]
    for what in ("cold", "warm"):
        ratio = torch_seconds / statistics.median(getattr(total, what))
        met = "met" if ratio >= wanted else "not met"
        print(f"{met}: torch / ours, {what}: {ratio:.2f}, wanted >= {wanted:g}", flush=True)
    return torch_seconds


if __name__ == "__main__":
    app.run(main)
