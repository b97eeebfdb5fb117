"""The report of `jaxprobe.jacobian`: its pictures with captions, its tables, the answer with its confidence.

Loads matplotlib; import it when there is something to draw.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprobe.configs import TITLES
from jaxprobe.figures import render
from jaxprobe.jacobians import estimate_plots, plots
from jaxprobe.jacobians.answer import answer
from jaxprobe.jacobians.epsilon_sweep import EpsilonStudy
from jaxprobe.jacobians.estimates import ModelEstimates
from jaxprobe.jacobians.measures import layers_of
from jaxprobe.jacobians.report_protocol import protocol
from jaxprobe.jacobians.report_tables import TABLES, report_tables
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.verdict import verdicts
from jaxprobe.report.content import Figure, Report
from jaxprobe.report.files import file_names
from jaxprobe.run_configs import JacobianRun

# What a run may leave behind, of which one with other settings makes only some.
FIGURES = (
    "sensitivity_profiles", "estimate_profiles", "token_layer_maps", "exact_versus_finite_difference",
    "epsilon_sweep",
)  # fmt: skip
PAGE = "jacobian_report.html"
ALL_FILES = file_names(PAGE, FIGURES, TABLES)

Models = Mapping[str, ModelSensitivity]


def jacobian_report(
    measured: Models,
    config: JacobianRun,
    texts: Sequence[str],
    manifest: Mapping[str, Any],
    *,
    words: Mapping[str, Sequence[Sequence[str]]],
    estimated: Mapping[str, ModelEstimates] | None = None,
    studies: Mapping[str, EpsilonStudy] | None = None,
    groups: Sequence[str] = (),
) -> Report:
    """Everything a run found, drawn and told.

    Args:
      measured: by architecture; a model that was skipped is absent.
      config: of the run.
      texts: as measured.
      manifest: of the run.
      words: by architecture, the tokens of the first texts.
      estimated: under --method=matrix_free, by architecture.
      studies: sweeps over step sizes, by architecture.
      groups: of each text, its relation; empty where each text stands for itself.
    """
    layers = layers_of(measured, estimated or {})
    return Report(
        title="How sensitive are Mamba and GPT-2 to a small change inside them?",
        question=(
            f"How far does the output for the last token move per unit that {config.site} of a layer moves, "
            "is Mamba really more fragile than GPT-2, and do finite differences say the same as exact "
            "Jacobians?"
        ),
        answer=" ".join(answer(measured, config.metric, config.site, groups, estimated)),
        protocol=protocol(measured, config, len(texts), groups, _reductions(manifest)),
        figures=list(_figures(measured, config, len(texts), words, estimated or {}, studies or {})),
        tables=list(report_tables(measured, layers, texts, groups, studies or {}, config.epsilon)),
        manifest=manifest,
    )


def _reductions(manifest: Mapping[str, Any]) -> dict[str, str]:
    """How singular values were had: what --spectra=auto chose for each model stands in its plan."""
    return {key: plan["reduction"] for key, plan in manifest.get("plan", {}).items()}


def _figures(
    measured: Models,
    config: JacobianRun,
    num_texts: int,
    words: Mapping[str, Sequence[Sequence[str]]],
    estimated: Mapping[str, ModelEstimates],
    studies: Mapping[str, EpsilonStudy],
) -> Iterator[Figure]:
    models = " and ".join(TITLES[key] for key in measured)
    yield Figure(
        "sensitivity_profiles",
        "Every measure, layer by layer",
        "Each panel is one quantity; from left to right the layers, as a fraction of the model's depth, so "
        "that models of different depth can be compared. Lines are means over texts, or over as many as a "
        "panel says; bands (bars where there is one layer) reach from the smallest to the largest. Where the "
        "bands lie apart, every text agrees which model is the more sensitive. Panels named exact hold no "
        "sampling error.",
        f"Small line plots of each sensitivity measure against relative depth, for {models}.",
        render(plots.layer_profiles(measured, num_texts, config.metric, config.site)),
    )
    if estimated:
        yield Figure(
            "estimate_profiles",
            "Matrix-free estimates",
            "Norms and largest singular values estimated from products with the Jacobian alone. Points are "
            "means over texts; bars reach from the smallest to the largest text, the estimates' own errors "
            "included. Nothing here is exact.",
            f"Estimated Frobenius norm and largest singular value against relative depth, for {models}.",
            render(estimate_plots.estimate_profiles(estimated, num_texts, config.metric)),
        )
        return
    if config.wrt == "last":
        return
    yield Figure(
        "token_layer_maps",
        "Which tokens the output hangs on",
        "For the first texts: from left to right the tokens, upwards the layers. The brighter a cell, the "
        "further the last token's output moves when this token's state moves at this layer. White: it "
        "cannot move it. All maps share one logarithmic scale of colours, so they can be compared.",
        f"Heat maps of exact block norms by token and layer, for {models}.",
        render(plots.token_layer_maps(measured, words, config.site)),
    )
    if any(verdicts(measured).values()) and all(
        layer.expected for model in measured.values() for layer in model.layers
    ):
        yield Figure(
            "exact_versus_finite_difference",
            "Exact against finite differences",
            "Left: each text and layer, the sampled sensitivity against what it must be on average; on the "
            "black line both agree, and bars are 95% of the sampling error. Right: what is left over, in "
            "exact standard errors; about 95% of the points belong in the grey band.",
            "Scatter of sampled against exact sensitivity, and the standardised differences by depth.",
            render(plots.exact_versus_sampled(measured, config.num_samples, config.epsilon)),
        )
    if studies:
        from jaxprobe.jacobians import epsilon_plots

        yield Figure(
            "epsilon_sweep",
            "Which step sizes can be trusted",
            "From top to bottom: the sampled mean by step size against the exact one (dashed); its error, "
            "which rounding makes on the left and curvature on the right, with the usable steps marked "
            "below 1%; the single draws at this run's step; and each layer's distance from the exact mean "
            "in standard errors.",
            "Sampled sensitivity and its error against step size, and verdicts by layer.",
            render(epsilon_plots.epsilon_story(studies, verdicts(measured), config.epsilon)),
        )
