"""Figures of accuracy: against images per class, along a setting, and as classes come."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from teddy.report.drawing import (
    COLOURS,
    GREY,
    MARKERS,
    PANEL,
    WIDTH,
    LineEnd,
    Look,
    drawn,
    label_ends,
    looks,
    short_name,
)
from teddy.report.results import Base, Score, StreamScore
from teddy.settings.stages import Catalogue

# --------------------------------------------------------------------------------- images per class


def accuracy(
    path: Path, scores: Sequence[Score], bases: Sequence[Base], catalogue: Catalogue
) -> None:
    """Last-epoch accuracy against IPC: a row per dataset and student, a column per labels."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in sorted(scores, key=lambda score: list(catalogue.datasets).index(score.dataset)):
        groups.setdefault((score.dataset, score.arch), []).append(score)
    kinds = sorted({score.labels for score in scores})
    with drawn(path, WIDTH * (0.3 + 0.35 * len(kinds)), (PANEL + 0.55) * len(groups)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(len(groups), len(kinds), squeeze=False, sharey="row")
        for row, ((dataset, arch), own) in zip(panels, groups.items(), strict=True):
            teachers = [base for base in bases if base.dataset == dataset]
            present = [kind for kind in kinds if any(s.labels == kind for s in own)]
            ends = [
                _accuracy_panel(axes, [s for s in own if s.labels == kind], teachers, catalogue)
                for axes, kind in zip(row, present, strict=False)
            ]
            row[0].set_ylim(*_headroom(*row[0].get_ylim()))
            for axes, kind, labels in zip(row, present, ends, strict=False):
                axes.set_title(f"{catalogue.datasets[dataset].title}, {kind} labels", loc="left")
                label_ends(axes, labels)
            for axes in row[len(present) :]:
                axes.set_visible(False)
            split = {"val": "validation"}.get(own[0].split, own[0].split)
            row[0].set_ylabel(f"{arch} top-1, {split} split (%)")


def _headroom(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis of percentages: at least five points, little beyond 0 and 100."""
    margin = max(0.0, 5 - (high - low)) / 2
    return max(low - margin, -2), min(high + margin, 102)


def _accuracy_panel(
    axes: Axes, scores: Sequence[Score], teachers: Sequence[Base], catalogue: Catalogue
) -> list[LineEnd]:
    ends = []
    ipcs = sorted({score.ipc for score in scores})
    methods = [m for m in catalogue.methods if any(score.method == m for score in scores)]
    for place, method in enumerate(methods):
        look = looks(list(catalogue.methods))[method]
        points = sorted((s for s in scores if s.method == method), key=lambda score: score.ipc)
        # Side by side by a hair, so that error bars stay apart.
        shift = 1.02 ** (place - (len(methods) - 1) / 2)
        xs, ys = [score.ipc * shift for score in points], [score.top1_mean for score in points]
        axes.errorbar(
            xs, ys, [score.top1_std for score in points], color=look.colour, marker=look.marker,
            capsize=2, elinewidth=0.8, capthick=0.8,
        )  # fmt: skip
        ends.append(LineEnd(catalogue.methods[method].title, xs[-1], ys[-1], look.colour))
    for base in teachers:
        name = short_name(base.name) if len(teachers) > 1 else "teacher"
        top1 = base.epochs[-1].val_top1
        axes.axhline(top1, color=GREY, linestyle=(0, (4, 3)), linewidth=0.9)
        ends.append(LineEnd(f"{name} (validation)", None, top1, GREY))
    _log_ticks(axes, ipcs)
    axes.set_xlabel("images per class")
    return ends


def _log_ticks(axes: Axes, ipcs: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(ipcs[0] / 1.3, ipcs[-1] * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(ipcs))
    axes.xaxis.set_major_formatter(FixedFormatter([str(ipc) for ipc in ipcs]))
    axes.xaxis.set_minor_locator(NullLocator())


# ------------------------------------------------------------------------------------ along an axis


def along_axis(
    path: Path, scores: Sequence[Score], attribute: str, title: str, catalogue: Catalogue
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
    with drawn(path, WIDTH * (0.35 + 0.3 * columns), (PANEL + 0.6) * len(groups)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(len(groups), columns, squeeze=False)
        for row, (dataset, own) in zip(panels, groups.items(), strict=True):
            _axis_panel(row[0], own, attribute, "top1_mean", title)
            row[0].set_title(catalogue.datasets[dataset].title, loc="left")
            row[0].set_ylabel("top-1, test split (%)")
            if divergence:
                _axis_panel(row[1], own, attribute, "kl_student_teacher", title)
                row[1].set_title("divergence, soft labels", loc="left")
                row[1].set_ylabel("KL(student ‖ teacher), nats")
        shown = [panel.get_legend_handles_labels() for panel in panels.flat]
        named = {
            text: line for lines, texts in shown for line, text in zip(lines, texts, strict=True)
        }
        figure.legend(
            named.values(), named.keys(), loc="outside lower center", ncols=min(4, len(named))
        )


def _axis_panel(
    axes: Axes, scores: Sequence[Score], attribute: str, value: str, title: str
) -> None:
    places = list(dict.fromkeys(getattr(score, attribute) for score in scores))
    numbers = all(isinstance(place, int) for place in places)
    lines: dict[tuple[int, str], list[Score]] = {}
    for score in scores:
        if getattr(score, value) is not None:
            lines.setdefault((score.ipc, score.labels), []).append(score)
    for (ipc, labels), own in sorted(lines.items()):
        xs = [getattr(s, attribute) if numbers else places.index(getattr(s, attribute))
              for s in own]  # fmt: skip
        ordered = sorted(zip(xs, own, strict=True), key=lambda pair: pair[0])
        spread = [s.top1_std if value == "top1_mean" else 0.0 for _, s in ordered]
        axes.errorbar(
            [x for x, _ in ordered], [getattr(s, value) for _, s in ordered], spread,
            color=COLOURS[_ipc_colour(ipc, lines)], marker=MARKERS[labels == "soft"],
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


def _ipc_colour(ipc: int, lines: Iterable[tuple[int, str]]) -> int:
    """Index of the colour of an IPC among those drawn."""
    return sorted({one for one, _ in lines}).index(ipc) % len(COLOURS)


# -------------------------------------------------------------------------------- classes that come


def streams(path: Path, streams: Sequence[StreamScore], catalogue: Catalogue) -> None:
    """Accuracy on seen classes after each step, as Fig. 3e: a row per dataset and IPC, a column per
    kind of teachers, a line per method and labels.
    """
    rows: dict[tuple[str, int], list[StreamScore]] = {}
    for stream in streams:
        rows.setdefault((stream.dataset, stream.ipc), []).append(stream)
    kinds = sorted({stream.strict for stream in streams})
    style = looks(list(catalogue.methods))
    with drawn(path, WIDTH * (0.35 + 0.3 * len(kinds)), (PANEL + 0.5) * len(rows)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(len(rows), len(kinds), squeeze=False, sharey="row")
        for panel, ((dataset, ipc), own) in zip(panels, rows.items(), strict=True):
            for axes, strict in zip(panel, kinds, strict=True):
                for stream in own:
                    if stream.strict == strict:
                        _stream_line(axes, stream, style[stream.method], catalogue)
                teachers = "strict" if strict else "paper-like"
                axes.set_title(
                    f"{catalogue.datasets[dataset].title}, IPC {ipc}, {teachers}", loc="left"
                )
                axes.set_xticks(own[0].classes)
                axes.set_xlabel("classes seen")
            panel[0].set_ylabel(f"top-1 on seen classes, {own[0].split} split (%)")
            panel[0].legend(fontsize="small")


def _stream_line(axes: Axes, stream: StreamScore, look: Look, catalogue: Catalogue) -> None:
    soft = stream.labels == "soft"
    axes.errorbar(
        stream.classes, stream.top1_mean, stream.top1_std,
        color=look.colour, marker=look.marker, linestyle="-" if soft else (0, (4, 3)),
        capsize=2, elinewidth=0.8,
        label=catalogue.methods[stream.method].title + ("" if soft else ", hard labels"),
    )  # fmt: skip
