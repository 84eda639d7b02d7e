"""Batches beside each other give the bytes of batches alone, however many fit and pay."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_acceleration import FakePool, pools, recordings, synthesiser
from test_synthesis import synthesise, with_config
from torch import Tensor

from teddy.core.artifacts import WorkDir
from teddy.core.errors import TeddyError
from teddy.core.memory import OutOfMemory
from teddy.data.augmentation import Resampling
from teddy.settings.algorithms import ALGORITHMS
from teddy.settings.configs import DmConfig
from teddy.settings.schema import config_keys
from teddy.synthesis import teddy as synthesis
from teddy.synthesis.distribution_matching import DistributionMatching
from teddy.synthesis.engine import lanes
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.engine.cuda_graphs import Graphs
from teddy.synthesis.engine.lanes import Lane, Lanes, Search
from teddy.synthesis.engine.state import State
from teddy.synthesis.gradient import losses_of_teachers
from teddy.synthesis.methods import OptimisedMethod, method_class
from teddy.synthesis.teddy import Teddy

CPU = torch.device("cpu")

__all__ = ["pools", "synthesiser"]  # fixtures


# ------------------------------------------------------------------------------------- how many


@dataclass
class FakeJob:
    """A job that holds no memory and has no smaller way."""

    steps: Callable[[Lane], Iterator[None]]
    name: str = "a job"
    size: str = "its batch"
    can_go_on: bool = True

    def free(self, lanes: Callable[[int], bool]) -> bool:
        """Nothing is held."""
        return False

    def smaller(self) -> str:
        """There is none."""
        return ""


class Machine:
    """A GPU that finishes so many iterations per second, by the number of jobs that run."""

    def __init__(self, *rates: float) -> None:
        self.rates, self.now, self.waits = rates, 0.0, 0

    def clock(self) -> float:
        """Seconds."""
        return self.now

    def wait(self) -> None:
        """Until all is done."""
        self.waits += 1

    def search(self, waiting: int = 99) -> Search:
        """What a search finds, run for longer than it takes."""
        search = Search(self.wait, self.clock)
        for _ in range(1000):
            running = search.limit
            self.now += running / self.rates[running - 1]
            search.look(running, running, waiting)
        return search


@pytest.mark.parametrize(
    ("rates", "expected", "reason"),
    [
        ((100, 99), 1, "one more brings less than 5 %"),
        ((100, 104), 1, "one more brings less than 5 %"),
        ((100, 190, 195), 2, "one more brings less than 5 %"),
        ((100, 190, 270, 330), 4, "the most that are tried"),
    ],
)
def test_one_more_is_tried_as_long_as_that_pays(
    rates: tuple[float, ...], expected: int, reason: str, capfd: Any
) -> None:
    machine = Machine(*rates)
    search = machine.search()
    assert search.limit == expected
    assert list(search.rates.values()) == pytest.approx(rates)
    assert machine.waits == 2 * len(rates), "none after the search"
    said = capfd.readouterr().err
    assert f"{expected} batch{'es' * (expected > 1)} at a time on this device ({reason}: " in said
    assert f"{rates[0]:.1f} with 1" in said


def test_where_nothing_waits_nothing_is_tried() -> None:
    assert Machine(100, 200).search(waiting=0).limit == 1


def test_iterations_in_which_one_more_sets_itself_up_are_not_measured() -> None:
    machine, waits = Machine(100), []
    search = Search(lambda: waits.append(machine.now), machine.clock)
    for turn in range(lanes._SETTLE + lanes._WINDOW):
        machine.now += 100 if turn < lanes._SETTLE else 1
        search.look(1, 1, 9)
    assert search.rates == {1: pytest.approx(1.0)}
    assert waits == [100.0 * lanes._SETTLE, 100.0 * lanes._SETTLE + lanes._WINDOW]


def test_what_is_measured_counts_iterations_not_rounds() -> None:
    machine = Machine(100)
    search = Search(machine.wait, machine.clock)
    search.limit, search.rates = 2, {1: 1.0}
    for turn in range(lanes._SETTLE + lanes._WINDOW):
        machine.now += 1
        search.look(2, 1 + turn % 2, 9)  # in every other round a job came to its end
    assert search.rates[2] == pytest.approx(1.5)


@pytest.mark.parametrize("length", [60, 100, 200, 290, 400])
@pytest.mark.parametrize(("speed", "expected"), [(0.5, 1), (1.9, 2)])
def test_short_jobs_are_measured_too(
    length: int, speed: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second job multiplies the speed of all; a third changes nothing."""
    now, running, speeds = [0.0], set[int](), {1: 1.0, 2: speed, 3: speed}

    def job(which: int) -> FakeJob:
        def steps(lane: Lane) -> Iterator[None]:
            running.add(which)
            for _ in range(length):
                now[0] += 1 / speeds[len(running)]
                yield
            running.discard(which)

        return FakeJob(steps)

    made = Lanes(CPU)
    made._fixed = None
    monkeypatch.setattr(made._search, "_clock", lambda: now[0])
    made.run(job(which) for which in range(12000 // length))
    assert made.limit == expected
    assert made._search._found


def test_exhausted_memory_ends_the_search(capfd: Any) -> None:
    search = Search(lambda: None)
    search.limit = 3
    search.fewer(3)
    for _ in range(1000):
        search.look(2, 2, 9)
    assert (search.limit, search.rates) == (2, {})
    assert "2 batches at a time on this device (memory is exhausted by 3)" in capfd.readouterr().err


@pytest.mark.parametrize("value", ["0", "many", "-1"])
def test_a_number_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEDDY_LANES", value)
    with pytest.raises(TeddyError, match=r"\$TEDDY_LANES must be a whole number of at least 1"):
        Lanes(CPU)


# ------------------------------------------------------------------------------------ taking turns


def jobs_of(
    lengths: Sequence[int], seen: list[tuple[int, int, int]], crowded: tuple[int, ...] = ()
) -> list[Any]:
    """Jobs of so many iterations, which note job, lane and how many run beside them.

    Those in ``crowded`` need the device for themselves.
    """

    def job(which: int, length: int) -> FakeJob:
        left = [length]

        def steps(lane: Lane) -> Iterator[None]:
            while left[0]:
                if which in crowded and lane.beside:
                    raise OutOfMemory
                seen.append((which, lane.number, lane.beside))
                left[0] -= 1
                yield

        return FakeJob(steps)

    return [job(which, length) for which, length in enumerate(lengths)]


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 7])
def test_every_job_does_all_its_iterations(at_a_time: int, monkeypatch: Any) -> None:
    monkeypatch.setenv("TEDDY_LANES", str(at_a_time))
    lengths, seen = [3, 1, 4, 0, 2], list[tuple[int, int, int]]()
    Lanes(CPU).run(jobs_of(lengths, seen))
    done = [which for which, _, _ in seen]
    assert [done.count(which) for which in range(5)] == lengths
    assert max(lane for _, lane, _ in seen) < at_a_time
    if at_a_time == 1:
        assert done == sorted(done)


def test_jobs_take_turns_and_later_ones_take_free_lanes(monkeypatch: Any) -> None:
    monkeypatch.setenv("TEDDY_LANES", "2")
    seen = list[tuple[int, int, int]]()
    Lanes(CPU).run(jobs_of([1, 3, 3], seen))
    assert seen == [
        (0, 0, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), (2, 0, 1), (2, 0, 1), (2, 0, 0)
    ]  # fmt: skip


@pytest.mark.parametrize("crowded", [(0,), (1,), (2,), (0, 1, 2, 3)])
def test_a_job_without_memory_goes_on_when_fewer_run(
    crowded: tuple[int, ...], monkeypatch: Any
) -> None:
    monkeypatch.setenv("TEDDY_LANES", "3")
    seen = list[tuple[int, int, int]]()
    Lanes(CPU).run(jobs_of([4, 4, 4, 4], seen, crowded))
    done = [which for which, _, _ in seen]
    assert [done.count(which) for which in range(4)] == [4] * 4
    assert all(beside == 0 for which, _, beside in seen if which in crowded)


# --------------------------------------------------------------------------------------- synthesis


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As on a GPU: no worker processes; the folder of logs."""
    monkeypatch.setenv("TEDDY_WORKERS", "1")
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    return tmp_path / "logs"


def at_a_time(made: OptimisedMethod, count: int, monkeypatch: Any) -> tuple[Tensor, Any]:
    """Images and records of a set of four batches."""
    monkeypatch.setenv("TEDDY_LANES", str(count))
    images, _, records = synthesise(made, 3, WorkDir("synthesize", f"set{count}"))
    return images, records


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("changes", [{}, {"draw_per": "iteration", "gradient": "joint"}])
def test_batches_beside_each_other_have_the_bytes_of_batches_alone(
    synthesiser: Teddy, workplace: Path, one_process: Path, pools: list[FakePool],
    monkeypatch: Any, changes: Any, replayed: bool,
) -> None:  # fmt: skip
    want, records = at_a_time(with_config(synthesiser, **changes), 1, monkeypatch)
    beside = with_config(synthesiser, **changes)
    if replayed:
        beside._passes = {0: Graphs()}
    got, same = at_a_time(beside, 3, monkeypatch)
    assert torch.equal(got, want)
    assert same == records
    if replayed:
        assert set(beside._passes) == {0, 1, 2}, "recordings of their own"
        assert beside.facts["cuda_graphs"] is True
    lines = (one_process / "synthesize-batches.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line)["batches_at_a_time"] for line in lines]
    assert logged[:4] == [1] * 4
    assert max(logged[4:]) == 3


@pytest.mark.parametrize("fit", [1, 2])
def test_exhausted_memory_lets_fewer_batches_run_and_changes_no_byte(
    synthesiser: Teddy, workplace: Path, one_process: Path, pools: list[FakePool],
    monkeypatch: Any, capfd: Any, fit: int,
) -> None:  # fmt: skip
    """Rather than the smaller mode, which rounds otherwise."""
    joint = {"gradient": "joint"}
    want, records = at_a_time(with_config(synthesiser, **joint), 1, monkeypatch)
    beside = with_config(synthesiser, **joint)
    beside._passes = {0: Graphs()}

    limit_recordings(beside, fit, monkeypatch)
    got, same = at_a_time(beside, 3, monkeypatch)
    assert torch.equal(got, want)
    assert same == records, "all by joint"
    said = capfd.readouterr().err
    assert f"{fit} batch{'es' * (fit > 1)} at a time" in said
    assert fit == 1 or "1 batch at a time" not in said, "what nobody uses any more is dropped first"
    assert all(passes.on for passes in beside._passes.values() if isinstance(passes, Graphs))
    assert recordings(pools) > 8, "dropped, and made again"


def limit_recordings(made: Teddy, fit: int, monkeypatch: Any) -> None:
    """Memory for the recordings of so many lanes."""

    def limited(*arguments: Any) -> Tensor:
        holding = [p for p in made._passes.values() if isinstance(p, Graphs) and p._slots]
        if len(holding) > fit or (len(holding) == fit and arguments[6] not in holding):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses_of_teachers(*arguments)

    monkeypatch.setattr(synthesis, "losses_of_teachers", limited)


@pytest.mark.parametrize("at", ["view", "beginning", "mode"])
def test_memory_may_end_anywhere_while_others_run(
    synthesiser: Teddy, workplace: Path, one_process: Path, monkeypatch: Any, at: str
) -> None:
    auto = {"gradient": "auto"}
    want, records = at_a_time(with_config(synthesiser, **auto), 1, monkeypatch)
    beside, calls = with_config(synthesiser, **auto), iter(range(1000))
    target, name = {
        "view": (Resampling, "__call__"),
        "beginning": (Teddy, "start"),
        "mode": (synthesis, "choose_mode"),
    }[at]
    real, fails = getattr(target, name), {"view": 7, "beginning": 1, "mode": 99}[at]

    def ends(*arguments: Any) -> Any:
        if next(calls) == fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    monkeypatch.setattr(target, name, ends)
    got, same = at_a_time(beside, 3, monkeypatch)
    assert torch.equal(got, want)
    assert same == records
    if at == "mode":
        assert next(calls) == 4, "once for each draw and size, before anything runs"


def test_distribution_matching_without_memory_lets_fewer_run(
    synthesiser: Teddy, dm_config: DmConfig, workplace: Path, one_process: Path, monkeypatch: Any
) -> None:
    config = replace(dm_config, classes_per_batch=1)

    def made() -> DistributionMatching:
        return DistributionMatching(config, synthesiser.given)

    want, _ = at_a_time(made(), 1, monkeypatch)
    beside = made()
    optimise = beside.optimise

    def limited(batch: Batch, state: State) -> Iterator[None]:
        for _ in optimise(batch, state):
            yield
            if state.lane.beside:
                raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(beside, "optimise", limited)
    got, _ = at_a_time(beside, 3, monkeypatch)
    assert torch.equal(got, want)


def test_killed_batches_that_ran_beside_each_other_go_on(
    synthesiser: Teddy, workplace: Path, one_process: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("teddy.synthesis.engine.runs.CHECK_EVERY", 1)
    monkeypatch.setenv("TEDDY_SAVE_SECONDS", "0")
    want, records = at_a_time(with_config(synthesiser), 1, monkeypatch)
    killed = with_config(synthesiser)
    draw, calls = killed.teachers_drawn, iter(range(1000))

    def stop_there(*moment: Any) -> list[int]:
        if next(calls) == 20:
            raise KeyboardInterrupt
        return draw(*moment)

    monkeypatch.setattr(killed, "teachers_drawn", stop_there)
    with pytest.raises(KeyboardInterrupt):
        at_a_time(killed, 3, monkeypatch)
    assert len(list(workplace.rglob("*.resume"))) == 3
    got, same = at_a_time(with_config(synthesiser), 3, monkeypatch)
    assert torch.equal(got, want)
    assert same == records


@pytest.mark.cuda
@pytest.mark.parametrize("replayed", [False, True])
def test_batches_beside_each_other_on_a_gpu_have_the_bytes_of_batches_alone(
    synthesiser: Teddy, workplace: Path, one_process: Path, monkeypatch: Any, replayed: bool
) -> None:
    monkeypatch.setattr("teddy.synthesis.engine.cuda_graphs._LEAST_REPLAYS", 0)
    monkeypatch.setenv("TEDDY_GRAPHS", "1" if replayed else "0")

    def on_gpu() -> Teddy:
        given = replace(synthesiser.given, device=torch.device("cuda"))
        return Teddy(replace(synthesiser.config, iterations=50), given)

    want, records = at_a_time(on_gpu(), 1, monkeypatch)
    got, same = at_a_time(on_gpu(), 3, monkeypatch)
    assert torch.equal(got, want)
    assert same == records


@pytest.mark.parametrize("name", ALGORITHMS)
def test_exhausted_memory_is_blamed_on_settings_that_a_method_has(name: str) -> None:
    cls = method_class(name)
    if issubclass(cls, OptimisedMethod):
        named = set(re.findall(r"\w+", cls.size.removeprefix(f"{ALGORITHMS[name].section}.")))
        assert named - {"or"} and named - {"or"} <= config_keys(cls.Config)
