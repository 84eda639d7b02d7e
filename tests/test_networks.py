"""Architectures and network files: shapes, equal seeds, pruned networks, refusals.

`katNN` are the known-answer tests of the specification, by its numbering. No GPU, no downloads.
"""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from teddy.core import memory
from teddy.core.artifacts import write_tensors
from teddy.core.errors import TeddyError
from teddy.settings.configs import ARCHITECTURES, NetworkConfig
from teddy.teachers.networks import (
    batchnorms,
    build,
    classifier,
    count_parameters,
    load_network,
    load_pretrained,
    read_network_record,
    save_network,
)
from teddy.teachers.pruning import count_macs, prune_randomly

RESNET = NetworkConfig(arch="resnet18", width=64, norm="batch")
ARCHS = ARCHITECTURES
TORCHVISION = ARCHS[1:]
# Parameters of torchvision's networks with 1000 classes, from its documentation.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "densenet121": 7_978_856,
    "mobilenet_v2": 3_504_872,
    "shufflenet_v2_x1_0": 2_278_604,
    "shufflenet_v2_x2_0": 7_393_996,
    "efficientnet_b0": 5_288_548,
}


def convnet(width: int = 4, norm: Any = "batch") -> NetworkConfig:
    """DM's ConvNet."""
    return NetworkConfig(arch="convnet3", width=width, norm=norm)


def network_of(arch: Any) -> NetworkConfig:
    """An architecture at a small width."""
    return NetworkConfig(arch=arch, width=8, norm="batch")


def randomise(network: nn.Module) -> nn.Module:
    """Give BatchNorm layers the look of trained ones; return the network in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for layer in batchnorms(network):
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            assert tensor is not None
            nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
    return network.eval()


def assert_same(one: nn.Module, two: nn.Module) -> None:
    """Equal names and equal bits."""
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def convolution(network: nn.Module, name: str = "conv1") -> nn.Conv2d:
    """A convolution by its name."""
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    return layer


# --------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 16, 32, 64])
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_convnet_has_the_right_shapes(channels: int, side: int, norm: str) -> None:
    network = build(convnet(8, norm), (channels, side, side), 5, seed=0)
    assert network(torch.zeros(2, channels, side, side)).shape == (2, 5)
    after_conv = side + 4 if channels == 1 else side
    assert classifier(network).in_features == 8 * (after_conv // 8) ** 2
    assert len(batchnorms(network)) == (3 if norm == "batch" else 0)


# Counts of DM's own networks.ConvNet (VICO-UoE/DatasetCondensation), width 128, 10 classes.
@pytest.mark.parametrize(
    ("shape", "features", "parameters"),
    [
        ((1, 28, 28), 2048, 317_706),
        ((1, 32, 32), 2048, 317_706),
        ((3, 32, 32), 2048, 320_010),
        ((1, 8, 8), 128, 298_506),
    ],
)
def test_convnet_has_the_size_of_dms(
    shape: tuple[int, int, int], features: int, parameters: int
) -> None:
    network = build(convnet(128, "instance"), shape, 10, seed=0)
    assert classifier(network).in_features == features
    assert count_parameters(network) == parameters


def dms_convnet(state: dict[str, Tensor], images: Tensor, norm: str) -> Tensor:
    """DM's ConvNet-3 written out: grey images are padded by 3, which other maps are by 1."""
    x = images
    for block in range(3):
        padding = 3 if block == 0 and images.shape[1] == 1 else 1
        conv, after = f"features.{4 * block}", f"features.{4 * block + 1}"
        x = functional.conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=padding)
        if norm != "none":
            scale, shift = state[f"{after}.weight"], state[f"{after}.bias"]
            groups = {"instance": x.shape[1], "group": 4}.get(norm)
            if groups:
                x = functional.group_norm(x, groups, scale, shift)
            else:
                mean, var = state[f"{after}.running_mean"], state[f"{after}.running_var"]
                x = functional.batch_norm(x, mean, var, scale, shift)
        x = functional.avg_pool2d(functional.relu(x), kernel_size=2, stride=2)
    return functional.linear(x.flatten(1), state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (1, 9, 14), (3, 32, 32), (3, 8, 8)])
def test_convnet_computes_what_dms_does(norm: str, shape: tuple[int, int, int]) -> None:
    network = randomise(build(convnet(8, norm), shape, 5, seed=0))
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    expected = dms_convnet(network.state_dict(), images, norm)
    torch.testing.assert_close(network(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 32, 64])
def test_resnet_keeps_small_images_large(channels: int, side: int) -> None:
    network = build(RESNET, (channels, side, side), 200, seed=0).eval()
    seen: list[torch.Size] = []
    network.get_submodule("layer1").register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape)
    )
    with torch.no_grad():
        assert network(torch.zeros(1, channels, side, side)).shape == (1, 200)
    assert seen == [(1, 64, side, side)], "no pooling in the stem"
    assert len(batchnorms(network)) == 20
    assert batchnorms(network)[0] is network.bn1


def test_resnet_of_large_images_is_torchvisions() -> None:
    network = build(RESNET, (3, 224, 224), 1000, seed=0)
    assert count_parameters(network) == 11_689_512
    assert isinstance(network.maxpool, nn.MaxPool2d)
    grey = build(RESNET, (1, 96, 96), 10, seed=0).eval()
    with torch.no_grad():
        assert grey(torch.zeros(1, 1, 96, 96)).shape == (1, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224)])
@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_takes_every_size(arch: str, shape: tuple[int, int, int]) -> None:
    with torch.device("meta"):  # shapes without arithmetic
        network = build(network_of(arch), shape, 7, seed=0)
        assert network(torch.zeros(2, *shape)).shape == (2, 7)
    assert classifier(network).out_features == 7
    assert len(batchnorms(network)) >= 3
    stem = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    assert stem.in_channels == shape[0]
    if shape[1] <= 64:
        padding = (3, 3) if arch == "convnet3" and shape[0] == 1 else (1, 1)
        assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), padding)
        assert not any(isinstance(m, nn.MaxPool2d) for m in network.modules())


@pytest.mark.parametrize("arch", TORCHVISION)
def test_networks_of_large_images_are_torchvisions(arch: str) -> None:
    from torchvision.models import get_model

    with torch.device("meta"):
        network = build(network_of(arch), (3, 65, 65), 1000, seed=0)
        theirs = get_model(arch)
        grey = build(network_of(arch), (1, 224, 224), 1000, seed=0)
    assert str(network) == str(theirs)
    assert count_parameters(network) == PUBLISHED[arch]
    stem, grey_stem = (
        next(m for m in net.modules() if isinstance(m, nn.Conv2d)) for net in (network, grey)
    )
    assert str(grey_stem) == str(stem).replace("Conv2d(3,", "Conv2d(1,")
    assert count_parameters(network) - count_parameters(grey) == stem.weight[:, :2].numel()


def test_only_the_stem_of_a_small_resnet_differs_from_torchvisions() -> None:
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=200)
    theirs.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    assert str(build(RESNET, (3, 64, 64), 200, seed=0)) == str(theirs)


@pytest.mark.parametrize("arch", ARCHS)
def test_batchnorms_are_met_once_each_in_module_order(arch: str) -> None:
    """What synthesis takes for granted of a teacher, in eval mode and with frozen weights."""
    network = build(network_of(arch), (3, 16, 16), 5, seed=0)
    randomise(network).requires_grad_(False)
    layers = batchnorms(network)
    met: list[nn.Module] = []
    seen: list[tuple[Tensor, Tensor]] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        met.append(layer)
        seen.append((inputs[0], inputs[0].detach().clone()))

    for layer in layers:
        layer.register_forward_pre_hook(look)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = network(images.requires_grad_())
    assert met == layers
    for now, then in seen:
        assert torch.equal(now, then), "nothing writes over what was observed"
    gap = torch.stack([value.mean() + value.var(correction=0) for value, _ in seen]).sum()
    (logits.sum() + gap).backward()
    assert images.grad is not None
    assert images.grad.isfinite().all() and images.grad.abs().max() > 0


@pytest.mark.parametrize("arch", ["densenet121", "shufflenet_v2_x1_0"])
def test_images_too_small_for_the_strides_are_refused(arch: str) -> None:
    for shape, least in [((3, 7, 32), 8), ((3, 31, 65), 32)]:
        with pytest.raises(TeddyError, match=rf"{arch} expects at least {least}×{least} pixels"):
            build(network_of(arch), shape, 3, seed=0)
        with torch.device("meta"):
            enough = (3, least, shape[2])
            network = build(network_of(arch), enough, 3, seed=0)
            assert network(torch.zeros(2, *enough)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(1, 7, 7), (3, 8, 7), (1, 4, 32)])
def test_images_too_small_for_three_halvings_are_refused(shape: tuple[int, int, int]) -> None:
    expected = rf"at least 8.8 pixels, got {shape[1]}.{shape[2]}"
    with pytest.raises(TeddyError, match=expected):
        build(convnet(), shape, 3, seed=0)


def test_images_need_not_be_square() -> None:
    network = build(convnet(), (1, 8, 24), 3, seed=0)
    assert network(torch.zeros(2, 1, 8, 24)).shape == (2, 3)


def test_instance_norm_treats_every_image_and_channel_alone() -> None:
    layer = build(convnet(4, "instance"), (1, 8, 8), 3, seed=0).get_submodule("features.1")
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), nn.functional.instance_norm(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [convnet(), RESNET, network_of("efficientnet_b0")])
def test_equal_seeds_give_equal_weights(config: NetworkConfig) -> None:
    shape = (1, 8, 8)
    before = torch.get_rng_state()
    first = build(config, shape, 3, seed=5)
    torch.manual_seed(99)
    second = build(config, shape, 3, seed=5)
    assert_same(first, second)
    other = build(config, shape, 3, seed=6)
    assert not torch.equal(classifier(first).weight, classifier(other).weight)
    torch.set_rng_state(before)
    build(config, shape, 3, seed=5)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"


# --------------------------------------------------------------------------------------- on disk


@pytest.mark.parametrize(
    "config",
    [convnet(8, "group"), convnet(8, "instance"), convnet(8, "none"), *map(network_of, ARCHS)],
)
def test_network_is_loaded_as_saved(config: NetworkConfig, tmp_path: Path) -> None:
    network = build(config, (1, 8, 8), 3, seed=1)
    for layer in batchnorms(network):
        nn.init.uniform_(layer.running_mean)  # type: ignore[arg-type]
        layer.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    path = tmp_path / "network.safetensors"
    save_network(path, network, config, (1, 8, 8), 3, {"val_top1": 12.5})
    loaded, record = load_network(path)
    assert_same(loaded, network)
    assert record["val_top1"] == 12.5
    assert record["image_shape"] == [1, 8, 8]
    assert read_network_record(path) == record
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.eval()(images), network.eval()(images))


@pytest.mark.parametrize("config", [convnet(16), RESNET])
def test_pruned_network_is_loaded_as_saved(config: NetworkConfig, tmp_path: Path) -> None:
    network = build(config, (1, 16, 16), 3, seed=1)
    pruned = prune_randomly(network, (1, 16, 16), 0.3, seed=2)
    assert count_parameters(pruned) < count_parameters(network)
    save_network(tmp_path / "p", pruned, config, (1, 16, 16), 3)
    loaded, _ = load_network(tmp_path / "p")
    assert_same(loaded, pruned)
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.eval()(images), pruned.eval()(images))
    assert loaded.train()(images).shape == (4, 3)
    for layer in loaded.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels)
        if isinstance(layer, nn.BatchNorm2d):
            assert len(layer.weight) == layer.num_features


def test_weights_of_another_architecture_are_refused_in_one_line(tmp_path: Path) -> None:
    network = build(convnet(4, "none"), (1, 8, 8), 3, seed=1)
    path = tmp_path / "n.safetensors"
    save_network(path, network, convnet(4, "batch"), (1, 8, 8), 3)
    with pytest.raises(TeddyError, match=r"n\.safetensors: weights do not fit convnet3") as caught:
        load_network(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    write_tensors(path, {"a": torch.zeros(1)}, kind="teddy.other.v1", record={})
    with pytest.raises(TeddyError, match=r"n\.safetensors: expected a teddy\.network"):
        load_network(path)


# --------------------------------------------------------------------------------------- pruning


def test_kat22_pruned_resnet_has_the_size_of_the_paper(tmp_path: Path) -> None:
    shape = (3, 224, 224)
    network = build(RESNET, shape, 1000, seed=0).eval()
    first_weight = convolution(network).weight.detach().clone()
    pruned = prune_randomly(network, shape, 0.19, seed=0)
    other = prune_randomly(network, shape, 0.19, seed=1)
    assert count_parameters(pruned) == count_parameters(other) == 7_717_661
    assert torch.equal(convolution(network).weight, first_weight), "the base is left alone"
    assert convolution(network).out_channels == 64
    for net in (pruned, other):
        stages = [net.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)]
        for stage, channels in zip(stages, (51, 103, 207, 414), strict=True):
            convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
            assert {conv.out_channels for conv in convs} == {channels}
        assert convolution(net).out_channels == 51
        assert (classifier(net).in_features, classifier(net).out_features) == (414, 1000)

    def kept(net: nn.Module) -> list[int]:
        weight = convolution(net).weight.detach().flatten(1)
        return torch.cdist(weight, first_weight.flatten(1)).argmin(1).tolist()

    assert len(set(kept(pruned))) == 51
    assert kept(pruned) != kept(other)
    save_network(tmp_path / "pruned", pruned, RESNET, shape, 1000)
    loaded, _ = load_network(tmp_path / "pruned")
    assert_same(loaded, pruned)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = loaded.eval()(image)
        assert logits.shape == (1, 1000)
        assert torch.equal(logits, pruned.eval()(image))


def test_pruning_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    network = build(convnet(16), (1, 8, 8), 3, seed=0)
    before = torch.get_rng_state()
    first, again = (prune_randomly(network, (1, 8, 8), 0.25, seed=4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(first, again)
    assert [layer.num_features for layer in batchnorms(first)] == [12, 12, 12]
    other = prune_randomly(network, (1, 8, 8), 0.25, seed=5)
    assert not torch.equal(batchnorms(other)[0].weight, torch.zeros(12))
    assert not torch.equal(classifier(first).weight, classifier(other).weight)
    assert classifier(first).out_features == 3


def test_pruning_of_a_frozen_network_by_nothing_changes_nothing() -> None:
    network = build(convnet(8), (1, 8, 8), 3, seed=0).requires_grad_(False)
    same = prune_randomly(network, (1, 8, 8), 0.0, seed=4)
    assert_same(same, network)
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_multiply_accumulates_of_a_convnet_are_counted_by_hand(norm: str) -> None:
    """Output pixels times 9 times input and output channels, of 12×12, 6×6 and 3×3 pixels."""
    network = build(convnet(4, norm), (1, 8, 8), 3, seed=0)
    convolutions = 144 * 9 * 1 * 4 + 36 * 9 * 4 * 4 + 9 * 9 * 4 * 4
    assert count_macs(network, (1, 8, 8)) == convolutions + 4 * 3
    rgb = build(convnet(128, norm), (3, 32, 32), 10, seed=0)
    convolutions = 1024 * 9 * 3 * 128 + 256 * 9 * 128**2 + 64 * 9 * 128**2
    assert count_macs(rgb, (3, 32, 32)) == convolutions + 2048 * 10 == 50_745_344


def resnet18_macs(widths: tuple[int, int, int, int], side: int) -> int:
    """Of ResNet18 for 1000 classes: stem, four stages of two blocks, shortcuts, linear layer."""
    macs = (side // 2) ** 2 * 49 * 3 * widths[0]
    before = widths[0]
    for stage, width in enumerate(widths):
        pixels = (side // 4 // 2**stage) ** 2
        macs += pixels * (9 * before * width + 3 * 9 * width**2)
        macs += pixels * before * width if stage else 0
        before = width
    return macs + before * 1000


def test_kat22_multiply_accumulates_of_resnet18_are_those_of_the_paper() -> None:
    shape = (3, 224, 224)
    network = build(RESNET, shape, 1000, seed=0)
    assert count_macs(network, shape) == resnet18_macs((64, 128, 256, 512), 224) == 1_814_073_344
    pruned = count_macs(prune_randomly(network, shape, 0.19, seed=0), shape)
    assert pruned == resnet18_macs((51, 103, 207, 414), 224)
    assert round(pruned / 1e9, 1) == 1.2, "as printed"


def test_torchvisions_networks_ignore_the_width_and_have_their_own_norm() -> None:
    assert_same(
        build(RESNET, (1, 8, 8), 3, seed=0), build(replace(RESNET, width=32), (1, 8, 8), 3, seed=0)
    )
    for arch in TORCHVISION:
        with pytest.raises(TeddyError, match=rf"norm must be batch .* {arch}, got group"):
            NetworkConfig(arch=arch, width=64, norm="group")


# ------------------------------------------------------------------------------ weights of others

SHAPE = (1, 8, 8)
State = dict[str, Any]


def convnet_state() -> State:
    """Weights of a trained ConvNet."""
    return dict(randomise(build(convnet(), SHAPE, 3, seed=1)).state_dict())


def save_safetensors(state: State, path: Path) -> None:
    """A plain safetensors file."""
    save_file(state, path)


def save_ours(state: State, path: Path) -> None:
    """A network file of ours."""
    network = build(convnet(), SHAPE, 3, seed=0)
    network.load_state_dict(state)
    save_network(path, network, convnet(), SHAPE, 3)


def save_wrapped(state: State, path: Path) -> None:
    """What torchvision's training script leaves."""
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1}]}
    args = argparse.Namespace(lr=0.1)
    torch.save({"model": state, "optimizer": optimizer, "epoch": 3, "args": args}, path)


def save_parallel(state: State, path: Path) -> None:
    """What PyTorch's ImageNet example leaves."""
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": parallel, "arch": "convnet3", "epoch": 3}, path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("ours.safetensors", save_ours),
        ("plain.safetensors", save_safetensors),
        ("plain.pth", torch.save),
        ("wrapped.pt", save_wrapped),
        ("parallel.pth.tar", save_parallel),
    ],
)
def test_weights_of_any_usual_file_are_taken(
    name: str, save: Callable[[State, Path], None], tmp_path: Path
) -> None:
    state = convnet_state()
    save(state, tmp_path / name)
    network = load_pretrained(convnet(), SHAPE, 3, str(tmp_path / name))
    assert network.state_dict().keys() == state.keys()
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key]), key


PREFIXES = [
    "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.",
    "backbone.",
]  # fmt: skip
WRAPPERS: list[tuple[str, ...]] = [
    (), ("state_dict",), ("model",), ("net",), ("model_state_dict",), ("model", "state_dict"),
]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
@pytest.mark.parametrize("wrappers", WRAPPERS, ids=".".join)
def test_weights_are_taken_from_below_a_prefix_and_a_wrapper(
    prefix: str, wrappers: tuple[str, ...], tmp_path: Path
) -> None:
    state = convnet_state()
    content: State = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    for key in reversed(wrappers):
        content = {"epoch": 3, key: content}
    torch.save(content, tmp_path / "net.pth")
    network = load_pretrained(convnet(), SHAPE, 3, str(tmp_path / "net.pth"))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_names_that_begin_like_a_prefix_are_the_networks_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, shape, classes):\n"
        "        super().__init__()\n"
        "        self.module = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
        "    def forward(self, x):\n"
        "        return self.module(x)\n"
    )
    config = NetworkConfig(arch="own.py:Net", width=4, norm="batch")
    network = build(config, SHAPE, 3, seed=1)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    assert_same(load_pretrained(config, SHAPE, 3, str(tmp_path / "net.pth")), network)


def test_numbers_of_numpy_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    others = {"best": np.float64(93.1), "epoch": np.int64(3), "done": np.bool_(True)}
    torch.save({"state_dict": convnet_state(), **others}, path)
    load_pretrained(convnet(), SHAPE, 3, str(path))


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.to(torch.int8), "is torch.int8, expected floating-point numbers"),
        (lambda weight: weight.to(torch.complex64), "is torch.complex64, expected floating"),
        (lambda weight: weight.to("meta"), "has no values"),
        (lambda weight: weight.to_sparse(), "is torch.sparse_coo, expected dense"),
        (lambda weight: weight * torch.nan, "has numbers that are not finite in torch.float32"),
        (lambda weight: weight.double() + 1e99, "has numbers that are not finite in torch.float32"),
    ],
    ids=["whole", "complex", "meta", "sparse", "nan", "too large"],
)
def test_weights_that_are_no_numbers_of_a_network_are_refused(
    change: Callable[[Tensor], Tensor], message: str, tmp_path: Path
) -> None:
    state = convnet_state()
    state["features.0.weight"] = change(state["features.0.weight"])
    torch.save(state, tmp_path / "net.pth")
    assert f"features.0.weight {message}" in refused(tmp_path / "net.pth")


def test_network_larger_than_the_memory_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 10**6)
    build(replace(convnet(), width=100), SHAPE, 3, seed=0)
    with pytest.raises(TeddyError, match=r"^convnet3 of width 200 has 721,800 weights: .* GiB"):
        build(replace(convnet(), width=200), SHAPE, 3, seed=0)


def test_names_that_fit_nothing_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({f"encoder.{name}": tensor for name, tensor in convnet_state().items()}, path)
    shown = "features.0.weight is missing; found encoder.features.0.weight, encoder.features.0.bias"
    assert shown in refused(path)
    torch.save({"ema": convnet_state(), "epoch": 3}, path)
    assert refused(path).endswith(
        "state_dict, model_state_dict, model, net; found keys ema, epoch, …"
    )


def test_home_folder_of_a_checkpoint_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(convnet_state(), tmp_path / "net.pth")
    load_pretrained(convnet(), SHAPE, 3, "~/net.pth")
    with pytest.raises(TeddyError, match=rf"^{tmp_path}/gone.pth: expected a checkpoint"):
        load_pretrained(convnet(), SHAPE, 3, "~/gone.pth")


def test_incomplete_checkpoint_is_said_to_be(tmp_path: Path) -> None:
    """PyTorch finds "Invalid argument" where its reader looks for the end before the beginning."""
    path = tmp_path / "short.pth"
    torch.save(convnet_state(), path)
    whole = path.read_bytes()
    for kept in (*range(0, 200, 9), *range(200, len(whole), 997)):
        path.write_bytes(whole[:kept])
        assert "damaged or incomplete" in refused(path), kept


def test_weights_older_than_the_counters_of_batches_are_taken(tmp_path: Path) -> None:
    state = {k: v for k, v in convnet_state().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    network = load_pretrained(convnet(), SHAPE, 3, str(tmp_path / "old.pth"))
    assert torch.equal(classifier(network).weight, state["classifier.weight"])


def refused(path: Path, config: NetworkConfig | None = None, num_classes: int = 3) -> str:
    """The one line that a checkpoint is refused with."""
    with pytest.raises(TeddyError) as caught:
        load_pretrained(config or convnet(), SHAPE, num_classes, str(path))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "found no file there" in refused(tmp_path / "gone.pth")
    assert "found no file there" in refused(tmp_path)


@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
@pytest.mark.parametrize("content", ["empty", "text", "noise", "cut", "flipped"])
def test_damaged_checkpoint_is_refused(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    (torch.save if path.suffix == ".pth" else save_file)(convnet_state(), path)
    whole = path.read_bytes()
    noise = bytes(torch.randint(256, (999,), generator=torch.Generator().manual_seed(0)).tolist())
    path.write_bytes(
        {
            "empty": b"",
            "text": b"<html>404: not found</html>\n" * 9,
            "noise": noise,
            "cut": whole[: len(whole) // 2],
            "flipped": whole[:20] + noise[:200] + whole[220:],
        }[content]
    )
    assert "damaged" in refused(path)


class Code:
    """Something whose unpickling runs code."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Code, "ran", True)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": convnet_state(), "extra": Code()}, tmp_path / "code.pth")
    assert "not a file of tensors alone" in refused(tmp_path / "code.pth")
    assert not Code.ran


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, torch.zeros(2)])
def test_file_without_a_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    assert "expected a state dict" in refused(tmp_path / "other.pth")


def test_weights_that_do_not_fit_are_refused_by_the_first_name(tmp_path: Path) -> None:
    path, state = tmp_path / "net.pth", convnet_state()
    torch.save(state, path)
    assert "for 3 classes, but the data has 10" in refused(path, num_classes=10)
    expected = "features.0.weight has shape 4×1×3×3, expected 8×1×3×3"
    assert f"do not fit convnet3 for 1×8×8 images: {expected}" in refused(path, convnet(8))
    assert "fit resnet18 for 1×8×8 images: conv1.weight is missing" in refused(path, RESNET)
    torch.save({**state, "more": torch.zeros(1)}, path)
    assert "more is not in it" in refused(path)


def test_tensor_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "item.safetensors"
    write_tensors(path, convnet_state(), kind="teddy.item.v1", record={})
    assert "expected a teddy.network.v1 file, got teddy.item.v1" in refused(path)


LARGE = (3, 224, 224)


def published_file(arch: str) -> str:
    """Name of torchvision's file."""
    from torchvision.models import get_model_weights

    return Path(get_model_weights(arch)["IMAGENET1K_V1"].url).name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torchvision's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("arch", ["mobilenet_v2", "densenet121"])
def test_published_weights_are_downloaded_and_checked(
    arch: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = build(network_of(arch), LARGE, 1000, seed=3)
    state = dict(original.state_dict())
    if arch == "densenet121":  # the published names are older than PyTorch's rule for names
        for new in ("norm1", "norm2", "conv1", "conv2"):
            old = f".{new[:4]}.{new[4]}."
            state = {name.replace(f".{new}.", old): tensor for name, tensor in state.items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    downloads = []

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        downloads.append((Path(path), hash_prefix))
        torch.save(state, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    network = load_pretrained(network_of(arch), LARGE, 1000, "torchvision")
    assert_same(network, original)
    file = published_file(arch)
    assert downloads == [(cache / file, file.removesuffix(".pth").rpartition("-")[2])]


def test_published_weights_in_the_cache_are_checked_too(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = build(network_of("mobilenet_v2"), LARGE, 1000, seed=3)
    path = cache / published_file("mobilenet_v2")
    cache.mkdir(parents=True)
    torch.save(original.state_dict(), path)
    with pytest.raises(TeddyError, match=r"not the published file, its SHA-256 begins .* delete"):
        load_pretrained(network_of("mobilenet_v2"), LARGE, 1000, "torchvision")
    true = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    from torchvision.models import MobileNet_V2_Weights

    weights = MobileNet_V2_Weights.IMAGENET1K_V1
    url = f"https://example.org/mobilenet_v2-{true}.pth"
    monkeypatch.setattr(weights, "_value_", replace(weights.value, url=url))
    path.rename(cache / f"mobilenet_v2-{true}.pth")
    network = load_pretrained(network_of("mobilenet_v2"), LARGE, 1000, "torchvision")
    assert_same(network, original)


@pytest.mark.parametrize(
    "error",
    [URLError("no route"), TimeoutError("slow"), RuntimeError("invalid hash value\n(expected …)")],
)
def test_weights_that_cannot_be_downloaded_are_asked_for(
    error: Exception, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(TeddyError) as caught:
        load_pretrained(network_of("resnet50"), LARGE, 1000, "torchvision")
    message, file = str(caught.value), published_file("resnet50")
    assert "\n" not in message
    assert f"https://download.pytorch.org/models/{file}" in message
    assert message.endswith(f"put it at {cache / file}")


def test_published_weights_of_other_classes_are_refused_before_the_download(cache: Path) -> None:
    with pytest.raises(TeddyError, match="for 1000 classes, but the data has 10"):
        load_pretrained(network_of("resnet18"), LARGE, 10, "torchvision")
    with pytest.raises(TeddyError, match="torchvision has no weights of convnet3"):
        load_pretrained(convnet(), SHAPE, 3, "torchvision")
    assert not cache.exists()


def test_published_weights_do_not_fit_small_images(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = build(RESNET, LARGE, 1000, seed=0).state_dict()

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        torch.save(state, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    expected = "for 3×64×64 images: conv1.weight has shape 64×3×7×7, expected 64×3×3×3"
    with pytest.raises(TeddyError, match=expected):
        load_pretrained(RESNET, (3, 64, 64), 1000, "torchvision")
