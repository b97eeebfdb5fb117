"""How large the batches of texts to be scored may be: what their programs take, against what there is."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxprobe import memory
from jaxprobe.configs import MambaConfig, ModelConfig
from jaxprobe.errors import ProbeError
from jaxprobe.memory import Forecast
from jaxprobe.scoring.perplexity import Ids
from jaxprobe.widths import linear_maps


def fit_batch_tokens(
    asked: int,
    ids: Sequence[Ids],
    config: ModelConfig,
    site_width: int,
    lower: Callable[[int], Iterable[jax.stages.Lowered]],
    *,
    held: int,
    item_bytes: int,
    device: Any,
    memory_gb: float | None,
    fixed: int = 0,
    compilers: int = 1,
    advice: str = "shorter texts",
) -> tuple[int, Forecast]:
    """The most tokens a batch may have, no more than were asked for, that fit the memory.

    What batches take is read from their compiled programs, except where even a generous estimate is small
    beside what is free: then it is that estimate.

    Args:
      asked: tokens, padding included.
      ids: of every text. config: of the model. site_width: units of the site that is read and edited.
      lower: the programs of the largest batch of so many tokens, traced; they run one after the other.
      held: bytes that are kept beside them, such as what enters the layer.
      item_bytes: of a number.
      device: that will run them.
      memory_gb: what the process may take in all, in GiB; if None, `memory.SHARE` of what is free is added.
      fixed: bytes that some program may take whatever the batches, as generous as the estimate.
      compilers: how much XLA leaves on the host, having compiled all programs; in `memory.COMPILING`.
      advice: what else would help.

    Raises:
      ProbeError: not even one text at a time fits, or what comes before it does not.
    """
    used, budget = memory.budget(device, memory_gb)
    lengths = sorted(map(len, ids))
    longest, most = lengths[-1], max(asked, lengths[-1])
    estimate = held + fixed + item_bytes * _estimate(config, site_width, most, most // lengths[0])
    # Programs are compiled in the host's memory, and once more where they run.
    compiling = compilers * memory.COMPILING if device.platform == "cpu" else 0
    roomy = max(memory.peak_bytes(device), used + estimate + compiling)
    if memory.is_small(estimate, used, budget) and roomy <= budget:
        return asked, Forecast(roomy, budget)
    tokens = asked
    while True:
        needed = max(memory.program_bytes(lowered.compile()) for lowered in lower(tokens))
        peak = memory.used_bytes(device) + held + needed + compiling
        if peak <= budget:
            reached = max(memory.peak_bytes(device), peak)  # by loading, or compiling just now
            if memory_gb and reached > budget:
                raise ProbeError(f"loading and compiling alone need {memory.short(reached, budget)}")
            return tokens, Forecast(reached, budget)
        if tokens <= longest:
            raise ProbeError(f"a text of {longest} tokens needs {memory.short(peak, budget)}, or {advice}")
        tokens = max(longest, tokens // 4)


def _estimate(config: ModelConfig, site_width: int, tokens: int, texts: int) -> int:
    # Numbers: activations of the widest map, the site read and edited, the scan's states, and logits of a
    # thousand tokens.
    widest = max(map(max, linear_maps(config)))
    state = config.intermediate_size * config.state_size if isinstance(config, MambaConfig) else 0
    return tokens * (8 * widest + 3 * site_width) + 4 * texts * state + 3 * 1024 * config.vocab_size
