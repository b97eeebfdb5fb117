"""What a forward pass does at its sites: which edits it applies and which activations it keeps.

`Taps` is data, given to the forward pass; `LayerTap` is the function that a block calls at each of its
sites while one layer is traced. Nothing outlives the trace.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprobe.array_typing import Array, ArrayLike, Bool, Float, Int, Key, np
from jaxprobe.configs import ModelConfig
from jaxprobe.errors import ProbeError
from jaxprobe.kernels.selective_scan import ScanBackend
from jaxprobe.sites import SSM_STATE, check_layer, site_width

Mode = Literal["zero", "mean", "noise", "scale", "replace", "add"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["layer", "units", "value", "key"],
    meta_fields=["site", "mode"],
)
@dataclasses.dataclass(frozen=True)
class Edit:
    """A pure function on chosen units of one site of one layer; build it with `jaxprobe.perturb`.

    Every mode is affine in the units it touches, `gain * unit + offset`:

        zero     0, 0                     mean      0, mean of the unit over the text's tokens
        noise    1, N(0, value^2)         scale     value, 0
        replace  0, value                 add       1, value

    Attributes:
      site: name of a site (`jaxprobe.sites`); static under jit.
      mode: static under jit.
      layer: counted from 0; may be traced, so that one compiled program serves every layer.
      units: indices into the site's w units.
      value: the standard deviation, the factor, or what replaces or is added (broadcast to [b t k]).
      key: PRNG key for noise: one, or one per text, in which case the draw of a text does not depend on
        the texts beside it. Noise at a token does not depend on the padding either.
    """

    site: str
    mode: Mode
    layer: int | Int[Array, ""]
    units: Int[Array, " k"] | Int[np.ndarray, " k"]
    value: ArrayLike = 0.0
    key: Key[Array, "*b"] | None = None

    def affine(
        self, values: Float[Array, "b t w"], mask: Bool[Array, "b t"]
    ) -> tuple[float | Float[Array, ""], float | Float[Array, "..."]]:
        """Gain and offset of the edit where the site holds `values`; padding, where not mask, is ignored."""
        match self.mode:
            case "zero":
                return 0.0, 0.0
            case "mean":
                chosen = jnp.where(mask[..., None], values[..., self.units], 0)
                count = jnp.sum(mask, axis=1)[:, None, None]
                return 0.0, jnp.sum(chosen, axis=1, keepdims=True) / count.astype(values.dtype)
            case "noise":
                return 1.0, jnp.asarray(self.value, values.dtype) * self._normal(values)
            case "scale":
                return jnp.asarray(self.value, values.dtype), 0.0
            case "replace":
                return 0.0, jnp.asarray(self.value, values.dtype)
            case "add":
                return 1.0, jnp.asarray(self.value, values.dtype)

    def _normal(self, values: Float[Array, "b t w"]) -> Float[Array, "b t k"]:
        batch, tokens, _ = values.shape
        keys = self.key
        if keys is None:
            raise ProbeError("an edit of mode noise needs a PRNG key")
        if keys.ndim == 0:
            keys = jax.vmap(partial(jax.random.fold_in, keys))(jnp.arange(batch))
        # Threefry counts row by row, so a longer (padded) draw begins with the shorter one.
        shape = (tokens, *self.units.shape)
        return jax.vmap(lambda key: jax.random.normal(key, shape, values.dtype))(keys)


@partial(jax.tree_util.register_dataclass, data_fields=["edits"], meta_fields=["capture"])
@dataclasses.dataclass(frozen=True)
class Taps:
    """Edits to apply, in order, and names of the sites to capture (after their edits)."""

    edits: tuple[Edit, ...] = ()
    capture: tuple[str, ...] = ()


NO_TAPS = Taps()


def check_taps(taps: Taps, config: ModelConfig, scan: ScanBackend) -> None:
    """Refuses what would otherwise be ignored or clamped.

    Raises:
      ProbeError: a site the model lacks, a layer or unit out of range (where it is not traced), or an edit
        of the recurrent state together with the associative scan.
    """
    for site in taps.capture:
        site_width(config, site)
    for edit in taps.edits:
        width = site_width(config, edit.site)
        if edit.site == SSM_STATE and scan is ScanBackend.ASSOCIATIVE:
            raise ProbeError(
                f"site {SSM_STATE} is edited inside the recurrence: use --scan=sequential or auto"
            )
        if not isinstance(edit.layer, Tracer):
            check_layer(config, int(edit.layer))
        if not isinstance(edit.units, Tracer) and edit.units.size:
            units = np.asarray(edit.units)  # under jit, jax's own min would be traced
            low, high = int(units.min()), int(units.max())
            if low < 0 or high >= width:
                raise ProbeError(
                    f"site {edit.site} has units 0 to {width - 1}, got {low if low < 0 else high}"
                )


class LayerTap:
    """Applies and captures at the sites of one layer. Lives for one trace of one layer."""

    def __init__(self, taps: Taps, layer: int | Int[Array, ""], mask: Bool[Array, "b t"]):
        self._taps, self._layer, self._mask = taps, layer, mask
        self.captured: dict[str, Float[Array, "b t w"]] = {}

    def __call__(self, site: str, value: Float[Array, "b t w"]) -> Float[Array, "b t w"]:
        """The value at a site, edited; kept if the site is captured."""
        for edit in self._edits(site):
            gain, offset = edit.affine(value, self._mask)
            edited = value.at[..., edit.units].set(_affine(gain, value[..., edit.units], offset))
            value = jnp.where(edit.layer == self._layer, edited, value)
        self.keep(site, value)
        return value

    def keep(self, site: str, value: Float[Array, "b t w"]) -> None:
        """Keeps the value of a site, if the site is captured."""
        if self.captures(site):
            self.captured[site] = value

    def captures(self, site: str) -> bool:
        """Whether the site is captured."""
        return site in self._taps.capture

    def edits_site(self, site: str) -> bool:
        """Whether any edit names the site, whatever its layer."""
        return any(self._edits(site))

    def touches(self, site: str) -> bool:
        """Whether the site is captured or edited, at any layer."""
        return self.captures(site) or self.edits_site(site)

    def recurrent(
        self, site: str, unedited: Float[Array, "b t w"]
    ) -> tuple[Float[Array, " w"], Float[Array, "b t w"]]:
        """The edits of a recurrent state as one dense gain and offset, to act inside the recurrence.

        Args:
          site: the recurrent site.
          unedited: what the site holds with no edit: a mean is the mean of these.
        """
        gain = jnp.ones(unedited.shape[-1], unedited.dtype)
        offset = jnp.zeros_like(unedited)
        for edit in self._edits(site):
            g, o = edit.affine(unedited, self._mask)
            here = edit.layer == self._layer
            # Edits compose in order: the later acts on what the earlier left.
            # A unit named twice counts once.
            new_gain = gain.at[edit.units].set(_affine(g, gain[edit.units], 0.0))
            new_offset = offset.at[..., edit.units].set(_affine(g, offset[..., edit.units], o))
            gain, offset = jnp.where(here, new_gain, gain), jnp.where(here, new_offset, offset)
        return gain, offset

    def _edits(self, site: str):
        return [edit for edit in self._taps.edits if edit.site == site]


def _affine(gain, values: Float[Array, "*b k"], offset) -> float | Float[Array, "..."]:
    # What is replaced may be anything: zero times infinity is nan.
    return offset if isinstance(gain, float) and gain == 0 else gain * values + offset
