"""From a raw source to a prepared dataset: checks, split, decoding, pixel statistics, files."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from teddy.core.artifacts import write_tensors
from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest, write_json
from teddy.core.memory import check_fits
from teddy.core.runtime import log
from teddy.core.seeding import derive, permutation, uniforms
from teddy.data.datasets import (
    ARRAYS,
    ARRAYS_KIND,
    FILES,
    MANIFEST,
    SPLITS,
    ImageDataset,
    LabelledImages,
    Split,
)
from teddy.data.decoding import Found, decode, fit_arrays, inspect, mode_of
from teddy.data.formats import as_text
from teddy.data.images import Images, Normalisation
from teddy.data.lazy_images import ImageFiles
from teddy.data.sources import RawArrays, RawDataset, RawFiles, RawSplit, check_labels, load
from teddy.settings.configs import PrepareConfig

_MEASURED_FILES = 2000  # training images that mean and std are measured on, where all are too many


def prepare(config: PrepareConfig, seed: int) -> tuple[ImageDataset, Json]:
    """Load a source, check it and split it, each class by the same fractions.

    Args:
        config: what to load and what is expected of it.
        seed: experiment seed; fixes the split.

    Returns:
        The dataset, and what its manifest says of the raw data: ``source``, ``checksums`` of raw
        files, ``converted`` (images by the mode they were converted from; None if not looked at),
        ``skipped`` (names of unreadable images) and ``duplicates`` (test images that are also
        among the others; None if not looked for).

    Raises:
        TeddyError: anything that would make results wrong or meaningless, by name.
    """
    raw = load(config)
    _check(raw, config)
    parts = _split(raw, config, seed)
    if config.keep != (1, 1):
        kept = unbalanced(parts["train"].labels, len(raw.class_names), config.keep, seed)
        parts["train"] = parts["train"].take(kept)
    if config.storage == "memory":
        size, count = config.image_size, sum(len(part.labels) for part in parts.values())
        check_fits(
            count * config.channels * size**2,
            f"prepare.image_size {size} makes {count} images of {config.channels}×{size}×{size}",
        )
    if isinstance(raw.train, RawFiles):
        splits, facts = _of_files(raw, parts, config, seed)
    elif config.storage == "files":
        raise TeddyError(
            f"prepare.storage files needs image files, but {config.source} is arrays: set memory"
        )
    else:
        splits, facts = _of_arrays(raw, parts, config)
    for name in SPLITS:
        _check_classes(splits[name].labels, raw.class_names, f"the {name} split")
    normalisation = _normalisation(splits["train"], config, seed)
    dataset = ImageDataset(
        splits["train"], splits["val"], splits["test"], raw.class_names, normalisation
    )
    return dataset, {"source": config.source, "duplicates": _duplicates(dataset), **facts}


# --------------------------------------------------------------------------------------- checks


def _check(raw: RawDataset, config: PrepareConfig) -> None:
    count = len(raw.class_names)
    if not config.classes and config.num_classes not in (0, count):
        raise TeddyError(
            f"expected {config.num_classes} classes (prepare.num_classes), found {count}"
        )
    if count < 2:
        raise TeddyError(f"expected at least 2 classes, found {list(raw.class_names)}")
    for name in raw.class_names:
        as_text(name, f"{config.source}: class names")
    if len(set(raw.class_names)) < count:
        repeated = [name for name, times in Counter(raw.class_names).items() if times > 1]
        raise TeddyError(f"class names must be distinct; repeated: {_some(repeated)}")
    _check_classes(raw.train.labels, raw.class_names, "the training images")
    if raw.test is None and config.test_fraction == 0:
        raise TeddyError(
            f"prepare.test_fraction is 0, but {config.source} has no test images of its own (class "
            "folders: none in val/ or test/ beside train/); give the share to split off"
        )
    if raw.val is not None:
        _check_classes(raw.val.labels, raw.class_names, "the validation images")
    if raw.test is not None:
        _check_classes(raw.test.labels, raw.class_names, "the test images")
        if config.test_fraction > 0:
            raise TeddyError(
                f"prepare.test_fraction is {config.test_fraction}, but {config.source} has "
                f"{len(raw.test.labels)} test images of its own: set it to 0"
            )


def _check_classes(labels: Tensor, class_names: Sequence[str], where: str) -> None:
    """Refuse labels out of range and classes without images."""
    check_labels(labels, class_names, where)
    counts = labels.bincount(minlength=len(class_names)).tolist()
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    if empty:
        raise TeddyError(f"{where}: {len(empty)} classes have no image: {_some(empty)}")


def _some(values: Sequence[object]) -> str:
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return ", ".join(map(str, values[:5])) + more


# ---------------------------------------------------------------------------------------- split


def _split(raw: RawDataset, config: PrepareConfig, seed: int) -> dict[Split, RawSplit]:
    """Images of the source's own validation and test splits, if any; the others are cut off."""
    own: dict[Split, RawSplit | None] = {"test": raw.test, "val": raw.val}
    fractions = {"test": config.test_fraction, "val": config.val_fraction}
    cut = [name for name, split in own.items() if split is None]
    shares = [fractions[name] for name in cut]
    indices = stratified_split(raw.train.labels, raw.class_names, shares, seed)
    names: list[Split] = [*cut, "train"]
    taken = {name: raw.train.take(part) for name, part in zip(names, indices, strict=True)}
    return {name: own.get(name) or taken[name] for name in SPLITS}


def stratified_split(
    labels: Tensor, class_names: Sequence[str], fractions: Sequence[float], seed: int
) -> list[Tensor]:
    """Cut every class into parts of the given fractions; the rest is the last part.

    Args:
        labels: int64 ``(N,)`` in ``[0, K)``.
        class_names: of the K classes.
        fractions: share of each class in each part but the last, above 0; rounded to whole images
            and at least one.
        seed: experiment seed; a class has its own random numbers.

    Returns:
        ``len(fractions) + 1`` ascending index tensors that partition ``range(N)``.

    Raises:
        TeddyError: a class is too small to have an image in every part.
    """
    parts: list[list[Tensor]] = [[] for _ in range(len(fractions) + 1)]
    order = labels.argsort(stable=True)
    for label, members in enumerate(
        order.split(labels.bincount(minlength=len(class_names)).tolist())
    ):
        shuffled = members[permutation(len(members), seed, "split", label)]
        sizes = [max(1, round(fraction * len(members))) for fraction in fractions]
        sizes.append(len(members) - sum(sizes))
        if min(sizes) < 1:
            raise TeddyError(
                f"class {class_names[label]} has {len(members)} images, too few for parts of "
                f"{list(fractions)} and a rest"
            )
        for part, indices in zip(parts, shuffled.split(sizes), strict=True):
            part.append(indices)
    return [torch.cat(part).sort().values for part in parts]


def unbalanced(labels: Tensor, num_classes: int, keep: tuple[float, float], seed: int) -> Tensor:
    """Indices of the images that are left when every class keeps its own share (Table 3, §8-20).

    Args:
        labels: int64 ``(N,)`` of the training split; validation and test images are left alone.
        num_classes: K.
        keep: bounds of the share ``r_c ~ U(low, high)`` of class c, rounded to whole images and
            at least one.
        seed: experiment seed; a class has its own random numbers; images leave in a fixed order,
            so a smaller ``low`` only takes more of the same images away.
    """
    low, high = keep
    kept = []
    for label in range(num_classes):
        members = (labels == label).nonzero().flatten()
        share = low + (high - low) * uniforms(derive(seed, "keep"), torch.tensor([label]), 1).item()
        count = max(1, round(share * len(members)))
        kept.append(members[permutation(len(members), seed, "keep", label)[:count]])
    return torch.cat(kept).sort().values


# ------------------------------------------------------------------------------- images in memory


def _of_arrays(
    raw: RawDataset, parts: Mapping[Split, RawSplit], config: PrepareConfig
) -> tuple[dict[Split, LabelledImages], Json]:
    splits: dict[Split, LabelledImages] = {}
    for name, part in parts.items():
        assert isinstance(part, RawArrays), "a source has arrays or files, not both"
        images = fit_arrays(part.images, config.image_size, config.channels)
        splits[name] = Images(images, part.labels)
    given = raw.train.images.shape[1] if isinstance(raw.train, RawArrays) else config.channels
    total = sum(len(part.labels) for part in parts.values())
    converted = {} if given == config.channels else {mode_of(given): total}
    _log_converted(converted, config.channels)
    return splits, {"checksums": raw.checksums, "converted": converted, "skipped": []}


def _of_files(
    raw: RawDataset, parts: Mapping[Split, RawSplit], config: PrepareConfig, seed: int
) -> tuple[dict[Split, LabelledImages], Json]:
    files: dict[Split, RawFiles] = {
        name: part for name, part in parts.items() if isinstance(part, RawFiles)
    }
    found, images = _open(files, config)
    usable, skipped = _usable(files, found, config)
    splits: dict[Split, LabelledImages] = {}
    for name, part in files.items():
        kept = part.take(usable[name]) if len(usable[name]) < len(part.files) else part
        if config.storage == "files":
            splits[name] = ImageFiles(
                kept.root, kept.files, kept.sizes, kept.labels, config.image_size, config.channels
            )
        else:
            pixels = images.pop(name)
            whole = len(kept.files) == len(part.files)
            splits[name] = Images(pixels if whole else pixels[usable[name]], kept.labels)
    modes = Counter(one.mode for split in found.values() for one in split if one.mode)
    modes.pop(mode_of(config.channels), None)
    _log_converted(modes, config.channels)
    _log_turned(found)
    opened = any(found.values())
    return splits, {
        "checksums": _checksums(raw, files, found, config),
        "converted": dict(modes) if opened else None,
        "skipped": skipped,
    }


def _open(
    files: Mapping[Split, RawFiles], config: PrepareConfig
) -> tuple[dict[Split, list[Found]], dict[Split, Tensor]]:
    """Open each file as often as is needed: once, or not at all.

    Files that stay on disk are decoded only if unreadable ones are to be left out, which must find
    all of them; headers are read where contents are hashed anyway; else nothing is opened, because
    that takes long for a million files, and damage is named when it is met in training.
    """
    found: dict[Split, list[Found]] = {}
    images: dict[Split, Tensor] = {}
    for name, part in files.items():
        if config.storage == "memory":
            images[name], found[name] = decode(
                part.root, part.files, config.image_size, config.channels, name
            )
        else:
            whole = config.on_unreadable == "skip"
            found[name] = (
                inspect(part.root, part.files, config.channels, name, whole=whole)
                if _opens_all(config)
                else []
            )
    return found, images


def _opens_all(config: PrepareConfig) -> bool:
    return (config.storage, config.on_unreadable, config.checksums) != ("files", "refuse", "sizes")


def _usable(
    files: Mapping[Split, RawFiles], found: Mapping[Split, list[Found]], config: PrepareConfig
) -> tuple[dict[Split, Tensor], list[str]]:
    """Indices of readable images in each split, and the names of the others."""
    usable: dict[Split, Tensor] = {}
    problems: dict[str, str] = {}
    for name, part in files.items():
        bad = {i: one.problem for i, one in enumerate(found[name]) if one.problem}
        bad |= {i: "empty file" for i, size in enumerate(part.sizes) if size == 0 and i not in bad}
        problems |= {part.files[i]: reason for i, reason in bad.items()}
        usable[name] = torch.tensor([i for i in range(len(part.files)) if i not in bad])
    if problems:
        root = files["train"].root
        named = _some([f"{name} ({problems[name]})" for name in sorted(problems)])
        message = f"{root}: {len(problems)} images are unreadable: {named}"
        if config.on_unreadable == "refuse":
            raise TeddyError(
                f"{message}; mend or remove them, or leave them out by prepare.on_unreadable: skip"
            )
        log(f"left out: {message}")
    return usable, sorted(problems)


def _log_converted(modes: Mapping[str, int], channels: int) -> None:
    if modes:
        each = ", ".join(f"{modes[mode]} from {mode}" for mode in sorted(modes))
        log(f"converted {sum(modes.values())} images to {mode_of(channels)}: {each}")


def _log_turned(found: Mapping[Split, list[Found]]) -> None:
    every = [one.turned for split in found.values() for one in split]
    if any(every):
        log(f"{sum(every)} of {len(every)} images are turned as their orientation tags say")


def _checksums(
    raw: RawDataset,
    files: Mapping[Split, RawFiles],
    found: Mapping[Split, list[Found]],
    config: PrepareConfig,
) -> dict[str, str]:
    """Of names and sizes, and if asked for of the contents, as the source has them.

    Contents are those of the source's own training and test images, whatever the seed.
    """
    listed = [
        f"{name}\0{size}"
        for part in files.values()
        for name, size in zip(part.files, part.sizes, strict=True)
    ]
    checksums = {"names and sizes": _sha256(listed)}
    if config.checksums == "contents":
        of_test = set(raw.test.files) if isinstance(raw.test, RawFiles) else set()
        contents: dict[str, list[str]] = {"train": [], "test": []}
        for split, part in files.items():
            for name, one in zip(part.files, found[split], strict=True):
                origin = "test" if name in of_test else "train"
                contents[origin].append(f"{name}\0{one.sha256.hex()}")
        checksums |= {
            f"{name} contents": _sha256(lines) for name, lines in contents.items() if lines
        }
    return checksums


def _sha256(lines: Iterable[str]) -> str:
    return "sha256:" + hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _duplicates(dataset: ImageDataset) -> int | None:
    """Test images whose pixels are also those of a training or validation image."""
    splits = {name: dataset.split(name) for name in SPLITS}
    rows: dict[Split, list[bytes]] = {}
    for name, split in splits.items():
        if not isinstance(split, Images):
            return None
        pixels = split.images.contiguous().numpy()
        rows[name] = [hashlib.blake2b(image, digest_size=16).digest() for image in pixels]
    seen = {*rows["train"], *rows["val"]}
    count = sum(row in seen for row in rows["test"])
    if count:
        log(f"warning: {count} test images are also among the training or validation images")
    return count


# ------------------------------------------------------------------------------------ statistics


def _normalisation(train: LabelledImages, config: PrepareConfig, seed: int) -> Normalisation:
    """The given mean and std, or those of the training images (of 2,000, if they are on disk)."""
    if config.mean:
        return Normalisation(config.mean, config.std)
    if isinstance(train, Images):
        return measure(train.images)
    chosen = permutation(len(train), seed, "statistics")[:_MEASURED_FILES].sort().values
    sample = RawFiles(train.root, train.files, train.sizes, train.labels).take(chosen)
    images, found = decode(sample.root, sample.files, config.image_size, config.channels, "sample")
    _usable({"train": sample}, {"train": found}, config)
    if not _opens_all(config):
        _log_turned({"train": found})
    return measure(images)


def measure(images: Tensor) -> Normalisation:
    """Mean and population standard deviation of each channel, pixels in ``[0, 1]``, six decimals.

    Args:
        images: uint8 ``(N, C, H, W)``.

    Raises:
        TeddyError: a channel has one value only.
    """
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        # Counts of the 256 values are exact, whatever the order and number of images.
        chunks = images[:, channel].split(1024)
        counts = sum(chunk.flatten().bincount(minlength=256) for chunk in chunks)
        shares = torch.as_tensor(counts, dtype=torch.float64) / images[:, channel].numel()
        mean.append((shares * values).sum())
        std.append((shares * (values - mean[-1]) ** 2).sum().sqrt())
    if min(std) == 0:
        raise TeddyError("all training images have one and the same value in a channel")
    return Normalisation(_rounded(mean), _rounded(std))


def _rounded(values: Sequence[Tensor]) -> tuple[float, ...]:
    return tuple(round(value.item(), 6) for value in values)


# ----------------------------------------------------------------------------------------- files


def write_dataset(folder: Path, dataset: ImageDataset, facts: Json) -> None:
    """Write a prepared dataset: arrays or list of files, and a manifest with ``facts``."""
    storage, content = _write_content(folder, dataset)
    counts = {
        name: torch.bincount(dataset.split(name).labels, minlength=dataset.num_classes).tolist()
        for name in SPLITS
    }
    manifest = facts | {
        **storage,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mean": list(dataset.normalisation.mean),
        "std": list(dataset.normalisation.std),
        "images_per_class": counts,
        "sha256": digest(content),
    }
    write_json(folder / MANIFEST, manifest)


def _write_content(folder: Path, dataset: ImageDataset) -> tuple[Json, Path]:
    splits = {name: dataset.split(name) for name in SPLITS}
    if isinstance(dataset.train, ImageFiles):
        record: Json = {
            name: {
                "files": list(split.files),
                "sizes": list(split.sizes),
                "labels": split.labels.tolist(),
            }
            for name, split in splits.items()
            if isinstance(split, ImageFiles)
        }
        write_json(folder / FILES, record)
        return {"storage": "files", "root": str(dataset.train.root)}, folder / FILES
    tensors = {}
    for name, split in splits.items():
        assert isinstance(split, Images), "splits are stored alike"
        tensors[f"{name}.images"] = split.images
        tensors[f"{name}.labels"] = split.labels
    write_tensors(folder / ARRAYS, tensors, kind=ARRAYS_KIND, record={})
    return {"storage": "memory"}, folder / ARRAYS
