"""Whether a model recalls the object of a fact, given the words before it.

Two measures, both with and without an edit:

    teacher-forced  share of the object's tokens that are the most likely ones, given the true text before
    greedy          share of facts whose object the model writes out whole, each token the most likely one

Where an edit looks only backwards (all modes but `mean`, whose average over the text grows with it), a fact
is recalled greedily exactly if all its tokens are right teacher-forced.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Params, np
from jaxprobe.convert import Tokenizer
from jaxprobe.models import LanguageModel
from jaxprobe.relations import Fact
from jaxprobe.scoring.edited import EditSpec, noise_keys
from jaxprobe.scoring.perplexity import Ids, TextScores, text_batches
from jaxprobe.statistics.inference import Estimate, share
from jaxprobe.taps import NO_TAPS, Edit, Taps


@dataclass(frozen=True)
class Target:
    """Where a fact's object stands among its text's tokens, or why it cannot be scored."""

    start: int = 0
    stop: int = 0
    left_out: str | None = None


@dataclass(frozen=True)
class FactRecall:
    """One fact, before and after the edit."""

    object: str
    tokens: int  # of the object; 0 where it is not scored
    right_before: int  # of them, teacher-forced
    right_after: int
    said_before: str  # as many tokens as the object has, written greedily
    said_after: str
    recalled_before: bool  # whether they are the object's
    recalled_after: bool
    left_out: str | None = None  # why it is not scored


@dataclass(frozen=True)
class Accuracy:
    """Over the facts that can be scored.

    Attributes:
      teacher_forced: share of their objects' tokens; None without such a fact.
      greedy: share of them whose object is written out, with an exact binomial interval; likewise.
      recalled: how many these are. facts: how many can be scored.
    """

    teacher_forced: float | None
    greedy: Estimate | None
    recalled: int
    facts: int


def find_object(tokenizer: Tokenizer, fact: Fact, length: int) -> Target:
    """The tokens of a text that spell its object: those that overlap its last occurrence.

    Args:
      tokenizer: of the model.
      fact: text and object.
      length: tokens of the text that the model sees; the rest is cut off.
    """
    first = fact.text.rfind(fact.object)
    if first < 0:
        return Target(left_out="its object is not in its text")
    last = first + len(fact.object)
    offsets = tokenizer.backend.encode(fact.text).offsets
    # A byte-level token's span begins with the space before the word, so spaces at the edge do not count.
    places = [i for i, (a, b) in enumerate(offsets) if max(a, first) < min(b, last)]
    if not places or places[-1] >= length:
        return Target(left_out="its object is cut off")
    if places[0] == 0:
        return Target(left_out="its object stands first, with nothing before it to recall it from")
    return Target(places[0], places[-1] + 1)


def recall(
    lm: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    facts: Sequence[Fact],
    ids: Sequence[Ids],
    units: Sequence[tuple[int, ...]],
    before: Sequence[TextScores],
    after: Sequence[TextScores],
    spec: EditSpec,
    batch_tokens: int,
) -> tuple[FactRecall, ...]:
    """Recall of every fact with and without an edit; all sequences run over facts.

    Args:
      lm: the model. params: its parameters. tokenizer: its own.
      facts: texts and objects.
      ids: tokens of the texts.
      units: what is edited in each text.
      before: scores without the edit. after: with it.
      spec: the edit.
      batch_tokens: the most tokens in a batch, padding included.
    """
    targets = [find_object(tokenizer, fact, len(row)) for fact, row in zip(facts, ids, strict=True)]
    scored = [i for i, target in enumerate(targets) if target.left_out is None]
    said_before, said_after = (
        dict(zip(scored, _greedy(lm, params, ids, targets, scored, units, edit, batch_tokens), strict=True))
        for edit in (None, spec)
    )
    made = []
    for i, (fact, row, target) in enumerate(zip(facts, ids, targets, strict=True)):
        if target.left_out is not None:
            made.append(FactRecall(fact.object, 0, 0, 0, "", "", False, False, target.left_out))
            continue
        right = tuple(row[target.start : target.stop])
        # `hits` begins with token 1.
        hits = slice(target.start - 1, target.stop - 1)
        made.append(
            FactRecall(
                object=fact.object,
                tokens=len(right),
                right_before=int(before[i].hits[hits].sum()),
                right_after=int(after[i].hits[hits].sum()),
                said_before=tokenizer.decode(list(said_before[i])),
                said_after=tokenizer.decode(list(said_after[i])),
                recalled_before=said_before[i] == right,
                recalled_after=said_after[i] == right,
            )
        )
    return tuple(made)


def accuracy(facts: Sequence[FactRecall]) -> tuple[Accuracy, Accuracy]:
    """Before and after the edit, over the facts that can be scored."""
    scored = [fact for fact in facts if fact.left_out is None]
    number, tokens = len(scored), sum(fact.tokens for fact in scored)

    def made(right: int, recalled: int) -> Accuracy:
        if not number:
            return Accuracy(None, None, 0, 0)
        return Accuracy(right / tokens, share(recalled, number), recalled, number)

    return (
        made(sum(fact.right_before for fact in scored), sum(fact.recalled_before for fact in scored)),
        made(sum(fact.right_after for fact in scored), sum(fact.recalled_after for fact in scored)),
    )


def _greedy(
    lm, params, ids, targets, scored, units, spec: EditSpec | None, batch_tokens
) -> list[tuple[int, ...]]:
    # The object's tokens are there as room for what is written over them; no model sees a token to its right.
    if not scored:
        return []
    rows = [ids[i][: targets[i].stop] for i in scored]
    written: dict[int, tuple[int, ...]] = {}
    for bucket in text_batches(lm, rows, batch_tokens):
        places = [scored[place] for place in np.where(bucket.index < 0, bucket.index[0], bucket.index)]
        keys = None if spec is None else noise_keys([ids[i] for i in places], spec)
        chosen = jnp.asarray([units[i] for i in places], jnp.int32)
        tokens, lengths = bucket.ids.copy(), np.array([targets[i].start for i in places], np.int32)
        stops = np.array([targets[i].stop for i in places])
        while (writing := np.flatnonzero(lengths < stops)).size:
            made = np.asarray(
                _next_tokens(lm, params, jnp.asarray(tokens), jnp.asarray(lengths), chosen, keys, spec)
            )
            tokens[writing, lengths[writing]] = made[writing]
            lengths[writing] += 1
        for row, place in enumerate(places[: bucket.count]):
            written[place] = tuple(int(token) for token in tokens[row, targets[place].start : stops[row]])
    return [written[i] for i in scored]


@partial(jax.jit, static_argnums=(0, 6))
def _next_tokens(lm: LanguageModel, params: Params, ids, lengths, units, keys, spec: EditSpec | None):
    def one(ids, length, units, key):
        taps = NO_TAPS
        if spec is not None:
            taps = Taps(edits=(Edit(spec.site, spec.mode, spec.layer, units, spec.value, key),))
        h, _ = lm.run_blocks(params, lm.embed(params, ids[None]), length[None], taps)
        return jnp.argmax(lm.unembed(params, lm.normalise(params, h[0, length - 1])))

    return jax.vmap(one)(ids, lengths, units, keys)
