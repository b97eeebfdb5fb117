"""The picture of `jaxprobe.delta_pct --protocol=seed`."""

from collections.abc import Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from jaxprobe.array_typing import Float, np
from jaxprobe.configs import TITLES
from jaxprobe.figures import COLOURS, MARKERS, subplots
from jaxprobe.original.intervals import MEASURES
from jaxprobe.original.summary import RelationSummary, Summary
from jaxprobe.statistics.correlation import trend

# Model title -> measure -> value, low and high of every relation; nan where there is none.
_Values = Mapping[str, Mapping[str, Float[np.ndarray, "3 b"]]]
_LINE = {"color": "black", "lw": 1.1, "zorder": 4}
_KEYS = {title: key for key, title in TITLES.items()}
_PERCENT = "change of perplexity, %"


def change_panels(summary: Summary) -> Figure:
    """Left, costs in nats, in percent and absolute; right, costs against baselines, and the baselines."""
    tall = 1.5 + 0.42 * len(summary.names)
    figure, grid = subplots(3, 2, (13, 3 * tall))
    values = {title: _values(found.values()) for title, found in summary.relations.items()}
    for axes, name, title, label in (
        (grid[0, 0], "delta_nats", "Cost in nats", "nats per token"),
        (grid[1, 0], "percentage", "Percentage changes", _PERCENT),
        (grid[2, 0], "absolute", "Absolute changes", "change of perplexity"),
    ):
        _bars(axes, values, summary.names, name, title, label)
    _trend(grid[0, 1], values, "delta_nats", "Baseline against cost", "nats per token")
    _trend(grid[1, 1], values, "percentage", "Baseline against percentage change", _PERCENT)
    _baselines(grid[2, 1], values)
    figure.suptitle("Factual sentences when their delta-sensitive units are perturbed")
    return figure


def _values(found: Iterable[RelationSummary]) -> dict[str, Float[np.ndarray, "3 b"]]:
    entries = list(found)
    estimates = {measure: [each.erased[measure] for each in entries] for measure in MEASURES}
    return {
        measure: np.array([[each.value, each.low, each.high] for each in column], np.float64).T
        for measure, column in estimates.items()
    }


def _colour(title: str) -> str:
    return COLOURS[_KEYS[title]]


def _is_wide(values: Float[np.ndarray, " b"], ratio: int) -> bool:
    """Whether some positive values would crowd the others on a linear axis."""
    values = values[np.isfinite(values) & (values > 0)]
    return values.size > 0 and bool(values.max() > ratio * np.median(values))


def _all(values: _Values, name: str) -> Float[np.ndarray, " _"]:
    return np.concatenate([found[name][0] for found in values.values()])


def _trend(axes: Axes, values: _Values, name: str, title: str, label: str) -> None:
    wide = _is_wide(_all(values, "baseline_ppl"), 5)
    scale = np.log if wide else np.asarray
    for model, found in values.items():
        (x, *x_ends), (y, *y_ends) = found["baseline_ppl"], found[name]
        axes.vlines(x, *y_ends, **_LINE)
        axes.hlines(y, *x_ends, **_LINE)
        line, legend = trend(x, y, scale=scale), model
        if line is not None:
            span = np.array([np.nanmin(x), np.nanmax(x)])
            axes.plot(span, line.start + line.slope * scale(span), "--", lw=1.5, color=_colour(model))
            legend += f": {line.words}"
        axes.plot(x, y, MARKERS[_KEYS[model]], ms=7, alpha=0.8, color=_colour(model), label=legend)
    if wide:
        _logarithmic(axes.set_xscale, axes.xaxis)
    axes.axhline(0, color="black", lw=0.8)
    axes.set(
        title=title + (" (trend in log baseline)" if wide else ", with trend"),
        xlabel="baseline perplexity", ylabel=label,
    )  # fmt: skip
    axes.legend()


def _bars(axes: Axes, values: _Values, relations: list[str], name: str, title: str, label: str) -> None:
    places, height = np.arange(len(relations)), 0.8 / len(values)
    for number, (model, found) in enumerate(values.items()):
        offset = (number - (len(values) - 1) / 2) * height
        middle, low, high = found[name]
        axes.barh(places + offset, middle, height, color=_colour(model), label=model)
        axes.hlines(places + offset, low, high, **_LINE)
    sizes = np.abs(_all(values, name))
    if _is_wide(sizes, 15):
        typical = float(np.median(sizes[np.isfinite(sizes)]))
        axes.set_xscale("symlog", linthresh=typical)
        label += f" (logarithmic beyond {typical:.2g})"
    axes.axvline(0, color="black", lw=0.8)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(places, relations, fontsize=9)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=label)
    axes.legend()


def _baselines(axes: Axes, values: _Values) -> None:
    sorted_values = []
    for found in values.values():
        middle = found["baseline_ppl"][0]
        sorted_values.append(found["baseline_ppl"][:, np.argsort(middle)[: np.isfinite(middle).sum()]])
    # Without whiskers, which would look like intervals.
    boxes = axes.boxplot(
        [middle for middle, _, _ in sorted_values], tick_labels=list(values), widths=0.6, showfliers=False,
        patch_artist=True, whis=0, showcaps=False,
    )  # fmt: skip
    for patch, title in zip(boxes["boxes"], values, strict=True):
        patch.set(facecolor=_colour(title), alpha=0.25)
    for line in boxes["medians"]:
        line.set_color("black")
    for place, (title, (middle, low, high)) in enumerate(zip(values, sorted_values, strict=True), 1):
        spread = np.linspace(-0.2, 0.2, len(middle)) if len(middle) > 1 else np.zeros(len(middle))
        axes.vlines(place + spread, low, high, **_LINE)
        axes.plot(place + spread, middle, MARKERS[_KEYS[title]], ms=6, alpha=0.8, color=_colour(title))
    if _is_wide(_all(values, "baseline_ppl"), 5):
        _logarithmic(axes.set_yscale, axes.yaxis)
    axes.grid(axis="x", visible=False)
    axes.set(title="Baselines: a point a relation, median and quartiles", ylabel="baseline perplexity")


def _logarithmic(set_scale, axis) -> None:
    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())
