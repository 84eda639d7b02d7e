"""Architectures, and networks as files: weights plus the record they are rebuilt from."""

from pathlib import Path

import torch
from torch import Tensor, nn

from teddy.artifacts import Json, read_record, read_tensors, write_tensors
from teddy.config import NetworkConfig, from_json, to_json
from teddy.errors import TeddyError
from teddy.seeding import derive

_KIND = "teddy.network.v1"


class ConvNet(nn.Module):
    """DM's ConvNet: three blocks of 3×3 convolution, norm, ReLU, 2×2 average pooling; linear head.

    Source: Zhao & Bilen, "Dataset condensation with distribution matching", VICO-UoE/
    DatasetCondensation ``networks.py``, re-implemented.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, width: int, norm: str
    ) -> None:
        super().__init__()
        channels, height, rest = image_shape
        blocks: list[nn.Module] = []
        for _ in range(3):
            blocks += [
                nn.Conv2d(channels, width, 3, padding=1),
                _norm(norm, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
            channels, height, rest = width, height // 2, rest // 2
        if min(height, rest) < 1:
            raise TeddyError(
                f"convnet3 halves the image three times: expected at least 8×8 pixels, got "
                f"{image_shape[1]}×{image_shape[2]}"
            )
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * height * rest, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of normalised images ``(N, C, H, W)``."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def _norm(norm: str, width: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(width)
    if norm == "instance":
        return nn.GroupNorm(width, width)
    if norm == "group":
        return nn.GroupNorm(min(4, width), width)
    return nn.Identity()


def build(
    config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int, seed: int
) -> nn.Module:
    """Fresh network, initialised from its own random stream.

    Rule for image size: up to 64 pixels a ResNet's stem is a 3×3 convolution of stride 1 without
    max-pooling (MoCo's and SRe2L's change for small images); above, it is torchvision's.

    Args:
        config: architecture.
        image_shape: channels, height, width.
        num_classes: K.
        seed: any int; equal seeds give equal weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initialise"))
        if config.arch == "convnet3":
            return ConvNet(image_shape, num_classes, config.width, config.norm)
        return _resnet18(image_shape, num_classes)


def _resnet18(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    from torchvision.models import resnet18

    channels, height, width = image_shape
    network: nn.Module = resnet18(num_classes=num_classes)
    if max(height, width) <= 64:
        network.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network


def classifier(network: nn.Module) -> nn.Linear:
    """The last linear layer, whose outputs are the classes."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def batchnorms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """BatchNorm layers in module order, down-sampling branches included."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


# ------------------------------------------------------------------------------------ on disk


def save_network(
    path: Path,
    network: nn.Module,
    config: NetworkConfig,
    image_shape: tuple[int, int, int],
    num_classes: int,
    record: Json | None = None,
) -> None:
    """Write a network's weights and buffers with what is needed to rebuild it."""
    meta = {
        "network": to_json(config),
        "image_shape": list(image_shape),
        "num_classes": num_classes,
    }
    write_tensors(path, network.state_dict(), kind=_KIND, record={**meta, **(record or {})})


def load_network(path: Path) -> tuple[nn.Module, Json]:
    """Rebuild a network, pruned or not, and return it with its record.

    Raises:
        TeddyError: missing, truncated or foreign file, or weights of another architecture.
    """
    state, record = read_tensors(path, kind=_KIND)
    config = from_json(NetworkConfig, record["network"], f"{path}: network")
    channels, height, width = record["image_shape"]
    network = build(config, (channels, height, width), record["num_classes"], seed=0)
    _fit_shapes(network, state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise TeddyError(f"{path}: weights do not fit {config.arch}: {reason}") from None
    return network, record


def read_network_record(path: Path) -> Json:
    """Record of a network file without its weights; errors as for :func:`load_network`."""
    return read_record(path, kind=_KIND)


def _fit_shapes(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Shrink layers in place to the shapes of pruned weights."""
    for name, module in network.named_modules():
        weight = state.get(f"{name}.weight")
        if weight is None:
            continue
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups == module.in_channels
            module.out_channels = weight.shape[0]
            module.groups = weight.shape[0] if depthwise and module.groups > 1 else module.groups
            module.in_channels = weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(weight)
            module.running_mean = torch.empty(len(weight))
            module.running_var = torch.empty(len(weight))
        for key, parameter in list(module.named_parameters(recurse=False)):
            shape = state[f"{name}.{key}"].shape if f"{name}.{key}" in state else parameter.shape
            if shape != parameter.shape:
                setattr(module, key, nn.Parameter(torch.empty(shape)))
