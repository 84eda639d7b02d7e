"""Propositions 1–3 and the equations behind them, checked numerically and written down.

Every section computes both sides of an equation in float64 on a small made-up problem (or a case
with an answer known by hand) and compares them. ``check_all`` gives the sections and the curves
that figures are drawn from; ``markdown`` writes them for a reader who has the paper open.
"""

from dataclasses import dataclass

from teddy.core.errors import TeddyError
from teddy.core.tables import Column, Table
from teddy.settings.theory import TheoryConfig
from teddy.theory.checks import Check, Section
from teddy.theory.expansion import ErrorLaw, error_law, proposition_1
from teddy.theory.gradients import Bounds, bound_curves, equation_14, equation_15, equations_12_13
from teddy.theory.objective import (
    Segments,
    equation_19,
    equation_20,
    equation_21,
    equation_22,
    segment_errors,
)
from teddy.theory.statistics import (
    Isotropic,
    equation_16,
    equations_17_18,
    isotropic_means,
    proposition_2,
)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was checked, and the curves behind the figures."""

    sections: tuple[Section, ...]
    law: ErrorLaw
    bounds: Bounds
    isotropic: Isotropic
    segments: Segments


def check_all(config: TheoryConfig, seed: int) -> Report:
    """Compute every section, in the order of the paper."""
    law, bounds = error_law(config, seed), bound_curves(config, seed)
    isotropic, segments = isotropic_means(config, seed), segment_errors(config, seed)
    sections = (
        proposition_1(config, law),
        equations_12_13(config, seed),
        equation_14(config, seed),
        equation_15(config, bounds),
        proposition_2(config, seed, isotropic),
        equation_16(config, seed),
        equations_17_18(config, seed),
        equation_19(config, seed),
        equation_20(config, segments),
        equation_21(config, seed),
        equation_22(config, seed, bounds),
    )
    return Report(sections, law, bounds, isotropic, segments)


def refuse_failures(report: Report) -> None:
    """Stop if any check failed.

    Raises:
        TeddyError: names the first that failed with its numbers, and how many did.
    """
    failed = [(s, c) for s in report.sections for c in s.checks if not c.passed]
    if failed:
        section, check = failed[0]
        raise TeddyError(
            f"{len(failed)} of {count(report)} checks failed, the first in {section.title!r}: "
            f"{check.what}: expected {check.left:.6g} {check.relation} {check.right:.6g} within "
            f"{check.tolerance:.1e}, got an error of {check.error:.1e}"
        )


def count(report: Report) -> int:
    """Number of checks."""
    return sum(len(section.checks) for section in report.sections)


def overview(report: Report) -> Table:
    """How many checks every section has, and how many pass."""
    rows = tuple(
        (section.title, len(section.checks), sum(check.passed for check in section.checks))
        for section in report.sections
    )
    columns = Column("section", text=True), Column("checks", spec="d"), Column("passed", spec="d")
    note = "Each check with both sides, error and tolerance: plots/theory.md."
    return Table("Equations checked numerically", columns, rows, (note,))


_COLUMNS = (
    Column("known"), Column("quantity", text=True), Column("computed"), Column("", text=True),
    Column("expected"), Column("error"), Column("tolerance"), Column("verdict", text=True),
)  # fmt: skip


def markdown(report: Report, figures: str) -> str:
    """The report as a document that shows its figures.

    Args:
        report: what was checked.
        figures: folder of the figures, relative to the document.
    """
    failed = sum(not check.passed for section in report.sections for check in section.checks)
    total = count(report)
    verdict = f"All {total} checks pass." if not failed else f"**{failed} of {total} checks fail.**"
    blocks = [
        "# The paper's equations, checked numerically",
        "Written by `dvc repro theory`; do not edit. Everything is computed in float64 from the "
        "functions of `src/teddy/theory/` and `src/teddy/objectives.py`, with the settings of "
        "`theory:` in `params.yaml`. *Known* is the number of a known-answer test (`kat01` … in "
        "`tests/test_theory.py`). The error is the distance of the two sides, or by how much an "
        "inequality fails.",
        verdict,
        overview(report).body(),
    ]  # fmt: skip
    for section in report.sections:
        blocks += [f"## {section.title}", section.statement, f"*Computed.* {section.computed}"]
        rows = tuple(_row(check) for check in section.checks)
        blocks.append(Table(section.title, _COLUMNS, rows, marked_up=True).body())
        if section.figure:
            blocks.append(
                f"![{section.caption}]({figures}/{section.figure}.png)\n\n*{section.caption}*"
            )
    return "\n\n".join(blocks) + "\n"


def _row(check: Check) -> tuple[str, ...]:
    return (
        check.known, check.what, _number(check.left), check.relation, _number(check.right),
        _small(check.error), _small(check.tolerance), "pass" if check.passed else "**FAIL**",
    )  # fmt: skip


def _number(value: float) -> str:
    return f"{value + 0.0:.6g}"  # no negative zero


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
