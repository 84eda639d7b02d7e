"""What tables of scores share: rows by method, cells with a mean and spread, and their notes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from teddy.core.errors import TeddyError
from teddy.core.tables import Table, percent
from teddy.report.results import PaperResult, Score, grouped
from teddy.settings.stages import Catalogue

Maker = Callable[[Sequence[Score], Sequence[PaperResult], Catalogue], list[Table]]
"""What makes the tables of a target from its scores and the paper's numbers."""


def by_method(scores: Sequence[Score], catalogue: Catalogue) -> dict[str, list[Score]]:
    """Scores of every method, in the order of ``params.yaml``."""
    groups = grouped(scores, "method")
    return {method: groups[method] for method in catalogue.methods if method in groups}


def placed(scores: Iterable[Score], *keys: str) -> dict[Any, Score]:
    """Scores by their place in a table.

    Raises:
        TeddyError: two would share one.
    """
    found: dict[Any, Score] = {}
    for place, own in grouped(scores, *keys).items():
        if len(own) > 1:
            raise TeddyError(
                f"{own[0].name} and {own[1].name} would share a place in the table ({keys} "
                f"{place}); list only one of them under targets"
            )
        found[place] = own[0]
    return found


def ipcs_and_labels(scores: Sequence[Score]) -> tuple[list[int], list[str]]:
    """Images per class and kinds of labels that there are scores of, sorted."""
    return sorted({score.ipc for score in scores}), sorted({score.labels for score in scores})


def top1_cell(score: Score | None) -> str | None:
    """Last-epoch accuracy, with its spread if there are several students."""
    if score is None:
        return None
    return percent(score.top1_mean, score.top1_std if score.n > 1 else None)


def f1_cell(score: Score | None) -> str | None:
    """Macro-averaged F1, as :func:`top1_cell`."""
    if score is None:
        return None
    return percent(score.f1_mean, score.f1_std if score.n > 1 else None)


def students_note(scores: Sequence[Score]) -> str:
    """What the numbers of a table are means of."""
    split, n = split_title(scores[0].split), distinct(scores, "n")
    return (
        f"Mean ± sample standard deviation over n = {n} student{'s' * (n != '1')} (seeds) "
        "trained on one synthesis; the spread between syntheses is not in it. Accuracy after the "
        f"last of {distinct(scores, 'epochs')} epochs on the {split} split "
        f"({distinct(scores, 'images_held_out')} images held out). Hard and soft are the labels "
        "that students learn from."
    )


def distinct(scores: Sequence[Score], attribute: str) -> str:
    """Values of an attribute, each once: ``300``, or ``300 or 1,000``."""
    return " or ".join(f"{value:,}" for value in sorted({getattr(s, attribute) for s in scores}))


def split_title(name: str) -> str:
    """A split as it is written: ``validation`` for ``val``."""
    return {"val": "validation"}.get(name, name)
