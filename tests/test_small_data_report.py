"""Table 5 and Fig. 3e from invented results and records; nothing is trained, no GPU."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from teddy.core.errors import TeddyError
from teddy.core.files import write_json
from teddy.report import accuracy_figures, records
from teddy.report.axis_tables import learner_points, learner_tables
from teddy.report.records import read_learners
from teddy.report.results import EvaluationResult, LearnerResult
from teddy.report.targets import long_table, target_tables
from teddy.report.verdicts import of_learners, of_target
from teddy.settings.declared import Declared
from teddy.settings.resolve import shown_learner
from teddy.settings.rows import DatasetRow
from teddy.settings.stages import Catalogue

ROOT = Path(__file__).parents[1]
DECLARED = Declared(ROOT)
CATALOGUE = Catalogue(
    methods=DECLARED.methods,
    datasets=DECLARED.datasets | {"cifar10": DatasetRow(title="CIFAR-10", paper="CIFAR-10")},
)
PAPER = records.read_paper(ROOT / "metrics/reference/paper.yaml")


def result(
    method: str, ipc: int, init: str | None, top1: float, dataset: str = "cifar10"
) -> EvaluationResult:
    """An invented result with hard labels."""
    fields: dict[str, Any] = {
        "name": f"{dataset}/{method}/{init}/ipc{ipc}", "set": "s", "dataset": dataset, "data": "d",
        "method": method, "ipc": ipc, "arch": "convnet3", "pool": "p", "labels": "hard",
        "split": "test", "images_held_out": 450, "epochs": 150, "n": 3, "syntheses": 3,
        "top1_mean": top1,
        "top1_std": 1.5, "top1_best_mean": top1, "f1_mean": top1, "f1_std": 0.5, "members": 4,
        "pool_size": 4, "init": init, "image_bytes": 6400, "label_bytes": 0,
    }  # fmt: skip
    optional = {name: None for name in EvaluationResult.__dataclass_fields__ if name not in fields}
    return EvaluationResult(**{**optional, **fields})


# ---------------------------------------------------------------------------------------- Table 5


def test_table5_has_a_row_per_start_and_method_beside_the_papers() -> None:
    results = [
        result("random", 1, None, 20), result("teddy-hard", 10, "real", 41),
        result("teddy-hard", 1, "real", 40), result("dm", 1, "noise", 30),
        result("sre2l-hard", 10, "noise", 35),
    ]  # fmt: skip
    (table,) = target_tables("table5", results, PAPER, CATALOGUE)
    assert "CIFAR-10" in table.title
    heads = [(column.group, column.name) for column in table.columns[2:]]
    assert heads == [(f"IPC {ipc}", who) for ipc in (1, 10) for who in ("ours", "paper")]
    assert [list(row) for row in table.rows] == [
        ["noise", "DM", "30.0 ± 1.5", "25.6 ± 0.2", None, "49.8 ± 0.3"],
        ["noise", "SRe2L", None, "24.9 ± 0.2", "35.0 ± 1.5", "35.8 ± 0.4"],
        ["real", "Teddy (prior)", "40.0 ± 1.5", "30.1 ± 0.4", "41.0 ± 1.5", "53.0 ± 0.3"],
        ["selected", "Random real images", "20.0 ± 1.5", None, None, None],
    ]


def test_table5_has_no_column_of_a_paper_that_says_nothing() -> None:
    (table,) = target_tables("table5", [result("dm", 1, "real", 30, "digits")], PAPER, CATALOGUE)
    assert [list(row) for row in table.rows] == [["real", "DM", "30.0 ± 1.5"]]


def test_papers_number_of_a_hard_label_result_stands_in_the_long_table() -> None:
    table = long_table("table5", [result("dm", 50, "real", 60)], PAPER, CATALOGUE)
    row = dict(zip([c.name for c in table.columns], table.rows[0], strict=True))
    assert [row["paper_mean"], row["paper_std"], row["init"]] == [63.0, 0.4, "real"]


def test_claim_of_table5_is_judged_per_start() -> None:
    results = [
        result("teddy-hard", 10, "noise", 53), result("dm", 10, "noise", 49),
        result("teddy-hard", 10, "real", 50), result("dm", 10, "real", 49),
        result("sre2l-hard", 10, "real", 45),
    ]  # fmt: skip
    found = of_target("table5", results, CATALOGUE)
    assert [(v.claim.split(": ")[1], v.data.split(", ")[-1], v.outcome) for v in found] == [
        ("against DM.", "noise", "reproduced"), ("against DM.", "real", "inconclusive"),
        ("against SRe2L.", "real", "reproduced"),
    ]  # fmt: skip
    soft = [replace(s, labels="soft") for s in results]
    assert of_target("table5", soft, CATALOGUE) == []


# ---------------------------------------------------------------------------------------- Fig. 3e


def student(order: int, step: int, seed: int, top1: float, labels: str = "soft") -> dict[str, Any]:
    """An invented record of one student."""
    return {
        "order": order, "step": step, "classes": list(range(2 * step)), "labels": labels,
        "seed": seed, "images": 20 * step, "images_held_out": 90 * step, "top1": top1,
    }  # fmt: skip


NAME, OTHER = "digits/fig3e/prior-strict", "digits/fig3e/prior"


@pytest.fixture
def learners(tmp_path: Path) -> Path:
    """A record of two orders, two steps and two students each."""
    row = shown_learner(DECLARED, NAME)
    record = {key: getattr(row, key) for key in ("dataset", "data", "set", "pool", "teachers")} | {
        "learner": NAME, "method": "teddy-prior", "ipc": 10, "arch": "convnet3", "epochs": 30,
        "steps": 2, "split": "test",
        "results": [
            student(0, 1, 0, 90), student(0, 1, 1, 94), student(0, 2, 0, 70), student(0, 2, 1, 70),
            student(1, 1, 0, 96), student(1, 1, 1, 100), student(1, 2, 0, 80), student(1, 2, 1, 84),
        ],
    }  # fmt: skip
    write_json(tmp_path / f"{NAME}.json", record)
    return tmp_path


def test_steps_are_means_over_orders_with_the_spread_between_orders(learners: Path) -> None:
    (learner,) = read_learners([shown_learner(DECLARED, NAME)], learners)
    assert learner.strict
    assert (learner.orders, learner.seeds, learner.classes) == (2, 2, (2, 4))
    assert learner.top1_mean == (95.0, 76.0)  # of 92 and 98, of 70 and 82
    assert learner.top1_std == pytest.approx((6 / 2**0.5, 12 / 2**0.5))


def test_record_of_another_learner_is_refused(learners: Path) -> None:
    path = learners / f"{NAME}.json"
    write_json(path, json.loads(path.read_text()) | {"teachers": "digits/prior"})
    with pytest.raises(TeddyError, match="teachers"):
        read_learners([shown_learner(DECLARED, NAME)], learners)
    with pytest.raises(TeddyError, match="run the continual stage"):
        read_learners([shown_learner(DECLARED, OTHER)], learners)


def learner_of(method: str, last: float, strict: bool = False, std: float = 1.0) -> LearnerResult:
    """An invented curve of two steps."""
    return LearnerResult(
        name=f"digits/{method}", dataset="digits", method=method, ipc=10, arch="convnet3",
        strict=strict, labels="soft", split="test", epochs=30, recipe="", orders=5, seeds=1,
        classes=(2, 4), top1_mean=(90.0, last), top1_std=(1.0, std),
    )  # fmt: skip


def test_table_has_a_column_per_step() -> None:
    (table,) = learner_tables([learner_of("dm", 70), learner_of("dm", 60, strict=True)], CATALOGUE)
    assert [list(row) for row in table.rows] == [
        ["paper-like", "DM", "soft", "90.0 ± 1.0", "70.0 ± 1.0"],
        ["strict", "DM", "soft", "90.0 ± 1.0", "60.0 ± 1.0"],
    ]
    assert [column.name for column in table.columns[3:]] == ["2", "4"]
    points = learner_points([learner_of("dm", 70)])
    assert [row[-3:] for row in points.rows] == [(2, 90.0, 1.0), (4, 70.0, 1.0)]


def test_claim_of_fig3e_is_judged_after_the_last_step_and_per_kind_of_teachers() -> None:
    curves = [
        learner_of("teddy-prior", 80), learner_of("random", 78), learner_of("sre2l", 79.5),
        learner_of("teddy-prior", 60, strict=True), learner_of("random", 70, strict=True),
    ]  # fmt: skip
    found = of_learners(curves, CATALOGUE)
    assert [(v.claim.split(": ")[1], "strict" in v.data, v.outcome) for v in found] == [
        ("against Random real images.", False, "reproduced"),
        ("against SRe2L.", False, "inconclusive"),
        ("against Random real images.", True, "contradicted"),
    ]


def test_figure_has_a_panel_per_kind_of_teachers(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    accuracy_figures.learners(one, [learner_of("dm", 70)], CATALOGUE)
    accuracy_figures.learners(
        two, [learner_of("dm", 70), learner_of("random", 60, strict=True)], CATALOGUE
    )
    assert imread(two).shape[1] > 1.2 * imread(one).shape[1]
    again = tmp_path / "again.png"
    accuracy_figures.learners(again, [learner_of("dm", 70)], CATALOGUE)
    assert again.read_bytes() == one.read_bytes()
