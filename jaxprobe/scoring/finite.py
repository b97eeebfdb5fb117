"""Scores that say something: finite ones."""

from jaxprobe.array_typing import np
from jaxprobe.errors import ProbeError


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
