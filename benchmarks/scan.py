"""The selective scan: sequential against associative, forward, reverse, and as the Jacobian sweep uses it.

    python -m benchmarks.scan

Ratios are associative / sequential: above 1, the sequential scan is faster.
"""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.timing import seconds, show
from jaxprobe.configs import MambaConfig
from jaxprobe.kernels.selective_scan import ScanBackend, selective_scan
from jaxprobe.linearize import sequence_sweep
from jaxprobe.models import LanguageModel
from jaxprobe.output_metrics import output_factor
from jaxprobe.taps import Taps

BACKENDS = (ScanBackend.SEQUENTIAL, ScanBackend.ASSOCIATIVE)
SHAPES = ((1, 16, 256), (8, 16, 256), (1, 128, 256), (8, 128, 256), (1, 16, 1536), (1, 128, 1536))  # b t e
STATE_SIZE = 16
SWEEP = MambaConfig(
    vocab_size=512, hidden_size=64, num_layers=4, intermediate_size=128, state_size=16, time_step_rank=4,
    conv_kernel=4,
)  # fmt: skip


def inputs(b: int, t: int, e: int, n: int) -> dict[str, jax.Array]:
    """Random arguments of `selective_scan`."""
    keys = iter(jax.random.split(jax.random.key(0), 6))
    return {
        "x": jax.random.normal(next(keys), (b, t, e)),
        "delta": jax.nn.softplus(jax.random.normal(next(keys), (b, t, e))),
        "A": -jnp.exp(jax.random.normal(next(keys), (e, n))),
        "B": jax.random.normal(next(keys), (b, t, n)),
        "C": jax.random.normal(next(keys), (b, t, n)),
        "D": jax.random.normal(next(keys), (e,)),
    }


def run(backend: ScanBackend, arguments: dict[str, jax.Array]) -> jax.Array:
    """The output of the scan."""
    x, delta, A, B, C, D = (arguments[name] for name in ("x", "delta", "A", "B", "C", "D"))
    return selective_scan(x, delta, A, B, C, D, backend=backend)[0]


def scan_rows() -> list[list[str]]:
    """Forward and gradient, one row a shape."""
    rows = []
    for b, t, e in SHAPES:
        arguments = inputs(b, t, e, STATE_SIZE)
        row = [f"{b} x {t} x {e} x {STATE_SIZE}"]
        for what in ("forward", "gradient"):
            warm = []
            for backend in BACKENDS:
                forward = partial(run, backend)
                f = forward if what == "forward" else jax.grad(lambda a, f=forward: f(a).sum())
                warm.append(seconds(partial(jax.jit(f), arguments))[1])
            row += [f"{1e3 * warm[0]:.2f}", f"{1e3 * warm[1]:.2f}", f"{warm[1] / warm[0]:.2f}"]
        rows.append(row)
    return rows


def sweep_rows() -> list[list[str]]:
    """The sweep over all layers, one row a text length."""
    rows = []
    for tokens in (8, 16, 64):
        warm = []
        for backend in BACKENDS:
            lm = LanguageModel(SWEEP, backend)
            params = lm.init(jax.random.key(0))
            ids, lengths = jnp.ones((1, tokens), jnp.int32), jnp.array([tokens])
            _, captured = lm.run_blocks(params, lm.embed(params, ids), taps=Taps(capture=("block_out",)))
            f = partial(jax.jit(partial(sequence_sweep, lm)), params, output_factor(lm, params))
            warm.append(seconds(lambda f=f, h=captured["block_out"]: f(h, lengths), repeats=3)[1])  # noqa: B023
        rows.append([str(tokens), f"{1e3 * warm[0]:.1f}", f"{1e3 * warm[1]:.1f}", f"{warm[1] / warm[0]:.2f}"])
    return rows


def main() -> None:
    """Prints both tables."""
    jax.config.update("jax_default_matmul_precision", "highest")
    columns = ["sequential ms", "associative ms", "ratio"]
    header = ["b x t x e x n", *(f"{what} {c}" for what in ("forward", "gradient") for c in columns)]
    show("Selective scan", header, scan_rows())
    show("Jacobian sweep, one text, d 64, 4 layers", ["tokens", *columns], sweep_rows())


if __name__ == "__main__":
    main()
