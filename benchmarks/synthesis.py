"""The synthesis engine beside a plain loop as peers have it, and beside the convolutions alone.

On a GPU each mechanism of the engine is switched on by itself, and the plain loop is compiled too,
which is what a user would try first.
"""

import argparse
import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from benchmarks import floor
from benchmarks.command import (
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
from benchmarks.engine import NORMALISATION, Batches, Workload, engine, frozen_network
from benchmarks.memory import peak_bytes, saved_bytes
from benchmarks.peers import Mode, RecoverLoop
from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.runtime import fused_wanted, graphs_wanted, log
from teddy.core.tables import Column, Table
from teddy.settings.configs import Precision, SynthesizeConfig
from teddy.settings.schema import from_json, read_yaml, to_json
from teddy.synthesis.engine.cuda_graphs import Graphs
from teddy.synthesis.engine.passes import MakePasses, eager

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN = "plain loop, float32"
ENGINE, FUSED, RECORDED = "engine", "engine, fused", "engine, fused, CUDA graphs"
BESIDE = (2, 3)
"""Batches that share a GPU."""
_PAPER_BATCH = 100  # images, which the paper's passes are counted in
_GPU_ITERATIONS = 20  # per round; on the CPU one is long enough to time
_MODES = {
    PLAIN: Mode(tf32=False),
    "plain loop, TF32": Mode(),
    "plain loop, bfloat16": Mode(bfloat16=True),
    "plain loop, TF32, compiled": Mode(compiled=True),
    "plain loop, bfloat16, compiled": Mode(bfloat16=True, compiled=True),
}
_UNFUSED = {"TEDDY_FUSED": "0"}

WORKLOADS = {
    "resnet18-32": Workload("ResNet18, 3×3 stem, 32 px", "resnet18", 32, 10, 30),
    "resnet18-64": Workload("ResNet18, 3×3 stem, 64 px", "resnet18", 64, 200, 10),
    "resnet18-224": Workload("ResNet18, 224 px", "resnet18", 224, 1000, 8),
    "resnet50-224": Workload("ResNet50, 224 px", "resnet50", 224, 1000, 4),
    "pruned-resnet18-224": Workload(
        "ResNet18 pruned by 0.19, 224 px", "resnet18", 224, 1000, 8, 0.19
    ),
}


@dataclass(frozen=True, slots=True)
class Job:
    """A synthesis of the paper (§10 of docs/method.md)."""

    title: str
    dataset: str
    """Section of ``params.yaml`` with iterations and classes."""
    workload: str
    ipc: int
    teachers: int
    """k of Table 7."""


_JOBS = (
    Job("Tiny-ImageNet IPC 50", "tiny-imagenet", "resnet18-64", 50, 3),
    Job("Tiny-ImageNet IPC 100", "tiny-imagenet", "resnet18-64", 100, 3),
    Job("ImageNet-1K IPC 10", "imagenet-1k", "resnet18-224", 10, 3),
    Job("ImageNet-1K IPC 50", "imagenet-1k", "resnet18-224", 50, 3),
    Job("ImageNet-1K IPC 10, post", "imagenet-1k", "pruned-resnet18-224", 10, 4),
)


@dataclass(frozen=True, slots=True)
class Spec:
    """What is measured of a workload."""

    workload: Workload
    batch: int
    config: SynthesizeConfig
    native: tuple[str, ...]
    """Precisions that the device has instructions for; the engine runs in the others too."""
    teachers: tuple[int, ...]
    device: str
    compiled: bool
    """Whether the plain loop is compiled too."""


@dataclass(frozen=True, slots=True)
class Program:
    """Something that is timed."""

    step: Callable[[], Any] | None
    teachers: int = 1
    """Of an iteration, k."""
    beside: int = 1
    """Batches that take an iteration each."""
    kind: str = "engine"
    """engine, plain or floor."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it runs under."""
    replayed: bool = False
    """Whether its memory lies in the pools of CUDA graphs, where it cannot be told apart."""


def _options(command: argparse.ArgumentParser) -> None:
    add_workload_options(command, WORKLOADS)
    command.add_argument(
        "--batch", type=positive, help="images (default: 100 on a GPU, 4 to 30 on a CPU)"
    )
    command.add_argument(
        "--iterations", type=positive,
        help=f"per program and round (default: {_GPU_ITERATIONS} on a GPU, 1 on a CPU)",
    )  # fmt: skip
    command.add_argument(
        "--teachers", type=positive, nargs="+", default=[1, 3], help="numbers k (default: 1 3)"
    )
    command.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True,
        help="run the plain loop compiled too (default)",
    )  # fmt: skip
    command.add_argument("--params", type=Path, default=Path("params.yaml"))


def _measure(args: argparse.Namespace) -> Result:
    device = pick_device_and_threads(args)
    params = read_yaml(args.params)
    config = from_json(
        SynthesizeConfig,
        params["synthesize"] | {"dsa": params["dsa"]},
        f"{args.params}: synthesize",
    )
    native, slowdown = floor.runs_natively(device, torch.bfloat16)
    precisions = ("float32", "bfloat16") if native else ("float32",)
    speeds = {name: floor.product_speed(device, getattr(torch, name)) for name in precisions}
    iterations = args.iterations or (_GPU_ITERATIONS if device.type == "cuda" else 1)

    def measure(workload: Workload, sides: dict[bool, Side]) -> Json:
        batch = args.batch or (_PAPER_BATCH if device.type == "cuda" else workload.cpu_batch)
        spec = Spec(
            workload, batch, config, precisions, tuple(args.teachers), str(device), args.compile
        )
        return _workload(spec, sides, iterations, args.repeats, max(speeds.values()))

    measured = each_workload(args, WORKLOADS, measure)
    jobs = _extrapolated(measured, params)
    remark = (
        "bfloat16 is run by the processor's own instructions"
        if native
        else f"bfloat16 has no instructions here: a matrix product takes {slowdown:.0f} times as "
        "long as in float32. The engine computes its convolutions in float32 and rounds; the plain "
        "loop and the floor are left out"
    )
    record = {
        "settings": shared_settings(args, device)
        | {"iterations_per_round": iterations, "synthesize": to_json(config)},
        "bfloat16": {"native": native, "product_time_over_float32": slowdown, "remark": remark},
        "product_operations_per_second": speeds,
        "workloads": measured,
        "jobs": jobs,
    }
    notes = (
        f"Median of {args.repeats} rounds, {machine(device)}. {remark[0].upper()}{remark[1:]}.",
        "An iteration goes from images to updated images; a pass is an iteration divided by its "
        "teachers, and by the batches that it updates. Ratios are medians of ratios within a "
        "round. Plain loop: SRe2L's for Tiny-ImageNet, written anew. Floor: forward and input "
        "gradient of the convolutions alone. Bound: the network's arithmetic at the speed of a "
        "large matrix product. Saved: most bytes that autograd keeps at a time. Peak: most that "
        "PyTorch allocates above what lay there before.",
    )
    return Result(record, (_table(measured, notes), _job_table(jobs)), partial(_draw, measured))


# ------------------------------------------------------------------------------------- one workload


def _workload(
    spec: Spec, sides: dict[bool, Side], iterations: int, repeats: int, speed: float
) -> Json:
    side_of: dict[str, bool] = {}
    programs: dict[str, Program] = {}
    for ours in (False, True):
        found = sides[ours].call(_described, spec, ours)
        side_of |= dict.fromkeys(found, ours)
        programs |= found
    memory = {
        name: sides[side_of[name]].call(_memory, spec, side_of[name], name)
        for name, program in programs.items()
        if program.kind != "floor" and not program.replayed
    }

    def timed(name: str) -> Callable[[int], float]:
        ours = side_of[name]
        return lambda turn: float(sides[ours].call(_milliseconds, spec, ours, name, iterations))

    times = take_turns({name: timed(name) for name in programs}, repeats)
    lowest = min(
        (name for name, program in programs.items() if program.kind == "floor"),
        key=lambda name: median(times[name]),
    )
    shape = (3, spec.workload.size, spec.workload.size)
    network = frozen_network(spec.workload, seed=0)
    bound = 1e3 * floor.operations(network, shape, spec.batch) / speed
    entries: Json = {}
    for name, program in programs.items():
        passes = program.teachers * program.beside
        per_pass = [value / passes for value in times[name]]
        entries[name] = {
            "kind": program.kind,
            "teachers": program.teachers,
            "batches": program.beside,
            "ms": times[name],
            "ms_per_iteration": median(times[name]),
            "ms_per_pass": median(per_pass),
            "times_plain_speed": ratio(times[PLAIN], per_pass),
            "share_of_floor_speed": ratio(times[lowest], per_pass),
            "share_of_bound_speed": bound / median(per_pass),
            **memory.get(name, {}),
        }
    return {
        "title": spec.workload.title,
        "batch": spec.batch,
        "floor": lowest,
        "bound_ms_per_pass": bound,
        "programs": entries,
    }


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run the engine, without anything that lies on a device."""

    precision: Precision
    teachers: int
    environment: Mapping[str, str] = field(default_factory=dict)
    graphs: bool = False
    beside: int = 1
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the settings of synthesis."""


def ways(teachers: tuple[int, ...], fused: bool, graphs: bool) -> dict[str, Way]:
    """The engine with each mechanism by itself, by the name of its program.

    Args:
        teachers: numbers k.
        fused: whether the kernels for a GPU run.
        graphs: whether CUDA graphs do.
    """
    found = {}
    for precision in get_args(Precision):
        for k in teachers:
            own = f"{precision}, k = {k}"
            found[f"{ENGINE}, {own}"] = Way(precision, k, _UNFUSED)
            if fused:
                found[f"{FUSED}, {own}"] = Way(precision, k)
            if fused and graphs:
                found[f"{RECORDED}, {own}"] = Way(precision, k, graphs=True)
    most = max(teachers)
    own = f"bfloat16, k = {most}"
    if graphs:
        found[f"engine, CUDA graphs, {own}"] = Way("bfloat16", most, _UNFUSED, graphs=True)
    if fused:
        for gradient in ("joint", "two_pass") if most > 1 else ():
            way = Way("bfloat16", most, changes={"gradient": gradient})
            found[f"{FUSED}, {gradient}, {own}"] = way
    if fused and graphs:
        for beside in BESIDE:
            way = Way("bfloat16", most, graphs=True, beside=beside)
            found[f"{RECORDED}, {beside} batches at a time, {own}"] = way
    return found


@lru_cache(maxsize=1)
def programs_of(spec: Spec, ours: bool) -> dict[str, Program]:
    """Programs of one side by name, on the same random networks, images and labels."""
    workload, device = spec.workload, torch.device(spec.device)
    count = max(spec.teachers) if ours else 1
    networks = [frozen_network(workload, seed) for seed in range(count)]
    batch = workload.batch_of(spec.batch)
    images = engine(workload, networks, spec.config, device).initial_images(batch).to(device)
    if not ours:
        return _plain_loops(networks[0], images, batch.labels().to(device), spec)
    on_gpu, graphs = device.type == "cuda", Graphs()  # recordings share memory: they take turns
    programs = {}
    for name, way in ways(
        spec.teachers, on_gpu and fused_wanted(), on_gpu and graphs_wanted()
    ).items():
        settings = replace(spec.config, precision=way.precision, **way.changes)
        passes: MakePasses = graphs if way.graphs else eager
        maker = engine(workload, networks[: way.teachers], settings, device, passes)
        program = Program(
            Batches(maker, batch, way.beside).step, way.teachers, way.beside,
            environment=way.environment, replayed=way.graphs,
        )  # fmt: skip
        try:
            with running(program) as step:
                step()
        except TeddyError as error:
            log(f"bench: {name} is left out: {error}")
            continue
        programs[name] = program
    return programs | _floors(networks[0], images, spec.native)


@contextlib.contextmanager
def running(program: Program) -> Iterator[Callable[[], Any]]:
    """A program's step, under its variables."""
    assert program.step is not None
    before = {name: os.environ.get(name) for name in program.environment}
    os.environ.update(program.environment)
    try:
        yield program.step
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _described(spec: Spec, ours: bool) -> dict[str, Program]:
    """The programs without what they do, which cannot leave this process."""
    programs = programs_of(spec, ours)
    return {name: replace(program, step=None) for name, program in programs.items()}


def _milliseconds(spec: Spec, ours: bool, name: str, iterations: int) -> float:
    """Of an iteration."""
    many, device = range(iterations), torch.device(spec.device)
    with running(programs_of(spec, ours)[name]) as step:
        return 1e3 * seconds(lambda: [step() for _ in many], device) / iterations


def _memory(spec: Spec, ours: bool, name: str) -> Json:
    """Of an iteration."""
    with running(programs_of(spec, ours)[name]) as step:
        step()  # whatever is made once
        peak = peak_bytes(step, torch.device(spec.device))
        return {"saved_bytes": saved_bytes(step), "peak_bytes": peak}


def _plain_loops(
    network: nn.Module, images: Tensor, labels: Tensor, spec: Spec
) -> dict[str, Program]:
    on_gpu = images.device.type == "cuda"
    modes = _MODES if on_gpu else {PLAIN: Mode(), f"{PLAIN}, compiled": Mode(compiled=True)}
    programs = {}
    for name, mode in modes.items():
        if mode.compiled and not spec.compiled:
            continue
        own = copy.deepcopy(network).to(images.device)
        bounds = NORMALISATION.bounds(images.device)
        loop = RecoverLoop(own, images, labels, spec.config, bounds, mode)
        try:
            loop.step()
        except Exception as error:  # whatever a compiler finds
            if not mode.compiled:
                raise
            log(f"bench: {name} is left out: {' '.join(str(error).split())[:200]}")
            continue
        programs[name] = Program(loop.step, kind="plain")
    return programs


def _floors(network: nn.Module, images: Tensor, precisions: tuple[str, ...]) -> dict[str, Program]:
    layouts = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
    own = copy.deepcopy(network).to(images.device)
    programs = {}
    for precision in precisions:
        for layout, format_ in layouts.items():
            alone = floor.Floor(own, images, getattr(torch, precision), format_)
            programs[f"floor, {precision}, {layout}"] = Program(alone.run, kind="floor")
    return programs


# ------------------------------------------------------------------------------------ paper's jobs


def _extrapolated(measured: dict[str, Json], params: Any) -> list[Json]:
    """Hours of the paper's jobs: passes × milliseconds, in proportion to the images of a batch."""
    jobs = []
    for job in _JOBS:
        if job.workload not in measured:
            continue
        dataset = read_yaml(Path("params", f"{job.dataset}.yaml"))
        settings = params["synthesize"] | dataset.get("synthesize", {})
        classes = dataset["prepare"]["num_classes"]
        chunks = classes / _PAPER_BATCH  # batches per IPC index
        passes = job.ipc * chunks * settings["iterations"] * job.teachers
        found = measured[job.workload]
        scale = _PAPER_BATCH / found["batch"] / 3.6e6
        hours = {
            name: passes * program["ms_per_pass"] * scale
            for name, program in found["programs"].items()
            if program["kind"] == "plain" or program["teachers"] == _nearest(found, job)
        }
        record = {"job": job.title, "workload": job.workload, "teachers": job.teachers}
        jobs.append(record | {"passes_of_100_images": passes, "hours": hours})
    return jobs


def _nearest(found: Json, job: Job) -> int:
    """Measured number of teachers that is nearest to a job's."""
    engines = [p["teachers"] for p in found["programs"].values() if p["kind"] == "engine"]
    return min(engines, key=lambda teachers: abs(teachers - job.teachers))  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------ for a reader


def _table(measured: dict[str, Json], notes: tuple[str, ...]) -> Table:
    rows = []
    for found in measured.values():
        title = f"{found['title']}, batch {found['batch']}"
        for name, program in found["programs"].items():
            if program["kind"] == "floor" and name != found["floor"]:
                continue
            rows.append((
                title, name, program["ms_per_iteration"], program["ms_per_pass"],
                program["times_plain_speed"], program["share_of_floor_speed"],
                _mib(program.get("saved_bytes")), _mib(program.get("peak_bytes")),
            ))  # fmt: skip
        plain = found["programs"][PLAIN]["ms_per_pass"]
        floor_ms = found["programs"][found["floor"]]["ms_per_pass"]
        bound = found["bound_ms_per_pass"]
        rows.append((title, "bound", None, bound, plain / bound, floor_ms / bound, None, None))
    columns = (
        Column("workload", text=True), Column("program", text=True),
        Column("ms/iteration", spec=",.1f"), Column("ms/pass", spec=",.1f"),
        Column("× plain", spec=".2f"), Column("of floor's speed", spec=".2f"),
        Column("saved MiB", spec=",.0f"), Column("peak MiB", spec=",.0f"),
    )  # fmt: skip
    return Table("Synthesis: one iteration", columns, tuple(rows), notes)


def _mib(count: int | None) -> float | None:
    return None if count is None else count / 2**20


def _job_table(jobs: list[Json]) -> Table:
    rows = [
        (job["job"], job["teachers"], name, hours)
        for job in jobs
        for name, hours in job["hours"].items()
    ]
    columns = (
        Column("job", text=True), Column("k"), Column("program", text=True),
        Column("hours", spec=",.1f"),
    )  # fmt: skip
    notes = (
        "Extrapolated: passes of 100 images (§10: IPC · classes/100 · iterations · k) × ms/pass on "
        "this machine, in proportion to the images of a batch.",
    )
    return Table("The paper's syntheses", columns, tuple(rows), notes)


def _draw(measured: dict[str, Json], figure: "Figure") -> None:
    """Speed per pass over the plain loop's, a group of bars per workload."""
    axes = figure.subplots()
    names: list[str] = []
    for found in measured.values():
        shown = {n if p["kind"] != "floor" else "floor" for n, p in found["programs"].items()}
        names += sorted(shown - set(names))
    names = [n for n in names if n != "floor"] + ["floor", "bound"]
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        values = [_times_plain(found, name) for found in measured.values()]
        at = [row + (place - (len(names) - 1) / 2) * height for row in range(len(values))]
        bars = axes.barh(at, values, height, label=name, color=f"C{place}")
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=6)
    titles = [f"{found['title']}\nbatch {found['batch']}" for found in measured.values()]
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.set_xlabel("speed of a teacher pass over the plain loop's")
    axes.margins(x=0.1)  # for the numbers
    figure.legend(loc="outside right upper", fontsize=6)


def _times_plain(found: Json, name: str) -> float:
    programs = found["programs"]
    if name == "bound":
        return float(programs[PLAIN]["ms_per_pass"] / found["bound_ms_per_pass"])
    return float(programs[found["floor"] if name == "floor" else name]["times_plain_speed"])


BENCHMARK = Benchmark(
    "one iteration of synthesis, beside a peer's loop and the convolutions alone",
    _options,
    _measure,
)
