"""Experts, whose trajectories MTT, FTD and TESLA match: networks trained on all real images.

A folder of experts is a pool (:mod:`teddy.teachers.pools`) of what they are in the end,
``member00.safetensors …``. Beside them lie their trajectories, ``trajectory00.safetensors …``: all
parameters as one vector, at the start and after every epoch.

Cazenavette et al., "Dataset distillation by matching training trajectories" (MTT, CVPR 2022). Du et
al., "Minimizing the accumulated trajectory error to improve dataset distillation" (FTD, CVPR 2023),
train them by GSAM (Zhuang et al., "Surrogate gap minimization improves sharpness-aware training",
ICLR 2022).

Dimensions: ``E`` epochs, ``P`` parameters of a network.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from teddy.core.artifacts import WorkDir, check_tensors, read_tensors, write_tensors
from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest, manifest_digest, read_json
from teddy.core.runtime import log, progress, save_interval
from teddy.core.seeding import permutation
from teddy.data.datasets import ImageDataset
from teddy.data.dsa import draw_dsa
from teddy.settings.baselines import ExpertsConfig
from teddy.settings.configs import NetworkConfig
from teddy.settings.schema import from_json, shown, to_json
from teddy.teachers.networks import build, count_parameters, save_network
from teddy.teachers.optimizers import Group, Sgd, restore
from teddy.teachers.pools import MANIFEST, Pool
from teddy.teachers.training import accuracy, equal_parts

KIND = "experts"
_TRAJECTORY, _RESUME = "teddy.trajectory.v1", "teddy.expert-state.v1"
_TINY = 1e-12
_AGAIN = "run the train_experts stage again"


def member_name(index: int) -> str:
    """File of what an expert is in the end."""
    return f"member{index:02d}.safetensors"


def trajectory_name(index: int) -> str:
    """File of an expert's parameters after every epoch."""
    return f"trajectory{index:02d}.safetensors"


def flat(parameters: Sequence[Tensor]) -> Tensor:
    """Parameters of a network as one vector ``(P,)``."""
    return torch.cat([parameter.flatten() for parameter in parameters])


def check_room(config: ExpertsConfig, data: ImageDataset, work: Path, out: Path) -> None:
    """Refuse trajectories that a disk has no room for, before any expert is trained.

    Args:
        config: how many, and how long.
        data: what they see.
        work: folder where they are made, perhaps with some of a killed run.
        out: folder that they are copied to when all are there.

    Raises:
        TeddyError: naming how many bytes they take, and how many there are.
    """
    parameters = count_parameters(build(config.network, data.image_shape, data.num_classes, 0))
    size = 4 * parameters * config.count * (config.epochs + 2)  # a member is one state more
    made = sum(path.stat().st_size for path in work.glob("*.safetensors"))
    needed: dict[int, int] = {}  # by disk
    for folder, own in ((work, max(0, size - made)), (out, size)):
        there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        disk, free = there.stat().st_dev, shutil.disk_usage(there).free
        needed[disk] = needed.get(disk, 0) + own
        if needed[disk] > free:
            raise TeddyError(
                f"{folder}: {config.count} experts of {config.epochs} epochs take {size:,} bytes, "
                f"and as many in {work} until they are finished; {needed[disk]:,} are needed on "
                f"this disk, but {free:,} are left; train fewer (count) or smaller ones (network, "
                "epochs)"
            )
    log(f"  {config.count} experts of {config.epochs} epochs: {size / 1e6:,.0f} MB")


def train_expert(
    config: ExpertsConfig, data: ImageDataset, index: int, seed: int, work: WorkDir,
    device: torch.device,
) -> None:  # fmt: skip
    """Train an expert and write both of its files, going on where a killed run has stopped.

    Args:
        config: network, length and rates.
        data: whose training images it learns.
        index: of the expert.
        seed: of the expert: fresh start, order of images, augmentation.
        work: where its files go.
        device: where to work.

    Raises:
        TeddyError: a parameter is no longer finite.
    """
    network = build(config.network, data.image_shape, data.num_classes, seed).to(device)
    parameters, train = list(network.parameters()), data.train.to(device)
    optimizer = Sgd([Group(list(parameters), config.weight_decay)], config.momentum)
    way, resume = [flat(parameters).detach().cpu()], work / f"expert{index:02d}.resume"
    if resume.exists():
        tensors, _ = read_tensors(resume, kind=_RESUME)
        way = list(tensors["way"])
        _put(parameters, way[-1].to(device))
        restore(optimizer, [tensors[f"optimizer.{i}"] for i in range(len(optimizer.state()))])
    saved = time.monotonic()
    with progress(config.epochs, f"train_experts, expert {index}", "epoch", len(way) - 1) as bar:
        for epoch in range(len(way) - 1, config.epochs):
            order = permutation(len(train), seed, "expert order", epoch).to(device)
            for step, part in enumerate(equal_parts(order, config.batch_size)):
                inputs = data.normalisation.apply(train.pick(part).to(device))
                if config.augmentation == "dsa":
                    inputs = draw_dsa(
                        config.dsa, seed, "expert view", epoch, indices=part, step=step
                    )(inputs)
                loss_of = partial(_loss, network, inputs, train.labels[part])
                slopes = gradient(loss_of, parameters, config)
                for parameter, slope in zip(parameters, slopes, strict=True):
                    parameter.grad = slope
                optimizer.step(config.lr)
            way.append(flat(parameters).detach().cpu())
            if not way[-1].isfinite().all():
                raise TeddyError(
                    f"train_experts: expert {index} is no longer finite after epoch {epoch + 1}; "
                    "try a smaller lr"
                )
            bar.update()
            if time.monotonic() - saved >= save_interval():
                state = {f"optimizer.{i}": value for i, value in enumerate(optimizer.state())}
                write_tensors(resume, {"way": torch.stack(way), **state}, kind=_RESUME, record={})
                saved = time.monotonic()
    top1 = accuracy(network, data.val.to(device), data.normalisation)
    facts: Json = {"val_top1": top1, "seed": seed, "parameters": count_parameters(network)}
    about: Json = {"network": to_json(config.network), "image_shape": list(data.image_shape)}
    about |= {"num_classes": data.num_classes, "expert": index, **facts}
    write_tensors(
        work / trajectory_name(index), {"way": torch.stack(way)}, kind=_TRAJECTORY, record=about
    )
    save_network(
        work / member_name(index), network.cpu(), config.network, data.image_shape,
        data.num_classes, facts,
    )  # fmt: skip
    resume.unlink(missing_ok=True)


def _loss(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(network(inputs), labels)


def gradient(
    loss_of: Callable[[], Tensor], parameters: Sequence[Tensor], config: ExpertsConfig
) -> list[Tensor]:
    """Gradient that an expert follows: of the loss, or towards flat minima if it has a radius.

    GSAM follows the gradient where the loss is largest within ``radius`` ρ, to first order, less
    ``gap_weight`` α times the part of the loss's own gradient that is orthogonal to it. Adaptively
    (ASAM) the way there is scaled by the square of each parameter.

    Args:
        loss_of: scalar loss of a batch under the parameters as they are.
        parameters: leaves that require grad; they are moved and put back.
        config: radius, weight, and whether adaptive.
    """
    slopes = list(torch.autograd.grad(loss_of(), parameters))
    if config.radius == 0:
        return slopes
    with torch.no_grad():
        before = [parameter.clone() for parameter in parameters]
        scaled = [
            slope * parameter.abs() if config.adaptive else slope
            for slope, parameter in zip(slopes, parameters, strict=True)
        ]
        length = config.radius / (_norm(scaled) + _TINY)
        for parameter, one in zip(parameters, scaled, strict=True):
            parameter += length * (one * parameter.abs() if config.adaptive else one)
    found = list(torch.autograd.grad(loss_of(), parameters))
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old)
        share = sum(
            ((a * b).sum() for a, b in zip(slopes, found, strict=True)), torch.zeros_like(length)
        ) / (_norm(found).square() + _TINY)
        return [
            there - config.gap_weight * (here - share * there)
            for here, there in zip(slopes, found, strict=True)
        ]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).square().sum().sqrt()


@torch.no_grad()
def _put(parameters: Sequence[Tensor], vector: Tensor) -> None:
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, vector.split(sizes), strict=True):
        parameter.copy_(part.view_as(parameter))


# ------------------------------------------------------------------------------------- on disk


def manifest(name: str, config: ExpertsConfig, data: Path, work: WorkDir) -> Json:
    """What the folder of experts says of them, as a pool."""
    members, trajectories = list[Json](), list[Json]()
    for index in range(config.count):
        path, way = work / member_name(index), work / trajectory_name(index)
        facts = check_tensors(way, {"way": ("F32", (config.epochs + 1, None))}, kind=_TRAJECTORY,
                              again=_AGAIN)  # fmt: skip
        own = {key: facts[key] for key in ("val_top1", "seed", "parameters")}
        members.append({"file": path.name, "sha256": digest(path), **own})
        trajectories.append({"file": way.name, "sha256": digest(way)})
    whole = {"crop_scale": 1.0, "hflip": False, "roll": [0, 0]}  # DSA is none of these views
    return {
        "pool": name,
        "kind": KIND,
        "data": manifest_digest(data),
        "network": to_json(config.network),
        "epochs": config.epochs,
        "training_views": whole,
        "members": members,
        "trajectories": trajectories,
    }


@dataclass(frozen=True, slots=True)
class Experts:
    """Trajectories on disk."""

    folder: Path
    files: tuple[Path, ...]
    """One of each expert."""
    network: NetworkConfig
    epochs: int

    def at(self, expert: int, epoch: int) -> Tensor:
        """All parameters of an expert after an epoch, 0 before the first: float32 ``(P,)``."""
        with safe_open(self.files[expert], framework="pt") as file:
            return cast(Tensor, file.get_slice("way")[epoch])

    def check(self, max_start: int, expert_epochs: int) -> None:
        """Refuse experts that end before the last epoch that is matched.

        Raises:
            TeddyError: naming the settings and both epochs.
        """
        last = max_start - 1 + expert_epochs
        if last > self.epochs:
            raise TeddyError(
                f"{self.folder}: max_start {max_start} and expert_epochs {expert_epochs} need "
                f"{last} epochs of an expert, but these end at epoch {self.epochs}; {_AGAIN}"
            )


def check_data(pool: Pool, data: Path) -> None:
    """Refuse experts that were trained on other images than those that are distilled.

    Raises:
        TeddyError: naming both; other pools are not looked at.
    """
    record = read_json(pool.folder / MANIFEST)
    if record.get("kind") == KIND and record.get("data") != manifest_digest(data):
        raise TeddyError(f"{pool.folder}: has experts of other images than {data}; {_AGAIN}")


def open_experts(pool: Pool, image_shape: tuple[int, int, int], num_classes: int) -> Experts:
    """Open the trajectories of a pool of experts; each file is read once.

    Args:
        pool: of experts.
        image_shape: channels, height and width of what they see.
        num_classes: K.

    Raises:
        TeddyError: a pool of another kind, or a file is not the one that the manifest describes.
    """
    where = pool.folder / MANIFEST
    record = read_json(where)
    if record.get("kind") != KIND:
        raise TeddyError(
            f"{where}: expected experts, whose trajectories are kept, got a pool of kind "
            f"{record.get('kind')!r}; name a row of experts"
        )
    entries, epochs = record.get("trajectories"), record.get("epochs")
    listed = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if not entries or not listed or not isinstance(epochs, int):
        raise TeddyError(
            f"{where}: must have epochs and trajectories, a list of files with their sha256; got "
            f"{shown(epochs)} and {shown(entries)}; {_AGAIN}"
        )
    config = from_json(NetworkConfig, record.get("network"), f"{where}: network")
    parameters = count_parameters(build(config, image_shape, num_classes, 0))
    files = []
    for entry in entries:
        path = pool.folder / Path(str(entry.get("file"))).name
        expected = {"way": ("F32", (epochs + 1, parameters))}
        check_tensors(path, expected, kind=_TRAJECTORY, again=_AGAIN)
        if digest(path) != entry.get("sha256"):
            raise TeddyError(f"{path}: checksum differs from {MANIFEST}; {_AGAIN}")
        files.append(path)
    return Experts(pool.folder, tuple(files), config, epochs)
