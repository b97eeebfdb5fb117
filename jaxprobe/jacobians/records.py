"""What `jaxprobe.jacobian` writes: the original study's JSON with exact values, a tidy table, spectra."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprobe.array_typing import Float, np
from jaxprobe.jacobians.epsilon_sweep import DTYPES, EpsilonStudy
from jaxprobe.jacobians.results import ExactNorms, LayerSensitivity, ModelSensitivity, PathGain
from jaxprobe.jacobians.verdict import Verdict, layer_verdict, not_compared, verdicts
from jaxprobe.sites import BLOCK_OUT

# Since 3 what a site other than block_out has no part in is null; since 4 there are the texts' relations, the
# verdicts' limit and the answer; since 5 the check of each spectrum.
JACOBIAN_SCHEMA_VERSION = 5
WRT = ("last", "sequence")
CSV_COLUMNS = ("model", "layer", "text", "quantity", "value")
NUM_SIGMA = 10  # singular values in the JSON and the table; the .npz has all

# Name in the files -> the field of `ExactNorms`; one value per text.
_EXACT = {
    "frobenius": "frobenius",
    "sigma1": "sigma1",
    "stable_rank": "stable_rank",
    "spectral_effective_rank": "effective_rank",
    "relative_gain": "relative_gain",
    "participation": "participation",
}

Models = Mapping[str, ModelSensitivity]
Studies = Mapping[str, EpsilonStudy]


def sensitivity_json(
    models: Models,
    num_layers: Mapping[str, int],
    texts: Sequence[str],
    manifest: Mapping[str, Any],
    *,
    metric: str = "logits",
    site: str = BLOCK_OUT,
    studies: Studies | None = None,
    groups: Sequence[str] = (),
    answer: Sequence[str] = (),
) -> dict[str, Any]:
    """The original study's structure, with `exact` and `finite_difference` in every layer.

    Lists run over texts, in the order of `texts`; those of `finite_difference` over the sampled ones, but for
    `jacobian_error`, which is of all; those of `path_lipschitz` over pairs of neighbours. A value that was
    not asked for, or does not exist (the Lipschitz ratios of a single text), is null.

    Args:
      models: by architecture; a model that was skipped is absent.
      num_layers: of both models.
      texts: as measured.
      manifest: of the run.
      metric: of the output, for what is exact. site: what moves.
      studies: sweeps over step sizes, by architecture.
      groups: of each text, its relation; empty where each text stands for itself.
      answer: in sentences.
    """
    found = verdicts(models)
    return {
        **{key: _layers_json(models.get(key), found.get(key, {})) for key in num_layers},
        **{f"{key}_num_layers": count for key, count in num_layers.items()},
        "output_variance": {
            key: models[key].output_variance if key in models else None for key in num_layers
        },
        "metric": metric,
        "site": site,
        "epsilon_sweep": {key: _study_json(study) for key, study in studies.items()} if studies else None,
        "texts": list(texts),
        "text_relations": list(groups) or None,
        "answer": list(answer),
        "schema_version": JACOBIAN_SCHEMA_VERSION,
        "manifest": manifest,
    }


def _layers_json(model: ModelSensitivity | None, found: Mapping[int, Verdict]) -> dict[str, Any]:
    if model is None:
        return {}
    return {
        str(layer.layer): _layer_json(layer, model.output_variance, found.get(layer.layer))
        for layer in model.layers
    }


def _layer_json(layer: LayerSensitivity, variance: float, verdict: Verdict | None) -> dict[str, Any]:
    sampled, secant = layer.sampled, layer.secant
    ratios = {"max": secant.max(), "mean": secant.mean()} if secant is not None and secant.size else {}
    largest = ratios.get("max")
    local = {wrt: layer.local_lipschitz(wrt) for wrt in WRT}
    path = _path_json(layer.path) if layer.path else None
    return {
        "gradient_sensitivity": {
            "mean": sampled.mean.mean() if sampled else None, "std": sampled.mean.std() if sampled else None
        },
        "lipschitz": {"max": largest, "mean": ratios.get("mean")},
        "local_lipschitz": local,
        "path_lipschitz": path,
        "lipschitz_numbers": {
            "secant": largest, "local": local["last"], "path": path["max"] if path else None
        },
        "output_variance": variance,
        "effective_rank": layer.effective_rank,
        "exact": {wrt: _exact_json(layer.exact[wrt]) if wrt in layer.exact else None for wrt in WRT},
        "finite_difference": _finite_difference(layer) or None,
        "verdict": _verdict_json(layer, verdict),
    }  # fmt: skip


def _exact_json(norms: ExactNorms) -> dict[str, Any]:
    # What only one of the two inputs has, or one metric lacks, is null.
    numbers = {name: getattr(norms, field) for name, field in _EXACT.items()}
    values = norms.singular_values
    return {
        **numbers,
        "spectrum_error": norms.spectrum_error,
        "sigma": None if values is None else values[:, :NUM_SIGMA],
    }


def _path_json(path: PathGain) -> dict[str, Any]:
    return {
        "max": path.largest.max(),
        "mean": path.largest.mean(),
        "sigma1_found": path.largest,
        "secant": path.secant,
        "residual": path.residual,
    }


def _finite_difference(layer: LayerSensitivity) -> dict[str, Any]:
    sampled, expected = layer.sampled, layer.expected
    if sampled is None:
        return {}
    return {
        "expected_mean": expected.mean if expected else None,
        "rms": expected.rms if expected else None,
        "sampled_mean": sampled.mean,
        "sampled_stderr": expected.stderr if expected else None,
        "linear_mean": sampled.linear_mean,
        "curvature": sampled.curvature,
        "jacobian_error": sampled.jacobian_error,
    }


def _verdict_json(layer: LayerSensitivity, found: Verdict | None) -> dict[str, Any]:
    return {
        "monte_carlo": found.monte_carlo if found else None,
        "curvature": found.curvature if found else None,
        "limit": found.limit if found else None,
        "words": found.words if found else not_compared(layer),
    }


def _study_json(study: EpsilonStudy) -> dict[str, Any]:
    return {
        "layer": study.layer,
        "epsilons": study.epsilons,
        "exact_mean": study.exact,
        "stderr": study.stderr,
        "first_order_mean": study.linear.mean(),
        "sampled": {dtype: study.sampled(dtype) for dtype in DTYPES},
        "relative_error": {dtype: study.error(dtype) for dtype in DTYPES},
        "usable": {dtype: study.usable(dtype) for dtype in DTYPES},
    }


def spectra_arrays(models: Models, studies: Studies | None = None) -> dict[str, np.ndarray]:
    """What is too much for JSON, by name, in float64: `MODEL/WRT/singular_values` [l b m] and so on.

    Axes: l the layers of `MODEL/layers`, b texts, t tokens, m singular values, p pairs of neighbouring texts,
    g nodes of a path or step sizes, s draws. `position_norms` [l b t] hold nan after a text's last token.
    """
    arrays = {}
    for key, model in models.items():
        arrays[f"{key}/layers"] = np.array([layer.layer for layer in model.layers])
        for wrt in model.layers[0].exact:
            norms = [layer.exact[wrt] for layer in model.layers]
            values = [each.singular_values for each in norms if each.singular_values is not None]
            arrays |= {f"{key}/{wrt}/singular_values": np.stack(values)} if values else {}
            if wrt == "sequence":
                arrays[f"{key}/{wrt}/position_norms"] = np.stack([_padded(each) for each in norms])
        if model.layers[0].path:
            paths = [layer.path.sigma1 for layer in model.layers if layer.path]
            arrays[f"{key}/path/sigma1"] = np.stack(paths)
    for key, study in (studies or {}).items():
        arrays[f"{key}/epsilon_sweep/epsilons"] = study.epsilons
        arrays[f"{key}/epsilon_sweep/first_order"] = study.linear
        arrays |= {f"{key}/epsilon_sweep/{dtype}": study.change[dtype] for dtype in DTYPES}
    return arrays


def _padded(norms: ExactNorms) -> Float[np.ndarray, "b t"]:
    rows = norms.position_norms or ()
    made = np.full((len(rows), max(map(len, rows))), np.nan)
    for place, row in zip(made, rows, strict=True):
        place[: len(row)] = row
    return made


def sensitivity_rows(models: Models) -> Iterator[dict[str, Any]]:
    """One row per model, layer, text and quantity; what is of no one text or layer leaves that cell empty.

    A pair of neighbouring texts stands under the first of the two.
    """
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
        for name, field in _EXACT.items():
            if getattr(norms, field) is not None:
                yield f"exact_{wrt}_{name}", getattr(norms, field)
        if norms.singular_values is not None:
            for place, values in enumerate(norms.singular_values.T[1:NUM_SIGMA], 2):
                yield f"exact_{wrt}_sigma{place}", values
            yield f"local_lipschitz_{wrt}", layer.local_lipschitz(wrt)
    for name, values in _finite_difference(layer).items():
        if values is not None:
            yield f"finite_difference_{name}", values
    if layer.sampled:
        yield "gradient_sensitivity_mean", layer.sampled.mean.mean()
        yield "gradient_sensitivity_std", layer.sampled.mean.std()
    if verdict := layer_verdict(layer):
        yield "verdict_monte_carlo", verdict.monte_carlo
        yield "verdict_curvature", verdict.curvature
    if layer.secant is not None and layer.secant.size:
        yield "lipschitz_secant_max", layer.secant.max()
        yield "lipschitz_secant_mean", layer.secant.mean()
    if layer.path:
        for name, value in _path_json(layer.path).items():
            yield f"lipschitz_path_{name}", value
    if layer.effective_rank is not None:
        yield "effective_rank", layer.effective_rank


def _row(model: str, layer: int | None, text: int | None, quantity: str, value: Any) -> dict[str, Any]:
    return {"model": model, "layer": layer, "text": text, "quantity": quantity, "value": value}
