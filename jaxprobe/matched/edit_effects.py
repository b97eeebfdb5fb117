"""What edits of one layer cost texts, in nats, by the hundred thousand.

The texts lie on the device with what enters the layer (`jaxprobe.matched.shelves`). A job is a text and an
edit out of a table: which units, and how strongly. Jobs on texts of one padded width run together, whatever
their edits (`batch_scores`): layer, units and strengths are traced, so one compiled program serves them
all, and what comes back is one number a job.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int, Params, np
from jaxprobe.matched.shelves import Shelf, Shelves, Treatment
from jaxprobe.models import LanguageModel
from jaxprobe.scoring.perplexity import score_tokens
from jaxprobe.taps import Edit, Taps


@dataclass(frozen=True)
class Jobs:
    """Texts with edits, all of one number of units: job i is text `text[i]` under edit `edit[i]`."""

    text: Int[np.ndarray, " b"]
    edit: Int[np.ndarray, " b"]
    units: Int[np.ndarray, "s k"]  # of each edit
    gain: Float[np.ndarray, " s"]
    weight: Float[np.ndarray, " s"]


@dataclass(frozen=True)
class JobBatch:
    """Jobs on texts of one shelf, in the shape of that shelf's other batches."""

    shelf: int
    places: Int[np.ndarray, " b"]  # of the jobs; the first again as filler
    count: int  # without filler


def job_batches(shelves: Shelves, text: Int[np.ndarray, " b"], batch_tokens: int) -> tuple[JobBatch, ...]:
    """Jobs batched by width, every width in batches of one shape.

    Args:
      shelves: the texts.
      text: of each job.
      batch_tokens: the most tokens in a batch, padding included; a batch has at least one row all the same.
    """
    made = []
    for number, shelf in enumerate(shelves.shelves):
        jobs = np.flatnonzero(shelves.shelf[text] == number)
        if jobs.size:
            most = max(1, batch_tokens // shelf.ids.shape[1])
            rows = -(-jobs.size // -(-jobs.size // most))
            for part in (jobs[i : i + rows] for i in range(0, jobs.size, rows)):
                filler = np.repeat(part[:1], rows - part.size)
                made.append(JobBatch(number, np.concatenate([part, filler]), part.size))
    return tuple(made)


def batch_scores(
    lm: LanguageModel, params: Params, shelves: Shelves, treatment: Treatment, jobs: Jobs, batch: JobBatch
) -> Float[Array, " b"]:
    """Negative log-likelihood of each text under its edit, in nats, summed over its scored tokens.

    Args:
      lm: the model. params: its parameters.
      shelves: the texts at the layer.
      treatment: the edit that they were shelved for.
      jobs: all of them.
      batch: one of `job_batches`.

    Returns:
      On the device, filler included.
    """
    shelf, edits = shelves.shelves[batch.shelf], jobs.edit[batch.places]
    return _edited(
        lm, params, shelves.layer, shelf, jnp.asarray(shelves.row[jobs.text[batch.places]]),
        jnp.asarray(jobs.units[edits], jnp.int32), jnp.asarray(jobs.gain[edits], shelf.h.dtype),
        jnp.asarray(jobs.weight[edits], shelf.h.dtype), site=treatment.site,
    )  # fmt: skip


def lower_scores(
    lm: LanguageModel, params: Params, shelf: Shelf, rows: int, count: int, layer: int, site: str
) -> jax.stages.Lowered:
    """The program of `batch_scores` for so many jobs on texts of a shelf, traced and not run.

    Args:
      lm: the model. params: its parameters.
      shelf: the texts, or their shapes.
      rows: jobs. count: units that each edits.
      layer: counted from 0. site: of the edit.
    """
    shape = jax.ShapeDtypeStruct
    strength = shape((rows,), shelf.h.dtype)
    jobs = shape((rows,), jnp.int32), shape((rows, count), jnp.int32), strength, strength
    return _edited.lower(lm, params, layer, shelf, *jobs, site=site)


@partial(jax.jit, static_argnums=0, static_argnames="site")
def _edited(lm: LanguageModel, params: Params, layer, shelf: Shelf, rows, units, gain, weight, *, site):
    texts = jax.tree.map(lambda leaf: leaf[rows], shelf)
    block = lm.block_params(params, layer)

    def one(text: Shelf, units, gain, weight):
        edits = (Edit(site, "scale", layer, units, gain),)
        if text.offsets is not None:
            edits += (Edit(site, "add", layer, units, weight * text.offsets[:, units]),)
        if text.keys is not None:
            edits = (Edit(site, "noise", layer, units, weight, text.keys[None]),)
        taps = Taps(edits=edits)
        return lm.tapped_block(block, layer, text.h[None], text.lengths[None], taps)[0][0]

    h = lm.resume(params, jax.vmap(one)(texts, units, gain, weight), layer + 1)

    nll, _ = score_tokens(lm, params, h, texts.ids)
    return jnp.sum(jnp.where(texts.scored, nll, 0), axis=1)
