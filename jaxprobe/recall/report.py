"""The report of `jaxprobe.factual_recall`: its picture with a caption, its tables, the answer.

Loads matplotlib; import it when there is something to draw.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxprobe.figures import render
from jaxprobe.original.columns import Filled, estimates, filled_table
from jaxprobe.recall.decoding import Accuracy, FactRecall
from jaxprobe.recall.plots import recall_panels
from jaxprobe.recall.summary import RelationSummary, Summary
from jaxprobe.recall.tables import pattern_rows, percent
from jaxprobe.recall.verdict import answer
from jaxprobe.report.content import Cell, Column, Figure, Report, Table
from jaxprobe.report.estimates import estimate_cells, estimate_columns, few_words
from jaxprobe.report.files import file_names
from jaxprobe.scope import Scope
from jaxprobe.statistics.inference import FEWEST, LEVEL, Estimate

PAGE = "factual_recall_report.html"
FIGURE = "factual_recall"
TABLES = ("recall_relations", "recall_perplexity", "recall_shares", "recall_patterns", "recall_facts")
ALL_FILES = file_names(PAGE, [FIGURE], TABLES)


def recall_report(summary: Summary, scope: Scope, heading: str, manifest: Mapping[str, Any]) -> Report:
    """Everything a run found, drawn and told.

    Args:
      summary: of each model.
      scope: what the answer holds for. heading: what was done to the models.
      manifest: of the run.
    """
    return Report(
        title=f"Factual recall when {scope.edit}",
        question=(
            "When the units that vary most between a relation's sentences are perturbed, how much worse does "
            "each model predict these sentences and others, and does it still recall the facts?"
        ),
        answer=scope.about(" ".join(answer(summary))),
        protocol=[scope.paragraph, *_protocol(heading)],
        figures=[_figure(summary)],
        tables=list(_tables(summary)),
        manifest=manifest,
    )


def _figure(summary: Summary) -> Figure:
    return Figure(
        FIGURE,
        "Cost and recall, relation by relation",
        "Left: what the edit costs on the relation whose units were chosen (dot) and on texts of no relation "
        "(ring); the further the dot lies to the right of its ring, the more selective the edit. Right: the "
        "share of the relation's objects that the model writes out whole, before the edit (ring) and with it "
        "(dot). Black lines are 95% intervals of the dots: of the cost over a relation's sentences, where "
        "there are five and more, of the share over its facts.",
        "Dots by relation: nats per token, and share of objects recalled, for "
        f"{' and '.join(summary.relations)}.",
        render(recall_panels(summary)),
    )


def _tables(summary: Summary) -> Iterator[Table]:
    # A row for each relation and model, so that no list of models makes a table wide.
    rows = [(title, name, each) for title, found in summary.relations.items() for name, each in found.items()]
    entries = [entry for _, _, entry in rows]
    few = [name for title, name, each in rows if len(each.cost.scores.facts.tokens) < FEWEST]
    few_sentences = few_words(list(dict.fromkeys(few)), len(summary.names), "sentences")
    of = [
        Filled(Column("relation"), [name for _, name, _ in rows]),
        Filled(Column("model"), [title for title, _, _ in rows]),
    ]

    def values(label: str, meaning: str, get: Callable[[RelationSummary], Estimate | None]) -> list[Filled]:
        return estimates(label, meaning, [get(entry) for entry in entries])

    yield filled_table(
        "recall_relations",
        "Each relation",
        "Change in nats per token of its sentences, and of texts of no relation, when its units are edited. "
        "Intervals are over its sentences, with the units as they are, and over the other texts. "
        f"{few_sentences}",
        [
            *of,
            *values(
                "nats",
                "change of the negative log-likelihood per token: the measure to compare",
                lambda entry: entry.cost.erased["delta_nats"],
            ),
            *values(
                "other nats",
                "of texts of no relation, under the same edit",
                lambda entry: entry.cost.control["delta_nats"],
            ),
        ],
    )
    yield filled_table(
        "recall_perplexity",
        "The same in perplexity, and selectivity",
        "Intervals as above. Selectivity has no value where other texts do not get worse.",
        [
            *of,
            *values(
                "baseline",
                "perplexity of the relation's sentences before the edit",
                lambda entry: entry.cost.erased["baseline_ppl"],
            ),
            *values(
                "%",
                "percentage change of perplexity = 100 (exp(nats) − 1)",
                lambda entry: entry.cost.erased["percentage"],
            ),
            *values("other %", "that of the other texts", lambda entry: entry.cost.control["percentage"]),
            Filled(
                Column(
                    "selectivity",
                    "% / other %, as the study defines it: of little use where other % is near 0",
                ),
                [entry.selectivity for entry in entries],
            ),
        ],
    )
    yield filled_table(
        "recall_shares",
        "Recall of the facts",
        "In percent. Intervals of greedy recall are exact binomial ones over the facts.",
        [
            *of,
            Filled(Column("facts", "how many can be scored"), [entry.before.facts for entry in entries]),
            Filled(
                Column(
                    "forced before",
                    "% of the object's tokens that are the likeliest ones, given the true text before them",
                ),
                [_forced(entry.before) for entry in entries],
            ),
            Filled(
                Column("forced after", "the same with the units edited"),
                [_forced(entry.after) for entry in entries],
            ),
            *values(
                "greedy before",
                "% of facts whose object the model writes out whole",
                lambda entry: percent(entry.before.greedy),
            ),
            *values(
                "greedy after",
                "the same with the units edited",
                lambda entry: percent(entry.after.greedy),
            ),
        ],
    )
    patterns = {title: pattern_rows(found) for title, found in summary.patterns.items()}
    yield Table(
        "recall_patterns",
        "Patterns",
        "Over relations: means, with intervals over them; selectivity: the median of those there are. Greedy "
        "recall is over all facts together. r: correlation over relations, with Fisher's interval, which "
        "takes both to be normal; fewer than five relations are too few for an interval.",
        [
            Column("measure"),
            *(column for title in patterns for column in estimate_columns(title, "over relations", LEVEL)),
        ],
        [
            [label, *(cell for each in patterns.values() for cell in _pattern_cells(each[label]))]
            for label in next(iter(patterns.values()))
        ],
    )
    yield _facts(summary)


def _facts(summary: Summary) -> Table:
    return Table(
        "recall_facts",
        "Each fact",
        "What the model writes in the object's place, before the edit and with it: as many tokens as the "
        "object has.",
        [
            Column("relation"),
            Column("object", "what completes the sentence"),
            *(
                Column(f"{label}, {title}", meaning)
                for title in summary.relations
                for label, meaning in (
                    ("before", "written without the edit"),
                    ("after", "written with the units edited"),
                    ("recalled", "before and after; or why the fact is not scored"),
                )
            ),
        ],
        [
            [
                relation,
                fact.object,
                *(cell for found in summary.relations.values() for cell in _fact(found[relation].facts[i])),
            ]
            for relation, entry in next(iter(summary.relations.values())).items()
            for i, fact in enumerate(entry.facts)
        ],
    )


def _forced(accuracy: Accuracy) -> float | None:
    return None if accuracy.teacher_forced is None else 100 * accuracy.teacher_forced


def _pattern_cells(value: Estimate | int | str | None) -> list[Cell]:
    return estimate_cells(value) if isinstance(value, Estimate) else [value, None, None]


def _fact(fact: FactRecall) -> list[Cell]:
    if fact.left_out:
        return ["", "", f"not scored: {fact.left_out}"]
    recalled = ", ".join("yes" if each else "no" for each in (fact.recalled_before, fact.recalled_after))
    return [fact.said_before.strip(), fact.said_after.strip(), recalled]


def _protocol(heading: str) -> list[str]:
    return [
        " ".join(heading.split()),
        "Perplexity is exp of the mean negative log-likelihood per token over all of a relation's sentences, "
        "each sentence alone. Recall is greedy: the model writes as many tokens as the object has, from the "
        "sentence before it, and sees nothing of what follows.",
        "Units are chosen on the very sentences that are measured, so the cost on them is no estimate for "
        "new sentences; delta_pct --protocol=matched has the controls. The interval of a median is one "
        "for the median over relations like these, of order statistics: it assumes only that these are "
        "independent. Others are a studentised bootstrap's, each end no nearer than Student's t puts it.",
    ]
