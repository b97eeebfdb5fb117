"""How the work on one model is cut: batches of texts of a few shapes, and chunks of cotangents."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from jaxprobe.batches import Bucket, buckets, fill_bucket
from jaxprobe.configs import MambaConfig, Metric, ModelConfig, ReductionName
from jaxprobe.sites import BLOCK_OUT

# What one batch's cotangents [m b t d] may take, in numbers, before texts go one by one. On CPU that is what
# stays in cache, 16 MiB in float32; a GPU wants many at once (BUILD_NOTES, "Batch sizes of the sweep").
_COTANGENTS = {"cpu": 2**22}
_COTANGENTS_ACCELERATOR = 2**27
# What the activations of a batch of draws may take, and, times _SQUARES, the squares [l b m m] of all layers
# before values are made layer by layer.
_ELEMENTS = {"cpu": 2**25}
_ELEMENTS_ACCELERATOR = 2**27
_SQUARES = 8
# Rows (cotangents times tokens) pulled back at once: enough for a matrix product to run at speed, few enough
# for its operands to stay in cache (BUILD_NOTES, "Operators of the scan").
_CHUNK_ROWS = {"cpu": 1024}
_CHUNK_ROWS_ACCELERATOR = 2**15
DRAWS_AT_ONCE = 10  # of a text; it bounds the memory whatever their number
LEAST_CHUNK = 32  # fewer at once waste the time of a matrix product
_MOST_SHAPES = 4  # distinct lengths that texts are padded to, each a compilation of its own
_MOST_SCORING_SHAPES = 12
# About what a device multiplies while it compiles what one more width needs: of sweeps (3 s a model), or on a
# CPU one program that scores texts.
_COMPILATION = {"cpu": 4e11}
_COMPILATION_ACCELERATOR = 1e14
_COMPILATION_OF_SCORES = {"cpu": 3e10}
_COMPILATION_OF_SCORES_ACCELERATOR = 6e13
# The same of what finite differences need, at the speed that their smaller products run at.
_COMPILATION_OF_DRAWS = {"cpu": 1.5e11}
_COMPILATION_OF_DRAWS_ACCELERATOR = 5e13
# A Gram matrix costs a fraction of a QR; up to here either is cheap beside the sweep.
_QR_UP_TO = 256
SAMPLED_TEXTS = 20  # the seed samples finite differences on the first 20 texts


@dataclasses.dataclass(frozen=True)
class Batch:
    """Texts that go through together, padded to one shape."""

    texts: tuple[int, ...]  # places among the texts
    rows: int  # texts and filler
    width: int  # tokens
    chunk: int = 0  # cotangents pulled back at once; 0 where there are none
    squares: bool = True  # whether all layers' Jacobians are reduced first, and values are made together

    def bucket(self, ids: Sequence[Sequence[int]]) -> Bucket:
        """The padded tokens."""
        return fill_bucket(ids, self.texts, self.rows, self.width)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure, and how the work is cut.

    Attributes:
      layers: one layer, or all of them from 0 up.
      wrt: inputs of the exact Jacobians, of `last` and `sequence`.
      site: what moves (`jaxprobe.sites`); for other sites than block_out only exact Jacobians are made.
      metric: of the output (`jaxprobe.output_metrics`).
      reduction: how singular values are had (`jaxprobe.reductions.Reduction`); `auto`: qr for up to 256;
        `none`: norms alone of the whole sequence's Jacobians.
      epsilon: standard deviation of a finite-difference draw.
      num_samples: draws per text.
      seed: of the draws. A text's draws at a layer depend on this, its place and the layer only.
      batch_tokens: the most tokens in a batch, padding included.
      batches: of all texts; `cut` fills it.
      draw_batches: of the texts that finite differences sample; `cut` fills it.
    """

    layers: tuple[int, ...]
    wrt: tuple[str, ...] = ("last", "sequence")
    site: str = BLOCK_OUT
    metric: Metric = "logits"
    reduction: ReductionName = "auto"
    epsilon: float = 0.01
    num_samples: int = 10
    seed: int = 0
    batch_tokens: int = 4096
    batches: tuple[Batch, ...] = ()
    draw_batches: tuple[Batch, ...] = ()

    @property
    def last_alone(self) -> bool:
        """Whether cotangents are of one token a text: no other row's Jacobian is wanted."""
        return self.site == BLOCK_OUT and self.wrt == ("last",)

    @property
    def inputs_made(self) -> int:
        """How many inputs' Jacobians a sweep makes: a site's both, whatever is wanted of them."""
        return len(self.wrt) if self.site == BLOCK_OUT else 2

    @property
    def draws_meet_jacobian(self) -> bool:
        """Whether the Jacobian that the draws sample is held: then their first-order values come from it."""
        exact = "sequence" in self.wrt and self.reduction != "none"
        return exact and (self.site, self.metric) == (BLOCK_OUT, "logits")


def cut(
    config: ModelConfig,
    ids: Sequence[Sequence[int]],
    plan: Plan,
    *,
    platform: str,
    devices: int = 1,
    share: float = 1.0,
) -> Plan:
    """The plan with its reduction chosen and its texts in batches; one that has batches is left as it is.

    Args:
      config: the model's.
      ids: tokens of each text.
      plan: what to measure.
      platform: "cpu", "gpu", ...
      devices: that share the texts of a batch.
      share: of what a batch may usually take, where memory is short.
    """
    if plan.batches:
        return plan
    outputs = min(config.vocab_size, config.hidden_size)
    elements = share * _ELEMENTS.get(platform, _ELEMENTS_ACCELERATOR)
    cotangents = share * _COTANGENTS.get(platform, _COTANGENTS_ACCELERATOR)
    at_once = _CHUNK_ROWS.get(platform, _CHUNK_ROWS_ACCELERATOR)
    if plan.last_alone:  # cotangents are of one token a text, and pulled back all at once
        affordable = max(1, int(share * at_once // outputs)) * min(map(len, ids))
    else:
        affordable = max(1, int(cotangents // (outputs * config.hidden_size)))
    rows_of_token = 1 if plan.last_alone else outputs
    widths = sweep_widths(config, [len(row) for row in ids], rows_of_token, platform=platform)
    limit = devices * min(plan.batch_tokens, affordable)
    batches = []
    for bucket in buckets(ids, limit, widths, devices):
        rows, width = bucket.ids.shape
        chunk = even_chunk(outputs, max(at_once // (rows // devices * width) * 5 // 4, LEAST_CHUNK))
        held = len(plan.layers) * plan.inputs_made * rows // devices * outputs**2
        squares = held <= _SQUARES * elements
        batches.append(Batch(tuple(map(int, bucket.index[: bucket.count])), rows, width, chunk, squares))
    reduction = plan.reduction
    if reduction == "auto":
        reduction = "qr" if outputs <= _QR_UP_TO else "gram"
    draws = tuple(_draw_batches(config, ids, plan, elements, platform, devices))
    return dataclasses.replace(plan, reduction=reduction, batches=tuple(batches), draw_batches=draws)


def even_chunk(cotangents: int, most: int) -> int:
    """The most cotangents at once of which none remain for the end, where that is not less than half of most.

    What remains would be a program of its own to compile, for fewer cotangents than run at speed.
    """
    fits = (size for size in range(min(cotangents, most), most // 2, -1) if cotangents % size == 0)
    return next(fits, min(cotangents, most))


def _draw_batches(
    config: ModelConfig,
    ids: Sequence[Sequence[int]],
    plan: Plan,
    elements: float,
    platform: str,
    devices: int,
) -> Iterator[Batch]:
    """Batches of the sampled texts, whose activations take no more than the cotangents of others may."""
    if plan.site != BLOCK_OUT:
        return
    sampled = ids[:SAMPLED_TEXTS]
    widest = max(map(max, linear_maps(config)))
    affordable = max(1, int(elements // (2 * min(plan.num_samples, DRAWS_AT_ONCE) * widest)))
    compilation = _COMPILATION_OF_DRAWS.get(platform, _COMPILATION_OF_DRAWS_ACCELERATOR)
    of_token = sum(draws_cost(config, Batch((0,), 1, 1), plan, layer) for layer in plan.layers)
    widths = best_widths([len(row) for row in sampled], _MOST_SHAPES, compilation / of_token)
    for bucket in buckets(sampled, devices * min(plan.batch_tokens, affordable), widths, devices):
        yield Batch(tuple(map(int, bucket.index[: bucket.count])), *bucket.ids.shape)


def layer_by_layer(plan: Plan) -> Plan:
    """The plan with values made as each layer is reached: no more squares are held than one layer's."""
    return dataclasses.replace(
        plan, batches=tuple(dataclasses.replace(batch, squares=False) for batch in plan.batches)
    )


def linear_maps(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """Inputs and outputs of the linear maps of a block, where nearly all of its arithmetic is."""
    d = config.hidden_size
    if isinstance(config, MambaConfig):
        e, n, r = config.intermediate_size, config.state_size, config.time_step_rank
        yield from ((d, 2 * e), (e, r + 2 * n), (r, e), (e, d))
    else:
        yield from ((d, 3 * d), (d, d), (d, config.inner_size), (config.inner_size, d))


def exact_cost(config: ModelConfig, batch: Batch, plan: Plan) -> float:
    """About the multiply-adds of a batch's exact Jacobians."""
    tokens = {"sequence": batch.rows * batch.width, "last": batch.rows}
    # Of both inputs the last token's Jacobian is a part of the sequence's.
    pulled = max((tokens[wrt] for wrt in plan.wrt), default=0) * min(config.vocab_size, config.hidden_size)
    return float((pulled + tokens["sequence"]) * _through(config, plan.layers[0]))


def draws_cost(config: ModelConfig, batch: Batch, plan: Plan, layer: int) -> float:
    """About the multiply-adds of a batch's finite differences at a layer: an f each, and tangents of some."""
    passes = plan.num_samples if plan.draws_meet_jacobian else 3 * plan.num_samples
    return float(passes * batch.rows * batch.width * _through(config, layer))


def _through(config: ModelConfig, layer: int) -> int:
    # Of one row from a layer's output to the last block's, and a block more for what is not in blocks.
    return (config.num_layers - layer) * sum(inputs * outputs for inputs, outputs in linear_maps(config))


def sweep_widths(
    config: ModelConfig, lengths: Sequence[int], rows_of_token: int, *, platform: str
) -> tuple[int, ...]:
    """Widths to pad texts to: what padding and compilation cost together is least.

    Args:
      config: the model's.
      lengths: of the texts.
      rows_of_token: that go through the layers for each token: cotangents, draws.
      platform: "cpu", "gpu", ...
    """
    compilation = _COMPILATION.get(platform, _COMPILATION_ACCELERATOR)
    return best_widths(lengths, _MOST_SHAPES, compilation / (max(1, rows_of_token) * _through(config, 0)))


def scoring_widths(config: ModelConfig, lengths: Sequence[int], *, platform: str) -> tuple[int, ...]:
    """Widths to pad texts to that are to be scored: padding and compilation together cost least."""
    compilation = _COMPILATION_OF_SCORES.get(platform, _COMPILATION_OF_SCORES_ACCELERATOR)
    step = 8  # lengths that differ by less share a program, in this run and in the compile cache
    context = config.context_length or math.inf
    rounded = [int(min(-(-length // step) * step, context)) for length in lengths]
    of_token = _through(config, 0) + config.hidden_size * config.vocab_size
    return best_widths(rounded, _MOST_SCORING_SHAPES, compilation / of_token)


def best_widths(lengths: Sequence[int], most: int, each: float = 0.0) -> tuple[int, ...]:
    """At most so many widths to pad the lengths to, with the least padding in all; ascending.

    A width is always one of the lengths, so the best cut of the sorted lengths into runs is found exactly.

    Args:
      lengths: of the texts.
      most: how many widths.
      each: what a further width costs, in tokens of padding.
    """
    distinct = sorted(set(lengths))
    counts = [lengths.count(length) for length in distinct]
    # best[i] = (padded tokens, widths) of the first i distinct lengths.
    best: list[tuple[float, tuple[int, ...]]] = [(0, ()), *((math.inf, ()) for _ in distinct)]
    for _ in range(min(most, len(distinct))):
        longer = list(best)
        for end in range(1, len(distinct) + 1):
            for start in range(end):
                cost = best[start][0] + distinct[end - 1] * sum(counts[start:end]) + each
                longer[end] = min(longer[end], (cost, (*best[start][1], distinct[end - 1])))
        best = longer
    return best[-1][1]
