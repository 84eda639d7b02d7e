"""Matching training trajectories: MTT, FTD and TESLA.

A student that starts where an expert was after some epochs, and takes N steps on the distilled
images, shall end where the expert was M epochs later.

- MTT: Cazenavette et al., "Dataset distillation by matching training trajectories" (CVPR 2022).
- FTD: Du et al., "Minimizing the accumulated trajectory error to improve dataset distillation"
  (CVPR 2023): the same with experts in flat minima (:mod:`teddy.teachers.experts`) and a moving
  average of the images.
- TESLA: Cui et al., "Scaling up dataset distillation to ImageNet-1K with constant memory" (ICML
  2023): the graph of one step at a time, and soft labels by the expert.

Dimensions: ``P`` parameters of a network as one vector, ``K`` classes, ``N C H W`` images.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from teddy.core.seeding import permutation
from teddy.data.dsa import draw_dsa
from teddy.settings.baselines import TrajectoryMatchingConfig
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.engine.state import State
from teddy.synthesis.methods import Ingredients, OptimisedMethod
from teddy.synthesis.unrolling import StepLoss, in_constant_memory, shaped, unrolled
from teddy.teachers.experts import open_experts
from teddy.teachers.networks import build
from teddy.teachers.optimizers import Group, Sgd

_RATE, _VELOCITY, _AVERAGE = "student_lr", "student_lr_velocity", "average"


class TrajectoryMatching(OptimisedMethod):
    """Optimises all images together; see :class:`teddy.synthesis.methods.Method`.

    Args:
        config: lengths, rates and how gradients are taken.
        given: with a pool of experts.
    """

    Config = TrajectoryMatchingConfig
    config: TrajectoryMatchingConfig
    by_pool = True
    terms = ("distance",)
    rate = "lr, student_lr or student_lr_lr"
    size = "batch"

    def __init__(self, config: TrajectoryMatchingConfig, given: Ingredients) -> None:
        super().__init__(config, given)
        assert given.pool is not None, "by_pool asks for one"
        shape, classes = self.data.image_shape, self.data.num_classes
        self._experts = open_experts(given.pool, shape, classes)
        self._experts.check(config.max_start, config.expert_epochs)
        self._network = build(self._experts.network, shape, classes, 0).to(self.device)
        self._named = dict(self._network.named_parameters())

    def batches(self, ipc: int) -> list[Batch]:
        """One: the student learns from all images."""
        return [Batch(0, 0, range(ipc), range(self.data.num_classes))]

    def start(self, batch: Batch, images: Tensor) -> State:
        """SGD with momentum, of the images and of the student's learning rate."""
        losses = torch.zeros(self.config.iterations, 1, device=self.device)
        state = State(images, Sgd([Group([images], 0.0)], self.config.momentum), losses)
        rate = torch.tensor(self.config.student_lr, device=self.device)
        state.more = {_RATE: rate, _VELOCITY: torch.zeros_like(rate)}
        if self.config.average:
            state.more[_AVERAGE] = images.detach().clone()
        return state

    def optimise(self, batch: Batch, state: State) -> Iterator[None]:
        """The algorithm, from iteration ``state.done`` on."""
        config, rate = self.config, state.more[_RATE]
        low, high = self.data.normalisation.bounds(self.device)
        for iteration in range(state.done, config.iterations):
            way = state.kept.get("gradient", config.gradient)
            loss, state.images.grad, of_rate = self.gradients(
                state.images, rate, batch, iteration, way
            )
            state.update(config.lr)
            with torch.no_grad():
                velocity = state.more[_VELOCITY]
                velocity.mul_(config.momentum).add_(of_rate)
                rate.sub_(config.student_lr_lr * velocity)
                if config.clip:
                    torch.clamp(state.images, low, high, out=state.images)
                if config.average:
                    state.more[_AVERAGE].lerp_(state.images, 1 - config.average)
            if iteration + 1 == config.iterations:
                self._finish(state)
            state.finish_step(loss[None])
            yield

    def _finish(self, state: State) -> None:
        """What is made of the last step, as part of it: a run killed after it has it too."""
        state.kept[_RATE] = state.more[_RATE].item()
        if self.config.average:
            with torch.no_grad():
                state.images.copy_(state.more[_AVERAGE])

    def gradients(
        self, images: Tensor, rate: Tensor, batch: Batch, iteration: int, way: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of an iteration, and its gradients in the images and in the learning rate.

        Args:
            images: normalised float ``(N, C, H, W)``, ordered by index, then class.
            rate: learning rate of the student, scalar.
            batch: which images they are.
            iteration: which expert, start, order and augmentations it has.
            way: ``unrolled``, ``constant`` or ``truncated``.
        """
        config, (expert, epoch) = self.config, self.window(iteration)
        start, target = (
            self._experts.at(expert, at).to(self.device, images.dtype)
            for at in (epoch, epoch + config.expert_epochs)
        )
        labels = batch.labels().to(self.device)
        if config.soft_labels:
            with torch.no_grad():
                logits = functional_call(self._network, shaped(target, self._named), (images,))
            labels = logits.softmax(1)
        loss_of = self._loss_of(iteration, labels)
        given = (loss_of, images, rate, start, target, config.student_steps)
        if way == "unrolled":
            return unrolled(*given)
        return in_constant_memory(*given, through_parameters=way == "constant")

    def window(self, iteration: int) -> tuple[int, int]:
        """Which expert an iteration follows, and from which epoch on.

        All experts have their turn before one has it again.
        """
        count = len(self._experts.files)
        turn, place = divmod(iteration, count)
        expert = int(permutation(count, self.seed, "mtt expert", turn)[place])
        return expert, int(permutation(self.config.max_start, self.seed, "mtt start", iteration)[0])

    def _loss_of(self, iteration: int, labels: Tensor) -> StepLoss:
        """The student's loss at every step, whose batches and augmentations do not change."""
        config, count = self.config, len(labels)
        size = min(config.batch or count, count)
        per_epoch = -(-count // size)
        parts = list[Tensor]()
        for epoch in range(-(-config.student_steps // per_epoch)):
            order = permutation(count, self.seed, "mtt order", iteration, epoch)
            parts += order.to(self.device).split(size)
        views = [self._view(iteration, step, part) for step, part in enumerate(parts)]

        def loss_of(step: int, parameters: Tensor, images: Tensor) -> Tensor:
            part = parts[step]
            inputs = views[step](images[part])
            logits = functional_call(self._network, shaped(parameters, self._named), (inputs,))
            return cross_entropy(logits, labels[part])

        return loss_of

    def _view(self, iteration: int, step: int, part: Tensor) -> Callable[[Tensor], Tensor]:
        if self.config.augmentation == "none":
            return lambda images: images
        key = ("mtt view", iteration, step)
        return draw_dsa(self.config.dsa, self.seed, *key, indices=part)

    def smaller(self, state: State) -> str:
        """The same gradient with the memory of one step."""
        if state.kept.get("gradient", self.config.gradient) != "unrolled":
            return ""
        state.kept["gradient"] = "constant"
        return "one step at a time"
