"""Pools: stages of the specification, draws, members as teachers are used.

`katNN` are the known-answer tests of the specification, by its numbering. No GPU, no downloads.
"""

from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teddy.core.errors import TeddyError
from teddy.core.files import write_json
from teddy.settings.configs import PriorConfig
from teddy.settings.schema import from_json
from teddy.teachers.pools import Pool, draw_teachers, open_pool, training_views

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("first", "last", "stages"),
    [
        (1, 41, (1, 6, 11, 16, 21, 26, 31, 36, 41)),  # ImageNet, 10 per class
        (21, 61, (21, 26, 31, 36, 41, 46, 51, 56, 61)),  # 50 per class
        (31, 71, (31, 36, 41, 46, 51, 56, 61, 66, 71)),  # 100 per class
        (11, 46, (11, 16, 21, 26, 31, 36, 41, 46)),  # Tiny-ImageNet, 50 per class
        (16, 50, (16, 21, 26, 31, 36, 41, 46, 50)),  # 100 per class
    ],
)
def test_kat21_stages_of_the_paper(first: int, last: int, stages: tuple[int, ...]) -> None:
    epochs = PriorConfig(first=first, last=last, step=5).epochs
    assert epochs == stages
    draws = {tuple(draw_teachers(len(epochs), 3, 0, "index", i)) for i in range(100)}
    assert all(len(set(draw)) == 3 for draw in draws)
    assert {member for draw in draws for member in draw} == set(range(len(epochs)))


@given(st.integers(1, 100), st.integers(0, 100), st.floats(1, 50))
def test_stages_ascend_from_first_to_last(first: int, more: int, step: float) -> None:
    epochs = PriorConfig(first=first, last=first + more, step=step).epochs
    assert (epochs[0], epochs[-1]) == (first, first + more)
    assert all(1 <= b - a <= step + 1 for a, b in pairwise(epochs))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"first": 0, "last": 5, "step": 1}, "first must be at least 1; got 0"),
        ({"first": 1, "last": 5, "step": 0.5}, "step must be at least 1; got 0.5"),
        ({"first": 6, "last": 5, "step": 1}, "first is 6, after last, 5"),
    ],
)
def test_stages_that_cannot_be_are_refused(keys: dict[str, float], expected: str) -> None:
    with pytest.raises(TeddyError, match=rf"pool\.prior.*{expected}"):
        from_json(PriorConfig, keys, "pool.prior")


@given(st.integers(1, 12), st.data(), st.integers(0, 2**40))
def test_kat21_draw_is_distinct_and_repeatable(size: int, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(1, size))
    drawn = draw_teachers(size, count, seed, "index", 4)
    assert len(set(drawn)) == len(drawn) == count
    assert drawn == sorted(drawn)
    assert set(drawn) <= set(range(size))
    assert drawn == draw_teachers(size, count, seed, "index", 4)
    if count == size:
        assert drawn == list(range(size))


def test_kat21_draw_depends_on_seed_and_index() -> None:
    draws = [draw_teachers(9, 3, 0, "index", i) for i in range(30)]
    assert draws != [draw_teachers(9, 3, 1, "index", i) for i in range(30)]
    assert len({tuple(draw) for draw in draws}) > 20


def test_every_subset_is_equally_likely() -> None:
    draws = Counter(tuple(draw_teachers(5, 2, 0, "index", i)) for i in range(2000))
    assert set(draws) == set(combinations(range(5), 2))
    chi_square = sum((count - 200) ** 2 / 200 for count in draws.values())
    assert chi_square < 34, "far tail of 9 degrees of freedom"


def test_more_teachers_than_members_are_refused() -> None:
    with pytest.raises(TeddyError, match="cannot draw 4 teachers from a pool of 3"):
        draw_teachers(3, 4, 0, "index", 0)


def test_member_is_frozen_and_in_eval_mode(pool: Pool) -> None:
    assert len(pool) == 3
    for index in range(3):
        network = pool.member(index, CPU)
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        images = torch.zeros(2, 1, 8, 8)
        assert torch.equal(network(images), pool.member(index, CPU)(images))


def test_member_that_the_manifest_does_not_describe_is_refused(pool: Pool) -> None:
    swapped = [pool.entries[0] | {"file": pool.entries[1]["file"]}]
    with pytest.raises(TeddyError, match=r"member1.*checksum differs"):
        Pool(pool.folder, swapped).member(0, CPU)


def test_pool_is_opened_by_its_manifest(pool: Pool) -> None:
    with pytest.raises(TeddyError, match="expected a pool; run the build_pool stage first"):
        open_pool(pool.folder / "nowhere")
    write_json(pool.folder / "manifest.json", {"members": pool.entries})
    assert open_pool(pool.folder) == pool


@pytest.mark.parametrize("members", [None, [], "x", ["x"], [{"file": "a"}], [{"file": "a/b"}]])
def test_damaged_manifest_of_a_pool_is_refused(tmp_path: Path, members: Any) -> None:
    write_json(tmp_path / "manifest.json", {"members": members})
    with pytest.raises(TeddyError, match=r"manifest\.json: members.* got .*build_pool") as caught:
        open_pool(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(TeddyError, match=r"manifest\.json: training_views must be keys; got None"):
        training_views(tmp_path)


def test_members_of_other_images_are_refused_before_they_are_loaded(pool: Pool) -> None:
    of = Path("set")
    pool.check((1, 8, 8), 3, of)
    for shape, classes, words in (
        ((3, 8, 8), 3, r"image_shape \[1, 8, 8\], but set has \[3, 8, 8\]"),
        ((1, 8, 8), 4, "num_classes 3, but set has 4"),
    ):
        with pytest.raises(TeddyError, match=rf"member0\.safetensors: is a teacher of {words}"):
            pool.check(shape, classes, of)
    with pytest.raises(TeddyError, match=r"nowhere: expected a .* found nothing there"):
        Pool(pool.folder, [{"file": "nowhere", "sha256": ""}]).check((1, 8, 8), 3, of)
