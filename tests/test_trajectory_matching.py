"""MTT, FTD and TESLA: which steps are taken, by what, and what is kept.

The gradient itself is that of tests/test_unrolling.py. No GPU, no downloads.
"""

import dataclasses
import importlib
import os
from pathlib import Path

import pytest
import torch
from test_experts import CPU, SMALL, made
from torch import Tensor

from teddy.core.artifacts import WorkDir
from teddy.core.errors import TeddyError
from teddy.core.seeding import permutation
from teddy.data.datasets import ImageDataset
from teddy.settings.baselines import TrajectoryMatchingConfig
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.methods import Ingredients
from teddy.synthesis.trajectory_matching import TrajectoryMatching
from teddy.synthesis.unrolling import in_constant_memory
from teddy.teachers.experts import flat
from teddy.teachers.networks import build
from teddy.teachers.pools import Pool, open_pool

CONFIG = TrajectoryMatchingConfig(
    iterations=4, student_steps=3, expert_epochs=2, max_start=2, batch=4, lr=1.0, student_lr_lr=1e-3
)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, dataset: ImageDataset) -> Pool:
    """Two experts of three epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEDDY_WORK", str(tmp_path_factory.mktemp("work")))
        return open_pool(made(SMALL, dataset, tmp_path_factory.mktemp("data")).path)


def method(
    dataset: ImageDataset, experts: Pool, config: TrajectoryMatchingConfig = CONFIG
) -> TrajectoryMatching:
    return TrajectoryMatching(config, Ingredients(dataset, 3, CPU, experts))


def first(own: TrajectoryMatching, ipc: int = 2) -> tuple[Batch, Tensor, Tensor]:
    (batch,) = own.batches(ipc)
    return batch, own.initial_images(batch), torch.tensor(own.config.student_lr)


def test_the_student_is_trained_as_by_sgd(dataset: ImageDataset, experts: Pool) -> None:
    """The loss beside a network, optimiser and loop of PyTorch's own."""
    config = dataclasses.replace(CONFIG, augmentation="none", batch=0)
    own = method(dataset, experts, config)
    batch, images, rate = first(own)
    loss, *_ = own.gradients(images, rate, batch, 1, "unrolled")
    (expert, epoch), opened = own.window(1), own._experts
    network = build(SMALL.network, dataset.image_shape, dataset.num_classes, seed=9)
    torch.nn.utils.vector_to_parameters(opened.at(expert, epoch), network.parameters())
    optimizer = torch.optim.SGD(network.parameters(), lr=config.student_lr)
    for _ in range(config.student_steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), batch.labels()).backward()
        optimizer.step()
    end, target = flat(list(network.parameters())).detach(), opened.at(expert, epoch + 2)
    expected = (end - target).square().sum() / (opened.at(expert, epoch) - target).square().sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("soft", [False, True])
def test_constant_memory_changes_rounding_alone(
    dataset: ImageDataset, experts: Pool, *, soft: bool
) -> None:
    own = method(dataset, experts, dataclasses.replace(CONFIG, soft_labels=soft))
    batch, images, rate = first(own)
    whole, each, cut = (
        own.gradients(images, rate, batch, 0, way) for way in ("unrolled", "constant", "truncated")
    )
    for one, other in zip(whole, each, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(whole[1], cut[1], rtol=1e-2, atol=0)


def test_soft_labels_are_what_the_experts_end_says(dataset: ImageDataset, experts: Pool) -> None:
    hard, soft = (
        method(dataset, experts, dataclasses.replace(CONFIG, soft_labels=kind))
        for kind in (False, True)
    )
    batch, images, rate = first(hard)
    losses = [own.gradients(images, rate, batch, 0, "constant")[0] for own in (hard, soft)]
    assert losses[0] != losses[1]
    expert, epoch = soft.window(0)
    network = build(SMALL.network, dataset.image_shape, dataset.num_classes, seed=9)
    end = soft._experts.at(expert, epoch + CONFIG.expert_epochs)
    torch.nn.utils.vector_to_parameters(end, network.parameters())
    labels = network(images).detach().softmax(1)
    start = soft._experts.at(expert, epoch)
    given = soft._loss_of(0, labels), images, rate, start, end, CONFIG.student_steps
    torch.testing.assert_close(in_constant_memory(*given)[0], losses[1], rtol=1e-5, atol=0)


def test_every_expert_has_its_turn_and_starts_are_within_bounds(
    dataset: ImageDataset, experts: Pool
) -> None:
    own = method(dataset, experts)
    windows = [own.window(i) for i in range(40)]
    for i in range(0, 40, 2):
        assert {windows[i][0], windows[i + 1][0]} == {0, 1}
    assert {epoch for _, epoch in windows} == {0, 1}
    assert len({tuple(windows[i][0] for i in (j, j + 1)) for j in range(0, 40, 2)}) == 2


def test_every_image_has_its_turn_before_one_comes_again(
    dataset: ImageDataset, experts: Pool
) -> None:
    own = method(dataset, experts, dataclasses.replace(CONFIG, augmentation="none", batch=4))
    batch, images, _ = first(own)
    loss_of, start = own._loss_of(0, batch.labels()), own._experts.at(0, 0)
    used = []
    for step in range(2):
        leaf = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss_of(step, start, leaf), [leaf])
        used.append(slope.flatten(1).abs().sum(1) > 0)
    assert [int(own.sum()) for own in used] == [4, 2]
    assert torch.equal(used[0], ~used[1])


def test_the_learning_rate_is_learned_with_momentum_and_recorded(
    dataset: ImageDataset, experts: Pool, tmp_path: Path
) -> None:
    own = method(dataset, experts, dataclasses.replace(CONFIG, iterations=2))
    batch, images, rate = first(own)
    images.requires_grad_()
    state = own.start(batch, images)
    expected, velocity, momentum = rate.clone(), torch.zeros(()), torch.zeros_like(images)
    pixels = images.detach().clone()
    for iteration in range(2):
        _, of_images, of_rate = own.gradients(pixels, expected, batch, iteration, "unrolled")
        velocity = 0.5 * velocity + of_rate
        momentum = 0.5 * momentum + of_images
        expected, pixels = expected - 1e-3 * velocity, pixels - 1.0 * momentum
    for _ in own.optimise(batch, state):
        pass
    torch.testing.assert_close(state.more["student_lr"], expected)
    torch.testing.assert_close(state.images.detach(), pixels)
    assert state.kept["student_lr"] == pytest.approx(expected.item())


def test_the_set_is_the_moving_average(dataset: ImageDataset, experts: Pool) -> None:
    last, mean = (
        method(dataset, experts, dataclasses.replace(CONFIG, average=own)) for own in (0.0, 0.75)
    )
    seen = []
    for own in (last, mean):
        batch, images, _ = first(own)
        state = own.start(batch, images.requires_grad_())
        way = [images.detach().clone()]
        for _ in own.optimise(batch, state):
            way.append(state.images.detach().clone())
        seen.append(way)
    expected = seen[0][0]
    for images in seen[0][1:]:
        expected = 0.75 * expected + 0.25 * images
    torch.testing.assert_close(seen[1][-1], expected)


def test_a_killed_run_ends_with_the_same_bytes(
    dataset: ImageDataset, experts: Pool, tmp_path: Path
) -> None:
    own = method(dataset, experts, dataclasses.replace(CONFIG, average=0.5))
    (batch,) = own.batches(2)
    whole = own.run(batch, tmp_path / "whole.resume")
    state = own.start(batch, own.initial_images(batch).requires_grad_())
    steps = own.optimise(batch, state)
    next(steps), next(steps)
    state.save(tmp_path / "state")
    again = own.start(batch, own.initial_images(batch).requires_grad_())
    again.restore(tmp_path / "state")
    assert again.done == 2
    for _ in own.optimise(batch, again):
        pass
    assert torch.equal(dataset.normalisation.to_uint8(again.images.detach()), whole["images"])


def test_a_run_killed_after_its_last_step_has_all_that_it_records(
    dataset: ImageDataset, experts: Pool, tmp_path: Path
) -> None:
    own = method(dataset, experts)
    batch, images, _ = first(own)
    state, again = (own.start(batch, images.clone().requires_grad_()) for _ in range(2))
    steps = own.optimise(batch, state)
    for _ in range(CONFIG.iterations):
        next(steps)
    state.save(tmp_path / "state")
    again.restore(tmp_path / "state")
    assert again.kept == {"student_lr": state.more["student_lr"].item()}


def test_experts_that_end_too_early_are_refused(dataset: ImageDataset, experts: Pool) -> None:
    with pytest.raises(TeddyError, match=r"need 5 epochs of an expert, but these end at epoch 3"):
        method(dataset, experts, dataclasses.replace(CONFIG, max_start=3, expert_epochs=3))


def test_exhausted_memory_takes_one_step_at_a_time(dataset: ImageDataset, experts: Pool) -> None:
    own = method(dataset, experts)
    batch, images, _ = first(own)
    state = own.start(batch, images.requires_grad_())
    assert own.smaller(state) == "one step at a time"
    assert state.kept["gradient"] == "constant" and own.smaller(state) == ""


def test_a_set_is_made_and_better_than_its_start(
    dataset: ImageDataset, experts: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_WORK", str(tmp_path / "work"))
    config = dataclasses.replace(CONFIG, iterations=30, lr=3.0, batch=0, augmentation="none")
    own = method(dataset, experts, config)
    made_set = own.make(2, WorkDir("synthesize", "x").claim())
    assert made_set.images.shape == (6, *dataset.image_shape)
    curve = [point["distance"] for point in made_set.records[0]["curve"]]
    assert sum(curve[-10:]) < 0.9 * sum(curve[:10])
    assert made_set.records[0]["student_lr"] != pytest.approx(config.student_lr, rel=1e-6)


# ---------------------------------------------------------------------- beside the public code


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(
    not os.environ.get("MTT_DISTILLATION"),
    reason="$MTT_DISTILLATION names no checkout of GeorgeCazenavette/mtt-distillation",
)
def test_loss_and_gradients_are_those_of_the_public_code(
    dataset: ImageDataset, experts: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their network as a function of one vector, and their steps, on the same batches."""
    monkeypatch.syspath_prepend(os.environ["MTT_DISTILLATION"])
    networks, module = (importlib.import_module(n) for n in ("networks", "reparam_module"))
    own = method(dataset, experts, dataclasses.replace(CONFIG, augmentation="none"))
    batch, images, rate = first(own)
    found = own.gradients(images, rate, batch, 0, "unrolled")
    network = networks.ConvNet(1, 3, 4, 3, "relu", "instancenorm", "avgpooling", (8, 8))
    theirs = module.ReparamModule(network)
    (expert, epoch), labels = own.window(0), batch.labels()
    start, target = (own._experts.at(expert, at) for at in (epoch, epoch + CONFIG.expert_epochs))
    pixels, their_rate = images.clone().requires_grad_(), rate.clone().requires_grad_()
    way, parts = [start.requires_grad_()], list[Tensor]()
    for number in range(2):
        parts += permutation(6, own.seed, "mtt order", 0, number).split(4)
    for part in parts[: CONFIG.student_steps]:
        logits = theirs(pixels[part], flat_param=way[-1])
        loss = torch.nn.functional.cross_entropy(logits, labels[part])
        (slope,) = torch.autograd.grad(loss, way[-1], create_graph=True)
        way.append(way[-1] - their_rate * slope)
    squared = torch.nn.functional.mse_loss
    total = squared(way[-1], target, reduction="sum") / squared(start, target, reduction="sum")
    expected = total, *torch.autograd.grad(total, [pixels, their_rate])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-7)
