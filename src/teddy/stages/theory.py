"""Check Propositions 1–3 and Eqs. 12–22 numerically and write the report; fails if a check does."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from teddy.core.console import parse
from teddy.core.files import check_writable
from teddy.core.runtime import run_stage
from teddy.core.tables import write_text
from teddy.settings.stages import TheorySettings, read_settings
from teddy.settings.theory import TheoryConfig
from teddy.theory import appendix_figures as figures
from teddy.theory.appendix import Report, check_all, count, markdown, overview, refuse_failures


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        report="Markdown to write",
        table="Markdown to write with the number of checks",
        figures="folder to write figures to",
    )

    def stage() -> str:
        settings = read_settings(TheorySettings, args.settings)
        config = settings.config
        check_writable(args.report, args.table)
        torch.set_num_threads(1)  # a few numbers at a time; and rounding does not depend on cores
        report = check_all(config, settings.seed)
        _draw(report, config, args.figures)
        # Also of what failed, for whoever mends it.
        folder = os.path.relpath(args.figures, args.report.parent)
        write_text(args.report, markdown(report, Path(folder).as_posix()))
        table = overview(report).markdown()
        write_text(args.table, f"# Appendix: propositions checked numerically\n\n{table}")
        refuse_failures(report)
        return f"{count(report)} checks in {len(report.sections)} sections pass"

    run_stage("theory", stage)


def _draw(report: Report, config: TheoryConfig, folder: Path) -> None:
    figures.error(folder / "error.png", report.law)
    figures.bounds(folder / "bounds.png", report.bounds)
    figures.isotropic(folder / "isotropic.png", report.isotropic)
    figures.segment(folder / "segment.png", report.segments, config.segment_steps)


if __name__ == "__main__":
    main()
