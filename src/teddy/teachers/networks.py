"""Architectures, and networks as files: weights plus the record they are rebuilt from."""

import argparse
import errno
import hashlib
import re
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from teddy.core import user_code
from teddy.core.artifacts import read_record, read_tensors, write_tensors
from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.memory import check_fits
from teddy.core.seeding import derive
from teddy.settings.configs import NetworkConfig
from teddy.settings.schema import from_json, to_json

_KIND = "teddy.network.v1"
_SMALL = 64  # pixels: Tiny-ImageNet's, the largest images that SRe2L adapts the stem to
# The stem's max-pool in torchvision's ResNets, ShuffleNets and DenseNets.
_STEM_POOLS = ("maxpool", "features.pool0")
# Keys that training scripts put a state dict under, and what they and wrappers (DataParallel,
# torch.compile, Lightning) put before the name of every weight.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = (
    "module._orig_mod.", "_orig_mod.module.", "_orig_mod.", "module.", "model.", "net.",
    "backbone.",
)  # fmt: skip
# What a number of NumPy is pickled by; NumPy 1 has the first of these in another module.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"},
]  # fmt: skip
# torchvision's published DenseNet weights have names of before its modules were renamed.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class ConvNet(nn.Module):
    """DM's ConvNet: three blocks of 3×3 convolution, norm, ReLU, 2×2 average pooling; linear head.

    As DM's, the first convolution pads grey images by 3 instead of 1, which makes 32×32 of MNIST's
    28×28 pixels, and 12×12 of 8×8.

    Source: Zhao & Bilen, "Dataset condensation with distribution matching", VICO-UoE/
    DatasetCondensation ``networks.py``, re-implemented.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, width: int, norm: str
    ) -> None:
        super().__init__()
        channels, height, rest = image_shape
        if min(height, rest) < 8:
            raise TeddyError(
                f"convnet3 halves the image three times: expected at least 8×8 pixels, got "
                f"{height}×{rest}"
            )
        weights = 9 * width * (channels + 2 * width)
        check_fits(4 * weights, f"convnet3 of width {width} has {weights:,} weights")
        blocks: list[nn.Module] = []
        for padding in (dm_padding(channels), 1, 1):
            blocks += [
                nn.Conv2d(channels, width, 3, padding=padding),
                _norm(norm, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
            channels = width
            height, rest = (side // 2 + padding - 1 for side in (height, rest))
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * height * rest, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of normalised images ``(N, C, H, W)``."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def dm_padding(channels: int) -> int:
    """Pixels by which the first 3×3 convolution of DM's ConvNet pads images on each side."""
    return 3 if channels == 1 else 1


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
    """Fresh network, initialised from its own random numbers.

    torchvision's networks are adapted to the images by one rule: up to 64 pixels (the larger of
    height and width) the stem keeps the resolution, that is, the first convolution becomes 3×3 of
    stride 1 and padding 1, and the stem's max-pool is removed; later ones, as VGG's, stay. For
    ResNet18 this is MoCo's and SRe2L's change for small images. Above 64 pixels the network is
    torchvision's. The first convolution takes as many channels as the images have. A class of the
    user's own is called with ``(image_shape, num_classes)``.

    Args:
        config: architecture.
        image_shape: channels, height, width.
        num_classes: K.
        seed: any int; equal seeds give equal weights.

    Raises:
        TeddyError: images of less than 8×8 pixels, or 32×32 for torchvision's own stems and for
            VGG; or a network with further outputs while it is trained, as GoogLeNet.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initialise"))
        if config.arch == "convnet3":
            return ConvNet(image_shape, num_classes, config.width, config.norm)
        if user_code.is_reference(config.arch):
            return _of_user(config.arch, image_shape, num_classes)
        return _torchvision(config.arch, image_shape, num_classes)


def _of_user(arch: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network of the user's own: called with the shape of images and the number of classes."""
    network = user_code.load(arch)(image_shape, num_classes)
    if not isinstance(network, nn.Module):
        raise TeddyError(f"{arch}: expected a torch.nn.Module, got {type(network).__name__}")
    return network


def _torchvision(arch: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    from torchvision.models import get_model

    channels, height, width = image_shape
    network: nn.Module = get_model(arch, weights=None, num_classes=num_classes)
    if hasattr(network, "aux_logits"):
        raise TeddyError(f"{arch} has auxiliary outputs while training, which are not supported")
    small = max(height, width) <= _SMALL
    if small:
        _replace_stem(network, channels, kernel_size=3, stride=1, padding=1)
        _remove_stem_pool(network)
    elif channels != 3:
        _replace_stem(network, channels)
    pools = sum(isinstance(module, nn.MaxPool2d) for module in network.modules())
    least = max(8, 2**pools) if small else 32  # what later strides divide by, at most
    if min(height, width) < least:
        raise TeddyError(
            f"{arch} expects at least {least}×{least} pixels with the stem for images of "
            f"{'up to' if small else 'more than'} {_SMALL} pixels, got {height}×{width}"
        )
    return network


def _remove_stem_pool(network: nn.Module) -> None:
    for name, module in list(network.named_modules()):
        if name in _STEM_POOLS and isinstance(module, nn.MaxPool2d):
            network.set_submodule(name, nn.Identity())


def _replace_stem(network: nn.Module, channels: int, **changes: int) -> None:
    """Exchange the first convolution for a fresh one, initialised as PyTorch does."""
    name, stem = next(
        (name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    )
    options: Any = {
        "kernel_size": stem.kernel_size,
        "stride": stem.stride,
        "padding": stem.padding,
        "bias": stem.bias is not None,
    }
    network.set_submodule(name, nn.Conv2d(channels, stem.out_channels, **{**options, **changes}))


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
    _load(network, state, f"{path}: weights do not fit {config.arch}")
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


def _load(network: nn.Module, state: Mapping[str, Tensor], complaint: str) -> None:
    """Load weights that have the network's names and shapes, or name the first that differs.

    Counters of batches may be missing: published weights are older than they are.
    """
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name not in state and not name.endswith("num_batches_tracked"):
            found = ", ".join(list(state)[:3]) or "nothing"
            raise TeddyError(f"{complaint}: {name} is missing; found {found}, …")
        if name in state and state[name].shape != tensor.shape:
            got, expected = _shape(state[name]), _shape(tensor)
            raise TeddyError(f"{complaint}: {name} has shape {got}, expected {expected}")
        if name in state and (problem := _problem(state[name], tensor)):
            raise TeddyError(f"{complaint}: {name} {problem}")
    for name in state:
        if name not in wanted:
            raise TeddyError(f"{complaint}: {name} is not in it")
    wanted.update(state)  # with the version of its layout, which MNASNet asks for
    network.load_state_dict(wanted)


def _problem(given: Tensor, wanted: Tensor) -> str:
    """Why a tensor cannot be a network's own of that shape, "" if it can."""
    if given.layout != torch.strided or given.is_quantized or given.is_meta:
        kind = "is quantised" if given.is_quantized else "has no values"
        return kind if given.layout == torch.strided else f"is {given.layout}, expected dense"
    if wanted.is_floating_point() and not given.is_floating_point():
        return f"is {given.dtype}, expected floating-point numbers"
    finite = given.to(wanted.dtype).isfinite().all()
    return "" if finite else f"has numbers that are not finite in {wanted.dtype}"


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


# ------------------------------------------------------------------------------ weights of others


def load_pretrained(
    config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int, checkpoint: str
) -> nn.Module:
    """Network of :func:`build` with weights that were trained elsewhere.

    Args:
        config: architecture.
        image_shape: channels, height, width.
        num_classes: K.
        checkpoint: ``torchvision`` for its published ImageNet weights (IMAGENET1K_V1; classes in
            the order of their WordNet IDs, pixels normalised with ImageNet's usual mean and
            deviation), or the path of a file: a network of ours, or a plain state dict as
            ``.safetensors`` or as PyTorch's ``.pth``, alone or under a usual key (``state_dict``,
            ``model_state_dict``, ``model``, ``net``), with or without one usual prefix that all
            names have (``module.``, ``_orig_mod.``, ``model.``, ``net.``, ``backbone.``). ``~`` is
            the home folder. No pickled code is run.

    Raises:
        TeddyError: missing or unreadable file, weights of other classes or another architecture,
            or published weights that cannot be downloaded; says where to put them by hand.
    """
    if checkpoint == "torchvision":
        state, place = _published(config.arch, num_classes), f"torchvision's {config.arch}"
    else:
        state, place = _read_state(Path(checkpoint).expanduser()), checkpoint
    state = {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items()}
    network = build(config, image_shape, num_classes, seed=0)
    state = _without_prefix(state, network)
    head = classifier(network)
    name = next(name for name, module in network.named_modules() if module is head) + ".bias"
    if name in state:
        _check_classes(place, state[name].numel(), num_classes)
    size = "×".join(map(str, image_shape))
    _load(network, state, f"{place}: weights do not fit {config.arch} for {size} images")
    return network


def _without_prefix(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights without a usual prefix that all have, if the network has names of what is left."""
    wanted = network.state_dict().keys()
    if wanted & state.keys():
        return state
    for prefix in _PREFIXES:
        short = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        if all(name.startswith(prefix) for name in state) and wanted & short.keys():
            return short
    return state


def _check_classes(place: str, found: int, num_classes: int) -> None:
    if found != num_classes:
        raise TeddyError(f"{place}: weights for {found} classes, but the data has {num_classes}")


def _published(arch: str, num_classes: int) -> dict[str, Tensor]:
    """Published weights of torchvision, from its cache or the net."""
    from torchvision.models import get_model_weights

    if arch == "convnet3":
        raise TeddyError("torchvision has no weights of convnet3; give the path of a file")
    weights: Any = get_model_weights(arch)["IMAGENET1K_V1"]
    _check_classes(f"torchvision's {arch}", len(weights.meta["categories"]), num_classes)
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if path.exists():
        _check_hash(path)
    try:
        state = weights.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, HTTPException, RuntimeError) as error:
        raise TeddyError(
            f"cannot download torchvision's weights of {arch} ({' '.join(str(error).split())}); "
            f"fetch {weights.url} on another machine and put it at {path}"
        ) from None
    return dict(state)


def _check_hash(path: Path) -> None:
    """Refuse a cached file that its name's hash does not fit; PyTorch checks only downloads."""
    expected = path.stem.rpartition("-")[2]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise TeddyError(
            f"{path}: not the published file, its SHA-256 begins {found[:8]}, expected {expected}; "
            "delete it"
        )


def _read_state(path: Path) -> dict[str, Tensor]:
    """Weights of a file by their names."""
    if not path.is_file():
        raise TeddyError(f"{path}: expected a checkpoint, found no file there")
    loaded: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    while isinstance(loaded, Mapping):
        inner = [loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    if not isinstance(loaded, Mapping) or not all(isinstance(t, Tensor) for t in loaded.values()):
        keys = list(map(str, loaded))[:3] if isinstance(loaded, Mapping) else []
        found = f"keys {', '.join(keys)}, …" if keys else f"a {type(loaded).__name__}"
        raise TeddyError(
            f"{path}: expected a state dict, that is, tensors by name, alone or under one of "
            f"{', '.join(_WRAPPERS)}; found {found}"
        )
    return {str(name): tensor for name, tensor in loaded.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            ours = "teddy" in (file.metadata() or {})
        return read_tensors(path, kind=_KIND)[0] if ours else load_file(path)
    except (SafetensorError, OSError) as error:
        raise TeddyError(f"{path}: damaged or not safetensors ({error})") from None


def _read_pth(path: Path) -> Any:
    try:
        # Training scripts leave their arguments in the file, as torchvision's and SRe2L's do, and
        # what they measured, as NumPy's numbers.
        with torch.serialization.safe_globals([argparse.Namespace, *_NUMBERS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the unpickler raises on a damaged file depends on the damage
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is a short file's
            raise TeddyError(f"{path}: cannot read: {error.strerror or error}") from None
        raise TeddyError(
            f"{path}: damaged or incomplete, or not a file of tensors alone; expected what "
            "torch.save(network.state_dict(), …) writes"
        ) from None
