"""Which code a stage runs: a checksum for every package of this one that it imports.

DVC does not follow imports, and a stage that listed packages would make ``dvc.lock`` twice as long;
so the checksums stand in the settings file of each stage, which DVC watches.
"""

import functools
import hashlib
import re
from pathlib import Path

_SOURCE = Path(__file__).parents[2]
_IMPORT = re.compile(
    r"^[ \t]*(from|import)[ \t]+([\w.]+)([ \t]+import[ \t]*\([^)]*\)|.*)", re.MULTILINE
)
"""A statement that imports; parsing all modules takes half of the time of the stage resolve."""


@functools.cache
def checksums(*names: str) -> dict[str, str]:
    """SHA-256 of the modules that others import, themselves included, by package.

    Args:
        names: of modules, ``teddy.stages.synthesize`` say, or files of the user's own, which are
            no part of the sums.
    """
    packages: dict[str, hashlib._Hash] = {}
    for file in sorted(imported(*names)):
        if not file.is_relative_to(_SOURCE):
            continue
        name = file.relative_to(_SOURCE)
        package = name.parts[1] if len(name.parts) > 2 else "teddy"
        sha = packages.setdefault(package, hashlib.sha256())
        sha.update(name.as_posix().encode())
        sha.update(hashlib.sha256(file.read_bytes()).digest())
    return {package: sha.hexdigest()[:32] for package, sha in packages.items()}


def imported(*names: str) -> set[Path]:
    """Files of this package that modules or files import, anywhere in them, and these."""
    todo = [_file(name) for name in names]
    seen = set(todo)
    while todo:
        found = _imports(todo.pop()) - seen
        seen |= found
        todo += found
    return seen


def _file(name: str) -> Path:
    if name.endswith(".py"):
        return Path(name)
    path = _SOURCE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _imports(file: Path) -> frozenset[Path]:
    names = set()
    for kind, first, rest in _IMPORT.findall(file.read_text(encoding="utf-8")):
        words = re.findall(r"[\w.]+", re.sub(r"\bas[ \t]+\w+", "", rest))
        names |= {first} | {f"{first}.{word}" if kind == "from" else word for word in words}
    ours = (name for name in names if name.split(".")[0] == "teddy")
    return frozenset(path for path in map(_file, ours) if path.is_file())
