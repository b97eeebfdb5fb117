"""The report of `jaxprobe.delta_pct --protocol=matched`: pictures with captions, tables, the answer.

Loads matplotlib; import it when there is something to draw.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprobe.figures import render
from jaxprobe.matched import linearity_plots, map_plots, plots
from jaxprobe.matched.accounting_words import share_words
from jaxprobe.matched.common_plots import Drawing
from jaxprobe.matched.linearity_tables import ALONE_TABLE, STRENGTH_TABLE, alone_table, strength_table
from jaxprobe.matched.picture_tables import PICTURE_TABLES, picture_tables
from jaxprobe.matched.report_tables import TABLES, matched_tables
from jaxprobe.matched.results import MatchedResults
from jaxprobe.matched.rows import MatchedSummary
from jaxprobe.matched.verdict import answer
from jaxprobe.report.content import Figure, Report
from jaxprobe.report.files import file_names
from jaxprobe.scope import Scope
from jaxprobe.statistics.percentage import NO_BASELINE

PAGE = "matched_report.html"
# Study -> its pictures.
_OF_STUDIES: Mapping[str, Sequence[Drawing]] = {
    "units": [plots.SINGLE_UNITS],
    "layers": [map_plots.LAYERS],
    "selectivity": [map_plots.SELECTIVITY],
    "linearity": [linearity_plots.PREDICTIONS, linearity_plots.STRENGTHS],
}
_EVERY = (
    plots.EFFECTS, plots.RANDOM_SETS, *(each for drawn in _OF_STUDIES.values() for each in drawn),
    plots.FACTORS,
)  # fmt: skip
# What a run may leave behind, of which one with other settings makes only some.
ALL_FILES = file_names(
    PAGE, [f"matched_{each.name}" for each in _EVERY], (*TABLES, STRENGTH_TABLE, ALONE_TABLE, *PICTURE_TABLES)
)


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
        tables=[
            *matched_tables(summary, objects),
            *filter(None, [strength_table(results, summary), alone_table(results, summary)]),
            *picture_tables(results, summary),
        ],
        manifest=manifest,
    )


def _title(scope: Scope) -> str:
    if len(scope.models) == 1:
        return f"What does it cost {next(iter(scope.models))} when {scope.edit}?"
    first, second = scope.models
    return f"Is {first} more sensitive than {second} when {scope.edit}?"


def _drawings(results: MatchedResults, studies: Sequence[str]) -> Iterator[Drawing]:
    """The pictures there is something to draw for."""
    relations = [each for model in results.values() for each in model.relations.values()]
    yield plots.EFFECTS
    if any("random" in each.controls for each in relations):
        yield plots.RANDOM_SETS
    for study in studies:
        yield from _OF_STUDIES[study]
    if any(each.scales is not None for each in relations):
        yield plots.FACTORS


def _figures(results: MatchedResults, summary: MatchedSummary, studies: Sequence[str]) -> Iterator[Figure]:
    models = " and ".join(results)
    for name, title, alt, caption, draw in _drawings(results, studies):
        yield Figure(f"matched_{name}", title, caption, f"{alt}, {models}.", render(draw(results, summary)))


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
