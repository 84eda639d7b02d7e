"""Run the pipeline with independent stages side by side.

``python -m tools.repro -j 2 [targets]`` does what ``dvc repro [targets]`` does, in less time on
several cores: DVC runs one stage after another, this starts ``dvc repro --single-item`` for every
stage that has changed as soon as those before it are done, each with its share of the cores. Stages
that most others wait for come first. PyTorch and DVC are imported once for all of them
(:mod:`tools.server`), unless ``$TEDDY_LAUNCH`` says what starts a stage. What each takes goes to
``logs/``, which :mod:`tools.target_costs` reads. A second run in the same checkout waits for the
first.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NoReturn

from teddy.core.console import append_line, parser, run_command
from teddy.core.environment import whole_number
from teddy.core.errors import TeddyError
from teddy.core.files import read_json
from teddy.settings.schema import suggest
from teddy.settings.stages import refuse_row
from teddy.stages.commands import COMMANDS
from tools.launch import SOCKET, Process

Graph = Mapping[str, Set[str]]
"""Stages, and those that each depends on directly."""
_LOCK = Path("work/repro.lock")
_MODULES = ("dvc.cli.parser", "dvc.repo.reproduce", "dvc.scm", "dvc.data_cloud")
"""That DVC imports to reproduce a stage."""
_LONGEST = 100
"""Bytes of a socket's path, of which Linux takes 107; beyond, stages start without a server."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("targets", nargs="*", help="stages; none means all")
    options.add_argument("-j", "--jobs", type=int, default=2, help="stages at a time")
    options.add_argument("--dry", action="store_true", help="only list what would run, in order")
    args = options.parse_args(argv)

    def command() -> str:
        if args.jobs < 1:
            raise TeddyError(f"--jobs must be at least 1, got {args.jobs}")
        with _alone():
            return made()

    def made() -> str:
        parents = graph()
        wanted = ancestors(parents, instances(parents, args.targets))
        if "resolve" in wanted:  # which says what code and settings are now
            _reproduce("resolve", os.environ)
        refuse_unfit(wanted)
        todo = stale(parents, _changed()) & wanted - {"resolve"}
        if args.dry:
            plan = Plan(parents, todo)
            while names := plan.take(1):
                print(*names)
                plan.finish(names[0])
            return f"{len(todo)} of {len(wanted - {'resolve'})} stages would run"
        cores = whole_number("TEDDY_WORKERS", len(os.sched_getaffinity(0)))
        share = str(max(1, cores // args.jobs))
        environment = os.environ | {"TEDDY_WORKERS": share, "TEDDY_REPRO": str(os.getpid())}
        start = time.monotonic()
        with _server(environment):
            seconds = _run(Plan(parents, todo), len(todo), args.jobs, environment)
        append_line(
            "repro-runs",
            {
                "seconds": round(time.monotonic() - start, 1),
                "jobs": args.jobs,
                "stages": {name: round(value, 1) for name, value in seconds.items()},
            },
        )
        return f"{len(seconds)} of {len(wanted - {'resolve'})} stages made, the others up to date"

    try:
        run_command("repro", command)
    except KeyboardInterrupt:
        _stop()


def _stop() -> NoReturn:
    """End at once: its threads wait for stages, which end with this process."""
    print("\nrepro: stopped; the same command continues from here", file=sys.stderr, flush=True)
    os._exit(130)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other run is going on in this checkout, and keep others waiting.

    The lock is inherited by every DVC that is started, and lasts until the last one has ended.
    """
    try:
        _LOCK.parent.mkdir(exist_ok=True)
        file = _LOCK.open("a")
    except OSError as error:
        raise TeddyError(f"{_LOCK}: cannot write here: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("repro: another run is going on here; waiting for its end", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        os.set_inheritable(file.fileno(), True)
        yield


def _run(plan: "Plan", count: int, jobs: int, environment: Mapping[str, str]) -> dict[str, float]:
    """Carry out a plan; seconds of the stages that DVC did run."""
    seconds: dict[str, float] = {}
    start = time.monotonic()
    running: dict[Future[float | None], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while not plan.done or running:
                for name in plan.take(jobs - len(running)):
                    running[pool.submit(_reproduce, name, environment)] = name
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name, taken = running.pop(future), future.result()
                    if taken is not None:
                        seconds[name] = taken
                    plan.finish(name)
                    _say(name, len(plan.finished), count, time.monotonic() - start)
        except KeyboardInterrupt:
            _stop()
    return seconds


class Plan:
    """Which stage may run next.

    Args:
        parents: the whole graph.
        todo: stages to run; all others count as done.

    Raises:
        TeddyError: stages wait for each other in a circle.
    """

    def __init__(self, parents: Graph, todo: Set[str]) -> None:
        self._waits = {name: set(parents[name] & todo) for name in todo}
        self._height = _heights(self._waits)
        self.finished: set[str] = set()

    @property
    def done(self) -> bool:
        """Whether every stage has been taken."""
        return not self._waits

    def take(self, count: int) -> list[str]:
        """Up to ``count`` stages whose parents are finished, longest chains of others first."""
        ready = [name for name, waits in self._waits.items() if waits <= self.finished]
        taken = sorted(ready, key=lambda name: (-self._height[name], name))[: max(0, count)]
        for name in taken:
            del self._waits[name]
        return taken

    def finish(self, name: str) -> None:
        """A stage that was taken is done."""
        self.finished.add(name)


def _heights(waits: Graph) -> dict[str, int]:
    """How many stages follow one after another from each."""
    followers: dict[str, set[str]] = {name: set() for name in waits}
    for name, parents in waits.items():
        for parent in parents:
            followers[parent].add(name)
    heights: dict[str, int] = {}
    while len(heights) < len(waits):
        ready = [n for n in waits if n not in heights and followers[n] <= heights.keys()]
        if not ready:
            raise TeddyError("stages depend on each other in a circle")
        for name in ready:
            heights[name] = 1 + max((heights[f] for f in followers[name]), default=0)
    return heights


@contextlib.contextmanager
def _server(environment: dict[str, str]) -> Iterator[None]:
    """Have stages and DVC started by a server, where there can be one, by their environment."""
    python, launcher = shutil.which("python"), str(Path(__file__).with_name("launch.py"))
    if (
        "TEDDY_LAUNCH" in environment
        or not hasattr(os, "pidfd_open")
        or re.search(r"[^\w./-]", launcher)  # which a shell would take apart
        or not (python and Path(python).parent.samefile(Path(sys.executable).parent))
    ):
        yield
        return
    stages = [f"teddy.stages.{name}" for name, command in COMMANDS.items() if command.computes]
    with tempfile.TemporaryDirectory(prefix="teddy-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "server"
        if len(os.fsencode(path)) > _LONGEST:
            yield
            return
        command = [sys.executable, "-m", "tools.server", str(path), *_MODULES, *stages]
        with subprocess.Popen(  # apart from this process group, as DVC is
            command, stdin=subprocess.PIPE, env=environment, process_group=0, close_fds=False
        ) as server:
            environment |= {SOCKET: str(path), "TEDDY_LAUNCH": f"python -S {launcher}"}
            while not path.exists() and server.poll() is None:
                time.sleep(0.01)
            yield


def _reproduce(name: str, environment: Mapping[str, str]) -> float | None:
    """Bring one stage up to date; seconds it took, None if DVC had its results already."""
    start, arguments = time.monotonic(), ["--wait-for-lock", "repro", "--single-item", name]
    ran, status = _through_server(arguments, environment)
    if status is None:
        # Apart from this process group, so that neither Ctrl-C nor the end of a terminal reaches
        # DVC: interrupted while it writes dvc.lock, it leaves half of that file. It ends after its
        # stage, which ends with this process.
        with subprocess.Popen(
            ["dvc", *arguments], env=dict(environment), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, text=True, process_group=0, close_fds=False,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            ran = _pass_on(process.stdout) or ran
        status = process.returncode
    if status:
        raise TeddyError(f"the stage {name} failed; its message stands above")
    return time.monotonic() - start if ran else None


def _through_server(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[bool, int | None]:
    """Whether DVC ran its stage, and its exit status; None if there is no server, or no more."""
    read, write = os.pipe()
    with os.fdopen(read) as lines, Path(os.devnull).open() as nothing:
        try:
            process = Process(
                "dvc", arguments, environment, (nothing.fileno(), write, 2), stays=True
            )
        except OSError:
            return False, None
        finally:
            os.close(write)
        return _pass_on(lines), process.wait()


def _pass_on(lines: Iterable[str]) -> bool:
    """Print what DVC prints until its end; whether it ran a stage."""
    ran = False
    for line in lines:
        ran = ran or line.startswith("Running stage")
        print(line, end="", flush=True)
    return ran


def _say(name: str, done: int, count: int, seconds: float) -> None:
    left = seconds / done * (count - done)
    print(
        f"[{done}/{count}] {name}; {seconds / 60:.0f} min so far, about {left / 60:.0f} min left",
        file=sys.stderr,
        flush=True,
    )


def graph() -> Graph:
    """Stages that every stage depends on, by name."""
    with _repository() as repo:
        stages = repo.index.graph
        return {
            stage.addressing: {parent.addressing for parent in stages.successors(stage)}
            for stage in stages
        }


def _changed() -> set[str]:
    """Stages that DVC would run again for their own sake."""
    with _repository() as repo:
        return set(repo.status())


@contextlib.contextmanager
def _repository() -> Iterator[Any]:
    """DVC's view of the checkout; its errors in one line."""
    from dvc.exceptions import DvcException  # type: ignore[import-untyped]  # slow to import
    from dvc.repo import Repo  # type: ignore[import-untyped]

    try:
        with Repo() as repo:
            yield repo
    except DvcException as error:
        raise TeddyError(f"dvc: {error}") from error


def stale(parents: Graph, changed: Iterable[str]) -> set[str]:
    """Stages that have changed or come after one that has; DVC skips those that did not after all.

    Args:
        parents: the graph.
        changed: names, of which only stages of the graph count.
    """
    followers: dict[str, set[str]] = {name: set() for name in parents}
    for name, before in parents.items():
        for parent in before:
            followers[parent].add(name)
    return ancestors(followers, {name for name in changed if name in parents and name != "resolve"})


def instances(parents: Graph, targets: Sequence[str]) -> set[str]:
    """Stages that targets name; ``evaluate`` names all of ``evaluate@…``.

    Raises:
        TeddyError: there is none of that name.
    """
    found: set[str] = set()
    for target in targets:
        own = {name for name in parents if name == target or name.split("@")[0] == target}
        if not own:
            names = {*parents, *(name.split("@")[0] for name in parents)}
            raise TeddyError(f"dvc.yaml has no stage {target!r}; {suggest(target, names)}")
        found |= own
    return found if targets else set(parents)


def refuse_unfit(wanted: Iterable[str], inputs: Path = Path("inputs")) -> None:
    """Refuse a stage whose settings do not fit each other, before any of those above it runs.

    Raises:
        TeddyError: the message that the stage would fail with.
    """
    for name in sorted(wanted):
        path = inputs / f"{name.replace('@', '/', 1)}.json"
        if path.is_file():
            refuse_row(read_json(path))


def ancestors(parents: Graph, names: Iterable[str]) -> set[str]:
    """Stages and everything that they depend on."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo.extend(parents[name])
    return found


if __name__ == "__main__":
    main()
