"""One self-contained HTML page of all tables, figures and verdicts; needs no network.

Tables come from the Markdown files that targets wrote, so the page cannot say anything else than
these; images are embedded.
"""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from markdown_it import MarkdownIt
from markdown_it.token import Token

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
.reproduced { color: #00664d; font-weight: 600; } .contradicted { color: #a84300;
  font-weight: 600; } .inconclusive, .not-run { color: #666;
  font-weight: 600; }
code { background: #f2f2f2; padding: 0 .2em; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; } nav a { white-space: nowrap; }
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the page."""

    path: Path
    about: str
    """What it shows, for those who do not see it."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a target has for one dataset, or for none."""

    tables: str
    """Markdown, or "" if it has none."""
    images: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A table or figure of the paper on the page."""

    target: str
    title: str
    parts: tuple[Part, ...]
    """None if the target was not made."""
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
    for part in section.parts:
        parts.append(from_markdown(part.tables))
        parts += map(_image, part.images)
    if not section.parts:
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


def _image(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    about = html.escape(picture.about)
    return f'<p><img alt="{about}" src="data:image/png;base64,{data}"></p>'


# --------------------------------------------------------------------------------------- Markdown

# Nothing that would need the network, and no HTML of its own.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_MARKDOWN.disable(["image", "link", "autolink", "reference"])


def from_markdown(text: str) -> str:
    """HTML of Markdown, without its title, which the section has already."""
    kept, in_title = [], False
    for token in _MARKDOWN.parse(text):
        if token.tag == "h1":
            in_title = token.nesting == 1
        elif not in_title:
            kept.append(_restyled(token))
    return str(_MARKDOWN.renderer.render(kept, _MARKDOWN.options, {}))


def _restyled(token: Token) -> Token:
    """Headings a level deeper, classes of the page's style for left-aligned cells and for notes."""
    if token.type in ("heading_open", "heading_close"):
        token.tag = f"h{min(6, int(token.tag[1:]) + 1)}"
    elif token.type in ("th_open", "td_open"):
        aligned = token.attrs.pop("style", "text-align:left")
        token.attrs |= {"class": "text"} if aligned == "text-align:left" else {}
    elif token.type == "paragraph_open":
        token.attrs["class"] = "note"
    return token
