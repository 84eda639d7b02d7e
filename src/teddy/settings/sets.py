"""What the file of a distilled set says of itself, beside its images and labels."""

from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len

from teddy.settings.configs import Count, Positive, Whole
from teddy.settings.schema import check, config_keys, from_json, settings

KIND = "teddy.distilled.v1"
AGAIN = "run the synthesize stage again"
"""What to do where a set is not as it should be."""


def synthesis_file(folder: Path, number: int) -> Path:
    """Where a synthesis of a set lies; 0 is the first, and the one that is shown."""
    return folder / f"{number}.safetensors"


@settings
class SetRecord:
    """The JSON record of a distilled set."""

    class_names: Annotated[tuple[str, ...], Len(1)]
    """In the order of labels."""
    mean: Annotated[tuple[float, ...], Len(1)]
    """Per-channel normalisation of pixels in [0, 1]."""
    std: tuple[Positive, ...]
    """As ``mean``."""
    ipc: Whole
    """Images per class."""
    provenance: dict[str, Any]
    """How the set was made."""
    partition: Count = 1
    """Smaller images along a side of each image."""

    def __post_init__(self) -> None:
        check(
            len(self.mean) == len(self.std),
            f"mean and std must have as many entries, got {list(self.mean)} and {list(self.std)}",
        )


def set_record(raw: dict[str, Any], path: Path) -> SetRecord:
    """The record of a set; keys that are not known are left out.

    Raises:
        TeddyError: a key is missing, or a value is not of its type or range.
    """
    known = config_keys(SetRecord)
    own = {key: value for key, value in raw.items() if key in known}
    return from_json(SetRecord, own, f"{path} (is it a distilled set? if so, {AGAIN})")
