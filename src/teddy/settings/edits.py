"""Edits of the parameter files that change nothing, because what lies on top has the key too.

An edit is what differs from the last commit: a checkout as it was published has none, and an
experiment (``dvc exp run -S``) has those that it was asked for.
"""

import json
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from teddy.core.errors import TeddyError
from teddy.settings.configs import STAGES
from teddy.settings.declared import Declared
from teddy.settings.resolve import stage_files
from teddy.settings.schema import Section, parse_yaml

Key = tuple[str, ...]
_ABSENT = object()
_TAKEN = (*STAGES, "dsa", "recipe", "recipes")


def without_effect(declared: Declared, root: Path) -> Iterator[str]:
    """A line for each edited key that no stage takes, with the key that would act.

    Args:
        declared: the parameter files.
        root: folder that they lie in.
    """
    for path in (root / "params.yaml", *sorted((root / "params").glob("*.yaml"))):
        file = path.relative_to(root).as_posix()
        before, after = (
            _keys(_committed(root, file)),
            _keys(path.read_text(encoding="utf-8", errors="replace")),
        )
        for key, value in _changes(before, after) if before else ():
            dataset, own = _place(file, key)
            if not dataset and own[0] == "recipes" and _at(before, own[:2]) is _ABSENT:
                continue  # a new recipe, for rows to come
            if own[0] in _TAKEN and not _acts(declared, dataset, own, _at(before, key)):
                acts = _what_acts(declared, dataset, own, value)
                if acts:
                    yield f"{file}: {'.'.join(key)} = {_text(value)} changes nothing: {acts}"


def _keys(text: str) -> Section:
    """What a file says; nothing if it cannot be read, which is no matter while it is off."""
    try:
        found = parse_yaml(text, "")
    except TeddyError:
        found = None
    return found if isinstance(found, Mapping) else {}


def _committed(root: Path, file: str) -> str:
    """A file as the last commit has it; empty if that has none, or there is no Git.

    Not by ``git diff``: what DVC has just written has the size of before, and perhaps its time.
    """
    command = ["git", "show", f"HEAD:./{file}"]
    try:
        run = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", check=True)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return ""
    return run.stdout


def _changes(before: Section, after: Section) -> Iterator[tuple[Key, Any]]:
    """Paths of keys whose values differ, and the new values."""
    for key, value in after.items():
        old = before.get(key, _ABSENT)
        if isinstance(value, Mapping):
            inner = _changes(old if isinstance(old, Mapping) else {}, value)
            yield from (((str(key), *path), own) for path, own in inner)
        elif value != old:
            yield (str(key),), value


def _place(file: str, key: Key) -> tuple[str, Key]:
    """Dataset that a key of a file is of, "" for the defaults, and the path below that."""
    if file != "params.yaml":
        return Path(file).stem, key
    return (key[1], key[2:]) if key[0] == "datasets" and len(key) > 2 else ("", key)


def _acts(declared: Declared, dataset: str, key: Key, before: Any) -> bool:
    """Whether any stage would read something else if a key had its value of before."""
    if dataset and dataset not in declared.datasets:
        return False
    now = declared.sections_of(dataset)
    try:
        then = declared.with_sections(dataset, _replaced(now, key, before))
        same = declared.with_sections(dataset, now)
        then.unfit = same.unfit = {}  # which would hide what these rows read
        return list(stage_files(then)) != list(stage_files(same))
    except TeddyError:  # it needs this edit
        return True


def _replaced(section: Section, key: Key, value: Any) -> Section:
    """A section with another value at a path, or without it."""
    first, *below = key
    if below:
        value = _replaced(section[first], tuple(below), value)
    kept = {name: own for name, own in section.items() if name != first}
    return kept if value is _ABSENT else {**kept, first: value}


def _at(section: Any, key: Key) -> Any:
    """What stands at a path."""
    for part in key:
        section = section.get(part, _ABSENT) if isinstance(section, Mapping) else _ABSENT
    return section


def _what_acts(declared: Declared, dataset: str, key: Key, value: Any) -> str:
    """Where a key stands that wins over a default, or a dataset's own; "" if it has this value."""
    if dataset and dataset not in declared.datasets:
        return f"no row that is switched on is of the dataset {dataset}"
    used = declared.recipes_used(dataset)
    if key[0] == "recipes" and key[1] not in used:
        return f"no row that is switched on has the recipe {key[1]}"
    above = [] if dataset else declared.datasets
    owns = {name: _at(declared.sections_of(name), key) for name in above}
    owns = {name: own for name, own in owns.items() if own is not _ABSENT}
    places = [name for name, own in owns.items() if own != value]
    if owns and not places:
        return ""
    if places:
        told = (_acting(declared, name, key, value) for name in places)
        return f"what the dataset says wins; try {' '.join(told)}"
    for recipe in used:
        for of in dict.fromkeys((dataset, "")):
            if _at(declared.recipes(of), (recipe, *key)) is not _ABSENT:
                told_of = _acting(declared, of, ("recipes", recipe, *key), value)
                return f"the recipe {recipe} says it; try {told_of}"
    rows = declared.rows_with(key[2:] if key[0] == "recipes" else key)
    if rows:
        return f"rows say it themselves, such as {rows[0]}"
    return "no row that is switched on reads it"


def _acting(declared: Declared, dataset: str, key: Key, value: Any) -> str:
    """The option that sets a key of a dataset, or a default; of what DVC cannot set its place."""
    file, at = declared.place_of_dataset(dataset) if dataset else ("params.yaml", "")
    name = ".".join(part for part in (at, *key) if part)
    if file.startswith("experiments"):
        return f"{name} of {file} wins"
    return "-S " + shlex.quote(f"{file}:{name}={_text(value)}".removeprefix("params.yaml:"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
