"""Measure seconds and peak memory of pre-training and synthesis on this machine (Fig. 3d).

The one stage whose output differs between runs, so that no other result depends on it. It times a
few epochs and iterations, after an untimed one, and scales them to the whole; every measurement has
a process of its own, so that peaks of memory are its own.
"""

import argparse
import dataclasses
import multiprocessing
import os
import resource
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from teddy.core.artifacts import WorkDir
from teddy.core.files import Json, write_json
from teddy.core.hardware import describe
from teddy.core.runtime import pick_device, use_threads
from teddy.core.seeding import derive
from teddy.data.datasets import read_dataset
from teddy.settings.stages import MeasureCostsSettings
from teddy.synthesis.engine.batches import cut_batches
from teddy.synthesis.methods import Ingredients
from teddy.synthesis.teddy import Teddy
from teddy.teachers.making import train_base
from teddy.teachers.pools import open_pool, training_views

_EPOCHS, _ITERATIONS, _ROUNDS = 2, 25, 3


def main(settings: MeasureCostsSettings, args: Namespace) -> str:
    """Run the stage."""
    epochs = {name: _alone(_epoch, settings, name, args.data) for name in settings.bases}
    sets = {name: _set(settings, name, epochs, args) for name in settings.sets}
    write_json(args.out, {"hardware": describe(), "epochs": epochs, "sets": sets})
    return f"{settings.dataset}: {len(sets)} sets"


def _set(settings: MeasureCostsSettings, name: str, epochs: Json, args: argparse.Namespace) -> Json:
    """Costs of one set; seconds on one process that has the whole machine."""
    own, pool = settings.sets[name], settings.pools[settings.sets[name].pool]
    one = _alone(_iterations, settings, name, args.data, args.pools)
    batches = cut_batches(
        own.ipc, read_dataset(args.data / own.data).num_classes,
        indices_per_batch=own.config.indices_per_batch,
        classes_per_batch=own.config.classes_per_batch,
    )  # fmt: skip
    pretraining = pool.epochs * epochs[pool.base]["seconds"]
    synthesis = len(batches) * own.config.iterations * one["seconds"]
    return {
        "draw": own.config.draw,
        "epochs": pool.epochs,
        "pretraining_seconds": round(pretraining, 3),
        "synthesis_seconds": round(synthesis, 3),
        "seconds_per_iteration": one["seconds"],
        "peak_mib": one["peak_mib"],
        "pretraining_peak_mib": epochs[pool.base]["peak_mib"],
    }


def _epoch(settings: MeasureCostsSettings, name: str, data: Path) -> float:
    """Seconds of one epoch of a base run, its measurement and checkpoint included."""
    base = settings.bases[name]
    dataset, device = read_dataset(data / base.data), pick_device()
    use_threads(device, dataset.image_shape)
    work = WorkDir("measure_costs", name).claim()
    config = dataclasses.replace(base.config, epochs=_EPOCHS)
    start = time.perf_counter()
    train_base(config, dataset, derive(settings.seed, "base", name), work, device)
    seconds = time.perf_counter() - start
    work.discard()
    return seconds / _EPOCHS


def _iterations(settings: MeasureCostsSettings, name: str, data: Path, pools: Path) -> float:
    """Seconds of one iteration on the first batch of a set; median of a few rounds."""
    own = settings.sets[name]
    dataset, device, folder = read_dataset(data / own.data), pick_device(), pools / own.pool
    use_threads(device, dataset.image_shape)
    short = dataclasses.replace(own.config, iterations=_ITERATIONS)
    given = Ingredients(
        dataset, settings.seed, device, open_pool(folder), training_views(folder),
        own.small_classes,
    )  # fmt: skip
    teddy = Teddy(short, given)
    batch = teddy.batches(own.ipc)[0]
    work = WorkDir("measure_costs", name).claim()
    rounds = []
    for _ in range(1 + _ROUNDS):
        start = time.perf_counter()
        teddy.run(batch, work / "resume", save_every_seconds=float("inf"))
        rounds.append(time.perf_counter() - start)
    work.discard()
    return statistics.median(rounds[1:]) / _ITERATIONS


def _alone(measure: Callable[..., float], *arguments: Any) -> Json:
    """Call in a process of its own; its seconds, and by how much it raised the peak of memory."""
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(send, measure, arguments))
    process.start()
    send.close()
    result: Json = receive.recv()
    process.join()
    return result


def _measured(send: Any, measure: Callable[..., float], arguments: tuple[Any, ...]) -> None:
    os.environ.pop("TEDDY_LIVE", None)  # it would be measured too
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    seconds = measure(*arguments)
    on_gpu = torch.cuda.is_initialized()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else after - before
    send.send({"seconds": round(seconds, 6), "peak_mib": round(peak, 1)})
    send.close()
