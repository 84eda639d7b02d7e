"""The synthesis engine as a benchmark runs it: real batches of a set, on random networks."""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.command import SEED
from teddy.core.errors import TeddyError
from teddy.core.memory import OutOfMemory, memory_watch
from teddy.core.seeding import rng
from teddy.data.datasets import ImageDataset
from teddy.data.images import Images, Normalisation
from teddy.settings.configs import NetworkConfig, SynthesizeConfig
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.engine.lanes import Lane
from teddy.synthesis.engine.passes import MakePasses
from teddy.synthesis.engine.runs import BatchRun
from teddy.synthesis.methods import Ingredients, OptimisedMethod
from teddy.synthesis.teddy import Teddy
from teddy.teachers.networks import batchnorms, build
from teddy.teachers.pools import Pool
from teddy.teachers.pruning import prune_randomly

NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's
_ITERATIONS = 100_000  # more than anyone times


@dataclass(frozen=True, slots=True)
class Workload:
    """A network and the images it looks at."""

    title: str
    arch: str
    size: int
    """Pixels of a side."""
    classes: int
    cpu_batch: int
    """Images where a batch of 100 would take minutes."""
    pruned: float = 0.0
    """Share of channels removed."""

    def batch_of(self, images: int) -> Batch:
        """A batch of so many images.

        Raises:
            TeddyError: a class would have more images than another.
        """
        classes = min(images, self.classes)
        if images % classes:
            raise TeddyError(f"--batch: expected a multiple of {classes} classes, got {images}")
        return Batch(0, 0, range(images // classes), range(classes))


def frozen_network(workload: Workload, seed: int) -> nn.Module:
    """A network in eval mode with random weights, whose running statistics are those of a batch."""
    shape = (3, workload.size, workload.size)
    config = NetworkConfig(arch=workload.arch, width=64, norm="batch")
    network = build(config, shape, workload.classes, seed)
    if workload.pruned:
        network = prune_randomly(network, shape, workload.pruned, seed)
    generator = rng(SEED, "bench statistics", seed)
    layers = batchnorms(network)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(0.5 + torch.rand(len(layer.weight), generator=generator))
            layer.bias.copy_(0.1 * torch.randn(len(layer.bias), generator=generator))
            layer.momentum = 1.0
        network.train()(torch.randn(8, *shape, generator=generator))
    for layer in layers:
        layer.momentum = 0.1
    return network.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class _InMemory(Pool):
    """A pool of networks that lie on no disk."""

    networks: Sequence[nn.Module]

    def member(self, index: int, device: torch.device) -> nn.Module:
        """A copy as a pool on disk hands it out."""
        network = copy.deepcopy(self.networks[index]).to(device)
        return network.to(memory_format=torch.channels_last)


def ingredients(
    workload: Workload, networks: Sequence[nn.Module], config: SynthesizeConfig,
    device: torch.device,
) -> Ingredients:  # fmt: skip
    """What a method works with: no real images, and a pool of some networks."""
    nothing = torch.empty(0, 3, workload.size, workload.size, dtype=torch.uint8)
    images = Images(nothing, torch.empty(0, dtype=torch.int64))
    names = tuple(map(str, range(workload.classes)))
    data = ImageDataset(images, images, images, names, NORMALISATION)
    pool = _InMemory(Path(), [{"file": f"network {n}"} for n in range(len(networks))], networks)
    return Ingredients(data, SEED, device, pool, config.views)


def engine(
    workload: Workload,
    networks: Sequence[nn.Module],
    config: SynthesizeConfig,
    device: torch.device,
    passes: MakePasses | None = None,
) -> Teddy:
    """A synthesiser from noise whose every iteration sees all networks.

    Args:
        workload: what the images are like.
        networks: frozen, in eval mode.
        config: conventions; draws, start and number of iterations are overridden.
        device: where to work.
        passes: how teachers are run (default: what pays).
    """
    own = replace(
        config, draw=len(networks), draw_per="index", initialise="noise", iterations=_ITERATIONS
    )
    return Teddy(own, ingredients(workload, networks, config, device), passes)


class Batches:
    """Batches that are optimised beside each other, an iteration each at a time.

    Args:
        maker: who optimises them.
        batch: images of each.
        beside: how many batches.
    """

    def __init__(self, maker: Teddy, batch: Batch, beside: int = 1) -> None:
        self.maker = maker
        maker.load([batch])
        # Nothing is kept for longer than the benchmark takes.
        never, nowhere = float("inf"), Path(tempfile.gettempdir()) / "teddy-bench-no-such-file"
        self._lanes = [Lane(number, beside - 1) for number in range(beside)]
        if maker.device.type == "cuda" and beside > 1:
            for lane in self._lanes:
                lane.stream = torch.cuda.Stream()
            torch.cuda.synchronize()
        method: OptimisedMethod = maker
        runs = [BatchRun(method, batch, nowhere, save_every=never) for _ in self._lanes]
        self._steps = [run.steps(lane) for run, lane in zip(runs, self._lanes, strict=True)]

    def step(self) -> None:
        """One iteration of every batch, from images to updated images.

        Raises:
            TeddyError: memory does not suffice.
        """
        for lane, steps in zip(self._lanes, self._steps, strict=True):
            try:
                with lane.entered(), memory_watch():
                    next(steps)
            except OutOfMemory as error:
                at_a_time = len(self._lanes)
                raise TeddyError(f"no memory for {at_a_time} batches at a time") from error
