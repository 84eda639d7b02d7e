"""Pools of weak teachers on disk: open one, draw from it, load a member (§3.3).

A pool folder holds ``member00.safetensors …`` and ``manifest.json`` with what is known of every
member; :mod:`teddy.teachers.making` makes them.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest, read_json
from teddy.core.seeding import permutation
from teddy.settings.configs import ViewConfig
from teddy.settings.schema import from_json
from teddy.teachers.networks import load_network

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool on disk; members are loaded when asked for."""

    folder: Path
    entries: list[Json]

    def __len__(self) -> int:
        return len(self.entries)

    def member(self, index: int, device: torch.device) -> nn.Module:
        """A member as teachers are used: eval mode, frozen, channels last.

        Raises:
            TeddyError: its file is not the one the manifest describes.
        """
        path = self.folder / self.entries[index]["file"]
        network, _ = load_network(path)
        if digest(path) != self.entries[index]["sha256"]:
            raise TeddyError(f"{path}: checksum differs from {MANIFEST}; build the pool again")
        network.eval().requires_grad_(False)
        return network.to(device).to(memory_format=torch.channels_last)


def open_pool(folder: Path) -> Pool:
    """Open a pool folder.

    Raises:
        TeddyError: no manifest there.
    """
    if not (folder / MANIFEST).is_file():
        raise TeddyError(f"{folder}: expected a pool; run the build_pool stage first")
    return Pool(folder, read_json(folder / MANIFEST)["members"])


def training_views(folder: Path) -> ViewConfig:
    """Views of the real images that the pool's base run was trained on.

    Raises:
        TeddyError: the manifest's settings of views are not valid.
    """
    record = read_json(folder / MANIFEST)["training_views"]
    return from_json(ViewConfig, record, f"{folder / MANIFEST}: training_views")


def evenly(pool_size: int, count: int) -> list[int]:
    """``count`` members evenly spaced over a pool, its ends included; one is the last (Fig. 3b).

    A count of 0 means all. The last member is the most trained of a prior pool.

    Raises:
        TeddyError: more members than the pool has.
    """
    if count > pool_size:
        raise TeddyError(f"cannot take {count} members of a pool of {pool_size}")
    if count in (0, pool_size):
        return list(range(pool_size))
    if count == 1:
        return [pool_size - 1]
    return [round(i * (pool_size - 1) / (count - 1)) for i in range(count)]


def draw_teachers(pool_size: int, count: int, seed: int, *item: str | int) -> list[int]:
    """Members drawn without replacement for an item, ascending (§8-6).

    Ascending because the order has no meaning and summing in one order keeps bytes equal.

    Raises:
        TeddyError: more teachers than the pool has.
    """
    if count > pool_size:
        raise TeddyError(f"cannot draw {count} teachers from a pool of {pool_size}")
    order = permutation(pool_size, seed, "draw", *item)
    return sorted(order[:count].tolist())
