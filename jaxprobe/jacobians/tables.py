"""Console tables: strings from results, nothing printed here."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxprobe.array_typing import Float, np
from jaxprobe.configs import TITLES, Metric
from jaxprobe.console import answered, how_many, mean, number, paragraph, ratio, score, table
from jaxprobe.jacobians.agreement import layer_agreements, step_sizes
from jaxprobe.jacobians.answer import MOVES, answer
from jaxprobe.jacobians.epsilon_sweep import TOLERANCE, EpsilonStudy
from jaxprobe.jacobians.measures import NO_VALUE, Layer, Measure, layers_of, measured_in
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.verdict import limit_words, not_compared, usual_largest
from jaxprobe.sites import BLOCK_OUT

_HEADINGS = {"exact": "exact", "sampled": "over draws and texts"}  # of the tables, by kind of measure

Models = Mapping[str, ModelSensitivity]
Layers = Mapping[str, Sequence[Layer]]


def sensitivity_report(
    models: Models,
    metric: Metric = "logits",
    studies: Mapping[str, EpsilonStudy] | None = None,
    epsilon: float = 0.01,
    site: str = BLOCK_OUT,
    groups: Sequence[str] = (),
) -> str:
    """Every console table of the Jacobian analysis, and the answer in a few sentences.

    Args:
      models: by architecture.
      metric: of the output, for what is exact.
      studies: sweeps over step sizes, by architecture.
      epsilon: the step size of the run.
      site: what moves.
      groups: of each text, its relation; empty where each text stands for itself.
    """
    layers = layers_of(models, {})
    shown = [measure for measure in measured_in(layers) if measure.column]
    sections = [_legend(shown, layers, metric, site)]
    sections += [_model_section(key, model, layers[key], shown) for key, model in models.items()]
    if len(models) == 2:
        sections.append(_comparison_section(layers, shown))
    sections.append(_overall_section(layers, shown))
    if site == BLOCK_OUT:
        sections.append(_agreement_section(models))
    if studies:
        sections.append(_step_section(studies, epsilon))
    sections.append(answered(answer(models, metric, site, groups)))
    return "\n\n".join(sections)


_LEGEND = {  # a column -> the lines that explain it and its neighbours
    "|J|F": """\
  exact     |J|F, s1: Frobenius norm and largest singular value of the Jacobian; last: only the last
            token's row moves, seq: every row; of seq, stable rk: (|J|F / s1)^2, spec rk: effective rank of
            the spectrum, tokens: how many positions carry |J|F; Lip local: largest s1 (last) of any text""",
    "FD sens": """\
  sampled   FD sens, FD std: finite-difference sensitivity of the original study (seq, logits), mean and std
            over the first {sampled} texts
  eff rank  effective rank of the last-token states over texts; at most the number of texts""",
    "gain": """\
  gain      relative gain |J|F |h| / |logits|, centred logits: free of the units of both""",
    "Lip secant": """\
  secant    Lip secant, Lip mean: largest and mean |change of logits| / |change of h| of {pairs} pairs of
            neighbouring texts; these have different contexts, so it bounds no single map""",
    "Lip path": """\
  path      the largest s1 found between any of these pairs' last states, in the first one's context; the
            maximum of a grid, so at most the true one""",
}


def _legend(shown: Sequence[Measure], layers: Layers, metric: Metric, site: str) -> str:
    first = next(iter(layers.values()))[0]
    counts = {measure.column: len(found) for measure in shown if (found := measure.values(first)) is not None}
    texts = max((counts[measure.column] for measure in shown if measure.each == "text"), default=0)
    known = {"sampled": counts.get("FD sens", 0), "pairs": counts.get("Lip secant", 0)}
    lines = [
        text.format(**known)
        for column, text in _LEGEND.items()
        if any(measure.column.startswith(column) for measure in shown)
    ]
    moves = f"How far {MOVES[metric]} per unit that {site} of a layer moves"
    title = f"{moves}. Means over {how_many(texts, 'text')}."
    # Of what is zero, ratios have none.
    if any(not measure.number(layer) for rows in layers.values() for layer in rows for measure in shown):
        lines.append(f"  -         {NO_VALUE}")
    if metric != "logits":
        lines.append(f"What is exact is of the output metric {metric}, the rest of the logits.")
    return "\n".join([title, *lines])


def _tables(
    first: str, shown: Sequence[Measure], rows: Callable[[Sequence[Measure]], list[list[str]]]
) -> Iterator[str]:
    # One table a kind of measure, so that none is too wide to read.
    for kind, heading in _HEADINGS.items():
        measures = [measure for measure in shown if measure.kind == kind]
        if measures:
            header = [first, *(measure.column for measure in measures)]
            yield f"{heading}\n" + table(header, rows(measures))


def _model_section(
    key: str, model: ModelSensitivity, layers: Sequence[Layer], shown: Sequence[Measure]
) -> str:
    def rows(measures: Sequence[Measure]) -> list[list[str]]:
        return [
            [str(layer[0].layer), *(number(measure.number(layer)) for measure in measures)]
            for layer in layers
        ]

    title = f"{TITLES[key]}: {model.config.num_layers} layers, width {model.config.hidden_size}"
    variance = f"output variance over texts {number(model.output_variance)}"
    return "\n".join([f"{title}; {variance}", *_tables("layer", shown, rows)])


def _comparison_section(layers: Layers, shown: Sequence[Measure]) -> str:
    others = {layer[0].layer: layer for layer in layers["gpt2"]}
    pairs = [(layer, others[layer[0].layer]) for layer in layers["mamba"] if layer[0].layer in others]

    def rows(measures: Sequence[Measure]) -> list[list[str]]:
        return [
            [
                str(mamba[0].layer),
                *(number(ratio(measure.number(mamba), measure.number(gpt2))) for measure in measures),
            ]
            for mamba, gpt2 in pairs
        ]

    title = "Ratio Mamba / GPT-2, by layer number, over the layers both have"
    return "\n".join([title, *_tables("layer", shown, rows)])


def _overall_section(layers: Layers, shown: Sequence[Measure]) -> str:
    def rows(measures: Sequence[Measure]) -> list[list[str]]:
        means = {key: [mean(map(each.number, rows)) for each in measures] for key, rows in layers.items()}
        made = [[TITLES[key], *map(number, values)] for key, values in means.items()]
        if len(layers) == 2:
            made.append(["ratio", *(number(ratio(a, b)) for a, b in zip(*means.values(), strict=True))])
        return made

    return "\n".join(["Mean over the layers shown above", *_tables("model", shown, rows)])


def _agreement_section(models: Models) -> str:
    heading = "Exact versus finite difference (seq, logits)"
    compared = layer_agreements(models)
    if not compared:
        return f"{heading}:\n{not_compared(next(iter(models.values())).layers[0])}"
    rows = [
        [
            each.model, str(each.layer), number(each.exact), number(each.sampled),
            score(each.verdict.monte_carlo), score(each.verdict.curvature),
            score(np.abs(each.each).max(), ".2f"), each.verdict.words,
        ]
        for each in compared
    ]  # fmt: skip
    header = ["model", "layer", "exact", "sampled", "Monte-Carlo", "curvature", "max |z|", "verdict"]
    draws = next(iter(models.values())).num_samples
    texts = len(compared[0].each)
    chance = np.concatenate([each.chance for each in compared])
    return "\n".join(
        [
            f"{heading}. exact: expected sensitivity, from the singular values.",
            "Monte-Carlo, curvature: parts of the difference in exact standard errors, all texts together;",
            f"max |z|: the difference of one text, the largest of {texts}; of normal ones "
            f"{usual_largest(texts):.2g} would be usual",
            table(header, rows),
            paragraph(limit_words(compared[0].verdict.limit, len(compared))),
            paragraph(_spread(chance, draws)),
        ]
    )


def _spread(chance: Float[np.ndarray, " n"], draws: int) -> str:
    return (
        f"Monte-Carlo error of {draws} draws a text, over {len(chance)} pairs of a text and a layer, in its "
        f"exact standard errors: root mean square {np.sqrt(np.mean(np.square(chance))):.2f} (1 expected), "
        f"largest {np.abs(chance).max():.2f} (of normal ones {usual_largest(len(chance)):.2g} would be "
        "usual; means of few draws have a longer tail)"
    )


def _step_section(studies: Mapping[str, EpsilonStudy], epsilon: float) -> str:
    rows = [
        [
            each.model,
            str(each.layer),
            each.dtype,
            each.words,
            "usable" if each.holds(epsilon) else "not usable",
        ]
        for each in step_sizes(studies)
    ]
    return (
        f"Which step sizes can be trusted: error of the mean below {TOLERANCE:.0%} of the same draws' first "
        "order\n" + table(["model", "layer", "numbers", "usable epsilon", f"{epsilon:g} is"], rows)
    )
