"""YAML into frozen dataclasses, with errors that name the file and the key.

Values are checked against the annotations of the fields: whole and finite numbers, choices
(``Literal``), tuples for lists, and dataclasses for keys below keys. No key may be missing unless
its field has a default, and none may be unknown.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from teddy.core.errors import TeddyError

T = TypeVar("T")
Section = Mapping[str, Any]


def check(ok: bool, message: str) -> None:
    """Raise :class:`~teddy.core.errors.TeddyError` with the message unless ``ok``."""
    if not ok:
        raise TeddyError(message)


def to_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON-able values."""
    return dataclasses.asdict(config)


def from_json(cls: type[T], record: Section, where: str) -> T:
    """The inverse of :func:`to_json`, with the same checks as ``params.yaml``."""
    return build(cls, record, where)


def read_yaml(path: Path) -> Section:
    """The keys of a YAML file.

    Raises:
        TeddyError: not readable, not YAML, or not a mapping.
    """
    # YAML 1.2 (ruamel): PyYAML reads 1e-3 as a string and off as a boolean.
    try:
        raw = YAML(typ="safe").load(path)
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error
    except YAMLError as error:
        raise TeddyError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, Mapping):
        raise TeddyError(f"{path}: expected keys, got {raw!r}")
    return raw


def merge(base: Section, override: Section, where: str) -> dict[str, Any]:
    """``base`` with what ``override`` names replaced, key by key; it may name no new key."""
    refuse_unknown(set(override), set(base), where)
    merged = dict(base)
    for key, value in override.items():
        if isinstance(base[key], Mapping):
            if not isinstance(value, Mapping):
                raise TeddyError(f"{where}.{key}: expected keys, got {value!r}")
            merged[key] = merge(base[key], value, f"{where}.{key}")
        else:
            merged[key] = value
    return merged


def build(cls: type[T], section: Section, where: str) -> T:
    """A dataclass from the keys of a section.

    Args:
        cls: dataclass whose annotations say what is allowed.
        section: keys and values.
        where: file and key that messages begin with.

    Raises:
        TeddyError: a key is unknown or missing, or a value is not of its field's type or range.
    """
    if not isinstance(section, Mapping):
        raise TeddyError(f"{where}: expected keys, got {section!r}")
    hints = typing.get_type_hints(cls)
    refuse_unknown(set(section), set(hints), where)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    may_lack = {field.name for field in fields if field.default is not dataclasses.MISSING}
    missing = [name for name in hints if name not in section and name not in may_lack]
    if missing:
        raise TeddyError(f"{where} lacks the key {missing[0]!r}")
    values = {
        name: convert(kind, section[name], f"{where}.{name}")
        for name, kind in hints.items()
        if name in section
    }
    try:
        return cls(**values)
    except TeddyError as error:
        raise TeddyError(f"{where}: {error}") from None


def convert(kind: Any, value: Any, where: str) -> Any:
    """A value of YAML as the type that an annotation names; raises as :func:`build` does."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            choices = ", ".join(map(str, arguments))
            raise TeddyError(f"{where} must be one of {choices}; got {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin in (Union, types.UnionType):
        raise NotImplementedError(kind)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise TeddyError(f"{where} must be finite; got {value!r}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TeddyError(f"{where} must be {_article(kind)}; got {value!r}")
    return value


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TeddyError(f"{where} must be a list; got {value!r}")
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise TeddyError(f"{where} must have {len(arguments)} entries; got {value!r}")
    return tuple(convert(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def refuse_unknown(given: set[str], known: set[str], where: str) -> None:
    """Refuse a key that is not known, and suggest the nearest that is."""
    for key in sorted(given - known):
        raise TeddyError(f"{where}: unknown key {key!r}; {suggest(str(key), known)}")


def suggest(name: str, known: typing.Iterable[str]) -> str:
    """What a message says of a name that is not known."""
    close = difflib.get_close_matches(name, list(known), n=1)
    choices = ", ".join(sorted(known))
    return f"did you mean {close[0]!r}?" if close else f"expected one of: {choices}"
