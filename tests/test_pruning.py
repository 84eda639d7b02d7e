"""Pruning of every architecture: sizes, files, refusals. No GPU, no downloads."""

from pathlib import Path

import pytest
import torch
from torch import nn

from teddy.core.errors import TeddyError
from teddy.settings.configs import ARCHITECTURES, NetworkConfig
from teddy.teachers.networks import (
    batchnorms,
    build,
    classifier,
    count_parameters,
    load_network,
    save_network,
)
from teddy.teachers.pruning import count_macs, prune_randomly

SHAPE = (3, 32, 32)
RATIO = 0.19
ARCHS = ARCHITECTURES
CONFIGS = {arch: NetworkConfig(arch=arch, width=16, norm="batch") for arch in ARCHS}
PRUNABLE = [arch for arch, config in CONFIGS.items() if config.prunable]
# Finding DenseNet's dependencies takes a quarter of a minute.
SLOW = {"densenet121", "resnet101"}


@pytest.mark.parametrize(
    "arch",
    [pytest.param(arch, marks=pytest.mark.slow if arch in SLOW else ()) for arch in PRUNABLE],
)
def test_pruned_network_is_loaded_as_saved(arch: str, tmp_path: Path) -> None:
    network = build(CONFIGS[arch], SHAPE, 7, seed=1)
    generator = torch.Generator().manual_seed(0)
    for layer in batchnorms(network):
        assert layer.running_mean is not None and layer.running_var is not None
        nn.init.normal_(layer.running_mean, std=0.1, generator=generator)
        nn.init.uniform_(layer.running_var, 0.5, 1.5, generator=generator)
    pruned = prune_randomly(network, SHAPE, RATIO, seed=2)
    share = count_parameters(pruned) / count_parameters(network)
    assert 0.6 < share < 0.75, "about 0.81², as both sides of a weight lose channels"
    assert count_macs(pruned, SHAPE) < 0.75 * count_macs(network, SHAPE)
    assert classifier(pruned).out_features == 7

    save_network(tmp_path / "pruned", pruned, CONFIGS[arch], SHAPE, 7)
    loaded, _ = load_network(tmp_path / "pruned")
    images = torch.randn(4, *SHAPE, generator=generator)
    with torch.no_grad():
        logits = pruned.eval()(images)
        assert logits.std() > 0 and logits.isfinite().all()
        assert torch.equal(loaded.eval()(images), logits)
    assert loaded.train()(images).shape == (4, 7)
    for one, two in zip(loaded.modules(), pruned.modules(), strict=True):
        if isinstance(one, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            assert one.extra_repr() == two.extra_repr()


@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch not in PRUNABLE])
def test_networks_that_shuffle_channels_are_refused(arch: str) -> None:
    assert arch.startswith("shufflenet")
    with torch.device("meta"):
        network = build(CONFIGS[arch], SHAPE, 7, seed=1)
    with pytest.raises(TeddyError, match=r"ShuffleNetV2 cannot be pruned.*or efficientnet_b0"):
        prune_randomly(network, SHAPE, RATIO, seed=2)


# Billions of multiply–accumulates in torchvision's documentation.
PUBLISHED = {
    "resnet18": 1.814,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "densenet121": 2.834,
    "mobilenet_v2": 0.301,
    "shufflenet_v2_x1_0": 0.145,
    "shufflenet_v2_x2_0": 0.583,
    "efficientnet_b0": 0.386,
}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_multiply_accumulates_are_the_published_ones(arch: str) -> None:
    network = build(CONFIGS[arch], (3, 224, 224), 1000, seed=0).train()
    before = torch.get_rng_state()
    macs = count_macs(network, (3, 224, 224)) / 1e9
    assert macs == pytest.approx(PUBLISHED[arch], abs=0.0005)
    assert network.training and next(network.parameters()).device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), before)
