"""Switch a checkout to further datasets: add a profile's rows to params.yaml, or take them out.

``python -m tools.profile`` lists the profiles, ``python -m tools.profile cifar10`` adds the grid
of ``profiles/cifar10.yaml`` to what the checkout makes, ``--off`` takes it out again. Everything
else in params.yaml, comments included, stays as it is; the lists of records in dvc.yaml follow.
Then ``dvc repro`` makes what is new, or ``dvc exp run`` does so as an experiment; what was made
before is kept. Rows of the profile that were edited in params.yaml are not taken out unless
``--force`` says so.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teddy.core.console import run_command
from teddy.core.errors import TeddyError
from teddy.core.files import atomic_path
from teddy.settings.params import Params
from teddy.settings.schema import read_yaml
from tools.dependencies import update

_SECTIONS = (
    "prepared", "bases", "pools", "sets", "scores", "step_teachers", "streams", "targets",
)  # fmt: skip
_COMMENT = re.compile(r" {0,2}#")  # no deeper than a row's key; deeper ones are of its settings
Lines = list[str]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="profiles to add; none lists them")
    parser.add_argument("--off", action="store_true", help="take the profiles out instead")
    parser.add_argument(
        "--force", action="store_true", help="with --off: also take out rows that were edited"
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--profiles", type=Path, default=Path("profiles"), help="their folder")
    parser.add_argument("--dvc", type=Path, default=Path("dvc.yaml"))
    args = parser.parse_args(argv)
    if args.force and not args.off:
        parser.error("--force only goes with --off: adding a profile changes no row that is there")

    def stage() -> str:
        if not args.names:
            return _listing(args.profiles, args.params)
        text = args.params.read_text(encoding="utf-8")
        for name in args.names:
            profile = _read(args.profiles, name)
            if args.off and not args.force:
                _refuse_edited(text, profile, str(args.params), f"{args.profiles / name}.yaml")
            text = switch(text, profile, on=not args.off)
        _replace(args.params, text)
        update(args.dvc, Params(args.params))
        what = "out" if args.off else "added"
        return f"{', '.join(args.names)}: {what}; next: dvc repro (or dvc exp run)"

    run_command("profile", stage)


def switch(text: str, profile: str, *, on: bool) -> str:
    """``params.yaml`` with the rows of a profile added or taken out.

    Args:
        text: of params.yaml.
        profile: text of the profile, whose comments are added with it.
        on: add or take out. Rows that are there already, or not there, are left as they are.

    Returns:
        The new text; no line is changed that does not belong to the profile.
    """
    lines, added = text.splitlines(), profile.splitlines()
    for section in _SECTIONS:
        for name, block in _rows(added, section).items():
            present = _rows(lines, section)
            if section == "targets" and name in present:
                _switch_entries(lines, name, _list(block), on=on)
            elif on and name not in present:
                _insert(lines, section, block)
            elif not on and name in present:
                _remove(lines, section, name)
    return "\n".join(lines) + "\n"


def edited(text: str, profile: str) -> list[str]:
    """Rows and entries of targets that are there, but not as the profile has them.

    Args:
        text: of params.yaml.
        profile: text of the profile.

    Returns:
        ``section.row``, or ``targets.<target>: <row>``. A comment counts, but not on a line of its
        own in a target's list; an empty line does not.
    """
    lines, added, found = text.splitlines(), profile.splitlines(), []
    for section in _SECTIONS:
        present = _rows(lines, section)
        for name, block in _rows(added, section).items():
            own = present.get(name, block)
            if section == "targets":
                known = {_entry(line): line for line in _list(block)}
                found += [
                    f"targets.{name}: {entry}"
                    for line in _list(own)
                    if (entry := _entry(line)) and known.get(entry, line) != line
                ]
            elif _written(own) != _written(block):
                found.append(f"{section}.{name}")
    return found


def _refuse_edited(text: str, profile: str, where: str, origin: str) -> None:
    found = edited(text, profile)
    if found:
        raise TeddyError(
            f"{where}: rows that are not as {origin} has them: {', '.join(found)}; undo the edits, "
            "give these rows names of their own, or drop them all the same by --force"
        )


def _written(block: Lines) -> Lines:
    return [line.rstrip() for line in block if line.strip()]


def _entry(line: str) -> str:
    """Row that a line of a target's list names, without its comment."""
    return line.split("#")[0].strip(" -")


def _list(block: Lines) -> Lines:
    """Lines of a target's list: those after its key."""
    return block[_comments(block) + 1 :]


def _comments(block: Lines) -> int:
    """Number of comment lines above a row's key."""
    return next(i for i, line in enumerate(block) if not _COMMENT.match(line))


def _insert(lines: Lines, section: str, block: Lines) -> None:
    start, _ = _extent(lines, section)
    if lines[start].split("#")[0].rstrip().endswith("{}"):
        lines[start] = f"{section}:"
    end = max((last for _, last in _places(lines, section).values()), default=start + 1)
    lines[end:end] = block


def _switch_entries(lines: Lines, name: str, entries: Lines, *, on: bool) -> None:
    """Add entries to the end of a target's list, or take them out, and it if it is empty then."""
    first, last = _places(lines, "targets")[name]
    first += _comments(lines[first:last]) + 1
    present = lines[first:last]
    if on:
        lines[last:last] = _missing(entries, present)
        return
    kept = _missing(present, entries)
    if any(map(_entry, kept)):
        lines[first:last] = kept
    else:
        _remove(lines, "targets", name)


def _missing(lines: Lines, others: Lines) -> Lines:
    """Lines of a list whose entries, or if they have none which themselves, others do not have."""
    known = {_entry(line) or line for line in others}
    return [line for line in lines if (_entry(line) or line) not in known]


def _remove(lines: Lines, section: str, name: str) -> None:
    start, _ = _extent(lines, section)
    first, last = _places(lines, section)[name]
    del lines[first:last]
    if not _rows(lines, section):
        lines[start] = f"{section}: {{}}"


def _rows(lines: Lines, section: str) -> dict[str, Lines]:
    """Rows of a section by name, each with its lines."""
    return {name: lines[a:b] for name, (a, b) in _places(lines, section).items()}


def _places(lines: Lines, section: str) -> dict[str, tuple[int, int]]:
    """First and last line (exclusive) of every row of a section.

    Comment lines directly above a key belong to its row, and those that end a section to none.
    """
    start, end = _extent(lines, section)
    row = re.compile(r"  ([^\s#:]+):")
    found = [(i, row.match(lines[i])) for i in range(start + 1, end)]
    heads = [(i, match[1]) for i, match in found if match]

    def above(line: int) -> int:
        while line > start + 1 and _COMMENT.match(lines[line - 1]):
            line -= 1
        return line

    ends = [above(i) for i in (*(i for i, _ in heads[1:]), end)][: len(heads)]
    return {name: (above(i), last) for (i, name), last in zip(heads, ends, strict=True)}


def _extent(lines: Lines, section: str) -> tuple[int, int]:
    """Line of a section's key, and the line after its last row."""
    heads = [i for i, line in enumerate(lines) if re.match(rf"{section}:(\s|$)", line)]
    if not heads:
        return 0, 0  # a profile need not have every section
    end = start = heads[0]
    for i in range(start + 1, len(lines)):
        if lines[i].startswith((" ", "- ")):
            end = i
        elif lines[i].strip() and not lines[i].startswith("#"):
            break
    return start, end + 1


def _read(folder: Path, name: str) -> str:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise TeddyError(f"{path}: no such profile; there are: {known}")
    unknown = set(read_yaml(path)) - set(_SECTIONS)
    if unknown:
        raise TeddyError(
            f"{path}: unknown key {min(unknown)!r}; a profile has {', '.join(_SECTIONS)}"
        )
    return path.read_text(encoding="utf-8")


def _replace(path: Path, text: str) -> None:
    """Write params.yaml if the whole of it is valid."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        try:
            Params(temporary)
        except TeddyError as error:
            raise TeddyError(str(error).replace(str(temporary), str(path))) from None


def _listing(folder: Path, params: Path) -> str:
    raw = read_yaml(params)
    for path in sorted(folder.glob("*.yaml")):
        profile = read_yaml(path)
        state = "on " if _is_on(profile, raw) else "off"
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"  {state}  {path.stem:16} {first}", file=sys.stderr)
    return "add one with: python -m tools.profile NAME"


def _is_on(profile: Mapping[str, Any], raw: Mapping[str, Any]) -> bool:
    """Whether all its rows are there; lists of targets may have been shortened by hand."""
    return all(set(profile.get(section) or ()) <= set(raw[section]) for section in _SECTIONS)


if __name__ == "__main__":
    main()
