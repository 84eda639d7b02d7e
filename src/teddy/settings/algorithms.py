"""The algorithms of this package, by the name that a row of ``methods`` gives."""

from typing import NamedTuple

from teddy.settings.baselines import (
    GradientMatchingConfig,
    ImprovedMatchingConfig,
    MosaicConfig,
    ResidualMatchingConfig,
    TrajectoryMatchingConfig,
)
from teddy.settings.configs import (
    CoresetConfig,
    DmConfig,
    NoConfig,
    PlusConfig,
    SynthesizeConfig,
)


class Algorithm(NamedTuple):
    """What is to be known of an algorithm before its code is loaded."""

    code: str
    """Module and class, ``teddy.synthesis.teddy:Teddy``, or file and class of the user's own."""
    config: type
    """Its settings."""
    section: str
    """Section of the parameter files that has them, or "" if there is none."""
    by_pool: bool
    """Whether teachers have a part in its images."""
    real: bool
    """Whether its images are real ones."""
    by_experts: bool = False
    """Whether its pool is one of experts, with their trajectories."""


ALGORITHMS = {
    "teddy": Algorithm(
        "teddy.synthesis.teddy:Teddy", SynthesizeConfig, "synthesize", by_pool=True, real=False
    ),
    "dm": Algorithm(
        "teddy.synthesis.distribution_matching:DistributionMatching", DmConfig, "dm",
        by_pool=False, real=False,
    ),
    "plus": Algorithm(
        "teddy.synthesis.class_matching:ClassMatching", PlusConfig, "plus",
        by_pool=True, real=False,
    ),
    "coreset": Algorithm(
        "teddy.synthesis.coresets:Coreset", CoresetConfig, "coreset", by_pool=True, real=True
    ),
    "mosaic": Algorithm(
        "teddy.synthesis.mosaics:Mosaics", MosaicConfig, "", by_pool=True, real=True
    ),
    "gradient": Algorithm(
        "teddy.synthesis.gradient_matching:GradientMatching", GradientMatchingConfig, "",
        by_pool=False, real=False,
    ),
    "idm": Algorithm(
        "teddy.synthesis.improved_matching:ImprovedMatching", ImprovedMatchingConfig, "",
        by_pool=False, real=False,
    ),
    "residual": Algorithm(
        "teddy.synthesis.residual_matching:ResidualMatching", ResidualMatchingConfig, "synthesize",
        by_pool=True, real=False,
    ),
    "trajectory": Algorithm(
        "teddy.synthesis.trajectory_matching:TrajectoryMatching", TrajectoryMatchingConfig, "",
        by_pool=True, real=False, by_experts=True,
    ),
    "random": Algorithm(
        "teddy.synthesis.real_images:RandomReal", NoConfig, "", by_pool=False, real=True
    ),
}  # fmt: skip
"""Algorithms that make images, by the name that a row of ``methods`` gives."""
