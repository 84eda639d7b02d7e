"""Teddy: dataset distillation via Taylor-approximated matching (ECCV 2024).

>>> import teddy
>>> path = "data/distilled/digits/main/ipc10/prior/0.safetensors"
>>> dataset = teddy.load(path)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teddy.data.distilled import DistilledSet as DistilledSet
    from teddy.students.sets import load as load

__version__ = "0.1.0"
__all__ = ["DistilledSet", "load"]


def __getattr__(name: str) -> Any:
    # PyTorch is imported only by what needs it: `--help` and refusals stay quick.
    if name in __all__:
        from teddy.data.distilled import DistilledSet
        from teddy.students.sets import load

        return {"DistilledSet": DistilledSet, "load": load}[name]
    raise AttributeError(f"module 'teddy' has no attribute {name!r}")
