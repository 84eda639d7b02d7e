"""The bi-level problem on a network: against finite differences, :mod:`plain_equations`, and what
it costs. Float64 where numbers are compared; no data, no GPU.
"""

from typing import Any

import plain_equations as plain
import pytest
import torch
from torch import Tensor, nn

from teddy.core.errors import TeddyError
from teddy.data.datasets import ImageDataset
from teddy.settings.configs import NetworkConfig, SynthesizeConfig
from teddy.settings.theory import Fig1Config, Fig5Config
from teddy.teachers.networks import build
from teddy.theory import unrolled
from teddy.theory.equations import Weights
from teddy.theory.problem import Student, plain_convnet
from teddy.theory.taylor import Comparison, measure_law, optimise
from teddy.theory.unrolled import Batch, InnerLoop
from teddy.theory.unrolled_cost import Operations, SavedBytes, count, methods

CPU = torch.device("cpu")


def student() -> Student:
    """A smooth network for 4×4 images of two classes."""
    torch.manual_seed(3)
    layers = nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)
    return Student(nn.Sequential(*layers).double())


def problem(num_steps: int = 3, lr: float = 0.3) -> tuple[InnerLoop, Weights, Batch, Batch]:
    """Inner loop, theta_0, S, T."""
    generator = torch.Generator().manual_seed(3)

    def batch(size: int) -> Batch:
        images = torch.randn(size, 1, 4, 4, generator=generator, dtype=torch.float64)
        return images, torch.arange(size) % 2

    network = student()
    theta_0 = network.weights(torch.float64)
    return InnerLoop(network.loss, lr, num_steps), theta_0, batch(4), batch(10)


def test_exact_meta_gradient_equals_finite_differences() -> None:
    inner, theta_0, (images, labels), real = problem()
    found = unrolled.exact(inner, theta_0, (images, labels), real).gradient

    def trained(moved: Tensor) -> float:
        return unrolled.worth(inner, theta_0, (moved, labels), real).exact_loss

    size = 1e-5
    for index in range(images.numel()):
        offset = torch.zeros_like(images).flatten()
        offset[index] = size
        offset = offset.reshape(images.shape)
        slope = (trained(images + offset) - trained(images - offset)) / (2 * size)
        assert found.flatten()[index].item() == pytest.approx(slope, rel=1e-6, abs=1e-10)
    assert found.abs().min() > 0


def test_exact_objective_equals_the_plain_unrolled_one() -> None:
    inner, theta_0, (images, labels), real = problem()
    images.requires_grad_()
    run = (inner.loss, theta_0, (images, labels), real)
    value = plain.meta_loss(*run, lr=0.3, num_steps=3)
    (slope,) = torch.autograd.grad(value, images)
    found = unrolled.exact(inner, theta_0, (images, labels), real)
    torch.testing.assert_close(found.value, value.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.gradient, slope, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("fast", "slow"),
    [
        (unrolled.first_order, plain.first_order_meta_loss),
        (unrolled.gradient_matching, plain.gradient_matching_loss),
    ],
)
def test_stepwise_gradient_equals_autograd_of_the_whole_sum(fast: Any, slow: Any) -> None:
    """Eqs. 11 and 13 with detached weights, added up step by step and all at once."""
    inner, theta_0, (images, labels), real = problem()
    images.requires_grad_()
    value = slow(inner.loss, theta_0, (images, labels), real, lr=0.3, num_steps=3)
    (slope,) = torch.autograd.grad(value, images)
    found = fast(inner, theta_0, (images, labels), real)
    torch.testing.assert_close(found.value, value.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.gradient, slope, rtol=1e-9, atol=1e-13)


def test_first_order_gradient_is_not_the_exact_one_but_tends_to_it() -> None:
    distances = []
    for lr in (0.2, 0.1, 0.05):
        inner, theta_0, synthetic, real = problem(lr=lr)
        a = unrolled.exact(inner, theta_0, synthetic, real).gradient
        b = unrolled.first_order(inner, theta_0, synthetic, real).gradient
        distances.append(((a - b).norm() / a.norm()).item())
    assert distances[0] > 1e-3
    assert distances[1] / distances[2] == pytest.approx(2, abs=0.2)


def test_statistics_matching_equals_a_slow_version() -> None:
    """Eq. 19 with convolutions called by hand and the trajectory of the equations."""
    inner, theta_0, (images, labels), real = problem()
    images.requires_grad_()
    loss, frozen = inner.loss, (images.detach(), labels)
    path = plain.training_trajectory(loss, theta_0, frozen, lr=0.3, num_steps=3)
    value = torch.zeros((), dtype=torch.float64)
    for theta in path[:-1]:
        seen = []
        for pixels in (images, real[0]):
            out = nn.functional.conv2d(pixels, theta["0.weight"], theta["0.bias"], padding=1)
            seen.append((out.mean((0, 2, 3)), out.var((0, 2, 3), correction=0)))
        for mine, target in zip(*seen, strict=True):
            value = value + (mine - target.detach()).square().sum().sqrt()
    value = value + 0.7 * loss(path[-1], (images, labels))
    (slope,) = torch.autograd.grad(value, images)
    found = unrolled.statistics_matching(
        inner, theta_0, (images, labels), real,
        statistics=student().statistics, classifier_weight=0.7,
    )  # fmt: skip
    torch.testing.assert_close(found.value, value.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.gradient, slope, rtol=1e-9, atol=1e-13)


def test_worth_holds_the_losses_of_both_objectives() -> None:
    inner, theta_0, synthetic, real = problem()
    found = unrolled.worth(inner, theta_0, synthetic, real)
    exact = unrolled.exact(inner, theta_0, synthetic, real).value.item()
    expansion = unrolled.first_order(inner, theta_0, synthetic, real).value.item()
    assert found.exact_loss == pytest.approx(exact, rel=1e-12)
    assert found.first_order_loss == pytest.approx(expansion, rel=1e-12)
    assert found.exact_loss != found.first_order_loss


def test_plain_network_refuses_images_it_cannot_halve() -> None:
    with pytest.raises(TeddyError, match="at least 16×16 pixels, got 8×8"):
        plain_convnet((1, 8, 8), 10, 4, 4, seed=0)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 32, 32)])
def test_plain_network_is_dms_without_normalisation(shape: tuple[int, int, int]) -> None:
    plain = plain_convnet(shape, 5, 4, 3, seed=0)
    same = build(NetworkConfig(arch="convnet3", width=4, norm="none"), shape, 5, seed=0)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(images), same(images))


# ------------------------------------------------------------------------------------- figure 5


@pytest.fixture
def fig5() -> Fig5Config:
    return Fig5Config(
        dataset="made-up", data="made-up", width=4, depth=1, ipc=2, initialise="real",
        inner_steps=4, inner_lr=0.2,
        real_per_class=8, objectives=("exact", "first_order", "gradient_matching",
        "statistics_matching"), classifier_weight=1.0, iterations=5, lr=0.1, betas=(0.5, 0.9),
        measured_inits=2, seeds=(0,), law_lrs=(0.1, 0.05), law_steps=(1, 2),
    )  # fmt: skip


def test_every_objective_starts_alike_repeats_and_goes_its_way(
    fig5: Fig5Config, dataset: ImageDataset
) -> None:
    comparison = Comparison(fig5, dataset, 7, CPU)
    runs = {name: optimise(comparison, name)["points"] for name in fig5.objectives}
    assert optimise(comparison, "first_order")["points"] == runs["first_order"]
    starts = [points[0] for points in runs.values()]
    assert all(start == starts[0] for start in starts)
    ends = {points[-1]["exact_loss"] for points in runs.values()}
    assert len(ends) == len(runs) and all(len(points) == 6 for points in runs.values())


def test_both_gradients_lower_the_loss_they_stand_for(
    fig5: Fig5Config, dataset: ImageDataset
) -> None:
    comparison = Comparison(fig5, dataset, 7, CPU)
    for name in fig5.objectives[:2]:
        points = optimise(comparison, name)["points"]
        assert points[-1]["exact_loss"] < points[0]["exact_loss"] - 0.05


def test_error_of_the_expansion_is_quadratic_in_the_step(
    fig5: Fig5Config, dataset: ImageDataset
) -> None:
    rows = measure_law(Comparison(fig5, dataset, 7, CPU))
    assert [(row["num_steps"], row["lr"]) for row in rows] == [
        (1, 0.1), (1, 0.05), (2, 0.1), (2, 0.05),
    ]  # fmt: skip
    for large, small in (rows[:2], rows[2:]):
        assert large["loss_error"] / small["loss_error"] == pytest.approx(4, abs=0.8)
        assert large["cosine"] < small["cosine"] or large["num_steps"] == 1


# ------------------------------------------------------------------------------------- figure 1


@pytest.fixture
def fig1() -> Fig1Config:
    student = NetworkConfig(arch="convnet3", width=4, norm="instance")
    teacher = NetworkConfig(arch="convnet3", width=4, norm="batch")
    return Fig1Config(
        dataset="made-up", data="made-up", ipc=2, student=student, teacher=teacher,
        inner_steps=(1, 2, 3, 5),
        inner_lr=0.01, real_images=6, batch_size=6, draws=(1, 2), repeats=1,
    )  # fmt: skip


def test_saved_bytes_count_a_storage_once_and_forget_it_with_its_graph() -> None:
    x = torch.ones(100, dtype=torch.float64, requires_grad=True)
    with SavedBytes() as saved:
        y = (x * x).sum()  # saves x twice
        assert saved.now == 800
        z = x.exp()  # saves its own output
        assert saved.now == 1600
        del y
        assert saved.now == 800
        z.sum().backward()
        del z
    assert (saved.now, saved.peak) == (0, 1600)


def test_saved_bytes_leave_gradients_of_any_order_alone() -> None:
    inner, theta_0, synthetic, real = problem()
    expected = unrolled.exact(inner, theta_0, synthetic, real).gradient
    with SavedBytes() as saved:
        found = unrolled.exact(inner, theta_0, synthetic, real).gradient
    assert torch.equal(found, expected)
    assert saved.now == 0 < saved.peak


def test_unrolled_memory_grows_linearly_and_the_others_stay(
    fig1: Fig1Config, dataset: ImageDataset, synthesis_config: SynthesizeConfig
) -> None:
    rows = [count(m) for m in methods(fig1, synthesis_config, dataset, 0, CPU)]
    by_method: dict[str, list[int]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row["saved_bytes"])
    one, two, three, five = by_method["unrolled"]
    assert two - one > 0.3 * one
    assert three - two == two - one
    assert five - three == 2 * (two - one)
    first = by_method["first_order"]
    assert max(first) - min(first) < 0.06 * min(first)  # nothing, but for a vector under 2.11
    assert len(set(by_method["teddy"])) == 1  # two passes: one teacher's graph at a time
    work = [row["operations"] for row in rows if row["method"] == "first_order"]
    assert work[1] - work[0] == work[2] - work[1] == (work[3] - work[2]) / 2 > 0
    teddy = [row["operations"] for row in rows if row["method"] == "teddy"]
    assert 0 < teddy[0] < teddy[1] < work[-1]


def test_operations_of_a_linear_layer_are_those_of_its_products() -> None:
    """Forward and two products backwards; the gradient of the gradient counts too."""
    weight, x = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    with Operations() as once:
        (slope,) = torch.autograd.grad((x @ weight.T).sin().sum(), weight, create_graph=True)
    assert once.total == 2 * 2 * (7 * 3 * 5)
    with Operations() as twice:
        torch.autograd.grad(slope.sum(), x)
    assert twice.total >= 2 * 2 * (7 * 3 * 5)


def test_counts_are_the_same_every_time(
    fig1: Fig1Config, dataset: ImageDataset, synthesis_config: SynthesizeConfig
) -> None:
    made = [[count(m) for m in methods(fig1, synthesis_config, dataset, 0, CPU)] for _ in range(2)]
    assert made[0] == made[1]
