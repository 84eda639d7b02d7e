"""YAML: our reader against DVC's, which reads the same files for rows and for ``exp run -S``."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teddy.settings.schema import read_yaml

SPELLINGS = """
1e-3 1E-3 1.0e-3 1e-03 0.001 .001 0.1e-2 1e3 1E+3 +1e3 -1e-3 1. 1.e3 -.5 +.5 1_000 1_0.5 010 0o10
0x1F 0xff 0o8 0b 09 -0 +5 00 0.0 -0.0 0.e0 .5e-3 12e03 1e1000 99999999999999999999 1:30 1:30:00
~ null Null NULL nUll true True TRUE tRUE false False yes no on off Yes y n .inf -.inf +.inf .Inf
.INF .nan .NaN .NAN inf nan '1' "1e-3" '' 1e 1e- e3 . _1 1__0 0x 0o 1,000 0X1F 0O10 .e3 + 1_e3 1.5_0
1._5 1e5.0 1.2.3 a:b [] {} [1e-3,off]
""".split()
DIFFERENT = {
    "0b11": ("0b11", 3), "-0x1F": ("-0x1F", -31), ".5_0": (".5_0", 0.5), ".5e3": (500.0, ".5e3"),
}  # fmt: skip
"""Spellings that DVC takes for numbers although they are none in YAML 1.2, as it makes dates of
2024-01-01, or the other way round. Text is refused here where a number is meant."""


def as_dvc(path: Path) -> Any:
    from dvc.utils.serialize import load_yaml  # type: ignore[import-untyped]

    return load_yaml(str(path))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_values_are_read_as_dvc_reads_them(tmp_path: Path, spelling: str) -> None:
    path = tmp_path / "some.yaml"
    in_flow = spelling if ":" not in spelling else "without"
    path.write_text(f"key: {spelling}\nlist: [{in_flow}]\n")
    ours, dvc = read_yaml(path), as_dvc(path)
    assert repr(ours) == repr(dvc)
    assert [type(ours[key]) for key in ours] == [type(dvc[key]) for key in dvc]


def test_what_dvc_reads_otherwise_is_known(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    for spelling, values in DIFFERENT.items():
        path.write_text(f"key: {spelling}")
        assert (read_yaml(path)["key"], as_dvc(path)["key"]) == values
    path.write_text("key: 2024-01-01")
    assert read_yaml(path)["key"] == str(as_dvc(path)["key"]) == "2024-01-01"
    assert not isinstance(as_dvc(path)["key"], str)


STYLES = """
kinds:
  one: &one {lr: 1e-3, views: &views {hflip: no, roll: [0, 1]}}
  two: &two
    lr: 2
    # a comment
    draw: 5
rows:
  merged: {<<: *one, draw: 4}
  both: {<<: [*two, *one], views: *views}
  over: {draw: 1, <<: *two}
  block:
    <<: *one
    lr: 7
  "quoted": 'it''s'
  folded: >-
    two
    lines
  literal: |
    two
    lines
list:
- a
- {b: c}
-   - 1
    - 2
empty:
flow: {a: [1, {b: 2},
  3], "c d": e}
"""


def test_anchors_merges_and_styles_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(STYLES)
    ours = read_yaml(path)
    assert ours == as_dvc(path)
    assert ours["rows"]["both"] == {"lr": 2, "draw": 5, "views": {"hflip": "no", "roll": [0, 1]}}
    assert ours["rows"]["over"] == {"draw": 1, "lr": 2}


MERGES = st.recursive(
    st.dictionaries(st.sampled_from(["k", "lr", "draw", "1"]), st.integers(0, 9), max_size=3),
    lambda deeper: st.tuples(st.lists(deeper, min_size=1, max_size=3), st.booleans(), deeper),
    max_leaves=6,
)
"""Mappings, and merges: of what (one or a list), before or after what is a mapping's own."""


def with_anchors(merge: Any, lines: list[str]) -> str:
    """Name of a mapping's anchor; what it needs stands in lines before it."""
    if isinstance(merge, dict):
        body = [f'"{key}": {value}' for key, value in merge.items()]
    else:
        parts, before, own = merge
        names = [f"*{with_anchors(part, lines)}" for part in parts]
        merged = "<<: " + (names[0] if len(names) == 1 else f"[{', '.join(names)}]")
        own = own if isinstance(own, dict) else {}
        body = [f'"{key}": {value}' for key, value in own.items()]
        body = [merged, *body] if before else [*body, merged]
    name = f"m{len(lines)}"
    lines.append(f"{name}: &{name} {{{', '.join(body)}}}")
    return name


@given(MERGES)
def test_merges_are_read_as_dvc_reads_them(merge: Any) -> None:
    lines: list[str] = []
    with_anchors(merge, lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some.yaml"
        path.write_text("\n".join(lines))
        assert read_yaml(path) == as_dvc(path)
