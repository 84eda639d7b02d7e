"""Making teachers: the base trajectory, and the pools built from it (§3.3, Table 6).

A base folder holds ``epoch0001.safetensors …`` and ``record.json``; a pool folder is described in
:mod:`teddy.teachers.pools`.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import ALONE, Team, barrier, leave_to_first, share
from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest, read_json
from teddy.core.runtime import log
from teddy.core.seeding import derive
from teddy.data.datasets import ImageDataset
from teddy.settings.configs import (
    NetworkConfig,
    OptimizerConfig,
    PostConfig,
    TrainTeacherConfig,
)
from teddy.settings.schema import from_json
from teddy.teachers.networks import (
    build,
    count_parameters,
    load_network,
    load_pretrained,
    read_network_record,
    save_network,
)
from teddy.teachers.pruning import count_macs, prune_randomly
from teddy.teachers.recalibration import recalibrate
from teddy.teachers.training import Run, accuracy, fit, real_batches

RECORD = "record.json"
_CLAIM_TOLERANCE = 0.5  # points; other decoders and resizing move ImageNet's top-1 by 0.1


def checkpoint_name(epoch: int) -> str:
    """File of the state after ``epoch`` completed epochs (1-based)."""
    return f"epoch{epoch:04d}.safetensors"


# -------------------------------------------------------------------------------- base trajectory


def train_base(
    config: TrainTeacherConfig,
    data: ImageDataset,
    seed: int,
    work: WorkDir | Path,
    device: torch.device,
    team: Team = ALONE,
) -> list[Json]:
    """Train the one base model, caching a checkpoint after every epoch in ``work``.

    Args:
        config: network, optimiser and length of the run; its batches are shared by the team.
        data: where it learns and is measured.
        seed: of the run.
        work: where checkpoints and resume points go.
        device: of this process.
        team: processes that train together. Their number changes results: BatchNorm sees shares.

    Returns:
        Per epoch: ``epoch`` (1-based), training ``loss`` and held-out ``val_top1`` in percent.

    Raises:
        TeddyError: too many processes for the batch, or the run ends near chance.
    """
    _refuse_small_shares(config.batch_size, len(data.train), team.size)
    network = build(config.network, data.image_shape, data.num_classes, seed)
    train, val = data.train.to(device), data.val.to(device)

    def after_epoch(epoch: int) -> Json:
        top1 = accuracy(network, val, data.normalisation, config.precision, team)
        if team.rank == 0:
            save_network(
                work / checkpoint_name(epoch + 1), network, config.network, data.image_shape,
                data.num_classes, {"epoch": epoch + 1, "val_top1": top1},
            )  # fmt: skip
        return {"val_top1": top1}

    run = Run(
        name="train_teacher",
        seed=seed,
        epochs=config.epochs,
        steps_per_epoch=math.ceil(len(train) / config.batch_size),
        batches=real_batches(
            train, data.normalisation, config.views, config.batch_size, seed, team=team
        ),
        after_epoch=after_epoch,
        precision=config.precision,
        resume=work / "resume.safetensors",
        team=team,
    )
    history = fit(network, config.optimizer, run, device)
    _refuse_guessing(history[-1]["val_top1"], data.val.labels)
    return history


def take_base(
    config: TrainTeacherConfig,
    data: ImageDataset,
    work: WorkDir,
    device: torch.device,
    team: Team = ALONE,
) -> list[Json]:
    """A converged network that was trained elsewhere as a base run of one checkpoint.

    Its accuracy is measured on the test images, which is what published accuracies are of, for
    this comparison alone. Held-out accuracy is optimistic if it was trained on those images.

    Returns:
        As :func:`train_base`, without a loss and with ``test_top1``.

    Raises:
        TeddyError: not loadable, or its accuracy is not what ``claimed_top1`` says.
    """
    network = load_pretrained(
        config.network, data.image_shape, data.num_classes, config.checkpoint
    ).to(device)
    test, val = data.test.to(device), data.val.to(device)
    top1 = accuracy(network, test, data.normalisation, team=team)
    if abs(top1 - config.claimed_top1) > _CLAIM_TOLERANCE:
        raise TeddyError(
            f"train_teacher.checkpoint {config.checkpoint} has {top1:.2f} % on the {len(test)} "
            f"test images, but claimed_top1 is {config.claimed_top1}; check the order of classes, "
            "the normalisation and the image size, or correct the claim"
        )
    record = {
        "epoch": 1,
        "val_top1": accuracy(network, val, data.normalisation, team=team),
        "test_top1": top1,
    }
    if team.rank == 0:
        save_network(
            work / checkpoint_name(1), network, config.network, data.image_shape,
            data.num_classes, record,
        )  # fmt: skip
    return [record]


def _refuse_small_shares(batch_size: int, images: int, processes: int) -> None:
    smallest = images // math.ceil(images / batch_size)
    if processes > 1 and smallest < 2 * processes:
        raise TeddyError(
            f"train_teacher.batch_size {batch_size} cuts {images} images into steps of "
            f"{smallest}, less than two images for each of {processes} processes; start fewer "
            "processes or choose a larger batch_size"
        )


def _refuse_guessing(top1: float, labels: Tensor) -> None:
    """Refuse a teacher that has learnt less than a tenth of what lies above guessing.

    A few held-out images cannot tell: what is lower, but not by two standard errors, is a warning.

    Args:
        top1: accuracy (%).
        labels: ``(N,)`` of the held-out images; guessing is to say their most frequent class.
    """
    images = len(labels)
    guessing = 100 * int(labels.bincount().max()) / images
    least = guessing + 0.1 * (100 - guessing)
    if guessing == 100:  # one class alone tells nothing
        return
    message = (
        f"train_teacher: held-out accuracy {top1:.1f} % of {images} images is near that of always "
        f"saying their most frequent class ({guessing:.1f} %); check the data's labels, or train "
        "longer"
    )
    if top1 < least - 2 * math.sqrt(least * (100 - least) / images):
        raise TeddyError(message)
    if top1 < least:
        log(f"warning: {message}")


# ------------------------------------------------------------------------------------------ pools


def member_name(index: int) -> str:
    """File of a pool's member."""
    return f"member{index:02d}.safetensors"


def build_prior(base: Path, epochs: Sequence[int], work: WorkDir) -> list[Json]:
    """Prior-generation: the checkpoints of the given 1-based epochs are the members.

    Returns:
        Manifest entry of every member, as all three builders do; files are left in ``work``.
    """
    entries = []
    for index, epoch in enumerate(epochs):
        network, record = load_network(base / checkpoint_name(epoch))
        _save_member(work / member_name(index), network, record, {"epoch": epoch})
        entries.append(_entry(work / member_name(index)))
    return entries


def build_converged(base: Path, work: WorkDir) -> list[Json]:
    """SRe2L's pool of one: the last checkpoint of the base run."""
    return build_prior(base, [read_json(base / RECORD)["epochs"][-1]["epoch"]], work)


def build_post(
    base: Path,
    curve: Sequence[float],
    config: PostConfig,
    epochs: Sequence[int],
    data: ImageDataset,
    seed: int,
    work: WorkDir,
    device: torch.device,
) -> list[Json]:
    """Post-generation: randomly pruned copies of the converged model, fine-tuned very little.

    Member i imitates the i-th point of the prior pool's accuracy curve (§4.1), taken at the prior
    pool's ``epochs`` of ``curve``, percent after every epoch of a base run: fine-tuning stops
    as soon as its held-out accuracy reaches it, and after ``max_epochs`` at the latest. Processes
    share the members; only the first one returns.
    """
    history = read_json(base / RECORD)["epochs"]
    targets = interpolate([curve[epoch - 1] for epoch in epochs], config.size)
    rates = log_spaced(*config.lr, config.size)
    converged, record = load_network(base / checkpoint_name(history[-1]["epoch"]))
    for index in share(config.size):
        path, target, lr = work / member_name(index), targets[index], rates[index]
        if not path.exists():
            own = derive(seed, "post", index)
            network = prune_randomly(converged, data.image_shape, config.pruning_ratio, own)
            facts = {"seed": own, "lr": lr, "target_top1": target}
            facts |= _finetune(network, config, target, lr, data, own, work, device)
            _save_member(path, network, record, facts)
    barrier()
    leave_to_first()
    entries = [_entry(work / member_name(index)) for index in range(config.size)]
    for index, entry in enumerate(entries):
        log(f"  member {index}: {_describe(entry)}")
    return entries


def _describe(entry: Json) -> str:
    top1, epochs, target = entry["val_top1"], entry["finetune_epochs"], entry["target_top1"]
    return f"{top1:.1f} % held-out after {epochs:.2f} epochs of fine-tuning (target {target:.1f} %)"


def _finetune(
    network: nn.Module,
    config: PostConfig,
    target: float,
    lr: float,
    data: ImageDataset,
    seed: int,
    work: WorkDir,
    device: torch.device,
) -> Json:
    """Fine-tune until the target is reached; epochs it took and held-out accuracy."""
    network.to(device)
    train, val = data.train.to(device), data.val.to(device)
    before = accuracy(network, val, data.normalisation)
    segments = config.checks_per_epoch
    run = Run(
        name=f"build_pool post, lr {lr:.3g}",
        seed=seed,
        epochs=round(config.max_epochs * segments),
        steps_per_epoch=math.ceil(len(train) / segments / config.batch_size),
        batches=real_batches(
            train, data.normalisation, config.views, config.batch_size, seed, segments
        ),
        after_epoch=lambda _: {"val_top1": accuracy(network, val, data.normalisation)},
        precision="float32",
        resume=work / f"resume-{seed}.safetensors",
        stop=lambda history: (history[-1]["val_top1"] if history else before) >= target,
    )
    history = fit(network, _sgd(config, lr), run, device)
    if not history and config.bn_recalibrate:
        recalibrate(network, train, data.normalisation, seed)
        before = accuracy(network, val, data.normalisation)
    top1 = history[-1]["val_top1"] if history else before
    return {"finetune_epochs": len(history) / segments, "val_top1": top1}


def _sgd(config: PostConfig, lr: float) -> OptimizerConfig:
    return OptimizerConfig(
        name="sgd",
        lr=lr,
        momentum=config.momentum,
        betas=(0.9, 0.999),
        weight_decay=config.weight_decay,
        decay_1d=True,
        schedule="constant",
        step_epochs=1,
        step_factor=1.0,
        warmup_epochs=0,
    )


def interpolate(curve: Sequence[float], points: int) -> list[float]:
    """Curve sampled linearly at ``points`` equally spaced places, ends included."""
    last = len(curve) - 1
    values = []
    for index in range(points):
        place = last * index / max(1, points - 1)
        low = min(int(place), max(0, last - 1))
        high = min(low + 1, last)
        values.append(curve[low] + (place - low) * (curve[high] - curve[low]))
    return values


def log_spaced(first: float, last: float, points: int) -> list[float]:
    """``points`` numbers from first to last, equally spaced in the logarithm."""
    ratio = last / first
    return [first * ratio ** (index / max(1, points - 1)) for index in range(points)]


def _save_member(path: Path, network: nn.Module, record: Json, facts: Json) -> None:
    """Write a member with what the manifest says of it."""
    config = from_json(NetworkConfig, record["network"], str(path))
    channels, height, width = record["image_shape"]
    shape = (channels, height, width)
    known = {
        "val_top1": record["val_top1"],
        "parameters": count_parameters(network),
        "macs": count_macs(network, shape),
    }
    network.cpu()
    save_network(path, network, config, shape, record["num_classes"], known | facts)


def _entry(path: Path) -> Json:
    """Manifest entry of a member file."""
    record = read_network_record(path)
    facts = {k: v for k, v in record.items() if k not in ("network", "image_shape", "num_classes")}
    return {"file": path.name, "sha256": digest(path), **facts}
