"""Experts: trajectories on disk, resume, and FTD's way towards flat minima.

No GPU, no downloads.
"""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from teddy.core.artifacts import WorkDir, read_tensors, write_tensors
from teddy.core.errors import TeddyError
from teddy.core.files import read_json, write_json
from teddy.core.seeding import permutation
from teddy.data.datasets import ImageDataset
from teddy.settings.baselines import ExpertsConfig
from teddy.settings.configs import NetworkConfig
from teddy.teachers import experts
from teddy.teachers.experts import (
    check_data,
    check_room,
    flat,
    gradient,
    manifest,
    member_name,
    open_experts,
    train_expert,
    trajectory_name,
)
from teddy.teachers.networks import build, load_network
from teddy.teachers.pools import MANIFEST, Pool, open_pool
from teddy.teachers.training import equal_parts

CPU = torch.device("cpu")
SMALL = ExpertsConfig(
    network=NetworkConfig(arch="convnet3", width=4, norm="instance"),
    count=2, epochs=3, batch_size=16, lr=0.05,
)  # fmt: skip


def made(config: ExpertsConfig, dataset: ImageDataset, where: Path) -> WorkDir:
    """Both experts, in a work folder with the manifest of a pool."""
    (where / MANIFEST).write_text("{}")  # of the data
    work = WorkDir("train_experts", "experts").claim()
    for index in range(config.count):
        train_expert(config, dataset, index, seed=index, work=work, device=CPU)
    write_json(work / MANIFEST, manifest("experts", config, where, work))
    return work


def test_a_trajectory_is_that_of_a_plain_loop(
    dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_WORK", str(tmp_path / "work"))
    config = dataclasses.replace(SMALL, augmentation="none", momentum=0.9, weight_decay=0.01)
    work = made(config, dataset, tmp_path)
    network = build(config.network, dataset.image_shape, dataset.num_classes, seed=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    way, images = [flat(list(network.parameters())).detach()], dataset.train
    for epoch in range(3):
        order = permutation(len(images), 1, "expert order", epoch)
        for part in equal_parts(order, 16):
            optimizer.zero_grad()
            logits = network(dataset.normalisation.apply(images.pick(part)))
            torch.nn.functional.cross_entropy(logits, images.labels[part]).backward()
            optimizer.step()
        way.append(flat(list(network.parameters())).detach())
    opened = open_experts(open_pool(work.path), dataset.image_shape, dataset.num_classes)
    assert opened.epochs == 3 and opened.network == config.network and len(opened.files) == 2
    for epoch, expected in enumerate(way):
        torch.testing.assert_close(opened.at(1, epoch), expected, rtol=1e-4, atol=1e-6)
    member, _ = load_network(work / member_name(1))
    assert torch.equal(flat(list(member.parameters())), opened.at(1, 3))
    assert not torch.equal(opened.at(0, 0), opened.at(1, 0))
    assert len(open_pool(work.path)) == 2


class Killed(Exception):
    """In place of a signal."""


def test_a_killed_expert_goes_on_to_the_same_bytes(
    dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(experts, "save_interval", lambda: 0.0)
    config = dataclasses.replace(SMALL, momentum=0.9, radius=0.01)
    whole, broken = WorkDir("train_experts", "whole"), WorkDir("train_experts", "broken")
    train_expert(config, dataset, 0, seed=5, work=whole, device=CPU)
    drawn, epochs = permutation, list[int]()

    def until_the_third(count: int, seed: int, *item: str | int) -> Tensor:
        epochs.append(int(item[-1]))
        if epochs == [0, 1, 2]:
            raise Killed
        return drawn(count, seed, *item)

    monkeypatch.setattr(experts, "permutation", until_the_third)
    with pytest.raises(Killed):
        train_expert(config, dataset, 0, seed=5, work=broken, device=CPU)
    train_expert(config, dataset, 0, seed=5, work=broken, device=CPU)
    assert epochs == [0, 1, 2, 2]
    for name in (trajectory_name(0), member_name(0)):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    assert not list(broken.path.glob("*.resume"))


# ---------------------------------------------------------------------------------- flat minima

CURVATURE = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def bowl(*point: float) -> tuple[Tensor, "list[Tensor]"]:
    """A point of the loss ½ wᵀ A w, in two parameters."""
    w = torch.tensor(point, dtype=torch.float64)
    return w, [w[:1].clone().requires_grad_(), w[1:].clone().requires_grad_()]


def of_bowl(parameters: "list[Tensor]") -> Tensor:
    w = torch.cat(parameters)
    return 0.5 * w @ CURVATURE @ w


@pytest.mark.parametrize("adaptive", [False, True])
def test_flat_minima_are_sought_by_their_definition(*, adaptive: bool) -> None:
    w, parameters = bowl(0.7, -0.4)
    config = dataclasses.replace(SMALL, radius=0.1, gap_weight=0.3, adaptive=adaptive)
    found = gradient(lambda: of_bowl(parameters), parameters, config)
    here = CURVATURE @ w
    size = w.abs() if adaptive else torch.ones(2, dtype=torch.float64)
    top = w + 0.1 * size**2 * here / (size * here).norm()
    there = CURVATURE @ top
    across = here - (here @ there) / (there @ there) * there
    torch.testing.assert_close(torch.cat(found), there - 0.3 * across)
    assert (across @ there).abs() < 1e-12
    assert torch.equal(torch.cat(parameters), w)


def test_the_loss_is_largest_in_the_direction_that_is_looked_in() -> None:
    w, parameters = bowl(0.7, -0.4)
    config = dataclasses.replace(SMALL, radius=1e-3, gap_weight=0.0, adaptive=False)
    top = torch.linalg.solve(CURVATURE, torch.cat(gradient(
        lambda: of_bowl(parameters), parameters, config
    )))  # fmt: skip
    angles = torch.linspace(0, 6.283, 1000, dtype=torch.float64)
    around = w + 1e-3 * torch.stack([angles.cos(), angles.sin()], 1)
    losses = 0.5 * ((around @ CURVATURE) * around).sum(1)
    assert (0.5 * top @ CURVATURE @ top) >= losses.max() - 1e-12
    assert (top - w).norm().item() == pytest.approx(1e-3)


def test_without_a_radius_the_gradient_is_the_losss_own() -> None:
    w, parameters = bowl(0.7, -0.4)
    found = gradient(lambda: of_bowl(parameters), parameters, SMALL)
    torch.testing.assert_close(torch.cat(found), CURVATURE @ w)


# ------------------------------------------------------------------------------------- refusals


def test_other_pools_and_changed_trajectories_are_refused(
    dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_WORK", str(tmp_path / "work"))
    of = dataset.image_shape, dataset.num_classes
    write_json(tmp_path / "pool" / MANIFEST, {"kind": "prior", "members": []})
    with pytest.raises(TeddyError, match="expected experts, whose trajectories are kept, got a"):
        open_experts(Pool(tmp_path / "pool", []), *of)
    work = made(SMALL, dataset, tmp_path)
    path = work / trajectory_name(1)
    tensors, record = read_tensors(path, kind="teddy.trajectory.v1")
    write_tensors(path, {"way": tensors["way"] + 1}, kind="teddy.trajectory.v1", record=record)
    with pytest.raises(TeddyError, match=r"trajectory01\.safetensors: checksum differs"):
        open_experts(open_pool(work.path), *of)
    write_tensors(path, {"way": tensors["way"][:2]}, kind="teddy.trajectory.v1", record=record)
    with pytest.raises(TeddyError, match=r"trajectory01\.safetensors: the tensor 'way'"):
        open_experts(open_pool(work.path), *of)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trajectories", [], r"must have epochs and trajectories.* got 3 and \[\]"),
        ("trajectories", ["trajectory00.safetensors"], "must have epochs and trajectories"),
        ("trajectories", [{}], "None: expected a teddy.trajectory.v1 file"),
        ("epochs", "3", "must have epochs and trajectories"),
        ("epochs", 4, "the tensor 'way' must be F32 of 5"),
        ("network", {"arch": "convnet3", "width": 8, "norm": "instance"},
         r"the tensor 'way' must be F32 of 4 × \d+; got F32 of 4 × 375"),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_is_refused(
    dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str,
    value: object, message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("TEDDY_WORK", str(tmp_path / "work"))
    pool = open_pool(made(SMALL, dataset, tmp_path).path)
    record = read_json(pool.folder / MANIFEST)
    write_json(pool.folder / MANIFEST, record | {key: value})
    with pytest.raises(TeddyError, match=message):
        open_experts(pool, dataset.image_shape, dataset.num_classes)


def test_experts_of_other_images_are_refused(
    dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_WORK", str(tmp_path / "work"))
    pool = open_pool(made(SMALL, dataset, tmp_path).path)
    check_data(pool, tmp_path)
    (tmp_path / MANIFEST).write_text("{} ")
    with pytest.raises(TeddyError, match="has experts of other images than"):
        check_data(pool, tmp_path)


def test_a_disk_that_is_too_small_is_refused(
    dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = sum(
        p.numel() for p in build(SMALL.network, dataset.image_shape, 3, seed=0).parameters()
    )
    size, work, out = 4 * parameters * 2 * 5, tmp_path / "work", tmp_path / "models" / "x"
    usage = shutil.disk_usage(tmp_path)

    def has_room(free: int) -> bool:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
        with contextlib.suppress(TeddyError):
            check_room(SMALL, dataset, work, out)
            return True
        return False

    assert has_room(2 * size) and not has_room(2 * size - 1)
    with pytest.raises(TeddyError, match=f"experts of 3 epochs take {size:,} bytes"):
        check_room(SMALL, dataset, work, out)
    work.mkdir()
    (work / trajectory_name(0)).write_bytes(bytes(size // 2))  # of a killed run
    assert has_room(2 * size - size // 2) and not has_room(2 * size - size // 2 - 1)


def test_an_expert_that_diverges_is_refused(
    dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_WORK", str(tmp_path / "work"))
    wild = dataclasses.replace(SMALL, lr=1e20)
    with pytest.raises(TeddyError, match="expert 0 is no longer finite after epoch"):
        train_expert(wild, dataset, 0, 0, WorkDir("train_experts", "wild"), CPU)
