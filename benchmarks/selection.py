"""Choosing real images of CIFAR-10's size: RDED beside a plain loop, and the coresets.

Random images, and a pool of ConvNet-3 that learnt nothing: what a choice costs depends on neither.
The loop crops image by image with torchvision, as the public code of RDED does in its data loader,
and asks the same observer about as many crops. ``--programs rded`` is RDED alone.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.command import (
    SEED,
    Benchmark,
    Result,
    Side,
    machine,
    median,
    pick_device_and_threads,
    positive,
    ratio,
    seconds,
    shared_settings,
    take_turns,
    two_sides,
)
from teddy.core.artifacts import WorkDir
from teddy.core.files import digest, write_json
from teddy.core.runtime import log
from teddy.core.seeding import rng
from teddy.core.tables import Column, Table
from teddy.data.datasets import ImageDataset
from teddy.data.images import Images, Normalisation
from teddy.settings.baselines import MosaicConfig
from teddy.settings.configs import CoresetConfig, NetworkConfig
from teddy.settings.schema import from_json
from teddy.synthesis.coresets import Coreset
from teddy.synthesis.methods import Ingredients
from teddy.synthesis.mosaics import Mosaics, mosaic
from teddy.teachers.making import member_name
from teddy.teachers.networks import build, save_network
from teddy.teachers.pools import MANIFEST, open_pool

_CLASSES, _SHAPE = 10, (3, 32, 32)
_LOOP = "rded, image by image"
PROGRAMS = ("rded", _LOOP, "herding", "kmeans", "kcentre", "el2n", "forgetting")


@dataclass(frozen=True, slots=True)
class Workload:
    """What is chosen, from what, by whom."""

    images: int
    ipc: int
    candidates: int
    factor: int
    width: int
    teachers: int


def _options(command: argparse.ArgumentParser) -> None:
    sizes = {
        "images": 50_000, "ipc": 10, "candidates": 300, "factor": 1, "width": 128, "teachers": 8,
    }  # fmt: skip
    for name, default in sizes.items():
        command.add_argument(
            f"--{name}", type=positive, default=default, help="(default: %(default)s)"
        )
    command.add_argument(
        "--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS[:2], metavar="NAME",
        help=f"of {'; '.join(PROGRAMS)} (default: the first two); ratios to the first",
    )  # fmt: skip
    command.add_argument("--threads", type=positive, default=2, help="(default: %(default)s)")


def _measure(args: argparse.Namespace) -> Result:
    device = pick_device_and_threads(args)
    workload = Workload(
        images=args.images, ipc=args.ipc, candidates=args.candidates, factor=args.factor,
        width=args.width, teachers=args.teachers,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="teddy-bench-") as folder:
        _write_pool(workload, Path(folder))
        with two_sides(args.threads) as sides:
            calls = {
                name: partial(_call, sides[name != _LOOP], (workload, name, folder, device.type))
                for name in args.programs
            }
            measured = take_turns(calls, args.repeats)
    first = measured[args.programs[0]]
    lines = [(name, median(values), ratio(values, first)) for name, values in measured.items()]
    columns = (
        Column("program", text=True), Column("s", spec=".2f"), Column("× first", spec=".2f"),
    )  # fmt: skip
    note = (
        f"{args.ipc} images for each of {_CLASSES} classes of {args.images} images of 3×32×32 "
        f"pixels, ConvNet-3 of width {args.width}; RDED looks at {args.candidates} images of a "
        f"class with {MosaicConfig().crops} crops each, EL2N and forgetting at all by "
        f"{args.teachers} teachers. Medians of {args.repeats} rounds in turn, {machine(device)}."
    )
    record = {
        "settings": shared_settings(args, device) | asdict(workload), "seconds": measured,
    }  # fmt: skip
    return Result(record, (Table("Choosing real images", columns, tuple(lines), (note,)),))


def _call(side: Side, job: tuple[Workload, str, str, str], turn: int) -> float:
    log(f"  {job[1]}, {f'round {turn}' if turn else 'untimed'}")
    return float(side.call(_seconds, *job))


def _seconds(workload: Workload, name: str, pool: str, device: str) -> float:
    """Seconds of a program in this process."""
    return seconds(_program(workload, name, pool, device), torch.device(device))


@lru_cache
def _program(workload: Workload, name: str, pool: str, device: str) -> Callable[[], object]:
    """What chooses from images in memory by a pool on disk."""
    given = _ingredients(workload, pool, device)
    work, method = WorkDir("bench", "selection"), mosaics(workload, given)
    if name == _LOOP:
        return partial(image_by_image, method, workload.ipc)
    if name == "rded":
        return partial(method.make, workload.ipc, work)
    chosen = {"choose": name, "scores": "lowest", "easiest": 1.0, "crops": 1}
    views = {"crop_scale": 1.0, "hflip": False, "roll": [0, 0]}
    config = from_json(CoresetConfig, {**chosen, "views": views}, "bench")
    return partial(Coreset(config, given).make, workload.ipc, work)


def mosaics(workload: Workload, given: Ingredients) -> Mosaics:
    """RDED as a workload has it."""
    config = MosaicConfig(candidates=workload.candidates, factor=workload.factor)
    return Mosaics(config, given)


@torch.no_grad()
def image_by_image(method: Mosaics, ipc: int) -> Tensor:
    """Images ``(K, ipc, C, H, W)`` as a data loader and a plain loop over classes make them."""
    from torchvision.transforms import v2

    data, pool, factor = method.data, method.given.pool, method.config.factor
    assert pool is not None, "RDED has an observer"
    observer, side = pool.member(len(pool) - 1, method.device), data.image_shape[1]
    crop = v2.RandomResizedCrop(
        side // factor, (method.config.crop_scale, 1.0), (1.0, 1.0), antialias=True
    )
    blank, made = (side - side // factor) // 2, []
    for label in range(data.num_classes):
        images = data.normalisation.apply(data.train.pick(method.candidates(label)))
        crops = torch.stack(
            [torch.stack([crop(image) for image in images]) for _ in range(method.config.crops)]
        ).to(method.device)
        logits = torch.stack([observer(pad(own, 4 * [blank])) for own in crops])
        losses, which = (-logits.log_softmax(2)[:, :, label]).min(dim=0)
        best = losses.argsort()[: ipc * factor**2]
        made.append(mosaic(crops[which[best], best], factor))
    images = data.normalisation.to_uint8(torch.cat(made))
    return images.view(-1, ipc, *images.shape[1:])


@lru_cache
def _ingredients(workload: Workload, pool: str, device: str) -> Ingredients:
    pixels = torch.randint(
        0, 256, (workload.images, *_SHAPE), dtype=torch.uint8, generator=rng(SEED, "bench choice")
    )
    split = Images(pixels, torch.arange(workload.images) % _CLASSES)
    names = tuple(map(str, range(_CLASSES)))
    data = ImageDataset(split, split, split, names, Normalisation((0.5,) * 3, (0.25,) * 3))
    return Ingredients(data, SEED, torch.device(device), open_pool(Path(pool)))


def _write_pool(workload: Workload, folder: Path) -> None:
    config, members = NetworkConfig(arch="convnet3", width=workload.width, norm="batch"), []
    for number in range(workload.teachers):
        path = folder / member_name(number)
        save_network(path, build(config, _SHAPE, _CLASSES, number), config, _SHAPE, _CLASSES)
        members.append({"file": path.name, "sha256": digest(path), "epoch": 1 + number})
    write_json(folder / MANIFEST, {"members": members})


BENCHMARK = Benchmark(__doc__.splitlines()[0], _options, _measure, repeats=3)
