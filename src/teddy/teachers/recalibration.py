"""Running statistics of BatchNorm taken anew from images (``pool.post.bn_recalibrate``)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from teddy.core.errors import TeddyError
from teddy.core.seeding import permutation
from teddy.data.datasets import LabelledImages
from teddy.data.images import Normalisation
from teddy.teachers.networks import batchnorms
from teddy.teachers.training import equal_parts

_BATCH = 512  # images that are normalised together


class _Gathered(NamedTuple):
    """What a layer was given so far, per channel, in float64."""

    values: int
    """Images times pixels."""
    mean: Tensor
    squares: Tensor
    """Sum of squared deviations from the mean."""

    def joined(self, other: "_Gathered") -> "_Gathered":
        """Of both parts together; Chan, Golub & LeVeque, "Updating formulae", 1979."""
        values = self.values + other.values
        gap = other.mean - self.mean
        return _Gathered(
            values,
            self.mean + gap * (other.values / values),
            self.squares + other.squares + gap.square() * (self.values * other.values / values),
        )


def recalibrate(
    network: nn.Module, images: LabelledImages, normalisation: Normalisation, seed: int
) -> None:
    """Replace running statistics by those of one pass over whole images; ends in eval mode.

    Images weigh alike. They come in a random order, because stored ones lie by class, and in
    batches of almost equal size, up to 512. BatchNorm layers normalise by their batch, as in
    training; all others, dropout say, are in eval mode. A layer's mean and variance are those of
    everything it was given, so they include the variance between batches. The variance is the
    unbiased one, which PyTorch keeps in training: one batch of all images leaves the same.

    Args:
        network: on the device of the images; changed in place.
        images: at least two.
        normalisation: of the dataset.
        seed: of the pool member; the order depends on it.

    Raises:
        TeddyError: a single image, whose variance is unknown where it is one pixel large.
    """
    if len(images) < 2:
        raise TeddyError(f"bn_recalibrate needs at least 2 training images, got {len(images)}")
    layers = batchnorms(network)
    before = [layer.momentum for layer in layers]
    gathered: dict[nn.Module, _Gathered] = {}

    def gather(layer: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        mean, var = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
        values = inputs[0].numel() // len(mean)
        seen = _Gathered(values, mean.double(), (values - 1) * var.double())
        gathered[layer] = gathered[layer].joined(seen) if layer in gathered else seen

    network.eval()
    hooks = []
    for layer in layers:
        layer.get_buffer("num_batches_tracked").zero_()
        layer.momentum = 1.0  # the buffers are the last batch's
        layer.train()
        hooks.append(layer.register_forward_hook(gather))
    parts = equal_parts(permutation(len(images), seed, "recalibrate"), _BATCH)
    with torch.no_grad():
        for part in images.whole_batches(parts):
            network(normalisation.apply(part))
    for layer, momentum, hook in zip(layers, before, hooks, strict=True):
        hook.remove()
        layer.momentum = momentum
        if layer in gathered:
            values, mean, squares = gathered[layer]
            layer.get_buffer("running_mean").copy_(mean)
            layer.get_buffer("running_var").copy_(squares / (values - 1))
    network.eval()
