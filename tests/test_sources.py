"""Each source reads its official layout, with the right labels, and refuses anything else."""

import gzip
import os
import pickle
import shutil
import socket
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from raw_fixtures import (
    SHARED,
    WNIDS,
    idx,
    needs_shared,
    pixels,
    prepare_config,
    write_cifar,
    write_cifar100,
    write_classes,
    write_image,
    write_mnist,
    write_npz,
    write_tiny_imagenet,
)

from teddy.core import memory
from teddy.core.errors import TeddyError
from teddy.data import sources
from teddy.data.downloads import Published, checksum
from teddy.data.sources import SOURCES, RawArrays, RawDataset, RawFiles, load


def warn(source: str, root: Path) -> RawDataset:
    """Load generated files, whose checksums are not the published ones."""
    return load(prepare_config(source, root, on_checksum_mismatch="warn"))


def arrays(split: object) -> RawArrays:
    assert isinstance(split, RawArrays)
    assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
    return split


def files(split: object) -> RawFiles:
    assert isinstance(split, RawFiles)
    assert len(split.files) == len(split.sizes) == len(split.labels)
    assert split.labels.dtype == torch.int64
    for name, size in zip(split.files, split.sizes, strict=True):
        assert (split.root / name).stat().st_size == size
    return split


def test_unknown_source_is_refused() -> None:
    with pytest.raises(TeddyError, match=r"prepare\.source must be one of cifar10, .*got 'digitz'"):
        load(prepare_config("digitz"))


@pytest.mark.parametrize("source", sorted(set(SOURCES) - {"digits"}))
def test_source_without_a_root_is_refused(source: str) -> None:
    with pytest.raises(TeddyError, match=rf"prepare\.root is empty, but {source} is read from"):
        load(prepare_config(source))


# --------------------------------------------------------------------------------------- CIFAR


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10(
    tmp_path: Path, inside: str, protocol: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_cifar(tmp_path / "cifar-10-batches-py", protocol=protocol)
    raw = warn("cifar10", tmp_path / inside)
    assert np.array_equal(arrays(raw.train).images.numpy(), images)
    assert raw.train.labels.tolist() == [i % 10 for i in range(200)]
    assert arrays(raw.test).images.shape == (20, 3, 32, 32)
    assert raw.class_names == tuple(f"class {i}" for i in range(10))
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    assert raw.checksums["data_batch_3"] == checksum(path, "md5")
    assert len(raw.checksums) == 7
    assert capsys.readouterr().err.count("not the published file") == 7


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    write_cifar100(tmp_path / "cifar-100-python")
    raw = warn("cifar100", tmp_path)
    assert arrays(raw.train).images.shape == (200, 3, 32, 32)
    assert raw.train.labels[:3].tolist() == [0, 7, 14]
    assert raw.class_names[14] == "fine 14" and len(raw.class_names) == 100


def test_cifar_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py")
    with pytest.raises(TeddyError, match="data_batch_1: not the published file: expected md5:c99c"):
        load(prepare_config("cifar10", tmp_path))


def test_incomplete_cifar_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    (folder / "data_batch_5").unlink()
    with pytest.raises(TeddyError, match="data_batch_5: not found; unpack the published archive"):
        warn("cifar10", tmp_path)
    (folder / "batches.meta").unlink()
    with pytest.raises(TeddyError, match=r"cifar-10-batches-py: expected batches\.meta in it"):
        warn("cifar10", tmp_path)


class Malicious:
    """A pickle of this runs a command when an ordinary unpickler loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_batch_is_refused_without_running(tmp_path: Path) -> None:
    folder, mark = tmp_path / "cifar-10-batches-py", tmp_path / "executed"
    write_cifar(folder)
    batch = {"data": pixels(1, 3072), "labels": [0], "more": Malicious(mark)}
    (folder / "data_batch_2").write_bytes(pickle.dumps(batch))
    with pytest.raises(TeddyError, match=r"data_batch_2: asks for posix\.mkdir, .* was not run"):
        warn("cifar10", tmp_path)
    assert not mark.exists()
    pickle.loads((folder / "data_batch_2").read_bytes())
    assert mark.exists(), "the attack works where it is not refused"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"data": pixels(2, 3072), "labels": [0]}, "expected 2 whole labels, got a list of 1"),
        ({"data": pixels(1, 3072), "labels": ["cat"]}, "expected 1 whole labels"),
        ({"data": pixels(1, 3072) / 2, "labels": [0]}, "expected 'data', uint8 .*got float64"),
        ({"data": pixels(1, 99), "labels": [0]}, r"got uint8 of shape \(1, 99\)"),
        ({"labels": [0]}, "expected 'data', .*got nothing"),
        ([1, 2], "expected a dictionary, got a list of 2"),
        ({"data": pixels(1, 3072), "labels": [10**30]}, "expected small labels, .* of 100 bits"),
        ({"data": pixels(1, 3072), "labels": np.arange(1)}, r"labels, got int64 of shape \(1,\)"),
        ({"data": np.array([None]), "labels": [0]}, "expected a CIFAR batch, got a damaged file"),
    ],
)
def test_unexpected_batches_are_refused(tmp_path: Path, entry: Any, message: str) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    (folder / "data_batch_1").write_bytes(pickle.dumps(entry, 2))
    with pytest.raises(TeddyError, match=f"data_batch_1: .*{message}"):
        warn("cifar10", tmp_path)


def test_array_that_is_no_array_is_refused_unmade(tmp_path: Path) -> None:
    """What a pickle says of its arrays is not believed, whatever NumPy would make of it."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    content = (folder / "data_batch_1").read_bytes()
    shape = b"K(M\x00\x0c\x86"
    assert shape in content, "40 and 3072, as pickle writes them"
    for forged in (b"K(J\x00\x00\x00\x40\x86", b"K(]\x86", b"K(N\x86"):
        (folder / "data_batch_1").write_bytes(content.replace(shape, forged))
        with pytest.raises(TeddyError, match="data_batch_1: expected a CIFAR batch, got a damaged"):
            warn("cifar10", tmp_path)


def test_batch_that_numbers_more_objects_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    """Python would make room for all of them at once."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    many = b"r" + (2**18).to_bytes(4, "little")  # of which it makes no more than a few MB
    (folder / "test_batch").write_bytes(b"\x80\x02}" + many + b".")
    with pytest.raises(TeddyError, match=r"test_batch: .*damaged file \(numbers an object 262144"):
        warn("cifar10", tmp_path)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    meta = pickle.loads((folder / "batches.meta").read_bytes())
    meta["label_names"][3] = "class \udcff"
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, 2))
    with pytest.raises(TeddyError, match=r"batches\.meta: .*UTF-8.*'class \\udcff'"):
        warn("cifar10", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "a reference that pickle explains in two lines"])
def test_damaged_batch_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    content = (folder / "test_batch").read_bytes()
    (folder / "test_batch").write_bytes(content[:5000] if damage == "cut" else b"\x80\x02NQ.")
    with pytest.raises(TeddyError, match=r"test_batch: expected a CIFAR batch, got a dam[^\n]*\Z"):
        warn("cifar10", tmp_path)


# -------------------------------------------------------------------------------------- archives


def test_missing_archive_says_what_goes_where(tmp_path: Path) -> None:
    with pytest.raises(TeddyError) as caught:
        load(prepare_config("cifar100", tmp_path))
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/cifar-100-python.tar.gz: not found")
    assert "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz" in line
    assert "set prepare.download: true" in line


def test_archive_in_the_root_is_unpacked(tmp_path: Path) -> None:
    write_cifar(tmp_path / "made" / "cifar-10-batches-py")
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    with pytest.raises(TeddyError, match=r"cifar-10-python\.tar\.gz: not the published file"):
        load(prepare_config("cifar10", root))
    assert len(warn("cifar10", root).train.labels) == 200
    assert (root / "cifar-10-batches-py").is_dir()


def test_archive_is_fetched_only_if_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_imagenet(tmp_path / "made" / "tiny-imagenet-200")
    archive = Path(
        shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "made", "tiny-imagenet-200")
    )
    fetched = []

    def fetch(file: Published, path: Path) -> None:
        fetched.append((file.urls[0], path))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(archive, path)

    monkeypatch.setattr(sources, "fetch", fetch)
    root = tmp_path / "raw"
    allowed = prepare_config("tiny-imagenet", root, download=True, on_checksum_mismatch="warn")
    with pytest.raises(TeddyError, match=r"tiny-imagenet-200\.zip: not found"):
        warn("tiny-imagenet", root)
    assert fetched == []
    first = load(allowed)
    assert len(first.train.labels) == 12
    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    assert fetched == [(url, root / "tiny-imagenet-200.zip")]
    load(allowed)
    assert len(fetched) == 1, "what is there is not fetched again"


# --------------------------------------------------------------------------------------- MNIST


@pytest.mark.parametrize(
    ("source", "name"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [False, True])
def test_mnist(tmp_path: Path, source: str, name: str, zipped: bool, inside: bool) -> None:
    folder = tmp_path / name / "raw"
    images = write_mnist(folder, zipped=zipped)
    raw = warn(source, folder if inside else tmp_path)
    assert np.array_equal(arrays(raw.train).images[:, 0].numpy(), images)
    assert raw.train.labels.tolist() == [i % 10 for i in range(40)]
    assert arrays(raw.test).images.shape == (20, 1, 28, 28)
    assert raw.class_names[0] == {"mnist": "0 - zero", "fashion-mnist": "T-shirt/top"}[source]
    assert len(raw.class_names) == 10 and len(raw.checksums) == 4


def test_mnist_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    with pytest.raises(TeddyError, match=r"train-images-idx3-ubyte\.gz: not the published file"):
        load(prepare_config("mnist", tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        idx(pixels(40, 28, 28))[:-1],
        idx(pixels(40, 28, 28)) + b"x",
        b"\x00\x00\x0d\x03" + idx(pixels(40, 28, 28))[4:],
        b"\x00\x00\x08",
        b"",
        b"\x00\x00\x08\x03\x00\x00\x00",
        b"\x00\x00\x08\x03" + 2 * b"\x80\x00\x00\x00" + b"\x00\x00\x00\x04",
        b"\x00\x00\x08\xff" + 255 * b"\x00\x00\x00\x01" + b"x",
    ],
    ids=["short", "long", "floats", "header", "empty", "half a header", "2^64", "255 dimensions"],
)
def test_unexpected_idx_files_are_refused(tmp_path: Path, content: bytes) -> None:
    write_mnist(tmp_path, zipped=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(TeddyError, match="train-images-idx3-ubyte: expected an IDX file of bytes"):
        warn("mnist", tmp_path)


@pytest.mark.parametrize("sizes", [(2**31, 2**31, 4), (60_000, 28_000, 28)])
def test_gzip_too_small_for_its_header_is_refused_unread(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    header = b"\x00\x00\x08\x03" + b"".join(size.to_bytes(4) for size in sizes)
    path.write_bytes(gzip.compress(header))
    got = f"{path.stat().st_size} bytes whose header says"
    with pytest.raises(TeddyError, match=rf"ubyte\.gz: expected an IDX file of bytes, got {got}"):
        warn("mnist", tmp_path)


def test_pipe_is_not_read(tmp_path: Path) -> None:
    write_mnist(tmp_path, zipped=False)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    os.mkfifo(tmp_path / "t10k-labels-idx1-ubyte")
    with pytest.raises(TeddyError, match=r"t10k-labels-idx1-ubyte\.gz: not found"):
        warn("mnist", tmp_path)


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(TeddyError, match=r"t10k-labels-idx1-ubyte\.gz: damaged"):
        warn("mnist", tmp_path)


# --------------------------------------------------------------------------------- Tiny-ImageNet


@pytest.mark.parametrize("val", ["published", "moved", "flat"])
def test_tiny_imagenet_has_the_same_labels_in_every_layout(tmp_path: Path, val: str) -> None:
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200", val=val)
    raw = load(prepare_config("tiny-imagenet", tmp_path))
    assert raw.class_names == WNIDS, "in the order of wnids.txt"
    train, test = files(raw.train), files(raw.test)
    for split in (train, test):
        names = [Path(name).name for name in split.files]
        assert split.labels.tolist() == sorted(split.labels.tolist())
        if split is train:
            labels = [WNIDS.index(name.split("_")[0]) for name in names]
        else:
            labels = [(2 * int(name[4]) + 1) % 3 for name in names]
        assert split.labels.tolist() == labels
    assert [Path(name).name[4] for name in test.files] == list("140325")
    assert len(train.files) == 12


def test_tiny_imagenet_unzipped_into_a_folder_of_its_name_is_found(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200/tiny-imagenet-200")
    assert load(prepare_config("tiny-imagenet", tmp_path)).class_names == WNIDS


def test_tiny_imagenet_without_annotations_is_refused(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    (tmp_path / "tiny-imagenet-200/val/val_annotations.txt").unlink()
    with pytest.raises(TeddyError, match=r"val_annotations\.txt: not found, but val/images needs"):
        load(prepare_config("tiny-imagenet", tmp_path))


def test_tiny_imagenet_whose_annotations_do_not_fit_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-imagenet-200/val/images"
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    (folder / "val_3.JPEG").rename(folder / "val_9.JPEG")
    expected = r"missing there: val/images/val_3\.JPEG; without a label: val/images/val_9\.JPEG"
    with pytest.raises(TeddyError, match=expected):
        load(prepare_config("tiny-imagenet", tmp_path))


def test_tiny_imagenet_with_other_classes_is_refused(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    (tmp_path / "tiny-imagenet-200/wnids.txt").write_text("n01\nn02\nn04\n")
    expected = r"wnids\.txt and train/ .*only in the first: n04; only in the second: n03"
    with pytest.raises(TeddyError, match=expected):
        load(prepare_config("tiny-imagenet", tmp_path))


def test_tiny_imagenet_whose_lists_are_no_text_is_refused(tmp_path: Path) -> None:
    for name in ("val/val_annotations.txt", "wnids.txt"):
        write_tiny_imagenet(tmp_path / name / "tiny-imagenet-200")
        (tmp_path / name / "tiny-imagenet-200" / name).write_bytes(b"\xff\xfe")
        with pytest.raises(TeddyError, match=f"{name}: expected text"):
            load(prepare_config("tiny-imagenet", tmp_path / name))


# ------------------------------------------------------------------------------------ imagefolder


def test_class_folders_with_train_and_val(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"bee": 3, "ant": 2, "Cat": 1})
    write_classes(tmp_path / "val", {"bee": 1, "ant": 1, "Cat": 1})
    (tmp_path / "train/ant/deep").mkdir()
    (tmp_path / "train/ant/0.png").rename(tmp_path / "train/ant/deep/9.PNG")
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    (tmp_path / "train/bee/._0.png").write_text("a Mac's shadow of 0.png")
    (tmp_path / "train/bee/notes.txt").write_text("not an image")
    raw = load(prepare_config(root=tmp_path))
    assert raw.class_names == ("Cat", "ant", "bee"), "sorted, as torchvision's ImageFolder"
    assert list(files(raw.train).files) == [
        "train/Cat/0.png", "train/ant/1.png", "train/ant/deep/9.PNG",
        "train/bee/0.png", "train/bee/1.png", "train/bee/2.png",
    ]  # fmt: skip
    assert raw.train.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert files(raw.test).labels.tolist() == [0, 1, 2]


def test_classes_are_those_of_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert sources._SUFFIXES == (*IMG_EXTENSIONS, ".jfif", ".jpe")
    write_classes(tmp_path, {"b": 2, "B": 1, "a 1": 1, "é": 2, "10": 1, "9": 1})
    raw = load(prepare_config(root=tmp_path))
    theirs = ImageFolder(str(tmp_path))
    assert list(raw.class_names) == theirs.classes
    ours = [(str(tmp_path / name), label) for name, label in zip(
        files(raw.train).files, raw.train.labels.tolist(), strict=True
    )]  # fmt: skip
    assert ours == theirs.samples


def test_bare_class_folders_have_no_test_images(tmp_path: Path) -> None:
    write_classes(tmp_path, {"ant": 2, "bee": 3})
    raw = load(prepare_config(root=tmp_path))
    assert raw.test is None
    assert list(files(raw.train).files)[:2] == ["ant/0.png", "ant/1.png"]
    assert raw.train.labels.tolist() == [0, 0, 1, 1, 1]


def test_labelled_test_folder_comes_before_val(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "val", "test"):
        write_classes(tmp_path / name, {"ant": 2, "bee": 2})
    raw = load(prepare_config(root=tmp_path))
    assert files(raw.test).files[0] == "test/ant/0.png"
    assert "test/ serves as test images; val/ is not used" in capsys.readouterr().err


@pytest.mark.parametrize("inside", ["", "images"])
def test_unlabelled_test_folder_is_left_alone(tmp_path: Path, inside: str) -> None:
    for name in ("train", "val"):
        write_classes(tmp_path / name, {"ant": 2, "bee": 2})
    write_image(tmp_path / "test" / inside / "0.png")
    assert files(load(prepare_config(root=tmp_path)).test).files[0] == "val/ant/0.png"


def test_different_classes_are_named_both_ways(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"ant": 1, "bee": 1, "cow": 1})
    write_classes(tmp_path / "val", {"bee": 1, "cat": 1, "dog": 1})
    expected = r"train/ and val/ .*only in the first: ant, cow; only in the second: cat, dog"
    with pytest.raises(TeddyError, match=expected):
        load(prepare_config(root=tmp_path))


@pytest.mark.parametrize(
    "layout",
    [("Train", "Val"), ("TRAIN", "TEST"), ("training", "validation"), ("test", "val")],
    ids="-".join,
)
def test_splits_of_other_names_are_not_taken_for_classes(
    tmp_path: Path, layout: tuple[str, ...]
) -> None:
    for name in layout:
        write_classes(tmp_path / name, {"ant": 2, "bee": 2})
    found = ", ".join(sorted(layout))
    with pytest.raises(TeddyError, match=f"found {found}, which are no classes: rename them"):
        load(prepare_config(root=tmp_path))


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_held_out_images_of_another_name_are_not_ignored_silently(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "train", {"ant": 2, "bee": 2})
    write_classes(tmp_path / name, {"ant": 1, "bee": 1})
    assert load(prepare_config(root=tmp_path)).test is None
    assert f"{name}/ is not used; rename it to val" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "train"])
def test_images_without_class_folders_are_refused(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name / "0.png")
    with pytest.raises(TeddyError, match="expected class folders, found no folder in it"):
        load(prepare_config(root=tmp_path))


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_classes(tmp_path / "elsewhere", {"ant": 2})
    write_classes(tmp_path / "root", {"bee": 2})
    (tmp_path / "root/ant").symlink_to(tmp_path / "elsewhere/ant")
    raw = load(prepare_config(root=tmp_path / "root"))
    assert list(files(raw.train).files)[:2] == ["ant/0.png", "ant/1.png"]
    (tmp_path / "root/bee/up").symlink_to(tmp_path / "root/bee")
    with pytest.raises(TeddyError, match=r"root/bee/up/.*cannot list: Too many levels of symbolic"):
        load(prepare_config(root=tmp_path / "root"))


@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a socket"])
@pytest.mark.parametrize("storage", ["memory", "files"])
def test_what_is_no_regular_file_is_refused_unread(
    tmp_path: Path, kind: str, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path, {"ant": 2, "bee": 2})
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    if kind == "a named pipe":
        os.mkfifo("bee/x.png")
    elif kind == "a device":
        Path("bee/x.png").symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("bee/x.png")
    with pytest.raises(TeddyError, match=rf"bee/x\.png: expected an image, found {kind}"):
        load(prepare_config(root=tmp_path, storage=storage, on_unreadable="skip"))


def test_files_of_other_kinds_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path, {"ant": 2, "bee": 2})
    for name in "ant/x.gif ant/notes.txt bee/Y.GIF bee/README bee/x.a-b bee/.hidden".split():
        (tmp_path / name).write_bytes(b"x")
    assert len(load(prepare_config(root=tmp_path)).train.labels) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{tmp_path}: 5 files of 3 kinds are not read: .gif (2), others (2), .txt (1)"


def test_jpeg_of_other_names_is_read(tmp_path: Path) -> None:
    write_classes(tmp_path, {"ant": 2, "bee": 2})
    for name in ("x.jfif", "y.JPE"):
        write_image(tmp_path / "ant/0.jpg").rename(tmp_path / "ant" / name)
    raw = load(prepare_config(root=tmp_path))
    assert {"ant/x.jfif", "ant/y.JPE"} < set(files(raw.train).files)


def test_images_beside_class_folders_are_not_dropped_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path, {"ant": 2, "bee": 2})
    for name in ("0.png", "1.png", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    load(prepare_config(root=tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("2 images beside the class folders are in none and not read: 0.png, 1.png")


@pytest.mark.parametrize("name", [b"caf\xe9", b"ant/caf\xe9.png"])
def test_names_that_are_not_utf8_are_refused(tmp_path: Path, name: bytes) -> None:
    write_classes(tmp_path, {"ant": 2, "bee": 2})
    write_image(tmp_path / "ant/x.png" if b"." in name else tmp_path / "cow/0.png")
    source = tmp_path / ("ant/x.png" if b"." in name else "cow")
    source.rename(tmp_path / os.fsdecode(name))
    with pytest.raises(TeddyError, match=r"UTF-8.*'caf\\udce9"):
        load(prepare_config(root=tmp_path))


@pytest.mark.parametrize("split", ["", "train"])
def test_folders_of_class_folders_are_no_classes(tmp_path: Path, split: str) -> None:
    """PlantVillage has ``raw/color/<class>``, ``raw/grayscale/<class>`` and so on."""
    root = tmp_path / split
    for kind in ("color", "grayscale", "segmented"):
        write_classes(root / kind, {"Apple": 2, "Corn": 2})
    mend = f"move these to {root}" if split else "set prepare.root to it"
    expected = rf"{root}: color/ is no class: .* folders: Apple, Corn\. .* in {root}/color, {mend}"
    with pytest.raises(TeddyError, match=expected):
        load(prepare_config(root=tmp_path))
    assert len(load(prepare_config(root=root / "color")).train.labels) == 4


def test_copy_of_all_classes_among_them_is_named(tmp_path: Path) -> None:
    """PlantVillage's archive has ``PlantVillage/PlantVillage`` beside the classes."""
    write_classes(tmp_path, {"Apple": 2, "Corn": 2})
    write_classes(tmp_path / "PlantVillage", {"Apple": 2, "Corn": 2})
    with pytest.raises(TeddyError, match=r"PlantVillage/ is no class: .*folders: Apple, Corn"):
        load(prepare_config(root=tmp_path))


@pytest.mark.parametrize(("inside", "right"), [("", ""), ("train", ""), ("a/b", "/a/b")])
def test_root_one_level_too_high_is_named(tmp_path: Path, inside: str, right: str) -> None:
    write_classes(tmp_path / "bugs" / inside, {"ant": 2, "bee": 2})
    expected = rf"at least 2 classes, found \['bugs'\].* in {tmp_path}/bugs{right}, set prepare"
    with pytest.raises(TeddyError, match=expected):
        load(prepare_config(root=tmp_path))


def test_single_images_folder_in_a_class_is_read(tmp_path: Path) -> None:
    write_classes(tmp_path, {"ant/images": 2, "bee/images": 2, "cow": 2})
    assert len(load(prepare_config(root=tmp_path)).train.labels) == 6


def test_a_temporary_checkout_of_dvc_reads_the_users_own_raw_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dvc exp run --temp` and `--queue` run in a checkout without untracked files."""
    root, inside = Path("data/raw/mine"), tmp_path / ".dvc/tmp/exps/tmpx"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    write_classes(tmp_path / root, {"ant": 2, "bee": 2})
    assert files(load(prepare_config(root=root)).train).root == tmp_path / root
    write_classes(inside / root, {"ant": 2, "bee": 2})
    assert files(load(prepare_config(root=root)).train).root == root


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeddyError, match="gone: expected a folder of class folders"):
        load(prepare_config(root=tmp_path / "gone"))


# ---------------------------------------------------------------------------- chosen classes


def test_chosen_classes_are_labelled_in_their_order(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_classes(tmp_path / split, {"ant": 2, "bee": 1, "cow": 3})
    raw = load(prepare_config(root=tmp_path, classes=("cow", "ant")))
    assert raw.class_names == ("cow", "ant")
    assert raw.train.labels.tolist() == [1, 1, 0, 0, 0]
    assert [name.split("/")[1] for name in files(raw.test).files] == ["ant"] * 2 + ["cow"] * 3
    with pytest.raises(TeddyError, match=r"prepare\.classes: no class 'bees'; did you mean 'bee'"):
        load(prepare_config(root=tmp_path, classes=("ant", "bees")))


def test_chosen_classes_must_be_distinct() -> None:
    with pytest.raises(TeddyError, match="classes must be distinct, got"):
        prepare_config("digits", classes=("1", "1"))


def test_labels_out_of_range_are_refused_of_chosen_classes_too(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", y_test=np.full(6, 7))
    with pytest.raises(TeddyError, match="the test images: expected labels from 0 to 2, got 7"):
        load(prepare_config("npz", path, classes=("0", "1")))


# ------------------------------------------------------------------------------------------ lists


def test_list_of_paths_labels_and_splits(tmp_path: Path) -> None:
    for name in ("x/b.png", "x/a.png", "c.png", "d.png"):
        write_image(tmp_path / name)
    path = tmp_path / "list.csv"
    path.write_text(
        "path,label,split\nx/b.png,10,train\nx/a.png,9,train\nc.png,10,test\nd.png,9,val\n"
    )
    raw = load(prepare_config("list", path))
    assert raw.class_names == ("9", "10"), "numbers by size, other names by letters"
    assert files(raw.train).files == ["x/b.png", "x/a.png"]
    assert raw.train.labels.tolist() == [1, 0]
    assert files(raw.test).files == ["c.png"] and files(raw.val).files == ["d.png"]
    assert files(raw.train).sizes[0] == (tmp_path / "x/b.png").stat().st_size


def test_list_without_splits_has_training_images_alone(tmp_path: Path) -> None:
    path = tmp_path / "l.tsv"
    path.write_text("class\tn\tfile_name\nbee, red\t1\ta.png\nant\t2\tb.png\n", "utf-8-sig")
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    raw = load(prepare_config("list", path))
    assert raw.class_names == ("ant", "bee, red") and raw.train.labels.tolist() == [1, 0]
    assert raw.test is None and raw.val is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one column 'path' .*got the columns none"),
        ("path,name\na.png,x\n", "expected one column 'label' .or class.*columns path, name"),
        ("path,file,label\na,b,c\n", "expected one column 'path'"),
        ("path,label\na.png\n", "line 2: expected 2 cells, path,label; got 'a.png'"),
        ("path,label\na.png,\n", "label: the cell of row 1 is empty"),
        ("path,label,label\na.png,x,y\n", "names of columns must be distinct"),
        ("path,label\na.png,x\n./a.png,y\n", "1 files are there twice: a.png"),
        ("path,label\na.png,x\na.png,y\n", "1 files are there twice: a.png"),
        ("path,label\nb.png,x\n", "1 files that it names are not there, from .*: b.png"),
        ("path,label\n\0.png,x\n", "expected a list with a header|are not there"),
        (f"path,label\n{'a' * 300}.png,x\n", "are not there"),
        ("path,label\nfolder,x\n", "folder: expected an image, found a folder"),
        ("path,label,split\na.png,x,valid\n", "expected train, val or test, got valid"),
        ("path,label,split\na.png,x,val\n", "images of the split train, found none"),
        ("path,label\n", "images of the split train, found none"),
        ('path,label\n"a.png,x\n', "expected a list with a header"),
    ],
)
def test_unexpected_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(TeddyError, match=message):
        load(prepare_config("list", tmp_path / "list.csv"))


def test_classes_of_a_list_are_in_one_order_and_unused_cells_may_be_empty(tmp_path: Path) -> None:
    names = [write_image(tmp_path / f"{label}.png").name for label in ("2", "1", "01")]
    text = "path,label,note\n" + "".join(f"{name},{name[:-4]},\n" for name in names)
    (tmp_path / "list.csv").write_text(text)
    assert load(prepare_config("list", tmp_path / "list.csv")).class_names == ("01", "1", "2")


@pytest.mark.parametrize("name", ["gone.csv", "a.png", "bad.csv"])
def test_file_that_is_no_list_is_refused(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "a.png").with_name("bad.csv").write_bytes(b"path,label\n\xff,x\n")
    with pytest.raises(TeddyError, match=rf"{name}: expected a"):
        load(prepare_config("list", tmp_path / name))


def test_parquet_is_read_where_pyarrow_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list.parquet"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(TeddyError, match=r"list\.parquet: .*pip install pyarrow"):
        load(prepare_config("list", path))
    columns: dict[str, list[Any]] = {"path": ["a.png", "b.png"], "label": [1, 0]}
    table = SimpleNamespace(to_pydict=lambda: columns)
    stand_in = SimpleNamespace(read_table=lambda path: table)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", stand_in)
    for name in columns["path"]:
        write_image(tmp_path / name)
    assert load(prepare_config("list", path)).train.labels.tolist() == [1, 0]
    columns["label"][1] = None
    with pytest.raises(TeddyError, match="label: the cell of row 2 is empty"):
        load(prepare_config("list", path))


# ------------------------------------------------------------------------------------------ npz


@pytest.mark.parametrize(
    ("shape", "channels"), [((32, 24), 1), ((32, 24, 1), 1), ((32, 24, 3), 3), ((3, 32, 24), 3)]
)
def test_npz_of_every_shape(tmp_path: Path, shape: tuple[int, ...], channels: int) -> None:
    images = pixels(24, *shape)
    path = write_npz(tmp_path / "own.npz", x_train=images, x_test=images[:6])
    raw = load(prepare_config("npz", path))
    got = arrays(raw.train).images.numpy()
    assert got.shape == (24, channels, 32, 24)
    last = images if len(shape) == 3 and shape[-1] in (1, 3) else images.reshape(24, -1, 32, 24)
    assert np.array_equal(got, last if last is not images else np.moveaxis(images, -1, 1))
    assert arrays(raw.test).images.shape == (6, channels, 32, 24)
    assert raw.class_names == ("0", "1", "2")
    assert raw.checksums == {"own.npz": checksum(path, "sha256")}


def test_npz_with_names_and_without_test(tmp_path: Path) -> None:
    path = write_npz(
        tmp_path / "own.npz",
        x_test=None,
        y_test=None,
        y_train=(np.arange(24) % 3).reshape(24, 1).astype(np.uint8),
        class_names=np.array(["ant", "bee", "cat"]),
    )
    raw = load(prepare_config("npz", path))
    assert raw.test is None
    assert raw.class_names == ("ant", "bee", "cat")
    assert raw.train.labels.tolist() == [i % 3 for i in range(24)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": pixels(24, 32, 32) / 255}, "x_train: expected images as uint8 .*float64; mul"),
        ({"x_train": pixels(24, 32, 32).astype(np.int32)}, "x_train: expected .*got int32"),
        ({"x_train": pixels(24, 32, 32, 4)}, r"got \(24, 32, 32, 4\)"),
        ({"x_train": pixels(24, 3, 32, 3)}, r"got \(24, 3, 32, 3\)"),
        ({"x_train": pixels(24, 1024)}, r"got \(24, 1024\)"),
        ({"x_train": pixels(0, 32, 32)}, "empty array"),
        ({"y_train": np.arange(23)}, "y_train: expected 24 whole numbers, .*shape"),
        ({"y_train": np.arange(24) / 2}, "y_train: expected 24 whole numbers, got float64"),
        ({"y_test": None}, "lacks y_test; has x_test, x_train, y_train"),
        ({"x_train": None}, "expected x_train and y_train, lacks x_train"),
        ({"y_train": np.array([None] * 24)}, "expected an .npz file of plain arrays"),
    ],
)
def test_unexpected_npz_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_npz(tmp_path / "own.npz", **changes)
    with pytest.raises(TeddyError, match=f"own.npz: .*{message}"):
        load(prepare_config("npz", path))


@pytest.mark.parametrize(
    ("images", "labels"), [("{}_images", "{}_labels"), ("x_{}", "y_{}")], ids=["MedMNIST", "own"]
)
def test_npz_with_validation_images(
    tmp_path: Path, images: str, labels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"train": 24, "val": 9, "test": 6}
    entries: dict[str, Any] = {}
    for seed, (name, size) in enumerate(sizes.items()):
        entries[images.format(name)] = pixels(size, 28, 28, 3, seed=seed)
        entries[labels.format(name)] = (np.arange(size) % 3).astype(np.uint8)[:, None]
    np.savez(tmp_path / "own.npz", **entries)
    raw = load(prepare_config("npz", tmp_path / "own.npz"))
    held = {"train": raw.train, "val": raw.val, "test": raw.test}
    for name, split in held.items():
        expected = np.moveaxis(entries[images.format(name)], -1, 1)
        assert np.array_equal(arrays(split).images.numpy(), expected)
        assert arrays(split).labels.tolist() == [i % 3 for i in range(sizes[name])]
    (line,) = capsys.readouterr().err.splitlines()
    x_val = images.format("val")
    assert line.endswith(f"own.npz: {x_val} are the validation images; val_fraction is not used")


def test_unused_arrays_of_an_npz_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {"train_images": pixels(2, 28, 28), "weights": np.ones(3), "objects": np.array([None])}
    path = write_npz(tmp_path / "own.npz", **others)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "not an array")
    assert len(load(prepare_config("npz", path)).train.labels) == 24
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "own.npz: 4 arrays are not used: README.txt, objects, train_images, weights"
    )


@pytest.mark.parametrize("missing", ["x_val", "y_val"])
def test_half_a_split_of_an_npz_is_refused(tmp_path: Path, missing: str) -> None:
    entries = {"x_val": pixels(6, 32, 32, 3), "y_val": np.arange(6) % 3} | {missing: None}
    path = write_npz(tmp_path / "own.npz", **entries)
    with pytest.raises(TeddyError, match=f"expected x_val and y_val, lacks {missing}; has "):
        load(prepare_config("npz", path))


def test_class_names_given_as_bytes_are_decoded(tmp_path: Path) -> None:
    names = np.array(["ant", "böser Käfer", "cat"])
    path = write_npz(tmp_path / "own.npz", class_names=np.strings.encode(names, "utf-8"))
    assert load(prepare_config("npz", path)).class_names == tuple(names.tolist())


@pytest.mark.parametrize(
    ("names", "shown"),
    [(["ant", "b\udcff", "cat"], r"'b\\udcff'"), ([b"ant", b"\xff", b"cat"], r"b'\\xff'")],
)
def test_class_names_that_are_no_text_are_refused(
    tmp_path: Path, names: list[Any], shown: str
) -> None:
    path = write_npz(tmp_path / "own.npz", class_names=np.array(names))
    with pytest.raises(TeddyError, match=rf"own\.npz: class_names: .*UTF-8.* {shown}$"):
        load(prepare_config("npz", path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"class_names": np.array(["ant", "bee"])},
            "class_names: expected a name for each label up to 2 of y_train, got 2; add names",
        ),
        ({"y_test": np.arange(6) % 3 - 1}, "y_test: expected labels from 0 on, got -1"),
    ],
)
def test_labels_without_a_name_are_refused_by_file_and_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_npz(tmp_path / "own.npz", **changes)
    with pytest.raises(TeddyError, match=rf"own\.npz: {message}"):
        load(prepare_config("npz", path))


@pytest.mark.parametrize("label", [2**63, 2**64 - 1])
def test_labels_beyond_int64_are_refused_as_they_are(tmp_path: Path, label: int) -> None:
    labels = (np.arange(24) % 3).astype(np.uint64)
    labels[7] = label
    path = write_npz(tmp_path / "own.npz", y_train=labels)
    with pytest.raises(TeddyError, match=rf"own\.npz: y_train: expected labels .*got {label}$"):
        load(prepare_config("npz", path))


def npy(header: str) -> bytes:
    content = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"not an array",
        b"\x93NUMPY\x09\x00",
        b"\x93NUMPY\x01\x00\xff\xff",
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4,"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': ('a',)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-4,)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1125899906842624,)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (340282366920938463463374607431,)}"),
        npy("(" * 5000),
        npy("x" * 20_000),
        npy("{1: 2, 'a': [],"),
        npy("\x00"),
    ],
    ids=range(13),
)
def test_member_that_is_no_array_is_refused(tmp_path: Path, member: bytes) -> None:
    path = write_npz(tmp_path / "own.npz", x_train=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", member)
    expected = r"own\.npz: expected an \.npz file of plain arrays \(x_train: "
    with pytest.raises(TeddyError, match=expected) as caught:
        load(prepare_config("npz", path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_arrays_larger_than_the_memory_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "own.npz", notes=np.zeros(10**6))  # which is not read
    monkeypatch.setattr(memory, "machine_memory", lambda: 90_000)
    size = r"0\.0 GiB of memory, but this machine has 0\.0 GiB"
    with pytest.raises(TeddyError, match=rf"^{path}: its arrays: {size}"):
        load(prepare_config("npz", path))
    monkeypatch.setattr(memory, "machine_memory", lambda: 100_000)
    load(prepare_config("npz", path))
    write_mnist(tmp_path)
    monkeypatch.setattr(memory, "machine_memory", lambda: 10_000)
    with pytest.raises(TeddyError, match=rf"ubyte\.gz: an array of \[40, 28, 28\]: {size}"):
        warn("mnist", tmp_path)


def test_file_that_is_no_npz_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    path.write_bytes(b"PK\x03\x04 and no archive")
    with pytest.raises(TeddyError, match=r"own\.npz: expected an \.npz file"):
        load(prepare_config("npz", path))  # pytest makes an error of a file that is left open


@pytest.mark.parametrize("damage", ["missing", "text", "npy"])
def test_file_that_is_no_npz_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "own.npz"
    if damage == "text":
        path.write_text("images")
    if damage == "npy":
        np.save(tmp_path / "own.npy", pixels(2, 2))
        (tmp_path / "own.npy").rename(path)
    with pytest.raises(TeddyError, match=r"own\.npz: expected an \.npz file"):
        load(prepare_config("npz", path))


# ------------------------------------------------------------------------------ the real images


@needs_shared
@pytest.mark.slow
def test_real_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(SHARED / "cifar-10-batches-py.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    raw = warn("cifar10", tmp_path)
    assert arrays(raw.train).images.shape == (50_000, 3, 32, 32)
    assert raw.train.labels.bincount().tolist() == [5_000] * 10
    assert arrays(raw.test).labels.bincount().tolist() == [1_000] * 10
    assert raw.class_names == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    assert raw.train.labels[:5].tolist() == [6, 9, 9, 4, 1], "a frog and two trucks come first"

    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "test_list", [[name, None] for name, _ in CIFAR10.test_list])
    monkeypatch.setattr(CIFAR10, "train_list", [[name, None] for name, _ in CIFAR10.train_list])
    theirs = CIFAR10(tmp_path, train=False)
    assert list(raw.class_names) == theirs.classes
    assert raw.test is not None and raw.test.labels.tolist() == theirs.targets
    assert np.array_equal(arrays(raw.test).images.permute(0, 2, 3, 1).numpy(), theirs.data)
