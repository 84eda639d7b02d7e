"""Weights that were trained elsewhere."""

import collections
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import Damage
from safetensors.torch import save
from torch import Tensor
from trial import accepted, campaign

from teddy.settings.configs import NetworkConfig
from teddy.teachers.networks import build, load_pretrained, save_network

pytestmark = pytest.mark.slow
SHAPE, CLASSES = (1, 8, 8), 3
PREFIXES = (
    "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.",
    "backbone.",
)  # fmt: skip
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
State = dict[Any, Any]


def _entry(state: State, damage: Damage) -> str:
    """Exchange the tensor of a name; why it is wrong then."""
    name = damage.random.choice([n for n in state if not n.endswith("num_batches_tracked")])
    old: Tensor = state[name]
    changes: dict[str, Callable[[], Any]] = {
        "nan": lambda: old * torch.nan, "infinite": lambda: old + torch.inf,
        "complex": lambda: old.to(torch.complex64), "whole": lambda: old.to(torch.int8),
        "bool": lambda: old > 0, "larger": lambda: torch.cat([old, old]),
        "smaller": lambda: old[:-1], "flat": lambda: old.flatten()[None], "none": lambda: None,
        "sparse": lambda: old.to_sparse(), "meta": lambda: old.to("meta"),
        "number": lambda: np.float64(1.0), "text": lambda: "text", "list": lambda: [old],
        "scalar": lambda: torch.tensor(0.0), "empty": lambda: old[:0],
    }  # fmt: skip
    how = damage.random.choice(list(changes))
    state[name] = changes[how]()
    return f"{name} is {how}"


def _changed(state: State, damage: Damage) -> str:
    """Change weights in place; why they are wrong then."""
    how = damage.random.choice(("entry", "entry", "remove", "rename", "add", "nothing", "counter"))
    name = damage.random.choice([n for n in state if not n.endswith("num_batches_tracked")])
    if how == "entry":
        return _entry(state, damage)
    if how == "remove":
        del state[name]
    elif how == "rename":
        state[damage.random.choice((name[1:], name.upper(), "", "é", 3))] = state.pop(name)
    elif how == "add":
        state["more"] = torch.zeros(2)
    else:
        if how == "counter":
            for key in [n for n in state if n.endswith("num_batches_tracked")]:
                del state[key]
        dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        dtype = damage.random.choice(dtypes)
        for key, tensor in state.items():
            state[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        return ""
    return how


def _around(state: State, damage: Damage) -> tuple[Any, str]:
    """Weights below other names or keys, and why that is wrong."""
    how = damage.random.choice(("nothing", "prefix", "key", "both", "other prefix", "other key"))
    made: Any = state
    if how in ("prefix", "both"):
        prefix = damage.random.choice(PREFIXES)
        made = {f"{prefix}{name}": tensor for name, tensor in made.items()}
    elif how == "other prefix":
        made = {f"encoder.q.{name}": tensor for name, tensor in made.items()}
    if how in ("key", "both"):
        made = {"epoch": 3, damage.random.choice(WRAPPERS): made, "best": np.float64(0.5)}
    elif how == "other key":
        others = ({"weights": made}, [made], (made, 3), {"ema": {"shadow": made}}, None, 3, "x")
        made = damage.random.choice((*others, collections.Counter("x"), torch.zeros(3), {}, []))
    return made, how if how.startswith("other") else ""


def test_checkpoints(tmp_path: Path) -> None:
    """Weights wrapped, prefixed, incomplete, of other types or shapes, in damaged files."""
    config = NetworkConfig(arch="convnet3", width=4, norm="batch")
    network = build(config, SHAPE, CLASSES, seed=1)
    expected = network.state_dict()
    ours = tmp_path / "ours.safetensors"
    save_network(ours, network, config, SHAPE, CLASSES)
    own = ours.read_bytes()

    def attempt(damage: Damage) -> str:
        suffix = damage.random.choice((".pth", ".pth", ".pt", ".safetensors"))
        path = tmp_path / f"weights{suffix}"
        if damage.random.random() < 0.1:
            content, wrong = own, "" if suffix == ".safetensors" else "safetensors by another name"
        else:
            content, wrong = _written(damage, dict(expected), suffix)
        damaged = damage.random.random() < 0.25
        path.write_bytes(damage.content(content) if damaged else content)

        def read() -> str:
            loaded = load_pretrained(config, SHAPE, CLASSES, str(path)).state_dict()
            finite = all(tensor.isfinite().all() for tensor in loaded.values())
            return "" if finite else "weights that are not finite"

        if damaged:
            return read()
        return read() or wrong if wrong else accepted(read)

    campaign("checkpoints", 0.1, attempt, tmp_path)


def _written(damage: Damage, state: State, suffix: str) -> tuple[bytes, str]:
    if suffix == ".safetensors":  # which holds tensors by name alone
        wrong = _changed(state, damage)
        kept = {str(n): t for n, t in state.items() if isinstance(t, Tensor)}
        dense = {
            n: t.contiguous() for n, t in kept.items()
            if t.layout == torch.strided and t.device.type == "cpu" and not t.is_quantized
        }  # fmt: skip
        made, around = _around(dense, damage)
        flat = isinstance(made, dict) and all(isinstance(t, Tensor) for t in made.values())
        made, around = (made, around) if flat else (dense, "")
        return save({n: t.clone() for n, t in made.items()}), wrong or around
    wrong = _changed(state, damage)
    made, around = _around(state, damage)
    file = io.BytesIO()
    torch.save(made, file, _use_new_zipfile_serialization=damage.random.random() < 0.7)
    return file.getvalue(), wrong or around
