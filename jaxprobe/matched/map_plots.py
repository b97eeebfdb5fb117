"""Maps of the matched protocol: the cost by relation and layer, and by relation and relation."""

from collections.abc import Mapping, Sequence

from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from jaxprobe.array_typing import Float, np
from jaxprobe.figures import subplots
from jaxprobe.matched.common_plots import NATS, Drawing, brief_name, fitted, per_token, sorted_names
from jaxprobe.matched.results import MatchedResults
from jaxprobe.matched.selectivity import change

_USUAL = 18  # letters of a relation's name
_LETTER = 0.08  # inches


def layer_maps(results: MatchedResults) -> Figure:
    """Relation x layer, both models, one scale of colours."""
    names = list(reversed(sorted_names(results)))
    maps = {
        title: np.stack([per_token(model.relations[name], model.layers[name]) for name in names])
        for title, model in results.items()
        if model.layers is not None
    }
    widths = [values.shape[1] for values in maps.values()]
    size = (4.2 + max(2.5 * len(maps), 0.36 * sum(widths)), max(2.6, 1.8 + 0.27 * len(names)))
    figure, grid = subplots(1, len(maps), size, grid=False, constrained=True)
    figure.suptitle("The edit at each layer, units chosen there")
    _maps(figure, grid[0], maps, names, "layer")
    for axes, width in zip(grid[0], widths, strict=True):
        axes.set_xticks(range(0, width, -(-width // 12)))
    return figure


LAYERS = Drawing(
    name="layers",
    title="Every layer",
    alt="Heat map of the cost by layer and relation",
    caption=(
        "The cost of the edit at every layer, units being chosen anew at each. All maps share one scale of "
        "colours: red costs, blue helps, and the largest fiftieth of the cells all have the darkest colour. "
        "Relations are in one order, by their mean cost over the models. Cells have no intervals: those of "
        "relations with few facts are the least sure."
    ),
    draw=lambda results, _: layer_maps(results),
)


def selectivity_maps(results: MatchedResults) -> Figure:
    """Units of the row's relation, change on the column's facts; both models, one scale of colours."""
    names = list(reversed(sorted_names(results)))
    maps = {
        title: np.array([
            [change(model.relations, row, column) for column in names] for row in names
        ])
        for title, model in results.items()
    }  # fmt: skip
    cell = max(0.2, min(0.6, 6 / len(names)))
    room = max(0, max(map(len, map(brief_name, names))) - _USUAL) * _LETTER  # for long names, on both axes
    size = (3.5 + room + len(maps) * max(2.6, cell * len(names)), 3 + room + max(1.5, cell * len(names)))
    figure, grid = subplots(1, len(maps), size, grid=False, constrained=True)
    title = "Units of one relation edited (rows), change on another's facts (columns)"
    figure.suptitle(fitted(title, len(maps)))
    _maps(figure, grid[0], maps, names, None)
    for axes in grid[0]:
        axes.set_xticks(range(len(names)), map(brief_name, names), rotation=90, fontsize=8)
    grid[0, 0].set_ylabel("units chosen on")
    return figure


SELECTIVITY = Drawing(
    name="selectivity",
    title="Units of one relation, facts of another",
    alt="Heat map of the cost by the relation units were chosen on and the one scored",
    caption=(
        "Units chosen on the relation of the row, cost on the facts of the relation of the column. A dark "
        "diagonal with a pale rest means units of that relation alone; dark columns are relations that any "
        "edit hurts, and rows that are alike chose the same units. All maps share one scale of colours, of "
        "which the largest fiftieth of the cells all have the darkest. Cells have no intervals: columns of "
        "relations with few facts are the least sure."
    ),
    draw=lambda results, _: selectivity_maps(results),
)


def _maps(
    figure: Figure,
    row: np.ndarray,
    maps: Mapping[str, np.ndarray],
    names: Sequence[str],
    label: str | None,
) -> None:
    scale = _scale(np.concatenate([values.ravel() for values in maps.values()]))
    image = None
    for place, (axes, (title, values)) in enumerate(zip(row, maps.items(), strict=True)):
        image = axes.imshow(values, norm=scale, cmap="RdBu_r", aspect="auto", interpolation="nearest")
        axes.set_yticks(range(len(names)), map(brief_name, names) if place == 0 else [], fontsize=8)
        axes.set(title=title, xlabel=label or "")
    if image is not None:
        figure.colorbar(image, ax=list(row), label=NATS, extend="both", aspect=40, extendfrac=0.02)


def _scale(values: Float[np.ndarray, " _"]) -> Normalize:
    """Zero in the middle, ends at the 98th percentile of the sizes: one cell shall not pale the rest."""
    sizes = np.abs(values[np.isfinite(values)])
    most = float(np.quantile(sizes, 0.98)) if sizes.size else 0.0
    return TwoSlopeNorm(0, -(most or 1.0), most or 1.0)
