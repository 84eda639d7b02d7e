"""What is measured of a student beside its accuracy: macro-F1 and divergence. No GPU."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from teddy.data.datasets import ImageDataset
from teddy.settings.configs import NetworkConfig
from teddy.students.evaluation import macro_f1, measure
from teddy.teachers.networks import build
from teddy.teachers.pools import Pool, evenly

CPU = torch.device("cpu")


def slow_f1(predicted: list[int], true: list[int]) -> float:
    """Mean of precision and recall's harmonic means, class by class."""
    scores = []
    for label in sorted({*predicted, *true}):
        pairs = list(zip(predicted, true, strict=True))
        right = sum(p == t == label for p, t in pairs)
        precision = right / predicted.count(label) if label in predicted else 0.0
        recall = right / true.count(label) if label in true else 0.0
        both = precision + recall
        scores.append(2 * precision * recall / both if both else 0.0)
    return 100 * sum(scores) / len(scores)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_macro_f1_is_the_mean_of_harmonic_means(pairs: list[tuple[int, int]]) -> None:
    predicted, true = [p for p, _ in pairs], [t for _, t in pairs]
    found = macro_f1(torch.tensor(predicted), torch.tensor(true))
    assert found == pytest.approx(slow_f1(predicted, true), abs=1e-4)


def test_macro_f1_counts_rare_classes_as_much_as_frequent_ones() -> None:
    true = torch.tensor([0] * 9 + [1])
    assert macro_f1(torch.zeros(10, dtype=torch.int64), true) == pytest.approx(100 * 18 / 19 / 2)


def test_divergences_are_means_over_images_and_teachers(
    dataset: ImageDataset, pool: Pool, network_config: NetworkConfig
) -> None:
    student = build(network_config, dataset.image_shape, 3, 5).eval()
    teachers = [pool.member(index, CPU) for index in range(len(pool))]
    found = measure(student, dataset.test, dataset.normalisation, "float32", teachers)
    images = dataset.normalisation.apply(dataset.test.pick(torch.arange(len(dataset.test))))
    student_to, to_student = [], []
    with torch.no_grad():
        p = student(images).softmax(1)
        for teacher in teachers:
            q = teacher(images).softmax(1)
            student_to += [(a * (a / b).log()).sum() for a, b in zip(p, q, strict=True)]
            to_student += [(b * (b / a).log()).sum() for a, b in zip(p, q, strict=True)]
    assert found["kl_student_teacher"] == pytest.approx(
        torch.stack(student_to).mean().item(), rel=1e-4
    )
    assert found["kl_teacher_student"] == pytest.approx(
        torch.stack(to_student).mean().item(), rel=1e-4
    )
    assert found["kl_student_teacher"] != pytest.approx(found["kl_teacher_student"], rel=1e-2)


def test_a_teacher_does_not_diverge_from_itself(dataset: ImageDataset, pool: Pool) -> None:
    teacher = pool.member(0, CPU)
    found = measure(teacher, dataset.test, dataset.normalisation, "float32", [teacher])
    assert found["kl_student_teacher"] == pytest.approx(0, abs=1e-6)
    assert found["kl_teacher_student"] == pytest.approx(0, abs=1e-6)


def test_without_teachers_only_f1_is_measured(
    dataset: ImageDataset, network_config: NetworkConfig
) -> None:
    network: nn.Module = build(network_config, dataset.image_shape, 3, 5)
    found = measure(network, dataset.test, dataset.normalisation, "float32", ())
    assert set(found) == {"macro_f1"}


@pytest.mark.parametrize("size", [1, 2, 8, 9, 21])
def test_members_that_label_are_spread_over_the_pool(size: int) -> None:
    assert evenly(size, 0) == evenly(size, size) == list(range(size))
    assert evenly(size, 1) == [size - 1]
    for count in range(2, size + 1):
        chosen = evenly(size, count)
        assert len(set(chosen)) == count and chosen == sorted(chosen)
        assert (chosen[0], chosen[-1]) == (0, size - 1)
        gaps = [b - a for a, b in pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1
