"""Tables, figures and the report on a small tree of invented records; nothing is trained, no GPU.

Every set's students score 50, 52 and 57 percent plus an offset of their own, so their mean is
53 plus the offset and their sample standard deviation is √13.
"""

import csv
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from ruamel.yaml import YAML

from teddy.core import tables
from teddy.core.errors import TeddyError
from teddy.core.files import read_json, write_json
from teddy.data.distilled import DistilledSet, save_distilled
from teddy.data.images import Normalisation
from teddy.report import accuracy_figures, records, training_figures
from teddy.report import drawing as figures
from teddy.report import targets as report
from teddy.report.axis_tables import AXES
from teddy.report.comparison_tables import result_tables
from teddy.report.image_grids import method_grid
from teddy.report.results import PaperResult, Score
from teddy.report.summary import summarise
from teddy.settings.configs import STAGES
from teddy.settings.params import Params
from teddy.settings.theory import EXPERIMENTS
from teddy.stages import grids, overview, target
from teddy.stages import report as page
from tools import keep_run as reference
from tools import tables_check as check

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "metrics/reference"
LAST, BEST = (50.0, 52.0, 57.0), (60.0, 60.0, 63.0)
CLASSES = 3
Settings = dict[str, Any]
Change = Callable[[Settings], None]

pytestmark = pytest.mark.filterwarnings("error")


def settings(*ipcs: int) -> Settings:
    """The repository's stage settings, with rows of four methods at these IPCs."""
    raw: Settings = YAML().load(ROOT / "params.yaml")
    for experiment in EXPERIMENTS:
        del raw[experiment]
    stages: Settings = {name: {} for name in STAGES}
    raw["datasets"] = {"digits": {"title": "scikit-learn digits", "paper": ""} | stages}
    raw["methods"] = {
        method: {
            "title": title,
            "images": "random" if method == "random" else "synthesised",
            "labels": ["hard", "soft"],
            "paper": paper,
        }
        for method, title, paper in (
            ("random", "Random real images", "Random (ResNet18)"),
            ("sre2l", "SRe2L", "SRe2L"),
            ("teddy-post", "Teddy (post)", "Teddy (post)"),
            ("teddy-prior", "Teddy (prior)", "Teddy (prior)"),
        )
    }
    raw["prepared"] = {"digits": {"dataset": "digits"}}
    raw["bases"] = {"digits/base": {"dataset": "digits", "data": "digits"}}
    raw["pools"] = {
        f"digits/{kind}": {
            "dataset": "digits",
            "data": "digits",
            "base": "digits/base",
            "curve": "digits/base",
            "kind": kind,
        }
        for kind in ("converged", "post", "prior")
    }
    pools = {"random": "prior", "sre2l": "converged", "post": "post", "prior": "prior"}
    raw["sets"] = {
        f"digits/{name}/ipc{ipc}": {
            "dataset": "digits",
            "data": "digits",
            "method": f"teddy-{name}" if name in ("post", "prior") else name,
            "pool": f"digits/{pool}",
            "ipc": ipc,
            "draw": 1,
        }
        for name, pool in pools.items()
        for ipc in ipcs
    }
    raw |= {"scores": {}, "streams": {}, "step_teachers": {}}
    raw["targets"] = {"table1": list(raw["sets"]), "fig4-6-7": shown(raw["sets"])}
    return raw


def shown(sets: Settings) -> list[str]:
    """Rows of the largest IPC."""
    largest = max(row["ipc"] for row in sets.values())
    return [name for name, row in sets.items() if row["ipc"] == largest]


def offset(name: str, labels: str) -> float:
    """What the students of a set score above the others, different for all; percent."""
    ipc = int(name.rsplit("ipc", 1)[-1])
    return {"random": 0, "sre2l": 2, "post": 4, "prior": 6}[name.split("/")[1]] + (
        ipc / 100 + (labels == "soft") * 20
    )


def brightness(name: str, label: int, index: int) -> int:
    """Grey level of an image, different for all that are in one picture."""
    method = ["random", "sre2l", "post", "prior"].index(name.split("/")[1])
    return 20 + 50 * method + 11 * label + index


def write_tree(root: Path, raw: Settings) -> None:
    """Settings and every record that the stage reads."""
    (root / "reference").mkdir(parents=True, exist_ok=True)  # without runs that are kept
    shutil.copy(REFERENCE / "paper.yaml", root / "reference")
    YAML().dump(raw, root / "params.yaml")
    for name, row in raw["sets"].items():
        write_set(root, raw, name, row)
    for name in raw["bases"]:
        epochs = [
            {"epoch": epoch, "loss": 2 / epoch, "val_top1": 99 - 60 / epoch}
            for epoch in range(1, 31)
        ]
        write_json(root / f"teachers/{name}.json", {"base": name, "epochs": epochs})
    for name, row in raw["pools"].items():
        members = [{"val_top1": 50.125 + i, "parameters": 100, "macs": 2000} for i in range(4)]
        for index, member in enumerate(members):
            member |= (
                {"seed": 7, "lr": 0.1, "finetune_epochs": 0.5, "target_top1": 50.0 + index}
                if row["kind"] == "post"
                else {"epoch": 1 + index}
            )
        record = {"pool": name, "kind": row["kind"], "base": row["base"], "members": members}
        write_json(root / f"pools/{name}.json", record)


def write_set(root: Path, raw: Settings, name: str, row: Settings) -> None:
    """A set with its score and its loss curves."""
    method, ipc = raw["methods"][row["method"]], row["ipc"]
    runs = {
        labels: [
            {
                "seed": seed,
                "top1_last": last + offset(name, labels),
                "top1_best": best + offset(name, labels),
                "macro_f1": last + offset(name, labels) - 1,
                "kl_student_teacher": 0.5,
                "kl_teacher_student": 0.25,
            }
            for seed, (last, best) in enumerate(zip(LAST, BEST, strict=True))
        ]
        for labels in method["labels"]
    }
    facts: Settings = {"score": name, "set": name}
    facts |= {key: row[key] for key in ("dataset", "data", "method", "ipc", "pool")}
    facts |= {"arch": "convnet3", "split": "test", "images_held_out": 450, "epochs": 150}
    synthesis = {"draw": row["draw"], "ensemble": "logits", "first_bn_weight": 10.0}
    facts |= {
        "members": 4,
        "teachers": [{"epoch": 2 * i + 2, "val_top1": 50.0} for i in range(4)],
        "synthesis": None if method["images"] == "random" else synthesis,
        "bytes": {"images": 640 * ipc, "labels": 3000 * ipc},
    }
    write_json(root / f"runs/{name}.json", facts | {"labels": runs})
    curves = [
        [
            {"iteration": i, "classifier_prior": (item + 1) / i, "statistics": 10.0 / i}
            for i in (1, 2, 4)
        ]
        for item in range(2)
    ]
    items = [] if method["images"] == "random" else [{"curve": curve} for curve in curves]
    write_json(root / f"syntheses/{name}.json", {"set": name, "items": items})
    pairs = [(index, label) for index in range(ipc) for label in range(CLASSES)]
    images = torch.tensor([brightness(name, label, index) for index, label in pairs])
    distilled = DistilledSet(
        images.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8),
        torch.tensor([label for _, label in pairs]),
        tuple(f"class {label}" for label in range(CLASSES)),
        Normalisation((0.5,), (0.5,)),
        {"set": name},
    )
    save_distilled(root / f"sets/{name}.safetensors", distilled)


Step = tuple[Callable[[list[str]], None], list[str], tuple[str, ...]]


def steps(root: Path) -> dict[str, Step]:
    """What makes tables and figures: its entrypoint, arguments and outputs, in order."""
    out = root / "out"
    ways = {
        "table1": (
            target.main, ("table1",), {"runs": root / "runs", "reference": root / "reference"},
            {
                "table": "tables/table1.md", "rows": "tables/table1.csv",
                "latex": "tables/table1.tex", "figure": "figures/table1.png",
                "verdicts": "verdicts/table1.json",
            },
        ),
        "fig4-6-7": (
            grids.main, ("fig4-6-7",), {"sets": root / "sets"}, {"figures": "figures/fig4-6-7"},
        ),
        "overview": (
            overview.main, (),
            {name: root / name for name in ("teachers", "pools", "syntheses")},
            {
                "table": "tables/pools.md", "rows": "tables/pools.csv",
                "figures": "figures/overview",
            },
        ),
        "report": (
            page.main, (),
            {
                **{name: root / name for name in ("runs", "teachers", "pools")},
                **{name: out / name for name in ("tables", "figures", "verdicts")},
                "reference": root / "reference",
            },
            {"summary": "summary.json", "page": "report.html"},
        ),
    }  # fmt: skip
    made: dict[str, Step] = {}
    for name, (main, first, inputs, outputs) in ways.items():
        options = [f"--{key}={path}" for key, path in inputs.items()]
        options += [f"--{key}={out / path}" for key, path in outputs.items()]
        arguments = [*first, *options, f"--params={root / 'params.yaml'}"]
        made[name] = (main, arguments, tuple(outputs.values()))
    return made


def run(root: Path) -> Path:
    """Make everything from a tree; the folder of its outputs."""
    for main, arguments, _ in steps(root).values():
        main(arguments)
    return root / "out"


@functools.cache
def printed() -> list[PaperResult]:
    """The paper's numbers, read once because that takes a second."""
    return records.read_paper(REFERENCE / "paper.yaml")


def rows(path: Path) -> list[dict[str, str]]:
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
    write_tree(root, settings(1, 10))
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
    write_tree(tmp_path, settings(1))
    return tmp_path


def change(root: Path, how: Change) -> None:
    """Change the settings of a tree."""
    raw: Settings = YAML().load(root / "params.yaml")
    how(raw)
    YAML().dump(raw, root / "params.yaml")


def refusal(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a stage refuses a tree, without writing any of its outputs."""
    for main, arguments, outputs in steps(root).values():
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
    own = summary["digits"]["prior"]["ipc10"]
    expected = {"top1_std": round(math.sqrt(13), 2), "n": 3}
    hard = {"top1_mean": 59.1, "top1_best_mean": 67.1, "f1_mean": 58.1}
    soft = {"top1_mean": 79.1, "top1_best_mean": 87.1, "f1_mean": 78.1}
    assert own == {"hard": expected | hard, "soft": expected | soft}


def test_summary_has_exactly_the_declared_rows(out: Path, tree: Path) -> None:
    params = Params(tree / "params.yaml")
    summary = json.loads((out / "summary.json").read_text())
    found = dict(leaves(summary))
    values = ("top1_mean", "top1_std", "top1_best_mean", "f1_mean", "n")
    expected: set[tuple[str, ...]] = {
        (*name.split("/"), labels, value)
        for name in params.sets
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
    path = small / "runs/digits/prior/ipc1.json"
    record = json.loads(path.read_text())
    record["labels"] = {labels: runs[:1] for labels, runs in record["labels"].items()}
    write_json(path, record)
    out = run(small)
    summary = json.loads((out / "summary.json").read_text())
    own = summary["digits"]["prior"]["ipc1"]["hard"]
    assert (own["n"], own["top1_mean"], own["top1_std"]) == (1, 56.01, 0.0)
    line = next(
        line
        for line in (out / "tables/table1.md").read_text().splitlines()
        if line.startswith("| Teddy (prior)")
    )
    assert line.split("|")[2].strip() == "56.0"
    assert "n = 1 or 3 students" in (out / "tables/table1.md").read_text()


def test_curves_are_means_over_items(out: Path) -> None:
    points = [
        row
        for row in rows(out / "figures/overview/synthesis.csv")
        if row["set"] == "digits/post/ipc10"
    ]
    assert [
        (row["iteration"], float(row["classifier_prior"]), float(row["statistics"]))
        for row in points
    ] == [("1", 1.5, 10.0), ("2", 0.75, 5.0), ("4", 0.375, 2.5)]


# ------------------------------------------------------------------------------------------ tables


def test_every_declared_row_appears(out: Path, tree: Path) -> None:
    params = Params(tree / "params.yaml")
    scored = [(row.method, str(row.ipc)) for row in params.sets.values() for _ in range(2)]
    long = rows(out / "tables/table1.csv")
    assert [(row["method"], row["ipc"]) for row in long] == scored
    names = [f"{name} {labels}" for name in params.sets for labels in ("hard", "soft")]
    assert [row["name"] for row in long] == names
    synthesised = [name for name in params.sets if "/random/" not in name]
    assert list(
        dict.fromkeys(row["set"] for row in rows(out / "figures/overview/synthesis.csv"))
    ) == (synthesised)
    members = [(row["pool"], row["member"]) for row in rows(out / "tables/pools.csv")]
    assert members == [(pool, str(index)) for pool in params.pools for index in range(4)]
    assert len(rows(out / "figures/overview/teachers.csv")) == 30


def test_table_shows_each_number_in_its_place(out: Path) -> None:
    text = (out / "tables/table1.md").read_text()
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
    assert "n = 3 students" in text and "last of 150 epochs" in text
    assert "test split (450 images held out)" in text.replace("\n", " ")
    assert "optimistic" in text.split("\n## ")[2] and "67.1" in text.split("\n## ")[2]


def test_paper_is_quoted_in_full(out: Path) -> None:
    quoted = (out / "tables/table1.md").read_text().split("\n## ")[4]
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
    raw = settings(1, 50)
    raw["datasets"]["digits"]["paper"] = "Tiny-ImageNet"
    write_tree(small, raw)
    out = run(small)
    found = {
        (row["method"], row["ipc"], row["labels"]): (row["paper_mean"], row["paper_std"])
        for row in rows(out / "tables/table1.csv")
    }
    numbers = {
        "random": ("18.2", "0.2"), "sre2l": ("41.1", "0.4"),
        "teddy-post": ("44.5", "0.2"), "teddy-prior": ("45.2", "0.1"),
    }  # fmt: skip
    for (method, ipc, labels), number in found.items():
        same = ipc == "50" and labels == "soft"
        assert number == (numbers[method] if same else ("", ""))
    text = (out / "tables/table1.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| Teddy (prior)"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == 6 and cells[5] == "45.2 ± 0.1†"
    (other,) = (line for line in text.splitlines() if line.startswith("| DSA, quoted"))
    assert [cell.strip() for cell in other.strip("|").split("|")][1:] == ["–"] * 4 + ["25.3 ± 0.2"]
    assert "†: students of another architecture" in text


def test_papers_numbers_on_downsized_images_are_marked(tmp_path: Path) -> None:
    raw = settings(10)
    raw["datasets"]["digits"]["paper"] = "ImageNet-1K"
    raw["methods"]["random"]["paper"] = "Random (Conv)"
    write_tree(tmp_path, raw)
    params = Params(tmp_path / "params.yaml")
    scores = records.read_scores(params, tmp_path / "runs", list(params.sets))
    table = result_tables(scores, printed(), params)[0]
    assert [row[3] for row in table.rows][:4] == [
        "4.1 ± 0.1*", "21.3 ± 0.6†", "32.7 ± 0.2†", "34.1 ± 0.1†",
    ]  # fmt: skip
    assert any(note.startswith("*: on downsized images") for note in table.notes)


def test_markdown_columns_line_up(out: Path) -> None:
    checked = 0
    for path in sorted((out / "tables").glob("*.md")):
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
        r"na|me & a\_1 & b \\",
        r"\midrule",
        r"x & 1.2 & -- \\",
        r"longer & 10.0 & 1 $\pm$ 2$^*$ \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\footnotesize No--te",
        r"\end{table}",
    ]


# ----------------------------------------------------------------------------------------- targets


def score(path: str, top1: float, **changes: Any) -> Score:
    """An invented score with soft labels, of dataset/method/ipc."""
    method, ipc = path.split("/")[1], int(path.split("ipc")[1].split("-")[0])
    fields: Settings = {
        "name": path, "set": path, "dataset": "digits", "data": "digits", "method": method,
        "ipc": ipc, "arch": "convnet3", "pool": "digits/prior", "labels": "soft", "split": "test",
        "images_held_out": 450, "epochs": 150, "n": 3, "top1_mean": top1, "top1_std": 1.5,
        "top1_best_mean": top1 + 1, "f1_mean": top1 - 2, "f1_std": 0.5,
        "kl_student_teacher": 0.5, "kl_teacher_student": 0.25, "members": 4, "pool_size": 4,
        "stages": (2, 8), "draw": 3, "ensemble": "logits", "first_bn_weight": 10.0,
        "image_bytes": 6400, "label_bytes": 30000,
    }  # fmt: skip
    optional = {name: None for name in Score.__dataclass_fields__ if name not in fields}
    return Score(**{**optional, **fields, **changes})


def target_params(root: Path, title: str = "") -> Params:
    raw = settings(10)
    raw["datasets"]["digits"]["paper"] = title
    raw["prepared"]["digits-keep60"] = {"dataset": "digits", "keep": [0.6, 1]}
    root.mkdir(exist_ok=True)
    YAML().dump(raw, root / "params.yaml")
    return Params(root / "params.yaml")


def cells(table: tables.Table) -> list[list[tables.Cell]]:
    return [list(row) for row in table.rows]


def test_table2_has_a_column_per_network_and_the_papers_numbers(tmp_path: Path) -> None:
    params = target_params(tmp_path, "ImageNet-1K")
    scores = [
        score("digits/sre2l/ipc10-a", 20.0, arch="resnet50"),
        score("digits/sre2l/ipc10-b", 30.0, arch="shufflenet_v2_x1_0"),
        score("digits/teddy-prior/ipc10-a", 40.0, arch="resnet50"),
    ]
    (table,) = report.target_tables("table2", scores, printed(), params)
    assert [column.name for column in table.columns][2:] == ["resnet50", "shufflenet_v2_x1_0"]
    assert cells(table) == [
        ["SRe2L", "ours", "20.0 ± 1.5", "30.0 ± 1.5"],
        ["SRe2L", "paper", "28.4 ± 0.1", "29.1 ± 0.1"],
        ["Teddy (prior)", "ours", "40.0 ± 1.5", None],
        ["Teddy (prior)", "paper", "39.0 ± 0.1", "38.5 ± 0.1"],
    ]
    (plain,) = report.target_tables("table2", scores, printed(), target_params(tmp_path))
    assert [row[1] for row in plain.rows] == ["ours", "ours"]


def test_table3_has_both_metrics_beside_the_papers(tmp_path: Path) -> None:
    params = target_params(tmp_path, "Tiny-ImageNet")
    scores = [
        score(f"digits/{method}/ipc20", top1, data="digits-keep60", keep=(0.6, 1.0))
        for method, top1 in (("sre2l", 20.0), ("teddy-prior", 30.0))
    ]
    (table,) = report.target_tables("table3", scores, printed(), params)
    assert [column.group for column in table.columns][2:] == ["60%-100%"] * 2
    assert cells(table) == [
        ["SRe2L", "ours", "20.0 ± 1.5", "18.0 ± 0.5"],
        ["SRe2L", "paper", "24.2", "24.2"],
        ["Teddy (prior)", "ours", "30.0 ± 1.5", "28.0 ± 0.5"],
        ["Teddy (prior)", "paper", "32.7", "32.5"],
    ]


def test_table4_has_the_papers_number_per_ipc(tmp_path: Path) -> None:
    params = target_params(tmp_path, "ImageNet-1K")
    scores = [score(f"digits/sre2l/ipc{i}", 20.0 + i, arch="resnet50") for i in (5, 10)]
    (table,) = report.target_tables("table4-resnet50", scores, printed(), params)
    assert cells(table) == [["SRe2L", "25.0 ± 1.5", "5.4", "30.0 ± 1.5", "17.8"]]


@pytest.mark.parametrize(
    ("name", "attribute", "values", "shown"),
    [
        ("fig3a", "draw", (1, 3), ["1", "3‡"]),
        ("fig3b", "members", (1, 4), ["1", "4‡"]),
        ("fig3c", "pool_size", (2, 4), ["2", "4‡"]),
        ("fig2c", "stages", ((1, 4), (2, 8)), ["1–4", "2–8‡"]),
    ],
)
def test_axes_have_a_row_per_value_and_mark_the_default(
    tmp_path: Path, name: str, attribute: str, values: tuple[Any, Any], shown: list[str]
) -> None:
    params = target_params(tmp_path)
    scores = [
        score("digits/teddy-prior/ipc10-x", 40.0, **{attribute: values[0]}),
        score("digits/teddy-prior/ipc10", 50.0, default=True, **{attribute: values[1]}),
    ]
    (table,) = report.target_tables(name, scores, printed(), params)
    assert [row[0] for row in table.rows] == shown
    assert [row[1] for row in table.rows] == ["40.0 ± 1.5", "50.0 ± 1.5"]
    assert [row[2:] for row in table.rows] == [(0.5, 0.25) if name == "fig2c" else ()] * 2
    axis = AXES[name]
    path = tmp_path / "figure.png"
    accuracy_figures.along_axis(
        path, scores, axis.attribute, axis.title, records.read_titles(params)
    )
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_row_without_a_place_on_the_axis_is_refused(tmp_path: Path) -> None:
    scores = [score("digits/post/ipc10", 40.0, stages=None)]
    with pytest.raises(TeddyError, match="digits/post/ipc10 has no place on the axis"):
        report.target_tables("fig2c", scores, printed(), target_params(tmp_path))


def test_ablations_say_what_differs_and_who_labels(tmp_path: Path) -> None:
    scores = [
        score("digits/teddy-prior/ipc10-probs", 40.0, ensemble="probs", first_bn_weight=1.0),
        score("digits/random/ipc10-c", 50.0, pool="digits/converged", ensemble=None,
              first_bn_weight=None),
    ]  # fmt: skip
    (table,) = report.target_tables("ablations", scores, printed(), target_params(tmp_path))
    assert [row[2:7] for row in cells(table)] == [
        ["digits/prior", "probs", 1.0, None, "40.0 ± 1.5"],
        ["digits/converged", None, None, None, "50.0 ± 1.5"],
    ]


def test_precisions_are_compared_over_syntheses(tmp_path: Path) -> None:
    scores = [
        score(
            f"digits/teddy-prior/ipc10-{precision}{repeat}",
            mean,
            precision=precision,
            repeat=repeat,
        )
        for precision, means in {"float32": (40.0, 42.0, 44.0), "bfloat16": (41.0,)}.items()
        for repeat, mean in enumerate(means)
    ]
    (table,) = report.target_tables("precision", scores, printed(), target_params(tmp_path))
    assert [row[1:] for row in cells(table)] == [
        ["float32", 3, None, "42.0 ± 2.0"],
        ["bfloat16", 1, None, "41.0 ± 0.0"],
    ]


def test_kept_runs_stand_behind_their_target_with_their_origin(tree: Path, tmp_path: Path) -> None:
    run_ = json.loads((tree / "runs/digits/prior/ipc1.json").read_text())
    kept = {
        "dataset": "digits", "target": "table1", "date": "2026-01-02", "commit": "abc",
        "command": "dvc repro",
        "hardware": {"gpus": ["A GPU"], "cores": 4, "cpu": "a processor"},
        "scores": {"digits/prior/ipc1": run_ | {"repeat": 0, "keep": [1, 1]}},
    }  # fmt: skip
    write_json(tmp_path / "digits-table1.json", kept)
    found = records.read_kept(tmp_path)
    params, own = Params(tree / "params.yaml"), [score("digits/sre2l/ipc1", 40.0)]
    *_, table = report.tables_with_kept("table1", own, printed(), found, params)
    assert table.title == "Kept run: Top-1 accuracy (%) on scikit-learn digits, convnet3 students"
    assert cells(table) == [["Teddy (prior)", "59.0 ± 3.6", "79.0 ± 3.6"]]
    for part in ("2026-01-02", "abc", "`dvc repro`", "A GPU", "4 cores of a processor"):
        assert part in table.notes[0]
    other = report.tables_with_kept("fig3a", own, printed(), found, params)
    assert not any("Kept run" in one.title for one in other)
    write_json(tmp_path / "digits-table1.json", kept | {"dataset": "unheard"})
    with pytest.raises(TeddyError, match="lacks 'unheard', of which metrics/reference keeps"):
        report.tables_with_kept("table1", own, printed(), records.read_kept(tmp_path), params)
    write_json(tmp_path / "digits-table1.json", {"dataset": "digits"})
    with pytest.raises(TeddyError, match="expected the record of"):
        records.read_kept(tmp_path)


def test_kept_runs_of_an_axis_mark_the_default_when_their_rows_have_gone(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a profile does that is taken out again."""
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    metrics, name, other = tmp_path / "metrics", "digits/prior/ipc10", "digits/prior/ipc10-draw2"
    for folder in ("runs", "pools", "reference"):
        shutil.copytree(tree / folder, metrics / folder)
    raw = YAML(typ="safe").load(tree / "params.yaml")
    raw["sets"][other] = raw["sets"][name] | {"draw": 2}
    raw["targets"]["fig3a"] = [name, other]
    YAML().dump(raw, tmp_path / "params.yaml")
    record = read_json(metrics / f"runs/{name}.json")
    for row, draw in ((name, 1), (other, 2)):
        synthesis = record["synthesis"] | {"draw": draw}
        own = record | {"score": row, "set": row, "synthesis": synthesis}
        write_json(metrics / f"runs/{row}.json", own)
    reference.main(
        ["digits", "--target=fig3a", f"--params={tmp_path / 'params.yaml'}", f"--metrics={metrics}"]
    )
    (run,) = records.read_kept(metrics / "reference")
    without = target_params(tmp_path / "off")
    without.targets["table1"] = ()
    table = report.kept_table(run, printed(), without)
    assert [row[0] for row in table.rows] == ["1‡", "2"]
    assert any(note.startswith("‡") for note in table.notes)


def test_check_finds_an_edited_table(
    tree: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = tmp_path / "metrics"
    for name in ("tables", "verdicts"):
        shutil.copytree(out / name, metrics / name)
    for name in ("runs", "pools", "teachers"):
        shutil.copytree(tree / name, metrics / name)
    shutil.copy(out / "summary.json", metrics)
    shutil.copytree(tree / "reference", metrics / "reference")
    arguments = [f"--metrics={metrics}", f"--params={tree / 'params.yaml'}"]
    check.main(arguments)
    assert "files agree with the records" in capsys.readouterr().err
    for file in (
        "tables/table1.md", "tables/table1.csv", "tables/table1.tex", "verdicts/table1.json",
        "summary.json",
    ):  # fmt: skip
        before = (metrics / file).read_text()
        (metrics / file).write_text(before.replace("9.1", "9.2"))
        with pytest.raises(SystemExit):
            check.main(arguments)
        assert f"{metrics / file}: differs from what the records say" in capsys.readouterr().err
        (metrics / file).write_text(before)
    (metrics / "tables/pools.md").unlink()
    with pytest.raises(SystemExit):
        check.main(arguments)
    assert "pools.md: missing" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("file", "step"),
    [
        ("runs/digits/prior/ipc1.json", "evaluate"),
        ("teachers/digits/base.json", "train_teacher"),
        ("syntheses/digits/sre2l/ipc1.json", "synthesize"),
        ("pools/digits/post.json", "build_pool"),
        ("sets/digits/random/ipc1.safetensors", "synthesize"),
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
    raw: Settings = YAML().load(small / "params.yaml")
    raw["sets"]["digits/prior/again-ipc1"] = dict(raw["sets"]["digits/prior/ipc1"])
    raw["targets"]["table1"].append("digits/prior/again-ipc1")
    write_tree(small, raw)
    message = refusal(small, capsys)
    assert "digits/prior/ipc1 and digits/prior/again-ipc1" in message
    assert "share a place in the table" in message


def test_record_of_another_row_is_refused(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(small / "runs/digits/post/ipc1.json", small / "runs/digits/prior/ipc1.json")
    message = refusal(small, capsys)
    assert f"{small / 'runs/digits/prior/ipc1.json'}: score is 'digits/post/ipc1'" in message


def test_record_without_declared_labels_is_refused(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small / "runs/digits/prior/ipc1.json"
    record = json.loads(path.read_text())
    del record["labels"]["soft"]
    write_json(path, record)
    assert f"{path}: lacks 'soft'; run the evaluate stage" in refusal(small, capsys)


def test_sets_measured_on_different_splits_are_refused(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small / "runs/digits/prior/ipc1.json"
    write_json(path, json.loads(path.read_text()) | {"split": "val"})
    message = refusal(small, capsys)
    assert "different splits" in message and "digits/prior/ipc1 on val" in message


def test_names_with_a_dot_are_refused(small: Path) -> None:
    params = Params(small / "params.yaml")
    scores = records.read_scores(params, small / "runs", list(params.sets))
    fields = {name: getattr(scores[0], name) for name in Score.__dataclass_fields__}
    with pytest.raises(TeddyError, match=r"'v1\.5' has a dot"):
        summarise([Score(**fields | {"name": "digits/v1.5"})], [], [])


def test_undeclared_records_are_ignored(small: Path) -> None:
    before = {path.name: path.read_bytes() for path in run(small).rglob("*.*")}
    shutil.copytree(small / "runs/digits/prior", small / "runs/digits/forgotten")
    (small / "runs/digits/noise.json").write_text("not JSON")
    assert {path.name: path.read_bytes() for path in run(small).rglob("*.*")} == before


# ----------------------------------------------------------------------------------------- figures


def test_two_runs_write_the_same_bytes(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    write_tree(tmp_path, settings(1, 10))
    again = run(tmp_path)
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    kinds = ["", "_random", "_sre2l", "_teddy-post", "_teddy-prior"]
    figures_ = ["table1", "teachers", "synthesis", *(f"digits{kind}" for kind in kinds)]
    assert {file.stem for file in files if file.suffix == ".png"} == set(figures_)
    for file in files:
        assert (out / file).read_bytes() == (again / file).read_bytes(), file


def test_grids_show_each_image_once_enlarged_without_blur(out: Path) -> None:
    picture = np.rint(imread(out / "figures/fig4-6-7/digits.png")[:, :, :3] * 255).astype(int)
    area = 72 * 72
    for method in ("random", "sre2l", "post", "prior"):
        for label in range(CLASSES):
            for index in range(4):
                grey = brightness(f"digits/{method}/ipc10", label, index)
                pixels = (picture == grey).all(2).sum()
                assert area * (index < 3) <= pixels < area * ((index < 3) + 0.1)
    own = np.rint(imread(out / "figures/fig4-6-7/digits_sre2l.png")[:, :, :3] * 255).astype(int)
    columns = []
    for index in range(10):
        tiles = np.argwhere((own == brightness("digits/sre2l/ipc10", 1, index)).all(2))
        assert area <= len(tiles) < 1.1 * area
        columns.append(np.median(tiles[:, 1]))
    assert columns == sorted(columns)


def test_grid_of_many_classes_shows_ten_in_colour(tmp_path: Path) -> None:
    raw = settings(10)
    raw["sets"] = {"digits/prior/ipc10": raw["sets"]["digits/prior/ipc10"]}
    raw["targets"] = {"table1": list(raw["sets"])}
    write_tree(tmp_path, raw)
    count, ipc = 200, 10
    colours = torch.stack([torch.arange(count), 255 - torch.arange(count), torch.full((count,), 9)])
    images = colours.T.to(torch.uint8)[:, :, None, None].expand(-1, -1, 32, 32).repeat(ipc, 1, 1, 1)
    names = tuple(f"a class with a very long name {label}, synonym" for label in range(count))
    distilled = DistilledSet(
        images, torch.arange(count).repeat(ipc), names, Normalisation((0.5,) * 3, (0.5,) * 3), {}
    )
    save_distilled(tmp_path / "sets/digits/prior/ipc10.safetensors", distilled)
    params = Params(tmp_path / "params.yaml")
    (grid,) = records.read_grids(params, tmp_path / "sets", list(params.sets))
    shown = [0, 22, 44, 66, 88, 111, 133, 155, 177, 199]
    assert grid.class_names == tuple(names[label] for label in shown)
    assert grid.images.shape == (10, 10, 32, 32, 3)
    method_grid(tmp_path / "grid.png", [grid], records.read_titles(params))
    picture = np.rint(imread(tmp_path / "grid.png")[:, :, :3] * 255).astype(int)
    red, green, blue = np.moveaxis(picture, 2, 0)
    found, pixels = np.unique(red[(green == 255 - red) & (blue == 9)], return_counts=True)
    assert found.tolist() == shown
    assert set(pixels) == {3 * 64 * 64}


def test_one_random_method_at_one_ipc_has_all_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    raw = settings(1)
    raw["sets"] = {"digits/random/ipc1": raw["sets"]["digits/random/ipc1"]}
    raw["targets"] = {"table1": list(raw["sets"]), "fig4-6-7": list(raw["sets"])}
    raw["bases"]["digits/other"] = {"dataset": "digits", "data": "digits"}
    write_tree(tmp_path, raw)
    out = run(tmp_path)
    assert {path.stem for path in (out / "figures").rglob("*.png")} == {
        "table1", "teachers", "synthesis", "digits", "digits_random",
    }  # fmt: skip
    assert (out / "figures/overview/synthesis.csv").read_text() == (
        "set,iteration,classifier_prior,statistics\n"
    )


def test_a_method_looks_the_same_whatever_else_is_shown() -> None:
    methods = [f"method {index}" for index in range(12)]
    seen = figures.looks(methods)
    assert len(set(seen.values())) == 12
    assert figures.looks(methods[:2]) == {name: seen[name] for name in methods[:2]}


def test_labels_move_apart_only_where_they_must() -> None:
    assert figures.spread([0.1, 0.5, 0.9], [0.1] * 3, 0, 1) == pytest.approx([0.1, 0.5, 0.9])
    assert figures.spread([0.5, 0.5, 0.9], [0.1] * 3, 0, 1) == pytest.approx([0.45, 0.55, 0.9])
    assert figures.spread([0.98, 1.0], [0.1, 0.3], 0, 1) == pytest.approx([0.8, 1.0])
    assert figures.spread([0.0, 0.01], [0.1, 0.1], 0, 1) == pytest.approx([0.0, 0.1])
