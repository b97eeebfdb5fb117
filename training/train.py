"""Trains the matched pair: both models, one after the other, on the same rows in the same order.

    python -m training.train --wikitext=DIR --out=DIR

`--wikitext` holds valid.txt and test.txt of WikiText-2 (word level, Merity et al. 2016, CC BY-SA; from the
`wikitext-2-v1` archive or the `Salesforce/wikitext` data set, configuration wikitext-2-v1, one article line
a line). Only valid.txt is read here; test.txt is for `training.evaluate`. Interrupt it whenever you like: the
same command goes on where the last saved state ends, and reaches the same parameters. Under `--out` it leaves
`mamba-facts/` and `gpt2-facts/` in HF format.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from jaxprobe.convert import export
from jaxprobe.errors import ProbeError
from jaxprobe.models import LanguageModel
from training import command, corpus, loop, pair, tokenizer

WIKITEXT = flags.DEFINE_string("wikitext", None, "folder of WikiText-2's valid.txt", required=True)
OUT = flags.DEFINE_string("out", None, "where states, logs and checkpoints go", required=True)
MODEL = flags.DEFINE_multi_enum("model", list(pair.MODELS), list(pair.MODELS), "which to train (repeatable)")
STEPS = flags.DEFINE_integer("steps", 1600, "training steps of 2,048 tokens", lower_bound=1)
MAMBA_RATE = flags.DEFINE_float("mamba_learning_rate", 3e-3, "peak learning rate of Mamba", lower_bound=0.0)
GPT2_RATE = flags.DEFINE_float("gpt2_learning_rate", 2e-3, "peak learning rate of GPT-2", lower_bound=0.0)
SEED = flags.DEFINE_integer("seed", 0, "of rows and initial parameters", lower_bound=0)
CHUNK = flags.DEFINE_integer("chunk", 20, "steps a dispatch", lower_bound=1)
SAVE_EVERY = flags.DEFINE_integer("save_every", 200, "steps between saved states", lower_bound=1)


def train_one(name: str, settings: pair.Settings, stream: corpus.Stream, identity: str, out: Path) -> dict:
    """Trains one model from its last saved state; returns its parameters as numpy arrays."""
    lm = LanguageModel(pair.MODELS[name])
    state = loop.initial_state(lm, settings)
    saved, log = out / f"{name}.state.npz", out / f"{name}.log.jsonl"
    if saved.exists():
        state = loop.restore_state(saved, state, identity)
    chunk = loop.make_chunk(lm, settings)
    done = int(state.step)
    with tqdm(total=settings.steps, initial=done, desc=name, unit="step", mininterval=5) as bar:
        while done < settings.steps:
            # Chunks end at multiples of --chunk, so a resumed run is compiled and summed as an unbroken one.
            end = min(done + CHUNK.value - done % CHUNK.value, settings.steps)
            state, losses = chunk(state, corpus.Stream(stream.facts[done:end], stream.text[done:end]))
            means = {kind: float(np.mean(value)) for kind, value in losses._asdict().items()}
            if not all(np.isfinite(value) for value in means.values()):
                raise ProbeError(f"{name}: the loss is not finite at step {end}: lower the learning rate")
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": end, **means}) + "\n")
            bar.set_postfix(means)
            bar.update(end - done)
            if end == settings.steps or end // SAVE_EVERY.value > done // SAVE_EVERY.value:
                loop.save_state(saved, state, identity)
            done = end
    return jax.tree.map(np.asarray, state.params)


def main() -> None:
    """Trains, exports and says where."""
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    bpe, stream, text = pair.build_text(Path(WIKITEXT.value), STEPS.value, SEED.value)
    tokenizer.save(bpe, out / "tokenizer")
    print(f"rows sha256 {text['rows_sha256']}: the same for every model")
    rates = {"mamba": MAMBA_RATE.value, "gpt2": GPT2_RATE.value}
    for name in MODEL.value:
        settings = pair.Settings(steps=STEPS.value, learning_rate=rates[name], seed=SEED.value)
        manifest = {"model": name, "settings": dataclasses.asdict(settings), "text": text}
        identity = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        params = train_one(name, settings, stream, identity, out)
        directory = out / f"{name}-facts"
        export(directory, pair.MODELS[name], params, tokenizer_files_from=out / "tokenizer", dtype="float16")
        (directory / "training.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: written to {directory}")


if __name__ == "__main__":
    command.run(main)
