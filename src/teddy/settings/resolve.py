"""What every stage and row reads: the content of its ``--settings`` file."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from teddy.core import user_code
from teddy.core.errors import TeddyError
from teddy.settings import stages
from teddy.settings.baselines import MosaicConfig
from teddy.settings.code import checksums
from teddy.settings.configs import PoolConfig, SmallClasses, SynthesizeConfig
from teddy.settings.declared import Declared
from teddy.settings.places import EVALUATIONS, OTHERS
from teddy.settings.schema import to_json


def stage_files(declared: Declared) -> Iterator[tuple[str, str, Any]]:
    """Of every stage and row: the module, the path of its file without suffix, and its content."""
    of_rows: dict[str, tuple[str, str, Callable[[Declared, str], object]]] = {
        "prepare": ("prepare", "prepared", _prepare),
        "train_teacher": ("train_teacher", "bases", _train_teacher),
        "build_pool": ("build_pool", "pools", _build_pool),
        "train_experts": ("train_experts", "experts", _train_experts),
        "synthesize": ("synthesize", "sets", _synthesize),
        "relabel": ("relabel", "sets", _relabel),
        "evaluate": ("evaluate", "sets", _evaluate),
        "reevaluate": ("evaluate", "evaluations", _evaluate),
        "train_step_teachers": ("train_step_teachers", "step_teachers", _train_step_teachers),
        "continual": ("continual", "learners", _continual),
    }
    for stage, (module, section, settings) in of_rows.items():
        for name in getattr(declared, section):
            reason = declared.unfit.get((section, name))
            made = stages.Refused(error=reason) if reason else settings(declared, name)
            yield module, f"{stage}/{name}", made
    for target, datasets in declared.targets.items():
        of_target: dict[str, tuple[str, Callable[[Declared, str, str], object]]] = {
            target: (OTHERS.get(target, EVALUATIONS).module, _shown_target)
        }
        if target == "fig3d":
            of_target["measure_costs"] = ("measure_costs", _measure_costs)
        for dataset in datasets:
            reason = declared.unfit.get(("targets", f"{target}/{dataset}"))
            for stage, (module, shown) in of_target.items():
                made = stages.Refused(error=reason) if reason else shown(declared, target, dataset)
                yield module, f"{stage}/{dataset}", made
    yield "overview", "overview", _overview(declared)
    yield "report", "report", _report(declared)
    for name, made in {"fig1": _fig1, "fig5": _fig5, "theory": _theory}.items():
        if name in declared.experiments:
            yield name, name, made(declared)


# ------------------------------------------------------------------------- stages that compute


def _prepare(declared: Declared, name: str) -> stages.PrepareSettings:
    config = declared.prepare(name)
    return stages.PrepareSettings(
        name=name, seed=declared.seed,
        where=declared.where_of_dataset(declared.prepared[name].dataset), config=config,
        demand=_demand(declared, name), code=_code(config.source),
    )  # fmt: skip


def _demand(declared: Declared, data: str) -> stages.Demand | None:
    found = []
    for name, row in declared.sets.items():
        if row.data == data and _small_classes(declared, name) == "refuse":
            config = declared.algorithm_config(name)
            size = getattr(config, "indices_per_batch", 0)
            needed = -(-row.ipc // size) * size if size else row.ipc
            needed *= getattr(config, "partition", 1) ** 2  # smaller ones in an image of IDM
            if isinstance(config, MosaicConfig):
                needed *= config.factor_at(declared.prepare(data).image_size) ** 2
            found.append(stages.Demand(row=name, images=needed, indices_per_batch=size))
    return max(found, key=lambda demand: demand.images, default=None)


def _small_classes(declared: Declared, name: str) -> SmallClasses | None:
    """What a set does with a class of too few real images; None if it needs none."""
    row, config = declared.sets[name], declared.algorithm_config(name)
    starts = getattr(config, "initialise", "") in ("real", "kmeans")
    needed = declared.algorithm(row.method).real or starts
    return declared.prepare(row.data).small_classes if needed else None


def _train_teacher(declared: Declared, name: str) -> stages.TrainTeacherSettings:
    config = declared.train_teacher(name)
    return stages.TrainTeacherSettings(
        name=name, seed=declared.seed, config=config, code=_code(config.network.arch)
    )


def _build_pool(declared: Declared, name: str) -> stages.BuildPoolSettings:
    kind, config = declared.pools[name].kind, declared.pool(name)
    read = PoolConfig(
        prior=None if kind == "converged" else config.prior,
        post=config.post if kind == "post" else None,
    )
    return stages.BuildPoolSettings(
        name=name, seed=declared.seed, kind=kind, config=read, code=_code(_arch(declared, name))
    )


def _train_experts(declared: Declared, name: str) -> stages.ExpertsSettings:
    config = declared.experts_config(name)
    return stages.ExpertsSettings(
        name=name, seed=declared.seed, config=config, code=_code(config.network.arch)
    )


def _synthesize(declared: Declared, name: str) -> stages.SynthesizeSettings:
    row = declared.sets[name]
    algorithm = declared.algorithm(row.method)
    teachers = _arch(declared, row.pool) if algorithm.by_pool else ""
    code = checksums("teddy.stages.synthesize", algorithm.code.split(":")[0])
    return stages.SynthesizeSettings(
        name=name, seed=declared.seed, dataset=declared.dataset_of(row.data), method=row.method,
        algorithm=declared.methods[row.method].algorithm, ipc=row.ipc,
        syntheses=declared.syntheses(name),
        config=to_json(declared.algorithm_config(name)),
        small_classes=_small_classes(declared, name),
        code=code | _code(algorithm.code, teachers),
    )  # fmt: skip


def _relabel(declared: Declared, name: str) -> stages.RelabelSettings:
    code = _code(_arch(declared, declared.sets[name].pool))
    return stages.RelabelSettings(
        name=name, seed=declared.seed, syntheses=declared.syntheses(name),
        config=declared.relabel(name), code=code,
    )  # fmt: skip


def _evaluate(declared: Declared, name: str) -> stages.EvaluateSettings:
    evaluation, config = declared.evaluation(name), declared.evaluate(name)
    if "soft" not in evaluation.labels:  # nothing reads these then
        config = dataclasses.replace(
            config, temperature=1.0, temperature_squared=False, divergence=False
        )
    made = declared.sets[evaluation.set]
    return stages.EvaluateSettings(
        evaluation=evaluation, seed=declared.seed,
        syntheses=declared.syntheses(evaluation.set), relabel=declared.relabel(name),
        own=stages.OwnLabels(pool=made.pool, relabel=declared.relabel(evaluation.set)),
        config=config,
        code=_code(config.network.arch, _arch(declared, evaluation.pool)),
    )  # fmt: skip


def _train_step_teachers(declared: Declared, name: str) -> stages.StepTeachersSettings:
    config = declared.train_step_teachers(name)
    needed = [
        declared.step_epochs(learner)
        for learner, row in declared.learners.items()
        if row.teachers == name
    ]
    return stages.StepTeachersSettings(
        name=name, seed=declared.seed, continual=declared.continual,
        checkpoints=tuple(sorted({epoch for epochs in needed for epoch in epochs})),
        config=config, code=_code(config.network.arch),
    )  # fmt: skip


def _continual(declared: Declared, name: str) -> stages.ContinualSettings:
    row, evaluate = declared.learners[name], declared.evaluate(name)
    made = declared.sets[row.set]
    own = declared.algorithm_config(row.set) if row.strict else None
    return stages.ContinualSettings(
        name=name, seed=declared.seed, dataset=declared.dataset_of(row.data), data=row.data,
        set=row.set, pool=row.pool, teachers=row.teachers, method=made.method, ipc=made.ipc,
        labels=row.labels, strict=row.strict, epochs=declared.step_epochs(name),
        continual=declared.continual, relabel=declared.relabel(name), evaluate=evaluate,
        recipe=declared.recipe(name),
        synthesize=own if isinstance(own, SynthesizeConfig) else None,
        small_classes=_small_classes(declared, row.set),
        code=_code(evaluate.network.arch, _arch(declared, row.pool)),
    )  # fmt: skip


def _measure_costs(declared: Declared, fig: str, dataset: str) -> stages.MeasureCostsSettings:
    where = declared.where("targets", f"{fig}/{dataset}")
    target = declared.targets[fig][dataset]
    sets = {}
    for name in _sets_shown(declared, fig, dataset):
        row, config = declared.sets[name], declared.algorithm_config(name)
        if type(config) is not SynthesizeConfig:
            raise TeddyError(f"{where}: {name} is not made by Eq. 7, whose cost is measured")
        if row.data != target.data or row.pool not in (target.converged, target.prior):
            raise TeddyError(
                f"{where}: {name} needs {row.data} and {row.pool}; name them as data and as "
                "converged or prior"
            )
        sets[name] = stages.MeasuredSet(
            data=row.data, pool=row.pool, ipc=row.ipc, config=config,
            small_classes=_small_classes(declared, name),
        )  # fmt: skip
    pools = {
        pool: stages.MeasuredPool(base=declared.pools[pool].base, epochs=_epochs(declared, pool))
        for pool in dict.fromkeys(row.pool for row in sets.values())
    }
    bases = {
        base: stages.MeasuredBase(
            data=declared.bases[base].data, config=declared.train_teacher(base)
        )
        for base in dict.fromkeys(pool.base for pool in pools.values())
    }
    return stages.MeasureCostsSettings(
        dataset=dataset,
        seed=declared.seed,
        sets=sets,
        pools=pools,
        bases=bases,
        code=_code(*(base.config.network.arch for base in bases.values())),
    )


def _fig1(declared: Declared) -> stages.Fig1Settings:
    config = declared.fig1()
    return stages.Fig1Settings(
        seed=declared.seed, title=declared.datasets[config.dataset].title, config=config,
        synthesize=declared.synthesize_of(config.dataset), code=_code(config.teacher.arch),
    )  # fmt: skip


def _fig5(declared: Declared) -> stages.Fig5Settings:
    config = declared.fig5()
    title = declared.datasets[config.dataset].title
    return stages.Fig5Settings(seed=declared.seed, title=title, config=config)


def _theory(declared: Declared) -> stages.TheorySettings:
    return stages.TheorySettings(seed=declared.seed, config=declared.theory())


def _epochs(declared: Declared, pool: str) -> int:
    """Epochs of the base run that a pool needs."""
    row = declared.pools[pool]
    if row.kind == "prior":
        return declared.prior_epochs(pool)[-1]
    return declared.train_teacher(row.base).epochs


def _arch(declared: Declared, pool: str) -> str:
    """Architecture of a pool's teachers."""
    if pool in declared.experts:
        return declared.experts_config(pool).network.arch
    return declared.train_teacher(declared.pools[pool].base).network.arch


def _code(*references: str) -> stages.Code:
    """Files of the user's own among what settings name."""
    files = sorted({user_code.file_of(reference) for reference in references} - {""})
    return {file: user_code.checksum(file) for file in files}


# ------------------------------------------------------------- stages that show what is recorded


def catalogue(declared: Declared) -> stages.Catalogue:
    """Names of all datasets and methods."""
    return stages.Catalogue(datasets=declared.datasets, methods=declared.methods)


def _shown_target(declared: Declared, target: str, dataset: str) -> object:
    """What a table or figure of a dataset shows: evaluations, learners or sets."""
    names, own = declared.shown(target, dataset), catalogue(declared)
    module = OTHERS.get(target, EVALUATIONS).module
    if module in ("costs", "grids"):
        sets = tuple(_shown_set(declared, n) for n in _sets_shown(declared, target, dataset))
        return stages.SetsSettings(target=target, dataset=dataset, catalogue=own, sets=sets)
    if module == "learners":
        learners = tuple(shown_learner(declared, n) for n in names if n in declared.learners)
        return stages.LearnersSettings(
            target=target, dataset=dataset, catalogue=own, learners=learners
        )
    evaluations = tuple(_shown_evaluation(declared, name) for name in names)
    return stages.TableSettings(
        target=target, dataset=dataset, catalogue=own, evaluations=evaluations
    )


def _sets_shown(declared: Declared, target: str, dataset: str) -> list[str]:
    return [name for name in declared.shown(target, dataset) if name in declared.sets]


def _shown_evaluation(declared: Declared, name: str) -> stages.ShownEvaluation:
    """An evaluation, and what its record does not say."""
    evaluation = declared.evaluation(name)
    fields = {f.name: getattr(evaluation, f.name) for f in dataclasses.fields(evaluation)}
    return stages.ShownEvaluation(
        **fields, syntheses=declared.syntheses(evaluation.set),
        keep=declared.prepare(evaluation.data).keep, default=declared.is_default(name),
    )  # fmt: skip


def shown_learner(declared: Declared, name: str) -> stages.ShownLearner:
    """Continual learning on a set."""
    row = declared.learners[name]
    made = declared.sets[row.set]
    return stages.ShownLearner(
        name=name, dataset=declared.dataset_of(row.data), data=row.data, set=row.set,
        pool=row.pool, teachers=row.teachers, method=made.method, ipc=made.ipc, labels=row.labels,
        strict=row.strict,
    )  # fmt: skip


def _shown_set(declared: Declared, name: str) -> stages.ShownSet:
    """A distilled set."""
    row = declared.sets[name]
    return stages.ShownSet(
        name=name, dataset=declared.dataset_of(row.data), method=row.method, ipc=row.ipc,
        by_eq7=declared.methods[row.method].algorithm == "teddy",
    )  # fmt: skip


def _shown_base(declared: Declared, name: str) -> stages.ShownBase:
    """A base run."""
    return stages.ShownBase(name=name, dataset=declared.dataset_of(declared.bases[name].data))


def _shown_pool(declared: Declared, name: str) -> stages.ShownPool:
    """A pool, and the first method that makes images by it."""
    row = declared.pools[name]
    methods = (made.method for made in declared.sets.values() if made.pool == name)
    makers = (method for method in methods if declared.algorithm(method).by_pool)
    return stages.ShownPool(
        name=name, dataset=declared.dataset_of(row.data), base=row.base, kind=row.kind,
        method=next(makers, None),
    )  # fmt: skip


def _overview(declared: Declared) -> stages.OverviewSettings:
    sets = [
        name
        for dataset in declared.targets.get("table1", {})
        for name in _sets_shown(declared, "table1", dataset)
    ]
    pools = list(dict.fromkeys(declared.sets[name].pool for name in sets))
    bases = dict.fromkeys(declared.pools[pool].base for pool in declared.pools if pool in pools)
    return stages.OverviewSettings(
        catalogue=catalogue(declared),
        pools=tuple(_shown_pool(declared, name) for name in declared.pools),
        sets=tuple(_shown_set(declared, name) for name in sets),
        bases=tuple(_shown_base(declared, name) for name in bases),
        pools_of_sets=tuple(pools),
    )


def _report(declared: Declared) -> stages.ReportSettings:
    return stages.ReportSettings(
        catalogue=catalogue(declared),
        evaluations=tuple(
            _shown_evaluation(declared, name) for name in (*declared.sets, *declared.evaluations)
        ),
        bases=tuple(_shown_base(declared, name) for name in declared.bases),
        pools=tuple(_shown_pool(declared, name) for name in declared.pools),
    )
