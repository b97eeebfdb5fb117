"""Console tables: strings from results, nothing printed here."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxprobe.array_typing import Float, np
from jaxprobe.loading import TITLES
from jaxprobe.results import LayerSensitivity, ModelSensitivity

# Name in the tables -> a layer's number; the per-text quantities are averaged over texts.
_EXACT: Mapping[str, Callable[[LayerSensitivity], float | None]] = {
    "|J|F last": lambda layer: _exact_mean(layer, "last", "frobenius"),
    "s1 last": lambda layer: _exact_mean(layer, "last", "sigma1"),
    "|J|F seq": lambda layer: _exact_mean(layer, "sequence", "frobenius"),
    "s1 seq": lambda layer: _exact_mean(layer, "sequence", "sigma1"),
    "stable rk": lambda layer: _exact_mean(layer, "sequence", "stable_rank"),
    "local Lip": lambda layer: layer.exact["last"].sigma1.max() if "last" in layer.exact else None,
}
_SAMPLED: Mapping[str, Callable[[LayerSensitivity], float | None]] = {
    "FD sens": lambda layer: layer.sampled.mean.mean(),
    "FD std": lambda layer: layer.sampled.mean.std(),
    "Lip max": lambda layer: layer.secant.max() if layer.secant.size else None,
    "Lip mean": lambda layer: layer.secant.mean() if layer.secant.size else None,
    "eff rank": lambda layer: layer.effective_rank,
}
_ALL = {**_EXACT, **_SAMPLED}


def sensitivity_report(models: Mapping[str, ModelSensitivity]) -> str:
    """Every console table of the Jacobian analysis, and the answer in a sentence or two."""
    sections = [_LEGEND]
    sections += [_model_section(key, model) for key, model in models.items()]
    if len(models) == 2:
        sections.append(_comparison_section(models))
    sections.append(_overall_section(models))
    sections.append(_agreement_section(models))
    if len(models) == 2:
        sections.append(_answer(models))
    return "\n\n".join(sections)


_LEGEND = """\
How far the last token's logits move per unit that block_out of a layer moves. Means over texts.
  exact     |J|F, s1: Frobenius norm and largest singular value of the Jacobian; last: only the last
            token's row moves, seq: every row; stable rk: (|J|F / s1)^2 of seq; local Lip: largest s1 (last)
            of any text
  sampled   FD sens, FD std: the seed's finite-difference sensitivity (seq), mean and std over texts
  secant    Lip max, mean: |change of logits| / |change of h| between neighbouring texts; these have different
            contexts, so it bounds no single map
  eff rank  effective rank of the last-token states over texts; at most the number of texts"""


def _model_section(key: str, model: ModelSensitivity) -> str:
    shown = _asked(model)
    rows = [[str(layer.layer), *(_number(get(layer)) for get in shown.values())] for layer in model.layers]
    title = f"{TITLES[key]}: {model.config.num_layers} layers, width {model.config.hidden_size}"
    return f"{title}; output variance over texts {_number(model.output_variance)}\n" + table(
        ["layer", *shown], rows
    )


def _comparison_section(models: Mapping[str, ModelSensitivity]) -> str:
    mamba, gpt2 = models["mamba"], models["gpt2"]
    shown = _asked(mamba)
    pairs = list(_common_layers(mamba, gpt2))
    rows = [[str(a.layer), *(_number(_ratio(get(a), get(b))) for get in shown.values())] for a, b in pairs]
    title = "Ratio Mamba / GPT-2, by layer number, over the layers both have"
    return f"{title}\n" + table(["layer", *shown], rows)


def _overall_section(models: Mapping[str, ModelSensitivity]) -> str:
    shown = _asked(next(iter(models.values())))
    means = {
        key: [_mean([get(layer) for layer in model.layers]) for get in shown.values()]
        for key, model in models.items()
    }
    rows = [[TITLES[key], *map(_number, values)] for key, values in means.items()]
    if len(models) == 2:
        rows.append(["ratio", *(_number(_ratio(a, b)) for a, b in zip(*means.values(), strict=True))])
    return "Mean over the layers shown above\n" + table(["model", *shown], rows)


def _agreement_section(models: Mapping[str, ModelSensitivity]) -> str:
    heading = "Exact versus finite difference (seq)"
    rows, chance = [], []
    for key, model in models.items():
        for layer in model.layers:
            sampled, expected = layer.sampled, layer.expected
            if expected is None:
                return f"{heading}: not compared, as --wrt=last leaves out the Jacobian of the whole sequence"
            monte_carlo, difference = sampled.linear_mean - expected.mean, sampled.mean - expected.mean
            scores = _scores(difference, expected.stderr)
            chance.append(_scores(monte_carlo, expected.stderr))
            rows.append([
                TITLES[key], str(layer.layer), _number(expected.mean.mean()), _number(sampled.mean.mean()),
                _number(expected.rms.mean()), _signed(difference.mean()), _signed(monte_carlo.mean()),
                _signed(sampled.curvature.mean()), f"{scores.mean() * math.sqrt(len(scores)):+.2f}",
                f"{np.abs(scores).max():.2f}",
            ])  # fmt: skip
    header = [
        "model", "layer", "exact", "sampled", "rms", "difference", "Monte-Carlo", "curvature", "z", "max |z|",
    ]  # fmt: skip
    draws = next(iter(models.values())).num_samples
    together = np.concatenate(chance)
    return (
        f"{heading}. exact: expected sensitivity, from the singular values; rms: |J|F / sqrt(t d);\n"
        "difference = Monte-Carlo error + curvature; z: difference in exact standard errors, all texts\n"
        "together; max |z|: of one text\n"
        + table(header, rows)
        + f"\nMonte-Carlo error of {draws} draws a text, over {len(together)} texts and layers, in its exact "
        f"standard errors:\nroot mean square {np.sqrt(np.mean(np.square(together))):.2f} (1 expected)"
    )


def _answer(models: Mapping[str, ModelSensitivity]) -> str:
    name, get = next((n, g) for n, g in _asked(models["mamba"]).items() if n.startswith("|J|F"))
    exact = _ratio_of_means(models, get)
    sampled = _ratio_of_means(models, lambda layer: layer.sampled.mean.mean())
    expected = _ratio_of_means(models, lambda layer: layer.expected.mean.mean() if layer.expected else None)
    if exact is None or sampled is None:
        return "Answer: none, as GPT-2's sensitivity is zero"
    word = "more" if exact > 1 else "less"
    noise = f"{sampled:.3g} times as sampled" + (f", {expected:.3g} times exactly" if expected else "")
    return (
        f"Answer: on these texts and layers Mamba's last-token logits are {word} sensitive than GPT-2's:\n"
        f"the exact {name} is {exact:.3g} times GPT-2's; under noise on every row, {noise} (means over\n"
        "layers). A unit of hidden state is not the same size in both models: see also the profiles over\n"
        "relative depth."
    )


def _ratio_of_means(
    models: Mapping[str, ModelSensitivity], get: Callable[[LayerSensitivity], float | None]
) -> float | None:
    return _ratio(_mean(map(get, models["mamba"].layers)), _mean(map(get, models["gpt2"].layers)))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Right-aligned columns; the first is left-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _asked(model: ModelSensitivity) -> dict[str, Callable[[LayerSensitivity], float | None]]:
    return {name: get for name, get in _ALL.items() if get(model.layers[0]) is not None}


def _common_layers(
    a: ModelSensitivity, b: ModelSensitivity
) -> Iterator[tuple[LayerSensitivity, LayerSensitivity]]:
    others = {layer.layer: layer for layer in b.layers}
    return ((layer, others[layer.layer]) for layer in a.layers if layer.layer in others)


def _exact_mean(layer: LayerSensitivity, wrt: str, name: str) -> float | None:
    return float(getattr(layer.exact[wrt], name).mean()) if wrt in layer.exact else None


def _scores(difference: Float[np.ndarray, " b"], stderr: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    # A map of one singular direction per input has no variance, and then no error either.
    return np.divide(difference, stderr, out=np.zeros_like(difference), where=stderr > 0)


def _mean(values) -> float | None:
    values = list(values)
    return None if any(value is None for value in values) else float(np.mean(values))


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or b == 0 else a / b


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _signed(value: float) -> str:
    return f"{value:+.3g}"
