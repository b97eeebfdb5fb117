"""The sweeps against their floor: the matrix products that the cotangents or tangents need, and no more.

    python -m benchmarks.limit [--layers=4 --tokens=12,64,128 --repeats=3]

At the 130M sizes with random weights, one text. Floor: d cotangents through every linear map of every block
that the sweep passes, timed as plain matrix products of the same shapes, in the same run. Every block of a
model has the same shapes, so the sweep through a few layers tells the ratio of all; reductions to norms and
spectra, which are of every layer and made of all together, and their floor are the whole model's. On a GPU
products and reductions, some of them shorter than it takes to begin them, are queued, as in a sweep. The last
token's sweep, which is quick, goes through all layers, to the lowest one's spectrum alone. Bars: sweep /
floor <= 1.5 at 12 tokens and <= 2.0 beyond on CPU, <= 2.5 on a GPU; reductions / floor <= 0.4; last-token
sweep / its floor <= 1.5, both sweeps without their reductions.
"""

import statistics
from functools import partial

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.sizes import SIZES, random_model
from benchmarks.timing import show, warm
from jaxprobe.configs import TITLES, ModelConfig
from jaxprobe.jacobians.layer_spectra import reduce_sequence
from jaxprobe.jacobians.linearize import last_token_sweep, sequence_sweep
from jaxprobe.jacobians.planning import Plan, cut
from jaxprobe.jacobians.reductions import Reduction, joined_values
from jaxprobe.jacobians.split_factor import split_factor
from jaxprobe.jacobians.sweeps import values_of
from jaxprobe.run_configs import Compute
from jaxprobe.runtime import configure
from jaxprobe.taps import Taps
from jaxprobe.widths import linear_maps

LAYERS = flags.DEFINE_integer("layers", 4, "How many layers of each model.")
TOKENS = flags.DEFINE_list("tokens", ["12", "64", "128"], "Lengths of the text.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed calls after the first.")
MODELS = flags.DEFINE_list("models", ["mamba", "gpt2"], "Of mamba, gpt2.")


def floor(config: ModelConfig, rows: int) -> list[float]:
    """Seconds for so many rows through the linear maps of one block: repeats of the sum over the maps."""
    key = jax.random.key(0)
    total = [0.0] * REPEATS.value
    product = jax.jit(lambda a, w: a @ w.T)
    for inputs, outputs in linear_maps(config):
        cotangents, weights = (
            jax.random.normal(key, (rows, outputs)),
            jax.random.normal(key, (inputs, outputs)),
        )
        timed = warm(partial(product, cotangents, weights), REPEATS.value, _queued())
        total = [a + b for a, b in zip(total, timed, strict=True)]
    return total


def measure(key: str, tokens: int) -> list[str]:
    """One row: a model's times at one length."""
    lm, params = random_model(key, LAYERS.value)
    config, repeats = lm.config, REPEATS.value
    ids, lengths = jnp.arange(tokens)[None], jnp.array([tokens])
    captured = jax.jit(lambda p: lm.run_blocks(p, lm.embed(p, ids), taps=Taps(capture=("block_out",)))[1])(
        params
    )
    hidden = captured["block_out"]
    factor, weight = split_factor(lm, params)
    plan = cut(config, [list(range(tokens))], Plan(layers=(0,)), platform=jax.default_backend())
    reduction = Reduction(plan.reduction)
    options = {"chunk": plan.batches[0].chunk, "reduction": reduction, "values": False}
    whole = jax.jit(partial(sequence_sweep, lm, **options))
    reduce = jax.jit(partial(reduce_sequence, reduction, weight, None, jnp.array(0)))
    block = jax.random.normal(jax.random.key(1), (len(factor), 1, tokens, config.hidden_size))

    depth, blocks = SIZES[key].num_layers, config.num_layers - 1  # blocks that a sweep to layer 0 passes
    of_block = floor(config, len(factor) * tokens)
    at_least, at_least_whole = ([count * s for s in of_block] for count in (blocks, depth - 1))
    within = warm(partial(reduce, block), repeats, _queued())
    squares = jnp.broadcast_to(reduce(block).squares, (depth, 1, len(factor), len(factor)))
    values = warm(partial(values_of, squares, reduction), repeats)
    reductions = [depth * a + b for a, b in zip(within, values, strict=True)]
    within = [config.num_layers * s for s in within]
    one = jax.jit(lambda rows: joined_values(reduce(rows).squares, Reduction.GRAM))
    one_reduction = warm(partial(one, block[:, :, :1]), repeats)
    del block, squares
    sweep = warm(lambda: whole(params, factor, hidden, lengths, centred_weight=weight), repeats)
    last_floor, last_seconds = time_last(key, tokens)
    return [
        TITLES[key], str(tokens), str(plan.batches[0].chunk), _median(at_least), _median(sweep),
        _median(reductions), _ratios(_without(sweep, within), at_least),
        _ratios(reductions, at_least_whole),
        _ratios(_without(last_seconds, one_reduction), last_floor),
    ]  # fmt: skip


def time_last(key: str, tokens: int) -> tuple[list[float], list[float]]:
    """Seconds of the floor and of the sweep of the last token through all blocks, with one reduction."""
    lm, params = random_model(key)
    shape = (lm.config.num_layers, 1, tokens, lm.config.hidden_size)
    hidden, factor = jax.random.normal(jax.random.key(2), shape), jnp.eye(lm.config.hidden_size)
    sweep = jax.jit(partial(last_token_sweep, lm, reduction=Reduction.GRAM, every=False))
    at_least = [(lm.config.num_layers - 1) * s for s in floor(lm.config, lm.config.hidden_size)]
    return at_least, warm(lambda: sweep(params, factor, hidden, jnp.array([tokens])), REPEATS.value)


def _queued() -> int:
    return 1 if jax.default_backend() == "cpu" else 20


def _without(values: list[float], others: list[float]) -> list[float]:
    return [value - statistics.median(others) for value in values]


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.3f}"


def _ratios(values: list[float], of: list[float]) -> str:
    middle = statistics.median(of)
    low, high = min(values) / middle, max(values) / middle
    return f"{statistics.median(values) / middle:.2f} ({low:.2f} to {high:.2f})"


def main(_) -> None:
    """Prints a row as soon as it is measured."""
    configure(Compute(compile_cache="off"))
    header = [
        "model", "tokens", "chunk", "floor s", "sweep to squares s", "reductions, all layers, s",
        "sweep / floor", "reductions / floor", "last / its floor",
    ]  # fmt: skip
    for key in MODELS.value:
        for tokens in TOKENS.value:
            show(f"{LAYERS.value} layers, one text", header, [measure(key, int(tokens))])


if __name__ == "__main__":
    app.run(main)
