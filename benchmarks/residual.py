"""Residual matching (FADRM) beside a loop as its authors have it, one batch from start to end.

The loop is written anew from its description: SRe2L's plain one, in phases
(``benchmarks/peers.py``). Crops are given on both sides; choosing them is not timed.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import (
    SEED,
    Benchmark,
    Result,
    Side,
    add_workload_options,
    each_workload,
    machine,
    median,
    pick_device_and_threads,
    positive,
    ratio,
    seconds,
    shared_settings,
    take_turns,
)
from benchmarks.engine import NORMALISATION, Workload, frozen_network, ingredients
from benchmarks.memory import peak_bytes
from benchmarks.peers import Mode, ResidualLoop
from teddy.core.files import Json
from teddy.core.seeding import rng
from teddy.core.tables import Column, Table
from teddy.settings.baselines import ResidualMatchingConfig
from teddy.settings.schema import from_json, read_yaml
from teddy.synthesis.residual_matching import ResidualMatching

OURS, THEIRS = "ours", "theirs"
_TINY = Workload("ResNet18, 3×3 stem, 64 px", "resnet18", 64, 200, 10)


@dataclass(frozen=True, slots=True)
class Phased:
    """A network, its images, and their sides in each phase."""

    network: Workload
    sizes: tuple[int, ...]

    @property
    def title(self) -> str:
        """For who watches, and for tables."""
        return f"{self.network.title}, phases of {', '.join(map(str, self.sizes))}"


WORKLOADS = {"64": Phased(_TINY, (64, 64)), "56-64": Phased(_TINY, (56, 64))}
"""Tiny-ImageNet's two phases, and the proportion of ImageNet-1K's 200 and 224 pixels."""


def _options(command: argparse.ArgumentParser) -> None:
    add_workload_options(command, WORKLOADS)
    command.add_argument("--batch", type=positive, help="images (default: 10)")
    command.add_argument(
        "--iterations", type=positive, default=2, help="of each phase (default: %(default)s)"
    )
    command.add_argument("--params", type=Path, default=Path("params.yaml"))


def _measure(args: argparse.Namespace) -> Result:
    device = pick_device_and_threads(args)
    params = read_yaml(args.params)
    section = params["synthesize"] | {"dsa": params["dsa"], "draw": 1, "initialise": "real"}
    section |= {"precision": "float32"}

    def measure(workload: Phased, sides: dict[bool, Side]) -> Json:
        count = len(workload.sizes) * args.iterations
        own = section | {"sizes": list(workload.sizes), "iterations": count}
        config = from_json(ResidualMatchingConfig, own, f"{args.params}: synthesize")
        job = (workload.network, config, args.batch or workload.network.cpu_batch, str(device))

        def timed(ours: bool) -> Callable[[int], float]:
            return lambda turn: float(sides[ours].call(_seconds, ours, *job)) / count

        found = take_turns({OURS: timed(True), THEIRS: timed(False)}, args.repeats)
        peak = {n: sides[n == OURS].call(_peak, n == OURS, *job) for n in (OURS, THEIRS)}
        return {"title": workload.title, "batch": job[2], "seconds": found, "peak_bytes": peak}

    measured = each_workload(args, WORKLOADS, measure)
    lines = [
        (
            f"{record['title']}, batch {record['batch']}" if program == OURS else "", program,
            1e3 * median(values), ratio(record["seconds"][THEIRS], values),
            record["peak_bytes"][program] / 2**20,
        )
        for record in measured.values()
        for program, values in record["seconds"].items()
    ]  # fmt: skip
    columns = (
        Column("synthesis", text=True), Column("program", text=True),
        Column("ms/iteration", spec=",.1f"), Column("times as fast", spec=".2f"),
        Column("peak MiB", spec=",.0f"),
    )  # fmt: skip
    note = (
        f"Medians of {args.repeats} rounds in turn, {machine(device)}, float32; ratios within "
        f"rounds. {args.iterations} iterations of each phase, with what lies between phases."
    )
    record = {"settings": shared_settings(args, device), "workloads": measured}
    return Result(record, (Table("Residual matching", columns, tuple(lines), (note,)),))


def _seconds(ours: bool, *job: Any) -> float:
    return seconds(run_of(ours, *job), torch.device(job[-1]))


def _peak(ours: bool, *job: Any) -> int:
    return peak_bytes(run_of(ours, *job), torch.device(job[-1]))


@lru_cache
def run_of(
    ours: bool, workload: Workload, config: ResidualMatchingConfig, batch: int, device: str
) -> Callable[[], torch.Tensor]:
    """A whole synthesis of a batch by one side; returns its images."""
    where, chosen = torch.device(device), workload.batch_of(batch)
    network, labels = frozen_network(workload, SEED), chosen.labels().to(where)
    shape = (batch, 3, workload.size, workload.size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng(SEED, "bench residual"))
    crops = NORMALISATION.apply(pixels).to(where)
    if not ours:
        bounds = NORMALISATION.bounds(where)
        loop = ResidualLoop(network.to(where), crops, labels, config, bounds, Mode())

        def theirs() -> torch.Tensor:
            loop.run()
            return loop.images.detach()

        return theirs
    maker = ResidualMatching(config, ingredients(workload, [network], config, where))
    maker.load([chosen])

    def own() -> torch.Tensor:
        state = maker.start(chosen, crops.clone().requires_grad_())
        for _ in maker.optimise(chosen, state):
            pass
        return state.images.detach()

    return own


BENCHMARK = Benchmark(__doc__.splitlines()[0], _options, _measure)
