"""Console tables of `jaxprobe.delta_pct`: strings from results, nothing printed here."""

import math
from collections.abc import Mapping

from jaxprobe.console import table
from jaxprobe.original.intervals import over_relations
from jaxprobe.original.records import Results, averages, decomposition
from jaxprobe.run_configs import Perturbation
from jaxprobe.scope import done
from jaxprobe.statistics.inference import LEVEL, Estimate
from jaxprobe.statistics.percentage import Change, Decomposition, Terms

_LEGEND = """\
  nats  change of the negative log-likelihood per token = log(perturbed / baseline): the measure to compare
  %     percentage change of perplexity = 100 (exp(nats) - 1): the baseline has no part in it
  abs   absolute change of perplexity = baseline x % / 100: the baseline does"""


def delta_report(results: Results, perturbation: Perturbation, sites: Mapping[str, tuple[str, str]]) -> str:
    """Every console table of the percentage analysis, and the answer in a sentence or two.

    Args:
      results: of one or both models.
      perturbation: what was done.
      sites: model title -> where units were chosen, and where they were edited.
    """
    sections = [f"{heading(perturbation, sites)}\n{_LEGEND}", _values(results)]
    accounting = decomposition(results)
    if accounting is None:
        return "\n\n".join([*sections, _controls(results), _one_model(results)])
    return "\n\n".join(
        [*sections, _ratios(results, accounting), _controls(results), _answer(results, accounting)]
    )


def heading(perturbation: Perturbation, sites: Mapping[str, tuple[str, str]]) -> str:
    """What was done: the edit, the protocol and its sites; arguments as `delta_report`."""
    where = "; ".join(f"{title}: chosen at {read}, edited at {edit}" for title, (read, edit) in sites.items())
    what = f"those that vary most between the sentences, are {done(perturbation)}"
    return (
        f"Perplexity of each relation's sentences before and after an edit: {perturbation.top_k} units of "
        f"layer {perturbation.layer},\n{what}.\n"
        f"Protocol {perturbation.protocol}. {where}."
    )


def _values(results: Results) -> str:
    columns = {"nats": "delta_nats", "%": "percentage", "abs": "absolute", "baseline": "baseline_ppl"}
    header = ["relation", *(f"{name} {_initial(title)}" for name in columns for title in results)]
    rows = [
        [relation, *(
            number(getattr(results[title][relation].erased, attribute))
            for attribute in columns.values() for title in results
        )]
        for relation in _relations(results)
    ]  # fmt: skip
    means = {title: averages(_erased(results, title)) for title in results}
    names = ("delta_nats_per_token", "percentage_change", "absolute_change", "baseline_ppl")
    rows.append(["mean", *(number(means[title][name]) for name in names for title in results)])
    for label, end in (("  from", "low"), ("  to", "high")):
        rows.append([label, *(
            _end(over_relations([getattr(change, attribute) for change in _erased(results, title)]), end)
            for attribute in columns.values() for title in results
        )])  # fmt: skip
    initials = ", ".join(f"{_initial(title)}: {title}" for title in results)
    return (
        f"Each relation ({initials}), and their mean with its {100 * LEVEL:g}% interval over relations; the "
        f"intervals of\neach are in the files\n{table(header, rows)}"
    )


def _end(estimate: Estimate, end: str) -> str:
    value = getattr(estimate, end)
    return "-" if value is None else number(value)


def _ratios(results: Results, accounting: Decomposition) -> str:
    first, second = results
    rows = []
    for relation in _relations(results):
        a, b = (results[title][relation].erased for title in results)
        terms = accounting.terms.get(relation)
        rows.append([
            relation, _ratio(a.delta_nats, b.delta_nats), _ratio(a.absolute, b.absolute),
            _ratio(b.baseline_ppl, a.baseline_ppl), *_logs(terms),
        ])  # fmt: skip
    rows.append(["mean", "", "", "", *_logs(accounting.mean)])
    title = (
        f"Ratios: nats and abs, {first} / {second}; baseline, {second} / {first}. Where both models get "
        "worse,\nlog % ratio = log abs ratio + log baseline ratio, exactly. This is accounting, not a cause."
    )
    header = ["relation", "nats", "abs", "baseline", "log % ratio", "= log abs", "+ log baseline"]
    return f"{title}\n" + table(header, rows)


def _logs(terms: Terms | None) -> list[str]:
    if terms is None:
        return ["-"] * 3
    return [
        f"{value:+.3f}"
        for value in (terms.log_percentage_ratio, terms.log_absolute_ratio, terms.log_baseline_ratio)
    ]


def _controls(results: Results) -> str:
    columns = {"nats": "delta_nats", "%": "percentage", "perturbed": "perturbed_ppl"}
    header = ["units of", *(f"{name} {_initial(title)}" for name in columns for title in results)]
    rows = [
        [relation, *(
            number(getattr(results[title][relation].control, attribute))
            for attribute in columns.values() for title in results
        )]
        for relation in _relations(results)
    ]  # fmt: skip
    baselines = ", ".join(
        f"{title} {number(next(iter(relations.values())).control.baseline_ppl)}"
        for title, relations in results.items()
    )
    return f"Control texts with the same units edited (baseline perplexity: {baselines})\n" + table(
        header, rows
    )


def _one_model(results: Results) -> str:
    ((title, _),) = results.items()
    mean = averages(_erased(results, title))
    return (
        f"Answer: the edit costs {title} {number(mean['delta_nats_per_token'])} nats per token on average "
        f"({number(mean['percentage_change'])}%). With one model there is nothing to compare."
    )


def _answer(results: Results, accounting: Decomposition) -> str:
    first, second = results
    a, b = (averages(_erased(results, title)) for title in results)
    nats = a["delta_nats_per_token"], b["delta_nats_per_token"]
    times = f", {nats[0] / nats[1]:.3g} times as much" if min(nats) > 0 else ""
    left_out = (f"\nLeft out of it: {name}, as {why}." for name, why in accounting.left_out.items())
    return (
        f"Answer: on average the edit costs {first} {number(nats[0])} and {second} {number(nats[1])} nats "
        f"per token{times}\n({number(a['percentage_change'])}% against {number(b['percentage_change'])}% of "
        f"perplexity). {_share(first, second, accounting)}{''.join(left_out)}"
    )


def _share(first: str, second: str, accounting: Decomposition) -> str:
    mean, count = accounting.mean, len(accounting.terms)
    over = f"geometric means, {count} of {count + len(accounting.left_out)} relations"
    if mean is None:
        return "There is nothing to decompose: on no relation do both models get worse."
    percentages, absolutes, baselines = (
        f"{math.exp(log):.3g}"
        for log in (mean.log_percentage_ratio, mean.log_absolute_ratio, mean.log_baseline_ratio)
    )
    account = (
        f"{first}'s percentages are {percentages} times {second}'s:\n{absolutes} from absolute changes x "
        f"{baselines} from baselines ({over}), so\n"
    )
    if accounting.share is None:
        return account + "in percent there is no excess that a lower baseline could explain."
    return account + f"the denominator's share of the excess in percent is {100 * accounting.share:.1f}%."


def _relations(results: Results) -> list[str]:
    return list(next(iter(results.values())))


def _erased(results: Results, title: str) -> list[Change]:
    return [scores.erased for scores in results[title].values()]


def _initial(title: str) -> str:
    return title[0]


def number(value: float) -> str:
    """Four digits, as tables show a number."""
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _ratio(a: float, b: float) -> str:
    return number(a / b) if min(a, b) > 0 else "-"
