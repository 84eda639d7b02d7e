"""Figures of how sets were made: training of teachers, synthesis, and what both cost."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from teddy.report.drawing import (
    COLOURS,
    GREY,
    PANEL,
    WIDTH,
    LineEnd,
    drawn,
    label_ends,
    looks,
    plain_log,
    short_name,
)
from teddy.report.results import Base, Cost, History, LossCurve, PoolFacts
from teddy.settings.stages import Catalogue

# ----------------------------------------------------------------------------------------- teachers


def teachers(
    path: Path, bases: Sequence[Base], pools: Sequence[PoolFacts], catalogue: Catalogue
) -> None:
    """Every base run: accuracy and loss per epoch with the members taken from it, and its pools."""
    with drawn(path, WIDTH, (PANEL + 0.5) * max(1, len(bases))) as figure:
        if not bases:
            figure.suptitle("Table 1 shows no set, so there are no base runs behind it.")
            return
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(len(bases), 3, squeeze=False)
        for row, base in zip(panels, bases, strict=True):
            own = [pool for pool in pools if pool.base == base.name]
            colours = _pool_colours(own, catalogue)
            _trajectory_panels(row[0], row[1], base, own, colours)
            _pool_panel(row[2], own, colours)
            row[0].set_title(f"{base.name}: held-out accuracy", loc="left")
            row[0].set_ylabel("top-1, validation split (%)")
            row[1].set_title("training loss", loc="left")
            row[1].set_ylabel("cross-entropy, log scale")
            row[2].set_title("members of the pools", loc="left")
            row[2].set_ylabel("top-1, validation split (%)")
            row[2].sharey(row[0])


def _pool_colours(pools: Sequence[PoolFacts], catalogue: Catalogue) -> dict[str, str]:
    own = looks(list(catalogue.methods), {pool.method for pool in pools if pool.method})
    return {pool.name: own[pool.method].colour if pool.method else GREY for pool in pools}


def _trajectory_panels(
    top1: Axes, loss: Axes, base: Base, pools: Sequence[PoolFacts], colours: dict[str, str]
) -> None:
    epochs = [entry.epoch for entry in base.epochs]
    by_epoch = {entry.epoch: entry for entry in base.epochs}
    top1.plot(epochs, [entry.val_top1 for entry in base.epochs], color=GREY, linewidth=1)
    loss.plot(epochs, [entry.loss for entry in base.epochs], color=GREY, linewidth=1)
    plain_log(loss)
    for pool in pools:
        taken = [by_epoch[m.epoch] for m in pool.members if m.epoch in by_epoch]
        for axes, values in (
            (top1, [entry.val_top1 for entry in taken]),
            (loss, [entry.loss for entry in taken]),
        ):
            axes.plot(
                [entry.epoch for entry in taken], values, "D" if pool.kind == "prior" else "s",
                color=colours[pool.name], label=f"{short_name(pool.name)} pool" if taken else None,
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
        name, values = short_name(pool.name), [member.val_top1 for member in pool.members]
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


# ---------------------------------------------------------------------------------------- synthesis

_TERMS = {"classifier_prior": "classifier prior", "statistics": "statistics term"}


def synthesis(path: Path, histories: Sequence[History], catalogue: Catalogue) -> None:
    """Both terms of Eq. 7 over iterations; every method at its largest IPC, a row per dataset."""
    datasets = [d for d in catalogue.datasets if any(h.dataset == d for h in histories)]
    with drawn(path, WIDTH, (PANEL + 0.55) * max(1, len(datasets))) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        panels = figure.subplots(max(1, len(datasets)), 2, squeeze=False)
        for row, dataset in zip(panels, datasets, strict=False):
            own = _largest([h for h in histories if h.dataset == dataset], list(catalogue.methods))
            for axes, term in zip(row, _TERMS, strict=True):
                _loss_panel(axes, own, term, catalogue)
                axes.set_title(
                    f"{catalogue.datasets[dataset].title}: {_TERMS[term]} of Eq. 7", loc="left"
                )
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


def _loss_panel(axes: Axes, histories: Sequence[History], term: str, catalogue: Catalogue) -> None:
    ends = []
    own = looks(list(catalogue.methods), {history.method for history in histories})
    for history in histories:
        colour = own[history.method].colour
        batches = history.batches if len(history.batches) > 1 else ()
        for one in batches[:: max(1, len(batches) // 20)]:
            axes.plot(
                one.iterations, _values(one, term), color=colour, linewidth=0.4, alpha=0.3,
                rasterized=True,  # in an SVG, where so many points would be most of the file
            )  # fmt: skip
        mean = history.mean()
        axes.plot(mean.iterations, _values(mean, term), color=colour, linewidth=1.2)
        name = f"{catalogue.methods[history.method].title}\nIPC {history.ipc}, {_count(history)}"
        ends.append(LineEnd(name, mean.iterations[-1], _values(mean, term)[-1], colour))
    axes.set_xlabel("iteration")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    plain_log(axes)
    label_ends(axes, ends)


def _values(curve: LossCurve, term: str) -> Sequence[float]:
    return curve.classifier_prior if term == "classifier_prior" else curve.statistics


def _count(history: History) -> str:
    count = len(history.batches)
    return f"mean of {count} batches" if count > 1 else "1 batch"


# -------------------------------------------------------------------------------------------- costs


def costs(path: Path, costs: Sequence[Cost], catalogue: Catalogue) -> None:
    """Fig. 3d: seconds of pre-training and synthesis, and peak memory, of one dataset."""
    names = [f"{catalogue.methods[cost.method].title}\nk = {cost.teachers_drawn}" for cost in costs]
    before = [cost.pretraining_seconds for cost in costs]
    places, dataset = np.arange(len(costs)), catalogue.datasets[costs[0].dataset].title
    with drawn(path, WIDTH, PANEL + 0.4) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        time, memory = figure.subplots(1, 2)
        time.bar(places, before, color=COLOURS[2], label="pre-training")
        time.bar(
            places, [cost.synthesis_seconds for cost in costs], bottom=before, color=COLOURS[5],
            label="synthesis",
        )  # fmt: skip
        time.legend(loc="best")
        time.set_title(f"{dataset}, IPC {costs[0].ipc}: time", loc="left")
        time.set_ylabel("seconds")
        memory.bar(places, [cost.peak_mib for cost in costs], color=GREY)
        memory.set_title("peak memory of synthesis", loc="left")
        memory.set_ylabel("MiB")
        for axes in (time, memory):
            axes.set_xticks(places, names)
            axes.grid(visible=False, axis="x")
