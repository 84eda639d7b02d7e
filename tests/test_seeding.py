"""Random streams: independent of each other and of order, and good enough statistically."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from teddy.core.seeding import derive, permutation, rng, uniforms

seeds = st.integers(-(2**63), 2**63 - 1)
parts = st.one_of(st.text(max_size=4), st.integers(-9, 9))


def test_seeds_are_a_fixed_hash() -> None:
    # Python's own hash would differ between processes.
    assert derive(0) == 8493733112532773764
    assert derive(7, "synthesis", 3) == 7637719815049193644


@given(seeds, st.lists(parts, max_size=4))
def test_derived_seed_fits_a_generator_and_repeats(seed: int, item: list[str | int]) -> None:
    value = derive(seed, *item)
    assert 0 <= value < 2**63
    assert derive(seed, *item) == value
    torch.Generator().manual_seed(value)


@given(seeds, st.lists(parts, max_size=3), st.lists(parts, max_size=3))
def test_different_items_have_different_seeds(
    seed: int, one: list[str | int], two: list[str | int]
) -> None:
    assume(one != two)
    assert derive(seed, *one) != derive(seed, *two)


def test_seeds_of_lookalike_items_differ() -> None:
    lookalikes: list[tuple[str | int, ...]] = [
        ("a", "b"), ("ab",), ("b", "a"), ("a", "b", ""), ("", "a", "b"), (1,), ("1",), (1, 2),
        (12,), ("1", 2), (-1,), (), ("",),
    ]  # fmt: skip
    assert len({derive(0, *item) for item in lookalikes}) == len(lookalikes)
    assert derive(1, 2) != derive(12)
    assert derive(0, "a") != derive(1, "a")


def test_stream_is_the_generator_of_the_derived_seed() -> None:
    first = torch.rand(5, generator=rng(3, "noise", 1))
    assert torch.equal(first, torch.rand(5, generator=rng(3, "noise", 1)))
    assert not torch.equal(first, torch.rand(5, generator=rng(3, "noise", 2)))
    assert rng(3, "noise", 1).initial_seed() == derive(3, "noise", 1)


def test_streams_do_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    rng(0, "a"), permutation(5, 0, "b"), uniforms(1, torch.arange(3), 2)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(0, 60), seeds)
def test_permutation_is_a_permutation(count: int, seed: int) -> None:
    order = permutation(count, seed, "order")
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, permutation(count, seed, "order"))


def test_permutations_are_uniform() -> None:
    orders = [tuple(permutation(3, seed, "p").tolist()) for seed in range(1200)]
    counts = torch.tensor([orders.count(order) for order in sorted(set(orders))])
    assert len(counts) == 6
    chi_square = ((counts - 200.0).square() / 200).sum().item()
    assert chi_square < 25.7, "99.99 % quantile of 5 degrees of freedom"


# -------------------------------------------------------------------------------------- uniforms


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**40), max_size=20), st.integers(1, 30))
def test_row_depends_on_its_counter_alone(key: int, counters: list[int], num: int) -> None:
    together = uniforms(key, torch.tensor(counters, dtype=torch.int64), num)
    assert together.shape == (len(counters), num)
    assert together.dtype == torch.float32
    for row, counter in zip(together, counters, strict=True):
        assert torch.equal(uniforms(key, torch.tensor([counter]), num)[0], row)


@given(st.integers(0, 2**63 - 1))
def test_numbers_are_multiples_in_the_half_open_interval(key: int) -> None:
    values = uniforms(key, torch.arange(200), 5)
    assert ((values >= 0) & (values < 1)).all()
    assert torch.equal((values * 2**24).round() / 2**24, values)


KEYS = [0, 1, derive(0, "student view", 0), derive(0, "student view", 1), 2**63 - 1]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("num", [1, 3])
def test_numbers_have_the_moments_of_a_uniform_distribution(key: int, num: int) -> None:
    values = uniforms(key, torch.arange(30_000 // num), num).flatten().double()
    count = len(values)
    assert abs(values.mean().item() - 0.5) < 4 * math.sqrt(1 / 12 / count)
    assert abs(values.var().item() - 1 / 12) < 4 * math.sqrt(1 / 180 / count)
    for lag in (1, 2, 3, 25):
        pairs = torch.stack([values[:-lag], values[lag:]])
        assert abs(torch.corrcoef(pairs)[0, 1].item()) < 4.5 / math.sqrt(count)


@pytest.mark.parametrize("key", KEYS)
def test_numbers_fill_bins_evenly(key: int) -> None:
    values = uniforms(key, torch.arange(32_000), 1).flatten()
    counts = torch.histc(values, bins=64, min=0, max=1)
    chi_square = ((counts - 500).square() / 500).sum().item()
    assert 22 < chi_square < 120, "far tails of 63 degrees of freedom"
    low_bits = ((values * 2**24).long() % 16).bincount(minlength=16)
    chi_square = ((low_bits - 2000.0).square() / 2000).sum().item()
    assert chi_square < 45, "far tail of 15 degrees of freedom"


def test_neighbouring_slots_are_independent() -> None:
    u = uniforms(5, torch.arange(32_000), 2)
    cells = (u[:, 0] * 8).long() * 8 + (u[:, 1] * 8).long()
    counts = cells.bincount(minlength=64).float()
    chi_square = ((counts - 500).square() / 500).sum().item()
    assert chi_square < 120, "far tail of 63 degrees of freedom"


def test_streams_of_different_keys_are_unrelated() -> None:
    streams = torch.stack([uniforms(key, torch.arange(20_000), 1)[:, 0] for key in KEYS])
    off_diagonal = torch.corrcoef(streams) - torch.eye(len(KEYS))
    assert off_diagonal.abs().max().item() < 4.5 / math.sqrt(20_000)
    for i in range(len(KEYS)):
        for j in range(i):
            equal = (streams[i] == streams[j]).sum().item()
            assert equal < 5, "chance alone gives 0.001"
