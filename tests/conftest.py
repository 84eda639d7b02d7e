"""A dataset of three classes and a pool of three teachers, small enough for every test.

Everything here is fast on one core: 8x8 grey images, networks of four channels.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from torch.nn.functional import cross_entropy

from teddy.core.files import digest
from teddy.data.datasets import ImageDataset
from teddy.data.images import Images, Normalisation
from teddy.settings.configs import (
    DmConfig,
    DsaConfig,
    NetworkConfig,
    OptimizerConfig,
    RelabelConfig,
    SynthesizeConfig,
    ViewConfig,
)
from teddy.teachers.networks import build, save_network
from teddy.teachers.pools import Pool

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, max_examples=30
)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``cuda`` are left out where there is no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the campaign of damaged inputs has tried, where it was run."""
    trial = sys.modules.get("trial")
    if trial is not None and trial.ROWS:
        terminalreporter.section("campaign")
        terminalreporter.write_line(trial.table())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run on one thread: these tensors are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder for unfinished work, and a single process."""
    monkeypatch.setenv("TEDDY_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("TEDDY_WORKERS", "1")
    return tmp_path / "work"


# ------------------------------------------------------------------------------------- settings


@pytest.fixture(scope="session")
def network_config() -> NetworkConfig:
    """The smallest teacher."""
    return NetworkConfig(arch="convnet3", width=4, norm="batch")


@pytest.fixture(scope="session")
def view_config() -> ViewConfig:
    """Every random transformation at work."""
    return ViewConfig(crop_scale=0.5, hflip=True, roll=(-1, 2))


@pytest.fixture(scope="session")
def dsa_config() -> DsaConfig:
    """DSA as published."""
    return DsaConfig(
        operations=("color", "crop", "cutout", "flip", "scale", "rotate"),
        scale=1.2,
        rotate=15.0,
        crop=0.125,
        cutout=0.5,
        brightness=1.0,
        saturation=2.0,
        contrast=0.5,
    )


@pytest.fixture(scope="session")
def dm_config(dsa_config: DsaConfig) -> DmConfig:
    """A few iterations with half of the real images of a class."""
    return DmConfig(
        network=NetworkConfig(arch="convnet3", width=4, norm="instance"),
        initialise="noise",
        iterations=6,
        classes_per_batch=2,
        real_batch=8,
        lr=1.0,
        momentum=0.5,
        dsa=dsa_config,
        clip=True,
    )


@pytest.fixture(scope="session")
def optimizer_config() -> OptimizerConfig:
    """Every part of the optimiser and schedule at work."""
    return OptimizerConfig(
        name="sgd",
        lr=0.05,
        momentum=0.9,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        decay_1d=False,
        schedule="cosine",
        step_epochs=2,
        step_factor=0.1,
        warmup_epochs=1,
    )


@pytest.fixture(scope="session")
def synthesis_config(view_config: ViewConfig, dsa_config: DsaConfig) -> SynthesizeConfig:
    """A few iterations, two of three teachers, batches of two indices and two classes."""
    return SynthesizeConfig(
        initialise="noise",
        iterations=6,
        classes_per_batch=2,
        indices_per_batch=2,
        lr=0.1,
        betas=(0.5, 0.9),
        eps=1e-8,
        weight_decay=0.0,
        alpha_bn=0.1,
        first_bn_weight=10.0,
        norm="l2",
        variance="biased",
        over_teachers="mean",
        ensemble="logits",
        draw=2,
        draw_per="index",
        augmentation="views",
        views=view_config,
        dsa=dsa_config,
        views_per="batch",
        curriculum="none",
        milestone=1.0,
        clip=True,
        class_statistics="none",
        gradient="two_pass",
        precision="float32",
    )


@pytest.fixture(scope="session")
def relabel_config(view_config: ViewConfig, dsa_config: DsaConfig) -> RelabelConfig:
    """Five epochs of views with CutMix."""
    return RelabelConfig(
        epochs=5,
        augmentation="views",
        views=view_config,
        dsa=dsa_config,
        cutmix=True,
        ensemble="logits",
        precision="float32",
        store=True,
        label_epochs=0,
        label_bits=16,
        label_top_k=0,
    )


# ------------------------------------------------------------------------------ data and teachers


def _images(count: int, seed: int) -> Images:
    """Class-dependent stripes, or a blob, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    blob = torch.exp(-((y - 2) ** 2 + (x - 5) ** 2) / 6)
    patterns = torch.stack([(y // 2) % 2, (x // 2) % 2, blob])
    noise = torch.randn(count, 1, 8, 8, generator=generator)
    pixels = 60 + 120 * patterns[labels][:, None] + 25 * noise
    return Images(pixels.clamp(0, 255).to(torch.uint8), labels)


@pytest.fixture(scope="session")
def dataset() -> ImageDataset:
    """48 training images, and 12 each for validation and test."""
    train = _images(48, 0)
    pixels = train.images.double() / 255
    statistics = Normalisation((pixels.mean().item(),), (pixels.std(correction=0).item(),))
    return ImageDataset(
        train, _images(12, 1), _images(12, 2), ("rows", "columns", "blob"), statistics
    )


@pytest.fixture(scope="session")
def pool(
    tmp_path_factory: pytest.TempPathFactory, dataset: ImageDataset, network_config: NetworkConfig
) -> Pool:
    """Three networks, each trained for a few steps only."""
    folder = tmp_path_factory.mktemp("pool")
    inputs = dataset.normalisation.apply(dataset.train.pick(torch.arange(len(dataset.train))))
    entries = []
    for index in range(3):
        network = build(network_config, dataset.image_shape, dataset.num_classes, seed=index)
        _train(network, inputs, dataset.train.labels, steps=4 + 4 * index)
        path = folder / f"member{index}.safetensors"
        save_network(path, network, network_config, dataset.image_shape, dataset.num_classes)
        entries.append({"file": path.name, "sha256": digest(path)})
    return Pool(folder, entries)


def _train(network: torch.nn.Module, inputs: Tensor, labels: Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(network(inputs), labels).backward()
        optimizer.step()
