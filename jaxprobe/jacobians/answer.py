"""The answer of the Jacobian analysis, in sentences that console and page share; ASCII, nothing printed here.

Each claim is a ratio of means beside the median of the units' own ratios and its interval, and is called "not
told apart" where the interval holds 1. Units are relations where texts come from these, else texts.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from jaxprobe.array_typing import np
from jaxprobe.configs import TITLES, Metric
from jaxprobe.console import how_many
from jaxprobe.jacobians.agreement import layer_agreements
from jaxprobe.jacobians.estimates import ModelEstimates
from jaxprobe.jacobians.measures import MEASURES, ROWS, Comparison, Layer, compare, layers_of
from jaxprobe.jacobians.results import ModelSensitivity
from jaxprobe.jacobians.verdict import check, not_compared, spectrum_holds
from jaxprobe.scope import unequal_depths
from jaxprobe.statistics.paired import LEVEL

Models = Mapping[str, ModelSensitivity]

MOVES = {
    "logits": "the last token's logits move",
    "centred": "the last token's centred logits move",
    "fisher": "the last token's prediction moves (sqrt(2 KL), KL in nats)",
}
_CLAIMS = {
    f"{label} {wrt}": f"as far when {rows}{how}"
    for wrt, rows in ROWS.items()
    for label, how in (("‖J‖", ""), ("est. ‖J‖", ", as estimated"))
}
_GAINS = {f"gain {wrt}": f"as far when {rows}" for wrt, rows in ROWS.items()}
_NOISE = {
    "sampled sensitivity": "as far by finite differences",
    "expected sensitivity": "by their exact expectation",
}


def answer(
    measured: Models,
    metric: Metric = "logits",
    site: str = "block_out",
    groups: Sequence[str] = (),
    estimated: Mapping[str, ModelEstimates] | None = None,
) -> tuple[str, ...]:
    """How much more sensitive, with its confidence, and whether samples agree: a few sentences.

    Args:
      measured: by architecture; a model that was skipped is absent.
      metric: of the output, for what is exact. site: what moves.
      groups: of each text, its relation; empty where each text stands for itself.
      estimated: under --method=matrix_free, by architecture.
    """
    layers = layers_of(measured, estimated or {})
    if broken := _not_finite(layers):
        return (
            f"None: the Jacobian, or the square of a state, is not finite at {broken} (--dtype=float64 "
            "reaches further).",
        )
    if len(measured) < 2:
        only = ", ".join(TITLES[key] for key in measured)
        return _said(
            f"Only {only} has what was asked for, so there is nothing to compare.",
            _unchecked(measured),
            agreement(measured),
        )
    found = {comparison.measure.label: comparison for comparison in compare(layers, groups)}
    unequal = {wrt for wrt in _unequal_inputs(measured) if any(label.endswith(wrt) for label in found)}
    found = {
        label: _in_a_direction(each, measured) if label.split()[-1] in unequal else each
        for label, each in found.items()
    }
    if not all(found[label].ratio for label in _CLAIMS if label in found):
        return _said(
            "None: a model's sensitivity is zero, or its numbers are too large or small for this number "
            "format (--dtype=float64 tells).",
            _unchecked(measured),
        )
    absolute, gains = _claims(found, _CLAIMS, groups), _claims(found, _GAINS, groups)
    return _said(
        _unchecked(measured),
        f"On average over these texts and layers, per unit that {site} moves, {MOVES[metric]} in Mamba, "
        f"against GPT-2, {absolute}.",
        gains and f"Relative to the size of each model's own states and logits they move {gains}.",
        _noise(found, groups),
        agreement(measured),
        _basis(next(found[label] for label in _CLAIMS if label in found), groups),
        _inputs_note(unequal),
        _depth_note(measured),
    )


def _unequal_inputs(measured: Models) -> set[str]:
    """Where the models' Jacobians have different numbers of inputs: of `last` and `sequence`."""
    mamba, gpt2 = (measured[key].inputs for key in ("mamba", "gpt2"))
    return {wrt for wrt in mamba.keys() & gpt2.keys() if not np.array_equal(mamba[wrt], gpt2[wrt])}


def _inputs_note(unequal: Collection[str]) -> str:
    """What is compared where numbers of inputs are unequal; empty where none are."""
    if not unequal:
        return ""
    where = "" if len(unequal) > 1 else f"When {ROWS[next(iter(unequal))]}, "
    return (
        f"{where}J has not as many inputs in both models: compared are its norms over the root of that "
        "number, which say how far a move of one length and random direction moves the output. Ratios in the "
        "tables are of the norms themselves."
    )


def _in_a_direction(comparison: Comparison, measured: Models) -> Comparison:
    """Norms of J, of each text, over the root of its number of inputs n; what is no norm of J as it is.

    Of moves of one length in random directions ||J||_F / sqrt(n) is the root mean square; the norm itself is
    that of n such moves together.
    """
    label = comparison.measure.label
    if label not in {*_CLAIMS, *_GAINS} or None in comparison.means.values():
        return comparison
    by_text = {
        key: values / np.sqrt(measured[key].inputs[label.split()[-1]])
        for key, values in comparison.by_text.items()
    }
    means = {key: float(values.mean()) for key, values in by_text.items()}
    return dataclasses.replace(comparison, by_text=by_text, means=means)


def _said(*sentences: str) -> tuple[str, ...]:
    return tuple(sentence for sentence in sentences if sentence)


def _not_finite(layers: Mapping[str, Sequence[Layer]]) -> str:
    """The layers at which what is claimed of has no size."""
    claimed = [measure for measure in MEASURES if measure.label in _CLAIMS]
    return ", ".join(
        f"{TITLES[key]} {layer[0].layer}"
        for key, rows in layers.items()
        for layer in rows
        if any(
            (values := measure.values(layer)) is not None and not np.isfinite(values).all()
            for measure in claimed
        )
    )


def _unchecked(measured: Models) -> str:
    """That there are exact values not to be believed, or unchecked, in a sentence each; else empty."""
    layers = {
        f"{TITLES[key]} {layer.layer}": layer for key, model in measured.items() for layer in model.layers
    }
    failed, unmade = (
        ", ".join(at for at, layer in layers.items() if check(layer) is how) for how in (False, None)
    )
    apart = ", ".join(at for at, layer in layers.items() if not spectrum_holds(layer))
    said = _said(
        failed
        and f"Exact values are not to be believed at {failed}, where the Jacobian fails its check: forward "
        "mode has another product with it.",
        unmade and f"Exact values are unchecked at {unmade}: forward mode is not finite.",
        apart
        and f"Spectra are not to be believed at {apart}: singular values do not have their Jacobian's norm.",
    )
    return " ".join(said)


def _claims(found: Mapping[str, Comparison], words: Mapping[str, str], groups: Sequence[str]) -> str:
    """Those that have a number: the gain of constant logits has none."""
    return " and ".join(
        _claim(found[label], how, _units(groups))
        for label, how in words.items()
        if label in found and found[label].ratio is not None
    )


def _claim(comparison: Comparison, how: str, units: str) -> str:
    """`1.5 times as far when every row moves (median 1.4, 97.9% interval 1.2 to 1.7)`, doubts included."""
    size = f"{comparison.ratio:.3g} times"
    found = comparison.interval
    if found is None or not found.confidence:
        one = "" if found is None else f" (one {units[:-1]}, so no interval)"
        return f"{size} {how}{one}"
    if found.confidence < LEVEL:  # `_basis` says so
        return f"{size} {how} (median {found.median:.3g}, no interval)"
    doubt = ": not told apart" if found.low <= 1 <= found.high else ""
    return (
        f"{size} {how} (median {found.median:.3g}, {100 * found.confidence:.3g}% interval {found.low:.3g} to "
        f"{found.high:.3g}{doubt})"
    )


def _units(groups: Sequence[str]) -> str:
    return "relations" if groups else "texts"


def _noise(found: Mapping[str, Comparison], groups: Sequence[str]) -> str:
    """What the draws say, and of which texts; where a model's say nothing, why."""
    sampled = found.get("sampled sensitivity")
    if sampled is None:
        return ""
    if not sampled.ratio:
        lost = " and ".join(f"{TITLES[key]}'s" for key, size in sampled.means.items() if not size)
        return (
            f"Finite differences compare nothing: {lost} are zero or not finite at this step, which is too "
            "small or too large."
        )
    count = sampled.count or 0
    of = f" (of {how_many(len(set(groups[:count])), 'relation')})" if groups else ""
    claims = _claims(found, _NOISE, groups)
    return f"Under noise on every row the logits move {claims}, on the first {how_many(count, 'text')}{of}."


def _basis(comparison: Comparison, groups: Sequence[str]) -> str:
    """What the intervals are over."""
    ratios = comparison.ratios
    if ratios is None or len(ratios) < 2:
        return ""
    what = (
        f"{len(ratios)} relations, the mean of a relation's texts being one value"
        if groups
        else f"{len(ratios)} texts, taken as independent"
    )
    few = comparison.interval is not None and comparison.interval.confidence < LEVEL
    then = f"too few for {100 * LEVEL:.3g}% intervals" if few else "each interval stands for itself"
    return f"Medians are of the ratios of {what}; {then}."


def agreement(measured: Models) -> str:
    """Whether what was sampled may stand for what is exact, in a sentence; empty without samples."""
    sampled = [layer for model in measured.values() for layer in model.layers if layer.sampled is not None]
    if not sampled:
        return ""
    compared = layer_agreements(measured)
    checked = [each for each in compared if each.verdict.checked]  # of the others `_unchecked` tells
    layers = "layers" if len(checked) == len(compared) else "other layers"
    if not compared:
        reason = not_compared(sampled[0]).removeprefix("not compared: ")
        return f"Sampled and exact sensitivities are not compared: {reason}."
    if not checked:
        return ""
    apart = [each for each in checked if not each.verdict.agrees]
    if not apart:
        return f"Sampled and exact sensitivities agree within sampling error at all {len(checked)} {layers}."
    said = []
    for faulty, then in (
        (False, "where the exact is to be believed"),
        (True, "where draws of the exact Jacobian miss their own expectation, which points to a fault"),
    ):
        where = [f"{each.model} {each.layer}" for each in apart if each.verdict.faulty is faulty]
        if where:
            said.append(f"at {len(where)} of {len(checked)} {layers} ({', '.join(where)}), {then}")
    return f"Sampled and exact sensitivities disagree {', and '.join(said)}."


def _depth_note(measured: Models) -> str:
    layers = {layer.layer for model in measured.values() for layer in model.layers}
    if len(layers) > 1:
        return ""
    return unequal_depths({TITLES[key]: model.config.num_layers for key, model in measured.items()}, *layers)
