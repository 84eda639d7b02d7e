"""Settings of what stands beside the chain of stages: Figures 1 and 5, and the appendix."""

import math
from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Ge, Le, Len

from teddy.settings.configs import (
    Betas,
    Channels,
    Count,
    NetworkConfig,
    NotNegative,
    Positive,
    Seed,
)
from teddy.settings.schema import check, settings


def _check_ascending(name: str, values: tuple[float, ...]) -> None:
    ascending = list(values) == sorted(set(values))
    check(ascending, f"{name} must be ascending, got {list(values)}")


@settings
class Fig1Config:
    """Cost of one update of a synthetic set: unrolled (Eq. 1), first-order (Eq. 11), Eq. 7."""

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``; of that dataset."""
    ipc: Count
    """Images per class of the set that is updated."""
    student: NetworkConfig
    """Network of the inner loop; its norm must not keep running statistics."""
    teacher: NetworkConfig
    """Network whose statistics Eq. 7 matches; the student's convolutions with BatchNorm."""
    inner_steps: Annotated[tuple[Count, ...], Len(1)]
    """T, ascending."""
    inner_lr: Positive
    """eta; costs do not depend on it."""
    real_images: Count
    """Real images that l(T; theta) is computed on."""
    batch_size: Count
    """Images that Teddy updates at a time; the rest of the set follows in further batches."""
    draws: Annotated[tuple[Count, ...], Len(1)]
    """Teachers of an update of Teddy, k; ascending."""
    repeats: Count
    """Timed updates after an untimed one; the median is reported."""

    def __post_init__(self) -> None:
        check(
            self.student.norm in ("instance", "group", "none"),
            f"student.norm must not be batch, got {self.student.norm}",
        )
        check(self.teacher.norm == "batch", f"teacher.norm must be batch, got {self.teacher.norm}")
        _check_ascending("inner_steps", self.inner_steps)
        _check_ascending("draws", self.draws)


TaylorObjective = Literal["exact", "first_order", "gradient_matching", "statistics_matching"]


@settings
class Fig5Config:
    """The same set optimised with the exact meta-gradient and with its approximations."""

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``; of that dataset."""
    width: Channels
    """Channels of the plain ConvNet."""
    depth: Annotated[int, Ge(1), Le(12)]
    """Its blocks, each of which halves the image."""
    ipc: Count
    """Images per class."""
    initialise: Literal["noise", "real"]
    """What the images are at first."""
    inner_steps: Count
    """T."""
    inner_lr: Positive
    """eta."""
    real_per_class: Count
    """Real training images of each class that l(T; theta) is computed on."""
    objectives: tuple[TaylorObjective, ...]
    """Eq. 1, Eq. 11, Eq. 13, Eq. 19; the first is what the others are compared with."""
    classifier_weight: NotNegative
    """lambda of Eq. 19; the other objectives have none."""
    iterations: Count
    """Outer steps; each draws its own theta_0."""
    lr: Positive
    """Outer learning rate, of Adam on normalised pixels."""
    betas: Betas
    """Of the outer Adam."""
    measured_inits: Count
    """Initialisations theta_0 that a set is measured with, the same at every iteration."""
    seeds: Annotated[tuple[Seed, ...], Len(1)]
    """Independent repetitions: initial images, real images and all theta_0."""
    law_lrs: Annotated[tuple[Positive, ...], Len(2)]
    """Values of eta for the measured order of the error, descending."""
    law_steps: Annotated[tuple[Count, ...], Len(1)]
    """Values of T for it."""

    def __post_init__(self) -> None:
        check(
            self.objectives[:1] == ("exact",) and len(set(self.objectives)) == len(self.objectives),
            f"objectives must begin with exact and differ, got {list(self.objectives)}",
        )
        descending = list(self.law_lrs) == sorted(set(self.law_lrs), reverse=True)
        check(descending, f"law_lrs must be descending, got {list(self.law_lrs)}")


@settings
class TheoryConfig:
    """How the paper's equations are checked numerically."""

    step_sizes: Annotated[tuple[Positive, ...], Len(2)]
    """eta of the error laws, each half of the one before."""
    num_steps: Count
    """T of Proposition 1's checks."""
    lengths: Annotated[tuple[Count, ...], Len(2)]
    """T of the growth of the error with T, each twice the one before."""
    length_lr: Positive
    """eta of that growth."""
    segment_steps: Count
    """k of Eq. 20."""
    bound_draws: Count
    """Random cases of every inequality."""
    isotropic_draws: Annotated[tuple[Count, ...], Len(1)]
    """Draws of W of the Monte-Carlo means, ascending, above 1; the last decides."""
    tau: Positive
    """Standard deviation of W's entries."""
    exact_tolerance: Positive
    """Relative error allowed between two forms of one number, float64."""
    difference_tolerance: Positive
    """Absolute error allowed between a gradient and a difference quotient."""
    order_tolerance: Positive
    """Error allowed in a measured order of convergence at the smallest two steps."""
    standard_errors: Positive
    """Deviation allowed of a Monte-Carlo mean, in its own standard errors."""

    def __post_init__(self) -> None:
        halves = all(math.isclose(a, 2 * b) for a, b in pairwise(self.step_sizes))
        check(halves, f"step_sizes must halve, got {list(self.step_sizes)}")
        doubles = all(b == 2 * a for a, b in pairwise(self.lengths))
        check(doubles, f"lengths must double, got {list(self.lengths)}")
        _check_ascending("isotropic_draws", self.isotropic_draws)
        check(self.isotropic_draws[0] > 1, "isotropic_draws must be above 1")


EXPERIMENTS = ("fig1", "fig5", "theory")
"""Sections that stand beside the chain of stages; a file may lack those it does not run."""
