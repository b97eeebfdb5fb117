"""How the work on one model is cut: batches of texts of a few shapes, and chunks of cotangents."""

import dataclasses
from collections.abc import Iterator, Sequence

from jaxprobe.batches import Bucket, buckets, fill_bucket
from jaxprobe.configs import GPT2Config, Input, Metric, ModelConfig, ReductionName
from jaxprobe.run_checks import require_choice, require_count, require_seed, require_step
from jaxprobe.sites import BLOCK_OUT
from jaxprobe.tuning import tuning
from jaxprobe.widths import MOST_WIDTHS, best_widths, block_products, linear_maps, sweep_widths

# Squares [l b m m] of all layers may take so many times what activations may, before values are made layer
# by layer.
_SQUARES = 8
DRAWS_AT_ONCE = 10  # of a text; it bounds the memory whatever their number
LEAST_CHUNK = 32  # fewer at once waste the time of a matrix product
# A Gram matrix costs a fraction of a QR; up to here either is cheap beside the sweep.
_QR_UP_TO = 256
SAMPLED_TEXTS = 20  # the original study samples finite differences on the first 20 texts


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
      metric: of the output (`jaxprobe.jacobians.output_metrics`).
      reduction: how singular values are had (`reductions.Reduction`); `auto`: qr for up to 256;
        `none`: norms alone of the whole sequence's Jacobians.
      epsilon: standard deviation of a finite-difference draw.
      num_samples: draws per text.
      seed: of the draws. A text's draws at a layer depend on this, its place and the layer only.
      batch_tokens: the most tokens of each device in a batch, padding included.
      batches: of all texts; `cut` fills it.
      draw_batches: of the texts that finite differences sample; `cut` fills it.

    Raises:
      ProbeError: a field is out of range.
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

    def __post_init__(self):
        for wrt in self.wrt:
            require_choice("wrt", wrt, Input)
        require_choice("metric", self.metric, Metric)
        require_choice("spectra", self.reduction, ReductionName)
        require_step("epsilon", self.epsilon)
        require_count("num_samples", self.num_samples)
        require_seed(self.seed)
        require_count("batch_tokens", self.batch_tokens)

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

    @property
    def draws_differentiated(self) -> bool:
        """Whether the draws' first-order values come from forward mode, at twice the draws' own price.

        Where the last token's row alone is asked for they are left out: the draws move every row.
        """
        return not self.draws_meet_jacobian and self.wrt != ("last",)


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
    device = tuning(platform)
    elements, cotangents = share * device.activations, share * device.cotangents
    at_once = device.cotangent_rows_gpt2 if isinstance(config, GPT2Config) else device.cotangent_rows
    if plan.last_alone:  # cotangents are of one token a text, and pulled back all at once
        affordable = max(1, int(share * device.cotangent_rows // outputs)) * min(map(len, ids))
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
    compilation = tuning(platform).compiling_draws
    of_token = sum(draws_cost(config, Batch((0,), 1, 1), plan, layer) for layer in plan.layers)
    widths = best_widths([len(row) for row in sampled], MOST_WIDTHS, compilation / of_token)
    for bucket in buckets(sampled, devices * min(plan.batch_tokens, affordable), widths, devices):
        yield Batch(tuple(map(int, bucket.index[: bucket.count])), *bucket.ids.shape)


def layer_by_layer(plan: Plan) -> Plan:
    """The plan with values made as each layer is reached: no more squares are held than one layer's."""
    return dataclasses.replace(
        plan, batches=tuple(dataclasses.replace(batch, squares=False) for batch in plan.batches)
    )


def exact_cost(config: ModelConfig, batch: Batch, plan: Plan) -> float:
    """About the multiply-adds of a batch's exact Jacobians."""
    tokens = {"sequence": batch.rows * batch.width, "last": batch.rows}
    # Of both inputs the last token's Jacobian is a part of the sequence's.
    pulled = max((tokens[wrt] for wrt in plan.wrt), default=0) * min(config.vocab_size, config.hidden_size)
    return float((pulled + tokens["sequence"]) * block_products(config, plan.layers[0]))


def draws_cost(config: ModelConfig, batch: Batch, plan: Plan, layer: int) -> float:
    """About the multiply-adds of a batch's finite differences at a layer: an f each, and tangents."""
    passes = 3 * plan.num_samples if plan.draws_differentiated else plan.num_samples
    return float(passes * batch.rows * batch.width * block_products(config, layer))
