"""Claims of the paper held against our records by rules that are stated, never by hand.

:data:`RULE` is that of comparisons, in words; :func:`judge` applies it. Other rules stand beside
their verdicts. All that a rule gets is of one dataset.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from scipy import stats

from teddy.core.files import Json
from teddy.report.results import Cost, EvaluationResult, LearnerResult, Results, grouped
from teddy.settings.places import the_recipe
from teddy.settings.stages import Catalogue

Outcome = Literal["reproduced", "contradicted", "inconclusive", "not run"]

LEVEL = 0.05
RULE = f"""A comparison is a two-sided Welch test of two means over *syntheses*, each of which is a
set made, labelled and learnt from with random numbers of its own. It is *reproduced* if the
difference points the way the paper claims and p < {LEVEL}, *contradicted* if it points the other
way and p < {LEVEL}, and else *inconclusive*. So is what no test can decide: a side with a single
synthesis, or students that cannot be told from guessing on both sides. Levels hold for each
comparison by itself. A claim whose target has no record is *not run*."""
"""How verdicts on comparisons are made, for the page and for readers of this file."""

T = TypeVar("T")
Pair = tuple[T, T]

CORESETS = (
    "herding", "kmeans", "easiest", "kcentre", "el2n", "forgetting", "crops", "rded",
)  # fmt: skip
"""Methods that choose real images by teachers."""

_STANDARD_ERRORS = 3
"""Of guesses on the held-out images: how far above guessing one student must be to have learnt."""

CLAIMS: dict[str, tuple[str, ...]] = {
    "table1": (
        "Teddy (prior) is more accurate than SRe2L.",
        "Teddy (post) is more accurate than SRe2L.",
        "Teddy (prior) is more accurate than random real images.",
        "Teddy plus (ours) is more accurate than random real images.",
        "Teddy plus (ours) is more accurate than the best coreset.",
        "Teddy plus (ours) is more accurate than Teddy (prior).",
    ),
    "table2": ("Teddy is more accurate than SRe2L for students of other architectures.",),
    "table3": (
        "Teddy is more accurate than SRe2L on imbalanced data.",
        "Class-wise statistics improve Teddy on imbalanced data.",
    ),
    "table4": ("Teddy is more accurate than SRe2L with ResNet50.",),
    "table5": ("Teddy is more accurate than DM and SRe2L on small data without soft labels.",),
    "recipes": (
        "Methods differ less under one recipe than under their own (RD3's claim).",
        "Optimised images are more accurate than random real ones under one recipe (ours).",
    ),
    "fig1": ("The unrolled objective costs memory and time that grow with the inner steps.",),
    "fig2c": (
        "The closer students are to their teachers (KL), the more accurate they are.",
        "Fewer images per class prefer earlier teachers.",
    ),
    "fig3a": ("Several teachers drawn for synthesis are better than one.",),
    "fig3b": ("Labels of several teachers are better than those of one.",),
    "fig3c": ("Pools of fewer than five teachers are worse.",),
    "fig3d": (
        "Teddy needs less time for pre-training and synthesis than SRe2L.",
        "Teddy with one teacher needs no more memory than SRe2L.",
    ),
    "fig3e": ("In continual learning Teddy is more accurate than random images and SRe2L.",),
    "fig5": ("The error of the Taylor approximation is negligible.",),
}
"""Claims of each table and figure, the paper's but where they name others or say "ours"; a verdict
begins with one of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a claim holds on some data."""

    claim: str
    data: str
    """What it was tried on: dataset and setting."""
    outcome: Outcome
    evidence: str
    """Both numbers and the rule's threshold."""


def to_record(verdicts: Sequence[Verdict]) -> Json:
    """As a JSON file."""
    keys = ("claim", "data", "outcome", "evidence")
    return {"verdicts": [{key: getattr(verdict, key) for key in keys} for verdict in verdicts]}


def from_record(record: Json) -> list[Verdict]:
    """The inverse of :func:`to_record`."""
    return [Verdict(**entry) for entry in record["verdicts"]]


def compare(
    claim: str, data: str, better: EvaluationResult, worse: EvaluationResult, metric: str = "top1"
) -> Verdict:
    """Verdict on "the first is more accurate than the second", by the rule above.

    Args:
        claim: in the reader's words.
        data: what it was tried on.
        better: the result that the paper says is higher.
        worse: the other one.
        metric: ``top1`` or ``f1``.
    """
    guessing, learnt = _guessing(better)
    if max(better.top1_mean, worse.top1_mean) < learnt:
        return Verdict(
            claim=claim,
            data=data,
            outcome="inconclusive",
            evidence=f"{better.top1_mean:.1f} against {worse.top1_mean:.1f}, where always guessing "
            f"the most frequent class gives {guessing:.1f} and {_STANDARD_ERRORS} standard errors "
            f"more are {learnt:.1f}",
        )
    means = [getattr(result, f"{metric}_mean") for result in (better, worse)]
    spreads = [getattr(result, f"{metric}_std") for result in (better, worse)]
    counts = (better.syntheses, worse.syntheses)
    return judge(claim, data, (means[0], means[1]), (spreads[0], spreads[1]), counts)


def _guessing(result: EvaluationResult) -> tuple[float, float]:
    """Accuracy of guessing the most frequent class, and the least of a student that has learnt.

    Both in percent. A student that answers with one class alone has no more, however unequal the
    classes are; where only their number is known, they count as equal.
    """
    if result.num_classes is None:
        return 0.0, 0.0
    images = result.images_held_out
    share = (result.largest_class or images / result.num_classes) / images
    error = math.sqrt(share * (1 - share) / images)
    return 100 * share, 100 * (share + _STANDARD_ERRORS * error)


def judge(
    claim: str, data: str, means: Pair[float], spreads: Pair[float], counts: Pair[int],
    unit: str = "synthesis",
) -> Verdict:  # fmt: skip
    """As :func:`compare`, on numbers: first what the paper says is higher.

    Args:
        claim: in the reader's words.
        data: what it was tried on.
        means: of both sides.
        spreads: sample standard deviations.
        counts: of what they are over.
        unit: what that is.
    """
    gain, n = means[0] - means[1], f"n = {counts[0]} and {counts[1]}"
    evidence = f"{means[0]:.1f} against {means[1]:.1f}: {gain:+.1f}, "
    outcome: Outcome = "inconclusive"
    if min(counts) < 2:
        evidence += f"of a single {unit}"
    else:
        p = welch(means, spreads, counts)
        evidence += f"{p_value(p)}, {n}"
        if p < LEVEL:
            outcome = "reproduced" if gain > 0 else "contradicted"
    return Verdict(claim=claim, data=data, outcome=outcome, evidence=evidence)


def welch(means: Pair[float], spreads: Pair[float], counts: Pair[int]) -> float:
    """Two-sided p of Welch's test on two means; 1 where nothing varies and they are the same.

    Args:
        means: of both sides.
        spreads: sample standard deviations.
        counts: sizes of the samples, 2 or more.
    """
    if not any(spreads):
        return float(means[0] == means[1])
    sides = [each for side in zip(means, spreads, counts, strict=True) for each in side]
    return float(stats.ttest_ind_from_stats(*sides, equal_var=False).pvalue)


def p_value(p: float) -> str:
    """As it is written."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def of_target(target: str, results: Results, catalogue: Catalogue) -> list[Verdict]:
    """Verdicts on the claims of a table or figure, from the results it shows."""
    rule, labels = _RULES.get(target), "hard" if target == "table5" else "soft"
    found = rule([r for r in results if r.labels == labels], catalogue) if rule else []
    every = {"table1": _plus, "recipes": _recipes}.get(target)
    return found + (every(results, catalogue) if every else [])


def _where(result: EvaluationResult, catalogue: Catalogue, *more: str) -> str:
    return ", ".join([catalogue.datasets[result.dataset].title, f"IPC {result.ipc}", *more])


def _by(results: Iterable[EvaluationResult], method: str) -> EvaluationResult | None:
    return next((result for result in results if result.method == method), None)


def _pairs(
    results: Results,
    keys: Sequence[str],
    claim: str,
    better: str,
    worse: str,
    catalogue: Catalogue,
    metrics: Sequence[str] = ("top1",),
    more: Sequence[str] = (),
) -> list[Verdict]:
    """Two methods compared wherever all of ``keys`` agree."""
    found = []
    for own in grouped(results, *keys).values():
        first, second = _by(own, better), _by(own, worse)
        if first and second:
            for metric in metrics:
                named = [str(getattr(first, key)) for key in more]
                named += ["macro-F1"] if metric == "f1" else []
                where = _where(first, catalogue, *named)
                found.append(compare(claim, where, first, second, metric))
    return found


def _table1(results: Results, catalogue: Catalogue) -> list[Verdict]:
    keys, (prior, post, real, *_) = ("ipc", "arch"), CLAIMS["table1"]
    return [
        *_pairs(results, keys, prior, "teddy-prior", "sre2l", catalogue),
        *_pairs(results, keys, post, "teddy-post", "sre2l", catalogue),
        *_pairs(results, keys, real, "teddy-prior", "random", catalogue),
    ]


def _plus(results: Results, catalogue: Catalogue) -> list[Verdict]:
    """Teddy plus against what it must beat, with every kind of labels."""
    (*_, over_random, over_coresets, over_prior), found = CLAIMS["table1"], []
    for (_, _, labels), own in grouped(results, "ipc", "arch", "labels").items():
        ours, coresets = _by(own, "teddy-plus"), [r for r in own if r.method in CORESETS]
        others = (
            (over_random, _by(own, "random")),
            (over_coresets, max(coresets, key=lambda r: r.top1_mean, default=None)),
            (over_prior, _by(own, "teddy-prior")),
        )
        for claim, other in others if ours else ():
            if ours and other:
                more = [f"{labels} labels"]
                if claim == over_coresets:  # chosen by the very numbers that it is compared by
                    more.append(catalogue.methods[other.method].title)
                found.append(compare(claim, _where(ours, catalogue, *more), ours, other))
    return found


def _recipes(results: Results, catalogue: Catalogue) -> list[Verdict]:
    """Whether the recipe makes the difference, and images against random ones of every label."""
    (less, over_random), found = CLAIMS["recipes"], []
    one = the_recipe((r.method, r.recipe or "") for r in results)
    for (_, _, labels), own in grouped(results, "ipc", "arch", "labels").items():
        under = {r.method: r for r in own if r.recipe == one}
        theirs = {r.method: r for r in own if r.recipe not in (None, "", one) and r.method in under}
        names = sorted({r.recipe or "" for r in theirs.values()})
        if len(theirs) > 2 and len(names) > 1:
            pairs = [(r.top1_mean, under[method].top1_mean) for method, r in theirs.items()]
            where = _where(own[0], catalogue, f"{labels} labels")
            found.append(_spread(less, where, pairs, f"{' and '.join(names)}, and {one}"))
        random = under.get("random")
        for method, result in under.items() if random else ():
            if random and result.init is not None and method not in CORESETS:
                title = catalogue.methods[method].title
                where = _where(result, catalogue, f"{labels} labels", title)
                found.append(compare(over_random, where, result, random))
    return found


def _spread(claim: str, data: str, pairs: Sequence[Pair[float]], recipes: str) -> Verdict:
    """Verdict on "the first of each pair varies more", by Pitman's test of paired variances: the
    sums of the pairs are correlated with their differences.
    """
    firsts, seconds = ([pair[i] for pair in pairs] for i in (0, 1))
    r, p = correlation([(a + b, a - b) for a, b in pairs])
    outcome: Outcome = "reproduced" if r > 0 else "contradicted"
    return Verdict(
        claim=claim,
        data=data,
        outcome=outcome if p < LEVEL else "inconclusive",
        evidence=f"{len(pairs)} methods lie within {max(firsts) - min(firsts):.1f} points under "
        f"their own recipes and within {max(seconds) - min(seconds):.1f} under the one "
        f"({recipes}); Pitman's test of paired variances: {p_value(p)}",
    )


def _table2(results: Results, catalogue: Catalogue) -> list[Verdict]:
    keys, (claim,) = ("ipc", "arch"), CLAIMS["table2"]
    found = []
    for method in ("teddy-prior", "teddy-post"):
        named = f"{claim[:-1]}: {catalogue.methods[method].title}."
        found += _pairs(results, keys, named, method, "sre2l", catalogue, more=("arch",))
    return found


def _table3(results: Results, catalogue: Catalogue) -> list[Verdict]:
    keys, (claim, statistics) = ("data", "ipc", "arch"), CLAIMS["table3"]
    both, more = ("top1", "f1"), ("data",)
    found = _pairs(results, keys, claim, "teddy-prior", "sre2l", catalogue, both, more)
    for method, variant in (("teddy-per_class", "A"), ("teddy-pooled", "B")):
        named = f"{statistics[:-1]} (variant {variant})."
        found += _pairs(results, keys, named, method, "teddy-prior", catalogue, both, more)
    return found


def _table4(results: Results, catalogue: Catalogue) -> list[Verdict]:
    keys, (claim,) = ("ipc", "arch"), CLAIMS["table4"]
    return _pairs(results, keys, claim, "teddy-prior", "sre2l", catalogue)


def _table5(results: Results, catalogue: Catalogue) -> list[Verdict]:
    keys, (claim,), found = ("ipc", "arch", "init"), CLAIMS["table5"], []
    for worse in [name for name in ("dm", "sre2l-hard") if name in catalogue.methods]:
        named = f"{claim.rstrip('.')}: against {catalogue.methods[worse].title}."
        found += _pairs(results, keys, named, "teddy-hard", worse, catalogue, more=("init",))
    return found


def _fig2c(results: Results, catalogue: Catalogue) -> list[Verdict]:
    near, early = CLAIMS["fig2c"]
    found = []
    segments: dict[int, dict[int, EvaluationResult]] = {}
    for ipc, own in grouped(results, "ipc").items():
        segments[ipc] = {result.stages[0]: result for result in own if result.stages}
        for direction, title in (
            ("kl_student_teacher", "KL(student ‖ teacher)"),
            ("kl_teacher_student", "KL(teacher ‖ student)"),
        ):
            pairs = [
                (getattr(result, direction), result.top1_mean)
                for result in own
                if getattr(result, direction) is not None
            ]
            if len(pairs) < 3:
                continue
            r, p = correlation(pairs)
            outcome: Outcome = "reproduced" if r < 0 else "contradicted"
            found.append(
                Verdict(
                    claim=near,
                    data=_where(own[0], catalogue, title),
                    outcome=outcome if p < LEVEL else "inconclusive",
                    evidence=f"correlation {r:+.2f} over {len(pairs)} segments, {p_value(p)}",
                )
            )
    ipcs = sorted(segments)
    if len(ipcs) > 1:
        found.append(_early(early, segments[ipcs[0]], segments[ipcs[-1]], catalogue))
    return found


def _early(
    claim: str, few: dict[int, EvaluationResult], many: dict[int, EvaluationResult],
    catalogue: Catalogue,
) -> Verdict:  # fmt: skip
    """Verdict on the most accurate segments, by first epoch, of two numbers of images per class.

    If each is better by the test than the other one's is there, their order decides.
    """
    of_few, of_many = (max(own, key=lambda s: own[s].top1_mean) for own in (few, many))
    sides, shown = ((few, of_few, of_many), (many, of_many, of_few)), []
    sure = of_few != of_many
    for own, best, other in sides:
        evidence = f"IPC {own[best].ipc}: best from epoch {best}"
        verdict = compare(claim, "", own[best], own[other]) if other in own else None
        sure &= verdict is not None and verdict.outcome == "reproduced"
        if verdict and other != best:
            evidence += f", against epoch {other} {verdict.evidence}"
        shown.append(evidence)
    outcome: Outcome = "reproduced" if of_few < of_many else "contradicted"
    first, last = few[of_few], many[of_many]
    return Verdict(
        claim=claim,
        data=f"{catalogue.datasets[first.dataset].title}, IPC {first.ipc} and {last.ipc}",
        outcome=outcome if sure else "inconclusive",
        evidence="; ".join(shown),
    )


def correlation(pairs: Sequence[Pair[float]]) -> Pair[float]:
    """Pearson's correlation of three or more pairs and its two-sided p; where a side does not vary,
    0 and 1.
    """
    xs, ys = zip(*pairs, strict=True)
    if len(set(xs)) == 1 or len(set(ys)) == 1:
        return 0.0, 1.0
    found = stats.pearsonr(xs, ys)
    return float(found.statistic), float(found.pvalue)


def _against_smallest(target: str, axis: str, unit: str) -> Callable[..., list[Verdict]]:
    """Rule of an axis: the default's value against the smallest one."""

    def rule(results: Results, catalogue: Catalogue) -> list[Verdict]:
        found = []
        for own in grouped(results, "ipc").values():
            ordered = sorted(own, key=lambda result: int(getattr(result, axis)))
            default = next((result for result in own if result.default), None)
            if default is None or ordered[0] is default:
                continue
            values = f"{getattr(default, axis)} against {getattr(ordered[0], axis)} {unit}"
            where = _where(default, catalogue, values)
            found.append(compare(CLAIMS[target][0], where, default, ordered[0]))
        return found

    return rule


_RULES: dict[str, Callable[[Results, Catalogue], list[Verdict]]] = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "table4": _table4,
    "table5": _table5,
    "fig2c": _fig2c,
    "fig3a": _against_smallest("fig3a", "teachers_drawn", "drawn"),
    "fig3b": _against_smallest("fig3b", "members", "labelling"),
    "fig3c": _against_smallest("fig3c", "pool_size", "in the pool"),
}


def of_learners(learners: Sequence[LearnerResult], catalogue: Catalogue) -> list[Verdict]:
    """Verdicts on Fig. 3e: accuracy after the last step, over orders, soft labels."""
    (claim,), found = CLAIMS["fig3e"], []
    for (ipc, strict), own in grouped(learners, "ipc", "strict").items():
        last = {learner.method: learner for learner in own if learner.labels == "soft"}
        dataset = catalogue.datasets[own[0].dataset].title
        where = f"{dataset}, IPC {ipc}, {'strict' if strict else 'paper-like'}, last step"
        for worse in ("random", "sre2l"):
            if "teddy-prior" in last and worse in last:
                better, other = last["teddy-prior"], last[worse]
                named = f"{claim.rstrip('.')}: against {catalogue.methods[worse].title}."
                means = (better.top1_mean[-1], other.top1_mean[-1])
                spreads = (better.top1_std[-1], other.top1_std[-1])
                counts = (better.orders, other.orders)
                found.append(judge(named, where, means, spreads, counts, "order"))
    return found


def of_costs(costs: Sequence[Cost], catalogue: Catalogue) -> list[Verdict]:
    """Verdicts on Fig. 3d: the default draw's time, and the memory of a single teacher."""
    faster, memory = CLAIMS["fig3d"]
    baseline = next((cost for cost in costs if cost.method == "sre2l"), None)
    if baseline is None:
        return []
    where = f"{catalogue.datasets[baseline.dataset].title}, IPC {costs[0].ipc}"
    others, found = [cost for cost in costs if cost is not baseline], []
    for cost in others:
        change = 100 * (cost.seconds / baseline.seconds - 1)
        found.append(
            Verdict(
                claim=faster,
                data=f"{where}, k = {cost.teachers_drawn}",
                outcome="inconclusive"
                if abs(change) <= 5
                else "reproduced"
                if change < 0
                else "contradicted",
                evidence=f"{cost.seconds:.1f} s against {baseline.seconds:.1f} s: "
                f"{change:+.1f} %; up to 5 % either way is inconclusive, as timings vary; the "
                "paper reports -46.6 % on ImageNet-1K",
            )
        )
    single = next((cost for cost in others if cost.teachers_drawn == 1), None)
    if single:
        more = 100 * (single.peak_mib / max(baseline.peak_mib, 1e-9) - 1)
        found.append(
            Verdict(
                claim=memory,
                data=where,
                outcome="reproduced" if more <= 5 else "contradicted",
                evidence=f"{single.peak_mib:.0f} MiB against {baseline.peak_mib:.0f} MiB: "
                f"{more:+.1f} %; up to +5 % counts as no more",
            )
        )
    return found
