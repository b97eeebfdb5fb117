"""The picture of `jaxprobe.delta_pct --protocol=seed`."""

from collections.abc import Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from jaxprobe.array_typing import Float, np
from jaxprobe.figures import COLOURS, MARKERS, subplots
from jaxprobe.loading import TITLES
from jaxprobe.original.intervals import MEASURES
from jaxprobe.original.records import Results
from jaxprobe.statistics.inference import Estimate

_Ends = Mapping[str, Float[np.ndarray, "2 b"]]  # measure -> low and high of every relation
_LINE = {"color": "black", "lw": 1.1, "zorder": 4}
_KEYS = {title: key for key, title in TITLES.items()}


def percentage_panels(results: Results, found: Mapping[str, Mapping[str, Mapping[str, Estimate]]]) -> Figure:
    """The seed's four panels: baseline against percentage, absolute and percentage changes, baselines.

    Args:
      results: of each model. found: of each model and relation, each measure with its interval.
    """
    tall = 1.5 + 0.42 * len(next(iter(results.values())))
    figure, grid = subplots(2, 2, (13, 2 * tall))
    ends = {title: _ends(relations.values()) for title, relations in found.items()}
    _trend(grid[0, 0], results, ends)
    _bars(grid[0, 1], results, ends, "absolute", "Absolute changes", "change of perplexity")
    _bars(grid[1, 1], results, ends, "percentage", "Percentage changes", "change of perplexity, %")
    _baselines(grid[1, 0], results, ends)
    figure.suptitle("Perplexity of factual sentences when their delta-sensitive units are perturbed")
    return figure


def _ends(estimates: Iterable[Mapping[str, Estimate]]) -> _Ends:
    """Both ends of each measure's interval, relation by relation; nan where there is none."""
    rows = list(estimates)
    return {
        measure: np.array([[each[measure].low, each[measure].high] for each in rows], np.float64).T
        for measure in MEASURES
    }


def _values(results: Results, title: str, name: str) -> Float[np.ndarray, " b"]:
    return np.array([getattr(scores.erased, name) for scores in results[title].values()])


def _colour(title: str) -> str:
    return COLOURS[_KEYS[title]]


def _is_wide(values: Float[np.ndarray, " b"], ratio: int) -> bool:
    """Whether some positive values would crowd the others on a linear axis."""
    values = values[np.isfinite(values) & (values > 0)]
    return values.size > 0 and bool(values.max() > ratio * np.median(values))


def _all(results: Results, name: str) -> Float[np.ndarray, " b"]:
    return np.concatenate([_values(results, title, name) for title in results])


def _trend(axes: Axes, results: Results, ends: Mapping[str, _Ends]) -> None:
    wide = _is_wide(_all(results, "baseline_ppl"), 5)
    scale = np.log if wide else np.asarray
    for title in results:
        x, y = _values(results, title, "baseline_ppl"), _values(results, title, "percentage")
        axes.vlines(x, *ends[title]["percentage"], **_LINE)
        axes.hlines(y, *ends[title]["baseline_ppl"], **_LINE)
        finite = np.isfinite(x) & np.isfinite(y)
        x, y, label = x[finite], y[finite], title
        if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
            slope, start = np.polyfit(scale(x), y, 1)
            span = np.array([x.min(), x.max()])
            axes.plot(span, start + slope * scale(span), "--", lw=1.5, color=_colour(title))
            label += f": r = {np.corrcoef(scale(x), y)[0, 1]:+.2f}"
        axes.plot(x, y, MARKERS[_KEYS[title]], ms=7, alpha=0.8, color=_colour(title), label=label)
    if wide:
        _logarithmic(axes.set_xscale, axes.xaxis)
    axes.axhline(0, color="black", lw=0.8)
    axes.set(
        title="Baseline against percentage change" + (" (trend in log baseline)" if wide else ", with trend"),
        xlabel="baseline perplexity", ylabel="change of perplexity, %",
    )  # fmt: skip
    axes.legend()


def _bars(axes: Axes, results: Results, ends: Mapping[str, _Ends], name: str, title: str, label: str) -> None:
    relations = list(next(iter(results.values())))
    places, height = np.arange(len(relations)), 0.8 / len(results)
    for number, model in enumerate(results):
        offset = (number - (len(results) - 1) / 2) * height
        values = _values(results, model, name)
        axes.barh(places + offset, values, height, color=_colour(model), label=model)
        axes.hlines(places + offset, *ends[model][name], **_LINE)
    sizes = np.abs(_all(results, name))
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


def _baselines(axes: Axes, results: Results, ends: Mapping[str, _Ends]) -> None:
    values, bars = [], []
    for title in results:
        entry = _values(results, title, "baseline_ppl")
        order = np.argsort(entry)[: np.isfinite(entry).sum()]
        values.append(entry[order])
        bars.append(ends[title]["baseline_ppl"][:, order])
    # Without whiskers, which would look like intervals.
    boxes = axes.boxplot(
        values, tick_labels=list(results), widths=0.6, showfliers=False, patch_artist=True, whis=0,
        showcaps=False,
    )  # fmt: skip
    for patch, title in zip(boxes["boxes"], results, strict=True):
        patch.set(facecolor=_colour(title), alpha=0.25)
    for line in boxes["medians"]:
        line.set_color("black")
    for place, (title, entry, bar) in enumerate(zip(results, values, bars, strict=True), 1):
        spread = np.linspace(-0.2, 0.2, len(entry)) if len(entry) > 1 else np.zeros(len(entry))
        axes.vlines(place + spread, *bar, **_LINE)
        axes.plot(place + spread, entry, MARKERS[_KEYS[title]], ms=6, alpha=0.8, color=_colour(title))
    if _is_wide(np.concatenate(values), 5):
        _logarithmic(axes.set_yscale, axes.yaxis)
    axes.grid(axis="x", visible=False)
    axes.set(title="Baselines: a point a relation, median and quartiles", ylabel="baseline perplexity")


def _logarithmic(set_scale, axis) -> None:
    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())
