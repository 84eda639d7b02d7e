"""Rewritten teachers against the plain network with hooks, for every kind of architecture. CPU.

The reference is the textbook implementation: hooks on the BatchNorm inputs of the network itself.
"""

import copy
import operator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import cross_entropy

from teddy.core.errors import TeddyError
from teddy.objectives import Moments, moments, statistics_loss
from teddy.settings.configs import NetworkConfig
from teddy.synthesis.engine import kernels
from teddy.synthesis.engine.frozen import FOLD_LIMIT, Teacher
from teddy.teachers.networks import batchnorms, build
from teddy.teachers.pruning import prune_randomly

# (architecture, pixels, BatchNorm layers, of which folded)
NETWORKS = [
    ("convnet3", 16, 3, 3),
    ("resnet18", 16, 20, 20),
    ("resnet18", 72, 20, 20),
    ("resnet50", 16, 53, 53),
    ("densenet121", 16, 121, 59),
    ("mobilenet_v2", 32, 52, 52),
    ("efficientnet_b0", 32, 49, 49),
    ("shufflenet_v2_x1_0", 32, 56, 56),
]
SLOW = {"resnet50", "densenet121", "efficientnet_b0", "shufflenet_v2_x1_0"}


def network(arch: str, size: int, dtype: torch.dtype) -> nn.Module:
    """Random, frozen, with running statistics of its own and every affine map at work."""
    config = NetworkConfig(arch=cast(Any, arch), width=8, norm="batch")
    return trained_like(build(config, (3, size, size), 10, 0), size).to(dtype)


def trained_like(model: nn.Module, size: int) -> nn.Module:
    """Freeze with measured running statistics and random affine maps."""
    generator = torch.Generator().manual_seed(1)
    for layer in batchnorms(model):
        nn.init.uniform_(layer.weight, 0.3, 1.5, generator=generator)
        nn.init.normal_(layer.bias, 0, 0.3, generator=generator)
        layer.momentum = None
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        model.train()(torch.randn(8, 3, size, size))
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def inputs(size: int, dtype: torch.dtype, count: int = 3) -> Tensor:
    """Images in channels-last layout."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 3, size, size, generator=generator).to(dtype)
    return x.to(memory_format=torch.channels_last)


def by_hooks(model: nn.Module, images: Tensor, variance: Any) -> tuple[Tensor, list[Moments]]:
    """Logits and statistics of BatchNorm inputs as peers get them."""
    seen: dict[nn.Module, Moments] = {}

    def look(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen[layer] = moments(arguments[0], variance)

    handles = [layer.register_forward_pre_hook(look) for layer in batchnorms(model)]
    logits = model(images)
    for handle in handles:
        handle.remove()
    return logits, [seen[layer] for layer in batchnorms(model)]


def gradient(observe: Any, model: nn.Module, images: Tensor) -> Tensor:
    """Gradient in the images of a classifier prior and the statistics term."""
    stored = []
    for layer in batchnorms(model):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        stored.append(Moments(layer.running_mean, layer.running_var))
    images = images.clone().requires_grad_()
    logits, seen = observe(images)
    loss = cross_entropy(logits, torch.arange(len(images))) + statistics_loss(seen, stored, 10.0)
    loss.backward()
    assert images.grad is not None
    return images.grad


def error(got: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def marked(cases: list[Any]) -> list[Any]:
    """Leave the large ones to continuous integration."""
    return [pytest.param(*c, marks=pytest.mark.slow if c[0] in SLOW else ()) for c in cases]


@pytest.mark.parametrize(("arch", "size", "layers", "folded"), marked(NETWORKS))
@pytest.mark.parametrize("variance", ["biased", "unbiased"])
def test_rewritten_teacher_is_the_network_in_float64(
    arch: str, size: int, layers: int, folded: int, variance: str
) -> None:
    model = network(arch, size, torch.float64)
    teacher, x = Teacher(model, variance), inputs(size, torch.float64)
    assert (len(teacher.running), teacher.folded) == (layers, folded)
    want, want_seen = by_hooks(model, x, variance)
    got, seen = teacher.observe(x)
    assert error(got, want) < 1e-10
    assert error(teacher.logits(x), want) < 1e-10
    for a, b in zip(seen, want_seen, strict=True):
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(a.var, b.var, rtol=1e-10, atol=1e-11)
    plain = gradient(lambda v: by_hooks(model, v, variance), model, x)
    assert error(gradient(teacher.observe, model, x), plain) < 1e-10


@pytest.mark.parametrize(("arch", "size", "layers", "folded"), marked(NETWORKS))
def test_rewritten_teacher_rounds_in_float32_as_the_network_does(
    arch: str, size: int, layers: int, folded: int
) -> None:
    """Gradients jump where a ReLU's input is within rounding of 0, so both are held to float64."""
    exact = network(arch, size, torch.float64)
    model, x = copy.deepcopy(exact).float(), inputs(size, torch.float32)
    teacher = Teacher(model, "biased")
    want, want_seen = by_hooks(exact, x.double(), "biased")
    got, seen = teacher.observe(x)
    assert error(got, want) < 3e-5
    for a, b, stored in zip(seen, want_seen, teacher.running, strict=True):
        assert (a.mean - b.mean).norm() < 3e-5 * stored.var.sqrt().norm()
        assert error(a.var, b.var) < 3e-5
    reference = gradient(lambda v: by_hooks(exact, v, "biased"), exact, x.double())
    hooks = error(gradient(lambda v: by_hooks(model, v, "biased"), model, x), reference)
    ours = error(gradient(teacher.observe, model, x), reference)
    assert ours < max(1e-5, 3 * hooks, 2e-2 if hooks > 1e-5 else 0)


def test_pruned_network_folds_too() -> None:
    model = build(NetworkConfig(arch="resnet18", width=8, norm="batch"), (3, 16, 16), 10, 0)
    model = trained_like(prune_randomly(model, (3, 16, 16), 0.19, seed=0), 16).double()
    teacher, x = Teacher(model, "biased"), inputs(16, torch.float64)
    assert teacher.folded == 20
    plain = gradient(lambda v: by_hooks(model, v, "biased"), model, x)
    assert error(gradient(teacher.observe, model, x), plain) < 1e-10


@pytest.mark.parametrize("gamma", [0.0, 1e-30, 0.3 / (2 * FOLD_LIMIT), -0.0])
def test_layer_with_a_vanishing_gamma_is_not_folded_and_still_exact(gamma: float) -> None:
    model = network("convnet3", 16, torch.float64)
    layer = batchnorms(model)[1]
    assert layer.bias is not None
    layer.weight[3], layer.bias[3] = gamma, 0.3
    teacher, x = Teacher(model, "biased"), inputs(16, torch.float64)
    assert teacher.folded == 2
    plain = gradient(lambda v: by_hooks(model, v, "biased"), model, x)
    assert error(gradient(teacher.observe, model, x), plain) < 1e-10


def test_folding_at_the_limit_costs_less_than_a_digit_and_a_half() -> None:
    exact = network("convnet3", 16, torch.float64)
    for layer in batchnorms(exact):
        layer.bias.copy_(0.99 * FOLD_LIMIT * layer.weight)
    model, x = copy.deepcopy(exact).float(), inputs(16, torch.float32)
    teacher = Teacher(model, "biased")
    assert teacher.folded == 3
    _, want = by_hooks(exact, x.double(), "biased")
    _, seen = teacher.observe(x)
    for a, b in zip(seen, want, strict=True):
        assert error(a.mean, b.mean) < 1e-4
        assert error(a.var, b.var) < 2e-5


def test_negative_gamma_and_convolution_with_bias_fold() -> None:
    model = network("convnet3", 16, torch.float64)
    for layer in batchnorms(model):
        layer.weight.neg_()
    teacher, x = Teacher(model, "biased"), inputs(16, torch.float64)
    assert teacher.folded == 3
    assert error(teacher.logits(x), model(x)) < 1e-12


def test_sums_before_a_relu_are_computed_with_it() -> None:
    """In both forms of the network; where the sum is read elsewhere, it stays."""
    teacher = Teacher(network("resnet18", 16, torch.float32), "biased")
    for rewritten in (teacher.network, teacher.observer):
        assert isinstance(rewritten, fx.GraphModule)
        called = [node.target for node in rewritten.graph.nodes if node.op == "call_function"]
        assert called.count(kernels.add_relu) == 8
        assert operator.add not in called
    model = trained_like(Residual(), 8).double()
    teacher, x = Teacher(model, "biased"), inputs(8, torch.float64)
    assert isinstance(teacher.observer, fx.GraphModule)
    called = [node.target for node in teacher.observer.graph.nodes]
    assert kernels.add_relu not in called
    assert error(teacher.logits(x), model(x)) < 1e-12
    plain = gradient(lambda v: by_hooks(model, v, "biased"), model, x)
    assert error(gradient(teacher.observe, model, x), plain) < 1e-10


class Residual(nn.Module):
    """ReLUs of a sum with a number, of one with a factor, and of one that is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.classifier = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        y = self.norm(self.conv(images))
        total = y + images
        seen = torch.relu(total) + total + torch.relu(images + 0.5)
        out: Tensor = self.classifier(
            (seen + torch.relu(torch.add(y, images, alpha=2.0))).mean((2, 3))
        )
        return out


def test_network_is_left_as_it_is() -> None:
    model = network("resnet18", 16, torch.float32)
    before = copy.deepcopy(model.state_dict())
    teacher = Teacher(model, "biased")
    gradient(teacher.observe, model, inputs(16, torch.float32))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(p.requires_grad for p in teacher.observer.parameters())


class Shared(nn.Module):
    """A convolution that feeds a BatchNorm and a sum, and one BatchNorm before everything."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 1)
        self.second = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        z = self.conv(self.first(images))
        y = self.second(z)
        out: Tensor = self.classifier((self.relu(y) + z + y).mean((2, 3)))
        return out


def test_layer_whose_convolution_is_read_elsewhere_is_not_folded() -> None:
    shared = Shared()
    shared.relu.inplace = False
    model = trained_like(shared, 8).double()
    teacher, x = Teacher(model, "biased"), inputs(8, torch.float64)
    assert teacher.folded == 0
    plain = gradient(lambda v: by_hooks(model, v, "biased"), model, x)
    assert error(gradient(teacher.observe, model, x), plain) < 1e-10
    assert error(teacher.logits(x), model(x)) < 1e-12


class Twice(nn.Module):
    """Calls its BatchNorm twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.norm(self.norm(images))
        return out


class Branching(Twice):
    """Looks at values."""

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(images) if images.sum() > 0 else images


@pytest.mark.parametrize(
    ("model", "complaint"), [(Twice(), "exactly once"), (Branching(), "cannot trace")]
)
def test_network_that_cannot_be_rewritten_is_refused(model: nn.Module, complaint: str) -> None:
    with pytest.raises(TeddyError, match=complaint):
        Teacher(model.eval(), "biased")


def kept_bytes(observe: Any, model: nn.Module, images: Tensor) -> int:
    """Bytes of all storages that autograd keeps, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def look(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        kept = observe(images.clone().requires_grad_())
    del kept
    return sum(size for address, size in storages.items() if address not in weights)


def peer(model: nn.Module, images: Tensor) -> Any:
    """Peers' hooks, which copy every BatchNorm input for its variance."""
    seen: list[Tensor] = []

    def look(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        x = arguments[0]
        copied = x.permute(1, 0, 2, 3).contiguous().reshape(x.shape[1], -1)
        seen.extend((x.mean((0, 2, 3)), copied.var(1, unbiased=False)))

    handles = [layer.register_forward_hook(look) for layer in batchnorms(model)]
    logits = model(images)
    for handle in handles:
        handle.remove()
    return logits, seen


@pytest.mark.parametrize(("arch", "share"), [("convnet3", 0.45), ("resnet18", 0.42)])
def test_less_than_half_of_a_peers_tensors_are_kept(arch: str, share: float) -> None:
    model = network(arch, 16, torch.float32)
    x = inputs(16, torch.float32, count=20)
    plain = model.to(memory_format=torch.contiguous_format)
    of_peer = kept_bytes(lambda v: peer(plain, v), plain, x.contiguous())
    teacher = Teacher(model.to(memory_format=torch.channels_last), "biased")
    assert kept_bytes(teacher.observe, teacher.observer, x) < share * of_peer
