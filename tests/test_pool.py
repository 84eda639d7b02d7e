"""Pools: stages of the specification, draws, members as teachers are used.

`katNN` are the known-answer tests of the specification, by its numbering. No GPU, no downloads.
"""

from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teddy.core.errors import TeddyError
from teddy.core.files import write_json
from teddy.settings.configs import PriorConfig
from teddy.teachers.pools import Pool, draw_teachers, open_pool

CPU = torch.device("cpu")
STAGES = {
    "ImageNet, 10 per class": tuple(range(1, 42, 5)),
    "ImageNet, 50 per class": tuple(range(21, 62, 5)),
    "ImageNet, 100 per class": tuple(range(31, 72, 5)),
    "Tiny, 50 per class": tuple(range(11, 47, 5)),
    "Tiny, 100 per class": (16, 21, 26, 31, 36, 41, 46, 50),
}


@pytest.mark.parametrize(
    ("name", "first", "last", "length"),
    [
        ("ImageNet, 10 per class", 1, 41, 9),
        ("ImageNet, 50 per class", 21, 61, 9),
        ("ImageNet, 100 per class", 31, 71, 9),
        ("Tiny, 50 per class", 11, 46, 8),
        ("Tiny, 100 per class", 16, 50, 8),
    ],
)
def test_kat21_stages_of_the_paper(name: str, first: int, last: int, length: int) -> None:
    epochs = PriorConfig(epochs=STAGES[name]).epochs
    assert (epochs[0], epochs[-1], len(epochs)) == (first, last, length)
    draws = {tuple(draw_teachers(len(epochs), 3, 0, "index", i)) for i in range(100)}
    assert all(len(set(draw)) == 3 for draw in draws)
    assert {member for draw in draws for member in draw} == set(range(length))


@pytest.mark.parametrize("epochs", [(), (0, 5), (5, 5), (5, 1)])
def test_epochs_that_do_not_ascend_from_one_are_refused(epochs: tuple[int, ...]) -> None:
    with pytest.raises(TeddyError, match="ascending 1-based epochs"):
        PriorConfig(epochs=epochs)


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
