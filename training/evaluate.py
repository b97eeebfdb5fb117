"""Measures a pair of checkpoints against the bars that the shipped pair has to meet.

    python -m training.evaluate --wikitext=DIR [--mamba=DIR --gpt2=DIR] [--out=FILE.json]

* Perplexity per token of WikiText-2 test: the whole of test.txt is tokenized as one text and cut into
  windows of 256 tokens that do not overlap. Each window is read alone; its tokens but the first are scored,
  exp(summed NLL / scored tokens). Comparable between models with one tokenizer only.
* Greedy recall: the share of sentences whose object comes last and is produced, all its tokens, by greedy
  decoding from the words before it, nothing before those. One forward pass decides that: the object is
  produced if and only if the largest logit before each of its tokens, given the true ones, is that token's.
"""

import json
import math
from operator import ge, le
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxprobe.convert import Checkpoint, load
from jaxprobe.errors import ProbeError
from jaxprobe.models import LanguageModel
from training import command, facts, pair

ASSETS = Path(__file__).parents[1] / "jaxprobe" / "assets"
WIKITEXT = flags.DEFINE_string("wikitext", None, "folder of WikiText-2's test.txt", required=True)
MAMBA = flags.DEFINE_string("mamba", str(ASSETS / "mamba-facts"), "Mamba's checkpoint")
GPT2 = flags.DEFINE_string("gpt2", str(ASSETS / "gpt2-facts"), "GPT-2's checkpoint")
OUT = flags.DEFINE_string("out", None, "where to write the numbers as JSON; nowhere if not given")

WINDOW = 256  # tokens
BATCH = 16  # windows a forward pass
RECALL_BATCH = 128  # sentences a forward pass
PARAMETER_BAR, PERPLEXITY_BAR = 1.05, 1.10  # larger / smaller
STUDY_BAR, OTHERS_BAR = 0.9, 0.7


class Recall(NamedTuple):
    """How many objects were produced, of how many sentences whose object comes last."""

    hits: int
    count: int

    @property
    def rate(self) -> float:
        """Their ratio."""
        return self.hits / self.count


def perplexity(checkpoint: Checkpoint, text: str) -> tuple[float, int]:
    """Perplexity per token of `text`, and the number of tokens scored."""
    lm = LanguageModel(checkpoint.config)
    params = lm.place(checkpoint.params)
    ids = np.asarray(checkpoint.tokenizer.encode(text), np.int32)
    rows = -(-len(ids) // (WINDOW * BATCH)) * BATCH
    real = np.arange(rows * WINDOW).reshape(rows, WINDOW) < len(ids)
    windows = np.pad(ids, (0, rows * WINDOW - len(ids))).reshape(rows, WINDOW)

    @jax.jit
    def summed_nll(params, ids, real):
        log_probs = jax.nn.log_softmax(lm.forward(params, ids).logits[:, :-1])
        nll = -jnp.take_along_axis(log_probs, ids[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum(nll * real[:, 1:])

    total = sum(
        float(summed_nll(params, windows[i : i + BATCH], real[i : i + BATCH])) for i in range(0, rows, BATCH)
    )
    scored = int(real[:, 1:].sum())
    return math.exp(total / scored), scored


def recall(checkpoint: Checkpoint, texts_and_objects: list[tuple[str, str]]) -> Recall:
    """Greedy recall of the object over the sentences that end with it.

    Raises:
      ProbeError: when the tokenizer merges the object with its surroundings.
    """
    lm = LanguageModel(checkpoint.config)
    params = lm.place(checkpoint.params)
    rows = [_object_tokens(checkpoint.tokenizer, *pair) for pair in texts_and_objects]
    kept = [row for row in rows if row is not None]
    length = max(len(ids) for ids, _ in kept)
    ids = np.zeros((len(kept), length), np.int32)
    asked = np.zeros((len(kept), length), bool)
    for i, (sentence, start) in enumerate(kept):
        ids[i, : len(sentence)] = sentence
        asked[i, start : len(sentence)] = True

    @jax.jit
    def produced(params, ids, asked):
        best = jnp.argmax(lm.forward(params, ids).logits[:, :-1], axis=-1)
        return jnp.all((best == ids[:, 1:]) | ~asked[:, 1:], axis=1)

    hits = [
        np.asarray(produced(params, ids[i : i + RECALL_BATCH], asked[i : i + RECALL_BATCH]))
        for i in range(0, len(kept), RECALL_BATCH)
    ]
    return Recall(int(np.concatenate(hits).sum()), len(kept))


def _object_tokens(tokenizer: Any, text: str, answer: str) -> tuple[list[int], int] | None:
    """Tokens up to the end of the object and where it starts; None where it does not come last."""
    prompt = facts.prompt_of(text, answer)
    if prompt is None:
        return None
    start = tokenizer.encode(prompt)
    ids = [*start, *tokenizer.encode(f" {answer}")]
    if list(tokenizer.encode(text))[: len(ids)] != ids:
        raise ProbeError(f"the tokenizer merges {answer!r} with its surroundings in {text!r}")
    return ids, len(start)


def measure(checkpoint: Checkpoint, test_text: str) -> dict[str, Any]:
    """All numbers of one checkpoint."""
    study, others = facts.read_facts()
    ppl, scored = perplexity(checkpoint, test_text)
    recalls = {
        "study": recall(checkpoint, [(f.text, f.object) for f in study]),
        "others": recall(checkpoint, [(f.text, f.object) for f in others]),
        "held_out": recall(checkpoint, [(f.held_out, f.object) for f in others if f.held_out is not None]),
    }
    return {
        "parameters": checkpoint.certificate.parameter_count,
        "sha256": checkpoint.certificate.sha256,
        "test_perplexity": ppl,
        "test_tokens_scored": scored,
        **{f"recall_{kind}": value.rate for kind, value in recalls.items()},
        **{f"sentences_{kind}": value.count for kind, value in recalls.items()},
    }


def compare(mamba: dict[str, Any], gpt2: dict[str, Any]) -> dict[str, Any]:
    """The bars: what each asks for, what was reached, and whether it is met."""

    def ratio(key):
        return max(mamba[key], gpt2[key]) / min(mamba[key], gpt2[key])

    def least(key):
        return min(mamba[key], gpt2[key])

    reached = {
        "parameters, larger / smaller": (ratio("parameters"), "<=", le, PARAMETER_BAR),
        "test perplexity, larger / smaller": (ratio("test_perplexity"), "<=", le, PERPLEXITY_BAR),
        "recall, the study's relations": (least("recall_study"), ">=", ge, STUDY_BAR),
        "recall, other facts": (least("recall_others"), ">=", ge, OTHERS_BAR),
    }
    return {
        name: {"reached": value, "bar": f"{sign} {bar}", "met": operator(value, bar)}
        for name, (value, sign, operator, bar) in reached.items()
    }


def table(models: dict[str, dict[str, Any]], bars: dict[str, Any]) -> str:
    """Both as text."""
    lines = [f"{'':36s}" + "".join(f"{name:>12s}" for name in models)]
    for key, shape in (("parameters", ",d"), ("test_perplexity", ".2f"), ("test_tokens_scored", ",d")):
        numbers = "".join(f"{format(model[key], shape):>12s}" for model in models.values())
        lines.append(f"{key.replace('_', ' '):36s}{numbers}")
    for kind in ("study", "others", "held_out"):
        count = next(iter(models.values()))[f"sentences_{kind}"]
        label = f"recall {kind.replace('_', ' ')} ({count} sentences)"
        lines.append(f"{label:36s}" + "".join(f"{m[f'recall_{kind}']:12.1%}" for m in models.values()))
    lines += ["", f"{'bar':36s}{'reached':>12s}{'asked':>12s}"]
    for name, bar in bars.items():
        verdict = "met" if bar["met"] else "NOT MET"
        lines.append(f"{name:36s}{bar['reached']:12.4f}{bar['bar']:>12s}   {verdict}")
    return "\n".join(lines)


def main() -> None:
    """Measures both checkpoints and prints the table."""
    test_text = pair.read_wikitext(Path(WIKITEXT.value), "test")
    models = {
        name: measure(load(directory), test_text)
        for name, directory in {"mamba": MAMBA.value, "gpt2": GPT2.value}.items()
    }
    bars = compare(models["mamba"], models["gpt2"])
    print(table(models, bars))
    if OUT.value is not None:
        report = json.dumps({"models": models, "bars": bars}, indent=2)
        Path(OUT.value).write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    command.run(main)
