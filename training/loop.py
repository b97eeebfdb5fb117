"""The training loop: a pure jitted step, many steps a dispatch, interrupted and resumed exactly."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprobe.array_typing import Array, Float, Int, Params
from jaxprobe.errors import ProbeError
from jaxprobe.models import LanguageModel
from training.corpus import Stream
from training.pair import Settings
from training.tokenizer import END_OF_TEXT_ID


class State(NamedTuple):
    """All that changes while training."""

    step: Int[Array, ""]  # steps done
    params: Params
    optimizer: optax.OptState


class Losses(NamedTuple):
    """Mean negative log-likelihood per token, in nats, of each kind of row."""

    facts: Float[Array, "..."]
    text: Float[Array, "..."]


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW on a warm-up and cosine schedule; norms, biases and Mamba's A_log and D are not decayed."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warmup_steps, settings.steps, settings.learning_rate / 10
    )

    def decayed(params):
        def is_matrix(path, _):
            return path[-1].key in ("kernel", "embedding")

        return jax.tree_util.tree_map_with_path(is_matrix, params)

    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(schedule, b2=settings.b2, weight_decay=settings.weight_decay, mask=decayed),
    )


def initial_state(lm: LanguageModel, settings: Settings) -> State:
    """The state before the first step."""
    params = lm.init(jax.random.key(settings.seed))
    return State(jnp.zeros((), jnp.int32), params, make_optimizer(settings).init(params))


def _nll(lm: LanguageModel, params: Params, rows: Int[Array, "b t"]) -> tuple[Array, Array]:
    """Summed negative log-likelihood of tokens 1.. and their count; the filling of a row does not count."""
    targets = rows[:, 1:]
    logits = lm.forward(params, rows[:, :-1]).logits
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    counted = ~((targets == END_OF_TEXT_ID) & (rows[:, :-1] == END_OF_TEXT_ID))
    return jnp.sum(losses * counted), jnp.sum(counted)


def make_chunk(lm: LanguageModel, settings: Settings) -> Callable[[State, Stream], tuple[State, Losses]]:
    """A jitted function that takes as many steps as the rows it is given; the state is donated."""
    optimizer = make_optimizer(settings)

    def loss(params, rows: Stream):
        fact_nll, fact_count = _nll(lm, params, jnp.asarray(rows.facts))
        text_nll, text_count = _nll(lm, params, jnp.asarray(rows.text))
        total = (fact_nll + text_nll) / (fact_count + text_count)
        return total, Losses(fact_nll / fact_count, text_nll / text_count)

    def step(state: State, rows: Stream):
        grads, losses = jax.grad(loss, has_aux=True)(state.params, rows)
        updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        return State(state.step + 1, params, opt_state), losses

    @jax.jit(donate_argnums=0)
    def chunk(state: State, rows: Stream):
        return jax.lax.scan(step, state, rows)

    return chunk


def save_state(path: Path, state: State, identity: str) -> None:
    """Writes the state so that an interruption leaves either the old file or the new one."""
    arrays: dict[str, Any] = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.savez(file, identity=np.array(identity), **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def restore_state(path: Path, like: State, identity: str) -> State:
    """The state in `path`, shaped as `like`.

    Raises:
      ProbeError: when the file is damaged, or is that of a run with other settings or text.
    """
    leaves, structure = jax.tree.flatten(like)
    try:
        with np.load(path) as stored:
            if str(stored["identity"]) != identity:
                raise ProbeError(f"{path}: of a run with other settings or text; choose another --out")
            restored = [jnp.asarray(stored[f"leaf_{i}"], leaf.dtype) for i, leaf in enumerate(leaves)]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ProbeError(f"{path}: not a training state ({error}); remove it to start again") from error
    return jax.tree.unflatten(structure, restored)
