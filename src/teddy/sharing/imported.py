"""A method whose images are those of a file that ``teddy import`` wrote.

It prints the two rows that declare one:

    methods:  # in experiments/digits.yaml
      imported: {title: Imported, labels: [hard, fixed, soft],
                 algorithm: "src/teddy/sharing/imported.py:Imported"}
    sets:
      digits/main/ipc10/imported: {<<: *random, method: imported, ipc: 10,
                                   file: "data/imported/peer.safetensors", sha256: "…"}
"""

import re
from pathlib import Path

import torch

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first
from teddy.core.errors import TeddyError
from teddy.settings.schema import check, settings, shown
from teddy.sharing.bundles import sha256
from teddy.sharing.formats.found import by_index, index_in_class
from teddy.students.sets import check_of_dataset, load
from teddy.synthesis.methods import Made, Method


@settings
class Config:
    """Settings of the method, which every set says."""

    file: str
    """Of the images, relative to the root of the checkout."""
    sha256: str
    """Of that file, as ``sha256sum`` prints it: DVC does not watch it, and another is refused."""

    def __post_init__(self) -> None:
        check(self.file != "", "file must be the path of a set; got ''")
        check(
            re.fullmatch(r"[0-9a-f]{64}", self.sha256) is not None,
            f"sha256 must be 64 hexadecimal digits; got {shown(self.sha256)}",
        )


class Imported(Method):
    """The first IPC images of every class of a file, the same in every synthesis."""

    Config = Config

    def make(self, ipc: int, work: WorkDir) -> Made:
        """Read them.

        Raises:
            TeddyError: another file, other classes or size, or too few images of a class.
        """
        leave_to_first()
        path, data = Path(self.config.file), self.data
        found = sha256(path)
        if found != self.config.sha256:
            raise TeddyError(
                f"{path}: SHA-256 must be {self.config.sha256}, as the set's row says; got {found}"
            )
        distilled = load(path)
        check_of_dataset(path, distilled, data)
        for label, (own, real) in enumerate(
            zip(distilled.class_names, data.class_names, strict=True)
        ):
            if own != real:
                raise TeddyError(
                    f"{path}: class {label} is {shown(own)}, but {shown(real)} in the prepared "
                    "dataset; import the set for this dataset"
                )
        self._refuse_too_few(path, distilled.labels, ipc)
        chosen = torch.nonzero(index_in_class(distilled.labels) < ipc)[:, 0]
        chosen = chosen[by_index(distilled.labels[chosen])]
        return Made(distilled.images[chosen], distilled.labels[chosen], records=[])

    def _refuse_too_few(self, path: Path, labels: torch.Tensor, ipc: int) -> None:
        names = self.data.class_names
        needed = torch.full((len(names),), ipc)
        if self.given.small_classes == "fewer":  # as real images have them
            needed = self.data.train.labels.cpu().bincount(minlength=len(names)).clamp(max=ipc)
        counts = labels.bincount(minlength=len(names))
        for label, (count, least) in enumerate(zip(counts.tolist(), needed.tolist(), strict=True)):
            if count < least:
                raise TeddyError(
                    f"{path}: expected {least} images of class {shown(names[label])}, got {count}; "
                    "choose a smaller ipc"
                )
