"""Stopwatches for `benchmarks.jacobian_vs_peers`: our work and the peers', on the same model and texts."""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import seed_estimator, sizes
from jaxprobe.array_typing import Params
from jaxprobe.convert.export import export
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.planning import Plan, cut
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.sensitivity import summarise, work_units
from jaxprobe.models import LanguageModel
from jaxprobe.work import WorkUnit

Ids = list[tuple[int, ...]]
# What of the Jacobian command is timed apart, by the kind of its work units.
PARTS = ("exact", "draws")


@dataclasses.dataclass(frozen=True)
class Subject:
    """One model, ours and HF's with the same weights, and its texts."""

    key: str
    lm: LanguageModel
    params: Params
    network: seed_estimator.Network
    default: Ids  # texts of the default run
    ids: Ids  # those that are timed

    @property
    def layers(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(self.lm.config.num_layers))

    def plan(self, ids: Ids) -> Plan:
        """What the Jacobian command would plan for all layers and these texts."""
        return cut(self.lm.config, ids, Plan(layers=self.layers), platform=jax.default_backend())


def subject(key: str, folder: str, num_texts: int, layers: int | None, tokenizers: str | None) -> Subject:
    """Makes the weights and exports them to FOLDER/KEY; the timed texts have the most usual lengths."""
    lm, params = sizes.random_model(key, layers)
    files = tokenizers and f"{tokenizers}/{sizes.TOKENIZERS[key]}"
    export(f"{folder}/{key}", lm.config, jax.tree.map(np.asarray, params), tokenizer_files_from=files)
    texts = sizes.default_texts(key, tokenizers)
    mean = statistics.mean(map(len, texts))
    usual = sorted(texts, key=lambda row: abs(len(row) - mean))[:num_texts]
    return Subject(key, lm, params, seed_estimator.Network(f"{folder}/{key}"), texts, usual)


def timed(name: str, compute: Callable[[], object]) -> float:
    """Wall seconds of one call, whose results must have reached the host when it returns; said on stderr."""
    start = time.perf_counter()
    compute()
    seconds = time.perf_counter() - start
    print(f"{time.strftime('%T')} {name}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return seconds


@dataclasses.dataclass(frozen=True)
class Ours:
    """What the Jacobian command does with the timed texts."""

    factor: float  # seconds of the unembedding's factor, which one model needs once
    first: dict[str, float]  # by part: seconds with compilation, the factor and the forward pass
    after: dict[str, list[float]]  # seconds of each later repeat, without them
    measured: ModelSensitivity

    def default_run(self, of: Subject) -> float:
        """Seconds of the default run: work scaled to all texts, padding included, compilation to all shapes.

        Work grows with the tokens; not all texts are sampled.
        """

        def cost(ids: Ids, part: str) -> tuple[int, int]:
            plan = of.plan(ids)
            batches = {"exact": plan.batches, "draws": plan.draw_batches}[part]
            return sum(b.rows * b.width for b in batches), len({(b.rows, b.width) for b in batches})

        total = self.factor
        for part, repeats in self.after.items():
            (work, shapes), (timed_work, timed_shapes) = cost(of.default, part), cost(of.ids, part)
            typical = statistics.median(repeats)
            compilation = max(0.0, self.first[part] - typical - (part == "exact") * self.factor)
            total += work / timed_work * typical + compilation * shapes / timed_shapes
        return total


def time_ours(of: Subject, repeats: int) -> Ours:
    """Times each of PARTS."""
    factor = jax.jit(partial(output_factor, of.lm)).lower(of.params).compile()
    factor_seconds = timed("factor", lambda: jax.block_until_ready(factor(of.params)))
    first, after, results, plan = {}, {}, {}, of.plan(of.ids)
    every = work_units(of.lm, of.params, of.ids, plan)
    for part in PARTS:
        units = [unit for unit in every if unit.name.startswith(part)]

        def run(units: list[WorkUnit] = units) -> None:
            results.update({unit.name: unit.compute() for unit in units})

        first[part] = timed(f"{part}, first", run)
        after[part] = [timed(part, run) for _ in range(repeats)]
    return Ours(factor_seconds, first, after, summarise(of.lm.config, of.ids, plan, results))


def time_sampled(of: Subject, repeats: int) -> tuple[Mapping[str, list[float]], np.ndarray]:
    """Seconds of (a) by the way a draw is run, and its sensitivity at each layer, mean over texts."""
    seconds, gains = {}, []
    for way in seed_estimator.WAYS:

        def run(way: str = way) -> None:
            gains.append([seed_estimator.sampled_gains(of.network, row, of.layers, way) for row in of.ids])

        if not gains:
            run()  # torch's first calls set up its threads and buffers
        seconds[way] = [timed(f"(a), {way}", run) for _ in range(repeats)]
    return seconds, np.mean(gains, axis=(0, 1))


def jax_jacobian(of: Subject, layer: int) -> tuple[np.ndarray, float]:
    """(c): dz/dh_l [D, T, D] of the first text by plain `jax.jacrev`; seconds, without compilation."""
    lm = of.lm
    h = jnp.asarray(seed_estimator.block_outputs(of.network, of.ids[0])[layer])

    def final_state(h, params):
        def body(h, inputs):
            return lm.block(inputs[1], inputs[0], h), None

        above = jax.tree.map(lambda leaf: leaf[layer + 1 :], params["blocks"])
        h, _ = jax.lax.scan(body, h, (jnp.arange(layer + 1, lm.config.num_layers), above))
        return lm.normalise(params, h[0, -1])

    compiled = jax.jit(jax.jacrev(final_state)).lower(h, of.params).compile()
    made = []
    seconds = timed(f"(c), layer {layer}", lambda: made.append(np.asarray(compiled(h, of.params))))
    return made[0][:, 0], seconds


def torch_jacobian(of: Subject, layer: int, chunk: int) -> tuple[np.ndarray, float]:
    """(b): the same by `torch.func.jacrev`."""
    made = []

    def run() -> None:
        made.append(seed_estimator.final_state_jacobian(of.network, of.ids[0], layer, chunk))

    seconds = timed(f"(b), layer {layer}", run)
    return made[0], seconds
