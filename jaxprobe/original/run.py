"""What `delta_pct` and `factual_recall` share: models that fit, their tokens, resumable work."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxprobe import loading
from jaxprobe.batches import TokenizedTexts, tokenize
from jaxprobe.errors import ProbeError
from jaxprobe.loading import LoadedModel
from jaxprobe.neurons import PROTOCOL_VERSIONS, SENSITIVE_TEXTS, check_top_k, protocol_sites, why_not
from jaxprobe.original.study import Corpus, RelationScores, Study, prepare, summarise
from jaxprobe.relations import Relation
from jaxprobe.run_configs import Compute, Perturbation
from jaxprobe.scoring.edited import EditSpec, lower_scores
from jaxprobe.scoring.finite import require_finite
from jaxprobe.scoring.memory import fit_batch_tokens
from jaxprobe.scoring.perplexity import counted
from jaxprobe.sites import site_width
from jaxprobe.store import Store
from jaxprobe.texts import Texts, shorten
from jaxprobe.work import WorkUnit

MAX_TOKENS = 512  # the original study truncates there, or at the model's context

Loaded = Mapping[str, LoadedModel]


def fitting(models: Loaded, perturbation: Perturbation) -> dict[str, LoadedModel]:
    """The models that have the layer and the site; the others are skipped, and that is said.

    Args:
      models: by the title tables show.
      perturbation: what is to be done to them.

    Raises:
      ProbeError: when it fits none, or more units are asked for than the site of one has.
    """
    kept = loading.fitting(models, lambda model: why_not(model, perturbation))
    for title, model in kept.items():
        try:
            check_top_k(model.lm.config, perturbation)
        except ProbeError as error:
            raise ProbeError(f"{title}: {error}") from error
    return kept


def tokens(
    models: Loaded, relations: Sequence[Relation], controls: Texts, perturbation: Perturbation
) -> dict[str, Corpus]:
    """Every model's tokens of every text, with a line on each model.

    Texts are cut at 512 tokens or the model's context; under the matched protocol, all at the least of these.

    Raises:
      ProbeError: a text is empty, one token long or padding only; it names the relation.
    """
    limits, corpora = token_limits(models, perturbation), {}
    for title, model in models.items():
        corpora[title] = corpus = _corpus(title, model, relations, controls, limits[title])
        lengths = [len(row) for row in corpus.ids]
        cut = f", {corpus.truncated} truncated at {limits[title]}" if corpus.truncated else ""
        print(
            f"{title} ({model.source}): {model.lm.config.num_layers} layers, "
            f"{model.certificate.parameter_count:,} parameters; {len(relations)} relations and "
            f"{len(corpus.controls.ids)} control texts of {min(lengths)} to {max(lengths)} tokens{cut}"
        )
    return corpora


def token_limits(models: Loaded, perturbation: Perturbation) -> dict[str, int]:
    """Where each model's texts are cut."""
    limits = {
        title: min(MAX_TOKENS, model.lm.config.context_length or MAX_TOKENS)
        for title, model in models.items()
    }
    if perturbation.protocol == "matched":
        return dict.fromkeys(limits, min(limits.values()))
    return limits


def _corpus(
    title: str, model: LoadedModel, relations: Sequence[Relation], controls: Texts, limit: int
) -> Corpus:
    pad = model.tokenizer.pad_token_id

    def rows(where: str, texts: Sequence[str]) -> TokenizedTexts:
        try:
            made = tokenize(texts, model.tokenizer, limit=limit, vocab_size=model.lm.config.vocab_size)
        except ProbeError as error:
            raise ProbeError(f"{where}, {title}'s tokens: {error}") from error
        for text, row in zip(texts, made.ids, strict=True):
            if not counted(row, pad).any():
                raise ProbeError(
                    f"{where}: after the first, {shorten(text)} has only padding tokens for {title}"
                )
        return made

    return Corpus(
        tuple(rows(relation.name, relation.texts) for relation in relations),
        rows(controls.origin, controls.texts),
        pad,
    )


def edit_spec(model: LoadedModel, perturbation: Perturbation, compute: Compute) -> EditSpec:
    """The edit that a perturbation means on a model."""
    site, mode = protocol_sites(model.lm.config, perturbation).edit, perturbation.mode
    if mode in ("reference_mean", "resample"):  # their values are other texts'
        raise ProbeError(f"--mode={mode} is for delta_pct --protocol=matched alone")
    return EditSpec(site, perturbation.layer, mode, perturbation.value, compute.seed)


def open_store(
    out: Path,
    command: str,
    manifest: Mapping[str, Any],
    corpora: Mapping[str, Corpus],
    batch_tokens: Callable[[], Mapping[str, int]],
) -> Store:
    """The finished batches of an interrupted run in `out`, or a new store; its plan is the size of batches.

    Args:
      out: the results folder. command: whose store.
      manifest: what decides the values. corpora: the tokens.
      batch_tokens: makes the plan: the most tokens in a batch, by model.

    Raises:
      ProbeError: when the run that was interrupted there had other flags, weights, texts or versions.
    """
    tokens = {title: corpus.ids for title, corpus in corpora.items()}
    identity = {**manifest, "tokens": tokens}
    return Store.open(out, command, identity=identity, plan=lambda: {"batch_tokens": batch_tokens()})


def fit_batches(
    models: Loaded,
    corpora: Mapping[str, Corpus],
    perturbation: Perturbation,
    compute: Compute,
    memory_gb: float | None,
) -> dict[str, int]:
    """The most tokens in a batch of each model's texts, by title: what fits the memory, and that is said.

    Raises:
      ProbeError: not even one text at a time fits.
    """
    fitted = {}
    for title, model in models.items():
        corpus, config = corpora[title], model.lm.config
        scored = [row for group in corpus.relations for row in (*group.ids, *corpus.controls.ids)]
        spec, sites = edit_spec(model, perturbation, compute), protocol_sites(config, perturbation)

        def lower(tokens: int, model=model, scored=scored, spec=spec, read=sites.read):
            given = {"read_site": read, "top_k": perturbation.top_k, "batch_tokens": tokens}
            return lower_scores(model.lm, model.params, scored, spec, **given)

        width = max(site_width(config, site) for site in (sites.read, sites.edit))
        held = 2 * model.item_bytes * config.hidden_size * sum(map(len, corpus.ids))  # what enters the layer
        fitted[title] = fit_title(title, model, corpus, width, lower, held, compute, memory_gb)
    return fitted


def fit_title(
    title: str,
    model: LoadedModel,
    corpus: Corpus,
    width: int,
    lower: Callable[[int], Iterable[jax.stages.Lowered]],
    held: int,
    compute: Compute,
    memory_gb: float | None,
    **about: Any,
) -> int:
    """`scoring.memory.fit_batch_tokens` of one model, said in a line; `about`: of its other arguments."""
    try:
        tokens, forecast = fit_batch_tokens(
            compute.batch_tokens,
            corpus.ids,
            model.lm.config,
            width,
            lower,
            held=held,
            item_bytes=model.item_bytes,
            device=jax.devices()[0],
            memory_gb=memory_gb,
            **about,
        )
    except ProbeError as error:
        raise ProbeError(f"{title}: {error}") from error
    print(f"{title}: batches of up to {tokens} tokens; {forecast}")
    return tokens


def measure(
    title: str, model: LoadedModel, corpus: Corpus, perturbation: Perturbation, compute: Compute, store: Store
) -> tuple[RelationScores, ...]:
    """Scores every relation on one model, with progress; the store keeps finished batches.

    Raises:
      ProbeError: a score is not finite.
    """
    study = _study(model, corpus, perturbation, compute, store.plan["batch_tokens"][title])
    units = [
        WorkUnit(f"batch-{number}", partial(study.compute, number)) for number in range(len(study.batches))
    ]
    scores = summarise(study, list(store.complete(title, units).values()))
    for of_relation in scores:
        for texts, facts in (("its facts", of_relation.facts), ("control texts", of_relation.controls)):
            require_finite(title, texts, facts.before, facts.after)
    return scores


def _study(
    model: LoadedModel, corpus: Corpus, perturbation: Perturbation, compute: Compute, batch_tokens: int
) -> Study:
    return prepare(
        model.lm,
        model.params,
        corpus,
        edit_spec(model, perturbation, compute),
        read_site=protocol_sites(model.lm.config, perturbation).read,
        top_k=perturbation.top_k,
        batch_tokens=batch_tokens,
    )


def protocol_entry(models: Loaded, perturbation: Perturbation) -> dict[str, Any]:
    """What the protocol amounted to, for the manifest."""
    return {
        "name": perturbation.protocol,
        "version": PROTOCOL_VERSIONS[perturbation.protocol],
        "sites": {
            title: asdict(protocol_sites(model.lm.config, perturbation)) for title, model in models.items()
        },
        "units_chosen_on_first_texts": SENSITIVE_TEXTS,
        "max_tokens": MAX_TOKENS,
    }
