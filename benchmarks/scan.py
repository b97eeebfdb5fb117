"""The selective scan: sequential against associative, forward, reverse, and as the Jacobian sweep uses it.

    python -m benchmarks.scan

Ratios are to the sequential scan: above 1, that is faster. Chunkwise is the same scan with another
derivative, so it stands in the second table alone.
"""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.timing import seconds, show
from jaxprobe.configs import MambaConfig
from jaxprobe.jacobians.linearize import sequence_sweep
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.planning import Plan, cut
from jaxprobe.jacobians.reductions import Reduction
from jaxprobe.kernels.selective_scan import ScanBackend, selective_scan
from jaxprobe.models import LanguageModel
from jaxprobe.run_configs import Compute
from jaxprobe.runtime import configure
from jaxprobe.taps import Taps

BACKENDS = (ScanBackend.SEQUENTIAL, ScanBackend.ASSOCIATIVE)
SHAPES = ((1, 16, 256), (8, 16, 256), (1, 128, 256), (8, 128, 256), (1, 16, 1536), (1, 128, 1536))  # b t e
STATE_SIZE = 16
SWEEP_WIDTHS = (64, 256, 768)  # d; e is twice that
SWEEP_TOKENS = (12, 64)
SLOWEST = 256  # the widest d at which `vmap` of the associative scan is worth waiting for


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
    """The sweep over the layers of a Mamba of two, one row a width and length of text."""
    rows = []
    for d in SWEEP_WIDTHS:
        config = MambaConfig(
            vocab_size=1024, hidden_size=d, num_layers=2, intermediate_size=2 * d, state_size=STATE_SIZE,
            time_step_rank=d // 16, conv_kernel=4,
        )  # fmt: skip
        for tokens in SWEEP_TOKENS:
            timed = {
                backend: sweep_seconds(LanguageModel(config, backend), tokens)
                for backend in (*BACKENDS, ScanBackend.CHUNKWISE)
                if d <= SLOWEST or backend is not ScanBackend.ASSOCIATIVE
            }
            first, sequential = timed[ScanBackend.SEQUENTIAL]
            row = [str(d), str(tokens), f"{first:.1f}", f"{sequential:.3f}"]
            for backend in (ScanBackend.ASSOCIATIVE, ScanBackend.CHUNKWISE):
                first, warm = timed.get(backend, (None, None))
                row += (
                    ["-"] * 3 if warm is None else [f"{first:.1f}", f"{warm:.3f}", f"{warm / sequential:.2f}"]
                )
            rows.append(row)
    return rows


def sweep_seconds(lm: LanguageModel, tokens: int) -> tuple[float, float]:
    """The first call of a sweep of one text, which compiles, and the median of those after it."""
    params = lm.init(jax.random.key(0))
    ids, lengths = jnp.ones((1, tokens), jnp.int32), jnp.array([tokens])
    _, captured = lm.run_blocks(params, lm.embed(params, ids), taps=Taps(capture=("block_out",)))
    plan = cut(lm.config, [[1] * tokens], Plan(layers=(0, 1)), platform=jax.default_backend())
    sweep = jax.jit(
        partial(sequence_sweep, lm, chunk=plan.batches[0].chunk, reduction=Reduction(plan.reduction))
    )
    factor = output_factor(lm, params)
    return seconds(lambda: sweep(params, factor, captured["block_out"], lengths), repeats=3)


def main() -> None:
    """Prints both tables."""
    configure(Compute(compile_cache="off"))
    columns = ["sequential ms", "associative ms", "ratio"]
    header = ["b x t x e x n", *(f"{what} {c}" for what in ("forward", "gradient") for c in columns)]
    show("Selective scan", header, scan_rows())
    header = ["d", "tokens", "sequential first s", "warm s"]
    header += [f"{name} {c}" for name in ("associative", "chunkwise") for c in ("first s", "warm s", "ratio")]
    show("Jacobian sweep, one text, 2 layers; ratios to the sequential scan, warm", header, sweep_rows())


if __name__ == "__main__":
    main()
