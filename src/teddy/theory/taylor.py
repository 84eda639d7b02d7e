"""Figure 5: one small set optimised with the exact meta-gradient and with its approximations.

All objectives start from the same images and meet the same theta_0 at the same outer iteration.
After every outer step the set is measured by training on it from initialisations kept for that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.runtime import progress
from teddy.core.seeding import derive, stream
from teddy.data.datasets import ImageDataset, select_random
from teddy.data.images import Images
from teddy.settings.theory import Fig5Config, TaylorObjective
from teddy.teachers.optimizers import Adam, Group
from teddy.theory.unrolled import (
    Batch,
    InnerLoop,
    Objective,
    Weights,
    exact,
    first_order,
    gradient_matching,
    initial_weights,
    plain_convnet,
    statistics_matching,
    worth,
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the runs of one seed share."""

    config: Fig5Config
    data: ImageDataset
    seed: int
    device: torch.device

    @property
    def inner(self) -> InnerLoop:
        """Inner loop of the configured length and rate."""
        return self.inner_loop(self.config.inner_lr, self.config.inner_steps)

    def inner_loop(self, lr: float, num_steps: int) -> InnerLoop:
        """Inner loop of another length or rate."""
        return InnerLoop(self._network(0).to(self.device), lr, num_steps)

    def theta_0(self, *item: str | int, dtype: torch.dtype = torch.float32) -> Weights:
        """Initial weights that belong to an item."""
        network = self._network(derive(self.seed, *item))
        return initial_weights(network.to(self.device), dtype)

    def _network(self, seed: int) -> torch.nn.Module:
        config, data = self.config, self.data
        return plain_convnet(data.image_shape, data.num_classes, config.width, config.depth, seed)

    def real(self) -> Batch:
        """T: the same number of real images of every class."""
        return self._select(self.config.real_per_class, derive(self.seed, "fig5 real"))

    def synthetic(self) -> Batch:
        """S before the first step."""
        images, labels = self._select(self.config.ipc, derive(self.seed, "fig5 synthetic"))
        if self.config.initialise == "noise":
            generator = stream(self.seed, "fig5 noise")
            images = torch.randn(images.shape, generator=generator).to(self.device)
        return images, labels

    def _select(self, per_class: int, seed: int) -> Batch:
        train = self.data.train
        chosen = select_random(train.labels, self.data.num_classes, range(per_class), seed)
        pixels = train.pick(chosen.flatten()).to(self.device)
        return self.data.normalisation.apply(pixels), train.labels[chosen.flatten()].to(self.device)


def objective_function(
    name: TaylorObjective, config: Fig5Config
) -> Callable[[InnerLoop, Weights, Batch, Batch], Objective]:
    """Objective of a name in ``fig5.objectives``."""
    functions: dict[str, Callable[[InnerLoop, Weights, Batch, Batch], Objective]] = {
        "exact": exact,
        "first_order": first_order,
        "gradient_matching": gradient_matching,
        "statistics_matching": partial(
            statistics_matching, classifier_weight=config.classifier_weight
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
    config, inner = comparison.config, comparison.inner
    gradient = objective_function(name, config)
    real, (images, labels) = comparison.real(), comparison.synthetic()
    images = images.clone().requires_grad_()
    low, high = comparison.data.normalisation.bounds(comparison.device)
    optimizer = Adam([Group([images], 0.0)], config.betas, decoupled=False)
    points = [_measure(comparison, inner, (images.detach(), labels), real)]
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
            points.append(_measure(comparison, inner, (images.detach(), labels), real))
            bar.update()
    return {"objective": name, "seed": comparison.seed, "points": points}


def _measure(comparison: Comparison, inner: InnerLoop, synthetic: Batch, real: Batch) -> Json:
    data, rows = comparison.data, []
    for index in range(comparison.config.measured_inits):
        found = worth(inner, comparison.theta_0("measured theta_0", index), synthetic, real)
        rows.append(
            [
                found.exact_loss,
                found.first_order_loss,
                _top1(comparison, inner, found.theta, data.val),
                _top1(comparison, inner, found.theta, data.test),
            ]
        )
    means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return dict(
        zip(("exact_loss", "first_order_loss", "val_top1", "test_top1"), means, strict=True)
    )


@torch.no_grad()
def _top1(comparison: Comparison, inner: InnerLoop, theta: Weights, split: object) -> float:
    if not isinstance(split, Images):
        raise TeddyError("fig5 needs a dataset in memory (prepare.storage: memory)")
    correct = 0
    for pixels, labels in split.to(comparison.device).test_batches(1024):
        outputs = inner.logits(theta, comparison.data.normalisation.apply(pixels))
        correct += int((outputs.argmax(1) == labels).sum())
    return 100 * correct / len(split)


def measure_law(comparison: Comparison) -> list[Json]:
    """Error of the first-order expansion on the initial set for every eta and T; float64.

    Returns:
        One row per pair: ``loss_error`` |Eq. 1 − Eq. 10|, and of the meta-gradients (Eq. 1 against
        Eq. 11) the ``gradient_error``, relative, and the ``cosine``.
    """
    real, synthetic = _double(comparison.real()), _double(comparison.synthetic())
    theta_0 = comparison.theta_0("measured theta_0", 0, dtype=torch.float64)
    rows = []
    for num_steps in comparison.config.law_steps:
        for lr in comparison.config.law_lrs:
            inner = comparison.inner_loop(lr, num_steps)
            true = exact(inner, theta_0, synthetic, real)
            approximate = first_order(inner, theta_0, synthetic, real)
            a, b = true.gradient.flatten(), approximate.gradient.flatten()
            rows.append(
                {
                    "num_steps": num_steps,
                    "lr": lr,
                    "exact_loss": true.value.item(),
                    "first_order_loss": approximate.value.item(),
                    "loss_error": (true.value - approximate.value).abs().item(),
                    "gradient_error": ((a - b).norm() / a.norm()).item(),
                    "cosine": (a @ b / (a.norm() * b.norm())).item(),
                }
            )
    return rows


def _double(batch: tuple[Tensor, Tensor]) -> Batch:
    return batch[0].double(), batch[1]
