"""Tables, verdicts and figures of figures 1 and 5 from records made up by hand."""

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml

from teddy.core.errors import TeddyError
from teddy.core.files import read_json
from teddy.settings.declared import Declared
from teddy.settings.resolve import stage_files
from teddy.settings.schema import read_yaml
from teddy.theory import documents as experiments
from teddy.theory import figures

ROOT = Path(__file__).parents[1]


def run(objective: str, seed: int, losses: list[float], val: list[float]) -> dict[str, Any]:
    points = [
        {"exact_loss": loss, "first_order_loss": loss - 0.01, "val_top1": top1,
         "test_top1": top1 - 1}
        for loss, top1 in zip(losses, val, strict=True)
    ]  # fmt: skip
    return {"objective": objective, "seed": seed, "points": points}


def fig5(shift: float = 0.0) -> dict[str, Any]:
    """Two seeds; the first-order runs differ by a hundredth in loss, and ``shift`` in accuracy."""
    return {
        "title": "made-up", "ipc": 1, "inner_steps": 2, "inner_lr": 0.1, "iterations": 2,
        "runs": [
            run("exact", 0, [2.0, 1.5, 1.0], [50.0, 70.0, 60.0]),
            run("first_order", 0, [2.0, 1.51, 1.01], [v + shift for v in (50.0, 60.0, 70.0)]),
            run("exact", 1, [2.0, 1.5, 1.0], [52.0, 74.0, 64.0]),
            run("first_order", 1, [2.0, 1.51, 1.01], [v + shift for v in (52.0, 64.0, 74.0)]),
        ],
        "law": [
            {"num_steps": 2, "lr": lr, "exact_loss": 1.0, "first_order_loss": 1.0 - lr**2,
             "loss_error": lr**2, "gradient_error": lr, "cosine": 1 - lr**2}
            for lr in (0.4, 0.1)
        ],
    }  # fmt: skip


def fig1(growth: int = 10) -> dict[str, Any]:
    def row(method: str, steps: int | None, draw: int | None, cost: int) -> dict[str, Any]:
        return {"method": method, "inner_steps": steps, "draw": draw, "seconds": 0.1 * cost,
                "saved_bytes": cost * 2**20, "operations": cost * 10**9}  # fmt: skip

    rows = [row("unrolled", t, None, 5 + growth * t) for t in (1, 4)]
    rows += [row("first_order", t, None, 15) for t in (1, 4)]
    rows += [row("teddy", None, k, 2 * k) for k in (1, 3)]
    return {"title": "made-up", "images": 20, "batch_size": 10, "rows": rows}


def test_differences_and_peaks_are_those_of_each_seed() -> None:
    record = fig5()
    gaps = experiments.differences(record, "first_order", "exact_loss")
    assert [pytest.approx(gap) for gap in gaps] == [[0, 0.01, 0.01]] * 2
    errors = experiments.series(record, "exact", "taylor_error")
    assert [pytest.approx(error) for error in errors] == [[0.01] * 3] * 2
    assert experiments.peaks(record, "first_order") == ([70.0, 74.0], [69.0, 73.0])


def test_peak_is_chosen_on_validation_images() -> None:
    """The best test accuracy lies elsewhere and must not be reported."""
    record = fig5()
    record["runs"][0]["points"][2]["test_top1"] = 99.0
    assert experiments.peaks(record, "exact")[1] == [69.0, 73.0]


def test_law_has_the_order_of_its_numbers() -> None:
    table = experiments.law_table(fig5())
    assert table.rows[0][3] is None
    assert table.rows[1][3] == pytest.approx(2)


def test_tables_show_means_and_spreads() -> None:
    text = experiments.taylor_table(fig5()).markdown()
    assert "1.0000 ± 0.0000" in text and "72.0 ± 2.8" in text
    assert "n = 2 seeds" in text
    assert "| Unrolled (Eq. 1)" in experiments.cost_table(fig1()).markdown()


@pytest.mark.parametrize(
    ("shift", "outcomes"),
    [(0.0, ["reproduced"] * 3), (5.0, ["reproduced", "contradicted", "contradicted"])],
)
def test_verdicts_on_the_taylor_error(shift: float, outcomes: list[str]) -> None:
    found = [verdict.outcome for verdict in experiments.taylor_verdicts(fig5(shift))]
    assert found == outcomes


def test_a_large_gap_in_loss_is_not_negligible() -> None:
    record = fig5()
    for point in record["runs"][1]["points"][1:]:
        point["exact_loss"] += 0.2
    assert experiments.taylor_verdicts(record)[0].outcome == "contradicted"


def test_verdict_on_cost_asks_for_growth() -> None:
    assert {v.outcome for v in experiments.cost_verdicts(fig1())} == {"reproduced"}
    assert {v.outcome for v in experiments.cost_verdicts(fig1(0))} == {"contradicted"}


def test_figures_have_the_same_bytes_for_the_same_record(tmp_path: Path) -> None:
    for name in ("first", "second"):
        figures.cost(tmp_path / name / "cost.png", fig1())
        figures.clocked(tmp_path / name / "clocked.png", fig1(), "made-up")
        figures.taylor(tmp_path / name / "taylor.png", fig5())
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()
        assert file.read_bytes().startswith(b"\x89PNG" if file.suffix == ".png" else b"<?xml")


def test_folder_has_the_record_and_what_follows_from_it(tmp_path: Path) -> None:
    args = Namespace(out=tmp_path / "fig1", figure=tmp_path / "figures/fig1.png")
    experiments.write_experiment(
        args, fig1(), experiments.cost_document, experiments.cost_verdicts, figures.cost
    )
    assert sorted(file.name for file in args.out.iterdir()) == [
        "record.json", "table.md", "verdicts.json",
    ]  # fmt: skip
    record = read_json(args.out / "record.json")
    assert (args.out / "table.md").read_text() == experiments.cost_document(record)
    assert len(read_json(args.out / "verdicts.json")["verdicts"]) == 2
    assert args.figure.read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------- settings


def checkout(root: Path, **sections: dict[str, Any] | None) -> Path:
    """A copy of the parameter files with sections of params.yaml changed, or left out."""
    for folder in ("experiments", "params"):
        shutil.copytree(ROOT / folder, root / folder)
    shutil.copy(ROOT / "dvc.yaml", root)
    raw = dict(read_yaml(ROOT / "params.yaml"))
    for name, changes in sections.items():
        own = raw.pop(name)
        raw |= {} if changes is None else {name: own | changes}
    (root / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("fig1", {"data": "digit"}, "fig1.data: no row 'digit' in prepared; did you mean 'dig"),
        ("fig1", {"dataset": "cifar10"}, "of dataset 'cifar10', but its parent 'digits' is"),
        ("fig1", {"inner_steps": [2, 1]}, r"inner_steps must be ascending, got \[2, 1\]"),
        ("fig1", {"teacher": {"arch": "convnet3", "width": 4, "norm": "none"}}, "must be batch"),
        ("fig5", {"objectives": ["first_order"]}, "objectives must begin with exact"),
        ("fig5", {"law_lrs": [0.1, 0.2]}, "law_lrs must be descending"),
        ("fig5", {"iterations": 0}, "iterations must be at least 1; got 0"),
        ("theory", {"step_sizes": [0.2, 0.15]}, "step_sizes must halve"),
        ("theory", {"lengths": [1, 3]}, "lengths must double"),
        ("theory", {"tau": 0}, "tau must be above 0; got 0"),
        ("theory", {"step": 1}, "unknown key 'step'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    section: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkout(tmp_path, **{section: changes})
    with pytest.raises(TeddyError, match=message):
        Declared(tmp_path)


def test_a_file_without_experiments_has_none_of_their_stages(tmp_path: Path) -> None:
    declared = Declared(checkout(tmp_path, fig1=None, fig5=None, theory=None))
    assert not {name for _, name, _ in stage_files(declared)} & {"fig1", "fig5", "theory"}
    for ask in (declared.fig1, declared.fig5, declared.theory):
        with pytest.raises(TeddyError, match="lacks the key"):
            ask()
