"""What the matched protocol's largest batches run and what it keeps, before anything has run."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxprobe.matched import linearity
from jaxprobe.matched.edit_effects import lower_scores
from jaxprobe.matched.shelves import Shelf, lower_read, padded_width, shelf_shape
from jaxprobe.matched.study import Plan


def lower_programs(plan: Plan, batch_tokens: int) -> Iterator[jax.stages.Lowered]:
    """The programs of the largest batches of so many tokens, traced and not run."""
    site, mode = plan.treatment.site, plan.treatment.as_edit
    rows, shelf = _largest(plan, range(len(plan.ids)), batch_tokens)
    texts, width = shelf.ids.shape
    yield lower_read(plan.lm, plan.params, plan.treatment, plan.layer, min(rows, texts), width)
    yield lower_scores(plan.lm, plan.params, shelf, rows, plan.count, plan.layer, site)
    if "linearity" in plan.studies:
        facts = [place for group in plan.groups for place in group.evaluation]
        rows, shelf = _largest(plan, facts, plan.curve_tokens(batch_tokens))
        texts, width = shelf.ids.shape
        part = shelf_shape(plan.lm, plan.treatment, min(rows, texts), width, shelf.h.dtype)
        value: Any = jax.ShapeDtypeStruct(part.lengths.shape, part.h.dtype)
        shapes = linearity.Texts(
            h=part.h, ids=part.ids, lengths=part.lengths, counted=part.scored, keys=part.keys,
            values=value if part.offsets is None else part.offsets,
        )  # fmt: skip
        yield from linearity.lower_curves(
            plan.lm, plan.params, shapes, plan.count, plan.layer, site=site, mode=mode,
            units="units" in plan.studies,
        )  # fmt: skip


def held_bytes(plan: Plan, item_bytes: int) -> int:
    """Bytes of all texts at a layer, and of what edits take there; each layer has its turn."""
    tokens = sum(padded_width(len(row), plan.lm.config.context_length) for row in plan.ids)
    of_token = plan.lm.config.hidden_size
    if plan.treatment.mode == "resample":
        of_token += 2 * plan.width
    copies = 4 if "layers" in plan.studies else 2  # on the host and on the device
    return copies * item_bytes * tokens * of_token


def _largest(plan: Plan, places: Iterable[int], batch_tokens: int) -> tuple[int, Shelf]:
    # Jobs of a batch, and the shapes of the shelf that they are on.
    limit, dtype = plan.lm.config.context_length, jnp.dtype(jax.tree.leaves(plan.params)[0].dtype)
    texts = Counter(padded_width(len(plan.ids[place]), limit) for place in places)

    def rows(width: int) -> int:
        return max(1, batch_tokens // width)

    width = max(texts, key=lambda width: (rows(width) * width, width))
    return rows(width), shelf_shape(plan.lm, plan.treatment, texts[width], width, dtype)
