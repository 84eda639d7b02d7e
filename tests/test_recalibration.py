"""Running statistics of BatchNorm from images, against the whole set in one batch. No GPU."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from teddy.core.errors import TeddyError
from teddy.data.images import Images, Normalisation
from teddy.settings.configs import NetworkConfig
from teddy.teachers.networks import batchnorms, build
from teddy.teachers.recalibration import recalibrate

SHAPE = (1, 8, 8)
GREY = Normalisation((0.5,), (0.25,))


def by_class(count: int, classes: int = 2) -> Images:
    """Noise in the order of its classes, which differ in brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) * classes // count
    noise = torch.randint(0, 100, (count, *SHAPE), generator=generator)
    brightness = 150 * labels // max(1, classes - 1)
    return Images((noise + brightness[:, None, None, None]).to(torch.uint8), labels)


def convnet() -> nn.Module:
    """A small network with three BatchNorm layers."""
    return build(NetworkConfig(arch="convnet3", width=4, norm="batch"), SHAPE, 2, seed=0)


def whole_set(network: nn.Module, images: Images) -> nn.Module:
    """The slow reference: one training pass over all images as one batch."""
    reference = copy.deepcopy(network).train()
    for layer in batchnorms(reference):
        layer.momentum = 1.0
    with torch.no_grad():
        reference(GREY.apply(images.images))
    return reference


def statistics(network: nn.Module, layer: int) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a BatchNorm layer."""
    norm = batchnorms(network)[layer]
    return norm.get_buffer("running_mean"), norm.get_buffer("running_var")


@pytest.mark.parametrize("count", [2, 100, 512, 513, 516, 1030])
def test_statistics_are_those_of_the_whole_set(count: int) -> None:
    network, images = convnet(), by_class(count)
    reference = whole_set(network, images)
    recalibrate(network, images, GREY, seed=3)
    for layer in range(3):
        # Only what comes before the first layer does not depend on how the set is cut.
        tolerance = 1e-5 if layer == 0 or count <= 512 else 0.02
        for ours, theirs in zip(
            statistics(network, layer), statistics(reference, layer), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_the_last_images_weigh_as_much_as_the_others() -> None:
    """Of 516 black images but for the last four, white ones are 4/516."""
    pixels = torch.zeros(516, *SHAPE, dtype=torch.uint8)
    pixels[-4:] = 255
    norm = nn.BatchNorm2d(1)
    network = nn.Sequential(norm)
    recalibrate(network, Images(pixels, torch.zeros(516, dtype=torch.int64)), GREY, seed=0)
    share, values = 4 / 516, 516 * 64
    mean, var = norm.get_buffer("running_mean").item(), norm.get_buffer("running_var").item()
    assert mean == pytest.approx(-2 + 4 * share, rel=1e-6)
    assert var == pytest.approx(16 * share * (1 - share) * values / (values - 1), rel=1e-6)


def test_one_image_left_over_is_no_batch_of_its_own() -> None:
    """ResNet18's last stage has one pixel per 8×8 image."""
    network = build(NetworkConfig(arch="resnet18", width=64, norm="batch"), SHAPE, 2, seed=0)
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    recalibrate(network, by_class(513), GREY, seed=0)
    assert sorted(sizes) == [256, 257]
    assert all(buffer.isfinite().all() for buffer in network.buffers())
    with pytest.raises(TeddyError, match=r"^bn_recalibrate needs at least 2 training images"):
        recalibrate(network, by_class(1), GREY, seed=0)


def test_images_come_in_an_order_of_the_seed_and_classes_mixed() -> None:
    images, network = by_class(1024), convnet()
    shares: list[float] = []
    network.register_forward_pre_hook(
        lambda _, inputs: shares.append((inputs[0].mean((1, 2, 3)) > 0).float().mean().item())
    )
    torch.manual_seed(1)
    recalibrate(network, images, GREY, seed=5)
    assert len(shares) == 2 and all(0.4 < share < 0.6 for share in shares)
    first = copy.deepcopy(network.state_dict())
    torch.manual_seed(2)
    recalibrate(network, images, GREY, seed=5)
    assert all(torch.equal(first[key], value) for key, value in network.state_dict().items())
    recalibrate(network, images, GREY, seed=6)
    assert any(not torch.equal(first[key], value) for key, value in network.state_dict().items())


def test_what_is_not_a_running_statistic_is_left_as_it_was() -> None:
    network: Any = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2))
    unused = network.unused = nn.BatchNorm2d(1, momentum=0.3)
    unused.get_buffer("running_var").fill_(7)
    network.forward = lambda x: network[3](network[2](network[1](network[0](x))))
    before = copy.deepcopy(network.state_dict())
    images = by_class(20)
    recalibrate(network, images, GREY, seed=0)
    assert not any(module.training for module in network.modules())
    assert (network[1].momentum, unused.momentum) == (0.1, 0.3)
    assert not network[1]._forward_hooks
    changed = {key for key, value in network.state_dict().items() if (value != before[key]).any()}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    mean = GREY.apply(images.images).mean().item()
    assert network[1].running_mean.item() == pytest.approx(mean, rel=1e-5), "no dropout"
