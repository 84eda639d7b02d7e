"""Values of every key of the parameter files, names, and environment variables."""

import datetime
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkouts import METHODS, ROOT, listed, tiny_checkout
from damage import VALUES, Damage
from trial import campaign

from teddy.core.environment import check_environment
from teddy.settings.schema import read_yaml
from teddy.stages.resolve import write_inputs

pytestmark = pytest.mark.slow
Path_ = tuple[str | int, ...]
NO_NUMBER: tuple[Any, ...] = (
    None, True, False, "", "x", "0.1 ", [], [1], [[0.5]], {}, {"x": 1}, {1: 2}, b"x", {"a"},
    datetime.date(2024, 1, 1), float("nan"), float("inf"), float("-inf"), 10**400, -(10**400),
)  # fmt: skip
SIGNED = {"mean", "roll"}
FROM_ZERO = {
    "weight_decay", "alpha_bn", "first_bn_weight", "max_epochs", "num_classes", "test_fraction",
    "warmup_epochs", "claimed_top1", "members", "seed", "seeds", "orders", "momentum",
    "betas", "rotate", "crop", "cutout", "brightness", "saturation", "contrast", "pruning_ratio",
    "classifier_weight", "syntheses", "factor",
}  # fmt: skip
"""Keys that may be 0. Any other number must be above it, but for those that have a sign."""
SHARES = {
    "crop_scale", "val_fraction", "test_fraction", "pruning_ratio", "keep", "momentum", "betas",
    "easiest", "milestone",
}  # fmt: skip
"""Keys that must not be above 1."""
WHOLE = {
    "seed", "seeds", "orders", "epochs", "batch_size", "step_epochs", "warmup_epochs", "width",
    "first", "last", "size", "checks_per_epoch", "iterations", "classes_per_batch", "draw",
    "indices_per_batch", "real_batch", "eval_epochs", "steps", "num_classes", "image_size", "ipc",
    "channels", "inner_steps", "real_images", "draws", "repeats", "depth", "real_per_class",
    "law_steps", "measured_inits", "num_steps", "lengths", "segment_steps", "bound_draws",
    "isotropic_draws", "members", "roll", "syntheses", "crops", "views_per_image",
    "candidates", "factor",
}  # fmt: skip


def leaves(tree: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Paths to all values, keys that have keys below them included."""
    if path:
        yield path
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, (*path, key))


def changed(tree: Any, path: Path_, value: Any) -> Any:
    """A copy with another value at a path."""
    tree = deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


def why_wrong(name: str, old: Any, new: Any) -> str:
    """Why a value is impossible for a key of that name, "" if it may be right."""
    if isinstance(old, dict):
        return "" if isinstance(new, dict) else "no keys"
    if isinstance(old, list):
        return "" if isinstance(new, list | set) else "no list"
    if isinstance(old, bool):
        return "" if isinstance(new, bool) else "neither true nor false"
    if isinstance(old, str):  # a date is text in YAML 1.2
        return "" if isinstance(new, str | datetime.date) else "no text"
    if isinstance(new, bool) or not isinstance(new, int | float):
        return "no number"
    if isinstance(new, int) and abs(new) > 10**308:
        return "too large for a number"
    if not abs(new) < float("inf"):
        return "not finite"
    if name in WHOLE and (not isinstance(new, int) or abs(new) > 2**63):
        return "no whole number"
    if name not in SIGNED and (new < 0 or (new == 0 and name not in FROM_ZERO)):
        return "too small"
    return "above 1" if name in SHARES and new > 1 else ""


def test_values(tmp_path: Path) -> None:
    """Each key of params.yaml, params/*.yaml and experiments/*.yaml in turn."""
    roots = {"digits": tiny_checkout(tmp_path / "digits")}
    params = _plain(ROOT / "params.yaml")
    for path in sorted((ROOT / "params").glob("*.yaml")):
        root = roots[path.stem] = tmp_path / path.stem
        rows = f"experiments/{path.name}"
        for name in ("params", "experiments"):
            (root / name).mkdir(parents=True)
        without = {k: v for k, v in params.items() if k not in ("fig1", "fig5")}
        (root / "params.yaml").write_text(json.dumps(without | {"datasets": {}}))
        for copied in (METHODS, rows, f"params/{path.name}"):
            (root / copied).write_text(json.dumps(_plain(ROOT / copied)))
        (root / "dvc.yaml").write_text(listed([METHODS, rows]))
    places: list[tuple[Path, Any, Path_]] = []
    for name, root in roots.items():
        files = [root / f"experiments/{name}.yaml"]
        files += [root / "params.yaml", root / METHODS] if name == "digits" else []
        files += [root / f"params/{name}.yaml"] if name != "digits" else []
        for file in files:
            tree = _plain(file)
            tree.pop("kinds", None)  # which may hold anything
            file.write_text(json.dumps(tree))
            places += [(file, tree, path) for path in leaves(tree)]
    for root in roots.values():
        write_inputs(root, root / "inputs")  # nothing is wrong yet
    Damage("order").random.shuffle(places)

    def attempt(damage: Damage) -> str:
        file, tree, path = places[int(damage.seed.rpartition("/")[2]) % len(places)]
        old = _at(tree, path)
        name = next(str(key) for key in reversed(path) if isinstance(key, str))
        new: Any = damage.random.choice(
            NO_NUMBER if damage.random.random() < 0.3 and type(old) in (int, float) else VALUES
        )
        if isinstance(old, int | float) and damage.random.random() < 0.5:
            far = damage.random.choice((-1, 1)) * 10.0 ** damage.random.randint(-320, 308)
            near = (-old, old + 0.5, old + 1, old - 1, 2 * old, old / 2, 0, 1, 1.0000001, 10**9)
            new = damage.random.choice((far, *near))
        wrong = why_wrong(name, old, new)
        damaged = changed(tree, path, new)
        if isinstance(old, dict) and damage.random.random() < 0.5 and _takes_keys(path):
            wrong, damaged = "unknown key", changed(tree, (*path, "zz"), new)
        root = next(root for root in roots.values() if file.is_relative_to(root))
        text = yaml.safe_dump(damaged, sort_keys=False, allow_unicode=True)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            write_inputs(root, root / "inputs")
        finally:
            file.write_text(json.dumps(tree))
        place = ".".join(map(str, path))
        return f"{file.name}: {place}: {new!r}, {wrong}" if wrong else ""

    campaign("values", 0.18, attempt, tmp_path)


def _plain(path: Path) -> Any:
    return json.loads(json.dumps(read_yaml(path)))


def _at(tree: Any, path: Path_) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _takes_keys(path: Path_) -> bool:
    """Whether what stands there has keys of its own, not names of rows or datasets."""
    names = path[-1] in ("datasets", "recipes")  # which may be new
    return len(path) > 1 if path[0] in ROW_SECTIONS else not names


ROW_SECTIONS = {
    "methods", "prepared", "bases", "pools", "experts", "sets", "evaluations", "step_teachers",
    "learners",
}  # fmt: skip

NAMES = (
    "--help", "-x", "1", "~", "true", "", " ", "a b", "a/", "/a", "a//b", "../x", ".", "..", "é",
    "a\nb", "a,b", "$a$", "x" * 400, "a" * 150, "\u2028", "digits", "digits/base", "CON", "a.b",
    "a\\b", "${key}", "%s", "\x07", "🧸", "none", "0", "00", "digits/main/ipc3", "*", "a:b", "|",
)  # fmt: skip


def test_names(tmp_path: Path) -> None:
    """Names of rows, and titles, which become file names, options, cells and text."""
    root = tiny_checkout(tmp_path)
    file, methods = root / "experiments/digits.yaml", root / METHODS
    rows, titles = _plain(file), _plain(methods)
    valid = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)*")

    def attempt(damage: Damage) -> str:
        name = damage.random.choice(NAMES)
        if damage.random.random() < 0.4:
            name = "".join(damage.random.choices("aZ0_-/. ,$\n\té\\\0\u202e", k=6))
        if damage.random.random() < 0.2:
            method = damage.random.choice(list(titles["methods"]))
            made = changed(titles, ("methods", method, "title"), name)
            path, tree = methods, titles
            wrong = "" if name.isprintable() and name.strip() == name != "" else "no title"
        else:
            section = damage.random.choice(sorted(ROW_SECTIONS - {"methods"}))
            old = damage.random.choice(list(rows[section]))
            text = json.dumps(rows).replace(json.dumps(old), json.dumps(name))
            made, path, tree = json.loads(text), file, rows  # all that name the row follow
            right = valid.fullmatch(name) and len(name) <= 150
            wrong = "" if right else "no name of a row"
        path.write_text(json.dumps(made))
        try:
            write_inputs(root, root / "inputs")
        finally:
            path.write_text(json.dumps(tree))
        return f"{name!r}: {wrong}" if wrong else ""

    campaign("names", 0.05, attempt, tmp_path)


VARIABLES = {
    "TEDDY_DEVICE": r"(cpu|cuda(:\d{1,4})?)?",
    "TEDDY_WORKERS": r"\d{1,4}",
    "TEDDY_THREADS": r"\d{1,4}",
    "TEDDY_LANES": r"\d{1,4}",
    "TEDDY_GRAPHS": r"[01]",
    "TEDDY_FUSED": r"[01]",
    "TEDDY_SAVE_SECONDS": r"\s*[+-]?[\d_]*\.?[\d_]*(e[+-]?\d+)?\s*",
}
"""Variables, and what they can be at most."""
TEXTS = (
    "", "0", "1", "2", "-1", "+1", "01", "1.0", "1e3", "1_000", "²", "١", "nan", "inf", "-inf", "x",
    " 1", "1 ", "\n", "1\n", "cpu", "CPU", "cpu:0", "cpu:x", "cpu:-1", "cuda", "cuda:0", "cuda:",
    "cuda:²", "cuda:99999", "mps", "meta", "true", "100000", "9" * 5000, "1" * 400, "0x10", "é",
    "1e999", "-0", "30", "0.5", "1e-320", "🧸", "\x1b[0m", "1024", "1025",
)  # fmt: skip


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that say how a command runs."""

    def attempt(damage: Damage) -> str:
        variable, text = damage.random.choice(list(VARIABLES)), damage.random.choice(TEXTS)
        if damage.random.random() < 0.3:
            text = "".join(damage.random.choices("0123456789.-+e_ :cpudax", k=3))
        for other in VARIABLES:
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(variable, text)
        check_environment()
        right = re.fullmatch(VARIABLES[variable], text, re.ASCII) is not None
        if variable == "TEDDY_SAVE_SECONDS":
            right = right and 0 <= float(text) < float("inf")
        elif variable in ("TEDDY_WORKERS", "TEDDY_THREADS", "TEDDY_LANES"):
            right = right and 1 <= int(text) <= 1024
        return "" if right else f"${variable} {text!r}"

    campaign("environment", 0.04, attempt, "$TEDDY_")
