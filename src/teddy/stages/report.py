"""Write the summary of all numbers, and one page with all tables, figures and verdicts."""

from collections.abc import Sequence
from pathlib import Path

from teddy.core.console import parse, run_command
from teddy.core.files import check_writable, read_json, write_json
from teddy.core.tables import write_text
from teddy.report.page import Section, render
from teddy.report.records import read_bases, read_pools, read_scores
from teddy.report.summary import summarise
from teddy.report.targets import TITLES
from teddy.report.verdicts import from_record
from teddy.settings.stages import ReportSettings, read_settings

_INTRO = """Every number on this page comes from a record of this checkout or, where it says so,
from the paper or a kept run. A comparison counts as reproduced if the difference of the means
points the way the paper claims and is larger than the pooled standard deviation of the students,
sqrt((s₁² + s₂²) / 2); other rules stand beside their verdicts. Students of one set share its
synthesis, so the spread between syntheses is in none of these numbers. Verdicts hold for the data
they name: what a small dataset shows says little about the paper's ImageNet-1K."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        runs="folder of the students' records",
        teachers="folder of the base runs' records",
        pools="folder of the pools' manifests",
        tables="folder of the targets' tables",
        figures="folder of their figures",
        verdicts="folder of their verdicts",
        reference="the paper's numbers and runs that are kept",
        summary="JSON to write with all metrics",
        page="HTML to write",
    )

    def stage() -> str:
        settings = read_settings(ReportSettings, args.settings)
        check_writable(args.summary, args.page)
        scores = read_scores(settings.evaluations, args.runs)
        bases = read_bases(settings.bases, args.teachers)
        pools = read_pools(settings.pools, args.pools)
        sections = [
            _section(target, title, args.tables, args.figures, args.verdicts)
            for target, title in TITLES.items()
        ]
        write_json(args.summary, summarise(scores, bases, pools))
        write_text(args.page, render("Teddy: results beside the paper's", _INTRO, sections))
        made = sum(bool(section.tables or section.images) for section in sections)
        return f"{len(scores)} scores; {made} of {len(sections)} tables and figures"

    run_command("report", stage)


def _section(target: str, title: str, tables: Path, figures: Path, verdicts: Path) -> Section:
    """What a target has written; a target that was not made has no files."""
    table, record = tables / f"{target}.md", verdicts / f"{target}.json"
    single, folder = figures / f"{target}.png", figures / target
    images = [single] if single.is_file() else sorted(folder.glob("*.png"))
    return Section(
        target,
        title,
        table.read_text(encoding="utf-8") if table.is_file() else "",
        tuple(images),
        tuple(from_record(read_json(record))) if record.is_file() else (),
    )


if __name__ == "__main__":
    main()
