"""Texts scored with an edit at one layer, each with units of its own.

The blocks below the edited layer ran once for each text (`scoring.perplexity.read_texts`); what an edit then
costs is the blocks from there on. Layer, units and keys are traced, so one compiled program serves them all.
"""

import dataclasses
import math
import zlib
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Key, Params, np
from jaxprobe.batches import Bucket
from jaxprobe.models import LanguageModel
from jaxprobe.scoring.perplexity import (
    Ids,
    Reading,
    TextScores,
    read_program,
    score_tokens,
    text_batches,
    text_scores,
)
from jaxprobe.taps import Edit, Mode, Taps


@dataclasses.dataclass(frozen=True)
class EditSpec:
    """Where and how units are edited; which units, each text says."""

    site: str
    layer: int
    mode: Mode
    value: float = 0.0  # standard deviation of the noise, or the factor of a scaling
    seed: int = 0  # of the noise, which for one text depends on this and on its tokens only


@dataclasses.dataclass(frozen=True)
class Job:
    """One text to be scored with its own units edited."""

    text: int  # place among the texts read
    units: tuple[int, ...]  # as many in every job


def job_batches(
    lm: LanguageModel, ids: Sequence[Ids], jobs: Sequence[Job], batch_tokens: int
) -> tuple[Bucket, ...]:
    """The jobs batched by length; `index` is a job's place among the jobs."""
    return text_batches(lm, [ids[job.text] for job in jobs], batch_tokens)


def edited_scores(
    lm: LanguageModel, params: Params, reading: Reading, jobs: Sequence[Job], batch: Bucket, spec: EditSpec
) -> tuple[TextScores, ...]:
    """Scores of one batch of jobs, in the order of the batch's index.

    Args:
      lm: the model. params: its parameters.
      reading: of the texts, at the same layer.
      jobs: all of them.
      batch: one of `job_batches`.
      spec: the edit.
    """
    chosen = [jobs[place] for place in np.where(batch.index < 0, batch.index[0], batch.index)]
    width = batch.ids.shape[1]
    # Padding repeats the last row: zeros would make a norm without an epsilon divide by zero.
    h = np.stack([
        np.pad(x, ((0, width - len(x)), (0, 0)), mode="edge")
        for x in (reading.inputs[job.text] for job in chosen)
    ])  # fmt: skip
    lengths = jnp.asarray(batch.lengths)
    keys = noise_keys([row[:length] for row, length in zip(batch.ids, batch.lengths, strict=True)], spec)
    units = jnp.asarray([job.units for job in chosen], jnp.int32)
    value = jnp.asarray(spec.value, h.dtype)
    nll, hits = map(
        np.asarray,
        _edited(
            lm, params, spec.layer, jnp.asarray(h), jnp.asarray(batch.ids), lengths, units, value, keys,
            site=spec.site, mode=spec.mode,
        ),
    )  # fmt: skip
    return tuple(text_scores(nll[row], hits[row], int(batch.lengths[row])) for row in range(batch.count))


def lower_scores(
    lm: LanguageModel,
    params: Params,
    ids: Sequence[Ids],
    spec: EditSpec,
    *,
    read_site: str,
    top_k: int,
    batch_tokens: int,
) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
    """The programs of `read_texts` and `edited_scores` for the largest batch, traced and not run.

    Args:
      lm: the model. params: its parameters.
      ids: tokens of each text; of one that is scored under several edits, as often.
      spec: the edit.
      read_site: where units are chosen. top_k: how many.
      batch_tokens: the most tokens in a batch, padding included.
    """
    rows, width = max((batch.ids.shape for batch in text_batches(lm, ids, batch_tokens)), key=math.prod)
    dtype, shape = jax.tree.leaves(params)[0].dtype, jax.ShapeDtypeStruct
    tokens, lengths = shape((rows, width), jnp.int32), shape((rows,), jnp.int32)
    h, units = shape((rows, width, lm.config.hidden_size), dtype), shape((rows, top_k), jnp.int32)
    keys = jax.eval_shape(lambda: noise_keys([np.zeros(width)] * rows, spec))
    edited = (h, tokens, lengths, units, shape((), dtype), keys)
    return (
        read_program.lower(lm, params, spec.layer, tokens, lengths, site=read_site),
        _edited.lower(lm, params, spec.layer, *edited, site=spec.site, mode=spec.mode),
    )


def noise_keys(ids: Sequence[Ids], spec: EditSpec) -> Key[Array, " b"] | None:
    """A key for each text, from the seed and the text's tokens alone; None where the edit draws nothing."""
    if spec.mode != "noise":
        return None
    digests = [zlib.crc32(np.asarray(row, np.int32).tobytes()) for row in ids]
    fold = partial(jax.random.fold_in, jax.random.key(spec.seed))
    return jax.vmap(fold)(jnp.asarray(np.array(digests, np.uint32)))


@partial(jax.jit, static_argnums=0, static_argnames=("site", "mode"))
def _edited(lm: LanguageModel, params: Params, layer, h, ids, lengths, units, value, keys, *, site, mode):
    block = lm.block_params(params, layer)

    def one(h, length, units, key):
        taps = Taps(edits=(Edit(site, mode, layer, units, value, key),))
        return lm.tapped_block(block, layer, h[None], length[None], taps)[0][0]

    edited = jax.vmap(one)(h, lengths, units, keys)
    return score_tokens(lm, params, lm.resume(params, edited, layer + 1), ids)
