"""What synthesis cannot be faster than: a network's convolutions alone, and their arithmetic.

A floor is one forward pass and one input gradient of every convolution, without statistics, affine,
ReLU, additions or poolings between them. The bound is the arithmetic of the whole network at the
speed of a large matrix product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.command import seconds
from teddy.teachers.pruning import count_macs

_PRODUCT = {"cpu": 1024, "cuda": 8192}  # rows of the matrices whose product is timed
_SMALL_PRODUCT = 256  # rows where an emulated type would take minutes
_EMULATED = 2.0  # a type this much slower than float32 is not run by the processor's instructions


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution of a network with the shape it sees."""

    layer: nn.Conv2d
    shape: torch.Size
    """Of its input, ``(N, C, H, W)``."""


def convolutions(network: nn.Module, images: Tensor) -> list[Convolution]:
    """Convolutions of a network in the order in which a forward pass calls them."""
    found: list[Convolution] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        found.append(Convolution(layer, inputs[0].shape))

    hooks = [
        layer.register_forward_pre_hook(look)
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return found


class Floor:
    """Forward passes, then input gradients in reverse, of convolutions on inputs laid out before.

    Args:
        network: whose convolutions.
        images: a batch as the network sees it; shape and device count.
        dtype: of weights and activations.
        layout: ``torch.contiguous_format`` or ``torch.channels_last``.
    """

    def __init__(
        self, network: nn.Module, images: Tensor, dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        self._calls: list[tuple[Tensor, Tensor, Any]] = []
        for found in convolutions(network, images):
            layer = found.layer
            image = torch.randn(found.shape, device=images.device)
            weight = layer.weight.detach().to(dtype, copy=True)
            options = (
                list(layer.stride), list(layer.padding), list(layer.dilation), False, [0, 0],
                layer.groups,
            )  # fmt: skip
            laid = image.to(dtype).to(memory_format=layout)
            self._calls.append((laid, weight.to(memory_format=layout), options))

    def __len__(self) -> int:
        return len(self._calls)

    def run(self) -> list[Tensor]:
        """Input gradients, last layer first."""
        outputs = [
            torch.ops.aten.convolution(image, weight, None, *options)
            for image, weight, options in self._calls
        ]
        return [
            torch.ops.aten.convolution_backward(
                output, image, weight, None, *options, [True, False, False]
            )[0]
            for output, (image, weight, options) in zip(
                reversed(outputs), reversed(self._calls), strict=True
            )
        ]


def operations(network: nn.Module, image_shape: tuple[int, int, int], images: int) -> int:
    """Floating-point operations of a forward pass and the input gradient."""
    return 2 * 2 * count_macs(network, image_shape) * images


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the best of several."""
    rows = _PRODUCT[device.type]
    return 2 * rows**3 / _best_product(device, dtype, rows)


def runs_natively(device: torch.device, dtype: torch.dtype) -> tuple[bool, float]:
    """Whether a type is worth running, and the time of a product over that in float32."""
    slowdown = _best_product(device, dtype, _SMALL_PRODUCT) / _best_product(
        device, torch.float32, _SMALL_PRODUCT
    )
    return slowdown < _EMULATED, slowdown


def _best_product(device: torch.device, dtype: torch.dtype, rows: int) -> float:
    a = torch.randn(rows, rows, device=device).to(dtype)
    multiply: Callable[[], Tensor] = lambda: a @ a  # noqa: E731
    multiply()
    return min(seconds(multiply, device) for _ in range(5))
