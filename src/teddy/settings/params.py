"""``params.yaml`` checked as a whole, and what stages ask of it; nothing else reads the file.

A missing key, an unknown key or a value out of range is a
:class:`~teddy.core.errors.TeddyError` that names the key. What the keys mean stands in
:mod:`~teddy.settings.configs`, :mod:`~teddy.settings.rows` and :mod:`~teddy.settings.theory`, in
what order they override each other in :mod:`~teddy.settings.resolve`.
"""

from pathlib import Path
from typing import Any, Literal, TypeVar

from teddy.core.errors import TeddyError
from teddy.settings.configs import (
    KINDS,
    STAGES,
    ContinualConfig,
    EvaluateConfig,
    PoolConfig,
    PrepareConfig,
    RelabelConfig,
    SynthesizeConfig,
    TrainTeacherConfig,
)
from teddy.settings.resolve import Layers
from teddy.settings.rows import (
    ROWS,
    BaseRow,
    DatasetRow,
    Evaluation,
    MethodRow,
    PoolRow,
    PreparedRow,
    ScoreRow,
    SetRow,
    StepTeachersRow,
    StreamRow,
)
from teddy.settings.schema import check, from_json, suggest
from teddy.settings.theory import EXPERIMENTS, Fig1Config, Fig5Config, TheoryConfig

T = TypeVar("T")


class Params:
    """All of ``params.yaml``, checked as a whole when it is read.

    Raises:
        TeddyError: not readable, a missing or unknown key, a value of the wrong type or out of
            range, a row whose parent does not exist or belongs to another dataset.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        required = {"seed", "continual", "datasets", "methods", "targets", *ROWS, *STAGES}
        self._layers = layers = Layers(path, required, set(EXPERIMENTS))
        self._where = layers.where
        self.seed: int = from_json(int, layers.raw["seed"], self._where("seed"))
        self.datasets = {
            name: from_json(
                DatasetRow,
                {k: v for k, v in layers.section("datasets", name).items() if k not in STAGES},
                self._where(f"datasets.{name}"),
            )
            for name in layers.keys("datasets")
        }
        self.methods = {
            name: from_json(MethodRow, section, self._where(f"methods.{name}"))
            for name, section in layers.keys("methods").items()
        }
        self.prepared = layers.rows("prepared", PreparedRow)
        self.bases = layers.rows("bases", BaseRow)
        self.pools = layers.rows("pools", PoolRow)
        self.sets = layers.rows("sets", SetRow)
        self.scores = layers.rows("scores", ScoreRow)
        self.continual = from_json(
            ContinualConfig, layers.section("continual"), self._where("continual")
        )
        self.step_teachers = layers.rows("step_teachers", StepTeachersRow)
        self.streams = layers.rows("streams", StreamRow)
        self.targets: dict[str, tuple[str, ...]] = {
            name: from_json(tuple[str, ...], rows, self._where(f"targets.{name}"))
            for name, rows in layers.keys("targets").items()
        }
        """Rows of ``sets``, ``scores`` or (Fig. 3e) ``streams`` that a table or figure shows, in
        order."""
        self.experiments = tuple(name for name in EXPERIMENTS if name in layers.raw)
        """Sections of experiments that the file has."""
        self._check_all()

    # -- what stages ask for

    def fig1(self) -> Fig1Config:
        """Settings of figure 1."""
        return self._experiment("fig1", Fig1Config)

    def fig5(self) -> Fig5Config:
        """Settings of figure 5."""
        return self._experiment("fig5", Fig5Config)

    def theory(self) -> TheoryConfig:
        """Settings of the appendix."""
        return self._experiment("theory", TheoryConfig)

    def synthesize_of(self, dataset: str) -> SynthesizeConfig:
        """Settings of a dataset's sets that say nothing of their own."""
        return self._of_dataset(SynthesizeConfig, "synthesize", dataset)

    def prepare(self, name: str) -> PrepareConfig:
        """Settings of the preparation of some images."""
        return self._resolve(PrepareConfig, "prepare", ("prepared", name))

    def train_teacher(self, base: str) -> TrainTeacherConfig:
        """Settings of one base run."""
        return self._resolve(TrainTeacherConfig, "train_teacher", ("bases", base))

    def train_step_teachers(self, name: str) -> TrainTeacherConfig:
        """Settings of the base runs on the classes of each step."""
        return self._resolve(TrainTeacherConfig, "train_teacher", ("step_teachers", name))

    def step_epochs(self, stream: str) -> tuple[int, ...]:
        """Epochs of the strict teachers of a stream: those of its pool."""
        row = self.streams[stream]
        if self.pools[row.pool].kind == "converged":
            return (self.train_step_teachers(row.teachers).epochs,)
        return self.prior_epochs(row.pool)

    def pool(self, pool: str) -> PoolConfig:
        """Settings of one pool."""
        return self._resolve(PoolConfig, "pool", ("pools", pool))

    def prior_epochs(self, pool: str) -> tuple[int, ...]:
        """Epochs of a prior pool, whose accuracies those of a post pool imitate."""
        prior = self.pool(pool).prior
        assert prior is not None, "params.yaml has all settings of a pool"
        return prior.epochs

    def synthesize(self, name: str) -> SynthesizeConfig:
        """Settings of one distilled set."""
        return self._resolve(SynthesizeConfig, "synthesize", ("sets", name))

    def relabel(self, name: str) -> RelabelConfig:
        """Settings of the labels of a set, of a further score or of a stream."""
        return self._resolve(RelabelConfig, "relabel", *self._chain(name))

    def evaluate(self, name: str) -> EvaluateConfig:
        """Settings of the students of a set, of a further score or of a stream."""
        return self._resolve(EvaluateConfig, "evaluate", *self._chain(name))

    def evaluation(self, name: str) -> Evaluation:
        """What a score is of: a row of ``scores``, or the default score of a row of ``sets``.

        Raises:
            TeddyError: neither has a row of that name; lists the nearest.
        """
        if self._either(name) == "sets":
            row = self._known("sets", name)
            return Evaluation(
                name=name, dataset=row.dataset, data=row.data, set=name, method=row.method,
                ipc=row.ipc, pool=row.pool, members=0, labels=self.methods[row.method].labels,
            )  # fmt: skip
        score = self.scores[name]
        parent = self.sets[score.set]
        return Evaluation(
            name=name, dataset=score.dataset, data=score.data, set=score.set, method=parent.method,
            ipc=parent.ipc, pool=score.pool, members=score.members, labels=score.labels,
        )  # fmt: skip

    def evaluations(self) -> list[Evaluation]:
        """Every declared score: those of the sets, then the further ones."""
        return [self.evaluation(name) for name in (*self.sets, *self.scores)]

    def is_default(self, name: str) -> bool:
        """Whether a score has the default settings, that is, Table 1 shows it."""
        return name in self.targets.get("table1", ())

    def row(
        self,
        section: Literal[
            "prepared", "bases", "pools", "sets", "scores", "step_teachers", "streams", "datasets"
        ],
        name: str,
    ) -> Any:
        """A declared row.

        Raises:
            TeddyError: no row of that name; lists the nearest.
        """
        return self._known(section, name)

    def _resolve(self, cls: type[T], stage: str, *rows: tuple[str, str]) -> T:
        """Settings of a stage for a row, given as section and name, perhaps on top of others."""
        dataset = self._known(*rows[-1]).dataset
        return self._layers.resolve(cls, stage, dataset, *rows)

    def _of_dataset(self, cls: type[T], stage: str, dataset: str) -> T:
        """Settings of a stage for rows of a dataset that say nothing of their own."""
        self._known("datasets", dataset)
        return self._layers.resolve(cls, stage, dataset)

    # -- checks

    def _check_all(self) -> None:
        for name in self.datasets:
            for stage, cls in STAGES.items():
                self._of_dataset(cls, stage, name)
        for name, prepared in self.prepared.items():
            self._parent("prepared", name, "datasets", prepared.dataset)
            self.prepare(name)
        for name, base in self.bases.items():
            self._check_prepared("bases", name, base)
            self.train_teacher(name)
        for name, pool in self.pools.items():
            self._check_prepared("pools", name, pool)
            for parent in (pool.base, pool.curve):
                base = self._parent("pools", name, "bases", parent)
                self._same_dataset("pools", name, pool.dataset, parent, base.dataset)
            network = self.train_teacher(pool.base).network
            check(
                pool.kind != "post" or network.prunable,
                f"{self._where(f'pools.{name}')}: {network.arch} cannot be pruned; choose kind "
                "prior or converged",
            )
            if pool.kind != "converged":
                self._check_trajectory(name, pool)
        for name, row in self.sets.items():
            self._check_set(name, row)
        for name, score in self.scores.items():
            self._check_score(name, score)
        for name, teachers in self.step_teachers.items():
            self._check_step_teachers(name, teachers)
        for name, stream in self.streams.items():
            self._check_stream(name, stream)
        for experiment in self.experiments:
            {"fig1": self.fig1, "fig5": self.fig5, "theory": self.theory}[experiment]()
        for target, names in self.targets.items():
            for name in names:
                if not any(name in rows for rows in (self.sets, self.scores, self.streams)):
                    raise TeddyError(
                        f"{self._where(f'targets.{target}')}: no set or score named {name!r}; "
                        f"{suggest(name, (*self.sets, *self.scores, *self.streams))}"
                    )
            check(
                len(names) == len(set(names)),
                f"{self._where(f'targets.{target}')}: a row stands there twice",
            )

    def _check_trajectory(self, name: str, row: PoolRow) -> None:
        base = row.base if row.kind == "prior" else row.curve
        config, last = self.train_teacher(base), self.prior_epochs(name)[-1]
        epochs = 1 if config.checkpoint else config.epochs
        check(
            last <= epochs,
            f"{self._where(f'pools.{name}')}: pool.prior.epochs reaches epoch {last}, but the base "
            f"run {base!r} ends at epoch {epochs}",
        )

    def _check_set(self, name: str, row: SetRow) -> None:
        self._check_prepared("sets", name, row)
        method = self._parent("sets", name, "methods", row.method)
        pool = self._parent("sets", name, "pools", row.pool)
        self._same_dataset("sets", name, row.dataset, row.pool, pool.dataset)
        config = self.synthesize(name)
        self._check_labels(self._where(f"sets.{name}"), name, method.labels)
        if not KINDS[method.images].by_pool:
            return
        size = self.pool_size(row.pool)
        check(
            config.draw <= size,
            f"{self._where(f'sets.{name}')}: synthesize.draw is {config.draw}, but the pool "
            f"{row.pool!r} has {size} member{'s' if size > 1 else ''}",
        )

    def _check_score(self, name: str, row: ScoreRow) -> None:
        where = self._where(f"scores.{name}")
        check(name not in self.sets, f"{where}: there is a set of that name too; rename one")
        self._check_prepared("scores", name, row)
        parent = self._parent("scores", name, "sets", row.set)
        self._same_dataset("scores", name, row.dataset, row.set, parent.dataset)
        pool = self._parent("scores", name, "pools", row.pool)
        self._same_dataset("scores", name, row.dataset, row.pool, pool.dataset)
        self._check_labels(where, name, row.labels)
        size = self.pool_size(row.pool)
        check(
            row.members <= size,
            f"{where}: members is {row.members}, but the pool {row.pool!r} has {size}",
        )

    def _check_stream(self, name: str, row: StreamRow) -> None:
        where = self._where(f"streams.{name}")
        check(
            name not in self.sets and name not in self.scores,
            f"{where}: there is a set or score of that name too; rename one",
        )
        self._check_prepared("streams", name, row)
        for section, parent in (("sets", row.set), ("pools", row.pool)):
            its = self._parent("streams", name, section, parent).dataset
            self._same_dataset("streams", name, row.dataset, parent, its)
        self._check_labels(where, name, row.labels)
        if not row.strict:
            return
        if row.teachers not in self.step_teachers:
            raise TeddyError(
                f"{where}: teachers must be its pool {row.pool!r} or a row of step_teachers, got "
                f"{row.teachers!r}"
            )
        made = self.methods[self.sets[row.set].method].images
        check(
            made == "synthesised" or not KINDS[made].by_pool,
            f"{where}: strict teachers can make images of Eq. 7 alone, but the set {row.set!r} has "
            f"{made} ones",
        )
        teachers = self.step_teachers[row.teachers]
        self._same_dataset("streams", name, row.dataset, row.teachers, teachers.dataset)
        check(
            self.pools[row.pool].kind != "post",
            f"{where}: strict teachers cannot be pruned copies; choose a prior or converged pool",
        )
        missing = sorted(set(self.step_epochs(name)) - set(teachers.checkpoints))
        check(
            not missing,
            f"{where} needs epoch {missing[0] if missing else ''} of step_teachers."
            f"{row.teachers}, whose checkpoints do not have it",
        )

    def _check_step_teachers(self, name: str, row: StepTeachersRow) -> None:
        self._check_prepared("step_teachers", name, row)
        config = self.train_step_teachers(name)
        where = self._where(f"step_teachers.{name}")
        check(
            row.checkpoints[-1] <= config.epochs,
            f"{where}: checkpoints reach epoch {row.checkpoints[-1]}, but the runs end at epoch "
            f"{config.epochs}",
        )
        check(not config.checkpoint, f"{where}: train_teacher.checkpoint must be ''")

    def _check_labels(self, where: str, name: str, labels: tuple[str, ...]) -> None:
        self.evaluate(name)
        check(
            "soft" not in labels or self.relabel(name).augmentation != "dsa",
            f"{where}: relabel.augmentation is dsa, which has no soft labels because its operation "
            f"belongs to a student's batch, but its labels are {', '.join(labels)}",
        )

    def pool_size(self, pool: str) -> int:
        """Members of a pool."""
        kind, post = self.pools[pool].kind, self.pool(pool).post
        assert post is not None, "params.yaml has all settings of a pool"
        sizes = {"converged": 1, "prior": len(self.prior_epochs(pool)), "post": post.size}
        return sizes[kind]

    def _parent(self, section: str, name: str, parents: str, parent: str) -> Any:
        if parent not in getattr(self, parents):
            raise TeddyError(
                f"{self._where(f'{section}.{name}')}: no {parents[:-1]} named {parent!r}; "
                f"{suggest(parent, getattr(self, parents))}"
            )
        return getattr(self, parents)[parent]

    def _check_prepared(
        self,
        section: str,
        name: str,
        row: BaseRow | PoolRow | SetRow | ScoreRow | StepTeachersRow | StreamRow,
    ) -> None:
        self._parent(section, name, "datasets", row.dataset)
        if row.data not in self.prepared:
            raise TeddyError(
                f"{self._where(f'{section}.{name}')} needs the data {row.data!r}: add it to "
                f"'prepared', which has {', '.join(self.prepared) or 'nothing'}"
            )
        self._same_dataset(section, name, row.dataset, row.data, self.prepared[row.data].dataset)

    def _same_dataset(self, section: str, name: str, mine: str, parent: str, its: str) -> None:
        check(
            mine == its,
            f"{self._where(f'{section}.{name}')} is of dataset {mine!r}, but its parent "
            f"{parent!r} is of {its!r}",
        )

    def _known(self, section: str, name: str) -> Any:
        rows = getattr(self, section)
        if name not in rows:
            raise TeddyError(f"{self.path}: no row {name!r} in {section!r}; {suggest(name, rows)}")
        return rows[name]

    def _either(self, name: str) -> Literal["sets", "scores"]:
        for section in ("sets", "scores"):
            if name in getattr(self, section):
                return section
        known = (*self.sets, *self.scores)
        raise TeddyError(f"{self.path}: no set or score named {name!r}; {suggest(name, known)}")

    def _chain(self, name: str) -> tuple[tuple[str, str], ...]:
        """Rows that settings of a score come from, the later ones on top."""
        if name in self.streams:
            return (("streams", name),)
        if self._either(name) == "sets":
            return (("sets", name),)
        return ("sets", self.scores[name].set), ("scores", name)

    # -- experiments

    def _experiment(self, name: str, cls: type[T]) -> T:
        config = from_json(cls, self._layers.section(name), self._where(name))
        if isinstance(config, Fig1Config | Fig5Config):
            known = ", ".join(self.prepared) or "nothing"
            where = f"{self._where(name)} needs the data {config.data!r}"
            check(config.data in self.prepared, f"{where}; 'prepared' has {known}")
            row = self.prepared[config.data]
            check(
                row.dataset == config.dataset,
                f"{self._where(name)} is of dataset {config.dataset!r}, but its data "
                f"{config.data!r} is of {row.dataset!r}",
            )
        return config
