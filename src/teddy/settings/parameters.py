"""The parameter files of a checkout, read and put together.

``dvc.yaml`` names the experiment files under ``vars``, each of which has some of the rows.
Settings of a stage are resolved in three layers, each naming only what it changes:

1. the stage's section of ``params.yaml``, the defaults of the paper;
2. the dataset's, ``params/<dataset>.yaml``, or ``datasets.<dataset>`` of ``params.yaml``;
3. the row's further keys. A row of ``evaluations`` lies on top of that of its set.

For labels and students a named recipe may lie between 2 and 3: ``recipes.<name>`` of
``params.yaml``, with what the dataset changes of it, ``recipes.<name>`` of its own.
"""

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from teddy.core import user_code
from teddy.core.errors import TeddyError
from teddy.settings.algorithms import ALGORITHMS, Algorithm
from teddy.settings.baselines import ExpertsConfig
from teddy.settings.configs import (
    SOURCES,
    STAGES,
    WITH_DSA,
    ContinualConfig,
    Count,
    DsaConfig,
    EvaluateConfig,
    PoolConfig,
    PrepareConfig,
    RelabelConfig,
    Seed,
    SynthesizeConfig,
    TrainTeacherConfig,
)
from teddy.settings.places import EVALUATIONS, OTHERS
from teddy.settings.rows import (
    ROWS,
    BaseRow,
    DatasetRow,
    Evaluation,
    EvaluationRow,
    ExpertsRow,
    LearnerRow,
    MethodRow,
    PoolRow,
    PreparedRow,
    SetRow,
    StepTeachersRow,
    TargetRow,
)
from teddy.settings.schema import (
    Section,
    check,
    config_keys,
    from_json,
    merge,
    nearest,
    read_yaml,
    refuse_unknown,
    shown,
    suggest,
    to_json,
)
from teddy.settings.theory import EXPERIMENTS, Fig1Config, Fig5Config, TheoryConfig
from teddy.settings.user_files import check_reference, experiment_files

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*(/[A-Za-z0-9][\w-]*)*", re.ASCII)
_LONGEST = 150
_STEM = re.compile(r"[\w.-]+", re.ASCII)
_OF_DATASETS = (*STAGES, "dsa", "recipe", "recipes")
_STUDENTS = ("sets", "evaluations", "learners")
OPTIONS = ("help", "out", "root")
"""Options of the stage resolve, which no experiment file may have the name of."""
MAIN = "main"
"""Part of the names of Table 1's rows."""


class Parameters:
    """All parameter files of a checkout.

    Args:
        root: folder of ``dvc.yaml`` and ``params.yaml``.

    Raises:
        TeddyError: a file is not readable; a row stands there twice, or lacks a key of its own.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._params = _Sections(root / "params.yaml")
        self._rows: dict[str, dict[str, Section]] = {}
        self._files: dict[tuple[str, str], Path] = {}
        self._inline: dict[str, tuple[Path, Any]] = {
            name: (self._params.path, raw) for name, raw in self._params.keys("datasets").items()
        }
        self._known: dict[tuple[object, ...], Any] = {}
        self._dvc = dvc = read_yaml(root / "dvc.yaml")
        listed = experiment_files(dvc, root / "dvc.yaml")
        self.files = ["dvc.yaml", "params.yaml", *listed]
        """All that were read, relative to the root."""
        for path in listed:
            self._take(root / path)
        params = self._params
        known = {"seed", "syntheses", "continual", "datasets", "dsa", "recipes", *STAGES}
        refuse_unknown(params.raw, known | {*EXPERIMENTS}, params.where())
        self.seed: int = from_json(Seed, params.value("seed"), params.where("seed"))
        self._syntheses: int = from_json(
            Count, params.value("syntheses"), params.where("syntheses")
        )
        self.methods = self._all("methods", MethodRow)
        self.prepared = self._all("prepared", PreparedRow)
        self.bases = self._all("bases", BaseRow)
        self.pools = self._all("pools", PoolRow)
        self.experts = self._all("experts", ExpertsRow)
        self.sets = self._all("sets", SetRow)
        self.evaluations = self._all("evaluations", EvaluationRow)
        self.step_teachers = self._all("step_teachers", StepTeachersRow)
        self.learners = self._all("learners", LearnerRow)
        self.targets = self._targets()
        """Tables and figures, by dataset."""
        self.continual: ContinualConfig = from_json(
            ContinualConfig, params.value("continual"), params.where("continual")
        )
        self._datasets = {name: self._dataset_sections(name) for name in self._dataset_names()}
        self.datasets = {
            name: from_json(
                DatasetRow,
                {k: v for k, v in sections.raw.items() if k not in _OF_DATASETS},
                sections.where(),
            )
            for name, sections in self._datasets.items()
        }

    # ------------------------------------------------------------------------------- reading

    def _take(self, path: Path) -> None:
        """The rows of an experiment file."""
        raw = read_yaml(path)
        check(
            path.stem not in OPTIONS and _STEM.fullmatch(path.stem) is not None,
            f"{path}: rename this file: DVC gives the stage resolve its name as the option "
            f"--{path.stem}, which must be letters, digits, '_', '-' and '.', and none of "
            f"{', '.join(OPTIONS)}",
        )
        refuse_unknown(raw, {"on", "kinds", "methods", "targets", "datasets", *ROWS}, str(path))
        check(
            raw.get("on") == {path.stem: True} and raw["on"][path.stem] is True,  # 1 equals it
            f"{path}: expected `on: {{{path.stem}: true}}`, which tells the stage resolve that the "
            f"file is listed under vars; got {shown(raw.get('on'))}",
        )
        for section, rows in raw.items():
            if section in ("on", "kinds"):  # kinds are what rows share, by anchors
                continue
            check(isinstance(rows, Mapping), f"{path}: {section} must be rows; got {shown(rows)}")
            for name, row in rows.items():
                if section == "datasets":
                    first, _ = self._inline.setdefault(name, (path, row))
                    check(
                        first == path,
                        f"{path}: datasets.{name}: settings of that dataset stand in {first} too",
                    )
                elif section == "targets":
                    check(
                        isinstance(row, Mapping),
                        f"{path}: {section}.{name} must be datasets; got {shown(row)}",
                    )
                    for dataset, own in row.items():
                        self._add(path, section, f"{name}/{dataset}", own)
                else:
                    self._add(path, section, name, row)

    def _add(self, path: Path, section: str, name: Any, row: Any) -> None:
        where = f"{path}: {section}"
        valid = isinstance(name, str) and _NAME.fullmatch(name) and len(name) <= _LONGEST
        if not valid:
            raise TeddyError(
                f"{where}: the name {shown(name)} must be letters, digits, '_' and '-', in parts "
                f"joined by '/' that begin with a letter or digit, and at most {_LONGEST} long"
            )
        check(isinstance(row, Mapping), f"{where}.{name} must be keys; got {shown(row)}")
        first = self._files.setdefault((section, name), path)
        if name in self._rows.setdefault(section, {}):
            raise TeddyError(f"{where}.{name}: there is a row of that name in {first} too")
        self._rows[section][name] = row

    def where(self, section: str, name: str = "") -> str:
        """File and key of a row, with which messages about it begin."""
        if not name:
            return f"{self._root / 'dvc.yaml'}: vars"
        return f"{self._files[section, name]}: {section}.{name}"

    def _all(self, section: str, cls: type[T]) -> dict[str, T]:
        identity = config_keys(cls)
        _, stage, nested = ROWS.get(section, (cls, "", ()))
        made = {}
        for name, raw in self._rows.get(section, {}).items():
            where = self.where(section, name)
            if stage:
                self._refuse_mistyped(section, name)
            else:
                refuse_unknown(raw, identity | set(nested), where)
            made[name] = from_json(cls, {k: v for k, v in raw.items() if k in identity}, where)
        return made

    def _refuse_mistyped(self, section: str, name: str) -> None:
        """Refuse a key of a row that neither the row nor the stage that it overrides has."""
        cls, stage, nested = ROWS[section]
        raw, identity = self._rows[section][name], dataclasses.fields(cls)
        known = {field.name for field in identity} | set(nested)
        given: set[Any] = set(raw)
        method = self.methods.get(str(raw.get("method")))
        if stage != "algorithm":
            known |= config_keys(STAGES.get(stage, ExpertsConfig))
        elif method is None:
            known |= {key for made in ALGORITHMS.values() for key in config_keys(made.config)}
        elif method.algorithm in ALGORITHMS:
            known |= config_keys(ALGORITHMS[method.algorithm].config)
        else:  # whose settings are known when its code is loaded
            missing = {f.name for f in identity if f.default is dataclasses.MISSING} - given
            given = {key for key in given if nearest(str(key), missing)}
        refuse_unknown((key for key in raw if key in given), known, self.where(section, name))

    def _targets(self) -> dict[str, dict[str, TargetRow]]:
        found: dict[str, dict[str, TargetRow]] = {}
        for name, raw in self._rows.get("targets", {}).items():
            target, dataset = name.split("/", 1)
            row = from_json(TargetRow, raw, self.where("targets", name))
            found.setdefault(target, {})[dataset] = row
        return found

    def _dataset_names(self) -> list[str]:
        names = [row.dataset for row in self.prepared.values()]
        return list(dict.fromkeys(names))

    def _dataset_sections(self, name: str) -> "_Sections":
        """Settings of a dataset: a file of its own, or a section beside its rows or of params."""
        path = self._root / "params" / f"{name}.yaml"
        if name in self._inline:
            file, raw = self._inline[name]
            check(
                not path.is_file(),
                f"{file}: datasets.{name}: settings of that dataset stand in {path} too",
            )
            sections = _Sections(file, f"datasets.{name}", raw, optional=True)
        elif path.is_file():
            sections = _Sections(path, optional=True)
            self.files.append(f"params/{name}.yaml")
        else:
            rows = next(k for k, row in self.prepared.items() if row.dataset == name)
            known = {*self._inline, *(file.stem for file in path.parent.glob("*.yaml"))}
            raise TeddyError(
                f"{self.where('prepared', rows)}: no settings of the dataset {name!r}: expected "
                f"{path}, or datasets.{name} in params.yaml; {suggest(name, known)}"
            )
        refuse_unknown(sections.raw, {*config_keys(DatasetRow), *_OF_DATASETS}, sections.where())
        return sections

    # --------------------------------------------------------------------------- what is asked

    def dataset_of(self, data: str) -> str:
        """Dataset of prepared images."""
        return self.prepared[data].dataset

    def where_of_dataset(self, name: str, key: str = "") -> str:
        """File, and key if there is one, that a dataset's settings, or one of them, stand in."""
        return self._datasets[name].where(key)

    def place_of_dataset(self, name: str) -> tuple[str, str]:
        """The same file, relative to the root, and the key or ""."""
        sections = self._datasets[name]
        return sections.path.relative_to(self._root).as_posix(), sections.key

    def sections_of(self, dataset: str) -> Section:
        """What a dataset says, or params.yaml if it is ""."""
        return (self._datasets[dataset] if dataset else self._params).raw

    def with_sections(self, dataset: str, raw: Section) -> Self:
        """The same rows under other settings of a dataset, or defaults; nothing is checked."""
        other = copy.copy(self)
        other._known = {}
        sections = copy.copy(self._datasets[dataset] if dataset else self._params)
        sections.raw = raw
        if dataset:
            other._datasets = self._datasets | {dataset: sections}
        else:
            other._params = sections
        return other

    def rows_with(self, key: Sequence[str]) -> list[str]:
        """File and key of rows that have a key of a stage, ``synthesize.lr`` for one, or ``recipe``
        itself.
        """
        if key == ("recipe",):
            rows = [(s, *row) for s in _STUDENTS for row in getattr(self, s).items()]
            return [self.where(section, name) for section, name, row in rows if row.recipe]
        found, (stage, *path) = [], key
        of_sets = [algorithm.section for algorithm in ALGORITHMS.values()]
        for section, (_, own, nested) in ROWS.items():
            if stage == own or stage in nested or (own == "algorithm" and stage in of_sets):
                for name in self._rows.get(section, {}):
                    inner: Any = self._overrides(section, name, stage)
                    for part in path:
                        inner = inner.get(part) if isinstance(inner, Mapping) else None
                    if inner is not None:
                        found.append(self.where(section, name))
        return found

    def prepare(self, name: str) -> PrepareConfig:
        """Settings of the preparation of some images."""
        dataset = self.prepared[name].dataset
        return self._resolved(PrepareConfig, "prepare", dataset, ("prepared", name))

    def train_teacher(self, base: str) -> TrainTeacherConfig:
        """Settings of one base run."""
        dataset = self.dataset_of(self.bases[base].data)
        return self._resolved(TrainTeacherConfig, "train_teacher", dataset, ("bases", base))

    def train_step_teachers(self, name: str) -> TrainTeacherConfig:
        """Settings of the base runs on the classes of each step."""
        dataset = self.dataset_of(self.step_teachers[name].data)
        return self._resolved(TrainTeacherConfig, "train_teacher", dataset, ("step_teachers", name))

    def step_epochs(self, learner: str) -> tuple[int, ...]:
        """Epochs of the strict teachers of a learner: those of its pool; else none."""
        row = self.learners[learner]
        if not row.strict:
            return ()
        if self.pools[row.pool].kind == "converged":
            return (self.train_step_teachers(row.teachers).epochs,)
        return self.prior_epochs(row.pool)

    def pool(self, pool: str) -> PoolConfig:
        """Settings of one pool."""
        dataset = self.dataset_of(self.pools[pool].data)
        return self._resolved(PoolConfig, "pool", dataset, ("pools", pool))

    def prior_epochs(self, pool: str) -> tuple[int, ...]:
        """Epochs of a prior pool; of others, those whose accuracies a post pool imitates."""
        prior = self.pool(pool).prior
        assert prior is not None, "params.yaml has all settings of a pool"
        return prior.epochs

    def pool_size(self, pool: str) -> int:
        """Members of a pool."""
        if pool in self.experts:
            return self.experts_config(pool).count
        kind, post = self.pools[pool].kind, self.pool(pool).post
        assert post is not None, "params.yaml has all settings of a pool"
        sizes = {"converged": 1, "prior": len(self.prior_epochs(pool)), "post": post.size}
        return sizes[kind]

    def experts_config(self, name: str) -> ExpertsConfig:
        """Settings of some experts."""
        own, where = self._overrides("experts", name, "experts"), self.where("experts", name)
        own = self._with_dsa(own, self.dataset_of(self.experts[name].data), where)
        return from_json(ExpertsConfig, own, where)

    def algorithm(self, method: str) -> Algorithm:
        """What is to be known of the algorithm of a method.

        Raises:
            TeddyError: the user's own file fails, or what it defines is no method.
        """
        name = self.methods[method].algorithm
        if not user_code.is_reference(name):
            return ALGORITHMS[name]
        where = f"{self.where('methods', method)}.algorithm"
        try:
            made = user_code.load(name)
        except TeddyError as error:
            raise TeddyError(f"{where}: {error}") from error
        if not isinstance(getattr(made, "Config", None), type):
            raise TeddyError(
                f"{where}: {name} must be a subclass of teddy.synthesis.methods.Method, with its "
                "Config"
            )
        return Algorithm(name, made.Config, "", by_pool=made.by_pool, real=made.real)

    def algorithm_config(self, name: str) -> Any:
        """Settings of the algorithm that makes one distilled set."""
        row = self.sets[name]
        algorithm = self.algorithm(row.method)
        if algorithm.section:
            dataset = self.dataset_of(row.data)
            return self._resolved(algorithm.config, algorithm.section, dataset, ("sets", name))
        own, where = self._overrides("sets", name, ""), self.where("sets", name)
        cls, _, nested = ROWS["sets"]
        keys = config_keys(algorithm.config)
        refuse_unknown(own, keys | config_keys(cls) | set(nested), where)
        if "dsa" in keys and algorithm in ALGORITHMS.values():
            own = self._with_dsa(own, self.dataset_of(row.data), where)
        return from_json(algorithm.config, own, where)

    def synthesize_of(self, dataset: str) -> SynthesizeConfig:
        """Settings of Eq. 7 for sets of a dataset that say nothing of their own."""
        return self._resolved(SynthesizeConfig, "synthesize", dataset)

    def relabel(self, name: str) -> RelabelConfig:
        """Settings of the labels of a set, of an evaluation or of a learner."""
        return self._resolved(RelabelConfig, "relabel", *self._chain(name))

    def evaluate(self, name: str) -> EvaluateConfig:
        """Settings of the students of a set, of an evaluation or of a learner."""
        return self._resolved(EvaluateConfig, "evaluate", *self._chain(name))

    def evaluation(self, name: str) -> Evaluation:
        """A row of ``evaluations``, or a set's own evaluation."""
        again = self.evaluations.get(name)
        row = self.sets[again.set if again else name]
        labels = self.methods[row.method].labels
        return Evaluation(
            name=name, dataset=self.dataset_of(row.data), data=again.data if again else row.data,
            set=again.set if again else name, method=row.method, ipc=row.ipc,
            pool=again.pool if again else row.pool, members=again.members if again else 0,
            labels=again.labels if again else labels, recipe=self.recipe(name),
        )  # fmt: skip

    def recipes(self, dataset: str = "") -> Section:
        """Recipes of params.yaml, or what a dataset changes of them, by name."""
        sections = self._datasets[dataset] if dataset else self._params
        return sections.keys("recipes") if "recipes" in sections.raw else {}

    def recipes_used(self, dataset: str = "") -> list[str]:
        """Recipes that rows have, or those of a dataset."""
        rows = [(n, row) for section in _STUDENTS for n, row in getattr(self, section).items()]
        names = (n for n, row in rows if dataset in ("", self.dataset_of(row.data)))
        return list(dict.fromkeys(recipe for recipe in map(self.recipe, names) if recipe))

    def recipe(self, name: str) -> str:
        """Recipe of a set, an evaluation or a learner: its own, its set's or the dataset's; "" if
        none of these names one.
        """
        row = self.sets.get(name) or self.learners.get(name)
        if row is None:
            return self.evaluations[name].recipe or self.recipe(self.evaluations[name].set)
        its: str = self.sections_of(self.dataset_of(row.data)).get("recipe", "")
        return row.recipe or its

    def syntheses(self, name: str) -> int:
        """How often a set is made."""
        return self.sets[name].syntheses or self._syntheses

    def shown(self, target: str, dataset: str) -> list[str]:
        """Names of the rows that a table or figure of a dataset shows, in order."""
        names, found = self._shown_by(target), []
        for part in (*self.targets[target][dataset].beside, self._own(target)):
            path = f"{dataset}/{part}/"
            found += [name for name in names if f"{name}/".startswith(path)]
        return list(dict.fromkeys(found))

    def is_default(self, name: str) -> bool:
        """Whether an evaluation has the default settings, that is, Table 1 shows it."""
        return name.split("/")[1:2] == [MAIN]

    def fig1(self) -> Fig1Config:
        """Settings of figure 1."""
        return self._experiment("fig1", Fig1Config)

    def fig5(self) -> Fig5Config:
        """Settings of figure 5."""
        return self._experiment("fig5", Fig5Config)

    def theory(self) -> TheoryConfig:
        """Settings of the appendix."""
        return self._experiment("theory", TheoryConfig)

    # ------------------------------------------------------------------------------ resolving

    def _resolved(self, cls: type[T], stage: str, dataset: str, *rows: tuple[str, str]) -> T:
        """Settings of a stage: its section, the dataset's, and those of rows, later ones on top."""
        found: T = self._layered(cls, stage, (("datasets", dataset), *rows))[1]
        return found

    def _layered(
        self, cls: type, stage: str, layers: tuple[tuple[str, str], ...] = ()
    ) -> tuple[Section, Any]:
        """Keys of a stage's section with layers on top, and the settings that these are.

        Every layer is checked, so that a message names the file and key where the value stands.
        """
        known = (cls, stage, *layers)
        if known not in self._known:
            where, own = self._layer(stage, *layers[-1:])
            below = own
            if layers:
                below = self._layered(cls, stage, layers[:-1])[0]
                if layers[-1][0] == "datasets" and stage in WITH_DSA:
                    below = {**below, "dsa": self._dsa(below["dsa"], self._datasets[layers[-1][1]])}
            elif stage in WITH_DSA:
                refuse_unknown(own, config_keys(cls) - {"dsa"}, where)
                below = {**own, "dsa": self._dsa({}, self._params)}
            merged = merge(below, own, where)
            made: Any = from_json(cls, merged, where)
            # of a method of others keys may be missing from the section, which rows may override
            self._known[known] = merged if layers else to_json(made), made
            self._check_references(own, where)
        found: tuple[Section, Any] = self._known[known]
        return found

    def _layer(self, stage: str, row: tuple[str, str] = ("", "")) -> tuple[str, Section]:
        """What the defaults, a dataset or a row says of a stage, and file and key of that."""
        section, name = row
        if section == "recipes":  # of params.yaml, or what a dataset changes of it
            recipe, _, dataset = name.partition("@")
            sections = self._datasets[dataset] if dataset else self._params
            own = self.recipes(dataset).get(recipe, {})
            return sections.where(f"recipes.{recipe}.{stage}"), own.get(stage, {})
        if section in ("", "datasets"):
            sections = self._datasets[name] if section else self._params
            return sections.where(stage), sections.keys(stage)
        where = self.where(section, name)
        nested = stage in ROWS[section][2]
        return f"{where}.{stage}" if nested else where, self._overrides(section, name, stage)

    def _check_references(self, own: Section, where: str) -> None:
        """What settings name must be built in, or defined in a file of the user's own."""
        source = own.get("source")
        if source is not None and not user_code.is_reference(source) and source not in SOURCES:
            raise TeddyError(
                f"{where}.source must be path/to/file.py:name or known, got {shown(source)}; "
                f"{suggest(source, SOURCES)}"
            )
        check_reference(source or "", f"{where}.source", self._dvc)
        for network in ("network", "student", "teacher"):
            arch = own.get(network, {}).get("arch", "")
            check_reference(arch, f"{where}.{network}.arch", self._dvc)

    def _dsa(self, below: Section, sections: "_Sections") -> Section:
        """Strengths of DSA, which the section ``dsa`` has for all stages."""
        own, where = sections.keys("dsa"), sections.where("dsa")
        return to_json(from_json(DsaConfig, merge(below, own, where) if below else own, where))

    def _with_dsa(self, own: Section, dataset: str, where: str) -> Section:
        """What a row says of a stage without a section, above the dataset's strengths of DSA."""
        below = self._dsa(self._dsa({}, self._params), self._datasets[dataset])
        return {**own, "dsa": merge(below, own.get("dsa", {}), f"{where}.dsa")}

    def _overrides(self, section: str, name: str, stage: str) -> Section:
        """What a row says of a stage: by its further keys, or under the stage's name."""
        cls, own, nested = ROWS[section]
        raw = self._rows[section][name]
        if stage in nested:
            found = raw.get(stage, {})
            if not isinstance(found, Mapping):
                raise TeddyError(
                    f"{self.where(section, name)}.{stage} must be keys; got {shown(found)}"
                )
            return found
        if own != "algorithm" and own != stage:
            return {}
        identity = config_keys(cls) | set(nested)
        return {key: value for key, value in raw.items() if key not in identity}

    def _chain(self, name: str) -> tuple[Any, ...]:
        """Dataset, recipe and rows that settings of labels and students come from."""
        if name in self.learners:
            data, rows = self.learners[name].data, [("learners", name)]
        elif name in self.sets:
            data, rows = self.sets[name].data, [("sets", name)]
        else:  # on top of its set, but for a recipe of its own
            again = self.evaluations[name]
            data, rows = again.data, [("sets", again.set), ("evaluations", name)]
            rows = rows[1:] if again.recipe else rows
        dataset = self.dataset_of(data)
        return dataset, *self._layers_of(self.recipe(name), dataset), *rows

    def _layers_of(self, recipe: str, dataset: str) -> tuple[tuple[str, str], ...]:
        """Layers of a recipe: that of params.yaml, and what a dataset changes of it."""
        return (("recipes", recipe), ("recipes", f"{recipe}@{dataset}")) if recipe else ()

    def _experiment(self, name: str, cls: type[T]) -> T:
        own, where = self._params.keys(name), self._params.where(name)
        config = from_json(cls, own, where)
        self._check_references(own, where)
        return config

    @property
    def experiments(self) -> tuple[str, ...]:
        """Sections of figures 1 and 5 and of the appendix that params.yaml has."""
        return tuple(name for name in EXPERIMENTS if name in self._params.raw)

    def _own(self, target: str) -> str:
        """Part of the names of a target's own rows."""
        return MAIN if target == "table1" else target

    def _shown_by(self, target: str) -> list[str]:
        """Names of all rows that a table or figure could show."""
        return [name for section in self._sections_of(target) for name in getattr(self, section)]

    def _sections_of(self, target: str) -> tuple[str, ...]:
        return OTHERS.get(target, EVALUATIONS).sections

    def _parent(self, where: str, section: str, name: str) -> Any:
        rows = getattr(self, section)
        if name not in rows:
            raise TeddyError(f"{where}: no row {name!r} in {section}; {suggest(name, rows)}")
        return rows[name]


class _Sections:
    """The sections of a parameter file, or of one of its sections; every message names it."""

    def __init__(
        self, path: Path, key: str = "", raw: Any = None, *, optional: bool = False
    ) -> None:
        self.path, self.key, self._optional = path, key, optional
        self.raw: Section = raw if key else read_yaml(path)
        check(isinstance(self.raw, Mapping), f"{self.where()} must be keys; got {shown(self.raw)}")

    def where(self, key: str = "") -> str:
        """The file, and the key if there is one."""
        whole = ".".join(part for part in (self.key, key) if part)
        return f"{self.path}: {whole}" if whole else str(self.path)

    def value(self, key: str) -> Any:
        """What stands at a key that must be there."""
        if key not in self.raw:
            raise TeddyError(f"{self.where()} lacks the key {key!r}")
        return self.raw[key]

    def keys(self, key: str) -> Section:
        """A section; one that is not there is empty if it may be left out."""
        found = self.raw.get(key, {}) if self._optional else self.value(key)
        if not isinstance(found, Mapping):
            raise TeddyError(f"{self.where(key)} must be keys; got {shown(found)}")
        return found
