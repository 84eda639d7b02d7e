"""Figure 5: one small set optimised with the exact meta-gradient and with its approximations.

All objectives start from the same images and meet the same theta_0 at the same outer iteration.
After every outer step the set is measured by training on it from initialisations kept for that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.runtime import progress
from teddy.core.seeding import derive, rng
from teddy.data.datasets import ImageDataset
from teddy.data.images import Images
from teddy.settings.theory import Fig5Config, TaylorObjective
from teddy.teachers.optimizers import Adam, Group
from teddy.theory.equations import Weights
from teddy.theory.problem import Student, plain_convnet, real_batch
from teddy.theory.unrolled import (
    Batch,
    InnerLoop,
    Objective,
    exact,
    expansion_error,
    first_order,
    gradient_matching,
    statistics_matching,
    worth,
)

Gradient = Callable[[InnerLoop, Weights, Batch, Batch], Objective]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the runs of one seed share."""

    config: Fig5Config
    data: ImageDataset
    seed: int
    device: torch.device

    @property
    def student(self) -> Student:
        """The network of the inner loop, for the function it is of its weights."""
        return Student(self._network(0).to(self.device))

    def theta_0(self, *item: str | int, dtype: torch.dtype = torch.float32) -> Weights:
        """Initial weights that belong to an item."""
        network = self._network(derive(self.seed, *item))
        return Student(network.to(self.device)).weights(dtype)

    def _network(self, seed: int) -> torch.nn.Module:
        config, data = self.config, self.data
        return plain_convnet(data.image_shape, data.num_classes, config.width, config.depth, seed)

    def real(self) -> Batch:
        """T: the same number of real images of every class."""
        return self._real(self.config.real_per_class, "fig5 real")

    def synthetic(self) -> Batch:
        """S before the first step."""
        images, labels = self._real(self.config.ipc, "fig5 synthetic")
        if self.config.initialise == "noise":
            generator = rng(self.seed, "fig5 noise")
            images = torch.randn(images.shape, generator=generator).to(self.device)
        return images, labels

    def _real(self, per_class: int, item: str) -> Batch:
        return real_batch(self.data, per_class, derive(self.seed, item), self.device)


def objective_function(name: TaylorObjective, config: Fig5Config, student: Student) -> Gradient:
    """Objective of a name in ``fig5.objectives``."""
    functions: dict[str, Gradient] = {
        "exact": exact,
        "first_order": first_order,
        "gradient_matching": gradient_matching,
        "statistics_matching": partial(
            statistics_matching,
            statistics=student.statistics,
            classifier_weight=config.classifier_weight,
        ),
    }
    return functions[name]


def optimise(comparison: Comparison, name: TaylorObjective) -> Json:
    """Optimise the set with one objective and measure it before every step and after the last.

    Returns:
        ``points``, one per iteration: ``exact_loss`` and ``first_order_loss`` (Eqs. 1 and 10 on
        the same set), ``val_top1`` and ``test_top1`` in percent, all means over the measured
        initialisations.

    Raises:
        TeddyError: the gradient is not finite; names the objective and the iteration.
    """
    config, student = comparison.config, comparison.student
    inner = InnerLoop(student.loss, config.inner_lr, config.inner_steps)
    gradient = objective_function(name, config, student)
    real, (images, labels) = comparison.real(), comparison.synthetic()
    images = images.clone().requires_grad_()
    low, high = comparison.data.normalisation.bounds(comparison.device)
    optimizer = Adam([Group([images], 0.0)], config.betas, decoupled=False)
    points = [_measure(comparison, student, inner, (images.detach(), labels), real)]
    with progress(config.iterations, f"fig5 {name}, seed {comparison.seed}", "it") as bar:
        for iteration in range(config.iterations):
            theta_0 = comparison.theta_0("theta_0", iteration)
            found = gradient(inner, theta_0, (images.detach(), labels), real)
            if not found.gradient.isfinite().all():
                raise TeddyError(f"fig5: gradient of {name} is not finite at iteration {iteration}")
            images.grad = found.gradient
            optimizer.step(config.lr)
            with torch.no_grad():
                torch.clamp(images, low, high, out=images)
            points.append(_measure(comparison, student, inner, (images.detach(), labels), real))
            bar.update()
    return {"objective": name, "seed": comparison.seed, "points": points}


def _measure(
    comparison: Comparison, student: Student, inner: InnerLoop, synthetic: Batch, real: Batch
) -> Json:
    data, rows = comparison.data, []
    for index in range(comparison.config.measured_inits):
        found = worth(inner, comparison.theta_0("measured theta_0", index), synthetic, real)
        top1 = [_top1(comparison, student, found.theta, split) for split in (data.val, data.test)]
        rows.append([found.exact_loss, found.first_order_loss, *top1])
    means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return dict(
        zip(("exact_loss", "first_order_loss", "val_top1", "test_top1"), means, strict=True)
    )


@torch.no_grad()
def _top1(comparison: Comparison, student: Student, theta: Weights, split: object) -> float:
    if not isinstance(split, Images):
        raise TeddyError("fig5 needs a dataset in memory (prepare.storage: memory)")
    correct = 0
    for pixels, labels in split.to(comparison.device).test_batches(1024):
        outputs = student.logits(theta, comparison.data.normalisation.apply(pixels))
        correct += int((outputs.argmax(1) == labels).sum())
    return 100 * correct / len(split)


def measure_law(comparison: Comparison) -> list[Json]:
    """Error of the first-order expansion on the initial set for every eta and T; float64.

    Returns:
        One row per pair, with the fields of :class:`~teddy.theory.unrolled.ExpansionError`.
    """
    real, synthetic = _double(comparison.real()), _double(comparison.synthetic())
    theta_0 = comparison.theta_0("measured theta_0", 0, dtype=torch.float64)
    loss, rows = comparison.student.loss, []
    for num_steps in comparison.config.law_steps:
        for lr in comparison.config.law_lrs:
            error = expansion_error(InnerLoop(loss, lr, num_steps), theta_0, synthetic, real)
            rows.append({"num_steps": num_steps, "lr": lr, **error._asdict()})
    return rows


def _double(batch: Batch) -> Batch:
    images, labels = batch
    return images.double(), labels
