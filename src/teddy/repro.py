"""Run the pipeline with independent stages side by side.

``python -m teddy.repro -j 2 [targets]`` does what ``dvc repro [targets]`` does, in less time on
several cores: stages whose parents are done run at the same time, each with its share of the cores.
DVC itself runs one stage after another. A last ``dvc repro`` has nothing to do unless something
changed meanwhile.
"""

import argparse
import os
import subprocess
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor

from teddy.console import run_command
from teddy.errors import TeddyError

_BATCHES = 3  # per process and level: fewer balance worse, more start DVC more often


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("targets", nargs="*", help="stages; none means all")
    options.add_argument("-j", "--jobs", type=int, default=2, help="stages at a time")
    args = options.parse_args(argv)

    def command() -> str:
        if args.jobs < 1:
            raise TeddyError(f"--jobs must be at least 1, got {args.jobs}")
        parents = _parents()
        wanted = ancestors(parents, _instances(parents, args.targets))
        cores = len(os.sched_getaffinity(0))
        environment = os.environ | {"TEDDY_WORKERS": str(max(1, cores // args.jobs))}
        with ThreadPoolExecutor(args.jobs) as pool:
            for level in levels(parents, wanted):
                batches = batched(level, args.jobs * _BATCHES)
                for code in pool.map(lambda names: _repro(["-s", *names], environment), batches):
                    if code:
                        raise TeddyError("a stage failed; its message stands above")
        if _repro(args.targets, dict(os.environ)):
            raise TeddyError("dvc repro failed; its message stands above")
        return f"{len(wanted)} stages up to date"

    run_command("repro", command)


def _repro(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    done = subprocess.run(
        ["dvc", "--wait-for-lock", "repro", *arguments], env=dict(environment), check=False
    )
    return done.returncode


def _parents() -> dict[str, set[str]]:
    """Stages that every stage depends on, by name."""
    from dvc.repo import Repo  # type: ignore[import-untyped]  # slow, and tests need it not

    with Repo() as repo:
        graph = repo.index.graph
        return {
            stage.addressing: {parent.addressing for parent in graph.successors(stage)}
            for stage in graph
        }


def _instances(parents: Mapping[str, Set[str]], targets: Sequence[str]) -> set[str]:
    """Stages that targets name; ``evaluate`` names all of ``evaluate@…``.

    Raises:
        TeddyError: there is none of that name.
    """
    found: set[str] = set()
    for target in targets:
        own = {name for name in parents if name == target or name.split("@")[0] == target}
        if not own:
            raise TeddyError(f"dvc.yaml has no stage {target!r}")
        found |= own
    return found if targets else set(parents)


def ancestors(parents: Mapping[str, Set[str]], names: Set[str]) -> set[str]:
    """Stages and everything that they depend on."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo.extend(parents[name])
    return found


def levels(parents: Mapping[str, Set[str]], wanted: Set[str]) -> list[list[str]]:
    """Stages in groups whose parents all stand in earlier groups."""
    found: list[list[str]] = []
    done: set[str] = set()
    while done < wanted:
        ready = sorted(name for name in wanted - done if parents[name] & wanted <= done)
        if not ready:
            raise TeddyError("stages depend on each other in a circle")
        found.append(ready)
        done |= set(ready)
    return found


def batched(names: Sequence[str], count: int) -> list[list[str]]:
    """At most ``count`` batches of almost equal size, neighbours in different ones."""
    return [list(names[start::count]) for start in range(min(count, len(names)))]


if __name__ == "__main__":
    main()
