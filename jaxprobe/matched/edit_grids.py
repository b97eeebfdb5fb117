"""Many edits on many texts: grids of them as jobs in batches, and the scores back as grids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxprobe.array_typing import Float, Int, Params, np
from jaxprobe.matched.edit_effects import JobBatch, Jobs, batch_scores, job_batches
from jaxprobe.matched.shelves import Shelves, Treatment
from jaxprobe.models import LanguageModel


@dataclass(frozen=True)
class Grid:
    """Every one of some edits in every one of some texts: scores [s b]."""

    units: Int[np.ndarray, "s k"]
    gain: Float[np.ndarray, " s"]
    weight: Float[np.ndarray, " s"]
    texts: tuple[int, ...]

    @classmethod
    def whole(cls, treatment: Treatment, units: Int[np.ndarray, "s k"], texts: Sequence[int]) -> "Grid":
        """Each set of units edited at full strength."""
        return cls(units, *treatment.mixture(np.ones(len(units))), tuple(texts))

    @property
    def shape(self) -> tuple[int, int]:
        """(edits, texts)."""
        return len(self.units), len(self.texts)


Grids = Mapping[tuple[str, ...], Grid]  # by a name of several words


@dataclass(frozen=True)
class Work:
    """Grids as jobs, in batches."""

    grids: Grids
    jobs: Jobs = field(repr=False)
    batches: tuple[JobBatch, ...] = field(repr=False)

    @classmethod
    def of(cls, grids: Grids, shelves: Shelves, batch_tokens: int) -> "Work":
        """The grids' jobs, one grid after the other, and in each one edit after the other."""
        texts, edits, first = [], [], 0
        for grid in grids.values():
            count, wide = grid.shape
            texts.append(np.tile(np.array(grid.texts, np.int32), count))
            edits.append(first + np.repeat(np.arange(count, dtype=np.int32), wide))
            first += count
        units, gain, weight = (
            np.concatenate([getattr(grid, name) for grid in grids.values()])
            for name in ("units", "gain", "weight")
        )
        jobs = Jobs(np.concatenate(texts), np.concatenate(edits), units, gain, weight)
        return cls(grids, jobs, job_batches(shelves, jobs.text, batch_tokens))

    def run(
        self,
        lm: LanguageModel,
        params: Params,
        shelves: Shelves,
        treatment: Treatment,
        batches: slice = slice(None),
    ) -> Float[np.ndarray, " b"]:
        """The scores of some of the batches, in their order; arguments as `batch_scores`."""
        chosen = self.batches[batches]
        scores = [batch_scores(lm, params, shelves, treatment, self.jobs, batch) for batch in chosen]
        rows = [np.asarray(row)[: batch.count] for row, batch in zip(scores, chosen, strict=True)]
        return np.concatenate(rows).astype(np.float64)

    def split(self, scores: Float[np.ndarray, " b"]) -> dict[tuple[str, ...], Float[np.ndarray, "_ _"]]:
        """The scores of all batches, grid by grid."""
        ordered = np.empty_like(scores)
        ordered[np.concatenate([batch.places[: batch.count] for batch in self.batches])] = scores
        ends = np.cumsum([count * wide for count, wide in (grid.shape for grid in self.grids.values())])
        parts = np.split(ordered, ends[:-1])
        return {
            key: part.reshape(grid.shape) for (key, grid), part in zip(self.grids.items(), parts, strict=True)
        }
