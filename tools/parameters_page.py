"""Write docs/parameters.md: every key of the parameter files, from the settings dataclasses.

``python -m tools.parameters_page`` (``make docs``) takes meanings from the docstrings of the
fields, ranges from their types, and defaults with their sources from ``params.yaml``; nothing of
the page is typed by hand.
"""

import ast
import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from annotated_types import BaseMetadata, Ge, Gt, Le, Len, Lt

from teddy.core.console import parser, run_command
from teddy.core.tables import Column, Table, write_text
from teddy.settings.configs import STAGES, WITH_DSA, ContinualConfig, DsaConfig
from teddy.settings.rows import OF_STUDENTS, ROWS, DatasetRow, MethodRow, TargetRow
from teddy.settings.schema import read_yaml
from teddy.settings.theory import Fig1Config, Fig5Config, TheoryConfig

SECTIONS: dict[str, type] = {
    **STAGES,
    "dsa": DsaConfig,
    "continual": ContinualConfig,
    "fig1": Fig1Config,
    "fig5": Fig5Config,
    "theory": TheoryConfig,
}
"""Sections of ``params.yaml``, and what they are read into."""
ROW_SECTIONS: dict[str, type] = {
    **{name: row for name, (row, _, _) in ROWS.items()},
    "methods": MethodRow,
    "targets": TargetRow,
}
"""Sections of experiment files."""

_INTRO = """# Parameters

<!-- Written by `make docs` from the settings dataclasses and params.yaml; do not edit. -->

Every key of the parameter files, what it may be, and the default that `params.yaml` gives it with
the source of the number. "Table n", "§4.1.2" and "appendix D" are the paper's; "§8-n" is a row of
the [list of ambiguities](method.md#8-ambiguities-of-the-paper). How files override each other is
told in [experiments.md](experiments.md#where-a-setting-comes-from). Beside the sections there is
the key `seed` (a whole number), from which every random number is derived."""
_OF_ROWS = """## Keys of rows

A row of an experiment file has these keys. Further keys override the settings of the stage that is
named behind the section; keys of the names in brackets hold settings of those stages."""

_OF_RECIPES = """Named settings of labels and students, which a row or a dataset takes by its key
`recipe` and a dataset changes under its own `recipes`
([experiments.md](experiments.md#recipes)). A key that a recipe does not name stays the
dataset's."""

_LARGE = 10**9  # bounds that only keep numbers within what PyTorch can hold
_ROLE = re.compile(r":\w+:`~?([\w.]+)`")
_KEY = re.compile(
    r"(?P<indent> *)(?P<key>[\w-]+):(?: (?P<value>[^#]*?))?\s*(?:# *(?P<comment>.*))?"
)
_KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def page(params: Path) -> str:
    """The whole page.

    Args:
        params: the file that has the defaults.
    """
    defaults, remarks = read_yaml(params), comments(params.read_text(encoding="utf-8"))
    parts = [_INTRO]
    for name, cls in SECTIONS.items():
        rows = [
            (key, value, *_default(f"{name}.{key}", defaults, remarks), meaning)
            for key, value, meaning in _fields(cls)
        ]
        parts.append(_section(name, cls, rows, ("default", "source or remark")))
    parts += [_recipes(defaults["recipes"], remarks), _OF_ROWS]
    for name, cls in ROW_SECTIONS.items():
        keys = [(key, value, _given(cls, key), meaning) for key, value, meaning in _fields(cls)]
        _, stage, nested = ROWS.get(name, (cls, "", ()))
        stage = "settings of the method's algorithm" if stage == "algorithm" else stage
        more = f" → {stage}" * bool(stage) + f" ({', '.join(nested)})" * bool(nested)
        parts.append(_section(f"{name}{more}", cls, keys, ("default",), "###"))
    facts = [
        (key, value, _given(DatasetRow, key), text) for key, value, text in _fields(DatasetRow)
    ]
    parts.append(
        _section("a dataset's file, beside its sections", DatasetRow, facts, ("default",), "###")
    )
    return "\n\n".join(parts) + "\n"


def _recipes(recipes: Mapping[str, Mapping[str, Any]], remarks: Mapping[str, str]) -> str:
    """A column for each recipe, and where it is from."""
    keys = (f"{stage}.{key}" for stage in OF_STUDENTS for key, _, _ in _fields(STAGES[stage]))
    rows = []
    for key in (key.replace("`", "") for key in keys):
        found = [_at(recipe, key) for recipe in recipes.values()]
        if any(value is not None and not isinstance(value, Mapping) for value in found):
            cells = ("" if value is None else f"`{_value(value)}`" for value in found)
            rows.append((f"`{key}`", *cells))
    columns = tuple(Column(name, text=True) for name in ("key", *recipes))
    table = Table("recipes", columns, tuple(rows), marked_up=True)
    sources = (f"- `{name}`: {remarks.get(f'recipes.{name}', '')}" for name in recipes)
    return f"## recipes\n\n{_OF_RECIPES}\n\n{table.body()}\n\n" + "\n".join(sources)


def _at(tree: Any, key: str) -> Any:
    """What stands at a dotted key; None if nothing does."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _section(
    name: str, cls: type, rows: Sequence[Sequence[str]], columns: Sequence[str], level: str = "##"
) -> str:
    heads = [Column(head, text=True) for head in ("key", "value", *columns, "meaning")]
    doc = _plain(inspect.getdoc(cls) or "")
    table = Table(name, tuple(heads), tuple(map(tuple, rows)), marked_up=True)
    return f"{level} {name}\n\n{doc}\n\n{table.body()}"


# ------------------------------------------------------------------------------ keys and meanings


def _fields(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted key, what it may be and its meaning, of every field; of nested ones too."""
    hints, docs = typing.get_type_hints(cls, include_extras=True), _field_docs(cls)
    for field in dataclasses.fields(cls):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        nested = _dataclass(hint)
        yield f"`{key}`", _kind(hint), docs.get(field.name, "")
        if nested and nested is not DsaConfig:
            yield from _fields(nested, f"{key}.")


def _dataclass(hint: Any) -> type | None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    classes = (option for option in options if isinstance(option, type))
    return next((cls for cls in classes if dataclasses.is_dataclass(cls)), None)


def _field_docs(cls: type) -> dict[str, str]:
    """Docstrings of the fields of a class, which Python does not keep."""
    (found,) = (
        node
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[cls.__module__])))
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    docs = {}
    for field, text in zip(found.body, found.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            docs[field.target.id] = _plain(str(text.value.value))
    return docs


def _plain(doc: str) -> str:
    """A docstring as a line of Markdown."""
    text = _ROLE.sub(lambda match: f"`{match[1].rpartition('.')[2]}`", doc.replace("``", "`"))
    return " ".join(text.split())


def _kind(hint: Any) -> str:
    """What a value may be, from the annotation."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [bound for bound in args[1:] if isinstance(bound, BaseMetadata)]
        return " ".join(part for part in (_kind(args[0]), _range(bounds)) if part)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in args)
    if origin is tuple and args[-1] is Ellipsis:
        return f"list of: {_kind(args[0])}"
    if origin is tuple:
        kinds = list(dict.fromkeys(map(_kind, args)))
        return f"list of {len(args)}, each: {kinds[0]}"
    if _dataclass(hint):
        return "keys"
    return _KINDS[hint]


def _range(bounds: Sequence[BaseMetadata]) -> str:
    said = []
    for bound in bounds:
        if isinstance(bound, Ge) and -_LARGE < bound.ge:  # type: ignore[operator]
            said.append(f"≥ {bound.ge}")
        elif isinstance(bound, Gt):
            said.append(f"> {bound.gt}")
        elif isinstance(bound, Le) and bound.le < _LARGE:  # type: ignore[operator]
            said.append(f"≤ {bound.le}")
        elif isinstance(bound, Lt) and bound.lt < _LARGE:
            said.append(f"< {bound.lt}")
        elif isinstance(bound, Len):
            said.append(f"({bound.min_length} or more)")
    return ", ".join(said).replace("-", "−")


# --------------------------------------------------------------------------- defaults and remarks


def comments(text: str) -> dict[str, str]:
    """Comment behind every key of a YAML file in block style, by dotted key."""
    found, parents = {}, list[tuple[int, str]]()
    for line in text.splitlines():
        match = _KEY.fullmatch(line)
        if match is None:
            continue
        indent = len(match["indent"])
        parents = [(depth, key) for depth, key in parents if depth < indent]
        parents.append((indent, match["key"]))
        if match["comment"]:
            found[".".join(key for _, key in parents)] = match["comment"].strip()
    return found


def _default(key: str, defaults: Mapping[str, Any], remarks: Mapping[str, str]) -> tuple[str, str]:
    """Default and remark of a key."""
    path = key.replace("`", "")
    section, _, rest = path.partition(".")
    if section in WITH_DSA and rest == "dsa":
        return "section [dsa](#dsa)", ""
    value: Any = defaults
    for part in path.split("."):
        value = value[part]
    shown = "" if isinstance(value, Mapping) else f"`{_value(value)}`"
    return shown, remarks.get(path, "")


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == "" else str(value)


def _given(cls: type, key: str) -> str:
    """Default of a row's key, or that it must be there."""
    (field,) = (f for f in dataclasses.fields(cls) if f.name == key.strip("`"))
    if field.default is dataclasses.MISSING:
        return "required"
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{_value(default)}`"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument(
        "--params", type=Path, default=Path("params.yaml"),
        help="file that has the defaults (default: %(default)s)",
    )  # fmt: skip
    options.add_argument(
        "--out", type=Path, default=Path("docs/parameters.md"),
        help="page to write (default: %(default)s)",
    )  # fmt: skip
    args = options.parse_args(argv)

    def command() -> str:
        write_text(args.out, page(args.params))
        return f"wrote {args.out}"

    run_command("parameters_page", command)


if __name__ == "__main__":
    main()
