"""Figures of accuracy, of one dataset each: against images per class, along a setting, and as
classes come.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator

from teddy.report.accuracy_tables import dataset_title, ipcs_and_labels, split_title
from teddy.report.axis_tables import Axis, axis_value
from teddy.report.drawing import (
    COLOURS,
    MARKERS,
    PANEL,
    WIDTH,
    LineEnd,
    Look,
    drawn,
    label_ends,
    log_ticks,
    looks,
)
from teddy.report.results import EvaluationResult, LearnerResult, Results, grouped
from teddy.settings.rows import KINDS
from teddy.settings.stages import Catalogue

_STYLES = {"hard": (0, (4, 3)), "fixed": (0, (1, 1.5)), "soft": "-"}
"""Lines of labels."""

# --------------------------------------------------------------------------------- images per class


def accuracy(path: Path, results: Results, catalogue: Catalogue) -> None:
    """Last-epoch accuracy against IPC: a row per network of students, a column per labels."""
    groups, (_, kinds) = grouped(results, "arch"), ipcs_and_labels(results)
    with drawn(path, WIDTH * (0.3 + 0.35 * len(kinds)), (PANEL + 0.55) * len(groups)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(len(groups), len(kinds), squeeze=False, sharey="row")
        for row, (arch, own) in zip(panels, groups.items(), strict=True):
            present = [kind for kind in kinds if any(r.labels == kind for r in own)]
            ends = [
                _accuracy_panel(axes, [r for r in own if r.labels == kind], catalogue)
                for axes, kind in zip(row, present, strict=False)
            ]
            row[0].set_ylim(*_headroom(*row[0].get_ylim()))
            for axes, kind, labels in zip(row, present, ends, strict=False):
                axes.set_title(f"{dataset_title(own, catalogue)}, {kind} labels", loc="left")
                label_ends(axes, labels)
            for axes in row[len(present) :]:
                axes.set_visible(False)
            row[0].set_ylabel(f"{arch} top-1, {split_title(own[0].split)} split (%)")


def _headroom(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis of percentages: at least five points, little beyond 0 and 100."""
    margin = max(0.0, 5 - (high - low)) / 2
    return max(low - margin, -2), min(high + margin, 102)


def _accuracy_panel(axes: Axes, results: Results, catalogue: Catalogue) -> list[LineEnd]:
    ends = []
    ipcs = sorted({result.ipc for result in results})
    methods = [m for m in catalogue.methods if any(result.method == m for result in results)]
    for place, method in enumerate(methods):
        look = looks(list(catalogue.methods), methods)[method]
        points = sorted((r for r in results if r.method == method), key=lambda r: r.ipc)
        # Side by side by a hair, so that error bars stay apart.
        shift = 1.02 ** (place - (len(methods) - 1) / 2)
        xs, ys = [result.ipc * shift for result in points], [result.top1_mean for result in points]
        axes.errorbar(
            xs, ys, [result.top1_std for result in points], color=look.colour, marker=look.marker,
            capsize=2, elinewidth=0.8, capthick=0.8,
        )  # fmt: skip
        ends.append(LineEnd(catalogue.methods[method].title, xs[-1], ys[-1], look.colour))
    log_ticks(axes, ipcs)
    axes.set_xlim(ipcs[0] / 1.3, ipcs[-1] * 1.3)
    axes.set_xlabel("images per class")
    return ends


# ------------------------------------------------------------------------------------ along an axis


def along_axis(path: Path, results: Results, axis: Axis, catalogue: Catalogue) -> None:
    """Last-epoch accuracy along a setting, as Fig. 3: a line per IPC and labels.

    Where the axis has the divergence, a second panel shows it, as Fig. 2c.
    """
    columns = 2 if axis.divergence else 1
    with drawn(path, WIDTH * (0.35 + 0.3 * columns), PANEL + 0.6) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(1, columns, squeeze=False)[0]
        _axis_panel(panels[0], results, axis, "top1_mean")
        panels[0].set_title(dataset_title(results, catalogue), loc="left")
        panels[0].set_ylabel(f"top-1, {split_title(results[0].split)} split (%)")
        if axis.divergence:
            _axis_panel(panels[1], results, axis, "kl_student_teacher")
            panels[1].set_title("divergence, soft labels", loc="left")
            panels[1].set_ylabel("KL(student ‖ teacher), nats")
        shown = [panel.get_legend_handles_labels() for panel in panels]
        named = {
            text: line for lines, texts in shown for line, text in zip(lines, texts, strict=True)
        }
        figure.legend(
            named.values(), named.keys(), loc="outside lower center", ncols=min(4, len(named))
        )


def _axis_panel(axes: Axes, results: Results, axis: Axis, value: str) -> None:
    places = sorted({getattr(result, axis.attribute) for result in results})
    numbers = all(isinstance(place, int) for place in places)
    lines: dict[tuple[int, str], list[EvaluationResult]] = {}
    for result in sorted(results, key=lambda result: getattr(result, axis.attribute)):
        if getattr(result, value) is not None:
            lines.setdefault((result.ipc, result.labels), []).append(result)
    for (ipc, labels), own in sorted(lines.items()):
        along = [getattr(result, axis.attribute) for result in own]
        axes.errorbar(
            along if numbers else [places.index(place) for place in along],
            [getattr(result, value) for result in own],
            [result.top1_std if value == "top1_mean" else 0.0 for result in own],
            color=COLOURS[_ipc_colour(ipc, lines)], marker=MARKERS[KINDS.index(labels)],
            linestyle=_STYLES[labels], capsize=2, elinewidth=0.8,
            label=f"IPC {ipc}, {labels}",
        )  # fmt: skip
    if numbers:
        axes.xaxis.set_major_locator(FixedLocator(places))
    else:
        axes.xaxis.set_major_locator(FixedLocator(range(len(places))))
        axes.xaxis.set_major_formatter(FixedFormatter([axis_value(place) for place in places]))
    axes.set_xlabel(axis.title)


def _ipc_colour(ipc: int, lines: Iterable[tuple[int, str]]) -> int:
    """Index of the colour of an IPC among those drawn."""
    return sorted({one for one, _ in lines}).index(ipc) % len(COLOURS)


# -------------------------------------------------------------------------------- classes that come


def learners(path: Path, learners: Sequence[LearnerResult], catalogue: Catalogue) -> None:
    """Accuracy on seen classes after each step, as Fig. 3e: a row per IPC, a column per kind of
    teachers, a line per method and labels.
    """
    rows = grouped(learners, "ipc")
    kinds = sorted({learner.strict for learner in learners})
    style = looks(list(catalogue.methods), {learner.method for learner in learners})
    with drawn(path, WIDTH * (0.35 + 0.3 * len(kinds)), (PANEL + 0.5) * len(rows)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(len(rows), len(kinds), squeeze=False, sharey="row")
        for panel, (ipc, own) in zip(panels, rows.items(), strict=True):
            dataset = catalogue.datasets[own[0].dataset].title
            for axes, strict in zip(panel, kinds, strict=True):
                for learner in own:
                    if learner.strict == strict:
                        _learner_line(axes, learner, style[learner.method], catalogue)
                teachers = "strict" if strict else "paper-like"
                axes.set_title(f"{dataset}, IPC {ipc}, {teachers}", loc="left")
                axes.set_xticks(own[0].classes)
                axes.set_xlabel("classes seen")
            panel[0].set_ylabel(f"top-1 on seen classes, {own[0].split} split (%)")
            panel[0].legend(fontsize="small")


def _learner_line(axes: Axes, learner: LearnerResult, look: Look, catalogue: Catalogue) -> None:
    soft = learner.labels == "soft"
    axes.errorbar(
        learner.classes, learner.top1_mean, learner.top1_std,
        color=look.colour, marker=look.marker, linestyle="-" if soft else (0, (4, 3)),
        capsize=2, elinewidth=0.8,
        label=catalogue.methods[learner.method].title + ("" if soft else ", hard labels"),
    )  # fmt: skip
