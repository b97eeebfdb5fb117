"""Widths to pad texts to: each is a compilation, and padding is arithmetic for nothing."""

import math
from collections.abc import Iterator, Sequence

from jaxprobe.configs import MambaConfig, ModelConfig
from jaxprobe.tuning import tuning

MOST_WIDTHS = 4  # of sweeps and draws
_MOST_SCORING_WIDTHS = 12


def linear_maps(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """Inputs and outputs of the linear maps of a block, where nearly all of its arithmetic is."""
    d = config.hidden_size
    if isinstance(config, MambaConfig):
        e, n, r = config.intermediate_size, config.state_size, config.time_step_rank
        yield from ((d, 2 * e), (e, r + 2 * n), (r, e), (e, d))
    else:
        yield from ((d, 3 * d), (d, d), (d, config.inner_size), (config.inner_size, d))


def block_products(config: ModelConfig, layer: int) -> int:
    """Multiply-adds of one row from a layer's output to the last block's, and a block's for all the rest."""
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
    of_token = max(1, rows_of_token) * block_products(config, 0)
    return best_widths(lengths, MOST_WIDTHS, tuning(platform).compiling_sweeps / of_token)


def scoring_widths(config: ModelConfig, lengths: Sequence[int], *, platform: str) -> tuple[int, ...]:
    """Widths to pad texts to that are to be scored: padding and compilation together cost least."""
    step = 8  # lengths that differ by less share a program, in this run and in the compile cache
    context = config.context_length or math.inf
    rounded = [int(min(-(-length // step) * step, context)) for length in lengths]
    of_token = block_products(config, 0) + config.hidden_size * config.vocab_size
    return best_widths(rounded, _MOST_SCORING_WIDTHS, tuning(platform).compiling_scores / of_token)


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
