"""Perplexity of texts.

Each text is scored alone: its tokens 1.. are predicted from those before them, and tokens that are the
padding token are not counted. The perplexity of several texts is exp(sum of negative log-likelihoods /
number of tokens), so long texts weigh more. Batching and padding change nothing.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Bool, Float, Int, Params, np
from jaxprobe.batches import Bucket, buckets
from jaxprobe.models import LanguageModel
from jaxprobe.taps import Taps
from jaxprobe.tuning import tuning
from jaxprobe.widths import scoring_widths

_LOGITS = 2**25  # numbers held at once at most: 128 MiB in float32

Ids = Sequence[int] | np.ndarray  # token ids of one text


@dataclasses.dataclass(frozen=True)
class TextScores:
    """How well the tokens 1.. of one text were predicted."""

    nll: Float[np.ndarray, " t"]  # negative log-likelihood in nats, float64
    hits: Bool[np.ndarray, " t"]  # whether the most likely token was the right one


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one pass over the texts gives, in their order."""

    inputs: tuple[Float[np.ndarray, "_ d"], ...]  # [t d] of each text: what enters the layer
    means: Float[np.ndarray, "b w"]  # the site's activation at the layer, averaged over each text's tokens
    scores: tuple[TextScores, ...]


def counted(ids: Ids, pad: int | None) -> Bool[np.ndarray, " t"]:
    """Which of the tokens 1.. are counted: those that are not the padding token."""
    labels = np.asarray(ids[1:])
    return np.ones(labels.shape, bool) if pad is None else labels != pad


def mean_nll(scores: Sequence[TextScores], masks: Sequence[np.ndarray]) -> float:
    """Nats per counted token over all the texts together; perplexity is its exponential.

    Args:
      scores: of each text.
      masks: `counted` of each text.
    """
    total = sum(float(text.nll[mask].sum()) for text, mask in zip(scores, masks, strict=True))
    return total / sum(int(mask.sum()) for mask in masks)


def text_perplexities(scores: Sequence[TextScores], masks: Sequence[np.ndarray]) -> Float[np.ndarray, " b"]:
    """Perplexity of each text alone."""
    means = [mean_nll([text], [mask]) for text, mask in zip(scores, masks, strict=True)]
    with np.errstate(over="ignore"):
        return np.exp(np.array(means))


def read_texts(
    lm: LanguageModel, params: Params, ids: Sequence[Ids], *, layer: int, site: str, batch_tokens: int
) -> Reading:
    """Runs every text once, unedited.

    Args:
      lm: the model. params: its parameters.
      ids: tokens of each text, at least two.
      layer: whose input is kept and whose site is read.
      site: averaged over tokens.
      batch_tokens: the most tokens in a batch, padding included.
    """
    inputs: dict[int, np.ndarray] = {}
    means: dict[int, np.ndarray] = {}
    scores: dict[int, TextScores] = {}
    for bucket in text_batches(lm, ids, batch_tokens):
        h, mean, nll, hits = map(
            np.asarray,
            read_program(lm, params, layer, jnp.asarray(bucket.ids), jnp.asarray(bucket.lengths), site=site),
        )
        for row, text in enumerate(bucket.index[: bucket.count]):
            inputs[text], means[text] = h[row, : len(ids[text])], mean[row]
            scores[text] = text_scores(nll[row], hits[row], len(ids[text]))
    order = range(len(ids))
    return Reading(
        tuple(inputs[i] for i in order), np.stack([means[i] for i in order]), tuple(scores[i] for i in order)
    )


def text_batches(lm: LanguageModel, ids: Sequence[Ids], batch_tokens: int) -> tuple[Bucket, ...]:
    """Texts to be scored, padded to the widths that cost least on this platform."""
    widths = scoring_widths(lm.config, list(map(len, ids)), platform=jax.default_backend())
    return buckets(ids, batch_tokens, widths)


def text_scores(nll: np.ndarray, hits: np.ndarray, length: int) -> TextScores:
    """Of a text of so many tokens, from a padded row."""
    return TextScores(nll[: length - 1].astype(np.float64), hits[: length - 1])


@partial(jax.jit, static_argnums=0, static_argnames="site")
def read_program(lm: LanguageModel, params: Params, layer, ids, lengths, *, site: str):
    """What enters a layer [b t d], the site's mean over tokens [b w], and `score_tokens` of padded texts."""
    h = lm.resume(params, lm.embed(params, ids), 0, stop=layer)
    block = lm.block_params(params, layer)
    out, captured = lm.tapped_block(block, layer, h, taps=Taps(capture=(site,)))
    mask = (jnp.arange(ids.shape[1]) < lengths[:, None])[..., None]
    mean = jnp.sum(jnp.where(mask, captured[site], 0), axis=1) / lengths[:, None].astype(h.dtype)
    return h, mean, *score_tokens(lm, params, lm.resume(params, out, layer + 1), ids)


def score_tokens(
    lm: LanguageModel, params: Params, h: Float[Array, "b t d"], ids: Int[Array, "b t"]
) -> tuple[Float[Array, "b t-1"], Bool[Array, "b t-1"]]:
    """Negative log-likelihood of tokens 1.. in nats, and whether each was the most likely one.

    Args:
      lm: the model. params: its parameters.
      h: what leaves the last block. ids: the texts.
    """
    z = lm.normalise(params, h[:, :-1]).reshape(-1, h.shape[-1])
    labels = ids[:, 1:].reshape(-1)
    most = tuning(jax.default_backend()).scored_tokens
    count, rows = len(z), min(len(z), max(1, min(most, _LOGITS // lm.config.vocab_size)))
    padding = -count % rows
    z = jnp.pad(z, ((0, padding), (0, 0))).reshape(-1, rows, z.shape[1])
    labels = jnp.pad(labels, (0, padding)).reshape(-1, rows)
    unembedding = lm.unembedding(params)

    def of_rows(chunk):
        z, labels = chunk
        logits = unembedding @ z.T
        # What argmax has, the first of equals, but XLA:CPU takes a quarter of the product's time for that.
        right, token = _right(logits, labels), jnp.arange(len(logits))[:, None]
        beaten = (logits < right) | ((logits == right) & (token >= labels))
        return token_nll(logits, labels), beaten.all(axis=0)

    nll, hits = jax.lax.map(of_rows, (z, labels))
    shape = h.shape[0], h.shape[1] - 1
    return nll.reshape(-1)[:count].reshape(shape), hits.reshape(-1)[:count].reshape(shape)


def token_nll(logits: Float[Array, "v t"], labels: Int[Array, " t"]) -> Float[Array, " t"]:
    """Negative log-likelihood of labels, in nats; the vocabulary comes first, as XLA:CPU then sums fast."""
    return jax.nn.logsumexp(logits, axis=0) - _right(logits, labels)


def _right(logits, labels):
    return jnp.take_along_axis(logits, labels[None], axis=0)[0]
