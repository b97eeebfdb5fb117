"""The pictures of the matched protocol, but for its maps and its linearity; and how to read each."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprobe.array_typing import Float, np
from jaxprobe.figures import COLOURS, MARKERS, subplots
from jaxprobe.matched.common_plots import (
    KEYS,
    NATS,
    Drawing,
    brief_name,
    limit,
    over_relations,
    per_token,
    sorted_names,
)
from jaxprobe.matched.results import MatchedResults, RelationEffects
from jaxprobe.matched.rows import MatchedSummary
from jaxprobe.statistics import inference
from jaxprobe.statistics.inference import Estimate

_KIND_MARKS = {
    "high_norm": ("^", "largest mean square"),
    "high_variance": ("D", "largest variance over tokens"),
    "low_variance": ("v", "smallest variance over texts"),
    "norm_matched": ("P", "nearest mean square (mean of sets)"),
}
_NAMED_UNITS = 6
_DEVIATIONS = 6  # robust standard deviations from the median at which a unit is named


def effects(summary: MatchedSummary) -> Figure:
    """Each relation's change in nats per token with its interval, both models, sorted by the first."""
    first = next(iter(summary.relations.values()))
    names = sorted(first, key=lambda name: first[name].delta["token"].value)
    figure, ((axes,),) = subplots(1, 1, (9, 2.1 + 0.3 * len(names)), constrained=True)
    places = np.arange(len(names)) + 1.5
    for title, offset in _offsets(summary.relations, 0.32).items():
        values = [summary.relations[title][name].delta["token"] for name in names]
        _points(axes, values, places - offset, title, label=title)
        _points(axes, [summary.means["token"][title]], np.array([-offset]), title)
    axes.axvline(0, color="black", lw=0.8)
    axes.axhline(0.75, color="0.5", lw=0.8)
    axes.set_yticks([0, *places], ["mean over relations", *map(brief_name, names)], fontsize=9)
    axes.set_ylim(-0.7, places[-1] + 0.7)
    axes.set(xlabel=f"{NATS}, with {100 * summary.level:g}% interval", title="What the edit costs")
    axes.set_title(axes.get_title(), loc="left")
    axes.set_title("")
    axes.grid(axis="y", visible=False)
    every = [row.delta["token"].value for rows in summary.relations.values() for row in rows.values()]
    ends = [end for line in axes.lines for end in line.get_xdata() if line.get_linewidth() > 1]
    limit(np.array([*every, *ends]), axes, "x")
    if any(row.too_few for row in first.values()) or len(first) < inference.FEWEST:
        few = "too few facts or relations for an interval"
        axes.plot([], [], "o", mfc="white", mec="black", label=few)
    # Below, where it is over nothing: beside the title there is no room when names are long.
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=True)
    return figure


EFFECTS = Drawing(
    name="effects",
    title="What the edit costs",
    alt="Change in nats per token by relation",
    caption=(
        "What the edit costs each relation, in nats per token of facts that the units were not chosen on. A "
        "point is a relation, its bar the interval over facts; hollow points have too few facts for one, "
        "or, in the mean, too few relations. Relations are sorted by the first model's cost. Bars that lie "
        "apart suggest a difference between the models, but over many relations some do by chance; the "
        "verdict, of paired differences and corrected for their number, is in the table. The mean is over "
        "relations, its bar over relations too."
    ),
    draw=lambda _, summary: effects(summary),
)


def random_sets(results: MatchedResults, summary: MatchedSummary) -> Figure:
    """The chosen set of each relation among random sets, and where the other control sets lie."""
    names = sorted_names(results)
    figure, grid = subplots(
        1, len(results), (2 + 4.6 * len(results), 2.6 + 0.3 * len(names)), constrained=True
    )
    rng = np.random.default_rng(0)  # only spreads the dots
    for place, (axes, (title, model)) in enumerate(zip(grid[0], results.items(), strict=True)):
        for row, name in enumerate(names):
            chosen = summary.relations[title][name].delta["token"]
            _among_random(axes, model.relations[name], chosen, row, KEYS[title], rng)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks(range(len(names)), map(brief_name, names) if place == 0 else [], fontsize=9)
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.grid(axis="y", visible=False)
        axes.set(title=title, xlabel=NATS)
    every = np.array([value for axes in grid[0] for line in axes.lines for value in line.get_xdata()])
    for axes in grid[0]:
        limit(every, axes, "x")
    _set_legend(figure, grid[0])
    return figure


def _among_random(
    axes: Axes, effects: RelationEffects, chosen: Estimate, row: int, key: str, rng: np.random.Generator
) -> None:
    changes = {kind: per_token(effects, after) for kind, after in effects.controls.items()}
    if "random" in changes:
        random = changes["random"]
        heights = row + rng.uniform(-0.28, 0.28, len(random))
        axes.plot(random, heights, ".", ms=3, color="0.6", alpha=0.7, zorder=1, rasterized=True)
        axes.plot(np.quantile(random, [0.25, 0.75]), [row, row], color="0.25", lw=2, zorder=2)
    for kind, (mark, _) in _KIND_MARKS.items():
        if kind in changes:
            axes.plot(changes[kind].mean(), row, mark, ms=5, mfc="white", mec="black", mew=0.9, zorder=3)
    if chosen.low is not None and chosen.high is not None:
        axes.plot([chosen.low, chosen.high], [row, row], color=COLOURS[key], lw=1.4, zorder=4)
    axes.plot(chosen.value, row, MARKERS[key], ms=8, color=COLOURS[key], mec="white", zorder=5)


def _set_legend(figure: Figure, row: np.ndarray) -> None:
    last = row[-1]
    for axes in row:
        key = KEYS[axes.get_title()]
        axes.plot([], [], f"{MARKERS[key]}-", ms=8, color=COLOURS[key], label=f"chosen, {axes.get_title()}")
    last.plot([], [], ".", color="0.6", label="random sets")
    last.plot([], [], color="0.25", lw=2, label="their middle half")
    for mark, words in _KIND_MARKS.values():
        last.plot([], [], mark, ms=5, mfc="white", mec="black", mew=0.9, label=words)
    entries = [pair for axes in row for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    figure.suptitle("The chosen units among other sets of as many units")
    figure.legend(
        *zip(*entries, strict=True), loc="outside lower center", ncols=2 * len(row), fontsize=9, frameon=True
    )


RANDOM_SETS = Drawing(
    name="random_sets",
    title="Against other sets of units",
    alt="Cost of the chosen and of other sets",
    caption=(
        "Whether it matters which units are edited. The grey dots are random sets of as many units, the bar "
        "their middle half; the large symbol is the chosen set, its line the interval over facts. A chosen "
        "set within the cloud is not told from random sets. The small symbols are other sets of that "
        "size: the largest by mean square, the largest and the smallest by variance, and sets of other units "
        "with the nearest sum of mean squares that was found."
    ),
    draw=random_sets,
)


def single_units(results: MatchedResults, *, seed: int = 0) -> Figure:
    """Every unit edited alone, by index, mean over relations; outlying units named, chosen ones ringed.

    Args:
      results: of the models. seed: of the resamples.
    """
    shown = {title: model.relations for title, model in results.items()}
    figure, grid = subplots(len(shown), 1, (11, 1 + 3.1 * len(shown)))
    for axes, (title, relations) in zip(grid[:, 0], shown.items(), strict=True):
        alone = [per_token(each, each.units) for each in relations.values() if each.units is not None]
        _units(axes, np.array(alone), relations.values(), KEYS[title], seed)
        axes.set_title(title)
    grid[-1, 0].set_xlabel("unit of the site")
    figure.suptitle("Each unit edited alone, mean over relations")
    return figure


def _units(axes: Axes, alone: Float[np.ndarray, "r w"], relations, key: str, seed: int) -> None:
    change = np.mean(alone, axis=0)
    axes.vlines(np.arange(len(change)), 0, change, color=COLOURS[key], lw=1, alpha=0.8)
    axes.plot(change, MARKERS[key], ms=2.5, color=COLOURS[key])
    chosen = np.zeros(len(change), int)
    for each in relations:
        chosen[list(each.chosen.units)] += 1
    picked = np.flatnonzero(chosen)
    sizes = 25 + 130 * chosen[picked] / chosen.max()
    axes.scatter(picked, change[picked], sizes, facecolors="none", edgecolors="black", linewidths=0.9)
    middle = np.median(change)
    # 1.4826: the median absolute deviation of a normal distribution is its standard deviation / 1.4826.
    spread = 1.4826 * np.median(np.abs(change - middle))
    far = np.argsort(-np.abs(change - middle), kind="stable")[:_NAMED_UNITS]
    named = far[np.abs(change[far] - middle) > _DEVIATIONS * spread]
    if len(alone) >= inference.FEWEST:
        shown = np.union1d(picked, named)
        axes.vlines(shown, *over_relations(alone[:, shown], seed).interval(), color="0.3", lw=0.8, zorder=1)
    for unit in named:
        up = change[unit] >= middle
        axes.annotate(
            str(unit), (unit, change[unit]), (6, 5 if up else -5), textcoords="offset points",
            ha="left", va="bottom" if up else "top", fontsize=9,
        )  # fmt: skip
    axes.axhline(0, color="black", lw=0.8)
    axes.set_ylabel(NATS)
    axes.set_xlim(-0.02 * len(change), 1.03 * len(change))
    limit(change, axes, "y")  # of a few relations intervals can be so long that no unit would be seen
    axes.grid(axis="x", visible=False)


SINGLE_UNITS = Drawing(
    name="single_units",
    title="Every unit alone",
    alt="Cost of each unit edited alone, by number",
    caption=(
        "Every unit of the site edited alone, mean over relations. Units far from the rest are named. Rings "
        "are units that a relation chose, the larger the more relations did: rings at zero are units that "
        "vary much and matter little. Grey lines are the intervals, over relations, of units ringed or "
        "named, and may reach beyond the picture; with fewer than five relations there are none. Each model "
        "has a scale of its own."
    ),
    draw=lambda results, summary: single_units(results, seed=summary.seed),
)


def factor_sweep(results: MatchedResults, *, seed: int = 0) -> Figure:
    """Change against the factor of the chosen units: relations thin, their means thick with intervals.

    Args:
      results: of the models. seed: of the resamples.
    """
    figure, grid = subplots(1, len(results), (1 + 5 * len(results), 4.4))
    for axes, (title, model) in zip(grid[0], results.items(), strict=True):
        swept = [each for each in model.relations.values() if each.scales is not None]
        lines = np.stack([per_token(each, each.after_scales) for each in swept])
        scales, lines = _through_one(np.asarray(swept[0].scales), lines)
        colour = COLOURS[KEYS[title]]
        axes.plot(scales, lines.T, color=colour, lw=0.7, alpha=0.35)
        spread = over_relations(lines, seed)
        axes.plot(scales, spread.value, MARKERS[KEYS[title]], ls="-", color=colour, lw=2.2, ms=6)
        if len(lines) >= inference.FEWEST:
            axes.vlines(scales, *spread.interval(), color="black", lw=1.2, zorder=4)
        axes.axhline(0, color="black", lw=0.8)
        axes.axvline(1, color="black", lw=0.8, ls=":")
        axes.set(title=title, xlabel="factor of the chosen units (1: unedited)", ylabel=NATS)
    ends = [axes.get_ylim() for axes in grid[0]]
    for axes in grid[0]:
        axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    figure.suptitle("How the cost grows with the strength of the edit")
    return figure


def _through_one(
    scales: Float[np.ndarray, " g"], lines: Float[np.ndarray, "r g"]
) -> tuple[Float[np.ndarray, " _"], Float[np.ndarray, "r _"]]:
    """By rising factor, with the factor 1, which changes nothing, where they pass it."""
    order = np.argsort(scales)
    scales, lines = scales[order], lines[:, order]
    if scales[0] < 1 < scales[-1] and not (scales == 1).any():
        place = int((scales < 1).sum())
        scales, lines = np.insert(scales, place, 1.0), np.insert(lines, place, 0.0, axis=1)
    return scales, lines


FACTORS = Drawing(
    name="scales",
    title="Units multiplied by a factor",
    alt="Cost against the factor",
    caption=(
        "The chosen units multiplied by each factor: 1 leaves them, 0 removes them. Thin lines are "
        "relations, thick lines their means, black bars the 95% intervals of these over relations. A "
        "parabola around 1 is an edit whose cost comes of its curvature; a straight line through 1 one that "
        "moves along a slope."
    ),
    draw=lambda results, summary: factor_sweep(results, seed=summary.seed),
)


def _offsets(titles: Mapping, height: float) -> dict[str, float]:
    return {title: height * (place - (len(titles) - 1) / 2) for place, title in enumerate(titles)}


def _points(
    axes: Axes,
    estimates: Sequence[Estimate],
    places: Float[np.ndarray, " _"],
    title: str,
    label: str | None = None,
) -> None:
    key = KEYS[title]
    for estimate, place in zip(estimates, places, strict=True):
        known = estimate.low is not None
        if known:
            ends = np.array([estimate.low, estimate.high], np.float64)
            axes.plot(ends, [place, place], color=COLOURS[key], lw=1.6, zorder=2)
        axes.plot(
            estimate.value, place, MARKERS[key], ms=6, color=COLOURS[key],
            mfc=COLOURS[key] if known else "white", zorder=3,
        )  # fmt: skip
    # An entry in the legend of its own: the first point may be a hollow one, and every point may.
    if label:
        axes.plot([], [], MARKERS[key], ms=6, color=COLOURS[key], label=label)
