"""Architectures and network files: shapes, equal seeds, pruned networks, refusals.

`katNN` are the known-answer tests of the specification, by its numbering. No GPU, no downloads.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from teddy.artifacts import write_tensors
from teddy.config import NetworkConfig
from teddy.errors import TeddyError
from teddy.networks import (
    batchnorms,
    build,
    classifier,
    count_parameters,
    load_network,
    read_network_record,
    save_network,
)
from teddy.pruning import count_macs, prune_randomly

RESNET = NetworkConfig(arch="resnet18", width=64, norm="batch")


def convnet(width: int = 4, norm: Any = "batch") -> NetworkConfig:
    """DM's ConvNet."""
    return NetworkConfig(arch="convnet3", width=width, norm=norm)


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
    assert classifier(network).in_features == 8 * (side // 8) ** 2
    assert len(batchnorms(network)) == (3 if norm == "batch" else 0)


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


@pytest.mark.parametrize("config", [convnet(), RESNET])
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


@pytest.mark.parametrize("config", [convnet(), convnet(8, "group"), convnet(4, "none"), RESNET])
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


def test_multiply_accumulates_of_a_convnet_are_counted_by_hand() -> None:
    network = build(convnet(4, "none"), (1, 8, 8), 3, seed=0)
    convolutions = 64 * 9 * 1 * 4 + 16 * 9 * 4 * 4 + 4 * 9 * 4 * 4
    activations = (
        64 + 16 + 4
    ) * 4  # one each for bias, ReLU and pooling, as DepGraph's tool counts
    assert count_macs(network, (1, 8, 8)) == convolutions + 3 * activations + (4 + 1) * 3


def test_resnet_width_is_fixed() -> None:
    with pytest.raises(TeddyError, match="resnet18 has width 64"):
        replace(RESNET, width=32)
