"""Soft labels in fewer bytes: fewer epochs, 8 bits, the largest classes alone.

A label of K classes takes

- 2 K bytes as it is: float16 logits;
- K + 4 with ``label_bits`` 8: rounded to 256 steps between the least and the largest of a view;
- 3 k + 2 with ``label_top_k`` k (4 k + 2 of more than 256 classes; with 8 bits k less, and 4 more):
  all other classes share one logit, their mean.

With ``label_epochs`` S only S epochs have views and labels of their own, and come again and again.

Dimensions: ``E`` epochs, ``N`` images, ``K`` classes, ``k`` classes that are kept.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.settings.configs import RelabelConfig

_STEPS = 255
_BYTE_CLASSES = 256  # more do not fit into a byte
_LEAST = 1e-6  # between the least and the largest logit, where all are alike


def stored_epochs(config: RelabelConfig) -> int:
    """Epochs whose views and labels differ."""
    return config.label_epochs or config.epochs


def check_fits(config: RelabelConfig, images: int, classes: int, folder: Path) -> None:
    """Refuse labels that cannot be kept, before any is computed.

    Args:
        config: how they are kept.
        images: N.
        classes: K.
        folder: to write them to.

    Raises:
        TeddyError: more classes are to be kept than there are, or the disk has no room.
    """
    if config.label_top_k >= classes:
        raise TeddyError(
            f"relabel.label_top_k must be less than {classes}, the number of classes, or 0 for "
            f"all; got {config.label_top_k}"
        )
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    size, free = label_bytes(config, images, classes), shutil.disk_usage(there).free
    if size > free:
        raise TeddyError(
            f"{folder}: soft labels take {size:,} bytes, but {free:,} are left there; keep fewer "
            "(relabel.label_epochs, label_bits, label_top_k) or none (relabel.store: false)"
        )


def label_bytes(config: RelabelConfig, images: int, classes: int) -> int:
    """Size of the soft labels of a set, but for a few hundred bytes of headers."""
    kept, bits = config.label_top_k, config.label_bits
    each = (kept or classes) * bits // 8 + (4 if bits == 8 else 0)
    if kept:
        each += kept * (1 if classes <= _BYTE_CLASSES else 2) + 2
    return stored_epochs(config) * images * each


def encode(logits: Tensor, config: RelabelConfig) -> dict[str, Tensor]:
    """Labels as they are kept.

    Args:
        logits: float16 ``(E, N, K)``.
        config: how; its epochs are not looked at.

    Returns:
        ``logits`` float16, or ``steps`` uint8 with ``low`` and ``high`` float16 ``(E, N)``; with
        ``label_top_k`` these are ``(E, N, k)``, beside ``classes`` and ``rest`` float16 ``(E, N)``.
    """
    found = dict[str, Tensor]()
    if not config.label_top_k and config.label_bits == 16:
        return {"logits": logits}
    kept, count = logits.float(), logits.shape[2]
    if config.label_top_k:
        classes = kept.topk(config.label_top_k, dim=2).indices.sort(dim=2).values
        rest = kept.sum(2) - kept.gather(2, classes).sum(2)
        found["rest"] = (rest / (count - config.label_top_k)).half()
        found["classes"] = classes.to(torch.uint8 if count <= _BYTE_CLASSES else torch.int16)
        kept = kept.gather(2, classes)
    if config.label_bits == 16:
        return found | {"logits": kept.half()}
    low, high = kept.amin(2).half(), kept.amax(2).half()
    reach = (high.float() - low.float()).clamp_min(_LEAST)[..., None]
    steps = ((kept - low.float()[..., None]) / reach * _STEPS).round().clamp(0, _STEPS)
    return found | {"steps": steps.to(torch.uint8), "low": low, "high": high}


def decode(tensors: Mapping[str, Tensor], classes: int) -> Tensor:
    """Logits, float16 ``(E, N, K)``, of what :func:`encode` has made."""
    if tensors.keys() == {"logits"}:
        return tensors["logits"]
    if "logits" in tensors:
        kept = tensors["logits"].float()
    else:
        low, high = (tensors[name].float()[..., None] for name in ("low", "high"))
        kept = low + tensors["steps"].float() / _STEPS * (high - low).clamp_min(_LEAST)
    if "rest" in tensors:
        whole = tensors["rest"].float()[..., None].repeat(1, 1, classes)
        kept = whole.scatter(2, tensors["classes"].long(), kept)
    return kept.half()


def form(
    bits: int, top_k: int, shape: tuple[int, int, int]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Types, as safetensors calls them, and shapes of what :func:`encode` makes.

    Args:
        bits: 8 or 16.
        top_k: classes that are kept, 0 for all.
        shape: E, N and K.
    """
    epochs, images, classes = shape
    values = (epochs, images, top_k or classes)
    found: dict[str, tuple[str, tuple[int, ...]]] = (
        {"logits": ("F16", values)}
        if bits == 16
        else {
            "steps": ("U8", values), "low": ("F16", (epochs, images)),
            "high": ("F16", (epochs, images)),
        }
    )  # fmt: skip
    if top_k:
        found["classes"] = ("U8" if classes <= _BYTE_CLASSES else "I16", values)
        found["rest"] = ("F16", (epochs, images))
    return found
