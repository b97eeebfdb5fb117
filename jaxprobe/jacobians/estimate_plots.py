"""The picture of `--method=matrix_free`."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from jaxprobe.array_typing import np
from jaxprobe.configs import TITLES, Metric
from jaxprobe.figures import COLOURS, MARKERS, subplots
from jaxprobe.jacobians.estimates import ModelEstimates
from jaxprobe.jacobians.plots import bars, finite, scale_values

_SHORT = {"last": "last token", "sequence": "sequence"}


def estimate_profiles(models: Mapping[str, ModelEstimates], num_texts: int, metric: Metric) -> Figure:
    """Estimates of ||J||_F and sigma_1 against relative depth, both models on the same axes.

    Points are means over texts. Bars of ||J||_F reach from the lowest to the highest end of any text's 95%
    interval; those of sigma_1 from the smallest to the largest text, residuals included.
    """
    inputs = list(next(iter(models.values())).estimates[0])
    figure, grid = subplots(len(inputs), 2, (9, 3.3 * len(inputs) + 0.7))
    for (left, right), wrt in zip(grid, inputs, strict=True):
        for key, model in models.items():
            found = [estimates[wrt] for estimates in model.estimates]
            sigma, residual = (
                np.stack([values[:, 0] for values in rows])
                for rows in ([n.singular_values for n in found], [n.residuals for n in found])
            )
            frobenius, low, high = (
                np.stack([getattr(norms, name) for norms in found])
                for name in ("frobenius", "frobenius_low", "frobenius_high")
            )
            _profile(left, key, model, frobenius, low, high)
            _profile(right, key, model, sigma, sigma - residual, sigma + residual)
        for axes in (left, right):
            scale_values(axes, logarithmic=True)
        left.set_title(f"Estimated ‖J‖ (Frobenius), {_SHORT[wrt]}")
        right.set_title(f"Estimated σ₁, {_SHORT[wrt]}")
    grid[0, 0].legend(frameon=True)
    figure.suptitle(
        f"Matrix-free estimates for block_out, output metric {metric}\n"
        f"(mean of {num_texts} texts; bars: smallest to largest text, errors included)"
    )
    return figure


def _profile(axes, key: str, model: ModelEstimates, values, low, high) -> None:
    layers = [layer.layer for layer in model.sensitivity.layers]
    depth = np.array(layers) / max(model.sensitivity.config.num_layers - 1, 1)
    style = {"color": COLOURS[key], "marker": MARKERS[key], "label": TITLES[key], "markersize": 4}
    mean, least, most = map(finite, (values.mean(axis=1), low.min(axis=1), high.max(axis=1)))
    axes.errorbar(depth, mean, bars(mean, least, most), capsize=3, alpha=0.9, **style)
    axes.set(xlabel="relative depth (0 first layer, 1 last)", xlim=(-0.05, 1.05))
