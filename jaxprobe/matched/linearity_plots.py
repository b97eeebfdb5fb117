"""Pictures of how linear an edit is: what derivatives predict beside what is measured."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxprobe.array_typing import Float, np
from jaxprobe.configs import TITLES
from jaxprobe.figures import COLOURS, MARKERS, subplots
from jaxprobe.matched.common_plots import KEYS, NATS, Drawing, brief_name, fitted
from jaxprobe.matched.results import Curves, MatchedResults, RelationEffects
from jaxprobe.matched.taylor import curves_alone, edit_fails, predict

_ORDERS = {"first": "first order", "second": "second order"}
_COLUMNS = 4  # of small pictures
_WIDE = 20.0  # from the typical to the largest size, beyond which an axis is logarithmic


def predictions(results: MatchedResults) -> Figure:
    """Measured against predicted changes: each unit alone at strength 1, chosen ones and their set at all.

    Nats per token over a relation's facts. One column a model, one row an order of prediction, one pair of
    axes for all of them, so that what lies on the diagonal was predicted.

    Args:
      results: in which at least one relation has its linearity.
    """
    points = {title: _points(model.relations) for title, model in results.items()}
    everything = np.concatenate([
        np.ravel(part) for groups in points.values() for group in groups for part in group[1:]
    ])  # fmt: skip
    ends, linear = _range(everything[np.isfinite(everything)])
    beyond = "" if linear is None else f"; logarithmic beyond \N{PLUS-MINUS SIGN}{linear:.1g}"
    figure, grid = subplots(len(_ORDERS), len(results), (5.4 * len(results), 10.6))
    for row, (order, words) in zip(grid, _ORDERS.items(), strict=True):
        for axes, (title, (units, sets)) in zip(row, points.items(), strict=True):
            _scatter(axes, title, units, sets, order)
            axes.set(title=f"{title}, {words}", xlabel=f"predicted, {words}, nats per token")
            _shared_axes(axes, ends, linear)
        row[0].set_ylabel("measured, nats per token")
    for axes in grid[-1]:  # below, where no point can lie
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=True)
    title = f"Change of the negative log-likelihood by the edit: measured against predicted{beyond}"
    figure.suptitle(fitted(title, len(results)))
    return figure


PREDICTIONS = Drawing(
    name="predictions",
    title="How linear is the edit",
    alt="Measured change against what derivatives predict",
    caption=(
        "What derivatives at the unedited model predict of the edit, against what was measured: each unit "
        "alone at full strength, and ten chosen ones of each relation at every strength measured (dots), and "
        "each relation's chosen units together at every strength "
        "(the weaker, the smaller and paler; whole, with a black edge). On the black line the prediction is "
        "right. Above, first order (the slope alone); below, second order (slope and "
        "curvature): points that come to the line only below are edits whose cost is curvature."
    ),
    draw=lambda results, _: predictions(results),
)


def strength_curves(results: MatchedResults, tolerance: float = 0.1) -> Figure:
    """Effect of each relation's chosen units against the strength of their edit, with both predictions.

    A line with the model's marker on top marks the strength at which first order is off by `tolerance`.

    Args:
      results: in which at least one relation has its linearity.
      tolerance: share of the measured change.
    """
    names = list(dict.fromkeys(
        name for model in results.values()
        for name, effects in model.relations.items() if effects.linearity is not None
    ))  # fmt: skip
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure, grid = subplots(rows, columns, (max(3.0 * columns, 6.6), 2.3 * rows + 1.3), constrained=True)
    for axes, name in zip(grid.flat, names, strict=False):
        for title, model in results.items():
            if name in model.relations:
                _curve(axes, title, model.relations[name], tolerance)
        axes.set_title(brief_name(name), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_xlim(0, 1.03)
        axes.axhline(0, color="black", lw=0.6)
        axes.locator_params(nbins=5)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("strength of the edit (0 none, 1 whole)", fontsize=10)
    figure.supylabel(NATS, fontsize=10)
    figure.legend(handles=_handles(results, tolerance), loc="outside upper center", ncols=3, fontsize=9)
    return figure


STRENGTHS = Drawing(
    name="strengths",
    title="The edit by its strength",
    alt="Change against strength for each relation",
    caption=(
        "The change as the edit grows from none (0) to whole (1): measured (solid), predicted by the slope "
        "(dashed) and by slope and curvature (dotted). The upright line marks where the slope alone is off "
        "by a tenth of what is measured; without one it never is, or there is nothing to predict."
    ),
    draw=lambda results, _: strength_curves(results),
)


class _Group(NamedTuple):
    # Of units or sets, each at one strength, nats per token.
    strength: Float[np.ndarray, " s"]
    measured: Float[np.ndarray, " s"]
    first: Float[np.ndarray, " s"]
    second: Float[np.ndarray, " s"]


def _points(relations: Mapping[str, RelationEffects]) -> tuple[_Group, _Group]:
    units, sets = [], []
    for effects in relations.values():
        linearity = effects.linearity
        if linearity is None:
            continue
        total = int(effects.facts.tokens.sum())
        sets.append(_rows(linearity.strengths, linearity.measured, linearity.chosen, total))
        if linearity.units is not None and effects.units is not None:
            alone = effects.units - effects.facts.before
            units.append(_rows(np.ones(1), alone[None], linearity.units, total))
        each = curves_alone(linearity, effects.chosen.units)
        if each is not None and linearity.alone is not None:  # at strength 1 they are there already
            weaker = np.swapaxes(linearity.alone, 0, 1)[:-1]
            units.append(_rows(linearity.strengths[:-1], weaker, each, total))
    return _group(units), _group(sets)


def _rows(strengths, measured: Float[np.ndarray, "g *w b"], curves: Curves, tokens: int) -> np.ndarray:
    """Strength, and measured and predicted changes in nats per token [4 g*w]."""
    changes = [change.sum(axis=-1) / tokens for change in (measured, *predict(curves, strengths))]
    repeated = np.repeat(strengths, changes[0][0].size)
    return np.stack([repeated, *map(np.ravel, changes)])


def _group(parts: list[Float[np.ndarray, "4 _"]]) -> _Group:
    return _Group(*(np.hstack(parts) if parts else np.empty((4, 0))))


def _scatter(axes: Axes, title: str, units: _Group, sets: _Group, order: str) -> None:
    key = KEYS[title]
    if units.measured.size:
        # Thousands of points: as pixels in a vector picture too.
        axes.plot(
            getattr(units, order), units.measured, marker=".", ls="none", color=COLOURS[key], ms=4,
            mew=0, alpha=0.35, rasterized=True, label=f"a unit alone ({units.measured.size:,})",
        )  # fmt: skip
    strengths = np.unique(sets.strength)
    for strength in strengths:
        here = sets.strength == strength
        label = f"a relation's chosen units, strength {strength:.2g}"
        axes.plot(
            getattr(sets, order)[here], sets.measured[here], marker=MARKERS[key], ls="none",
            label=f"{label} ({here.sum()})" if strength in strengths[[0, -1]] else None,
            **_look(COLOURS[key], strength),
        )  # fmt: skip


def _look(colour: str, strength: float) -> dict[str, Any]:
    """Size and shade of a strength's marker: both grow with it, so that neither needs an eye for colours."""
    rgb = np.array(to_rgb(colour))
    whole = strength == 1
    return {
        "ms": 2.5 + 4.5 * strength**0.5,
        "mfc": tuple(1 - (0.35 + 0.65 * strength) * (1 - rgb)),
        "mec": "black" if whole else tuple(0.6 * rgb),
        "mew": 0.8 if whole else 0.4,
    }


def _range(values: Float[np.ndarray, " s"]) -> tuple[Float[np.ndarray, "2"], float | None]:
    """Ends of an axis that holds the values, and where it turns logarithmic if a few crowd the others."""
    ends = np.array([values.min(initial=0), values.max(initial=0)])
    sizes = np.abs(values[values != 0])
    if sizes.size and sizes.max() > _WIDE * (typical := float(np.median(sizes))):
        return 1.6 * ends + np.array([-typical, typical]) / 2, 10.0 ** round(np.log10(typical))
    return ends + 0.06 * (np.ptp(ends) or 1.0) * np.array([-1, 1]), None


def _shared_axes(axes: Axes, ends: Float[np.ndarray, "2"], linear: float | None) -> None:
    """Both axes alike, with few enough numbers that they do not run into each other."""
    axes.plot(ends, ends, "k-", lw=0.9, zorder=1, label="measured = predicted")
    if linear is None:
        axes.locator_params(nbins=5)
    else:
        below, above = (_decades(linear, end) for end in np.abs(ends))
        axes.set_xscale("symlog", linthresh=linear)
        axes.set_yscale("symlog", linthresh=linear)
        ticks = [*-below[::-1], 0, *above]
        axes.set(xticks=ticks, yticks=ticks)
    axes.set(xlim=ends, ylim=ends, aspect="equal")


def _decades(first: float, end: float) -> Float[np.ndarray, " _"]:
    """At most three powers of ten from one of them to a number."""
    exponents = np.arange(round(np.log10(first)), np.log10(max(end, first / 2)) + 1e-9)
    return 10.0 ** exponents[:: max(1, -(-len(exponents) // 3))]


def _curve(axes: Axes, title: str, effects: RelationEffects, tolerance: float) -> None:
    linearity = effects.linearity
    if linearity is None:
        return
    key, total = KEYS[title], int(effects.facts.tokens.sum())
    measured = linearity.measured.sum(axis=1)
    grid = np.linspace(0, 1, 41)
    made = predict(linearity.chosen, grid)
    colour = COLOURS[key]
    style = {"color": colour, "lw": 1.2}
    axes.plot(grid, made.first.sum(axis=1) / total, "--", **style)
    axes.plot(grid, made.second.sum(axis=1) / total, ":", **style)
    strengths = np.concatenate([[0.0], linearity.strengths])
    axes.plot(strengths, np.concatenate([[0.0], measured]) / total, MARKERS[key] + "-", ms=4, **style)
    fails = edit_fails(linearity, tolerance)
    if fails is not None and np.isfinite(fails):
        axes.axvline(fails, color=colour, lw=1, alpha=0.7)
        top = axes.get_xaxis_transform()
        axes.plot(fails, 0.95, MARKERS[key], ms=7, mfc="white", color=colour, transform=top, clip_on=False)


def _handles(results: MatchedResults, tolerance: float) -> list[Line2D]:
    models = [
        Line2D([], [], color=COLOURS[key], marker=MARKERS[key], ms=4, label=f"{TITLES[key]}, measured")
        for key in map(KEYS.__getitem__, results)
    ]
    grey = {"color": "0.35", "lw": 1.4}
    return [
        *models,
        Line2D([], [], ls="--", label="predicted, first order", **grey),
        Line2D([], [], ls=":", label="predicted, second order", **grey),
        Line2D(
            [],
            [],
            color="0.35",
            lw=1,
            marker="D",
            mfc="white",
            ms=6,
            label=f"first order off by {tolerance:.0%}",
        ),
    ]
