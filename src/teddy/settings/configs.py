"""Settings of the stages: the sections of the parameter files, which datasets and rows override.

No field has a default here: a value lives in ``params.yaml`` alone. Ranges stand in the types; what
concerns several fields is checked in ``__post_init__``.
"""

import math
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from teddy.core.errors import TeddyError
from teddy.core.user_code import is_reference
from teddy.settings.schema import check, settings, shown, suggest

Whole = Annotated[int, Ge(0), Le(10**9)]
Count = Annotated[int, Ge(1), Le(10**9)]
Batch = Annotated[int, Ge(2), Le(10**9)]
"""Images of a step; BatchNorm needs two."""
Epochs = Annotated[int, Ge(1), Le(10**5)]
"""What is kept of every one, checkpoints or labels, is listed before any work."""
Members = Annotated[int, Ge(1), Le(10**4)]
"""Teachers, each of which is a file."""
Channels = Annotated[int, Ge(1), Le(2**14)]
"""One convolution of so many has 9 GiB of weights already."""
Seed = Annotated[int, Ge(0), Lt(2**63)]
Shift = Annotated[int, Ge(-4096), Le(4096)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Momentum = Annotated[float, Ge(0), Lt(1)]
Betas = tuple[Momentum, Momentum]


# --------------------------------------------------------------------------- parts of sections


ARCHITECTURES = (
    "convnet3", "resnet18", "resnet50", "resnet101", "densenet121", "mobilenet_v2",
    "shufflenet_v2_x1_0", "shufflenet_v2_x2_0", "efficientnet_b0",
)  # fmt: skip


@settings
class NetworkConfig:
    """Architecture of a teacher or student."""

    arch: str
    """``convnet3`` of DM (three conv blocks); one of torchvision's in :data:`ARCHITECTURES`; or a
    class of your own, ``path/to/file.py:Name``."""
    width: Channels
    """Channels of ``convnet3``; torchvision's networks have their own and ignore it."""
    norm: Literal["batch", "instance", "group", "none"]
    """Normalisation of ``convnet3``; teachers need ``batch``, which torchvision's networks have."""

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES and not is_reference(self.arch):
            raise TeddyError(
                f"arch must be path/to/file.py:Name or known, got {shown(self.arch)}; "
                f"{suggest(self.arch, ARCHITECTURES)}"
            )
        check(
            self.arch == "convnet3" or self.norm == "batch",
            f"norm must be batch with arch {self.arch}, got {self.norm}",
        )
        check(
            self.norm != "group" or self.width % 4 == 0,
            f"width must be a multiple of 4 for group norm, got {self.width}",
        )

    @property
    def prunable(self) -> bool:
        """Whether it can be pruned, so that it can be the base of a post pool."""
        return not self.arch.startswith("shufflenet")


@settings
class OptimizerConfig:
    """Optimiser and learning-rate schedule of a supervised run."""

    name: Literal["sgd", "adamw"]
    """Which optimiser."""
    lr: Positive
    """Base learning rate."""
    momentum: Momentum
    """SGD momentum; AdamW ignores it."""
    betas: Betas
    """AdamW betas; SGD ignores them."""
    weight_decay: NotNegative
    """Decoupled (AdamW) or coupled (SGD) decay."""
    decay_1d: bool
    """Whether biases and norm parameters decay too."""
    schedule: Literal["cosine", "half_cosine", "step", "constant"]
    """Per epoch: cosine to 0; the first half of a cosine twice as long, to ½ of ``lr`` (EDC's and
    RDED's smoothed schedule); or ``step_factor`` every ``step_epochs``."""
    step_epochs: Count
    """Period of the step schedule; epochs."""
    step_factor: Positive
    """Factor of the step schedule."""
    warmup_epochs: Whole
    """Linear warm-up from 1 % of ``lr``, per step; epochs."""


@settings
class ViewConfig:
    """Random view of an image: RandomResizedCrop, horizontal flip, roll."""

    crop_scale: Annotated[float, Gt(0), Le(1)]
    """Smallest area fraction of RandomResizedCrop; 1 keeps the whole image."""
    hflip: bool
    """Flip left-right with probability ½."""
    roll: tuple[Shift, Shift]
    """Inclusive range of the circular shift on both axes; pixels."""

    def __post_init__(self) -> None:
        check(self.roll[0] <= self.roll[1], f"roll must be [low, high], got {list(self.roll)}")


@settings
class DsaConfig:
    """Differentiable siamese augmentation (§8-18): the section ``dsa``, which all users share;
    ``data/dsa.py`` says what its strengths mean.
    """

    operations: tuple[Literal["color", "crop", "cutout", "flip", "scale", "rotate"], ...]
    """One of them, equally likely, is applied to a batch."""
    scale: Annotated[float, Ge(1)]
    """Largest factor of both axes; the smallest is its inverse."""
    rotate: NotNegative
    """Largest angle, degrees."""
    crop: NotNegative
    """Largest shift, share of the side."""
    cutout: NotNegative
    """Side of the hole, share of the image's."""
    brightness: NotNegative
    """Range of what is added to normalised pixels."""
    saturation: NotNegative
    """Range of the factor of colourfulness, around 1."""
    contrast: NotNegative
    """Largest change of the factor of contrast from 1."""

    def __post_init__(self) -> None:
        check(len(self.operations) > 0, "operations must name at least one operation")


Precision = Literal["float32", "bfloat16"]
SmallClasses = Literal["refuse", "repeat", "fewer"]

# ------------------------------------------------------------------------------ stage sections


SOURCES = (
    "digits", "cifar10", "cifar100", "mnist", "fashion-mnist", "tiny-imagenet", "imagefolder",
    "npz", "list",
)  # fmt: skip
"""Names of the loaders in ``teddy.data.sources``."""


@settings
class PrepareConfig:
    """Which images, what is expected of them, and how they are split."""

    source: str
    """Loader of the raw data: a name in :data:`teddy.data.sources.SOURCES`, or a function of your
    own, ``path/to/file.py:name``."""
    root: str
    """Folder of the raw data (of ``npz`` and ``list`` the file), torchvision's ``root`` for its
    sets; "" for none."""
    download: bool
    """Fetch the raw data into ``root`` if it is not there."""
    num_classes: Whole
    """Classes that must be found; 0 accepts any number."""
    classes: tuple[str, ...]
    """Names of the classes to take, in the order of their labels; empty takes all as they are."""
    image_size: Annotated[int, Ge(1), Le(4096)]
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
    std: tuple[Positive, ...]
    """As ``mean``."""
    val_fraction: Annotated[float, Gt(0), Lt(1)]
    """Share of the training images held out for every choice that is made, unless the source (an
    .npz file or a list) has validation images of its own."""
    test_fraction: Annotated[float, Ge(0), Lt(1)]
    """Share split off for the reported accuracy; 0 if the source has a test set of its own."""
    keep: tuple[float, float]
    """Bounds of the share of training images that a class keeps, drawn uniformly for each class
    (Table 3, §8-20); ``[1, 1]`` keeps all."""
    small_classes: SmallClasses
    """What a set that starts from real images, or has them, does with a class of fewer training
    images than it needs: ``repeat`` takes them again, in the same order; ``fewer`` has as many of
    that class as there are."""

    def __post_init__(self) -> None:
        check(
            len(self.classes) == len(set(self.classes)),
            f"classes must be distinct, got {shown(list(self.classes))}",
        )
        check(
            0 < self.keep[0] <= self.keep[1] <= 1,
            f"keep must be [low, high] with 0 < low ≤ high ≤ 1, got {list(self.keep)}",
        )
        total = self.val_fraction + self.test_fraction
        check(
            total < 1,
            "val_fraction and test_fraction must leave training images, got "
            f"{self.val_fraction} and {self.test_fraction}",
        )
        check(
            len(self.mean) == len(self.std) and len(self.mean) in (0, self.channels),
            f"mean and std must be empty or have {self.channels} entries, got {list(self.mean)} "
            f"and {list(self.std)}",
        )


@settings
class TrainTeacherConfig:
    """The one base training run whose checkpoints become teachers (§3.3, Table 6)."""

    network: NetworkConfig
    """Teacher network; must have BatchNorm."""
    epochs: Epochs
    """Epochs of the run, all of which are cached as checkpoints."""
    batch_size: Batch
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
    claimed_top1: Annotated[float, Ge(0), Le(100)]
    """Accuracy in percent that ``checkpoint`` is said to have on the test images."""

    def __post_init__(self) -> None:
        check(
            self.network.arch != "convnet3" or self.network.norm == "batch",
            "network.norm must be batch: Eq. 7 matches the statistics stored in "
            f"BatchNorm layers, got {self.network.norm}",
        )
        check(
            not self.checkpoint or self.claimed_top1 > 0,
            "claimed_top1 must say what accuracy the checkpoint "
            f"{self.checkpoint!r} has on the test images, got {self.claimed_top1}",
        )


@settings
class PriorConfig:
    """Pool of checkpoints along the base trajectory (§3.3; §4.1 of docs/method.md)."""

    first: Epochs
    """1-based epoch of the first member."""
    last: Epochs
    """Epoch of the last member, which is one whatever the step (Table 6: 16–50, step 5)."""
    step: Annotated[float, Ge(1)]
    """Epochs from one member to the next; of a fraction the whole epochs count."""

    def __post_init__(self) -> None:
        check(self.first <= self.last, f"first is {self.first}, after last, {self.last}")

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs of the members: ``⌊first + i·step⌋`` before ``last``, and ``last``."""
        count = math.ceil((self.last - self.first) / self.step)
        return (*(math.floor(self.first + i * self.step) for i in range(count)), self.last)


@settings
class PostConfig:
    """Pool of randomly pruned copies of the converged base (§3.3)."""

    size: Members
    """Members; Table 6 prints 9 and 10."""
    pruning_ratio: Annotated[float, Ge(0), Lt(1)]
    """Share of channels DepGraph removes from every layer, at random."""
    max_epochs: NotNegative
    """Fine-tuning stops here even if the target accuracy is not reached; the paper's 0–2."""
    checks_per_epoch: Count
    """How often fine-tuning compares its held-out accuracy with the target."""
    lr: tuple[Positive, Positive]
    """Learning rates of first and last member, log-spaced between; the paper's 0.1–0.001."""
    batch_size: Batch
    """Images per step."""
    momentum: Momentum
    """SGD momentum."""
    weight_decay: NotNegative
    """SGD weight decay."""
    views: ViewConfig
    """Augmentation while fine-tuning."""
    bn_recalibrate: bool
    """Re-estimate running statistics of members that were not fine-tuned (the paper does not)."""


@settings
class PoolConfig:
    """How each kind of pool is made from the base run."""

    prior: PriorConfig | None
    """Checkpoints along the trajectory; None in a stage's file if the pool's kind has none."""
    post: PostConfig | None
    """Pruned copies of the last checkpoint; likewise."""


@settings
class SynthesizeConfig:
    """Image optimisation by Eq. 7; every convention the paper leaves open is a field."""

    initialise: Literal["noise", "real"]
    """Start from N(0, 1) in normalised space, or from random training images of the class."""
    iterations: Count
    """Gradient steps per batch (Table 7)."""
    classes_per_batch: Count
    """Classes optimised together, one chunk of them in index order (Table 7: 100)."""
    indices_per_batch: Count
    """IPC indices optimised together; 1 unless the dataset has few classes (§8-16)."""
    lr: Positive
    """Adam learning rate, cosine to 0 over ``iterations`` (Table 7)."""
    betas: Betas
    """Adam betas; Table 7 calls them momentum (§8-1)."""
    eps: Positive
    """Adam epsilon."""
    weight_decay: NotNegative
    """Coupled Adam decay of the pixels; Table 7 prints 1e-4, no peer applies it (§8-4)."""
    alpha_bn: NotNegative
    """Weight of the statistics term, α_BN."""
    first_bn_weight: NotNegative
    """Weight of the first BatchNorm layer within R_BN (§8-5)."""
    norm: Literal["l2", "l2_squared"]
    """Norm of the statistics' gap (§8-3)."""
    variance: Literal["biased", "unbiased"]
    """Which batch variance is compared with the stored one (§8-3)."""
    over_teachers: Literal["mean", "sum"]
    """How the statistics terms of the drawn teachers combine (§8-3)."""
    ensemble: Literal["logits", "probs", "loss"]
    """What the classifier prior averages over teachers (§8-7)."""
    draw: Members
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
    curriculum: Literal["none", "cosine", "linear", "step"]
    """How the smallest area fraction of crops falls from 1 to ``views.crop_scale`` (CDA); ``none``
    has the latter from the start, as SRe2L."""
    milestone: Annotated[float, Gt(0), Le(1)]
    """Share of the iterations over which it falls, or after which it does by ``step``."""
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
        if self.class_statistics == "per_class":
            check(
                self.classes_per_batch == 1,
                "class_statistics per_class needs classes_per_batch 1: each "
                f"batch is matched to its own class, got {self.classes_per_batch}",
            )
        check(
            self.curriculum == "none" or self.augmentation == "views",
            f"curriculum must be none with augmentation {self.augmentation}, which has no crops of "
            f"views; got {self.curriculum}",
        )


@settings
class DmConfig:
    """Distribution matching (Zhao & Bilen; Table 5), the algorithm ``dm``."""

    network: NetworkConfig
    """A freshly initialised one embeds the images at every iteration; never BatchNorm, whose
    statistics would mix classes."""
    initialise: Literal["noise", "real"]
    """Start from N(0, 1) in normalised space, or from random training images of the class."""
    iterations: Count
    """Gradient steps."""
    classes_per_batch: Count
    """Classes optimised together, one chunk of them in index order."""
    real_batch: Count
    """Real images per class and iteration; all of a smaller class."""
    lr: Positive
    """SGD learning rate of the pixels."""
    momentum: Momentum
    """SGD momentum of the pixels."""
    dsa: DsaConfig
    """Augmentation of real and distilled images alike."""
    clip: bool
    """Clip to the valid pixel range after every step."""

    def __post_init__(self) -> None:
        check(
            self.network.arch == "convnet3" and self.network.norm != "batch",
            "network must be convnet3 without BatchNorm, got "
            f"{self.network.arch} with norm {self.network.norm}",
        )


@settings
class PlusConfig:
    """Class means and classifier prior in the views of students, the algorithm ``plus``."""

    initialise: Literal["noise", "real", "kmeans"]
    """Start from N(0, 1) in normalised space, from random training images of the class, or from
    those nearest to the centres of k-means among its easiest, as the algorithm ``coreset``."""
    easiest: Annotated[float, Gt(0), Le(1)]
    """Share of a class's training images, those that the pool's last member finds easiest, that
    ``kmeans`` chooses from, but never fewer than it needs."""
    iterations: Count
    """Gradient steps, each with a teacher of its own."""
    classes_per_batch: Count
    """Classes optimised together, one chunk of them in index order."""
    real_images: Count
    """Real images of a class whose mean is matched; all of a smaller class."""
    views_per_image: Count
    """Views of each image at an iteration."""
    views: ViewConfig
    """What they are like: as students' views (``relabel.views``)."""
    classifier_weight: NotNegative
    """Of the teacher's cross-entropy, beside the distance of class means."""
    lr: Positive
    """Adam's learning rate of the pixels at the first iteration, then annealed by a cosine."""
    betas: Betas
    """Adam's betas."""
    eps: Positive
    """Adam's epsilon."""
    clip: bool
    """Clip to the valid pixel range after every step."""


@settings
class CoresetConfig:
    """Real images that teachers choose, the algorithm ``coreset``."""

    choose: Literal["random", "kmeans", "herding", "kcentre", "el2n", "forgetting", "crops"]
    """Among the easiest images of a class: at random; those nearest to the centres of k-means;
    those whose mean is nearest to the class's (herding); those that leave none far away (k-centre);
    by the pool's mean error (EL2N); by how often the pool's checkpoints forget them; or the crop of
    each that the pool finds easiest, of images drawn at random."""
    scores: Literal["lowest", "highest"]
    """Which ``el2n`` and ``forgetting`` take: ``lowest`` are easy images, which few images per
    class need, ``highest`` hard ones."""
    easiest: Annotated[float, Gt(0), Le(1)]
    """Share of a class's training images, those that the pool's last member finds easiest, that
    are chosen from, but never fewer than are needed."""
    crops: Count
    """Random crops of an image, of which the easiest is taken."""
    views: ViewConfig
    """What such a crop may be."""


@settings
class NoConfig:
    """Settings of an algorithm that has none: random real images."""


@settings
class RelabelConfig:
    """Views of the distilled images that students train on, and their soft labels (§4.3)."""

    epochs: Epochs
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
    precision: Precision
    """Autocast dtype of the teachers that label."""
    store: bool
    """Keep the labels in the file, or compute them while training; the students are the same."""
    label_epochs: Whole
    """Epochs that have views and labels of their own, after which these come again; 0 gives every
    epoch its own."""
    label_bits: Literal[8, 16]
    """Bits of a logit in the stored labels."""
    label_top_k: Whole
    """Classes whose logits are stored for a view, the largest; the others share their mean. 0
    stores all."""

    def __post_init__(self) -> None:
        check(
            self.label_epochs <= self.epochs,
            f"label_epochs must be epochs at most, {self.epochs}, or 0 for all; got "
            f"{self.label_epochs}",
        )


@settings
class EvaluateConfig:
    """Training of fresh students on the distilled set (§4.4, appendix D.3)."""

    network: NetworkConfig
    """Student network."""
    batch_size: Batch
    """Images per step."""
    optimizer: OptimizerConfig
    """Optimiser of the student."""
    temperature: Positive
    """Softmax temperature of the KL loss with soft labels (§8-8)."""
    temperature_squared: bool
    """Multiply the KL loss by the squared temperature."""
    seeds: tuple[Seed, ...]
    """One fresh student per seed."""
    eval_epochs: Count
    """Test accuracy is measured every so many epochs, and after the last."""
    precision: Precision
    """Autocast dtype of forward and backward."""
    divergence: bool
    """Also measure the KL divergence between students and each member of the pool (Fig. 2c)."""

    def __post_init__(self) -> None:
        check(
            len(self.seeds) == len(set(self.seeds)) > 0,
            f"seeds must be distinct, got {list(self.seeds)}",
        )


STAGES: dict[str, type] = {
    "prepare": PrepareConfig,
    "train_teacher": TrainTeacherConfig,
    "pool": PoolConfig,
    "synthesize": SynthesizeConfig,
    "dm": DmConfig,
    "plus": PlusConfig,
    "coreset": CoresetConfig,
    "relabel": RelabelConfig,
    "evaluate": EvaluateConfig,
}
"""Sections that datasets override, and their types."""
WITH_DSA = ("synthesize", "dm", "relabel")
"""Sections that have the strengths of the section ``dsa`` too."""


@settings
class ContinualConfig:
    """Class-incremental learning (Fig. 3e, §8-24), the same for all datasets and methods."""

    steps: Count
    """In how many steps the classes arrive."""
    orders: tuple[Seed, ...]
    """Seeds of the orders in which they do, each a run of its own."""

    def __post_init__(self) -> None:
        check(
            len(self.orders) == len(set(self.orders)) > 0,
            f"orders must be distinct, got {list(self.orders)}",
        )
