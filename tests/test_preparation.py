"""Checks, conversion, decoding and statistics, on generated files and, if there, real ones."""

import os
import re
import shutil
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from raw_fixtures import (
    DIGITS,
    SHARED,
    jpeg,
    needs_shared,
    pixels,
    prepare_config,
    truncated,
    write_classes,
    write_image,
    write_mnist,
    write_npz,
    write_tiny_imagenet,
)
from torch import Tensor

from teddy.core import memory
from teddy.core.errors import TeddyError
from teddy.core.files import digest, write_json
from teddy.data.datasets import SPLITS, ImageDataset, read_dataset, read_manifest
from teddy.data.decoding import centre_view, decode, fit, fit_arrays
from teddy.data.images import Images
from teddy.data.lazy_images import ImageFiles
from teddy.data.preparation import measure, prepare, unbalanced, write_dataset
from teddy.settings.schema import to_json
from teddy.settings.stages import Demand, PrepareSettings
from teddy.stages.commands import main
from teddy.stages.prepare import _classes, _warn_of_large_ipc


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of 4 training and 2 validation images, PNG, 32×32."""
    root = tmp_path / "raw"
    write_classes(root / "train", {"ant": 4, "bee": 4})
    write_classes(root / "val", {"ant": 2, "bee": 2}, seed=50)
    return root


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Ten files of every mode and size in two classes."""
    kinds = [
        ("ant/l.png", "L", (32, 32)), ("ant/bits.png", "1", (40, 32)),
        ("ant/wide.jpg", "RGB", (90, 40)), ("ant/cmyk.jpg", "CMYK", (33, 70)),
        ("ant/small.bmp", "RGB", (5, 9)), ("bee/rgba.png", "RGBA", (32, 32)),
        ("bee/la.png", "LA", (64, 64)), ("bee/p.png", "P", (31, 32)),
        ("bee/p.webp", "RGB", (32, 50)), ("bee/l.tiff", "L", (100, 100)),
    ]  # fmt: skip
    for seed, (name, mode, size) in enumerate(kinds):
        write_image(tmp_path / name, mode, size, seed=seed)
    palette = Image.open(tmp_path / "bee/p.png")
    palette.save(tmp_path / "bee/p.png", transparency=b"\x00\x80" * 100)
    return tmp_path


def images(dataset: ImageDataset, name: str) -> Tensor:
    split = {"train": dataset.train, "val": dataset.val, "test": dataset.test}[name]
    assert isinstance(split, Images)
    assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
    return split.images


def png(path: Path) -> Tensor:
    return torch.tensor(np.asarray(Image.open(path))).permute(2, 0, 1)


# ----------------------------------------------------------------------------------- whole sets


def test_class_folders_in_memory(folders: Path) -> None:
    dataset, facts = prepare(prepare_config(root=folders), seed=0)
    assert dataset.class_names == ("ant", "bee")
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [6, 2, 4]
    assert dataset.val.labels.tolist() == [0, 1]
    paths = sorted((folders / "val").rglob("*.png"))
    assert torch.equal(images(dataset, "test"), torch.stack([png(path) for path in paths]))
    everything = torch.stack([png(path) for path in sorted((folders / "train").rglob("*.png"))])
    kept = torch.cat([images(dataset, "train"), images(dataset, "val")])
    assert sorted(map(str, kept.flatten(1).tolist())) == sorted(
        map(str, everything.flatten(1).tolist())
    )
    assert facts["converted"] == {} and facts["skipped"] == [] and facts["duplicates"] == 0


def test_test_images_are_split_off_where_there_are_none(tmp_path: Path) -> None:
    write_classes(tmp_path, {"ant": 8, "bee": 8})
    dataset, facts = prepare(prepare_config(root=tmp_path, test_fraction=0.25), seed=0)
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [8, 4, 4]
    assert facts["duplicates"] == 0
    other, _ = prepare(prepare_config(root=tmp_path, test_fraction=0.25), seed=1)
    assert not torch.equal(images(dataset, "test"), images(other, "test"))


def test_order_of_validation_layouts_makes_no_difference(tmp_path: Path) -> None:
    sums = []
    for val in ("published", "moved", "flat"):
        write_tiny_imagenet(tmp_path / val, val=val)
        config = prepare_config("tiny-imagenet", tmp_path / val, image_size=8)
        dataset, facts = prepare(config, seed=0)
        assert facts["converted"] == {"L": 3}
        write_dataset(tmp_path / "out" / val, dataset, facts)
        sums.append(digest(tmp_path / "out" / val / "arrays.safetensors"))
    assert len(set(sums)) == 1


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_any_number_of_workers_makes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    root = tmp_path / "raw"
    write_classes(root, {"ant": 80, "bee": 80}, size=(9, 8))
    (root / "ant" / "7.png").write_text("damaged")
    config = prepare_config(
        root=root, image_size=8, test_fraction=0.1, storage=storage, on_unreadable="skip"
    )
    for workers in ("1", "3"):
        monkeypatch.setenv("TEDDY_WORKERS", workers)
        write_dataset(tmp_path / workers, *prepare(config, seed=0))
    for file in (tmp_path / "1").iterdir():
        assert file.read_bytes() == (tmp_path / "3" / file.name).read_bytes()
    assert len(list((tmp_path / "3").iterdir())) == 2


def test_arrays_of_another_size_and_depth_are_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    config = prepare_config("mnist", tmp_path, on_checksum_mismatch="warn")
    dataset, facts = prepare(config, seed=0)
    assert dataset.image_shape == (3, 32, 32)
    assert facts["converted"] == {"L": 60}
    assert "converted 60 images to RGB: 60 from L" in capsys.readouterr().err
    train = images(dataset, "train")
    assert torch.equal(train[:, 0], train[:, 2])


@pytest.mark.parametrize("test", [True, False])
def test_validation_images_of_the_source_are_used(tmp_path: Path, test: bool) -> None:
    own = {"x_val": pixels(9, 32, 32, 3, seed=7), "y_val": np.arange(9) % 3}
    path = write_npz(tmp_path / "own.npz", **own)
    if not test:
        write_npz(path, **own, x_test=None, y_test=None)
    config = prepare_config("npz", path, test_fraction=0.0 if test else 0.25)
    dataset, _ = prepare(config, seed=0)
    assert torch.equal(images(dataset, "val"), torch.tensor(own["x_val"]).permute(0, 3, 1, 2))
    assert (len(dataset.train), len(dataset.test)) == ((24, 6) if test else (18, 6))
    write_dataset(tmp_path / "out", dataset, {"source": "npz"})
    assert read_manifest(tmp_path / "out")["images_per_class"]["val"] == [3, 3, 3]
    labels = np.array([0, 1, 0, 1])
    write_npz(path, x_val=pixels(4, 32, 32, 3), y_val=labels)
    refused("the validation images: 1 classes have no image: 2", path, source="npz")


def test_manifest_has_facts_and_neither_dates_nor_paths(folders: Path, tmp_path: Path) -> None:
    write_image(folders / "train/bee/1.png", "L", seed=7)
    write_dataset(tmp_path / "a", *prepare(prepare_config(root=folders), seed=0))
    shutil.copytree(folders, tmp_path / "elsewhere")
    write_dataset(tmp_path / "b", *prepare(prepare_config(root=tmp_path / "elsewhere"), seed=0))
    manifest = read_manifest(tmp_path / "a")
    assert manifest == read_manifest(tmp_path / "b")
    assert str(tmp_path) not in (tmp_path / "a" / "manifest.json").read_text()
    assert set(manifest) == {
        "checksums", "class_names", "converted", "duplicates", "image_shape", "images_per_class",
        "mean", "sha256", "skipped", "source", "std", "storage",
    }  # fmt: skip
    assert manifest["images_per_class"] == {"train": [3, 3], "val": [1, 1], "test": [2, 2]}
    assert manifest["converted"] == {"L": 1}
    assert read_dataset(tmp_path / "a").image_shape == (3, 32, 32)


# ------------------------------------------------------------------------------------- checksums


def checksums(root: Path, seed: int = 0, **others: Any) -> dict[str, str]:
    _, facts = prepare(prepare_config(root=root, **others), seed)
    return dict(facts["checksums"])


def test_checksums_of_raw_files_do_not_depend_on_the_seed(folders: Path) -> None:
    sums = checksums(folders)
    assert set(sums) == {"names and sizes", "train contents", "test contents"}
    assert checksums(folders, seed=1) == sums
    assert checksums(folders, storage="files") == sums
    only_names = checksums(folders, checksums="sizes")
    assert only_names == {"names and sizes": sums["names and sizes"]}


def test_changed_raw_files_have_another_checksum(folders: Path) -> None:
    before = checksums(folders)
    path = folders / "val" / "bee" / "0.png"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # in the check value of the last, empty chunk
    path.write_bytes(content)
    after = checksums(folders)
    assert after["names and sizes"] == before["names and sizes"]
    assert after["train contents"] == before["train contents"]
    assert after["test contents"] != before["test contents"]
    path.rename(path.with_name("9.png"))
    assert checksums(folders)["names and sizes"] != before["names and sizes"]


# ---------------------------------------------------------------------------------------- checks


def refused(message: str, root: Path, **others: Any) -> None:
    with pytest.raises(TeddyError, match=message):
        prepare(prepare_config(root=root, **others), seed=0)


def test_other_number_of_classes_is_refused(folders: Path) -> None:
    refused(r"expected 3 classes \(prepare\.num_classes\), found 2", folders, num_classes=3)
    chosen = prepare_config(root=folders, num_classes=3, classes=("bee", "ant"))
    assert prepare(chosen, seed=0)[0].class_names == ("bee", "ant")


def test_single_class_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "tiny-imagenet-200", {"train": 2})
    refused(r"at least 2 classes, found \['tiny-imagenet-200'\]", tmp_path, test_fraction=0.1)


@pytest.mark.parametrize(("split", "where"), [("train", "the training"), ("val", "the test")])
def test_empty_class_is_refused(folders: Path, split: str, where: str) -> None:
    for name in ("train", "val"):
        write_classes(folders / name, {"cow": 4})
    for path in (folders / split / "cow").iterdir():
        path.rename(path.with_suffix(".txt"))
    refused(f"{where} images: 1 classes have no image: cow", folders)


def test_class_too_small_for_the_split_is_refused(folders: Path) -> None:
    write_classes(folders / "train", {"cow": 1})
    write_classes(folders / "val", {"cow": 1})
    refused("class cow has 1 images, too few for parts", folders)


def test_fraction_of_test_images_must_fit_the_source(folders: Path) -> None:
    refused(
        r"test_fraction is 0\.25, but imagefolder has 4 test images of its own: set it to 0",
        folders,
        test_fraction=0.25,
    )
    refused(r"test_fraction is 0, but imagefolder has no test images", folders / "train")


@pytest.mark.parametrize("label", [3, -1, 10**12])
def test_labels_out_of_range_are_refused(tmp_path: Path, label: int) -> None:
    labels = np.arange(6) % 3
    labels[4] = label
    path = write_npz(tmp_path / "own.npz", y_test=labels)
    negative = f"own.npz: y_{{}}: expected labels from 0 on, got {label}"
    beyond = f"the test images: expected labels from 0 to 2, got {label}"
    refused(beyond if label > 0 else negative.format("test"), path, source="npz")
    labels = np.arange(24) % 3
    labels[4] = label
    names = np.array(["ant", "bee", "cat"])
    path = write_npz(tmp_path / "own.npz", y_train=labels, class_names=names)
    beyond = f"own.npz: class_names: expected a name for each label up to {label} of y_train, got 3"
    refused(beyond if label > 0 else negative.format("train"), path, source="npz")


def test_absurd_label_without_names_is_refused(tmp_path: Path) -> None:
    labels = np.arange(24) % 3
    labels[4] = 10**12
    path = write_npz(tmp_path / "own.npz", y_train=labels)
    refused("expected labels from 0 to 24, got 1000000000000", path, source="npz")


def test_repeated_class_names_are_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "own.npz", class_names=np.array(["ant", "bee", "ant"]))
    refused("class names must be distinct; repeated: ant", path, source="npz")


def test_arrays_cannot_stay_on_disk(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "own.npz")
    refused(
        "storage files needs image files, but npz is arrays", path, source="npz", storage="files"
    )


def test_test_images_that_were_trained_on_are_counted(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("0.png", "1.png"):
        shutil.copy(folders / "train/bee" / name, folders / "val/bee" / f"again_{name}")
    _, facts = prepare(prepare_config(root=folders), seed=0)
    assert facts["duplicates"] == 2
    assert "2 test images are also among the training" in capsys.readouterr().err


# ------------------------------------------------------------------------------ unreadable images


def damage(folders: Path) -> list[str]:
    """A text, an empty file, half an image and 16 bits; their names in the order of messages."""
    (folders / "train/ant/0.png").write_text("this is no image")
    (folders / "train/bee/2.png").write_bytes(b"")
    (folders / "val/ant/half.jpg").write_bytes(jpeg(64))
    truncated(folders / "val/ant/half.jpg")
    Image.fromarray(pixels(8, 8).astype(np.uint16) * 200).save(folders / "val/bee/deep.png")
    return ["train/ant/0.png", "train/bee/2.png", "val/ant/half.jpg", "val/bee/deep.png"]


def test_all_unreadable_images_are_found(folders: Path) -> None:
    names = damage(folders)
    with pytest.raises(TeddyError) as caught:
        prepare(prepare_config(root=folders), seed=0)
    line = str(caught.value)
    assert f"{folders}: 4 images are unreadable" in line and "prepare.on_unreadable: skip" in line
    assert [line.index(name) for name in names] == sorted(line.index(name) for name in names)
    for reason in ("not an image", "empty file", "truncated", "more than 8 bits"):
        assert reason in line


def test_line_breaks_in_names_leave_an_error_one_line(folders: Path) -> None:
    for split in ("train", "val"):
        (folders / split / "bee").rename(folders / split / "b\ne\r")
    (folders / "train/b\ne\r/0\n.png").write_text("damaged")
    refused("train/b e /0 .png .not an image.", folders)


@pytest.mark.parametrize("count", [5, 7])
def test_only_the_first_unreadable_images_are_named(folders: Path, count: int) -> None:
    for i in range(count):
        (folders / f"val/ant/x{i}.png").write_text("no")
    with pytest.raises(TeddyError, match=f"{count} images are unreadable") as caught:
        prepare(prepare_config(root=folders), seed=0)
    assert str(caught.value).count("not an image") == 5
    assert ("and 2 more" in str(caught.value)) == (count == 7)


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_unreadable_images_can_be_left_out(
    folders: Path, tmp_path: Path, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = damage(folders)
    config = prepare_config(
        root=folders, on_unreadable="skip", storage=storage, checksums="sizes", val_fraction=0.5
    )
    dataset, facts = prepare(config, seed=0)
    assert facts["skipped"] == names
    assert "left out: " in (log := capsys.readouterr().err) and "4 images are unreadable" in log
    assert len(dataset.train) + len(dataset.val) == 6
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]
    write_dataset(tmp_path / "out", dataset, facts)
    assert read_manifest(tmp_path / "out")["skipped"] == names
    paths = sorted((folders / "val").rglob("[01].png"))
    expected = torch.stack([png(path) for path in paths])
    assert torch.equal(dataset.test.pick(torch.arange(4)), expected)


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_strip_that_resizing_would_blow_up_is_an_unreadable_image(
    folders: Path, storage: Literal["memory", "files"]
) -> None:
    """A pixel's width becomes 293, and its 60,000 would become 17 million."""
    Image.new("RGB", (1, 60_000)).save(folders / "val" / "ant" / "0.png")
    config = prepare_config(root=folders, image_size=256, storage=storage, checksums="sizes")
    expected = r"val/ant/0\.png.*strip of 1×60000 pixels, too long to be resized"
    with pytest.raises(TeddyError, match=expected):
        made, _ = prepare(config, seed=0)
        made.test.pick(torch.arange(len(made.test)))


def test_images_larger_than_the_memory_are_refused_before_they_are_made(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 10**8)
    expected = r"^prepare\.image_size 4096 makes \d+ images of 3×4096×4096: .* GiB of memory, but"
    with pytest.raises(TeddyError, match=expected):
        prepare(prepare_config(root=folders, image_size=4096), seed=0)


def test_class_that_loses_all_images_is_refused(folders: Path) -> None:
    for path in (folders / "val/bee").iterdir():
        path.write_text("no")
    refused("the test split: 1 classes have no image: bee", folders, on_unreadable="skip")


# ----------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("size", [32, 128])
def test_storage_makes_no_difference_to_whole_images(mixed: Path, size: int) -> None:
    config = prepare_config(root=mixed, image_size=size, test_fraction=0.2)
    in_memory, facts = prepare(config, seed=0)
    on_disk, others = prepare(replace(config, storage="files"), seed=0)
    assert facts["converted"] == others["converted"]
    for name in SPLITS:
        split, other = in_memory.split(name), on_disk.split(name)
        assert torch.equal(split.labels, other.labels)
        everything = torch.arange(len(split))
        assert torch.equal(split.pick(everything), other.pick(everything))


def test_files_that_stay_on_disk_are_not_opened(folders: Path) -> None:
    (folders / "val/ant/0.png").write_text("damaged, which training would name")
    config = prepare_config(
        root=folders, storage="files", checksums="sizes", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
    )
    dataset, facts = prepare(config, seed=0)
    assert isinstance(dataset.test, ImageFiles) and isinstance(dataset.train, ImageFiles)
    assert "val/ant/0.png" in dataset.test.files
    assert facts["converted"] is None and facts["duplicates"] is None
    assert dataset.normalisation.mean == (0.5, 0.5, 0.5)
    for name, size in zip(dataset.train.files, dataset.train.sizes, strict=True):
        assert (folders / name).stat().st_size == size


@pytest.mark.parametrize("opened", ["all", "headers", "sample"])
def test_images_turned_by_orientation_tags_are_counted(
    folders: Path, opened: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = [(6, "jpg"), (3, "png"), (1, "jpg"), (8, "webp"), (9, "jpg")]
    for i, (value, suffix) in enumerate(kinds):
        exif = Image.Exif()
        exif[0x0112] = value
        write_image(folders / f"train/ant/turned{i}.{suffix}", exif=exif, size=(32, 40), seed=i)
    write_image(folders / "train/bee/odd.jpg", exif=b"Exif\0\0 damaged")
    config = prepare_config(root=folders)
    if opened != "all":
        config = replace(config, storage="files", checksums="sizes", val_fraction=0.01)
    if opened == "headers":
        config = replace(config, checksums="contents")
    dataset, facts = prepare(config, seed=3)
    (line,) = capsys.readouterr().err.splitlines()
    count = 3
    if opened == "sample":
        assert isinstance(dataset.train, ImageFiles)
        count = sum(f"turned{i}." in name for name in dataset.train.files for i in (0, 1, 3))
    assert re.fullmatch(rf"{count} of \d+ images are turned as their orientation tags say", line)
    assert "orientation" not in str(facts)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("storage", ["memory", "files"])
def test_images_are_turned_as_their_orientation_tag_says(
    folders: Path, storage: str, value: int
) -> None:
    """As Pillow's own ``exif_transpose`` does it; an image on disk gets its views afterwards."""
    exif = Image.Exif()
    exif[0x0112] = value
    path = write_image(folders / "val/ant/0.png", exif=exif, size=(32, 40), seed=9)
    dataset, _ = prepare(prepare_config(root=folders, storage=storage), seed=0)
    expected = centre_view(ImageOps.exif_transpose(Image.open(path)), 32)
    (image,) = dataset.test.pick(torch.tensor([0]))
    assert torch.equal(image, torch.tensor(np.asarray(expected)).permute(2, 0, 1))


def test_files_whose_contents_are_hashed_are_checked(folders: Path) -> None:
    (folders / "val/ant/0.png").write_text("damaged")
    refused(r"val/ant/0\.png \(not an image\)", folders, storage="files")


def test_deep_pixels_are_found_in_the_header(folders: Path) -> None:
    Image.fromarray(pixels(8, 8).astype(np.uint16) * 200).save(folders / "val/bee/deep.png")
    refused(r"val/bee/deep\.png \(mode I;16 has more than 8 bits", folders, storage="files")


def test_empty_files_are_found_without_opening_any(folders: Path) -> None:
    (folders / "val/ant/0.png").write_bytes(b"")
    refused(r"0\.png \(empty file\)", folders, storage="files", checksums="sizes")


def test_sample_of_files_is_measured(
    folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_memory, _ = prepare(prepare_config(root=folders), seed=0)
    on_disk, _ = prepare(prepare_config(root=folders, storage="files"), seed=0)
    assert on_disk.normalisation == in_memory.normalisation
    monkeypatch.setattr("teddy.data.preparation._MEASURED_FILES", 3)
    sample, _ = prepare(prepare_config(root=folders, storage="files"), seed=0)
    again, _ = prepare(prepare_config(root=folders, storage="files"), seed=0)
    assert sample.normalisation == again.normalisation != on_disk.normalisation
    assert sample.normalisation.mean == pytest.approx(on_disk.normalisation.mean, abs=0.05)


# ------------------------------------------------------------------------------------ statistics


def test_statistics_are_those_of_the_pixels() -> None:
    batch = torch.tensor(pixels(1500, 2, 5, 7))
    batch[:, 1] //= 3
    values = batch.double() / 255
    found = measure(batch)
    assert found.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert found.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=1e-6)


def test_channel_of_one_value_is_refused(folders: Path) -> None:
    for path in (folders / "train").rglob("*.png"):
        Image.new("RGB", (32, 32), (0, 255, 0)).save(path)
    refused("all training images have one and the same value in a channel", folders)
    given = prepare_config(root=folders, mean=(0.5,) * 3, std=(0.5,) * 3)
    dataset, _ = prepare(given, seed=0)
    assert dataset.normalisation.std == (0.5,) * 3


# ---------------------------------------------------------------------------------------- fitting


def test_pipe_and_device_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    _, found = decode(tmp_path, ["pipe.png", "zero.png"], 8, 3, "")
    assert [one.problem for one in found] == 2 * ["not a regular file"]


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_every_mode_and_size_becomes_one(
    mixed: Path, channels: int, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = prepare_config(root=mixed, channels=channels, test_fraction=0.2)
    dataset, facts = prepare(config, seed=0)
    assert dataset.image_shape == (channels, 32, 32)
    expected = {"L": 2, "1": 1, "RGB": 3, "CMYK": 1, "RGBA": 1, "LA": 1, "P": 1}
    del expected[mode]
    assert facts["converted"] == expected
    assert f"converted {sum(expected.values())} images to {mode}:" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(40, 32), (32, 57), (90, 41), (7, 5), (32, 32)])
def test_fitting_is_torchvisions_resize_and_crop(size: tuple[int, int]) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    image = Image.fromarray(pixels(size[1], size[0], 3))
    expected = np.asarray(Compose([Resize(32), CenterCrop(32)])(image)).transpose(2, 0, 1)
    assert np.array_equal(fit(image, 32, 3), expected)


def test_shrinking_averages() -> None:
    """Antialias: a fine chequerboard becomes grey, where picking pixels keeps black or white."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    fitted = fit(Image.fromarray(board.astype(np.uint8)), 8, 1)
    assert fitted.shape == (1, 8, 8)
    assert 120 <= fitted.min() <= fitted.max() <= 135


def test_arrays_are_fitted_as_images() -> None:
    batch = torch.tensor(pixels(70, 3, 20, 24))
    fitted = fit_arrays(batch, 16, 1)
    assert fitted.shape == (70, 1, 16, 16)
    for image, one in zip(batch, fitted, strict=True):
        expected = fit(Image.fromarray(image.permute(1, 2, 0).numpy()), 16, 1)
        assert np.array_equal(one.numpy(), expected)
    assert fit_arrays(fitted, 16, 1) is fitted, "nothing to do"


def test_transparent_palette_is_converted_without_a_warning(tmp_path: Path) -> None:
    path = write_image(tmp_path / "p.png", "P")
    Image.open(path).save(path, transparency=b"\x00\x80" * 128)
    image = Image.open(path)
    assert image.mode == "P" and isinstance(image.info["transparency"], bytes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = fit(image, 32, 3)
    assert caught == []
    expected = np.asarray(Image.open(path).convert("RGBA"))[:, :, :3].transpose(2, 0, 1)
    assert np.array_equal(fitted, expected)


# ------------------------------------------------------------------------------------- the stage


def test_stage_names_the_dataset_and_prints_counts(
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    config = prepare_config(root=folders)
    settings = PrepareSettings(
        name="mine", seed=0, where="params.yaml: datasets.mine", config=config, demand=None
    )
    write_json(tmp_path / "mine.json", to_json(settings))
    arguments = ["prepare", "--settings", str(tmp_path / "mine.json"), "--out", str(tmp_path / "o")]
    main(arguments)
    err = capsys.readouterr().err
    assert "mine: 6 train, 2 val, 4 test images in 2 classes" in err
    assert "mine: images per class: 'ant' 6, 'bee' 6\n" in err
    assert len(read_dataset(tmp_path / "o").test) == 4
    shutil.rmtree(folders / "val" / "bee")
    with pytest.raises(SystemExit):
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: params.yaml: datasets.mine: ")
    assert "only in the first: bee; only in the second: none" in line


def test_sets_that_need_more_real_images_than_there_are_are_named(
    dataset: ImageDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other rows may need none, so the images are prepared all the same."""
    nine = torch.arange(9)  # three of each class
    few = replace(dataset, train=Images(dataset.train.pick(nine), dataset.train.labels[nine]))
    three = Demand(row="mine", images=3, indices_per_batch=0)
    _warn_of_large_ipc(three, "digits", few)
    assert capsys.readouterr().err == ""
    for size, grouped in ((0, ", but"), (2, " (groups of synthesize.indices_per_batch 2), but")):
        _warn_of_large_ipc(replace(three, images=4, indices_per_batch=size), "digits", few)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: sets.mine needs 4 real images per class{grouped} class")
        assert "has 3 for training: its stage synthesize will refuse it" in line


def test_classes_are_counted_by_name_and_many_are_cut_short(dataset: ImageDataset) -> None:
    counts = [
        sum(int((dataset.split(name).labels == label).sum()) for name in SPLITS)
        for label in range(dataset.num_classes)
    ]
    names = ("a,b", " ", "$x$")
    assert _classes(replace(dataset, class_names=names)) == ", ".join(
        f"{name!r} {count}" for name, count in zip(names, counts, strict=True)
    )
    labels = torch.arange(20).repeat_interleave(torch.arange(30, 10, -1))
    dataset = replace(dataset, train=Images(torch.zeros(len(labels), 1, 1, 1), labels))
    many = _classes(replace(dataset, class_names=tuple(map(str, range(20)))))
    assert many.startswith("'0' ") and "'4' 26, …; fewest '19' 11, '18' 12, " in many
    assert many.count("'") == 2 * 15 and "; most '0' 38, '1' 37, " in many


# ------------------------------------------------------------------------------ the real images


def unpack(name: str, folder: Path) -> None:
    with tarfile.open(SHARED / name) as archive:
        archive.extractall(folder, filter="data")


def test_digits_keep_their_bytes(tmp_path: Path) -> None:
    """The published results on digits belong to exactly these arrays."""
    write_dataset(tmp_path, *prepare(DIGITS, seed=0))
    assert read_manifest(tmp_path)["sha256"].startswith("0557148b4fbe7870")


@needs_shared
@pytest.mark.slow
def test_real_tiny_imagenet(tmp_path: Path) -> None:
    unpack("tiny-imagenet-200-35classes.tar.gz", tmp_path)
    config = prepare_config("tiny-imagenet", tmp_path, image_size=64, num_classes=35)
    dataset, facts = prepare(config, seed=0)
    assert len(dataset.train) + len(dataset.val) == 17_500
    assert dataset.test.labels.bincount().tolist() == [50] * 35
    assert dataset.val.labels.bincount().tolist() == [125] * 35
    assert facts["converted"] == {"L": 348}, "2 % are grey"
    assert dataset.class_names[0] == "n02124075", "the order of wnids.txt"
    assert dataset.normalisation.mean == pytest.approx((0.48, 0.45, 0.39), abs=0.02)


@needs_shared
@pytest.mark.parametrize(
    ("archive", "folder", "counts"),
    [
        ("imagefolder-imagenet-20classes.tar", "imagefolder-imagenet-20classes", (60, 20, 20)),
        ("imagefolder-hymenoptera-mini.tar", "hymenoptera_data", (44, 16, 30)),
    ],
)
def test_real_class_folders(
    tmp_path: Path, archive: str, folder: str, counts: tuple[int, ...]
) -> None:
    unpack(archive, tmp_path)
    config = prepare_config(root=tmp_path / folder, image_size=64)
    dataset, facts = prepare(config, seed=0)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == counts
    assert facts["skipped"] == []
    assert images(dataset, "train").float().std((1, 2, 3)).min() > 5, "photographs, not blanks"


# ----------------------------------------------------------------------------------- imbalance


@pytest.mark.parametrize("keep", [(0.6, 1.0), (0.4, 1.0), (0.5, 0.5)])
def test_classes_keep_their_own_share(keep: tuple[float, float]) -> None:
    labels = torch.arange(2000) % 10
    kept = unbalanced(labels, 10, keep, seed=0)
    assert kept.equal(kept.unique()), "ascending and without repetition"
    counts = labels[kept].bincount(minlength=10)
    low, high = keep
    assert counts.min() >= 200 * low and counts.max() <= 200 * high
    assert (len(counts.unique()) > 5) == (low < high)
    assert kept.equal(unbalanced(labels, 10, keep, seed=0))
    assert not kept.equal(unbalanced(labels, 10, keep, seed=1))


def test_a_smaller_share_only_takes_more_images_away() -> None:
    labels = torch.arange(2000) % 10
    less, more = unbalanced(labels, 10, (0.4, 1), 0), unbalanced(labels, 10, (0.6, 1), 0)
    assert set(less.tolist()) < set(more.tolist())


def test_imbalance_leaves_validation_and_test_images_alone() -> None:
    config = prepare_config("digits", image_size=8, channels=1, test_fraction=0.25)
    whole, _ = prepare(config, 0)
    thin, _ = prepare(replace(config, keep=(0.4, 1.0)), 0)
    assert len(thin.train) < len(whole.train)
    for name in SPLITS[1:]:
        assert thin.split(name).labels.equal(whole.split(name).labels)
        every = torch.arange(len(whole.split(name)))
        assert thin.split(name).pick(every).equal(whole.split(name).pick(every))
