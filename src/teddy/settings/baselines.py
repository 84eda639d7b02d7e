"""Settings of the methods of others, with their papers' defaults; rows change them.

Apart from :mod:`teddy.settings.configs` because no parameter file has a section for them, or none
for all of their keys, and from the methods' own modules because these import PyTorch.
"""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from teddy.settings.configs import (
    Count,
    DsaConfig,
    Momentum,
    NetworkConfig,
    NotNegative,
    Positive,
    SynthesizeConfig,
    ViewConfig,
)
from teddy.settings.schema import check, settings

USUAL_DSA = DsaConfig(
    operations=("color", "crop", "cutout", "flip", "scale", "rotate"),
    scale=1.2,
    rotate=15.0,
    crop=0.125,
    cutout=0.5,
    brightness=1.0,
    saturation=2.0,
    contrast=0.5,
)
"""Strengths of DSA in the code of DC, DSA, DM, IDM and MTT; rows have their dataset's, section
``dsa``, which leaves flips out where they make another class."""


LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Of DC and DSA by images per class, as their authors' code has them: steps of the images per
network, and epochs that it is trained after each but the last."""


@settings
class GradientMatchingConfig:
    """Gradient matching (DC, DSA)."""

    network: NetworkConfig = NetworkConfig(arch="convnet3", width=128, norm="instance")
    """A freshly initialised one at every iteration; never BatchNorm."""
    initialise: Literal["noise", "real"] = "real"
    """Start from N(0, 1) in normalised space (DC's authors), or from random training images of the
    class (DSA's)."""
    iterations: Count = 1000
    """Networks, each with steps of the images."""
    outer_loops: Annotated[int, Ge(0)] = 0
    """Steps of the images per network; 0 takes the papers' for the images per class."""
    inner_loops: Annotated[int, Ge(0)] = 0
    """Epochs that the network is trained after each step but the last; 0 takes the papers'."""
    real_batch: Count = 256
    """Real images per class and step; all of a smaller class."""
    train_batch: Count = 256
    """Images per step of the network."""
    lr: Positive = 0.1
    """SGD learning rate of the pixels."""
    momentum: Momentum = 0.5
    """SGD momentum of the pixels."""
    network_lr: Positive = 0.01
    """SGD learning rate of the network, without momentum."""
    augmentation: Literal["none", "dsa"] = "none"
    """DC has none; DSA augments real and synthetic images of a class alike, and the images that the
    network is trained on."""
    dsa: DsaConfig = USUAL_DSA
    """Strengths of DSA."""
    clip: bool = False
    """Clip to the valid pixel range after every step."""

    def __post_init__(self) -> None:
        check(
            self.network.norm != "batch",
            "network must have no BatchNorm, whose statistics of one class are not those of "
            f"training; got norm {self.network.norm}",
        )

    def loops(self, ipc: int) -> tuple[int, int]:
        """Steps of the images, and epochs of the network after each but the last; 0 if the papers
        name none for so many images per class, and neither do settings.
        """
        outer, inner = LOOPS.get(ipc, (0, 0))
        return self.outer_loops or outer, self.inner_loops or inner

    def misfit(self, ipc: int) -> str:
        """Why ``ipc`` images per class cannot be made, or ""."""
        if 0 in self.loops(ipc):
            return (
                f"outer_loops and inner_loops must be set for ipc {ipc}; the papers have them for "
                f"{', '.join(map(str, LOOPS))}"
            )
        return ""


@settings
class ImprovedMatchingConfig:
    """Improved distribution matching (IDM)."""

    network: NetworkConfig = NetworkConfig(arch="convnet3", width=128, norm="instance")
    """Of the queue; never BatchNorm, whose statistics would mix classes."""
    initialise: Literal["noise", "real"] = "real"
    """Start from N(0, 1) in normalised space, or from random training images of the class."""
    partition: Annotated[int, Ge(1)] = 2
    """Smaller images along a side of an image; 1 has none."""
    iterations: Count = 20000
    """Steps of the images."""
    real_batch: Count = 256
    """Real images per class and iteration; all of a smaller class."""
    lr: Positive = 0.2
    """SGD learning rate of the pixels."""
    momentum: Momentum = 0.5
    """SGD momentum of the pixels."""
    classifier_weight: NotNegative = 0.5
    """Of the cross-entropy, which is also weighted by the network's accuracy in percent."""
    networks: Count = 100
    """Most networks in the queue."""
    network_every: Count = 30
    """Iterations between two networks that enter."""
    trained: Annotated[int, Ge(0)] = 2
    """Networks that are trained on at an iteration."""
    train_steps: Count = 10
    """Steps of each of them."""
    train_batch: Count = 256
    """Real images of all classes per step."""
    network_lr: Positive = 0.01
    """SGD learning rate of the networks."""
    network_momentum: Momentum = 0.9
    """SGD momentum of the networks."""
    network_decay: NotNegative = 0.0005
    """Weight decay of the networks."""
    accuracy_every: Count = 100
    """Iterations after which a network's accuracy is counted anew."""
    dsa: DsaConfig = USUAL_DSA
    """Augmentation of real and distilled images alike."""
    clip: bool = False
    """Clip to the valid pixel range after every step."""

    def __post_init__(self) -> None:
        check(
            self.network.arch == "convnet3" and self.network.norm != "batch",
            "network must be convnet3 without BatchNorm, got "
            f"{self.network.arch} with norm {self.network.norm}",
        )


@settings
class MosaicConfig:
    """Mosaics of the easiest crops of real images (RDED)."""

    candidates: Count = 300
    """Random training images of a class that are looked at; all of a smaller class."""
    crops: Count = 5
    """Random crops of each, of which the easiest for the pool's last member is kept."""
    crop_scale: Annotated[float, Gt(0), Le(1)] = 0.08
    """Smallest area fraction of such a crop, which is square."""
    factor: Annotated[int, Ge(0), Le(4096)] = 0
    """Crops along a side of an image; 0 takes the paper's, 1 up to 64 pixels and 2 above."""

    def factor_at(self, side: int) -> int:
        """Crops along a side of so many pixels."""
        return self.factor or (1 if side <= 64 else 2)

    def misfit(self, ipc: int, side: int) -> str:
        """Why ``ipc`` mosaics with sides of so many pixels cannot be made, or ""."""
        factor = self.factor_at(side)
        if side % factor or side // factor < 4:
            return (
                f"factor must divide the sides of the images, {side} pixels, and leave 4 pixels or "
                f"more of each crop; got {factor}"
            )
        if self.candidates < ipc * factor**2:
            return (
                f"candidates must be at least the crops of {ipc} images per class, "
                f"{ipc * factor**2} with factor {factor}; got {self.candidates}"
            )
        return ""


@settings
class ExpertsConfig:
    """Networks trained on all real images, whose parameters are kept after every epoch.

    The defaults are MTT's; FTD's experts have a ``radius`` of 0.01.
    """

    network: NetworkConfig = NetworkConfig(arch="convnet3", width=128, norm="instance")
    """Never BatchNorm, whose statistics are no parameters."""
    count: Count = 100
    """Experts, each from a fresh start."""
    epochs: Count = 50
    """Epochs of each."""
    batch_size: Count = 256
    """Images per step."""
    lr: Positive = 0.01
    """SGD learning rate."""
    momentum: Momentum = 0.0
    """SGD momentum."""
    weight_decay: NotNegative = 0.0
    """SGD weight decay."""
    augmentation: Literal["none", "dsa"] = "dsa"
    """Of the real images."""
    dsa: DsaConfig = USUAL_DSA
    """Strengths of DSA."""
    radius: NotNegative = 0.0
    """How far away FTD looks for the largest loss, ρ; 0 trains as usual."""
    gap_weight: NotNegative = 0.4
    """Of the gap between that loss and the loss, α, if there is a radius; 0.4 is the default of
    FTD's code, its Table 7 has 0.3 or 1."""
    adaptive: bool = True
    """Whether the radius is relative to the size of each parameter."""

    def __post_init__(self) -> None:
        check(
            self.network.norm != "batch",
            "network must have no BatchNorm, whose statistics are no parameters of an expert; got "
            f"norm {self.network.norm}",
        )


@settings
class TrajectoryMatchingConfig:
    """Matching of trajectories (MTT, FTD, TESLA); the network is the experts'."""

    initialise: Literal["noise", "real"] = "real"
    """Start from N(0, 1) in normalised space, or from random training images of the class."""
    iterations: Count = 5000
    """Steps of the images."""
    student_steps: Count = 20
    """Steps of the student, N."""
    expert_epochs: Count = 3
    """Epochs of the expert that these shall make up for, M."""
    max_start: Count = 25
    """Students start where an expert was after fewer epochs than this."""
    batch: Annotated[int, Ge(0)] = 0
    """Images per step of the student; 0 takes all."""
    lr: Positive = 1000.0
    """SGD learning rate of the pixels."""
    momentum: Momentum = 0.5
    """SGD momentum of the pixels and of the student's learning rate."""
    student_lr: Positive = 0.01
    """Learning rate of the student to begin with; it is learned."""
    student_lr_lr: NotNegative = 1e-5
    """SGD learning rate of that learning rate."""
    gradient: Literal["unrolled", "constant", "truncated"] = "unrolled"
    """Through all steps at once; the same with the memory of one; or that with the parameters of
    every step taken as given, which is TESLA's."""
    soft_labels: bool = False
    """Whether the student learns what the expert's end says of the images, as TESLA on
    ImageNet-1K; otherwise classes. Labels of the set are another matter (``labels``)."""
    average: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay of the moving average of the images that the set consists of (FTD: 0.9995); 0 takes the
    last ones."""
    augmentation: Literal["none", "dsa"] = "dsa"
    """Of the images that the student learns from."""
    dsa: DsaConfig = USUAL_DSA
    """Strengths of DSA."""
    clip: bool = False
    """Clip to the valid pixel range after every step."""


@settings
class ResidualMatchingConfig(SynthesizeConfig):
    """Residual matching (FADRM): the section ``synthesize``, and keys of its own.

    ``initialise`` must be ``real``, and stands for crops of random training images.
    """

    sizes: tuple[Annotated[int, Ge(0), Le(4096)], ...] = (0, 0, 0, 0)
    """Side of the images in each of the phases that the iterations are cut into, pixels; 0 is their
    own, as the last must be. The paper has 200 and 224 in turn on ImageNet-1K."""
    alpha: Annotated[float, Ge(0), Le(1)] = 0.5
    """Weight of the optimised images, α, where they meet the real crops again between two phases; 1
    leaves them as they are."""
    crops: Count = 10
    """Random crops of an image, of which the one that the pool finds easiest is taken."""
    crop_views: ViewConfig = ViewConfig(crop_scale=0.5, hflip=False, roll=(0, 0))
    """What such a crop may be."""

    def __post_init__(self) -> None:
        SynthesizeConfig.__post_init__(self)
        check(
            0 < len(self.sizes) <= self.iterations,
            f"sizes must be those of 1 to {self.iterations} phases, as many as there are "
            f"iterations; got {list(self.sizes)}",
        )

    @property
    def phases(self) -> tuple[range, ...]:
        """Iterations of each phase."""
        count = len(self.sizes)
        ends = [self.iterations * phase // count for phase in range(count + 1)]
        return tuple(map(range, ends, ends[1:]))
