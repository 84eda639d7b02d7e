"""The supervised loop: schedule, decay groups, batches, accuracy, and resuming without a trace.

`katNN` are the known-answer tests of the specification, by its numbering. No GPU, no downloads.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.data.datasets import ImageDataset
from teddy.data.images import Images, Normalisation
from teddy.settings.configs import NetworkConfig, OptimizerConfig, ViewConfig
from teddy.teachers.networks import batchnorms, build
from teddy.teachers.optimizers import Adam, Group, Optimizer, Sgd, restore
from teddy.teachers.training import (
    Run,
    Step,
    accuracy,
    equal_parts,
    fit,
    learning_rate,
    make_optimizer,
    real_batches,
)

CPU = torch.device("cpu")
WHOLE = ViewConfig(crop_scale=1.0, hflip=False, roll=(0, 0))


# ------------------------------------------------------------------------------------- optimiser


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize(("decay_1d", "small"), [(False, 0.0), (True, 0.01)])
def test_kat24_biases_and_norms_decay_only_on_request(
    optimizer_config: OptimizerConfig, name: Any, decay_1d: bool, small: float
) -> None:
    network = build(NetworkConfig(arch="convnet3", width=4, norm="batch"), (1, 8, 8), 3, 0)
    optimizer = make_optimizer(network, replace(optimizer_config, name=name, decay_1d=decay_1d))
    decay = {id(p): group.weight_decay for group in optimizer.groups for p in group.parameters}
    assert len(decay) == len(list(network.parameters())) == 14
    for key, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.01 if parameter.ndim > 1 else small), key
    assert isinstance(optimizer, Sgd if name == "sgd" else Adam)


def test_kat24_parameters_without_decay_do_not_shrink(optimizer_config: OptimizerConfig) -> None:
    network = build(NetworkConfig(arch="convnet3", width=4, norm="batch"), (1, 8, 8), 3, 0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = make_optimizer(network, replace(optimizer_config, name="adamw"))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    for name, parameter in network.named_parameters():
        factor = 1 - 0.1 * 0.01 if parameter.ndim > 1 else 1
        torch.testing.assert_close(parameter.detach(), factor * before[name], rtol=1e-6, atol=0)


def test_frozen_parameters_are_not_optimised(optimizer_config: OptimizerConfig) -> None:
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    groups = make_optimizer(network, optimizer_config).groups
    assert [p for group in groups for p in group.parameters] == [network.weight]


RULES: dict[str, tuple[Callable[[Group], Optimizer], Callable[..., torch.optim.Optimizer]]] = {
    "SGD": (
        lambda group: Sgd([group], 0.9),
        lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.1, fused=True),
    ),
    "SGD without momentum": (
        lambda group: Sgd([group], 0.0),
        lambda p: torch.optim.SGD(p, weight_decay=0.1, fused=True),
    ),
    "Adam": (
        lambda group: Adam([group], (0.5, 0.9), 1e-6, decoupled=False),
        lambda p: torch.optim.Adam(p, betas=(0.5, 0.9), eps=1e-6, weight_decay=0.1, fused=True),
    ),
    "AdamW": (
        lambda group: Adam([group], (0.9, 0.999), decoupled=True),
        lambda p: torch.optim.AdamW(p, weight_decay=0.1, fused=True),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_update_is_pytorchs_bit_for_bit(rule: str) -> None:
    ours, theirs = RULES[rule]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    mine: list[Tensor] = [nn.Parameter(value.clone()) for value in start]
    reference: list[Tensor] = [nn.Parameter(value.clone()) for value in start]
    optimizer, pytorch = ours(Group(mine, 0.1)), theirs(reference)
    for lr in (0.1, 0.05, 0.01):
        for a, b in zip(mine, reference, strict=True):
            gradient = torch.randn(a.shape, generator=generator)
            a.grad, b.grad = gradient.clone(), gradient.clone()
        for group in pytorch.param_groups:
            group["lr"] = lr
        optimizer.step(lr)
        pytorch.step()
        for a, b in zip(mine, reference, strict=True):
            assert torch.equal(a, b)
            assert a.grad is None
    fresh = ours(Group([nn.Parameter(p.detach().clone()) for p in mine], 0.1))
    restore(fresh, [value.clone() for value in optimizer.state()])
    for a, b in zip(fresh.groups[0].parameters, mine, strict=True):
        gradient = torch.randn(a.shape, generator=generator)
        a.grad, b.grad = gradient.clone(), gradient.clone()
    fresh.step(0.1), optimizer.step(0.1)
    for a, b in zip(fresh.groups[0].parameters, mine, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_step_without_gradients_is_refused(rule: str) -> None:
    optimizer = RULES[rule][0](Group([nn.Parameter(torch.zeros(2))], 0.0))
    with pytest.raises(RuntimeError, match="call backward before step"):
        optimizer.step(0.1)


# -------------------------------------------------------------------------------------- schedule


def test_cosine_schedule_with_warm_up(optimizer_config: OptimizerConfig) -> None:
    config = replace(optimizer_config, lr=0.2, schedule="cosine", warmup_epochs=5)
    rates = [learning_rate(config, epoch, 0.0, 50) for epoch in range(51)]
    assert rates[0] == pytest.approx(0.002)
    assert rates[1] == pytest.approx(0.2 * (0.01 + 0.99 / 5))
    assert rates[5] == pytest.approx(0.2)
    assert rates[5 + 15] == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi / 3)))
    assert rates[50] == pytest.approx(0, abs=1e-15)
    assert learning_rate(config, 2, 0.5, 50) == pytest.approx(0.2 * (0.01 + 0.99 * 2.5 / 5))
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_cosine_schedule_is_constant_within_an_epoch(optimizer_config: OptimizerConfig) -> None:
    config = replace(optimizer_config, warmup_epochs=0)
    assert learning_rate(config, 3, 0.0, 10) == learning_rate(config, 3, 0.9, 10)
    assert learning_rate(config, 0, 0.0, 10) == config.lr
    assert learning_rate(config, 5, 0.0, 10) == pytest.approx(config.lr / 2)


def test_half_cosine_is_the_cosine_of_a_run_twice_as_long(
    optimizer_config: OptimizerConfig,
) -> None:
    """EDC's definition with st = 2: ½(1 + cos(π·epoch / (st·epochs))), which ends at one half."""
    half = replace(optimizer_config, lr=0.2, schedule="half_cosine", warmup_epochs=0)
    for epoch, share in ((0, 1), (100, 0.853553), (150, 0.691342), (200, 0.5)):
        assert learning_rate(half, epoch, 0.0, 200) == pytest.approx(0.2 * share, abs=1e-6)
    for warmup in (0, 5):
        half, whole = (
            replace(half, schedule="half_cosine", warmup_epochs=warmup),
            replace(half, schedule="cosine", warmup_epochs=warmup),
        )
        for epoch in range(50):
            twice = learning_rate(whole, epoch, 0.3, 2 * 50 - warmup)
            assert learning_rate(half, epoch, 0.3, 50) == pytest.approx(twice, rel=1e-12)


def test_step_schedule_is_that_of_torchvision(optimizer_config: OptimizerConfig) -> None:
    config = replace(
        optimizer_config, lr=0.1, schedule="step", step_epochs=30, step_factor=0.1, warmup_epochs=0
    )
    for epoch, rate in ((0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 0.001), (89, 0.001)):
        assert learning_rate(config, epoch, 0.5, 90) == pytest.approx(rate)


def test_constant_schedule_stays(optimizer_config: OptimizerConfig) -> None:
    config = replace(optimizer_config, schedule="constant", warmup_epochs=0)
    assert {learning_rate(config, epoch, 0.3, 9) for epoch in range(9)} == {config.lr}


@given(st.integers(0, 5), st.integers(1, 12))
def test_rates_lie_between_zero_and_the_base_rate(warmup: int, epochs: int) -> None:
    for schedule in ("cosine", "step", "constant"):
        config = OptimizerConfig(
            name="sgd", lr=0.3, momentum=0.9, betas=(0.9, 0.999), weight_decay=0, decay_1d=True,
            schedule=schedule, step_epochs=3, step_factor=0.5, warmup_epochs=warmup,
        )  # fmt: skip
        for epoch in range(epochs):
            for fraction in (0.0, 0.5, 0.99):
                assert 0 < learning_rate(config, epoch, fraction, epochs) <= 0.3


# --------------------------------------------------------------------------------------- batches


@given(st.integers(1, 200), st.integers(1, 64))
def test_parts_are_a_partition_of_nearly_equal_sizes(count: int, batch_size: int) -> None:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    parts = equal_parts(order, batch_size)
    sizes = [len(part) for part in parts]
    assert torch.equal(torch.cat(parts), order)
    assert len(parts) == math.ceil(count / batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def images_seen(steps: list[Step], dataset: ImageDataset) -> list[int]:
    """Which training image each input is."""
    pixels = dataset.normalisation.apply(dataset.train.pick(torch.arange(48))).flatten(1)
    inputs = torch.cat([inputs for inputs, _ in steps]).flatten(1)
    return (
        torch.cdist(inputs, pixels, compute_mode="donot_use_mm_for_euclid_dist").argmin(1).tolist()
    )


def test_epoch_shows_every_image_once_in_a_fresh_order(dataset: ImageDataset) -> None:
    batches = real_batches(dataset.train, dataset.normalisation, WHOLE, 10, seed=3)
    first, second = (images_seen(list(batches(epoch)), dataset) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second
    assert first == images_seen(list(batches(0)), dataset)
    assert [len(inputs) for inputs, _ in batches(0)] == [10, 10, 10, 9, 9]


def test_labels_travel_with_their_images(dataset: ImageDataset) -> None:
    batches = real_batches(dataset.train, dataset.normalisation, WHOLE, 10, seed=3)
    for step in batches(0):
        _, loss_of = step
        labels = dataset.train.labels[images_seen([step], dataset)]
        right = 20 * nn.functional.one_hot(labels, 3).float()
        assert loss_of(right).item() < 1e-6
        assert loss_of(right.roll(1, 1)).item() > 10


@pytest.mark.parametrize("segments", [2, 3, 4])
def test_segments_together_are_the_epoch(dataset: ImageDataset, segments: int) -> None:
    whole = real_batches(dataset.train, dataset.normalisation, WHOLE, 48, seed=3)
    cut = real_batches(dataset.train, dataset.normalisation, WHOLE, 48, 3, segments)
    for epoch in (0, 1):
        parts = [torch.cat([x for x, _ in cut(epoch * segments + s)]) for s in range(segments)]
        assert torch.equal(torch.cat(parts), torch.cat([x for x, _ in whole(epoch)]))


def test_view_of_an_image_does_not_depend_on_the_batch_size(
    dataset: ImageDataset, view_config: ViewConfig
) -> None:
    runs = [
        real_batches(dataset.train, dataset.normalisation, view_config, size, seed=3)
        for size in (7, 48)
    ]
    small, large = (torch.cat([inputs for inputs, _ in run(1)]) for run in runs)
    torch.testing.assert_close(small, large, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------- fitting


def make_run(
    dataset: ImageDataset, resume: Path, after_epoch: Callable[[int], Json], **changes: Any
) -> Run:
    """Five epochs on the tiny training set, saved after each."""
    views = ViewConfig(crop_scale=0.5, hflip=True, roll=(0, 1))
    settings = {
        "name": "test run",
        "seed": 1,
        "epochs": 5,
        "steps_per_epoch": 3,
        "batches": real_batches(dataset.train, dataset.normalisation, views, 16, seed=1),
        "after_epoch": after_epoch,
        "precision": "float32",
        "resume": resume,
        "save_every_seconds": 0.0,
    }
    return Run(**{**settings, **changes})


def nothing(epoch: int) -> Json:
    """No record."""
    return {}


def fresh(network_config: NetworkConfig, seed: int = 0) -> nn.Module:
    """An untrained network."""
    return build(network_config, (1, 8, 8), 3, seed)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_run_gives_the_weights_of_an_undisturbed_one(
    dataset: ImageDataset,
    network_config: NetworkConfig,
    optimizer_config: OptimizerConfig,
    tmp_path: Path,
    name: Any,
    stop: int,
) -> None:
    config = replace(optimizer_config, name=name, lr=0.02)
    undisturbed = fresh(network_config)
    history = fit(undisturbed, config, make_run(dataset, tmp_path / "a", nothing), CPU)

    def dies(epoch: int) -> Json:
        if epoch == stop:
            raise KeyboardInterrupt
        return {}

    resume = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(network_config), config, make_run(dataset, resume, dies), CPU)
    resumed, epochs = fresh(network_config, seed=9), []

    def watched(epoch: int) -> Json:
        epochs.append(epoch)
        return {}

    again = fit(resumed, config, make_run(dataset, resume, watched), CPU)
    assert epochs == list(range(stop, 5)), "it continued where it was stopped"
    assert again == history
    for key, value in undisturbed.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_two_runs_are_equal_and_seeds_differ(
    dataset: ImageDataset,
    network_config: NetworkConfig,
    optimizer_config: OptimizerConfig,
    tmp_path: Path,
) -> None:
    weights = []
    for index, seed in enumerate((0, 0, 1)):
        network = fresh(network_config, seed)
        fit(network, optimizer_config, make_run(dataset, tmp_path / str(index), nothing), CPU)
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_history_has_the_mean_loss_and_what_was_measured(
    dataset: ImageDataset,
    network_config: NetworkConfig,
    optimizer_config: OptimizerConfig,
    tmp_path: Path,
) -> None:
    network, seen = fresh(network_config), []
    batches = real_batches(dataset.train, dataset.normalisation, WHOLE, 16, seed=1)

    def watched(epoch: int) -> list[Step]:
        def keep(loss_of: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
            loss = loss_of(logits)
            seen.append((epoch, loss.item()))
            return loss

        return [(x, lambda z, f=f: keep(f, z)) for x, f in batches(epoch)]  # type: ignore[misc]

    run = make_run(dataset, tmp_path / "r", lambda epoch: {"twice": 2 * epoch}, batches=watched)
    history = fit(network, optimizer_config, run, CPU)
    assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5]
    assert [record["twice"] for record in history] == [0, 2, 4, 6, 8]
    for epoch, record in enumerate(history):
        losses = [loss for which, loss in seen if which == epoch]
        assert record["loss"] == pytest.approx(sum(losses) / 3)
    assert history[-1]["loss"] < history[0]["loss"]


def test_one_sgd_step_is_the_textbook_one(
    dataset: ImageDataset, network_config: NetworkConfig, tmp_path: Path
) -> None:
    config = OptimizerConfig(
        name="sgd", lr=0.1, momentum=0.0, betas=(0.9, 0.999), weight_decay=0.0, decay_1d=True,
        schedule="constant", step_epochs=1, step_factor=1.0, warmup_epochs=0,
    )  # fmt: skip
    batches = real_batches(dataset.train, dataset.normalisation, WHOLE, 48, seed=1)
    network, slow = fresh(network_config), fresh(network_config)
    for one in (network, slow):  # the images' padding is their mean, where ReLU has no slope
        nn.init.constant_(batchnorms(one)[0].bias, 0.1)
    run = make_run(dataset, tmp_path / "r", nothing, batches=batches, epochs=1)
    fit(network, config, run, CPU)
    ((inputs, loss_of),) = batches(0)
    loss_of(slow(inputs)).backward()
    for got, start in zip(network.parameters(), slow.parameters(), strict=True):
        assert start.grad is not None
        want = start.detach() - 0.1 * start.grad
        torch.testing.assert_close(got.detach(), want, rtol=1e-4, atol=1e-6)


def test_run_stops_early_when_told(
    dataset: ImageDataset,
    network_config: NetworkConfig,
    optimizer_config: OptimizerConfig,
    tmp_path: Path,
) -> None:
    def two(history: list[Json]) -> bool:
        return len(history) == 2

    run = make_run(dataset, tmp_path / "r", nothing, stop=two)
    assert len(fit(fresh(network_config), optimizer_config, run, CPU)) == 2
    run = make_run(dataset, tmp_path / "q", nothing, stop=lambda history: True)
    assert fit(fresh(network_config), optimizer_config, run, CPU) == []


def test_diverging_run_is_refused_with_epoch_and_step(
    dataset: ImageDataset,
    network_config: NetworkConfig,
    optimizer_config: OptimizerConfig,
    tmp_path: Path,
) -> None:
    def batches(epoch: int) -> list[Step]:
        scale = [1.0, math.nan if epoch == 1 else 1.0]
        inputs = torch.ones(4, 1, 8, 8)
        return [(inputs, lambda z, s=s: z.mean() * s) for s in scale]  # type: ignore[misc]

    run = make_run(dataset, tmp_path / "r", nothing, batches=batches, steps_per_epoch=2)
    with pytest.raises(TeddyError, match="test run: loss is nan at epoch 2, step 2"):
        fit(fresh(network_config), optimizer_config, run, CPU)


# --------------------------------------------------------------------------------------- accuracy


class Brightness(nn.Module):
    """Calls an image bright (class 1) or dark (class 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        bright = self.scale * images.mean((1, 2, 3))
        return torch.stack([-bright, bright], dim=1)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20), st.integers(1, 7)
)
def test_accuracy_counts(cases: list[tuple[bool, bool]], batch_size: int) -> None:
    pixels = torch.tensor([255 if bright else 0 for bright, _ in cases], dtype=torch.uint8)
    labels = torch.tensor([int(bright == right) for bright, right in cases])
    images = Images(pixels.reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8), labels)
    network = Brightness()
    half = Normalisation((0.5,), (0.5,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teddy.teachers.training.inference_batch", lambda shape: batch_size)
        got = accuracy(network, images, half)
    assert got == pytest.approx(100 * sum(right for _, right in cases) / len(cases))
    assert network.training, "the mode is restored"
    assert not any(network.modes), "measured in eval mode"


def test_dropout_depends_on_seed_and_epoch_alone(
    dataset: ImageDataset, optimizer_config: OptimizerConfig, tmp_path: Path
) -> None:
    """A resumed epoch drops what an undisturbed one drops."""

    def trained(stop: int, resume: Path) -> torch.Tensor:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(), nn.Linear(8, 3))
        run = make_run(dataset, resume, lambda epoch: {}, stop=lambda history: len(history) >= stop)
        fit(network, optimizer_config, run, CPU)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    whole = trained(5, tmp_path / "whole")
    trained(2, tmp_path / "parts")
    torch.rand(7)
    assert torch.equal(trained(5, tmp_path / "parts"), whole)
