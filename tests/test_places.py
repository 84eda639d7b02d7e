"""Places in tables: what the parameter files are refused for is what a table could not show."""

from typing import Any

import pytest
from test_report import catalogue, printed, result

from teddy.core.errors import TeddyError
from teddy.report import targets
from teddy.settings.places import PLACES, SOFT_ALONE

OTHER: dict[str, Any] = {
    "arch": "resnet18", "data": "digits-keep60", "method": "sre2l", "ipc": 50, "labels": "hard",
    "stages": (1, 4), "teachers_drawn": 1, "members": 2, "pool_size": 2, "init": "real",
    "precision": "bfloat16", "recipe": "sre2l",
}  # fmt: skip


def both_shown(target: str, **changes: Any) -> bool:
    """Whether a target shows two results, of which one differs."""
    same: dict[str, Any] = {
        "method": "teddy-prior", "ipc": 10, "init": "noise", "keep": (1.0, 1.0), "recipe": "rd3"
    }  # fmt: skip
    results = [result(**same, top1=40.0), result(**{**same, **changes}, name="b", top1=60.0)]
    try:
        made = targets.target_tables(target, results, printed(), catalogue())
    except TeddyError as error:
        assert "would share a place" in str(error)
        return False
    text = "\n".join(table.markdown() for table in made)
    return "40.0" in text and "60.0" in text


@pytest.mark.parametrize("target", PLACES)
def test_results_share_a_place_unless_a_part_of_it_differs(target: str) -> None:
    assert not both_shown(target)
    told_apart = {key for key, value in OTHER.items() if both_shown(target, **{key: value})}
    assert told_apart == set(PLACES[target])


@pytest.mark.parametrize("target", targets.MAKERS.keys() - PLACES.keys())
def test_other_targets_show_every_row(target: str) -> None:
    results = [result("teddy-prior", 10, 40.0), result("teddy-prior", 10, 60.0, name="b")]
    assert targets.target_tables(target, results, printed(), catalogue())


@pytest.mark.parametrize("target", SOFT_ALONE)
def test_some_targets_show_soft_labels_alone(target: str) -> None:
    results = [result("sre2l", 10, top1, labels=kind, keep=(1.0, 1.0))
               for top1, kind in ((40.0, "soft"), (60.0, "hard"))]  # fmt: skip
    (made,) = targets.target_tables(target, results, printed(), catalogue())
    assert "40.0" in made.markdown()
    assert "60.0" not in made.markdown()
