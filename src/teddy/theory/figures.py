"""Figures 1 and 5; bytes are the same for the same numbers."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from teddy.core.files import Json
from teddy.report.drawing import GREY, PANEL, SERIES, WIDTH, drawn, log_ticks, slope_guide
from teddy.theory.documents import (
    COST_NAMES,
    MIB,
    OBJECTIVE_NAMES,
    differences,
    objectives,
    peaks,
    series,
)

_COLOURS = {
    "unrolled": "#000000", "first_order": "#0072B2", "teddy": "#D55E00",
    "exact": "#000000", "gradient_matching": "#009E73", "statistics_matching": "#D55E00",
}  # fmt: skip
_MARKERS = {
    "unrolled": "o", "first_order": "s", "teddy": "^",
    "exact": "o", "gradient_matching": "D", "statistics_matching": "^",
}  # fmt: skip
_DASHES: tuple[object, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


# ----------------------------------------------------------------------------------------- figure 1


def cost(path: Path, record: Json) -> None:
    """Bytes kept and operations of an update against inner steps."""
    with drawn(path, WIDTH, PANEL + 0.75, formulas=True) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        memory, work = figure.subplots(1, 2)
        _cost_panel(memory, record["rows"], lambda row: row["saved_bytes"] / MIB)
        memory.set_title(f"{record['title']}: memory of one update", loc="left")
        memory.set_ylabel("kept for backward (MiB)")
        _cost_panel(work, record["rows"], lambda row: row["operations"] / 1e9)
        work.set_title("work of one update", loc="left")
        work.set_ylabel("floating-point operations (10⁹)")
        handles, labels = memory.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=3.2)


def clocked(path: Path, record: Json, title: str) -> None:
    """Seconds of an update against inner steps; not the same in two runs."""
    with drawn(path, WIDTH * 0.62, PANEL + 0.9, formulas=True) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        axes = figure.subplots()
        _cost_panel(axes, record["rows"], lambda row: row["seconds"])
        axes.set_title(f"{title}: time of one update", loc="left")
        axes.set_ylabel("seconds")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=3.2)


def _cost_panel(axes: Axes, rows: Sequence[Json], value: Callable[[Json], float]) -> None:
    steps = sorted({row["inner_steps"] for row in rows if row["inner_steps"] is not None})
    for method in ("unrolled", "first_order"):
        own = [row for row in rows if row["method"] == method]
        axes.plot(
            [row["inner_steps"] for row in own], [value(row) for row in own],
            color=_COLOURS[method], marker=_MARKERS[method], label=COST_NAMES[method],
            linestyle="-" if method == "unrolled" else (0, (3, 1.5)), markerfacecolor="white",
        )  # fmt: skip
    for index, row in enumerate(row for row in rows if row["method"] == "teddy"):
        axes.plot(
            steps, [value(row)] * len(steps), color=_COLOURS["teddy"], marker=_MARKERS["teddy"],
            linestyle=_DASHES[index % len(_DASHES)], markevery=[len(steps) - 1],
            label=f"{COST_NAMES['teddy']}, k = {row['draw']}",
        )  # fmt: skip
    log_ticks(axes, steps)
    axes.set_yscale("log")
    axes.set_xlabel("inner steps T")


# ----------------------------------------------------------------------------------------- figure 5


def taylor(path: Path, record: Json) -> None:
    """Losses, gaps and accuracies along outer iterations, peaks, and the order of the error."""
    with drawn(path, WIDTH, 2 * PANEL + 1.3, formulas=True) as figure:
        figure.set_layout_engine("constrained", w_pad=0.05, h_pad=0.07)
        (loss, gap, accuracy), (peak, law, gradient) = figure.subplots(2, 3)
        names = objectives(record)
        for name in names:
            _band(loss, series(record, name, "exact_loss"), name)
            _band(accuracy, series(record, name, "val_top1"), name)
            if name != "exact":
                _band(gap, differences(record, name, "exact_loss"), name, first=1)
        error = series(record, "exact", "taylor_error")
        gap.plot(
            [statistics.mean(values) for values in zip(*error, strict=True)], color=GREY,
            linestyle=(0, (4, 2)), label="|Eq. 1 − Eq. 10| on the exact run's set",
        )  # fmt: skip
        gap.set_yscale("log")
        loss.set_title(f"{record['title']}, IPC {record['ipc']}", loc="left")
        loss.set_ylabel("real loss after T steps, ℓ(T; θ$_T$)")
        gap.set_title("distance from the exact run", loc="left")
        gap.set_ylabel("difference of losses")
        accuracy.set_title("accuracy after T steps", loc="left")
        accuracy.set_ylabel("top-1, validation split (%)")
        for axes in (loss, gap, accuracy):
            axes.set_xlabel("outer iteration")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        _peak_panel(peak, record, names)
        _law_panels(law, gradient, record["law"])
        handles, labels = loss.get_legend_handles_labels()
        more, texts = gap.get_legend_handles_labels()
        figure.legend([*handles, more[-1]], [*labels, texts[-1]], loc="outside lower center",
                      ncols=3)  # fmt: skip


def _band(axes: Axes, runs: Sequence[Sequence[float]], name: str, first: int = 0) -> None:
    """Mean over seeds from an iteration on, with a band from the lowest to the highest."""
    columns = list(zip(*runs, strict=True))[first:]
    means = [statistics.mean(values) for values in columns]
    low, high = [min(values) for values in columns], [max(values) for values in columns]
    places = range(first, first + len(columns))
    axes.fill_between(places, low, high, color=_COLOURS[name], alpha=0.12, linewidth=0)
    axes.plot(
        places, means, color=_COLOURS[name], label=OBJECTIVE_NAMES[name], marker=_MARKERS[name],
        markevery=max(1, len(means) // 6), markersize=3.5,
    )  # fmt: skip


def _peak_panel(axes: Axes, record: Json, names: Sequence[str]) -> None:
    """A dot per seed, the mean as a bar across them."""
    for place, name in enumerate(names):
        _, test = peaks(record, name)
        axes.plot(
            [place] * len(test), test, _MARKERS[name], color=_COLOURS[name], alpha=0.45,
            markersize=4.5, markeredgewidth=0,
        )  # fmt: skip
        axes.plot(
            place, statistics.mean(test), "_", color=_COLOURS[name], markersize=22,
            markeredgewidth=1.8,
        )  # fmt: skip
    axes.set_xticks(range(len(names)), [OBJECTIVE_NAMES[n].split("(")[1][:-1] for n in names])
    axes.set_title("peak accuracy per seed", loc="left")
    axes.set_ylabel("top-1, test split (%)")
    axes.margins(x=0.12, y=0.12)
    axes.grid(visible=False, axis="x")


def _law_panels(law: Axes, gradient: Axes, rows: Sequence[Json]) -> None:
    lengths = list(dict.fromkeys(row["num_steps"] for row in rows))
    for index, steps in enumerate(lengths):
        own = [row for row in rows if row["num_steps"] == steps]
        lrs = [row["lr"] for row in own]
        for axes, key in ((law, "loss_error"), (gradient, "gradient_error")):
            axes.plot(
                lrs, [row[key] for row in own], color=SERIES[index % len(SERIES)],
                marker="osD^"[index % 4], markersize=3.5, label=f"T = {steps}",
            )  # fmt: skip
    first = [row for row in rows if row["num_steps"] == lengths[0]]
    lrs = [row["lr"] for row in first]
    slope_guide(law, lrs, 2, (lrs[-1], first[-1]["loss_error"] / 2), "slope 2")
    slope_guide(gradient, lrs, 1, (lrs[-1], first[-1]["gradient_error"] / 2), "slope 1")
    for axes in (law, gradient):
        log_ticks(axes, sorted(lrs)[::3])
        axes.set_yscale("log")
        axes.set_xlabel("inner learning rate η")
        axes.legend(loc="best", handlelength=1.6)
    law.set_title("law of the loss error", loc="left")
    law.set_ylabel("|Eq. 1 − Eq. 10|")
    gradient.set_title("law of the gradient error", loc="left")
    gradient.set_ylabel("relative, Eq. 11 against Eq. 1")
