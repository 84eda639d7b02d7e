"""Run stages of ``dvc.yaml`` on a machine that has no DVC, in order, with what they need.

``python -m tools.by_hand table5@cifar10`` resolves the parameters, then runs every stage that the
target depends on, unless its outputs are there and were made by the same settings of the same
inputs; of several targets one after the other. One process runs all of them, so PyTorch is imported
once. Nothing is written to ``dvc.lock``.
"""

import argparse
import contextlib
import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teddy.core.console import run_command
from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest, read_json, write_json
from teddy.settings.schema import read_yaml, suggest
from teddy.stages import commands
from tools.repro import refuse_unfit

_RECORD = Path("work/by_hand.json")


@dataclass(frozen=True, slots=True)
class Call:
    """One stage of one row, as ``dvc.yaml`` writes it."""

    stage: str
    row: str
    """Key of the loop, or "" if there is none."""
    arguments: tuple[str, ...]
    """Of the command ``teddy``, the stage's name first."""
    deps: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def name(self) -> str:
        """As DVC has it."""
        return f"{self.stage}@{self.row}" if self.row else self.stage


class Pipeline:
    """Stages of a ``dvc.yaml`` with all rows of the files that its ``vars`` name.

    Args:
        root: folder of ``dvc.yaml``.
    """

    def __init__(self, root: Path) -> None:
        dvc, known = read_yaml(root / "dvc.yaml"), variables(root)
        self.calls: list[Call] = []
        """In the order of the file."""
        for stage, said in dvc["stages"].items():
            if stage != "resolve":
                with contextlib.suppress(KeyError):  # of figures that the parameters leave out
                    self.calls += list(_calls(stage, said, known))

    def needed(self, targets: Sequence[str]) -> list[Call]:
        """What targets (stages, with ``@row`` or all rows of them) depend on, and they; in order.

        Raises:
            TeddyError: there is no such stage.
        """
        chosen: set[str] = set()
        for target in targets:
            own = {call.name for call in self.calls if target in (call.name, call.stage)}
            if not own:
                names = {*(call.stage for call in self.calls), *(call.name for call in self.calls)}
                raise TeddyError(f"dvc.yaml has no stage {target!r}; {suggest(target, names)}")
            chosen |= own
        before = len(chosen) - 1
        while len(chosen) > before:
            before = len(chosen)
            wanted = {dep for call in self.calls if call.name in chosen for dep in call.deps}
            chosen |= {
                call.name
                for call in self.calls
                if any(_touch(out, dep) for out in call.outs for dep in wanted)
            }
        return _in_order([call for call in self.calls if call.name in chosen])


def _calls(stage: str, said: Mapping[str, Any], known: Any) -> Iterator[Call]:
    body = said.get("do", said)
    if "foreach" in said:
        rows = lookup(known, said["foreach"][2:-1])
        fields = {
            key: {"key": key, **{f"item.{name}": value for name, value in row.items()}}
            for key, row in rows.items()
        }
    else:
        fields = {"": {}}

    def filled(text: str, own: Mapping[str, Any]) -> str:
        return re.sub(
            r"(?<!\\)\$\{([\w.]+)\}",
            lambda found: str(own[found[1]] if found[1] in own else lookup(known, found[1])),
            text,
        )

    for row, own in fields.items():
        outs = [next(iter(out)) if isinstance(out, Mapping) else out for out in body["outs"]]
        yield Call(
            stage=stage, row=row,
            arguments=tuple(filled(body["cmd"], own).split("-m teddy ")[1].split()),
            deps=tuple(filled(dep, own) for dep in body["deps"]),
            outs=tuple(filled(out, own) for out in outs),
        )  # fmt: skip


def variables(root: Path) -> dict[str, Any]:
    """What ``${…}`` of ``dvc.yaml`` means: ``params.yaml`` and the files that ``vars`` names."""
    found: dict[str, Any] = {}
    for file in ("params.yaml", *read_yaml(root / "dvc.yaml")["vars"]):
        found = _joined(found, read_yaml(root / file))
    return found


def _joined(one: Any, other: Any) -> Any:
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return other
    return {**one, **{key: _joined(one.get(key), value) for key, value in other.items()}}


def lookup(known: Any, name: str) -> Any:
    """A value by its path, with dots.

    Raises:
        KeyError: it is not there.
    """
    for part in name.split("."):
        known = known[part]
    return known


def _touch(one: str, other: str) -> bool:
    """Whether a path is another, or lies in it, or it in that."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _in_order(calls: Sequence[Call]) -> list[Call]:
    """Each after all that it depends on; else as they were."""
    found: list[Call] = []
    rest = list(calls)
    while rest:
        ready = next(
            call for call in rest
            if not any(_touch(out, dep) for other in rest if other is not call
                       for out in other.outs for dep in call.deps)
        )  # fmt: skip
        found.append(ready)
        rest.remove(ready)
    return found


def run(calls: Sequence[Call], until: float, record: Path = _RECORD) -> list[str]:
    """Run what is not up to date, one after the other; names of those that there was no time for.

    Args:
        calls: in order; a call whose input was not made is left out too.
        until: time (``time.monotonic``) after which none is begun.
        record: file that remembers what outputs were made of.
    """
    made: Json = read_json(record) if record.is_file() else {}
    left: list[Call] = []
    for call in calls:
        waits = any(_touch(out, dep) for other in left for out in other.outs for dep in call.deps)
        if waits or time.monotonic() > until:
            left.append(call)
            continue
        if not is_made(call, made):
            key = _fingerprint(call)
            commands.main(list(call.arguments))
            made[call.name] = key
            write_json(record, made)
    return [call.name for call in left]


def is_made(call: Call, made: Json) -> bool:
    """Whether the outputs of a call are there, made by these settings of these inputs.

    Args:
        call: whose inputs are there.
        made: what the record of former runs says.
    """
    outputs = all(Path(out).exists() for out in call.outs)
    return outputs and made.get(call.name) == _fingerprint(call)


def _fingerprint(call: Call) -> str:
    """Of a call, its settings and the manifests or contents of what it reads."""
    sha = hashlib.sha256(repr(call.arguments).encode())
    for dep in call.deps:
        path = Path(dep)
        manifest = path / "manifest.json"
        sha.update(digest(manifest if manifest.is_file() else path).encode())
    return sha.hexdigest()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="+", help="stages of dvc.yaml, stage or stage@row")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no stage after so long"
    )
    args = parser.parse_args(argv)

    def command() -> str:
        until = time.monotonic() + 60 * args.minutes
        commands.main(["resolve", "--out", "inputs"])
        pipeline, left = Pipeline(Path()), dict[str, None]()
        refuse_unfit(call.name for call in pipeline.needed(args.targets))
        for target in args.targets:
            left |= dict.fromkeys(run(pipeline.needed([target]), until))
        count = len(pipeline.needed(args.targets))
        why = f"; no time for {', '.join(left)}" if left else ""
        return f"{count - len(left)} of {count} stages are up to date{why}"

    run_command("by_hand", command)


if __name__ == "__main__":
    main()
