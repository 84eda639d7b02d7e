"""What whole syntheses of rows take, beside each other: processor seconds and memory.

``python -m benchmarks sets digits/main/ipc10/prior digits/main/ipc10/plus`` needs a checkout in
which the rows' data and pools were made. ``ROW@POOL`` makes a row by another pool. Every synthesis
has a process of its own, on one thread of the CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.command import Benchmark, Result, machine, median, ratio, take_turns
from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.runtime import log, pick_device
from teddy.core.tables import Column, Table
from teddy.settings.declared import Declared

_CHILD = """
import argparse, dataclasses, json, resource, sys, time
from pathlib import Path
import torch
from teddy.core.runtime import keep_freed_memory
from teddy.settings.stages import SynthesizeSettings, read_settings
from teddy.stages.synthesize import main
torch.set_num_threads(1)
keep_freed_memory()
settings, data, pool, out = map(Path, sys.argv[1:])
own = dataclasses.replace(read_settings(SynthesizeSettings, settings), syntheses=1)
args = argparse.Namespace(settings=settings, data=data, pool=pool, out=out / "set",
                          history=out / "history.json")
start = time.process_time()
main(own, args)
print(json.dumps({"seconds": time.process_time() - start,
                  "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def _options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "rows", nargs="+", metavar="ROW[@POOL]", help="of sets; ratios to the first"
    )


def _measure(args: argparse.Namespace) -> Result:
    declared = Declared(Path())
    peaks = dict[str, list[float]]()

    def program(name: str, _: int) -> float:
        row, pool = (*name.split("@"), "")[:2]
        log(f"  {name}")
        found = _alone(row, declared.sets[row].data, pool or declared.sets[row].pool)
        peaks.setdefault(name, []).append(found["mib"])
        return float(found["seconds"])

    for name in args.rows:
        if name.partition("@")[0] not in declared.sets:
            raise TeddyError(f"{name}: no such row of sets is switched on in dvc.yaml")
    programs = {name: partial(program, name) for name in args.rows}
    measured = take_turns(programs, args.repeats)
    first = args.rows[0]
    lines = [
        (
            name, median(values), ratio(values, measured[first]), median(peaks[name]),
            ratio(peaks[name], peaks[first]),
        )
        for name, values in measured.items()
    ]  # fmt: skip
    columns = (
        Column("row", text=True), Column("s", spec=".1f"), Column("× first", spec=".2f"),
        Column("MiB", spec=",.0f"), Column("× first", spec=".2f"),
    )  # fmt: skip
    note = (
        f"One synthesis from images and pool to a set, in a process of its own: processor seconds "
        f"without the start of Python, and most memory that was resident, PyTorch included. "
        f"Medians of {args.repeats} rounds in turn, ratios within rounds. {machine(pick_device())}."
    )
    record = {"seconds": measured, "mib": peaks}
    return Result(record, (Table("Whole syntheses", columns, tuple(lines), (note,)),))


def _alone(row: str, data: str, pool: str) -> Json:
    """Seconds and memory of one synthesis."""
    with tempfile.TemporaryDirectory(prefix="teddy-bench-") as out:
        command = [
            sys.executable, "-c", _CHILD, f"inputs/synthesize/{row}.json", f"data/prepared/{data}",
            f"models/{pool}", out,
        ]  # fmt: skip
        environment = os.environ | {"TEDDY_WORK": out, "TEDDY_WORKERS": "1", "TEDDY_DEVICE": "cpu"}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    found: Json = json.loads(done.stdout.splitlines()[-1])
    return found


BENCHMARK = Benchmark(__doc__.splitlines()[0], _options, _measure, repeats=3)
