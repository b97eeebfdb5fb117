"""Texts on the device, run up to the layer where they are to be edited, with all that edits there need.

Every edit is affine in the units it touches. At strength s a unit moves from x to

    x + s (edited(x) - x) = gain x + weight offset

    mode                                          gain         weight     offset
    zero                                          1 - s        0          -
    scale by f                                    1 - s + s f  0          -
    mean, of the unit over the text's tokens      1 - s        s          that mean
    reference_mean, over the reference texts      1 - s        s          that mean
    resample                                      1 - s        s          another text's activation
    noise of standard deviation f                 1            s f        N(0, 1)
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxprobe.array_typing import Array, Bool, Float, Int, Key, Params, np
from jaxprobe.batches import buckets
from jaxprobe.models import LanguageModel
from jaxprobe.run_configs import Mode
from jaxprobe.scoring.edited import EditSpec, noise_keys
from jaxprobe.scoring.perplexity import Ids, counted
from jaxprobe.sites import site_width
from jaxprobe.taps import Mode as EditMode
from jaxprobe.taps import Taps

# Every width is a program to compile, so few of them; texts grow by half at most, but for the shortest.
_WIDTHS = tuple(step << octave for octave in range(2, 20) for step in (2, 3))


@dataclass(frozen=True)
class Treatment:
    """How units are edited, at whatever layer.

    Attributes:
      site: where.
      mode: see the module's table.
      value: the standard deviation of the noise, or the factor of a scaling.
      seed: of the noise, which for one text depends on this and on its tokens only.
      reference: places of the texts over whose tokens reference_mean averages.
      donors: for each text the one whose activation it takes under resample: at token t that of the donor's
        token t, or of its last where it is shorter.
    """

    site: str
    mode: Mode
    value: float = 0.0
    seed: int = 0
    reference: tuple[int, ...] = ()
    donors: tuple[int, ...] = ()

    @property
    def as_edit(self) -> EditMode:
        """The mode of `taps.Edit` that does the same with the offset as value."""
        match self.mode:
            case "zero" | "scale" | "noise":
                return self.mode
        return "replace"

    def mixture(
        self, strengths: Float[np.ndarray, " s"]
    ) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
        """Gain and weight at each strength."""
        match self.mode:
            case "noise":
                return np.ones_like(strengths), strengths * self.value
            case "scale":
                return 1 - strengths + strengths * self.value, np.zeros_like(strengths)
        return 1 - strengths, np.full_like(strengths, 0) if self.mode == "zero" else strengths


class Shelf(NamedTuple):
    """Texts padded to one width, on the device; or one of them, without the axis b."""

    ids: Int[Array, "*b t"]
    lengths: Int[Array, "*b"]
    scored: Bool[Array, "*b _"]  # of tokens 1.., those that are counted
    h: Float[Array, "*b t d"]  # what enters the layer
    offsets: Float[Array, "*b _ w"] | None  # at every token, or one for all of them
    keys: Key[Array, "*b"] | None


@dataclass(frozen=True)
class Shelves:
    """All the texts, and the site's statistics within each.

    Attributes:
      layer: whose input is kept and whose site is edited.
      shelves: by width. shelf: the shelf of each text. row: its row there.
      means: average of the site over each text's tokens. spreads: population variance over them.
      lengths: tokens of each text. counted: of them, those that are scored.
    """

    layer: int
    shelves: tuple[Shelf, ...]
    shelf: Int[np.ndarray, " b"]
    row: Int[np.ndarray, " b"]
    means: Float[np.ndarray, "b w"]
    spreads: Float[np.ndarray, "b w"]
    lengths: Int[np.ndarray, " b"]
    counted: Int[np.ndarray, " b"]


def shelve(
    lm: LanguageModel,
    params: Params,
    ids: Sequence[Ids],
    pad: int | None,
    treatment: Treatment,
    *,
    layer: int,
    batch_tokens: int,
) -> Shelves:
    """Runs every text once up to a layer and keeps on the device what edits there need.

    Args:
      lm: the model. params: its parameters.
      ids: tokens of each text, at least two.
      pad: tokens that are never scored.
      treatment: the edit.
      layer: counted from 0.
      batch_tokens: the most tokens in a batch, padding included.
    """
    keep = treatment.mode == "resample"
    of_text: list[Sequence[np.ndarray]] = [()] * len(ids)  # what `_read` gives
    by_width: dict[int, list[int]] = {}
    for bucket in buckets(ids, batch_tokens, _widths(lm.config.context_length)):
        found = _read(
            lm, params, layer, jnp.asarray(bucket.ids), jnp.asarray(bucket.lengths),
            site=treatment.site, keep=keep,
        )  # fmt: skip
        arrays, places = [np.asarray(a) for a in found], bucket.index[: bucket.count].tolist()
        for row, place in enumerate(places):
            of_text[place] = [a[row] for a in arrays]
        by_width.setdefault(bucket.ids.shape[1], []).extend(places)
    h, means, spreads, *values = zip(*of_text, strict=True)
    means, spreads = np.stack(means), np.stack(spreads)
    masks = [counted(row, pad) for row in ids]
    lengths = np.array([len(row) for row in ids])
    shelf, row = np.empty((2, len(ids)), int)
    shelves = []
    for number, (width, places) in enumerate(by_width.items()):
        shelf[places], row[places] = number, np.arange(len(places))
        shelves.append(
            Shelf(
                ids=jnp.asarray(_padded([ids[i] for i in places], width), jnp.int32),
                lengths=jnp.asarray(lengths[places], jnp.int32),
                scored=jnp.asarray(_padded([masks[i] for i in places], width - 1)),
                h=jnp.asarray(np.stack([h[i] for i in places])),
                offsets=_offsets(treatment, places, width, means, lengths, values),
                keys=noise_keys([ids[i] for i in places], _noise(treatment, layer)),
            )
        )
    return Shelves(
        layer, tuple(shelves), shelf=shelf, row=row, means=means, spreads=spreads, lengths=lengths,
        counted=np.array([mask.sum() for mask in masks]),
    )  # fmt: skip


def padded_width(length: int, limit: int | None) -> int:
    """Tokens that a text is padded to, in a model whose context has so many, or any number if None."""
    widths = _widths(limit)
    return widths[bisect.bisect_left(widths, length)]


def shelf_shape(lm: LanguageModel, treatment: Treatment, rows: int, width: int, dtype: DTypeLike) -> Shelf:
    """A shelf of so many texts as shapes alone."""
    shape: Any = jax.ShapeDtypeStruct
    units = site_width(lm.config, treatment.site)
    tokens = {"mean": 1, "reference_mean": 1, "resample": width}.get(treatment.mode)
    noise = _noise(treatment, 0)
    return Shelf(
        ids=shape((rows, width), jnp.int32),
        lengths=shape((rows,), jnp.int32),
        scored=shape((rows, width - 1), bool),
        h=shape((rows, width, lm.config.hidden_size), dtype),
        offsets=None if tokens is None else shape((rows, tokens, units), dtype),
        keys=jax.eval_shape(lambda: noise_keys([np.zeros(width)] * rows, noise)),
    )


def lower_read(
    lm: LanguageModel, params: Params, treatment: Treatment, layer: int, rows: int, width: int
) -> jax.stages.Lowered:
    """The program of `shelve` for a batch of so many texts, traced and not run."""
    shape = jax.ShapeDtypeStruct
    ids, lengths = shape((rows, width), jnp.int32), shape((rows,), jnp.int32)
    keep = treatment.mode == "resample"
    return _read.lower(lm, params, layer, ids, lengths, site=treatment.site, keep=keep)


def _widths(limit: int | None) -> Sequence[int]:
    return _WIDTHS if limit is None else [min(width, limit) for width in _WIDTHS]


def _padded(rows: Sequence[Ids], width: int) -> np.ndarray:
    return np.stack([np.pad(np.asarray(row), (0, width - len(row))) for row in rows])


def _noise(treatment: Treatment, layer: int) -> EditSpec:
    mode = "noise" if treatment.mode == "noise" else "zero"
    return EditSpec(treatment.site, layer, mode, treatment.value, treatment.seed)


def _offsets(treatment: Treatment, places, width, means, lengths, values) -> Array | None:
    match treatment.mode:
        case "mean":
            return jnp.asarray(means[places][:, None])
        case "reference_mean":
            of = list(treatment.reference)
            mean = np.average(means[of].astype(np.float64), axis=0, weights=lengths[of])
            return jnp.asarray(np.broadcast_to(mean, (len(places), 1, mean.size)), means.dtype)
        case "resample":
            donors = [treatment.donors[place] for place in places]
            tokens = [np.minimum(np.arange(width), lengths[donor] - 1) for donor in donors]
            (sites,) = values
            return jnp.asarray(np.stack([sites[d][t] for d, t in zip(donors, tokens, strict=True)]))
    return None


@partial(jax.jit, static_argnums=0, static_argnames=("site", "keep"))
def _read(lm: LanguageModel, params: Params, layer, ids, lengths, *, site: str, keep: bool):
    h = lm.resume(params, lm.embed(params, ids), 0, stop=layer)
    block = lm.block_params(params, layer)
    values = lm.tapped_block(block, layer, h, taps=Taps(capture=(site,)))[1][site]
    mask = (jnp.arange(ids.shape[1]) < lengths[:, None])[..., None]
    count = lengths[:, None].astype(h.dtype)
    mean = jnp.sum(jnp.where(mask, values, 0), axis=1) / count
    spread = jnp.sum(jnp.where(mask, (values - mean[:, None]) ** 2, 0), axis=1) / count
    return (h, mean, spread, values) if keep else (h, mean, spread)
