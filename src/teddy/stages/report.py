"""Write the summary of all numbers, and one page with all tables, figures and verdicts."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from teddy.core.files import read_json, write_json
from teddy.core.tables import write_text
from teddy.core.version import VERSION
from teddy.report.page import Part, Picture, Section, render
from teddy.report.records import (
    read_bases,
    read_evaluations,
    read_kept,
    read_paper,
    read_pools,
)
from teddy.report.results import Results
from teddy.report.summary import summarise
from teddy.report.targets import PICTURES, TITLES, kept_table
from teddy.report.verdicts import RULE, Verdict, from_record
from teddy.settings.stages import Catalogue, ReportSettings

_TITLE = "Teddy: results beside the paper's"
_INTRO = f"""Every number on this page comes from a record of this checkout or, where it says so,
from the paper or a kept run. {RULE} Other rules stand beside their verdicts. Students of one set
share its synthesis, so the spread between syntheses is in none of these numbers. Verdicts hold for
the data they name: what a small dataset shows says little about the paper's ImageNet-1K."""


def main(settings: ReportSettings, args: Namespace) -> str:
    """Run the stage."""
    results = read_evaluations(settings.evaluations, args.evaluations)
    bases = read_bases(settings.bases, args.teachers)
    pools = read_pools(settings.pools, args.pools)
    kept = _kept_parts(args.reference)
    sections = [
        _section(target, args.tables, args.figures, settings.catalogue, kept.get(target, []))
        for target in TITLES
    ]
    write_json(args.summary, summarise(results, bases, pools))
    write_text(args.page, render(_TITLE, f"{_head(results)}\n\n{_INTRO}", sections))
    made = sum(bool(section.parts) for section in sections)
    return f"{len(results)} results; {made} of {len(sections)} tables and figures"


def _head(results: Results) -> str:
    """What the page is of, in Markdown.

    No date and no commit: they would not be the same when the page is made again from the same
    records, so it says how Git tells them.
    """
    machines = dict.fromkeys(result.machine for result in results if result.machine)
    counts = {
        "datasets": len({result.dataset for result in results}),
        "distilled sets": len({result.set for result in results}),
        "students": sum(result.n for result in results),
    }
    lines = [
        f"- Teddy {VERSION}: "
        + ", ".join(f"{n} {what if n != 1 else what[:-1]}" for what, n in counts.items()),
        f"- Students trained on: {'; '.join(machines) or 'not recorded'}",
        "- Date and commit of the newest record: `git log -1 metrics/evaluations`",
    ]
    return "\n".join(lines)


def _section(
    target: str, tables: Path, figures: Path, catalogue: Catalogue, kept: Sequence[Part]
) -> Section:
    """What a target has written, of every dataset or of none, and runs of it that are kept."""
    parts: list[Part] = []
    verdicts: list[Verdict] = []
    for dataset in (*catalogue.datasets, ""):
        folder, figure = tables / dataset / target, figures / dataset / target
        table, record = folder / "table.md", folder / "verdicts.json"
        text = table.read_text(encoding="utf-8") if table.is_file() else ""
        images = [*figure.parent.glob(f"{target}.png"), *sorted(figure.glob("*.png"))]
        pictures = [Picture(path, _about(target, catalogue, dataset, path)) for path in images]
        if text or pictures:
            parts.append(Part(text, tuple(pictures)))
        verdicts += from_record(read_json(record)) if record.is_file() else []
    return Section(target, TITLES[target], (*parts, *kept), tuple(verdicts))


def _about(target: str, catalogue: Catalogue, dataset: str, path: Path) -> str:
    """What a figure shows: of which dataset, and which of several it is."""
    shows = PICTURES.get(f"{target}/{path.stem}") or PICTURES.get(target, TITLES[target])
    title = f", {catalogue.datasets[dataset].title}" if dataset else ""
    which = ""
    if path.stem != target and f"{target}/{path.stem}" not in PICTURES:
        method = catalogue.methods.get(path.stem.rpartition("_")[2])
        which = f": {method.title if method else path.stem}"
    return f"{shows}{title}{which}"


def _kept_parts(reference: Path) -> dict[str, list[Part]]:
    """Tables of the runs that are kept, by target."""
    paper, parts = read_paper(reference / "paper.yaml"), dict[str, list[Part]]()
    for run in read_kept(reference):
        target = run.settings.target
        parts.setdefault(target, []).append(Part(kept_table(run, paper).markdown()))
    return parts
