"""All numbers as one nested record, which DVC shows as metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.report.results import Base, Cost, EvaluationResult, LearnerResult, PoolFacts, Results


def summarise(
    results: Results, bases: Sequence[Base], pools: Sequence[PoolFacts]
) -> dict[str, Any]:
    """Nested metrics: the parts of a row's name, then labels; teachers and pools beside them.

    Raises:
        TeddyError: two rows would have the same path, or a name has a dot, with which DVC
            separates the parts of a path.
    """
    leaves: dict[tuple[str, ...], tuple[str, Json]] = {}

    def add(path: tuple[str, ...], source: str, leaf: Json) -> None:
        if path in leaves:
            raise TeddyError(
                f"{leaves[path][0]} and {source} would both be reported as {'.'.join(path)}; "
                "only one of them can be"
            )
        if dotted := next((part for part in path if "." in part), None):
            raise TeddyError(f"{source}: {dotted!r} has a dot, which names of metrics must not")
        leaves[path] = (source, leaf)

    for result in results:
        add((*result.name.split("/"), result.labels), result.name, _metrics(result))
    for base in bases:
        top1 = round(base.epochs[-1].val_top1, 2)
        add(("teachers", *base.name.split("/")), f"bases.{base.name}", {"val_top1": top1})
    for pool in pools:
        top1s = [member.val_top1 for member in pool.members]
        facts = {
            "members": len(top1s),
            "val_top1_min": round(min(top1s), 2),
            "val_top1_max": round(max(top1s), 2),
        }
        add(("pools", *pool.name.split("/")), f"pools.{pool.name}", facts)
    return _nested({path: leaf for path, (_, leaf) in leaves.items()})


def metrics_of(results: Sequence[EvaluationResult | LearnerResult | Cost]) -> dict[str, Any]:
    """Mean and spread of each cell of a target, by the parts of its row's name below the dataset.

    Of continual learning after the last step; of costs what was measured.
    """
    return _nested(dict(map(_cell, results)))


def _cell(result: EvaluationResult | LearnerResult | Cost) -> tuple[tuple[str, ...], Json]:
    path = tuple(result.name.split("/")[1:])
    if isinstance(result, Cost):
        return path, {"seconds": round(result.seconds, 2), "peak_mib": result.peak_mib}
    if isinstance(result, LearnerResult):
        mean, std = result.top1_mean[-1], result.top1_std[-1]
    else:
        mean, std = result.top1_mean, result.top1_std
    return (*path, result.labels), {"top1_mean": round(mean, 2), "top1_std": round(std, 2)}


def _metrics(result: EvaluationResult) -> Json:
    names = ("top1_mean", "top1_std", "top1_best_mean", "f1_mean")
    return {name: round(getattr(result, name), 2) for name in names} | {"n": result.n}


def _nested(leaves: Mapping[tuple[str, ...], Json]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node.update(leaf)
    return tree
