"""Console tables: strings from results, nothing printed here."""

from collections.abc import Callable, Iterator, Mapping

from jaxprobe.array_typing import Float, np
from jaxprobe.configs import Metric
from jaxprobe.console import mean, number, ratio, table
from jaxprobe.jacobians.epsilon_sweep import DTYPES, TOLERANCE, EpsilonStudy
from jaxprobe.jacobians.results import LayerSensitivity, ModelSensitivity
from jaxprobe.jacobians.verdict import layer_verdict, layers_apart, not_compared
from jaxprobe.loading import TITLES
from jaxprobe.sites import BLOCK_OUT

Shown = Mapping[str, Callable[[LayerSensitivity], float | None]]

# Name in the tables -> a layer's number; the per-text quantities are averaged over texts.
_EXACT: Shown = {
    "|J|F last": lambda layer: _exact_mean(layer, "last", "frobenius"),
    "s1 last": lambda layer: _exact_mean(layer, "last", "sigma1"),
    "gain last": lambda layer: _exact_mean(layer, "last", "relative_gain"),
    "|J|F seq": lambda layer: _exact_mean(layer, "sequence", "frobenius"),
    "s1 seq": lambda layer: _exact_mean(layer, "sequence", "sigma1"),
    "gain seq": lambda layer: _exact_mean(layer, "sequence", "relative_gain"),
    "stable rk": lambda layer: _exact_mean(layer, "sequence", "stable_rank"),
    "spec rk": lambda layer: _exact_mean(layer, "sequence", "effective_rank"),
    "tokens": lambda layer: _exact_mean(layer, "sequence", "participation"),
    "Lip local": lambda layer: _local_lipschitz(layer),
    "Lip path": lambda layer: layer.path.largest.max() if layer.path else None,
}
SAMPLED: Shown = {
    "FD sens": lambda layer: layer.sampled.mean.mean() if layer.sampled else None,
    "FD std": lambda layer: layer.sampled.mean.std() if layer.sampled else None,
    "Lip secant": lambda layer: _secant(layer, np.max),
    "Lip mean": lambda layer: _secant(layer, np.mean),
    "eff rank": lambda layer: layer.effective_rank,
}
_GROUPS = {"exact": _EXACT, "over draws and texts": SAMPLED}
_ALL = {**_EXACT, **SAMPLED}
_METRICS = {
    "logits": "the last token's logits move",
    "centred": "the last token's centred logits move",
    "fisher": "the last token's prediction moves (sqrt(2 KL), in nats)",
}


def sensitivity_report(
    models: Mapping[str, ModelSensitivity],
    metric: Metric = "logits",
    studies: Mapping[str, EpsilonStudy] | None = None,
    epsilon: float = 0.01,
    site: str = BLOCK_OUT,
) -> str:
    """Every console table of the Jacobian analysis, and the answer in a few sentences.

    Args:
      models: by architecture.
      metric: of the output, for what is exact.
      studies: sweeps over step sizes, by architecture.
      epsilon: the step size of the run.
      site: what moves.
    """
    sections = [_legend(models, metric, site)]
    sections += [_model_section(key, model) for key, model in models.items()]
    if len(models) == 2:
        sections.append(_comparison_section(models))
    sections.append(_overall_section(models))
    if site == BLOCK_OUT:
        sections.append(_agreement_section(models))
    if studies:
        sections.append(_step_section(studies, epsilon))
    if len(models) == 2:
        sections.append(_answer(models, metric, site))
    return "\n\n".join(sections)


_LEGEND = {  # a column -> the lines that explain it and its neighbours
    "|J|F": """\
  exact     |J|F, s1: Frobenius norm and largest singular value of the Jacobian; last: only the last
            token's row moves, seq: every row; of seq, stable rk: (|J|F / s1)^2, spec rk: effective rank of
            the spectrum, tokens: how many positions carry |J|F; Lip local: largest s1 (last) of any text""",
    "FD sens": """\
  sampled   FD sens, FD std: the seed's finite-difference sensitivity (seq, logits), mean and std over texts
  eff rank  effective rank of the last-token states over texts; at most the number of texts""",
    "gain": """\
  gain      relative gain |J|F |h| / |logits|, centred logits: free of the units of both""",
    "Lip secant": """\
  secant    largest and mean |change of logits| / |change of h| between neighbouring texts; these have
            different contexts, so it bounds no single map""",
    "Lip path": """\
  path      the largest s1 found between neighbouring texts' last states, in the first one's context; the
            maximum of a grid, so at most the true one""",
}


def _legend(models: Mapping[str, ModelSensitivity], metric: Metric, site: str) -> str:
    shown = _asked(next(iter(models.values())))
    lines = [text for column, text in _LEGEND.items() if any(name.startswith(column) for name in shown)]
    title = f"How far {_METRICS[metric]} per unit that {site} of a layer moves. Means over texts."
    return "\n".join([title, *lines])


def _tables(first: str, model: ModelSensitivity, rows: Callable[[Shown], list[list[str]]]) -> Iterator[str]:
    # One table a group of quantities, so that none is too wide to read.
    asked = _asked(model)
    for group, quantities in _GROUPS.items():
        shown = {name: get for name, get in quantities.items() if name in asked}
        if shown:
            yield f"{group}\n" + table([first, *shown], rows(shown))


def _model_section(key: str, model: ModelSensitivity) -> str:
    def rows(shown: Shown) -> list[list[str]]:
        return [[str(each.layer), *(number(get(each)) for get in shown.values())] for each in model.layers]

    title = f"{TITLES[key]}: {model.config.num_layers} layers, width {model.config.hidden_size}"
    variance = f"output variance over texts {number(model.output_variance)}"
    return "\n".join([f"{title}; {variance}", *_tables("layer", model, rows)])


def _comparison_section(models: Mapping[str, ModelSensitivity]) -> str:
    mamba, gpt2 = models["mamba"], models["gpt2"]

    def rows(shown: Shown) -> list[list[str]]:
        return [
            [str(a.layer), *(number(ratio(get(a), get(b))) for get in shown.values())]
            for a, b in _common_layers(mamba, gpt2)
        ]

    title = "Ratio Mamba / GPT-2, by layer number, over the layers both have"
    return "\n".join([title, *_tables("layer", mamba, rows)])


def _overall_section(models: Mapping[str, ModelSensitivity]) -> str:
    def rows(shown: Shown) -> list[list[str]]:
        means = {
            key: [mean(get(layer) for layer in model.layers) for get in shown.values()]
            for key, model in models.items()
        }
        made = [[TITLES[key], *map(number, values)] for key, values in means.items()]
        if len(models) == 2:
            made.append(["ratio", *(number(ratio(a, b)) for a, b in zip(*means.values(), strict=True))])
        return made

    title = "Mean over the layers shown above"
    return "\n".join([title, *_tables("model", next(iter(models.values())), rows)])


def _agreement_section(models: Mapping[str, ModelSensitivity]) -> str:
    heading = "Exact versus finite difference (seq, logits)"
    rows, chance = [], []
    for key, model in models.items():
        for layer in model.layers:
            sampled, expected, verdict = layer.sampled, layer.expected, layer_verdict(layer)
            if sampled is None or expected is None or verdict is None:
                return f"{heading}:\n{not_compared(layer)}"
            each = _scores(sampled.mean - expected.mean, expected.stderr)
            chance.append(_scores(sampled.linear_mean - expected.mean, expected.stderr))
            rows.append([
                TITLES[key], str(layer.layer), number(expected.mean.mean()), number(sampled.mean.mean()),
                f"{verdict.monte_carlo:+.2f}", f"{verdict.curvature:+.2f}", f"{np.abs(each).max():.2f}",
                verdict.words,
            ])  # fmt: skip
    header = ["model", "layer", "exact", "sampled", "Monte-Carlo", "curvature", "max |z|", "verdict"]
    draws = next(iter(models.values())).num_samples
    together = np.concatenate(chance)
    return (
        f"{heading}. exact: expected sensitivity, from the singular values.\n"
        "Monte-Carlo, curvature: the parts of the difference in exact standard errors, all texts together;\n"
        "max |z|: the difference of one text\n"
        + table(header, rows)
        + f"\nMonte-Carlo error of {draws} draws a text, over {len(together)} texts and layers, in its exact "
        f"standard errors:\nroot mean square {np.sqrt(np.mean(np.square(together))):.2f} (1 expected)"
    )


def _step_section(studies: Mapping[str, EpsilonStudy], epsilon: float) -> str:
    rows = []
    for key, study in studies.items():
        for dtype in DTYPES:
            ends = study.usable(dtype)
            words = "no step" if ends is None else f"{ends[0]:.2g} to {ends[1]:.2g}"
            inside = ends is not None and ends[0] <= epsilon <= ends[1]
            rows.append([
                TITLES[key], str(study.layer), dtype, words, "usable" if inside else "not usable"
            ])  # fmt: skip
    return (
        f"Which step sizes can be trusted: error of the mean below {TOLERANCE:.0%} of the same draws' first "
        "order\n" + table(["model", "layer", "numbers", "usable epsilon", f"{epsilon:g} is"], rows)
    )


def _answer(models: Mapping[str, ModelSensitivity], metric: Metric, site: str) -> str:
    asked = _asked(models["mamba"])
    everything = asked.get("FD sens") or asked.get("|J|F seq") or asked["|J|F last"]
    if any(mean(map(everything, model.layers)) == 0 for model in models.values()):
        return "Answer: none, as a model's sensitivity is zero"
    measure = "" if metric == "logits" else f", output metric {metric}"
    lines = [f"Answer: on these texts and layers Mamba is, against GPT-2 (means over layers{measure}),"]
    for name, words in _ANSWERS.items():
        times = _ratio_of_means(models, asked[name]) if name in asked else None
        if times is not None:
            how = "as" if abs(times - 1) < 0.005 else "more" if times > 1 else "less"
            lines.append(f"  {how} fragile {words.format(site=site)}: exact {name} {times:.3g} times")
    if "FD sens" not in asked:
        return "\n".join(lines)
    sampled = _ratio_of_means(models, asked["FD sens"])
    noise = f"and its logits move {sampled:.3g} times as much under noise on every row as sampled"
    expected = _ratio_of_means(models, lambda layer: layer.expected.mean.mean() if layer.expected else None)
    if expected is not None:
        noise += f", {expected:.3g} times exactly"
    return "\n".join([*lines, noise, _agreement(models)])


_ANSWERS = {
    "|J|F last": "per unit of {site}, the last row moving",
    "|J|F seq": "per unit of {site}, every row moving",
    "gain last": "relative to the size of its states and logits, the last row moving",
    "gain seq": "relative to the size of its states and logits, every row moving",
}


def _agreement(models: Mapping[str, ModelSensitivity]) -> str:
    """Whether what was sampled may stand for what is exact, in a sentence."""
    found = {
        f"{TITLES[key]} layer {layer.layer}": layer_verdict(layer)
        for key, model in models.items()
        for layer in model.layers
    }
    apart, compared = layers_apart(found)
    if not compared:
        return f"Sampled and exact are\n{not_compared(next(iter(models.values())).layers[0])}."
    if not apart:
        return f"Sampled and exact agree within sampling error at all {compared} layers."
    return (
        f"Sampled and exact disagree at {len(apart)} of {compared} layers, where the exact is to be "
        f"believed: {', '.join(apart)}."
    )


def _ratio_of_means(
    models: Mapping[str, ModelSensitivity], get: Callable[[LayerSensitivity], float | None]
) -> float | None:
    return ratio(mean(map(get, models["mamba"].layers)), mean(map(get, models["gpt2"].layers)))


def _asked(model: ModelSensitivity) -> Shown:
    return {name: get for name, get in _ALL.items() if get(model.layers[0]) is not None}


def _common_layers(
    a: ModelSensitivity, b: ModelSensitivity
) -> Iterator[tuple[LayerSensitivity, LayerSensitivity]]:
    others = {layer.layer: layer for layer in b.layers}
    return ((layer, others[layer.layer]) for layer in a.layers if layer.layer in others)


def _exact_mean(layer: LayerSensitivity, wrt: str, name: str) -> float | None:
    values = getattr(layer.exact[wrt], name) if wrt in layer.exact else None
    return None if values is None else float(values.mean())


def _local_lipschitz(layer: LayerSensitivity) -> float | None:
    sigma1 = layer.exact["last"].sigma1 if "last" in layer.exact else None
    return None if sigma1 is None else sigma1.max()


def _secant(layer: LayerSensitivity, over: Callable[[np.ndarray], float]) -> float | None:
    return None if layer.secant is None or not layer.secant.size else over(layer.secant)


def _scores(difference: Float[np.ndarray, " b"], stderr: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    # A map of one singular direction per input has no variance, and then no error either.
    return np.divide(difference, stderr, out=np.zeros_like(difference), where=stderr > 0)
