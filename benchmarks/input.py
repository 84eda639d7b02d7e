"""Images in memory to augmented batches, beside torchvision's loader with worker processes."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.command import SEED, Benchmark, Result, positive, take_turns
from teddy.core.errors import TeddyError
from teddy.core.hardware import processor
from teddy.core.runtime import cores
from teddy.core.seeding import permutation, rng
from teddy.core.tables import Column, Table
from teddy.data.images import Images, Normalisation
from teddy.settings.configs import ViewConfig

Arrays = npt.NDArray[np.uint8]
_CROP_SCALE = 0.08  # torchvision's RandomResizedCrop
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def _input_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cifar10", type=Path, metavar="FOLDER",
        help="folder with cifar-10-batches-py, whose images to use (default: random images)",
    )  # fmt: skip
    command.add_argument("--batch", type=positive, default=256, help="images (%(default)s)")
    command.add_argument(
        "--images", type=positive, default=10240, help="images per round (%(default)s)"
    )


def _measure_input(args: argparse.Namespace) -> Result:
    """Images in memory to augmented batches: ours beside torchvision's with worker processes."""
    if args.images < 2 * args.batch:
        raise TeddyError(f"--images must be at least two batches, got {args.images}")
    torch.set_num_threads(cores())
    small = _random_images(args.images, 32) if args.cifar10 is None else _cifar10(args.cifar10)
    cases = {
        ("random" if args.cifar10 is None else "CIFAR-10", 32): small[: args.images],
        ("random", 64): _random_images(args.images, 64),
    }
    sections, rows = [], []
    for (source, size), images in cases.items():
        speeds = take_turns(_input_programs(images, args.batch), args.repeats)
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        fastest = max(value for name, value in medians.items() if name != _OURS)
        rows += [
            (f"{size} × {size} ({source})", name, value, value / fastest)
            for name, value in medians.items()
        ]
        sections.append(
            {
                "image_size": size,
                "source": source,
                "images_per_second": speeds,
                "median": medians,
                "ratio_to_fastest_reference": medians[_OURS] / fastest,
            }
        )
    record = {
        "settings": {
            "batch": args.batch, "images_per_round": len(small[: args.images]),
            "repeats": args.repeats, "seed": SEED, "workers_of_references": cores(),
        },
        "cases": sections,
    }  # fmt: skip
    columns = (
        Column("images", text=True), Column("program", text=True),
        Column("images/s", spec=",.0f"), Column("÷ fastest reference", spec=".2f"),
    )  # fmt: skip
    notes = (
        f"Median of {args.repeats} rounds of {args.images} images in batches of {args.batch}: "
        f"RandomResizedCrop({_CROP_SCALE}–1), flip, normalisation. {processor()}, {cores()} cores:"
        f" {cores()} worker processes for references, {cores()} threads in one process for ours.",
    )
    table = Table("Augmented batches from memory", columns, tuple(rows), notes)
    return Result(record, (table,))


_OURS = "teddy.data.images.Images"


def _random_images(count: int, size: int) -> Arrays:
    """uint8 ``(N, S, S, 3)``."""
    generator = rng(SEED, "bench images", size)
    return torch.randint(
        0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator
    ).numpy()


def _cifar10(folder: Path) -> Arrays:
    """Training images by torchvision's own loader, uint8 ``(50000, 32, 32, 3)``."""
    from torchvision.datasets import CIFAR10

    class Unchecked(CIFAR10):  # type: ignore[misc]
        """Accepts archives that were packed again, whose checksums differ."""

        train_list = tuple((name, None) for name, _ in CIFAR10.train_list)
        test_list = tuple((name, None) for name, _ in CIFAR10.test_list)

    try:
        images: Arrays = Unchecked(folder, train=True).data
    except RuntimeError as error:
        raise TeddyError(
            f"{folder}: expected CIFAR-10's folder cifar-10-batches-py in it ({error})"
        ) from error
    return images


def _input_programs(images: Arrays, batch: int) -> dict[str, Callable[[int], float]]:
    """Images per second of a round, by program."""
    programs = {_OURS: _ours(images, batch)}
    for name, transform in _references(images.shape[1]).items():
        programs[name] = _reference(_PilDataset(images, transform), batch)
    return programs


def _ours(images: Arrays, batch: int) -> Callable[[int], float]:
    held = Images(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.zeros(len(images)).long()
    )
    views = ViewConfig(crop_scale=_CROP_SCALE, hflip=True, roll=(0, 0))
    normalisation = Normalisation(_CIFAR_MEAN, _CIFAR_STD)

    def round_(turn: int) -> float:
        order = permutation(len(held), SEED, "order", turn)
        batches = held.train_batches(order.split(batch), views, normalisation, SEED, "view", turn)
        return _speed(batches)

    return round_


class _PilDataset(Dataset[tuple[torch.Tensor, int]]):
    """As torchvision's CIFAR10: every image goes through Pillow to the transform."""

    def __init__(self, images: Arrays, transform: Callable[[Any], torch.Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), 0


def _references(size: int) -> dict[str, Callable[[Any], torch.Tensor]]:
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    scale, normalise = (_CROP_SCALE, 1.0), (_CIFAR_MEAN, _CIFAR_STD)
    to_float = v2.ToDtype(torch.float32, scale=True)
    return {
        "torchvision.transforms": v1.Compose([
            v1.RandomResizedCrop(size, scale), v1.RandomHorizontalFlip(), v1.ToTensor(),
            v1.Normalize(*normalise),
        ]),
        "torchvision.transforms, uint8": v1.Compose([
            v1.RandomResizedCrop(size, scale), v1.RandomHorizontalFlip(), v1.PILToTensor(),
            v1.ConvertImageDtype(torch.float32), v1.Normalize(*normalise),
        ]),
        "torchvision.transforms.v2, Pillow": v2.Compose([
            v2.RandomResizedCrop(size, scale), v2.RandomHorizontalFlip(), v2.PILToTensor(),
            to_float, v2.Normalize(*normalise),
        ]),
        "torchvision.transforms.v2, tensors": v2.Compose([
            v2.PILToTensor(), v2.RandomResizedCrop(size, scale), v2.RandomHorizontalFlip(),
            to_float, v2.Normalize(*normalise),
        ]),
    }  # fmt: skip


def _reference(dataset: _PilDataset, batch: int) -> Callable[[int], float]:
    loader = DataLoader(
        dataset, batch, shuffle=True, num_workers=cores(), persistent_workers=True,
        generator=torch.Generator().manual_seed(SEED),
    )  # fmt: skip
    return lambda turn: _speed(loader)


def _speed(batches: Iterable[Any]) -> float:
    """Images per second from the first batch on, which starts whatever must be started."""
    iterator: Iterator[Any] = iter(batches)
    next(iterator)
    start = time.perf_counter()
    count = sum(len(images) for images, _ in iterator)
    return count / (time.perf_counter() - start)


BENCHMARK = Benchmark(
    "augmented batches from images in memory, beside torchvision's loader",
    _input_options,
    _measure_input,
)
