"""Measure seconds and peak memory of pre-training and synthesis on this machine (Fig. 3d).

The one stage whose output differs between runs, so that no other result depends on it. It times a
few epochs and iterations, after an untimed one, and scales them to the whole; every measurement has
a process of its own, so that peaks of memory are its own.
"""

import dataclasses
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from teddy.core.artifacts import WorkDir
from teddy.core.console import parse
from teddy.core.files import Json, check_writable, read_json, write_json
from teddy.core.hardware import describe
from teddy.core.runtime import pick_device, run_stage, use_threads
from teddy.core.seeding import derive
from teddy.data.datasets import read_dataset
from teddy.settings.configs import ViewConfig
from teddy.settings.params import Params
from teddy.settings.schema import check, from_json
from teddy.synthesis.batches import cut_items
from teddy.synthesis.eq7 import Synthesiser
from teddy.teachers.making import train_base
from teddy.teachers.pools import MANIFEST, open_pool

_EPOCHS, _ITERATIONS, _ROUNDS = 2, 25, 3


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        "key of targets in params.yaml: whose sets to measure",
        data="folder of the prepared datasets",
        pools="folder of the pools",
        out="JSON to write",
    )

    def stage() -> str:
        params = Params(args.params)
        check_writable(args.out)
        names = [params.leaf(name).set for name in params.targets[args.name]]
        for name in names:
            images = params.methods[params.sets[name].method].images
            check(
                images == "synthesised",
                f"{args.params}: targets.{args.name}: costs are measured of Eq. 7 alone, but the "
                f"set {name!r} has {images} images",
            )
        bases = dict.fromkeys(params.pools[params.sets[name].pool].base for name in names)
        epochs = {base: _alone(_epoch, params, base, args.data) for base in bases}
        sets = {name: _set(params, name, epochs, args.data, args.pools) for name in names}
        write_json(args.out, {"hardware": describe(), "epochs": epochs, "sets": sets})
        return f"{args.name}: {len(names)} sets"

    run_stage("measure_costs", stage)


def _set(params: Params, name: str, epochs: Json, data: Path, pools: Path) -> Json:
    """Costs of one set; seconds on one process that has the whole machine."""
    row, config = params.sets[name], params.synthesize(name)
    pool = params.pools[row.pool]
    last = params.pool(row.pool).prior.epochs[-1]
    trained = last if pool.kind == "prior" else params.train_teacher(pool.base).epochs
    one = _alone(_iterations, params, name, data, pools)
    num_classes = read_dataset(data / row.data).num_classes
    items = len(cut_items(row.ipc, num_classes, config))
    pretraining = trained * epochs[pool.base]["seconds"]
    synthesis = items * config.iterations * one["seconds"]
    return {
        "draw": config.draw,
        "epochs": trained,
        "pretraining_seconds": round(pretraining, 3),
        "synthesis_seconds": round(synthesis, 3),
        "seconds_per_iteration": one["seconds"],
        "peak_mib": one["peak_mib"],
        "pretraining_peak_mib": epochs[pool.base]["peak_mib"],
    }


def _epoch(params: Params, base: str, data: Path) -> float:
    """Seconds of one epoch of a base run, its measurement and checkpoint included."""
    dataset, device = read_dataset(data / params.bases[base].data), pick_device()
    use_threads(device, dataset.image_shape)
    work = WorkDir("measure_costs", base).claim()
    config = dataclasses.replace(params.train_teacher(base), epochs=_EPOCHS)
    start = time.perf_counter()
    train_base(config, dataset, derive(params.seed, "base", base), work, device)
    seconds = time.perf_counter() - start
    work.discard()
    return seconds / _EPOCHS


def _iterations(params: Params, name: str, data: Path, pools: Path) -> float:
    """Seconds of one iteration on the first item of a set; median of a few rounds."""
    row, config = params.sets[name], params.synthesize(name)
    dataset, device = read_dataset(data / row.data), pick_device()
    use_threads(device, dataset.image_shape)
    folder = pools / row.pool
    views = from_json(ViewConfig, read_json(folder / MANIFEST)["training_views"], str(folder))
    short = dataclasses.replace(config, iterations=_ITERATIONS)
    synthesiser = Synthesiser(short, open_pool(folder), dataset, views, params.seed, device)
    item = cut_items(row.ipc, dataset.num_classes, config)[0]
    work = WorkDir("measure_costs", name).claim()
    rounds = []
    for _ in range(1 + _ROUNDS):
        start = time.perf_counter()
        synthesiser.run(item, work / "resume", save_every_seconds=float("inf"))
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
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    seconds = measure(*arguments)
    on_gpu = torch.cuda.is_initialized()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else after - before
    send.send({"seconds": round(seconds, 6), "peak_mib": round(peak, 1)})
    send.close()


if __name__ == "__main__":
    main()
