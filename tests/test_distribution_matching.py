"""Distribution matching: its loss by hand, what it depends on, independence of batches, resuming.

No GPU, no downloads.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_synthesis import synthesise
from torch import Tensor
from torch.nn import functional

from teddy.core.artifacts import WorkDir, read_tensors
from teddy.core.errors import TeddyError
from teddy.core.seeding import derive
from teddy.data.datasets import ImageDataset, select_random
from teddy.data.dsa import draw_shared_dsa
from teddy.data.images import Images
from teddy.settings.configs import DmConfig, NetworkConfig
from teddy.synthesis.distribution_matching import DistributionMatching, matching_loss
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.methods import Ingredients
from teddy.teachers.networks import ConvNet, build

CPU = torch.device("cpu")


@pytest.fixture
def matcher(dm_config: DmConfig, dataset: ImageDataset) -> DistributionMatching:
    """A fresh matcher of the tiny settings, from real images."""
    return DistributionMatching(replace(dm_config, initialise="real"), Ingredients(dataset, 0, CPU))


def changed(old: DistributionMatching, **changes: Any) -> DistributionMatching:
    """A fresh matcher that differs in some settings."""
    return DistributionMatching(replace(old.config, **changes), old.given)


def start(matcher: DistributionMatching, batch: Batch) -> Tensor:
    """Images of a batch before the first step."""
    return matcher.initial_images(batch)


# ------------------------------------------------------------------------------------------- loss


def test_loss_is_the_squared_distance_summed_over_classes() -> None:
    real = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    synthetic = torch.tensor([[1.0, 5.0], [-1.0, 2.0]])
    assert matching_loss(real, synthetic).item() == 9 + 1 + 4


def test_loss_is_that_of_a_loop_over_classes(matcher: DistributionMatching) -> None:
    """Layer by layer from the weights, one class and one image at a time."""
    (batch,) = changed(matcher, classes_per_batch=3).batches(2)
    images, iteration, total = start(matcher, batch), 4, 0.0
    seed = derive(0, "dm network", iteration)
    network = build(matcher.config.network, (1, 8, 8), 3, seed)
    assert isinstance(network, ConvNet)
    parameters = list(network.features.parameters())

    def embed(image: Tensor) -> Tensor:
        hidden = image[None]
        for block in range(3):
            filters, offsets, weight, bias = parameters[4 * block : 4 * block + 4]
            hidden = functional.conv2d(hidden, filters, offsets, padding=1 if block else 3)
            hidden = functional.instance_norm(hidden, weight=weight, bias=bias)
            hidden = functional.avg_pool2d(hidden.relu(), 2)
        return hidden.flatten()

    for label in range(3):
        view = draw_shared_dsa(matcher.config.dsa, 0, "dm view", label, iteration)
        real = [embed(view(image[None])[0]) for image in matcher.real_batch(label, iteration)]
        mine = images[batch.labels() == label]
        synthetic = [embed(view(image[None])[0]) for image in mine]
        gap = torch.stack(real).mean(0) - torch.stack(synthetic).mean(0)
        total += gap.square().sum().item()
    with torch.no_grad():
        got = changed(matcher, classes_per_batch=3).loss(images, batch, iteration)
    assert got.item() == pytest.approx(total, rel=1e-4)
    assert total > 1e-3


def test_loss_is_zero_when_synthetic_images_are_the_real_ones(
    matcher: DistributionMatching,
) -> None:
    whole = changed(matcher, classes_per_batch=3, real_batch=16)
    (batch,) = whole.batches(16)
    images = start(whole, batch).requires_grad_()
    for iteration in range(12):
        loss = whole.loss(images, batch, iteration)
        assert loss.item() < 1e-8, f"every image of a class, in another order, at {iteration}"
    (gradient,) = torch.autograd.grad(loss, images)
    assert gradient.abs().max() < 1e-4
    few = changed(whole, real_batch=3)
    assert few.loss(images, batch, 0).item() > 1e-4, "so that the test can fail"


def test_order_of_images_of_a_class_does_not_matter(matcher: DistributionMatching) -> None:
    (batch,) = changed(matcher, classes_per_batch=3).batches(4)
    images = start(matcher, batch)
    other = images.unflatten(0, (4, 3))[torch.tensor([2, 0, 3, 1])].flatten(0, 1)
    for iteration in range(6):
        got, want = (matcher.loss(x, batch, iteration).item() for x in (other, images))
        assert got == pytest.approx(want, rel=1e-4)


def test_gradient_reaches_every_image_through_every_operation(
    matcher: DistributionMatching,
) -> None:
    for operation in matcher.config.dsa.operations:
        one = changed(matcher, dsa=replace(matcher.config.dsa, operations=(operation,)))
        batch = one.batches(2)[0]
        images = start(one, batch).requires_grad_()
        one.loss(images, batch, 0).backward()
        assert images.grad is not None
        assert (images.grad.flatten(1).norm(dim=1) > 0).all(), operation


def test_networks_real_images_and_views_change_with_the_iteration(
    matcher: DistributionMatching,
) -> None:
    weights = [next(matcher.network(i).parameters()) for i in (0, 1, 0)]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])
    batches = [matcher.real_batch(2, i) for i in (0, 1, 0)]
    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], batches[1])
    assert len(batches[0]) == matcher.config.real_batch
    assert len({matcher._view(2, i).operation for i in range(30)}) == 6
    different = {tuple(matcher._view(c, i).uniform[0].tolist()) for c in range(3) for i in range(9)}
    assert len(different) == 27


def test_real_batch_has_distinct_images_of_its_class(matcher: DistributionMatching) -> None:
    train = matcher.data.train
    inputs = matcher.data.normalisation.apply(train.pick(torch.arange(len(train))))
    for label in range(3):
        batch = matcher.real_batch(label, 5)
        found = [int((inputs == image).flatten(1).all(dim=1).nonzero()[0, 0]) for image in batch]
        assert len(set(found)) == len(batch)
        assert {int(train.labels[index]) for index in found} == {label}
    assert len(changed(matcher, real_batch=256).real_batch(0, 0)) == 16, "all that there are"


# ---------------------------------------------------------------------------------------- batches


def test_matching_brings_images_nearer_to_their_class(
    matcher: DistributionMatching, tmp_path: Path
) -> None:
    # GroupNorm: where an embedding averages a whole map, InstanceNorm has left nothing in it.
    network = NetworkConfig(arch="convnet3", width=16, norm="group")
    long = changed(matcher, initialise="noise", classes_per_batch=3, iterations=60, network=network)
    (batch,) = long.batches(2)
    before = start(long, batch)
    result = long.run(batch, tmp_path / "resume")
    after = long.data.normalisation.apply(result["images"])
    unseen = range(1000, 1020)  # iterations whose networks and views were not optimised for
    losses = [
        torch.stack([long.loss(images, batch, i) for i in unseen]).mean().item()
        for images in (before, after)
    ]
    assert losses[1] < 0.7 * losses[0]
    assert result["curve"].shape == (60, 2)
    assert long.record(batch, result["curve"], {})["curve"][0].keys() == {"iteration", "distance"}


def test_step_is_sgd_with_momentum(matcher: DistributionMatching, tmp_path: Path) -> None:
    free = changed(matcher, clip=False, iterations=3, lr=50.0)
    batch = free.batches(1)[0]
    images, velocity = start(free, batch), torch.zeros(())
    for iteration in range(3):
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(free.loss(leaf, batch, iteration), leaf)
        velocity = 0.5 * velocity + gradient
        images = images - 50 * velocity
    want = free.data.normalisation.to_uint8(images).int()
    got = free.run(batch, tmp_path / "resume")["images"].int()
    assert (got - want).abs().max() <= 1
    assert (want - free.data.normalisation.to_uint8(start(free, batch)).int()).abs().max() > 3


def test_images_of_a_class_do_not_depend_on_the_others(
    matcher: DistributionMatching, workplace: Path
) -> None:
    alone = changed(matcher, classes_per_batch=1)
    together = changed(matcher, classes_per_batch=3)
    images, labels, records = synthesise(alone, 2, WorkDir("synthesize", "alone"))
    others, _, _ = synthesise(together, 2, WorkDir("synthesize", "together"))
    assert images.shape == (6, 1, 8, 8)
    assert labels.tolist() == [0, 1, 2] * 2
    assert len(records) == 3
    assert (images.int() - others.int()).abs().max() <= 1
    chosen = select_random(alone.data.train.labels, "abc", range(2), 0).flatten()
    assert not torch.equal(images, alone.data.train.pick(chosen)), "it was optimised"


def test_killed_run_continues_to_the_same_bytes(
    matcher: DistributionMatching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teddy.synthesis.engine.runs.CHECK_EVERY", 1)
    batch, resume = matcher.batches(2)[0], tmp_path / "resume"
    want = matcher.run(batch, tmp_path / "other", save_every_seconds=1e9)
    killed, original, seen = changed(matcher), matcher.loss, []

    def until(images: Tensor, batch: Batch, iteration: int) -> Tensor:
        if iteration == 4:
            raise KeyboardInterrupt
        return original(images, batch, iteration)

    monkeypatch.setattr(killed, "loss", until)
    with pytest.raises(KeyboardInterrupt):
        killed.run(batch, resume, save_every_seconds=0)
    after = changed(matcher)

    def watch(images: Tensor, batch: Batch, iteration: int) -> Tensor:
        seen.append(iteration)
        return original(images, batch, iteration)

    monkeypatch.setattr(after, "loss", watch)
    got = after.run(batch, resume)
    assert seen == [4, 5]
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def test_diverging_run_is_refused(matcher: DistributionMatching, tmp_path: Path) -> None:
    wild = changed(matcher, lr=1e30, clip=False)
    batch = wild.batches(1)[0]
    with pytest.raises(TeddyError, match=r"loss is (nan|inf) at iteration 2 .*dm\.lr"):
        wild.run(batch, tmp_path / "batch.resume")
    path = tmp_path / "batch.last-finite.safetensors"
    images, record = read_tensors(path, kind="teddy.batch-images.v1")
    assert record["iterations"] == 0
    assert torch.equal(images["images"], start(wild, batch)), (
        "no look at the losses before that one"
    )


def test_batchnorm_is_refused(dm_config: DmConfig) -> None:
    with pytest.raises(TeddyError, match="without BatchNorm, got convnet3 with norm batch"):
        replace(dm_config, network=NetworkConfig(arch="convnet3", width=4, norm="batch"))


def test_colour_images_and_uneven_chunks(
    dm_config: DmConfig, dataset: ImageDataset, workplace: Path
) -> None:
    train = dataset.train
    assert isinstance(train, Images)
    coloured = Images(train.images.expand(-1, 3, -1, -1), train.labels)
    statistics = replace(
        dataset.normalisation, mean=dataset.normalisation.mean * 3,
        std=dataset.normalisation.std * 3,
    )  # fmt: skip
    data = replace(dataset, train=coloured, normalisation=statistics)
    matcher = DistributionMatching(dm_config, Ingredients(data, 0, CPU))
    images, labels, _ = synthesise(matcher, 1, WorkDir("synthesize", "colour"))
    assert images.shape == (3, 3, 8, 8)
    assert labels.tolist() == [0, 1, 2]
