"""How much memory the exact sweep of a batch will take, and how it is cut to fit."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from jaxprobe import memory
from jaxprobe.configs import MambaConfig, ModelConfig
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians.planning import DRAWS_AT_ONCE, Batch, Plan
from jaxprobe.jacobians.reductions import has_kernel
from jaxprobe.kernels.chunkwise import CHUNK
from jaxprobe.sites import BLOCK_OUT
from jaxprobe.widths import linear_maps

SMALLEST_CHUNK = 4


def fit(
    plan: Plan,
    config: ModelConfig,
    lower: Callable[[Batch], Iterable[jax.stages.Lowered]],
    device: Any,
    memory_gb: float | None,
    item_bytes: int,
    besides: Callable[[], Mapping[str, int]] = dict,
    least_chunk: int = SMALLEST_CHUNK,
) -> tuple[Plan, memory.Forecast]:
    """The plan with chunks of cotangents small enough for the memory there is.

    What a sweep takes is read from the compiled programs of the largest batch, except where even a generous
    estimate is small beside what is free, and nothing else is asked for: then it is that estimate.

    Args:
      plan: with its batches.
      config: the model's.
      lower: the exact sweeps of a batch, traced; they run one after the other.
      device: that will run it.
      memory_gb: what the process may take in all, in GiB; if None, SHARE of what is free is added.
      item_bytes: of a number.
      besides: bytes that other work takes of each device, by the flag that asks for it. Not at the same time.
      least_chunk: the fewest cotangents at once.

    Raises:
      ProbeError: even the least chunk does not fit, or what comes before it, or other work does not.
    """
    # Devices that share one machine's memory take it together.
    together = jax.local_device_count() if device.platform == "cpu" else 1
    used, allowed = memory.budget(device, memory_gb)

    def estimate(batch: Batch) -> int:
        share = dataclasses.replace(batch, rows=batch.rows // jax.device_count())
        return together * item_bytes * _estimate(config, share, plan)

    largest = max(plan.batches, key=estimate)
    longest = max(plan.batches, key=lambda batch: batch.rows * batch.width)
    others = besides()
    # Programs are compiled in the host's memory. Loading may have taken more than the sweep will.
    compiling = memory.COMPILING if device.platform == "cpu" else 0
    before = max(memory.peak_bytes(device), used + compiling)
    generous = max(estimate(largest), together * item_bytes * _draws_elements(config, plan))
    roomy = max(before, used + generous + compiling)
    if not others and memory.is_small(generous, used, allowed) and roomy <= allowed:
        return plan, memory.Forecast(roomy, allowed)
    for flag, needed in others.items():
        peak = memory.used_bytes(device) + together * needed + compiling
        if peak > allowed:
            raise ProbeError(
                f"{flag} needs {memory.short(peak, allowed)}, or a run without it, or shorter texts"
            )
        before = max(before, peak)
    rows = max(batch.chunk * batch.rows * batch.width for batch in plan.batches)
    while True:
        fitted = _with_chunks(plan, rows)
        needed = item_bytes * _draws_elements(config, plan)
        for batch in {fitted.batches[plan.batches.index(batch)] for batch in (largest, longest)}:
            programs = max(memory.program_bytes(lowered.compile()) for lowered in lower(batch))
            needed = max(needed, programs, _values_bytes(config, batch, plan, device, item_bytes))
        peak = memory.used_bytes(device) + together * needed
        # Loading, or compiling just now, may have taken more than the sweep will.
        reached = max(before, memory.peak_bytes(device), peak)
        if peak <= allowed:
            if memory_gb and reached > allowed:
                raise ProbeError(f"loading and compiling alone need {memory.short(reached, allowed)}")
            return fitted, memory.Forecast(reached, allowed)
        if plan.last_alone or all(batch.chunk <= least_chunk for batch in fitted.batches):
            raise ProbeError(
                f"the exact Jacobian of {largest.rows} x {largest.width} tokens needs "
                f"{memory.short(reached, allowed)}, or {', or '.join(_alternatives(plan))}"
            )
        rows //= 4


def _alternatives(plan: Plan) -> Iterator[str]:
    """What a user can ask for that takes less than the plan's exact Jacobians."""
    if plan.site == BLOCK_OUT:
        if plan.last_alone:
            yield "a smaller --batch_tokens"
        else:
            yield from () if plan.reduction == "none" else ("--spectra=none",)
            yield "--wrt=last"
        yield "--method=matrix_free"
    yield "shorter texts"


def _with_chunks(plan: Plan, rows: int) -> Plan:
    """The plan with no more than so many rows pulled back at once, where a few cotangents allow that."""

    def chunk(batch: Batch) -> int:
        return min(batch.chunk, max(SMALLEST_CHUNK, rows // (batch.rows * batch.width)))

    batches = (dataclasses.replace(batch, chunk=chunk(batch)) for batch in plan.batches)
    return dataclasses.replace(plan, batches=tuple(batches))


def _values_bytes(config: ModelConfig, batch: Batch, plan: Plan, device: Any, item_bytes: int) -> int:
    # On a GPU eigenvalues are made of a copy, for one input after the other, while the squares of all inputs
    # are held. cuSOLVER makes vectors that nobody wants too, and has work space as large again.
    if device.platform == "cpu" or plan.reduction != "gram" or not batch.squares:
        return 0
    m = min(config.vocab_size, config.hidden_size)
    working = 1.2 if has_kernel(m, item_bytes) else 3
    squares = len(plan.layers) * (batch.rows // jax.device_count()) * m * m
    return int((plan.inputs_made + working) * item_bytes * squares)


def _draws_elements(config: ModelConfig, plan: Plan) -> int:
    # Numbers: five activations of the widest map, what is kept of all layers' states, a few copies of the
    # scan's states, and logits.
    def of_batch(batch: Batch) -> int:
        rows, tokens = batch.rows // jax.device_count(), batch.rows // jax.device_count() * batch.width
        draws = min(plan.num_samples, DRAWS_AT_ONCE)
        state = config.intermediate_size * config.state_size if isinstance(config, MambaConfig) else 0
        of_draw = 5 * tokens * max(map(max, linear_maps(config))) + rows * (3 * state + config.vocab_size)
        return draws * of_draw + 2 * config.num_layers * tokens * config.hidden_size

    return max(map(of_batch, plan.draw_batches), default=0)


def _estimate(config: ModelConfig, batch: Batch, plan: Plan) -> int:
    # Numbers: cotangents thrice (two layers' and a copy to reduce), the intermediates of a chunk, the scan's
    # operators, a few square matrices and one for every layer and input, hidden states and logits.
    d, tokens = config.hidden_size, batch.rows * batch.width
    m = min(config.vocab_size, d)
    if plan.last_alone:
        held = pulled = m * batch.rows
    else:
        pulled = batch.chunk * tokens
        held = pulled if plan.reduction == "none" else m * tokens
    if isinstance(config, MambaConfig):
        wide = 2 * config.intermediate_size
        operators = 3 * tokens * min(batch.width, CHUNK) * config.state_size * wide
    else:
        # A d x d matrix for each token that cotangents meet (`jaxprobe.kernels.factored`).
        wide, operators = config.inner_size, 2 * (batch.rows if plan.last_alone else tokens) * d * d
    kept = len(plan.layers) * plan.inputs_made if batch.squares and plan.reduction != "none" else 0
    return (
        3 * held * d + 8 * pulled * wide + operators + (8 + kept) * batch.rows * m * m
        + 2 * config.num_layers * tokens * d + 2 * batch.rows * config.vocab_size
    )  # fmt: skip
