"""Forward passes: the states at which Jacobians are taken, and a direction that checks the Jacobians."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int, Key, Params, np
from jaxprobe.configs import GPT2Config
from jaxprobe.devices import shard_over_texts
from jaxprobe.jacobians.finite_difference import draw_keys, unit_draws, wrap
from jaxprobe.jacobians.planning import Batch
from jaxprobe.jacobians.readout import last_token_logits
from jaxprobe.jacobians.relative_gain import StateNorms, state_norms
from jaxprobe.models import LanguageModel
from jaxprobe.sites import BLOCK_OUT
from jaxprobe.taps import Taps

_COMMON_WIDTH = 16  # tokens, of which the widths of forward passes are multiples


class ForwardPass(NamedTuple):
    """What a model makes of texts.

    With v_l the move of h_l that a random move of the embedded tokens makes, and J_l the Jacobian of the
    logits with respect to h_l, J_l v_l is the same at every layer, by the chain rule: the move of the logits.
    Forward mode has that without any J, and so checks them all.
    """

    hidden: Float[Array, "l b t d"]  # h_l: block_out of every layer
    last: Float[Array, "l b d"]  # its last token
    logits: Float[Array, "b v"]  # of the last token
    norms: StateNorms
    carried: Float[Array, "l b t d"] | None  # v_l
    moved: Float[Array, " b"] | None  # length of the move of the logits


_AXES: Any = ForwardPass._make((1, 1, 0, 1, 1, 0))  # which axis runs over the texts


def forward(
    lm: LanguageModel,
    params: Params,
    ids: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    keys: Key[Array, " b"] | None,
) -> ForwardPass:
    """The forward pass of padded texts.

    Args:
      lm: the model. params: its parameters.
      ids: the texts. lengths: real tokens of each.
      keys: of each text's move of the embedded tokens; None if no move is to be carried along.
    """
    x, run = lm.embed(params, ids), partial(_run, lm, params, lengths=lengths)
    carried = moved = None
    if keys is not None:
        unit = unit_draws(keys, lengths, x.shape[1:], x.dtype)
        (hidden, logits), (carried, of_logits) = jax.jvp(run, (x,), (unit,))
        moved = jnp.linalg.norm(of_logits, axis=-1)
    else:
        hidden, logits = run(x)
    last = hidden[:, jnp.arange(len(lengths)), lengths - 1]
    return ForwardPass(hidden, last, logits, state_norms(hidden, lengths), carried, moved)


def forward_pass(
    lm: LanguageModel, params: Params, ids: Sequence[Sequence[int]], batch: Batch, seed: int | None = None
) -> ForwardPass:
    """`forward` of a batch, each device taking its texts one by one.

    It is nothing beside what follows, and so one program serves the batches of all sizes.

    Args:
      lm: the model. params: its parameters.
      ids: tokens of all texts. batch: which of them, and to how many tokens their states are padded.
      seed: of the moves of the embedded tokens that are to be carried along; None for none.
    """
    width = _padded_width(batch.width, lm.config.context_length)
    bucket = dataclasses.replace(batch, width=width).bucket(ids)
    count = len(bucket.ids) // jax.device_count()
    # Of no layer: those are the draws'.
    keys = None if seed is None else draw_keys(seed, bucket.index, (lm.config.num_layers,), 1)[0, 0]
    pieces = []
    for place in range(count):
        rows = np.s_[place::count]  # a text of each device's share
        of_texts = bucket.ids[rows], bucket.lengths[rows], None if keys is None else keys[rows]
        pieces.append(_forward(lm, params, *of_texts))
    return _join(batch.width, ForwardPass._make(zip(*pieces, strict=True)))


def compile_forward(lm: LanguageModel, params: Params, batch: Batch, moved: bool) -> None:
    """Compiles what `forward_pass` runs for batches of one shape; `moved`: whether it is given a seed."""
    devices, shape = jax.device_count(), jax.ShapeDtypeStruct
    ids = shape((devices, _padded_width(batch.width, lm.config.context_length)), jnp.int32)
    keys = shape((devices, 2), jnp.uint32) if moved else None
    if moved:
        draw_keys(0, (0,), (0,), 1)  # runs: it is nothing
    lowered = _forward.lower(lm, params, ids, shape((devices,), jnp.int32), keys)
    lowered.compile()
    pieces = [lowered.out_info] * (batch.rows // devices)
    _join.lower(batch.width, ForwardPass._make(zip(*pieces, strict=True))).compile()


def _padded_width(width: int, context_length: int | None) -> int:
    # A few widths, so few programs.
    padded = width + -width % _COMMON_WIDTH
    return min(padded, context_length or padded)


def _run(lm, params, x, lengths):
    h, captured = lm.run_blocks(params, x, taps=Taps(capture=(BLOCK_OUT,)))
    return captured[BLOCK_OUT], last_token_logits(lm, params, h, lengths)


def _joined(width: int, pieces: Any) -> Any:
    def join(axis: int, parts: Any) -> Any:
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis), *parts)

    whole: Any = ForwardPass._make(map(join, _AXES, pieces))
    carried = None if whole.carried is None else whole.carried[:, :, :width]
    return whole._replace(hidden=whole.hidden[:, :, :width], carried=carried)


def _with_key_data(lm, params, ids, lengths, key_data):
    return forward(lm, params, ids, lengths, None if key_data is None else wrap(key_data))


_forward = shard_over_texts(_with_key_data, (None, 0, 0, 0), _AXES, mostly_products=GPT2Config)
_join = shard_over_texts(_joined, (_AXES,), _AXES)
