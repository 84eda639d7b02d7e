"""Rows in, tables, points of figures and the summary out; nothing is computed but joins."""

from collections.abc import Mapping, Sequence
from typing import Any

from teddy.artifacts import Json
from teddy.config import Params
from teddy.errors import TeddyError
from teddy.records import Base, History, PaperResult, PoolFacts, Score, grouped
from teddy.tables import DASH, Cell, Column, Table, percent


def result_tables(
    scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> list[Table]:
    """Table 1 for every dataset and student, then its best-epoch values."""
    tables = []
    for dataset in params.datasets:
        own = [score for score in scores if score.dataset == dataset]
        for arch, rows in grouped(own, "arch").items():
            where = f"{params.datasets[dataset].title}, {arch} students"
            tables.append(_table1(where, rows, paper, params))
            tables.append(_best_table(where, rows, params))
    return tables


def _table1(
    where: str, scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> Table:
    first = scores[0]
    ipcs, kinds = _ipcs_and_labels(scores)
    methods = _by_method(scores, params)
    printed = {
        (method, ipc): _marked(
            paper_result(params, "1", first.dataset, method, ipc, paper), first.arch
        )
        for method in methods
        for ipc in ipcs
    }
    in_paper = {ipc for (_, ipc), number in printed.items() if number}
    columns = [Column("method", text=True)]
    for ipc in ipcs:
        shown = [*kinds, "paper"] if ipc in in_paper else kinds
        columns += [Column(kind, f"IPC {ipc}") for kind in shown]
    rows = []
    for method, own in methods.items():
        row: list[Cell] = [params.methods[method].title]
        for ipc in ipcs:
            row += [_last(own.get((ipc, kind))) for kind in kinds]
            row += [printed[method, ipc]] if ipc in in_paper else []
        rows.append(tuple(row))
    quoted = "".join(number or "" for number in printed.values())
    title = f"Top-1 accuracy (%) on {where}"
    return Table(title, tuple(columns), tuple(rows), (_note(scores), *_paper_notes(quoted)))


def _best_table(where: str, scores: Sequence[Score], params: Params) -> Table:
    ipcs, kinds = _ipcs_and_labels(scores)
    cells = [(ipc, kind) for ipc in ipcs for kind in kinds]
    rows = []
    for method, own in _by_method(scores, params).items():
        found = [own.get(cell) for cell in cells]
        values = [score.top1_best_mean if score else None for score in found]
        rows.append((params.methods[method].title, *values))
    split = _split(scores[0].split)
    note = (
        "Mean over the same students of each one's best epoch. That epoch is chosen on the "
        f"{split} set itself, which makes the number optimistic; the table above does not do so."
    )
    columns = [Column(kind, f"IPC {ipc}", spec=".1f") for ipc, kind in cells]
    return Table(
        f"Best-epoch top-1 accuracy (%) on {where}, optimistic",
        (Column("method", text=True), *columns),
        tuple(rows),
        (note,),
    )


def _ipcs_and_labels(scores: Sequence[Score]) -> tuple[list[int], list[str]]:
    return sorted({score.ipc for score in scores}), sorted({score.labels for score in scores})


def _by_method(scores: Sequence[Score], params: Params) -> dict[str, dict[tuple[int, str], Score]]:
    groups = grouped(scores, "method")
    return {
        method: {(score.ipc, score.labels): score for score in groups[method]}
        for method in params.methods
        if method in groups
    }


def _last(score: Score | None) -> str | None:
    if score is None:
        return None
    return percent(score.top1_mean, score.top1_std if score.n > 1 else None)


def _marked(found: PaperResult | None, arch: str) -> str | None:
    """The paper's number, with marks for what still differs from our setting."""
    if found is None or found.mean is None:
        return None
    mark = "*" * found.downsized + "†" * (not _same_arch(arch, found.arch))
    return f"{percent(found.mean, found.std)}{mark}"


def _same_arch(ours: str, papers: str) -> bool:
    return ours.startswith(papers.lower())  # convnet3 is a ConvNet


def paper_result(
    params: Params, table: str, dataset: str, method: str, ipc: int, paper: Sequence[PaperResult]
) -> PaperResult | None:
    """The paper's number in one of its tables for our dataset, method and IPC, if it has one."""
    wanted = (table, params.datasets[dataset].paper, params.methods[method].paper, ipc)
    return next((r for r in paper if (r.table, r.dataset, r.method, r.ipc) == wanted), None)


def _note(scores: Sequence[Score]) -> str:
    split, n = _split(scores[0].split), _values(scores, "n")
    return (
        f"Mean ± sample standard deviation over n = {n} student{'s' * (n != '1')} (seeds) "
        "trained on one synthesis; the spread between syntheses is not in it. Accuracy after the "
        f"last of {_values(scores, 'epochs')} epochs on the {split} split "
        f"({_values(scores, 'images_held_out')} images held out). Hard and soft are the labels "
        "that students learn from."
    )


def _values(scores: Sequence[Score], attribute: str) -> str:
    return " or ".join(f"{value:,}" for value in sorted({getattr(s, attribute) for s in scores}))


def _split(name: str) -> str:
    return {"val": "validation"}.get(name, name)


def _paper_notes(quoted: str) -> list[str]:
    if not quoted:
        return ["The paper does not report these settings."]
    notes = [
        "paper: the number printed in the paper's Table 1 for the same dataset, method and IPC. "
        "Its students learn from soft labels; of its random images it does not say."
    ]
    if "†" in quoted:
        notes.append("†: students of another architecture than ours, so not directly comparable.")
    if "*" in quoted:
        notes.append("*: on downsized images, so not directly comparable.")
    return notes


def paper_table(paper: Sequence[PaperResult]) -> Table:
    """The paper's Table 1, quoted in full."""
    results = [r for r in paper if r.table == "1"]
    cells = list(grouped(results, "dataset", "ipc"))
    rows: list[tuple[Cell, ...]] = []
    for (method, arch), own in grouped(results, "method", "arch").items():
        by_cell = {(r.dataset, r.ipc): r for r in own}
        rows.append((method, arch, *(_printed(by_cell.get(cell)) for cell in cells)))
    columns = [Column(f"IPC {ipc}", dataset) for dataset, ipc in cells]
    note = (
        "Quoted from the paper (arXiv:2410.07579, Table 1), not measured by us: top-1 accuracy "
        "(%), in brackets the gain over SRe2L as printed; *: on downsized ImageNet-1K; "
        f"{DASH}: not reported. The paper does not say how many students it trained, nor whether "
        "it reports the last epoch or the best."
    )
    return Table(
        "For orientation: Table 1 of the paper",
        (Column("method", text=True), Column("student", text=True), *columns),
        tuple(rows),
        (note,),
    )


def _printed(result: PaperResult | None) -> str | None:
    if result is None or result.mean is None:
        return None
    gain = "" if result.delta is None else f" (+{result.delta:.1f})"
    return f"{percent(result.mean, result.std)}{'*' * result.downsized}{gain}"


def long_table(scores: Sequence[Score], paper: Sequence[PaperResult], params: Params) -> Table:
    """One row per score; the paper's number stands with soft labels, which is what it trains on."""
    keys = ("dataset", "method", "ipc", "arch", "labels", "n")
    numbers = ("top1_mean", "top1_std", "top1_best_mean")
    rows = []
    for score in scores:
        found = (
            paper_result(params, "1", score.dataset, score.method, score.ipc, paper)
            if score.labels == "soft"
            else None
        )
        ours = [getattr(score, key) for key in (*keys, *numbers)]
        theirs = (found.mean, found.std, found.arch) if found else (None, None, None)
        rows.append((*ours, *theirs))
    names = (*keys, *numbers, "paper_mean", "paper_std", "paper_arch")
    return Table("Table 1, long form", tuple(Column(name) for name in names), tuple(rows))


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


# --------------------------------------------------------------------------------- rows for DVC


def summarise(
    scores: Sequence[Score], bases: Sequence[Base], pools: Sequence[PoolFacts]
) -> dict[str, Any]:
    """Nested metrics: dataset, method, ipc, student, labels; teachers and pools beside them.

    Raises:
        TeddyError: two rows would have the same path, or a name has a dot, with which DVC
            separates the parts of a path.
    """
    leaves: dict[tuple[str, ...], tuple[str, Json]] = {}

    def add(path: tuple[str, ...], source: str, leaf: Json) -> None:
        if path in leaves:
            raise TeddyError(
                f"{leaves[path][0]} and {source} would both be reported as {'.'.join(path)}; "
                "only one of them can be"
            )
        if dotted := next((part for part in path if "." in part), None):
            raise TeddyError(f"{source}: {dotted!r} has a dot, which names of metrics must not")
        leaves[path] = (source, leaf)

    for score in scores:
        path = (score.dataset, score.method, f"ipc{score.ipc}", score.arch, score.labels)
        add(path, f"sets.{score.set}", _metrics(score))
    for base in bases:
        top1 = round(base.epochs[-1].val_top1, 2)
        add((base.dataset, "teacher", _last_part(base.name)), f"bases.{base.name}",
            {"val_top1": top1})  # fmt: skip
    for pool in pools:
        top1s = [member.val_top1 for member in pool.members]
        facts = {
            "members": len(top1s),
            "val_top1_min": round(min(top1s), 2),
            "val_top1_max": round(max(top1s), 2),
        }
        add((pool.dataset, "pool", _last_part(pool.name)), f"pools.{pool.name}", facts)
    return _nested({path: leaf for path, (_, leaf) in leaves.items()})


def _metrics(score: Score) -> Json:
    names = ("top1_mean", "top1_std", "top1_best_mean")
    return {name: round(getattr(score, name), 2) for name in names} | {"n": score.n}


def _last_part(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _nested(leaves: Mapping[tuple[str, ...], Json]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node.update(leaf)
    return tree


def accuracy_points(scores: Sequence[Score]) -> Table:
    """Points of the accuracy figure, one row per set and kind of labels."""
    keys = ("dataset", "method", "ipc", "labels", "top1_mean", "top1_std")
    rows = [(f"{s.set} {s.labels}", *(getattr(s, key) for key in keys)) for s in scores]
    return Table("Accuracy", tuple(Column(name) for name in ("name", *keys)), tuple(rows))


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
