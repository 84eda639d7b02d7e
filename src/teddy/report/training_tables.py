"""How teachers and sets were made: members of pools, and points of the figures of training."""

from collections.abc import Sequence

from teddy.core.tables import Column, Table
from teddy.report.results import Base, History, PoolFacts


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
        "multiply-accumulates for one image."
    )
    return Table("Members of the teacher pools", columns, tuple(rows), (note,))


def teacher_points(bases: Sequence[Base]) -> Table:
    """Points of the teachers figure."""
    rows = [(b.name, e.epoch, e.val_top1, e.loss) for b in bases for e in b.epochs]
    names = ("base", "epoch", "val_top1", "loss")
    return Table("Teachers", tuple(Column(name) for name in names), tuple(rows))


def synthesis_points(histories: Sequence[History]) -> Table:
    """Points of the synthesis figure: means over the items of a set."""
    rows = []
    for history in histories:
        mean = history.mean()
        points = zip(mean.iterations, mean.classifier_prior, mean.statistics, strict=True)
        rows += [(history.set, *point) for point in points]
    names = ("set", "iteration", "classifier_prior", "statistics")
    return Table("Synthesis", tuple(Column(name) for name in names), tuple(rows))
