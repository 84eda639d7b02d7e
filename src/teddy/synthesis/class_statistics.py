"""Statistics of the training set per class, to match instead of the stored ones (§8-21)."""

import torch
from torch import Tensor

from teddy.data.datasets import LabelledImages
from teddy.data.images import Normalisation
from teddy.objectives import Moments
from teddy.settings.configs import ViewConfig
from teddy.synthesis.engine.frozen import Teacher


def class_moments(
    teacher: Teacher,
    images: LabelledImages,
    normalisation: Normalisation,
    views: ViewConfig,
    num_classes: int,
    seed: int,
    batch_size: int = 256,
) -> list[Moments]:
    """Exact statistics of every BatchNorm input for every class, over one pass (§8-21).

    Streaming sums in float64 of the biased variance, in eval mode, with the augmentation of
    training.

    Returns:
        Per layer: means and variances, each ``(K, channels)`` float32.
    """
    device = images.labels.device
    means: list[list[Tensor]] = []
    variances: list[list[Tensor]] = []
    for label in range(num_classes):
        members = torch.nonzero(images.labels == label)[:, 0]
        total = 0
        sums: list[tuple[Tensor, Tensor]] = []
        batches = images.train_batches(
            members.split(batch_size), views, normalisation, seed, "class statistics"
        )
        for inputs, labels in batches:
            with torch.inference_mode(), teacher.biased():
                _, seen = teacher.observe(inputs)
            total += len(labels)
            new = [_sums(batch, len(labels)) for batch in seen]
            if sums:
                new = [(a + c, b + d) for (a, b), (c, d) in zip(sums, new, strict=True)]
            sums = new
        means.append([first / total for first, _ in sums])
        variances.append([second / total - (first / total) ** 2 for first, second in sums])
    layers = range(len(teacher.running))
    return [
        Moments(
            torch.stack([of_class[layer] for of_class in means]).float().to(device),
            torch.stack([of_class[layer] for of_class in variances]).float().to(device),
        )
        for layer in layers
    ]


def _sums(batch: Moments, count: int) -> tuple[Tensor, Tensor]:
    """First and second moment times the number of images; pixels per image cancel."""
    mean, var = batch.mean.double(), batch.var.double()
    return count * mean, count * (var + mean**2)
