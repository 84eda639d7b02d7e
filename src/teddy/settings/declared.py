"""The parameter files of a checkout checked as a whole; the stage ``resolve`` asks it.

What is wrong with a file is refused at once. Values that are right by themselves but do not fit
each other in one row, as after cutting a dataset down by ``-S``, refuse that row alone.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from teddy.core import user_code
from teddy.core.errors import TeddyError
from teddy.settings.algorithms import ALGORITHMS
from teddy.settings.baselines import (
    GradientMatchingConfig,
    MosaicConfig,
    ResidualMatchingConfig,
)
from teddy.settings.configs import STAGES, CoresetConfig
from teddy.settings.parameters import Parameters
from teddy.settings.places import AXES, ONE_RECIPE, PLACES, SOFT_ALONE, the_recipe
from teddy.settings.rows import OF_STUDENTS, parents
from teddy.settings.schema import Section, check, nearest, refuse_unknown, shown, suggest
from teddy.settings.theory import Fig1Config, Fig5Config
from teddy.settings.user_files import check_reference


class Declared(Parameters):
    """All parameter files of a checkout, of which each row is right.

    Args:
        root: folder of ``dvc.yaml`` and ``params.yaml``.

    Raises:
        TeddyError: a file is not readable; a key is missing or unknown; a value is of the wrong
            type or out of range; a row stands there twice, has no parent or is shown nowhere; or
            a table shows no row.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        stages = self._dvc.get("stages")
        self.stages: Section = stages if isinstance(stages, Mapping) else {}
        """All that ``dvc.yaml`` has, as it has them."""
        self.unfit: dict[tuple[str, str], str] = {}
        """Rows, by section and name, whose settings do not fit each other, and why."""
        self._makers = _makers_of_targets(self.stages)
        for stage, cls in STAGES.items():  # those that no row has too
            self._layered(cls, stage)
            for name in self.datasets:
                self._resolved(cls, stage, name)
        self._check_recipes()
        of_rows = {
            "methods": self._check_method,
            "prepared": self.prepare,
            "bases": self.train_teacher,
            "pools": self._check_pool,
            "experts": self.experts_config,
            "sets": self._check_set,
            "evaluations": self._check_evaluation,
            "step_teachers": self._check_step_teachers,
            "learners": self._check_learner,
        }
        for section, check_row in of_rows.items():
            for name in getattr(self, section):
                self._check_parents(section, name)
                check_row(name)
        for experiment in self.experiments:
            self._check_experiment(experiment)
        self._check_names()
        self._check_targets()

    def _check_parents(self, section: str, name: str) -> None:
        """The rows that a row names must be there, and of its dataset."""
        row, where = getattr(self, section)[name], self.where(section, name)
        for key, above in parents(type(row)).items():
            parent = getattr(row, key)
            if above == "pools" and parent in self.experts:  # which are pools too
                above = "experts"
            self._parent(where, above, parent)
            if above not in ("prepared", "methods"):
                self._check_same(where, above, parent, self.dataset_of(row.data))

    def _check_fit(self, ok: bool, section: str, name: str, message: str) -> None:
        """Refuse a row, and no other, with its first message unless ``ok``."""
        if not ok:
            self.unfit.setdefault((section, name), f"{self.where(section, name)}: {message}")

    def _check_same(self, where: str, section: str, parent: str, dataset: str) -> None:
        row = getattr(self, section)[parent]
        its = row.dataset if section == "prepared" else self.dataset_of(row.data)
        check(
            its == dataset,
            f"{where} is of dataset {dataset!r}, but its parent {parent!r} is of {its!r}",
        )

    def _check_recipes(self) -> None:
        """Recipes must be right on top of the defaults, and of datasets that change them."""
        known = self.recipes()
        for name, recipe in known.items():
            valid = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII)
            check(
                bool(valid),
                f"{self._params.where('recipes')}: the name {shown(name)} must be letters, digits, "
                "'_' and '-', and begin with a letter or digit",
            )
            where = self._params.where(f"recipes.{name}")
            self._check_recipe(where, recipe, ("recipes", name))
        for dataset in self.datasets:
            own = self.recipes(dataset)
            refuse_unknown(own, known, self.where_of_dataset(dataset, "recipes"))
            for name, changes in own.items():
                where = self.where_of_dataset(dataset, f"recipes.{name}")
                layers = (("datasets", dataset), *self._layers_of(name, dataset))
                self._check_recipe(where, changes, *layers)
            taken = self.sections_of(dataset).get("recipe", "")
            self._check_recipe_name(self.where_of_dataset(dataset, "recipe"), taken)

    def _check_recipe(self, where: str, recipe: object, *layers: tuple[str, str]) -> None:
        """What a recipe, or a dataset, says of labels and students must fit what lies below."""
        if not isinstance(recipe, Mapping):
            raise TeddyError(f"{where} must be keys; got {shown(recipe)}")
        refuse_unknown(recipe, OF_STUDENTS, where)
        for stage in OF_STUDENTS:
            self._layered(STAGES[stage], stage, layers)

    def _check_recipe_name(self, where: str, name: object) -> None:
        known = self.recipes()
        if name != "" and (not isinstance(name, str) or name not in known):
            close = nearest(str(name), known)
            raise TeddyError(
                f"{where} must be '' or a key of recipes in params.yaml "
                f"({', '.join(sorted(known)) or 'which has none'}); got {shown(name)}"
                + (f"; did you mean {close!r}?" if close else "")
            )

    def _check_method(self, name: str) -> None:
        algorithm = self.methods[name].algorithm
        if not user_code.is_reference(algorithm) and algorithm not in ALGORITHMS:
            raise TeddyError(
                f"{self.where('methods', name)}.algorithm must be path/to/file.py:Name or known, "
                f"got {shown(algorithm)}; {suggest(algorithm, ALGORITHMS)}"
            )
        check_reference(algorithm, f"{self.where('methods', name)}.algorithm", self._dvc)

    def _check_experiment(self, name: str) -> None:
        config = {"fig1": self.fig1, "fig5": self.fig5, "theory": self.theory}[name]()
        if isinstance(config, Fig1Config | Fig5Config):
            where = self._params.where(name)
            self._parent(f"{where}.data", "prepared", config.data)
            self._check_same(where, "prepared", config.data, config.dataset)

    def _check_step_teachers(self, name: str) -> None:
        trained = not self.train_step_teachers(name).checkpoint
        self._check_fit(trained, "step_teachers", name, "train_teacher.checkpoint must be ''")

    def _check_pool(self, name: str) -> None:
        row, where = self.pools[name], self.where("pools", name)
        network, config = self.train_teacher(row.base).network, self.pool(name)
        self._check_fit(
            row.kind != "post" or network.prunable, "pools", name,
            f"{network.arch} cannot be pruned; choose kind prior or converged",
        )  # fmt: skip
        check(
            config.prior is not None and config.post is not None,
            f"{where}: prior and post must be keys",
        )
        if row.kind == "converged":
            return
        followed = row.base if row.kind == "prior" else row.curve
        run, last = self.train_teacher(followed), self.prior_epochs(name)[-1]
        epochs = 1 if run.checkpoint else run.epochs
        self._check_fit(
            last <= epochs, "pools", name,
            f"pool.prior reaches epoch {last}, but the base run {followed!r} ends at epoch "
            f"{epochs}",
        )  # fmt: skip

    def _check_set(self, name: str) -> None:
        row, config = self.sets[name], self.algorithm_config(name)
        self._check_labels("sets", name, self.methods[row.method].labels)
        draw, size = getattr(config, "draw", 1), self.pool_size(row.pool)
        self._check_fit(
            draw <= size, "sets", name,
            f"synthesize.draw is {draw}, but the pool {row.pool!r} has {size} "
            f"member{'s' if size > 1 else ''}",
        )  # fmt: skip
        self._check_chosen(name)
        algorithm, by_experts = self.algorithm(row.method), row.pool in self.experts
        check(
            by_experts or not algorithm.by_experts,
            f"{self.where('sets', name)}: pool must be a row of experts, whose trajectories "
            f"{row.method} matches; got {row.pool!r}",
        )
        if algorithm.by_experts:
            last = config.max_start - 1 + config.expert_epochs
            epochs = self.experts_config(row.pool).epochs
            self._check_fit(
                last <= epochs, "sets", name,
                f"max_start {config.max_start} and expert_epochs {config.expert_epochs} need "
                f"{last} epochs of an expert, but those of {row.pool!r} end at epoch {epochs}",
            )  # fmt: skip
        elif by_experts and algorithm.by_pool and not user_code.is_reference(algorithm.code):
            raise TeddyError(
                f"{self.where('sets', name)}: pool {row.pool!r} has experts without BatchNorm, "
                f"which {row.method} cannot use; name a row of pools"
            )

        if isinstance(config, ResidualMatchingConfig):
            self._check_phases(name, config)

    def _check_chosen(self, name: str) -> None:
        """What choosing real images, mosaics and loops ask of pool, images and their number."""
        row, config = self.sets[name], self.algorithm_config(name)
        if isinstance(config, CoresetConfig) and config.choose == "forgetting":
            kind = self.pools[row.pool].kind if row.pool in self.pools else "experts"
            self._check_fit(
                kind == "prior" and self.pool_size(row.pool) > 1, "sets", name,
                "choose is forgetting, which needs a pool of kind prior with two checkpoints or "
                f"more of one run; {row.pool!r} is {kind} and has {self.pool_size(row.pool)}",
            )  # fmt: skip
        if isinstance(config, MosaicConfig):
            reason = config.misfit(row.ipc, self.prepare(row.data).image_size)
            self._check_fit(not reason, "sets", name, reason)
        if isinstance(config, GradientMatchingConfig):
            self._check_fit(not (reason := config.misfit(row.ipc)), "sets", name, reason)

    def _check_phases(self, name: str, config: ResidualMatchingConfig) -> None:
        """Refuse a set of residual matching whose phases do not fit its images or teachers."""
        row = self.sets[name]
        self._check_fit(
            config.initialise == "real", "sets", name,
            "initialise must be real: images begin with real crops and return to them; got "
            f"{config.initialise}",
        )  # fmt: skip
        prepared, sizes = self.prepare(row.data), list(config.sizes)
        side = prepared.image_size
        self._check_fit(
            max(sizes) <= side and sizes[-1] in (0, side), "sets", name,
            f"sizes must be at most {side}, the side of the images, and end with it or 0; got "
            f"{sizes}",
        )  # fmt: skip
        arch = self.train_teacher(self.pools[row.pool].base).network.arch
        grey = 4 if prepared.channels == 1 else 0  # pixels that convnet3 pads them by more
        halved = {((size or side) + grey) // 8 for size in (0, *sizes)}
        self._check_fit(
            arch != "convnet3" or len(halved) == 1, "sets", name,
            "sizes must have as many pixels after convnet3's three halvings as the images, whose "
            f"side is {side}; got {sizes}",
        )  # fmt: skip

    def _check_evaluation(self, name: str) -> None:
        row, where = self.evaluations[name], self.where("evaluations", name)
        check(name not in self.sets, f"{where}: there is a set of that name too; rename one")
        self._check_labels("evaluations", name, row.labels)
        size = self.pool_size(row.pool)
        self._check_fit(
            row.members <= size, "evaluations", name,
            f"members is {row.members}, but the pool {row.pool!r} has {size}",
        )  # fmt: skip

    def _check_learner(self, name: str) -> None:
        row, where = self.learners[name], self.where("learners", name)
        check(
            name not in self.sets and name not in self.evaluations,
            f"{where}: there is a set or evaluation of that name too; rename one",
        )
        self._check_labels("learners", name, row.labels)
        if not row.strict:
            return
        check(row.pool in self.pools, f"{where}: strict teachers need a pool of checkpoints")
        if row.teachers not in self.step_teachers:
            raise TeddyError(
                f"{where}: teachers must be its pool {row.pool!r} or a row of step_teachers, got "
                f"{row.teachers!r}; {suggest(row.teachers, (row.pool, *self.step_teachers))}"
            )
        method = self.sets[row.set].method
        algorithm = self.methods[method].algorithm
        check(
            algorithm == "teddy" or not self.algorithm(method).by_pool,
            f"{where}: strict teachers can make images of Eq. 7 alone, but the set {row.set!r} is "
            f"made by {algorithm}",
        )
        self._check_same(where, "step_teachers", row.teachers, self.dataset_of(row.data))
        check(
            self.pools[row.pool].kind != "post",
            f"{where}: strict teachers cannot be pruned copies; choose a prior or converged pool",
        )
        last, epochs = self.step_epochs(name)[-1], self.train_step_teachers(row.teachers).epochs
        self._check_fit(
            last <= epochs, "learners", name,
            f"needs epoch {last} of step_teachers.{row.teachers}, whose runs end at epoch {epochs}",
        )  # fmt: skip

    def _check_labels(self, section: str, name: str, labels: tuple[str, ...]) -> None:
        recipe = getattr(self, section)[name].recipe
        self._check_recipe_name(f"{self.where(section, name)}.recipe", recipe)
        self.evaluate(name)
        relabel = self.relabel(name)
        self._check_fit(
            "soft" not in labels or relabel.augmentation != "dsa", section, name,
            "relabel.augmentation is dsa, which has no soft labels because its operation belongs "
            f"to a student's batch, but its labels are {', '.join(labels)}",
        )  # fmt: skip

    def _check_names(self) -> None:
        """Outputs must not lie in each other, which DVC would refuse without naming the rows."""
        folders = {
            "models": ("bases", "pools", "experts", "step_teachers"),
            "sets": ("sets", "evaluations", "learners"),
            "prepared": ("prepared",),
        }
        for sections in folders.values():
            taken: dict[str, str] = {}
            for section in sections:
                for name in getattr(self, section):
                    where = self.where(section, name)
                    check(name not in taken, f"{where}: {taken.get(name)} has that name too")
                    taken[name] = where
            for name, where in taken.items():
                parts = name.split("/")
                for depth in range(1, len(parts)):
                    outer = "/".join(parts[:depth])
                    check(
                        outer not in taken,
                        f"{where}: its files would lie in those of {taken.get(outer)}; rename one",
                    )

    def _check_targets(self) -> None:
        seen = set()
        for target, rows in self.targets.items():
            for dataset in rows:
                self._check_target(target, dataset)
                seen |= set(self.shown(target, dataset))
        for target, rows in self.targets.items():
            for dataset in rows:
                self._check_places(target, dataset)
                if target == ONE_RECIPE:
                    self._check_one_recipe(dataset)
        for section in ("sets", "evaluations", "learners"):
            for name, row in getattr(self, section).items():
                dataset, where = self.dataset_of(row.data), self.where(section, name)
                places = [
                    self._own(target)
                    for target, rows in self.targets.items()
                    if dataset in rows and section in self._sections_of(target)
                ]
                shown = name in seen or self._used(name)
                check(
                    shown or not places,
                    f"{where}: no table or figure shows it: its name must begin with {dataset}/ "
                    f"and one of {', '.join(places)}",
                )
                check(
                    shown,
                    f"{where}: no table or figure shows it: targets has none of {dataset} for "
                    f"{section}; add one, or remove the row",
                )

    def _check_target(self, target: str, dataset: str) -> None:
        row, where = self.targets[target][dataset], self.where("targets", f"{target}/{dataset}")
        if self._makers and target not in self._makers:
            raise TeddyError(
                f"{where}: no stage of dvc.yaml makes {target!r}; {suggest(target, self._makers)}"
            )
        if dataset not in self.datasets:
            raise TeddyError(f"{where}: no dataset {dataset!r}; {suggest(dataset, self.datasets)}")
        for key in re.findall(r"\$\{item\.(\w+)\}", self._makers.get(target, "")):
            check(
                bool(getattr(row, key, "")), f"{where} lacks the key {key!r}, which its stage reads"
            )
        for key, section in parents(type(row)).items():
            if getattr(row, key):
                self._parent(f"{where}.{key}", section, getattr(row, key))
        prefix = f"{dataset}/"
        every = (name for name in self._shown_by(target) if name.startswith(prefix))
        names = [name.removeprefix(prefix) for name in every]
        after = row.after.removesuffix(".json")
        if row.after and not any(
            name == after if row.after.endswith(".json") else name.startswith(f"{after}/")
            for name in names
        ):
            raise TeddyError(f"{where}.after: no record or folder of {dataset}, {row.after!r}")
        for path in row.beside:
            if not any(f"{name}/".startswith(f"{path}/") for name in names):
                raise TeddyError(
                    f"{where}.beside: no row {path!r} of {dataset}; {suggest(path, names)}"
                )
            check(
                not row.after or f"{path}/".startswith(f"{after}/"),
                f"{where}: {path!r} does not lie in {row.after!r}, which DVC waits for",
            )
        own = any(name.startswith(f"{self._own(target)}/") for name in names)
        needs_own = f"evaluations/${{key}}/{target}'" in self._makers.get(target, "")
        check(
            own or (len(row.beside) > 0 and not needs_own),
            f"{where}: shows no row{' of its own' if row.beside else ''}: name rows {dataset}/"
            f"{self._own(target)}/…, or remove it",
        )

        if target == "fig3d":  # which measures sets that DVC does not make for it
            for name in self.shown(target, dataset):
                why = self.unfit.get(("sets", name), "")
                reason = f"it measures a set that is refused ({why})"
                self._check_fit(not why, "targets", f"{target}/{dataset}", reason)

    def _check_places(self, target: str, dataset: str) -> None:
        """Two results must not share a place in a table, which training would show too late."""
        keys, taken = PLACES.get(target, ()), dict[tuple[object, ...], str]()
        for name in self.shown(target, dataset) if keys else ():
            section = "evaluations" if name in self.evaluations else "sets"
            where, facts = self.where(section, name), self._facts(name)
            for key in keys:
                check(
                    key not in AXES or facts[key] is not None,
                    f"{where}: it has no {key.replace('_', ' ')}, along which {target} of "
                    f"{dataset} shows it; name it after another table or figure",
                )
            for labels in self.evaluation(name).labels:
                if target in SOFT_ALONE and labels != "soft":
                    continue
                at = {key: {**facts, "labels": labels}[key] for key in keys}
                own, shown = f"{name} ({labels})", tuple(at.values())
                place = ", ".join(f"{key} {value}" for key, value in at.items())
                its_own = name.startswith(f"{dataset}/{self._own(target)}/")
                self._check_fit(
                    shown not in taken,
                    *((section, name) if its_own else ("targets", f"{target}/{dataset}")),
                    f"{taken.get(shown)} and {own} would share a place in {target} of {dataset} "
                    f"({place}): change one of these, remove a row, or name it after another table "
                    "or figure",
                )
                taken[shown] = own

    def _check_one_recipe(self, dataset: str) -> None:
        """Rows of the one recipe must be labelled and learnt from alike, or they show more than
        what their images are worth.
        """
        names = self.shown(ONE_RECIPE, dataset)
        one = the_recipe((self.evaluation(name).method, self.recipe(name)) for name in names)
        first = dict[tuple[int, str], str]()
        for name in [name for name in names if self.recipe(name) == one] if one else names:
            row, where = self.evaluation(name), ("targets", f"{ONE_RECIPE}/{dataset}")
            self._check_fit(bool(one), *where, "it needs rows with a recipe, but none has one")
            place = (row.ipc, self.evaluate(name).network.arch)
            other = first.setdefault(place, name)
            alike = self._labels_and_students(name) == self._labels_and_students(other)
            self._check_fit(
                alike, *where,
                f"{other} and {name} have the recipe {one}, but differ in pool, members or "
                "settings of labels and students, so that not their images alone would be compared",
            )  # fmt: skip

    def _labels_and_students(self, name: str) -> tuple[object, ...]:
        row = self.evaluation(name)
        return row.pool, row.members, self.relabel(name), self.evaluate(name)

    def _facts(self, name: str) -> dict[str, object]:
        """What the place of an evaluation in a table depends on, apart from the labels."""
        row, size = self.evaluation(name), self.pool_size(self.evaluation(name).pool)
        config = self.algorithm_config(row.set)
        return {
            "arch": self.evaluate(name).network.arch, "method": row.method, "data": row.data,
            "ipc": row.ipc, "recipe": self.recipe(name),
            "init": getattr(config, "initialise", None),
            "precision": getattr(config, "precision", None),
            "teachers_drawn": getattr(config, "draw", None), "members": row.members or size,
            "pool_size": size, "stages": self._stages(row.pool),
        }  # fmt: skip

    def _stages(self, pool: str) -> tuple[int, int] | None:
        """First and last epoch of a pool of checkpoints; None of pruned copies and of experts."""
        if pool in self.experts or self.pools[pool].kind == "post":
            return None
        if self.pools[pool].kind == "prior":
            return self.prior_epochs(pool)[0], self.prior_epochs(pool)[-1]
        base = self.train_teacher(self.pools[pool].base)
        return (1 if base.checkpoint else base.epochs,) * 2

    def _used(self, name: str) -> bool:
        """Whether something that is shown is made of a set."""
        made = {row.set for row in self.evaluations.values()}
        return name in made | {row.set for row in self.learners.values()}


def _makers_of_targets(stages: Section) -> dict[str, str]:
    """Targets that stages make, one for each dataset, and all that these say."""
    found: dict[str, str] = {}
    for stage in stages.values():
        if not isinstance(stage, Mapping):
            continue
        target = re.fullmatch(r"\$\{targets\.([\w-]+)\}", str(stage.get("foreach")))
        if target:
            found[target[1]] = found.get(target[1], "") + str(stage.get("do"))
    return found
