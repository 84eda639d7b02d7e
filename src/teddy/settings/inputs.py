"""The ``--settings`` file of every stage and row, from the parameter files."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from teddy.settings.configs import KINDS, PoolConfig
from teddy.settings.params import Params
from teddy.settings.rows import Evaluation
from teddy.settings.stages import (
    BuildPoolSettings,
    Catalogue,
    ContinualSettings,
    Demand,
    EvaluateSettings,
    Fig1Settings,
    Fig5Settings,
    LearnersSettings,
    MeasureCostsSettings,
    MeasuredBase,
    MeasuredPool,
    MeasuredSet,
    OverviewSettings,
    OwnLabels,
    PrepareSettings,
    RelabelSettings,
    ReportSettings,
    SetsSettings,
    ShownBase,
    ShownEvaluation,
    ShownLearner,
    ShownPool,
    ShownSet,
    StepTeachersSettings,
    SynthesizeSettings,
    TableSettings,
    TheorySettings,
    TrainTeacherSettings,
)

SETS_SHOWN = ("fig3d", "fig4-6-7")
"""Targets that show sets, whoever is trained on them."""


def stage_files(params: Params) -> Iterator[tuple[str, object]]:
    """Path below ``inputs/``, without its suffix, and content of every stage's file."""
    of_rows: dict[str, tuple[Iterable[str], Callable[[Params, str], object]]] = {
        "prepare": (params.prepared, prepare),
        "train_teacher": (params.bases, train_teacher),
        "build_pool": (params.pools, build_pool),
        "synthesize": (params.sets, synthesize),
        "relabel": (params.sets, relabel),
        "evaluate": (params.sets, evaluate),
        "score": (params.scores, evaluate),
        "train_step_teachers": (params.step_teachers, train_step_teachers),
        "continual": (params.streams, continual),
    }
    for stage, (rows, settings) in of_rows.items():
        for name in rows:
            yield f"{stage}/{name}", settings(params, name)
    for target in params.targets:
        yield target, shown_target(params, target)
    if "fig3d" in params.targets:
        yield "measure_costs", measure_costs(params)
    yield "overview", overview(params)
    yield "report", report(params)
    for name, made in {"fig1": fig1, "fig5": fig5, "theory": theory}.items():
        if name in params.experiments:
            yield name, made(params)


def prepare(params: Params, name: str) -> PrepareSettings:
    """See :class:`~teddy.settings.stages.PrepareSettings`."""
    dataset = params.prepared[name].dataset
    return PrepareSettings(
        name=name, seed=params.seed, where=f"{params.path}: datasets.{dataset}",
        config=params.prepare(name), demand=_demand(params, name),
    )  # fmt: skip


def _demand(params: Params, data: str) -> Demand | None:
    found = []
    for name, row in params.sets.items():
        images, config = params.methods[row.method].images, params.synthesize(name)
        if row.data != data or (images != "random" and config.initialise != "real"):
            continue
        size = config.indices_per_batch if images == "synthesised" else 0
        needed = -(-row.ipc // size) * size if size else row.ipc
        found.append(Demand(row=name, images=needed, indices_per_batch=size))
    return max(found, key=lambda demand: demand.images, default=None)


def train_teacher(params: Params, name: str) -> TrainTeacherSettings:
    """See :class:`~teddy.settings.stages.TrainTeacherSettings`."""
    return TrainTeacherSettings(name=name, seed=params.seed, config=params.train_teacher(name))


def build_pool(params: Params, name: str) -> BuildPoolSettings:
    """See :class:`~teddy.settings.stages.BuildPoolSettings`."""
    kind, config = params.pools[name].kind, params.pool(name)
    read = PoolConfig(
        prior=None if kind == "converged" else config.prior,
        post=config.post if kind == "post" else None,
    )
    return BuildPoolSettings(name=name, seed=params.seed, kind=kind, config=read)


def synthesize(params: Params, name: str) -> SynthesizeSettings:
    """See :class:`~teddy.settings.stages.SynthesizeSettings`."""
    row = params.sets[name]
    return SynthesizeSettings(
        name=name, seed=params.seed, dataset=row.dataset, method=row.method,
        images=params.methods[row.method].images, ipc=row.ipc, repeat=row.repeat,
        config=params.synthesize(name),
    )  # fmt: skip


def relabel(params: Params, name: str) -> RelabelSettings:
    """See :class:`~teddy.settings.stages.RelabelSettings`."""
    return RelabelSettings(name=name, seed=params.seed, config=params.relabel(name))


def evaluate(params: Params, name: str) -> EvaluateSettings:
    """See :class:`~teddy.settings.stages.EvaluateSettings`."""
    evaluation, config = params.evaluation(name), params.evaluate(name)
    if "soft" not in evaluation.labels:  # nothing reads these then
        config = dataclasses.replace(
            config, temperature=1.0, temperature_squared=False, divergence=False
        )
    own = OwnLabels(pool=params.sets[evaluation.set].pool, relabel=params.relabel(evaluation.set))
    return EvaluateSettings(
        evaluation=evaluation, seed=params.seed, relabel=params.relabel(name), own=own,
        config=config,
    )  # fmt: skip


def train_step_teachers(params: Params, name: str) -> StepTeachersSettings:
    """See :class:`~teddy.settings.stages.StepTeachersSettings`."""
    return StepTeachersSettings(
        name=name, seed=params.seed, continual=params.continual,
        checkpoints=params.step_teachers[name].checkpoints,
        config=params.train_step_teachers(name),
    )  # fmt: skip


def continual(params: Params, name: str) -> ContinualSettings:
    """See :class:`~teddy.settings.stages.ContinualSettings`."""
    row = params.streams[name]
    made = params.sets[row.set]
    images = params.methods[made.method].images
    again = row.strict and images == "synthesised"
    return ContinualSettings(
        name=name, seed=params.seed, dataset=row.dataset, data=row.data, set=row.set,
        pool=row.pool, teachers=row.teachers, method=made.method, images=images, ipc=made.ipc,
        labels=row.labels, strict=row.strict,
        epochs=params.step_epochs(name) if row.strict else (),
        continual=params.continual, relabel=params.relabel(name), evaluate=params.evaluate(name),
        synthesize=params.synthesize(row.set) if again else None,
    )  # fmt: skip


def measure_costs(params: Params) -> MeasureCostsSettings:
    """See :class:`~teddy.settings.stages.MeasureCostsSettings`."""
    names = [params.evaluation(row).set for row in params.targets["fig3d"]]
    pools = dict.fromkeys(params.sets[name].pool for name in names)
    bases = dict.fromkeys(params.pools[pool].base for pool in pools)
    return MeasureCostsSettings(
        target="fig3d", seed=params.seed,
        sets={
            name: MeasuredSet(
                data=params.sets[name].data, pool=params.sets[name].pool,
                ipc=params.sets[name].ipc, config=params.synthesize(name),
            )
            for name in names
        },
        pools={
            pool: MeasuredPool(base=params.pools[pool].base, epochs=_epochs(params, pool))
            for pool in pools
        },
        bases={
            base: MeasuredBase(data=params.bases[base].data, config=params.train_teacher(base))
            for base in bases
        },
    )  # fmt: skip


def _epochs(params: Params, pool: str) -> int:
    """Epochs of the base run that a pool needs."""
    row = params.pools[pool]
    if row.kind == "prior":
        return params.prior_epochs(pool)[-1]
    return params.train_teacher(row.base).epochs


def fig1(params: Params) -> Fig1Settings:
    """See :class:`~teddy.settings.stages.Fig1Settings`."""
    config = params.fig1()
    return Fig1Settings(
        seed=params.seed, title=params.datasets[config.dataset].title, config=config,
        synthesize=params.synthesize_of(config.dataset),
    )  # fmt: skip


def fig5(params: Params) -> Fig5Settings:
    """See :class:`~teddy.settings.stages.Fig5Settings`."""
    config = params.fig5()
    title = params.datasets[config.dataset].title
    return Fig5Settings(seed=params.seed, title=title, config=config)


def theory(params: Params) -> TheorySettings:
    """See :class:`~teddy.settings.stages.TheorySettings`."""
    return TheorySettings(seed=params.seed, config=params.theory())


# ---------------------------------------------------------------------------- what shows records


def catalogue(params: Params) -> Catalogue:
    """Names of all datasets and methods."""
    return Catalogue(datasets=params.datasets, methods=params.methods)


def shown_target(params: Params, target: str) -> object:
    """What a table or figure shows: evaluations, learners or sets."""
    names, own = params.targets[target], catalogue(params)
    if target in SETS_SHOWN:
        sets = tuple(shown_set(params, params.evaluation(name).set) for name in names)
        return SetsSettings(target=target, catalogue=own, sets=sets)
    if names and all(name in params.streams for name in names):
        learners = tuple(shown_learner(params, name) for name in names)
        return LearnersSettings(target=target, catalogue=own, learners=learners)
    evaluations = tuple(shown_evaluation(params, params.evaluation(name)) for name in names)
    return TableSettings(target=target, catalogue=own, evaluations=evaluations)


def shown_evaluation(params: Params, evaluation: Evaluation) -> ShownEvaluation:
    """An evaluation, and what its record does not say."""
    fields = {f.name: getattr(evaluation, f.name) for f in dataclasses.fields(evaluation)}
    return ShownEvaluation(
        **fields, repeat=params.sets[evaluation.set].repeat,
        keep=params.prepare(evaluation.data).keep, default=params.is_default(evaluation.name),
    )  # fmt: skip


def shown_learner(params: Params, name: str) -> ShownLearner:
    """Continual learning on a set."""
    row = params.streams[name]
    made = params.sets[row.set]
    return ShownLearner(
        name=name, dataset=row.dataset, data=row.data, set=row.set, pool=row.pool,
        teachers=row.teachers, method=made.method, ipc=made.ipc, labels=row.labels,
        strict=row.strict,
    )  # fmt: skip


def shown_set(params: Params, name: str) -> ShownSet:
    """A distilled set."""
    row = params.sets[name]
    by_eq7 = params.methods[row.method].images == "synthesised"
    return ShownSet(name=name, dataset=row.dataset, method=row.method, ipc=row.ipc, by_eq7=by_eq7)


def shown_base(params: Params, name: str) -> ShownBase:
    """A base run."""
    return ShownBase(name=name, dataset=params.bases[name].dataset)


def shown_pool(params: Params, name: str) -> ShownPool:
    """A pool, and the first method that makes images by it."""
    row = params.pools[name]
    methods = (made.method for made in params.sets.values() if made.pool == name)
    makers = (method for method in methods if KINDS[params.methods[method].images].by_pool)
    return ShownPool(
        name=name, dataset=row.dataset, base=row.base, kind=row.kind, method=next(makers, None)
    )


def overview(params: Params) -> OverviewSettings:
    """See :class:`~teddy.settings.stages.OverviewSettings`."""
    sets = [params.evaluation(name).set for name in params.targets.get("table1", ())]
    pools = list(dict.fromkeys(params.sets[name].pool for name in sets))
    bases = dict.fromkeys(params.pools[pool].base for pool in params.pools if pool in pools)
    return OverviewSettings(
        catalogue=catalogue(params),
        pools=tuple(shown_pool(params, name) for name in params.pools),
        sets=tuple(shown_set(params, name) for name in sets),
        bases=tuple(shown_base(params, name) for name in bases),
        pools_of_sets=tuple(pools),
    )


def report(params: Params) -> ReportSettings:
    """See :class:`~teddy.settings.stages.ReportSettings`."""
    return ReportSettings(
        catalogue=catalogue(params),
        evaluations=tuple(shown_evaluation(params, one) for one in params.evaluations()),
        bases=tuple(shown_base(params, name) for name in params.bases),
        pools=tuple(shown_pool(params, name) for name in params.pools),
    )
