"""Synthesis: Eq. 7 and its gradient, independence of batches, resuming, refusals.

`katNN` are the known-answer tests of the specification, by its numbering. No GPU, no downloads.
"""

import copy
import io
import json
import math
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from teddy.core.artifacts import WorkDir, read_tensors
from teddy.core.errors import TeddyError
from teddy.core.files import digest
from teddy.data.augmentation import Resampling, draw_views
from teddy.data.datasets import ImageDataset
from teddy.data.dsa import DsaViews
from teddy.data.images import Images
from teddy.objectives import Moments
from teddy.settings.configs import NetworkConfig, SynthesizeConfig, ViewConfig
from teddy.synthesis.class_statistics import class_moments
from teddy.synthesis.engine import runs
from teddy.synthesis.engine.batches import Batch, cut_batches
from teddy.synthesis.engine.frozen import Teacher
from teddy.synthesis.engine.runs import Place
from teddy.synthesis.engine.state import State
from teddy.synthesis.gradient import eq7_gradient
from teddy.synthesis.methods import Ingredients, OptimisedMethod
from teddy.synthesis.teddy import Teddy
from teddy.teachers.networks import batchnorms, build, load_network, save_network
from teddy.teachers.optimizers import Adam
from teddy.teachers.pools import Pool

CPU = torch.device("cpu")


def random_network(seed: int, dtype: torch.dtype = torch.float32, width: int = 4) -> nn.Module:
    """A frozen network whose running statistics are not those of a fresh one."""
    config = NetworkConfig(arch="convnet3", width=width, norm="batch")
    network = build(config, (1, 8, 8), 3, seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for layer in batchnorms(network):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(torch.randn(width, generator=generator))
        layer.running_var.copy_(torch.rand(width, generator=generator) + 0.5)
    return network.eval().requires_grad_(False)


def random_teachers(seeds: list[int], dtype: torch.dtype = torch.float32) -> list[Teacher]:
    """One teacher per seed."""
    return [Teacher(random_network(seed, dtype), "biased") for seed in seeds]


def random_view(dtype: torch.dtype = torch.float32, count: int = 6) -> tuple[Tensor, Tensor]:
    """Images, a leaf that requires grad, and their labels."""
    generator = torch.Generator().manual_seed(11)
    images = torch.randn(count, 1, 8, 8, generator=generator, dtype=dtype)
    return images.requires_grad_(), torch.arange(count) % 3


def gradient(
    teachers: list[Teacher], config: SynthesizeConfig, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Gradient of Eq. 7 in the images, and its two losses."""
    view, labels = random_view(dtype)
    losses = eq7_gradient(view, labels, teachers, [t.running for t in teachers], config)
    assert view.grad is not None
    return view.grad, losses


def relative_error(got: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((got - want).norm() / want.norm())


@pytest.fixture
def synthesiser(
    synthesis_config: SynthesizeConfig, pool: Pool, dataset: ImageDataset, view_config: ViewConfig
) -> Teddy:
    """A fresh synthesiser of the tiny settings."""
    return Teddy(synthesis_config, Ingredients(dataset, 0, CPU, pool, view_config))


def with_config(old: Teddy, **changes: Any) -> Teddy:
    """A fresh synthesiser that differs in some settings."""
    return Teddy(replace(old.config, **changes), old.given)


def synthesise(
    method: OptimisedMethod, ipc: int, work: WorkDir
) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
    """Images, labels and records of a set."""
    made = method.make(ipc, work)
    return made.images, made.labels, made.records


def result(synthesiser: Teddy, batch: Batch, folder: Path) -> dict[str, Tensor]:
    """Outcome of a batch, with the float images and optimiser state that are saved at its end."""
    resume = folder / "resume.safetensors"
    outcome = synthesiser.run(batch, resume, save_every_seconds=0)
    state, _ = read_tensors(resume, kind="teddy.batch-state.v1")
    resume.unlink()
    return outcome | {f"state.{name}": value for name, value in state.items()}


def cut(ipc: int, num_classes: int, config: SynthesizeConfig) -> list[Batch]:
    """Batches of a set by the settings."""
    return cut_batches(
        ipc, num_classes, indices_per_batch=config.indices_per_batch,
        classes_per_batch=config.classes_per_batch,
    )  # fmt: skip


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Every tensor is equal bit for bit."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


# ------------------------------------------------------------------- known answers: one teacher


class OneLayer(nn.Module):
    """BatchNorm and a classifier without weights, on one-pixel images."""

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, momentum=momentum)
        self.classifier = nn.Linear(1, 2)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(images).flatten(1))
        return logits


def channel_values() -> Tensor:
    """The four values of the specification, one image each."""
    return torch.tensor([0.0, 2.0, 4.0, 6.0]).reshape(4, 1, 1, 1)


def test_kat10_a_train_pass_stores_the_unbiased_variance_and_the_loss_sees_the_biased_one(
    synthesis_config: SynthesizeConfig,
) -> None:
    slow, fast = OneLayer(0.1), OneLayer(1.0)
    slow(channel_values()), fast(channel_values())
    assert slow.norm.running_mean is not None
    assert slow.norm.running_var is not None
    assert slow.norm.running_mean.item() == pytest.approx(0.3, rel=1e-6)
    assert slow.norm.running_var.item() == pytest.approx(1.56667, abs=1e-5)
    fast.eval().requires_grad_(False)
    teacher = Teacher(fast, "biased")
    assert teacher.running[0].var.item() == pytest.approx(6.6667, abs=1e-4)
    _, seen = teacher.observe(channel_values())
    assert [value.item() for value in seen[0]] == [3, 5]
    config = replace(synthesis_config, first_bn_weight=1.0, draw=1)
    view, labels = channel_values().requires_grad_(), torch.tensor([0, 1, 0, 1])
    gap = eq7_gradient(view, labels, [teacher], [teacher.running], config)[1]
    assert gap.item() == pytest.approx(5 / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("mean", "var", "value"), [(3.0, 5.0, 0.0), (3.0, 20 / 3, 5 / 3), (3.5, 5.0, 0.5)]
)
def test_kat10_loss_is_zero_only_if_the_buffers_are_the_mean_and_biased_variance(
    synthesis_config: SynthesizeConfig, mean: float, var: float, value: float
) -> None:
    network = OneLayer().eval().requires_grad_(False)
    network.norm.running_mean = torch.tensor([mean])
    network.norm.running_var = torch.tensor([var])
    teacher = Teacher(network, "biased")
    config = replace(synthesis_config, first_bn_weight=1.0, draw=1)
    view = channel_values().requires_grad_()
    losses = eq7_gradient(view, torch.zeros(4).long(), [teacher], [teacher.running], config)
    assert losses[1].item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("passes", ["two_pass", "joint"])
def test_kat11_statistics_term_of_eq7_on_the_first_layer(
    synthesis_config: SynthesizeConfig, passes: Any
) -> None:
    teacher = Teacher(OneLayer().eval().requires_grad_(False), "biased")  # mean 0, variance 1
    config = replace(synthesis_config, alpha_bn=0.01, draw=1, gradient=passes)
    view = channel_values().requires_grad_()
    losses = eq7_gradient(view, torch.zeros(4).long(), [teacher], [teacher.running], config)
    assert losses.tolist() == pytest.approx([math.log(2), 70], rel=1e-6)
    assert view.grad is not None
    # d/dx of 0.70 = 0.01 * 10 * (mean + var - 1), the classifier being constant
    want = 0.1 * (torch.full((4,), 0.25) + 2 * (channel_values().flatten() - 3) / 4)
    torch.testing.assert_close(view.grad.flatten(), want)


def test_kat12_eval_mode_leaves_buffers_and_neighbours_alone(pool: Pool) -> None:
    teacher = Teacher(pool.member(0, CPU), "biased")
    before = copy.deepcopy(teacher.network.state_dict())
    images, _ = random_view(count=5)
    logits, _ = teacher.observe(images.detach())
    others = images.detach().clone()
    others[1:] = 50.0
    beside_others, _ = teacher.observe(others)
    alone = teacher.logits(images.detach()[:1])
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(beside_others[0], logits[0])
    torch.testing.assert_close(alone[0], logits[0], rtol=1e-5, atol=1e-6)
    assert not torch.equal(beside_others[1], logits[1])


def test_kat12_gradient_of_eq7_leaves_the_teachers_alone(
    synthesis_config: SynthesizeConfig,
) -> None:
    teachers = random_teachers([0, 1])
    before = [copy.deepcopy(t.network.state_dict()) for t in teachers]
    gradient(teachers, synthesis_config)
    for teacher, state in zip(teachers, before, strict=True):
        assert not any(p.grad is not None for p in teacher.network.parameters())
        for name, value in teacher.network.state_dict().items():
            assert torch.equal(value, state[name]), name


# --------------------------------------------------------------------- known answers: plain SRe2L


def plain_sre2l(
    synthesiser: Teddy, batch: Batch, variance: str
) -> tuple[Tensor, list[float], Tensor]:
    """SRe2L as published: one teacher, one graph, hooks on the BatchNorm inputs, Adam, clip.

    Returns the images after the last step, the loss of every step, and the first gradient.
    """
    config = synthesiser.config
    (member,) = synthesiser.teachers_drawn(batch, 0)
    network = synthesiser.pool.member(member, CPU)
    gaps: list[Tensor] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        x = inputs[0]
        if variance == "permute":
            mean = x.mean([0, 2, 3])
            var = x.permute(1, 0, 2, 3).contiguous().reshape(x.shape[1], -1).var(1, unbiased=False)
        else:
            var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        gaps.append(
            torch.norm(mean - layer.running_mean, 2) + torch.norm(var - layer.running_var, 2)
        )

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(hook)
    images = synthesiser.initial_images(batch).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=config.lr, betas=config.betas, eps=1e-8, fused=True)
    mean, std = (
        v[0] for v in (synthesiser.data.normalisation.mean, synthesiser.data.normalisation.std)
    )
    losses, first_gradient = [], torch.empty(0)
    for i in range(config.iterations):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * i / config.iterations))
        view = draw_views(
            config.views, 8, 8, synthesiser.seed, "synthesis view", batch.group, batch.chunk,
            indices=torch.tensor([i]),
        )  # fmt: skip
        optimizer.zero_grad()
        gaps.clear()
        augmented = view(images).to(memory_format=torch.channels_last)
        ce = cross_entropy(network(augmented), batch.labels())
        loss = ce + config.alpha_bn * (10 * gaps[0] + sum(gaps[1:], torch.zeros(())))
        loss.backward()
        assert images.grad is not None
        if i == 0:
            first_gradient = images.grad.clone()
        optimizer.step()
        images.data = torch.clamp(images.data, -mean / std, (1 - mean) / std)
        losses.append(loss.item())
    return images.detach(), losses, first_gradient


@pytest.mark.parametrize("passes", ["two_pass", "joint"])
def test_kat13_one_teacher_is_plain_sre2l(synthesiser: Teddy, tmp_path: Path, passes: str) -> None:
    one = with_config(synthesiser, draw=1, gradient=passes, iterations=8)
    batch = one.batches(2)[0]
    got = result(one, batch, tmp_path)
    images, losses, _ = plain_sre2l(one, batch, "var_mean")
    # Folding changes rounding alone, which Adam's division amplifies where gradients are tiny.
    assert relative_error(got["state.images"], images) < 1e-4
    total = got["curve"][:, 1] + 0.1 * got["curve"][:, 2]
    assert total.tolist() == pytest.approx(losses, rel=1e-5)


def test_kat13_gradient_of_one_teacher_equals_the_published_formula(
    synthesiser: Teddy,
) -> None:
    one = with_config(synthesiser, draw=1, iterations=1)
    batch = one.batches(2)[0]
    images = one.initial_images(batch).requires_grad_()
    optimizer = Adam([], (0.9, 0.9), decoupled=False)
    state = State(images, optimizer, torch.empty(0), kept={"gradient": "joint"})
    view = next(one._views(batch, 0))(images)
    one._eq7(view, batch.labels(), one.teachers_drawn(batch, 0), batch, state)
    _, _, want = plain_sre2l(one, batch, "permute")
    assert images.grad is not None
    assert relative_error(images.grad, want) < 1e-5


@pytest.mark.parametrize("passes", ["two_pass", "joint"])
@pytest.mark.parametrize("ensemble", ["logits", "probs", "loss"])
def test_kat13_identical_teachers_are_one_teacher(
    synthesis_config: SynthesizeConfig, ensemble: Any, passes: Any
) -> None:
    config = replace(synthesis_config, ensemble=ensemble, gradient=passes)
    one, losses_of_one = gradient(random_teachers([5]), config)
    for k in (2, 3):
        same, losses = gradient(random_teachers([5] * k), config)
        assert relative_error(same, one) < 1e-5
        torch.testing.assert_close(losses, losses_of_one, rtol=1e-6, atol=0)


# ---------------------------------------------------------------------- known answers: two passes


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("over_teachers", ["mean", "sum"])
@pytest.mark.parametrize("ensemble", ["logits", "probs", "loss"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_kat15_two_passes_give_the_gradient_of_the_joint_graph(
    synthesis_config: SynthesizeConfig,
    dtype: torch.dtype,
    error: float,
    ensemble: Any,
    over_teachers: Any,
    k: int,
) -> None:
    config = replace(synthesis_config, ensemble=ensemble, over_teachers=over_teachers)
    teachers = random_teachers(list(range(k)), dtype)
    two_pass, losses = gradient(teachers, replace(config, gradient="two_pass"), dtype)
    joint, joint_losses = gradient(teachers, replace(config, gradient="joint"), dtype)
    assert two_pass.dtype == dtype
    assert relative_error(two_pass, joint) < error
    torch.testing.assert_close(losses, joint_losses, rtol=error, atol=0)


@pytest.mark.parametrize("norm", ["l2", "l2_squared"])
@pytest.mark.parametrize("passes", ["two_pass", "joint"])
def test_kat15_gradient_equals_finite_differences_of_eq7(
    synthesis_config: SynthesizeConfig, passes: Any, norm: Any
) -> None:
    config = replace(synthesis_config, gradient=passes, norm=norm, over_teachers="sum")
    teachers = random_teachers([0, 1, 2], torch.float64)
    grad, _ = gradient(teachers, config, torch.float64)
    view, labels = random_view(torch.float64)
    direction = torch.randn(view.shape, generator=torch.Generator().manual_seed(1)).double()

    def loss(step: float) -> float:
        moved = (view.detach() + step * direction).requires_grad_()
        targets = [t.running for t in teachers]
        prior, statistics = eq7_gradient(moved, labels, teachers, targets, config)
        return float(prior + config.alpha_bn * statistics)

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert (grad * direction).sum().item() == pytest.approx(slope, rel=1e-6)


class SavedBytes:
    """Bytes that autograd keeps for a backward pass: distinct storages alive at once."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._users: Counter[int] = Counter()

    def pack(self, tensor: Tensor) -> "Kept":
        """Count a tensor that autograd saves, until it lets go of it."""
        storage = tensor.untyped_storage()
        kept, address, size = Kept(tensor), storage.data_ptr(), storage.nbytes()
        if self._users[address] == 0:
            self.now += size
            self.peak = max(self.peak, self.now)
        self._users[address] += 1
        weakref.finalize(kept, self._release, address, size)
        return kept

    def _release(self, address: int, size: int) -> None:
        self._users[address] -= 1
        if self._users[address] == 0:
            self.now -= size


class Kept:
    """What autograd holds instead of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(k: int, config: SynthesizeConfig) -> int:
    """Peak of what one gradient of Eq. 7 with k teachers keeps."""
    teachers, counter = random_teachers(list(range(k))), SavedBytes()
    view, labels = random_view(count=60)
    targets = [teacher.running for teacher in teachers]
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda kept: kept.tensor):
        eq7_gradient(view, labels, teachers, targets, config)
    assert counter.now == 0, "everything is let go of in the end"
    return counter.peak


@pytest.mark.parametrize("ensemble", ["logits", "probs", "loss"])
def test_kat15_two_passes_keep_the_memory_of_one_teacher(
    synthesis_config: SynthesizeConfig, ensemble: Any
) -> None:
    two_pass = replace(synthesis_config, ensemble=ensemble, gradient="two_pass")
    joint = replace(two_pass, gradient="joint")
    one = saved_bytes(1, two_pass)
    assert one > 60 * 4 * 64 * 4, "at least the first layer's activations are kept"
    assert saved_bytes(3, two_pass) <= 1.15 * one
    assert 2.5 * one < saved_bytes(3, joint) < 3.5 * one


# -------------------------------------------------------------------------------------- teachers


def test_statistics_are_seen_only_when_asked_for_and_in_module_order() -> None:
    teacher = Teacher(random_network(0), "biased")
    images, _ = random_view()
    first = teacher.observe(images.detach())
    teacher.logits(images.detach())
    again = teacher.observe(images.detach())
    assert len(first[1]) == len(again[1]) == len(teacher.running) == 3
    conv = next(m for m in random_network(0).modules() if isinstance(m, nn.Conv2d))
    torch.testing.assert_close(first[1][0].mean, conv(images.detach()).mean((0, 2, 3)))
    assert torch.equal(first[0], teacher.logits(images.detach()))


def test_network_without_batchnorm_is_refused() -> None:
    config = NetworkConfig(arch="convnet3", width=4, norm="instance")
    with pytest.raises(TeddyError, match="needs BatchNorm"):
        Teacher(build(config, (1, 8, 8), 3, 0), "biased")


def test_unbiased_variance_reaches_the_loss() -> None:
    images, _ = random_view()
    network = random_network(0)
    biased = Teacher(network, "biased").observe(images.detach())[1][0].var
    unbiased = Teacher(network, "unbiased").observe(images.detach())[1][0].var
    count = 6 * 12 * 12
    torch.testing.assert_close(unbiased, biased * count / (count - 1))


# ------------------------------------------------------------------------------- class statistics


def no_views() -> ViewConfig:
    """The whole image."""
    return ViewConfig(crop_scale=1.0, hflip=False, roll=(0, 0))


@pytest.mark.parametrize("batch_size", [3, 256])
@pytest.mark.parametrize("augmented", [False, True])
def test_class_statistics_equal_direct_ones(
    dataset: ImageDataset, view_config: ViewConfig, batch_size: int, augmented: bool
) -> None:
    network = random_network(3)
    teacher = Teacher(network, "biased")
    views = view_config if augmented else no_views()
    layers = class_moments(
        teacher, dataset.train, dataset.normalisation, views, 3, seed=4, batch_size=batch_size
    )
    assert len(layers) == 3
    blocks = network.get_submodule("features")
    assert isinstance(blocks, nn.Sequential)
    for label in range(3):
        members = torch.nonzero(dataset.train.labels == label)[:, 0]
        pixels = dataset.normalisation.apply(dataset.train.pick(members))
        x = draw_views(views, 8, 8, 4, "class statistics", indices=members)(pixels)
        for layer, module in zip(layers, [0, 4, 8], strict=True):
            features = blocks[: module + 1](x).double()
            torch.testing.assert_close(
                layer.mean[label].double(), features.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
            )
            var = features.var((0, 2, 3), correction=0)
            torch.testing.assert_close(layer.var[label].double(), var, rtol=1e-4, atol=1e-5)
        assert layers[0].mean.shape == layers[0].var.shape == (3, 4)


def test_images_near_the_cut_of_batches_belong_to_their_class(dataset: ImageDataset) -> None:
    one_class = Images(dataset.train.pick(torch.arange(48)), torch.zeros(48, dtype=torch.int64))
    teacher = Teacher(random_network(3), "biased")
    whole = class_moments(teacher, one_class, dataset.normalisation, no_views(), 1, 0, 48)
    cut = class_moments(teacher, one_class, dataset.normalisation, no_views(), 1, 0, 7)
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.var, b.var, rtol=1e-5, atol=1e-6)


def test_class_statistics_do_not_depend_on_the_convention_of_the_batch_variance(
    dataset: ImageDataset,
) -> None:
    arguments = (dataset.train, dataset.normalisation, no_views(), 3, 0, 5)
    biased = class_moments(Teacher(random_network(3), "biased"), *arguments)
    unbiased = class_moments(Teacher(random_network(3), "unbiased"), *arguments)
    for a, b in zip(biased, unbiased, strict=True):
        torch.testing.assert_close(a.var, b.var, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("ipc", [1, 2, 3, 7])
@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_batches_cover_every_image_once(
    synthesis_config: SynthesizeConfig, ipc: int, num_classes: int
) -> None:
    batches = cut(ipc, num_classes, synthesis_config)
    pairs = [(i, c) for batch in batches for i in batch.indices for c in batch.classes]
    rounded = 2 * math.ceil(ipc / 2)
    assert sorted(pairs) == [(i, c) for i in range(rounded) for c in range(num_classes)]
    assert len({batch.name for batch in batches}) == len(batches)
    for batch in batches:
        assert batch.labels().tolist() == [c for _ in batch.indices for c in batch.classes]


def test_batch_does_not_change_when_more_images_are_asked_for(
    synthesis_config: SynthesizeConfig,
) -> None:
    few, many = cut(1, 3, synthesis_config), cut(5, 3, synthesis_config)
    assert many[: len(few)] == few
    assert len(many) > len(few)


@pytest.mark.parametrize("changes", [{}, {"views_per": "image"}, {"draw_per": "iteration"}])
def test_order_and_company_of_batches_do_not_change_their_images(
    synthesiser: Teddy, tmp_path: Path, changes: dict[str, Any]
) -> None:
    batches = with_config(synthesiser, **changes).batches(4)
    forward = with_config(synthesiser, **changes)
    in_order = {batch.name: result(forward, batch, tmp_path) for batch in batches}
    backward = with_config(synthesiser, **changes)
    for batch in reversed(batches):
        assert_equal(result(backward, batch, tmp_path), in_order[batch.name])
    alone = with_config(synthesiser, **changes)
    assert_equal(result(alone, batches[2], tmp_path), in_order[batches[2].name])


def test_batches_differ_from_each_other(synthesiser: Teddy, tmp_path: Path) -> None:
    batches = with_config(synthesiser, classes_per_batch=1).batches(4)
    pictures = [result(synthesiser, batch, tmp_path)["images"] for batch in batches]
    rows = torch.cat(pictures).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)


def test_seed_changes_the_images(synthesiser: Teddy, tmp_path: Path) -> None:
    batch = synthesiser.batches(1)[0]
    other = Teddy(synthesiser.config, replace(synthesiser.given, seed=1, training_views=no_views()))
    first, second = result(synthesiser, batch, tmp_path), result(other, batch, tmp_path)
    assert not torch.equal(first["images"], second["images"])


def test_kat21_draw_is_constant_over_chunks_and_differs_between_indices(
    synthesiser: Teddy,
) -> None:
    batches = synthesiser.batches(40)
    of_group: dict[int, set[tuple[int, ...]]] = {}
    for batch in batches:
        draws = {tuple(synthesiser.teachers_drawn(batch, iteration)) for iteration in (0, 1, 5)}
        of_group.setdefault(batch.group, set()).update(draws)
    assert all(len(draws) == 1 for draws in of_group.values())
    assert len(set.union(*of_group.values())) == 3, "all pairs of three teachers come up"


def test_teachers_can_be_drawn_anew_at_every_iteration(synthesiser: Teddy) -> None:
    anew = with_config(synthesiser, draw_per="iteration")
    first, second = anew.batches(1)[:2]
    draws = [tuple(anew.teachers_drawn(first, iteration)) for iteration in range(20)]
    assert len(set(draws)) == 3
    assert draws == [tuple(anew.teachers_drawn(second, iteration)) for iteration in range(20)]


# ------------------------------------------------------------------------------------ conventions


def test_noise_of_an_image_depends_on_its_class_and_index_alone(synthesiser: Teddy) -> None:
    fine = with_config(synthesiser, classes_per_batch=1, indices_per_batch=1)
    pairs = {}
    for batch in fine.batches(2):
        pairs[(batch.indices[0], batch.classes[0])] = fine.initial_images(batch)[0]
    whole = with_config(synthesiser, classes_per_batch=3)
    (batch,) = whole.batches(2)
    for (index, label), image in pairs.items():
        assert torch.equal(whole.initial_images(batch)[3 * index + label], image)


def test_noise_is_standard_normal(synthesiser: Teddy) -> None:
    whole = with_config(synthesiser, classes_per_batch=3, indices_per_batch=100)
    (batch,) = whole.batches(1)
    noise = whole.initial_images(batch)
    count = noise.numel()
    assert abs(noise.mean().item()) < 4 / math.sqrt(count)
    assert abs(noise.var().item() - 1) < 4 * math.sqrt(2 / count)


def test_real_start_is_real_images_of_the_right_class(
    synthesiser: Teddy, dataset: ImageDataset
) -> None:
    real = with_config(synthesiser, initialise="real")
    for batch in real.batches(3):
        pixels = dataset.normalisation.to_uint8(real.initial_images(batch))
        for image, label in zip(pixels, batch.labels(), strict=True):
            equal = (dataset.train.pick(torch.arange(48)) == image).flatten(1).all(1)
            assert dataset.train.labels[equal].tolist() == [label.item()]


VARIANTS: list[dict[str, Any]] = [
    {"initialise": "real"},
    {"views_per": "image"},
    {"draw_per": "iteration"},
    {"class_statistics": "per_class", "classes_per_batch": 1},
    {"class_statistics": "pooled"},
    {"ensemble": "probs"},
    {"ensemble": "loss"},
    {"over_teachers": "sum"},
    {"norm": "l2_squared"},
    {"variance": "unbiased"},
    {"weight_decay": 0.1},
    {"first_bn_weight": 1.0},
    {"alpha_bn": 0.0},
    {"precision": "bfloat16"},
    {"clip": False},
]


def test_every_convention_changes_the_images_and_keeps_them_finite(
    synthesiser: Teddy, tmp_path: Path
) -> None:
    batch = with_config(synthesiser, classes_per_batch=1).batches(1)[0]
    seen = [result(synthesiser, batch, tmp_path)["state.images"]]
    for changes in VARIANTS:
        outcome = result(with_config(synthesiser, **changes), batch, tmp_path)
        images = outcome["state.images"]
        assert images.isfinite().all(), changes
        assert outcome["curve"].isfinite().all(), changes
        assert not any(torch.equal(images, other) for other in seen), changes
        seen.append(images)


def test_class_statistics_are_those_of_the_class_or_their_mixture(
    synthesiser: Teddy, dataset: ImageDataset
) -> None:
    member = 1
    per_class = with_config(synthesiser, class_statistics="per_class", classes_per_batch=1)
    teacher = Teacher(synthesiser.pool.member(member, CPU), "biased")
    layers = class_moments(
        teacher, dataset.train, dataset.normalisation, synthesiser._training_views, 3, 0
    )
    for batch in per_class.batches(1):
        (label,) = batch.classes
        for target, layer in zip(per_class._targets(member, batch), layers, strict=True):
            assert torch.equal(target.mean, layer.mean[label])
            assert torch.equal(target.var, layer.var[label])
    pooled = with_config(synthesiser, class_statistics="pooled")
    for target, layer in zip(pooled._targets(member, pooled.batches(1)[0]), layers, strict=True):
        mean = layer.mean.mean(0)
        torch.testing.assert_close(target.mean, mean)
        var = (layer.var + layer.mean.square()).mean(0) - mean.square()
        torch.testing.assert_close(target.var, var, rtol=1e-4, atol=1e-5)


def test_one_view_is_shared_by_the_batch_or_every_image_has_its_own(
    synthesiser: Teddy,
) -> None:
    batch = synthesiser.batches(1)[0]
    shared = next(synthesiser._views(batch, 0))
    own = next(with_config(synthesiser, views_per="image")._views(batch, 0))
    assert isinstance(shared, Resampling)
    assert isinstance(own, Resampling)
    assert shared.rows.shape == (1, 8, 8)
    assert own.rows.shape == (4, 8, 8)
    assert len(own.rows.unique(dim=0)) > 1


@pytest.mark.parametrize("views_per", ["batch", "image"])
def test_dsa_replaces_views(synthesiser: Teddy, views_per: str, tmp_path: Path) -> None:
    augmented = with_config(synthesiser, augmentation="dsa", views_per=views_per, iterations=60)
    batch = augmented.batches(1)[0]
    drawn = list(augmented._views(batch, 0))
    assert len(drawn) == 60
    assert {view.operation for view in drawn if isinstance(view, DsaViews)} == set(
        augmented.config.dsa.operations
    )
    assert {view.uniform.shape for view in drawn if isinstance(view, DsaViews)} == {
        (1 if views_per == "batch" else 4, 3)
    }
    later = next(augmented._views(batch, 31))
    images = augmented.initial_images(batch)
    assert torch.equal(later(images), drawn[31](images)), "wherever a run started"
    curve = augmented.run(batch, tmp_path / "resume")["curve"]
    assert curve[-5:, 1].mean() < curve[:5, 1].mean(), "the classifier prior falls"
    plain = with_config(synthesiser, iterations=60).run(batch, tmp_path / "resume")
    assert not torch.equal(plain["curve"], curve)


@pytest.mark.parametrize("views_per", ["batch", "image"])
def test_view_of_an_iteration_does_not_depend_on_where_a_run_started(
    synthesiser: Teddy, views_per: str
) -> None:
    long = with_config(synthesiser, views_per=views_per, iterations=150)
    batch = long.batches(1)[0]
    from_start = list(long._views(batch, 0))
    assert len(from_start) >= 150
    for start in (1, 63, 64, 149):
        resumed = next(long._views(batch, start))
        for name in ("rows", "columns"):
            assert torch.equal(getattr(resumed, name), getattr(from_start[start], name))


def test_images_stay_in_the_valid_range_only_with_clip(
    synthesiser: Teddy, dataset: ImageDataset, tmp_path: Path
) -> None:
    low, high = (bound.item() for bound in dataset.normalisation.bounds())
    batch = synthesiser.batches(1)[0]
    clipped = result(synthesiser, batch, tmp_path)["state.images"]
    free = result(with_config(synthesiser, clip=False), batch, tmp_path)["state.images"]
    assert low <= clipped.min() < clipped.max() <= high
    assert free.min() < low < high < free.max()


def test_loss_falls_and_the_curve_records_it(synthesiser: Teddy, tmp_path: Path) -> None:
    long = with_config(synthesiser, iterations=120, draw=3)
    batch = long.batches(1)[0]
    curve = result(long, batch, tmp_path)["curve"]
    assert curve.shape == (100, 3)
    assert curve[[0, -1], 0].tolist() == [1, 120]
    assert (curve[1:, 0] > curve[:-1, 0]).all()
    total = curve[:, 1] + long.config.alpha_bn * curve[:, 2]
    assert total[-10:].mean() < 0.8 * total[:10].mean()


# --------------------------------------------------------------------------------------- whole sets


def test_larger_set_starts_with_the_images_of_the_smaller(
    synthesiser: Teddy, workplace: Path
) -> None:
    small, labels, records = synthesise(synthesiser, 1, WorkDir("synthesize", "small"))
    large, more_labels, more = synthesise(synthesiser, 3, WorkDir("synthesize", "large"))
    assert small.shape == (3, 1, 8, 8)
    assert small.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2]
    assert more_labels.tolist() == [0, 1, 2] * 3
    assert torch.equal(large[:3], small)
    assert more[: len(records)] == records
    assert len(large.flatten(1).unique(dim=0)) == 9
    for record in records:
        assert len(record["drawn"]) == 2


def test_images_of_a_set_are_those_of_its_batches(
    synthesiser: Teddy, workplace: Path, tmp_path: Path
) -> None:
    images, _, _ = synthesise(synthesiser, 3, WorkDir("synthesize", "set"))
    grid = images.unflatten(0, (3, 3))
    for batch in synthesiser.batches(3):
        block = result(synthesiser, batch, tmp_path)["images"]
        block = block.unflatten(0, (len(batch.indices), len(batch.classes)))
        for place, index in enumerate(batch.indices):
            if index < 3:
                assert torch.equal(grid[index, list(batch.classes)], block[place])


def test_finished_batches_are_not_made_again(
    synthesiser: Teddy, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _, records = synthesise(synthesiser, 2, WorkDir("synthesize", "set"))

    def never(*arguments: object) -> None:
        raise AssertionError("a batch was made again")

    monkeypatch.setattr(Teddy, "optimise", never)
    again, _, same = synthesise(synthesiser, 2, WorkDir("synthesize", "set"))
    assert torch.equal(again, images)
    assert same == records
    assert not list(workplace.rglob("*.resume"))


# ----------------------------------------------------------------------------------------- resuming


def interrupted_at(synthesiser: Teddy, stop: int) -> Teddy:
    """A synthesiser that is stopped by the user when an iteration begins."""
    draw = synthesiser.teachers_drawn

    def stop_there(batch: Batch, iteration: int) -> list[int]:
        if iteration == stop:
            raise KeyboardInterrupt
        return draw(batch, iteration)

    synthesiser.teachers_drawn = stop_there  # type: ignore[method-assign]
    return synthesiser


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("changes", [{}, {"views_per": "image", "draw_per": "iteration"}])
def test_killed_and_resumed_run_gives_the_same_bytes(
    synthesiser: Teddy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    stop: int,
) -> None:
    monkeypatch.setattr("teddy.synthesis.engine.runs.CHECK_EVERY", 1)
    changes = {"iterations": 8, **changes}
    batch = synthesiser.batches(1)[0]
    undisturbed = result(with_config(synthesiser, **changes), batch, tmp_path)
    killed, resume = with_config(synthesiser, **changes), tmp_path / "resume.safetensors"
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(killed, stop).run(batch, resume, save_every_seconds=0)
    assert resume.exists()
    resumed, iterations = with_config(synthesiser, **changes), []
    draw = resumed.teachers_drawn

    def watched(batch: Batch, iteration: int) -> list[int]:
        iterations.append(iteration)
        return draw(batch, iteration)

    resumed.teachers_drawn = watched  # type: ignore[method-assign]
    assert_equal(result(resumed, batch, tmp_path), undisturbed)
    assert iterations == list(range(stop, 8)), "it continued where it was stopped"


def test_killed_set_is_finished_by_the_next_call(
    synthesiser: Teddy, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _, records = synthesise(synthesiser, 3, WorkDir("synthesize", "undisturbed"))
    optimise, calls = Teddy.optimise, iter(range(100))

    def dies_on_the_third(self: Teddy, *arguments: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return optimise(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Teddy, "optimise", dies_on_the_third)
        with pytest.raises(KeyboardInterrupt):
            synthesise(with_config(synthesiser), 3, WorkDir("synthesize", "killed"))
    again, _, same = synthesise(with_config(synthesiser), 3, WorkDir("synthesize", "killed"))
    assert torch.equal(again, images)
    assert same == records


# ----------------------------------------------------------------------------------------- refusals


def test_diverging_run_is_refused_with_batch_and_iteration(
    synthesiser: Teddy, tmp_path: Path
) -> None:
    wild = with_config(synthesiser, lr=1e30, clip=False)
    batch = wild.batches(1)[1]
    expected = r"loss is (nan|inf) at iteration 2 of indices 0-1, classes 2-2.*synthesize\.lr"
    with pytest.raises(TeddyError, match=expected):
        wild.run(batch, tmp_path / "resume")
    assert not (tmp_path / "resume").exists()


def broken_pool(pool: Pool, dataset: ImageDataset, folder: Path) -> Pool:
    """A pool of one member with a filter so large that its outputs are not finite."""
    network, _ = load_network(pool.folder / pool.entries[0]["file"])
    next(network.parameters()).data[0] = 3e38
    config = NetworkConfig(arch="convnet3", width=4, norm="batch")
    path = folder / "broken.safetensors"
    save_network(path, network, config, dataset.image_shape, dataset.num_classes)
    return Pool(folder, [{"file": path.name, "sha256": digest(path)}])


def test_broken_teacher_is_refused_at_the_first_iteration(
    synthesiser: Teddy, pool: Pool, dataset: ImageDataset, tmp_path: Path
) -> None:
    given = replace(synthesiser.given, pool=broken_pool(pool, dataset, tmp_path))
    bad = Teddy(replace(synthesiser.config, draw=1), given)
    batch = bad.batches(1)[0]
    with pytest.raises(
        TeddyError, match=r"loss is (nan|inf) at iteration 1 of indices 0-1, classes 0"
    ):
        bad.run(batch, tmp_path / "resume")


@pytest.mark.parametrize("at", [1, -1])
def test_gradient_that_is_not_finite_after_a_finite_loss_is_refused(
    synthesiser: Teddy, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the last iteration, which no loss follows; the file has finite images."""
    monkeypatch.setattr(runs, "CHECK_EVERY", 2)
    gradient_of, broken_at = synthesiser._eq7, range(synthesiser.config.iterations)[at]

    def broken(view: Tensor, *arguments: Any) -> Tensor:
        losses, state = gradient_of(view, *arguments), arguments[-1]
        if state.done == broken_at:
            state.images.grad.fill_(math.nan)
        return losses

    monkeypatch.setattr(synthesiser, "_eq7", broken)
    batch = synthesiser.batches(1)[0]
    with pytest.raises(TeddyError, match=r"images are not finite by iteration \d+ of indices 0-1"):
        synthesiser.run(batch, tmp_path / "a.resume")
    tensors, _ = read_tensors(tmp_path / "a.last-finite.safetensors", kind="teddy.batch-images.v1")
    assert tensors["images"].isfinite().all()


def test_more_teachers_than_the_pool_has_are_refused(synthesiser: Teddy, tmp_path: Path) -> None:
    greedy = with_config(synthesiser, draw=4)
    batch = greedy.batches(1)[0]
    with pytest.raises(TeddyError, match="cannot draw 4 teachers from a pool of 3"):
        greedy.run(batch, tmp_path / "resume")


def test_targets_of_another_network_are_refused(synthesis_config: SynthesizeConfig) -> None:
    teachers = random_teachers([0])
    view, labels = random_view()
    wrong = [Moments(torch.zeros(5), torch.ones(5))] * 3
    with pytest.raises(ValueError, match=r"expected statistics of shape \(5,\), got \(4,\)"):
        eq7_gradient(view, labels, teachers, [wrong], synthesis_config)


# -------------------------------------------------------------------------------------- engine room


def test_finished_batches_leave_a_log_line_and_their_mode(
    synthesiser: Teddy, workplace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    auto = with_config(synthesiser, gradient="auto")
    _, _, records = synthesise(auto, 3, WorkDir("synthesize", "logged"))
    lines = (
        (tmp_path / "logs" / "synthesize-batches.jsonl").read_text(encoding="utf-8").splitlines()
    )
    logged = [json.loads(line) for line in lines]
    assert [line["batch"] for line in logged] == [record["batch"] for record in records]
    for line, record in zip(logged, records, strict=True):
        assert line["gradient"] == record["gradient"] == "joint"
        assert (line["precision"], line["iterations"], line["teachers"]) == ("float32", 6, 2)
        speed = 1e3 * line["images"] / line["ms_per_iteration"]
        assert line["images_per_second"] == pytest.approx(speed, rel=1e-2)
        assert line["peak_mib"] > 50


def test_teachers_are_loaded_once_and_only_those_that_are_drawn(
    synthesiser: Teddy, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    member = Pool.member

    def counted(self: Pool, index: int, device: torch.device) -> nn.Module:
        loaded.append(index)
        return member(self, index, device)

    monkeypatch.setattr(Pool, "member", counted)
    batches = synthesiser.batches(1)
    synthesiser.load(batches)
    assert loaded == synthesiser.teachers_drawn(batches[0], 0)
    synthesiser.load(batches)
    assert len(loaded) == 2
    with_config(synthesiser, draw_per="iteration").load(batches)
    assert loaded[2:] == [0, 1, 2]


def test_bar_tells_speed_and_time_until_all_batches_are_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Place(finished=2, total=5, ahead=1)
    batch = Batch(0, 0, range(2), range(3))
    assert place.title(batch) == "synthesize 2/5 batches, now indices 0-1, classes 0-2"
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    with tqdm(total=100, file=io.StringIO()) as bar:
        place.show(bar, done=40, start=20, iterations=100, images=6, began=100.0)
        assert bar.n == 40
        # 2 iterations a second: 60 are left of this batch, and 100 of the next
        assert bar.postfix == "12 images/s, all in 01:20"
