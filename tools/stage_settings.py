"""What every stage reads of ``params.yaml``, resolved for the row that it is run for.

:mod:`tools.dependencies` writes it beside the checksums of the stage's code, and DVC runs a stage
again if that file changes. So what a stage reads must stand here; what it does not need must not,
or it would run again for nothing.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from teddy.core.files import Json
from teddy.report.axis_tables import AXES
from teddy.report.results import Kept
from teddy.settings.configs import settings_of_images
from teddy.settings.params import Params
from teddy.settings.rows import Leaf
from teddy.settings.schema import to_json


def settings_of(module: str, name: str, params: Params, kept: Sequence[Kept] = ()) -> Json:
    """Settings that a stage's results depend on.

    Args:
        module: of :mod:`teddy.stages`, without its package.
        name: row or target that it is run for, "" for none.
        params: the file.
        kept: runs that are kept in ``metrics/reference``.
    """
    if module in _TARGETS:
        return _target(params, name, kept)
    found = _STAGES[module](params, name)
    return found if module in _SEEDLESS else {"seed": params.seed} | found


def _prepare(params: Params, name: str) -> Json:
    return {"prepare": to_json(params.prepare(name))}


_TAKEN = ("checkpoint", "claimed_top1")
"""What only a base that is taken from elsewhere reads."""
_OF_SOFT = ("temperature", "temperature_squared", "divergence")
"""What only students with soft labels read."""


def _train_teacher(params: Params, name: str) -> Json:
    config = params.train_teacher(name)
    taken = _only(config, ("network", "views", *_TAKEN))
    settings = taken if config.checkpoint else _without(config, _TAKEN)
    return {"row": to_json(params.bases[name]), "settings": settings}


def _build_pool(params: Params, name: str) -> Json:
    row = params.pools[name]
    read = {"converged": (), "prior": ("prior",), "post": ("prior", "post")}[row.kind]
    return {"row": to_json(row), "settings": _only(params.pool(name), read)}


def _synthesize(params: Params, name: str) -> Json:
    row = params.sets[name]
    images = params.methods[row.method].images
    settings = settings_of_images(params.synthesize(name), images)
    return {"row": to_json(row), "images": images, "settings": settings}


def _relabel(params: Params, name: str) -> Json:
    # Whole, because the labels' manifest has all of them.
    return {"settings": to_json(params.relabel(name))}


def _evaluate(params: Params, name: str) -> Json:
    leaf = params.leaf(name)
    return {
        "score": to_json(leaf),
        "relabel": to_json(params.relabel(name)),
        "relabel_of_set": to_json(params.relabel(leaf.set)),
        "settings": _without(params.evaluate(name), () if "soft" in leaf.labels else _OF_SOFT),
    }


def _train_step_teachers(params: Params, name: str) -> Json:
    return {
        "row": to_json(params.step_teachers[name]),
        "continual": to_json(params.continual),
        "settings": _without(params.train_step_teachers(name), _TAKEN),
    }


def _continual(params: Params, name: str) -> Json:
    row = params.streams[name]
    relabel, made = params.relabel(name), params.sets[row.set]
    soft, images = "soft" in row.labels, params.methods[made.method].images
    unread = ["store", "views" if relabel.augmentation == "dsa" else "dsa"]
    unread += [] if soft else ["ensemble"]
    again = row.strict and images == "synthesised"
    return {
        "row": to_json(row),
        "continual": to_json(params.continual),
        "relabel": _without(relabel, unread),
        "evaluate": _without(params.evaluate(name), ("divergence",) if soft else _OF_SOFT),
        "epochs": list(params.step_epochs(name)) if row.strict else [],
        "set": {"method": made.method, "images": images, "ipc": made.ipc},
        "synthesize": _synthesize(params, row.set)["settings"] if again else {},
    }


def _measure_costs(params: Params, name: str) -> Json:
    sets = [params.leaf(row).set for row in params.targets[name]]
    pools = {pool: params.pools[pool] for pool in (params.sets[row].pool for row in sets)}
    bases = dict.fromkeys(row.base for row in pools.values())
    return {
        "sets": {row: _synthesize(params, row) for row in sets},
        "pools": {
            pool: {
                "kind": row.kind,
                "base": row.base,
                "epochs": list(params.pool(pool).prior.epochs) if row.kind == "prior" else [],
            }
            for pool, row in pools.items()
        },
        "bases": {
            base: {
                "data": params.bases[base].data,
                "settings": _without(params.train_teacher(base), _TAKEN),
            }
            for base in bases
        },
    }


def _everything(params: Params, name: str) -> Json:
    """All rows, but no settings: records tell the rest, though not that a row has gone."""
    sections = ("prepared", "bases", "pools", "sets", "scores", "step_teachers", "streams")
    shown = {section: _in_order(getattr(params, section)) for section in sections}
    titles = _titles(params, {row.dataset for row in params.prepared.values()})
    return {**shown, **titles, "targets": [[k, list(v)] for k, v in params.targets.items()]}


def _fig1(params: Params, name: str) -> Json:
    config = params.fig1()
    return {
        "settings": to_json(config),
        "synthesize": settings_of_images(params.synthesize_of(config.dataset), "synthesised"),
        "title": params.datasets[config.dataset].title,
    }


def _fig5(params: Params, name: str) -> Json:
    config = params.fig5()
    return {"settings": to_json(config), "title": params.datasets[config.dataset].title}


def _theory(params: Params, name: str) -> Json:
    return {"settings": to_json(params.theory())}


_STAGES: dict[str, Callable[[Params, str], Json]] = {
    "prepare": _prepare,
    "train_teacher": _train_teacher,
    "build_pool": _build_pool,
    "synthesize": _synthesize,
    "relabel": _relabel,
    "evaluate": _evaluate,
    "train_step_teachers": _train_step_teachers,
    "continual": _continual,
    "measure_costs": _measure_costs,
    "overview": _everything,
    "report": _everything,
    "fig1": _fig1,
    "fig5": _fig5,
    "theory": _theory,
}
_TARGETS = ("target", "costs", "streams", "grids")
_SEEDLESS = ("overview", "report")


def _target(params: Params, name: str, kept: Sequence[Kept]) -> Json:
    """What a table or figure shows: its rows, and how they are called."""
    names = params.targets[name]
    streams = [row for row in names if row in params.streams]
    leaves: list[Leaf] = [params.leaf(row) for row in names if row not in streams]
    datasets = {leaf.dataset for leaf in leaves} | {params.streams[row].dataset for row in streams}
    datasets |= {run.dataset for run in kept if run.target == name}
    return {
        "rows": list(names),
        "scores": [to_json(leaf) for leaf in leaves],
        "repeats": [params.sets[leaf.set].repeat for leaf in leaves],
        "streams": [to_json(params.streams[row]) for row in streams],
        "sets_of_streams": [to_json(params.sets[params.streams[row].set]) for row in streams],
        "keep": {leaf.data: list(params.prepare(leaf.data).keep) for leaf in leaves},
        "defaults": [row for row in names if params.is_default(row)] if name in AXES else [],
        **_titles(params, datasets),
    }


def _titles(params: Params, datasets: Iterable[str]) -> Json:
    known = set(datasets)
    shown = {name: row for name, row in params.datasets.items() if name in known}
    return {"datasets": _in_order(shown), "methods": _in_order(params.methods)}


def _in_order(rows: Mapping[str, object]) -> list[list[object]]:
    """Rows and names as a list: tables show them in order, which a file of sorted keys forgets."""
    return [[name, to_json(row)] for name, row in rows.items()]


def _only(config: object, keys: Collection[str]) -> Json:
    return {key: value for key, value in to_json(config).items() if key in keys}


def _without(config: object, keys: Collection[str]) -> Json:
    return {key: value for key, value in to_json(config).items() if key not in keys}
