"""A distilled set as a user meets it: one file, one line, a PyTorch dataset."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import teddy
from teddy.core.artifacts import write_tensors
from teddy.core.errors import TeddyError
from teddy.data.distilled import DistilledSet, save_distilled
from teddy.data.images import Normalisation

NORMALISATION = Normalisation((0.5, 0.4), (0.25, 0.2))


def make(ipc: int = 3) -> DistilledSet:
    """A set of two classes and two channels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 2, 5, 4), generator=generator).to(torch.uint8)
    labels = torch.arange(2).repeat(ipc)
    provenance = {"method": "teddy-prior", "seed": 0, "settings": {"ipc": ipc}}
    return DistilledSet(images[: 2 * ipc], labels, ("cat", "dog"), NORMALISATION, provenance)


def test_set_is_loaded_as_saved(tmp_path: Path) -> None:
    path, made = tmp_path / "sub" / "ipc3.safetensors", make()
    save_distilled(path, made)
    for where in (path, str(path)):
        loaded = teddy.load(where)
        assert torch.equal(loaded.images, made.images)
        assert torch.equal(loaded.labels, made.labels)
        assert loaded.class_names == ("cat", "dog")
        assert loaded.normalisation == NORMALISATION
        assert loaded.provenance == made.provenance
    assert (loaded.ipc, loaded.num_classes, len(loaded)) == (3, 2, 6)
    assert isinstance(loaded, teddy.DistilledSet)


def test_equal_sets_are_equal_files(tmp_path: Path) -> None:
    save_distilled(tmp_path / "a", make())
    save_distilled(tmp_path / "b", make())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_items_are_normalised_images_and_their_classes() -> None:
    made = make()
    for index in (0, 3, 5, -1):
        image, label = made[index]
        assert image.dtype == torch.float32
        assert image.shape == (2, 5, 4)
        assert type(label) is int
        assert label == made.labels[index]
        want = made.images[index].float() / 255 - torch.tensor([0.5, 0.4])[:, None, None]
        torch.testing.assert_close(image, want / torch.tensor([0.25, 0.2])[:, None, None])
    assert torch.equal(NORMALISATION.to_uint8(made[2][0][None])[0], made.images[2])


def test_indices_out_of_range_end_a_loop() -> None:
    made = make()
    for index in (6, -7):
        with pytest.raises(IndexError, match="out of range for 6 images"):
            made[index]
    assert [label for _, label in iter(made)] == [0, 1, 0, 1, 0, 1]


def test_data_loader_batches_a_set() -> None:
    made = make()
    batches = list(DataLoader(made, batch_size=4))
    assert [tuple(images.shape) for images, _ in batches] == [(4, 2, 5, 4), (2, 2, 5, 4)]
    images = torch.cat([images for images, _ in batches])
    assert torch.equal(images, NORMALISATION.apply(made.images))
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 0, 1, 0, 1]
    generator = torch.Generator().manual_seed(0)
    shuffled = [labels for _, labels in DataLoader(made, 2, shuffle=True, generator=generator)]
    assert sorted(torch.cat(shuffled).tolist()) == [0, 0, 0, 1, 1, 1]


def test_first_images_are_the_smaller_set() -> None:
    large, small = make(4), make(2)
    assert torch.equal(large.images[: 2 * 2], small.images)
    assert torch.equal(large.labels[: 2 * 2], small.labels)
    for index in range(4):
        assert torch.equal(large[index][0], small[index][0])
    for i in range(1, 5):
        assert large.labels[: 2 * i].bincount().tolist() == [i, i]


def test_set_describes_itself() -> None:
    assert repr(make()) == (
        "DistilledSet(6 images of 2\u00d75\u00d74, 2 classes, ipc 3, teddy-prior)"
    )
    as_images = make().as_images()
    assert len(as_images) == 6
    assert torch.equal(as_images.images, make().images)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    with pytest.raises(TeddyError, match=r"set\.safetensors: expected a teddy\.distilled.*nothing"):
        teddy.load(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(TeddyError, match=r"set\.safetensors: .*damaged"):
        teddy.load(path)
    write_tensors(path, {"logits": torch.zeros(1)}, kind="teddy.labels.v1", record={})
    with pytest.raises(TeddyError, match=r"set\.safetensors: .*got teddy\.labels\.v1"):
        teddy.load(path)


@pytest.mark.parametrize("wrong", ["float images", "fewer labels"])
def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path, wrong: str) -> None:
    made, path = make(), tmp_path / "set.safetensors"
    if wrong == "float images":
        made.images = made.images.float()
    else:
        made.labels = made.labels[:4]
    save_distilled(path, made)
    with pytest.raises(TeddyError, match=r"set\.safetensors: .*(must be U8|uint8 images)"):
        teddy.load(path)


TENSORS = {
    "images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "labels": torch.tensor([0, 1, 0, 1]),
}  # fmt: skip
RECORD: dict[str, Any] = {
    "class_names": ["cat", "dog"], "mean": [0.5], "std": [0.25], "ipc": 2, "provenance": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("tensors", "record", "words"),
    [
        ({"labels": None}, {}, "lacks the tensor 'labels'"),
        ({"images": None}, {}, "lacks the tensor 'images'"),
        ({"images": torch.zeros(4, 8, 8, dtype=torch.uint8)}, {}, "'images' must be U8 of any"),
        ({"labels": torch.zeros(4)}, {}, "'labels' must be I64 of any; got F32 of 4"),
        ({"images": TENSORS["images"][:0], "labels": TENSORS["labels"][:0]}, {}, "must be some"),
        ({"labels": torch.tensor([0, 1, 2, 1])}, {}, "labels must be from 0 to 1, .* got 0 to 2"),
        ({"labels": torch.tensor([0, 1, -1, 1])}, {}, "labels must be from 0 to 1, .* got -1 to 1"),
        ({"images": TENSORS["images"].expand(4, 3, 8, 8)}, {}, "mean has 1 .* have 3 channels"),
        ({}, {"class_names": None}, "lacks the key 'class_names'"),
        ({}, {"class_names": []}, "class_names"),
        ({}, {"class_names": "ab"}, "class_names must be a list; got 'ab'"),
        ({}, {"class_names": [1, 2]}, r"class_names\[0\] must be text; got 1"),
        ({}, {"mean": "text"}, "mean must be a list; got 'text'"),
        ({}, {"mean": ["text"]}, r"mean\[0\] must be a number; got 'text'"),
        ({}, {"std": [0]}, r"std\[0\] must be above 0; got 0"),
        ({}, {"std": [0.1, 0.2]}, "mean and std must have as many entries"),
        ({}, {"provenance": None}, "lacks the key 'provenance'"),
        ({}, {"provenance": 3}, "provenance must be keys; got 3"),
    ],
)
def test_damaged_sets_are_refused_by_the_entry(
    tmp_path: Path, tensors: dict[str, Any], record: dict[str, Any], words: str
) -> None:
    path = tmp_path / "set.safetensors"
    made = {k: v for k, v in (TENSORS | tensors).items() if v is not None}
    said = {k: v for k, v in (RECORD | record).items() if v is not None}
    write_tensors(path, made, kind="teddy.distilled.v1", record=said)
    with pytest.raises(TeddyError, match=words) as caught:
        teddy.load(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_records_of_sets_may_say_more(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    write_tensors(path, TENSORS, kind="teddy.distilled.v1", record=RECORD | {"note": "mine"})
    assert teddy.load(path).class_names == ("cat", "dog")


def test_package_offers_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        teddy.lode  # noqa: B018
