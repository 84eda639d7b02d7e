"""What figures share: their style, looks of methods, labels of lines, axes.

Bytes are the same for the same rows: no dates, a fixed order, fonts that ship with Matplotlib. A
method has one colour and marker in every figure, by its place in ``experiments/methods.yaml``,
unless another one has the colour there. Beside every PNG but pictures of images lies the figure as
SVG.
"""

import contextlib
import functools
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from teddy.core.files import atomic_path

DPI = 150
WIDTH, PANEL = 7.2, 2.1
"""Width of a page's text and height of a panel; inches."""
GREY = "#666666"

_NO_GLYPH = re.compile(r"Glyph (\d+) .* missing from")
"""What Matplotlib warns of, letter by letter."""

# Okabe and Ito's palette, without its yellow, which is too light on white, then three of Tol's.
COLOURS = (
    "#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#882255", "#999933", "#332288",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Colours of lines that are no methods."""

_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.hashsalt": "teddy",  # which names of parts are made of, else random
    "svg.fonttype": "path",  # letters as they are here, whatever fonts a reader has
}


@dataclass(frozen=True, slots=True)
class Look:
    """Colour and marker of a method."""

    colour: str
    marker: str


def looks(methods: Sequence[str], shown: Collection[str]) -> dict[str, Look]:
    """Look of the methods that a figure shows.

    There are fewer colours than methods: one whose colour another method of the figure has takes
    the next that is free.

    Args:
        methods: all that are declared, in order.
        shown: those of the figure.
    """
    found: dict[str, Look] = {}
    for i, method in enumerate(methods):
        if method in shown:
            own = [COLOURS[(i + step) % len(COLOURS)] for step in range(len(COLOURS))]
            taken = {look.colour for look in found.values()}
            colour = next((colour for colour in own if colour not in taken), own[0])
            found[method] = Look(colour, MARKERS[i % len(MARKERS)])
    return found


@contextlib.contextmanager
def drawn(
    path: Path, width: float, height: float, *, formulas: bool = False, svg: bool = True
) -> Iterator[Figure]:
    """Figure of a size in inches, written to ``path`` when the block has drawn it.

    Args:
        path: PNG to write.
        width: inches.
        height: inches.
        formulas: whether text between dollars is a formula; names of classes may have dollars.
        svg: whether an SVG is written beside it.
    """
    with styled(formulas=formulas):
        figure = Figure(figsize=(width, height), dpi=DPI)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
        if svg:
            with atomic_path(path.with_suffix(".svg")) as temporary:
                figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})


@contextlib.contextmanager
def styled(*, formulas: bool = False) -> Iterator[None]:
    """The style of figures; of letters that the font lacks it tells once, not letter by letter."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", _NO_GLYPH.pattern, UserWarning)
        with style.context(["default", _STYLE | {"text.parse_math": formulas}]):
            yield
    missing = set()
    for warning in caught:
        if glyph := _NO_GLYPH.match(str(warning.message)):
            missing.add(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if missing:
        _say_missing("".join(sorted(missing)))


@functools.cache
def _say_missing(letters: str) -> None:
    more = "…" if len(letters) > 10 else ""
    print(
        f"figures: the font lacks {len(letters)} letters, which are drawn as boxes: "
        f"{letters[:10]}{more}",
        file=sys.stderr,
    )


@dataclass(frozen=True, slots=True)
class LineEnd:
    """Label at the end of a line; x None is the right edge of the panel."""

    text: str
    x: float | None
    y: float
    colour: str


def label_ends(axes: Axes, ends: Sequence[LineEnd]) -> None:
    """Name lines at the right of the panel, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    log = axes.get_yscale() == "log"
    scale = np.log if log else np.asarray
    ordered = sorted(ends, key=lambda end: end.y)
    fractions = [float((scale(e.y) - scale(low)) / (scale(high) - scale(low))) for e in ordered]
    line = 10.5 / 72 / PANEL  # height of a line of text as a share of the panel
    heights = [line * (1 + end.text.count("\n")) for end in ordered]
    right = axes.get_xlim()[1]
    for end, place in zip(ordered, moved_apart(fractions, heights, 0, 1), strict=True):
        axes.annotate(
            end.text, (right if end.x is None else end.x, end.y), (1.05, place),
            textcoords="axes fraction", color=end.colour, fontsize=7.5, va="center",
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.5, "alpha": 0.6,
                        "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def moved_apart(
    places: Sequence[float], heights: Sequence[float], low: float, high: float
) -> list[float]:
    """Ascending places between bounds, moved apart so that labels of these heights fit.

    Moves as little as possible in least squares under ``x[i+1] − x[i] ≥ (h[i] + h[i+1]) / 2``:
    after subtracting those gaps this is an isotonic regression, in which neighbours that violate
    the order are pooled. With too many labels the upper bound gives way.
    """
    offsets = [0.0]
    for lower, upper in pairwise(heights):
        offsets.append(offsets[-1] + (lower + upper) / 2)
    blocks: list[list[float]] = []
    for place, offset in zip(places, offsets, strict=False):
        blocks.append([place - offset])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [float(np.mean(block)) for block in blocks for _ in block]
    top = high - offsets[-1]
    return [
        max(low, min(value, top)) + offset for value, offset in zip(level, offsets, strict=False)
    ]


def plain_log(axes: Axes) -> None:
    """Logarithmic y axis with plain numbers, as many as its range needs."""
    axes.set_yscale("log")
    axes.autoscale_view()
    low, high = axes.get_ylim()
    many = high / low > 50
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if many else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs="auto") if many else NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def short_name(name: str) -> str:
    """Last part of a row's name."""
    return name.rsplit("/", 1)[-1]


def slope_guide(
    axes: Axes, xs: Sequence[float], order: float, through: tuple[float, float], text: str
) -> None:
    """Grey line of a slope in a log-log panel."""
    ys = [through[1] * (x / through[0]) ** order for x in xs]
    axes.plot(xs, ys, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label=text, zorder=1)


def log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic x axis with ticks at these values alone."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{value:g}" for value in values]))
    axes.xaxis.set_minor_locator(NullLocator())
