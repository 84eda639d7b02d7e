"""The documentation agrees with the code: links, paths, names, commands, messages, numbers.

Reads text and source, runs no stage. No GPU, no downloads.
"""

import ast
import dataclasses
import re
import subprocess
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from teddy.settings.schema import read_yaml
from teddy.sharing.commands import NAMES as SHARING
from teddy.stages.commands import COMMANDS
from tools import readme
from tools.parameters_page import SECTIONS, page
from tools.readme import FILES, with_results

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("data/*.md"),
        *ROOT.glob("models/*.md"),
    ]
)
SCRIPTS = [ROOT / "Makefile", ROOT / ".github" / "workflows" / "ci.yml", ROOT / ".ci" / "run"]
FOLDERS = ("src", "tests", "tools", "benchmarks", "examples", "experiments", "params", "docs")
pages = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", text(path), flags=re.DOTALL | re.MULTILINE)


def spans(path: Path) -> list[str]:
    """Inline code of a page."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(path))


def commands(path: Path) -> Iterator[str]:
    """What a page tells its reader to type."""
    for block in re.findall(r"```sh\n(.*?)```", text(path), re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    yield from spans(path)


# ------------------------------------------------------------------------------ what is generated


def test_page_of_parameters_is_up_to_date() -> None:
    assert text(ROOT / "docs" / "parameters.md") == page(ROOT / "params.yaml"), "run `make docs`"


def test_every_setting_has_a_meaning_and_its_default() -> None:
    rows = [line for line in page(ROOT / "params.yaml").splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert not [row for row in rows if row.rstrip(" |").endswith("|")]
    assert any("| `lr` " in row and "0.25" in row and "Table 7" in row for row in rows)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_results_are_the_committed_ones(file: Path) -> None:
    shown = text(ROOT / file)
    for named in re.findall(r"<!-- results of ([^\s,]+)", shown):
        if not made(named) and will_be_made(named):
            pytest.skip(f"{named} is not made yet")
    assert with_results(ROOT / file, ROOT) == shown, "run `make readme`"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "page.md: not found"),
        ("no block", "page.md: expected <!-- results of FILE -->"),
        ("<!-- results of gone.md -->\n<!-- /results -->", "gone.md: not found"),
    ],
)
def test_pages_without_results_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    text: str | None, words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("page.md").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        readme.main(["page.md"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {words}")


# ------------------------------------------------------------------------------- links and paths


def made(path: str) -> bool:
    return (ROOT / path).exists()


@cache
def outputs() -> list[re.Pattern[str]]:
    """Files and folders that stages make, of any row."""
    found = []
    for stage in read_yaml(ROOT / "dvc.yaml")["stages"].values():
        for out in stage.get("do", stage)["outs"]:
            name = out if isinstance(out, str) else next(iter(out))
            parts = re.split(r"(\$\{[^}]+\})", name)
            pattern = "".join("(.+)" if p.startswith("${") else re.escape(p) for p in parts)
            found.append(re.compile(rf"({pattern})(/.*)?"))
    return found


def will_be_made(path: str) -> bool:
    """Whether it lies in an output of a stage that has not run here."""
    matches = [match for pattern in outputs() if (match := pattern.fullmatch(path))]
    return any(not made(match[1]) for match in matches)


def links(path: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    return [link for link in found if "://" not in link and not link.startswith("mailto:")]


@pages
def test_relative_links_lead_somewhere(path: Path) -> None:
    for link in links(path):
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        relative = file.relative_to(ROOT).as_posix()
        assert file.exists() or will_be_made(relative), link
        if anchor:
            assert anchor in anchors(file), link


@cache
def anchors(path: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", head.lower()) for head in heads]
    return {head.replace(" ", "-") for head in plain}


REFERENCE = re.compile(
    rf"((?:{'|'.join(FOLDERS)})/[\w./-]*)(?:: ([A-Za-z_][\w.]*(?:, [A-Za-z_][\w.]*)*))?"
)


@pages
def test_paths_and_names_of_code_exist(path: Path) -> None:
    if path.name == "CHANGELOG.md":  # which names what is gone
        return
    for span in spans(path):
        found = REFERENCE.fullmatch(span)
        if found is None or re.search(r"[<>…]", span):
            continue
        file = ROOT / found[1]
        assert file.exists(), span
        for name in found[2].split(", ") if found[2] else ():
            assert name in names_in(file), span


@cache
def names_in(file: Path) -> set[str]:
    """Functions, classes and their members, and constants of a module."""
    names = set()
    for node in ast.parse(text(file)).body:
        for name in _names(node):
            names.add(name)
            if isinstance(node, ast.ClassDef):
                names |= {f"{name}.{own}" for part in node.body for own in _names(part)}
    return names


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def test_readme_is_short_and_names_every_package() -> None:
    shown = text(ROOT / "README.md")
    assert len(shown.splitlines()) <= 200
    packages = {p.parent.name for p in ROOT.glob("src/teddy/*/__init__.py")}
    assert not [name for name in packages if f"(src/teddy/{name})" not in shown]
    assert not [p for p in ROOT.glob("docs/*.md") if f"(docs/{p.name})" not in shown]


# ------------------------------------------------------------------------------ keys and commands


@pages
def test_parameters_exist(path: Path) -> None:
    for span in spans(path):
        section, _, rest = span.partition(".")
        if section in SECTIONS and re.fullmatch(r"[a-z_.0-9]+", rest) and path.suffix == ".md":
            if path.name == "CHANGELOG.md":
                continue
            cls: Any = SECTIONS[section]
            for key in rest.split("."):
                hints = typing.get_type_hints(cls)
                assert key in hints, span
                options = (hints[key], *typing.get_args(hints[key]))
                cls = next((one for one in options if dataclasses.is_dataclass(one)), None)


def test_every_ambiguity_that_is_cited_is_told() -> None:
    told = {
        int(n) for n in re.findall(r"^\| (\d+) \|", text(ROOT / "docs/method.md"), re.MULTILINE)
    }
    assert told == set(range(1, 29))
    for folder in ("src", "params", "experiments", "examples"):
        for file in (ROOT / folder).rglob("*.[py][ya]*"):
            if file.suffix in (".py", ".yaml"):
                assert {int(n) for n in re.findall(r"§8-(\d+)", text(file))} <= told, file


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(path: Path) -> None:
    if path.name == "CHANGELOG.md":
        return
    makefile = text(ROOT / "Makefile")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    stages = set(read_yaml(ROOT / "dvc.yaml")["stages"])
    lines = list(commands(path)) if path.suffix == ".md" else text(path).splitlines()
    for line in lines:
        for module in re.findall(r"python -m ((?:teddy|tools|benchmarks)[\w.]*)", line):
            file = ROOT / ("src" if module.startswith("teddy") else "") / module.replace(".", "/")
            assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), line
        for stage in re.findall(r"(?:^|-m |`)teddy ([a-z_0-9]+)", line):
            assert stage in {*COMMANDS, *SHARING}, line
        for target in re.findall(r"(?:^|- run: |`)make ([a-z0-9-]+)", line.strip()):
            assert target in targets, line
        repro = re.search(r"(?:dvc .*repro|dvc exp run|tools\.repro)((?: [^#`&|;]*)?)", line)
        for word in repro[1].split() if repro else []:
            name = word.split("@")[0]
            plain = re.fullmatch(r"[a-z][a-z0-9_-]*", name)
            assert not plain or name in stages or f"{name}:" in makefile, line


# -------------------------------------------------------------------------------------- messages

ENTRY = re.compile(r"^\*\*(`+)(.+?)\1\*\*$", re.MULTILINE)


@cache
def literals() -> str:
    """All text in the source, the parts of formatted strings apart."""
    found = []
    for folder in ("src", "tools", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(text(file))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def entries() -> list[str]:
    return [match[2] for match in ENTRY.finditer(text(ROOT / "docs" / "troubleshooting.md"))]


def test_there_are_enough_messages() -> None:
    assert len(entries()) >= 40


@pytest.mark.parametrize("entry", entries())
def test_messages_are_those_of_the_code(entry: str) -> None:
    pieces = [piece.strip(" :") for piece in re.split("…|; ", entry)]
    for piece in filter(None, pieces):
        assert piece in literals(), piece
    assert sum(map(len, pieces)) > 12, "nothing of the message is held"


# --------------------------------------------------------------------------- files of the project


def test_citation_and_package_have_one_version() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    pyproject = text(ROOT / "pyproject.toml")
    assert f'version = "{citation["version"]}"' in pyproject
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2410.07579"


def test_help_of_make_lists_every_target() -> None:
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^([a-z0-9-]+):", text(ROOT / "Makefile"), re.MULTILINE))
    assert set(re.findall(r"^  make ([a-z0-9-]+)", shown, re.MULTILINE)) == targets
