"""How well a relation's texts were predicted, before an edit and with it."""

from dataclasses import dataclass

from jaxprobe.array_typing import Float, Int, np
from jaxprobe.errors import ProbeError


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


def require_finite(title: str, texts: str, before: np.ndarray, *edited: np.ndarray) -> None:
    """Refuses scores that say nothing.

    Args:
      title: the model's. texts: what they are.
      before: their scores as the model is. edited: their scores with edits.

    Raises:
      ProbeError: one is not finite: the model's numbers overflow.
    """
    for scores, how, then in (((before,), "", ""), (edited, " with the edit", ", or a smaller edit")):
        if not all(np.isfinite(of).all() for of in scores):
            raise ProbeError(
                f"{title}{how} gives {texts} scores that are not finite, as numbers that overflow do: try "
                f"--dtype=float64{then}"
            )
