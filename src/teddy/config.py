"""``params.yaml`` as frozen dataclasses; the only code that reads it.

A stage's settings are resolved in three layers, each overriding only what it names:

1. the top-level section of the stage (``synthesize:``), the defaults of the paper;
2. ``datasets.<dataset>.<stage>``, what differs for that dataset;
3. the row of the artifact (``sets.<name>``), what differs for that artifact. A row of ``scores``
   lies on top of the row of its set.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class DsaConfig:
    """Differentiable siamese augmentation (§8-18); see :mod:`teddy.dsa` for what strengths mean."""

    operations: tuple[Literal["color", "crop", "cutout", "flip", "scale", "rotate"], ...]
    """One of them, equally likely, is applied to a batch."""
    scale: float
    """Largest factor of both axes; the smallest is its inverse."""
    rotate: float
    """Largest angle, degrees."""
    crop: float
    """Largest shift, share of the side."""
    cutout: float
    """Side of the hole, share of the image's."""
    brightness: float
    """Range of what is added to normalised pixels."""
    saturation: float
    """Range of the factor of colourfulness, around 1."""
    contrast: float
    """Largest change of the factor of contrast from 1."""

    def __post_init__(self) -> None:
        _check(len(self.operations) > 0, "dsa.operations must name at least one operation")
        _check(self.scale >= 1, f"dsa.scale must be at least 1, got {self.scale}")
        for name in ("rotate", "crop", "cutout", "brightness", "saturation", "contrast"):
            value = getattr(self, name)
            _check(value >= 0, f"dsa.{name} must be ≥ 0, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DmConfig:
    """Distribution matching, the images of a method ``dm`` (Table 5)."""

    network: NetworkConfig
    """A freshly initialised one embeds the images at every iteration; never BatchNorm, whose
    statistics would mix classes."""
    iterations: int
    """Gradient steps."""
    real_batch: int
    """Real images per class and iteration; all of a smaller class."""
    lr: float
    """SGD learning rate of the pixels."""
    momentum: float
    """SGD momentum of the pixels."""

    def __post_init__(self) -> None:
        _check(
            self.network.arch == "convnet3" and self.network.norm != "batch",
            "dm.network must be convnet3 without BatchNorm, got "
            f"{self.network.arch} with norm {self.network.norm}",
        )
        _check(self.iterations >= 1, f"dm.iterations must be at least 1, got {self.iterations}")
        _check(self.real_batch >= 1, f"dm.real_batch must be at least 1, got {self.real_batch}")
        _check(self.lr > 0, f"dm.lr must be above 0, got {self.lr}")
        _check(0 <= self.momentum < 1, f"dm.momentum must be in [0, 1), got {self.momentum}")


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
    keep: tuple[float, float]
    """Bounds of the share of training images that a class keeps, drawn uniformly for each class
    (Table 3, §8-20); ``[1, 1]`` keeps all."""

    def __post_init__(self) -> None:
        _check(
            0 < self.keep[0] <= self.keep[1] <= 1,
            f"keep must be [low, high] with 0 < low ≤ high ≤ 1, got {list(self.keep)}",
        )
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
    augmentation: Literal["views", "dsa"]
    """What images go through at every iteration."""
    views: ViewConfig
    """Random view of the images at every iteration."""
    dsa: DsaConfig
    """The alternative to ``views``; one operation per iteration."""
    views_per: Literal["batch", "image"]
    """One view shared by the batch, as SRe2L's code does, or one per image."""
    clip: bool
    """Clip to the valid pixel range after every step."""
    class_statistics: Literal["none", "per_class", "pooled"]
    """Stored statistics, or variants A and B of §8-21 from a pass over the training set."""
    gradient: Literal["auto", "two_pass", "joint"]
    """One teacher's graph at a time (exact, memory of k = 1), or all k at once (fewer forwards).
    ``auto``: the latter where it fits the machine's memory. They differ by rounding."""
    dm: DmConfig
    """Distribution matching, for methods whose images it makes instead of Eq. 7. Of the other
    settings it uses ``initialise``, ``classes_per_batch``, ``dsa`` (always), ``clip`` and
    ``precision``."""
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
    augmentation: Literal["views", "dsa"]
    """What images go through in every epoch."""
    views: ViewConfig
    """Random view of each image."""
    dsa: DsaConfig
    """The alternative to ``views``; one operation per batch of a student, so that there are no soft
    labels with it."""
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
    divergence: bool
    """Also measure the KL divergence between students and each member of the pool (Fig. 2c)."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinualConfig:
    """Class-incremental learning (Fig. 3e, §8-24), the same for all datasets and methods."""

    steps: int
    """In how many steps the classes arrive."""
    orders: tuple[int, ...]
    """Seeds of the orders in which they do, each a run of its own."""

    def __post_init__(self) -> None:
        _check(self.steps >= 1, f"continual.steps must be at least 1, got {self.steps}")
        _check(
            len(self.orders) == len(set(self.orders)) > 0,
            f"continual.orders must be distinct, got {list(self.orders)}",
        )


# ------------------------------------------------------------------------------------ row types


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRow:
    """Prepared images, ``data/prepared/<name>``; further keys override ``prepare``."""

    dataset: str
    """Key of ``datasets``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseRow:
    """A base training run, ``models/<name>``; further keys override ``train_teacher``."""

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``: the images to train on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolRow:
    """A pool of teachers, ``models/<name>``; further keys override ``pool``."""

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``."""
    base: str
    """Key of ``bases``."""
    curve: str
    """Key of ``bases`` whose accuracy curve post members imitate; usually ``base`` itself."""
    kind: Literal["converged", "prior", "post"]
    """The last checkpoint alone (SRe2L), checkpoints of the trajectory, or pruned copies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetRow:
    """A distilled set with its labels and score; further keys override ``synthesize``.

    The keys ``relabel`` and ``evaluate`` override those stages for its own labels and score.
    """

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``: real images for random sets, real initialisation and statistics, and
    the test images."""
    method: str
    """Key of ``methods``."""
    pool: str
    """Key of ``pools``: the teachers that make the images and label them."""
    ipc: int
    """Images per class."""
    repeat: int = 0
    """0, which rows need not say, is the experiment's own synthesis; other numbers are repeats, all
    of whose randomness differs."""

    def __post_init__(self) -> None:
        _check(self.ipc >= 1, f"ipc must be at least 1, got {self.ipc}")
        _check(self.repeat >= 0, f"repeat must be ≥ 0, got {self.repeat}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    """Another score of a set: other labels or other students, without another synthesis.

    Its only further keys are ``relabel`` and ``evaluate``, which override those stages.
    """

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``: the test images."""
    set: str
    """Key of ``sets``: the images."""
    pool: str
    """Key of ``pools``: the teachers that label them."""
    members: int
    """Label with so many members, evenly spaced over the pool (Fig. 3b); 0 takes all."""
    labels: tuple[Literal["hard", "soft"], ...]
    """Kinds of labels that students are trained with."""

    def __post_init__(self) -> None:
        _check(self.members >= 0, f"members must be ≥ 0, got {self.members}")
        _check_labels(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTeachersRow:
    """Base runs on the classes of each step of continual learning alone, ``models/<name>``; further
    keys override ``train_teacher``.
    """

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``: the images to train on."""
    checkpoints: tuple[int, ...]
    """1-based epochs whose checkpoints are kept, ascending."""

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.checkpoints, self.checkpoints[1:], strict=False))
        _check(
            len(self.checkpoints) > 0 and self.checkpoints[0] >= 1 and ascending,
            f"checkpoints must be ascending 1-based epochs, got {list(self.checkpoints)}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamRow:
    """Continual learning on a set, ``metrics/streams/<name>.json``.

    Its only further keys are ``relabel`` and ``evaluate``, which override those stages; what its
    set overrides of them does not hold here.
    """

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``: the test images, and real ones for strict teachers."""
    set: str
    """Key of ``sets``: the images, or how they are made by strict teachers."""
    pool: str
    """Key of ``pools``: the teachers that label, or the epochs of strict ones."""
    teachers: str
    """``pool`` itself (paper-like), or a key of ``step_teachers`` (strict)."""
    labels: tuple[Literal["hard", "soft"], ...]
    """Kinds of labels that students are trained with."""

    def __post_init__(self) -> None:
        _check_labels(self.labels)

    @property
    def strict(self) -> bool:
        """Whether teachers only know the classes of their own step."""
        return self.teachers != self.pool


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaf:
    """What a score is of: a row of ``scores``, or the default score of a row of ``sets``."""

    name: str
    """The row, and the path of its record in ``metrics/runs``."""
    dataset: str
    data: str
    set: str
    method: str
    ipc: int
    pool: str
    members: int
    labels: tuple[str, ...]


def _check_labels(labels: tuple[str, ...]) -> None:
    _check(
        len(labels) == len(set(labels)) > 0,
        f"labels must be hard, soft or both, got {list(labels)}",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodRow:
    """A line of the tables."""

    title: str
    """Name shown in tables and figures."""
    images: Literal["synthesised", "random", "dm"]
    """Optimised by Eq. 7, a random subset of the training images, or distribution matching."""
    labels: tuple[Literal["hard", "soft"], ...]
    """Kinds of labels that students are trained with."""
    paper: str
    """Name of the method in the paper's tables, or "" if it is not there."""

    def __post_init__(self) -> None:
        _check_labels(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRow:
    """Facts about a dataset that no stage depends on."""

    title: str
    """Name shown in tables and figures."""
    paper: str
    """Name of the dataset in the paper's tables, or "" if it is not there."""


_ROWS: dict[str, tuple[type, str, tuple[str, ...]]] = {
    "prepared": (PreparedRow, "prepare", ()),
    "bases": (BaseRow, "train_teacher", ()),
    "pools": (PoolRow, "pool", ()),
    "sets": (SetRow, "synthesize", ("relabel", "evaluate")),
    "scores": (ScoreRow, "", ("relabel", "evaluate")),
    "step_teachers": (StepTeachersRow, "train_teacher", ()),
    "streams": (StreamRow, "", ("relabel", "evaluate")),
}
"""Sections of rows: their type, the stage that further keys override, and the stages that keys of
their own names override."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fig1Config:
    """Cost of one update of a synthetic set: unrolled (Eq. 1), first-order (Eq. 11), Eq. 7."""

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``; of that dataset."""
    ipc: int
    """Images per class of the set that is updated."""
    student: NetworkConfig
    """Network of the inner loop; its norm must not keep running statistics."""
    teacher: NetworkConfig
    """Network whose statistics Eq. 7 matches; the student's convolutions with BatchNorm."""
    inner_steps: tuple[int, ...]
    """T, ascending."""
    inner_lr: float
    """eta; costs do not depend on it."""
    real_images: int
    """Real images that l(T; theta) is computed on."""
    batch_size: int
    """Images that Teddy updates at a time; the rest of the set follows in further batches."""
    draws: tuple[int, ...]
    """Teachers of an update of Teddy, k."""
    repeats: int
    """Timed updates after an untimed one; the median is reported."""

    def __post_init__(self) -> None:
        _check(
            self.student.norm in ("instance", "group", "none"),
            f"student.norm must not be batch, got {self.student.norm}",
        )
        _check(self.teacher.norm == "batch", f"teacher.norm must be batch, got {self.teacher.norm}")
        for name in ("inner_steps", "draws"):
            values = getattr(self, name)
            _check(
                len(values) > 0 and min(values) >= 1 and list(values) == sorted(set(values)),
                f"{name} must be ascending and at least 1, got {list(values)}",
            )
        for name in ("ipc", "real_images", "batch_size", "repeats"):
            value = getattr(self, name)
            _check(value >= 1, f"{name} must be at least 1, got {value}")
        _check(self.inner_lr > 0, f"inner_lr must be above 0, got {self.inner_lr}")


TaylorObjective = Literal["exact", "first_order", "gradient_matching", "statistics_matching"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fig5Config:
    """The same set optimised with the exact meta-gradient and with its approximations."""

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``; of that dataset."""
    width: int
    """Channels of the plain ConvNet."""
    depth: int
    """Its blocks, each of which halves the image."""
    ipc: int
    """Images per class."""
    initialise: Literal["noise", "real"]
    """What the images are at first."""
    inner_steps: int
    """T."""
    inner_lr: float
    """eta."""
    real_per_class: int
    """Real training images of each class that l(T; theta) is computed on."""
    objectives: tuple[TaylorObjective, ...]
    """Eq. 1, Eq. 11, Eq. 13, Eq. 19; the first is what the others are compared with."""
    classifier_weight: float
    """lambda of Eq. 19; the other objectives have none."""
    iterations: int
    """Outer steps; each draws its own theta_0."""
    lr: float
    """Outer learning rate, of Adam on normalised pixels."""
    betas: tuple[float, float]
    """Of the outer Adam."""
    measured_inits: int
    """Initialisations theta_0 that a set is measured with, the same at every iteration."""
    seeds: tuple[int, ...]
    """Independent repetitions: initial images, real images and all theta_0."""
    law_lrs: tuple[float, ...]
    """Values of eta for the measured order of the error, descending."""
    law_steps: tuple[int, ...]
    """Values of T for it."""

    def __post_init__(self) -> None:
        _check_betas("fig5", self.betas)
        _check(
            self.objectives[:1] == ("exact",) and len(set(self.objectives)) == len(self.objectives),
            f"objectives must begin with exact and differ, got {list(self.objectives)}",
        )
        for name in ("width", "depth", "ipc", "inner_steps", "real_per_class", "iterations",
                     "measured_inits"):  # fmt: skip
            value = getattr(self, name)
            _check(value >= 1, f"{name} must be at least 1, got {value}")
        _check(len(self.seeds) > 0, "seeds must not be empty")
        _check(min(self.inner_lr, self.lr) > 0, "inner_lr and lr must be above 0")
        _check(self.classifier_weight >= 0, "classifier_weight must be at least 0")
        _check(
            len(self.law_lrs) > 1
            and min(self.law_lrs) > 0
            and list(self.law_lrs) == sorted(set(self.law_lrs), reverse=True),
            f"law_lrs must be two or more, descending, above 0; got {list(self.law_lrs)}",
        )
        _check(min(self.law_steps, default=0) >= 1, "law_steps must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class TheoryConfig:
    """How the paper's equations are checked numerically."""

    step_sizes: tuple[float, ...]
    """eta of the error laws, each half of the one before."""
    num_steps: int
    """T of Proposition 1's checks."""
    lengths: tuple[int, ...]
    """T of the growth of the error with T, each twice the one before."""
    length_lr: float
    """eta of that growth."""
    segment_steps: int
    """k of Eq. 20."""
    bound_draws: int
    """Random cases of every inequality."""
    isotropic_draws: tuple[int, ...]
    """Draws of W of the Monte-Carlo means, ascending; the last decides."""
    tau: float
    """Standard deviation of W's entries."""
    exact_tolerance: float
    """Relative error allowed between two forms of one number, float64."""
    difference_tolerance: float
    """Absolute error allowed between a gradient and a difference quotient."""
    order_tolerance: float
    """Error allowed in a measured order of convergence at the smallest two steps."""
    standard_errors: float
    """Deviation allowed of a Monte-Carlo mean, in its own standard errors."""

    def __post_init__(self) -> None:
        halves = all(
            math.isclose(a, 2 * b)
            for a, b in zip(self.step_sizes, self.step_sizes[1:], strict=False)
        )
        _check(
            len(self.step_sizes) > 1 and halves and self.step_sizes[-1] > 0,
            f"step_sizes must halve and be above 0, got {list(self.step_sizes)}",
        )
        doubles = all(b == 2 * a for a, b in zip(self.lengths, self.lengths[1:], strict=False))
        _check(
            len(self.lengths) > 1 and doubles and self.lengths[0] >= 1,
            f"lengths must double from 1 or more, got {list(self.lengths)}",
        )
        draws = self.isotropic_draws
        _check(
            len(draws) > 0 and draws[0] > 1 and list(draws) == sorted(set(draws)),
            f"isotropic_draws must be ascending and above 1, got {list(draws)}",
        )
        for name in ("num_steps", "segment_steps", "bound_draws"):
            value = getattr(self, name)
            _check(value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("length_lr", "tau", "exact_tolerance", "difference_tolerance",
                     "order_tolerance", "standard_errors"):  # fmt: skip
            value = getattr(self, name)
            _check(value > 0, f"{name} must be above 0, got {value}")


EXPERIMENTS = ("fig1", "fig5", "theory")
"""Sections that stand beside the chain of stages; a file may lack those it does not run."""


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
        known = {"seed", "continual", "datasets", "methods", "targets", *_ROWS, *STAGES}
        _refuse_unknown(set(self._raw), known | set(EXPERIMENTS), self._where(""))
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
        self.prepared = self._rows("prepared", PreparedRow)
        self.bases = self._rows("bases", BaseRow)
        self.pools = self._rows("pools", PoolRow)
        self.sets = self._rows("sets", SetRow)
        self.scores = self._rows("scores", ScoreRow)
        self.continual = _build(
            ContinualConfig, self._raw_section("continual"), self._where("continual")
        )
        self.step_teachers = self._rows("step_teachers", StepTeachersRow)
        self.streams = self._rows("streams", StreamRow)
        self.targets: dict[str, tuple[str, ...]] = {
            name: _convert(tuple[str, ...], rows, self._where(f"targets.{name}"))
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
            _check(
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
                        f"{_suggest(name, (*self.sets, *self.scores, *self.streams))}"
                    )
            _check(
                len(names) == len(set(names)),
                f"{self._where(f'targets.{target}')}: a row stands there twice",
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
        self._check_prepared("sets", name, row)
        method = self._parent("sets", name, "methods", row.method)
        pool = self._parent("sets", name, "pools", row.pool)
        self._same_dataset("sets", name, row.dataset, row.pool, pool.dataset)
        config = self.synthesize(name)
        self._check_labels(self._where(f"sets.{name}"), name, method.labels)
        if method.images != "synthesised":
            return
        size = self.pool_size(row.pool)
        _check(
            config.draw <= size,
            f"{self._where(f'sets.{name}')}: synthesize.draw is {config.draw}, but the pool "
            f"{row.pool!r} has {size} member{'s' if size > 1 else ''}",
        )

    def _check_score(self, name: str, row: ScoreRow) -> None:
        where = self._where(f"scores.{name}")
        _check(name not in self.sets, f"{where}: there is a set of that name too; rename one")
        self._check_prepared("scores", name, row)
        parent = self._parent("scores", name, "sets", row.set)
        self._same_dataset("scores", name, row.dataset, row.set, parent.dataset)
        pool = self._parent("scores", name, "pools", row.pool)
        self._same_dataset("scores", name, row.dataset, row.pool, pool.dataset)
        self._check_labels(where, name, row.labels)
        size = self.pool_size(row.pool)
        _check(
            row.members <= size,
            f"{where}: members is {row.members}, but the pool {row.pool!r} has {size}",
        )

    def _check_stream(self, name: str, row: StreamRow) -> None:
        where = self._where(f"streams.{name}")
        _check(
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
        _check(
            self.pools[row.pool].kind != "post",
            f"{where}: strict teachers cannot be pruned copies; choose a prior or converged pool",
        )
        missing = sorted(set(self.step_epochs(name)) - set(teachers.checkpoints))
        _check(
            not missing,
            f"{where} needs epoch {missing[0] if missing else ''} of step_teachers."
            f"{row.teachers}, whose checkpoints do not have it",
        )

    def _check_step_teachers(self, name: str, row: StepTeachersRow) -> None:
        self._check_prepared("step_teachers", name, row)
        config = self.train_step_teachers(name)
        where = self._where(f"step_teachers.{name}")
        _check(
            row.checkpoints[-1] <= config.epochs,
            f"{where}: checkpoints reach epoch {row.checkpoints[-1]}, but the runs end at epoch "
            f"{config.epochs}",
        )
        _check(not config.checkpoint, f"{where}: train_teacher.checkpoint must be ''")

    def _check_labels(self, where: str, name: str, labels: tuple[str, ...]) -> None:
        self.evaluate(name)
        _check(
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
                f"{_suggest(parent, getattr(self, parents))}"
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

    def _either(self, name: str) -> Literal["sets", "scores"]:
        for section in ("sets", "scores"):
            if name in getattr(self, section):
                return section
        known = (*self.sets, *self.scores)
        raise TeddyError(f"{self.path}: no set or score named {name!r}; {_suggest(name, known)}")

    def _chain(self, name: str) -> tuple[tuple[str, str], ...]:
        """Rows that settings of a score come from, the later ones on top."""
        if name in self.streams:
            return (("streams", name),)
        if self._either(name) == "sets":
            return (("sets", name),)
        return ("sets", self.scores[name].set), ("scores", name)

    # -- experiments

    def _experiment(self, name: str, cls: type[T]) -> T:
        config = _build(cls, self._raw_section(name), self._where(name))
        if isinstance(config, Fig1Config | Fig5Config):
            known = ", ".join(self.prepared) or "nothing"
            where = f"{self._where(name)} needs the data {config.data!r}"
            _check(config.data in self.prepared, f"{where}; 'prepared' has {known}")
            row = self.prepared[config.data]
            _check(
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
        merged = _merge(
            self._raw_section(stage),
            self._raw_section("datasets", dataset, stage),
            self._where(f"datasets.{dataset}.{stage}"),
        )
        for section, name in rows:
            if section != "datasets":
                where = self._where(f"{section}.{name}")
                merged = _merge(merged, self._overrides(section, name, stage), where)
        where = name if section == "datasets" else f"{section}.{name}"
        return _build(cls, merged, self._where(f"{stage} (for {where})"))

    def _overrides(self, section: str, name: str, stage: str) -> Section:
        """What a row says of a stage: by its further keys, or under the stage's name."""
        cls, own, nested = _ROWS[section]
        raw = self._raw[section][name]
        if stage in nested:
            found = raw.get(stage, {})
            _check(
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
            _, stage, nested = _ROWS[section]
            own = {key: value for key, value in raw.items() if key in identity}
            if not stage:
                _refuse_unknown(set(raw), identity | set(nested), self._where(f"{section}.{name}"))
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
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    may_lack = {field.name for field in fields if field.default is not dataclasses.MISSING}
    missing = [name for name in hints if name not in section and name not in may_lack]
    if missing:
        raise TeddyError(f"{where} lacks the key {missing[0]!r}")
    values = {
        name: _convert(kind, section[name], f"{where}.{name}")
        for name, kind in hints.items()
        if name in section
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
