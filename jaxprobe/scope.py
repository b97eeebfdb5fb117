"""What an answer holds for, in words: the edit, the layer of how many, the checkpoints, who was left out."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass

from jaxprobe import shipped
from jaxprobe.loading import LoadedModel
from jaxprobe.neurons import protocol_sites, unit_count, why_not
from jaxprobe.provenance import source_name
from jaxprobe.run_configs import Perturbation

_DONE = {
    "zero": "set to zero",
    "mean": "set to their mean over the text",
    "reference_mean": "set to their mean over the control texts",
    "noise": "given noise of standard deviation {noise_std:g}",
    "scale": "multiplied by {scale:g}",
    "resample": "given the activation of another fact of the relation",
}


def done(perturbation: Perturbation) -> str:
    """What happens to the units: `set to zero`."""
    return _DONE[perturbation.mode].format(noise_std=perturbation.noise_std, scale=perturbation.scale)


@dataclass(frozen=True)
class Scope:
    """What an answer holds for.

    Attributes:
      units: which are edited, such as `10 units of block_out at layer 1`.
      done: what happens to them, such as `set to zero`.
      models: title -> checkpoint and layers, such as `mamba-facts, layers 0 to 6`.
      notes: what else limits the answer, a sentence each.
    """

    units: str
    done: str
    models: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def about(self, sentence: str) -> str:
        """The sentence with what it holds for before it: `With 10 units ... set to zero, it costs ...`."""
        named = sentence.startswith(tuple(self.models))
        rest = sentence if named else sentence[:1].lower() + sentence[1:]
        models = _list([f"{title} ({words})" for title, words in self.models.items()])
        return f"With {self.units} of {models} {self.done}, {rest}"

    @property
    def edit(self) -> str:
        """What is done: `10 units of block_out at layer 1 are set to zero`."""
        return f"{self.units} {'is' if self.units.startswith('1 unit ') else 'are'} {self.done}"

    @property
    def paragraph(self) -> str:
        """The checkpoints, and all that limits the answer."""
        models = "; ".join(f"{title} is {words}" for title, words in self.models.items())
        return " ".join([f"{models}. Layers count from 0.", *self.notes])


def scope(
    opened: Mapping[str, LoadedModel],
    perturbation: Perturbation,
    tokens: Mapping[str, Sequence[Sized]],
    notice: str = shipped.notice(),
) -> Scope:
    """What an answer about these models holds for.

    Args:
      opened: every model that was asked for, by title; those that lack the layer or the site are left out.
      perturbation: what is done to them, to one of them at least.
      tokens: of every text, by the title of each model that is not left out.
      notice: said where a model is the package's own.
    """
    reasons = {title: why_not(model.lm.config, perturbation) for title, model in opened.items()}
    kept = {title: model for title, model in opened.items() if reasons[title] is None}
    depths = {title: model.lm.config.num_layers for title, model in kept.items()}
    site = protocol_sites(next(iter(kept.values())).lm.config, perturbation).edit
    units = {title: unit_count(model.lm.config, perturbation) for title, model in kept.items()}
    number = " and ".join(dict.fromkeys(map(str, units.values())))
    notes = [f"{title} is left out: {reason}." for title, reason in reasons.items() if reason]
    notes += filter(None, (unequal_depths(depths, perturbation.layer), _unequal_tokens(tokens)))
    if any(shipped.is_shipped(model.certificate.source) for model in kept.values()):
        notes.append(f"{notice}.")
    return Scope(
        units=f"{number} {'unit' if number == '1' else 'units'} of {site} at layer {perturbation.layer}",
        done=done(perturbation),
        models={title: _checkpoint(title, model) for title, model in kept.items()},
        notes=tuple(notes),
    )


def unequal_depths(depths: Mapping[str, int], layer: int) -> str:
    """That one layer of models of unequal depth is compared, in a sentence; else empty.

    Args:
      depths: model title -> how many layers it has. layer: the one compared.
    """
    if len(set(depths.values())) < 2:
        return ""
    of = ", ".join(f"layer {layer} of {title}'s {depth}" for title, depth in depths.items())
    return f"What is compared, {of}, does not lie at the same share of the depth."


def _unequal_tokens(tokens: Mapping[str, Sequence[Sized]]) -> str:
    """That what is per token has not one unit, in a sentence; empty where all have as many tokens."""
    counts = [list(map(len, rows)) for rows in tokens.values()]
    if all(each == counts[0] for each in counts):
        return ""
    return (
        "The models cut texts into tokens of different lengths, so neither nats per token nor perplexities "
        "are in one unit."
    )


def _checkpoint(title: str, model: LoadedModel) -> str:
    name, layers = source_name(model.certificate.source), f"layers 0 to {model.lm.config.num_layers - 1}"
    return layers if name == title else f"{name}, {layers}"


def _list(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
