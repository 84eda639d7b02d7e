"""Gradient matching (DC, DSA): its loss by hand, its gradient in the pixels by finite differences.

No GPU, no downloads.
"""

import importlib
import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_synthesis import synthesise
from torch import Tensor
from torch.nn import functional

from teddy.core.artifacts import WorkDir
from teddy.core.errors import TeddyError
from teddy.data.datasets import ImageDataset
from teddy.settings.baselines import LOOPS, GradientMatchingConfig
from teddy.settings.configs import NetworkConfig
from teddy.synthesis.gradient_matching import (
    GradientMatching,
    distance,
    gradient,
    mean_gradient,
)
from teddy.synthesis.methods import Ingredients

CPU = torch.device("cpu")
SMALL = GradientMatchingConfig(
    network=NetworkConfig(arch="convnet3", width=4, norm="instance"),
    iterations=3, outer_loops=2, inner_loops=2, real_batch=5,
)  # fmt: skip


@pytest.fixture
def matcher(dataset: ImageDataset) -> GradientMatching:
    """A fresh matcher of small settings, from real images."""
    return GradientMatching(SMALL, Ingredients(dataset, 0, CPU))


def changed(old: GradientMatching, **changes: Any) -> GradientMatching:
    """A fresh matcher that differs in some settings."""
    return GradientMatching(replace(old.config, **changes), old.given)


def test_distance_is_one_minus_cosine_of_every_output_unit() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, 3, 3), (3,), (4, 12), (4,)]
    real = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    other = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    expected = 0.0
    for a, b in ((real[0], other[0]), (real[2], other[2])):
        for unit in range(len(a)):
            one, two = a[unit].flatten().tolist(), b[unit].flatten().tolist()
            dot = sum(x * y for x, y in zip(one, two, strict=True))
            lengths = sum(x * x for x in one) ** 0.5 * sum(y * y for y in two) ** 0.5
            expected += 1 - dot / (lengths + 1e-6)
    assert distance(real, other).item() == pytest.approx(expected, rel=1e-12)
    assert distance(real, real).item() == pytest.approx(0, abs=1e-5)
    opposite = [-tensor for tensor in real]
    assert distance(real, opposite).item() == pytest.approx(2 * 7, abs=1e-5)


def test_gradient_of_the_last_layer_is_its_closed_form(matcher: GradientMatching) -> None:
    network = matcher.network(0).double()
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    *_, weight, bias = gradient(network, images, labels, differentiable=False)
    features = network.features(images).flatten(1)  # type: ignore[operator]
    error = network(images).softmax(1) - functional.one_hot(labels, 3)
    torch.testing.assert_close(weight, error.T @ features / 6)
    torch.testing.assert_close(bias, error.mean(0))


def test_gradient_of_many_images_is_the_same_in_small_passes(matcher: GradientMatching) -> None:
    network = matcher.network(0).double()
    images = torch.randn(600, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    labels = torch.arange(600) % 3
    whole = gradient(network, images, labels, differentiable=False)
    for one, other in zip(whole, mean_gradient(network, images, labels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("augmentation", ["none", "dsa"])
def test_pixel_gradient_is_that_of_finite_differences(
    matcher: GradientMatching, augmentation: str
) -> None:
    matcher = changed(matcher, augmentation=augmentation)
    (batch,) = matcher.batches(2)
    network = matcher.network(1).double()
    # In float64, and from noise: two equal images of a network without kinks would do as well.
    matcher._train = matcher._train.to(CPU)
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    real = {(c, t): matcher.real_batch(c, 1, t).double() for c in range(3) for t in range(2)}
    matcher.real_batch = lambda label, iteration, turn: real[label, turn]  # type: ignore[method-assign]

    def loss(at: Tensor) -> Tensor:
        return matcher.loss(network, at, batch, 1, 0)

    leaf = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf), [leaf])
    generator, step = torch.Generator().manual_seed(3), 1e-6
    for _ in range(4):
        direction = torch.randn(images.shape, generator=generator).double()
        slope = (loss(images + step * direction) - loss(images - step * direction)) / (2 * step)
        assert (found * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_images_equal_to_all_real_ones_have_no_distance(
    matcher: GradientMatching, dataset: ImageDataset
) -> None:
    counts = dataset.train.labels.bincount()
    matcher = changed(matcher, real_batch=int(counts.max()))
    network = matcher.network(0)
    (batch,) = matcher.batches(int(counts.min()))
    of_class = [matcher.real_batch(c, 0, 0)[: int(counts.min())] for c in range(3)]
    same = torch.stack(of_class, dim=1).flatten(0, 1)
    matcher.real_batch = lambda label, iteration, turn: of_class[label]  # type: ignore[method-assign]
    assert matcher.loss(network, same, batch, 0, 0).item() < 0.05  # 1e-6 beside small gradients
    assert matcher.loss(network, -same, batch, 0, 0).item() > 1


def test_network_is_trained_on_the_images_between_turns(matcher: GradientMatching) -> None:
    (batch,) = matcher.batches(2)
    images, network = matcher.initial_images(batch), matcher.network(0)
    before = functional.cross_entropy(network(images), batch.labels()).item()
    matcher.train_network(network, images, batch, 0, 0, epochs=40)
    assert functional.cross_entropy(network(images), batch.labels()).item() < before
    expected = matcher.network(0)
    optimizer = torch.optim.SGD(expected.parameters(), lr=SMALL.network_lr)
    for _ in range(40):  # one step of all images, whatever their order
        optimizer.zero_grad()
        functional.cross_entropy(expected(images), batch.labels()).backward()
        optimizer.step()
    for one, other in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_loops_are_the_papers_unless_settings_have_others() -> None:
    papers = replace(SMALL, outer_loops=0, inner_loops=0)
    assert {ipc: papers.loops(ipc) for ipc in LOOPS} == LOOPS
    assert SMALL.loops(10) == (2, 2)
    assert replace(SMALL, inner_loops=0).loops(10) == (2, 50)
    assert (SMALL.misfit(7), papers.misfit(10)) == ("", "")
    assert papers.misfit(7).startswith("outer_loops and inner_loops must be set for ipc 7; ")


def test_batchnorm_is_refused() -> None:
    with pytest.raises(TeddyError, match="must have no BatchNorm"):
        replace(SMALL, network=NetworkConfig(arch="convnet3", width=4, norm="batch"))


def test_a_killed_run_goes_on_to_the_same_images(
    matcher: GradientMatching, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, labels, records = synthesise(matcher, 2, WorkDir("synthesize", "whole"))
    assert labels.tolist() == [0, 1, 2] * 2
    (batch,) = matcher.batches(2)
    assert len(records[0]["curve"]) == SMALL.iterations
    again, original, calls = changed(matcher), GradientMatching.network, []

    def killed(self: GradientMatching, iteration: int) -> Any:
        calls.append(iteration)
        if calls == [0, 1, 2]:
            raise KeyboardInterrupt
        return original(self, iteration)

    monkeypatch.setattr("teddy.synthesis.engine.runs.LOOK_SECONDS", 0.0)  # steps are slow
    monkeypatch.setattr(GradientMatching, "network", killed)
    with pytest.raises(KeyboardInterrupt):
        again.run(batch, workplace / "resume.safetensors", save_every_seconds=0)
    found = again.run(batch, workplace / "resume.safetensors", save_every_seconds=0)
    assert calls == [0, 1, 2, 2]
    assert torch.equal(found["images"], whole)


# ---------------------------------------------------------------------- beside the public code


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(
    not os.environ.get("DATASET_CONDENSATION"),
    reason="$DATASET_CONDENSATION names no checkout of VICO-UoE/DatasetCondensation",
)
def test_loss_and_pixel_gradient_are_those_of_the_public_code(
    matcher: GradientMatching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(os.environ["DATASET_CONDENSATION"])
    utils, networks = (importlib.import_module(name) for name in ("utils", "networks"))
    theirs = networks.ConvNet(1, 3, 4, 3, "relu", "instancenorm", "avgpooling", (8, 8))
    ours = matcher.network(0)
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert one.shape == other.shape
        one.data.copy_(other.data)
    (batch,) = matcher.batches(2)
    start = matcher.initial_images(batch).requires_grad_()
    loss = matcher.loss(ours, start, batch, 0, 0)
    (found,) = torch.autograd.grad(loss, [start])
    arguments = Namespace(device="cpu", dis_metric="ours")
    total = torch.zeros(())
    for label in range(3):
        real, own = matcher.real_batch(label, 0, 0), start[label::3]
        expected = [
            torch.autograd.grad(
                functional.cross_entropy(theirs(x), torch.full((len(x),), label)),
                list(theirs.parameters()), create_graph=x is own,
            )
            for x in (real, own)
        ]  # fmt: skip
        total = total + utils.match_loss(expected[1], expected[0], arguments)
    (by_theirs,) = torch.autograd.grad(total, [start])
    assert loss.item() == pytest.approx(total.item(), rel=1e-6)
    torch.testing.assert_close(found, by_theirs, rtol=1e-4, atol=1e-7)
