"""A network in a file of its own: three convolutions with BatchNorm, which Eq. 7 needs.

One key registers it, of teachers (a row of ``bases``) or of students (of sets and evaluations):

    bases:
      digits/small/base: {data: digits, network: {arch: "examples/small_net.py:SmallNet"}}
    evaluations:
      digits/table2/prior-small:
        {<<: *of_prior, evaluate: {network: {arch: "examples/small_net.py:SmallNet"}}}
"""

from torch import Tensor, nn


class SmallNet(nn.Module):
    """Called with the shape of images, ``(C, H, W)``, and the number of classes.

    The last linear layer is the classifier: pruning leaves its outputs alone.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, widths = image_shape[0], (16, 32, 32)
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.ReLU(), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)``."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
