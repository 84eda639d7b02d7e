"""Table 5 and Fig. 3e from invented scores and records; nothing is trained, no GPU."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from teddy.core.errors import TeddyError
from teddy.core.files import write_json
from teddy.report import accuracy_figures, records
from teddy.report.records import read_streams, read_titles
from teddy.report.results import Score, StreamScore
from teddy.report.stream_tables import stream_points, stream_tables
from teddy.report.targets import long_table, target_tables
from teddy.report.verdicts import of_streams, of_target
from teddy.settings.params import Params

ROOT = Path(__file__).parents[1]
PARAMS = Params(ROOT / "params.yaml")
PAPER = records.read_paper(ROOT / "metrics/reference/paper.yaml")


def score(method: str, ipc: int, init: str | None, top1: float, dataset: str = "cifar10") -> Score:
    """An invented score with hard labels."""
    fields: dict[str, Any] = {
        "name": f"{dataset}/{method}/{init}/ipc{ipc}", "set": "s", "dataset": dataset, "data": "d",
        "method": method, "ipc": ipc, "arch": "convnet3", "pool": "p", "labels": "hard",
        "split": "test", "images_held_out": 450, "epochs": 150, "n": 3, "top1_mean": top1,
        "top1_std": 1.5, "top1_best_mean": top1, "f1_mean": top1, "f1_std": 0.5, "members": 4,
        "pool_size": 4, "init": init, "image_bytes": 6400, "label_bytes": 0,
    }  # fmt: skip
    optional = {name: None for name in Score.__dataclass_fields__ if name not in fields}
    return Score(**{**optional, **fields})


# ---------------------------------------------------------------------------------------- Table 5


def test_table5_has_a_row_per_start_and_method_beside_the_papers() -> None:
    scores = [
        score("random", 1, None, 20), score("teddy-hard", 10, "real", 41),
        score("teddy-hard", 1, "real", 40), score("dm", 1, "noise", 30),
        score("sre2l-hard", 10, "noise", 35),
    ]  # fmt: skip
    (table,) = target_tables("table5", scores, PAPER, PARAMS)
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
    (table,) = target_tables("table5", [score("dm", 1, "real", 30, "digits")], PAPER, PARAMS)
    assert [list(row) for row in table.rows] == [["real", "DM", "30.0 ± 1.5"]]


def test_papers_number_of_a_hard_label_score_stands_in_the_long_table() -> None:
    table = long_table("table5", [score("dm", 50, "real", 60)], PAPER, PARAMS)
    row = dict(zip([c.name for c in table.columns], table.rows[0], strict=True))
    assert [row["paper_mean"], row["paper_std"], row["init"]] == [63.0, 0.4, "real"]


def test_claim_of_table5_is_judged_per_start() -> None:
    scores = [
        score("teddy-hard", 10, "noise", 51), score("dm", 10, "noise", 49),
        score("teddy-hard", 10, "real", 50), score("dm", 10, "real", 49),
        score("sre2l-hard", 10, "real", 45),
    ]  # fmt: skip
    found = of_target("table5", scores, PARAMS)
    assert [(v.claim.split(": ")[1], v.data.split(", ")[-1], v.outcome) for v in found] == [
        ("against DM.", "noise", "reproduced"), ("against DM.", "real", "not reproduced"),
        ("against SRe2L.", "real", "reproduced"),
    ]  # fmt: skip
    soft = [replace(s, labels="soft") for s in scores]
    assert of_target("table5", soft, PARAMS) == []


# ---------------------------------------------------------------------------------------- Fig. 3e


def result(order: int, step: int, seed: int, top1: float, labels: str = "soft") -> dict[str, Any]:
    """An invented record of one student."""
    return {
        "order": order, "step": step, "classes": list(range(2 * step)), "labels": labels,
        "seed": seed, "images": 20 * step, "images_held_out": 90 * step, "top1": top1,
    }  # fmt: skip


NAME = "digits/prior/ipc10-strict"


@pytest.fixture
def streams(tmp_path: Path) -> Path:
    """A record of two orders, two steps and two students each."""
    row = PARAMS.streams[NAME]
    record = {key: getattr(row, key) for key in ("dataset", "data", "set", "pool", "teachers")} | {
        "stream": NAME, "method": "teddy-prior", "ipc": 10, "arch": "convnet3", "epochs": 30,
        "steps": 2, "split": "test",
        "results": [
            result(0, 1, 0, 90), result(0, 1, 1, 94), result(0, 2, 0, 70), result(0, 2, 1, 70),
            result(1, 1, 0, 96), result(1, 1, 1, 100), result(1, 2, 0, 80), result(1, 2, 1, 84),
        ],
    }  # fmt: skip
    write_json(tmp_path / f"{NAME}.json", record)
    return tmp_path


def test_steps_are_means_over_orders_with_the_spread_between_orders(streams: Path) -> None:
    (stream,) = read_streams(PARAMS, streams, [NAME])
    assert stream.strict
    assert (stream.orders, stream.seeds, stream.classes) == (2, 2, (2, 4))
    assert stream.top1_mean == (95.0, 76.0)  # of 92 and 98, of 70 and 82
    assert stream.top1_std == pytest.approx((6 / 2**0.5, 12 / 2**0.5))


def test_record_of_another_stream_is_refused(streams: Path) -> None:
    path = streams / f"{NAME}.json"
    write_json(path, json.loads(path.read_text()) | {"teachers": "digits/prior"})
    with pytest.raises(TeddyError, match="teachers"):
        read_streams(PARAMS, streams, [NAME])
    with pytest.raises(TeddyError, match="run the continual stage"):
        read_streams(PARAMS, streams, ["digits/prior/ipc10-paper-like"])


def stream_of(method: str, last: float, strict: bool = False, std: float = 1.0) -> StreamScore:
    """An invented curve of two steps."""
    return StreamScore(
        name=f"digits/{method}", dataset="digits", method=method, ipc=10, arch="convnet3",
        strict=strict, labels="soft", split="test", epochs=30, orders=5, seeds=1, classes=(2, 4),
        top1_mean=(90.0, last), top1_std=(1.0, std),
    )  # fmt: skip


def test_table_has_a_column_per_step() -> None:
    (table,) = stream_tables([stream_of("dm", 70), stream_of("dm", 60, strict=True)], PARAMS)
    assert [list(row) for row in table.rows] == [
        ["paper-like", "DM", "soft", "90.0 ± 1.0", "70.0 ± 1.0"],
        ["strict", "DM", "soft", "90.0 ± 1.0", "60.0 ± 1.0"],
    ]
    assert [column.name for column in table.columns[3:]] == ["2", "4"]
    points = stream_points([stream_of("dm", 70)])
    assert [row[-3:] for row in points.rows] == [(2, 90.0, 1.0), (4, 70.0, 1.0)]


def test_claim_of_fig3e_is_judged_after_the_last_step_and_per_kind_of_teachers() -> None:
    curves = [
        stream_of("teddy-prior", 80), stream_of("random", 78), stream_of("sre2l", 79.5),
        stream_of("teddy-prior", 60, strict=True), stream_of("random", 70, strict=True),
    ]  # fmt: skip
    found = of_streams(curves, PARAMS)
    assert [(v.claim.split(": ")[1], "strict" in v.data, v.outcome) for v in found] == [
        ("against Random real images.", False, "reproduced"),
        ("against SRe2L.", False, "not reproduced"),
        ("against Random real images.", True, "not reproduced"),
    ]


def test_figure_has_a_panel_per_kind_of_teachers(tmp_path: Path) -> None:
    titles = read_titles(PARAMS)
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    accuracy_figures.streams(one, [stream_of("dm", 70)], titles)
    accuracy_figures.streams(
        two, [stream_of("dm", 70), stream_of("random", 60, strict=True)], titles
    )
    assert imread(two).shape[1] > 1.2 * imread(one).shape[1]
    again = tmp_path / "again.png"
    accuracy_figures.streams(again, [stream_of("dm", 70)], titles)
    assert again.read_bytes() == one.read_bytes()
