"""Where the time of the fastest way goes: kernels, and what the GPU waits for."""

import argparse
import gzip
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.engine import Batches, engine, frozen_network
from benchmarks.synthesis import WORKLOADS
from teddy.core.files import Json, write_json
from teddy.core.runtime import pick_device, run_stage
from teddy.settings.configs import SynthesizeConfig
from teddy.settings.schema import from_json, read_yaml
from teddy.synthesis.engine.cuda_graphs import choose_passes

_SHOWN = 40


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--small", action="store_true", help="few and small images")
    args = parser.parse_args(argv)

    def stage() -> str:
        record = measure(args.out, small=args.small)
        write_json(args.out / "profile.json", record)
        return f"{record['busy_share']:.0%} of {record['ms_per_iteration']:.1f} ms busy"

    run_stage("profile", stage)


def measure(out: Path, *, small: bool) -> Json:
    """Profile a few iterations with three teachers in bfloat16; the trace goes beside."""
    device, params = pick_device(), read_yaml(Path("params.yaml"))
    keys = params["synthesize"] | {"dsa": params["dsa"], "precision": "bfloat16"}
    config = from_json(SynthesizeConfig, keys, "params.yaml: synthesize")
    workload = WORKLOADS["resnet18-32" if small else "resnet18-64"]
    networks = [frozen_network(workload, seed) for seed in range(2 if small else 3)]
    maker = engine(workload, networks, config, device, choose_passes(config, 3, device))
    step = Batches(maker, workload.batch_of(10 if small else 100)).step
    for _ in range(1 if small else 20):
        step()
    on_gpu, iterations = device.type == "cuda", 2 if small else 10
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiled:
        began = time.perf_counter()
        for _ in range(iterations):
            step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    trace = out / "trace.json"
    profiled.export_chrome_trace(str(trace))
    with trace.open("rb") as plain, gzip.open(f"{trace}.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    trace.unlink()
    kernels = sorted(
        (
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total,
             event.count, event.key)
            for event in profiled.key_averages()
            if not on_gpu or event.device_type.name == "CUDA"
        ),
        reverse=True,
    )  # fmt: skip
    busy = sum(microseconds for microseconds, _, _ in kernels) / 1e6
    return {
        "iterations": iterations,
        "ms_per_iteration": 1e3 * seconds / iterations,
        "busy_share": min(1.0, busy / seconds),
        "kernels": [
            {"name": name[:120], "calls": count, "ms_per_iteration": us / 1e3 / iterations}
            for us, count, name in kernels[:_SHOWN]
        ],
    }


if __name__ == "__main__":
    main()
