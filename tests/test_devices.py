"""What can be seen on a CPU of loops on a GPU: they wait for nothing and mix no devices."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_acceleration import MODES, synthesiser, tensors_in
from test_synthesis import with_config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from teddy.data.datasets import ImageDataset
from teddy.data.images import Images
from teddy.objectives import Moments
from teddy.settings.configs import RelabelConfig, ViewConfig
from teddy.students.labels import TrainingViews
from teddy.synthesis.engine import frozen, kernels, passes
from teddy.synthesis.engine.lanes import Lane
from teddy.synthesis.engine.runs import BatchRun
from teddy.synthesis.gradient import Mode
from teddy.synthesis.methods import OptimisedMethod
from teddy.synthesis.teddy import Teddy
from teddy.teachers.networks import load_network
from teddy.teachers.pools import Pool
from teddy.teachers.training import real_batches

META = torch.device("meta")

__all__ = ["synthesiser"]  # a fixture


class OnDevice(TorchDispatchMode):
    """Refuses what waits for a GPU: numbers and sizes from it, tensors made on the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Look at an operation."""
        name = func.name().split(".")[0]
        asks = name in {"aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh"}
        asks |= name == "aten::index" and any(i.dtype == torch.bool for i in tensors_in(args[1]))
        assert not asks, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def on_device() -> Any:
    """Nothing in the block waits."""
    return OnDevice()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("changes", [{}, {"views_per": "image"}, {"class_statistics": "pooled"}])
def test_iterations_of_synthesis_do_not_wait(
    synthesiser: Teddy, tmp_path: Path, monkeypatch: Any, mode: Mode, changes: Any
) -> None:
    """All of a batch between its first draw and its last look."""
    made = with_config(synthesiser, gradient=mode, **changes)
    batch, draw = made.batches(1)[0], made.teachers_drawn
    made.load([batch])
    watch = on_device()
    drawn: list[int] = []

    def watched(batch: Any, iteration: int) -> list[int]:
        if iteration == made.config.iterations - 1:
            watch.__exit__(None, None, None)
        if iteration == 0 and not drawn:
            watch.__enter__()
        drawn.append(iteration)
        return draw(batch, iteration)

    views = made._views
    monkeypatch.setattr(made, "teachers_drawn", watched)
    monkeypatch.setattr(made, "_views", lambda *args: iter(list(views(*args))))
    made.run(batch, tmp_path / "resume")
    assert len(drawn) == made.config.iterations
    with watch:
        list(views(batch, 0))


def test_batches_of_a_teacher_do_not_wait(dataset: ImageDataset, view_config: ViewConfig) -> None:
    batches = real_batches(dataset.train, dataset.normalisation, view_config, 7, 0)
    assert list(batches(0))  # makes what is made once
    with on_device():
        assert list(batches(1))


@pytest.mark.parametrize("kept", [True, False])
def test_batches_of_a_student_do_not_wait(
    dataset: ImageDataset, relabel_config: RelabelConfig, kept: bool
) -> None:
    few = Images(dataset.train.pick(torch.arange(12)), dataset.train.labels[:12])
    views = TrainingViews(few, dataset.normalisation, relabel_config, seed=0)
    views._keep = kept
    parts = torch.arange(12).split(5)
    assert list(views.batches(0, parts))
    with on_device():
        assert list(views.batches(1, parts))


# ------------------------------------------------------------------------------------------- mixing


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, numbers and copies aside."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Look at an operation."""
        name = func.name().split(".")[0]
        devices = {t.device.type for t in tensors_in((args, kwargs)) if t.ndim}
        assert len(devices) < 2 or name in {"aten::copy_", "aten::_to_copy"}, f"{name}: {devices}"
        return func(*args, **(kwargs or {}))


def test_a_mix_of_devices_is_seen() -> None:
    here, there = torch.zeros(2), torch.zeros(2, device=META)
    with OneDevice():  # type: ignore[no-untyped-call]
        assert (here + torch.tensor(1.0)).sum() == 2
        there.copy_(here)
        with pytest.raises(AssertionError, match=r"aten::add: "):
            here + there


class Elsewhere(Pool):
    """A pool whose members lie on a device that only knows shapes."""

    def member(self, index: int, device: torch.device) -> nn.Module:
        """Load and move."""
        network, _ = load_network(self.folder / self.entries[index]["file"])
        return network.eval().requires_grad_(False).to(device)


@pytest.fixture
def shapes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device that only knows shapes lacks."""

    def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((0, 2, 3)), x.var((0, 2, 3))

    def class_target(self: Teddy, member: int, batch: Any) -> list[Moments]:
        return self._teacher(member).running

    def elsewhere(kind: str, **named: Any) -> Any:
        return contextlib.nullcontext() if kind == "meta" else autocast(kind, **named)

    enabled, autocast = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setattr(kernels, "mean_and_variance", mean_and_variance)
    monkeypatch.setattr(frozen, "_well_scaled", lambda norm: True)
    monkeypatch.setattr(passes, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))
    monkeypatch.setattr(torch, "autocast", elsewhere)
    monkeypatch.setattr(Teddy, "_class_target", class_target)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"views_per": "image"}, {"augmentation": "dsa"}, {"draw_per": "iteration"},
     {"augmentation": "dsa", "views_per": "image"}, {"initialise": "real"}, {"clip": False},
     {"class_statistics": "pooled"}, {"class_statistics": "per_class", "classes_per_batch": 1}],
)  # fmt: skip
def test_iterations_of_synthesis_mix_no_devices(
    synthesiser: Teddy, tmp_path: Path, shapes_only: None, mode: Mode, changes: Any
) -> None:
    made = with_config(synthesiser, gradient=mode, iterations=9, **changes)
    pool = Elsewhere(made.pool.folder, made.pool.entries)
    there: OptimisedMethod = Teddy(made.config, replace(made.given, pool=pool, device=META))
    batch = there.batches(1)[0]
    there.load([batch])
    run = BatchRun(there, batch, tmp_path / "resume", save_every=float("inf"))
    steps: Iterator[Any] = run.steps(Lane())
    next(steps)
    with OneDevice():  # type: ignore[no-untyped-call]
        for _ in range(3):
            next(steps)
