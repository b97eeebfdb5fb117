"""The picture of exact versus finite difference, from the size of the step to a verdict."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprobe.array_typing import np
from jaxprobe.configs import TITLES
from jaxprobe.figures import COLOURS, say_nothing, subplots
from jaxprobe.jacobians.agreement import step_sizes
from jaxprobe.jacobians.epsilon_sweep import DTYPES, TOLERANCE, EpsilonStudy
from jaxprobe.jacobians.verdict import Verdict

_STEP = "step size ε"
_MOST_LAYERS = 24  # named on an axis; of deeper models every second, third, ... one
# float64 lies over float32 wherever rounding does not matter, so it is thin, dark and hollow.
_STYLES = {
    "float32": {"lw": 2.5, "marker": "o", "ms": 5},
    "float64": {"lw": 1, "marker": "s", "ms": 6, "color": "black", "mfc": "none"},
}


def epsilon_story(
    studies: Mapping[str, EpsilonStudy], verdicts: Mapping[str, Mapping[int, Verdict]], epsilon: float
) -> Figure:
    """One column a model: sampled mean by epsilon, its error, the draws at one epsilon, a verdict per layer.

    Args:
      studies: by model.
      verdicts: by model and layer, of draws with the step `epsilon`.
      epsilon: the step to mark, and whose draws are shown.
    """
    figure, grid = subplots(4, len(studies), (6.5 * len(studies), 15))
    for column, (key, study) in zip(grid.T, studies.items(), strict=True):
        colour, name = COLOURS[key], f"{TITLES[key]}, layer {study.layer}"
        if study.linear.mean() > 0:
            _sampled(column[0], study, colour, name, epsilon)
            _error(column[1], key, study, colour, epsilon)
        else:  # neither zero nor what is not finite has an error relative to it
            for axes in column[:2]:
                axes.set_title(name)
                say_nothing(axes)
        _draws(column[2], study, colour, epsilon)
        _verdicts(column[3], verdicts[key], colour, f"{TITLES[key]}, each layer", epsilon)
    title = "Exact versus finite difference: which steps can be trusted, and whether the draws then agree\n"
    figure.suptitle(title, fontsize=14)
    return figure


def _curve(axes: Axes, study: EpsilonStudy, dtype: str, values, colour: str) -> None:
    axes.plot(study.epsilons, values, **{"color": colour, "label": dtype, **_STYLES[dtype]})


def _sampled(axes: Axes, study: EpsilonStudy, colour: str, name: str, epsilon: float) -> None:
    half = 1.96 * study.stderr
    axes.axhspan(study.exact - half, study.exact + half, color="black", alpha=0.12, lw=0)
    axes.axhline(study.exact, color="black", lw=1, ls="--", label="exact mean, 95% of sampling error")
    for dtype in DTYPES:
        _curve(axes, study, dtype, study.sampled(dtype), colour)
    axes.axvline(epsilon, color="black", lw=1, ls=":", label=f"this run's ε = {epsilon:g}")
    draws, texts = study.linear.shape
    axes.set(
        xscale="log", xlabel=_STEP, ylabel="mean of ‖f(h + δ) − f(h)‖ / ‖δ‖", ylim=(0, None),
        title=f"{name}: sampled sensitivity, {draws} draws each of {texts} texts",
    )  # fmt: skip
    axes.legend(loc="lower left")


def _error(axes: Axes, key: str, study: EpsilonStudy, colour: str, epsilon: float) -> None:
    for dtype in DTYPES:
        _curve(axes, study, dtype, study.error(dtype), colour)
    least = min(study.error(dtype)[study.error(dtype) > 0].min(initial=1e-7) for dtype in DTYPES)
    axes.axhline(TOLERANCE, color="black", lw=1, ls="--")
    axes.axvline(epsilon, color="black", lw=1, ls=":")
    usable = list(step_sizes({key: study}))
    for each, height in zip(usable, (0.95, 0.89), strict=True):
        style = {"color": colour, **_STYLES[each.dtype], "marker": "|"}
        ends = each.ends or ()
        axes.plot(ends, [height] * len(ends), transform=axes.get_xaxis_transform(), **style)
    axes.text(0.02, 0.78, "rounding", transform=axes.transAxes, color=colour)
    axes.text(0.98, 0.03, "curvature", transform=axes.transAxes, ha="right")
    axes.text(0.98, 0.91, "usable", transform=axes.transAxes, ha="right", backgroundcolor="white")
    words = [f"{each.dtype} {each.words}" for each in usable]
    axes.set(
        xscale="log", yscale="log", xlabel=_STEP, ylabel="relative error of the mean", ylim=(least / 3, 30),
        title=f"Mean within {TOLERANCE:.0%} of the same draws' first order: " + ", ".join(words),
    )  # fmt: skip
    axes.title.set_fontsize(9)


def _draws(axes: Axes, study: EpsilonStudy, colour: str, epsilon: float) -> None:
    measurable = (study.variance > 0).all()  # else there is no deviation to measure by
    scores = study.scores("float32", epsilon).ravel() if measurable else np.empty(0)
    scores = scores[np.isfinite(scores)]
    if not scores.size:
        axes.set_title(f"float32 draws at ε = {epsilon:g}")
        return say_nothing(axes)
    root = scores.size**0.5
    mean = f"mean {scores.mean():+.2f} ± {1 / root:.2f} (exact 0)"
    variance = f"variance {scores.var():.2f} ± {np.square(scores).std() / root:.2f} (exact 1)"
    axes.hist(scores, bins=30, color=colour, alpha=0.6)
    axes.axvline(0, color="black", lw=1.5, label="exact mean")
    for side in (-1, 1):
        axes.axvline(
            side, color="black", lw=1, ls="--", label="exact standard deviation" if side > 0 else None
        )
    axes.set(
        xlabel="(draw - exact mean of its text) / exact standard deviation", ylabel="number of draws",
        title=f"float32 draws at ε = {epsilon:g}: {mean}, {variance}",
    )  # fmt: skip
    axes.title.set_fontsize(9)
    axes.legend(loc="upper right")


def _verdicts(axes: Axes, verdicts: Mapping[int, Verdict], colour: str, name: str, epsilon: float) -> None:
    layers, values = list(verdicts), verdicts.values()
    if not layers:
        axes.set_title(f"{name}: none compared")
        return say_nothing(axes)
    axes.axhspan(-1.96, 1.96, color="black", alpha=0.07, lw=0, label="95% of sampling error")
    axes.axhline(0, color="black", lw=1)
    axes.plot(layers, [verdict.total for verdict in values], "o", ms=8, color=colour, label="sampled mean")
    curvature = [verdict.curvature for verdict in values]
    axes.plot(layers, curvature, "x", ms=7, color="black", label="of which curvature")
    limit = max(verdict.limit for verdict in values)
    axes.axhline(limit, color="black", lw=1, ls=":", label="limit of what agrees")
    axes.axhline(-limit, color="black", lw=1, ls=":")
    parts = np.abs([part for verdict in values for part in (verdict.total, verdict.curvature)])
    most = max(limit, 1.0, *parts[np.isfinite(parts)])
    agree = sum(verdict.agrees for verdict in values)
    step = -(-len(layers) // _MOST_LAYERS)
    axes.set_xticks(layers[::step])
    axes.set(
        xlabel="layer", ylabel="standard errors from the exact mean", ylim=(-1.1 * most, 1.5 * most),
        title=f"{name}, at ε = {epsilon:g}: {agree} of {len(layers)} agree (limit {limit:.3g})",
    )  # fmt: skip
    axes.legend(loc="upper center", ncols=2, fontsize=9)
