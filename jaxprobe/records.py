"""What `jaxprobe.jacobian` writes: the seed's JSON with the exact values beside it, and a tidy table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprobe.array_typing import np
from jaxprobe.results import LayerSensitivity, ModelSensitivity

JACOBIAN_SCHEMA_VERSION = 1
WRT = ("last", "sequence")
CSV_COLUMNS = ("model", "layer", "text", "quantity", "value")

Models = Mapping[str, ModelSensitivity]


def sensitivity_json(
    models: Models, num_layers: Mapping[str, int], texts: Sequence[str], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """The seed's structure, with `exact` and `finite_difference` in every layer.

    Lists run over texts, in the order of `texts`; those of `finite_difference` over the sampled ones. A value
    that was not asked for, or does not exist (the Lipschitz ratios of a single text), is null.

    Args:
      models: by architecture; a model that was skipped is absent.
      num_layers: of both models.
      texts: as measured.
      manifest: of the run.
    """
    return {
        **{key: _layers_json(models.get(key)) for key in num_layers},
        **{f"{key}_num_layers": count for key, count in num_layers.items()},
        "output_variance": {
            key: models[key].output_variance if key in models else None for key in num_layers
        },
        "texts": list(texts),
        "schema_version": JACOBIAN_SCHEMA_VERSION,
        "manifest": manifest,
    }


def _layers_json(model: ModelSensitivity | None) -> dict[str, Any]:
    if model is None:
        return {}
    return {str(layer.layer): _layer_json(layer, model.output_variance) for layer in model.layers}


def _layer_json(layer: LayerSensitivity, variance: float) -> dict[str, Any]:
    sampled, secant = layer.sampled, layer.secant
    return {
        "gradient_sensitivity": {"mean": sampled.mean.mean(), "std": sampled.mean.std()},
        "lipschitz": {
            "max": secant.max() if secant.size else None,
            "mean": secant.mean() if secant.size else None,
        },
        "local_lipschitz": {wrt: _local_lipschitz(layer, wrt) for wrt in WRT},
        "output_variance": variance,
        "effective_rank": layer.effective_rank,
        "exact": {wrt: layer.exact.get(wrt) for wrt in WRT},
        "finite_difference": _finite_difference(layer),
    }


def _finite_difference(layer: LayerSensitivity) -> dict[str, Any]:
    sampled, expected = layer.sampled, layer.expected
    return {
        "expected_mean": expected.mean if expected else None,
        "rms": expected.rms if expected else None,
        "sampled_mean": sampled.mean,
        "sampled_stderr": expected.stderr if expected else None,
        "linear_mean": sampled.linear_mean,
        "curvature": sampled.curvature,
    }


def _local_lipschitz(layer: LayerSensitivity, wrt: str) -> float | None:
    return layer.exact[wrt].sigma1.max() if wrt in layer.exact else None


def sensitivity_rows(models: Models) -> Iterator[dict[str, Any]]:
    """One row per model, layer, text and quantity; what is of no one text or layer leaves that cell empty."""
    for key, model in models.items():
        yield _row(key, None, None, "output_variance", model.output_variance)
        for layer in model.layers:
            for quantity, value in _layer_quantities(layer):
                if isinstance(value, np.ndarray):
                    for text, entry in enumerate(value):
                        yield _row(key, layer.layer, text, quantity, entry)
                else:
                    yield _row(key, layer.layer, None, quantity, value)


def _layer_quantities(layer: LayerSensitivity) -> Iterator[tuple[str, Any]]:
    for wrt, norms in layer.exact.items():
        for name in ("frobenius", "sigma1", "stable_rank"):
            yield f"exact_{wrt}_{name}", getattr(norms, name)
        yield f"local_lipschitz_{wrt}", _local_lipschitz(layer, wrt)
    for name, values in _finite_difference(layer).items():
        if values is not None:
            yield f"finite_difference_{name}", values
    yield "gradient_sensitivity_mean", layer.sampled.mean.mean()
    yield "gradient_sensitivity_std", layer.sampled.mean.std()
    if layer.secant.size:
        yield "lipschitz_secant_max", layer.secant.max()
        yield "lipschitz_secant_mean", layer.secant.mean()
    yield "effective_rank", layer.effective_rank


def _row(model: str, layer: int | None, text: int | None, quantity: str, value: Any) -> dict[str, Any]:
    return {"model": model, "layer": layer, "text": text, "quantity": quantity, "value": value}
