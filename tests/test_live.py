"""What a run shows while it goes on changes none of its bytes, and reads as one curve."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_synthesis import interrupted_at, synthesiser, with_config
from torch import Tensor

from teddy.core import distributed, runtime
from teddy.core.live import Live
from teddy.synthesis.teddy import Teddy

__all__ = ["synthesiser"]  # fixtures


class Stub:
    """A writer that remembers: folder, first step, and what was added."""

    made: list["Stub"]  # a new list for every test

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.first, self.closed = Path(folder), purge_step, False
        self.numbers: dict[str, list[int]] = {}
        self.images: list[tuple[int, tuple[int, ...]]] = []
        Stub.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Number."""
        self.numbers.setdefault(name, []).append(step)

    def add_image(self, name: str, grid: Tensor, step: int) -> None:
        """Image."""
        self.images.append((step, tuple(grid.shape)))

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """No more."""
        self.closed = True


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Stub]:
    Stub.made = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Stub))
    monkeypatch.setenv("TEDDY_LIVE", str(tmp_path / "runs"))
    monkeypatch.setattr("teddy.synthesis.engine.runs.CHECK_EVERY", 5)
    return Stub


def run(maker: Teddy, resume: Path) -> Mapping[str, Tensor]:
    resume.parent.mkdir(parents=True, exist_ok=True)
    return maker.run(maker.batches(1)[0], resume, save_every_seconds=0)


def test_a_killed_batch_shows_one_curve_and_its_bytes_do_not_change(
    synthesiser: Teddy, tmp_path: Path, stub: type[Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    maker, resume = with_config(synthesiser, iterations=20), tmp_path / "w/row-1/batch-0.resume"
    with pytest.raises(KeyboardInterrupt):
        run(interrupted_at(with_config(maker), 12), resume)
    shown = run(with_config(maker), resume)
    one, two = stub.made
    assert one.folder == two.folder == tmp_path / "runs/w/row-1/batch-0"
    assert (one.first, two.first) == (1, 11)
    terms = {"loss", "classifier_prior", "statistics"}
    assert one.numbers == {name: [5, 10] for name in terms}
    assert two.numbers == {name: [15, 20] for name in terms}
    assert [step for step, _ in two.images] == [15, 20] and two.closed
    monkeypatch.delenv("TEDDY_LIVE")
    silent = run(with_config(maker), tmp_path / "other" / "resume")
    assert len(stub.made) == 2
    assert all(torch.equal(silent[name], shown[name]) for name in silent)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((7, 1, 8, 8), (3, 10, 64)), ((70, 3, 8, 8), (3, 46, 91)), ((3, 2, 224, 200), (3, 58, 154))],
)
def test_a_grid_is_small(
    shape: tuple[int, ...], expected: tuple[int, ...], stub: type[Stub], tmp_path: Path
) -> None:
    Live(tmp_path / "resume", 0).images(1, torch.zeros(shape, dtype=torch.uint8), 10)
    assert stub.made[0].images == [(1, expected)]


def test_only_the_first_process_writes(
    stub: type[Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    live = Live(tmp_path / "resume", 0)
    live.numbers(1, {"loss": 1.0})
    live.close()
    assert not live and not stub.made


def test_a_full_disk_ends_what_is_shown_and_not_the_run(
    stub: type[Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Stub, "flush", full)
    live = Live(tmp_path / "resume", 0)
    live.numbers(1, {"loss": 1.0})
    live.numbers(2, {"loss": 1.0})
    (line,) = capfd.readouterr().err.splitlines()
    assert "No space left" in line and not live


@pytest.mark.parametrize("package", [False, True])
def test_a_missing_package_or_folder_is_refused_when_a_stage_starts(
    package: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TEDDY_LIVE", str(tmp_path / "file"))
    spec = SimpleNamespace(origin="there") if package else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(SystemExit):
        runtime.run_stage("stage", lambda: pytest.fail("started"))
    (line,) = capfd.readouterr().err.splitlines()
    wanted = "a folder to write to" if package else "pip install '.[live]'"
    assert line.startswith("error: $TEDDY_LIVE must be ") and wanted in line


@pytest.mark.filterwarnings("default")  # what TensorBoard warns of is not ours
def test_tensorboard_reads_what_was_written(
    synthesiser: Teddy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TEDDY_LIVE", str(tmp_path / "runs"))
    monkeypatch.setattr("teddy.synthesis.engine.runs.CHECK_EVERY", 5)
    maker, resume = with_config(synthesiser, iterations=20), tmp_path / "w/row-1/batch-0.resume"
    with pytest.raises(KeyboardInterrupt):
        run(interrupted_at(with_config(maker), 12), resume)
    made = run(with_config(maker), resume)
    events = accumulators.EventAccumulator(str(tmp_path / "runs/w/row-1/batch-0"))
    events.Reload()
    assert events.Tags()["images"] == ["images"]
    found = {name: {e.step: e.value for e in events.Scalars(name)}
             for name in ("loss", "classifier_prior", "statistics")}  # fmt: skip
    for column, name in enumerate(("classifier_prior", "statistics"), 1):
        assert list(found[name]) == [5, 10, 15, 20]
        for step, value in found[name].items():
            mean = made["curve"][step - 5 : step, column].mean().item()
            assert value == pytest.approx(mean, rel=1e-5)
