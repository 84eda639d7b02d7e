"""Figure 3d: what pre-training and synthesis cost, as a table and as points of the figure."""

from collections.abc import Sequence

from teddy.core.files import Json
from teddy.core.tables import Column, Table
from teddy.report.results import Cost
from teddy.settings.stages import Catalogue


def cost_table(costs: Sequence[Cost], hardware: Json, catalogue: Catalogue) -> Table:
    """Fig. 3d: seconds of pre-training and synthesis, and the peak memory of synthesis."""
    rows = [
        (
            catalogue.methods[cost.method].title, catalogue.datasets[cost.dataset].title, cost.ipc,
            cost.draw, cost.epochs, cost.pretraining_seconds, cost.synthesis_seconds, cost.seconds,
            cost.peak_mib,
        )
        for cost in costs
    ]  # fmt: skip
    columns = (
        Column("method", text=True), Column("dataset", text=True), Column("IPC"), Column("k"),
        Column("epochs"), Column("pre-training", "seconds", ".1f"),
        Column("synthesis", "seconds", ".1f"), Column("both", "seconds", ".1f"),
        Column("peak MiB", spec=".0f"),
    )  # fmt: skip
    machine = [*hardware["gpus"], f"{hardware['cores']} cores of {hardware['cpu']}"]
    note = (
        f"Measured on {', '.join(machine)}, PyTorch {hardware['packages']['torch']}: a few epochs "
        "and iterations, scaled to the whole. k: teachers drawn at a time. epochs: of the base run "
        "that the pool needs. peak: of synthesis, above the process's start (on a GPU: allocated), "
        "by the gradient of synthesize.gradient. Numbers vary from run to run. "
        "The paper reports 46.6 % less time than SRe2L on ImageNet-1K at IPC 10."
    )
    return Table("Cost of pre-training and synthesis", columns, tuple(rows), (note,))


def cost_points(costs: Sequence[Cost]) -> Table:
    """Points of the figure, one row per set."""
    keys = ("name", "dataset", "method", "ipc", "draw", "epochs", "pretraining_seconds",
            "synthesis_seconds", "peak_mib")  # fmt: skip
    rows = tuple(tuple(getattr(cost, key) for key in keys) for cost in costs)
    return Table("costs", tuple(map(Column, keys)), rows)
