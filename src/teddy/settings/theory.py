"""Settings of the experiments that stand beside the chain of stages: Fig. 1, Fig. 5, appendix."""

import math
from dataclasses import dataclass
from typing import Literal

from teddy.settings.configs import NetworkConfig, check_betas
from teddy.settings.schema import check


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
        check(
            self.student.norm in ("instance", "group", "none"),
            f"student.norm must not be batch, got {self.student.norm}",
        )
        check(self.teacher.norm == "batch", f"teacher.norm must be batch, got {self.teacher.norm}")
        for name in ("inner_steps", "draws"):
            values = getattr(self, name)
            check(
                len(values) > 0 and min(values) >= 1 and list(values) == sorted(set(values)),
                f"{name} must be ascending and at least 1, got {list(values)}",
            )
        for name in ("ipc", "real_images", "batch_size", "repeats"):
            value = getattr(self, name)
            check(value >= 1, f"{name} must be at least 1, got {value}")
        check(self.inner_lr > 0, f"inner_lr must be above 0, got {self.inner_lr}")


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
        check_betas("fig5", self.betas)
        check(
            self.objectives[:1] == ("exact",) and len(set(self.objectives)) == len(self.objectives),
            f"objectives must begin with exact and differ, got {list(self.objectives)}",
        )
        for name in ("width", "depth", "ipc", "inner_steps", "real_per_class", "iterations",
                     "measured_inits"):  # fmt: skip
            value = getattr(self, name)
            check(value >= 1, f"{name} must be at least 1, got {value}")
        check(len(self.seeds) > 0, "seeds must not be empty")
        check(min(self.inner_lr, self.lr) > 0, "inner_lr and lr must be above 0")
        check(self.classifier_weight >= 0, "classifier_weight must be at least 0")
        check(
            len(self.law_lrs) > 1
            and min(self.law_lrs) > 0
            and list(self.law_lrs) == sorted(set(self.law_lrs), reverse=True),
            f"law_lrs must be two or more, descending, above 0; got {list(self.law_lrs)}",
        )
        check(min(self.law_steps, default=0) >= 1, "law_steps must be at least 1")


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
        check(
            len(self.step_sizes) > 1 and halves and self.step_sizes[-1] > 0,
            f"step_sizes must halve and be above 0, got {list(self.step_sizes)}",
        )
        doubles = all(b == 2 * a for a, b in zip(self.lengths, self.lengths[1:], strict=False))
        check(
            len(self.lengths) > 1 and doubles and self.lengths[0] >= 1,
            f"lengths must double from 1 or more, got {list(self.lengths)}",
        )
        draws = self.isotropic_draws
        check(
            len(draws) > 0 and draws[0] > 1 and list(draws) == sorted(set(draws)),
            f"isotropic_draws must be ascending and above 1, got {list(draws)}",
        )
        for name in ("num_steps", "segment_steps", "bound_draws"):
            value = getattr(self, name)
            check(value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("length_lr", "tau", "exact_tolerance", "difference_tolerance",
                     "order_tolerance", "standard_errors"):  # fmt: skip
            value = getattr(self, name)
            check(value > 0, f"{name} must be above 0, got {value}")


EXPERIMENTS = ("fig1", "fig5", "theory")
"""Sections that stand beside the chain of stages; a file may lack those it does not run."""
