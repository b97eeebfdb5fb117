"""How well a relation's texts were predicted, before an edit and with it."""

from dataclasses import dataclass

from jaxprobe.array_typing import Float, Int, np


@dataclass(frozen=True)
class FactScores:
    """Negative log-likelihood of texts, in nats, each summed over its counted tokens."""

    before: Float[np.ndarray, " b"]
    after: Float[np.ndarray, " b"]  # with the edit
    tokens: Int[np.ndarray, " b"]  # counted: all but the first and padding

    @property
    def delta_nats(self) -> float:
        """Change of the negative log-likelihood per token, over all the texts together."""
        return float((self.after.sum() - self.before.sum()) / self.tokens.sum())
