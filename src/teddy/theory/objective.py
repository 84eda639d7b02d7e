"""Eqs. 5–7 and 19–22 and Proposition 3: Teddy's objective and the bound it minimises."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from teddy.objectives import (
    Moments,
    batchnorm_gap,
    ensemble_cross_entropy,
    moments,
    statistics_loss,
)
from teddy.settings.theory import TheoryConfig
from teddy.theory import equations as theory
from teddy.theory import unrolled
from teddy.theory.checks import (
    Check,
    Section,
    equals,
    f64,
    network_loss,
    network_problem,
    normal,
    orders,
    printed,
)
from teddy.theory.equations import Weights
from teddy.theory.gradients import Bounds
from teddy.theory.unrolled import InnerLoop


@dataclass(frozen=True, slots=True)
class Segments:
    """Distance of a k-step student segment from one k-fold step (Eq. 20)."""

    step_sizes: tuple[float, ...]
    own: tuple[float, ...]
    """Step along g_S."""
    teacher: tuple[float, ...]
    """Step along g_T."""


def segment_errors(config: TheoryConfig, seed: int) -> Segments:
    """Distances of Eq. 20's members for every step size."""
    theta, synthetic, real = network_problem(seed)
    own: list[float] = []
    teacher: list[float] = []
    for lr in config.step_sizes:
        inner = InnerLoop(network_loss, lr, config.segment_steps)
        student = inner.end(theta, synthetic)
        for errors, data in ((own, synthetic), (teacher, real)):
            step = unrolled.teacher_step(inner, theta, data)
            errors.append(theory.squared_distance(student, step).sqrt().item())
    return Segments(config.step_sizes, tuple(own), tuple(teacher))


def equation_19(config: TheoryConfig, seed: int) -> Section:
    """The objective whose trajectory is a constant."""
    theta, (inputs, labels), real = network_problem(seed)
    inner = InnerLoop(network_loss, config.step_sizes[0], config.num_steps)
    path = [theta_t for theta_t, _ in inner.steps(theta, (inputs, labels))]
    end = inner.end(theta, (inputs, labels))

    def objective(x: Tensor) -> float:
        gaps = [batchnorm_gap(_hidden(t, x), _hidden(t, real[0])) for t in path]
        return (torch.stack(gaps).sum() + network_loss(end, (x, labels))).item()

    slope = unrolled.statistics_matching(
        inner, theta, (inputs, labels), real,
        statistics=lambda t, x: [_hidden(t, x)], classifier_weight=1.0,
    ).gradient  # fmt: skip
    direction = normal(seed, "direction")(*inputs.shape)
    size = 1e-6
    moved = [objective(inputs + sign * size * direction) for sign in (1, -1)]
    twice = (real[0].repeat(2, 1), real[1].repeat(2))
    same = batchnorm_gap(_hidden(theta, twice[0]), _hidden(theta, real[0])).item()
    gap = unrolled.gradient_matching(inner, theta, twice, real).value
    apart = batchnorm_gap(_hidden(theta, inputs), _hidden(theta, real[0])).item()
    return Section(
        "Eqs. 5 and 19: statistics along one trajectory",
        r"$$\min_{\mathcal S}\sum_{t=0}^{T-1}\sum_l\lVert\mu_l(\mathcal S;\theta_t)-"
        r"\mu_l(\mathcal T;\theta_t)\rVert_2+\lVert\sigma_l^2(\mathcal S;\theta_t)-"
        r"\sigma_l^2(\mathcal T;\theta_t)\rVert_2+\lambda\,\ell(\mathcal S;\theta_T)$$"
        "\n\nNo graph leads through the training: every $\\theta_t$ is a constant. Sets that give "
        "the same gradients everywhere have a statistics term of 0.",
        "Hidden layer of the network: the gradient against a central difference along a random "
        "direction with the trajectory held fixed; S made of every real sample twice.",
        (
            Check("gradient against the difference quotient", (slope * direction).sum().item(),
                  "=", (moved[0] - moved[1]) / (2 * size), config.difference_tolerance),
            Check("S = T twice: statistics term", same, "≤", 0, config.exact_tolerance),
            Check("S = T twice: Eq. 13", gap.item(), "≤", 0, config.exact_tolerance),
            Check("S of 6 samples: statistics term (is not 0)", apart, ">",
                  config.exact_tolerance, 0.0),
        ),
    )  # fmt: skip


def equation_20(config: TheoryConfig, segments: Segments) -> Section:
    """A k-step segment of the student as one step of a teacher."""
    k = config.segment_steps
    listed = ", ".join(f"{error:.2e}" for error in segments.own)
    return Section(
        "Eqs. 6 and 20: a segment of the student as one step of a teacher",
        r"$$\theta^{\mathcal S}_{i+k}=\theta_i-\eta\sum_{j=0}^{k-1}g_{\mathcal S}("
        r"\theta^{\mathcal S}_{i+j})\approx\theta_i-k\eta\,g_{\mathcal S}(\theta_i)\approx"
        r"\theta_i-k\eta\,g_{\mathcal T}(\theta_i)$$"
        "\n\nThe first ≈ costs $O(k^2\\eta^2)$. The second costs "
        r"$k\eta\lVert g_{\mathcal S}-g_{\mathcal T}\rVert$: it is only as good as the gradients "
        "are matched.",
        f"k = {k} steps of the network against one step of kη, along g_S and along g_T. Errors "
        f"along g_S while η halves: {listed}.",
        (
            Check("order of the first ≈ in η", orders(segments.own)[-1], "=", 2,
                  config.order_tolerance, "9"),
            Check("order of both ≈ in η, gradients not matched", orders(segments.teacher)[-1],
                  "=", 1, config.order_tolerance, "9"),
        ),
        "segment",
        "Distance between the end of a k-step segment and one k-fold step.",
    )  # fmt: skip


def equation_21(config: TheoryConfig, seed: int) -> Section:
    """Teddy's objective in its parts, by hand and against Eq. 19."""
    values = f64([0.0, 2.0, 4.0, 6.0]).reshape(4, 1, 1, 1)
    fresh = Moments(f64([0.0]), f64([1.0]))
    one = statistics_loss([moments(values)], [fresh], 1.0).item()
    first = statistics_loss([moments(values)], [fresh], 10.0).item()
    shifted = batchnorm_gap(
        Moments(f64([3.0, 4.0]), f64([1.0, 1.0])), Moments(f64([0.0, 0.0]), f64([1.0, 1.0]))
    ).item()
    layer = nn.BatchNorm2d(1, momentum=1.0, dtype=torch.float64)
    layer.train()(values)
    stored = Moments(_known(layer.running_mean), _known(layer.running_var))
    stale = batchnorm_gap(moments(values), stored).item()
    theta, (inputs, labels), real = network_problem(seed)
    teacher = nn.BatchNorm2d(len(theta["b1"]), momentum=1.0, dtype=torch.float64)
    teacher.train()((real[0] @ theta["w1"] + theta["b1"])[:, :, None, None])
    biased = (len(real[0]) - 1) / len(real[0])
    buffers = Moments(_known(teacher.running_mean), biased * _known(teacher.running_var))
    online = batchnorm_gap(_hidden(theta, inputs), _hidden(theta, real[0])).item()
    cached = batchnorm_gap(_hidden(theta, inputs), buffers).item()
    leaf, alpha = inputs.clone().requires_grad_(), 0.01
    statistics = batchnorm_gap(_hidden(theta, leaf), buffers)
    prior = network_loss(theta, (leaf, labels))
    (a,) = torch.autograd.grad(prior + alpha * statistics, leaf, retain_graph=True)
    (b,) = torch.autograd.grad(statistics + prior / alpha, leaf)
    logits, target = f64([[[4.0, 0.0]], [[0.0, 0.0]]]), torch.tensor([0])
    entropies = [
        ensemble_cross_entropy(logits, target, kind).item() for kind in ("logits", "probs", "loss")
    ]
    return Section(
        "Eqs. 7 and 21: Teddy's objective",
        r"$$\mathrm{CE}\big(\mathrm{ens}_{m\in K}f_{\theta_m}(\tilde x),y\big)+\alpha_{BN}"
        r"\tfrac1{|K|}\sum_{m\in K}\sum_l w_l\left(\lVert\mu_l-RM_{m,l}\rVert_2+\lVert\sigma^2_l-"
        r"RV_{m,l}\rVert_2\right)$$"
        "\n\nThe running statistics of cached teachers take the place of the real set's at "
        r"$\theta_t$, and $\lambda=1/\alpha_{BN}$.",
        "Channel values {0, 2, 4, 6} against a fresh layer (0, 1); the same values against what a "
        "BatchNorm layer stores of them, which is the unbiased variance; Eq. 19's term with the "
        "real statistics stored; gradients of both forms with α = 0.01; ensembles of the logits "
        "(4, 0) and (0, 0).",
        (
            Check("|1 − 5| + |0 − 3|", one, "=", 7, 0.0),
            Check("as first layer, weight 10", first, "=", 70, 0.0),
            Check("two channels, Δμ = (3, 4), norm not squared", shifted, "=", 5, 0.0),
            equals(config, "stored after one pass: ‖σ²‖/(n − 1), not 0", stale, 5 / 3),
            equals(config, "Eq. 19's term against stored statistics, made biased", online,
                      cached),
            equals(config, "largest of CE + αR over R + CE/α, against α",
                      (a / b).abs().max().item(), alpha),
            printed("ensemble of logits", entropies[0], "0.126928"),
            printed("ensemble of probabilities", entropies[1], "0.299745"),
            printed("ensemble of losses", entropies[2], "0.355649"),
        ),
    )  # fmt: skip


def equation_22(config: TheoryConfig, seed: int, bounds: Bounds) -> Section:
    """Both bounds on the real loss after a step, for a parabola and for random quadratics."""
    inside = [i for i, rate in enumerate(bounds.rates) if rate <= 1]
    slack = [bounds.matched[i] - bounds.after[i] for i in inside]
    beyond = [
        after - matched
        for rate, after, matched in zip(bounds.rates, bounds.after, bounds.matched, strict=True)
        if rate > 1
    ]
    equality = max(abs(a - s) for a, s in zip(bounds.after, bounds.smooth, strict=True))
    broken = _broken_bounds(config, seed)
    return Section(
        "Eq. 22 and Proposition 3: an upper bound is minimised",
        r"$$\ell(\mathcal T;\theta_t-\eta g_{\mathcal S})\le\ell-\eta\langle g_{\mathcal T},"
        r"g_{\mathcal S}\rangle+\tfrac{L\eta^2}2\lVert g_{\mathcal S}\rVert^2\le\ell-\tfrac\eta2"
        r"\lVert g_{\mathcal T}\rVert^2+\tfrac\eta2\lVert g_{\mathcal T}-g_{\mathcal S}\rVert^2$$"
        "\n\nThe first inequality is the paper's, for an $L$-smooth loss. The second holds for "
        r"$\eta\le1/L$ and makes Eq. 13 a bound; it is ours.",
        "Parabola with L = 4 and ηL from 0.05 to 2; then random quadratics in three dimensions "
        f"with η between 0 and 1/L ({config.bound_draws} draws).",
        (
            Check("parabola: |loss − first bound|, largest", equality, "≤", 0,
                  config.exact_tolerance, "8"),
            Check("parabola, η ≤ 1/L: loss − second bound, largest", -min(slack), "≤", 0,
                  config.exact_tolerance, "8"),
            Check("parabola, η > 1/L: loss − second bound, smallest (fails)", min(beyond), ">", 0,
                  0.0, "8"),
            Check("random quadratics that break a bound", broken, "=", 0, 0.0),
        ),
    )  # fmt: skip


def _broken_bounds(config: TheoryConfig, seed: int) -> int:
    draw, broken = normal(seed, "quadratics"), 0
    for _ in range(config.bound_draws):
        root, theta, g_s = draw(3, 3), draw(3), draw(3)
        hessian = root.T @ root
        smoothness = torch.linalg.eigvalsh(hessian)[-1].item()
        lr = torch.sigmoid(draw()).item() / smoothness
        start, after = (0.5 * x @ hessian @ x for x in (theta, theta - lr * g_s))
        bounds = theory.descent_bounds(
            start, {"theta": hessian @ theta}, {"theta": g_s}, lr=lr, smoothness=smoothness
        )
        slack = config.exact_tolerance * max(1.0, bounds.matched.abs().item())
        broken += not after - slack <= bounds.smooth <= bounds.matched + slack
    return broken


def _hidden(theta: Weights, inputs: Tensor) -> Moments:
    """Statistics of the hidden layer before its tanh, as a BatchNorm layer there would see them."""
    return moments((inputs @ theta["w1"] + theta["b1"])[:, :, None, None])


def _known(buffer: Tensor | None) -> Tensor:
    assert buffer is not None, "BatchNorm keeps running statistics unless told otherwise"
    return buffer
