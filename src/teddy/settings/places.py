"""What tables and figures show, and where in them: two results must not share a place."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Shown(NamedTuple):
    """What kind of rows a table or figure shows."""

    module: str
    """Of :mod:`teddy.stages`, which makes it."""
    sections: tuple[str, ...]
    """Of the experiment files."""


EVALUATIONS = Shown("target", ("sets", "evaluations"))
"""What all tables and figures show but those below."""
OTHERS: Mapping[str, Shown] = {
    "fig3d": Shown("costs", ("sets",)),
    "fig3e": Shown("learners", ("learners",)),
    "fig4-6-7": Shown("grids", ("sets",)),
}
"""Tables and figures that show something else than evaluations."""

PLACES: Mapping[str, tuple[str, ...]] = {
    "table1": ("arch", "method", "ipc", "labels"),
    "table2": ("arch", "method", "ipc"),
    "table3": ("data", "method", "ipc"),
    "table4": ("arch", "method", "ipc", "labels"),
    "table5": ("arch", "init", "method", "ipc"),
    "recipes": ("arch", "recipe", "method", "ipc", "labels"),
    "fig2c": ("arch", "stages", "ipc", "labels"),
    "fig3a": ("arch", "teachers_drawn", "ipc", "labels"),
    "fig3b": ("arch", "members", "ipc", "labels"),
    "fig3c": ("arch", "pool_size", "ipc", "labels"),
    "precision": ("method", "precision", "ipc", "labels"),
}
"""What a place is, by attributes of :class:`teddy.report.results.EvaluationResult`. In all other
targets, every row has a place of its own."""
ONE_RECIPE = "recipes"
"""The target whose rows of :func:`the_recipe` must differ in their images alone."""
SOFT_ALONE = ("table2", "table3")
"""Targets that show soft labels alone."""
AXES = ("stages", "teachers_drawn")
"""Attributes that some results do not have, which then have no place in a figure along them."""


def the_recipe(rows: Iterable[tuple[str, str]]) -> str:
    """The recipe that most methods have, the first by name among equals; "" if none has one.

    Args:
        rows: method and recipe of each, "" for none.
    """
    methods: dict[str, set[str]] = {}
    for method, recipe in rows:
        methods.setdefault(recipe, set()).add(method)
    methods.pop("", None)
    return min(methods, key=lambda name: (-len(methods[name]), name), default="")
