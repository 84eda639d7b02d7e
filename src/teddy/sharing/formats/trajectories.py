"""Tensors as trajectory-matching papers publish them: ``images_best.pt`` and ``labels_best.pt``.

Source: ``distill.py`` of GeorgeCazenavette/mtt-distillation (MTT) and ``distill/distill_FTD.py`` of
AngusDujw/FTD-distillation save images, normalised float32 ordered by class, and int64 classes;
``distill/DATM.py`` of NUS-HPC-AI-Lab/DATM saves logits in the place of classes, and the learnt rate
as ``lr_best.pt``, and its ``distill/evaluation.py`` loads the three. Beside these lie
``images_zca_<iteration>.pt`` of sets that were made from whitened images: the same images with the
whitening undone, as pixels in [0, 1] that are not normalised.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.data.images import Normalisation
from teddy.sharing.bundles import sha256
from teddy.sharing.formats import pixels
from teddy.sharing.formats.classes import Told, by_number, in_order, ours
from teddy.sharing.formats.found import Found, Wanted
from teddy.sharing.formats.notes import (
    CLASSES,
    ClassesRecord,
    read_classes,
    write_classes,
    write_readme,
)
from teddy.sharing.training_set import TrainingSet

IMAGES, LABELS, RATE, HARD = "images_best.pt", "labels_best.pt", "lr_best.pt", "classes_best.pt"
_WHITENED = "images_zca_"
_CHUNK = 256  # images in float64 at a time


def write(
    folder: Path, data: TrainingSet, soft: Tensor | None, rate: float, order: str = "ours"
) -> None:
    """Write images and labels ordered by class, and a rate to learn with.

    Args:
        folder: to write to.
        data: the set.
        soft: a soft label of each image, logits ``(N, K)``, if there are such; else the labels are
            the classes.
        rate: learning rate of students.
        order: that the classes were put into, of ``classes.ORDERS``.
    """
    by_class = data.labels.argsort(stable=True)
    hard = data.labels[by_class]
    labels = hard if soft is None else soft[by_class].float()
    tensors = {
        IMAGES: data.normalisation.apply(data.images[by_class]), LABELS: labels, HARD: hard,
        RATE: torch.tensor(rate),
    }  # fmt: skip
    for name, tensor in tensors.items():
        torch.save(tensor.contiguous(), folder / name)
    write_classes(folder, data, order)
    kind = "int64 classes" if soft is None else "float32 logits, mean of the teachers,"
    write_readme(
        folder, data,
        f"`{IMAGES}` has normalised float32 images `(N, C, H, W)` ordered by class, `{LABELS}` "
        f"{kind} of each, `{HARD}` its class, and `{RATE}` a learning rate: the {rate:g} that was "
        "asked for, since the set was not made for one.",
        f"`torch.load` with `weights_only=True` reads them. `{CLASSES}` has classes and "
        "normalisation.",
    )  # fmt: skip


def read(path: Path, wanted: Wanted) -> Found:
    """Read images, as 8 bits, and their classes.

    Images are denormalised by the mean and standard deviation of ``classes.json`` beside them, by
    those that were asked for, or else by those of the prepared dataset. Classes are those of
    ``classes_best.pt`` or of whole labels; of soft ones the largest entries, if these give every
    class equally many images.

    Args:
        path: folder with ``images_best.pt``, or one file ``images_….pt`` with its labels beside it.
        wanted: classes, and shape of the images.

    Raises:
        TeddyError: a file is missing, is no plain tensor, or does not fit; classes cannot be told;
            or images are whitened.
    """
    file = _images_file(path)
    folder = file.parent
    before, _, ending = file.name.replace(_WHITENED, "images_").partition("images_")
    files = [file, folder / f"{before}labels_{ending}"]
    hard = folder / f"{before}classes_{ending}"
    files += [hard] if hard.is_file() else []
    record = read_classes(folder)
    files += [] if record is None else [folder / CLASSES]
    told = (
        by_number(wanted, str(files[1])) if record is None
        else in_order(record.classes, wanted, str(folder / CLASSES))
    )  # fmt: skip
    normalisation, source = _statistics(file, record, wanted)
    images = _checked(_tensor(file), wanted, file)
    labels = _classes(files[1], hard if hard in files else None, len(images), wanted, told)
    images, facts, notes = _resized(images, wanted)
    rounded, cost, beyond = _rounded(images, normalisation)
    facts |= {"rounding_psnr_db": cost, "pixels_out_of_range": beyond}
    mean, std = list(normalisation.mean), list(normalisation.std)
    facts |= {"denormalised_by": {"mean": mean, "std": std}}
    notes += told.notes
    notes += (
        f"denormalised by mean {mean} and standard deviation {std} of {source}",
        f"rounding to 8 bits costs: {pixels.in_words(cost)}; {100 * beyond:.2f} % of the values "
        "were cut off, darker than black or brighter than white",
    )
    return Found(rounded, labels, {one.name: sha256(one) for one in files}, facts, notes)


def _images_file(path: Path) -> Path:
    file = path / IMAGES if path.is_dir() else path
    if not file.is_file():
        others = sorted(one.name for one in file.parent.glob("*images_*.pt"))
        raise TeddyError(
            f"{file}: expected a file of images, found nothing there"
            + (f"; name one of {', '.join(others)}" if others else "")
        )
    if file.name.count("images_") != 1 or file.suffix != ".pt":
        raise TeddyError(
            f"{file}: expected a file images_<name>.pt, with labels_<name>.pt beside it"
        )
    undone = sorted(one.name for one in file.parent.glob(f"{_WHITENED}*.pt"))
    if undone and _WHITENED not in file.name:
        raise TeddyError(
            f"{file}: these images are whitened (ZCA), as {_WHITENED}….pt beside them tells, and "
            f"no student of ours sees such; name one where that is undone: {', '.join(undone)}"
        )
    return file


def _statistics(
    file: Path, record: ClassesRecord | None, wanted: Wanted
) -> tuple[Normalisation, str]:
    """What images were normalised by, and who says so."""
    asked, channels = wanted.statistics, wanted.shape[0]
    known = None
    if _WHITENED in file.name:
        plain = Normalisation((0.0,) * channels, (1.0,) * channels)
        known = plain, f"{file.name}, whose images are pixels in [0, 1]"
    elif record is not None:
        known = record.normalisation, str(file.parent / CLASSES)
    if known and asked not in (None, known[0]):
        raise TeddyError(
            f"{file}: expected no --mean and --std but {list(known[0].mean)} and "
            f"{list(known[0].std)} of {known[1]}; got {list(asked.mean)} and {list(asked.std)}; "
            "leave them away"
        )
    if known is None:
        hint = f"{wanted.folder}, as nothing else was named (--mean, --std); see docs/formats.md"
        known = (asked, "--mean and --std") if asked else (wanted.normalisation, hint)
    if len(known[0].mean) != channels:
        raise TeddyError(
            f"{known[1]}: mean must have {channels} entries, as images of {wanted.folder} have "
            f"channels; got {list(known[0].mean)}"
        )
    return known


def _tensor(path: Path) -> Tensor:
    """A plain tensor; nothing that a file could run is loaded."""
    if not path.is_file():
        raise TeddyError(f"{path}: expected a tensor, found nothing there")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead it to whatever
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise TeddyError(f"{path}: expected a plain tensor, but cannot load it: {reason}") from None
    if not isinstance(found, Tensor) or (found.layout, found.device.type, found.is_quantized) != (
        torch.strided, "cpu", False,
    ):  # fmt: skip
        raise TeddyError(f"{path}: expected a plain tensor, got {type(found).__name__}")
    if found.numel() * found.element_size() > path.stat().st_size:
        raise TeddyError(f"{path}: expected a plain tensor, got one that is larger than its file")
    return found.detach()


def _checked(images: Tensor, wanted: Wanted, file: Path) -> Tensor:
    channels = wanted.shape[0]
    if (
        not images.is_floating_point()
        or images.ndim != 4
        or images.shape[1] != channels
        or not len(images)
    ):
        raise TeddyError(
            f"{file}: expected float images (N, {channels}, H, W), as {wanted.folder} has "
            f"{channels} channel{'s' * (channels != 1)}; got {images.dtype} of "
            f"{' × '.join(map(str, images.shape)) or 'no size'}"
        )
    pixels.check_side(images.shape[3], images.shape[2], wanted, str(file))
    images = images if images.dtype == torch.float64 else images.float()
    if not images.isfinite().all():
        raise TeddyError(f"{file}: images must be finite; got NaN or infinity")
    return images


def _resized(images: Tensor, wanted: Wanted) -> tuple[Tensor, Json, tuple[str, ...]]:
    side, before = wanted.shape[1], images.shape[-1]
    if before == side:
        return images, {}, ()
    facts, notes = pixels.of_resizing({before}, wanted)
    smaller = interpolate(images, (side, side), mode="bilinear", antialias=True)
    return smaller, facts, notes


def _rounded(
    images: Tensor, normalisation: Normalisation
) -> tuple[Tensor, dict[str, float], float]:
    """Images as uint8, what rounding costs, and the share of values that were out of range."""
    mean, std = (torch.tensor(v).double()[:, None, None] for v in
                 (normalisation.mean, normalisation.std))  # fmt: skip
    rounded, decibels, beyond = list[Tensor](), list[Tensor](), 0
    for part in images.split(_CHUNK):
        levels = (part.double() * std + mean) * 255
        rounded.append(levels.round().clamp(0, 255).to(torch.uint8))
        decibels.append(pixels.psnr(levels, rounded[-1]))
        beyond += int(((levels < -0.5) | (levels > 255.5)).sum())
    return torch.cat(rounded), pixels.summary(torch.cat(decibels)), beyond / images.numel()


def _classes(file: Path, hard: Path | None, count: int, wanted: Wanted, told: Told) -> Tensor:
    """Our class of each image, int64 ``(N,)``."""
    labels = _tensor(file)
    if len(labels.shape) not in (1, 2) or len(labels) != count:
        raise TeddyError(
            f"{file}: expected labels of {count} images; got {labels.dtype} of "
            f"{' × '.join(map(str, labels.shape)) or 'no size'}"
        )
    if labels.ndim == 2 and labels.shape[1] != len(wanted.names):
        raise TeddyError(
            f"{file}: expected soft labels of {len(wanted.names)} classes, as {wanted.folder} has; "
            f"got {labels.shape[1]}"
        )
    classes = labels if hard is None else _tensor(hard)
    if hard is not None and classes.shape != (count,):
        raise TeddyError(f"{hard}: expected classes of {count} images; got {tuple(classes.shape)}")
    if classes.ndim == 2:
        return ours(_largest(classes, file, wanted), told.labels, wanted, str(file))
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TeddyError(f"{hard or file}: classes must be whole numbers; got {classes.dtype}")
    return ours(classes.long(), told.labels, wanted, str(hard or file))


def _largest(logits: Tensor, file: Path, wanted: Wanted) -> Tensor:
    if not (logits.is_floating_point() and logits.float().isfinite().all()):
        raise TeddyError(f"{file}: soft labels must be finite float; got {logits.dtype}")
    classes = logits.float().argmax(dim=1)
    counts = classes.bincount(minlength=len(wanted.names))
    if counts.min() != counts.max():
        raise TeddyError(
            f"{file}: classes cannot be told from these soft labels, whose largest entries give a "
            f"class {int(counts.min())} to {int(counts.max())} images; save the classes, int64 of "
            f"{len(logits)}, as {file.name.replace('labels_', 'classes_')} beside them"
        )
    return classes
