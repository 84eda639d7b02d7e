"""A table that knows how to write itself as Markdown, CSV and LaTeX."""

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from teddy.core.files import atomic_path

DASH = "–"
Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Column:
    """Heading of a column and how it is shown."""

    name: str
    group: str = ""
    """Heading shared by neighbouring columns."""
    spec: str = ""
    """Format of numbers in Markdown and LaTeX."""
    text: bool = False
    """Left-aligned."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells and their renderings; a None cell is a dash, in CSV nothing."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    marked_up: bool = False
    """Whether cells are Markdown, and not text."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells in {len(self.columns)} columns")

    def markdown(self) -> str:
        """Title, table and notes."""
        notes = [textwrap.fill(note, 100, break_on_hyphens=False) for note in self.notes]
        return "\n\n".join([f"## {_markdown(self.title)}", self.body(), *notes]) + "\n"

    def body(self) -> str:
        """The Markdown table alone; columns line up in the source too."""
        heads = [f"{column.group} {column.name}".strip() for column in self.columns]
        lines = [heads, *self._shown()]
        if not self.marked_up:
            lines = [[_markdown(text) for text in line] for line in lines]
        lines = [
            [" ".join(text.replace("|", r"\|").splitlines()) for text in line] for line in lines
        ]
        widths = [max(3, *map(len, texts)) for texts in zip(*lines, strict=True)]
        rule = [
            f":{'-' * (width - 1)}" if column.text else f"{'-' * (width - 1)}:"
            for column, width in zip(self.columns, widths, strict=True)
        ]
        padded = [self._padded(line, widths) for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])

    def csv(self) -> str:
        """Column names, then rows; numbers with six significant digits, text as it is."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        for row in self.rows:
            writer.writerow([f"{c:.6g}" if isinstance(c, float) else c for c in row])
        return out.getvalue()

    def latex(self) -> str:
        """A table environment with a booktabs tabular."""
        align = "".join("l" if column.text else "r" for column in self.columns)
        names = [column.name for column in self.columns]
        head, *body = [rf"{' & '.join(map(_tex, line))} \\" for line in [names, *self._shown()]]
        lines = [
            r"\begin{table}[ht]", r"\centering", rf"\caption{{{_tex(self.title)}}}",
            rf"\begin{{tabular}}{{{align}}}", r"\toprule", *self._group_lines(), head,
            r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
            *(rf"\par\smallskip\footnotesize {_tex(note)}" for note in self.notes),
            r"\end{table}",
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _group_lines(self) -> list[str]:
        if not any(column.group for column in self.columns):
            return []
        heads, rules, start = [], [], 1
        for group, columns in groupby(self.columns, key=lambda column: column.group):
            span = len(list(columns))
            heads.append(rf"\multicolumn{{{span}}}{{c}}{{{_tex(group)}}}")
            rules += [rf"\cmidrule(lr){{{start}-{start + span - 1}}}"] if group else []
            start += span
        return [rf"{' & '.join(heads)} \\", " ".join(rules)]

    def _shown(self) -> list[list[str]]:
        return [
            [_shown(cell, column.spec) for cell, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]

    def _padded(self, line: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            text.ljust(width) if column.text else text.rjust(width)
            for text, width, column in zip(line, widths, self.columns, strict=True)
        ]


def _shown(cell: Cell, spec: str) -> str:
    if cell is None:
        return DASH
    return cell if isinstance(cell, str) else format(cell, spec)


# What would begin a code span, link, tag, entity, escape, struck-out or emphasised text.
_MARKUP = re.compile(
    r"[`\[]|<(?=[a-zA-Z/!?])|&(?=#?\w+;)|\\(?=[!-/:-@\[-`{-~])|~(?=~)|\*(?=\S)|(?<![^\W_])_"
)


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _MARKUP.sub(r"\\\g<0>", text)


_TEX = {symbol: f"\\{symbol}" for symbol in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "†": r"$^\dagger$", "*": r"$^*$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(symbol, symbol) for symbol in text)


def write_text(path: Path, text: str) -> None:
    """Write a table or document whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def percent(mean: float | None, std: float | None) -> str | None:
    """``97.3 ± 0.4``, without what is None; None if there is no mean."""
    if mean is None:
        return None
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"
