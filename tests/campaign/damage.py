"""Damage to what people hand over, drawn from a generator of random numbers."""

import copy
import datetime
import json
import random
from typing import Any

import yaml

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 10**5, 10**9, 10**18, -(10**19), 10**99, 10**400, 0.0,
    0.5, -0.5, 1.5, 1e-300, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), "", "x", " ",
    "1", "true", "digits", "digits/base", "a/../b", "../x", "/dev/zero", "examples", "x.py:Name",
    "params.yaml", "\u00e9", "\U0001f9f8", "${item.name}", "x" * 500, "line\nline", "\x07", [],
    [[]], [None], [1], [0.5, 0.5], [1, 2, 3], ["x"], ["hard"], ["soft", "soft"], [{}], {},
    {"x": 1}, {"x": {"y": {"z": []}}}, {1: 2, "x": 3, None: 4, 1.5: 5}, {"": ""}, b"bytes", b"",
    datetime.date(2024, 1, 1), {"a", "b"}, [1] * 1000,
)  # fmt: skip
KEYS: tuple[Any, ...] = ("x", "", 1, None, True, 1.5, "seed", "name", "epoch", "on", "a.b", "a/b")
TEXTS = (
    "\0", "\t", "{", "}", "[", ": ", "- ", "*x", "&x ", "!!bool x", "!!timestamp x", "!!set {a}",
    "!!binary ?", "!!float ''", "!!int x", "? [a]\n", "<<: 1\n", "<<: [1]\n", "\n---\n", "'", '"',
    "#", "\ufeff", "9" * 5000, "[" * 3000, "\u2028", "%YAML 9.9\n", "|", ">", "0x", "1e999", "\r",
)  # fmt: skip


class Damage:
    """Draws damage.

    Args:
        seed: of the generator, equal damage for equal seeds.
    """

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.random = random.Random(seed)

    def tree(self, tree: Any, times: int = 3) -> Any:
        """Keys and lists, some entries of which are replaced, removed, renamed or added."""
        tree = copy.deepcopy(tree)
        for _ in range(self.random.randint(1, times)):
            where = self.random.choice(list(_sections(tree)) or [tree])
            if not isinstance(where, dict | list):
                return self._value(tree)
            self._change(where, tree)
        return tree

    def _change(self, where: Any, tree: Any) -> None:
        keys = list(where) if isinstance(where, dict) else list(range(len(where)))
        how = self.random.choice(("replace", "replace", "replace", "remove", "rename", "add"))
        if not keys or how == "add":
            if isinstance(where, dict):
                where[self.random.choice(KEYS)] = self._value(tree)
            else:
                where.insert(self.random.randint(0, len(where)), self._value(tree))
            return
        key = self.random.choice(keys)
        if how == "remove":
            del where[key]
        elif how == "rename" and isinstance(where, dict):
            new = str(key)[1:] if self.random.random() < 0.5 else self.random.choice(KEYS)
            where[new] = where.pop(key)
        else:
            where[key] = self._value(tree)

    def _value(self, tree: Any) -> Any:
        if self.random.random() < 0.25:  # what stands elsewhere
            return copy.deepcopy(self.random.choice(list(_sections(tree)) or [None]))
        if self.random.random() < 0.25:
            return self.random.choice((-1, 1)) * 10 ** self.random.randint(0, 30)
        return copy.deepcopy(self.random.choice(VALUES))

    def text(self, text: str) -> str:
        """Text with some characters removed, inserted or doubled."""
        for _ in range(self.random.randint(1, 3)):
            start = self.random.randint(0, len(text))
            end = min(len(text), start + self.random.choice((0, 1, 1, 5, 80)))
            how = self.random.choice(("insert", "remove", "double", "cut"))
            middle = {
                "insert": self.random.choice(TEXTS), "remove": "", "double": text[start:end] * 2,
                "cut": "",
            }[how]  # fmt: skip
            cut = how == "cut" and self.random.random() < 0.3
            text = text[:start] + middle + ("" if cut else text[end:])
        return text

    def content(self, content: bytes) -> bytes:
        """Bytes that are cut off, flipped, inserted or replaced, at the front as a rule."""
        made = bytearray(content)
        for _ in range(self.random.randint(1, 3)):
            near = self.random.random() < 0.7
            at = self.random.randrange(max(1, min(len(made), 300) if near else len(made)))
            how = self.random.choice(("flip", "flip", "cut", "insert", "zero", "digit"))
            if how == "cut":
                del made[at:]
            elif how == "insert":
                made[at:at] = self.random.randbytes(self.random.randint(1, 8))
            elif how == "zero":
                made[at : at + 8] = bytes(len(made[at : at + 8]))
            elif made:
                at = min(at, len(made) - 1)
                made[at] = ord(self.random.choice("0123456789")) if how == "digit" else (
                    made[at] ^ (1 << self.random.randrange(8))
                )  # fmt: skip
        return bytes(made)

    def as_yaml(self, tree: Any) -> str:
        """A damaged tree, or its damaged text, as a YAML file."""
        if self.random.random() < 0.3:
            return self.text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        return yaml.safe_dump(self.tree(tree), sort_keys=False, allow_unicode=True)

    def as_json(self, tree: Any) -> str:
        """The same as a JSON file."""
        if self.random.random() < 0.3:
            return self.text(json.dumps(tree))
        return json.dumps(_only_json(self.tree(tree)))


def _sections(tree: Any) -> Any:
    """All lists and keys of a tree, itself included."""
    if isinstance(tree, dict | list):
        yield tree
        for value in list(tree.values()) if isinstance(tree, dict) else list(tree):
            yield from _sections(value)


def _only_json(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key): _only_json(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_only_json(value) for value in tree]
    return tree if isinstance(tree, str | int | float | bool | None) else str(tree)
