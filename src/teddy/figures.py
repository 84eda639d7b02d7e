"""Figures of the report: one function each, rows in, a PNG out.

Bytes are the same for the same rows: no dates, a fixed order, fonts that ship with Matplotlib. A
method has one colour and marker in every figure, by its place in ``params.yaml``.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from numpy.typing import NDArray

from teddy.files import atomic_path
from teddy.results import (
    Base,
    Cost,
    History,
    ImageGrid,
    LossCurve,
    PoolFacts,
    Score,
    StreamScore,
    Titles,
)

Pixels = NDArray[np.uint8]

DPI = 150
WIDTH, PANEL = 7.2, 2.1
"""Width of a page's text and height of a panel; inches."""
GREY = "#666666"
IMAGES_COMPARED = 3
"""Images per class in the grid that compares methods."""

# Okabe and Ito's palette, without its yellow, which is too light on white.
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
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
}


@dataclass(frozen=True, slots=True)
class Look:
    """Colour and marker of a method."""

    colour: str
    marker: str


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """Look of every method, by its place among all that are declared."""
    return {
        method: Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, method in enumerate(methods)
    }


@contextlib.contextmanager
def _drawn(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Figure of a size in inches, written to ``path`` when the block has drawn it."""
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(width, height), dpi=DPI)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


# ---------------------------------------------------------------------------------------- accuracy


def accuracy(path: Path, scores: Sequence[Score], bases: Sequence[Base], titles: Titles) -> None:
    """Last-epoch accuracy against IPC: a row per dataset and student, a column per labels."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in sorted(scores, key=lambda score: list(titles.datasets).index(score.dataset)):
        groups.setdefault((score.dataset, score.arch), []).append(score)
    kinds = sorted({score.labels for score in scores})
    with _drawn(path, WIDTH * (0.3 + 0.35 * len(kinds)), (PANEL + 0.55) * len(groups)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(len(groups), len(kinds), squeeze=False, sharey="row")
        for row, ((dataset, arch), own) in zip(panels, groups.items(), strict=True):
            teachers = [base for base in bases if base.dataset == dataset]
            present = [kind for kind in kinds if any(s.labels == kind for s in own)]
            ends = [
                _accuracy_panel(axes, [s for s in own if s.labels == kind], teachers, titles)
                for axes, kind in zip(row, present, strict=False)
            ]
            row[0].set_ylim(*_headroom(*row[0].get_ylim()))
            for axes, kind, labels in zip(row, present, ends, strict=False):
                axes.set_title(f"{titles.datasets[dataset]}, {kind} labels", loc="left")
                _label_ends(axes, labels)
            for axes in row[len(present) :]:
                axes.set_visible(False)
            split = {"val": "validation"}.get(own[0].split, own[0].split)
            row[0].set_ylabel(f"{arch} top-1, {split} split (%)")


def _headroom(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis of percentages: at least five points, little beyond 0 and 100."""
    margin = max(0.0, 5 - (high - low)) / 2
    return max(low - margin, -2), min(high + margin, 102)


@dataclass(frozen=True, slots=True)
class _End:
    """Label at the end of a line; x None is the right edge of the panel."""

    text: str
    x: float | None
    y: float
    colour: str


def _accuracy_panel(
    axes: Axes, scores: Sequence[Score], teachers: Sequence[Base], titles: Titles
) -> list[_End]:
    ends = []
    ipcs = sorted({score.ipc for score in scores})
    methods = [m for m in titles.methods if any(score.method == m for score in scores)]
    for place, method in enumerate(methods):
        look = looks(list(titles.methods))[method]
        points = sorted((s for s in scores if s.method == method), key=lambda score: score.ipc)
        # Side by side by a hair, so that error bars stay apart.
        shift = 1.02 ** (place - (len(methods) - 1) / 2)
        xs, ys = [score.ipc * shift for score in points], [score.top1_mean for score in points]
        axes.errorbar(
            xs, ys, [score.top1_std for score in points], color=look.colour, marker=look.marker,
            capsize=2, elinewidth=0.8, capthick=0.8,
        )  # fmt: skip
        ends.append(_End(titles.methods[method], xs[-1], ys[-1], look.colour))
    for base in teachers:
        name = _short(base.name) if len(teachers) > 1 else "teacher"
        top1 = base.epochs[-1].val_top1
        axes.axhline(top1, color=GREY, linestyle=(0, (4, 3)), linewidth=0.9)
        ends.append(_End(f"{name} (validation)", None, top1, GREY))
    _log_ticks(axes, ipcs)
    axes.set_xlabel("images per class")
    return ends


def _log_ticks(axes: Axes, ipcs: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(ipcs[0] / 1.3, ipcs[-1] * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(ipcs))
    axes.xaxis.set_major_formatter(FixedFormatter([str(ipc) for ipc in ipcs]))
    axes.xaxis.set_minor_locator(NullLocator())


def _label_ends(axes: Axes, ends: Sequence[_End]) -> None:
    """Name lines at the right of the panel, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    log = axes.get_yscale() == "log"
    scale = np.log if log else np.asarray
    ordered = sorted(ends, key=lambda end: end.y)
    fractions = [float((scale(e.y) - scale(low)) / (scale(high) - scale(low))) for e in ordered]
    line = 10.5 / 72 / PANEL  # height of a line of text as a share of the panel
    heights = [line * (1 + end.text.count("\n")) for end in ordered]
    right = axes.get_xlim()[1]
    for end, place in zip(ordered, spread(fractions, heights, 0, 1), strict=True):
        axes.annotate(
            end.text, (right if end.x is None else end.x, end.y), (1.05, place),
            textcoords="axes fraction", color=end.colour, fontsize=7.5, va="center",
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.5, "alpha": 0.6,
                        "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(
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


# ------------------------------------------------------------------------------------ along an axis


def along_axis(
    path: Path, scores: Sequence[Score], attribute: str, title: str, titles: Titles
) -> None:
    """Last-epoch accuracy along a setting, as Fig. 3: a row per dataset, a line per IPC and labels.

    Where scores have a KL divergence and the axis is the teachers' stage, a second column has it,
    as Fig. 2c.
    """
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(score.dataset, []).append(score)
    divergence = attribute == "stages"
    columns = 2 if divergence else 1
    with _drawn(path, WIDTH * (0.35 + 0.3 * columns), (PANEL + 0.5) * len(groups)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(len(groups), columns, squeeze=False)
        for row, (dataset, own) in zip(panels, groups.items(), strict=True):
            _axis_panel(row[0], own, attribute, "top1_mean", title)
            row[0].set_title(titles.datasets[dataset], loc="left")
            row[0].set_ylabel("top-1, test split (%)")
            if divergence:
                _axis_panel(row[1], own, attribute, "kl_student_teacher", title)
                row[1].set_title("divergence, soft labels", loc="left")
                row[1].set_ylabel("KL(student ‖ teacher), nats")


def _axis_panel(
    axes: Axes, scores: Sequence[Score], attribute: str, value: str, title: str
) -> None:
    places = list(dict.fromkeys(getattr(score, attribute) for score in scores))
    numbers = all(isinstance(place, int) for place in places)
    lines: dict[tuple[int, str], list[Score]] = {}
    for score in scores:
        if getattr(score, value) is not None:
            lines.setdefault((score.ipc, score.labels), []).append(score)
    for index, ((ipc, labels), own) in enumerate(sorted(lines.items())):
        xs = [getattr(s, attribute) if numbers else places.index(getattr(s, attribute))
              for s in own]  # fmt: skip
        ordered = sorted(zip(xs, own, strict=True), key=lambda pair: pair[0])
        spread = [s.top1_std if value == "top1_mean" else 0.0 for _, s in ordered]
        axes.errorbar(
            [x for x, _ in ordered], [getattr(s, value) for _, s in ordered], spread,
            color=_COLOURS[_ipc_colour(ipc, lines)], marker=_MARKERS[index % len(_MARKERS)],
            linestyle="-" if labels == "soft" else (0, (4, 3)), capsize=2, elinewidth=0.8,
            label=f"IPC {ipc}, {labels}",
        )  # fmt: skip
    if numbers:
        axes.xaxis.set_major_locator(FixedLocator(sorted(places)))
    else:
        axes.xaxis.set_major_locator(FixedLocator(range(len(places))))
        names = ["–".join(map(str, place)) for place in places]
        axes.xaxis.set_major_formatter(FixedFormatter(names))
    axes.set_xlabel(title)
    axes.legend(loc="best")


def _ipc_colour(ipc: int, lines: Iterable[tuple[int, str]]) -> int:
    """Index of the colour of an IPC among those drawn."""
    return sorted({one for one, _ in lines}).index(ipc) % len(_COLOURS)


# ------------------------------------------------------------------------------------------- costs


def streams(path: Path, streams: Sequence[StreamScore], titles: Titles) -> None:
    """Accuracy on seen classes after each step, as Fig. 3e: a row per dataset and IPC, a column per
    kind of teachers, a line per method and labels.
    """
    rows: dict[tuple[str, int], list[StreamScore]] = {}
    for stream in streams:
        rows.setdefault((stream.dataset, stream.ipc), []).append(stream)
    kinds = sorted({stream.strict for stream in streams})
    style = looks(list(titles.methods))
    with _drawn(path, WIDTH * (0.35 + 0.3 * len(kinds)), (PANEL + 0.5) * len(rows)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(len(rows), len(kinds), squeeze=False, sharey="row")
        for panel, ((dataset, ipc), own) in zip(panels, rows.items(), strict=True):
            for axes, strict in zip(panel, kinds, strict=True):
                for stream in own:
                    if stream.strict == strict:
                        _stream_line(axes, stream, style[stream.method], titles)
                teachers = "strict" if strict else "paper-like"
                axes.set_title(f"{titles.datasets[dataset]}, IPC {ipc}, {teachers}", loc="left")
                axes.set_xticks(own[0].classes)
                axes.set_xlabel("classes seen")
            panel[0].set_ylabel(f"top-1 on seen classes, {own[0].split} split (%)")
            panel[0].legend(fontsize="small")


def _stream_line(axes: Axes, stream: StreamScore, look: Look, titles: Titles) -> None:
    soft = stream.labels == "soft"
    axes.errorbar(
        stream.classes, stream.top1_mean, stream.top1_std,
        color=look.colour, marker=look.marker, linestyle="-" if soft else (0, (4, 3)),
        capsize=2, elinewidth=0.8,
        label=titles.methods[stream.method] + ("" if soft else ", hard labels"),
    )  # fmt: skip


def costs(path: Path, costs: Sequence[Cost], titles: Titles) -> None:
    """Fig. 3d: seconds of pre-training and synthesis, and peak memory; a row per dataset."""
    groups: dict[str, list[Cost]] = {}
    for cost in costs:
        groups.setdefault(cost.dataset, []).append(cost)
    with _drawn(path, WIDTH, (PANEL + 0.4) * len(groups)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(len(groups), 2, squeeze=False)
        for row, (dataset, own) in zip(panels, groups.items(), strict=True):
            names = [f"{titles.methods[cost.method]}\nk = {cost.draw}" for cost in own]
            places = np.arange(len(own))
            before = [cost.pretraining_seconds for cost in own]
            row[0].bar(places, before, color=_COLOURS[2], label="pre-training")
            row[0].bar(
                places, [cost.synthesis_seconds for cost in own], bottom=before,
                color=_COLOURS[5], label="synthesis",
            )  # fmt: skip
            row[1].bar(places, [cost.peak_mib for cost in own], color=GREY)
            row[0].legend(loc="best")
            row[0].set_title(f"{titles.datasets[dataset]}, IPC {own[0].ipc}: time", loc="left")
            row[0].set_ylabel("seconds")
            row[1].set_title("peak memory of synthesis", loc="left")
            row[1].set_ylabel("MiB")
            for axes in row:
                axes.set_xticks(places, names)
                axes.grid(visible=False, axis="x")


# ---------------------------------------------------------------------------------------- teachers


def teachers(path: Path, bases: Sequence[Base], pools: Sequence[PoolFacts], titles: Titles) -> None:
    """Every base run: accuracy and loss per epoch with the members taken from it, and its pools."""
    with _drawn(path, WIDTH, (PANEL + 0.5) * len(bases)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(len(bases), 3, squeeze=False)
        for row, base in zip(panels, bases, strict=True):
            own = [pool for pool in pools if pool.base == base.name]
            colours = _pool_colours(own, titles)
            _trajectory_panels(row[0], row[1], base, own, colours)
            _pool_panel(row[2], own, colours)
            row[0].set_title(f"{base.name}: held-out accuracy", loc="left")
            row[0].set_ylabel("top-1, validation split (%)")
            row[1].set_title("training loss", loc="left")
            row[1].set_ylabel("cross-entropy, log scale")
            row[2].set_title("members of the pools", loc="left")
            row[2].set_ylabel("top-1, validation split (%)")
            row[2].sharey(row[0])


def _pool_colours(pools: Sequence[PoolFacts], titles: Titles) -> dict[str, str]:
    own = looks(list(titles.methods))
    return {pool.name: own[pool.method].colour if pool.method else GREY for pool in pools}


def _trajectory_panels(
    top1: Axes, loss: Axes, base: Base, pools: Sequence[PoolFacts], colours: dict[str, str]
) -> None:
    epochs = [entry.epoch for entry in base.epochs]
    by_epoch = {entry.epoch: entry for entry in base.epochs}
    top1.plot(epochs, [entry.val_top1 for entry in base.epochs], color=GREY, linewidth=1)
    loss.plot(epochs, [entry.loss for entry in base.epochs], color=GREY, linewidth=1)
    _plain_log(loss)
    for pool in pools:
        taken = [by_epoch[m.epoch] for m in pool.members if m.epoch in by_epoch]
        for axes, values in (
            (top1, [entry.val_top1 for entry in taken]),
            (loss, [entry.loss for entry in taken]),
        ):
            axes.plot(
                [entry.epoch for entry in taken], values, "D" if pool.kind == "prior" else "s",
                color=colours[pool.name], label=f"{_short(pool.name)} pool" if taken else None,
            )  # fmt: skip
    for axes in (top1, loss):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    if any(pool.kind != "post" for pool in pools):
        top1.legend(loc="best", handletextpad=0.2)


def _pool_panel(axes: Axes, pools: Sequence[PoolFacts], colours: dict[str, str]) -> None:
    """Members in order; a prior pool is stretched over the post pool that imitates it."""
    last = max((len(pool.members) for pool in pools), default=1) - 1
    for pool in sorted(pools, key=lambda pool: pool.kind == "post"):
        colour, size = colours[pool.name], len(pool.members)
        name, values = _short(pool.name), [member.val_top1 for member in pool.members]
        if pool.kind == "converged":
            axes.axhline(values[0], color=colour, linewidth=0.9, linestyle=(0, (4, 3)), label=name)
        elif pool.kind == "prior":
            places = np.linspace(0, last if size > 1 else 0, size)
            axes.plot(places, values, "-D", color=colour, linewidth=1, label=name)
        else:
            places = np.arange(float(size))
            targets = [m.val_top1 if m.target_top1 is None else m.target_top1 for m in pool.members]
            axes.vlines(places, targets, values, color=colour, linewidth=0.8, alpha=0.6)
            axes.plot(places, targets, "_", color=colour, markersize=8, label=f"{name}: target")
            axes.plot(places, values, "^", color=colour, label=f"{name}: reached")
    stretched = any(pool.kind == "prior" and 1 < len(pool.members) <= last for pool in pools)
    axes.set_xlabel("member (prior pool stretched)" if stretched else "member")
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=1))
    if pools:
        axes.legend(loc="best", handletextpad=0.4)


def _plain_log(axes: Axes) -> None:
    """Logarithmic y axis with plain numbers, as many as its range needs."""
    axes.set_yscale("log")
    axes.autoscale_view()
    low, high = axes.get_ylim()
    many = high / low > 50
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if many else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs="auto") if many else NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1]


# --------------------------------------------------------------------------------------- synthesis

_TERMS = {"classifier_prior": "classifier prior", "statistics": "statistics term"}


def synthesis(path: Path, histories: Sequence[History], titles: Titles) -> None:
    """Both terms of Eq. 7 over iterations; every method at its largest IPC, a row per dataset."""
    datasets = [d for d in titles.datasets if any(h.dataset == d for h in histories)]
    with _drawn(path, WIDTH, (PANEL + 0.55) * max(1, len(datasets))) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(max(1, len(datasets)), 2, squeeze=False)
        for row, dataset in zip(panels, datasets, strict=False):
            own = _largest([h for h in histories if h.dataset == dataset], list(titles.methods))
            for axes, term in zip(row, _TERMS, strict=True):
                _loss_panel(axes, own, term, titles)
                axes.set_title(f"{titles.datasets[dataset]}: {_TERMS[term]} of Eq. 7", loc="left")
            row[0].set_ylabel("loss, log scale")
        if not datasets:
            for axes in panels[0]:
                axes.set_axis_off()
            figure.suptitle("No set is synthesised, so there are no loss curves.")


def _largest(histories: Sequence[History], methods: Sequence[str]) -> list[History]:
    chosen: dict[str, History] = {}
    for history in sorted(histories, key=lambda history: history.ipc):
        chosen[history.method] = history
    return [chosen[method] for method in methods if method in chosen]


def _loss_panel(axes: Axes, histories: Sequence[History], term: str, titles: Titles) -> None:
    ends = []
    for history in histories:
        colour = looks(list(titles.methods))[history.method].colour
        items = history.items if len(history.items) > 1 else ()
        for item in items[:: max(1, len(items) // 20)]:
            axes.plot(item.iterations, _values(item, term), color=colour, linewidth=0.4, alpha=0.3)
        mean = history.mean()
        axes.plot(mean.iterations, _values(mean, term), color=colour, linewidth=1.2)
        name = f"{titles.methods[history.method]}\nIPC {history.ipc}, {_count(history)}"
        ends.append(_End(name, mean.iterations[-1], _values(mean, term)[-1], colour))
    axes.set_xlabel("iteration")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    _plain_log(axes)
    _label_ends(axes, ends)


def _values(curve: LossCurve, term: str) -> Sequence[float]:
    return curve.classifier_prior if term == "classifier_prior" else curve.statistics


def _count(history: History) -> str:
    count = len(history.items)
    return f"mean of {count} items" if count > 1 else "1 item"


# ------------------------------------------------------------------------------------------ images

_GAP, _BLOCK_GAP, _PAD = 2, 12, 10
"""White between tiles, between blocks of tiles, and around the picture; pixels."""
_TEXT = 8
"""Size of text in pictures; points."""


def method_grid(path: Path, grids: Sequence[ImageGrid], titles: Titles) -> None:
    """The same classes of one dataset side by side: a block of rows per method."""
    own = looks(list(titles.methods))
    ipcs = sorted({grid.ipc for grid in grids})
    title = f"{titles.datasets[grids[0].dataset]}{_shown_classes(grids[0])}, " + (
        f"IPC {ipcs[0]}" if len(ipcs) == 1 else "IPC differs"
    )
    names = [
        titles.methods[grid.method] + (f", IPC {grid.ipc}" if len(ipcs) > 1 else "")
        for grid in grids
    ]
    colours = [own[grid.method].colour for grid in grids]
    blocks = [grid.images[:IMAGES_COMPARED] for grid in grids]
    _picture(path, title, blocks, names, colours, [_class(name) for name in grids[0].class_names])


def class_grid(path: Path, grid: ImageGrid, titles: Titles) -> None:
    """Images of one set: a row per class."""
    title = (
        f"{titles.datasets[grid.dataset]}{_shown_classes(grid)}, {titles.methods[grid.method]}, "
        f"IPC {grid.ipc}"
    )
    names = [_class(name) for name in grid.class_names]
    blocks = [grid.images[:, index][None] for index in range(len(names))]
    _picture(path, title, blocks, names, ["black"] * len(names), [], block_gap=_GAP)


def _shown_classes(grid: ImageGrid) -> str:
    shown = len(grid.class_names)
    return "" if shown == grid.num_classes else f" ({shown} of {grid.num_classes} classes)"


def _class(name: str) -> str:
    """First of a class's comma-separated names, cut to what fits beside an image."""
    first = name.split(",")[0].strip()
    return first if len(first) <= 22 else first[:21] + "…"


def _picture(
    path: Path,
    title: str,
    blocks: Sequence[Pixels],
    left: Sequence[str],
    colours: Sequence[str],
    top: Sequence[str],
    block_gap: int = _BLOCK_GAP,
) -> None:
    """Blocks of tiles below each other, pixel for pixel.

    Args:
        path: PNG to write.
        title: line above everything.
        blocks: ``(rows, columns, H, W, C)`` each, all with as many columns.
        left: name of each block.
        colours: of those names.
        top: name of each column, or none at all.
        block_gap: white between blocks; pixels.
    """
    mosaics = [_mosaic(block) for block in blocks]
    width = mosaics[0].shape[1]
    pitch = (width + _GAP) / blocks[0].shape[1]
    longest = max((_pixels(name) for name in top), default=0.0)
    slanted = longest > pitch - 4
    line = round(_TEXT * DPI / 72 * 1.5)
    header = _PAD + line + (round(longest * 0.64 + 0.8 * line) if slanted else line * bool(top))
    margin = _PAD + round(max(_pixels(name) for name in left)) + _PAD
    overhang = round(_pixels(top[-1]) * 0.77) if slanted else 0
    total_width = margin + max(width + overhang, round(_pixels(title)) + 1 - margin) + _PAD
    total_height = header + sum(m.shape[0] + block_gap for m in mosaics) - block_gap + _PAD
    canvas = np.full((total_height, total_width, 3), 255, np.uint8)
    with _drawn(path, total_width / DPI, total_height / DPI) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.text(_PAD, _PAD, title, va="top", fontsize=_TEXT + 0.5)
        y = header
        for mosaic, name, colour in zip(mosaics, left, colours, strict=True):
            height = mosaic.shape[0]
            canvas[y : y + height, margin : margin + width] = mosaic
            axes.text(margin - _PAD, y + height / 2, name, ha="right", va="center", color=colour)
            y += height + block_gap
        for index, name in enumerate(top):
            x = margin + pitch * (index + 0.5)
            place = {"rotation": 40, "ha": "left"} if slanted else {"ha": "center"}
            axes.text(x, header - 4, name, va="bottom", rotation_mode="anchor", **place)
        axes.imshow(canvas, interpolation="nearest", aspect="auto")
        axes.set_axis_off()


def _pixels(text: str) -> float:
    """Width of text in pixels, a little more than its outline because drawn text is hinted."""
    return float(TextPath((0, 0), text, size=_TEXT + 0.5).get_extents().width) * DPI / 72 * 1.06


def _mosaic(images: Pixels) -> Pixels:
    """``(rows, columns, H, W, C)`` as one RGB image with white between."""
    rows, columns = images.shape[:2]
    tiles = [[_tile(images[row, column]) for column in range(columns)] for row in range(rows)]
    height, width = tiles[0][0].shape[:2]
    size = rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3
    mosaic = np.full(size, 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            y, x = row * (height + _GAP), column * (width + _GAP)
            mosaic[y : y + height, x : x + width] = tiles[row][column]
    return mosaic


def _tile(image: Pixels) -> Pixels:
    """Small images repeated pixel by pixel to about 72, large ones averaged to at most 112."""
    height, width = image.shape[:2]
    colour = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3]
    times, parts = max(1, 72 // max(height, width)), -(-max(height, width) // 112)
    if parts > 1:
        cut = colour[: height // parts * parts, : width // parts * parts]
        blocks = cut.reshape(height // parts, parts, width // parts, parts, 3)
        colour = blocks.mean((1, 3)).round().astype(np.uint8)
    return colour.repeat(times, axis=0).repeat(times, axis=1)
