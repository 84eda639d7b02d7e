"""The evaluation benchmark: the plain loops do what ours do. No times."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import evaluation as bench
from benchmarks.__main__ import main
from benchmarks.evaluation import WORKLOADS, Task, per_batch, per_image
from teddy.core.files import read_json

CPU = torch.device("cpu")


@pytest.fixture
def task() -> Task:
    """Twelve digits, two epochs, two students."""
    return Task(replace(WORKLOADS["digits"], images=12, batch=6, epochs=2), 2, CPU)


def test_plain_views_are_normalised_and_differ_as_they_should(task: Task) -> None:
    torch.manual_seed(0)
    same = task.images.images[:1].expand(6, -1, -1, -1)
    alike, different = per_batch(task, same), per_image(task, same)
    assert alike.shape == different.shape == (6, 1, 8, 8)
    assert alike.dtype == different.dtype == torch.float32
    assert all(torch.equal(alike[0], view) for view in alike), "one crop for the batch"
    assert not torch.equal(different[0], different[1]), "a crop for each image"
    assert different.min() < -1
    assert different.max() > 1


def test_plain_cutmix_pastes_one_box_of_another_image() -> None:
    torch.manual_seed(1)
    images = torch.arange(8.0)[:, None, None, None].expand(8, 1, 6, 6)
    mixed = bench._cutmix(images)
    changed = mixed != images
    moved = [index for index in range(8) if changed[index].any()]
    assert moved
    assert all(torch.equal(changed[moved[0]], changed[index]) for index in moved)
    assert images[0].max() == 0, "the images themselves stay"


def test_both_ways_train_every_student_on_every_view(
    task: Task, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Counting(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(len(input))
            return super().forward(input)

    def network(*args: object) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), Counting(64, 10))

    monkeypatch.setattr("teddy.students.evaluation.build", network)
    monkeypatch.setattr(bench, "build", network)
    for train in (task.train_ours, lambda: task.train_plainly(per_batch)):
        seen.clear()
        train()
        assert sum(seen) == task.seen * 2
        assert set(seen) == {6}


def test_evaluation_writes_a_record_a_table_and_a_figure(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    out = tmp_path / "evaluation.json"
    sizes = ["--workloads", "digits", "--epochs", "1", "--repeats", "2", "--seeds", "1"]
    main(["evaluation", *sizes, "--out", str(out)])
    found = read_json(out)["workloads"]["digits"]
    for work in ("evaluate", "relabel"):
        assert len(found[work]) == 3
        for program in found[work].values():
            assert len(program["images_per_second"]) == 2
            assert min(program["images_per_second"]) > 0
        assert found[work]["ours"]["ours_over_this"] == 1
    assert "transforms per image" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
