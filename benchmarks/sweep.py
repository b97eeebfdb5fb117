"""The reverse sweep: all layers at once against one at a time, and against full Jacobians of the logits.

    python -m benchmarks.sweep [--mamba=... --gpt2=...]

Every layer's exact spectrum by (a) one sweep, (b) one sweep down to each layer in turn, (c) `jax.jacrev` of
all v logits for one layer in the middle, times the number of layers. Warm times; ratios to (a).
"""

from functools import partial

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.timing import seconds, show
from jaxprobe.configs import TITLES
from jaxprobe.jacobians.linearize import sequence_sweep
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.readout import logits_from
from jaxprobe.loading import open_model
from jaxprobe.relations import relation_texts
from jaxprobe.run_configs import SHIPPED, Compute
from jaxprobe.runtime import configure
from jaxprobe.taps import Taps

MAMBA = flags.DEFINE_string("mamba", SHIPPED, "Mamba checkpoint.")
GPT2 = flags.DEFINE_string("gpt2", SHIPPED, "GPT-2 checkpoint.")


def measure(key: str, source: str) -> list[str]:
    """One row: the model's times."""
    model = open_model(source, key, Compute())
    lm, params = model.lm, model.params
    ids = jnp.array([model.tokenizer.encode(relation_texts().texts[0])], jnp.int32)
    lengths = jnp.array([ids.shape[1]])
    _, captured = lm.run_blocks(params, lm.embed(params, ids), taps=Taps(capture=("block_out",)))
    hidden, factor = captured["block_out"], output_factor(lm, params)
    depth = lm.config.num_layers

    def sweep(**layers):
        f = jax.jit(partial(sequence_sweep, lm, **layers))
        return seconds(lambda: f(params, factor, hidden, lengths), repeats=3)[1]

    together = sweep()
    apart = sum(sweep(lowest=layer, every=False) for layer in range(depth))
    full = jax.jit(jax.jacrev(lambda h: logits_from_static(lm, params, depth // 2, h, lengths)))
    brute = depth * seconds(lambda: full(hidden[depth // 2]), repeats=1)[1]
    return [
        TITLES[key], str(depth), str(ids.shape[1]), f"{together:.3f}", f"{apart:.3f}", f"{brute:.3f}",
        f"{apart / together:.2f}", f"{brute / together:.1f}",
    ]  # fmt: skip


def logits_from_static(lm, params, layer, h, lengths):
    """`logits_from` with the blocks unrolled: reverse mode cannot pass a loop of traced length."""
    for above in range(layer + 1, lm.config.num_layers):
        h = lm.block(lm.block_params(params, above), above, h)
    return logits_from(lm, params, lm.config.num_layers - 1, h, lengths)


def main(_) -> None:
    """Prints the table."""
    configure(Compute(compile_cache="off"))
    header = ["model", "layers", "tokens", "(a) sweep s", "(b) each s", "(c) full s", "b / a", "c / a"]
    show("All layers, one text", header, [measure("mamba", MAMBA.value), measure("gpt2", GPT2.value)])


if __name__ == "__main__":
    app.run(main)
