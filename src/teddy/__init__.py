"""Teddy: dataset distillation via Taylor-approximated matching (ECCV 2024).

>>> import teddy
>>> data = teddy.load("data/distilled/digits/main/ipc10/plus")  # doctest: +SKIP
>>> network = teddy.fit(data.network(), data)  # doctest: +SKIP
>>> teddy.accuracy(network, "data/prepared/digits", data)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from teddy.core.version import VERSION

if TYPE_CHECKING:
    from teddy.data.distilled import DistilledSet as DistilledSet
    from teddy.sharing.opening import load as load
    from teddy.sharing.training_set import Loader as Loader
    from teddy.sharing.training_set import Recipe as Recipe
    from teddy.sharing.training_set import TrainingSet as TrainingSet
    from teddy.sharing.training_set import accuracy as accuracy
    from teddy.sharing.training_set import fit as fit

__version__ = VERSION
_WHERE = {"DistilledSet": "data.distilled", "load": "sharing.opening"} | dict.fromkeys(
    ("Loader", "Recipe", "TrainingSet", "accuracy", "fit"), "sharing.training_set"
)
__all__ = ["DistilledSet", "Loader", "Recipe", "TrainingSet", "accuracy", "fit", "load"]


def __getattr__(name: str) -> Any:
    # PyTorch is imported only by what needs it: `--help` and refusals stay quick.
    if name in _WHERE:
        return getattr(import_module(f"teddy.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'teddy' has no attribute {name!r}")
