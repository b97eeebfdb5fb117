"""The picture of `jaxprobe.factual_recall`."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprobe.array_typing import Float, np
from jaxprobe.figures import COLOURS, subplots
from jaxprobe.recall.summary import RelationSummary, Summary
from jaxprobe.statistics.inference import Estimate

_BEFORE = "#56B4E9"  # of the palette of `jaxprobe.figures`, as are both below
_AFTER = COLOURS["mamba"]
_OTHER = "#999999"


def recall_panels(summary: Summary) -> Figure:
    """A row of panels a model: cost on the erased relation and on other texts; recall before and after."""
    relations = summary.names
    tall = 1.9 + 0.3 * len(relations)
    figure, grid = subplots(len(summary.relations), 2, (13, tall * len(summary.relations)))
    for row, (title, found) in zip(grid, summary.relations.items(), strict=True):
        entries = list(found.values())
        costs = [entry.cost.erased["delta_nats"] for entry in entries]
        erased = np.array([each.value for each in costs])
        other = np.array([entry.cost.control["delta_nats"].value for entry in entries])
        _pairs(row[0], relations, (other, "other texts", _OTHER), (erased, "the relation itself", _AFTER))
        row[0].axvline(0, color="black", lw=0.8)
        row[0].set(title=f"{title}: cost of the edit", xlabel="nats per token")
        before, after = _greedy(entries)
        _pairs(row[1], relations, (before, "before", _BEFORE), (after, "after", _AFTER))
        row[1].set(title=f"{title}: objects written out", xlabel="% of facts", xlim=(-4, 104))
        _intervals(row[0], costs, 1.0)
        _intervals(row[1], [entry.after.greedy for entry in entries], 100.0)
        for axes in row:
            axes.set_ylim(len(relations) + 0.7, -0.7)  # downwards, and room for the legend below
            axes.legend(loc="lower left", ncol=2, borderpad=0.2)
    figure.suptitle("Factual recall when each relation's delta-sensitive units are perturbed")
    return figure


def _intervals(axes: Axes, estimates: Sequence[Estimate | None], scale: float) -> None:
    for place, each in enumerate(estimates):
        if each is not None and each.low is not None and each.high is not None:
            axes.hlines(place, scale * each.low, scale * each.high, color="black", lw=1, zorder=3)


def _greedy(entries: Sequence[RelationSummary]) -> Float[np.ndarray, "2 b"]:
    shares = [
        [each.greedy and each.greedy.value for each in (entry.before, entry.after)] for entry in entries
    ]
    return 100 * np.array(shares, float).T  # None, where no fact can be scored, becomes NaN


def _pairs(axes: Axes, relations: Sequence[str], *sides: tuple[Float[np.ndarray, " b"], str, str]) -> None:
    # The first as a ring, so that both are seen where they are equal.
    (first, first_label, first_colour), (second, second_label, second_colour) = sides
    places = np.arange(len(relations))
    axes.hlines(places, first, second, color="#cccccc", lw=2, zorder=1)
    axes.plot(first, places, "o", ms=10, mfc="none", mew=2, color=first_colour, label=first_label)
    axes.plot(second, places, "o", ms=5, color=second_colour, label=second_label)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(places, relations, fontsize=9)
