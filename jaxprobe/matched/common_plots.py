"""What the pictures of the matched protocol share: how one is described, names, units and axes."""

import math
import textwrap
from collections.abc import Callable
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from jaxprobe.array_typing import Float, np
from jaxprobe.configs import TITLES
from jaxprobe.matched.results import MatchedResults, RelationEffects
from jaxprobe.matched.rows import MatchedSummary, short_name
from jaxprobe.statistics import inference

KEYS = {title: key for key, title in TITLES.items()}  # model title -> architecture
NATS = "change of nats per token"
_LETTERS = 30  # of a relation's name in a picture; the built-in ones are no longer
_CROWDED = 40  # times the median size at which an axis turns logarithmic


class Drawing(NamedTuple):
    """A picture of the report and how to read it."""

    name: str  # of its files, after `matched_`
    title: str
    alt: str  # what a reader who cannot see it needs to know, before the models' names
    caption: str
    draw: Callable[[MatchedResults, MatchedSummary], Figure]


def brief_name(relation: str) -> str:
    """A relation's name in a picture: without its middle where it is long, as tables have the whole of it."""
    name = " ".join(short_name(relation).split())
    if len(name) <= _LETTERS:
        return name
    end = (_LETTERS - 1) // 2
    return f"{name[: _LETTERS - 1 - end].rstrip()}\N{HORIZONTAL ELLIPSIS}{name[-end:].lstrip()}"


def fitted(title: str, models: int) -> str:
    """A figure's title in as many lines as fit above the pictures of so many models, side by side."""
    return textwrap.fill(title, 55 * models)


def per_token(effects: RelationEffects, after: Float[np.ndarray, "... b"] | None) -> np.ndarray:
    """Change of nats per token of the relation's facts together."""
    facts = effects.facts
    if after is None:
        raise ValueError("these results were not asked for")
    return (after.sum(axis=-1) - facts.before.sum()) / facts.tokens.sum()


def over_relations(values: Float[np.ndarray, "r n"], seed: int) -> inference.Bootstrap:
    """The means of columns over relations."""
    draws = inference.resample(len(values), (seed,))
    columns = values.T[..., None]
    return inference.bootstrap(inference.ratio, columns, np.ones_like(columns), draws)


def sorted_names(results: MatchedResults) -> list[str]:
    """Relations by their mean change over the models, smallest first."""
    models = [model.relations for model in results.values()]
    return sorted(models[0], key=lambda name: sum(model[name].facts.delta_nats for model in models))


def limit(values: np.ndarray, axes: Axes, which: Literal["x", "y"]) -> None:
    """An axis of all the values and 0, logarithmic beyond their typical size where some crowd the others."""
    values = values[np.isfinite(values)]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    typical = float(np.median(np.abs(values[values != 0]))) if values.any() else 1.0
    axis = axes.xaxis if which == "x" else axes.yaxis
    set_scale, set_limits = (getattr(axes, f"set_{which}{name}") for name in ("scale", "lim"))
    if max(high, -low) > _CROWDED * typical:
        threshold = 10.0 ** round(math.log10(2 * typical))
        set_scale("symlog", linthresh=threshold)
        set_limits(3 * low - 0.3 * threshold, 3 * high + 0.3 * threshold)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        separator = " " if which == "x" else "\n"
        axis.set_label_text(f"{axis.get_label_text()}{separator}(logarithmic beyond {threshold:g})")
    else:
        margin = 0.06 * (high - low or 1.0)
        set_limits(low - margin, high + margin)
