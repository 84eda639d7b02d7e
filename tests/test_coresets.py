"""Coresets and class means: choices against loops, what they depend on, the whole method.

No GPU, no downloads.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
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
from teddy.data.augmentation import Views, draw_views
from teddy.data.datasets import ImageDataset
from teddy.settings.configs import CoresetConfig, PlusConfig, ViewConfig
from teddy.synthesis.class_matching import ClassMatching, class_distance
from teddy.synthesis.coresets import (
    Coreset,
    Embedding,
    Judge,
    Score,
    el2n,
    farthest_first,
    forgetting,
    herding,
    highest,
    lowest,
    nearest_to_centres,
)
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.methods import Ingredients
from teddy.teachers.networks import classifier
from teddy.teachers.pools import Pool

CPU = torch.device("cpu")
CONFIG = CoresetConfig(
    choose="random", scores="lowest", easiest=1.0, crops=4,
    views=ViewConfig(crop_scale=0.3, hflip=False, roll=(0, 0)),
)  # fmt: skip


@pytest.fixture
def trajectory(pool: Pool) -> Pool:
    """The same teachers as checkpoints of one run."""
    return Pool(pool.folder, [{**entry, "epoch": 1 + i} for i, entry in enumerate(pool.entries)])


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


def test_farthest_first_is_a_greedy_search_whatever_the_order() -> None:
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    points = features.double().tolist()
    taken = [min(range(30), key=lambda i: math.dist(points[i], features.double().mean(0)))]
    for _ in range(5):
        others = [i for i in range(30) if i not in taken]
        taken.append(max(others, key=lambda i: min(math.dist(points[i], points[j]) for j in taken)))
    assert farthest_first(features, 6, 0) == taken
    order = permutation(30, 3)
    assert order[farthest_first(features[order], 6, 1)].tolist() == taken


def test_farthest_first_leaves_nothing_farther_than_twice_the_least_radius() -> None:
    points = torch.randn(9, 2, generator=torch.Generator().manual_seed(4)).double()
    distances = torch.cdist(points, points)

    def radius(chosen: Sequence[int]) -> float:
        return float(distances[list(chosen)].min(0).values.max())

    least = min(map(radius, itertools.combinations(range(9), 3)))
    assert radius(farthest_first(points, 3, 0)) <= 2 * least


def test_farthest_first_of_equal_images_takes_different_ones() -> None:
    assert sorted(farthest_first(torch.zeros(3, 2), 3, 0)) == [0, 1, 2]


def test_el2n_by_hand_and_by_definition() -> None:
    sure, undecided = [50.0, -50.0], [1.0, 1.0]
    logits = torch.tensor([[sure, undecided], [sure, sure]])
    torch.testing.assert_close(el2n(logits, 0), torch.tensor([0.0, 0.5**0.5 / 2]))
    torch.testing.assert_close(el2n(logits, 1), torch.tensor([2**0.5, (2**0.5 + 0.5**0.5) / 2]))
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    for image in range(5):
        lengths = []
        for teacher in range(3):
            odds = [math.exp(float(x)) for x in logits[teacher, image]]
            errors = [odd / sum(odds) - (k == 2) for k, odd in enumerate(odds)]
            lengths.append(math.hypot(*errors))
        assert el2n(logits, 2)[image].item() == pytest.approx(sum(lengths) / 3, rel=1e-5)


def test_forgetting_counts_from_right_to_wrong() -> None:
    table = {"11111": 0, "01111": 0, "10111": 1, "10101": 2, "01010": 2, "00010": 1, "00000": 5}
    right = torch.tensor([[int(x) for x in text] for text in table]).T
    logits = torch.stack([1 - 2 * right, torch.zeros_like(right), 2 * right - 1], dim=2).float()
    assert forgetting(logits, 2).tolist() == list(table.values())


def test_lowest_and_highest_keep_the_order_of_equal_scores() -> None:
    scores = torch.tensor([2, 0, 1, 0, 2])
    assert lowest(scores, 3, 0) == [1, 3, 2] and highest(scores, 3, 0) == [0, 4, 2]


@pytest.mark.parametrize(("choose", "of"), [("el2n", el2n), ("forgetting", forgetting)])
@pytest.mark.parametrize("scores", ["lowest", "highest"])
def test_images_of_extreme_scores_are_chosen(
    choose: str, of: Score, scores: str, dataset: ImageDataset, trajectory: Pool, workplace: Path
) -> None:
    """No image that was left out is better, by scores of one image and teacher at a time."""
    found = places(dataset, chosen(dataset, trajectory, workplace, choose=choose, scores=scores))
    members = [trajectory.member(i, CPU) for i in range(3)]
    sign = 1 if scores == "lowest" else -1
    for label in range(3):
        own = torch.nonzero(dataset.train.labels == label)[:, 0].tolist()
        values = {}
        for image in own:
            inputs = dataset.normalisation.apply(dataset.train.pick(torch.tensor([image])))
            with torch.no_grad():
                logits = torch.stack([member(inputs) for member in members])
            values[image] = sign * float(of(logits, label))
        inside = found[label::3]
        outside = [image for image in own if image not in inside]
        assert len(set(inside)) == 2 and set(inside) <= set(own)
        assert max(values[i] for i in inside) <= min(values[i] for i in outside) + 1e-5


def test_equal_scores_are_decided_by_the_images_own_numbers(
    dataset: ImageDataset, pool: Pool
) -> None:
    judge = Judge(dataset, pool, CPU)

    def same(logits: Tensor, label: int) -> Tensor:
        return torch.zeros(logits.shape[1])

    def take(ipc: int, share: float, seed: int) -> list[int]:
        return judge.choose(1, ipc, share, lowest, seed, score=same).tolist()

    assert take(3, 1.0, 0) == take(5, 1.0, 0)[:3]
    assert take(16, 1.0, 0) != take(16, 1.0, 1)
    some = take(8, 0.5, 0)
    assert some == [image for image in take(16, 1.0, 0) if image in some], "in the same order"


def test_forgetting_needs_checkpoints_of_one_run(
    dataset: ImageDataset, pool: Pool, trajectory: Pool, workplace: Path
) -> None:
    turned = Pool(pool.folder, trajectory.entries[::-1])
    for other in (pool, turned, Pool(pool.folder, trajectory.entries[:1])):
        with pytest.raises(TeddyError, match="choose forgetting expected a pool of kind prior"):
            chosen(dataset, other, workplace, choose="forgetting")


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


@pytest.mark.parametrize("choose", ["random", "kmeans", "herding", "kcentre", "el2n", "forgetting"])
def test_chosen_images_are_of_their_class_and_distinct(
    choose: str, dataset: ImageDataset, trajectory: Pool, workplace: Path
) -> None:
    images = chosen(dataset, trajectory, workplace, ipc=3, choose=choose, easiest=0.5)
    found = places(dataset, images)
    assert len(set(found)) == 9
    assert dataset.train.labels[found].tolist() == [0, 1, 2] * 3
    judge = Judge(dataset, trajectory, CPU)
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

    def drawn(number: int) -> Iterator[Views]:
        for first in range(0, 5 * number, 5):
            yield draw_views(CONFIG.views, 8, 8, 7, indices=torch.arange(first, first + 5))

    def losses(crops: Tensor) -> Tensor:
        with torch.no_grad():
            inputs = dataset.normalisation.apply(crops)
            logits = torch.stack([member(inputs) for member in members]).mean(0)
        return -logits.log_softmax(1)[:, 2]

    single = [judge.easiest_crops(images, torch.full((5,), 2), drawn(n)) for n in range(1, 9)]
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
