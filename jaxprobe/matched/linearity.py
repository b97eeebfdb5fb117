"""How linear an edit is: what its first and second derivative at strength 0 predict, and what is measured.

Strength s moves the chosen units of a site from x to x + s (edited(x) - x): s = 0 is the model as it is and
s = 1 the edit whole. With L(s) a text's negative log-likelihood summed over its counted tokens, g and H its
gradient and Hessian by the site's values, and e = edited(x) - x the displacement,

    L'(0) = <g, e>      L''(0) = <e, H e>      L(s) - L(0) = s L'(0) + s^2 L''(0) / 2 + O(s^3).

At `ssm_state`, where an edit acts inside the recurrence, e itself changes with the edit of earlier tokens:
L'' is then still the second derivative by s, but no longer that form.

L' and L'' are exact: the path h(s) is carried through the blocks as its value and first two derivatives,
which is Taylor arithmetic (Griewank and Walther 2008, chapter 13). So there is no reverse pass, memory does
not grow with depth, and the layer may be traced. The blocks below the edited layer are not run again.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, ArrayLike, Bool, Float, Int, Key, Params, np
from jaxprobe.configs import MambaConfig, ModelConfig
from jaxprobe.matched.results import Curves
from jaxprobe.models import LanguageModel
from jaxprobe.scoring.perplexity import token_nll
from jaxprobe.sites import check_layer, site_width
from jaxprobe.taps import Edit, Mode, Taps

# Of the widest array of a text that is worked on, so many elements at once: 64 MiB in float32.
_ELEMENTS = 2**24
CURVE_ELEMENTS = 10 * _ELEMENTS  # that all arrays of one program have at once, generously


class Texts(NamedTuple):
    """Texts as they stand before the edited layer, and what the edit takes beside its units."""

    h: Float[Array, "b t d"]  # what enters the layer
    ids: Int[Array, "b t"]
    lengths: Int[Array, " b"]
    counted: Bool[Array, "b t-1"]  # which of the tokens 1.. are: no padding among them
    values: Float[Array, "b ..."]  # of the edit: [b]; for replace and add [b t w] or [b 1 w], all units
    keys: Key[Array, " b"] | None = None  # of the noise


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["layer", "units", "value", "key", "strength"],
    meta_fields=["site", "mode"],
)
@dataclass(frozen=True)
class PartialEdit(Edit):
    """An edit of which each unit has a strength of its own: x -> x + strength (edited(x) - x)."""

    strength: ArrayLike = 1.0

    def affine(
        self, values: Float[Array, "b t w"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, " k"], Float[Array, "..."]]:
        """Gain and offset: an affine edit in part is affine too."""
        gain, offset = super().affine(values, mask)
        strength = jnp.broadcast_to(jnp.asarray(self.strength, values.dtype), self.units.shape)
        return 1 + strength * (gain - 1), strength * offset


def set_curves(
    lm: LanguageModel,
    params: Params,
    texts: Texts,
    units: Int[Array, "b k"],
    layer: int,
    *,
    site: str,
    mode: Mode,
) -> Curves:
    """Derivatives of each text's negative log-likelihood by the strength of its units' edit.

    Args:
      lm: the model. params: its parameters.
      texts: as they stand before the layer.
      units: of each text.
      layer: counted from 0; one compiled program serves every layer.
      site: any of the model's; `ssm_state` runs the sequential scan.
      mode: of the edit.

    Returns:
      Curves over the texts [b].

    Raises:
      ProbeError: the model lacks the site or the layer, or ssm_state meets the associative scan.
    """
    check_layer(lm.config, layer)
    return Curves(*map(np.asarray, _set_curves(lm, params, texts, units, layer, site=site, mode=mode)))


def unit_curves(
    lm: LanguageModel,
    params: Params,
    texts: Texts,
    layer: int,
    *,
    site: str,
    mode: Mode,
) -> Curves:
    """The same of every unit of the site edited alone; arguments as `set_curves`.

    Under noise each has the draw of an edit of one unit, so all share its numbers. The unedited text runs
    once; a unit then costs about two forward passes from the layer on.

    Returns:
      Curves over units and texts [w b].
    """
    check_layer(lm.config, layer)
    return Curves(*map(np.asarray, _unit_curves(lm, params, texts, layer, site=site, mode=mode)))


def lower_curves(
    lm: LanguageModel,
    params: Params,
    texts: Texts,
    count: int,
    layer: int,
    *,
    site: str,
    mode: Mode,
    units: bool,
) -> tuple[jax.stages.Lowered, ...]:
    """The programs of `set_curves` and, where each of the `units` is wanted, `unit_curves`, traced alone.

    Args:
      lm: the model. params: its parameters.
      texts: or their shapes.
      count: units of a set.
      layer, site, mode: as `set_curves`.
      units: whether each unit alone is wanted too.
    """
    sets = jax.ShapeDtypeStruct((len(texts.ids), count), jnp.int32)
    lowered = (_set_curves.lower(lm, params, texts, sets, layer, site=site, mode=mode),)
    return lowered + ((_unit_curves.lower(lm, params, texts, layer, site=site, mode=mode),) if units else ())


@partial(jax.jit, static_argnums=0, static_argnames=("site", "mode"))
def _set_curves(lm: LanguageModel, params: Params, texts: Texts, units, layer, *, site, mode):
    def one(row):
        text, units = row
        follow = _follow(lm, params, text, units, layer, site, mode)
        return follow(jnp.ones(units.shape, text.h.dtype))

    return jax.lax.map(one, (texts, units), batch_size=_lanes(lm.config, texts.ids.shape[1]))


@partial(jax.jit, static_argnums=0, static_argnames=("site", "mode"))
def _unit_curves(lm: LanguageModel, params: Params, texts: Texts, layer, *, site, mode):
    units = jnp.arange(site_width(lm.config, site))
    lanes = _lanes(lm.config, texts.ids.shape[1])

    def one(text):
        drawn = _add_noise(text, layer, site, len(units)) if mode == "noise" else text
        follow = _follow(lm, params, drawn, units, layer, site, "add" if mode == "noise" else mode)

        def alone(unit):
            return follow((units == unit).astype(text.h.dtype))

        return jax.lax.map(alone, units, batch_size=min(lanes, len(units)))

    return jax.tree.map(jnp.transpose, jax.lax.map(one, texts))


def _add_noise(text: Texts, layer, site, width) -> Texts:
    """The text with its noise drawn as for one unit and given to all, as values to add.

    A draw for all units together holds other numbers than the one which a unit edited alone is given.
    """
    key = None if text.keys is None else text.keys[None]
    edit = Edit(site, "noise", layer, jnp.zeros(1, jnp.int32), text.values, key)
    _, noise = edit.affine(text.h[None], jnp.ones((1, len(text.h)), bool))
    return text._replace(values=jnp.broadcast_to(jnp.asarray(noise)[0], (len(text.h), width)), keys=None)


class _Path(NamedTuple):
    # A point of a path at s = 0, with the path's first and second derivative by s there.
    value: Float[Array, "..."]
    first: Float[Array, "..."]
    second: Float[Array, "..."]


def _push(f, path: _Path) -> _Path:
    """The path f(x(s)): (f(x))' = f' x' and (f(x))'' = f''[x', x'] + f' x''."""

    def moving(x, v):
        return jax.jvp(f, (x,), (v,))

    # The tangent of f(x) is computed twice, by the same operations on the same numbers: XLA makes them one.
    (value, first), (_, second) = jax.jvp(moving, path[:2], path[1:])
    return _Path(value, first, second)


def _follow(lm, params, text, units, layer, site, mode):
    """A text's first and second derivative along a direction [k] of its units' strengths."""

    def block(place, h: _Path) -> _Path:
        return _push(partial(lm.block, lm.block_params(params, place), place), h)

    def along(direction):
        # Only derivatives depend on the direction: under vmap the values are computed once for all of them.
        start = _Path(jnp.zeros_like(direction), direction, jnp.zeros_like(direction))
        h = _push(partial(_edited_block, lm, params, text, units, layer, site, mode), start)
        h = jax.lax.fori_loop(layer + 1, lm.config.num_layers, block, h)
        nll = _push(lambda h: _nll(lm, params, text, h), h)
        return nll.first, nll.second

    return along


def _edited_block(lm, params, text: Texts, units, layer, site, mode, strength):
    value = text.values if text.values.ndim == 0 else text.values[..., units]
    key = None if text.keys is None else text.keys[None]
    edit = PartialEdit(site, mode, layer, units, value, key, strength)
    block = lm.block_params(params, layer)
    return lm.tapped_block(block, layer, text.h[None], text.lengths[None], Taps(edits=(edit,)))[0]


def _nll(lm, params, text: Texts, h):
    logits = lm.unembedding(params) @ lm.normalise(params, h[0, :-1]).T
    return jnp.sum(jnp.where(text.counted, token_nll(logits, text.ids[1:]), 0))


def _lanes(config: ModelConfig, tokens: int) -> int:
    widest = config.vocab_size
    if isinstance(config, MambaConfig):
        widest = max(widest, config.intermediate_size * config.state_size)
    return max(1, _ELEMENTS // (tokens * widest))
