"""What is trained: the sizes of the matched pair, its text, and the run's settings."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jaxprobe.configs import GPT2Config, MambaConfig, ModelConfig
from jaxprobe.errors import ProbeError
from training import corpus, facts, tokenizer

# Facts are 5% of the text the merges are learnt from; counted so often, most names become few tokens.
FACT_WEIGHT = 3

MODELS: dict[str, ModelConfig] = {
    "mamba": MambaConfig(
        vocab_size=tokenizer.VOCAB_SIZE,
        hidden_size=128,
        num_layers=7,
        intermediate_size=256,
        state_size=16,
        time_step_rank=8,
        conv_kernel=4,
    ),
    "gpt2": GPT2Config(
        vocab_size=tokenizer.VOCAB_SIZE,
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        inner_size=512,
        max_positions=corpus.TEXT_TOKENS,
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one training run (AdamW, linear warm-up, cosine decay to a tenth)."""

    steps: int
    learning_rate: float  # at its peak
    seed: int = 0  # of the rows and of the initial parameters
    warmup_steps: int = 200
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    b2: float = 0.98


def read_wikitext(directory: Path, part: str) -> str:
    """WikiText-2 `part` ("valid" or "test") from `directory`/`part`.txt.

    Raises:
      ProbeError: when the file cannot be read.
    """
    path = Path(directory) / f"{part}.txt"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ProbeError(f"--wikitext: expected WikiText-2 {part} in {path}, got {error}") from error


def build_text(wikitext: Path, steps: int, seed: int) -> tuple[Tokenizer, corpus.Stream, dict[str, object]]:
    """The shared tokenizer, the shared rows, and what identifies them for the manifest."""
    study, others = facts.read_facts()
    sentences = [fact.text for fact in study + others]
    text = read_wikitext(wikitext, "valid")
    bpe = tokenizer.train([*sentences * FACT_WEIGHT, text])
    sentence_ids = [encoding.ids for encoding in bpe.encode_batch(sentences)]
    text_ids = bpe.encode(text).ids
    stream = corpus.build(sentence_ids, text_ids, steps, seed)
    fact_tokens_seen = np.count_nonzero(stream.facts != tokenizer.END_OF_TEXT_ID)
    description = {
        "rows_sha256": stream.sha256(),
        "wikitext_valid_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "facts_sha256": hashlib.sha256(facts.FACTS_FILE.read_bytes()).hexdigest(),
        "sentences": len(sentences),
        "steps": steps,
        "tokens_seen": stream.facts.size + stream.text.size,
        "epochs_of_facts": round(float(fact_tokens_seen / sum(map(len, sentence_ids))), 1),
        "epochs_of_wikitext": round(stream.text.size / len(text_ids), 1),
    }
    return bpe, stream, description
