"""Raw data of others, from its files through the stage prepare to a first batch."""

import gzip
import io
import os
import pickle
import shutil
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import Damage
from numpy.typing import NDArray
from PIL import Image
from raw_fixtures import (
    idx,
    pixels,
    prepare_config,
    write_cifar,
    write_classes,
    write_image,
    write_mnist,
)
from trial import accepted, campaign

from teddy.data.datasets import SPLITS, read_dataset
from teddy.settings.configs import PrepareConfig
from teddy.settings.stages import PrepareSettings
from teddy.stages.prepare import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("workplace")]


def prepared(folder: Path, config: PrepareConfig) -> str:
    """Run the stage, read what it wrote and look at every image; why that cannot be right."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    settings = PrepareSettings(name="x", seed=0, where=str(folder), config=config, demand=None)
    main(settings, Namespace(out=out))
    dataset = read_dataset(out)
    if len(set(dataset.class_names)) < len(dataset.class_names) or dataset.num_classes < 2:
        return f"class names {dataset.class_names}"
    if not all(0 < std < 1 for std in dataset.normalisation.std):
        return f"deviations {dataset.normalisation.std}"
    for name in SPLITS:
        split = dataset.split(name)
        if sorted(set(split.labels.tolist())) != list(range(dataset.num_classes)):
            return f"labels {split.labels.tolist()} of {name} for {dataset.num_classes} classes"
        images = split.pick(torch.arange(len(split)))
        if images.dtype != torch.uint8 or images.shape[1:] != dataset.image_shape:
            return f"images {images.dtype} {images.shape}"
    return ""


# -------------------------------------------------------------------------------------- npz

RIGHT_NAMES: tuple[list[Any], ...] = (
    ["", " ", ","], ["$", "$$", "a$b"], ["a\nb", "é", "🧸"], [b"a", b"b", b"c"],
    ["a" * 999, "%s", "{}"], [1, 2, 3], [["a"], ["b"], ["c"]],
)  # fmt: skip
PAIRS = (("x_train", "y_train"), ("x_test", "y_test"), ("x_val", "y_val"))


def _arrays() -> dict[str, Any]:
    return {
        "x_train": pixels(24, 8, 8), "y_train": np.arange(24) % 3,
        "x_test": pixels(6, 8, 8, seed=1), "y_test": np.arange(6) % 3,
    }  # fmt: skip


def _wrong_images(damage: Damage, images: NDArray[np.uint8]) -> Any:
    return damage.random.choice((
        images.astype(np.float32) / 255, images.astype(np.int64), images.astype("S1"), images > 99,
        images[:-1], images[:0], images[0], images[0, 0, 0], images[:, :0], images[..., None, None],
        np.repeat(images[..., None], 2, 3), np.repeat(images[..., None], 4, 3),
        images.astype(complex), images.view("datetime64[s]"), images.astype(">u2"),
        np.array(None, dtype=object), images.view([("a", "u1")]),
        np.array("images"), images.astype(object),
    ))  # fmt: skip


def _wrong_labels(damage: Damage, labels: NDArray[np.int64]) -> Any:
    return damage.random.choice((
        labels.astype(float), labels + 0.5, labels - 1, labels * 0, labels * 10**9, labels[:-1],
        labels[:0], labels[0], labels.astype(str), labels > 0, labels.astype("datetime64[s]"),
        np.eye(3, dtype=np.int64)[labels % 3], labels.astype(complex), labels.astype(object),
        labels.astype(np.uint64) + np.uint64(2**64 - 3), np.where(labels == 1, 2, labels),
        np.full(labels.shape, np.nan), labels[:, None, None], labels + 2**62,
        np.array([2**63 - 1, *labels[1:].tolist()]), labels.view([("a", "i8")]),
    ))  # fmt: skip


def _changed_npz(damage: Damage, arrays: dict[str, Any]) -> str:
    """Damage arrays in place; why they are wrong then."""
    x, y = damage.random.choice(PAIRS)
    if x not in arrays:
        arrays |= {x: pixels(6, 8, 8, seed=2), y: np.arange(6) % 3}
    how = damage.random.choice(("images", "labels", "key", "names", "layout"))
    if how == "images":
        arrays[x] = _wrong_images(damage, arrays[x])
    elif how == "labels":
        arrays[y] = _wrong_labels(damage, arrays[y])
    elif how == "key":
        del arrays[damage.random.choice((x, y))]
    elif how == "names":
        names = damage.random.choice((
            ["a"], ["a", "b"], ["a", "a", "b"], [], 3, ["a", "b", "\ud800"], [b"a", b"\xff", b"c"],
            ["a", "b", "c", "d"],
        ))  # fmt: skip
        arrays["class_names"] = np.array(names)
    else:  # all of these are right
        arrays["class_names"] = np.array(damage.random.choice(RIGHT_NAMES))
        arrays["zz"] = np.array({"not": "read"}, dtype=object)
        arrays[y] = damage.random.choice((arrays[y][:, None], arrays[y].astype(np.uint8)))
        arrays[x] = damage.random.choice((
            np.asfortranarray(arrays[x]), arrays[x][:, None], arrays[x][..., None], arrays[x],
            np.repeat(arrays[x][:, None], 3, 1),
        ))  # fmt: skip
        return ""
    return f"{how} of {x}"


def test_npz(tmp_path: Path) -> None:
    """Arrays of other types, shapes and labels; files that are cut off or changed."""
    root = tmp_path / "data.npz"
    config = prepare_config("npz", root, image_size=8, channels=1)

    def attempt(damage: Damage) -> str:
        arrays, wrong = _arrays(), ""
        how = damage.random.choice(("arrays", "arrays", "arrays", "bytes", "member", "file"))
        if how == "arrays":
            wrong = _changed_npz(damage, arrays)
            if not wrong:
                np.savez(root, **arrays)
                return accepted(lambda: prepared(tmp_path, config))
        np.savez(root, **arrays)
        if how == "bytes":
            root.write_bytes(damage.content(root.read_bytes()))
        elif how == "member":
            _write_member(damage, root)
        elif how == "file":
            wrong = "no npz"
            others = (b"", b"x", b"PK\x03\x04", b"\x93NUMPY", _npy(arrays["x_train"]), b"\0" * 999)
            root.write_bytes(damage.random.choice(others))
        return prepared(tmp_path, config) or wrong

    campaign("npz", 0.09, attempt, tmp_path)


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _write_member(damage: Damage, path: Path) -> None:
    """Replace a member of the archive by one that is no array, or says that it is larger."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = damage.random.choice(list(members))
    shape = b"(24, 8, 8), }" if b"(24, 8, 8), }" in members[name] else b"(24,), }"
    claims = (b"(10**9,)", b"(-1,), }", b"(99999999999, 8, 8), }", b"(2.5,), }", b"None, }")
    claim = damage.random.choice(claims)
    members[name] = damage.random.choice((
        b"", b"text", members[name][:-7], members[name][:9], members[name] + b"more",
        members[name].replace(shape, claim), damage.content(members[name]),
    ))  # fmt: skip
    with zipfile.ZipFile(path, "w", damage.random.choice((0, 8))) as archive:
        for key, content in members.items():
            archive.writestr(key, content)


# ------------------------------------------------------------------------------------ folders


def _broken(damage: Damage, path: Path) -> str:
    """Make an image what cannot be read; why."""
    how = damage.random.choice(
        ("cut", "empty", "text", "bytes", "link", "16 bits", "float", "head")
    )
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>not found</html>")
    elif how == "bytes":
        path.write_bytes(damage.content(content))
        return ""  # which may be right
    elif how == "link":
        path.symlink_to(damage.random.choice(("nowhere.png", path.name, "..")))
    elif how == "16 bits":
        Image.fromarray(np.full((8, 8), 999, dtype=np.uint16)).save(path, "PNG")
    elif how == "float":
        Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(path, "TIFF")
    else:  # says that it is larger
        path.write_bytes(content[:16] + (30000).to_bytes(4) * 2 + content[24:])
    return how


def _odd(damage: Damage, path: Path) -> None:
    """Replace an image by one of another mode, size or format, which are all read."""
    path.unlink()
    size = damage.random.choice(((1, 1), (8, 8), (1, 300), (300, 1), (64, 9), (200, 150)))
    mode, suffix = damage.random.choice((
        ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGB", "BMP"),
        ("CMYK", "JPEG"), ("RGB", "JPEG"), ("L", "JPEG"), ("YCbCr", "JPEG"), ("P", "GIF"),
        ("RGB", "PPM"), ("RGB", "WEBP"), ("CMYK", "TIFF"),
    ))  # fmt: skip
    write_image(path, mode, size, damage.random.randrange(10**6), format=suffix)


def _moved(damage: Damage, root: Path) -> str:
    """Change what folders there are; why that is wrong."""
    one = root / "train" / damage.random.choice(("a", "b"))
    how = damage.random.choice(("fifo", "device", "none", "nested", "file", "odd", "other", "val"))
    if how == "fifo":
        os.mkfifo(one / "x.png")
    elif how == "device":
        (one / "x.png").symlink_to("/dev/zero")
    elif how == "none":
        shutil.rmtree(one)
        if damage.random.random() < 0.5:
            one.mkdir()
    elif how == "nested":
        (one / "deep" / "x").mkdir(parents=True)
        for file in list(one.glob("*.png")):
            file.rename(one / "deep" / "x" / file.name)
    elif how == "file":
        shutil.rmtree(root / "val")
        (root / "val").write_text("no folder")
    elif how == "other":
        (root / "val" / "a").rename(root / "val" / "c")
    elif how == "val":
        shutil.rmtree(root / "val" / "b")
    else:
        names = (
            "é",
            "a b",
            "$x$",
            ",",
            "a\nb",
            "🧸",
            "n" * 200,
            "-x",
            "%s",
            "{}",
            "\\",
            "~",
            "CON",
        )
        name: Any = damage.random.choice((*names, os.fsdecode(b"\xff\xfe")))
        for split in ("train", "val"):
            (root / split / "a").rename(root / split / name)
        return "" if name in names else "a name that is no UTF-8"
    return how


def test_folders(tmp_path: Path) -> None:
    """Damaged and odd images, names and folders, in memory and on disk."""
    whole, root = tmp_path / "whole", tmp_path / "root"
    for split, count in {"train": 4, "val": 2}.items():
        write_classes(whole / split, {"a": count, "b": count}, size=(8, 8))

    def attempt(damage: Damage) -> str:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        storage = damage.random.choice(("memory", "files"))
        skip = damage.random.random() < 0.3
        config = prepare_config(
            "imagefolder", root, image_size=8, channels=damage.random.choice((1, 3)),
            storage=storage, on_unreadable="skip" if skip else "refuse",
            checksums=damage.random.choice(("contents", "sizes")),
        )  # fmt: skip
        image = root / damage.random.choice(("train/a/1.png", "train/b/0.png", "val/a/0.png"))
        how = damage.random.choice(("image", "image", "image", "odd", "folders"))
        if how == "image":
            wrong = _broken(damage, image)
            return prepared(tmp_path, config) or ("" if skip else wrong)
        if how == "odd":
            _odd(damage, image)
            return accepted(lambda: prepared(tmp_path, config))
        wrong = _moved(damage, root)
        if not wrong:
            return accepted(lambda: prepared(tmp_path, config))
        return prepared(tmp_path, config) or wrong

    campaign("folders", 0.08, attempt, tmp_path)


# ------------------------------------------------------------------------------- CIFAR and IDX


def test_cifar(tmp_path: Path) -> None:
    """Batches whose bytes or entries are others."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, 3)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = prepare_config(
        "cifar10", tmp_path, image_size=32, on_checksum_mismatch="warn", val_fraction=0.2
    )

    assert not prepared(tmp_path, config)  # nothing is wrong yet

    def attempt(damage: Damage) -> str:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        name, wrong = damage.random.choice(sorted(contents)), ""
        if damage.random.random() < 0.4:
            (folder / name).write_bytes(damage.content(contents[name]))
            return prepared(tmp_path, config)
        entry = pickle.loads(contents[name], encoding="latin1")
        key = "label_names" if name == "batches.meta" else damage.random.choice(("labels", "data"))
        made, wrong = _changed_batch(damage, entry, key)
        content = pickle.dumps(made, damage.random.randint(0, 5))
        (folder / name).write_bytes(content)
        return prepared(tmp_path, config) or wrong

    campaign("cifar", 0.05, attempt, tmp_path)


def _changed_batch(damage: Damage, entry: dict[str, Any], key: str) -> tuple[Any, str]:
    old = entry[key]
    others: dict[str, tuple[Any, ...]] = {
        "labels": (
            [-1, *old[1:]], [10, *old[1:]], [10**30, *old[1:]], [0.5, *old[1:]], ["x", *old[1:]],
            old[1:], tuple(old), np.array(old), None, {}, [None] * len(old), [old] * len(old),
            [-(10**30), *old[1:]],
        ),
        "data": (
            entry.get("data", np.zeros(1))[1:], np.zeros((len(old), 3071), dtype=np.uint8), None,
            np.zeros((len(old), 3072), dtype=np.float32), b"data", [1, 2], {}, 10**30,
            np.array([None] * len(old), dtype=object), np.zeros(3072, dtype=np.uint8),
            np.zeros((0, 3072), dtype=np.uint8),
        ),
        "label_names": (
            old[1:], [*old, "more"], old[:0], None, 3, [1, 2], ["a"] * 10, "abcdefghij",
            [b"a"] * 10, {"x": 0},
        ),
    }  # fmt: skip
    made = {**entry, key: damage.random.choice(others[key])}
    if damage.random.random() < 0.1:
        del made[key]
    if damage.random.random() < 0.1:
        return damage.random.choice(([], None, [made], "x", Path("x"), 10**30)), "no batch"
    return made, f"{key}: {str(made.get(key))[:80]}"


def test_idx(tmp_path: Path) -> None:
    """MNIST's files with other headers, bytes and labels, gzipped or not."""
    folder = tmp_path / "MNIST" / "raw"
    kinds = {}
    for zipped in (True, False):
        shutil.rmtree(folder, ignore_errors=True)
        write_mnist(folder, zipped=zipped)
        kinds[zipped] = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = prepare_config(
        "mnist", tmp_path, image_size=8, channels=1, on_checksum_mismatch="warn"
    )

    assert not prepared(tmp_path, config)  # nothing is wrong yet

    def attempt(damage: Damage) -> str:
        zipped = damage.random.random() < 0.5
        shutil.rmtree(folder)
        folder.mkdir()
        for name, content in kinds[zipped].items():
            (folder / name).write_bytes(content)
        name = damage.random.choice(sorted(kinds[zipped]))
        content = kinds[zipped][name]
        if damage.random.random() < 0.4:
            (folder / name).write_bytes(damage.content(content))
            return prepared(tmp_path, config)
        plain = bytearray(gzip.decompress(content) if zipped else content)
        how = damage.random.choice(("size", "type", "dimensions", "cut", "more", "label", "shape"))
        if how == "size":
            plain[4:8] = damage.random.choice((0, 1, 39, 2**31, 2**32 - 1)).to_bytes(4)
        elif how == "type":
            plain[2] = damage.random.choice((0, 9, 11, 13, 14, 255))
        elif how == "dimensions":
            plain[3] = damage.random.choice((0, 2, 4, 9, 255))
        elif how == "cut":
            del plain[damage.random.randrange(len(plain)) :]
        elif how == "more":
            plain += b"more"
        elif "labels" in name:
            plain[-1] = damage.random.choice((10, 11, 255))
        else:
            plain = bytearray(idx(pixels(*damage.random.choice(((3,), (40, 784), (0, 28, 28))))))
        made = bytes(plain)
        (folder / name).write_bytes(gzip.compress(made, mtime=0) if zipped else made)
        return prepared(tmp_path, config) or f"{how} of {name}"

    campaign("idx", 0.04, attempt, tmp_path)
