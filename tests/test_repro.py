"""The order in which stages run side by side; DVC itself is not started."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teddy.errors import TeddyError
from teddy.repro import _instances, ancestors, batched, levels

PARENTS = {
    "prepare@a": set[str](),
    "train@a": {"prepare@a"},
    "set@a/1": {"train@a", "prepare@a"},
    "set@a/2": {"train@a"},
    "table1": {"set@a/1"},
    "table2": {"set@a/1", "set@a/2"},
}


def test_a_target_pulls_exactly_its_ancestors() -> None:
    assert ancestors(PARENTS, {"table1"}) == {"table1", "set@a/1", "train@a", "prepare@a"}


def test_parents_come_in_earlier_levels() -> None:
    assert levels(PARENTS, set(PARENTS)) == [
        ["prepare@a"], ["train@a"], ["set@a/1", "set@a/2"], ["table1", "table2"],
    ]  # fmt: skip
    assert levels(PARENTS, {"table1", "set@a/1"}) == [["set@a/1"], ["table1"]]


def test_names_stand_for_all_their_instances() -> None:
    assert _instances(PARENTS, ["set", "table1"]) == {"set@a/1", "set@a/2", "table1"}
    assert _instances(PARENTS, ["set@a/2"]) == {"set@a/2"}
    assert _instances(PARENTS, []) == set(PARENTS)
    with pytest.raises(TeddyError, match="no stage 'table3'"):
        _instances(PARENTS, ["table3"])


def test_circles_are_refused() -> None:
    with pytest.raises(TeddyError, match="circle"):
        levels({"a": {"b"}, "b": {"a"}}, {"a", "b"})


@given(st.lists(st.text(max_size=3)), st.integers(1, 6))
def test_batches_hold_every_stage_once(names: list[str], count: int) -> None:
    batches = batched(names, count)
    assert sorted(name for batch in batches for name in batch) == sorted(names)
    assert len(batches) <= count
    sizes = [len(batch) for batch in batches]
    assert not sizes or max(sizes) - min(sizes) <= 1
