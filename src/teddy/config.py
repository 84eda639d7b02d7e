"""``params.yaml`` read and checked as a whole; the only code that reads it.

A stage's settings are resolved in three layers, each overriding only what it names:

1. the top-level section of the stage (``synthesize:``), the defaults of the paper;
2. ``datasets.<dataset>.<stage>``, what differs for that dataset;
3. the row of the artifact (``sets.<name>``), what differs for that artifact. A row of ``scores``
   lies on top of the row of its set.

A missing key, an unknown key or a value out of range is a :class:`~teddy.errors.TeddyError` that
names the key. What the keys mean stands in :mod:`teddy.settings`, :mod:`teddy.rows` and
:mod:`teddy.experiment_settings`.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from teddy.errors import TeddyError
from teddy.experiment_settings import EXPERIMENTS, Fig1Config, Fig5Config, TheoryConfig
from teddy.rows import (
    ROWS,
    BaseRow,
    DatasetRow,
    Leaf,
    MethodRow,
    PoolRow,
    PreparedRow,
    ScoreRow,
    SetRow,
    StepTeachersRow,
    StreamRow,
)
from teddy.schema import Section, build, check, convert, merge, read_yaml, refuse_unknown, suggest
from teddy.settings import (
    STAGES,
    ContinualConfig,
    EvaluateConfig,
    PoolConfig,
    PrepareConfig,
    RelabelConfig,
    SynthesizeConfig,
    TrainTeacherConfig,
)

T = TypeVar("T")
_NAME = re.compile(r"[\w-]+(/[\w-]+)*", re.ASCII)


class Params:
    """All of ``params.yaml``, checked as a whole when it is read.

    Raises:
        TeddyError: not readable, a missing or unknown key, a value of the wrong type or out of
            range, a row whose parent does not exist or belongs to another dataset.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = read_yaml(path)
        known = {"seed", "continual", "datasets", "methods", "targets", *ROWS, *STAGES}
        refuse_unknown(set(self._raw), known | set(EXPERIMENTS), self._where(""))
        for key in sorted(known - set(self._raw)):
            raise TeddyError(f"{self._where('')} lacks the key {key!r}")
        self.seed: int = convert(int, self._raw["seed"], self._where("seed"))
        self.datasets = {
            name: build(
                DatasetRow,
                {k: v for k, v in self._raw_section("datasets", name).items() if k not in STAGES},
                self._where(f"datasets.{name}"),
            )
            for name in self._mapping("datasets")
        }
        self.methods = {
            name: build(MethodRow, section, self._where(f"methods.{name}"))
            for name, section in self._mapping("methods").items()
        }
        self.prepared = self._rows("prepared", PreparedRow)
        self.bases = self._rows("bases", BaseRow)
        self.pools = self._rows("pools", PoolRow)
        self.sets = self._rows("sets", SetRow)
        self.scores = self._rows("scores", ScoreRow)
        self.continual = build(
            ContinualConfig, self._raw_section("continual"), self._where("continual")
        )
        self.step_teachers = self._rows("step_teachers", StepTeachersRow)
        self.streams = self._rows("streams", StreamRow)
        self.targets: dict[str, tuple[str, ...]] = {
            name: convert(tuple[str, ...], rows, self._where(f"targets.{name}"))
            for name, rows in self._mapping("targets").items()
        }
        """Rows of ``sets``, ``scores`` or (Fig. 3e) ``streams`` that a table or figure shows, in
        order."""
        self.experiments = tuple(name for name in EXPERIMENTS if name in self._raw)
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
        return self._resolve(SynthesizeConfig, "synthesize", ("datasets", dataset))

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
        return self.pool(row.pool).prior.epochs

    def pool(self, pool: str) -> PoolConfig:
        """Settings of one pool."""
        return self._resolve(PoolConfig, "pool", ("pools", pool))

    def synthesize(self, name: str) -> SynthesizeConfig:
        """Settings of one distilled set."""
        return self._resolve(SynthesizeConfig, "synthesize", ("sets", name))

    def relabel(self, name: str) -> RelabelConfig:
        """Settings of the labels of a set, of a further score or of a stream."""
        return self._resolve(RelabelConfig, "relabel", *self._chain(name))

    def evaluate(self, name: str) -> EvaluateConfig:
        """Settings of the students of a set, of a further score or of a stream."""
        return self._resolve(EvaluateConfig, "evaluate", *self._chain(name))

    def leaf(self, name: str) -> Leaf:
        """What a score is of: a row of ``scores``, or the default score of a row of ``sets``.

        Raises:
            TeddyError: neither has a row of that name; lists the nearest.
        """
        if self._either(name) == "sets":
            row = self._known("sets", name)
            return Leaf(
                name=name, dataset=row.dataset, data=row.data, set=name, method=row.method,
                ipc=row.ipc, pool=row.pool, members=0, labels=self.methods[row.method].labels,
            )  # fmt: skip
        score = self.scores[name]
        parent = self.sets[score.set]
        return Leaf(
            name=name, dataset=score.dataset, data=score.data, set=score.set, method=parent.method,
            ipc=parent.ipc, pool=score.pool, members=score.members, labels=score.labels,
        )  # fmt: skip

    def leaves(self) -> list[Leaf]:
        """Every declared score: those of the sets, then the further ones."""
        return [self.leaf(name) for name in (*self.sets, *self.scores)]

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

    # -- checks

    def _check_all(self) -> None:
        for name in self.datasets:
            for stage, cls in STAGES.items():
                self._resolve(cls, stage, ("datasets", name))
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
        config, last = self.train_teacher(base), self.pool(name).prior.epochs[-1]
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
        if method.images != "synthesised":
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
        kind, config = self.pools[pool].kind, self.pool(pool)
        sizes = {"converged": 1, "prior": len(config.prior.epochs), "post": config.post.size}
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
        config = build(cls, self._raw_section(name), self._where(name))
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

    # -- layers

    def _resolve(self, cls: type[T], stage: str, *rows: tuple[str, str]) -> T:
        """Settings of a stage for a row, given as section and name, or for a whole dataset."""
        section, name = rows[-1]
        row = self._known(section, name)
        dataset = name if section == "datasets" else row.dataset
        merged = merge(
            self._raw_section(stage),
            self._raw_section("datasets", dataset, stage),
            self._where(f"datasets.{dataset}.{stage}"),
        )
        for section, name in rows:
            if section != "datasets":
                where = self._where(f"{section}.{name}")
                merged = merge(merged, self._overrides(section, name, stage), where)
        where = name if section == "datasets" else f"{section}.{name}"
        return build(cls, merged, self._where(f"{stage} (for {where})"))

    def _overrides(self, section: str, name: str, stage: str) -> Section:
        """What a row says of a stage: by its further keys, or under the stage's name."""
        cls, own, nested = ROWS[section]
        raw = self._raw[section][name]
        if stage in nested:
            found = raw.get(stage, {})
            check(
                isinstance(found, Mapping),
                f"{self._where(f'{section}.{name}.{stage}')}: expected keys, got {found!r}",
            )
            return found  # type: ignore[no-any-return]
        if stage != own:
            return {}
        identity = {field.name for field in dataclasses.fields(cls)} | set(nested)
        return {key: value for key, value in raw.items() if key not in identity}

    def _rows(self, section: str, cls: type[T]) -> dict[str, T]:
        identity = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        rows = {}
        for name, raw in self._mapping(section).items():
            if not isinstance(raw, Mapping):
                raise TeddyError(f"{self._where(f'{section}.{name}')}: expected a row of keys")
            if not _NAME.fullmatch(str(name)):
                raise TeddyError(
                    f"{self._where(section)}: the name {name!r} must be letters, digits, '_' and "
                    "'-', in parts joined by '/'"
                )
            _, stage, nested = ROWS[section]
            own = {key: value for key, value in raw.items() if key in identity}
            if not stage:
                refuse_unknown(set(raw), identity | set(nested), self._where(f"{section}.{name}"))
            rows[name] = build(cls, own, self._where(f"{section}.{name}"))
        return rows

    def _mapping(self, section: str) -> Section:
        value = self._raw[section]
        if not isinstance(value, Mapping):
            raise TeddyError(f"{self._where(section)}: expected keys, got {value!r}")
        return value

    def _raw_section(self, *path: str) -> Section:
        value: Any = self._raw
        name = ".".join(path)
        for part in path:
            if not isinstance(value, Mapping) or part not in value:
                raise TeddyError(f"{self.path} lacks the key {name!r} (write {{}} if it is empty)")
            value = value[part]
        if not isinstance(value, Mapping):
            raise TeddyError(f"{self._where(name)}: expected keys, got {value!r}")
        return value

    def _where(self, key: str) -> str:
        return f"{self.path}: {key}" if key else str(self.path)
