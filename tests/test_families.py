"""torchvision's families of networks with BatchNorm, as if they were listed. No GPU, no downloads.

A name is added to ``ARCHITECTURES`` for the test, as a user would add it.
"""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from teddy.core.errors import TeddyError
from teddy.settings import configs
from teddy.settings.configs import ARCHITECTURES, NetworkConfig
from teddy.teachers.networks import (
    batchnorms,
    build,
    classifier,
    count_parameters,
    load_network,
    save_network,
)
from teddy.teachers.pruning import prune_randomly

SHAPE = (3, 32, 32)
# Max-pools that are left at 32×32 pixels.
FAMILIES = {
    "resnet18": 0,
    "wide_resnet50_2": 0,
    "resnext50_32x4d": 0,
    "vgg11_bn": 5,
    "densenet121": 0,
    "mobilenet_v2": 0,
    "mobilenet_v3_small": 0,
    "shufflenet_v2_x0_5": 0,
    "efficientnet_b0": 0,
    "efficientnet_v2_s": 0,
    "mnasnet0_5": 0,
    "regnet_x_400mf": 0,
    "regnet_y_400mf": 0,
}

SLOW = {
    "resnet18", "wide_resnet50_2", "resnext50_32x4d", "vgg11_bn", "densenet121", "mobilenet_v2",
    "efficientnet_b0", "efficientnet_v2_s",
}  # fmt: skip


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All families are known names."""
    known = (*ARCHITECTURES, *FAMILIES, "vgg16_bn", "googlenet", "inception_v3")
    monkeypatch.setattr(configs, "ARCHITECTURES", known)


def network_of(arch: str) -> NetworkConfig:
    """An architecture of torchvision."""
    return NetworkConfig(arch=arch, width=64, norm="batch")


def pools(network: nn.Module) -> int:
    """Max-pools of a network."""
    return sum(isinstance(module, nn.MaxPool2d) for module in network.modules())


def train_once(network: nn.Module) -> None:
    """A step down the gradient, in which every weight and every statistic takes part."""
    images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.1)
    cross_entropy(network(images), torch.arange(4)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    optimizer.step()
    assert all(layer.num_batches_tracked == 1 for layer in batchnorms(network))


@pytest.mark.parametrize(
    "arch",
    [pytest.param(arch, marks=pytest.mark.slow if arch in SLOW else ()) for arch in FAMILIES],
)
def test_family_is_built_pruned_and_trained(arch: str, tmp_path: Path) -> None:
    network = build(network_of(arch), SHAPE, 7, seed=0)
    assert pools(network) == FAMILIES[arch]
    assert classifier(network).out_features == 7
    if arch.startswith("shufflenet"):
        with pytest.raises(TeddyError, match="ShuffleNetV2 cannot be pruned"):
            prune_randomly(network, SHAPE, 0.2, seed=1)
        train_once(network)
        return
    pruned = prune_randomly(network, SHAPE, 0.2, seed=1)
    assert 0.5 < count_parameters(pruned) / count_parameters(network) < 0.85
    save_network(tmp_path / "pruned", pruned, network_of(arch), SHAPE, 7)
    loaded, _ = load_network(tmp_path / "pruned")
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), pruned.eval()(images))
    train_once(loaded)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224)])
@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "convnet3"])
def test_listed_networks_have_no_max_pool_for_small_images(
    arch: str, shape: tuple[int, int, int]
) -> None:
    """Module by module torchvision's, but for the first convolution and, if small, max-pools."""
    from torchvision.models import get_model

    with torch.device("meta"):
        ours, theirs = build(network_of(arch), shape, 7, seed=0), get_model(arch, num_classes=7)
    first = next(name for name, m in theirs.named_modules() if isinstance(m, nn.Conv2d))
    small = shape[1] <= 64
    for (name, one), (other, two) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
        assert name == other
        if small and isinstance(two, nn.MaxPool2d):
            assert type(one) is nn.Identity, name
        elif name != first:
            assert type(one) is type(two) and one.extra_repr() == two.extra_repr(), name
    assert pools(ours) == (0 if small else pools(theirs))


@pytest.mark.parametrize("arch", ["vgg11_bn", "vgg16_bn"])
def test_vgg_keeps_its_pools(arch: str) -> None:
    """It halves the images five times, wherever its convolutions are."""
    seen: list[torch.Size] = []
    with torch.device("meta"):
        network = build(network_of(arch), SHAPE, 7, seed=0).eval()
        with pytest.raises(TeddyError, match=rf"^{arch} expects at least 32×32 .* got 28×28"):
            build(network_of(arch), (1, 28, 28), 7, seed=0)
        network.get_submodule("avgpool").register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].shape)
        )
        assert network(torch.zeros(1, *SHAPE)).shape == (1, 7)
    assert seen == [(1, 512, 1, 1)]


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_networks_with_auxiliary_outputs_are_refused(arch: str) -> None:
    with (
        torch.device("meta"),
        pytest.raises(TeddyError, match=rf"^{arch} has auxiliary outputs .* are not supported$"),
    ):
        build(network_of(arch), SHAPE, 7, seed=0)
