"""Figure 3e: continual learning, as tables and as points of the figure."""

from collections.abc import Sequence

from teddy.core.tables import Cell, Column, Table, percent
from teddy.report.results import StreamScore, grouped
from teddy.report.score_tables import split_title
from teddy.settings.stages import Catalogue


def stream_tables(streams: Sequence[StreamScore], catalogue: Catalogue) -> list[Table]:
    """Fig. 3e: accuracy on seen classes after each step, for every dataset and IPC."""
    tables = []
    for (dataset, ipc, arch), own in grouped(streams, "dataset", "ipc", "arch").items():
        rows: list[tuple[Cell, ...]] = []
        for stream in own:
            shown = zip(stream.top1_mean, stream.top1_std, strict=True)
            rows.append(
                (
                    "strict" if stream.strict else "paper-like",
                    catalogue.methods[stream.method].title,
                    stream.labels,
                    *(percent(m, s if stream.orders > 1 else None) for m, s in shown),
                )
            )
        columns = [Column("teachers", text=True), Column("method", text=True)]
        columns += [Column("labels", text=True)]
        columns += [Column(f"{count}", "classes seen:") for count in own[0].classes]
        first = own[0]
        note = (
            f"Mean ± sample standard deviation over {first.orders} orders of the classes, "
            f"{first.seeds} student{'s' * (first.seeds > 1)} of each; all methods see the same "
            f"orders. GDumb: after each step a student from scratch, {first.epochs} epochs on the "
            "images of all classes seen so far, outputs for all classes, tested on the "
            f"{split_title(first.split)} images of seen classes alone, last epoch. Paper-like: "
            "images and soft labels of a pool that was trained on all classes, future ones "
            "included. Strict: images and labels of teachers that were trained on the classes of "
            "one step; random and DM images do not depend on teachers, their labels do (§8-24)."
        )
        title = (
            f"Continual learning, {catalogue.datasets[dataset].title}, IPC {ipc}, {arch} students"
        )
        tables.append(Table(f"{title}: top-1 (%)", tuple(columns), tuple(rows), (note,)))
    return tables


def stream_points(streams: Sequence[StreamScore]) -> Table:
    """Points of the figure, one row per stream and step."""
    keys = ("name", "dataset", "method", "ipc", "arch", "strict", "labels", "epochs", "orders",
            "seeds")  # fmt: skip
    rows = []
    for stream in streams:
        facts = [getattr(stream, key) for key in keys]
        points = zip(stream.classes, stream.top1_mean, stream.top1_std, strict=True)
        rows += [(*facts, *point) for point in points]
    names = (*keys, "classes", "top1_mean", "top1_std")
    return Table("streams", tuple(map(Column, names)), tuple(rows))
