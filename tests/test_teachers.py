"""The base: trained and refused near chance, or trained elsewhere and taken if it is as claimed."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from teddy.core.artifacts import WorkDir
from teddy.core.errors import TeddyError
from teddy.data.datasets import ImageDataset
from teddy.data.images import Images
from teddy.settings.configs import NetworkConfig, OptimizerConfig, TrainTeacherConfig, ViewConfig
from teddy.teachers.making import _refuse_guessing, checkpoint_name, take_base, train_base
from teddy.teachers.networks import load_network
from teddy.teachers.pools import Pool
from teddy.teachers.training import accuracy

CPU = torch.device("cpu")


@pytest.fixture
def taking(
    pool: Pool,
    dataset: ImageDataset,
    network_config: NetworkConfig,
    view_config: ViewConfig,
    optimizer_config: OptimizerConfig,
) -> TrainTeacherConfig:
    """Take a member of the pool, and claim what it really has."""
    path = pool.folder / "member2.safetensors"
    network, _ = load_network(path)
    return TrainTeacherConfig(
        network=network_config, epochs=3, batch_size=16, optimizer=optimizer_config,
        views=view_config, precision="float32", checkpoint=str(path),
        claimed_top1=accuracy(network, dataset.test, dataset.normalisation),
    )  # fmt: skip


def test_checkpoint_with_the_claimed_accuracy_becomes_the_only_one(
    taking: TrainTeacherConfig, dataset: ImageDataset, workplace: Path
) -> None:
    work = WorkDir("train_teacher", "taken")
    (record,) = take_base(taking, dataset, work, CPU)
    assert record["epoch"] == 1
    assert record["test_top1"] == taking.claimed_top1
    network, kept = load_network(work / checkpoint_name(1))
    assert kept["val_top1"] == accuracy(network, dataset.val, dataset.normalisation)
    given, _ = load_network(Path(taking.checkpoint))
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(network.parameters(), given.parameters(), strict=True)
    )


def test_checkpoint_with_another_accuracy_is_refused(
    taking: TrainTeacherConfig, dataset: ImageDataset, workplace: Path
) -> None:
    """The tolerance is half a point, in whichever direction there is room for a claim."""
    sign = -1 if taking.claimed_top1 > 50 else 1
    for error in (0.4, 0.6):
        claim = taking.claimed_top1 + sign * error
        claiming = dataclasses.replace(taking, claimed_top1=claim)
        work = WorkDir("train_teacher", "taken")
        if error < 0.5:
            take_base(claiming, dataset, work, CPU)
            continue
        with pytest.raises(TeddyError, match=r"on the 12 test images, but claimed_top1 is"):
            take_base(claiming, dataset, work, CPU)


def unlearnable(data: ImageDataset, held_out: int) -> ImageDataset:
    """The dataset with wrong labels: of its validation images, repeated to ``held_out``."""
    assert isinstance(data.val, Images)
    rows = torch.arange(held_out) % len(data.val)
    labels = (data.val.labels[rows] + 1) % data.num_classes
    return dataclasses.replace(data, val=Images(data.val.images[rows], labels))


@pytest.mark.parametrize(("held_out", "refused"), [(300, True), (3, False)])
def test_teacher_near_chance_is_refused_if_the_images_are_enough_to_tell(
    taking: TrainTeacherConfig,
    dataset: ImageDataset,
    workplace: Path,
    held_out: int,
    refused: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = dataclasses.replace(taking, checkpoint="", claimed_top1=0, epochs=12)
    work, data = WorkDir("train_teacher", "chance"), unlearnable(dataset, held_out)
    near = rf"held-out accuracy \d+\.\d % of {held_out} images is near that of always"
    if refused:
        with pytest.raises(TeddyError, match=near):
            train_base(config, data, 0, work, CPU)
    else:
        train_base(config, data, 0, work, CPU)
        assert re.search(f"warning: .*{near}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("top1", "labels", "outcome"),
    [
        (90.0, [0] * 180 + [1] * 20, "warning"),  # always the first class; chance would be 50 %
        (80.0, [0] * 180 + [1] * 20, "error"),
        (95.0, [0] * 180 + [1] * 20, ""),
        (54.0, [0, 1] * 100, "warning"),
        (65.0, [0, 1] * 100, ""),
        (50.0, [0] * 20, ""),  # one class tells nothing
    ],
)
def test_guessing_is_to_say_the_most_frequent_class(
    top1: float, labels: list[int], outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if outcome == "error":
        with pytest.raises(TeddyError, match=r"most frequent class \(90\.0 %\)"):
            _refuse_guessing(top1, torch.tensor(labels))
        return
    _refuse_guessing(top1, torch.tensor(labels))
    assert ("warning" in capsys.readouterr().err) == bool(outcome)
