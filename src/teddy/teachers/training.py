"""The one supervised loop that teachers, pruned teachers and students share.

Everything an epoch does depends on ``(seed, epoch)`` alone, so a run that was killed and resumed
from its last saved epoch gives the same weights as one that was not.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from teddy.core.artifacts import read_tensors, write_tensors
from teddy.core.distributed import ALONE, Team
from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.live import Live
from teddy.core.runtime import autocast, progress, save_interval
from teddy.core.seeding import derive, permutation
from teddy.data.datasets import LabelledImages
from teddy.data.images import Normalisation
from teddy.settings.configs import OptimizerConfig, ViewConfig
from teddy.teachers.optimizers import Adam, Group, Optimizer, Sgd, restore

Step = tuple[Tensor, Callable[[Tensor], Tensor]]
"""Inputs of one step, and the loss of the network's outputs on them."""

_KIND = "teddy.training.v1"
_WARMUP_START = 0.01  # zeyuanyin/tiny-imagenet: linear warm-up from 1 % of the base rate


def learning_rate(config: OptimizerConfig, epoch: int, fraction: float, epochs: int) -> float:
    """Learning rate within an epoch.

    Args:
        config: base rate and schedule.
        epoch: counted from 0.
        fraction: how far the epoch has gone, in [0, 1); only the warm-up uses it.
        epochs: length of the run.
    """
    if epoch < config.warmup_epochs:
        gone = (epoch + fraction) / config.warmup_epochs
        return config.lr * (_WARMUP_START + (1 - _WARMUP_START) * gone)
    if config.schedule in ("cosine", "half_cosine"):
        stretch = 2 if config.schedule == "half_cosine" else 1  # EDC's st, and ζ of its smoothing
        gone = (epoch - config.warmup_epochs) / (stretch * max(1, epochs - config.warmup_epochs))
        return config.lr * 0.5 * (1 + math.cos(math.pi * gone))
    if config.schedule == "step":
        return float(config.lr * config.step_factor ** (epoch // config.step_epochs))
    return config.lr


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> Optimizer:
    """SGD or AdamW; biases and norm parameters (1-D) decay only if ``decay_1d`` says so."""
    parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
    groups = [
        Group([p for p in parameters if p.ndim > 1], config.weight_decay),
        Group(
            [p for p in parameters if p.ndim <= 1], config.weight_decay if config.decay_1d else 0.0
        ),
    ]
    if config.name == "sgd":
        return Sgd(groups, config.momentum)
    return Adam(groups, config.betas, decoupled=True)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a supervised run needs besides its network and optimiser."""

    name: str
    """Named in progress bars and errors: stage and item."""
    seed: int
    """Of the run; what layers draw themselves (dropout) depends on it and the epoch."""
    epochs: int
    """Length of the run."""
    steps_per_epoch: int
    """Steps that ``batches`` yields, for the warm-up."""
    batches: Callable[[int], Iterable[Step]]
    """Steps of a 0-based epoch."""
    after_epoch: Callable[[int], Json]
    """Called with the 0-based epoch that has ended; its record is kept in the history."""
    precision: str
    """Autocast dtype."""
    resume: Path
    """Where the state of an unfinished run is kept."""
    save_every_seconds: float = field(default_factory=save_interval)
    """Least time between two saved states; costs no accuracy, only lost work."""
    stop: Callable[[list[Json]], bool] = lambda history: False
    """End the run early, judged on the history."""
    team: Team = ALONE
    """Processes that train the network together; ``batches`` yields this one's shares."""


def fit(network: nn.Module, config: OptimizerConfig, run: Run, device: torch.device) -> list[Json]:
    """Train a network in place, continuing from ``run.resume`` if it exists.

    All processes of ``run.team`` call this alike and end with the same network.

    Returns:
        One record per epoch: 1-based ``epoch``, mean training ``loss`` and what ``after_epoch``
        returned.

    Raises:
        TeddyError: a loss is not finite; names the run, epoch and step.
    """
    network.to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, config)
    history = _restore(network, optimizer, run.resume) if run.resume.exists() else []
    saved, live = time.monotonic(), Live(run.resume, len(history))
    with progress(run.epochs, run.name, "epoch", len(history)) as bar:
        while len(history) < run.epochs and not run.stop(history):
            epoch = len(history)
            losses = _one_epoch(network, optimizer, config, run, epoch, device)
            run.team.take_buffers_of_first(network)
            record = {"epoch": epoch + 1, "loss": _mean_finite(losses, run.name, epoch)}
            history.append(record | run.after_epoch(epoch))
            live.numbers(epoch + 1, {k: v for k, v in history[-1].items() if k != "epoch"})
            bar.update()
            bar.set_postfix(loss=f"{record['loss']:.3f}")
            if run.team.rank == 0 and time.monotonic() - saved >= run.save_every_seconds:
                _save(network, optimizer, history, run.resume)
                saved = time.monotonic()
    live.close()
    network.to(memory_format=torch.contiguous_format)
    return history


def _one_epoch(
    network: nn.Module,
    optimizer: Optimizer,
    config: OptimizerConfig,
    run: Run,
    epoch: int,
    device: torch.device,
) -> Tensor:
    """Mean loss over the team of every step."""
    network.train()
    _seed_layers(derive(run.seed, "layers", epoch, run.team.rank), device)
    replica = run.team.replicate(network)
    losses = []
    for step, (inputs, loss_of) in enumerate(run.batches(epoch)):
        lr = learning_rate(config, epoch, step / run.steps_per_epoch, run.epochs)
        inputs = inputs.to(memory_format=torch.channels_last)
        with autocast(device, run.precision):
            outputs = replica(inputs)
        loss = loss_of(outputs)
        loss.backward()
        optimizer.step(lr)
        losses.append(loss.detach())
    return run.team.sum(torch.stack(losses)) / run.team.size


def _seed_layers(seed: int, device: torch.device) -> None:
    """As ``torch.manual_seed``, without a stack trace for each backend: 0.1 ms of a short epoch."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _mean_finite(losses: Tensor, name: str, epoch: int) -> float:
    """Mean of an epoch's losses; the one host–device sync of the epoch."""
    values = losses.tolist()
    for step, value in enumerate(values):
        if not math.isfinite(value):
            raise TeddyError(
                f"{name}: loss is {value} at epoch {epoch + 1}, step {step + 1}; try a smaller "
                "learning rate"
            )
    return math.fsum(values) / len(values)


def equal_parts(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Cut an order into ⌈n / batch_size⌉ parts whose sizes differ by one at most.

    No part is larger than ``batch_size`` and none is a small remainder, which BatchNorm would
    take poor statistics from.
    """
    return order.tensor_split(math.ceil(len(order) / batch_size))


def real_batches(
    images: LabelledImages,
    normalisation: Normalisation,
    views: ViewConfig,
    batch_size: int,
    seed: int,
    segments: int = 1,
    team: Team = ALONE,
) -> Callable[[int], Iterable[Step]]:
    """Steps over real images in a fresh order every epoch, with a fresh view of every image.

    Args:
        images: on the device of the run.
        normalisation: of the dataset.
        views: training augmentation.
        batch_size: largest step.
        seed: of the run; an epoch's order and views depend on ``(seed, epoch)``.
        segments: cut every epoch into so many, each counted as an epoch of the run.
        team: each of its processes gets its share of every step. A loss is weighted by the size of
            the share, so that the mean over the team, and of its gradients, is that of the step.
    """
    device = images.labels.device

    def epoch_steps(index: int) -> Iterable[Step]:
        epoch, segment = divmod(index, segments)
        order = permutation(len(images), seed, "order", epoch).to(device)
        parts = equal_parts(order.tensor_split(segments)[segment], batch_size)
        batches = images.train_batches(
            [team.share(part) for part in parts], views, normalisation, seed, "view", epoch
        )
        for part, (inputs, labels) in zip(parts, batches, strict=True):
            yield inputs, partial(_hard_loss, labels, team.size * len(labels) / len(part))

    return epoch_steps


def _hard_loss(labels: Tensor, weight: float, logits: Tensor) -> Tensor:
    return weight * nn.functional.cross_entropy(logits.float(), labels)


def accuracy(
    network: nn.Module,
    images: LabelledImages,
    normalisation: Normalisation,
    precision: str = "float32",
    team: Team = ALONE,
) -> float:
    """Top-1 accuracy in percent, eval mode, whole images without augmentation.

    Each process of ``team`` measures its share of the images; all return the whole's accuracy.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with torch.inference_mode(), autocast(device, precision):
        for part, labels in _own_test_batches(images, team):
            inputs = normalisation.apply(part.to(device))
            logits = network(inputs.to(memory_format=torch.channels_last))
            correct += (logits.argmax(1) == labels.to(device)).sum()
    network.train(training)
    return 100.0 * team.sum(correct).item() / len(images)


def _own_test_batches(images: LabelledImages, team: Team) -> Iterator[tuple[Tensor, Tensor]]:
    batch_size = inference_batch(images.shape)
    if team.size == 1:
        yield from images.test_batches(batch_size)
        return
    for part in team.share(torch.arange(len(images))).split(batch_size):
        yield images.pick(part), images.labels[part]


def inference_batch(shape: tuple[int, int, int]) -> int:
    """Images per forward pass: 1,024 up to 128×128 pixels, fewer above, to bound memory."""
    return max(1, min(1024, 2**24 // (shape[1] * shape[2])))


# -------------------------------------------------------------------------------------- resume


def _save(network: nn.Module, optimizer: Optimizer, history: list[Json], path: Path) -> None:
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"optimizer.{i}": value for i, value in enumerate(optimizer.state())}
    write_tensors(path, tensors, kind=_KIND, record={"history": history})


def _restore(network: nn.Module, optimizer: Optimizer, path: Path) -> list[Json]:
    tensors, record = read_tensors(path, kind=_KIND)
    state = network.state_dict()  # with the version of its layout, which MNASNet asks for
    state.update({name: tensors[f"network.{name}"] for name in state})
    network.load_state_dict(state)
    restore(optimizer, [tensors[f"optimizer.{i}"] for i in range(len(optimizer.state()))])
    return list(record["history"])
