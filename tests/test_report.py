"""Tables, figures and the report on a small tree of invented records; nothing is trained, no GPU.

Every set's students score 50, 52 and 57 percent plus an offset of their own, so their mean is
53 plus the offset and their sample standard deviation is √13.
"""

import csv
import dataclasses
import functools
import html
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from teddy.core import tables
from teddy.core.errors import TeddyError
from teddy.core.files import read_json, write_json
from teddy.data.distilled import DistilledSet, save_distilled
from teddy.data.images import Normalisation
from teddy.report import accuracy_figures, image_grids, records, training_figures
from teddy.report import drawing as figures
from teddy.report import targets as report
from teddy.report.axis_tables import AXES
from teddy.report.image_grids import class_grid, method_grid
from teddy.report.page import from_markdown
from teddy.report.results import EvaluationResult, ImageGrid, PaperResult
from teddy.report.summary import summarise
from teddy.settings.rows import DatasetRow, MethodRow
from teddy.settings.schema import read_yaml, to_json
from teddy.settings.stages import (
    Catalogue,
    OverviewSettings,
    ReportSettings,
    SetsSettings,
    ShownBase,
    ShownEvaluation,
    ShownPool,
    ShownSet,
    TableSettings,
)
from teddy.stages import grids, target
from teddy.stages.commands import main
from tools import keep_run

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "metrics/reference"
LAST, BEST = (50.0, 52.0, 57.0), (60.0, 60.0, 63.0)
CLASSES = 3
METHODS = {"random": "random", "sre2l": "sre2l", "post": "teddy-post", "prior": "teddy-prior"}
POOLS = {"random": "prior", "sre2l": "converged", "post": "post", "prior": "prior"}
Settings = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("error")


def catalogue(paper: str = "", random: str = "Random (ResNet18)") -> Catalogue:
    """Digits, under a name of the paper's, and four methods."""
    names = {
        "random": ("Random real images", random), "sre2l": ("SRe2L", "SRe2L"),
        "teddy-post": ("Teddy (post)", "Teddy (post)"),
        "teddy-prior": ("Teddy (prior)", "Teddy (prior)"),
    }  # fmt: skip
    return Catalogue(
        datasets={"digits": DatasetRow(title="scikit-learn digits", paper=paper)},
        methods={
            method: MethodRow(
                title=title, paper=name, labels=("hard", "soft"),
                algorithm="random" if method == "random" else "teddy",
            )
            for method, (title, name) in names.items()
        },
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rows:
    """All that is declared for a tree."""

    evaluations: tuple[ShownEvaluation, ...]
    """Of sets, by their own labels; Table 1 shows all of them."""
    names: Catalogue = dataclasses.field(default_factory=catalogue)
    bases: tuple[str, ...] = ("digits/base",)

    @property
    def sets(self) -> tuple[ShownSet, ...]:
        return tuple(
            ShownSet(
                name=row.set, dataset=row.dataset, method=row.method, ipc=row.ipc,
                by_eq7=row.method != "random",
            )
            for row in self.evaluations
        )  # fmt: skip

    @property
    def pools(self) -> tuple[ShownPool, ...]:
        makers = {"converged": "sre2l", "post": "teddy-post", "prior": "teddy-prior"}
        return tuple(
            ShownPool(
                name=f"digits/{kind}", dataset="digits", base="digits/base", kind=kind,
                method=method,
            )
            for kind, method in makers.items()
        )  # fmt: skip

    def inputs(self) -> dict[str, object]:
        """What the stages read, by the path of its file."""
        names, largest = self.names, max(row.ipc for row in self.evaluations)
        bases = tuple(ShownBase(name=name, dataset="digits") for name in self.bases)
        return {
            "table1/digits": TableSettings(
                target="table1", dataset="digits", catalogue=names, evaluations=self.evaluations
            ),
            "fig4-6-7/digits": SetsSettings(
                target="fig4-6-7", dataset="digits", catalogue=names,
                sets=tuple(row for row in self.sets if row.ipc == largest),
            ),
            "overview": OverviewSettings(
                catalogue=names, pools=self.pools, sets=self.sets, bases=bases[:1],
                pools_of_sets=tuple({row.pool: 0 for row in self.evaluations}),
            ),
            "report": ReportSettings(
                catalogue=names, evaluations=self.evaluations, bases=bases, pools=self.pools
            ),
        }  # fmt: skip


def row(name: str, method: str, ipc: int, pool: str) -> ShownEvaluation:
    """A set under its own labels."""
    return ShownEvaluation(
        name=name, dataset="digits", data="digits", set=name, method=method, ipc=ipc,
        pool=f"digits/{pool}", members=0, labels=("hard", "soft"), syntheses=3, keep=(1, 1),
        default=True,
    )  # fmt: skip


def rows_at(*ipcs: int) -> Rows:
    """Rows of four methods at these IPCs."""
    return Rows(
        tuple(
            row(f"digits/main/ipc{ipc}/{name}", method, ipc, POOLS[name])
            for ipc in ipcs
            for name, method in METHODS.items()
        )
    )


def offset(method: str, ipc: int, labels: str) -> float:
    """What the students of a set score above the others, different for all; percent."""
    return 2 * list(METHODS.values()).index(method) + ipc / 100 + (labels == "soft") * 20


def brightness(method: str, label: int, index: int) -> int:
    """Grey level of an image, different for all that are in one picture."""
    return 20 + 50 * list(METHODS.values()).index(method) + 11 * label + index


def write_tree(root: Path, declared: Rows) -> None:
    """What the stages read: their settings and every record."""
    (root / "reference").mkdir(parents=True, exist_ok=True)  # without runs that are kept
    shutil.copy(REFERENCE / "paper.yaml", root / "reference")
    for name, content in declared.inputs().items():
        write_json(root / f"inputs/{name}.json", to_json(content), in_order=True)
    for own in declared.evaluations:
        write_set(root, own)
    for name in declared.bases:
        epochs = [
            {"epoch": epoch, "loss": 2 / epoch, "val_top1": 99 - 60 / epoch}
            for epoch in range(1, 31)
        ]
        write_json(root / f"teachers/{name}.json", {"base": name, "epochs": epochs})
    for pool in declared.pools:
        members: list[Settings] = [
            {"val_top1": 50.125 + i, "parameters": 100, "macs": 2000} for i in range(4)
        ]
        for index, member in enumerate(members):
            member |= (
                {"seed": 7, "lr": 0.1, "finetune_epochs": 0.5, "target_top1": 50.0 + index}
                if pool.kind == "post"
                else {"epoch": 1 + index}
            )
        record = {"pool": pool.name, "kind": pool.kind, "base": pool.base, "members": members}
        write_json(root / f"pools/{pool.name}.json", record)


def write_set(root: Path, own: ShownEvaluation) -> None:
    """A set with its evaluation and its loss curves."""
    name, method, ipc, by_pool = own.name, own.method, own.ipc, own.method != "random"
    students = {
        labels: [
            {
                "synthesis": seed,
                "seed": 0,
                "top1_last": last + offset(method, ipc, labels),
                "top1_best": best + offset(method, ipc, labels),
                "macro_f1": last + offset(method, ipc, labels) - 1,
                "kl_student_teacher": 0.5,
                "kl_teacher_student": 0.25,
            }
            for seed, (last, best) in enumerate(zip(LAST, BEST, strict=True))
        ]
        for labels in own.labels
    }
    facts: Settings = {"evaluation": name}
    facts |= {key: getattr(own, key) for key in ("set", "dataset", "data", "method", "ipc", "pool")}
    facts |= {"arch": "convnet3", "split": "test", "images_held_out": 450, "epochs": 150,
              "machine": "a machine"}  # fmt: skip
    synthesis = {"draw": 1, "ensemble": "logits", "first_bn_weight": 10.0}
    facts |= {
        "members": 4,
        "teachers": [{"epoch": 2 * i + 2, "val_top1": 50.0} for i in range(4)],
        "synthesis": synthesis if by_pool else None,
        "bytes": {"images": 640 * ipc, "labels": 3000 * ipc},
    }
    write_json(root / f"evaluations/{name}.json", facts | {"labels": students})
    curves = [
        [
            {"iteration": i, "classifier_prior": (batch + 1) / i, "statistics": 10.0 / i}
            for i in (1, 2, 4)
        ]
        for batch in range(2)
    ]
    batches = [{"batch": f"{i}", "curve": curve} for i, curve in enumerate(curves) if by_pool]
    write_json(root / f"syntheses/{name}.json", {"set": name, "batches": batches})
    pairs = [(index, label) for index in range(ipc) for label in range(CLASSES)]
    images = torch.tensor([brightness(method, label, index) for index, label in pairs])
    distilled = DistilledSet(
        images.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8),
        torch.tensor([label for _, label in pairs]),
        tuple(f"class {label}" for label in range(CLASSES)),
        Normalisation((0.5,), (0.5,)),
        {"set": name},
    )
    save_distilled(root / f"sets/{name}/0.safetensors", distilled)


Step = tuple[list[str], tuple[str, ...]]


def steps(root: Path) -> list[Step]:
    """What makes tables and figures: its entrypoint, arguments and outputs, in order."""
    out = root / "out"
    ways: list[tuple[str, str, Settings, Settings]] = [
        (
            "target", "table1/digits",
            {"evaluations": root / "evaluations", "paper": root / "reference/paper.yaml"},
            {"out": "tables/digits/table1", "figure": "figures/digits/table1.png"},
        ),
        (
            "grids", "fig4-6-7/digits", {"sets": root / "sets"},
            {"figures": "figures/digits/fig4-6-7"},
        ),
        (
            "overview", "overview",
            {name: root / name for name in ("teachers", "pools", "syntheses")},
            {"out": "tables/pools", "figures": "figures/overview"},
        ),
        (
            "report", "report",
            {
                **{n: root / n for n in ("evaluations", "teachers", "pools", "reference")},
                **{name: out / name for name in ("tables", "figures")},
            },
            {"summary": "summary.json", "page": "report.html"},
        ),
    ]  # fmt: skip
    made: list[Step] = []
    for stage, settings, inputs, outputs in ways:
        options = [f"--{key}={path}" for key, path in inputs.items()]
        options += [f"--{key}={out / path}" for key, path in outputs.items()]
        arguments = [stage, f"--settings={root / 'inputs' / settings}.json", *options]
        made.append((arguments, tuple(outputs.values())))
    return made


def run(root: Path) -> Path:
    """Make everything from a tree; the folder of its outputs."""
    for arguments, _ in steps(root):
        main(arguments)
    return root / "out"


@functools.cache
def printed() -> list[PaperResult]:
    """The paper's numbers, read once because that takes a second."""
    return records.read_paper(REFERENCE / "paper.yaml")


def csv_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def leaves(tree: Settings, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of every number in nested metrics."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of eight sets, IPC 1 and 10."""
    root = tmp_path_factory.mktemp("tree")
    write_tree(root, rows_at(1, 10))
    return root


@pytest.fixture(scope="module")
def out(tree: Path) -> Path:
    """What the stage makes of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEDDY_LOGS", str(tree / "logs"))
        return run(tree)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of its own for a test that changes something; figures are not drawn."""
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    monkeypatch.setattr(target, "_draw", lambda *_: None)
    monkeypatch.setattr(target, "read_paper", lambda _: printed())
    for module, name in (
        (grids, "method_grid"), (grids, "class_grid"), (training_figures, "teachers"),
        (training_figures, "synthesis"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_: None)
    write_tree(tmp_path, rows_at(1))
    return tmp_path


def refusal(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a stage refuses a tree, without writing any of its outputs."""
    for arguments, outputs in steps(root):
        capsys.readouterr()
        try:
            main(arguments)
        except SystemExit as stopped:
            assert stopped.code == 1
            made = [file for path in outputs for file in (root / "out").glob(f"{path}*")]
            assert not [file for file in made if file.is_file() or any(file.iterdir())]
            return capsys.readouterr().err
    pytest.fail("nothing was refused")


# ----------------------------------------------------------------------------------------- numbers


def test_summary_has_mean_and_sample_std_of_the_last_epoch(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    own = summary["digits"]["main"]["ipc10"]["prior"]
    expected = {"top1_std": round(math.sqrt(13), 2), "n": 3}
    hard = {"top1_mean": 59.1, "top1_best_mean": 67.1, "f1_mean": 58.1}
    soft = {"top1_mean": 79.1, "top1_best_mean": 87.1, "f1_mean": 78.1}
    assert own == {"hard": expected | hard, "soft": expected | soft}


def test_summary_has_exactly_the_declared_rows(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    found = dict(leaves(summary))
    values = ("top1_mean", "top1_std", "top1_best_mean", "f1_mean", "n")
    expected: set[tuple[str, ...]] = {
        (*name.split("/"), labels, value)
        for name in (own.name for own in rows_at(1, 10).evaluations)
        for labels in ("hard", "soft")
        for value in values
    }
    teacher = ("teachers", "digits", "base", "val_top1")
    expected |= {teacher} | {
        ("pools", "digits", kind, value)
        for kind in ("converged", "post", "prior")
        for value in ("members", "val_top1_min", "val_top1_max")
    }
    assert set(found) == expected
    assert not any("." in part for path in found for part in path)
    assert found[teacher] == 97.0
    assert summary["pools"]["digits"]["post"] == {
        "members": 4, "val_top1_min": 50.12, "val_top1_max": 53.12,
    }  # fmt: skip
    assert (out / "summary.json").read_text() == (
        json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    )


def test_a_single_student_has_no_spread(small: Path) -> None:
    path = small / "evaluations/digits/main/ipc1/prior.json"
    record = json.loads(path.read_text())
    record["labels"] = {labels: own[:1] for labels, own in record["labels"].items()}
    write_json(path, record)
    out = run(small)
    summary = json.loads((out / "summary.json").read_text())
    own = summary["digits"]["main"]["ipc1"]["prior"]["hard"]
    assert (own["n"], own["top1_mean"], own["top1_std"]) == (1, 56.01, 0.0)
    text = (out / "tables/digits/table1/table.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| Teddy (prior)"))
    assert line.split("|")[2].strip() == "56.0"
    assert "n = 1 or 3 students in all" in text


def test_curves_are_means_over_batches(out: Path) -> None:
    points = [
        row
        for row in csv_rows(out / "figures/overview/synthesis.csv")
        if row["set"] == "digits/main/ipc10/post"
    ]
    assert [
        (row["iteration"], float(row["classifier_prior"]), float(row["statistics"]))
        for row in points
    ] == [("1", 1.5, 10.0), ("2", 0.75, 5.0), ("4", 0.375, 2.5)]


# ------------------------------------------------------------------------------------------ tables


def test_every_declared_row_appears(out: Path) -> None:
    declared = rows_at(1, 10)
    long = csv_rows(out / "tables/digits/table1/rows.csv")
    assert [(row["name"], row["method"], row["ipc"]) for row in long] == [
        (f"{own.name} {labels}", own.method, str(own.ipc))
        for own in declared.evaluations
        for labels in ("hard", "soft")
    ]
    curves = [row["set"] for row in csv_rows(out / "figures/overview/synthesis.csv")]
    assert list(dict.fromkeys(curves)) == [own.name for own in declared.sets if own.by_eq7]
    members = [(row["pool"], row["member"]) for row in csv_rows(out / "tables/pools/rows.csv")]
    assert members == [(pool.name, str(index)) for pool in declared.pools for index in range(4)]
    assert len(csv_rows(out / "figures/overview/teachers.csv")) == 30


def test_table_shows_each_number_in_its_place(out: Path) -> None:
    text = (out / "tables/digits/table1/table.md").read_text()
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.split("\n## ")[1].splitlines()
        if line.startswith("|")
    ]
    kinds = ("hard", "soft")
    assert table[0] == ["method", *(f"IPC {ipc} {kind}" for ipc in (1, 10) for kind in kinds)]
    assert [line[0] for line in table[2:]] == [
        "Random real images", "SRe2L", "Teddy (post)", "Teddy (prior)",
    ]  # fmt: skip
    assert table[4][1:] == ["57.0 ± 3.6", "77.0 ± 3.6", "57.1 ± 3.6", "77.1 ± 3.6"]
    assert "over 3 syntheses" in text and "n = 3 students in all" in text.replace("\n", " ")
    assert "last of 150 epochs" in text
    assert "test split (450 images held out)" in text.replace("\n", " ")
    assert "optimistic" in text.split("\n## ")[2] and "67.1" in text.split("\n## ")[2]


def test_paper_is_quoted_in_full(out: Path) -> None:
    quoted = (out / "tables/digits/table1/table.md").read_text().split("\n## ")[4]
    results = [r for r in printed() if r.table == "1" and r.mean is not None]
    assert len(results) == 39
    heads, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in quoted.splitlines()
        if line.startswith("|")
    ]
    for result in results:
        line = next(line for line in lines if line[0] == result.method)
        cell = line[heads.index(f"{result.dataset} IPC {result.ipc}")]
        assert cell.split(" (")[0] == f"{result.mean} ± {result.std}{'*' * result.downsized}"
        assert cell.endswith(f" (+{result.delta})") == (result.delta is not None)
    assert sum(line.count("–") for line in lines) == 12 * 5 - 39
    assert "Quoted from the paper" in quoted
    sources = {line[0]: line[2] for line in lines}
    assert {sources[name] for name in ("DC", "DM", "Random (Conv)")} == {"quoted"}
    assert {sources[name] for name in ("SRe2L", "Teddy (prior)")} == {"measured"}


def test_papers_numbers_stand_beside_the_same_setting_only(small: Path) -> None:
    write_tree(small, dataclasses.replace(rows_at(1, 50), names=catalogue("Tiny-ImageNet")))
    out = run(small)
    found = {
        (row["method"], row["ipc"], row["labels"]): (row["paper_mean"], row["paper_std"])
        for row in csv_rows(out / "tables/digits/table1/rows.csv")
    }
    numbers = {
        "random": ("18.2", "0.2"), "sre2l": ("41.1", "0.4"),
        "teddy-post": ("44.5", "0.2"), "teddy-prior": ("45.2", "0.1"),
    }  # fmt: skip
    for (method, ipc, labels), number in found.items():
        same = ipc == "50" and labels == "soft"
        assert number == (numbers[method] if same else ("", ""))
    text = (out / "tables/digits/table1/table.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| Teddy (prior)"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == 6 and cells[5] == "45.2 ± 0.1†"
    (other,) = (line for line in text.splitlines() if line.startswith("| DSA, quoted"))
    assert [cell.strip() for cell in other.strip("|").split("|")][1:] == ["–"] * 4 + ["25.3 ± 0.2"]
    assert "†: students of another architecture" in text


def test_papers_numbers_on_downsized_images_are_marked(tmp_path: Path) -> None:
    declared = dataclasses.replace(rows_at(10), names=catalogue("ImageNet-1K", "Random (Conv)"))
    write_tree(tmp_path, declared)
    results = records.read_evaluations(declared.evaluations, tmp_path / "evaluations")
    table = report.target_tables("table1", results, printed(), declared.names)[0]
    assert [row[3] for row in table.rows][:4] == [
        "4.1 ± 0.1*", "21.3 ± 0.6†", "32.7 ± 0.2†", "34.1 ± 0.1†",
    ]  # fmt: skip
    assert any(note.startswith("*: on downsized images") for note in table.notes)


def test_markdown_columns_line_up(out: Path) -> None:
    checked = 0
    for path in sorted((out / "tables").rglob("*.md")):
        bars: list[int] | None = None
        for line in path.read_text().splitlines():
            own = [index for index, symbol in enumerate(line) if symbol == "|"]
            if line.startswith("|"):
                assert bars is None or own == bars, line
                checked += bars is not None
            bars = own if line.startswith("|") else None
    assert checked > 30


def test_table_renders_as_markdown_csv_and_latex() -> None:
    columns = (
        tables.Column("na|me", text=True),
        tables.Column("a_1", "G&H", spec=".1f"),
        tables.Column("b", "G&H"),
    )
    table = tables.Table(
        "50 %", columns, (("x", 1.25, None), ("longer", 10.0, "1 ± 2*")), ("No–te",)
    )
    assert table.markdown().splitlines() == [
        "## 50 %",
        "",
        r"| na\|me | G&H a_1 |  G&H b |",
        "| :----- | ------: | -----: |",
        "| x      |     1.2 |      – |",
        "| longer |    10.0 | 1 ± 2* |",
        "",
        "No–te",
    ]
    assert table.csv() == "na|me,a_1,b\nx,1.25,\nlonger,10,1 ± 2*\n"
    assert table.latex().splitlines() == [
        r"\begin{table}[ht]",
        r"\centering",
        r"\caption{50 \%}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"\multicolumn{1}{c}{} & \multicolumn{2}{c}{G\&H} \\",
        r"\cmidrule(lr){2-3}",
        r"na\textbar{}me & a\_1 & b \\",
        r"\midrule",
        r"x & 1.2 & -- \\",
        r"longer & 10.0 & 1 $\pm$ 2$^*$ \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\footnotesize No--te",
        r"\end{table}",
    ]


@pytest.mark.parametrize(
    "text",
    ["a|b", "a\\|b", "<b>x</b>", "<!-- x", "*x*", "**x**", "_x__", "`x`", "[x](y)", "![x](y)",
     "a&b", "&amp;", "&#65;", "~~x~~", "\\", "\\*", "x\\", "$x$ $y$", "100%", "a^b", "{x}",
     "shuffle_v2_x", "1 ± 2*", "汉字", "عربي", "😀", "a" * 300],
)  # fmt: skip
def test_names_in_tables_are_text_and_no_markup(text: str) -> None:
    columns = (tables.Column(text, text, text=True), tables.Column("value"))
    table = tables.Table(text, columns, ((text, 1.0),))
    page = from_markdown(table.markdown()).replace("&quot;", '"')
    shown = html.escape(text, quote=False)
    for part in (f"<h3>{shown}<", f">{shown} {shown}</th>", f'<td class="text">{shown}</td>'):
        assert part in page
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert rows == [[text, "value"], [text, "1"]]
    assert re.search(r"(?<![\\$])[&%#^~|<>]", tables._tex(text)) is None


def test_line_breaks_in_names_leave_a_row_one_line() -> None:
    columns = (tables.Column("name", text=True), tables.Column("value"))
    table = tables.Table("", columns, (("a\nb\r\nc", 1.0),))
    assert table.body().splitlines()[2:] == ["| a b c |   1.0 |"]


# ----------------------------------------------------------------------------------------- targets


def result(method: str, ipc: int, top1: float, **changes: Any) -> EvaluationResult:
    """An invented result with soft labels."""
    name = changes.pop("name", f"digits/{method}/{ipc}")
    fields: Settings = {
        "name": name, "set": name, "dataset": "digits", "data": "digits", "method": method,
        "ipc": ipc, "arch": "convnet3", "pool": "digits/prior", "labels": "soft", "split": "test",
        "images_held_out": 450, "epochs": 150, "n": 3, "syntheses": 3,
        "top1_mean": top1, "top1_std": 1.5,
        "top1_best_mean": top1 + 1, "f1_mean": top1 - 2, "f1_std": 0.5,
        "kl_student_teacher": 0.5, "kl_teacher_student": 0.25, "members": 4, "pool_size": 4,
        "stages": (2, 8), "teachers_drawn": 3, "ensemble": "logits", "first_bn_weight": 10.0,
        "image_bytes": 6400, "label_bytes": 30000,
    }  # fmt: skip
    optional = {name: None for name in EvaluationResult.__dataclass_fields__ if name not in fields}
    return EvaluationResult(**{**optional, **fields, **changes})


def cells(table: tables.Table) -> list[list[tables.Cell]]:
    return [list(row) for row in table.rows]


def test_table2_has_a_column_per_network_and_the_papers_numbers() -> None:
    results = [
        result("sre2l", 10, 20.0, arch="resnet50"),
        result("sre2l", 10, 30.0, arch="shufflenet_v2_x1_0"),
        result("teddy-prior", 10, 40.0, arch="resnet50"),
    ]
    (table,) = report.target_tables("table2", results, printed(), catalogue("ImageNet-1K"))
    assert [column.name for column in table.columns][2:] == ["resnet50", "shufflenet_v2_x1_0"]
    assert cells(table) == [
        ["SRe2L", "ours", "20.0 ± 1.5", "30.0 ± 1.5"],
        ["SRe2L", "paper", "28.4 ± 0.1", "29.1 ± 0.1"],
        ["Teddy (prior)", "ours", "40.0 ± 1.5", None],
        ["Teddy (prior)", "paper", "39.0 ± 0.1", "38.5 ± 0.1"],
    ]
    (plain,) = report.target_tables("table2", results, printed(), catalogue())
    assert [row[1] for row in plain.rows] == ["ours", "ours"]


def test_table3_has_both_metrics_beside_the_papers() -> None:
    results = [
        result(method, 20, top1, data="digits-keep60", keep=(0.6, 1.0))
        for method, top1 in (("sre2l", 20.0), ("teddy-prior", 30.0))
    ]
    (table,) = report.target_tables("table3", results, printed(), catalogue("Tiny-ImageNet"))
    assert [column.group for column in table.columns][2:] == ["60%-100%"] * 2
    assert cells(table) == [
        ["SRe2L", "ours", "20.0 ± 1.5", "18.0 ± 0.5"],
        ["SRe2L", "paper", "24.2", "24.2"],
        ["Teddy (prior)", "ours", "30.0 ± 1.5", "28.0 ± 0.5"],
        ["Teddy (prior)", "paper", "32.7", "32.5"],
    ]


@pytest.mark.parametrize(
    ("recipes", "note"),
    [
        ((None, ""), ""), (("rd3", "rd3"), " Recipe: rd3."),
        (("rd3", ""), " Recipes of the rows differ: none, rd3."),
    ],
)  # fmt: skip
def test_tables_name_the_recipe_that_rows_share(recipes: tuple[str | None, ...], note: str) -> None:
    results = [
        result(method, 10, 20.0, arch="resnet50", recipe=recipe)
        for method, recipe in zip(("sre2l", "teddy-prior"), recipes, strict=True)
    ]
    (table,) = report.target_tables("table4", results, printed(), catalogue("ImageNet-1K"))
    assert table.notes[0].partition("(soft).")[2] == note


def test_table4_has_the_papers_number_per_ipc() -> None:
    results = [result("sre2l", ipc, 20.0 + ipc, arch="resnet50") for ipc in (5, 10)]
    (table,) = report.target_tables("table4", results, printed(), catalogue("ImageNet-1K"))
    assert cells(table) == [["SRe2L", "25.0 ± 1.5", "5.4", "30.0 ± 1.5", "17.8"]]


def test_without_base_runs_and_syntheses_there_is_a_figure_that_says_so(tmp_path: Path) -> None:
    training_figures.teachers(tmp_path / "teachers.png", [], [], catalogue())
    training_figures.synthesis(tmp_path / "synthesis.png", [], catalogue())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.svg"))) == 2


@pytest.mark.parametrize(
    ("name", "attribute", "values", "shown"),
    [
        ("fig3a", "teachers_drawn", (1, 3), ["1", "3‡"]),
        ("fig3b", "members", (1, 4), ["1", "4‡"]),
        ("fig3c", "pool_size", (2, 4), ["2", "4‡"]),
        ("fig2c", "stages", ((1, 4), (2, 8)), ["1–4", "2–8‡"]),
    ],
)
def test_axes_have_a_row_per_value_in_order_and_mark_the_default(
    tmp_path: Path, name: str, attribute: str, values: tuple[Any, Any], shown: list[str]
) -> None:
    results = [
        result("teddy-prior", 10, 50.0, default=True, **{attribute: values[1]}),
        result("teddy-prior", 10, 40.0, **{attribute: values[0]}),
    ]
    (table,) = report.target_tables(name, results, printed(), catalogue())
    assert [row[0] for row in table.rows] == shown
    assert [row[1] for row in table.rows] == ["40.0 ± 1.5", "50.0 ± 1.5"]
    assert [row[2:] for row in table.rows] == [(0.5, 0.25) if name == "fig2c" else ()] * 2
    path = tmp_path / "figure.png"
    accuracy_figures.along_axis(path, results, AXES[name], catalogue())
    assert path.read_bytes().startswith(b"\x89PNG")
    accuracy_figures.along_axis(tmp_path / "again.png", results[::-1], AXES[name], catalogue())
    for suffix in (".png", ".svg"):
        again = (tmp_path / "again").with_suffix(suffix).read_bytes()
        assert again == path.with_suffix(suffix).read_bytes()


def test_a_row_without_a_place_on_the_axis_is_refused() -> None:
    results = [result("teddy-post", 10, 40.0, name="digits/post", stages=None)]
    with pytest.raises(TeddyError, match="fig2c: digits/post has no place on the axis"):
        report.target_tables("fig2c", results, printed(), catalogue())


def test_ablations_say_what_differs_and_who_labels() -> None:
    results = [
        result("teddy-prior", 10, 40.0, ensemble="probs", first_bn_weight=1.0),
        result("random", 10, 50.0, pool="digits/converged", ensemble=None, first_bn_weight=None),
    ]
    (table,) = report.target_tables("ablations", results, printed(), catalogue())
    assert [row[2:7] for row in cells(table)] == [
        ["digits/prior", "probs", 1.0, None, "40.0 ± 1.5"],
        ["digits/converged", None, None, None, "50.0 ± 1.5"],
    ]


def test_precisions_are_compared_over_syntheses() -> None:
    results = [
        result("teddy-prior", 10, mean, precision=precision, name=precision)
        for precision, mean in (("float32", 42.0), ("bfloat16", 41.0))
    ]
    (table,) = report.target_tables("precision", results, printed(), catalogue())
    assert [row[1:] for row in cells(table)] == [
        ["float32", None, "42.0 ± 1.5"],
        ["bfloat16", None, "41.0 ± 1.5"],
    ]


# -------------------------------------------------------------------------------------- kept runs


def keep(tree: Path, root: Path, *options: str) -> Path:
    """Keep the run of a tree in a folder of its own; the kept file."""
    for folder in ("evaluations", "pools", "reference"):
        shutil.copytree(tree / folder, root / "metrics" / folder, dirs_exist_ok=True)
    if not (root / "inputs").is_dir():
        shutil.copytree(tree / "inputs", root / "inputs")
    paths = {"inputs": root / "inputs", "metrics": root / "metrics", "lock": root / "dvc.lock"}
    keep_run.main(["digits", *options, *(f"--{name}={path}" for name, path in paths.items())])
    (file,) = (root / "metrics/reference").glob("*.json")
    return file


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    return tmp_path / "logs"


def test_kept_runs_have_their_origin_and_need_no_declaration(
    tree: Path, tmp_path: Path, logs: Path
) -> None:
    file = keep(tree, tmp_path)
    own = {"date": "2026-01-02", "commit": "abc", "command": "dvc repro",
           "hardware": {"gpus": ["A GPU"], "cores": 4, "cpu": "a processor"}}  # fmt: skip
    write_json(file, read_json(file) | own, in_order=True)
    (run_,) = records.read_kept(file.parent)
    table = report.kept_table(run_, printed())
    assert table.title == "Kept run: Top-1 accuracy (%) on scikit-learn digits, convnet3 students"
    assert cells(table)[3] == [
        "Teddy (prior)", "59.0 ± 3.6", "79.0 ± 3.6", "59.1 ± 3.6", "79.1 ± 3.6",
    ]  # fmt: skip
    for part in ("2026-01-02", "abc", "`dvc repro`", "A GPU", "4 cores of a processor"):
        assert part in table.notes[0]
    text = file.with_suffix(".md").read_text()
    assert "An unknown number of minutes" in text and "## Kept run: Top-1" in text
    assert text.count("| digits/post ") == 4  # its members
    write_json(file, {"dataset": "digits"})
    with pytest.raises(TeddyError, match="expected the record of"):
        records.read_kept(file.parent)


def test_page_shows_kept_runs_of_datasets_that_are_not_switched_on(
    small: Path, tmp_path: Path
) -> None:
    file = keep(small, tmp_path / "other")
    record = read_json(file)
    names = record["settings"]["catalogue"]["datasets"]
    names["unheard"] = names.pop("digits") | {"title": "Unheard images"}
    record["settings"]["dataset"] = "unheard"
    path = small / "reference/unheard-table1.json"
    write_json(path, record, in_order=True)
    with pytest.raises(TeddyError, match="settings do not name digits"):
        records.read_kept(path.parent)
    for own in record["settings"]["evaluations"]:
        own["dataset"] = "unheard"
    write_json(path, record, in_order=True)
    text = (run(small) / "report.html").read_text(encoding="utf-8")
    section = text[text.index('<h2 id="table1">') : text.index('<h2 id="table2">')]
    assert "<h3>Kept run: Top-1 accuracy (%) on Unheard images, convnet3 students</h3>" in section
    assert text.count("Kept run") == 1
    assert "Unheard" not in (small / "out/tables/digits/table1/table.md").read_text()


def test_page_shows_a_target_of_every_dataset_in_one_section(small: Path) -> None:
    out = run(small)
    shutil.copytree(out / "tables/digits", out / "tables/more")
    for picture in ("more/table1", "more/fig4-6-7/more_teddy-prior", "overview/teachers"):
        path = out / f"figures/{picture}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    path = small / "inputs/report.json"
    settings = read_json(path)
    settings["catalogue"]["datasets"]["more"] = {"title": "More digits", "paper": ""}
    write_json(path, settings, in_order=True)
    arguments, _ = steps(small)[-1]
    main(arguments)
    text = (out / "report.html").read_text(encoding="utf-8")
    section = text[text.index('<h2 id="table1">') : text.index('<h2 id="table2">')]
    assert section.count("<h3>Top-1 accuracy (%) on") == 2
    lines = "Lines of top-1 accuracy against images per class, one line per method"
    assert f'alt="{lines}, More digits"' in section
    assert re.search(r'alt="Grid of distilled images, [^"]*: Teddy \(prior\)"', text)
    assert 'Accuracy and loss of each base run by epoch, with the teachers taken"' in text
    assert re.search(r"Teddy [\d.]+: 1 dataset, 4 distilled sets, 24 students", text)
    assert "Students trained on: a machine</li>" in text
    verdicts = read_json(out / "tables/digits/table1/verdicts.json")["verdicts"]
    outcomes = re.findall(r"(reproduced|inconclusive)</td>", section)
    assert len(outcomes) == 2 * len(verdicts) > 0
    assert "Members of the teacher pools" in text[text.index('<h2 id="pools">') :]


def test_kept_runs_of_an_axis_mark_the_default(tree: Path, tmp_path: Path, logs: Path) -> None:
    name, other = "digits/main/ipc10/prior", "digits/fig3a/draw2"
    own = row(name, "teddy-prior", 10, "prior")
    shutil.copytree(tree / "inputs", tmp_path / "inputs")
    shown = TableSettings(
        target="fig3a", dataset="digits", catalogue=catalogue(),
        evaluations=(own, dataclasses.replace(own, name=other, set=other, default=False)),
    )  # fmt: skip
    write_json(tmp_path / "inputs/fig3a/digits.json", to_json(shown), in_order=True)
    record = read_json(tree / f"evaluations/{name}.json")
    synthesis = record["synthesis"] | {"draw": 2}
    changed = record | {"evaluation": other, "set": other, "synthesis": synthesis}
    write_json(tmp_path / f"metrics/evaluations/{other}.json", changed)
    (run_,) = records.read_kept(keep(tree, tmp_path, "--target=fig3a").parent)
    table = report.kept_table(run_, printed())
    assert [row[0] for row in table.rows] == ["1‡", "2"]
    assert any(note.startswith("‡") for note in table.notes)


def test_kept_runs_say_the_minutes_of_all_stages_that_they_need(
    tree: Path, tmp_path: Path, logs: Path
) -> None:
    def stage(out: str, *deps: str) -> Settings:
        return {"outs": [{"path": out}], "deps": [{"path": path} for path in deps]}

    lock: Settings = {
        "resolve": stage("inputs", "params.yaml"),
        "train_teacher@base": stage("models/base", "inputs/train_teacher/base.json"),
        "train_teacher@other": stage("models/other"),
    }
    for own in rows_at(1, 10).evaluations:
        path = f"metrics/evaluations/{own.name}.json"
        lock[f"evaluate@{own.name}"] = stage(path, "models/base", "inputs")
    write_json(tmp_path / "dvc.lock", {"stages": lock})
    lines = [("train_teacher", "base: 97 %", 1.0), ("train_teacher", "base: 97 %", 120.0)]
    lines += [("train_teacher", "other: 97 %", 999.0)]
    lines += [("evaluate", f"{own.name}: top-1", 60.0) for own in rows_at(1, 10).evaluations]
    logs.mkdir()
    for name, summary, seconds in lines:
        with (logs / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps({"summary": summary, "seconds": seconds}) + "\n")
    record = read_json(keep(tree, tmp_path))
    assert record["minutes"] == 2 + 8
    assert len(record["seconds"]) == 9
    assert record["seconds"]["evaluate digits/main/ipc10/prior"] == 60


def test_runs_that_are_not_there_cannot_be_kept(
    tree: Path, tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        keep(tree, tmp_path, "--target=table3")
    assert "inputs/table3/digits.json: not found; name" in capsys.readouterr().err


def test_repositorys_kept_runs_agree_with_the_tables_beside_them() -> None:
    kept = records.read_kept(REFERENCE)
    assert [run_.settings.target for run_ in kept] == ["precision", "table1"]
    for run_ in kept:
        text = (REFERENCE / f"cifar10-cpu-{run_.settings.target}.md").read_text()
        assert report.kept_table(run_, printed()).markdown() in text


def test_tables_check_makes_every_table_that_only_reads_records() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (listed,) = re.findall(r"^RECORDED := (.*)$", makefile, re.MULTILINE)
    modules = {"target", "costs", "learners", "report"}
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    commands = {name: stage.get("do", stage)["cmd"] for name, stage in stages.items()}
    assert listed.split() == [
        name for name, command in commands.items()
        if re.search(r"-m teddy (\w+)", command)[1] in modules  # type: ignore[index]
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("file", "step"),
    [
        ("evaluations/digits/main/ipc1/prior.json", "evaluate"),
        ("teachers/digits/base.json", "train_teacher"),
        ("syntheses/digits/main/ipc1/sre2l.json", "synthesize"),
        ("pools/digits/post.json", "build_pool"),
        ("sets/digits/main/ipc1/random/0.safetensors", "synthesize"),
    ],
)
def test_missing_record_is_refused_with_its_stage(
    small: Path, file: str, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / file).unlink()
    message = refusal(small, capsys)
    assert f"error: {small / file}: missing" in message
    assert f"run the {step} stage" in message
    assert message.count("\n") == 1


def test_two_rows_of_one_setting_are_refused(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again, (*_, last) = "digits/main/again", rows_at(1).evaluations
    twice = (*rows_at(1).evaluations, dataclasses.replace(last, name=again, set=again))
    write_tree(small, Rows(twice))
    message = refusal(small, capsys)
    assert "digits/main/ipc1/prior and digits/main/again" in message
    assert "share a place in the table" in message


def test_record_of_another_row_is_refused(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small / "evaluations/digits/main/ipc1"
    shutil.copy(folder / "post.json", folder / "prior.json")
    message = refusal(small, capsys)
    assert f"{folder / 'prior.json'}: evaluation is 'digits/main/ipc1/post'" in message


def test_record_without_declared_labels_is_refused(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small / "evaluations/digits/main/ipc1/prior.json"
    record = json.loads(path.read_text())
    del record["labels"]["soft"]
    write_json(path, record)
    assert f"{path}: lacks 'soft'; run the evaluate stage" in refusal(small, capsys)


def test_an_evaluation_that_is_no_sets_own_is_of_another_stage(tmp_path: Path) -> None:
    again = dataclasses.replace(row("digits/a", "random", 1, "prior"), name="digits/fig3b/again")
    with pytest.raises(TeddyError, match="run the reevaluate stage for 'digits/fig3b/again' first"):
        records.read_evaluations([again], tmp_path)


def test_sets_measured_on_different_splits_are_refused(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small / "evaluations/digits/main/ipc1/prior.json"
    write_json(path, json.loads(path.read_text()) | {"split": "val"})
    message = refusal(small, capsys)
    assert "different splits" in message and "digits/main/ipc1/prior on val" in message


def test_names_with_a_dot_are_refused() -> None:
    with pytest.raises(TeddyError, match=r"'v1\.5' has a dot"):
        summarise([result("sre2l", 10, 40.0, name="digits/v1.5")], [], [])


def test_undeclared_records_are_ignored(small: Path) -> None:
    before = {path.name: path.read_bytes() for path in run(small).rglob("*.*")}
    shutil.copytree(small / "evaluations/digits/main", small / "evaluations/digits/forgotten")
    (small / "evaluations/digits/noise.json").write_text("not JSON")
    assert {path.name: path.read_bytes() for path in run(small).rglob("*.*")} == before


# ----------------------------------------------------------------------------------------- figures


def test_two_runs_write_the_same_bytes(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    write_tree(tmp_path, rows_at(1, 10))
    again = run(tmp_path)
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    kinds = ["", "_random", "_sre2l", "_teddy-post", "_teddy-prior"]
    figures_ = ["table1", "teachers", "synthesis", *(f"digits{kind}" for kind in kinds)]
    assert {file.stem for file in files if file.suffix == ".png"} == set(figures_)
    assert {file.stem for file in files if file.suffix == ".svg"} == set(figures_[:3])
    for file in files:
        assert (out / file).read_bytes() == (again / file).read_bytes(), file


def test_grids_show_each_image_once_enlarged_without_blur(out: Path) -> None:
    folder = out / "figures/digits/fig4-6-7"
    picture = np.rint(imread(folder / "digits.png")[:, :, :3] * 255).astype(int)
    area = 72 * 72
    for method in METHODS.values():
        for label in range(CLASSES):
            for index in range(4):
                grey = brightness(method, label, index)
                pixels = (picture == grey).all(2).sum()
                assert area * (index < 3) <= pixels < area * ((index < 3) + 0.1)
    own = np.rint(imread(folder / "digits_sre2l.png")[:, :, :3] * 255).astype(int)
    columns = []
    for index in range(10):
        tiles = np.argwhere((own == brightness("sre2l", 1, index)).all(2))
        assert area <= len(tiles) < 1.1 * area
        columns.append(np.median(tiles[:, 1]))
    assert columns == sorted(columns)


def test_grid_of_many_classes_shows_ten_in_colour(tmp_path: Path) -> None:
    shown_set = rows_at(10).sets[-1]
    count, ipc = 200, 10
    colours = torch.stack([torch.arange(count), 255 - torch.arange(count), torch.full((count,), 9)])
    images = colours.T.to(torch.uint8)[:, :, None, None].expand(-1, -1, 32, 32).repeat(ipc, 1, 1, 1)
    names = tuple(f"a class with a very long name {label}, synonym" for label in range(count))
    distilled = DistilledSet(
        images, torch.arange(count).repeat(ipc), names, Normalisation((0.5,) * 3, (0.5,) * 3), {}
    )
    save_distilled(tmp_path / f"sets/{shown_set.name}/0.safetensors", distilled)
    (grid,) = records.read_grids([shown_set], tmp_path / "sets")
    shown = [0, 22, 44, 66, 88, 111, 133, 155, 177, 199]
    assert grid.class_names == tuple(names[label] for label in shown)
    assert grid.images.shape == (10, 10, 32, 32, 3)
    method_grid(tmp_path / "grid.png", [grid], catalogue())
    picture = np.rint(imread(tmp_path / "grid.png")[:, :, :3] * 255).astype(int)
    red, green, blue = np.moveaxis(picture, 2, 0)
    found, pixels = np.unique(red[(green == 255 - red) & (blue == 9)], return_counts=True)
    assert found.tolist() == shown
    assert set(pixels) == {3 * 64 * 64}


def test_a_target_has_mean_and_spread_of_each_cell_as_metrics(small: Path) -> None:
    found = read_json(run(small) / "tables/digits/table1/metrics.json")
    cell = found["main"]["ipc1"]["prior"]["soft"]
    (result,) = [
        row
        for row in csv_rows(small / "out/tables/digits/table1/rows.csv")
        if (row["name"], row["labels"]) == ("digits/main/ipc1/prior soft", "soft")
    ]
    assert set(cell) == {"top1_mean", "top1_std"}
    for key, value in cell.items():
        assert value == pytest.approx(float(result[key]), abs=0.006)


def test_any_class_name_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = (
        ",", " ", "$a$ and $b", "$\\frac$", "two\nlines", "bell\a", "字母", "字", "",
        "<b>&amp;%#_^|", "عربي", "😀" * 300, "--help",
    )  # fmt: skip
    images = np.zeros((1, len(names), 8, 8, 1), np.uint8)
    grid = ImageGrid(
        dataset="digits", method="sre2l", ipc=1, num_classes=8, class_names=names, images=images
    )
    for draw, path in ((class_grid, tmp_path / "one.png"), (class_grid, tmp_path / "again.png")):
        draw(path, grid, catalogue())
    method_grid(tmp_path / "all.png", [grid], catalogue())
    assert {path.name for path in tmp_path.glob("*.png")} == {"one.png", "again.png", "all.png"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "figures: the font lacks 2 letters, which are drawn as boxes: 字母"
    assert [image_grids._class(name) for name in names[:6]] == [
        "','", "' '", "$a$ and $b", "$\\frac$", "two lines", "bell\N{REPLACEMENT CHARACTER}",
    ]  # fmt: skip


@pytest.mark.parametrize("title", ["two\nlines", "", " ", "tab\t", "end "])
def test_titles_are_one_line(title: str) -> None:
    with pytest.raises(TeddyError, match="title must be one line of text"):
        DatasetRow(title=title)
    with pytest.raises(TeddyError, match="title must be one line of text"):
        MethodRow(title=title, algorithm="random", labels=("hard",))


def test_one_random_method_at_one_ipc_has_all_figures(tmp_path: Path, logs: Path) -> None:
    declared = Rows(rows_at(1).evaluations[:1], bases=("digits/base", "digits/other"))
    write_tree(tmp_path, declared)
    out = run(tmp_path)
    assert {path.stem for path in (out / "figures").rglob("*.png")} == {
        "table1", "teachers", "synthesis", "digits", "digits_random",
    }  # fmt: skip
    assert (out / "figures/overview/synthesis.csv").read_text() == (
        "set,iteration,classifier_prior,statistics\n"
    )


def test_a_method_looks_the_same_whatever_else_is_shown() -> None:
    methods = [f"method {index}" for index in range(22)]
    first, other, far = methods[1], methods[4], methods[21]
    seen = figures.looks(methods, [first, other])
    assert figures.looks(methods[:5], [other]) == {other: seen[other]}
    beside = figures.looks(methods, [far, other, first])
    assert (beside[first], beside[other]) == (seen[first], seen[other])
    assert figures.looks(methods, [far])[far].colour == seen[first].colour, "there are too few"
    assert len({look.colour for look in beside.values()}) == 3
    assert len({look.colour for look in figures.looks(methods, methods[3:13]).values()}) == 10


_DRAW = """
import sys
from pathlib import Path
from teddy.report.drawing import drawn
with drawn(Path(sys.argv[1]), 2, 1) as figure:
    figure.subplots().plot([0, 1], [1, 0], "o-", clip_on=True)
"""


def test_a_figure_as_svg_has_the_same_bytes_in_another_process_on_another_day(
    tmp_path: Path,
) -> None:
    for name, epoch in (("one", "0"), ("two", "1000000000")):
        subprocess.run(
            [sys.executable, "-c", _DRAW, str(tmp_path / f"{name}.png")], check=True,
            env=os.environ | {"SOURCE_DATE_EPOCH": epoch, "PYTHONHASHSEED": epoch},
        )  # fmt: skip
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "two.svg").read_text(encoding="utf-8")
    assert "<text" not in text and "dc:date" not in text and "clipPath id" in text


def test_labels_move_apart_only_where_they_must() -> None:
    assert figures.moved_apart([0.1, 0.5, 0.9], [0.1] * 3, 0, 1) == pytest.approx([0.1, 0.5, 0.9])
    assert figures.moved_apart([0.5, 0.5, 0.9], [0.1] * 3, 0, 1) == pytest.approx([0.45, 0.55, 0.9])
    assert figures.moved_apart([0.98, 1.0], [0.1, 0.3], 0, 1) == pytest.approx([0.8, 1.0])
    assert figures.moved_apart([0.0, 0.01], [0.1, 0.1], 0, 1) == pytest.approx([0.0, 0.1])
