"""YAML and JSON into frozen dataclasses, with errors that name the file and the key.

Pydantic checks values against the annotations of the fields: whole and finite numbers, choices
(``Literal``), ranges (``Annotated``), tuples for lists, and dataclasses for keys below keys. No key
may be missing unless its field has a default, and none may be unknown.
"""

import dataclasses
import difflib
import functools
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import yaml

from teddy.core.errors import TeddyError
from teddy.core.files import check_regular

T = TypeVar("T")
Section = Mapping[str, Any]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass whose keys, types and ranges are checked when it is read from a file."""
    cls.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)


def check(ok: bool, message: str) -> None:
    """Raise :class:`~teddy.core.errors.TeddyError` with the message unless ``ok``."""
    if not ok:
        raise TeddyError(message)


def to_json(config: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON-able values."""
    return dataclasses.asdict(config)


def config_keys(cls: type) -> set[str]:
    """Keys of a settings dataclass."""
    return {field.name for field in dataclasses.fields(cls)}


def from_json(cls: type[T], section: Any, where: str) -> T:
    """A settings dataclass from the keys of a section.

    Args:
        cls: of :func:`settings`.
        section: keys and values, as YAML or JSON have them.
        where: file and key that messages begin with.

    Raises:
        TeddyError: a key is unknown or missing, or a value is not of its field's type or range.
    """
    from pydantic import ValidationError

    try:
        text = json.dumps(section, default=_refuse)
        checked: T = _adapter(cls).validate_json(text, strict=True)  # type: ignore[arg-type]
        return checked
    except ValidationError as error:
        raise TeddyError(_message(cls, error.errors(include_url=False), where)) from None
    except TypeError as error:  # which tags of YAML make, as !!binary and !!set
        raise TeddyError(
            f"{where}: values must be text, numbers, true, false, lists or keys; got {error}"
        ) from None


def _refuse(value: object) -> None:
    raise TypeError(shown(value))


@functools.cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter  # a tenth of a second that `--help` need not spend

    return TypeAdapter(cls)


# ------------------------------------------------------------------------------------- messages

_EXPECTED = {
    "int_type": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "float_type": "must be a number",
    "finite_number": "must be finite",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "literal_error": "must be one of {expected}",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be above {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be below {lt:g}",
    "tuple_type": "must be a list",
    "dict_type": "must be keys",
    "dataclass_type": "must be keys",
}
_ORDER = ("unexpected_keyword_argument", "missing")
"""A mistyped key is both; the first of these tells most."""


def _message(cls: type, errors: list[Any], where: str) -> str:
    first = min(
        errors, key=lambda error: _ORDER.index(error["type"]) if error["type"] in _ORDER else 2
    )
    kind, path, context = first["type"], first["loc"], first.get("ctx", {})
    at = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:150]}" for part in path)
    parent = where + "".join(at.rpartition("." if at.rfind(".") > at.rfind("[") else "[")[:1])
    if kind == "unexpected_keyword_argument":
        known = _keys_at(cls, path[:-1])
        return f"{parent}: unknown key {shown(path[-1])}; {suggest(str(path[-1]), known)}"
    if (kind == "missing" and isinstance(path[-1], int)) or kind == "too_long":
        return f"{parent if kind == 'missing' else where + at} {_entries(context, path, first)}"
    if kind == "missing":
        return f"{parent} lacks the key {path[-1]!r}"
    if kind == "value_error":
        reason = str(context["error"])  # of lists, which may be long
        return f"{where}{at}: {reason if len(reason) <= 300 else reason[:297] + '...'}"
    if "expected" in context:
        context = {"expected": context["expected"].replace("'", "").replace(" or ", ", ")}
    expected = _EXPECTED.get(kind, first["msg"]).format(**context)
    return f"{where}{at} {expected}; got {shown(first['input'])}"


def _entries(context: Mapping[str, Any], path: tuple[Any, ...], error: Mapping[str, Any]) -> str:
    wanted = context.get("max_length", path[-1] + 1 if isinstance(path[-1], int) else 0)
    return f"must have {wanted} entries; got {shown(error['input'])}"


def _keys_at(cls: Any, path: tuple[Any, ...]) -> set[str]:
    """Keys of the dataclass that a path of field names, keys and places in lists leads to."""
    for part in path:
        cls = next((inner for own in _options(cls) for inner in _inside(own, part)), None)
    made = [own for own in _options(cls) if isinstance(own, type) and dataclasses.is_dataclass(own)]
    return config_keys(made[0]) if made else set()


def _inside(hint: Any, part: str | int) -> Iterator[Any]:
    if dataclasses.is_dataclass(hint):
        yield from (own for name, own in typing.get_type_hints(hint).items() if name == part)
    elif typing.get_origin(hint) in (dict, tuple):  # of values, or of entries
        yield typing.get_args(hint)[typing.get_origin(hint) is dict]


def _options(hint: Any) -> Iterator[Any]:
    """What a type may be: itself, without its range, or each part of a union."""
    yield hint
    if typing.get_origin(hint) in (typing.Annotated, typing.Union, types.UnionType):
        for own in typing.get_args(hint):
            yield from _options(own)


def shown(value: Any) -> str:
    """A value as it is shown in a message: not more than a line of it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def refuse_unknown(given: Iterable[Any], known: Iterable[str], where: str) -> None:
    """Refuse a key that is not known, and suggest the nearest that is."""
    known = set(known)
    for key in given:
        if key not in known:
            raise TeddyError(f"{where}: unknown key {shown(key)}; {suggest(str(key), known)}")


_LISTED = 10


def suggest(name: str, known: Iterable[str]) -> str:
    """What a message says of a name that is not known."""
    choices = sorted(map(str, known))
    close = nearest(name, choices)
    listed = ", ".join(choices[:_LISTED]) + (
        f" and {len(choices) - _LISTED} more" if len(choices) > _LISTED else ""
    )
    return f"did you mean {close!r}?" if close else f"expected one of: {listed or 'nothing'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that another is most likely to mean, or "" if none is near."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(name, names, n=1)
    if not close and "/" not in name:  # a row may be meant by the end of its name
        ends = {whole.rpartition("/")[2]: whole for whole in reversed(names) if "/" in whole}
        close = [ends[end] for end in difflib.get_close_matches(name, ends, n=1)]
    return close[0] if close else ""


# ----------------------------------------------------------------------------------------- YAML


def merge(base: Section, override: Any, where: str) -> dict[str, Any]:
    """``base`` with what ``override`` names replaced, key by key; it may name no new key.

    Raises:
        TeddyError: ``override`` is no mapping where ``base`` is one, or names a new key.
    """
    if not isinstance(override, Mapping):
        raise TeddyError(f"{where} must be keys; got {shown(override)}")
    refuse_unknown(override, base, where)
    merged = dict(base)
    for key, value in override.items():
        nested = isinstance(base[key], Mapping)
        merged[key] = merge(base[key], value, f"{where}.{key}") if nested else value
    return merged


def read_yaml(path: Path) -> Section:
    """The keys of a YAML file, with the numbers of YAML 1.2, as DVC reads them.

    Raises:
        TeddyError: not readable, not YAML, not keys, or a key stands there twice.
    """
    check_regular(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TeddyError(f"{path}: not valid YAML: {error}") from error
    raw = parse_yaml(text, str(path))
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise TeddyError(f"{path} must be keys; got {shown(raw)}")
    return raw


def parse_yaml(text: str, where: str) -> Any:
    """What a text means, as :func:`read_yaml`; messages begin with ``where``."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _refuse_twice(node)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise TeddyError(f"{where}: not valid YAML: {reason}") from error
    except (LookupError, AttributeError, TypeError, OverflowError):  # of `!!bool x`, say
        raise TeddyError(f"{where}: not valid YAML: a value is not what its tag says") from None
    except RecursionError:
        raise TeddyError(f"{where}: not valid YAML: nested too deeply, or in itself") from None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML with the scalars of YAML 1.2; its own are 1.1's, where 1e-3 is text and off is false.

    Source: the core schema of yaml.org/spec/1.2.2, section 10.3.2, and ``<<`` of 1.1.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put merged keys beside a mapping's own, which win, as the first of a list does.

        PyYAML 6.0.4 lets the last win, or an overridden key, by the length of its name.
        """
        for place, (key, value) in enumerate(node.value):
            if key.tag.endswith(":merge") and isinstance(value, yaml.SequenceNode):
                if not all(isinstance(part, yaml.MappingNode) for part in value.value):
                    break  # PyYAML says what is wrong
                pairs: dict[object, tuple[yaml.Node, yaml.Node]] = {}
                for part in value.value:
                    self.flatten_mapping(part)
                    pairs = {_identity(pair[0]): pair for pair in part.value} | pairs
                node.value[place] = key, yaml.MappingNode(value.tag, list(pairs.values()))
        super().flatten_mapping(node)
        node.value = list({_identity(pair[0]): pair for pair in node.value}.values())


def _identity(key: yaml.Node) -> object:
    return (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("merge", r"<<\Z", "<"),
    ("null", r"(?:~|null|Null|NULL)?\Z", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", "tTfF"),
    ("int", r"(?:[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)\Z", "-+0123456789"),
    ("float", r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
              r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z", "-+.0123456789"),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _whole(_: object, node: yaml.ScalarNode) -> int:
    """A whole number of 1.2; 1.1 reads 010 as eight."""
    text = node.value.replace("_", "")
    if len(text) > 100:
        raise yaml.YAMLError(f"a number of {len(text)} digits (line {node.start_mark.line + 1})")
    return int(text, 0 if text[1:2] in ("o", "x") else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def _refuse_twice(node: yaml.Node | None) -> None:
    """Refuse a key that stands twice in one mapping, before merges are resolved."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"the key {name!r} stands there twice (line {line})")
            seen.add(name)
            _refuse_twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _refuse_twice(entry)
