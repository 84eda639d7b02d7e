"""Records of figures 1 and 5 in, tables and verdicts out; nothing but means, spreads and orders."""

import math
import statistics
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from teddy.core.files import Json, write_json
from teddy.core.tables import Column, Table, write_text
from teddy.report.results import spread
from teddy.report.verdicts import CLAIMS, Verdict, to_record

MIB = 2**20


def write_experiment(
    args: Namespace,
    record: Json,
    document: Callable[[Json], str],
    verdicts: Callable[[Json], list[Verdict]],
    draw: Callable[[Path, Json], None],
) -> None:
    """Write a record, and the table, verdicts and figure that follow from it alone.

    Args:
        args: paths of the folder, ``out``, and of the ``figure``.
        record: what was measured.
        document: makes the table's file.
        verdicts: makes those on the claims.
        draw: writes the figure.
    """
    text, found = document(record), to_record(verdicts(record))
    draw(args.figure, record)
    write_json(args.out / "record.json", record)
    write_text(args.out / "table.md", text)
    write_json(args.out / "verdicts.json", found)


# ----------------------------------------------------------------------------------------- figure 1

COST_NAMES = {
    "unrolled": "Unrolled (Eq. 1)",
    "first_order": "First order, step by step (Eq. 11)",
    "teddy": "Teddy (Eq. 7)",
}


def cost_table(record: Json) -> Table:
    """What one update of the whole set costs: a row per method and T or k."""
    rows = tuple(
        (
            COST_NAMES[row["method"]],
            row["inner_steps"],
            row["draw"],
            row["saved_bytes"] / MIB,
            row["operations"] / 1e9,
        )
        for row in record["rows"]
    )
    columns = (
        Column("update", text=True), Column("T", spec="d"), Column("k", spec="d"),
        Column("kept for backward, MiB", spec=".2f"), Column("GFLOP", spec=".2f"),
    )  # fmt: skip
    return Table(
        f"One update of {record['images']} images, {record['title']}",
        columns,
        rows,
        (
            "T inner steps, k teachers. Kept for backward: most bytes that autograd's graphs hold "
            "at one moment, every storage once; counted, so the same in every run. Operations: "
            "convolutions and matrix products, two per multiplication and addition. Teddy "
            f"updates {record['batch_size']} images at a time, all of them one after another. Its "
            "teachers are trained once, before; that is not in the numbers. Seconds are in "
            "metrics/bench/fig1_seconds.json.",
        ),
    )


def cost_document(record: Json) -> str:
    """The table as a Markdown file."""
    return f"# Figure 1: cost of an update\n\n{cost_table(record).markdown()}"


def cost_verdicts(record: Json) -> list[Verdict]:
    """The claim of figure 1, by counted bytes and operations."""
    (claim,) = CLAIMS["fig1"]
    by_method: dict[str, list[Json]] = {}
    for row in record["rows"]:
        by_method.setdefault(row["method"], []).append(row)
    first, last = by_method["unrolled"][0], by_method["unrolled"][-1]
    times = last["inner_steps"] / first["inner_steps"]
    found = []
    for key, unit, size in (("saved_bytes", "MiB", MIB), ("operations", "GFLOP", 1e9)):
        growth = last[key] / first[key]
        teddy = max(row[key] for row in by_method["teddy"]) / size
        found.append(
            Verdict(
                claim=claim,
                data=f"{record['title']}, {unit}",
                outcome="reproduced" if growth >= times / 2 else "contradicted",
                evidence=f"{first[key] / size:.2f} at T = {first['inner_steps']}, "
                f"{last[key] / size:.2f} at T = {last['inner_steps']}: {growth:.1f} times for "
                f"{times:g} times the steps (half as much is asked for); Teddy at most "
                f"{teddy:.2f}, whatever T",
            )
        )
    return found


# ----------------------------------------------------------------------------------------- figure 5

OBJECTIVE_NAMES = {
    "exact": "Exact unroll (Eq. 1)",
    "first_order": "First order (Eq. 11)",
    "gradient_matching": "Gradient matching (Eq. 13)",
    "statistics_matching": "Statistics (Eq. 19)",
}
NEGLIGIBLE = 0.05
"""Share of the exact run's gain in loss that a difference of losses may have to be negligible."""


def objectives(record: Json) -> list[str]:
    """Objectives of a record, in order."""
    return list(dict.fromkeys(run["objective"] for run in record["runs"]))


def series(record: Json, objective: str, key: str) -> list[list[float]]:
    """Values along iterations, one list per seed; ``taylor_error`` is |Eq. 1 − Eq. 10|."""
    runs = [run["points"] for run in record["runs"] if run["objective"] == objective]
    if key == "taylor_error":
        return [[abs(p["exact_loss"] - p["first_order_loss"]) for p in points] for points in runs]
    return [[p[key] for p in points] for points in runs]


def differences(record: Json, objective: str, key: str) -> list[list[float]]:
    """Absolute differences from the exact run of the same seed, along iterations."""
    pairs = zip(series(record, objective, key), series(record, "exact", key), strict=True)
    return [[abs(a - b) for a, b in zip(mine, exact, strict=True)] for mine, exact in pairs]


def peaks(record: Json, objective: str) -> tuple[list[float], list[float]]:
    """Per seed: highest validation accuracy of any iteration, and test accuracy at the first
    iteration that has it; percent.
    """
    best, test = [], []
    for val, tested in zip(
        series(record, objective, "val_top1"), series(record, objective, "test_top1"), strict=True
    ):
        place = val.index(max(val))
        best.append(val[place])
        test.append(tested[place])
    return best, test


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), spread(values)


def _shown(values: Sequence[float], spec: str) -> str:
    mean, std = _mean_std(values)
    return f"{mean:{spec}} ± {std:{spec}}"


def taylor_table(record: Json) -> Table:
    """What every objective reached, and how far it went from the exact one."""
    rows = []
    for name in objectives(record):
        losses = [run[-1] for run in series(record, name, "exact_loss")]
        errors = [statistics.mean(run) for run in series(record, name, "taylor_error")]
        gaps = [statistics.mean(run) for run in differences(record, name, "exact_loss")]
        accuracy = [statistics.mean(run) for run in series(record, name, "val_top1")]
        last = [run[-1] for run in series(record, name, "test_top1")]
        best, test = peaks(record, name)
        exact = name == "exact"
        rows.append(
            (
                OBJECTIVE_NAMES[name], _shown(losses, ".4f"), _shown(errors, ".4f"),
                None if exact else _shown(gaps, ".4f"), _shown(accuracy, ".1f"),
                _shown(best, ".1f"), _shown(test, ".1f"), _shown(last, ".1f"),
            )
        )  # fmt: skip
    starts = [run[0] for run in series(record, "exact", "exact_loss")]
    top1 = [run[0] for run in series(record, "exact", "test_top1")]
    columns = ("last loss", "Taylor error", "loss gap", "mean val top-1", "peak val top-1",
               "test top-1 at the peak", "last test top-1")  # fmt: skip
    seeds = len(series(record, "exact", "exact_loss"))
    return Table(
        f"{record['title']}, IPC {record['ipc']}, T = {record['inner_steps']}, "
        f"η = {record['inner_lr']:g}",
        (Column("objective", text=True), *map(Column, columns)),
        tuple(rows),
        (
            f"Mean ± sample standard deviation over n = {seeds} seeds, each with its own initial "
            f"images, real images and initial weights; {record['iterations']} outer iterations. "
            "Loss: ℓ(𝒯; θ_T) after training on the set (Eq. 1). Taylor error: its distance from "
            "the first-order expansion (Eq. 10) on the same set, mean over iterations. Loss gap: "
            "distance from the loss of the exact run at the same iteration, mean over iterations. "
            "Accuracies (%) of the networks after T steps, on validation images the mean over "
            "iterations and the peak, on test images at that peak and at the end.",
            f"Before the first iteration the loss is {_shown(starts, '.4f')} and the test accuracy "
            f"{_shown(top1, '.1f')} %.",
        ),
    )


def law_table(record: Json) -> Table:
    """Measured error of the expansion for every T and eta, and its order in eta."""
    rows: list[tuple[str | int | float | None, ...]] = []
    for steps in dict.fromkeys(row["num_steps"] for row in record["law"]):
        own = [row for row in record["law"] if row["num_steps"] == steps]
        orders: list[float | None] = [None, *law_orders(own)]
        rows += [
            (steps, row["lr"], f"{row['loss_error']:.2e}", order,
             f"{row['gradient_error']:.2e}", row["cosine"])
            for row, order in zip(own, orders, strict=True)
        ]  # fmt: skip
    columns = (
        Column("T", spec="d"), Column("η", spec="g"), Column("loss error"),
        Column("order", spec=".2f"), Column("gradient error"), Column("cosine", spec=".5f"),
    )  # fmt: skip
    return Table(
        "Error of the first-order expansion on the initial set",
        columns,
        tuple(rows),
        (
            "Float64, first seed. Loss error: |Eq. 1 − Eq. 10|, O(Tη²) by Proposition 1. Order: "
            "log of the error's fall over that of η's since the row above. Gradient error: "
            "relative distance of the meta-gradients of Eq. 1 and Eq. 11; cosine: of their angle.",
        ),
    )


def taylor_document(record: Json) -> str:
    """Both tables as a Markdown file."""
    tables = taylor_table(record), law_table(record)
    blocks = ["# Figure 5: error of the Taylor approximation\n", *(t.markdown() for t in tables)]
    return "\n".join(blocks)


def law_orders(rows: Sequence[Json]) -> list[float]:
    """Orders in eta of the loss error, between neighbouring rows of one T."""
    return [
        math.log(a["loss_error"] / b["loss_error"]) / math.log(a["lr"] / b["lr"])
        if min(a["loss_error"], b["loss_error"]) > 0
        else math.nan
        for a, b in pairwise(rows)
    ]


def taylor_verdicts(record: Json) -> list[Verdict]:
    """The claim of figure 5 for the first-order objective, by the three measures of the paper."""
    (claim,) = CLAIMS["fig5"]
    if "first_order" not in objectives(record):
        return []
    exact = series(record, "exact", "exact_loss")
    gain = statistics.mean(run[0] - run[-1] for run in exact)
    gap = statistics.mean(
        statistics.mean(run) for run in differences(record, "first_order", "exact_loss")
    )
    where = f"{record['title']}, IPC {record['ipc']}, T = {record['inner_steps']}"
    loss = Verdict(
        claim=claim,
        data=f"{where}, average loss",
        outcome="reproduced" if gap <= NEGLIGIBLE * gain else "contradicted",
        evidence=f"mean gap {gap:.4f}, while the exact run gains {gain:.4f}; up to "
        f"{100 * NEGLIGIBLE:g} % of that counts as negligible",
    )
    averages = [
        [statistics.mean(run) for run in series(record, name, "test_top1")]
        for name in ("exact", "first_order")
    ]
    tops = [peaks(record, name)[1] for name in ("exact", "first_order")]
    return [
        loss,
        _alike(claim, f"{where}, average test accuracy", *averages),
        _alike(claim, f"{where}, test accuracy at the peak", *tops),
    ]


def _alike(claim: str, data: str, exact: Sequence[float], other: Sequence[float]) -> Verdict:
    """Verdict on two accuracies being the same: within the pooled deviation of the seeds."""
    (a, std_a), (b, std_b) = _mean_std(exact), _mean_std(other)
    pooled = math.sqrt((std_a**2 + std_b**2) / 2)
    return Verdict(
        claim=claim,
        data=data,
        outcome="inconclusive"
        if len(exact) < 2
        else "reproduced"
        if abs(a - b) <= pooled
        else "contradicted",
        evidence=f"{a:.1f} exact, {b:.1f} first order; a difference within the pooled standard "
        f"deviation of {pooled:.1f} counts as negligible",
    )
