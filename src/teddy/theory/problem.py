"""What figures 1 and 5 put into the equations: networks as functions of weights, real images.

Dimensions: ``n`` images, ``C`` channels, ``H W`` pixels, ``K`` classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from teddy.core.errors import TeddyError
from teddy.core.seeding import derive
from teddy.data.datasets import ImageDataset, select_random
from teddy.objectives import Moments, moments
from teddy.teachers.networks import dm_padding
from teddy.theory.equations import Weights
from teddy.theory.unrolled import Batch, constants


@dataclass(frozen=True, slots=True)
class Student:
    """An architecture whose weights are handed in."""

    network: nn.Module

    def weights(self, dtype: torch.dtype = torch.float32) -> Weights:
        """The network's own weights, as theta_0."""
        named = self.network.named_parameters()
        return constants({name: value.to(dtype) for name, value in named})

    def logits(self, theta: Weights, images: Tensor) -> Tensor:
        """Outputs ``(n, K)`` for normalised images ``(n, C, H, W)``."""
        outputs: Tensor = functional_call(self.network, theta, (images,))
        return outputs

    def loss(self, theta: Weights, batch: Batch) -> Tensor:
        """l(D; theta), the mean cross-entropy of images and int64 labels ``(n,)``; a scalar."""
        images, labels = batch
        return cross_entropy(self.logits(theta, images), labels)

    def statistics(self, theta: Weights, images: Tensor) -> list[Moments]:
        """Mean and biased variance of every convolution's output channels, in module order.

        That output is the input of the BatchNorm layer that would follow it.
        """
        found: list[Moments] = []

        def look(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            found.append(moments(output))
            return output.clone()  # what follows may write into it

        layers = [m for m in self.network.modules() if isinstance(m, nn.Conv2d)]
        hooks = [layer.register_forward_hook(look) for layer in layers]
        try:
            self.logits(theta, images)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def plain_convnet(
    image_shape: tuple[int, int, int], num_classes: int, width: int, depth: int, seed: int
) -> nn.Module:
    """DM's ConvNet without normalisation, of any depth: convolution, ReLU, pooling; linear head.

    Raises:
        TeddyError: the image is too small to be halved ``depth`` times.
    """
    channels, height, rest = image_shape
    if min(height, rest) >> depth < 1:
        raise TeddyError(
            f"a network of depth {depth} halves the image so often: expected at least "
            f"{2**depth}×{2**depth} pixels, got {height}×{rest}"
        )
    blocks: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initialise"))
        for block in range(depth):
            padding = dm_padding(channels) if block == 0 else 1
            blocks += [nn.Conv2d(channels, width, 3, padding=padding), nn.ReLU(), nn.AvgPool2d(2)]
            channels = width
            height, rest = (side // 2 + padding - 1 for side in (height, rest))
        head = nn.Linear(channels * height * rest, num_classes)
    return nn.Sequential(*blocks, nn.Flatten(), head)


def real_batch(
    data: ImageDataset, per_class: int, seed: int, device: torch.device, limit: int | None = None
) -> Batch:
    """Random training images, normalised, and labels: equally many per class, up to a limit."""
    chosen = select_random(data.train.labels, data.class_names, range(per_class), seed)
    chosen = chosen.flatten()[:limit]
    pixels = data.train.pick(chosen).to(device)
    return data.normalisation.apply(pixels), data.train.labels[chosen].to(device)
