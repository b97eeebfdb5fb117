"""The pictures of `jaxprobe.jacobian`."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.image import AxesImage

from jaxprobe.array_typing import Bool, Float, np
from jaxprobe.configs import TITLES, Metric
from jaxprobe.figures import COLOURS, MARKERS, say_nothing, subplots
from jaxprobe.jacobians.measures import Measure, layers_of, measured_in
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.verdict import scores
from jaxprobe.sites import BLOCK_OUT

_DEPTH_LABEL = "relative depth (0 first layer, 1 last)"

Models = Mapping[str, ModelSensitivity]


def layer_profiles(
    models: Models, num_texts: int, metric: Metric = "logits", site: str = BLOCK_OUT
) -> Figure:
    """Each quantity against relative depth, both models on the same axes.

    Lines are means over texts, bands reach from the smallest to the largest text. What is exact is of the
    output metric.
    """
    shown = [measure for measure in measured_in(layers_of(models, {})) if measure.panel]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, grid = subplots(rows, columns, (3.7 * columns, 3.1 * rows + 0.7))
    for axes, measure in zip(grid.flat, shown, strict=False):
        _profile(axes, models, measure, num_texts)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    texts = f"mean, smallest and largest of {num_texts} texts"
    of = "logits" if metric == "logits" else f"logits (exact: metric {metric})"
    figure.suptitle(f"Sensitivity of the last token's {of} to {site}, by layer ({texts})\n")
    figure.supxlabel(_DEPTH_LABEL, fontsize=10)
    grid.flat[0].legend(frameon=True)
    return figure


def _profile(axes: Axes, models: Models, measure: Measure, num_texts: int) -> None:
    several, count = measure.each != "layer", 0
    for key, model in models.items():
        depth = _depths(model)
        values = [found for layer in model.layers if (found := measure.values((layer, {}))) is not None]
        count = len(values[0])
        mean, low, high = (finite(np.array([f(v) for v in values])) for f in (np.mean, np.min, np.max))
        style = {"color": COLOURS[key], "marker": MARKERS[key], "label": TITLES[key], "markersize": 4}
        if several and len(depth) == 1:
            axes.errorbar(depth, mean, bars(mean, low, high), capsize=4, linestyle="none", **style)
        else:
            axes.plot(depth, mean, **style)
            if several:
                axes.fill_between(depth, low, high, color=COLOURS[key], alpha=0.15, linewidth=0)
    fewer = f"\n({count} {measure.each}s)" if several and count != num_texts else ""
    axes.set(title=f"{measure.panel}{fewer}", xlim=(-0.05, 1.05), xticks=(0, 0.5, 1))
    axes.title.set_fontsize(10)
    scale_values(axes, measure.logarithmic)


def finite(values: Float[np.ndarray, " l"]) -> Float[np.ndarray, " l"]:
    """Those to draw: nan, which leaves a gap, for what is not finite."""
    return np.where(np.isfinite(values), values, np.nan)


def bars(
    mean: Float[np.ndarray, " l"], low: Float[np.ndarray, " l"], high: Float[np.ndarray, " l"]
) -> Float[np.ndarray, "2 l"]:
    """Lengths of error bars: none below 0, where a mean of equal values was rounded past them."""
    return np.maximum([mean - low, high - mean], 0)


def scale_values(axes: Axes, logarithmic: bool) -> None:
    """A logarithmic axis of values where they span decades, so that it has labels; else one from 0."""
    low, high = axes.dataLim.intervaly
    if not low <= high:  # matplotlib's limits of what has no finite value
        say_nothing(axes)
    elif logarithmic and low > 0 and high > 20 * low:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.08 * high or 1)
        axes.locator_params(axis="y", nbins=5)


def exact_versus_sampled(models: Models, num_samples: int, epsilon: float) -> Figure:
    """Sampled sensitivity against its exact expectation, one point per text and layer.

    Bars are 95% intervals from the exact variance. Needs the Jacobians of the whole sequence.
    """
    figure, ((left, right),) = subplots(1, 2, (11, 5))
    for key, model in models.items():
        sampled = np.stack([layer.sampled.mean for layer in model.layers if layer.sampled])
        expected, error = (
            np.stack([getattr(layer.expected, name) for layer in model.layers]) for name in ("mean", "stderr")
        )
        style = {"color": COLOURS[key], "marker": MARKERS[key], "alpha": 0.6, "markersize": 3}
        known = np.isfinite(sampled) & np.isfinite(error)
        if not known.any():
            continue
        sampled, expected, error = (array[known] for array in (sampled, expected, error))
        left.errorbar(expected, sampled, 1.96 * error, label=TITLES[key], ls="none", lw=0.8, **style)
        standardised = scores(sampled - expected, error)
        inside = f"{TITLES[key]}, {np.mean(np.abs(standardised) < 1.96):.0%} inside"
        # The texts of a layer stand side by side around its depth.
        depths = _depths(model)[:, None] + np.linspace(-0.015, 0.015, known.shape[1])
        right.plot(depths[known], standardised, ls="none", label=inside, **style)
    limits = (*left.get_xlim(), *left.get_ylim())
    ends = [max(min(limits), 0), max(limits)]
    left.plot(ends, ends, "k-", lw=1, label="sampled = exact")
    left.set(
        xlabel="exact expectation of the sensitivity", title="Each text and layer",
        ylabel=f"sampled sensitivity ({num_samples} draws, 95% interval)",
    )  # fmt: skip
    right.axhspan(-1.96, 1.96, color="black", alpha=0.07, label="95% of chance (±1.96)")
    right.set(
        xlabel=_DEPTH_LABEL, ylabel="(sampled - exact) / exact standard error", xlim=(-0.06, 1.06),
        title="What is left: Monte-Carlo error and curvature",
    )  # fmt: skip
    left.legend()
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=9)
    figure.suptitle(f"Exact versus finite difference, ε = {epsilon:g}")
    return figure


_MAP_RANGE = 1e4  # from the smallest to the largest norm that the colours tell apart
_TOKEN_FONT = "DejaVu Sans"  # matplotlib brings it
_ORDINALS = ("first", "second", "third")
_MOST_LABELS = 48  # tokens named on an axis; of longer texts every second, third, ... one


def token_layer_maps(
    models: Models, tokens: Mapping[str, Sequence[Sequence[str]]], site: str = BLOCK_OUT
) -> Figure:
    """How strongly each token's state at each layer acts on the last token's output: exact block norms.

    One row of maps a text, one column a model, one scale of colours for all of them. Needs the Jacobians of
    the whole sequence.

    Args:
      models: by architecture.
      tokens: of the first texts, in words; as many texts as are to be drawn, up to three.
    """
    count = len(next(iter(tokens.values())))
    maps = {key: [_map(model, text) for text in range(count)] for key, model in models.items()}
    values = np.concatenate([image.ravel() for images in maps.values() for image in images])
    drawn = values[_drawn(values)]
    top = drawn.max(initial=0) or 1.0
    least = drawn.min(initial=top)
    scale = LogNorm(max(least, top / _MAP_RANGE) if least < top else top / 10, top, clip=True)
    longest = max(len(row) for rows in tokens.values() for row in rows)
    deepest = max(len(image) for images in maps.values() for image in images)
    size = len(models) * min(24, 2.2 + 0.3 * longest) + 1.2, count * (1.9 + 0.22 * min(deepest, 24)) + 1
    figure, grid = subplots(count, len(models), size, grid=False, constrained=True)
    image: AxesImage | None = None
    for column, (key, model) in zip(grid.T, models.items(), strict=True):
        for text, axes in enumerate(column):
            image = _draw_map(axes, maps[key][text], scale, tokens[key][text])
            names = [str(layer.layer) for layer in model.layers]
            step = -(-len(names) // 12)
            axes.set_yticks(range(0, len(names), step), names[::step])
            axes.set(ylabel="layer", title=f"{TITLES[key]}, {_ORDINALS[text]} text")
    if image is not None:
        figure.colorbar(
            image, ax=grid, label="Frobenius norm of the token's block of J", aspect=40, format="%g"
        )
    unknown = "" if np.isfinite(values).all() else ", or not finite"
    figure.suptitle(
        "Which states the last token's output hangs on: each token (\N{OPEN BOX}: a space, <byte>: part of a "
        f"letter),\neach layer's {site}; white: none, as of all but the last token after the last layer"
        f"{unknown}"
    )
    return figure


def _map(model: ModelSensitivity, text: int) -> Float[np.ndarray, "l t"]:
    return np.stack([(layer.exact["sequence"].position_norms or ())[text] for layer in model.layers])


def _drawn(values: Float[np.ndarray, "*n"]) -> Bool[np.ndarray, "*n"]:
    # Zero is left white, and what is not finite has no place on the scale of colours.
    return np.isfinite(values) & (values > 0)


def _draw_map(
    axes: Axes, values: Float[np.ndarray, "l t"], scale: LogNorm, tokens: Sequence[str]
) -> AxesImage:
    drawn = _drawn(values)
    shown = np.ma.masked_where(~drawn, values)
    image = axes.imshow(shown, norm=scale, cmap="viridis", aspect="auto", origin="lower")
    if not drawn.any():
        say_nothing(axes)
    step = -(-len(tokens) // _MOST_LABELS)
    axes.set_xticks(
        range(0, len(tokens), step), [_readable(token) for token in tokens[::step]],
        rotation=60, ha="right", rotation_mode="anchor", fontsize=8, family=_TOKEN_FONT,
    )  # fmt: skip
    return image


def _readable(token: str) -> str:
    """A token as a label: spaces made visible, and as a code what the font has no letter for."""
    known = get_font(findfont(_TOKEN_FONT)).get_charmap()
    text = "".join(
        c if c.isprintable() and ord(c) in known else c.encode("unicode_escape").decode() for c in token
    )
    return text.replace(" ", "\N{OPEN BOX}").replace("\N{REPLACEMENT CHARACTER}", "<byte>")


def _depths(model: ModelSensitivity) -> Float[np.ndarray, " l"]:
    return np.array([layer.layer for layer in model.layers]) / max(model.config.num_layers - 1, 1)
