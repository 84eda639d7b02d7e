"""The order in which stages run side by side; DVC itself is not started."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teddy.core.errors import TeddyError
from tools import repro
from tools.build_costs import builds, last_seconds
from tools.repro import _LOCK, Plan, _alone, ancestors, instances, stale
from tools.target_costs import _whole_run, costs

PARENTS = {
    "prepare@a": set[str](),
    "train@a": {"prepare@a"},
    "set@a/1": {"train@a", "prepare@a"},
    "set@a/2": {"train@a"},
    "table1@a": {"set@a/1"},
    "table2@a": {"set@a/1", "set@a/2"},
}


def test_a_target_pulls_exactly_its_ancestors() -> None:
    assert ancestors(PARENTS, {"table1@a"}) == {"table1@a", "set@a/1", "train@a", "prepare@a"}


def test_what_comes_after_a_change_may_change() -> None:
    assert stale(PARENTS, {"set@a/2"}) == {"set@a/2", "table2@a"}
    assert stale(PARENTS, {"train@a", "elsewhere/dvc.yaml:x"}) == set(PARENTS) - {"prepare@a"}
    assert stale(PARENTS, ()) == set()


def test_stages_start_when_their_parents_are_finished() -> None:
    plan = Plan(PARENTS, set(PARENTS) - {"prepare@a"})
    assert plan.take(2) == ["train@a"]
    assert plan.take(2) == [], "sets wait for it"
    plan.finish("train@a")
    assert plan.take(1) == ["set@a/1"]
    plan.finish("set@a/1")
    assert plan.take(9) == ["set@a/2", "table1@a"], "chains of others first"
    assert not plan.done
    plan.finish("set@a/2")
    assert plan.take(9) == ["table2@a"]
    assert plan.done


def test_names_stand_for_all_their_instances() -> None:
    assert instances(PARENTS, ["set", "table1"]) == {"set@a/1", "set@a/2", "table1@a"}
    assert instances(PARENTS, ["set@a/2"]) == {"set@a/2"}
    assert instances(PARENTS, []) == set(PARENTS)
    with pytest.raises(TeddyError, match="no stage 'table3'; did you mean"):
        instances(PARENTS, ["table3"])


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that the command starts, in a folder where DVC has the stages above, one changed."""
    found: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(repro, "graph", lambda: {**PARENTS, "resolve": set()})
    monkeypatch.setattr(repro, "_changed", lambda: {"train@a"})
    monkeypatch.setattr(repro, "_reproduce", lambda name, _: found.append(name))
    return found


def test_a_dry_run_lists_what_would_run_in_order(
    started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    repro.main(["--dry", "table1"])
    assert capsys.readouterr().out.split() == ["train@a", "set@a/1", "table1@a"]
    assert started == []
    repro.main(["table1"])
    assert started == ["train@a", "set@a/1", "table1@a"]


def test_a_row_that_does_not_fit_is_refused_before_anything_runs(
    started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("inputs/set/a").mkdir(parents=True)
    Path("inputs/set/a/2.json").write_text(json.dumps({"error": "rows: a/2: why", "code": {}}))
    with pytest.raises(SystemExit):
        repro.main(["table2"])
    assert capsys.readouterr().err == "error: rows: a/2: why\n"
    assert started == []
    repro.main(["table1"])
    assert started


def test_costs_of_a_target_are_those_of_all_it_needs() -> None:
    seconds = dict(zip(PARENTS, (1.0, 10.0, 2.0, 4.0, 0.5, 0.25), strict=True))
    parents = {name: before | {"resolve"} for name, before in PARENTS.items()} | {"resolve": set()}
    found = costs(parents, seconds, {"table1", "table2"})
    assert found == {
        "table1@a": {
            "stages": 4, "seconds": 13.5, "stages_beyond_table1": 4, "seconds_beyond_table1": 13.5,
        },
        "table2@a": {
            "stages": 5, "seconds": 17.2, "stages_beyond_table1": 2, "seconds_beyond_table1": 4.2,
        },
    }  # fmt: skip


def test_costs_are_of_the_last_run_that_made_everything(tmp_path: Path) -> None:
    path = tmp_path / "repro-runs.jsonl"
    every = dict.fromkeys(PARENTS, 1.0)
    runs = [{"seconds": 1, "stages": every}, {"seconds": 2, "stages": every},
            {"seconds": 3, "stages": {"table1@a": 1.0}}]  # fmt: skip
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    assert _whole_run(path, set(PARENTS))["seconds"] == 2
    with pytest.raises(TeddyError, match="no run made all 7 stages"):
        _whole_run(path, {*PARENTS, "table3"})
    with pytest.raises(TeddyError, match="no run made all"):
        _whole_run(tmp_path / "none", set(PARENTS))


def test_seconds_to_build_a_set_count_its_teachers_and_one_synthesis() -> None:
    parents = {
        "prepare@a": set[str](), "train_teacher@a": {"prepare@a"},
        "build_pool@a": {"train_teacher@a"}, "build_pool@other": {"train_teacher@a"},
        "synthesize@a/one": {"build_pool@a", "prepare@a", "resolve"},
        "relabel@a/one": {"synthesize@a/one", "build_pool@a"}, "resolve": set[str](),
    }  # fmt: skip
    seconds = {
        "prepare@a": 1.0, "train_teacher@a": 20.0, "build_pool@a": 4.0, "build_pool@other": 100.0,
        "synthesize@a/one": 9.0, "relabel@a/one": 3.0,
    }  # fmt: skip
    found = builds(parents, seconds, {"a/one": {"syntheses": 3}})
    assert found == {"a/one": {"syntheses": 3, "teachers": 25.0, "images": 3.0, "labels": 1.0}}
    del seconds["train_teacher@a"]
    with pytest.raises(TeddyError, match="train_teacher@a was never timed"):
        builds(parents, seconds, {"a/one": {"syntheses": 3}})


def test_a_stage_counts_as_when_it_was_made_last(tmp_path: Path) -> None:
    path = tmp_path / "repro-runs.jsonl"
    runs = [{"stages": {"one": 1.0, "two": 2.0}}, {"stages": {"two": 3.0}}]
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    assert last_seconds(path) == {"one": 1.0, "two": 3.0}
    assert last_seconds(tmp_path / "none") == {}


HOLDER = """
import fcntl, sys
from pathlib import Path
with Path(sys.argv[1]).open("a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read(1)
"""


def test_second_run_in_a_checkout_says_that_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with _alone():
        pass
    assert capsys.readouterr().err == ""
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(_LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert first.stdout
    assert first.stdout.readline() == b"held\n"
    threading.Timer(0.2, first.kill).start()
    with _alone():
        assert first.wait(10) != 0
    assert capsys.readouterr().err == "repro: another run is going on here; waiting for its end\n"
    first.communicate()


def test_circles_are_refused() -> None:
    with pytest.raises(TeddyError, match="circle"):
        Plan({"a": {"b"}, "b": {"a"}}, {"a", "b"})


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, set[str]]:
    names = [str(n) for n in range(draw(st.integers(1, 8)))]
    return {
        n: draw(st.sets(st.sampled_from(names[:i]))) if i else set() for i, n in enumerate(names)
    }


@given(graphs(), st.data(), st.integers(1, 3))
def test_every_stage_runs_once_and_after_its_parents(
    graph: dict[str, set[str]], data: st.DataObject, jobs: int
) -> None:
    todo = data.draw(st.sets(st.sampled_from(sorted(graph))))
    plan, order, running = Plan(graph, todo), list[str](), list[str]()
    while not plan.done or running:
        running += plan.take(jobs - len(running))
        assert running, "something can always run"
        name = running.pop(data.draw(st.integers(0, len(running) - 1)))
        assert all(parent in order for parent in graph[name] & todo)
        order.append(name)
        plan.finish(name)
    assert sorted(order) == sorted(todo)
