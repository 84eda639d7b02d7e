"""Tiny raw datasets in the layouts of the real ones, and where the real ones may lie."""

import gzip
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from teddy.settings.configs import PrepareConfig

_BESIDE = Path(__file__).parents[2] / "shared" / "data"
SHARED = Path(os.environ.get("TEDDY_SHARED_DATA") or _BESIDE)
"""Archives of real datasets: the folder that the variable names, or one beside the checkout."""
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real images in {SHARED}")

BASE = PrepareConfig(
    source="imagefolder",
    root="",
    download=False,
    num_classes=0,
    classes=(),
    image_size=32,
    channels=3,
    storage="memory",
    checksums="contents",
    on_checksum_mismatch="refuse",
    on_unreadable="refuse",
    mean=(),
    std=(),
    val_fraction=0.25,
    test_fraction=0.0,
    keep=(1.0, 1.0),
    small_classes="refuse",
)


def prepare_config(
    source: str = "imagefolder", root: Path | str = "", **others: Any
) -> PrepareConfig:
    """Settings of a source, with a quarter held out for validation."""
    return replace(BASE, source=source, root=str(root), **others)


DIGITS = prepare_config("digits", image_size=8, channels=1, val_fraction=0.15, test_fraction=0.25)


def pixels(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise, so that no two images are alike."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(
    path: Path, mode: str = "RGB", size: tuple[int, int] = (32, 32), seed: int = 0, **save: Any
) -> Path:
    """An image of noise; the suffix gives the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels(size[1], size[0], 3, seed=seed)).convert(mode)
    image.save(path, **save)
    return path


# -------------------------------------------------------------------------------------- arrays


def write_cifar(folder: Path, per_class: int = 4, *, protocol: int = 2) -> NDArray[np.uint8]:
    """CIFAR-10's files; returns the images of all training batches, in their order."""
    folder.mkdir(parents=True)
    names = [f"class {i}" for i in range(10)]
    batches = {f"data_batch_{i}": pixels(10 * per_class, 3072, seed=i) for i in range(1, 6)}
    for name, images in {**batches, "test_batch": pixels(20, 3072)}.items():
        labels = [i % 10 for i in range(len(images))]
        entry = {"batch_label": name, "labels": labels, "data": images, "filenames": []}
        (folder / name).write_bytes(pickle.dumps(entry, protocol))
    meta = {"label_names": names, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
    return np.concatenate(list(batches.values())).reshape(-1, 3, 32, 32)


def write_cifar100(folder: Path) -> None:
    """CIFAR-100's files: two training images and one test image per class."""
    folder.mkdir(parents=True)
    for name, count in {"train": 200, "test": 100}.items():
        fine = [(7 * i) % 100 for i in range(count)]
        coarse = [label // 5 for label in fine]
        entry = {"fine_labels": fine, "coarse_labels": coarse, "data": pixels(count, 3072)}
        (folder / name).write_bytes(pickle.dumps(entry, 2))
    meta = {
        "fine_label_names": [f"fine {i:02}" for i in range(100)],
        "coarse_label_names": [f"coarse {i}" for i in range(20)],
    }
    (folder / "meta").write_bytes(pickle.dumps(meta, 2))


def idx(array: NDArray[np.uint8]) -> bytes:
    """The bytes of an IDX file."""
    shape = np.array(array.shape, dtype=">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def write_mnist(folder: Path, *, zipped: bool = True) -> NDArray[np.uint8]:
    """MNIST's four files, 40 training and 20 test images; returns the training images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = pixels(40, 28, 28)
    arrays = {
        "train-images-idx3-ubyte": images,
        "train-labels-idx1-ubyte": np.arange(40, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": pixels(20, 28, 28, seed=1),
        "t10k-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
    }
    for name, array in arrays.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
        else:
            (folder / name).write_bytes(idx(array))
    return images


def write_npz(path: Path, **changes: Any) -> Path:
    """Three classes, 8 training and 2 test images of each; ``changes`` replace arrays."""
    arrays: dict[str, Any] = {
        "x_train": pixels(24, 32, 32, 3),
        "y_train": np.arange(24) % 3,
        "x_test": pixels(6, 32, 32, 3, seed=1),
        "y_test": np.arange(6) % 3,
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


# --------------------------------------------------------------------------------------- files

WNIDS = ("n03", "n01", "n02")  # not sorted, as in the real wnids.txt


def write_tiny_imagenet(
    folder: Path,
    *,
    val: str = "published",
    per_class: int = 4,
    wnids: Sequence[str] = WNIDS,
    size: int = 8,
) -> None:
    """Tiny-ImageNet's layout; the first image of each training class is grey.

    ``val`` is ``published``, ``moved`` (``val/<wnid>/images``) or ``flat`` (``val/<wnid>``).
    """
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    for label, wnid in enumerate(wnids):
        for i in range(per_class):
            path = folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG"
            write_image(path, "L" if i == 0 else "RGB", (size, size), seed=100 * label + i)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    lines = []
    for i in range(2 * len(wnids)):
        wnid = wnids[(2 * i + 1) % len(wnids)]
        inside = {"published": "images", "moved": f"{wnid}/images", "flat": wnid}[val]
        write_image(folder / "val" / inside / f"val_{i}.JPEG", "RGB", (size, size), seed=1000 + i)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t7\t7\n")
    (folder / "val" / "images").mkdir(exist_ok=True)
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def write_classes(
    folder: Path, counts: Mapping[str, int], seed: int = 0, size: tuple[int, int] = (32, 32)
) -> None:
    """Class folders of PNG files."""
    for label, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_image(folder / name / f"{i}.png", size=size, seed=seed + 1000 * label + i)


def truncated(path: Path) -> Path:
    """Cut a file in half: headers stay readable."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def jpeg(size: int = 8) -> bytes:
    """A small JPEG file."""
    buffer = BytesIO()
    Image.fromarray(pixels(size, size, 3)).save(buffer, "JPEG")
    return buffer.getvalue()
