"""Checks of equations, sections of the report on them, and the problem they are tried on.

Numbers are float64; draws come from a stream of the section's own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from teddy.core.seeding import rng
from teddy.settings.theory import TheoryConfig
from teddy.theory.equations import Weights
from teddy.theory.unrolled import Batch

Relation = Literal["=", "≤", ">"]


@dataclass(frozen=True, slots=True)
class Check:
    """Two numbers and how they must be related."""

    what: str
    left: float
    relation: Relation
    right: float
    tolerance: float
    """Absolute error allowed."""
    known: str = ""
    """Number of the known-answer test it belongs to (``kat01`` … in ``tests/test_theory.py``)."""

    @property
    def error(self) -> float:
        """How far the relation is from holding; 0 if an inequality holds, NaN if a number is."""
        difference = self.left - self.right
        if self.relation == "=" or math.isnan(difference):
            return abs(difference)
        return max(0.0, difference if self.relation == "≤" else -difference)

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; not if a number is missing (NaN)."""
        return self.error <= self.tolerance and (self.relation != ">" or self.left > self.right)


@dataclass(frozen=True, slots=True)
class Section:
    """One equation or proposition."""

    title: str
    statement: str
    """What the paper claims, in Markdown with formulas."""
    computed: str
    """What was computed to check it."""
    checks: tuple[Check, ...]
    figure: str = ""
    """File name of its figure, without folder and extension."""
    caption: str = ""


def equals(config: TheoryConfig, what: str, left: float, right: float, known: str = "") -> Check:
    """Two forms of one number that may differ by rounding only."""
    return Check(what, left, "=", right, config.exact_tolerance * max(1.0, abs(right)), known)


def printed(what: str, left: float, right: str, known: str = "") -> Check:
    """A number against a known answer, which is exact to half a unit of its last digit."""
    decimals = len(right.partition(".")[2])
    return Check(what, left, "=", float(right), 0.5 * 10**-decimals, known)


def orders(errors: Sequence[float]) -> list[float]:
    """Measured orders: log2 of the factor between neighbours whose step differs by two."""
    return [math.log2(a / b) if a > 0 and b > 0 else math.nan for a, b in pairwise(errors)]


def normal(seed: int, *item: str | int) -> Callable[..., Tensor]:
    """Standard normal float64 draws, one after another, from the item's own stream."""
    generator = rng(seed, "theory", *item)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def f64(values: object) -> Tensor:
    """Numbers as a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def network_loss(theta: Weights, batch: Batch) -> Tensor:
    """Cross-entropy of a network with one tanh layer."""
    inputs, labels = batch
    hidden = torch.tanh(inputs @ theta["w1"] + theta["b1"])
    return cross_entropy(hidden @ theta["w2"] + theta["b2"], labels)


def network_problem(seed: int) -> tuple[Weights, Batch, Batch]:
    """theta_0 of a 4-8-3 network, S with 6 samples and T with 60 in 3 classes."""
    draw = normal(seed, "network")
    labels = torch.arange(60) % 3
    real = (draw(60, 4) + 2 * one_hot(labels, 4), labels)
    synthetic = (draw(6, 4), torch.arange(6) % 3)
    theta = {"w1": draw(4, 8) / 2, "b1": draw(8) / 10, "w2": draw(8, 3) / 8**0.5,
             "b2": draw(3) / 10}  # fmt: skip
    return theta, synthetic, real
