"""How a stage runs: what it asks of the C library, and in which precision."""

import contextlib
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch

from teddy.core import runtime
from teddy.core.environment import check_environment
from teddy.core.errors import TeddyError
from teddy.core.runtime import autocast, computed_in

_FAULTS = """
import resource, torch
from teddy.core.runtime import keep_freed_memory
if {ours}: keep_freed_memory()
def step(): return [torch.zeros(2**24) for _ in range(2)] and None  # above glibc's own limit
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(6): step()
before = faults()
for _ in range(5): step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_not_mapped_again_at_every_step() -> None:
    faults = {}
    for ours in (False, True):
        made = subprocess.run(
            [sys.executable, "-c", _FAULTS.format(ours=ours)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        faults[ours] = int(made.stdout)
    assert faults[False] > 1000, "without it every step maps its pages anew"
    assert faults[True] < faults[False] / 2


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TEDDY_SAVE_SECONDS", "nan", "a finite number of at least 0"),
        ("TEDDY_SAVE_SECONDS", "inf", "a finite number of at least 0"),
        ("TEDDY_SAVE_SECONDS", "-1", "a finite number of at least 0"),
        ("TEDDY_SAVE_SECONDS", "soon", "a finite number of at least 0"),
        ("TEDDY_GRAPHS", "2", "0 or 1"),
        ("TEDDY_FUSED", "x", "0 or 1"),
        ("TEDDY_DEVICE", "cpu:x", "cpu, cuda or cuda:<number>"),
        ("TEDDY_DEVICE", "cpu:-1", "cpu, cuda or cuda:<number>"),
        ("TEDDY_DEVICE", "cuda:²", "cpu, cuda or cuda:<number>"),
        ("TEDDY_WORKERS", "²", "a whole number of at least 1"),
        ("TEDDY_WORKERS", "0", "a whole number of at least 1"),
        ("TEDDY_WORKERS", "9" * 5000, "a whole number of at least 1"),
        ("TEDDY_THREADS", "100000", "at most 1024"),
        ("TEDDY_LANES", "-1", "a whole number of at least 1"),
    ],
)
def test_variables_are_refused_by_name_when_a_command_starts(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit):
        runtime.run_stage("stage", lambda: pytest.fail("started"))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: ${variable} must be ") and expected in line and ", got " in line
    assert len(line) < 200


ALONE = {"RANK": None, "WORLD_SIZE": None, "LOCAL_RANK": None, "LOCAL_WORLD_SIZE": None,
         "MASTER_ADDR": None, "MASTER_PORT": None, "TORCHELASTIC_RUN_ID": None}  # fmt: skip
OF_TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
               "MASTER_ADDR": "a", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x"}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (ALONE | {"RANK": "x"}, "$RANK must be a whole number as torchrun sets it, got 'x'"),
        (ALONE | {"WORLD_SIZE": "-1"}, "$WORLD_SIZE must be a whole number"),
        (ALONE | {"RANK": "0"}, "$WORLD_SIZE must be set too where $RANK is"),
        (ALONE | {"WORLD_SIZE": "2"}, "$RANK must be set too where $WORLD_SIZE is"),
        (ALONE | {"LOCAL_RANK": "0"}, "$RANK, $WORLD_SIZE must be set too where $LOCAL_RANK is"),
        (
            ALONE | {"TORCHELASTIC_RUN_ID": "x"},
            "$RANK, $WORLD_SIZE, $LOCAL_RANK, $LOCAL",
        ),
        ({"RANK": "4"}, "$RANK must be below $WORLD_SIZE, which is 4, got 4"),
        ({"LOCAL_RANK": "2"}, "$LOCAL_RANK must be below $LOCAL_WORLD_SIZE, which is 2, got 2"),
        ({"LOCAL_WORLD_SIZE": "9"}, "$LOCAL_WORLD_SIZE must be at most $WORLD_SIZE, which is 4"),
        ({"WORLD_SIZE": "0"}, "$RANK must be below $WORLD_SIZE, which is 0, got 1"),
        ({"MASTER_ADDR": None}, "$MASTER_ADDR must be set too where"),
        ({"MASTER_PORT": "65536"}, "$MASTER_PORT must be a whole number as torchrun sets it"),
        ({"MASTER_PORT": ""}, "$MASTER_PORT must be a whole number as torchrun sets it, got ''"),
        ({}, ""),
        (ALONE, ""),
        (ALONE | {"MASTER_ADDR": "a", "MASTER_PORT": "29500"}, ""),
        (ALONE | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, ""),
    ],
)
def test_what_torchrun_sets_must_fit_together(
    changes: dict[str, str | None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (OF_TORCHRUN | changes).items():
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
    with pytest.raises(TeddyError) if words else contextlib.nullcontext() as caught:
        check_environment()
    assert caught is None or str(caught.value).startswith(words)


def test_variables_that_are_right_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (
        ("SAVE_SECONDS", "0"), ("GRAPHS", "0"), ("FUSED", "1"), ("DEVICE", "cpu"), ("WORKERS", "8"),
        ("THREADS", "2"), ("LANES", "3"),
    ):  # fmt: skip
        monkeypatch.setenv(f"TEDDY_{variable}", value)
    check_environment()
    assert (runtime.save_interval(), runtime.lanes_wanted()) == (0, 3)
    assert (runtime.graphs_wanted(), runtime.fused_wanted()) == (False, True)
    assert runtime.pick_device() == torch.device("cpu")


@pytest.mark.parametrize("instructions", [True, False])
def test_layers_compute_in_bfloat16_where_that_is_not_emulated(
    instructions: bool, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    runtime._say_emulated.cache_clear()
    monkeypatch.setattr(runtime, "emulates_bfloat16", lambda kind: not instructions)
    cpu, x = torch.device("cpu"), torch.ones(2, 2)
    for _ in range(2):
        with autocast(cpu, "bfloat16"):
            assert (x @ x).dtype == (torch.bfloat16 if instructions else torch.float32)
    with autocast(cpu, "bfloat16", emulate=True):
        assert (x @ x).dtype == torch.bfloat16
    with autocast(cpu, "float32"):
        assert (x @ x).dtype == torch.float32
    assert computed_in(cpu, "bfloat16") == ("bfloat16" if instructions else "float32")
    assert computed_in(cpu, "float32") == "float32"
    said = capfd.readouterr().err.count("has no instructions for bfloat16: float32 instead")
    assert said == (0 if instructions else 1)


def test_stages_start_on_one_thread_whatever_the_environment_says() -> None:
    """Rounding of large networks depends on threads, so bytes would on $OMP_NUM_THREADS."""
    threads: list[int] = []

    def main() -> str:
        threads.append(torch.get_num_threads())
        return "ran"

    before = torch.get_num_threads()
    torch.set_num_threads(2)  # as the environment would
    try:
        runtime.run_stage("stage", main)
    finally:
        torch.set_num_threads(before)
    assert threads == [1]
