"""What `--method=matrix_free` writes and prints: estimates, each under a name that says so."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprobe.array_typing import Float, np
from jaxprobe.configs import TITLES, Metric
from jaxprobe.console import answered, how_many, mean, number, ratio, table
from jaxprobe.jacobians.answer import MOVES, answer
from jaxprobe.jacobians.estimates import WRT, EstimatedNorms, ModelEstimates
from jaxprobe.jacobians.measures import MEASURES, NO_VALUE
from jaxprobe.jacobians.results import LayerSensitivity

Models = Mapping[str, ModelEstimates]
Row = Mapping[str, float | None]  # a layer in the console's table


def with_estimates(results: Mapping[str, Any], models: Models) -> dict[str, Any]:
    """The original study's JSON with `exact` null and `estimate` beside it, in every layer.

    Args:
      results: from `jaxprobe.jacobians.records.sensitivity_json` of the models' `sensitivity`.
      models: by architecture; a model that was skipped is absent.
    """
    return dict(results) | {key: _layers_json(results[key], model) for key, model in models.items()}


def _layers_json(layers: Mapping[str, Any], model: ModelEstimates) -> dict[str, Any]:
    return {
        number: {**layer, "exact": None, "estimate": {wrt: _norms_json(norms.get(wrt)) for wrt in WRT}}
        for (number, layer), norms in zip(layers.items(), model.estimates, strict=True)
    }


def _norms_json(norms: EstimatedNorms | None) -> dict[str, Any] | None:
    if norms is None:
        return None
    largest = {"sigma1": norms.singular_values[:, 0], "sigma1_residual": norms.residuals[:, 0]}
    return {field.name: getattr(norms, field.name) for field in dataclasses.fields(norms)} | largest


def estimate_rows(models: Models) -> Iterator[dict[str, Any]]:
    """Rows of the tidy table, as of `jacobians.records.sensitivity_rows`: quantities `estimate_*`."""
    for key, model in models.items():
        for layer, estimates in zip(model.sensitivity.layers, model.estimates, strict=True):
            for wrt, norms in estimates.items():
                for name, values in _quantities(norms):
                    quantity = f"estimate_{wrt}_{name}"
                    row = {"model": key, "layer": layer.layer, "quantity": quantity}
                    yield from ({**row, "text": text, "value": value} for text, value in enumerate(values))


def _quantities(norms: EstimatedNorms) -> Iterator[tuple[str, np.ndarray]]:
    for name in ("frobenius", "frobenius_low", "frobenius_high"):
        yield name, getattr(norms, name)
    for place, (values, residuals) in enumerate(zip(norms.singular_values.T, norms.residuals.T, strict=True)):
        yield f"sigma{place + 1}", values
        yield f"sigma{place + 1}_residual", residuals
    yield "products", np.full(len(norms.frobenius), norms.products)


_LEGEND = """\
How far {moves} per unit that block_out of a layer moves. Means over {texts}.
  estimate  |J|F, s1: Frobenius norm and largest singular value of the Jacobian, estimated from products with
            it; last: only the last token's row moves, seq: every row; +-%: half the 95% interval of |J|F,
            in percent of it, the widest of any text; resid%: a singular value lies within this of s1, in
            percent of it, the widest of any text
  sampled   FD sens, FD std: finite-difference sensitivity of the original study (seq, logits), mean and std
            over the first {sampled} texts
  secant    Lip secant, mean: largest, mean |change of logits| / |change of h| of {pairs} pairs of
            neighbouring texts
  eff rank  effective rank of the last-token states over texts; at most the number of texts
Nothing here is an exact Jacobian's. Sampled values are not compared with their expectation, which needs every
singular value: --method=exact does so."""


def estimate_report(models: Models, metric: Metric, groups: Sequence[str] = ()) -> str:
    """Every console table of the analysis, and the answer in a few sentences.

    Args:
      models: by architecture.
      metric: of the output, for the estimates.
      groups: of each text, its relation; empty where each text stands for itself.
    """
    shown = {
        key: [_row(*pair) for pair in zip(model.sensitivity.layers, model.estimates, strict=True)]
        for key, model in models.items()
    }
    sections = [
        _legend(models, metric, shown),
        *(_model_section(key, model, shown[key]) for key, model in models.items()),
    ]
    if len(models) == 2:
        sections.append(_overall_section(shown))
    measured = {key: model.sensitivity for key, model in models.items()}
    sections.append(answered(answer(measured, metric, groups=groups, estimated=models)))
    return "\n\n".join(sections)


def _legend(models: Models, metric: Metric, shown: Mapping[str, Sequence[Row]]) -> str:
    model = next(iter(models.values()))
    layer, norms = model.sensitivity.layers[0], next(iter(model.estimates[0].values()))
    known = {
        "moves": MOVES[metric],
        "texts": how_many(len(norms.frobenius), "text"),
        "sampled": 0 if layer.sampled is None else len(layer.sampled.mean),
        "pairs": 0 if layer.secant is None else len(layer.secant),
    }
    missing = any(None in row.values() for rows in shown.values() for row in rows)
    return (
        f"{_LEGEND.format(**known)}\nEstimates are in the output metric {metric}, the rest is of the logits."
        + (f"\n-: {NO_VALUE}." if missing else "")
    )


def _model_section(key: str, model: ModelEstimates, rows: Sequence[Row]) -> str:
    config, variance = model.sensitivity.config, model.sensitivity.output_variance
    products = ", ".join(f"{norms.products} ({wrt})" for wrt, norms in model.estimates[0].items())
    title = (
        f"{TITLES[key]}: {config.num_layers} layers, width {config.hidden_size}; output variance over texts "
        f"{variance:.4g}; products a text and layer: {products}"
    )
    numbers = [str(layer.layer) for layer in model.sensitivity.layers]
    cells = [[layer, *map(number, row.values())] for layer, row in zip(numbers, rows, strict=True)]
    return f"{title}\n" + table(["layer", *rows[0]], cells)


def _row(layer: LayerSensitivity, estimates: Mapping[str, EstimatedNorms]) -> Row:
    row = {}
    for wrt, norms in estimates.items():
        short = {"last": "last", "sequence": "seq"}[wrt]
        width = (norms.frobenius_high - norms.frobenius_low) / 2
        sigma, residual = norms.singular_values[:, 0], norms.residuals[:, 0]
        row[f"|J|F {short}"] = norms.frobenius.mean()
        row[f"+-% {short}"] = _worst(width, norms.frobenius)
        row[f"s1 {short}"] = sigma.mean()
        row[f"resid% {short}"] = _worst(residual, sigma)
    row = {name: float(value) if np.isfinite(value) else None for name, value in row.items()}
    return row | {
        measure.column: measure.number((layer, {}))
        for measure in MEASURES
        if measure.column and measure.kind == "sampled"
    }


def _worst(error: Float[np.ndarray, " b"], value: Float[np.ndarray, " b"]) -> float:
    return 100 * float(np.divide(error, value, out=np.where(value == 0, 0.0, np.nan), where=value > 0).max())


def _overall_section(shown: Mapping[str, Sequence[Row]]) -> str:
    names = [name for name in shown["mamba"][0] if "%" not in name]
    means = {key: [mean([row[name] for row in rows]) for name in names] for key, rows in shown.items()}
    pairs = zip(means["mamba"], means["gpt2"], strict=True)
    rows = [[TITLES[key], *map(number, values)] for key, values in means.items()]
    rows.append(["ratio", *(number(ratio(a, b)) for a, b in pairs)])
    return "Mean over the layers shown above\n" + table(["model", *names], rows)
