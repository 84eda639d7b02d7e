"""The synthesis engine beside a peer's loop, and beside the network's convolutions alone."""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from teddy.core.runtime import graphs_wanted, log
from teddy.core.tables import Column, Table
from teddy.settings.configs import Precision, SynthesizeConfig
from teddy.settings.schema import from_json, read_yaml, to_json
from teddy.synthesis.engine.cuda_graphs import Graphs
from teddy.synthesis.engine.passes import MakePasses, eager

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REFERENCE = "reference"
_PAPER_BATCH = 100  # images, which the paper's passes are counted in
_BESIDE = (2, 3)  # batches that share a GPU
_GPU_ITERATIONS = 20  # per round; on the CPU one is long enough to time
_MODES = {
    _REFERENCE: Mode(tf32=False),
    "reference, TF32 (PyTorch's default)": Mode(tf32=True),
    "reference, bfloat16 autocast": Mode(tf32=True, bfloat16=True),
}


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


@dataclass(frozen=True, slots=True)
class Program:
    """Something that is timed."""

    step: Callable[[], Any] | None
    teachers: int = 1
    """Of an iteration, k."""
    beside: int = 1
    """Batches that take an iteration each."""
    kind: str = "engine"
    """engine, reference or floor."""
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
        spec = Spec(workload, batch, config, precisions, tuple(args.teachers), str(device))
        return _workload(spec, sides, iterations, args.repeats, max(speeds.values()))

    measured = each_workload(args, WORKLOADS, measure)
    jobs = _extrapolated(measured, params)
    remark = (
        "bfloat16 is run by the processor's own instructions"
        if native
        else f"bfloat16 has no instructions here: a matrix product takes {slowdown:.0f} times as "
        "long as in float32. The engine computes its convolutions in float32 and rounds; reference "
        "and floor are left out"
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
        "round. Reference: SRe2L's Tiny-ImageNet loop, written anew. Floor: forward and input "
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
            "times_reference_speed": ratio(times[_REFERENCE], per_pass),
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


@lru_cache(maxsize=1)
def programs_of(spec: Spec, ours: bool) -> dict[str, Program]:
    """Programs of one side by name, on the same random networks, images and labels."""
    workload, device = spec.workload, torch.device(spec.device)
    count = max(spec.teachers) if ours else 1
    networks = [frozen_network(workload, seed) for seed in range(count)]
    batch = workload.batch_of(spec.batch)
    images = engine(workload, networks, spec.config, device).initial_images(batch).to(device)
    if not ours:
        return _references(networks[0], images, batch.labels().to(device), spec.config)
    programs = {}

    def add(title: str, precision: Precision, k: int, passes: MakePasses, beside: int = 1) -> None:
        settings = replace(spec.config, precision=precision)
        maker = engine(workload, networks[:k], settings, device, passes)
        step = Batches(maker, batch, beside).step
        replayed = isinstance(passes, Graphs)
        if beside > 1:
            try:
                step()
            except TeddyError as error:
                log(f"bench: {title} is left out: {error}")
                return
        programs[f"{title}, {precision}, k = {k}"] = Program(step, k, beside, replayed=replayed)

    ways: dict[str, MakePasses] = {"engine": eager}
    graphs = Graphs()  # whose recordings share memory: programs take turns
    if device.type == "cuda" and graphs_wanted():
        ways["engine, CUDA graphs"] = graphs
    for precision in get_args(Precision):
        for k in spec.teachers:
            for way, passes in ways.items():
                add(way, precision, k, passes)
    if len(ways) > 1:
        for beside in _BESIDE:
            title = f"engine, CUDA graphs, {beside} batches at a time"
            add(title, "bfloat16", max(spec.teachers), graphs, beside)
    return programs | _floors(networks[0], images, spec.native)


def _described(spec: Spec, ours: bool) -> dict[str, Program]:
    """The programs without what they do, which cannot leave this process."""
    programs = programs_of(spec, ours)
    return {name: replace(program, step=None) for name, program in programs.items()}


def _milliseconds(spec: Spec, ours: bool, name: str, iterations: int) -> float:
    """Of an iteration."""
    step = programs_of(spec, ours)[name].step
    assert step is not None
    many = range(iterations)
    return 1e3 * seconds(lambda: [step() for _ in many], torch.device(spec.device)) / iterations


def _memory(spec: Spec, ours: bool, name: str) -> Json:
    """Of an iteration."""
    step, device = programs_of(spec, ours)[name].step, torch.device(spec.device)
    assert step is not None
    step()  # whatever is made once
    return {"saved_bytes": saved_bytes(step), "peak_bytes": peak_bytes(step, device)}


def _references(
    network: nn.Module, images: Tensor, labels: Tensor, config: SynthesizeConfig
) -> dict[str, Program]:
    modes = _MODES if images.device.type == "cuda" else {_REFERENCE: Mode()}
    programs = {}
    for name, mode in modes.items():
        own = copy.deepcopy(network).to(images.device)
        bounds = NORMALISATION.bounds(images.device)
        loop = RecoverLoop(own, images, labels, config, bounds, mode)
        programs[name] = Program(loop.step, kind="reference")
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
            if program["kind"] == "reference" or program["teachers"] == _nearest(found, job)
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
                program["times_reference_speed"], program["share_of_floor_speed"],
                _mib(program.get("saved_bytes")), _mib(program.get("peak_bytes")),
            ))  # fmt: skip
        reference = found["programs"][_REFERENCE]["ms_per_pass"]
        floor_ms = found["programs"][found["floor"]]["ms_per_pass"]
        bound = found["bound_ms_per_pass"]
        rows.append((title, "bound", None, bound, reference / bound, floor_ms / bound, None, None))
    columns = (
        Column("workload", text=True), Column("program", text=True),
        Column("ms/iteration", spec=",.1f"), Column("ms/pass", spec=",.1f"),
        Column("× reference", spec=".2f"), Column("of floor's speed", spec=".2f"),
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
    """Speed per pass over the reference's, a group of bars per workload."""
    axes = figure.subplots()
    names: list[str] = []
    for found in measured.values():
        shown = {n if p["kind"] != "floor" else "floor" for n, p in found["programs"].items()}
        names += sorted(shown - set(names))
    names = [n for n in names if n != "floor"] + ["floor", "bound"]
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        values = [_times_reference(found, name) for found in measured.values()]
        at = [row + (place - (len(names) - 1) / 2) * height for row in range(len(values))]
        bars = axes.barh(at, values, height, label=name, color=f"C{place}")
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=6)
    titles = [f"{found['title']}\nbatch {found['batch']}" for found in measured.values()]
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.set_xlabel("speed of a teacher pass over the reference's")
    axes.margins(x=0.1)  # for the numbers
    figure.legend(loc="outside right upper", fontsize=6)


def _times_reference(found: Json, name: str) -> float:
    programs = found["programs"]
    if name == "bound":
        return float(programs[_REFERENCE]["ms_per_pass"] / found["bound_ms_per_pass"])
    return float(programs[found["floor"] if name == "floor" else name]["times_reference_speed"])


BENCHMARK = Benchmark(
    "one iteration of synthesis, beside a peer's loop and the convolutions alone",
    _options,
    _measure,
)
