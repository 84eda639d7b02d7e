"""``params.yaml`` as frozen dataclasses; the only code that reads it.

A stage's settings are resolved in three layers, each overriding only what it names:

1. the top-level section of the stage (``synthesize:``), the defaults of the paper;
2. ``datasets.<dataset>.<stage>``, what differs for that dataset;
3. the row of the artifact (``sets.<name>``), what differs for that artifact.

No field has a default here: a value lives in ``params.yaml`` alone. A missing key, an unknown key
or a value out of range is a :class:`~teddy.errors.TeddyError` that names the key.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from teddy.errors import TeddyError

T = TypeVar("T")
_NAME = re.compile(r"[\w-]+(/[\w-]+)*", re.ASCII)
Section = Mapping[str, Any]


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise TeddyError(message)


def _check_betas(section: str, betas: tuple[float, float]) -> None:
    inside = all(0 <= beta < 1 for beta in betas)
    _check(inside, f"{section}.betas must be in [0, 1), got {list(betas)}")


# --------------------------------------------------------------------------- parts of sections


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """Architecture of a teacher or student."""

    arch: Literal[
        "convnet3",
        "resnet18",
        "resnet50",
        "resnet101",
        "densenet121",
        "mobilenet_v2",
        "shufflenet_v2_x1_0",
        "shufflenet_v2_x2_0",
        "efficientnet_b0",
    ]
    """``convnet3`` of DM (three conv blocks); all others are torchvision's."""
    width: int
    """Channels of ``convnet3``; torchvision's networks have their own and ignore it."""
    norm: Literal["batch", "instance", "group", "none"]
    """Normalisation of ``convnet3``; teachers need ``batch``, which torchvision's networks have."""

    def __post_init__(self) -> None:
        _check(self.width >= 1, f"network.width must be at least 1, got {self.width}")
        _check(
            self.arch == "convnet3" or self.norm == "batch",
            f"network.norm must be batch with network.arch {self.arch}, got {self.norm}",
        )
        _check(
            self.norm != "group" or self.width % 4 == 0,
            f"network.width must be a multiple of 4 for group norm, got {self.width}",
        )

    @property
    def prunable(self) -> bool:
        """Whether :mod:`teddy.pruning` can prune it, so that it can be the base of a post pool."""
        return not self.arch.startswith("shufflenet")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Optimiser and learning-rate schedule of a supervised run."""

    name: Literal["sgd", "adamw"]
    """Which optimiser."""
    lr: float
    """Base learning rate."""
    momentum: float
    """SGD momentum; AdamW ignores it."""
    betas: tuple[float, float]
    """AdamW betas; SGD ignores them."""
    weight_decay: float
    """Decoupled (AdamW) or coupled (SGD) decay."""
    decay_1d: bool
    """Whether biases and norm parameters decay too."""
    schedule: Literal["cosine", "step", "constant"]
    """Per epoch: cosine to 0, or ``step_factor`` every ``step_epochs``."""
    step_epochs: int
    """Period of the step schedule; epochs."""
    step_factor: float
    """Factor of the step schedule."""
    warmup_epochs: int
    """Linear warm-up from 1 % of ``lr``, per step; epochs."""

    def __post_init__(self) -> None:
        _check(self.lr > 0, f"optimizer.lr must be above 0, got {self.lr}")
        _check(0 <= self.momentum < 1, f"optimizer.momentum must be in [0, 1), got {self.momentum}")
        _check_betas("optimizer", self.betas)
        _check(
            self.warmup_epochs >= 0,
            f"optimizer.warmup_epochs must be ≥ 0, got {self.warmup_epochs}",
        )
        _check(
            self.weight_decay >= 0, f"optimizer.weight_decay must be ≥ 0, got {self.weight_decay}"
        )
        _check(self.step_epochs >= 1, f"optimizer.step_epochs must be ≥ 1, got {self.step_epochs}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig:
    """Random view of an image: RandomResizedCrop, horizontal flip, roll."""

    crop_scale: float
    """Smallest area fraction of RandomResizedCrop; 1 keeps the whole image."""
    hflip: bool
    """Flip left-right with probability ½."""
    roll: tuple[int, int]
    """Inclusive range of the circular shift on both axes; pixels."""

    def __post_init__(self) -> None:
        _check(
            0 < self.crop_scale <= 1, f"views.crop_scale must be in (0, 1], got {self.crop_scale}"
        )
        _check(self.roll[0] <= self.roll[1], f"views.roll must be [low, high], got {self.roll}")


Precision = Literal["float32", "bfloat16"]

# ------------------------------------------------------------------------------ stage sections


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """Which images, what is expected of them, and how they are split."""

    source: str
    """Loader of the raw data, a name in :data:`teddy.sources.SOURCES`."""
    root: str
    """Folder (or .npz file) of the raw data, torchvision's ``root`` for its sets; "" for none."""
    download: bool
    """Fetch the raw data into ``root`` if it is not there."""
    num_classes: int
    """Classes that must be found; 0 accepts any number."""
    image_size: int
    """Side of the square images that networks see, pixels; others are resized and cropped."""
    channels: Literal[1, 3]
    """Greyscale or RGB; images of another mode are converted."""
    storage: Literal["memory", "files"]
    """Decode all images once into memory, or read the files again in every epoch."""
    checksums: Literal["contents", "sizes"]
    """What the manifest records of raw files: hashes of contents, or (of very many) sizes."""
    on_checksum_mismatch: Literal["refuse", "warn"]
    """What to do with files already there that are not the published ones; a download that is
    not is always refused."""
    on_unreadable: Literal["refuse", "skip"]
    """What to do with images that cannot be decoded; both name them. ``skip`` must decode every
    file, also in ``files`` storage."""
    mean: tuple[float, ...]
    """Per-channel normalisation of pixels in [0, 1]; empty measures the training images."""
    std: tuple[float, ...]
    """As ``mean``."""
    val_fraction: float
    """Share of the training images held out for every choice that is made."""
    test_fraction: float
    """Share split off for the reported accuracy; 0 if the source has a test set of its own."""

    def __post_init__(self) -> None:
        total = self.val_fraction + self.test_fraction
        _check(
            0 < self.val_fraction < 1 and 0 <= self.test_fraction and total < 1,
            "val_fraction must be above 0, test_fraction at least 0, and both must leave training "
            f"images, got {self.val_fraction} and {self.test_fraction}",
        )
        _check(self.num_classes >= 0, f"num_classes must be ≥ 0, got {self.num_classes}")
        _check(self.image_size >= 1, f"image_size must be at least 1, got {self.image_size}")
        _check(
            len(self.mean) == len(self.std) and len(self.mean) in (0, self.channels),
            f"mean and std must be empty or have {self.channels} entries, got {list(self.mean)} "
            f"and {list(self.std)}",
        )
        _check(min(self.std, default=1) > 0, f"std must be above 0, got {list(self.std)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTeacherConfig:
    """The one base training run whose checkpoints become teachers (§3.3, Table 6)."""

    network: NetworkConfig
    """Teacher network; must have BatchNorm."""
    epochs: int
    """Epochs of the run, all of which are cached as checkpoints."""
    batch_size: int
    """Images per step."""
    optimizer: OptimizerConfig
    """Optimiser of the run."""
    views: ViewConfig
    """Training augmentation."""
    precision: Precision
    """Autocast dtype of forward and backward."""
    checkpoint: str
    """Take this converged network instead of training one: ``torchvision`` (its published
    ImageNet-1K weights) or a file; "" trains."""
    claimed_top1: float
    """Accuracy in percent that ``checkpoint`` is said to have on the test images."""

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, f"train_teacher.epochs must be at least 1, got {self.epochs}")
        _check(self.batch_size >= 2, f"train_teacher.batch_size must be ≥ 2, got {self.batch_size}")
        _check(
            self.network.arch != "convnet3" or self.network.norm == "batch",
            "train_teacher.network.norm must be batch: Eq. 7 matches the statistics stored in "
            f"BatchNorm layers, got {self.network.norm}",
        )
        _check(
            not self.checkpoint or 0 < self.claimed_top1 <= 100,
            "train_teacher.claimed_top1 must say what accuracy the checkpoint "
            f"{self.checkpoint!r} has on the test images, got {self.claimed_top1}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    """Pool of checkpoints along the base trajectory (§3.3; §4.1 of the specification)."""

    epochs: tuple[int, ...]
    """1-based epochs whose checkpoints are the members, ascending."""

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.epochs, self.epochs[1:], strict=False))
        _check(
            len(self.epochs) > 0 and self.epochs[0] >= 1 and ascending,
            f"pool.prior.epochs must be ascending 1-based epochs, got {list(self.epochs)}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PostConfig:
    """Pool of randomly pruned copies of the converged base (§3.3)."""

    size: int
    """Members; Table 6 prints 9 and 10."""
    pruning_ratio: float
    """Share of channels DepGraph removes from every layer, at random."""
    max_epochs: float
    """Fine-tuning stops here even if the target accuracy is not reached; the paper's 0–2."""
    checks_per_epoch: int
    """How often fine-tuning compares its held-out accuracy with the target."""
    lr: tuple[float, float]
    """Learning rates of first and last member, log-spaced between; the paper's 0.1–0.001."""
    batch_size: int
    """Images per step."""
    momentum: float
    """SGD momentum."""
    weight_decay: float
    """SGD weight decay."""
    views: ViewConfig
    """Augmentation while fine-tuning."""
    bn_recalibrate: bool
    """Re-estimate running statistics of members that were not fine-tuned (the paper does not)."""

    def __post_init__(self) -> None:
        _check(self.size >= 1, f"pool.post.size must be at least 1, got {self.size}")
        _check(self.batch_size >= 2, f"pool.post.batch_size must be ≥ 2, got {self.batch_size}")
        _check(0 <= self.momentum < 1, f"pool.post.momentum must be in [0, 1), got {self.momentum}")
        _check(
            0 <= self.pruning_ratio < 1,
            f"pool.post.pruning_ratio must be in [0, 1), got {self.pruning_ratio}",
        )
        _check(self.max_epochs >= 0, f"pool.post.max_epochs must be ≥ 0, got {self.max_epochs}")
        _check(
            self.checks_per_epoch >= 1,
            f"pool.post.checks_per_epoch must be at least 1, got {self.checks_per_epoch}",
        )
        _check(min(self.lr) > 0, f"pool.post.lr must be above 0, got {list(self.lr)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig:
    """How each kind of pool is made from the base run."""

    prior: PriorConfig
    """Checkpoints along the trajectory."""
    post: PostConfig
    """Pruned copies of the last checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthesizeConfig:
    """Image optimisation by Eq. 7; every convention the paper leaves open is a field."""

    initialise: Literal["noise", "real"]
    """Start from N(0, 1) in normalised space, or from random training images of the class."""
    iterations: int
    """Gradient steps per batch (Table 7)."""
    classes_per_batch: int
    """Classes optimised together, one chunk of them in index order (Table 7: 100)."""
    indices_per_batch: int
    """IPC indices optimised together; 1 unless the dataset has few classes (§8-16)."""
    lr: float
    """Adam learning rate, cosine to 0 over ``iterations`` (Table 7)."""
    betas: tuple[float, float]
    """Adam betas; Table 7 calls them momentum (§8-1)."""
    eps: float
    """Adam epsilon."""
    weight_decay: float
    """Coupled Adam decay of the pixels; Table 7 prints 1e-4, no peer applies it (§8-4)."""
    alpha_bn: float
    """Weight of the statistics term, α_BN."""
    first_bn_weight: float
    """Weight of the first BatchNorm layer within R_BN (§8-5)."""
    norm: Literal["l2", "l2_squared"]
    """Norm of the statistics' gap (§8-3)."""
    variance: Literal["biased", "unbiased"]
    """Which batch variance is compared with the stored one (§8-3)."""
    over_teachers: Literal["mean", "sum"]
    """How the statistics terms of the drawn teachers combine (§8-3)."""
    ensemble: Literal["logits", "probs", "loss"]
    """What the classifier prior averages over teachers (§8-7)."""
    draw: int
    """Teachers drawn from the pool at a time, k."""
    draw_per: Literal["index", "iteration"]
    """When teachers are drawn: once per group of IPC indices, or at every iteration (§8-6)."""
    views: ViewConfig
    """Random view of the images at every iteration."""
    views_per: Literal["batch", "image"]
    """One view shared by the batch, as SRe2L's code does, or one per image."""
    clip: bool
    """Clip to the valid pixel range after every step."""
    class_statistics: Literal["none", "per_class", "pooled"]
    """Stored statistics, or variants A and B of §8-21 from a pass over the training set."""
    gradient: Literal["auto", "two_pass", "joint"]
    """One teacher's graph at a time (exact, memory of k = 1), or all k at once (fewer forwards).
    ``auto``: the latter where it fits the machine's memory. They differ by rounding."""
    precision: Precision
    """Autocast dtype of the teachers; statistics and losses stay in float32."""

    def __post_init__(self) -> None:
        for name in ("iterations", "classes_per_batch", "indices_per_batch", "draw"):
            value = getattr(self, name)
            _check(value >= 1, f"synthesize.{name} must be at least 1, got {value}")
        _check(self.lr > 0, f"synthesize.lr must be above 0, got {self.lr}")
        _check(self.alpha_bn >= 0, f"synthesize.alpha_bn must be ≥ 0, got {self.alpha_bn}")
        _check(self.eps > 0, f"synthesize.eps must be above 0, got {self.eps}")
        _check_betas("synthesize", self.betas)
        if self.class_statistics == "per_class":
            _check(
                self.classes_per_batch == 1,
                "synthesize.class_statistics per_class needs synthesize.classes_per_batch 1: each "
                f"batch is matched to its own class, got {self.classes_per_batch}",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RelabelConfig:
    """Views of the distilled images that students train on, and their soft labels (§4.3)."""

    epochs: int
    """Epochs of student training, each with its own views."""
    views: ViewConfig
    """Random view of each image."""
    cutmix: bool
    """Paste a box of another image into every view, Beta(1, 1)."""
    ensemble: Literal["logits", "probs"]
    """What the soft label averages over the whole pool (§8-7)."""
    store: bool
    """Keep the labels in the file, or compute them while training; the students are the same."""

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, f"relabel.epochs must be at least 1, got {self.epochs}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Training of fresh students on the distilled set (§4.4, appendix D.3)."""

    network: NetworkConfig
    """Student network."""
    batch_size: int
    """Images per step."""
    optimizer: OptimizerConfig
    """Optimiser of the student."""
    temperature: float
    """Softmax temperature of the KL loss with soft labels (§8-8)."""
    temperature_squared: bool
    """Multiply the KL loss by the squared temperature."""
    seeds: tuple[int, ...]
    """One fresh student per seed."""
    eval_epochs: int
    """Test accuracy is measured every so many epochs, and after the last."""
    precision: Precision
    """Autocast dtype of forward and backward."""

    def __post_init__(self) -> None:
        _check(self.batch_size >= 2, f"evaluate.batch_size must be ≥ 2, got {self.batch_size}")
        _check(self.temperature > 0, f"evaluate.temperature must be > 0, got {self.temperature}")
        _check(self.eval_epochs >= 1, f"evaluate.eval_epochs must be ≥ 1, got {self.eval_epochs}")
        _check(
            len(self.seeds) == len(set(self.seeds)) > 0,
            f"evaluate.seeds must be distinct, got {list(self.seeds)}",
        )


STAGES: dict[str, type] = {
    "prepare": PrepareConfig,
    "train_teacher": TrainTeacherConfig,
    "pool": PoolConfig,
    "synthesize": SynthesizeConfig,
    "relabel": RelabelConfig,
    "evaluate": EvaluateConfig,
}

# ------------------------------------------------------------------------------------ row types


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseRow:
    """A base training run, ``models/<name>``; further keys override ``train_teacher``."""

    dataset: str
    """Key of ``datasets``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolRow:
    """A pool of teachers, ``models/<name>``; further keys override ``pool``."""

    dataset: str
    """Key of ``datasets``."""
    base: str
    """Key of ``bases``."""
    curve: str
    """Key of ``bases`` whose accuracy curve post members imitate; usually ``base`` itself."""
    kind: Literal["converged", "prior", "post"]
    """The last checkpoint alone (SRe2L), checkpoints of the trajectory, or pruned copies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetRow:
    """A distilled set with its labels and score; further keys override ``synthesize``."""

    dataset: str
    """Key of ``datasets``."""
    method: str
    """Key of ``methods``."""
    pool: str
    """Key of ``pools``: the teachers that make the images and label them."""
    ipc: int
    """Images per class."""

    def __post_init__(self) -> None:
        _check(self.ipc >= 1, f"ipc must be at least 1, got {self.ipc}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodRow:
    """A line of the tables."""

    title: str
    """Name shown in tables and figures."""
    images: Literal["synthesised", "random"]
    """Optimised by Eq. 7, or a random subset of the training images."""
    labels: tuple[Literal["hard", "soft"], ...]
    """Kinds of labels that students are trained with."""
    paper: str
    """Name of the method in the paper's tables, or "" if it is not there."""

    def __post_init__(self) -> None:
        _check(
            len(self.labels) == len(set(self.labels)) > 0,
            f"labels must be hard, soft or both, got {list(self.labels)}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRow:
    """Facts about a dataset that no stage depends on."""

    title: str
    """Name shown in tables and figures."""
    paper: str
    """Name of the dataset in the paper's tables, or "" if it is not there."""


# ------------------------------------------------------------------------------------ the file


class Params:
    """All of ``params.yaml``, checked as a whole when it is read.

    Raises:
        TeddyError: not readable, a missing or unknown key, a value of the wrong type or out of
            range, a row whose parent does not exist or belongs to another dataset.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = read_yaml(path)
        known = {"seed", "prepared", "datasets", "methods", "bases", "pools", "sets", *STAGES}
        _refuse_unknown(set(self._raw), known, self._where(""))
        for key in sorted(known - set(self._raw)):
            raise TeddyError(f"{self._where('')} lacks the key {key!r}")
        self.seed: int = _convert(int, self._raw["seed"], self._where("seed"))
        self.datasets = {
            name: _build(
                DatasetRow,
                {k: v for k, v in self._raw_section("datasets", name).items() if k not in STAGES},
                self._where(f"datasets.{name}"),
            )
            for name in self._mapping("datasets")
        }
        self.methods = {
            name: _build(MethodRow, section, self._where(f"methods.{name}"))
            for name, section in self._mapping("methods").items()
        }
        self.prepared: tuple[str, ...] = _convert(
            tuple[str, ...], self._raw["prepared"], self._where("prepared")
        )
        self.bases = self._rows("bases", BaseRow)
        self.pools = self._rows("pools", PoolRow)
        self.sets = self._rows("sets", SetRow)
        self._check_all()

    # -- what stages ask for

    def prepare(self, dataset: str) -> PrepareConfig:
        """Settings of one dataset's preparation."""
        self._known("datasets", dataset)
        return self._resolve(PrepareConfig, "prepare", dataset)

    def train_teacher(self, base: str) -> TrainTeacherConfig:
        """Settings of one base run."""
        row = self._known("bases", base)
        return self._resolve(
            TrainTeacherConfig, "train_teacher", row.dataset, f"bases.{base}", BaseRow
        )

    def pool(self, pool: str) -> PoolConfig:
        """Settings of one pool."""
        row = self._known("pools", pool)
        return self._resolve(PoolConfig, "pool", row.dataset, f"pools.{pool}", PoolRow)

    def synthesize(self, name: str) -> SynthesizeConfig:
        """Settings of one distilled set."""
        row = self._known("sets", name)
        return self._resolve(SynthesizeConfig, "synthesize", row.dataset, f"sets.{name}", SetRow)

    def relabel(self, name: str) -> RelabelConfig:
        """Settings of one set's labels."""
        return self._resolve(RelabelConfig, "relabel", self._known("sets", name).dataset)

    def evaluate(self, name: str) -> EvaluateConfig:
        """Settings of one set's students."""
        return self._resolve(EvaluateConfig, "evaluate", self._known("sets", name).dataset)

    def row(self, section: Literal["bases", "pools", "sets", "datasets"], name: str) -> Any:
        """A declared row.

        Raises:
            TeddyError: no row of that name; lists the nearest.
        """
        return self._known(section, name)

    # -- checks

    def _check_all(self) -> None:
        for name in self.prepared:
            self._parent("prepared", name, "datasets", name)
        for name in self.datasets:
            self.prepare(name)
            for stage, cls in STAGES.items():
                self._resolve(cls, stage, name)
        for name, base in self.bases.items():
            self._check_prepared("bases", name, base.dataset)
            self.train_teacher(name)
        for name, pool in self.pools.items():
            self._check_prepared("pools", name, pool.dataset)
            for parent in (pool.base, pool.curve):
                base = self._parent("pools", name, "bases", parent)
                self._same_dataset("pools", name, pool.dataset, parent, base.dataset)
            network = self.train_teacher(pool.base).network
            _check(
                pool.kind != "post" or network.prunable,
                f"{self._where(f'pools.{name}')}: {network.arch} cannot be pruned; choose kind "
                "prior or converged",
            )
            if pool.kind != "converged":
                self._check_trajectory(name, pool)
        cells: dict[tuple[str, str, int], str] = {}
        for name, row in self.sets.items():
            self._check_set(name, row)
            other = cells.setdefault((row.dataset, row.method, row.ipc), name)
            _check(
                other == name,
                f"{self._where(f'sets.{name}')} and {other!r} would share a place in the tables; "
                "give one a method of its own (an entry under methods)",
            )

    def _check_trajectory(self, name: str, row: PoolRow) -> None:
        base = row.base if row.kind == "prior" else row.curve
        config, last = self.train_teacher(base), self.pool(name).prior.epochs[-1]
        epochs = 1 if config.checkpoint else config.epochs
        _check(
            last <= epochs,
            f"{self._where(f'pools.{name}')}: pool.prior.epochs reaches epoch {last}, but the base "
            f"run {base!r} ends at epoch {epochs}",
        )

    def _check_set(self, name: str, row: SetRow) -> None:
        self._check_prepared("sets", name, row.dataset)
        method = self._parent("sets", name, "methods", row.method)
        pool = self._parent("sets", name, "pools", row.pool)
        self._same_dataset("sets", name, row.dataset, row.pool, pool.dataset)
        config = self.synthesize(name)
        self.relabel(name), self.evaluate(name)
        if method.images == "random":
            return
        size = self.pool_size(row.pool)
        _check(
            config.draw <= size,
            f"{self._where(f'sets.{name}')}: synthesize.draw is {config.draw}, but the pool "
            f"{row.pool!r} has {size} member{'s' if size > 1 else ''}",
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
                f"{_suggest(parent, getattr(self, parents))}"
            )
        return getattr(self, parents)[parent]

    def _check_prepared(self, section: str, name: str, dataset: str) -> None:
        self._parent(section, name, "datasets", dataset)
        _check(
            dataset in self.prepared,
            f"{self._where(f'{section}.{name}')} needs the dataset {dataset!r}: add it to the list "
            f"'prepared', which has {', '.join(self.prepared) or 'nothing'}",
        )

    def _same_dataset(self, section: str, name: str, mine: str, parent: str, its: str) -> None:
        _check(
            mine == its,
            f"{self._where(f'{section}.{name}')} is of dataset {mine!r}, but its parent "
            f"{parent!r} is of {its!r}",
        )

    def _known(self, section: str, name: str) -> Any:
        rows = getattr(self, section)
        if name not in rows:
            raise TeddyError(f"{self.path}: no row {name!r} in {section!r}; {_suggest(name, rows)}")
        return rows[name]

    # -- layers

    def _resolve(
        self,
        cls: type[T],
        stage: str,
        dataset: str,
        row: str = "",
        row_type: type | None = None,
    ) -> T:
        merged = _merge(
            self._raw_section(stage),
            self._raw_section("datasets", dataset, stage),
            self._where(f"datasets.{dataset}.{stage}"),
        )
        if row and row_type:
            identity = {field.name for field in dataclasses.fields(row_type)}
            section, name = row.split(".", 1)
            overrides = {k: v for k, v in self._raw[section][name].items() if k not in identity}
            merged = _merge(merged, overrides, self._where(row))
        return _build(cls, merged, self._where(f"{stage} (for {row or dataset})"))

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
            own = {key: value for key, value in raw.items() if key in identity}
            rows[name] = _build(cls, own, self._where(f"{section}.{name}"))
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


def to_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON-able values."""
    return dataclasses.asdict(config)


def from_json(cls: type[T], record: Section, where: str) -> T:
    """The inverse of :func:`to_json`, with the same checks as ``params.yaml``."""
    return _build(cls, record, where)


# --------------------------------------------------------------------------------- the machinery


def read_yaml(path: Path) -> Section:
    """The keys of a YAML file.

    Raises:
        TeddyError: not readable, not YAML, or not a mapping.
    """
    # YAML 1.2 (ruamel): PyYAML reads 1e-3 as a string and off as a boolean.
    try:
        raw = YAML(typ="safe").load(path)
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error
    except YAMLError as error:
        raise TeddyError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, Mapping):
        raise TeddyError(f"{path}: expected keys, got {raw!r}")
    return raw


def _merge(base: Section, override: Section, where: str) -> dict[str, Any]:
    _refuse_unknown(set(override), set(base), where)
    merged = dict(base)
    for key, value in override.items():
        if isinstance(base[key], Mapping):
            if not isinstance(value, Mapping):
                raise TeddyError(f"{where}.{key}: expected keys, got {value!r}")
            merged[key] = _merge(base[key], value, f"{where}.{key}")
        else:
            merged[key] = value
    return merged


def _build(cls: type[T], section: Section, where: str) -> T:
    if not isinstance(section, Mapping):
        raise TeddyError(f"{where}: expected keys, got {section!r}")
    hints = typing.get_type_hints(cls)
    _refuse_unknown(set(section), set(hints), where)
    missing = [name for name in hints if name not in section]
    if missing:
        raise TeddyError(f"{where} lacks the key {missing[0]!r}")
    values = {
        name: _convert(kind, section[name], f"{where}.{name}") for name, kind in hints.items()
    }
    try:
        return cls(**values)
    except TeddyError as error:
        raise TeddyError(f"{where}: {error}") from None


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            choices = ", ".join(map(str, arguments))
            raise TeddyError(f"{where} must be one of {choices}; got {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin in (Union, types.UnionType):
        raise NotImplementedError(kind)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise TeddyError(f"{where} must be finite; got {value!r}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TeddyError(f"{where} must be {_article(kind)}; got {value!r}")
    return value


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TeddyError(f"{where} must be a list; got {value!r}")
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise TeddyError(f"{where} must have {len(arguments)} entries; got {value!r}")
    return tuple(_convert(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def _refuse_unknown(given: set[str], known: set[str], where: str) -> None:
    for key in sorted(given - known):
        raise TeddyError(f"{where}: unknown key {key!r}; {_suggest(str(key), known)}")


def _suggest(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    choices = ", ".join(sorted(known))
    return f"did you mean {close[0]!r}?" if close else f"expected one of: {choices}"
