"""Pools of weak teachers on disk: open one, draw from it, load a member (§3.3).

A pool folder holds ``member00.safetensors …`` and ``manifest.json`` with what is known of every
member; :mod:`teddy.teachers.making` makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest, read_json
from teddy.core.seeding import permutation
from teddy.settings.configs import ViewConfig
from teddy.settings.schema import from_json, shown
from teddy.teachers.networks import load_network, read_network_record

MANIFEST = "manifest.json"
_AGAIN = "run the build_pool stage again"


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
        path = self._path(index)
        network, _ = load_network(path)
        if digest(path) != self.entries[index]["sha256"]:
            raise TeddyError(f"{path}: checksum differs from {MANIFEST}; build the pool again")
        network.eval().requires_grad_(False)
        return network.to(device).to(memory_format=torch.channels_last)

    def check(self, image_shape: Sequence[int], num_classes: int, of: Path) -> None:
        """Refuse members that are not there or not for these images; their headers alone are read.

        Args:
            image_shape: channels, height and width.
            num_classes: K.
            of: file or folder that has such images, for messages.

        Raises:
            TeddyError: naming the first such member.
        """
        expected = {"image_shape": list(image_shape), "num_classes": num_classes}
        for index in range(len(self)):
            record = read_network_record(self._path(index))
            for key, value in expected.items():
                if record.get(key) != value:
                    raise TeddyError(
                        f"{self._path(index)}: is a teacher of {key} {shown(record.get(key))}, but "
                        f"{of} has {value}; name a pool of the same dataset, or {_AGAIN}"
                    )

    def _path(self, index: int) -> Path:
        return self.folder / str(self.entries[index]["file"])


def open_pool(folder: Path) -> Pool:
    """Open a pool folder.

    Raises:
        TeddyError: no manifest there, or its members are not described as they should be.
    """
    where = folder / MANIFEST
    if not where.exists():
        raise TeddyError(f"{folder}: expected a pool; run the build_pool stage first")
    members = read_json(where).get("members")
    if not isinstance(members, list) or not members:
        raise TeddyError(f"{where}: members must be a list of some; got {shown(members)}; {_AGAIN}")
    for place, entry in enumerate(members):
        own = entry if isinstance(entry, dict) else {}
        file, sha = own.get("file"), own.get("sha256")
        if not isinstance(file, str) or not isinstance(sha, str) or Path(file).name != file:
            raise TeddyError(
                f"{where}: members[{place}] must have file, the name of one, and its sha256; got "
                f"{shown(entry)}; {_AGAIN}"
            )
    return Pool(folder, members)


def training_views(folder: Path) -> ViewConfig:
    """Views of the real images that the pool's base run was trained on.

    Raises:
        TeddyError: the manifest's settings of views are not valid.
    """
    record = read_json(folder / MANIFEST).get("training_views")
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
