"""The report on the paper's equations: all checks pass, and a broken equation is found out."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from teddy.core.errors import TeddyError
from teddy.settings.params import Params
from teddy.settings.theory import TheoryConfig
from teddy.stages import theory as stage
from teddy.theory import equations as theory
from teddy.theory import objective as theory_objective
from teddy.theory.appendix import check_all, count, markdown, refuse_failures
from teddy.theory.checks import Check

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def settings() -> TheoryConfig:
    """The repository's own, with fewer draws."""
    config = Params(ROOT / "params.yaml").theory()
    return dataclasses.replace(config, bound_draws=20, isotropic_draws=(100, 2000))


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
    ("name", "broken", "section"),
    [
        ("last_layer_gradient", lambda f: lambda *a: 1.001 * f(*a), "Eqs. 4 and 14"),
        ("first_order_meta_loss", lambda f: lambda *a, lr, **k: f(*a, lr=0.9 * lr, **k),
         "Proposition 1"),
        ("expected_gap_isotropic", lambda f: lambda *a: 1.2 * f(*a), "Proposition 2"),
        ("last_layer_gap_bound", lambda f: lambda *a: 0.5 * f(*a), "Eq. 15"),
        ("class_mean_gap", lambda f: lambda *a: 2 * f(*a), "Eqs. 17 and 18"),
        ("diagonal_gap", lambda f: lambda *a: f(*a) + 100, "Eq. 16"),
        ("gradient_matching_loss", lambda f: lambda *a, **k: f(*a, **k) + 1, "Eqs. 12 and 13"),
        ("teacher_step", lambda f: lambda *a, lr, **k: f(*a, lr=1.01 * lr, **k), "Eqs. 6 and 20"),
        ("descent_bounds", lambda f: lambda *a, **k: f(*a, **k)._replace(matched=f(*a, **k)[0]),
         "Eq. 22"),
    ],
)  # fmt: skip
def test_a_broken_equation_fails_the_report(
    name: str,
    broken: Callable[[Any], Any],
    section: str,
    settings: TheoryConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(theory, name, broken(getattr(theory, name)))
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = YAML()
    raw = yaml.load(ROOT / "params.yaml")
    raw["theory"] |= {"bound_draws": 5, "isotropic_draws": [100, 1000]}
    yaml.dump(raw, tmp_path / "params.yaml")
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    arguments = ["--report", str(tmp_path / "theory.md"), "--table", str(tmp_path / "table.md"),
                 "--figures", str(tmp_path / "figures"),
                 "--params", str(tmp_path / "params.yaml")]  # fmt: skip
    stage.main(arguments)
    made = {
        file: file.read_bytes() for file in tmp_path.rglob("*") if file.suffix in (".md", ".png")
    }
    assert len(made) == 6
    stage.main(arguments)
    assert {file: file.read_bytes() for file in made} == made
    capsys.readouterr()

    true = theory.second_moment
    monkeypatch.setattr(theory, "second_moment", lambda features: 2 * true(features))
    with pytest.raises(SystemExit) as stop:
        stage.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1
    assert re.match(r"error: \d+ of \d+ checks failed, the first in 'Eqs. 4 and 14", line)
    assert "**FAIL**" in (tmp_path / "theory.md").read_text(encoding="utf-8")
    assert torch.get_num_threads() == 1
