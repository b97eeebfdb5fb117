"""What all pictures share: one style, one pair of colours, and their bytes. Plots modules build on this.

Figures are made without pyplot, which keeps every one in a list of its own until it is told to forget it.
"""

import io
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine, TightLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from jaxprobe.array_typing import np

STYLE = "seaborn-v0_8-whitegrid"  # matplotlib's own copy: seaborn itself takes seconds to import

# Okabe and Ito's colours: distinct to colour-blind eyes and in print.
COLOURS = {"mamba": "#D55E00", "gpt2": "#0072B2"}
MARKERS = {"mamba": "o", "gpt2": "s"}

_PNG_DPI = 130
_VECTOR_DPI = 220  # of the parts of a vector picture that are pixels: images, and what is rasterised
_TITLE_INCHES = 0.1  # from a figure's edge to its title
_MARGIN_INCHES = 0.08  # of the constrained layout, whose own leaves labels at the very edge
_BYTES: dict[Any, Any] = {
    "svg.fonttype": "path",  # text looks the same wherever it is opened
    "svg.hashsalt": "jaxprobe",  # else ids differ from run to run
    "text.hinting": "none",  # letters as wide in pixels, by which a figure is laid out, as in the others
    "pdf.fonttype": 3,  # 42 takes twice the time of all the rest of a PDF
}


def subplots(
    rows: int,
    columns: int,
    size: tuple[int | float, int | float],
    *,
    grid: bool = True,
    constrained: bool = False,
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [rows, columns].

    Args:
      rows: of axes. columns: of axes.
      size: width and height in inches.
      grid: whether axes have grid lines.
      constrained: matplotlib's constrained layout, which makes room for a colour bar; else the tight one.
    """
    with style.context([STYLE, {"axes.grid": grid}]):
        layout = ConstrainedLayoutEngine(w_pad=_MARGIN_INCHES, h_pad=_MARGIN_INCHES) if constrained else None
        figure = Figure(figsize=size, layout=layout)
        return figure, figure.subplots(rows, columns, squeeze=False)


def say_nothing(axes: Axes) -> None:
    """In place of curves or cells: that there are none, as of what is zero or not finite."""
    axes.set(xticks=(), yticks=())
    axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", va="center")


def render(figure: Figure) -> Mapping[str, bytes]:
    """The figure as "png", "svg" and "pdf". The same figure gives the same bytes: no dates, no random ids.

    It is laid out once, for all three; what is drawn into it afterwards is not. Text is shown as it is
    written: a label may hold dollars, which matplotlib would take for mathematics.
    """
    # Here, as a command that fails before it has anything to draw need not load them.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    made = {name: io.BytesIO() for name in ("png", "svg", "pdf")}
    powers = set(_powers(figure))
    for text in figure.findobj(Text):
        text.set_parse_math(text in powers)
    if figure.get_layout_engine() is None:
        for text in figure.texts:  # room is made for a title at the edge, not a fiftieth of the height below
            if text.get_text() == figure.get_suptitle():
                text.set_y(1 - _TITLE_INCHES / figure.get_figheight())
    with matplotlib.rc_context(_BYTES):
        for axes in figure.axes:
            # A fixed height spares a search for what is in the title's way, a third of each drawing.
            if "top" not in (axes.xaxis.get_label_position(), axes.xaxis.get_ticks_position()):
                axes.set_title(axes.get_title(), y=1.0, fontsize=axes.title.get_fontsize())
        figure.set_dpi(_PNG_DPI)
        agg = FigureCanvasAgg(figure)
        (figure.get_layout_engine() or TightLayoutEngine()).execute(figure)
        figure.set_layout_engine("none")
        agg.print_png(made["png"])
        # Straight to the canvases: savefig would draw everything a second time to lay it out again.
        figure.set_dpi(_VECTOR_DPI)
        FigureCanvasSVG(figure).print_svg(made["svg"], metadata={"Date": None})
        figure.set_dpi(_VECTOR_DPI)
        FigureCanvasPdf(figure).print_pdf(made["pdf"], metadata={"CreationDate": None})
    return {name: buffer.getvalue() for name, buffer in made.items()}


def _powers(figure: Figure) -> Iterator[Text]:
    """Labels of logarithmic axes, which matplotlib writes as mathematics, 10^-3 and the like."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for minor, formatter in enumerate((axis.get_major_formatter(), axis.get_minor_formatter())):
                if isinstance(formatter, LogFormatter):
                    yield from axis.get_ticklabels(minor=bool(minor))
