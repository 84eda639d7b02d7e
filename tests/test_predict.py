"""Costs that are predicted from settings; a digit's network is the largest thing that is built."""

from pathlib import Path
from typing import Any

import pytest

from teddy.core.errors import TeddyError
from teddy.settings.declared import Declared
from teddy.teachers.networks import build
from teddy.teachers.pruning import count_macs
from tools.predict import Prediction, main, table

ROOT = Path(__file__).parents[1]
DECLARED = Declared(ROOT)
TRAIN, TEST = 1000, 400


def part(found: list[Any], stage: str, name: str) -> Any:
    """One of the predicted parts."""
    (own,) = [p for p in found if (p.stage, p.name) == (stage, name)]
    return own


def test_parts_are_what_their_settings_multiply_to() -> None:
    found = Prediction(DECLARED, TRAIN, TEST).of_target("fig3a", "digits")
    base = DECLARED.train_teacher("digits/base")
    macs = count_macs(build(base.network, (1, 8, 8), 10, seed=0), (1, 8, 8))
    assert part(found, "train_teacher", "digits/base").macs == base.epochs * TRAIN * 3 * macs
    name, config = "digits/fig3a/draw2", DECLARED.algorithm_config("digits/fig3a/draw2")
    syntheses, images = DECLARED.syntheses(name), 100
    made = part(found, "synthesize", name)
    assert made.macs == syntheses * images * config.iterations * 2 * 2 * macs  # two teachers
    assert made.bytes == syntheses * images * 64
    relabel, members = DECLARED.relabel(name), DECLARED.pool_size("digits/prior")
    assert part(found, "relabel", name).macs == syntheses * images * relabel.epochs * members * macs
    evaluate = DECLARED.evaluate(name)
    student = count_macs(build(evaluate.network, (1, 8, 8), 10, seed=0), (1, 8, 8))
    looks = relabel.epochs / evaluate.eval_epochs
    a_student = (images * relabel.epochs * 3 + TEST * looks) * student
    kinds = len(DECLARED.evaluation(name).labels)
    assert part(found, "evaluate", name).macs == syntheses * len(evaluate.seeds) * kinds * a_student


def test_a_row_that_two_others_need_is_counted_once() -> None:
    found = Prediction(DECLARED, TRAIN, TEST).of_target("table1", "digits")
    assert len({(p.stage, p.name) for p in found}) == len(found)


def test_hours_are_those_of_the_operations_at_a_rate() -> None:
    found = Prediction(DECLARED, TRAIN, TEST).of_target("fig3b", "digits")
    macs = sum(p.macs for p in found)
    everything = table("fig3b", found, 0.5).rows[-1]
    assert everything[2] == pytest.approx(2 * macs / 0.5e12 / 3600)


def test_methods_of_unknown_cost_are_refused_by_name() -> None:
    with pytest.raises(TeddyError, match=r"sets\.digits/table5/mtt-ipc1: what mtt costs"):
        Prediction(DECLARED, TRAIN, TEST).of_target("table5", "digits")


def test_target_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fig3a@digit", "--train", "1", "--test", "1"])
    assert "did you mean 'fig3a@digits'?" in capsys.readouterr().err
