"""One model's perplexities before and after its delta-sensitive units are edited, relation by relation.

For every relation: choose the units on its own texts, edit them, and score the relation's texts and the
control texts. All baselines are computed once; what is scored with an edit is a list of jobs, each a text
with its own units, batched together whatever relation they are of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxprobe.array_typing import Float, Params, np
from jaxprobe.batches import Bucket, TokenizedTexts
from jaxprobe.models import LanguageModel
from jaxprobe.neurons import SensitiveUnits, most_sensitive
from jaxprobe.scoring.edited import EditSpec, Job, edited_scores, job_batches
from jaxprobe.scoring.perplexity import (
    Ids,
    Reading,
    TextScores,
    counted,
    mean_nll,
    read_texts,
    text_perplexities,
)
from jaxprobe.statistics.fact_scores import FactScores
from jaxprobe.statistics.percentage import Change


@dataclass(frozen=True)
class Corpus:
    """The texts as one model's tokens."""

    relations: tuple[TokenizedTexts, ...]
    controls: TokenizedTexts
    pad: int | None  # tokens that are never counted

    @property
    def ids(self) -> tuple[Ids, ...]:
        """Every text: relation by relation, then the controls."""
        return tuple(row for group in (*self.relations, self.controls) for row in group.ids)

    @property
    def truncated(self) -> int:
        """How many texts were cut at the limit."""
        return sum(group.truncated for group in (*self.relations, self.controls))


@dataclass(frozen=True)
class RelationScores:
    """One relation on one model."""

    chosen: SensitiveUnits
    before: tuple[TextScores, ...]  # of the relation's texts
    after: tuple[TextScores, ...]
    erased: Change  # of the relation's texts
    control: Change  # of the control texts
    facts: FactScores  # the same, text by text: of the relation's
    controls: FactScores  # of the control texts


@dataclass(frozen=True)
class Study:
    """The work of one model: `batches` to be scored one by one, then `summarise`d."""

    lm: LanguageModel
    params: Params = field(repr=False)
    corpus: Corpus = field(repr=False)
    spec: EditSpec
    reading: Reading = field(repr=False)
    chosen: tuple[SensitiveUnits, ...]  # of each relation
    jobs: tuple[Job, ...] = field(repr=False)
    batches: tuple[Bucket, ...] = field(repr=False)

    def compute(self, number: int) -> dict[str, np.ndarray]:
        """The scores of one batch: each job's place and count of scored tokens; all jobs' tokens in a row."""
        batch = self.batches[number]
        scores = edited_scores(self.lm, self.params, self.reading, self.jobs, batch, self.spec)
        return {
            "jobs": batch.index[: batch.count],
            "lengths": np.array([len(text.nll) for text in scores]),
            "nll": np.concatenate([text.nll for text in scores]),
            "hits": np.concatenate([text.hits for text in scores]),
        }


def prepare(
    lm: LanguageModel,
    params: Params,
    corpus: Corpus,
    spec: EditSpec,
    *,
    read_site: str,
    top_k: int,
    batch_tokens: int,
) -> Study:
    """Runs every text once, chooses each relation's units, and lists the edited work.

    Args:
      lm: the model. params: its parameters.
      corpus: its texts.
      spec: the edit.
      read_site: where units are chosen.
      top_k: how many units, at most the width of the site.
      batch_tokens: the most tokens in a batch, padding included.
    """
    ids = corpus.ids
    reading = read_texts(lm, params, ids, layer=spec.layer, site=read_site, batch_tokens=batch_tokens)
    spans = _spans(corpus)
    chosen = tuple(most_sensitive(reading.means[span.start : span.stop], top_k) for span in spans[:-1])
    jobs = tuple(
        Job(text, units.units)
        for span, units in zip(spans, chosen, strict=False)
        for text in (*span, *spans[-1])
    )
    batches = job_batches(lm, ids, jobs, batch_tokens)
    return Study(lm, params, corpus, spec, reading, chosen, jobs, batches)


def summarise(study: Study, results: Sequence[Mapping[str, np.ndarray]]) -> tuple[RelationScores, ...]:
    """Puts the scores of every batch together, relation by relation.

    Args:
      study: what was computed.
      results: of `Study.compute`, of every batch in any order.
    """
    scored: dict[int, TextScores] = {}
    for result in results:
        ends = np.cumsum(result["lengths"])[:-1]
        nll, hits = (np.split(result[name], ends) for name in ("nll", "hits"))
        scored |= zip(result["jobs"].tolist(), map(TextScores, nll, hits), strict=True)
    masks = tuple(counted(row, study.corpus.pad) for row in study.corpus.ids)
    baseline = study.reading.scores
    spans = _spans(study.corpus)
    controls = spans[-1]
    made, first = [], 0
    for span, chosen in zip(spans, study.chosen, strict=False):
        after = tuple(scored[first + i] for i in range(len(span)))
        first += len(span)
        control_after = tuple(scored[first + i] for i in range(len(controls)))
        first += len(controls)
        before, rows = _of(baseline, span), _of(masks, span)
        erased = before, after, rows
        control = _of(baseline, controls), control_after, _of(masks, controls)
        made.append(RelationScores(
            chosen, before, after, _change(*erased), _change(*control), _by_text(*erased), _by_text(*control),
        ))  # fmt: skip
    return tuple(made)


def _spans(corpus: Corpus) -> list[range]:
    # Places among `corpus.ids` of each relation's texts, then of the controls.
    spans, start = [], 0
    for group in (*corpus.relations, corpus.controls):
        spans.append(range(start, start + len(group.ids)))
        start += len(group.ids)
    return spans


def _of(values: tuple, span: range) -> tuple:
    return values[span.start : span.stop]


def _by_text(before, after, masks) -> FactScores:
    def sums(scores) -> Float[np.ndarray, " b"]:
        return np.array([text.nll[mask].sum() for text, mask in zip(scores, masks, strict=True)], np.float64)

    return FactScores(sums(before), sums(after), np.array([mask.sum() for mask in masks]))


def _change(before, after, masks) -> Change:
    with np.errstate(invalid="ignore"):  # perplexities may be infinite
        spreads = [float(np.std(text_perplexities(scores, masks))) for scores in (before, after)]
    return Change(mean_nll(before, masks), mean_nll(after, masks), *spreads)
