"""The paper's printed numbers: the one for a setting of ours, and its Table 1 in full."""

from collections.abc import Sequence

from teddy.core.tables import DASH, Cell, Column, Table, percent
from teddy.report.results import PaperResult, grouped
from teddy.settings.stages import Catalogue


def paper_result(
    catalogue: Catalogue,
    table: str,
    dataset: str,
    method: str,
    ipc: int,
    paper: Sequence[PaperResult],
    *,
    metric: str = "top1_acc",
    arch: str = "",
    keep: str = "",
    init: str = "",
) -> PaperResult | None:
    """The paper's number in one of its tables for our setting, if it has one.

    Args:
        catalogue: names of our datasets and methods in the paper.
        table: its number there.
        dataset: ours.
        method: ours. Tables 3 and 4 do not say which of Teddy's pools they use.
        ipc: images per class.
        paper: all printed numbers.
        metric: ``top1_acc`` or ``f1``.
        arch: of the students, "" for any.
        keep: as printed in Table 3.
        init: as printed in Table 5.
    """
    name, title = catalogue.methods[method].paper, catalogue.datasets[dataset].paper
    names = {name, name.split(" (")[0]} if table in ("3", "4L") else {name}
    for r in paper:
        same = (r.table, r.ipc, r.metric, r.keep, r.init) == (table, ipc, metric, keep, init)
        where = r.dataset.removesuffix(" (imbalanced)") == title
        if same and where and r.method in names and (not arch or _same_arch(arch, r.arch)):
            return r
    return None


def _same_arch(ours: str, papers: str) -> bool:
    return ours.replace("_", "").startswith(papers.lower())  # convnet3 is a ConvNet


def quoted(found: PaperResult | None) -> str | None:
    """The paper's number as a cell."""
    return None if found is None else percent(found.mean, found.std)


def marked(found: PaperResult | None, arch: str) -> str | None:
    """The paper's number, with marks for what still differs from our setting."""
    if found is None or found.mean is None:
        return None
    mark = "*" * found.downsized + "†" * (not _same_arch(arch, found.arch))
    return f"{percent(found.mean, found.std)}{mark}"


_MEASURED = {"Random (ResNet18)", "SRe2L", "Teddy (post)", "Teddy (prior)"}
"""Methods of the paper's Table 1 that it measured; the others are ConvNet numbers of others."""


def paper_table(paper: Sequence[PaperResult]) -> Table:
    """The paper's Table 1, quoted in full."""
    results = [r for r in paper if r.table == "1"]
    cells = list(grouped(results, "dataset", "ipc"))
    rows: list[tuple[Cell, ...]] = []
    for (method, arch), own in grouped(results, "method", "arch").items():
        by_cell = {(r.dataset, r.ipc): r for r in own}
        source = "measured" if method in _MEASURED else "quoted"
        rows.append((method, arch, source, *(_printed(by_cell.get(cell)) for cell in cells)))
    columns = [Column(f"IPC {ipc}", dataset) for dataset, ipc in cells]
    note = (
        "Quoted from the paper (arXiv:2410.07579, Table 1), not measured by us: top-1 accuracy "
        "(%), in brackets the gain over SRe2L as printed. Rows marked quoted the paper itself "
        "takes from the literature. *: on downsized ImageNet-1K; "
        f"{DASH}: not reported. The paper does not say how many students it trained, nor whether "
        "it reports the last epoch or the best."
    )
    return Table(
        "For orientation: Table 1 of the paper",
        (
            Column("method", text=True),
            Column("student", text=True),
            Column("in the paper", text=True),
            *columns,
        ),
        tuple(rows),
        (note,),
    )


def _printed(result: PaperResult | None) -> str | None:
    if result is None or result.mean is None:
        return None
    gain = "" if result.delta is None else f" (+{result.delta:.1f})"
    return f"{percent(result.mean, result.std)}{'*' * result.downsized}{gain}"
