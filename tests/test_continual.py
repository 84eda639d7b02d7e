"""Class-incremental learning: who has been seen, what the buffer holds, who labels it. No GPU."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.data.datasets import ImageDataset
from teddy.data.images import Images
from teddy.data.lazy_images import ImageFiles
from teddy.settings.configs import RelabelConfig
from teddy.settings.params import Params
from teddy.students.continual import (
    UnionLabels,
    UnionViews,
    class_steps,
    of_classes,
    only_classes,
    places,
    seen_classes,
)
from teddy.students.labels import TrainingViews

# --------------------------------------------------------------------------------------- settings

ROOT = Path(__file__).parents[1]
STREAM, BY_STEP = "digits/prior/ipc10-strict", "digits/by-step"


def edited(path: Path, place: str, value: Any) -> Params:
    """The repository's settings with one value changed, by its path with colons."""
    raw = YAML().load(ROOT / "params.yaml")
    *parents, last = place.split(":")
    section = raw
    for parent in parents:
        section = section[parent]
    section[last] = value
    YAML().dump(raw, path / "params.yaml")
    return Params(path / "params.yaml")


def test_strict_teachers_are_the_epochs_of_the_pool() -> None:
    params = Params(ROOT / "params.yaml")
    assert params.streams[STREAM].strict
    assert params.step_epochs(STREAM) == params.pool("digits/prior").prior.epochs
    assert params.step_epochs("digits/sre2l/ipc10-strict") == (
        params.train_step_teachers(BY_STEP).epochs,
    )
    assert not params.streams["digits/prior/ipc10-paper-like"].strict


def test_all_streams_of_a_dataset_have_one_recipe() -> None:
    """Whatever their sets override for scores of their own."""
    params = Params(ROOT / "params.yaml")
    names = params.targets["fig3e"]
    assert len(names) == 8
    assert len({params.relabel(name) for name in names}) == 1
    assert len({params.evaluate(name) for name in names}) == 1


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (f"streams:{STREAM}:set", "digits/none", "no set named 'digits/none'"),
        (f"streams:{STREAM}:pool", "digits/none", "no pool named 'digits/none'"),
        (f"streams:{STREAM}:pool", "digits/post", "cannot be pruned copies"),
        (f"streams:{STREAM}:teachers", "digits/post", "teachers must be its pool 'digits/prior'"),
        (f"streams:{STREAM}:labels", [], "labels must be hard, soft or both"),
        (f"streams:{STREAM}:draw", 2, "unknown key 'draw'"),
        (f"streams:{STREAM}:relabel", {"augmentation": "dsa"}, "has no soft labels"),
        (f"step_teachers:{BY_STEP}:checkpoints", [2, 30], "needs epoch 4"),
        (f"step_teachers:{BY_STEP}:checkpoints", [2, 31], "reach epoch 31"),
        (f"step_teachers:{BY_STEP}:checkpoints", [4, 2], "ascending"),
        ("continual:steps", 0, "continual.steps must be at least 1"),
        ("continual:orders", [1, 1], "continual.orders must be distinct"),
        ("targets:fig3e", ["digits/none"], "no set or score named 'digits/none'"),
    ],
)
def test_impossible_rows_are_refused(tmp_path: Path, place: str, value: Any, expected: str) -> None:
    with pytest.raises(TeddyError, match=re.escape(expected)):
        edited(tmp_path, place, value)


# ---------------------------------------------------------------------------------- orders, steps


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_every_class_arrives_once_in_steps_of_equal_size(
    num_classes: int, steps: int, order: int
) -> None:
    if steps > num_classes:
        with pytest.raises(TeddyError, match="steps is"):
            class_steps(num_classes, steps, order)
        return
    arriving = class_steps(num_classes, steps, order)
    assert len(arriving) == steps
    assert sorted(label for part in arriving for label in part) == list(range(num_classes))
    sizes = [len(part) for part in arriving]
    assert max(sizes) - min(sizes) <= 1


def test_orders_are_reproducible_and_differ() -> None:
    orders = [seen_classes(class_steps(200, 5, order), 4) for order in range(5)]
    assert orders == [seen_classes(class_steps(200, 5, order), 4) for order in range(5)]
    assert len(set(orders)) == 5
    assert all(len(part) == 40 for part in class_steps(200, 5, 0))
    ten = [seen_classes(class_steps(200, 10, 3), step) for step in (9, 4)]
    assert ten[0] == orders[3], "the order does not depend on the number of steps"
    assert ten[0][:100] == ten[1]


def test_seen_classes_grow_by_each_step() -> None:
    steps = [(3, 1), (0,), (2, 4)]
    assert [seen_classes(steps, i) for i in range(3)] == [(3, 1), (3, 1, 0), (3, 1, 0, 2, 4)]


# ----------------------------------------------------------------------------------------- images


def test_images_of_classes_keep_order_and_labels(dataset: ImageDataset) -> None:
    kept = of_classes(dataset.train, (2, 0))
    train = dataset.train
    places = [i for i, label in enumerate(train.labels.tolist()) if label in (0, 2)]
    assert torch.equal(kept.labels, train.labels[places])
    assert torch.equal(kept.pick(torch.arange(len(kept))), train.pick(torch.tensor(places)))
    assert 0 < len(kept) < len(train)


def test_files_of_classes_keep_order_and_labels() -> None:
    labels = torch.tensor([0, 1, 2, 1, 0])
    files = ImageFiles(Path("root"), list("abcde"), [1, 2, 3, 4, 5], labels, 8, 3)
    kept = of_classes(files, (1, 2))
    assert isinstance(kept, ImageFiles)
    assert [list(kept.files), list(kept.sizes)] == [["b", "c", "d"], [2, 3, 4]]
    assert kept.labels.tolist() == [1, 2, 1]
    assert kept.shape == (3, 8, 8)


def test_dataset_of_some_classes_numbers_them_in_the_order_given(dataset: ImageDataset) -> None:
    few = only_classes(dataset, (2, 0))
    assert few.num_classes == 2
    assert few.class_names == (dataset.class_names[2], dataset.class_names[0])
    for name in ("train", "val", "test"):
        old, new = getattr(dataset, name), getattr(few, name)
        for mine, theirs in ((0, 2), (1, 0)):
            got = new.pick((new.labels == mine).nonzero()[:, 0])
            assert torch.equal(got, old.pick((old.labels == theirs).nonzero()[:, 0]))
        assert set(new.labels.tolist()) == {0, 1}


# ----------------------------------------------------------------------------------------- buffer


@pytest.fixture
def parts(dataset: ImageDataset, relabel_config: RelabelConfig) -> list[TrainingViews]:
    """Buffers of two steps: one class, then two."""
    return [
        TrainingViews(images, dataset.normalisation, relabel_config, seed)
        for seed, classes in enumerate([(1,), (0, 2)])
        if isinstance(images := of_classes(dataset.train, classes), Images)
    ]


def test_views_of_a_union_are_those_of_its_parts(parts: list[TrainingViews]) -> None:
    union = UnionViews(parts)
    assert len(union) == sum(len(part) for part in parts) == 48
    assert union.images.labels.tolist() == [
        label for part in parts for label in part.images.labels.tolist()
    ]
    (whole,) = union.batches(3, [torch.arange(48)])
    first = len(parts[0])
    for part, rows in ((parts[0], range(first)), (parts[1], range(first, 48))):
        (own,) = part.batches(3, [torch.arange(len(part))])
        for name in ("inputs", "labels", "partner_labels", "kept"):
            assert torch.equal(getattr(whole, name)[list(rows)], getattr(own, name))
    batches = list(union.batches(3, [torch.tensor([40, 2]), torch.tensor([7])]))
    assert torch.equal(batches[0].inputs, whole.inputs[[40, 2]])
    assert torch.equal(batches[1].labels, whole.labels[[7]])


def test_no_box_is_pasted_across_steps(parts: list[TrainingViews]) -> None:
    union = UnionViews(parts)
    for epoch in range(5):
        (whole,) = union.batches(epoch, [torch.arange(48)])
        for classes in ({1}, {0, 2}):
            rows = torch.isin(whole.labels, torch.tensor(list(classes)))
            assert set(whole.partner_labels[rows].tolist()) <= classes
            assert (whole.kept[rows] < 1).any()


def test_views_of_a_union_may_be_drawn_anew(
    parts: list[TrainingViews], monkeypatch: pytest.MonkeyPatch
) -> None:
    (want,) = UnionViews(parts).batches(2, [torch.tensor([3, 45])])
    monkeypatch.setattr("teddy.students.labels._KEEP_BYTES", 0)
    union = UnionViews(parts)
    assert not union._keep
    (got,) = union.batches(2, [torch.tensor([3, 45])])
    assert torch.equal(got.inputs, want.inputs)


class Fixed:
    """Soft labels that are known."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def epoch(self, epoch: int) -> Tensor:
        """The logits, plus the epoch."""
        return self.logits + epoch


def test_labels_of_a_union_have_every_class_in_its_place() -> None:
    first = Fixed(torch.tensor([[3.0, 1.0, 0.0, 2.0]]).half())
    second = Fixed(torch.tensor([[0.0, 1.0, 2.0, 3.0], [10.0, 11.0, 12.0, 13.0]]).half())
    outputs = places(4, (3, 1)), places(4, (0,))
    assert outputs == ([3, 1, 0, 2], [0, 1, 2, 3])
    logits = UnionLabels([(first, outputs[0]), (second, outputs[1])]).epoch(1)
    assert logits.dtype == torch.float16
    assert logits.tolist() == [[1, 2, 3, 4], [1, 2, 3, 4], [11, 12, 13, 14]]


def test_teachers_of_a_step_have_outputs_for_all_classes(dataset: ImageDataset) -> None:
    wide = only_classes(dataset, (2, 0), all_outputs=True)
    narrow = only_classes(dataset, (2, 0))
    assert (wide.num_classes, narrow.num_classes) == (3, 2)
    assert wide.class_names == tuple(dataset.class_names[i] for i in places(3, (2, 0)))
    assert torch.equal(wide.train.labels, narrow.train.labels)


def test_seeds_give_parts_views_of_their_own(
    parts: list[TrainingViews], relabel_config: RelabelConfig
) -> None:
    plain = replace(relabel_config, cutmix=False)
    images = Images(parts[0].images.images[:4], parts[0].images.labels[:4])
    twice = [TrainingViews(images, parts[0].normalisation, plain, seed) for seed in (5, 6)]
    (whole,) = UnionViews(twice).batches(0, [torch.arange(8)])
    assert not torch.equal(whole.inputs[:4], whole.inputs[4:])
