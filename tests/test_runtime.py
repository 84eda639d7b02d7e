"""How a stage runs: what it asks of the C library."""

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from teddy.runtime import keep_freed_memory
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
