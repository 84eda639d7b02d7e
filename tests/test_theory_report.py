"""The report on the paper's equations: all checks pass, and a broken equation is found out."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from teddy.core.errors import TeddyError
from teddy.core.files import write_json
from teddy.settings.declared import Declared
from teddy.settings.schema import to_json
from teddy.settings.theory import TheoryConfig
from teddy.stages.commands import main
from teddy.theory import equations, unrolled
from teddy.theory import objective as theory_objective
from teddy.theory.appendix import check_all, count, markdown, refuse_failures
from teddy.theory.checks import Check

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def settings() -> TheoryConfig:
    """The repository's own, with fewer draws."""
    config = Declared(ROOT).theory()
    return replace(config, bound_draws=20, isotropic_draws=(100, 2000))


def test_every_check_passes_for_other_seeds_too(settings: TheoryConfig) -> None:
    for seed in (0, 1, 2):
        report = check_all(settings, seed)
        refuse_failures(report)
        assert count(report) >= 60


def test_all_equations_and_known_answers_are_there(settings: TheoryConfig) -> None:
    report = check_all(settings, 0)
    titles = " ".join(section.title for section in report.sections)
    ranges = re.findall(r"(\d+)[–](\d+)", titles)
    named = {int(n) for n in re.findall(r"\d+", titles)}
    named |= {n for a, b in ranges for n in range(int(a), int(b) + 1)}
    assert set(range(9, 23)) <= named
    assert all(f"Proposition {n}" in titles for n in (1, 2, 3))
    known = {check.known for section in report.sections for check in section.checks}
    assert {str(n) for n in range(1, 10)} <= known


def test_report_shows_every_number_and_figure(settings: TheoryConfig) -> None:
    report = check_all(settings, 0)
    text = markdown(report, "figures/theory")
    assert f"All {count(report)} checks pass." in text
    assert text.count("| pass ") == count(report)
    assert re.findall(r"\]\(figures/theory/(\w+)\.png\)", text) == [
        "error", "bounds", "isotropic", "segment",
    ]  # fmt: skip
    assert markdown(check_all(settings, 0), "figures/theory") == text


@pytest.mark.parametrize(
    ("module", "name", "broken", "section"),
    [
        (equations, "last_layer_gradient", lambda f: lambda *a: 1.001 * f(*a), "Eqs. 4 and 14"),
        (unrolled, "first_order",
         lambda f: lambda inner, *a: f(replace(inner, lr=0.9 * inner.lr), *a), "Proposition 1"),
        (unrolled, "exact", lambda f: lambda *a: f(*a)._replace(gradient=2 * f(*a).gradient),
         "Proposition 1"),
        (equations, "expected_gap_isotropic", lambda f: lambda *a: 1.2 * f(*a), "Proposition 2"),
        (equations, "last_layer_gap_bound", lambda f: lambda *a: 0.5 * f(*a), "Eq. 15"),
        (equations, "class_mean_gap", lambda f: lambda *a: 2 * f(*a), "Eqs. 17 and 18"),
        (equations, "diagonal_gap", lambda f: lambda *a: f(*a) + 100, "Eq. 16"),
        (unrolled, "gradient_matching", lambda f: lambda *a: f(*a)._replace(value=f(*a).value + 1),
         "Eqs. 12 and 13"),
        (unrolled, "statistics_matching",
         lambda f: lambda *a, **k: f(*a, **k)._replace(gradient=1.001 * f(*a, **k).gradient),
         "Eqs. 5 and 19"),
        (unrolled, "teacher_step",
         lambda f: lambda inner, *a: f(replace(inner, lr=1.01 * inner.lr), *a), "Eqs. 6 and 20"),
        (equations, "descent_bounds",
         lambda f: lambda *a, **k: f(*a, **k)._replace(matched=f(*a, **k)[0]), "Eq. 22"),
    ],
)  # fmt: skip
def test_a_broken_equation_fails_the_report(
    module: Any,
    name: str,
    broken: Callable[[Any], Any],
    section: str,
    settings: TheoryConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, name, broken(getattr(module, name)))
    report = check_all(settings, 0)
    assert "**FAIL**" in markdown(report, "")
    with pytest.raises(TeddyError, match=rf"of {count(report)} checks failed, .*'{section}"):
        refuse_failures(report)


@pytest.mark.parametrize("name", ["batchnorm_gap", "statistics_loss", "ensemble_cross_entropy"])
def test_a_broken_objective_fails_the_report(
    name: str, settings: TheoryConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objectives of the pipeline itself, not only of :mod:`teddy.theory.equations`."""
    true = getattr(theory_objective, name)
    monkeypatch.setattr(theory_objective, name, lambda *a: true(*a) + 0.5)
    with pytest.raises(TeddyError, match="checks failed"):
        refuse_failures(check_all(settings, 0))


def test_numbers_that_are_missing_do_not_pass() -> None:
    for relation in ("=", "≤", ">"):
        assert not Check("nothing", float("nan"), relation, 0.0, 1.0).passed
    assert Check("less", 1.0, "≤", 2.0, 0.0).passed
    assert not Check("not less", 2.0, "≤", 1.0, 0.5).passed
    assert not Check("equal is not more", 1.0, ">", 1.0, 0.5).passed


def test_stage_writes_the_report_and_fails_with_one_line(
    settings: TheoryConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_json(tmp_path / "theory.json", {"seed": 0, "config": to_json(settings)})
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    arguments = ["theory", "--report", str(tmp_path / "theory.md"),
                 "--out", str(tmp_path / "table"),
                 "--figures", str(tmp_path / "figures"),
                 "--settings", str(tmp_path / "theory.json")]  # fmt: skip
    main(arguments)
    made = {
        file: file.read_bytes()
        for file in tmp_path.rglob("*")
        if file.suffix in (".md", ".png", ".svg")
    }
    assert len(made) == 10
    main(arguments)
    assert {file: file.read_bytes() for file in made} == made
    capsys.readouterr()

    true = equations.second_moment
    monkeypatch.setattr(equations, "second_moment", lambda features: 2 * true(features))
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1
    assert re.match(r"error: \d+ of \d+ checks failed, the first in 'Eqs. 4 and 14", line)
    assert "**FAIL**" in (tmp_path / "theory.md").read_text(encoding="utf-8")
    assert torch.get_num_threads() == 1
