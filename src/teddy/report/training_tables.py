"""How teachers and sets were made: members of pools, points of the curves, and costs (Fig. 3d)."""

from collections.abc import Sequence

from teddy.core.files import Json
from teddy.core.tables import Column, Table
from teddy.report.results import Base, Cost, History, PoolFacts
from teddy.settings.stages import Catalogue


def pool_table(pools: Sequence[PoolFacts]) -> Table:
    """Every member of every pool."""
    specs = {"lr": ".3g", "finetune_epochs": "g", "target_top1": ".1f", "val_top1": ".1f",
             "parameters": ",", "macs": ","}  # fmt: skip
    facts = ("epoch", "seed", "lr", "finetune_epochs", "target_top1", "val_top1", "parameters",
             "macs")  # fmt: skip
    rows = [
        (pool.name, pool.kind, member.index, *(getattr(member, fact) for fact in facts))
        for pool in pools
        for member in pool.members
    ]
    columns = (
        Column("pool", text=True), Column("kind", text=True), Column("member"),
        *(Column(fact, spec=specs.get(fact, "")) for fact in facts),
    )  # fmt: skip
    note = (
        "val_top1: accuracy on the validation split (%). A post member's fine-tuning stops when "
        "its accuracy reaches target_top1, a point of the prior pool's curve. macs: "
        "multiply-accumulates of convolutions and linear layers for one image."
    )
    return Table("Members of the teacher pools", columns, tuple(rows), (note,))


def teacher_points(bases: Sequence[Base]) -> Table:
    """Points of the teachers figure."""
    rows = [(b.name, e.epoch, e.val_top1, e.loss) for b in bases for e in b.epochs]
    names = ("base", "epoch", "val_top1", "loss")
    return Table("Teachers", tuple(Column(name) for name in names), tuple(rows))


def synthesis_points(histories: Sequence[History]) -> Table:
    """Points of the synthesis figure: means over the batches of a set."""
    rows = []
    for history in histories:
        mean = history.mean()
        points = zip(mean.iterations, mean.classifier_prior, mean.statistics, strict=True)
        rows += [(history.set, *point) for point in points]
    names = ("set", "iteration", "classifier_prior", "statistics")
    return Table("Synthesis", tuple(Column(name) for name in names), tuple(rows))


def cost_table(costs: Sequence[Cost], hardware: Json, catalogue: Catalogue) -> Table:
    """Fig. 3d: seconds of pre-training and synthesis, and the peak memory of synthesis."""
    rows = [
        (
            catalogue.methods[cost.method].title, catalogue.datasets[cost.dataset].title, cost.ipc,
            cost.teachers_drawn, cost.epochs, cost.pretraining_seconds, cost.synthesis_seconds,
            cost.seconds, cost.peak_mib,
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
    keys = ("name", "dataset", "method", "ipc", "teachers_drawn", "epochs",
            "pretraining_seconds", "synthesis_seconds", "peak_mib")  # fmt: skip
    rows = tuple(tuple(getattr(cost, key) for key in keys) for cost in costs)
    return Table("costs", tuple(map(Column, keys)), rows)
