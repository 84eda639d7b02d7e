"""One self-contained HTML page of all tables, figures and verdicts; needs no network.

Tables come from the Markdown files that targets wrote, so the page cannot say anything else than
these; images are embedded.
"""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from teddy.report.verdicts import CLAIMS, Outcome, Verdict

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto; max-width: 66rem;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; }
table { border-collapse: collapse; font-size: 13px; margin: .5rem 0; display: block;
  overflow-x: auto; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th { border-bottom: 2px solid #888; } .text { text-align: left; }
td:not(.text) { white-space: nowrap; } img { max-width: 100%; }
p.note { color: #555; font-size: 13px; max-width: 52rem; }
.reproduced { color: #00664d; font-weight: 600; } .not-reproduced { color: #a84300;
  font-weight: 600; } .not-run, .no-evidence { color: #777;
  font-weight: 600; }
code { background: #f2f2f2; padding: 0 .2em; } nav a { margin-right: 1em;
  white-space: nowrap; }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A table or figure of the paper on the page."""

    target: str
    title: str
    tables: str
    """Markdown, or "" if the target was not made."""
    images: tuple[Path, ...]
    verdicts: tuple[Verdict, ...]


def render(title: str, intro: str, sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title: of the page.
        intro: Markdown under it.
        sections: in order.
    """
    links = "".join(f'<a href="#{s.target}">{html.escape(s.target)}</a>' for s in sections)
    body = "\n".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{from_markdown(intro)}\n<nav>{links}</nav>\n"
        f"<h2>Claims of the paper</h2>\n{_summary(sections)}\n{body}\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f'<h2 id="{section.target}">{html.escape(section.title)}</h2>']
    parts.append(_verdicts(outcomes(section)))
    parts.append(from_markdown(section.tables) if section.tables else "")
    parts += [_image(path) for path in section.images]
    if not section.tables and not section.images:
        parts.append("<p>Not run.</p>")
    return "\n".join(part for part in parts if part)


def outcomes(section: Section) -> list[Verdict]:
    """Verdicts of a section; claims on which it has none are not run."""
    missing = [
        claim
        for claim in CLAIMS.get(section.target, ())
        if not any(v.claim.startswith(claim.rstrip(".")) for v in section.verdicts)
    ]
    return [
        *section.verdicts,
        *(Verdict(claim=c, data="–", outcome="not run", evidence="no record") for c in missing),
    ]


def _summary(sections: Iterable[Section]) -> str:
    """How many verdicts of each kind every target has."""
    kinds = get_args(Outcome)
    rows = []
    for section in sections:
        found = [verdict.outcome for verdict in outcomes(section)]
        if found:
            counts = "".join(f"<td>{found.count(kind) or ''}</td>" for kind in kinds)
            link = f'<a href="#{section.target}">{html.escape(section.title)}</a>'
            rows.append(f'<tr><td class="text">{link}</td>{counts}</tr>')
    head = "".join(f"<th>{kind}</th>" for kind in kinds)
    return f'<table><tr><th class="text">target</th>{head}</tr>{"".join(rows)}</table>'


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    rows = "".join(
        f'<tr><td class="text">{html.escape(v.claim)}</td>'
        f'<td class="text">{html.escape(v.data)}</td>'
        f'<td class="text {v.outcome.replace(" ", "-")}">{v.outcome}</td>'
        f'<td class="text">{html.escape(v.evidence)}</td></tr>'
        for v in verdicts
    )
    names = ("claim of the paper", "on", "verdict", "evidence")
    head = "".join(f'<th class="text">{name}</th>' for name in names)
    return f"<table><tr>{head}</tr>{rows}</table>"


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    name = html.escape(path.stem)
    return f'<p><img alt="{name}" src="data:image/png;base64,{data}"></p>'


# --------------------------------------------------------------------------------------- Markdown


def from_markdown(text: str) -> str:
    """HTML of the Markdown that our tables and reports use: headings, tables, lists, paragraphs."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if block.startswith("```"):
            parts.append(f"<pre>{html.escape(block.strip('`').strip())}</pre>")
        elif lines[0].startswith("# "):  # the section has its heading already
            continue
        elif lines[0].startswith("#"):
            level = min(6, len(lines[0]) - len(lines[0].lstrip("#")) + 1)
            heading = _inline(lines[0].lstrip("# "))
            parts.append(f"<h{level}>{heading}</h{level}>")
            if len(lines) > 1:
                parts.append(from_markdown("\n".join(lines[1:])))
        elif lines[0].startswith("|"):
            parts.append(_table(lines))
        elif lines[0].startswith(("- ", "* ")):
            items = re.split(r"\n(?=[-*] )", block)
            parts.append(f"<ul>{''.join(f'<li>{_inline(i[2:])}</li>' for i in items)}</ul>")
        elif not lines[0].startswith(("![", "<!--")):
            parts.append(f'<p class="note">{_inline(block)}</p>')
    return "\n".join(parts)


def _table(lines: Sequence[str]) -> str:
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    left = [not rule.endswith(":") for rule in cells[1]]
    rows = []
    for index, row in enumerate([cells[0], *cells[2:]]):
        tag = "th" if index == 0 else "td"
        rows.append(
            "".join(
                f"<{tag}{' class=text' if text else ''}>{_inline(cell)}</{tag}>"
                for cell, text in zip(row, left, strict=True)
            )
        )
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _inline(text: str) -> str:
    escaped = html.escape(text.replace(r"\|", "|"), quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    escaped = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", escaped)
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", escaped)
