"""Texts shared out among devices: each runs one program on texts of its own, and they say nothing to another.

All devices of all processes take part (`jax.distributed`): every process then runs the same calls in the same
order, and gets the results of all.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprobe.array_typing import np
from jaxprobe.models import LanguageModel
from jaxprobe.runtime import compiler_options

_AXIS = "texts"


@cache
def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), (_AXIS,))


def replicate(arrays: Any) -> Any:
    """The arrays whole on every device; as they are where there is one."""
    if jax.device_count() == 1:
        return arrays
    return jax.device_put(arrays, NamedSharding(_mesh(), P()))


def from_first(arrays: Any) -> Any:
    """The first process's arrays, whole on every device: what hosts compute may differ in the last digit."""
    several = jax.process_count() > 1
    return replicate(multihost_utils.broadcast_one_to_all(arrays) if several else arrays)


def shard_over_texts(
    function: Callable,
    texts: Sequence[Any],
    out: Any,
    static: Sequence[str] = (),
    mostly_products: Any = (),
) -> Any:
    """jit(function), each device running it on its share of the texts. One device runs it as it is.

    Args:
      function: of a static first argument, a model or another, of arrays, and of static keywords; a text's
        results depend on no other text.
      texts: for every array, or pytree of arrays, which axis runs over the texts, a pytree prefix; None: it
        goes whole to every device. The number of texts must be a multiple of the number of devices.
      out: the same for what it returns.
      static: names of the keywords.
      mostly_products: configs, as `isinstance` takes them, of the models of whose time in it products of
        matrices take next to all (`runtime.compiler_options`).
    """

    def run(first, *arrays, **keywords):
        of_arrays = partial(function, first, **keywords)
        if jax.device_count() == 1:
            return of_arrays(*arrays)
        specs = {"in_specs": _specs(tuple(texts)), "out_specs": _specs(out)}
        return jax.shard_map(of_arrays, mesh=_mesh(), check_vma=False, **specs)(*arrays)

    return _Program(run, tuple(static), mostly_products)


class _Program:
    """jit(run), with XLA's options for the model that is its first argument."""

    def __init__(self, run: Callable, static: tuple[str, ...], mostly_products: Any):
        @cache
        def compiled(options: tuple[tuple[str, Any], ...]) -> Any:
            return jax.jit(run, static_argnums=0, static_argnames=static, compiler_options=dict(options))

        self._compiled, self._mostly_products = compiled, mostly_products

    def __call__(self, first: Any, *arrays: Any, **keywords: Any) -> Any:
        return self._of(first)(first, *arrays, **keywords)

    def lower(self, first: Any, *arrays: Any, **keywords: Any) -> jax.stages.Lowered:
        return self._of(first).lower(first, *arrays, **keywords)

    def _of(self, first: Any) -> Any:
        if not isinstance(first, LanguageModel):
            return self._compiled(())
        products = isinstance(first.config, self._mostly_products)
        return self._compiled(tuple(compiler_options(first.config.hidden_size, products).items()))


def _specs(axes: Any) -> Any:
    def spec(axis: int | None) -> P:
        return P() if axis is None else P(*[None] * axis, _AXIS)

    return jax.tree.map(spec, axes, is_leaf=lambda axis: axis is None)


def to_host(array: Any) -> np.ndarray:
    """The whole array as numpy, in every process."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def broadcast(value: Any) -> Any:
    """What the first process says, in all of them. JSON's own types; elsewhere `value` is not read."""
    if jax.process_count() == 1:
        return value
    said = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(said))))
    mine = said if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(mine).tobytes())


def meet() -> None:
    """Has all processes begin to talk to one another, before one of them is busy: they wait 30 s for that."""
    broadcast(None)


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0
