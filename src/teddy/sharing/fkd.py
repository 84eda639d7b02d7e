"""FKD soft labels: a set with labels of every view, as SRe2L and its family train on it.

Their trainer reads an image folder and, for every epoch and batch, one file of ``torch.save`` that
says which view of each image was labelled and what the teachers said of it:

| entry | holds |
|---|---|
| 0 | crops, float32 ``(n, 4)``: top, left, height and width as shares of the image's sides |
| 1 | flips, bool ``(n,)`` |
| 2 | partners, int64 ``(n,)``: whose pixels are mixed in, as positions in the batch |
| 3 | how much of an image is its own in Mixup, or was meant to be in CutMix |
| 4 | CutMix's box ``[top, left, bottom, right]`` in pixels of the view; None for Mixup |
| 5 | soft labels ``(n, K)``: logits of the mixed views |

Entries 2 to 4 are None where nothing is mixed. G-VBSM appends the images' indices.

Which images are in a batch stands nowhere: it is the order that PyTorch's ``RandomSampler`` draws
with the seed 42, over an image folder that is sorted by names.

Source: VILA-Lab/SRe2L ``relabel/generate_soft_label.py``, ``relabel/utils_fkd.py`` and
``validate/train_FKD.py``, re-implemented.
"""

import errno
import hashlib
import io
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as vision

from teddy.core.artifacts import source_digest
from teddy.core.errors import TeddyError
from teddy.core.files import Json, atomic_path, check_regular, read_json, write_json
from teddy.core.runtime import autocast, for_each, log, pick_device, progress
from teddy.core.seeding import derive, permutation, rng
from teddy.core.tables import write_text
from teddy.data.datasets import read_manifest
from teddy.objectives import ensemble_logits
from teddy.sharing.bundles import as_image, write_png
from teddy.sharing.training_set import TrainingSet
from teddy.teachers.pools import open_pool

FORMAT = "teddy.fkd.v1"
ORDER_SEED = 42
"""Of the order of images, which is fixed in their reader."""
IMAGES, LABELS, RECORD, CARD = "images", "fkd", "export.json", "README.md"
_RESUME = "resume.json"
_RATIO = [3 / 4, 4 / 3]  # torchvision's default, which they leave
_CHUNK = 128  # views per forward pass of a teacher; fixed, so that bytes do not depend on anything
_BLOCK = 4096  # that file systems round sizes up to
_EPOCH, _BATCH = re.compile(r"epoch_(\d+)"), re.compile(r"batch_(\d+)\.tar")
# What a number of NumPy is pickled by, with the names of NumPy 1 too: their boxes have such.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar"), np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"]},
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class FkdBatch:
    """Views of a batch, and their soft labels."""

    crops: Tensor
    """float32 ``(n, 4)``: top, left, height, width; shares of the image's sides."""
    flips: Tensor
    """bool ``(n,)``: mirrored left to right, after the crop."""
    partners: Tensor | None
    """int64 ``(n,)``: positions in the batch; None if nothing is mixed."""
    kept: float | None
    """Share of a mixture's first image: exact in Mixup, drawn in CutMix."""
    box: tuple[int, int, int, int] | None
    """Pixels that are the partner's: top, left, bottom, right; None in Mixup."""
    logits: Tensor
    """float16 or wider, ``(n, K)``."""

    def __len__(self) -> int:
        return len(self.flips)


def mixed_views(images: Sequence[Image.Image], batch: FkdBatch, size: tuple[int, int]) -> Tensor:
    """What the soft labels of a batch were computed from, by the operations of their reader.

    Args:
        images: of the batch, RGB.
        batch: which view of each, and how they are mixed.
        size: height and width of a view.

    Returns:
        float32 ``(n, 3, height, width)`` in [0, 1]; not normalised yet.
    """
    rows = zip(images, batch.crops.tolist(), batch.flips.tolist(), strict=True)
    views = torch.stack([_view(image, crop, flip, size) for image, crop, flip in rows])
    if batch.partners is None:
        return views
    if batch.box is None:
        kept = 1.0 if batch.kept is None else batch.kept
        return kept * views + (1 - kept) * views[batch.partners]
    top, left, bottom, right = batch.box
    views[:, :, top:bottom, left:right] = views[batch.partners, :, top:bottom, left:right]
    return views


def _view(image: Image.Image, crop: Sequence[float], flip: bool, size: tuple[int, int]) -> Tensor:
    width, height = image.size
    top, left, tall, wide = (c * side for c, side in zip(crop, (height, width) * 2, strict=True))
    # Pillow rounds the box, so that shares in float32 give whole pixels back.
    seen = vision.resized_crop(image, top, left, tall, wide, list(size), InterpolationMode.BILINEAR)
    tensor: Tensor = vision.to_tensor(vision.hflip(seen) if flip else seen)
    return tensor


def order(images: int, batch_size: int, epochs: int) -> Iterator[list[Tensor]]:
    """Which images are in the batches of every epoch.

    Yields:
        For each epoch its batches: int64 positions among the files of the image folder, sorted by
        class folder and name.
    """
    # Their samplers themselves, as an epoch draws from the generator more than its permutation.
    sampler = RandomSampler(range(images), generator=torch.Generator().manual_seed(ORDER_SEED))
    batches = BatchSampler(sampler, batch_size, drop_last=False)
    for _ in range(epochs):
        yield [torch.tensor(batch) for batch in batches]


# ---------------------------------------------------------------------------------------- exporting


@dataclass(frozen=True, slots=True)
class _Views:
    """Ranges that views are drawn from."""

    crop_scale: float
    hflip: bool
    cutmix: bool
    size: tuple[int, int]
    seed: int

    def draw(self, epoch: int, number: int, indices: Sequence[int], classes: int) -> FkdBatch:
        """Views of a batch, with labels of zeros.

        Args:
            epoch: counted from 0.
            number: of the batch in its epoch.
            indices: of its images in the set; the view of an image depends on epoch and index.
            classes: K.
        """
        drawn = [self._crop(epoch, index) for index in indices]
        partners, kept, box = self._mix(epoch, number, len(indices))
        return FkdBatch(
            crops=torch.tensor([crop for crop, _ in drawn], dtype=torch.float32),
            flips=torch.tensor([flip for _, flip in drawn]),
            partners=partners,
            kept=kept,
            box=box,
            logits=torch.zeros(len(indices), classes, dtype=torch.float16),
        )

    def _crop(self, epoch: int, index: int) -> tuple[tuple[float, ...], bool]:
        height, width = self.size
        # torchvision draws from the global stream alone; the GPU's has nothing to do with it.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(self.seed, "FKD view", epoch, index))
            top, left, tall, wide = RandomResizedCrop.get_params(
                torch.empty(1, height, width), [self.crop_scale, 1.0], _RATIO
            )
            flip = self.hflip and torch.rand(1).item() < 0.5
        return (top / height, left / width, tall / height, wide / width), flip

    def _mix(
        self, epoch: int, number: int, count: int
    ) -> tuple[Tensor, float, tuple[int, int, int, int]]:
        """One box for the batch; an empty one without CutMix, as their loader must have some."""
        if not self.cutmix:
            return torch.arange(count), 1.0, (0, 0, 0, 0)
        item = ("FKD mix", epoch, number)
        partners = permutation(count, self.seed, *item, "partners")
        kept, y, x = torch.rand(3, generator=rng(self.seed, *item), dtype=torch.float64).tolist()
        return partners, kept, _box(self.size, kept, y, x)


def _box(size: tuple[int, int], kept: float, y: float, x: float) -> tuple[int, int, int, int]:
    """CutMix's box: a share 1 − kept of the area, centred anywhere, cut off at the edges."""
    ends = []
    for side, place in zip(size, (y, x), strict=True):
        half, centre = int(side * math.sqrt(1 - kept)) // 2, int(side * place)
        ends.append((max(0, centre - half), min(side, centre + half)))
    (top, bottom), (left, right) = ends
    return top, left, bottom, right


def export_fkd(
    data: TrainingSet,
    pool_folder: str | Path,
    out: str | Path,
    epochs: int | None = None,
    batch_size: int | None = None,
    *,
    crop_scale: float | None = None,
    hflip: bool | None = None,
    cutmix: bool | None = None,
    seed: int | None = None,
    columns: Sequence[int] | None = None,
) -> Path:
    """Write a set and soft labels of its views as SRe2L's trainer reads them.

    ``out`` gets ``images/`` in SRe2L's layout, ``fkd/`` with a file for every batch, ``README.md``
    and ``export.json``. Until all is there it is called ``<out>.partial``; the same call continues
    one that was stopped, and finished files are kept. Equal calls give equal bytes.

    Args:
        data: what :func:`teddy.load` opened.
        pool_folder: teachers that label, ``models/<pool>``.
        out: folder to write.
        epochs: to label; by default the recipe's, or SRe2L's 300 if the set has none.
        batch_size: images per batch, all of them if there are fewer; by default the recipe's, or
            SRe2L's 1024.
        crop_scale: smallest area that a crop may have; by default the recipe's, or 0.08.
        hflip: mirror half of the views; by default what the recipe says, or True.
        cutmix: mix every batch by CutMix; by default what the recipe says, or True.
        seed: of the views; by default the recipe's, or 0.
        columns: class of the teachers that each class of the set is; by default the same.

    Returns:
        The folder.

    Raises:
        TeddyError: ``out`` is there already, the teachers are of other images, the disk is too
            small, or the images cannot be written as PNG.
    """
    out, pool_folder, recipe = Path(out), Path(pool_folder), data._recipe
    own = recipe.relabel if recipe else None
    epochs = _first(epochs, own and own.epochs, 300)
    batch_size = _first(batch_size, recipe and recipe.evaluate.batch_size, 1024)
    views = _Views(
        crop_scale=_first(crop_scale, own and own.views.crop_scale, 0.08),
        hflip=_first(hflip, own and own.views.hflip, True),
        cutmix=_first(cutmix, own and own.cutmix, True),
        size=(data.images.shape[2], data.images.shape[3]),
        seed=_first(seed, recipe and recipe.seed, 0),
    )
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise TeddyError(f"{name} must be 1 or more, got {value}")
    if not 0 < views.crop_scale <= 1:
        raise TeddyError(f"crop_scale must be above 0 and at most 1, got {views.crop_scale}")
    batch_size, ensemble = min(batch_size, len(data)), own.ensemble if own else "logits"
    precision = own.precision if own else "float32"
    _refuse_odd_images(data)
    pool = open_pool(pool_folder)
    pool.check(data.images.shape[1:], data.num_classes, data.path)
    record = {
        "format": FORMAT, "images": len(data), "image_shape": list(data.images.shape[1:]),
        "classes": list(data.class_names), "mean": list(data.normalisation.mean),
        "std": list(data.normalisation.std), "epochs": epochs, "batch_size": batch_size,
        "crop_scale": views.crop_scale, "hflip": views.hflip, "cutmix": views.cutmix,
        "ensemble": ensemble, "precision": precision, "seed": views.seed, "order_seed": ORDER_SEED,
        "temperature": recipe.evaluate.temperature if recipe else 20.0,
        "teachers": [entry["sha256"] for entry in pool.entries], "set": _content(data),
    }  # fmt: skip
    folder, device = _begin(out, record), pick_device()
    places = data.labels.argsort(stable=True)  # the order of their image folder
    pictures = _write_images(folder / IMAGES, data, places)
    members = [pool.member(index, device) for index in range(len(pool))]

    def logits(pixels: Tensor) -> Tensor:
        channels = data.images.shape[1]
        inputs = vision.normalize(
            pixels[:, :channels].to(device), list(data.normalisation.mean),
            list(data.normalisation.std),
        ).to(memory_format=torch.channels_last)  # fmt: skip
        with torch.no_grad(), autocast(device, precision):
            parts = [torch.stack([t(part) for t in members]) for part in inputs.split(_CHUNK)]
        found = torch.cat([ensemble_logits(part, ensemble).half().cpu() for part in parts])
        return found if columns is None else found[:, list(columns)]

    orders = list(order(len(data), batch_size, epochs))

    def finish(epoch: int) -> None:
        with progress(len(orders[epoch]), f"FKD epoch {epoch + 1}", "batch") as bar:
            for number, batch in enumerate(orders[epoch]):
                path = folder / LABELS / f"epoch_{epoch}" / f"batch_{number}.tar"
                if not path.exists():
                    drawn = views.draw(epoch, number, places[batch].tolist(), data.num_classes)
                    seen = [pictures[place] for place in batch.tolist()]
                    labels = logits(mixed_views(seen, drawn, views.size))
                    if not labels.isfinite().all():
                        raise TeddyError(
                            f"{pool_folder}: soft labels of epoch {epoch + 1} do not fit into "
                            "float16, whose largest number is 65504; choose other teachers"
                        )
                    _write_batch(path, replace(drawn, logits=labels))
                bar.update()

    for_each(epochs, finish, device)
    found = sum(path.stat().st_size for path in (folder / LABELS).rglob("*.tar"))
    write_text(folder / CARD, _card(record, found))
    write_json(folder / RECORD, record, in_order=True)
    (folder / _RESUME).unlink()
    folder.rename(out)
    return out


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _refuse_odd_images(data: TrainingSet) -> None:
    channels, present = data.images.shape[1], data.labels.unique()
    if channels not in (1, 3):
        raise TeddyError(
            f"{data.path}: images must have 1 or 3 channels to be written as PNG, got {channels}"
        )
    if len(present) != data.num_classes:
        missing = sorted(set(range(data.num_classes)) - set(present.tolist()))[0]
        raise TeddyError(
            f"{data.path}: class {missing}, {data.class_names[missing]!r}, has no image; an image "
            "folder numbers classes by their folders, so that each must have some"
        )


def _content(data: TrainingSet) -> str:
    """SHA-256 of images and labels."""
    sha = hashlib.sha256(data.images.numpy().tobytes())
    sha.update(data.labels.numpy().tobytes())
    return sha.hexdigest()


def _begin(out: Path, record: Json) -> Path:
    """Folder to fill: a new one, or that of the same export if it was stopped."""
    if out.exists() or out.is_symlink():
        raise TeddyError(f"{out}: is there already; remove it or name another with --out")
    folder = out.with_name(f"{out.name}.partial")
    key = {
        **record, "source": source_digest(), "torch": torch.__version__,
        "device": pick_device().type,
    }  # fmt: skip
    _refuse_small_disk(out, folder, record)
    if not (folder / _RESUME).exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TeddyError(f"{folder}: is there already and is no unfinished export; remove it")
        write_json(folder / _RESUME, key)
    elif read_json(folder / _RESUME) != key:
        raise TeddyError(
            f"{folder}: is an unfinished export of another set, or by other settings, teachers or "
            "code; remove it or name another with --out"
        )
    for left in folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
        left.unlink()
    return folder


def _write_images(folder: Path, data: TrainingSet, places: Tensor) -> list[Image.Image]:
    """Write the images in SRe2L's layout, and give them back as an image folder reads them."""
    wide = max(3, len(str(data.num_classes - 1)))
    deep, counts, pictures = max(3, len(str(data.ipc - 1))), [0] * data.num_classes, []
    for index in places.tolist():
        label, pixels = int(data.labels[index]), data.images[index]
        name = f"class{label:0{wide}d}_id{counts[label]:0{deep}d}.png"
        path = folder / f"new{label:0{wide}d}" / name
        try:
            write_png(path, pixels)
        except OSError as error:
            raise TeddyError(f"{path}: cannot write here: {error.strerror or error}") from None
        counts[label] += 1
        pictures.append(as_image(pixels).convert("RGB"))
    return pictures


def _write_batch(path: Path, batch: FkdBatch) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(_as_bytes(batch))


def _as_bytes(batch: FkdBatch) -> bytes:
    """A batch as ``torch.save`` writes it, of tensors and plain numbers alone."""
    box = None if batch.box is None else list(batch.box)
    entries = [batch.crops, batch.flips, batch.partners, batch.kept, box, batch.logits]
    buffer = io.BytesIO()  # a file's name would become part of the bytes
    torch.save(entries, buffer)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------- size


def fkd_bytes(images: int, classes: int, batch_size: int, epochs: int) -> int:
    """Size of the label files of an export; bytes.

    Args:
        images: in the set, N.
        classes: K.
        batch_size: images per batch.
        epochs: that are labelled.
    """
    full, rest = divmod(images, batch_size)
    return epochs * (
        full * _batch_bytes(batch_size, classes) + (rest and _batch_bytes(rest, classes))
    )


def _batch_bytes(count: int, classes: int) -> int:
    crops, flips = torch.zeros(count, 4), torch.zeros(count, dtype=torch.bool)
    labels = torch.zeros(count, classes, dtype=torch.float16)
    example = FkdBatch(crops, flips, torch.arange(count), 0.5, (0, 0, 1, 1), labels)
    return len(_as_bytes(example))


def _refuse_small_disk(out: Path, folder: Path, record: Json) -> None:
    count, epochs = record["images"], record["epochs"]
    labels = fkd_bytes(count, len(record["classes"]), record["batch_size"], epochs)
    pixels = count * math.prod(record["image_shape"])
    files = count + epochs * math.ceil(count / record["batch_size"])
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    above = next(path for path in folder.absolute().parents if path.is_dir())
    needed, free = labels + pixels + files * _BLOCK - there, shutil.disk_usage(above).free
    log(f"{out}: {_size(labels)} of soft labels for {epochs} epochs of {count:,} images")
    if needed > free:
        raise TeddyError(
            f"{out}: needs {_size(needed)} more, {_size(labels)} of them soft labels of {epochs} "
            f"epochs, but the disk has {_size(free)} left; label fewer epochs or choose another "
            "disk with --out"
        )


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _card(record: Json, found: int) -> str:
    channels, height, width = record["image_shape"]
    names = [name.replace("|", r"\|") for name in record["classes"]]
    listed = "".join(f"| {label} | {name} |\n" for label, name in enumerate(names))
    views = [f"crops of {record['crop_scale']:g} to 1 of the area, resized to {height}×{width}"]
    if record["hflip"]:
        views.append("half of them mirrored")
    views.append("mixed by CutMix" if record["cutmix"] else "not mixed (the boxes are empty)")
    grey = "" if channels == 3 else " Grey images are read as RGB with three equal channels."
    return "\n\n".join([
        "# A distilled set with FKD soft labels",
        f"`{IMAGES}/` has {record['images']:,} images of {len(record['classes'])} classes in the "
        f"layout of SRe2L, and `{LABELS}/` soft labels of their views in {record['epochs']} "
        f"epochs, {_size(found)}. The views: {', '.join(views)}. "
        f"{len(record['teachers'])} teachers said what the labels are, as logits in float16.",
        f"Images are normalised by mean {record['mean']} and standard deviation {record['std']} "
        f"of pixels in [0, 1].{grey}",
        "SRe2L's trainer takes them by",
        f"```sh\npython train_FKD.py --train-dir {IMAGES} --fkd-path {LABELS}/ --mix-type cutmix "
        f"\\\n    --batch-size {record['batch_size']} --epochs {record['epochs']} "
        f"-T {record['temperature']:g}\n```",
        "The slash after the folder of labels, the size of batches and the seed 42 must be these, "
        f"and the student must see views of {height}×{width} pixels, since boxes are counted in "
        "such: `train_FKD.py` itself has 224×224, the statistics of ImageNet and 1000 classes. "
        "Batches hold tensors and plain numbers alone, which `torch.load` reads as weights "
        f"(`weights_only=True`). `{RECORD}` has all of this for programs.",
        f"| class | name |\n|---|---|\n{listed}".rstrip(),
    ]) + "\n"  # fmt: skip


# ------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True, slots=True)
class Fkd:
    """Soft labels in FKD's files; batches are read, and checked, when asked for."""

    folder: Path
    """That has ``epoch_0``, ``epoch_1``, …"""
    epochs: int
    """Epochs that are labelled."""
    batches: int
    """Batches of each."""
    batch_size: int
    """Images of each but the last."""
    images: int
    """Images of the set, N."""
    num_classes: int
    """Classes, K."""
    total_bytes: int
    """Size of all files."""

    def batch(self, epoch: int, number: int) -> FkdBatch:
        """One batch, both counted from 0.

        Raises:
            TeddyError: its file is missing or damaged, or holds something else than the others.
            IndexError: there is no such epoch or batch.
        """
        if not (0 <= epoch < self.epochs and 0 <= number < self.batches):
            raise IndexError(f"epoch {epoch}, batch {number} of {self.epochs} × {self.batches}")
        path = self.folder / f"epoch_{epoch}" / f"batch_{number}.tar"
        batch = _read_batch(path)
        last = self.images - (self.batches - 1) * self.batch_size
        expected = (last if number == self.batches - 1 else self.batch_size, self.num_classes)
        if tuple(batch.logits.shape) != expected:
            raise TeddyError(
                f"{path}: soft labels must be {expected[0]} × {expected[1]} as in epoch 0; got "
                f"{' × '.join(map(str, batch.logits.shape))}"
            )
        return batch

    def epoch(self, number: int) -> Iterator[FkdBatch]:
        """Batches of an epoch, counted from 0; errors as for :meth:`batch`."""
        return (self.batch(number, index) for index in range(self.batches))

    def order(self) -> Iterator[list[Tensor]]:
        """Which images the batches of every epoch have; see :func:`order`."""
        return order(self.images, self.batch_size, self.epochs)

    def summary(self) -> str:
        """What there is, in a line."""
        return (
            f"{self.epochs} epochs of {self.images:,} images in batches of {self.batch_size}, "
            f"{self.num_classes} classes, {_size(self.total_bytes)}"
        )


def read_fkd(folder: str | Path, prepared: str | Path | None = None) -> Fkd:
    """Open FKD's soft labels, our own or those of a peer.

    Nothing pickled is run: files are read as tensors and numbers, NumPy's included, as SRe2L's
    boxes are such. The first epoch tells what to expect; other batches are checked when asked for.

    Args:
        folder: with ``epoch_0``, ``epoch_1``, …, or one of :func:`export_fkd`.
        prepared: a prepared dataset whose classes the labels must have, ``data/prepared/<row>``.

    Raises:
        TeddyError: an epoch or batch is missing or damaged, or the classes are others.
    """
    folder = Path(folder)
    folder = folder / LABELS if (folder / LABELS).is_dir() else folder
    epochs = _numbered(folder, _EPOCH, "epoch_0")
    counts, size = [], 0
    for epoch in range(epochs):
        own = folder / f"epoch_{epoch}"
        counts.append(_numbered(own, _BATCH, "batch_0.tar"))
        size += sum((own / f"batch_{number}.tar").stat().st_size for number in range(counts[-1]))
        if counts[-1] != counts[0]:
            raise TeddyError(f"{own}: must have {counts[0]} batches as epoch_0; got {counts[-1]}")
    first = _read_batch(folder / "epoch_0" / "batch_0.tar")
    last = _read_batch(folder / "epoch_0" / f"batch_{counts[0] - 1}.tar")
    images, (batch_size, classes) = (counts[0] - 1) * len(first) + len(last), first.logits.shape
    if prepared is not None:
        names = read_manifest(Path(prepared)).get("class_names", [])
        if len(names) != classes:
            raise TeddyError(
                f"{folder}: soft labels have {classes} classes, but {prepared} has {len(names)}"
            )
    return Fkd(folder, epochs, counts[0], batch_size, images, classes, size)


def _numbered(folder: Path, pattern: re.Pattern[str], first: str) -> int:
    """How many entries of a folder are numbered from 0 on; other ones do not matter."""
    try:
        found = [pattern.fullmatch(path.name) for path in folder.iterdir()]
    except OSError as error:
        raise TeddyError(
            f"{folder}: expected a folder with {first}, cannot read it: {error.strerror}"
        ) from None
    names = {match[0] for match in found if match}
    for number in range(max(1, len(names))):
        name = first.replace("0", str(number))
        if name not in names:
            raise TeddyError(f"{folder / name}: is missing, though FKD counts from 0 without a gap")
    return len(names)


def _read_batch(path: Path) -> FkdBatch:
    check_regular(path)
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the unpickler raises on a damaged file depends on the damage
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is a short file's
            raise TeddyError(f"{path}: cannot read: {error.strerror or error}") from None
        raise TeddyError(
            f"{path}: damaged, or not a list of tensors and numbers, which FKD's batches are"
        ) from None
    if not isinstance(loaded, list | tuple) or len(loaded) not in (6, 7):
        found = f"{len(loaded)} entries" if isinstance(loaded, list | tuple) else type(loaded)
        raise TeddyError(
            f"{path}: expected crops, flips, partners, share, box and soft labels; got {found}"
        )
    crops, flips, partners, kept, box, logits = loaded[:6]
    count = len(flips) if isinstance(flips, Tensor) and flips.ndim == 1 else -1
    _expect(path, "flips", "bool of n", flips, torch.bool, (count,))
    _expect(path, "crops", f"float32 of {count} × 4", crops, torch.float32, (count, 4))
    _expect(path, "soft labels", f"finite floats of {count} × K", logits, None, (count, -1))
    tops, sizes = crops[:, :2], crops[:, 2:]
    if not ((tops >= 0) & (sizes > 0) & (tops + sizes <= 1 + 1e-4)).all():
        raise TeddyError(f"{path}: crops must lie within their images, as shares of the sides")
    if partners is not None:
        _expect(path, "partners", f"int64 of {count}", partners, torch.int64, (count,))
        if not ((partners >= 0) & (partners < count)).all():
            raise TeddyError(f"{path}: partners must be positions in the batch, 0 to {count - 1}")
    return FkdBatch(crops, flips, partners, _share(path, kept), _corners(path, box), logits)


def _expect(
    path: Path, name: str, text: str, given: Any, dtype: torch.dtype | None, shape: tuple[int, ...]
) -> None:
    """Refuse what is no tensor of a type (None: of finite floats) and shape (-1: any, but some)."""
    if isinstance(given, Tensor):
        sizes = tuple(given.shape)
        fits = len(sizes) == len(shape) and all(
            size == own or (own == -1 and size > 0) for size, own in zip(sizes, shape, strict=True)
        )
        right = given.dtype == dtype if dtype else given.is_floating_point()
        if fits and right and 0 not in sizes and (dtype or given.isfinite().all()):
            return
        found = f"{str(given.dtype).removeprefix('torch.')} of {' × '.join(map(str, sizes))}"
        found += ", some of them not finite" if fits and right and 0 not in sizes else ""
    else:
        found = f"a {type(given).__name__}"
    raise TeddyError(f"{path}: {name} must be {text}; got {found}")


def _share(path: Path, kept: Any) -> float | None:
    if kept is None:
        return None
    if (
        isinstance(kept, bool)
        or not isinstance(kept, int | float | np.number)
        or not 0 <= kept <= 1
    ):
        raise TeddyError(f"{path}: the share of an image must be from 0 to 1; got {kept!r:.60}")
    return float(kept)


def _corners(path: Path, box: Any) -> tuple[int, int, int, int] | None:
    if box is None:
        return None
    whole = isinstance(box, list | tuple) and all(isinstance(c, int | np.integer) for c in box)
    if not whole or len(box) != 4 or not (0 <= box[0] <= box[2] and 0 <= box[1] <= box[3]):
        raise TeddyError(
            f"{path}: the box must be top, left, bottom and right in pixels; got {box!r:.60}"
        )
    top, left, bottom, right = map(int, box)
    return top, left, bottom, right
