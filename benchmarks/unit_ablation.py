"""Every unit of a layer ablated alone, against as many plain passes through the blocks that an edit reruns.

    python -m benchmarks.unit_ablation [--layers=4 --layer=1 --units=768 --texts=4 --repeats=5]

At the 130M sizes with random weights. One side: each unit of `block_out` zeroed in each text, as the matched
protocol does it. Other side: the same texts as often, in batches of the same shape, from the input of the
same layer to the same scores, with no edit. Fewer layers make it short, and the ratio worse: an edit is at
one layer. Bar: ablations / plain passes <= 1.3.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.sizes import LONGEST, SHORTEST, random_model
from benchmarks.timing import show
from jaxprobe.configs import TITLES
from jaxprobe.matched.edit_effects import job_batches
from jaxprobe.matched.edit_grids import Grid, Work
from jaxprobe.matched.shelves import Treatment, shelve
from jaxprobe.run_configs import Compute
from jaxprobe.runtime import configure
from jaxprobe.scoring.perplexity import score_tokens
from jaxprobe.sites import BLOCK_OUT, site_width

LAYERS = flags.DEFINE_integer("layers", None, "How many layers of each model; all of them without it.")
LAYER = flags.DEFINE_integer("layer", 1, "The edited layer.")
UNITS = flags.DEFINE_integer("units", None, "How many of the units; all of them without it.")
TEXTS = flags.DEFINE_integer("texts", 4, "How many texts.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls after the first.")
BATCH_TOKENS = flags.DEFINE_integer("batch_tokens", 4096, "The most tokens in a batch.")
MODELS = flags.DEFINE_list("models", ["mamba", "gpt2"], "Of mamba, gpt2.")


@partial(jax.jit, static_argnums=0)
def plain(lm, params, layer, shelf, rows):
    """The scores of texts of a shelf, run from the layer's input without an edit."""
    texts = jax.tree.map(lambda leaf: leaf[rows], shelf)
    h = lm.resume(params, texts.h, layer)

    nll, _ = score_tokens(lm, params, h, texts.ids)
    return jnp.sum(jnp.where(texts.scored, nll, 0), axis=1)


def once(compute: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(compute())
    return time.perf_counter() - start


def measure(key: str) -> list[str]:
    """One row: a model's times."""
    lm, params = random_model(key, LAYERS.value)
    rng = np.random.default_rng(0)
    lengths = rng.integers(SHORTEST, LONGEST + 1, TEXTS.value)
    ids = [tuple(rng.integers(0, lm.config.vocab_size, length).tolist()) for length in lengths]
    treatment = Treatment(BLOCK_OUT, "zero")
    shelves = shelve(lm, params, ids, None, treatment, layer=LAYER.value, batch_tokens=BATCH_TOKENS.value)
    width = min(UNITS.value or 10**9, site_width(lm.config, BLOCK_OUT))
    grid = Grid.whole(treatment, np.arange(width)[:, None], range(len(ids)))
    work = Work.of({("units",): grid}, shelves, BATCH_TOKENS.value)
    batches = job_batches(shelves, work.jobs.text, BATCH_TOKENS.value)

    def unedited():
        return [
            plain(lm, params, LAYER.value, shelves.shelves[batch.shelf],
                  jnp.asarray(shelves.row[work.jobs.text[batch.places]]))
            for batch in batches
        ]  # fmt: skip

    # Turn about, so that what else the machine does falls on both alike.
    edited = partial(work.run, lm, params, shelves, treatment)
    for compiles in (edited, unedited):
        once(compiles)
    ablated, passes = zip(*((once(edited), once(unedited)) for _ in range(REPEATS.value)), strict=True)
    ratios = [a / b for a, b in zip(ablated, passes, strict=True)]
    return [
        TITLES[key], str(lm.config.num_layers), str(width), str(len(ids)), str(len(batches)),
        f"{statistics.median(ablated):.3f}", f"{statistics.median(passes):.3f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
    ]  # fmt: skip


def main(_) -> None:
    """Prints a row as soon as it is measured."""
    configure(Compute(compile_cache="off"))
    header = ["model", "layers", "units", "texts", "batches", "ablations s", "plain s", "ablations / plain"]
    for key in MODELS.value:
        show(f"Every unit alone at layer {LAYER.value}", header, [measure(key)])


if __name__ == "__main__":
    app.run(main)
