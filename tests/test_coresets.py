"""Coresets and class means: choices against loops, what they depend on, the whole method.

No GPU, no downloads.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from test_synthesis import synthesise
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor

from teddy.core.artifacts import WorkDir
from teddy.core.errors import TeddyError
from teddy.core.seeding import permutation
from teddy.data.augmentation import draw_views
from teddy.data.datasets import ImageDataset
from teddy.settings.configs import CoresetConfig, PlusConfig, ViewConfig
from teddy.synthesis.class_matching import ClassMatching, class_distance
from teddy.synthesis.coresets import Coreset, Embedding, Judge, herding, nearest_to_centres
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.methods import Ingredients
from teddy.teachers.networks import classifier
from teddy.teachers.pools import Pool

CPU = torch.device("cpu")
CONFIG = CoresetConfig(
    choose="random", easiest=1.0, crops=4,
    views=ViewConfig(crop_scale=0.3, hflip=False, roll=(0, 0)),
)  # fmt: skip


def chosen(
    dataset: ImageDataset, pool: Pool, workplace: Path, ipc: int = 2, seed: int = 0,
    small_classes: Any = None, **changes: Any,
) -> Tensor:  # fmt: skip
    given = Ingredients(dataset, seed, CPU, pool, small_classes=small_classes)
    made = Coreset(replace(CONFIG, **changes), given).make(ipc, WorkDir("synthesize", "coreset"))
    assert made.labels.tolist() == [0, 1, 2] * ipc
    return made.images


def places(dataset: ImageDataset, images: Tensor) -> list[int]:
    """Which training images these are."""
    train = dataset.train.pick(torch.arange(len(dataset.train)))
    return [int((train == image).flatten(1).all(1).nonzero()[0, 0]) for image in images]


# ---------------------------------------------------------------------------------------- choices


def test_herding_is_a_greedy_search_over_all_sums() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    mean, taken = features.double().mean(0), list[int]()
    for _ in range(4):
        sums = {
            i: (features[[*taken, i]].double().mean(0) - mean).norm().item()
            for i in range(12)
            if i not in taken
        }
        taken.append(min(sums, key=lambda i: sums[i]))
    assert herding(features, 4, 0) == taken
    assert sorted(herding(features, 12, 0)) == list(range(12))


def test_kmeans_takes_an_image_of_every_cluster_and_none_twice() -> None:
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    noise = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    features = centres.repeat(10, 1) + 0.1 * noise
    assert sorted(i % 3 for i in nearest_to_centres(features, 3, 0)) == [0, 1, 2]
    near = nearest_to_centres(features[::3], 1, 0)[0]
    assert near == int((features[::3] - features[::3].mean(0)).norm(dim=1).argmin())
    same = torch.zeros(4, 2)
    same[3] = 1
    assert sorted(nearest_to_centres(same, 2, 0)) == [0, 3]


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_kmeans_of_equal_images_takes_different_ones() -> None:
    assert sorted(nearest_to_centres(torch.zeros(3, 2), 3, 0)) == [0, 1, 2]


def test_easiest_images_are_those_of_least_loss(dataset: ImageDataset, pool: Pool) -> None:
    judge, last = Judge(dataset, pool, CPU), pool.member(2, CPU)
    members, features = judge.easiest(1, 0.25, 1)
    own = torch.nonzero(dataset.train.labels == 1)[:, 0]
    inputs = dataset.normalisation.apply(dataset.train.pick(own))
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            last(inputs), torch.ones(len(own), dtype=torch.int64), reduction="none"
        )
        logits = classifier(last)(features)
        want = last(dataset.normalisation.apply(dataset.train.pick(members)))
    assert members.tolist() == own[losses.argsort()[:4]].tolist()
    torch.testing.assert_close(logits, want)
    assert len(judge.easiest(1, 0.25, 7)[0]) == 7
    assert len(judge.easiest(1, 0.3, 1)[0]) == 5, "4.8, rounded up"
    assert len(judge.easiest(1, 1.0, 99)[0]) == 16


@pytest.mark.parametrize("choose", ["random", "kmeans", "herding"])
def test_chosen_images_are_of_their_class_and_distinct(
    choose: str, dataset: ImageDataset, pool: Pool, workplace: Path
) -> None:
    images = chosen(dataset, pool, workplace, ipc=3, choose=choose, easiest=0.5)
    found = places(dataset, images)
    assert len(set(found)) == 9
    assert dataset.train.labels[found].tolist() == [0, 1, 2] * 3
    judge = Judge(dataset, pool, CPU)
    easy = {i for label in range(3) for i in judge.easiest(label, 0.5, 3)[0].tolist()}
    assert set(found) <= easy


def test_another_seed_chooses_others_at_random(
    dataset: ImageDataset, pool: Pool, workplace: Path
) -> None:
    first, again = (chosen(dataset, pool, workplace) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, chosen(dataset, pool, workplace, seed=1))
    of_herding = [chosen(dataset, pool, workplace, seed=s, choose="herding") for s in (0, 1)]
    assert torch.equal(*of_herding), "nothing of it is random"


def test_crops_are_the_easiest_of_the_drawn_ones(
    dataset: ImageDataset, pool: Pool, workplace: Path
) -> None:
    judge = Judge(dataset, pool, CPU)
    images = dataset.train.pick(torch.nonzero(dataset.train.labels == 2)[:5, 0])
    members = [pool.member(i, CPU) for i in range(3)]

    def losses(crops: Tensor) -> Tensor:
        with torch.no_grad():
            inputs = dataset.normalisation.apply(crops)
            logits = torch.stack([member(inputs) for member in members]).mean(0)
        return -logits.log_softmax(1)[:, 2]

    single = [judge.easiest_crops(images, 2, replace(CONFIG, crops=n), 7) for n in range(1, 9)]
    found = torch.stack([losses(crops) for crops in single])
    assert (found[1:] <= found[:-1] + 0.02).all(), "more crops to choose from, none harder"
    assert (found[-1] < found[0] - 0.1).any()
    assert not torch.equal(single[0], images)


def test_classes_that_are_too_small_are_refused_or_repeated(
    dataset: ImageDataset, pool: Pool, workplace: Path
) -> None:
    with pytest.raises(TeddyError, match=r"expected 20 real images of each class .* 'rows' has 16"):
        chosen(dataset, pool, workplace, ipc=20)
    images = chosen(dataset, pool, workplace, ipc=20, small_classes="repeat")
    found = places(dataset, images)
    assert len(set(found[::3])) == 16 and found[:12] == found[48:60]


# ------------------------------------------------------------------------------------ class means


@pytest.fixture
def plus(dataset: ImageDataset, pool: Pool) -> ClassMatching:
    """The method on the tiny data: a few iterations with half of the real images of a class."""
    config = PlusConfig(
        initialise="kmeans", easiest=0.5, iterations=6, classes_per_batch=2, real_images=8,
        views_per_image=3, views=CONFIG.views, classifier_weight=0.5, lr=0.05, betas=(0.5, 0.9),
        eps=1e-8, clip=True,
    )  # fmt: skip
    return ClassMatching(config, Ingredients(dataset, 0, CPU, pool))


def changed(old: ClassMatching, **changes: Any) -> ClassMatching:
    return ClassMatching(replace(old.config, **changes), old.given)


def test_class_distance_by_hand() -> None:
    real = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    synthetic = torch.tensor([[3.0, 9.0], [1.0, 2.0]])
    assert class_distance(real, synthetic).item() == pytest.approx((25 / 25 + 1 / 4) / 2)
    assert class_distance(7 * real, 7 * synthetic).item() == pytest.approx(0.625)
    assert class_distance(real, real).item() == 0


def test_losses_are_those_of_a_loop_over_classes(plus: ClassMatching) -> None:
    """By the last layer's input of one teacher, one class and one view at a time."""
    whole, iteration = changed(plus, classes_per_batch=3, real_images=99), 4
    (batch,) = whole.batches(2)
    images = whole.initial_images(batch)
    member = whole.teacher_drawn(iteration)
    teacher, distances, entropies = whole.pool.member(member, CPU), [], []

    def see(image: Tensor) -> tuple[Tensor, Tensor]:
        with Embedding(teacher) as embedding, torch.no_grad():
            logits = teacher(image[None])
        return embedding.seen[0], logits[0]

    train = whole.data.train
    for label in range(3):
        own = train.pick(torch.nonzero(train.labels == label)[:, 0])
        real = torch.stack([see(x)[0] for x in whole.data.normalisation.apply(own)]).mean(0)
        seen = []
        for index in range(2):
            for number in range(3):
                counter, key = torch.tensor([3 * index + label]), ("plus view", iteration, number)
                view = draw_views(CONFIG.views, 8, 8, 0, *key, indices=counter)
                feature, logits = see(view(images[3 * index + label][None])[0])
                seen.append(feature)
                entropies.append(-logits.log_softmax(0)[label])
        gap = real - torch.stack(seen).mean(0)
        distances.append(gap.square().sum() / real.square().sum())
    with torch.no_grad():
        got = whole.losses(images, batch, iteration)
    want = [float(torch.stack(distances).mean()), 0.5 * float(torch.stack(entropies).mean())]
    assert got.tolist() == pytest.approx(want, rel=1e-4)


def test_class_means_are_of_so_many_real_images_the_same_for_all_teachers(
    plus: ClassMatching,
) -> None:
    own = torch.nonzero(plus.data.train.labels == 1)[:, 0]
    inputs = plus.data.normalisation.apply(plus.data.train.pick(own))
    order = permutation(16, 0, "plus real", 1)
    for member in range(3):
        teacher = plus.pool.member(member, CPU)
        with Embedding(teacher) as embedding, torch.no_grad():
            teacher(inputs)
        want = embedding.seen[order[:8]].mean(0)
        torch.testing.assert_close(plus.class_mean(member, 1), want)


def test_every_teacher_has_its_turn(plus: ClassMatching) -> None:
    assert {plus.teacher_drawn(iteration) for iteration in range(30)} == {0, 1, 2}


def test_start_is_the_coreset_of_the_same_settings(
    plus: ClassMatching, dataset: ImageDataset, pool: Pool, workplace: Path
) -> None:
    want = chosen(dataset, pool, workplace, choose="kmeans", easiest=0.5)
    (batch,) = changed(plus, classes_per_batch=3).batches(2)
    start = plus.data.normalisation.to_uint8(plus.initial_images(batch))
    assert torch.equal(start, want)


def test_optimising_lowers_both_terms_on_unseen_views(plus: ClassMatching, tmp_path: Path) -> None:
    long = changed(plus, classes_per_batch=3, iterations=60, initialise="noise")
    (batch,) = long.batches(2)
    before, result = long.initial_images(batch), long.run(batch, tmp_path / "resume")
    after = long.data.normalisation.apply(result["images"])
    losses = [
        torch.stack([long.losses(images, batch, i) for i in range(1000, 1020)]).mean(0)
        for images in (before, after)
    ]
    (far, wrong), (near, right) = (pair.tolist() for pair in losses)
    assert near < 0.5 * far and right < 0.95 * wrong
    point = long.record(batch, result["curve"], {})["curve"][0]
    assert point.keys() == {"iteration", "distance", "classifier_prior"}


def test_killed_run_continues_to_the_same_bytes(plus: ClassMatching, tmp_path: Path) -> None:
    (batch,), resume = changed(plus, classes_per_batch=3).batches(2), tmp_path / "resume"
    want = changed(plus, classes_per_batch=3).run(batch, tmp_path / "other")
    killed = changed(plus, classes_per_batch=3)
    original = killed.losses

    def until(images: Tensor, batch: Batch, iteration: int) -> Tensor:
        if iteration == 4:
            state.save(resume)
            raise KeyboardInterrupt
        return original(images, batch, iteration)

    state = killed.start(batch, killed.initial_images(batch).requires_grad_())
    killed.losses = until  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(killed.optimise(batch, state))
    got = changed(plus, classes_per_batch=3).run(batch, resume)
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def test_a_class_does_not_depend_on_the_others(plus: ClassMatching, workplace: Path) -> None:
    alone, together = changed(plus, classes_per_batch=1), changed(plus, classes_per_batch=3)
    images, labels, _ = synthesise(alone, 2, WorkDir("synthesize", "alone"))
    others, _, _ = synthesise(together, 2, WorkDir("synthesize", "together"))
    assert labels.tolist() == [0, 1, 2] * 2
    assert (images.int() - others.int()).abs().float().mean() < 0.5
    start = plus.initial_images(changed(plus, classes_per_batch=3).batches(2)[0])
    assert not torch.equal(images, plus.data.normalisation.to_uint8(start)), "it was optimised"


def test_small_classes_are_refused_by_name(plus: ClassMatching) -> None:
    with pytest.raises(TeddyError, match=r"expected 20 real images .* 'rows' has 16"):
        plus.initial_images(plus.batches(20)[0])


def test_centres_are_found_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads and more add up in the order in which they finish: other bytes in every run."""
    threads: list[int] = []

    fit = KMeans.fit

    def spied(self: Any, points: Any) -> Any:
        threads.extend(pool["num_threads"] for pool in threadpool_info())
        return fit(self, points)

    monkeypatch.setattr(KMeans, "fit", spied)
    with threadpool_limits(2):
        nearest_to_centres(torch.eye(4), 2, 0)
    assert threads and set(threads) == {1}
