"""How time and memory of a synthesis grow with images per class, classes, teachers and pool."""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.command import SEED, Benchmark, Result, median, positive
from teddy.core.artifacts import WorkDir
from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest
from teddy.core.runtime import keep_freed_memory, log
from teddy.core.seeding import rng
from teddy.core.tables import Column, Table
from teddy.data.datasets import ImageDataset
from teddy.data.images import Images, Normalisation
from teddy.settings.configs import NetworkConfig, SynthesizeConfig, ViewConfig
from teddy.settings.schema import from_json, read_yaml
from teddy.synthesis.methods import Ingredients
from teddy.synthesis.teddy import Teddy
from teddy.teachers.networks import batchnorms, build, save_network
from teddy.teachers.pools import Pool

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NETWORK = NetworkConfig(arch="convnet3", width=32, norm="batch")
_CLASSES_PER_BATCH = 10


@dataclass(frozen=True, slots=True)
class Point:
    """One synthesis."""

    ipc: int = 2
    classes: int = 20
    teachers: int = 2
    """k, drawn for each IPC index."""
    pool: int = 6
    size: int = 32
    """Pixels of a side."""
    iterations: int = 20


_AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "ipc": ("images per class", (1, 2, 4, 8)),
    "classes": ("classes", (10, 20, 40, 80)),
    "teachers": ("teachers k", (1, 2, 4, 6)),
    "pool": ("pool size", (2, 4, 8, 16)),
}


def _options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--axes", nargs="+", choices=_AXES, default=list(_AXES), metavar="AXIS",
        help=f"of {', '.join(_AXES)} (default: all)",
    )  # fmt: skip
    base = Point()
    command.add_argument(
        "--iterations", type=positive, default=base.iterations, help="(%(default)s)"
    )
    command.add_argument(
        "--size", type=positive, default=base.size, help="pixels of a side (%(default)s)"
    )
    command.add_argument("--params", type=Path, default=Path("params.yaml"))


def _measure(args: argparse.Namespace) -> Result:
    base = replace(Point(), iterations=args.iterations, size=args.size)
    points = {
        (axis, value): replace(base, **{axis: value})
        for axis in args.axes
        for value in _AXES[axis][1]
    }
    found: dict[tuple[str, int], list[Json]] = {key: [] for key in points}
    for turn in range(args.repeats):
        log(f"  round {turn + 1} of {args.repeats}")
        for key, point in points.items():
            found[key].append(_in_fresh_process(point, args.params))
    axes: Json = {}
    for axis in args.axes:
        values = list(_AXES[axis][1])
        runs = [found[axis, value] for value in values]
        seconds = [median([run["seconds"] for run in own]) for own in runs]
        memory = [median([run["peak_rss_mib"] for run in own]) for own in runs]
        axes[axis] = {
            "values": values, "seconds": seconds, "peak_rss_mib": memory, "runs": runs,
            "seconds_fit": linear_fit(values, seconds),
            "memory_fit": linear_fit(values, memory),
        }  # fmt: skip
    record = {
        "settings": {
            "base": asdict(base), "repeats": args.repeats, "seed": SEED, "threads": 1,
            "classes_per_batch": _CLASSES_PER_BATCH, "network": asdict(_NETWORK),
        },
        "axes": axes,
    }  # fmt: skip
    notes = (
        f"Median of {args.repeats} synthes{'e' if args.repeats > 1 else 'i'}s per point, each in a "
        "fresh process with one thread; processor time, and peak of "
        "resident memory, of which PyTorch alone takes the most. Elsewhere "
        f"{base.ipc} images per class, {base.classes} classes in batches of {_CLASSES_PER_BATCH}, "
        f"k = {base.teachers} of {base.pool} teachers (convnet3, width {_NETWORK.width}), "
        f"{base.size}×{base.size} pixels, {base.iterations} iterations.",
    )
    return Result(record, (_table(axes, notes),), partial(_draw, axes))


def linear_fit(x: Sequence[float], y: Sequence[float]) -> Json:
    """Least squares ``slope · x + intercept``, the share of variance explained, and total growth.

    ``growth`` is how much the line rises over the range of x, as a share of its lower end.
    """
    slope, intercept = np.polyfit(x, y, 1).tolist()
    line = slope * np.asarray(x) + intercept
    spread = float(np.square(np.asarray(y) - np.mean(y)).sum())
    missed = float(np.square(np.asarray(y) - line).sum())
    return {
        "slope": slope, "intercept": intercept, "r2": 1 - missed / spread if spread else 1.0,
        "growth": float((line[-1] - line[0]) / line[0]),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------ points


def _in_fresh_process(point: Point, params: Path) -> Json:
    command = [sys.executable, "-m", "benchmarks.scaling", json.dumps(asdict(point)), str(params)]
    with tempfile.TemporaryDirectory() as folder:
        own = {"TEDDY_WORK": folder, "TEDDY_WORKERS": "1", "OMP_NUM_THREADS": "1"}
        made = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | own
        )
    if made.returncode:
        reason = (made.stderr.strip().splitlines() or [f"exit status {made.returncode}"])[-1]
        raise TeddyError(f"bench scaling: {point} failed: {reason}")
    record: Json = json.loads(made.stdout.splitlines()[-1])
    return record


def run_point(point: Point, params: Path) -> Json:
    """Synthesise a set in this process.

    Returns:
        processor ``seconds`` of the synthesis and ``peak_rss_mib`` of the process so far.
    """
    keep_freed_memory()
    raw = read_yaml(params)
    section = raw["synthesize"] | {"dsa": raw["dsa"]} | {
        "iterations": point.iterations, "classes_per_batch": _CLASSES_PER_BATCH,
        "indices_per_batch": 1, "draw": point.teachers,
    }  # fmt: skip
    config = from_json(SynthesizeConfig, section, f"{params}: synthesize")
    with tempfile.TemporaryDirectory() as folder:
        pool, data = _pool(Path(folder), point), _data(point)
        views = ViewConfig(crop_scale=1.0, hflip=False, roll=(0, 0))
        teddy = Teddy(config, Ingredients(data, SEED, torch.device("cpu"), pool, views))
        start = time.process_time()  # one thread, one process: others do not count
        teddy.make(point.ipc, WorkDir("bench", "scaling", **asdict(point)).claim())
        seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"seconds": seconds, "peak_rss_mib": peak}


def _pool(folder: Path, point: Point) -> Pool:
    entries = []
    shape = (3, point.size, point.size)
    for index in range(point.pool):
        network = build(_NETWORK, shape, point.classes, index)
        for layer in batchnorms(network):
            layer.momentum = 1.0
        generator = rng(SEED, "bench statistics", index)
        with torch.no_grad():
            network.train()(torch.randn(16, *shape, generator=generator))
        path = folder / f"member{index:02d}.safetensors"
        save_network(path, network, _NETWORK, shape, point.classes)
        entries.append({"file": path.name, "sha256": digest(path)})
    return Pool(folder, entries)


def _data(point: Point) -> ImageDataset:
    """One black image per class: synthesis from noise looks at none of them."""
    labels = torch.arange(point.classes)
    pixels = torch.zeros(point.classes, 3, point.size, point.size, dtype=torch.uint8)
    split, names = Images(pixels, labels), tuple(map(str, range(point.classes)))
    return ImageDataset(split, split, split, names, Normalisation((0.5,) * 3, (0.25,) * 3))


# ------------------------------------------------------------------------------------ for a reader


def _table(axes: Json, notes: tuple[str, ...]) -> Table:
    rows = tuple(
        (_AXES[axis][0], str(value), seconds, memory,
         found["seconds_fit"]["r2"], found["memory_fit"]["growth"])
        for axis, found in axes.items()
        for value, seconds, memory in zip(
            found["values"], found["seconds"], found["peak_rss_mib"], strict=True
        )
    )  # fmt: skip
    columns = (
        Column("axis", text=True), Column("value"), Column("seconds", spec=".2f"),
        Column("peak MiB", spec=",.0f"), Column("R² of time", spec=".3f"),
        Column("growth of memory", spec="+.1%"),
    )  # fmt: skip
    return Table("Cost of a synthesis", columns, rows, notes)


def _draw(axes: Json, figure: "Figure") -> None:
    panels = figure.subplots(2, len(axes), squeeze=False, sharey="row")
    quantities = (("seconds", "seconds_fit", "seconds"), ("peak_rss_mib", "memory_fit", "MiB"))
    for row, (quantity, fit, label) in zip(panels, quantities, strict=True):
        for axis_panel, (axis, found) in zip(row, axes.items(), strict=True):
            ends = np.array([0, found["values"][-1]])
            line = found[fit]["slope"] * ends + found[fit]["intercept"]
            axis_panel.plot(ends, line, color="C0", linewidth=0.8)
            axis_panel.plot(found["values"], found[quantity], "o", color="C1", markersize=4)
            axis_panel.set_ylim(0, 1.1 * max(max(other[quantity]) for other in axes.values()))
            axis_panel.set_xlabel(_AXES[axis][0])
        row[0].set_ylabel(label)


BENCHMARK = Benchmark(
    "time and memory of a synthesis against IPC, classes, k and pool size", _options, _measure,
    repeats=3,
)  # fmt: skip

if __name__ == "__main__":
    print(json.dumps(run_point(Point(**json.loads(sys.argv[1])), Path(sys.argv[2]))))
