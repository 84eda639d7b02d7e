"""Verdicts follow their rules and nothing else; the page shows them and needs no network."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from teddy.report.page import Part, Picture, Section, from_markdown, outcomes, render
from teddy.report.results import Cost, EvaluationResult
from teddy.report.verdicts import (
    CLAIMS,
    Verdict,
    correlation,
    from_record,
    judge,
    of_costs,
    of_target,
    to_record,
)
from teddy.settings.declared import Declared
from teddy.settings.resolve import catalogue

CATALOGUE = catalogue(Declared(Path(__file__).parents[1]))
RESULT = EvaluationResult(
    name="digits/main/ipc10/prior", set="digits/main/ipc10/prior", dataset="digits", data="digits",
    method="teddy-prior", ipc=10, arch="convnet3", pool="digits/prior", labels="soft",
    split="test", images_held_out=450, num_classes=10, largest_class=None, machine=None,
    keep=(1.0, 1.0), epochs=150, recipe="", n=3, syntheses=3,
    top1_mean=90.0, top1_std=1.0, top1_best_mean=91.0, f1_mean=89.0, f1_std=1.0,
    kl_student_teacher=0.5, kl_teacher_student=0.4, members=8, pool_size=8, stages=(2, 16),
    teachers_drawn=3, ensemble="logits", first_bn_weight=10.0, precision="float32",
    init="noise", default=True, image_bytes=1, label_bytes=1,
)  # fmt: skip


def result(method: str, top1: float, **changes: Any) -> EvaluationResult:
    return replace(RESULT, method=method, top1_mean=top1, f1_mean=top1 - 1, **changes)


def found(target: str, *results: EvaluationResult) -> dict[str, str]:
    """Outcome by claim and data."""
    return {f"{v.claim} {v.data}": v.outcome for v in of_target(target, results, CATALOGUE)}


@pytest.mark.parametrize(
    ("teddy", "sre2l", "classes", "outcome"),
    [
        (11.0, 9.0, 10, "inconclusive"),
        (14.2, 5.0, 10, "inconclusive"),  # 10 + 3·√(0.1·0.9/450) = 14.24
        (14.3, 9.0, 10, "reproduced"),
        (9.0, 14.3, 10, "contradicted"),
        (57.0, 50.0, 2, "inconclusive"),  # 57.07
        (58.0, 50.0, 2, "reproduced"),
        (11.0, 9.0, 100, "reproduced"),
        (11.0, 9.0, None, "reproduced"),
    ],
)
def test_students_as_accurate_as_guessing_prove_nothing(
    teddy: float, sre2l: float, classes: int | None, outcome: str
) -> None:
    facts: dict[str, Any] = {"num_classes": classes, "pool": "p", "top1_std": 0.5}
    pair = [result("teddy-prior", teddy, **facts), result("sre2l", sre2l, **facts)]
    (verdict,) = of_target("table4", pair, CATALOGUE)
    assert verdict.outcome == outcome
    assert ("frequent class gives" in verdict.evidence) == (outcome == "inconclusive")


def test_guessing_is_the_share_of_the_most_frequent_class() -> None:
    facts = {"images_held_out": 200, "num_classes": 2, "largest_class": 180, "pool": "p"}
    pair = [result("teddy-prior", 90.0, **facts), result("sre2l", 80.0, **facts)]
    (verdict,) = of_target("table4", pair, CATALOGUE)
    assert verdict.outcome == "inconclusive"
    assert "always guessing the most frequent class gives 90.0 and" in verdict.evidence


@pytest.mark.parametrize(
    ("higher", "lower", "std_higher", "std_lower", "outcome"),
    [
        (90.0, 80.0, 1.0, 1.0, "reproduced"),
        # Equal deviations: 4 degrees of freedom, t = 2.776, so 2.776 · √(2/3) = 2.267.
        (90.0, 87.7, 1.0, 1.0, "reproduced"),
        (90.0, 87.8, 1.0, 1.0, "inconclusive"),
        (87.8, 90.0, 1.0, 1.0, "inconclusive"),
        (87.7, 90.0, 1.0, 1.0, "contradicted"),
        # One side varies: 2 degrees of freedom, t = 4.303, so 4.303 · 1.4 / √3 = 3.478.
        (90.0, 86.5, 0.0, 1.4, "reproduced"),
        (90.0, 86.6, 0.0, 1.4, "inconclusive"),
        (90.0, 90.0, 0.0, 0.0, "inconclusive"),
        (90.0, 80.0, 0.0, 0.0, "reproduced"),
    ],
)
def test_a_gain_must_pass_the_test(
    higher: float, lower: float, std_higher: float, std_lower: float, outcome: str
) -> None:
    verdict = judge("claim", "data", (higher, lower), (std_higher, std_lower), (3, 3))
    assert verdict.outcome == outcome
    assert verdict.evidence.endswith("n = 3 and 3")


def test_a_single_synthesis_proves_nothing() -> None:
    one = result("teddy-prior", 90.0, syntheses=1, top1_std=0.0, pool="p")
    (verdict,) = of_target("table4", [one, result("sre2l", 80, pool="p")], CATALOGUE)
    assert (verdict.outcome, "of a single synthesis" in verdict.evidence) == ("inconclusive", True)


def test_table1_compares_methods_of_one_ipc_only() -> None:
    outcomes_ = found(
        "table1", result("teddy-prior", 90), result("sre2l", 80), result("random", 95),
        result("sre2l", 99, ipc=50), result("teddy-prior", 10, labels="hard"),
    )  # fmt: skip
    where = "scikit-learn digits, IPC 10"
    prior, post, real, *_ = CLAIMS["table1"]
    assert outcomes_ == {f"{prior} {where}": "reproduced", f"{real} {where}": "contradicted"}
    assert post not in str(outcomes_)


def test_ours_is_held_against_random_images_the_best_coreset_and_teddy() -> None:
    outcomes_ = found(
        "table1", result("teddy-plus", 90), result("random", 80), result("teddy-prior", 95),
        result("herding", 70), result("kmeans", 89), result("teddy-plus", 50, labels="fixed"),
        result("random", 40, labels="fixed"), result("crops", 60, ipc=50),
    )  # fmt: skip
    where, (*_, over_random, over_coresets, over_prior) = "digits, IPC 10", CLAIMS["table1"]
    ours = {key: outcome for key, outcome in outcomes_.items() if "plus" in key}
    assert ours == {
        f"{over_random} scikit-learn {where}, soft labels": "reproduced",
        f"{over_coresets} scikit-learn {where}, soft labels, "
        + CATALOGUE.methods["kmeans"].title: "inconclusive",
        f"{over_prior} scikit-learn {where}, soft labels": "contradicted",
        f"{over_random} scikit-learn {where}, fixed labels": "reproduced",
    }


def test_table3_has_both_metrics_and_both_variants() -> None:
    outcomes_ = found(
        "table3", result("teddy-prior", 90), result("sre2l", 80),
        result("teddy-per_class", 95), result("teddy-pooled", 85),
    )  # fmt: skip
    assert len(outcomes_) == 6
    assert all(("variant B" in key) == (o == "contradicted") for key, o in outcomes_.items())


def test_axes_compare_the_default_with_the_smallest_value() -> None:
    few = result("teddy-prior", 80, name="few", members=1, default=False)
    middle = result("teddy-prior", 99, name="middle", members=2, default=False)
    (outcome,) = found("fig3b", few, middle, RESULT).values()
    assert outcome == "reproduced"
    (key,) = found("fig3b", few, RESULT)
    assert "8 against 1" in key
    assert found("fig3b", RESULT) == {}


def test_stages_are_judged_by_correlation_and_by_the_best_segment() -> None:
    segments = [
        result("teddy-prior", 90 - 10 * i, stages=(s, s + 8), kl_student_teacher=0.1 + i,
              kl_teacher_student=5.0 - i)
        for i, s in enumerate((2, 8, 16))
    ]  # fmt: skip
    late = [replace(s, ipc=50, top1_mean=100 - s.top1_mean) for s in segments]
    outcomes_ = found("fig2c", *segments, *late)
    near, early = CLAIMS["fig2c"]
    assert outcomes_[f"{near} scikit-learn digits, IPC 10, KL(student ‖ teacher)"] == "reproduced"
    other = outcomes_[f"{near} scikit-learn digits, IPC 10, KL(teacher ‖ student)"]
    assert other == "contradicted"
    assert outcomes_[f"{early} scikit-learn digits, IPC 10 and 50"] == "reproduced"
    swapped = found("fig2c", *[replace(s, ipc=60 - s.ipc) for s in (*segments, *late)])
    assert swapped[f"{early} scikit-learn digits, IPC 10 and 50"] == "contradicted"
    unsure = [replace(s, top1_std=30.0) for s in late]
    outcomes_ = found("fig2c", *segments, *unsure)
    assert outcomes_[f"{early} scikit-learn digits, IPC 10 and 50"] == "inconclusive"


def test_correlation_of_known_pairs() -> None:
    assert correlation([(0, 0), (1, 2), (2, 4)]) == pytest.approx((1, 0), abs=1e-6)
    assert correlation([(0, 4), (1, 2), (2, 0)]) == pytest.approx((-1, 0), abs=1e-6)
    assert correlation([(0, 1), (1, 1), (2, 1)]) == (0, 1)
    # Of three pairs 2·arccos(|r|)/π: t has one degree of freedom, a Cauchy distribution.
    assert correlation([(1, 1), (2, 3), (3, 2)]) == pytest.approx((0.5, 2 / 3))


def cost(method: str, draw: int, synthesis: float, peak: float) -> Cost:
    return Cost(
        name=f"digits/{method}", dataset="digits", method=method, ipc=10, teachers_drawn=draw,
        epochs=30, pretraining_seconds=10, synthesis_seconds=synthesis, peak_mib=peak,
    )  # fmt: skip


def test_costs_are_compared_with_sre2l() -> None:
    costs = [
        cost("sre2l", 1, 10, 100),
        cost("teddy-prior", 1, 5, 106),
        cost("teddy-prior", 3, 30, 90),
    ]
    verdicts = of_costs(costs, CATALOGUE)
    assert [v.outcome for v in verdicts] == ["reproduced", "contradicted", "contradicted"]
    assert "15.0 s against 20.0 s: -25.0 %" in verdicts[0].evidence
    slow = of_costs([costs[0], cost("teddy-prior", 1, 9.1, 100)], CATALOGUE)[0]
    assert (slow.outcome, "-4.5 %" in slow.evidence) == ("inconclusive", True)
    assert of_costs(costs[1:], CATALOGUE) == []


def test_verdicts_survive_their_file() -> None:
    verdicts = [judge(n, "b", (2, 1), (0, 0), (3, 3)) for n in ("a", "c")]
    assert from_record(to_record(verdicts)) == verdicts


# ------------------------------------------------------------------------------------------ page


TABLE = "# Head\n\n## A table\n\n| a | b |\n| :- | -: |\n| x<y | **1** |\n\nA `note`."


def section(target: str, *verdicts: Verdict, images: tuple[Path, ...] = ()) -> Section:
    part = Part(TABLE, tuple(Picture(path, f"Some {path.stem} & more") for path in images))
    return Section(target, f"Title of {target}", (part,), verdicts)


def test_claims_without_a_verdict_are_not_run() -> None:
    near, early = CLAIMS["fig2c"]
    made = Verdict(claim=near, data="d", outcome="reproduced", evidence="e")
    found_ = {v.claim: v.outcome for v in outcomes(section("fig2c", made))}
    assert found_ == {near: "reproduced", early: "not run"}
    empty = Section("table5", "Table 5", (), ())
    assert [v.outcome for v in outcomes(empty)] == ["not run"] * len(CLAIMS["table5"])
    assert "Not run." in render("t", "i", [empty])


def test_page_needs_no_network_and_shows_everything(tmp_path: Path) -> None:
    image = tmp_path / "picture.png"
    image.write_bytes(b"not really a picture")
    verdict = judge("A claim & more", "data", (2, 1), (0, 0), (3, 3))
    page = render("Title", "Intro.", [section("table1", verdict, images=(image,))])
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "http" not in page
    data = "data:image/png;base64,bm90IHJlYWxseSBhIHBpY3R1cmU="
    assert f'<img alt="Some picture &amp; more" src="{data}">' in page
    assert "A claim &amp; more" in page and "x&lt;y" in page


def test_markdown_becomes_html() -> None:
    html = from_markdown(TABLE + "\n\n- one\n- two\n\n```\na < b\n```")
    assert "<h3>A table</h3>" in html
    assert '<th class="text">a</th>\n<th>b</th>' in html
    assert '<td class="text">x&lt;y</td>\n<td><strong>1</strong></td>' in html
    assert '<p class="note">A <code>note</code>.</p>' in html
    assert "<li>one</li>\n<li>two</li>" in html and "a &lt; b\n</code></pre>" in html
    assert "Head" not in html


def test_markdown_brings_no_html_and_no_address() -> None:
    text = "<b>bold</b> [x](https://a.b) ![y](https://a.b/c.png) <https://a.b>"
    html = from_markdown(f"{text}\n\n<script>alert(1)</script>")
    assert not re.search(r"<(?!/?p\b)", html)
    assert "&lt;script&gt;" in html


def test_cells_may_have_bars_and_stars() -> None:
    html = from_markdown("| a |\n| -: |\n| x \\| first_bn_1* |\n| 2* |")
    assert "<td>x | first_bn_1*</td>" in html and "<td>2*</td>" in html
