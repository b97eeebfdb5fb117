"""What a checkpoint is, as text: configuration, parameters, sites, tokenizer, certificate. Needs no JAX."""

import math
from collections.abc import Iterable, Iterator, Mapping

from jaxprobe.configs import TITLES, describe
from jaxprobe.convert import Checkpoint, param_shapes
from jaxprobe.sites import site_widths

Shape = tuple[int, ...]


def report(checkpoint: Checkpoint) -> str:
    """The structure of a model: sizes, parameters by group, sites with shapes, and where it came from."""
    config, certificate, tokenizer = checkpoint.config, checkpoint.certificate, checkpoint.tokenizer
    layers = config.num_layers
    title = f"{TITLES[config.architecture]}: {certificate.source}"
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    said = {"vocab_size": tokenizer.vocab_size, **{f"{name}_token_id": i for name, i in special.items()}}
    sections = {
        "Configuration": _pairs(describe(config)),
        "Parameters": _columns(_parameter_rows(param_shapes(config), layers)),
        f"Sites, at each of the layers 0 to {layers - 1}, for a text of t tokens": _columns(
            (site, f"[t, {width}]") for site, width in site_widths(config).items()
        ),
        "Tokenizer": _pairs(said),
        "Conversion certificate": _pairs(certificate.to_json()),
    }
    body = "\n".join(f"\n{name}\n{text}" for name, text in sections.items())
    return f"{title}\n{'=' * len(title)}\n{body}"


def _parameter_rows(shapes: Mapping, layers: int) -> Iterator[tuple[str, ...]]:
    leaves = {path: shape for path, shape in _leaves(shapes)}
    total = sum(math.prod(shape) for shape in leaves.values())

    def row(name: str, shape: str, count: int) -> tuple[str, ...]:
        return (name, shape, f"{count:,}", f"{count / total:.1%}")

    for group in shapes:
        inside = {path: shape for path, shape in leaves.items() if path[0] == group}
        count = sum(math.prod(shape) for shape in inside.values())
        if group == "blocks":
            yield row(f"blocks, all {layers}", "", count)
            for path, (_, *shape) in inside.items():
                yield row(f"  each: {'/'.join(path[1:])}", str(shape), math.prod(shape))
        else:
            for path, shape in inside.items():
                yield row("/".join(path), str(list(shape)), math.prod(shape))
    yield row("total", "", total)


def _leaves(tree: Mapping, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Shape]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _pairs(values: Mapping[str, object]) -> str:
    return _columns((name, _value(value)) for name, value in values.items())


def _value(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)


def _columns(rows: Iterable[tuple[str, ...]]) -> str:
    """Columns, indented; the first two are left-aligned, the others, numbers, to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )  # fmt: skip
