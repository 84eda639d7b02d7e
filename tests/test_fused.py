"""Fused kernels: when they are used, what they compute, and what they compile to.

Values are checked by Triton's interpreter in a process of its own, machine code by compiling for a
GPU that need not be there; both need Triton. Tests marked ``cuda`` need the GPU itself.
"""

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from test_frozen import gradient, inputs, network
from test_kernels import values, vector
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.core.memory import OutOfMemory
from teddy.synthesis.engine import fused, kernels
from teddy.synthesis.engine.frozen import Teacher
from teddy.synthesis.engine.kernels import Standard

CUDA = torch.device("cuda", 0)


# ------------------------------------------------------------------------------ when they are used


@pytest.fixture
def fresh() -> Iterator[None]:
    """Whether a device is usable is asked anew."""
    fused._agrees.cache_clear()
    yield
    fused._agrees.cache_clear()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines for the user."""
    lines: list[str] = []
    monkeypatch.setattr(fused, "log", lines.append)
    return lines


def test_a_cpu_neither_uses_them_nor_imports_triton() -> None:
    code = (
        "import sys, torch; from teddy.synthesis.engine import kernels; x = torch.rand(2, 3, 4, 4);"
        "x = x.to(memory_format=torch.channels_last).requires_grad_();"
        "kernels.observe(x, None, None, 'relu', 0)[0].sum().backward();"
        "sys.exit('triton' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_switch(fresh: None, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    monkeypatch.setattr(fused, "disagreements", lambda device: [])
    monkeypatch.setenv("TEDDY_FUSED", "yes")
    with pytest.raises(TeddyError, match=r"\$TEDDY_FUSED must be 0 or 1, got 'yes'"):
        fused.usable(CUDA)
    monkeypatch.setenv("TEDDY_FUSED", "0")
    assert not fused.usable(CUDA)
    fused._agrees.cache_clear()
    monkeypatch.delenv("TEDDY_FUSED")
    assert fused.usable(CUDA)
    assert not fused.usable(torch.device("cpu"))
    (line,) = logged
    assert line.startswith("compiling fused kernels for cuda:0")


@pytest.mark.parametrize("way", ["differs", "raises"])
def test_a_device_they_fail_on_does_without_and_says_so_once(
    fresh: None, monkeypatch: pytest.MonkeyPatch, logged: list[str], way: str
) -> None:
    def disagreements(device: torch.device) -> list[str]:
        if way == "raises":
            raise OSError("no compiler\nin the path")
        return ["mean in torch.float32 is wrong", "sum in torch.float32 is wrong"]

    monkeypatch.setattr(fused, "disagreements", disagreements)
    assert not fused.usable(CUDA)
    assert not fused.usable(CUDA)
    why = {
        "differs": "mean in torch.float32 is wrong; sum in torch.float32 is wrong",
        "raises": "OSError: no compiler",
    }
    assert logged[1:] == [f"teachers run without fused kernels on cuda:0 ({why[way]})"]


def test_a_lack_of_memory_says_nothing_about_them(
    fresh: None, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    def exhausted(device: torch.device) -> list[str]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch, pytest.raises(OutOfMemory):
        patch.setattr(fused, "disagreements", exhausted)
        fused.usable(CUDA)
    monkeypatch.setattr(fused, "disagreements", lambda device: [])
    assert fused.usable(CUDA)


@given(st.integers(1, 10**7), st.integers(1, 3000), st.sampled_from([fused._PARTS, fused._SPANS]))
def test_programs_cover_a_tensor_and_none_is_idle(rows: int, channels: int, most: int) -> None:
    (columns, spans), tiles, shape = fused._cut(rows, channels, most)
    wide, high = shape["CHANNELS"], shape["ROWS"]
    assert wide * high == fused._TILE
    assert (columns - 1) * wide < channels <= columns * wide
    assert (spans - 1) * tiles * high < rows <= spans * tiles * high
    assert columns * spans <= max(most, columns)
    assert spans <= most
    assert shape["groups"] * shape["ALIGN"] == channels


# ------------------------------------------------------------------------------ what they compute


def test_values_by_tritons_interpreter() -> None:
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("this Triton interprets no loop under this NumPy (findings/)")
    file = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


# -------------------------------------------------------------------------- what they compile to

INTEGERS = {"rows", "tiles", "groups", "span", "parts", "channels", "degrees"}
FLOATS = {"per_row", "per_degree"}
VALUES = {"x", "out", "grad", "result", "a", "b"}
TILE = {"ALIGN": 16, "ROWS": 32, "CHANNELS": 64}
FLAT = {"ALIGN": 16, "SIZE": fused._TILE}
PLAIN = {"factor": None, "summand": None}

PROGRAMS = [
    ("observe", {**TILE, **PLAIN, "ACTIVATION": "relu"}),
    ("observe", {**TILE, **PLAIN, "ACTIVATION": "", "out": None}),
    ("observe", {**TILE, "ACTIVATION": "silu"}),
    ("observe", {**TILE, **PLAIN, "ACTIVATION": "relu6", "CHANNELS": 32, "ROWS": 64, "ALIGN": 8}),
    ("observe_backward", {**TILE, **PLAIN, "ACTIVATION": "relu"}),
    ("observe_backward", {**TILE, "ACTIVATION": "silu", "scale": None}),
    ("observe_backward", {**TILE, **PLAIN, "ACTIVATION": "relu6"}),
    ("observe_backward", {**TILE, **PLAIN, "ACTIVATION": ""}),
    ("add_relu", FLAT),
    ("add_relu", {**FLAT, "mask": None}),
    ("masked", FLAT),
]


def compiled(name: str, dtype: str, constants: dict[str, Any], integers: str = "i32") -> Any:
    """A kernel's program for an H100, as launches on aligned tensors make it."""
    triton = pytest.importorskip("triton")
    pytest.importorskip("triton.backends.nvidia.compiler")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = fused._kernel(name)
    if not hasattr(kernel, "params"):
        pytest.skip("Triton interprets in this process")
    types, aligned = {}, {}
    for index, parameter in enumerate(kernel.params):
        if parameter.name in constants:
            types[parameter.name] = "constexpr"
        elif parameter.name in INTEGERS:
            types[parameter.name] = integers
        elif parameter.name in FLOATS:
            types[parameter.name] = "fp32"
        else:
            values = "i8" if parameter.name == "mask" else dtype
            types[parameter.name] = f"*{values if parameter.name in VALUES | {'mask'} else 'fp32'}"
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=fused._OPTIONS)


@pytest.fixture
def no_old_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes from Triton's cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("name", "constants"), PROGRAMS)
def test_programs_for_an_h100_move_16_bytes_at_once_and_spill_nothing(
    no_old_programs: None, name: str, dtype: str, constants: dict[str, Any]
) -> None:
    program = compiled(name, dtype, constants)
    ptx = program.asm["ptx"]
    assert re.search(r"ld\.global(\.\w+)*\.v4\.b32", ptx)
    writes = constants.get("out", "") is not None
    assert bool(re.search(r"st\.global(\.\w+)*\.v4\.b32", ptx)) == writes
    assert not re.search(r"\b(atom|red)\.|\.local", ptx)
    assert used(program, "STACK") == used(program, "LOCAL") == 0
    assert used(program, "REG") <= 64, "four programs per multiprocessor"


def used(program: Any, what: str) -> int:
    """A resource that a compiled program takes."""
    triton: Any = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("Triton comes without cuobjdump here")
    file = Path(os.environ["TRITON_CACHE_DIR"]) / "program.cubin"
    file.write_bytes(program.asm["cubin"])
    found = subprocess.run(
        [tool, "-res-usage", file], capture_output=True, text=True, check=True
    ).stdout
    return int(re.findall(rf"{what}:(\d+)", found)[-1])


def test_statistics_are_combined_without_spills(no_old_programs: None) -> None:
    parts = {"PARTS": fused._PARTS, "CHANNELS": fused._COMBINED}
    for terms in ({}, dict.fromkeys(("shift", "scale", "stored"))):
        program = compiled("combine", "fp32", {**parts, **terms})
        assert not re.search(r"\b(atom|red)\.|\.local", program.asm["ptx"])
        assert used(program, "STACK") == used(program, "LOCAL") == 0


@pytest.mark.parametrize(("name", "constants"), [PROGRAMS[0], PROGRAMS[4], PROGRAMS[8]])
@pytest.mark.parametrize("integers", ["i32", "i64"])
def test_offsets_into_tensors_have_64_bits(
    no_old_programs: None, name: str, constants: dict[str, Any], integers: str
) -> None:
    """Triton passes a number of rows as 64 bits if it has to."""
    lines = compiled(name, "bf16", constants, integers).asm["ttir"].splitlines()
    found = [line for line in lines if "tt.addptr" in line and "ptr<bf16>" in line]
    assert found
    assert all("i64>" in line and "i32>" not in line for line in found)


def test_channels_of_any_number_compile(no_old_programs: None) -> None:
    for channels in (3, 10, 52, 103, 24):
        shape = fused._cut(10**6, channels, fused._PARTS)[2]
        del shape["groups"]
        ptx = compiled("observe", "bf16", {**shape, **PLAIN, "ACTIVATION": "relu"}).asm["ptx"]
        bits = 8 * min(16, 2 * math.gcd(channels, 16))
        words = {128: "v4.b32", 64: "v2.b32", 32: "b32", 16: "b16"}
        assert f"ld.global.{words[bits]}" in ptx, channels


# ----------------------------------------------------------------------------------------- on a GPU


def eager(function: Any, *arguments: Any) -> Any:
    """What a function gives without the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "usable", lambda device: False)
        return function(*arguments)


def near(got: Tensor, want: Tensor, bound: float, but: float = 0) -> None:
    """Relative to a value or 1, but for a share of the values."""
    assert got.dtype == want.dtype
    got, want = got.double(), want.double()
    assert ((got - want).abs() > bound * (1 + want.abs())).double().mean() <= but


@pytest.mark.cuda
def test_a_gpu_uses_them(fresh: None, logged: list[str]) -> None:
    usable = fused.usable(torch.device("cuda", torch.cuda.current_device()))
    assert usable, logged


BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
SHAPES = [(1, 1, 1, 1), (1, 103, 1, 1), (3, 129, 3, 5), (64, 52, 33, 31), (128, 64, 32, 32)]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("activation", ["", "relu", "relu6", "silu"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_on_a_gpu(
    dtype: torch.dtype, activation: str, affine: bool, shape: tuple[int, ...]
) -> None:
    channels = shape[1]
    x, ramp = (values(*shape, seed=seed).to(CUDA, dtype) for seed in (0, 1))
    terms = Standard(*(vector(channels, seed).float().to(CUDA) for seed in (3, 4, 5)))
    factor, summand = ((vector(channels, seed).float() - 0.8).to(CUDA) for seed in (1, 2))
    options = (None, (factor, summand)) if affine else (terms, None)

    def both() -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        outputs = kernels.observe(leaf, options[0], options[1], activation, 0)
        weights = [ramp, *(torch.ones_like(v) for v in outputs[1:])]
        return *outputs, torch.autograd.grad(outputs, leaf, weights)[0]

    first, second, plain = both(), both(), eager(both)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    near(first[0], plain[0], BOUNDS[dtype])
    near(first[1], plain[1], 2e-5)
    near(first[2], plain[2], 2e-5)
    # The eager map is rounded before the derivative looks at it, which may put it on a jump.
    near(first[3], plain[3], BOUNDS[dtype], but=1e-2 if affine else 0)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_end_of_a_branch_on_a_gpu(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    pair = [values(*shape, seed=seed).to(CUDA, dtype) for seed in (0, 1)]
    ramp = values(*shape, seed=2).to(CUDA, dtype)

    def both() -> tuple[Tensor, ...]:
        a, b = (v.clone().requires_grad_() for v in pair)
        out = kernels.add_relu(a, b)
        return out, *torch.autograd.grad(out, (a, b), ramp)

    for new, old in zip(both(), eager(both), strict=True):
        assert torch.equal(new, old)


@pytest.mark.cuda
def test_more_than_2_to_the_31_values_on_a_gpu() -> None:
    shape = (4097, 64, 128, 64)
    if torch.cuda.mem_get_info()[0] < 5 * 2 * math.prod(shape):
        pytest.skip("needs 21 GB of a GPU's memory")
    x = torch.zeros(shape, dtype=torch.bfloat16, device=CUDA).to(memory_format=torch.channels_last)
    x[-1] = 4097.0
    leaf = x.requires_grad_()
    out, mean, var = kernels.observe(leaf, None, None, "relu", 0)
    assert out[-1].eq(4096).all()
    assert not out[:-1].any()
    torch.testing.assert_close(mean, torch.full_like(mean, 4096 / 4097))
    torch.testing.assert_close(var, torch.full_like(var, 4096 / 4097 * 4096 * 4096 / 4097))
    (grad,) = torch.autograd.grad(out, leaf, out)
    assert grad[-1].eq(4096).all()
    assert not grad[:-1].any()


@pytest.mark.cuda
@pytest.mark.parametrize(("precision", "bound"), [(torch.float32, 2e-2), (torch.bfloat16, 0.2)])
def test_whole_teacher_on_a_gpu(precision: torch.dtype, bound: float) -> None:
    model = network("resnet18", 16, torch.float32).to(CUDA)
    teacher, x = Teacher(model, "biased"), inputs(16, torch.float32, count=10).to(CUDA)

    def observe(images: Tensor) -> Any:
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            return teacher.observe(images)

    new, old = gradient(observe, model, x), eager(gradient, observe, model, x)
    assert (new - old).norm() <= bound * old.norm()
