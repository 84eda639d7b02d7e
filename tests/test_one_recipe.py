"""The one-recipe table and its verdicts from invented results; nothing is trained."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_small_data_report import CATALOGUE, PAPER, result

from teddy.core.errors import TeddyError
from teddy.report.results import EvaluationResult
from teddy.report.targets import target_tables
from teddy.report.verdicts import of_target
from teddy.settings.places import the_recipe


def row(
    method: str, recipe: str, top1: float, labels: str = "soft", **more: Any
) -> EvaluationResult:
    """An invented result; random images have no start."""
    init = None if method == "random" else "real"
    own = result(method, 10, init, top1, "digits")
    name = f"digits/recipes/{method}-{recipe}"
    return replace(own, name=name, recipe=recipe, labels=labels, label_bytes=100, **more)


def test_recipe_of_most_methods_is_the_one() -> None:
    few, as_many = [("a", "cvdd"), ("b", "cvdd"), ("b", "cvdd")], [("a", "rd3"), ("b", "rd3")]
    assert the_recipe([*few, *as_many]) == "cvdd"  # by name
    assert the_recipe([*few, *as_many, ("c", "rd3")]) == "rd3"
    assert the_recipe([("a", ""), ("b", ""), ("a", "rd3")]) == "rd3"
    assert the_recipe([("a", "")]) == ""


def test_results_without_a_recipe_are_refused() -> None:
    with pytest.raises(TeddyError, match="digits/recipes/sre2l- and the others have no recipe"):
        target_tables("recipes", [row("sre2l", "", 1)], PAPER, CATALOGUE)


def test_columns_are_recipes_with_the_one_first_and_the_datasets_settings_last() -> None:
    results = [
        row("random", "", 40, "hard"), row("random", "rd3", 45), row("random", "rd3", 30, "hard"),
        row("sre2l", "sre2l", 20), row("sre2l", "rd3", 46),
    ]  # fmt: skip
    accuracy, worth, bytes_of = target_tables("recipes", results, PAPER, CATALOGUE)
    assert [(column.group, column.name) for column in accuracy.columns[1:]] == [
        ("rd3", "hard"), ("rd3", "soft"), ("sre2l", "soft"), ("settings of the dataset", "hard"),
    ]  # fmt: skip
    assert [cells[0] for cells in accuracy.rows] == ["Random real images", "SRe2L"]
    assert accuracy.rows[1][1:] == (None, "46.0 ± 1.5", "20.0 ± 1.5", None)
    assert worth.rows == (("SRe2L", None, "+1.0"),)
    assert len(bytes_of.rows) == 2


@pytest.mark.parametrize(("std", "shown"), [(0.5, "+3.0*"), (5.0, "+3.0")])
def test_a_star_is_a_difference_that_the_test_sees(std: float, shown: str) -> None:
    results = [row("random", "rd3", 40, top1_std=std), row("teddy-plus", "rd3", 43, top1_std=std)]
    assert target_tables("recipes", results, PAPER, CATALOGUE)[1].rows[0][1] == shown


def test_images_of_every_method_that_optimises_are_held_against_random_ones() -> None:
    results = [
        row("random", "rd3", 40), row("teddy-prior", "rd3", 50), row("sre2l", "rd3", 30),
        replace(row("kmeans", "rd3", 60), init=None), row("rded", "rd3", 60),
    ]  # fmt: skip
    found = of_target("recipes", results, CATALOGUE)
    assert [(v.outcome, v.data.rpartition(", ")[2]) for v in found] == [
        ("reproduced", "Teddy (prior)"), ("contradicted", "SRe2L"),
    ]  # fmt: skip


def test_methods_that_differ_less_under_one_recipe_reproduce_the_claim() -> None:
    own, under = [10.0, 30, 50, 70, 90], [50.0, 51, 51, 52, 50.5]
    methods = ("sre2l", "cda", "fadrm", "teddy-prior", "teddy-post")
    theirs = ("sre2l", "sre2l", "cvdd", "sre2l", "sre2l")
    results = [row(m, r, top1) for m, r, top1 in zip(methods, theirs, own, strict=True)]
    results += [row(m, "rd3", top1) for m, top1 in zip(methods, under, strict=True)]
    results += [row("random", "rd3", 50)]
    (verdict,) = [v for v in of_target("recipes", results, CATALOGUE) if "RD3" in v.claim]
    assert verdict.outcome == "reproduced"
    assert "within 80.0 points" in verdict.evidence and "within 2.0 under" in verdict.evidence
    assert "(cvdd and sre2l, and rd3)" in verdict.evidence
    swapped = [replace(r, top1_mean=top1) for r, top1 in zip(results, under + own, strict=False)]
    (verdict,) = [v for v in of_target("recipes", swapped, CATALOGUE) if "RD3" in v.claim]
    assert verdict.outcome == "contradicted"


def test_recipes_of_one_name_are_not_the_methods_own() -> None:
    methods = ("sre2l", "cda", "fadrm", "teddy-prior")
    results = [row(m, r, 50) for m in methods for r in ("rd3", "sre2l")] + [row("dm", "rd3", 50)]
    assert not [v for v in of_target("recipes", results, CATALOGUE) if "RD3" in v.claim]


def test_pitmans_test_is_that_of_its_definition() -> None:
    """t = (F − 1) √(n − 2) / (2 √(F (1 − r²))) with n − 2 degrees of freedom (Pitman, 1939)."""
    from scipy import stats

    from teddy.report.verdicts import correlation

    own, under = np.random.default_rng(0).normal(size=(2, 6)) * [[3], [1]]
    ratio, r, n = own.var() / under.var(), np.corrcoef(own, under)[0, 1], 6
    t = (ratio - 1) * np.sqrt(n - 2) / (2 * np.sqrt(ratio * (1 - r**2)))
    pairs = [(a + b, a - b) for a, b in zip(own, under, strict=True)]
    assert correlation(pairs)[1] == pytest.approx(2 * stats.t.sf(abs(t), n - 2))
