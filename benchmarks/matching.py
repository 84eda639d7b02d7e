"""Gradient and trajectory matching beside loops as the public code has them.

One step of the images: of DC and DSA for one class, of MTT through all steps of a student. Loops of
peers call the networks, distances and augmentations of a checkout, ``--dc`` of
VICO-UoE/DatasetCondensation and ``--mtt`` of GeorgeCazenavette/mtt-distillation; without one, those
of this package.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

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
from benchmarks.memory import peak_bytes
from teddy.core.files import Json
from teddy.core.seeding import rng
from teddy.core.tables import Column, Table
from teddy.data.datasets import ImageDataset
from teddy.data.dsa import draw_dsa, draw_shared_dsa
from teddy.data.images import Images, Normalisation
from teddy.settings.baselines import USUAL_DSA, GradientMatchingConfig
from teddy.settings.configs import NetworkConfig
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.gradient_matching import GradientMatching, distance
from teddy.synthesis.methods import Ingredients
from teddy.synthesis.unrolling import in_constant_memory, shaped, unrolled
from teddy.teachers.experts import flat
from teddy.teachers.networks import build

_CLASSES, _SHAPE = 10, (3, 32, 32)


@dataclass(frozen=True, slots=True)
class Workload:
    """What a step is of."""

    kind: str
    """dc, dsa or mtt."""
    width: int = 128
    ipc: int = 10
    real_batch: int = 256
    student_steps: int = 10

    @property
    def title(self) -> str:
        """For tables."""
        rest = (
            f"{self.ipc} images per class, {self.student_steps} steps" if self.kind == "mtt"
            else f"{self.ipc} and {self.real_batch} images of a class"
        )  # fmt: skip
        return f"{self.kind.upper()}, {rest}, ConvNet-3 of width {self.width}"


WORKLOADS = {
    "dc": Workload("dc"), "dsa": Workload("dsa"), "mtt-ipc1": Workload("mtt", ipc=1),
    "mtt-ipc10": Workload("mtt", width=32),
}  # fmt: skip


def _options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME",
        help=f"of {', '.join(WORKLOADS)} (default: all)",
    )  # fmt: skip
    command.add_argument("--dc", type=Path, help="checkout of VICO-UoE/DatasetCondensation")
    command.add_argument("--mtt", type=Path, help="checkout of GeorgeCazenavette/mtt-distillation")
    command.add_argument("--threads", type=positive, default=1, help="(default: %(default)s)")


def _measure(args: argparse.Namespace) -> Result:
    device, measured = pick_device_and_threads(args), dict[str, Json]()
    with two_sides(args.threads) as sides:
        for name in args.workloads:
            workload = WORKLOADS[name]
            checkout = args.mtt if workload.kind == "mtt" else args.dc
            programs = ["ours", "theirs"]
            programs += ["ours, one step at a time"] if workload.kind == "mtt" else []
            calls = {
                one: partial(_call, sides[one != "theirs"], (workload, one, checkout))
                for one in programs
            }
            found = take_turns(calls, args.repeats)
            measured[name] = {
                "title": workload.title,
                "peer": str(checkout.name) if checkout else None,
                "seconds": found,
                "peak_bytes": {
                    one: sides[one != "theirs"].call(_peak, workload, one, checkout)
                    for one in programs
                },
            }
    lines = [
        (
            record["title"] if program == "ours" else "", program, median(values),
            ratio(record["seconds"]["theirs"], values), record["peak_bytes"][program] / 2**20,
            record["peak_bytes"][program] / record["peak_bytes"]["theirs"],
        )
        for record in measured.values()
        for program, values in record["seconds"].items()
    ]  # fmt: skip
    columns = (
        Column("step", text=True), Column("program", text=True), Column("s", spec=".3f"),
        Column("times as fast", spec=".2f"), Column("MiB", spec=",.0f"),
        Column("× theirs", spec=".2f"),
    )  # fmt: skip
    note = (
        f"Medians of {args.repeats} rounds in turn, {machine(device)}; ratios within rounds. MiB: "
        "most that PyTorch has allocated at a time above what lay there before. Allocator settings "
        "of a stage on our side, PyTorch's own on theirs."
    )
    record = {"settings": shared_settings(args, device), "workloads": measured}
    return Result(
        record, (Table("Gradient and trajectory matching", columns, tuple(lines), (note,)),)
    )


def _call(side: Side, job: tuple[Workload, str, Path | None], turn: int) -> float:
    return float(side.call(_seconds, *job))


def _seconds(workload: Workload, program: str, checkout: Path | None) -> float:
    return seconds(_program(workload, program, checkout), torch.device("cpu"))


def _peak(workload: Workload, program: str, checkout: Path | None) -> int:
    return peak_bytes(_program(workload, program, checkout), torch.device("cpu"))


@lru_cache
def _program(workload: Workload, program: str, checkout: Path | None) -> Callable[[], Any]:
    if workload.kind == "mtt":
        return _trajectory(workload, program, checkout)
    return _gradient(workload, program, checkout)


# ------------------------------------------------------------------------------------ the programs


def _gradient(workload: Workload, program: str, checkout: Path | None) -> Callable[[], Any]:
    """Distance of gradients of one class, and its gradient in the pixels."""
    count = workload.real_batch + workload.ipc * (_CLASSES - 1)
    pixels = torch.randint(
        0, 256, (count, *_SHAPE), dtype=torch.uint8, generator=rng(SEED, "bench matching")
    )
    labels = torch.zeros(count, dtype=torch.int64)
    labels[workload.real_batch :] = torch.arange(1, _CLASSES).repeat(workload.ipc)
    split = Images(pixels, labels)
    names = tuple(map(str, range(_CLASSES)))
    data = ImageDataset(split, split, split, names, Normalisation((0.5,) * 3, (0.25,) * 3))
    config = GradientMatchingConfig(
        network=NetworkConfig(arch="convnet3", width=workload.width, norm="instance"),
        real_batch=workload.real_batch, augmentation="dsa" if workload.kind == "dsa" else "none",
    )  # fmt: skip
    method = GradientMatching(config, Ingredients(data, SEED, torch.device("cpu")))
    batch = Batch(0, 0, range(workload.ipc), range(1))
    start = method.initial_images(batch).requires_grad_()
    network = method.network(0)
    if program == "ours":
        return lambda: torch.autograd.grad(method.loss(network, start, batch, 0, 0), [start])
    real = data.normalisation.apply(pixels[: workload.real_batch])
    augment: Any = _shared_dsa
    distant: Any = distance
    if checkout:
        utils, networks = _modules(checkout, "utils", "networks")
        theirs = networks.ConvNet(3, _CLASSES, workload.width, 3, "relu", "instancenorm",
                                  "avgpooling", (32, 32))  # fmt: skip
        theirs.load_state_dict(dict(zip(theirs.state_dict(), network.state_dict().values(),
                                        strict=True)))  # fmt: skip
        network, strategy = theirs, "_".join(USUAL_DSA.operations)
        augment = partial(utils.DiffAugment, strategy=strategy, param=utils.ParamDiffAug())
        distant = partial(
            utils.match_loss, args=argparse.Namespace(device="cpu", dis_metric="ours")
        )
    parameters = list(network.parameters())

    def step() -> None:
        chosen, own = real[torch.randperm(len(real))], start
        if workload.kind == "dsa":
            chosen, own = augment(chosen, seed=1), augment(own, seed=1)
        labels = torch.zeros(len(chosen), dtype=torch.int64)
        expected = [
            slope.detach().clone()
            for slope in torch.autograd.grad(cross_entropy(network(chosen), labels), parameters)
        ]
        found = torch.autograd.grad(
            cross_entropy(network(own), labels[: len(own)]), parameters, create_graph=True
        )
        torch.autograd.grad(distant(found, expected), [start])

    return step


def _shared_dsa(images: Tensor, seed: int) -> Tensor:
    return draw_shared_dsa(USUAL_DSA, SEED, "bench", seed)(images)


def _trajectory(workload: Workload, program: str, checkout: Path | None) -> Callable[[], Any]:
    """The trajectory loss and its gradients in pixels and learning rate."""
    config = NetworkConfig(arch="convnet3", width=workload.width, norm="instance")
    network: nn.Module = build(config, _SHAPE, _CLASSES, SEED)
    start = flat(list(network.parameters())).detach()
    generator = rng(SEED, "bench matching")
    target = start + 0.01 * torch.randn(start.shape, generator=generator)
    count, rate = workload.ipc * _CLASSES, torch.tensor(0.01)
    images = torch.randn(count, *_SHAPE, generator=generator)
    labels = torch.arange(count) % _CLASSES
    named, everyone = dict(network.named_parameters()), torch.arange(count)

    def loss_of(step: int, parameters: Tensor, own: Tensor) -> Tensor:
        inputs = draw_dsa(USUAL_DSA, SEED, "bench", step, indices=everyone)(own)
        logits = functional_call(network, shaped(parameters, named), (inputs,))
        return cross_entropy(logits, labels)

    given = (loss_of, images, rate, start, target, workload.student_steps)
    if program != "theirs":
        return partial(unrolled if program == "ours" else in_constant_memory, *given)
    theirs: Callable[..., Tensor] = partial(_as_function, network, named)
    if checkout:
        networks, reparam = _modules(checkout, "networks", "reparam_module")
        theirs = reparam.ReparamModule(networks.ConvNet(
            3, _CLASSES, workload.width, 3, "relu", "instancenorm", "avgpooling", (32, 32)
        ))  # fmt: skip

    def step() -> None:
        pixels, learned = images.clone().requires_grad_(), rate.clone().requires_grad_()
        way = [start.clone().requires_grad_()]
        for number in range(workload.student_steps):
            inputs = draw_dsa(USUAL_DSA, SEED, "bench", number, indices=everyone)(pixels)
            loss = cross_entropy(theirs(inputs, flat_param=way[-1]), labels)
            (slope,) = torch.autograd.grad(loss, way[-1], create_graph=True)
            way.append(way[-1] - learned * slope)
        total = mse_loss(way[-1], target, reduction="sum")
        total = total / mse_loss(start, target, reduction="sum")
        torch.autograd.grad(total, [pixels, learned])

    return step


def _as_function(
    network: nn.Module, named: dict[str, nn.Parameter], images: Tensor, flat_param: Tensor
) -> Tensor:
    logits: Tensor = functional_call(network, shaped(flat_param, named), (images,))
    return logits


def _modules(checkout: Path, *names: str) -> list[Any]:
    """Modules of a checkout, which other checkouts may have too."""
    sys.path.insert(0, str(checkout.absolute()))
    try:
        for name in names:
            sys.modules.pop(name, None)
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(checkout.absolute()))


BENCHMARK = Benchmark(__doc__.splitlines()[0], _options, _measure)
