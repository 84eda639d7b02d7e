"""Write the summary of all numbers, and one page with all tables, figures and verdicts."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from teddy.core.files import read_json, write_json
from teddy.core.tables import write_text
from teddy.report.page import Part, Section, render
from teddy.report.records import (
    read_bases,
    read_evaluations,
    read_kept,
    read_paper,
    read_pools,
)
from teddy.report.summary import summarise
from teddy.report.targets import TITLES, kept_table
from teddy.report.verdicts import Verdict, from_record
from teddy.settings.stages import Catalogue, ReportSettings

_INTRO = """Every number on this page comes from a record of this checkout or, where it says so,
from the paper or a kept run. A comparison counts as reproduced if the difference of the means
points the way the paper claims and is larger than the pooled standard deviation of the students,
sqrt((s₁² + s₂²) / 2); other rules stand beside their verdicts. Students of one set share its
synthesis, so the spread between syntheses is in none of these numbers. Verdicts hold for the data
they name: what a small dataset shows says little about the paper's ImageNet-1K."""


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
    write_text(args.page, render("Teddy: results beside the paper's", _INTRO, sections))
    made = sum(bool(section.parts) for section in sections)
    return f"{len(results)} results; {made} of {len(sections)} tables and figures"


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
        if text or images:
            parts.append(Part(_about(target, catalogue, dataset), text, tuple(images)))
        verdicts += from_record(read_json(record)) if record.is_file() else []
    return Section(target, TITLES[target], (*parts, *kept), tuple(verdicts))


def _about(target: str, catalogue: Catalogue, dataset: str) -> str:
    title = f", {catalogue.datasets[dataset].title}" if dataset else ""
    return f"{TITLES[target]}{title}"


def _kept_parts(reference: Path) -> dict[str, list[Part]]:
    """Tables of the runs that are kept, by target."""
    paper, parts = read_paper(reference / "paper.yaml"), dict[str, list[Part]]()
    for run in read_kept(reference):
        target, catalogue = run.settings.target, run.settings.catalogue
        about = _about(target, catalogue, run.settings.dataset)
        parts.setdefault(target, []).append(Part(about, kept_table(run, paper).markdown()))
    return parts
