"""The sections of ``params.yaml`` as they stand there, and settings resolved from their layers.

A stage's settings are resolved in three layers, each overriding only what it names:

1. the top-level section of the stage (``synthesize:``), the defaults of the paper;
2. ``datasets.<dataset>.<stage>``, what differs for that dataset;
3. the row of the artifact (``sets.<name>``), what differs for that artifact. A row of ``scores``
   lies on top of the row of its set.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from teddy.core.errors import TeddyError
from teddy.settings.rows import ROWS
from teddy.settings.schema import Section, check, from_json, merge, read_yaml, refuse_unknown

T = TypeVar("T")
_NAME = re.compile(r"[\w-]+(/[\w-]+)*", re.ASCII)


class Layers:
    """A file's sections by name; every message begins with the file and the key.

    Raises:
        TeddyError: not readable, or a key is missing or unknown.
    """

    def __init__(self, path: Path, required: set[str], optional: set[str]) -> None:
        self.path = path
        self.raw = read_yaml(path)
        refuse_unknown(set(self.raw), required | optional, self.where(""))
        for key in sorted(required - set(self.raw)):
            raise TeddyError(f"{self.where('')} lacks the key {key!r}")

    def where(self, key: str) -> str:
        """The file, and the key if there is one."""
        return f"{self.path}: {key}" if key else str(self.path)

    def keys(self, section: str) -> Section:
        """A top-level section that is there."""
        value = self.raw[section]
        if not isinstance(value, Mapping):
            raise TeddyError(f"{self.where(section)}: expected keys, got {value!r}")
        return value

    def section(self, *path: str) -> Section:
        """A section at any depth.

        Raises:
            TeddyError: it is not there, or is not a section.
        """
        value: Any = self.raw
        name = ".".join(path)
        for part in path:
            if not isinstance(value, Mapping) or part not in value:
                raise TeddyError(f"{self.path} lacks the key {name!r} (write {{}} if it is empty)")
            value = value[part]
        if not isinstance(value, Mapping):
            raise TeddyError(f"{self.where(name)}: expected keys, got {value!r}")
        return value

    def rows(self, section: str, cls: type[T]) -> dict[str, T]:
        """The rows of a section, without what they override.

        Raises:
            TeddyError: a name cannot be a path, or a row's own keys are not as its type says.
        """
        identity = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        rows = {}
        for name, raw in self.keys(section).items():
            if not isinstance(raw, Mapping):
                raise TeddyError(f"{self.where(f'{section}.{name}')}: expected a row of keys")
            if not _NAME.fullmatch(str(name)):
                raise TeddyError(
                    f"{self.where(section)}: the name {name!r} must be letters, digits, '_' and "
                    "'-', in parts joined by '/'"
                )
            _, stage, nested = ROWS[section]
            own = {key: value for key, value in raw.items() if key in identity}
            if not stage:
                refuse_unknown(set(raw), identity | set(nested), self.where(f"{section}.{name}"))
            rows[name] = from_json(cls, own, self.where(f"{section}.{name}"))
        return rows

    def resolve(self, cls: type[T], stage: str, dataset: str, *rows: tuple[str, str]) -> T:
        """Settings of a stage.

        Args:
            cls: their type.
            stage: its section.
            dataset: whose settings lie on the section's.
            rows: section and name of those that lie on these, the later ones on top; without any
                the settings are those of the whole dataset.

        Raises:
            TeddyError: a layer names a key that the section lacks, or a value is not as ``cls``
                says.
        """
        merged = merge(
            self.section(stage),
            self.section("datasets", dataset, stage),
            self.where(f"datasets.{dataset}.{stage}"),
        )
        for section, name in rows:
            where = self.where(f"{section}.{name}")
            merged = merge(merged, self._overrides(section, name, stage), where)
        of = ".".join(rows[-1]) if rows else dataset
        return from_json(cls, merged, self.where(f"{stage} (for {of})"))

    def _overrides(self, section: str, name: str, stage: str) -> Section:
        """What a row says of a stage: by its further keys, or under the stage's name."""
        cls, own, nested = ROWS[section]
        raw = self.raw[section][name]
        if stage in nested:
            found = raw.get(stage, {})
            check(
                isinstance(found, Mapping),
                f"{self.where(f'{section}.{name}.{stage}')}: expected keys, got {found!r}",
            )
            return found  # type: ignore[no-any-return]
        if stage != own:
            return {}
        identity = {field.name for field in dataclasses.fields(cls)} | set(nested)
        return {key: value for key, value in raw.items() if key not in identity}
