"""Check Propositions 1–3 and Eqs. 12–22 numerically and write the report; fails if a check does."""

import os
from argparse import Namespace
from pathlib import Path

import torch

from teddy.core.tables import write_text
from teddy.settings.stages import TheorySettings
from teddy.settings.theory import TheoryConfig
from teddy.theory import appendix_figures as figures
from teddy.theory.appendix import Report, check_all, count, markdown, overview, refuse_failures


def main(settings: TheorySettings, args: Namespace) -> str:
    """Run the stage."""
    config = settings.config
    torch.set_num_threads(1)  # a few numbers at a time; and rounding does not depend on cores
    report = check_all(config, settings.seed)
    _draw(report, config, args.figures)
    # Also of what failed, for whoever mends it.
    folder = os.path.relpath(args.figures, args.report.parent)
    write_text(args.report, markdown(report, Path(folder).as_posix()))
    table = overview(report).markdown()
    text = f"# Appendix: propositions checked numerically\n\n{table}"
    write_text(args.out / "table.md", text)
    refuse_failures(report)
    return f"{count(report)} checks in {len(report.sections)} sections pass"


def _draw(report: Report, config: TheoryConfig, folder: Path) -> None:
    figures.error(folder / "error.png", report.law)
    figures.bounds(folder / "bounds.png", report.bounds)
    figures.isotropic(folder / "isotropic.png", report.isotropic)
    figures.segment(folder / "segment.png", report.segments, config.segment_steps)
