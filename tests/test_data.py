"""Pixel range and normalisation, splits, random selection, and datasets on disk.

`katNN` are the known-answer tests of the specification, by its numbering. No GPU, no downloads.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raw_fixtures import DIGITS, prepare_config, write_classes
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.core.files import read_json, write_json
from teddy.data.datasets import (
    ImageDataset,
    read_dataset,
    read_manifest,
    select_random,
    without_repeats,
)
from teddy.data.images import Images, Normalisation
from teddy.data.lazy_images import ImageFiles
from teddy.data.preparation import prepare, stratified_split, write_dataset

ABC = ("a", "b", "c")
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TINY = Normalisation((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = Normalisation((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
NONE = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def all_bytes() -> Tensor:
    """Every uint8 value in each of three channels; uint8 (1, 3, 16, 16)."""
    return torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)


# -------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize(
    ("normalisation", "low", "high"),
    [
        (IMAGENET, [-2.1179, -2.0357, -1.8044], [2.2489, 2.4286, 2.6400]),
        (TINY, [-2.0860, -1.9784, -1.7573], [2.2580, 2.4366, 2.6636]),
    ],
)
def test_kat19_bounds_of_clipping(
    normalisation: Normalisation, low: list[float], high: list[float]
) -> None:
    got_low, got_high = normalisation.bounds()
    assert got_low.shape == got_high.shape == (1, 3, 1, 1)
    assert got_low.flatten().tolist() == pytest.approx(low, abs=5.1e-5)
    assert got_high.flatten().tolist() == pytest.approx(high, abs=5.1e-5)
    mean, std = (
        torch.tensor(v)[None, :, None, None] for v in (normalisation.mean, normalisation.std)
    )
    torch.testing.assert_close(got_low * std + mean, torch.zeros(1, 3, 1, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(got_high * std + mean, torch.ones(1, 3, 1, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalisation", [IMAGENET, TINY, CIFAR10, CIFAR100, NONE])
def test_kat19_bounds_are_black_and_white(normalisation: Normalisation) -> None:
    low, high = (bound.expand(1, 3, 2, 2) for bound in normalisation.bounds())
    assert normalisation.to_uint8(low).unique().tolist() == [0]
    assert normalisation.to_uint8(high).unique().tolist() == [255]
    assert normalisation.to_uint8(low - 5).unique().tolist() == [0]
    assert normalisation.to_uint8(high + 5).unique().tolist() == [255]


@pytest.mark.parametrize("normalisation", [IMAGENET, TINY, CIFAR10, CIFAR100, NONE])
@pytest.mark.parametrize(("pixel", "byte"), [(0.999, 254), (0.5, 127), (0.0039, 0), (1.0, 255)])
def test_kat19_pixels_are_truncated(normalisation: Normalisation, pixel: float, byte: int) -> None:
    mean, std = (
        torch.tensor(v)[None, :, None, None] for v in (normalisation.mean, normalisation.std)
    )
    assert normalisation.to_uint8((pixel - mean) / std).unique().tolist() == [byte]


@pytest.mark.parametrize("normalisation", [IMAGENET, TINY, CIFAR10, CIFAR100, NONE])
def test_kat19_bytes_survive_the_round_trip(normalisation: Normalisation) -> None:
    images = all_bytes()
    normalised = normalisation.apply(images)
    assert normalised.dtype == torch.float32
    assert torch.equal(normalisation.to_uint8(normalised), images)


@given(st.floats(0, 1), st.floats(0.02, 1))
def test_bytes_survive_the_round_trip_for_any_statistics(mean: float, std: float) -> None:
    images = all_bytes()[:, :1]
    normalisation = Normalisation((mean,), (std,))
    assert torch.equal(normalisation.to_uint8(normalisation.apply(images)), images)


def test_normalised_images_have_mean_zero_and_variance_one() -> None:
    dataset, _ = prepare(DIGITS, seed=0)
    assert isinstance(dataset.train, Images)
    inputs = dataset.normalisation.apply(dataset.train.images).double()
    assert inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert inputs.std(correction=0).item() == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------------------------------- splits


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Labels of a few classes with 8 to 30 images each, shuffled."""
    sizes = draw(st.lists(st.integers(8, 30), min_size=1, max_size=4))
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(sum(sizes)))
    return labels[order], len(sizes)


@given(labelled(), st.integers(0, 5))
def test_split_is_a_stratified_partition(case: tuple[Tensor, int], seed: int) -> None:
    labels, num_classes = case
    fractions = (0.25, 0.15)
    parts = stratified_split(labels, "abcd"[:num_classes], fractions, seed)
    assert len(parts) == 3
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    for part in parts:
        assert part.tolist() == sorted(part.tolist())
    for label in range(num_classes):
        total = int((labels == label).sum())
        for part, fraction in zip(parts, fractions, strict=False):
            assert int((labels[part] == label).sum()) == round(fraction * total)


def test_split_of_a_class_depends_on_the_seed_and_not_on_other_classes() -> None:
    labels = torch.arange(60) % 3
    first = stratified_split(labels, "abc", (0.25,), 0)[0]
    assert torch.equal(first, stratified_split(labels, "abc", (0.25,), 0)[0])
    assert not torch.equal(first, stratified_split(labels, "abc", (0.25,), 1)[0])
    alone = stratified_split(torch.where(labels == 1, 1, 0), "ab", (0.25,), 0)[0]
    assert [i for i in first.tolist() if i % 3 == 1] == [i for i in alone.tolist() if i % 3 == 1]


def test_class_too_small_to_split_is_refused() -> None:
    labels = torch.tensor([0] * 20 + [1] * 2)
    with pytest.raises(TeddyError, match="class bee has 2 images, too few for parts"):
        stratified_split(labels, ("ant", "bee"), (0.15, 0.25), 0)
    with pytest.raises(TeddyError, match="class cat has 0 images"):
        stratified_split(labels, ("ant", "bee", "cat"), (0.5,), 0)


def test_small_class_has_an_image_in_each_part() -> None:
    labels = torch.tensor([0] * 100 + [1] * 3)
    test, val, train = stratified_split(labels, ("ant", "bee"), (0.04, 0.02), 0)
    assert [len(part) for part in (test, val, train)] == [5, 3, 95]
    assert [int(labels[part].sum()) for part in (test, val, train)] == [1, 1, 1]


def test_digits_are_split_and_normalised_by_the_training_images() -> None:
    (dataset, _), (again, _) = prepare(DIGITS, seed=0), prepare(DIGITS, seed=0)
    assert isinstance(dataset.train, Images) and isinstance(again.train, Images)
    assert dataset.image_shape == (1, 8, 8)
    assert dataset.num_classes == 10
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 1797
    assert len(dataset.test) == pytest.approx(0.25 * 1797, abs=10)
    assert torch.equal(dataset.train.images, again.train.images)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.images.max() == 255
    pixels = dataset.train.images.double() / 255
    assert dataset.normalisation.mean == pytest.approx([pixels.mean().item()], abs=1e-6)
    assert dataset.normalisation.std == pytest.approx([pixels.std().item()], rel=1e-3)
    other, _ = prepare(DIGITS, seed=1)
    assert isinstance(other.train, Images)
    assert not torch.equal(other.train.images, dataset.train.images)


# ------------------------------------------------------------------------------ random selection


def test_selected_images_are_distinct_and_of_their_class(dataset: ImageDataset) -> None:
    chosen = select_random(dataset.train.labels, ABC, range(16), seed=0)
    assert chosen.shape == (16, 3)
    assert sorted(chosen.flatten().tolist()) == list(range(48)), "all images, each once"
    for label in range(3):
        assert (dataset.train.labels[chosen[:, label]] == label).all()


def test_selection_of_an_index_does_not_depend_on_the_others(dataset: ImageDataset) -> None:
    labels = dataset.train.labels
    chosen = select_random(labels, ABC, range(16), seed=0)
    for indices in ([0], [15, 3], range(4, 9)):
        assert torch.equal(select_random(labels, ABC, indices, seed=0), chosen[list(indices)])
    assert not torch.equal(select_random(labels, ABC, range(16), seed=1), chosen)
    assert (chosen // 3 != chosen[:, :1] // 3).any(), "each class has its own shuffle"


def test_more_images_than_a_class_has_are_refused(dataset: ImageDataset) -> None:
    expected = (
        r"expected 17 real images of each class .* class 'a' has 16; choose a smaller ipc .* or "
        "prepare.small_classes: repeat"
    )
    with pytest.raises(TeddyError, match=expected):
        select_random(dataset.train.labels, ABC, range(17), 0, "refuse")
    with pytest.raises(TeddyError, match=r"expected 3 .* class 'b' has 2"):
        select_random(torch.tensor([0, 0, 0, 1, 1]), "ab", [2], seed=0)


def test_images_of_a_small_class_are_repeated_if_asked_for() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 0, 0])
    chosen = select_random(labels, "ab", range(5), 0, "repeat")
    assert sorted(chosen[:, 0].tolist()) == [0, 2, 4, 5, 6], "the larger class needs no repeats"
    assert chosen[:, 1].tolist() == [*(once := chosen[:2, 1].tolist()), *once, once[0]]
    assert torch.equal(select_random(labels, "ab", range(2), 0), chosen[:2])
    assert torch.equal(select_random(labels, "ab", range(5), 0, "fewer"), chosen)
    kept = without_repeats(of_set := torch.tensor([0, 1] * 5), labels)
    assert kept.tolist() == [0, 1, 2, 3, 4, 6, 8] and of_set[kept].bincount().tolist() == [5, 2]


# --------------------------------------------------------------------------------------- on disk


def test_dataset_is_read_back_as_written(dataset: ImageDataset, tmp_path: Path) -> None:
    write_dataset(tmp_path, dataset, {"source": "stripes", "skipped": ["a"]})
    again = read_dataset(tmp_path)
    for name in ("train", "val", "test"):
        split, other = dataset.split(name), again.split(name)
        assert isinstance(split, Images) and isinstance(other, Images)
        assert torch.equal(split.images, other.images)
        assert torch.equal(split.labels, other.labels)
    assert again.normalisation == dataset.normalisation
    assert again.class_names == dataset.class_names
    manifest = read_manifest(tmp_path)
    assert manifest["images_per_class"] == {"train": [16] * 3, "val": [4] * 3, "test": [4] * 3}
    assert manifest["source"] == "stripes"
    assert manifest["skipped"] == ["a"]
    assert manifest["storage"] == "memory"


def test_list_of_files_is_read_back_as_written(tmp_path: Path) -> None:
    write_classes(tmp_path / "raw" / "train", {"ant": 4, "bee": 4})
    write_classes(tmp_path / "raw" / "val", {"ant": 2, "bee": 1}, seed=50)
    made, facts = prepare(prepare_config(root=tmp_path / "raw", storage="files"), seed=0)
    write_dataset(tmp_path / "out", made, facts)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "files.json",
        "manifest.json",
    ]
    again = read_dataset(tmp_path / "out")
    assert again.class_names == ("ant", "bee")
    assert again.image_shape == (3, 32, 32)
    assert again.normalisation == made.normalisation
    for name in ("train", "val", "test"):
        split, other = made.split(name), again.split(name)
        assert isinstance(split, ImageFiles) and isinstance(other, ImageFiles)
        assert (split.root, list(split.files)) == (other.root, list(other.files))
        assert list(split.sizes) == list(other.sizes)
        assert torch.equal(split.labels, other.labels)
    assert isinstance(again.test, ImageFiles)
    assert list(again.test.files) == ["val/ant/0.png", "val/ant/1.png", "val/bee/0.png"]
    assert again.test.labels.tolist() == [0, 0, 1]
    assert read_manifest(tmp_path / "out")["root"] == str(tmp_path / "raw")


def test_equal_datasets_are_equal_files(dataset: ImageDataset, tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", dataset, {"source": "stripes"})
    write_dataset(tmp_path / "b", dataset, {"source": "stripes"})
    assert len(list((tmp_path / "a").iterdir())) == 2
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_dataset_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeddyError, match="run the prepare stage first"):
        read_dataset(tmp_path)


def test_changed_arrays_are_refused(dataset: ImageDataset, tmp_path: Path) -> None:
    write_dataset(tmp_path, dataset, {"source": "stripes"})
    manifest = read_json(tmp_path / "manifest.json")
    write_json(tmp_path / "manifest.json", manifest | {"sha256": "0" * 64})
    with pytest.raises(TeddyError, match=r"arrays\.safetensors: checksum differs"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("storage", None, r"manifest.json .*\.storage must be one of memory, files; got None"),
        ("class_names", ["rows", "blob"], "manifest.json: class_names must have a name for each"),
        ("std", [0], r"\.std\[0\] must be above 0; got 0"),
        ("mean", [0.5, 0.5], "mean and std must have 1 entries, as image_shape says"),
    ],
)
def test_manifest_that_is_not_as_it_was_written_is_refused(
    dataset: ImageDataset, tmp_path: Path, key: str, value: object, message: str
) -> None:
    write_dataset(tmp_path, dataset, {})
    write_json(tmp_path / "manifest.json", read_manifest(tmp_path) | {key: value})
    with pytest.raises(TeddyError, match=message):
        read_dataset(tmp_path)
