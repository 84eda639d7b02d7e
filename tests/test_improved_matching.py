"""IDM: partition and expansion, the queue of networks, its loss by hand, resuming.

No GPU, no downloads.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_synthesis import synthesise
from torch.nn import functional

from teddy.core.artifacts import WorkDir
from teddy.core.errors import TeddyError
from teddy.data.datasets import ImageDataset, select_random
from teddy.data.partition import compose, expand
from teddy.settings.baselines import ImprovedMatchingConfig
from teddy.settings.configs import NetworkConfig
from teddy.synthesis.improved_matching import ImprovedMatching, Queue
from teddy.synthesis.methods import Ingredients

CPU = torch.device("cpu")
SMALL = ImprovedMatchingConfig(
    network=NetworkConfig(arch="convnet3", width=4, norm="instance"),
    iterations=5, real_batch=6, networks=4, network_every=2, trained=2, train_steps=3,
    train_batch=8, accuracy_every=4,
)  # fmt: skip


@pytest.fixture
def matcher(dataset: ImageDataset) -> ImprovedMatching:
    """A fresh matcher of small settings, from real images."""
    return ImprovedMatching(SMALL, Ingredients(dataset, 0, CPU))


def changed(old: ImprovedMatching, **changes: Any) -> ImprovedMatching:
    """A fresh matcher that differs in some settings."""
    return ImprovedMatching(replace(old.config, **changes), old.given)


def test_expansion_is_the_quarters_enlarged() -> None:
    images = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    found = expand(images, 2)
    assert found.shape == (12, 2, 8, 8)
    corners = [(0, 0), (4, 0), (0, 4), (4, 4)]
    for place, (top, left) in enumerate(corners):
        for index in range(3):
            quarter = images[index, :, top : top + 4, left : left + 4]
            expected = functional.interpolate(quarter[None], size=(8, 8), mode="bilinear")[0]
            torch.testing.assert_close(found[3 * place + index], expected)
    assert torch.equal(expand(images, 1), images)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_composed_images_are_taken_apart_in_the_same_order(factor: int) -> None:
    flat = torch.arange(float(3 * factor**2))[:, None, None, None].expand(-1, 1, 8, 8)
    whole = compose(flat, factor)
    assert whole.shape == (3, 1, 8, 8)
    torch.testing.assert_close(expand(whole, factor), flat)


def test_images_start_from_reduced_real_ones(
    matcher: ImprovedMatching, dataset: ImageDataset
) -> None:
    (batch,) = matcher.batches(2)
    found = matcher.initial_images(batch)
    chosen = select_random(dataset.train.labels, dataset.class_names, range(8), 0)
    real = dataset.normalisation.apply(dataset.train.pick(chosen.flatten()))
    small = functional.interpolate(real, size=(4, 4), mode="bilinear")
    assert found.shape == (6, 1, 8, 8)
    # Index 1 of class 2 holds the real images 1, 3, 5 and 7 of that class, down the columns.
    own = found[3 + 2, :, :, :]
    for place, (top, left) in enumerate([(0, 0), (4, 0), (0, 4), (4, 4)]):
        expected = small[3 * (2 * place + 1) + 2]
        torch.testing.assert_close(own[:, top : top + 4, left : left + 4], expected)


def test_loss_is_that_of_a_loop_over_classes(matcher: ImprovedMatching) -> None:
    queue = Queue(matcher)
    queue.train(0)
    with torch.no_grad():
        check_loss(matcher, queue)


def check_loss(matcher: ImprovedMatching, queue: Queue) -> None:
    (batch,) = matcher.batches(2)
    images = matcher.initial_images(batch)
    distance, classifier = matcher.losses(queue, images, batch, 1).tolist()
    candidates = []
    for place in range(len(queue)):
        far = entropy = 0.0
        for label in range(3):
            view, network = matcher._view(label, 1), queue[place]
            real = torch.stack([
                network.features(view(image[None])).flatten()
                for image in matcher.real_batch(label, 1)
            ]).mean(0)  # fmt: skip
            own = [network.features(view(x[None])).flatten() for x in expand(images[label::3], 2)]
            far += float((real - torch.stack(own).mean(0)).square().sum())
            logits = torch.stack([network.classifier(x) for x in own])
            entropy += float(functional.cross_entropy(logits, torch.full((8,), label)))
        candidates.append((far, 0.5 * float(queue.accuracy(place)) * entropy))
    assert any((distance, classifier) == pytest.approx(one, rel=1e-4) for one in candidates)


def test_queue_lets_networks_in_and_the_oldest_out(matcher: ImprovedMatching) -> None:
    queue = Queue(matcher)
    assert queue.numbers == [0, 1, 2]
    seen = []
    for iteration in range(7):
        queue.begin(iteration)
        seen.append(list(queue.numbers))
    assert seen == [[0, 1, 2, 3]] * 2 + [[1, 2, 3, 4]] * 2 + [[2, 3, 4, 5]] * 2 + [[3, 4, 5, 6]]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_queue_never_has_more_networks_than_it_may(matcher: ImprovedMatching, most: int) -> None:
    queue = Queue(changed(matcher, networks=most))
    for iteration in range(7):
        queue.begin(iteration)
        assert len(queue) == most
    assert queue.numbers[-1] == most + 3


def test_networks_of_the_queue_learn_by_sgd_of_the_settings(matcher: ImprovedMatching) -> None:
    queue = Queue(changed(matcher, trained=3))
    expected = [matcher.network(number) for number in queue.numbers]
    queue.train(0)
    for place, network in enumerate(expected):
        optimizer = torch.optim.SGD(
            network.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005
        )
        right = 0
        for step in range(SMALL.train_steps):
            inputs, labels = matcher.mixed_batch(0, place, step)
            optimizer.zero_grad()
            logits = network(inputs)
            functional.cross_entropy(logits, labels).backward()
            optimizer.step()
            right += int((logits.argmax(1) == labels).sum())
        for one, other in zip(network.parameters(), queue[place].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        share = 100 * right / (SMALL.train_steps * SMALL.train_batch)
        assert float(queue.accuracy(place)) == pytest.approx(share)


def test_a_killed_run_goes_on_to_the_same_images(
    matcher: ImprovedMatching, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, records = synthesise(matcher, 2, WorkDir("synthesize", "whole"))
    assert len(records[0]["curve"]) == SMALL.iterations
    (batch,), again, original = matcher.batches(2), changed(matcher), Queue.train
    trained = list[int]()

    def killed(self: Queue, iteration: int) -> None:
        trained.append(iteration)
        if trained == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        original(self, iteration)

    monkeypatch.setattr("teddy.synthesis.engine.runs.CHECK_EVERY", 1)
    monkeypatch.setattr(Queue, "train", killed)
    resume = workplace / "resume.safetensors"
    with pytest.raises(KeyboardInterrupt):
        again.run(batch, resume, save_every_seconds=0)
    found = changed(matcher).run(batch, resume, save_every_seconds=0)
    assert trained == [0, 1, 2, 3, 3, 4]
    assert torch.equal(found["images"], whole)


def test_bad_settings_are_refused(matcher: ImprovedMatching) -> None:
    with pytest.raises(TeddyError, match=r"partition must divide the sides .* 8 and 8 .* got 3"):
        changed(matcher, partition=3)
    with pytest.raises(TeddyError, match="must be convnet3 without BatchNorm"):
        replace(SMALL, network=NetworkConfig(arch="convnet3", width=4, norm="batch"))
