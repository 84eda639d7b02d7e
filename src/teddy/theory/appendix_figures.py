"""Figures of the appendix; bytes are the same for the same numbers."""

from pathlib import Path

from teddy.report.drawing import GREY, PANEL, SERIES, WIDTH, drawn, log_ticks, slope_guide
from teddy.theory.expansion import ErrorLaw
from teddy.theory.gradients import Bounds
from teddy.theory.objective import Segments
from teddy.theory.statistics import Isotropic


def error(path: Path, law: ErrorLaw) -> None:
    """Error of Proposition 1's expansion against eta and against T."""
    with drawn(path, WIDTH, PANEL + 0.5, formulas=True) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        steps, growth = figure.subplots(1, 2)
        lrs = law.step_sizes
        steps.plot(lrs, law.loss_errors, "o-", color=SERIES[0], label="loss")
        steps.plot(lrs, law.gradient_errors, "s-", color=SERIES[1],
                   label="meta-gradient, relative")  # fmt: skip
        slope_guide(steps, lrs, 2, (lrs[-1], law.loss_errors[-1] / 2), "slope 2")
        slope_guide(steps, lrs, 1, (lrs[-1], law.gradient_errors[-1] / 2), "slope 1")
        steps.lines[-1].set_linestyle((0, (1, 2)))
        steps.set_title("Proposition 1: error against step size", loc="left")
        steps.set_xlabel("inner learning rate η")
        log_ticks(steps, list(lrs)[::-1][::2])
        growth.plot(law.lengths, law.length_errors, "o-", color=SERIES[0], label="loss")
        slope_guide(growth, law.lengths, 1, (law.lengths[-1], law.length_errors[-1] / 2), "slope 1")
        growth.set_title("error against inner steps", loc="left")
        growth.set_xlabel("inner steps T")
        log_ticks(growth, law.lengths)
        for axes in (steps, growth):
            axes.set_yscale("log")
            axes.set_ylabel("error of the first-order form")
            axes.legend(loc="best")


def bounds(path: Path, both: Bounds) -> None:
    """Value against bound for Eq. 15, and both bounds of Eq. 22 against eta L."""
    with drawn(path, WIDTH, PANEL + 0.6, formulas=True) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        cloud, curve = figure.subplots(1, 2)
        top = 1.05 * max(both.gap_bounds)
        cloud.fill_between([0, top], [0, top], top, color=GREY, alpha=0.12, linewidth=0)
        cloud.plot([0, top], [0, top], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        cloud.plot(both.gap_bounds, both.gaps, ".", color=SERIES[0], markersize=4)
        cloud.annotate("not allowed", (0.05 * top, 0.9 * top), color=GREY, fontsize=7.5)
        cloud.set_xlim(0, top)
        cloud.set_ylim(0, top)
        cloud.set_title("Eq. 15: random cases", loc="left")
        cloud.set_xlabel("upper bound")
        cloud.set_ylabel("distance of the gradients")
        curve.plot(both.rates, both.after, color="#000000", label="real loss after the step")
        curve.plot(
            both.rates, both.smooth, color=SERIES[0], linestyle=(0, (4, 3)), label="first bound"
        )
        curve.plot(both.rates, both.matched, color=SERIES[1], label="second bound (Eq. 13)")
        curve.axvline(1, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
        curve.set_title("Eq. 22: parabola; second bound up to ηL = 1", loc="left")
        curve.set_xlabel("ηL")
        curve.set_ylabel("loss")
        curve.legend(loc="best")


def isotropic(path: Path, found: Isotropic) -> None:
    """Monte-Carlo means with their standard errors against the exact expectation."""
    with drawn(path, WIDTH * 0.62, PANEL + 0.5, formulas=True) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        axes = figure.subplots()
        axes.axhline(found.expected, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)),
                     label="Cτ²‖ΔA‖² + ‖ΔM‖²")  # fmt: skip
        axes.errorbar(found.draws, found.means, found.errors, fmt="o", color=SERIES[0], capsize=3,
                      label="mean ± standard error")  # fmt: skip
        axes.set_xscale("log")
        axes.margins(x=0.08)
        axes.set_title("Proposition 2: isotropic identity", loc="left")
        axes.set_xlabel("draws of W")
        axes.set_ylabel("squared distance of the gradients")
        axes.legend(loc="best")


def segment(path: Path, segments: Segments, num_steps: int) -> None:
    """Distance of a k-step segment from one k-fold step, along either gradient."""
    with drawn(path, WIDTH * 0.62, PANEL + 0.5, formulas=True) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        axes = figure.subplots()
        lrs, own, teacher = segments.step_sizes, segments.own, segments.teacher
        axes.plot(lrs, teacher, "s-", color=SERIES[1], label="along g$_T$, not matched")
        axes.plot(lrs, own, "o-", color=SERIES[0], label="along g$_S$")
        slope_guide(axes, lrs, 1, (lrs[-1], teacher[-1] / 2), "slope 1")
        axes.lines[-1].set_linestyle((0, (1, 2)))
        slope_guide(axes, lrs, 2, (lrs[-1], own[-1] / 2), "slope 2")
        log_ticks(axes, list(lrs)[::-1])
        axes.set_yscale("log")
        axes.set_title(f"Eq. 20: {num_steps} steps against one step of {num_steps}η", loc="left")
        axes.set_xlabel("inner learning rate η")
        axes.set_ylabel("distance of the weights")
        axes.legend(loc="best")
