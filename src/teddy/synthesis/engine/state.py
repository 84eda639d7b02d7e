"""A batch of images while it is optimised: all that the next step needs."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from teddy.core.artifacts import read_tensors, write_tensors
from teddy.core.files import Json
from teddy.synthesis.engine.lanes import Lane
from teddy.teachers.optimizers import Optimizer, restore

_KIND = "teddy.batch-state.v1"


@dataclass(slots=True)
class State:
    """Images, optimiser and losses of a batch; a killed run goes on from its file."""

    images: Tensor
    """Normalised float ``(N, C, H, W)``, a leaf that requires grad."""
    optimizer: Optimizer
    losses: Tensor
    """``(steps, …)``, a row per step; they stay on the device."""
    done: int = 0
    """Steps that are done."""
    kept: Json = field(default_factory=dict)
    """What was chosen for the batch that its bytes depend on; recorded with the set."""
    more: dict[str, Tensor] = field(default_factory=dict)
    """Further tensors that the next step needs, written in place."""
    lane: Lane = field(default_factory=Lane)
    whole: bool = True
    """False while an update is under way, from which nothing can go on."""

    def update(self, lr: float) -> None:
        """Step of the optimiser along the images' gradient, which is dropped."""
        self.whole = False
        self.optimizer.step(lr)
        self.whole = True

    def finish_step(self, losses: Tensor) -> None:
        """Note the losses of a step, which is done now."""
        self.losses[self.done] = losses
        self.done += 1

    def save(self, path: Path) -> None:
        """Write everything the next step needs."""
        tensors = {"images": self.images, "losses": self.losses}
        tensors |= {f"optimizer.{i}": value for i, value in enumerate(self.optimizer.state())}
        tensors |= {f"more.{name}": value for name, value in self.more.items()}
        write_tensors(path, tensors, kind=_KIND, record={"done": self.done, "kept": self.kept})

    def restore(self, path: Path) -> None:
        """Continue from a file, in place."""
        tensors, record = read_tensors(path, kind=_KIND)
        with torch.no_grad():
            self.images.copy_(tensors["images"])
            self.losses.copy_(tensors["losses"])
            for name, value in self.more.items():
                value.copy_(tensors[f"more.{name}"])
        restore(
            self.optimizer,
            [tensors[f"optimizer.{i}"] for i in range(len(self.optimizer.state()))],
        )
        self.done, self.kept = int(record["done"]), record["kept"]
