"""Class-incremental learning: who has been seen, what the buffer holds, who labels it. No GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkouts import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.data.datasets import ImageDataset
from teddy.data.images import Images
from teddy.data.lazy_images import ImageFiles
from teddy.settings.configs import RelabelConfig
from teddy.settings.declared import Declared
from teddy.settings.resolve import stage_files
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


@pytest.fixture(scope="module")
def declared() -> Declared:
    """The repository's settings."""
    return Declared(ROOT)


def test_strict_teachers_are_the_epochs_of_the_pool(declared: Declared) -> None:
    prior, converged = (
        declared.prior_epochs("digits/prior"),
        (declared.train_step_teachers("digits/by-step").epochs,),
    )
    assert declared.learners["digits/fig3e/prior-strict"].strict
    assert declared.step_epochs("digits/fig3e/prior-strict") == prior
    assert declared.step_epochs("digits/fig3e/sre2l-strict") == converged
    assert not declared.learners["digits/fig3e/prior"].strict
    files = {path: settings for _, path, settings in stage_files(declared)}
    kept = files["train_step_teachers/digits/by-step"].checkpoints
    assert kept == tuple(sorted({*prior, *converged})), "what learners need, and no more"
    assert files["continual/digits/fig3e/prior-strict"].epochs == prior


def test_strict_teachers_make_the_images_of_eq_7_anew(declared: Declared) -> None:
    files = {path: settings for _, path, settings in stage_files(declared)}
    made = {
        name: files[f"continual/digits/fig3e/{name}"].synthesize
        for name in ("prior", "prior-strict", "dm-strict", "random-strict")
    }
    assert made.pop("prior-strict") == declared.algorithm_config("digits/main/ipc10/prior")
    assert set(made.values()) == {None}


def test_all_learners_of_a_dataset_have_one_recipe(declared: Declared) -> None:
    """Whatever their sets override for evaluations of their own."""
    names = declared.shown("fig3e", "digits")
    assert len(names) == 8
    assert len({declared.relabel(name) for name in names}) == 1
    assert len({declared.evaluate(name) for name in names}) == 1


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
