"""Classes of a set in another format: which of ours they are, or why that cannot be told."""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.settings.schema import shown, suggest
from teddy.sharing.bundles import class_folder
from teddy.sharing.formats.found import Wanted

_NUMBER = re.compile(r"(?:new|class)?_?([0-9]+)")  # 3, 00003 (RDED), new003 (SRe2L)
ORDERS = ("sorted", "ours")
"""What numbers of classes may count: sorted names, as torchvision's ``ImageFolder``, or ours."""


class Told(NamedTuple):
    """Which classes of ours those of another format are."""

    labels: list[int]
    """Ours, of each of theirs in the order of their numbers."""
    order: str | None
    """That of their numbers, of :data:`ORDERS`; None if it makes no difference."""
    notes: tuple[str, ...] = ()
    """What is to be said of that."""


def plain_folders(names: Sequence[str]) -> list[str]:
    """Folders of classes, whose sorted order is that of the labels: number, then name."""
    width = max(4, len(str(len(names) - 1)))
    parts = (class_folder(label, names)[len(f"{label:04d}") :] for label in range(len(names)))
    return [f"{label:0{width}d}{part}" for label, part in enumerate(parts)]


def counted(names: Sequence[str], order: str | None, where: str) -> list[int]:
    """Label of the classes that numbers 0, 1, … mean.

    Args:
        names: of the classes, in the order of labels.
        order: of :data:`ORDERS`; None where it makes no difference, as names are sorted, or are
            the numbers themselves.
        where: what messages begin with.

    Raises:
        TeddyError: no order is named, and it would make a difference.
    """
    own = list(range(len(names)))
    in_order = sorted(own, key=lambda label: names[label])
    if order is None and in_order != own and list(names) != [str(label) for label in own]:
        raise TeddyError(
            f"{where}: expected --class-order, as classes are told by numbers and their names are "
            f"not sorted; got none: say --class-order sorted (0 is {shown(names[in_order[0]])}) if "
            "the other code labels by torchvision's ImageFolder, as MTT, SRe2L and RDED label "
            f"Tiny-ImageNet, or --class-order ours (0 is {shown(names[0])})"
        )
    return in_order if order == "sorted" else own


def labels_of(
    names: Collection[str], wanted: Wanted, where: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Labels of classes that come in no order, as folders do.

    Names that are those of the prepared dataset map by name; numbers from 0 on, which may have
    zeros or ``new`` before them, by number.

    Args:
        names: of all classes.
        wanted: the prepared dataset's.
        where: what messages begin with.

    Returns:
        Label of each, and what is to be said of that.

    Raises:
        TeddyError: neither, or both with different results; or numbers whose sorted order, which
            torchvision labels by, is another; or it is not said what numbers count.
    """
    found, known = sorted(names), wanted.names
    by_name = {name: label for label, name in enumerate(known)}
    numbers = {n: int(match[1]) for n in found if (match := _NUMBER.fullmatch(n))}
    numbered = sorted(numbers.values()) == list(range(len(known))) and len(numbers) == len(found)
    if set(found) == set(known):
        differing = next((n for n in found if numbered and numbers[n] != by_name[n]), None)
        if differing is None:
            return by_name, _not_needed(wanted)
        raise TeddyError(
            f"{where}: {differing!r} may mean class {by_name[differing]} by its name, or class "
            f"{numbers[differing]} by its number; rename the folders to "
            f"{plain_folders(known)[0]} and so on"
        )
    if not numbered:
        return _by_both(found, wanted, where)
    for label, name in enumerate(found):
        if numbers[name] != label:
            raise TeddyError(
                f"{where}: {name!r} may mean class {numbers[name]} by its number, or class {label} "
                "by its place in sorted order, which torchvision labels by; write all numbers with "
                "as many digits"
            )
    told = by_number(wanted, where)
    return {name: told.labels[number] for name, number in numbers.items()}, told.notes


def _by_both(
    found: Sequence[str], wanted: Wanted, where: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Labels of folders that are called by number and name, whatever the numbers count."""
    fitting = dict[str, dict[str, int]]()
    for order in ORDERS:
        labels = counted(wanted.names, order, where)
        folders = plain_folders([wanted.names[label] for label in labels])
        if set(folders) == set(found):
            fitting[order] = dict(zip(folders, labels, strict=True))
    if not fitting:
        raise TeddyError(f"{where}: {_difference(found, wanted)}")
    first, *others = fitting.values()
    if first in others or not others:
        return first, _not_needed(wanted)
    counted(wanted.names, wanted.order, where)  # names that look alike in folders
    return fitting[wanted.order or "ours"], ()


def by_number(wanted: Wanted, where: str) -> Told:
    """Classes that are told by their numbers alone, which is said.

    Args:
        wanted: the prepared dataset's.
        where: what messages begin with.

    Raises:
        TeddyError: it is not said what numbers count.
    """
    known, labels = wanted.names, counted(wanted.names, wanted.order, where)
    if list(known) == [str(label) for label in labels]:
        return Told(labels, wanted.order)
    why = f" in the order {wanted.order!r}" if wanted.order else ""
    return Told(labels, wanted.order, (
        f"classes were told by their numbers{why}: 0 is taken for {shown(known[labels[0]])}, "
        f"{len(known) - 1} for {shown(known[labels[-1]])}",
    ))  # fmt: skip


def in_order(names: Sequence[str], wanted: Wanted, where: str) -> Told:
    """Classes that are named in the order of their labels: those of the prepared dataset.

    That order must be the dataset's or that of sorted names. The numbers 0, 1, … are accepted for
    any names.

    Raises:
        TeddyError: naming the first class that differs; or numbers, of which it is not said what
            they count.
    """
    known = wanted.names
    if tuple(names) == known:
        return Told(list(range(len(known))), "ours", _not_needed(wanted))
    if list(names) == [str(label) for label in range(len(known))] and set(names) != set(known):
        return by_number(wanted, where)
    if len(names) != len(known) or set(names) != set(known):
        raise TeddyError(f"{where}: {_difference(names, wanted)}")
    if list(names) == sorted(known):
        said = "classes are in the order of their sorted names there, and were told by name"
        return Told(counted(known, "sorted", where), "sorted", (said, *_not_needed(wanted)))
    label = next(i for i, (one, other) in enumerate(zip(names, known, strict=True)) if one != other)
    raise TeddyError(
        f"{where}: classes are in another order than those of {wanted.folder}: class {label} is "
        f"{shown(names[label])}, not {shown(known[label])}"
    )


def _not_needed(wanted: Wanted) -> tuple[str, ...]:
    return ("classes were told by name; --class-order had no use",) if wanted.order else ()


def ours(labels: Tensor, told: Sequence[int], wanted: Wanted, where: str) -> Tensor:
    """Labels of theirs as labels of ours.

    Args:
        labels: int64 ``(N,)``.
        told: ours, of each of theirs.
        wanted: the prepared dataset's classes.
        where: what messages begin with.

    Raises:
        TeddyError: a label is out of range, or a class is without images.
    """
    check_range(labels, wanted, where)
    own = torch.tensor(told)[labels]
    check_labels(own, wanted, where)
    return own


def check_range(labels: Tensor, wanted: Wanted, where: str) -> None:
    """Refuse labels, int64 ``(N,)``, that are out of range.

    Raises:
        TeddyError: naming the lowest and the highest.
    """
    count = len(wanted.names)
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or high >= count:
        raise TeddyError(
            f"{where}: labels must be from 0 to {count - 1}, as {wanted.folder} has {count} "
            f"classes; got {low} to {high}"
        )


def check_labels(labels: Tensor, wanted: Wanted, where: str) -> None:
    """Refuse labels out of range, or a class without images.

    Args:
        labels: int64 ``(N,)``.
        wanted: the prepared dataset's classes.
        where: what messages begin with.

    Raises:
        TeddyError: naming the label or the class.
    """
    check_range(labels, wanted, where)
    for label, images in enumerate(labels.bincount(minlength=len(wanted.names)).tolist()):
        if not images:
            raise TeddyError(
                f"{where}: every class of {wanted.folder} must have images; got none of class "
                f"{label} ({shown(wanted.names[label])})"
            )


def _difference(names: Sequence[str], wanted: Wanted) -> str:
    """What of names is not in the prepared dataset."""
    known = wanted.names
    if len(names) != len(known):
        return (
            f"expected the {len(known)} classes of {wanted.folder}, or the numbers 0 to "
            f"{len(known) - 1}; got {len(names)}: {shown(list(names))}"
        )
    other = next((name for name in names if name not in known), names[0])
    return (
        f"expected the classes of {wanted.folder}, or the numbers 0 to {len(known) - 1}; got "
        f"{shown(other)}; {suggest(other, known)}"
    )
