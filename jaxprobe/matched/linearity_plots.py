"""Pictures of how linear an edit is: what derivatives foretell beside what is measured."""

from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxprobe.array_typing import Float, np
from jaxprobe.figures import COLOURS, MARKERS, subplots
from jaxprobe.loading import TITLES
from jaxprobe.matched.foretold import first_order_fails, foretold
from jaxprobe.matched.results import Curves, MatchedResults, RelationEffects

_KEYS = {title: key for key, title in TITLES.items()}
_ORDERS = {"first": "first order", "second": "second order"}
_COLUMNS = 4  # of small pictures
_WIDE = 20.0  # from the typical to the largest size, beyond which an axis is logarithmic


CAPTIONS: Mapping[str, str] = {
    "predictions": (
        "What derivatives at the unedited model foretell of the whole edit, against what was measured: each "
        "unit alone (small) and each relation's chosen units together (large). On the black line the "
        "prediction is right. Above, first order (the slope alone); below, second order (slope and "
        "curvature): points that come to the line only below are edits whose cost is curvature."
    ),
    "strengths": (
        "The change as the edit grows from none (0) to whole (1): measured (solid), foretold by the slope "
        "(dashed) and by slope and curvature (dotted). The upright line marks where the slope alone is off "
        "by a tenth of what is measured; without one it never is, or there is nothing to foretell."
    ),
}


def predictions(results: MatchedResults) -> Figure:
    """Measured against foretold changes of the edit whole: each unit alone, and each relation's chosen set.

    Nats per token over a relation's facts. One column a model, one row an order of prediction, one pair of
    axes for all of them, so that what lies on the diagonal was foretold.

    Args:
      results: in which at least one relation has its linearity.
    """
    points = {title: _points(model.relations) for title, model in results.items()}
    everything = np.concatenate([
        np.ravel(part) for groups in points.values() for group in groups for part in group
    ])  # fmt: skip
    ends, linear = _range(everything[np.isfinite(everything)])
    beyond = "" if linear is None else f"; logarithmic beyond \N{PLUS-MINUS SIGN}{linear:.1g}"
    figure, grid = subplots(len(_ORDERS), len(results), (5.4 * len(results), 9.6))
    for row, (order, words) in zip(grid, _ORDERS.items(), strict=True):
        for axes, (title, (units, sets)) in zip(row, points.items(), strict=True):
            _scatter(axes, title, units, sets, order)
            axes.set(title=f"{title}, {words}", xlabel=f"foretold, {words}, nats per token")
            _shared_axes(axes, ends, linear)
        row[0].set_ylabel("measured, nats per token")
    figure.suptitle(
        f"Change of the negative log-likelihood by the edit whole: measured against foretold{beyond}"
    )
    return figure


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
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_xlim(0, 1.03)
        axes.axhline(0, color="black", lw=0.6)
        axes.locator_params(nbins=5)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("strength of the edit (0 none, 1 whole)", fontsize=10)
    figure.supylabel("change of the negative log-likelihood, nats per token", fontsize=10)
    figure.legend(handles=_handles(results, tolerance), loc="outside upper center", ncols=3, fontsize=9)
    return figure


class _Group(NamedTuple):
    # Of units or sets, at full strength, nats per token.
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
        whole = effects.facts.after.sum() - effects.facts.before.sum()
        sets.append(np.vstack([np.reshape(whole, 1), *_whole(linearity.chosen)]) / total)
        if linearity.units is not None and effects.units is not None:
            alone = (effects.units - effects.facts.before).sum(axis=-1)
            units.append(np.vstack([alone, *_whole(linearity.units)]) / total)
    return _group(units), _group(sets)


def _group(parts: list[Float[np.ndarray, "3 _"]]) -> _Group:
    return _Group(*(np.hstack(parts) if parts else np.empty((3, 0))))


def _whole(curves: Curves) -> list[Float[np.ndarray, " s"]]:
    return [np.atleast_1d(made[0].sum(axis=-1)) for made in foretold(curves, [1.0])]


def _scatter(axes: Axes, title: str, units: _Group, sets: _Group, order: str) -> None:
    key = _KEYS[title]
    colour = COLOURS[key]
    if units.measured.size:
        # Thousands of points: as pixels in a vector picture too.
        axes.plot(
            getattr(units, order), units.measured, marker=".", ls="none", color=colour, ms=4,
            mew=0, alpha=0.35, rasterized=True, label=f"a unit alone ({units.measured.size:,})",
        )  # fmt: skip
    axes.plot(
        getattr(sets, order), sets.measured, marker=MARKERS[key], ls="none", color=colour, ms=6,
        mec="black", mew=0.8, label=f"a relation's chosen units ({sets.measured.size})",
    )  # fmt: skip


def _range(values: Float[np.ndarray, " s"]) -> tuple[Float[np.ndarray, "2"], float | None]:
    """Ends of an axis that holds the values, and where it turns logarithmic if a few crowd the others."""
    ends = np.array([values.min(initial=0), values.max(initial=0)])
    sizes = np.abs(values[values != 0])
    if sizes.size and sizes.max() > _WIDE * (typical := float(np.median(sizes))):
        return 1.6 * ends + np.array([-typical, typical]) / 2, typical
    return ends + 0.06 * (np.ptp(ends) or 1.0) * np.array([-1, 1]), None


def _shared_axes(axes: Axes, ends: Float[np.ndarray, "2"], linear: float | None) -> None:
    if linear is not None:
        axes.set_xscale("symlog", linthresh=linear)
        axes.set_yscale("symlog", linthresh=linear)
    axes.plot(ends, ends, "k-", lw=0.9, zorder=1, label="measured = foretold")
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.legend(fontsize=8, loc="upper left", frameon=True)


def _curve(axes: Axes, title: str, effects: RelationEffects, tolerance: float) -> None:
    linearity = effects.linearity
    if linearity is None:
        return
    key, total = _KEYS[title], int(effects.facts.tokens.sum())
    measured = linearity.measured.sum(axis=1)
    grid = np.linspace(0, 1, 41)
    made = foretold(linearity.chosen, grid)
    colour = COLOURS[key]
    style = {"color": colour, "lw": 1.2}
    axes.plot(grid, made.first.sum(axis=1) / total, "--", **style)
    axes.plot(grid, made.second.sum(axis=1) / total, ":", **style)
    strengths = np.concatenate([[0.0], linearity.strengths])
    axes.plot(strengths, np.concatenate([[0.0], measured]) / total, MARKERS[key] + "-", ms=4, **style)
    first = foretold(linearity.chosen, linearity.strengths).first.sum(axis=1)
    fails = first_order_fails(linearity.strengths, measured, first, tolerance)
    if fails is not None and np.isfinite(fails):
        axes.axvline(fails, color=colour, lw=1, alpha=0.7)
        top = axes.get_xaxis_transform()
        axes.plot(fails, 0.95, MARKERS[key], ms=7, mfc="white", color=colour, transform=top, clip_on=False)


def _handles(results: MatchedResults, tolerance: float) -> list[Line2D]:
    models = [
        Line2D([], [], color=COLOURS[key], marker=MARKERS[key], ms=4, label=f"{TITLES[key]}, measured")
        for key in map(_KEYS.__getitem__, results)
    ]
    grey = {"color": "0.35", "lw": 1.4}
    return [
        *models,
        Line2D([], [], ls="--", label="foretold, first order", **grey),
        Line2D([], [], ls=":", label="foretold, second order", **grey),
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
