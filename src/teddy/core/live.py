"""Numbers and images of a run while it goes on, for TensorBoard, if ``$TEDDY_LIVE`` names a folder.

Nothing here changes a result, so nothing is in ``params.yaml``. A run is named after its resume
point: the stage, the row with a fingerprint of all that its result depends on, and the item. So
runs side by side write to folders of their own, and a killed one goes on in its own.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from teddy.core import distributed
from teddy.core.environment import live_folder
from teddy.core.runtime import log

IMAGES_SHOWN = 50
"""Images of a grid, at most."""
_LARGEST = 64
"""Pixels along a side of an image in a grid, at most."""


class Live:
    """What a run shows of itself: of the first process alone, and nothing if nobody asked.

    Args:
        resume: file of the run's unfinished state, after which it is named.
        done: steps that are done; what was shown of later ones, before the run was killed, is
            dropped.
    """

    def __init__(self, resume: Path, done: int) -> None:
        self._writer: Any = None
        folder = live_folder()
        if folder and distributed.rank() == 0:
            name = resume.name.removesuffix(".safetensors").removesuffix(".resume")
            own = Path(folder, *resume.absolute().parent.parts[-2:], name)
            self._attempt(lambda: self._open(own, done))

    def __bool__(self) -> bool:
        """Whether anybody looks."""
        return self._writer is not None

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """A point of each curve, after so many steps."""
        if self:
            self._attempt(lambda: self._add_numbers(step, values))

    def images(self, step: int, images: Tensor, columns: int) -> None:
        """A grid of uint8 images ``(N, C, H, W)``; of large ones it has every n-th pixel."""
        if self:
            self._attempt(lambda: self._add_images(step, images, columns))

    def close(self) -> None:
        """After the last step."""
        if self:
            self._attempt(self._writer.close)

    def _attempt(self, write: Callable[[], None]) -> None:
        """A full disk ends what is shown, not the run."""
        try:
            write()
        except OSError as error:
            self._writer = None
            log(f"TensorBoard: nothing more is written, by $TEDDY_LIVE: {error}")

    def _open(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes half a second, and is an extra

        self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def _add_numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def _add_images(self, step: int, images: Tensor, columns: int) -> None:
        from torchvision.utils import make_grid

        nth = -(-max(images.shape[2:]) // _LARGEST)
        shown = images if images.shape[1] == 3 else images[:, :1]
        grid = make_grid(shown[:IMAGES_SHOWN, :, ::nth, ::nth], columns, padding=1, pad_value=255)
        self._writer.add_image("images", grid, step)
        self._writer.flush()
