"""The order of packages: arrows go down, nothing runs in a circle. Reads source, runs nothing."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "teddy"
MAY_IMPORT = {
    "core": set(),
    "settings": {"core"},
    "data": {"core", "settings"},
    "teachers": {"core", "settings", "data", "objectives"},
    "synthesis.engine": {"core", "settings", "data", "teachers", "objectives"},
    "synthesis": {"core", "settings", "data", "teachers", "synthesis.engine", "objectives"},
    "students": {
        "core", "settings", "data", "teachers", "synthesis", "synthesis.engine", "objectives",
    },
    "sharing": {
        "core", "settings", "data", "teachers", "synthesis", "students", "objectives",
    },
    "report": {"core", "settings"},
    "theory": {
        "core", "settings", "data", "teachers", "synthesis", "synthesis.engine", "report",
        "objectives",
    },
}  # fmt: skip
"""What the module docstrings of the packages say; ``stages`` may import everything."""
MODULES = {
    ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in SOURCE.rglob("*.py")
}


def imports(module: str) -> set[str]:
    """Modules of this package that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("teddy."):
            base = node.module.removeprefix("teddy.")
            inner = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inner or {base}
    return found


def package(module: str) -> str:
    return "synthesis.engine" if module.startswith("synthesis.engine") else module.split(".")[0]


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_packages_import_only_what_their_docstring_allows(name: str) -> None:
    own = [module for module in MODULES if package(module) == name]
    reached = {package(target) for module in own for target in imports(module)} - {name}
    assert reached <= MAY_IMPORT[name]


def test_packages_are_in_an_order() -> None:
    """Whatever a package may import may not import it."""
    done: set[str] = {"objectives"}
    rest = dict(MAY_IMPORT)
    while rest:
        ready = [name for name, below in rest.items() if below <= done]
        assert ready, f"a circle among {sorted(rest)}"
        done |= {name for name in ready if rest.pop(name) is not None}


def test_no_module_imports_itself_by_way_of_others() -> None:
    edges = {module: imports(module) for module in MODULES}
    while edges:
        leaves = [module for module, below in edges.items() if not below & edges.keys()]
        assert leaves, f"a circle among {sorted(edges)}"
        for module in leaves:
            del edges[module]


def test_every_package_is_in_the_order() -> None:
    loose = {"__init__", "__main__", "objectives"}
    packages = {package(module) for module in MODULES} - loose
    assert packages == {*MAY_IMPORT, "stages"}
    assert len({name.split(".")[0] for name in packages}) <= 10


@pytest.mark.parametrize("name", [*MAY_IMPORT, "stages"])
def test_every_package_says_what_it_is(name: str) -> None:
    file = SOURCE / name.replace(".", "/") / "__init__.py"
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert doc and len(doc.splitlines()) >= 3
