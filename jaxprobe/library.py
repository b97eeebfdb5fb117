"""The functions of `import jaxprobe`, for notebooks and scripts: what the commands compute, on any texts.

Matrix products are in full precision whatever JAX's setting, as in the commands.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxprobe import shipped
from jaxprobe.array_typing import Float, np
from jaxprobe.batches import TokenizedTexts, tokenize
from jaxprobe.configs import DTypeName, Input, Metric
from jaxprobe.errors import ProbeError
from jaxprobe.jacobians.output_metrics import output_factor
from jaxprobe.jacobians.planning import Plan
from jaxprobe.jacobians.relative_gain import state_norms
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.sensitivity import summarise, work_units
from jaxprobe.jacobians.spectra import stable_rank
from jaxprobe.loading import LoadedModel, open_any
from jaxprobe.models import LanguageModel
from jaxprobe.models.language_model import check_float64
from jaxprobe.neurons import SensitiveUnits, check_top_k, most_sensitive, protocol_sites
from jaxprobe.run_checks import require_choice
from jaxprobe.run_configs import Compute, Perturbation, ScanName
from jaxprobe.runtime import MATMUL_PRECISION, check_reductions
from jaxprobe.scoring.perplexity import TextScores, counted, mean_nll, read_texts, score_tokens, text_batches
from jaxprobe.sites import BLOCK_OUT, check_layer, site_width
from jaxprobe.taps import Edit, Taps, check_taps

_exact = jax.default_matmul_precision(MATMUL_PRECISION)  # as a decorator


def load(source: str, *, dtype: DTypeName = "float32", scan: ScanName = "auto") -> LoadedModel:
    """Loads a Mamba or GPT-2 checkpoint.

    >>> import jaxprobe
    >>> model = jaxprobe.load("gpt2-facts")
    >>> model.lm.config.architecture
    'gpt2'

    Args:
      source: a directory, a hub id, or `mamba-facts` or `gpt2-facts`, the models that the package carries.
      dtype: float64 needs `jax.config.update("jax_enable_x64", True)` first.
      scan: how Mamba's recurrence runs.

    Raises:
      ProbeError: the checkpoint cannot be loaded, float64 is off in JAX, or JAX would compute wrong sums.
    """
    check_reductions()
    if dtype == "float64":
        check_float64()
    carried = {path.name: str(path) for path in shipped.MODELS.values()}
    return open_any(carried.get(source, source), Compute(dtype=dtype, scan=scan))


@_exact
def perplexity(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    edits: Edit | Iterable[Edit] = (),
    max_tokens: int = 512,
    batch_tokens: int = 4096,
) -> float:
    """Perplexity of texts, each scored alone: exp(negative log-likelihood per token over all of them).

    >>> import jaxprobe
    >>> from jaxprobe.perturb import zero
    >>> model = jaxprobe.load("mamba-facts")
    >>> texts = ["France's capital is Paris.", "Japan's capital is Tokyo."]
    >>> before = jaxprobe.perplexity(model, texts)
    >>> after = jaxprobe.perplexity(model, texts, edits=zero("block_out", layer=1, units=range(10)))
    >>> bool(1 < before != after > 1)
    True

    Args:
      model: from `load`.
      texts: at least one, each of two tokens or more.
      edits: from `jaxprobe.perturb`. A value is a number, or one for each unit. Noise takes one key, from
        which the i-th text draws the i-th, whatever the batches.
      max_tokens: where texts are cut, or at the model's context.
      batch_tokens: the most tokens in a batch, padding included.

    Raises:
      ProbeError: a text is too short or padding only, an edit does not fit the model, or noise has more than
        one key.
    """
    edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
    check_taps(Taps(edits=edits), model.lm.config, model.lm.scan)  # below they are traced
    if any(edit.key is not None and edit.key.ndim for edit in edits):
        raise ProbeError("noise takes one key here; each text's own is made from it")
    lm, rows = model.lm, _tokens(model, texts, max_tokens).ids
    masks = [counted(row, model.tokenizer.pad_token_id) for row in rows]
    if not any(mask.any() for mask in masks):
        raise ProbeError("after their first tokens, the texts are padding tokens only")
    nll: dict[int, np.ndarray] = {}
    for bucket in text_batches(lm, rows, batch_tokens):
        made = _score_edited(
            lm, model.params, *map(jnp.asarray, (bucket.ids, bucket.lengths, bucket.index)), edits
        )
        for row, text in enumerate(bucket.index[: bucket.count]):
            nll[text] = np.asarray(made[row], np.float64)[: len(rows[text]) - 1]
    scores = [TextScores(nll[i], np.zeros(len(nll[i]), bool)) for i in range(len(rows))]
    return float(np.exp(mean_nll(scores, masks)))


@partial(jax.jit, static_argnums=0)
def _score_edited(lm: LanguageModel, params, ids, lengths, places, edits):
    def one(ids, length, place):
        mine = tuple(
            edit if edit.key is None else dataclasses.replace(edit, key=jax.random.fold_in(edit.key, place))
            for edit in edits
        )
        return lm.run_blocks(params, lm.embed(params, ids[None]), length[None], Taps(edits=mine))[0][0]

    return score_tokens(lm, params, jax.vmap(one)(ids, lengths, places), ids)[0]


@_exact
def delta_sensitive(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    layer: int = 1,
    top_k: int = 10,
    site: str | None = None,
    max_tokens: int = 512,
    batch_tokens: int = 4096,
) -> SensitiveUnits:
    """The units of a site whose average over tokens varies most over the first 25 texts.

    >>> import jaxprobe
    >>> model = jaxprobe.load("mamba-facts")
    >>> texts = ["France's capital is Paris.", "Japan's capital is Tokyo."]
    >>> len(jaxprobe.delta_sensitive(model, texts, site="delta", top_k=3).units)
    3

    Args:
      model: from `load`.
      texts: at least two, each of two tokens or more.
      layer: counted from 0.
      top_k: how many units.
      site: where to look; the original study's choice if None, `mixer_out` on Mamba and `block_out` on GPT-2.
      max_tokens: where texts are cut, or at the model's context.
      batch_tokens: the most tokens in a batch, padding included.

    Raises:
      ProbeError: the model lacks the site or the layer, the site has fewer units, or there is one text.
    """
    config = model.lm.config
    perturbation = Perturbation(
        layer=check_layer(config, layer), top_k=top_k, protocol="matched" if site else "seed", site=site
    )
    read = protocol_sites(config, perturbation).read
    site_width(config, read)
    check_top_k(config, perturbation)
    rows = _tokens(model, texts, max_tokens).ids
    if len(rows) < 2:
        raise ProbeError("units that vary between texts need at least 2 texts, got 1")
    reading = read_texts(model.lm, model.params, rows, layer=layer, site=read, batch_tokens=batch_tokens)
    return most_sensitive(reading.means, top_k)


@dataclasses.dataclass(frozen=True)
class TextJacobian:
    """The exact Jacobian J of one text's last-token logits with respect to block_out of one layer.

    Attributes:
      unembedding: W: J = W dz/dh, with z the final normed state of the last token.
      state: dz/dh; one position t if only the last token's row moves, else every position.
      singular_values: of J as a matrix [v, t d], largest first.
    """

    unembedding: Float[np.ndarray, "v d"]
    state: Float[np.ndarray, "d t d"]
    singular_values: Float[np.ndarray, " m"]

    @property
    def matrix(self) -> Float[np.ndarray, "v t d"]:
        """J itself; large where the vocabulary is."""
        return np.einsum("vi,itj->vtj", self.unembedding, self.state)

    @property
    def frobenius(self) -> float:
        """||J||_F."""
        return float(np.linalg.norm(self.singular_values.astype(np.float64)))

    @property
    def sigma1(self) -> float:
        """The largest singular value: the local Lipschitz constant."""
        return float(self.singular_values[0])

    @property
    def stable_rank(self) -> float:
        """||J||_F^2 / sigma1^2."""
        return stable_rank(self.singular_values)


@_exact
def jacobian(
    model: LoadedModel, text: str, *, layer: int, wrt: str = "last", max_tokens: int = 128
) -> TextJacobian:
    """The exact Jacobian of a text's last-token logits with respect to block_out of a layer.

    >>> import jaxprobe
    >>> model = jaxprobe.load("mamba-facts")
    >>> J = jaxprobe.jacobian(model, "France's capital is Paris.", layer=1)
    >>> J.matrix.shape[0] == model.lm.config.vocab_size and 0 < J.sigma1 <= J.frobenius
    True

    Args:
      model: from `load`.
      text: of two tokens or more.
      layer: counted from 0.
      wrt: "last", only the last token's row moves, or "sequence", every row.
      max_tokens: where the text is cut, or at the model's context.

    Raises:
      ProbeError: the model lacks the layer, the text is too short, or `wrt` is something else.
    """
    require_choice("wrt", wrt, Input)
    check_layer(model.lm.config, layer)
    (row,) = _tokens(model, [text], max_tokens).ids
    ids = jnp.asarray([row], jnp.int32)
    state, sigma = map(np.asarray, _jacobian(model.lm, model.params, ids, layer, wrt == "last"))
    return TextJacobian(np.asarray(model.lm.unembedding(model.params)), state, sigma)


@partial(jax.jit, static_argnums=(0, 3, 4))
def _jacobian(lm: LanguageModel, params, ids, layer: int, last: bool):
    _, captured = lm.run_blocks(params, lm.embed(params, ids), taps=Taps(capture=(BLOCK_OUT,)))
    h = captured[BLOCK_OUT][layer]
    sound = jnp.isfinite(state_norms(captured[BLOCK_OUT], jnp.array(ids.shape[1:])).sequence[layer, 0])

    def state(rows):  # of the whole text, or of its last token
        moved = h.at[0, -rows.shape[0] :].set(rows)
        return lm.normalise(params, lm.resume(params, moved, layer + 1)[0, -1])

    made = jax.jacfwd(state)(h[0, -1:]) if last else jax.jacrev(state)(h[0])
    made = jnp.where(sound, made, jnp.nan)
    matrix = output_factor(lm, params) @ made.reshape(made.shape[0], -1)
    return made, jnp.linalg.svd(matrix, compute_uv=False)


@_exact
def sensitivity(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    wrt: str | Sequence[str] = ("last", "sequence"),
    metric: Metric = "logits",
    epsilon: float = 0.01,
    num_samples: int = 10,
    seed: int = 0,
    max_tokens: int = 128,
    batch_tokens: int = 4096,
) -> ModelSensitivity:
    """What `python -m jaxprobe.jacobian` measures: exact norms beside sampled ones, layer by layer.

    >>> import jaxprobe
    >>> model = jaxprobe.load("gpt2-facts")
    >>> texts = ["France's capital is Paris.", "Japan's capital is Tokyo."]
    >>> (layer,) = jaxprobe.sensitivity(model, texts, layers=[1], wrt=["last"]).layers
    >>> layer.exact["last"].sigma1.shape
    (2,)

    Args:
      model: from `load`.
      texts: at least one, each of two tokens or more.
      layers: one layer, or None for all of them.
      wrt: inputs of the exact Jacobians: `last`, `sequence` or both.
      metric: of the output: logits, centred or fisher (`jaxprobe.jacobians.output_metrics`).
      epsilon: standard deviation of the finite-difference draws.
      num_samples: draws per text.
      seed: of the draws.
      max_tokens: where texts are cut, or at the model's context.
      batch_tokens: the most tokens in a batch, padding included.

    Raises:
      ProbeError: a layer that the model lacks, several layers but not all, a text that is too short, or an
        argument out of range.
    """
    config = model.lm.config
    every = tuple(range(config.num_layers))
    chosen = every if layers is None else tuple(check_layer(config, layer) for layer in layers)
    if chosen != every and len(chosen) != 1:
        raise ProbeError(f"layers must be one layer, or None for all, got {list(chosen)}")
    rows = _tokens(model, texts, max_tokens).ids
    plan = Plan(
        layers=chosen, metric=metric, wrt=(wrt,) if isinstance(wrt, str) else tuple(wrt),
        epsilon=epsilon, num_samples=num_samples, seed=seed, batch_tokens=batch_tokens,
    )  # fmt: skip
    units = work_units(model.lm, model.params, rows, plan)
    return summarise(config, rows, plan, {unit.name: unit.compute() for unit in units})


def _tokens(model: LoadedModel, texts: Sequence[str], max_tokens: int) -> TokenizedTexts:
    config = model.lm.config
    limit = min(max_tokens, config.context_length or max_tokens)
    return tokenize(texts, model.tokenizer, limit=limit, vocab_size=config.vocab_size)
