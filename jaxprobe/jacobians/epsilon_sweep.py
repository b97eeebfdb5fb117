"""Exact versus finite difference over the size of the step: where an estimate by differences can be trusted.

The original study's estimator divides ||f(h + delta) - f(h)|| by ||delta||. Too small a step and the
difference of two rounded numbers is noise, which grows as 1 / epsilon; too large and the map is no longer
linear over the step. In between stands a plateau at the first-order value ||J delta|| / ||delta||. The same
unit draws serve every epsilon and both number formats, so that curves differ by rounding and curvature
alone, and the exact mean and variance of the first-order value follow from the Jacobian's singular values
(`jaxprobe.jacobians.spectra`).
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprobe.array_typing import Array, Float, Int, Key, Params, np
from jaxprobe.batches import Bucket, buckets
from jaxprobe.devices import replicate, shard_over_texts, to_host
from jaxprobe.jacobians.finite_difference import draw_keys, unit_draws, wrap
from jaxprobe.jacobians.readout import logits_from
from jaxprobe.jacobians.spectra import expected_gain, rms_gain
from jaxprobe.memory import program_bytes
from jaxprobe.models import LanguageModel
from jaxprobe.widths import sweep_widths

DTYPES = ("float32", "float64")
EPSILONS = np.logspace(-6, 0, 19)  # three to a decade
TOLERANCE = 0.01  # of the mean, relative: what counts as usable


class Gains(NamedTuple):
    """Euclidean norms over ||delta||, one per draw and text."""

    change: Float[Array, "g s b"]  # ||f(h + delta) - f(h)||, by epsilon
    linear: Float[Array, "s b"]  # ||J delta||: does not depend on epsilon


@dataclasses.dataclass(frozen=True)
class EpsilonStudy:
    """The sweep of one layer of one model, beside what is exact."""

    layer: int
    epsilons: Float[np.ndarray, " g"]  # ascending
    change: Mapping[str, Float[np.ndarray, "g s b"]]  # `Gains.change` by number format
    linear: Float[np.ndarray, "s b"]  # `Gains.linear` in float64
    expected: Float[np.ndarray, " b"]  # exact mean of a draw's first-order value
    variance: Float[np.ndarray, " b"]  # and its exact variance

    @property
    def exact(self) -> float:
        """Exact mean of the first-order value, over the texts."""
        return float(self.expected.mean())

    @property
    def stderr(self) -> float:
        """Exact standard error of the mean over all draws and texts."""
        return math.sqrt(self.variance.mean() / self.linear.size)

    def sampled(self, dtype: str) -> Float[np.ndarray, " g"]:
        """Mean over draws and texts at each epsilon."""
        return self.change[dtype].mean(axis=(1, 2))

    def error(self, dtype: str) -> Float[np.ndarray, " g"]:
        """Relative distance of that mean from the first-order mean of the same draws; nan where that is 0."""
        first_order = self.linear.mean() or np.nan
        return np.abs(self.sampled(dtype) / first_order - 1)

    def usable(self, dtype: str, tolerance: float = TOLERANCE) -> tuple[float, float] | None:
        """Ends of the longest run of epsilons whose error is below the tolerance; None where none is."""
        first = last = run = 0
        for end, good in enumerate(self.error(dtype) < tolerance, 1):
            run = run + 1 if good else 0
            if run > last - first:
                first, last = end - run, end
        return (float(self.epsilons[first]), float(self.epsilons[last - 1])) if last > first else None

    def scores(self, dtype: str, epsilon: float) -> Float[np.ndarray, "s b"]:
        """Each draw at the grid's epsilon nearest to this one: (draw - exact mean) / exact deviation."""
        place = np.argmin(np.abs(np.log(self.epsilons / epsilon)))
        return (self.change[dtype][place] - self.expected) / np.sqrt(self.variance)


def sweep_epsilons(
    lm: LanguageModel,
    params: Params,
    ids: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    layer: int | Int[Array, ""],
    keys: Key[Array, "s b"],
    epsilons: Float[Array, " g"],
) -> Gains:
    """Finite differences of f_l at the texts' own h_l, for every epsilon along the same draws.

    Args:
      lm: the model. params: its parameters, whose number format is that of the computation.
      ids: token ids, padded on the right. lengths: real tokens of each text; padding is not perturbed.
      layer: counted from 0; may be traced.
      keys: one per draw and text. The draws are made in float32 whatever the parameters are, and equal those
        of `jaxprobe.jacobians.finite_difference.draw_differences` in float32.
      epsilons: standard deviations of the noise; traced.
    """
    h = lm.resume(params, lm.embed(params, ids), 0, stop=layer + 1)
    f = partial(logits_from, lm, params, layer, lengths=lengths)
    norm = partial(jnp.linalg.norm, axis=-1)

    def draw(keys: Key[Array, " b"]) -> Gains:
        unit = unit_draws(keys, lengths, h.shape[1:], jnp.float32).astype(h.dtype)
        base, tangent = jax.jvp(f, (h,), (unit,))
        size = norm(unit.reshape(len(unit), -1))

        def change(epsilon: Float[Array, ""]) -> Float[Array, " b"]:
            return norm(f(h + epsilon * unit) - base) / (epsilon * size)

        return Gains(jax.lax.map(change, epsilons.astype(h.dtype)), norm(tangent) / size)

    # Ten at a time bounds the memory whatever the number of draws.
    gains = jax.lax.map(draw, keys, batch_size=min(len(keys), 10))
    return Gains(jnp.swapaxes(gains.change, 0, 1), gains.linear)


def _with_key_data(lm, params, ids, lengths, layer, key_data, epsilons):
    return sweep_epsilons(lm, params, ids, lengths, layer, wrap(key_data), epsilons)


_sweep = shard_over_texts(_with_key_data, (None, 0, 0, None, 1, None), Gains._make((2, 1)))


def epsilon_study(
    lm: LanguageModel,
    params: Params,
    ids: Sequence[Sequence[int]],
    layer: int,
    singular_values: Float[np.ndarray, "b m"],
    *,
    epsilons: Float[np.ndarray, " g"] = EPSILONS,
    num_samples: int = 10,
    seed: int = 0,
    batch_tokens: int = 4096,
) -> EpsilonStudy:
    """Sweeps epsilon in float32 and float64, in one process.

    Args:
      lm: the model. params: its parameters; where float32 does not hold them exactly, the two number formats
        are two models.
      ids: tokens of each text.
      layer: counted from 0.
      singular_values: of each text's exact Jacobian with respect to the whole sequence.
      epsilons: ascending. num_samples: draws per text.
      seed: of the draws; keys are those of `jaxprobe.jacobians.sensitivity`.
      batch_tokens: the most tokens in a batch, padding included.
    """
    runs = {}
    batches = _batches(lm, ids, len(epsilons), num_samples, batch_tokens)
    for dtype in DTYPES:
        with _computing(dtype):
            cast = replicate(jax.tree.map(lambda leaf, dtype=dtype: jnp.asarray(leaf, dtype), params))
            runs[dtype] = _run(lm, cast, batches, len(ids), layer, epsilons, num_samples, seed)
    inputs = [len(row) * lm.config.hidden_size for row in ids]
    pairs = list(zip(singular_values, inputs, strict=True))
    expected = np.array([expected_gain(*pair) for pair in pairs])
    square = np.square([rms_gain(*pair) for pair in pairs])
    return EpsilonStudy(
        layer=layer,
        epsilons=np.asarray(epsilons),
        change={dtype: change for dtype, (change, _) in runs.items()},
        linear=runs["float64"][1],
        expected=expected,
        variance=np.maximum(square - np.square(expected), 0),
    )


def study_bytes(
    lm: LanguageModel, params: Params, ids: Sequence[Sequence[int]], num_samples: int, batch_tokens: int
) -> int:
    """Bytes that `epsilon_study` takes of each device: the parameters in float64, and its program."""
    widest = max(
        _batches(lm, ids, len(EPSILONS), num_samples, batch_tokens), key=lambda batch: batch.ids.size
    )
    with _computing("float64"):
        cast = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float64"), params)
        (keys,) = draw_keys(0, widest.index, (0,), num_samples)
        program = _sweep.lower(lm, cast, widest.ids, widest.lengths, 0, keys, EPSILONS).compile()
    return sum(8 * leaf.size for leaf in jax.tree.leaves(cast)) + program_bytes(program)


@contextlib.contextmanager
def _computing(dtype: str) -> Iterator[None]:
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        yield


def _batches(lm, ids, steps: int, num_samples: int, batch_tokens: int) -> tuple[Bucket, ...]:
    lengths, rows = list(map(len, ids)), num_samples * (steps + 1)
    widths = sweep_widths(lm.config, lengths, rows, platform=jax.default_backend())
    devices = jax.device_count()
    return buckets(ids, devices * batch_tokens, widths, devices)


def _run(lm, params, batches, count: int, layer, epsilons, num_samples, seed) -> tuple[np.ndarray, ...]:
    # `Gains` of every text, in order, as numpy in float64.
    made = np.empty((len(epsilons), num_samples, count)), np.empty((num_samples, count))
    for bucket in batches:
        (keys,) = draw_keys(seed, bucket.index, (layer,), num_samples)
        gains = _sweep(lm, params, bucket.ids, bucket.lengths, layer, keys, np.asarray(epsilons))
        real = bucket.count
        for every, part in zip(made, map(to_host, gains), strict=True):
            every[..., bucket.index[:real]] = part[..., :real]
    return made
