"""The report of `jaxprobe.delta_pct --protocol=matched`: pictures with captions, tables, the answer.

Loads matplotlib; import it when there is something to draw.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxprobe.figures import render
from jaxprobe.matched import linearity_plots, plots
from jaxprobe.matched.accounting_words import share_words
from jaxprobe.matched.linearity_tables import STRENGTHS, strength_table
from jaxprobe.matched.report_tables import TABLES, matched_tables
from jaxprobe.matched.results import MatchedResults
from jaxprobe.matched.rows import MatchedSummary
from jaxprobe.matched.verdict import answer
from jaxprobe.report.content import Figure, Report
from jaxprobe.scope import Scope
from jaxprobe.statistics.percentage import NO_BASELINE

PAGE = "matched_report.html"
# Study -> its pictures: name, title, what a reader who cannot see it needs to know, and what draws it.
_Drawn = tuple[str, str, str, Callable[..., Any]]
_OF_STUDIES: Mapping[str, Sequence[_Drawn]] = {
    "units": [(
        "single_units", "Every unit alone", "cost of each unit edited alone, by number",
        plots.single_units,
    )],
    "layers": [(
        "layers", "Every layer", "heat map of the cost by layer and relation", plots.layer_maps
    )],
    "selectivity": [(
        "selectivity", "Units of one relation, facts of another",
        "heat map of the cost by the relation units were chosen on and the one scored",
        plots.selectivity_maps,
    )],
    "linearity": [
        (
            "predictions", "How linear is the edit", "measured change against what derivatives foretell",
            linearity_plots.predictions,
        ),
        (
            "strengths", "The edit by its strength", "change against strength for each relation",
            linearity_plots.strength_curves,
        ),
    ],
}  # fmt: skip
_SCALES: _Drawn = (
    "scales", "Units multiplied by a factor", "cost against the factor", plots.strengths
)  # fmt: skip
_RESAMPLED = ("single_units", "scales")  # those that make intervals of their own
FIGURES = ("effects", "random_sets", *(drawn[0] for of in _OF_STUDIES.values() for drawn in of), "scales")
ALL_FILES = frozenset({
    PAGE,
    *(f"images/matched_{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg", "pdf")),
    *(f"tables/{name}.{suffix}" for name in (*TABLES, STRENGTHS) for suffix in ("csv", "tex")),
})  # fmt: skip
_CAPTIONS = {
    **plots.CAPTIONS,
    "scales": plots.CAPTIONS["strengths"],
    **linearity_plots.CAPTIONS,
}


def matched_report(
    results: MatchedResults,
    summary: MatchedSummary,
    objects: Mapping[str, int],
    scope: Scope,
    heading: str,
    studies: Sequence[str],
    manifest: Mapping[str, Any],
) -> Report:
    """Everything a run of the matched protocol found, drawn and told.

    Args:
      results: of one or both models. summary: of them.
      objects: relation -> how many different ones its scored facts have.
      scope: what the answer holds for. heading: what was done, in words.
      studies: those that were made.
      manifest: of the run.
    """
    first, second = answer(summary)
    return Report(
        title=_title(scope),
        question=(
            "How much worse does each model predict facts when units that vary between such facts are "
            "edited, is that more than other units would do"
            + (", and is one model really the more sensitive?" if len(results) > 1 else "?")
        ),
        answer=f"{scope.about(first)} {second}",
        protocol=[scope.paragraph, *_protocol(summary, heading)],
        figures=list(_figures(results, summary, studies)),
        tables=[*matched_tables(summary, objects), *filter(None, [strength_table(results)])],
        manifest=manifest,
    )


def _title(scope: Scope) -> str:
    if len(scope.models) == 1:
        return f"What does it cost {next(iter(scope.models))} when {scope.edit}?"
    first, second = scope.models
    return f"Is {first} more sensitive than {second} when {scope.edit}?"


def _figures(results: MatchedResults, summary: MatchedSummary, studies: Sequence[str]) -> Iterator[Figure]:
    models = " and ".join(results)
    yield _figure(
        "effects", "What the edit costs", f"change in nats per token by relation, {models}",
        plots.effects(summary),
    )  # fmt: skip
    if any("random" in each.controls for model in results.values() for each in model.relations.values()):
        yield _figure(
            "random_sets", "Against other sets of units", f"cost of the chosen and of other sets, {models}",
            plots.random_sets(results, summary),
        )  # fmt: skip
    drawn = [each for study in studies for each in _OF_STUDIES[study]]
    if any(each.scales is not None for model in results.values() for each in model.relations.values()):
        drawn.append(_SCALES)
    for name, title, alt, draw in drawn:
        how = {"seed": summary.seed} if name in _RESAMPLED else {}
        yield _figure(name, title, f"{alt}, {models}", draw(results, **how))


def _figure(name: str, title: str, alt: str, drawing: Any) -> Figure:
    return Figure(f"matched_{name}", title, _CAPTIONS[name], f"{alt[0].upper()}{alt[1:]}.", render(drawing))


def _protocol(summary: MatchedSummary, heading: str) -> list[str]:
    return [
        " ".join(heading.split()),
        "Of each relation's facts some choose the units and the others are scored, the same for both models; "
        "a control set has as many units as the chosen one. A percentile is the share of random sets with a "
        "smaller effect.",
        f"Intervals are at {100 * summary.level:g}%: facts are resampled, the same for both models "
        "(studentised bootstrap, each end no nearer than Student's t puts it); over relations, relations are "
        "the units. Holm's correction holds over the relations of one measure.",
        "Three things they take for granted. Facts count as independent, though several may share an object "
        "(the first table says how many are different), as those of the continents do: with few objects the "
        "intervals are too narrow. The facts were split once, at random; another split would choose other "
        "units. Under noise and resample there is one draw. Simulation shows the stated coverage for 15 to "
        "65 facts; with fewer than 15 it is not proven.",
        f"Of percentages {NO_BASELINE}. {share_words(summary)}".strip(),
    ]
