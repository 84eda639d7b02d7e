"""Which gradient is taken, and what exhausted memory does. No GPU, but tests for one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_synthesis import random_network, random_teachers, random_view, with_config

from teddy.core.artifacts import read_record, read_tensors
from teddy.core.errors import TeddyError
from teddy.core.memory import OutOfMemory, memory_watch
from teddy.data.datasets import ImageDataset
from teddy.settings.configs import SynthesizeConfig, ViewConfig
from teddy.synthesis import gradient
from teddy.synthesis import teddy as synthesis
from teddy.synthesis.engine.frozen import Teacher
from teddy.synthesis.engine.passes import kept_bytes, memory_of_a_batch
from teddy.synthesis.gradient import Mode, choose_mode, combined, eq7_gradient, losses_of_teachers
from teddy.synthesis.methods import Ingredients
from teddy.synthesis.teddy import Teddy
from teddy.teachers.pools import Pool

CPU = torch.device("cpu")


@pytest.fixture
def synthesiser(
    synthesis_config: SynthesizeConfig, pool: Pool, dataset: ImageDataset, view_config: ViewConfig
) -> Teddy:
    """A fresh synthesiser of the tiny settings."""
    return Teddy(synthesis_config, Ingredients(dataset, 0, CPU, pool, view_config))


def with_memory(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Pretend that an item has so many bytes."""
    monkeypatch.setattr(gradient, "memory_of_a_batch", lambda device: size)


# ------------------------------------------------------------------------------------------ mode


def test_joint_is_taken_exactly_where_the_graphs_of_all_teachers_fit(
    synthesis_config: SynthesizeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers, (view, _) = random_teachers([0, 1, 2]), random_view(count=20)
    needed = sum(kept_bytes(t, view, synthesis_config) for t in teachers)
    with_memory(monkeypatch, needed / gradient._JOINT_SHARE)
    assert choose_mode(view, teachers, synthesis_config) == "joint"
    with_memory(monkeypatch, needed / gradient._JOINT_SHARE - 4)
    assert choose_mode(view, teachers, synthesis_config) == "two_pass"
    assert choose_mode(view, teachers[:2], synthesis_config) == "joint"


def test_one_teacher_needs_no_choice(
    synthesis_config: SynthesizeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 1e15)
    assert choose_mode(random_view()[0], random_teachers([0]), synthesis_config) == "two_pass"


def test_bytes_are_those_of_the_layers_outputs(synthesis_config: SynthesizeConfig) -> None:
    (teacher,), (view, _) = random_teachers([0]), random_view(count=20)
    pixels = 12 * 12 + 6 * 6 + 3 * 3
    least = 20 * 4 * pixels * 4  # images, channels, pixels of three layers, bytes
    assert least <= kept_bytes(teacher, view, synthesis_config) < 1.1 * least


def test_memory_of_a_batch_is_part_of_the_machines() -> None:
    assert 2**20 < memory_of_a_batch(CPU) < 2**50
    assert memory_of_a_batch(CPU) == memory_of_a_batch(CPU)


@pytest.mark.parametrize("size", [1.0, 1e15])
def test_auto_gives_the_bytes_of_the_mode_it_names(
    synthesiser: Teddy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float
) -> None:
    with_memory(monkeypatch, size)
    auto = with_config(synthesiser, gradient="auto")
    item = auto.batches(1)[0]
    got = auto.run(item, tmp_path / "auto")
    mode = "joint" if size > 1 else "two_pass"
    assert auto.facts["gradient"] == mode
    want = with_config(synthesiser, gradient=mode).run(item, tmp_path / "named")
    assert torch.equal(got["curve"], want["curve"])
    assert torch.equal(got["images"], want["images"])


# ---------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
def test_exhausted_memory_is_recognised(error: Exception) -> None:
    with pytest.raises(OutOfMemory), memory_watch():
        raise error


def test_pytorchs_own_refusal_is_recognised() -> None:
    with pytest.raises(OutOfMemory), memory_watch():
        torch.empty(2**60)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"), memory_watch():
        torch.zeros(2) + torch.zeros(3)


def fails_at(synthesiser: Teddy, calls: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have these calls of the gradient end for lack of memory."""
    count = iter(range(1000))

    def limited(*arguments: Any) -> torch.Tensor:
        if next(count) in calls:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses_of_teachers(*arguments)

    monkeypatch.setattr(synthesis, "losses_of_teachers", limited)


def test_exhausted_memory_is_answered_by_the_smaller_mode(
    synthesiser: Teddy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    item = synthesiser.batches(1)[0]
    want = with_config(synthesiser, gradient="two_pass").run(item, tmp_path / "small")
    joint = with_config(synthesiser, gradient="joint")
    fails_at(joint, {0}, monkeypatch)
    got = joint.run(item, tmp_path / "joint")
    assert torch.equal(got["images"], want["images"])
    assert joint.facts["gradient"] == "two_pass"
    assert "classes 0-1, which goes on by gradient two_pass" in capfd.readouterr().err


def test_smaller_mode_that_does_not_fit_is_a_refusal(
    synthesiser: Teddy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint = with_config(synthesiser, gradient="joint")
    fails_at(joint, {2, 3}, monkeypatch)
    item = joint.batches(1)[0]
    with pytest.raises(TeddyError, match=r"no memory left for indices 0-1.*classes_per_batch"):
        joint.run(item, tmp_path / "resume")


def test_mode_of_an_interrupted_item_is_kept(
    synthesiser: Teddy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teddy.synthesis.engine.runs.CHECK_EVERY", 1)
    item = synthesiser.batches(1)[0]
    path = tmp_path / "resume"
    joint = with_config(synthesiser, gradient="joint")
    with monkeypatch.context() as patch:
        fails_at(joint, {1}, patch)
        joint.run(item, path, save_every_seconds=0)
    assert read_record(path, kind="teddy.batch-state.v1")["kept"] == {"gradient": "two_pass"}
    again = with_config(synthesiser, gradient="joint")
    again.run(item, path)
    assert again.facts["gradient"] == "two_pass"


# ---------------------------------------------------------------------------------------- losses


def test_losses_of_teachers_add_up_to_eq7(synthesis_config: SynthesizeConfig) -> None:
    teachers = random_teachers([0, 1, 2])
    targets = [t.running for t in teachers]
    modes: list[Mode] = ["two_pass", "joint"]
    for mode in modes:
        view, labels = random_view()
        losses = losses_of_teachers(view, labels, teachers, targets, synthesis_config, mode)
        assert losses.shape == (7,)
        for index, teacher in enumerate(teachers):
            alone = random_view()[0]
            of_one = eq7_gradient(
                alone, labels, [teacher], targets[index : index + 1], synthesis_config
            )
            torch.testing.assert_close(losses[1 + index], of_one[1])
            with torch.no_grad():
                size = teacher.logits(view).abs().mean()
            torch.testing.assert_close(losses[4 + index], size)
        mean = losses[1:4].mean()
        torch.testing.assert_close(combined(losses, synthesis_config)[1], mean)


def test_refusal_names_the_teacher_and_leaves_the_last_finite_images(
    synthesiser: Teddy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teddy.synthesis.engine.runs.CHECK_EVERY", 2)
    item = synthesiser.batches(1)[0]
    ends = with_config(synthesiser, draw=3)
    count = iter(range(1000))

    def broken(*arguments: Any) -> torch.Tensor:
        losses = losses_of_teachers(*arguments)
        if next(count) == 4:
            losses[[0, 2]] = torch.inf  # the prior, and the second teacher's statistics
        return losses

    monkeypatch.setattr(synthesis, "losses_of_teachers", broken)
    expected = r"loss is inf at iteration 5 of indices 0-1, classes 0-1, by teacher member1\.saf"
    with pytest.raises(TeddyError, match=expected) as caught:
        ends.run(item, tmp_path / "item.resume")
    path = tmp_path / "item.last-finite.safetensors"
    assert str(path) in str(caught.value)
    images, record = read_tensors(path, kind="teddy.batch-images.v1")
    assert record["iterations"] == 4
    monkeypatch.setattr(synthesis, "losses_of_teachers", losses_of_teachers)
    same = with_config(synthesiser, draw=3)
    with monkeypatch.context() as patch:  # the run up to there, saved at iteration 4
        draw = same.teachers_drawn
        patch.setattr(same, "teachers_drawn", lambda i, n: draw(i, n) if n < 4 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            same.run(item, tmp_path / "same", save_every_seconds=0)
    state, _ = read_tensors(tmp_path / "same", kind="teddy.batch-state.v1")
    assert torch.equal(images["images"], state["images"])


# ------------------------------------------------------------------------------------------- CUDA


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["two_pass", "joint"])
@pytest.mark.parametrize(("precision", "cosine"), [("float32", 0.9999), ("bfloat16", 0.98)])
def test_gradient_on_cuda_points_where_the_cpus_does(
    synthesis_config: SynthesizeConfig, mode: Any, precision: Any, cosine: float
) -> None:
    config = replace(synthesis_config, gradient=mode, precision=precision)
    found = []
    for device in ("cpu", "cuda"):
        view, labels = random_view(count=30)
        teachers = [Teacher(random_network(seed).to(device), "biased") for seed in (0, 1)]
        leaf = view.detach().to(device).requires_grad_()
        eq7_gradient(leaf, labels.to(device), teachers, [t.running for t in teachers], config)
        assert leaf.grad is not None
        found.append(leaf.grad.cpu().flatten())
    assert torch.cosine_similarity(found[0], found[1], dim=0) > cosine


# -------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(("precision", "least"), [("float32", 1 - 1e-9), ("bfloat16", 0.98)])
def test_gradient_of_trained_teachers_points_where_float64_does(
    synthesis_config: SynthesizeConfig, pool: Pool, precision: Any, least: float
) -> None:
    """On the CPU bfloat16 is emulated where its instructions are missing: few images."""
    found = []
    kinds: list[tuple[torch.dtype, Any]] = [(torch.float64, "float32"), (torch.float32, precision)]
    for dtype, kind in kinds:
        teachers = [Teacher(pool.member(m, CPU).to(dtype), "biased") for m in range(3)]
        view, labels = random_view(count=12)
        leaf = view.detach().to(dtype).requires_grad_()
        config = replace(synthesis_config, precision=kind, gradient="two_pass")
        losses = eq7_gradient(leaf, labels, teachers, [t.running for t in teachers], config)
        assert losses.dtype == dtype, "losses are never narrower than float32"
        assert leaf.grad is not None
        found.append(leaf.grad.double().flatten())
    assert torch.cosine_similarity(found[0], found[1], dim=0) > least
