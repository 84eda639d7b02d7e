"""FADRM: SRe2L from crops of real images, to which the images return between phases.

Cui, Bi, Luo, Zhao, Liu & Shen, "FADRM: fast and accurate data residual matching for dataset
distillation" (NeurIPS 2025). The loss is SRe2L's, and one cosine of the learning rate spans all
iterations. Three things are new beside SRe2L (:mod:`teddy.synthesis.teddy`).

- *Start*: of every image a crop of a real one that teachers find easy. The authors have crops of
  medium difficulty ready for download; here the easiest of some random ones is taken.
- *Phases of several resolutions*: smaller images cost less. They are resized from phase to phase,
  and every phase has a fresh optimiser.
- *Data residual*: between two phases the crops are blended in again, x ← α·x + (1 − α)·crop.

FADRM+ has one of several teachers at every iteration: ``draw: 1`` and ``draw_per: iteration`` draw
it at random, where the authors take turns.

Dimensions: ``N`` images of a batch, ``C H W`` image shape, ``h`` side of a phase.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from teddy.core.errors import TeddyError
from teddy.data.augmentation import draw_views
from teddy.settings.baselines import ResidualMatchingConfig
from teddy.synthesis.coresets import Judge
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.engine.state import State
from teddy.synthesis.teddy import Augmentation, Teddy


def resized(images: Tensor, side: int) -> Tensor:
    """Images ``(N, C, H, W)`` as ``(N, C, side, side)``, bilinearly and without antialiasing."""
    if images.shape[2:] == (side, side):
        return images
    return functional.interpolate(images, size=(side, side), mode="bilinear")


def _corner_seen(side: int, view: Augmentation, images: Tensor) -> Tensor:
    return view(images[:, :, :side, :side])


class ResidualMatching(Teddy):
    """Optimises images in phases; see :class:`teddy.synthesis.methods.Method`.

    The smaller images of a phase are the upper left corner ``[:, :, :h, :h]`` of the whole ones;
    the rest has no gradient meanwhile, and is written over when they grow.
    """

    Config = ResidualMatchingConfig
    config: ResidualMatchingConfig

    def initial_images(self, batch: Batch) -> Tensor:
        """The easiest crops of the images that the random baseline selects, each by its own class
        and index; normalised float32 ``(N, C, H, W)``.
        """
        data = self.data
        real, labels = data.normalisation.to_uint8(super().initial_images(batch)), batch.labels()
        indices = torch.tensor(batch.indices).repeat_interleave(len(batch.classes))
        counters = (indices * data.num_classes + labels).to(self.device)
        crops = (
            draw_views(
                self.config.crop_views, *real.shape[2:], self.seed, "residual crop", number,
                indices=counters,
            )
            for number in range(self.config.crops)
        )  # fmt: skip
        judge = Judge(data, self.pool, self.device)
        return data.normalisation.apply(judge.easiest_crops(real, labels, crops))

    def start(self, batch: Batch, images: Tensor) -> State:
        """As Teddy's, with the crops that images return to; images have the first phase's size."""
        state = super().start(batch, images)
        state.more["crops"] = images.detach().clone()
        side = self._side(0)
        with torch.no_grad():
            images[:, :, :side, :side] = resized(state.more["crops"], side)
        return state

    def after(self, done: int, state: State) -> None:
        """Between two phases: resize, blend with the crops, begin the optimiser anew."""
        starts = [phase.start for phase in self.config.phases]
        if done not in starts:
            return
        phase, alpha = starts.index(done), self.config.alpha
        before, side = self._side(phase - 1), self._side(phase)
        with torch.no_grad():
            own = resized(state.images[:, :, :before, :before], side)
            blended = alpha * own + (1 - alpha) * resized(state.more["crops"], side)
            state.whole = False
            state.images[:, :, :side, :side] = blended
            for value in state.optimizer.state():
                value.zero_()
            state.whole = True

    def load(self, batches: Sequence[Batch]) -> None:
        """As Teddy's; teachers are asked once whether they see images of every size.

        Raises:
            TeddyError: a teacher does not.
        """
        super().load(batches)
        channels = self.data.image_shape[0]
        for member, teacher in self._teachers.items():
            for side in sorted({self._side(phase) for phase in range(len(self.config.sizes))}):
                try:
                    teacher.logits(torch.zeros(1, channels, side, side, device=self.device))
                except RuntimeError as error:
                    reason = (str(error).splitlines() or [""])[0]
                    raise TeddyError(
                        f"sizes must be those of images that teachers can see, but "
                        f"{self.pool.entries[member]['file']} cannot see {side} × {side} pixels "
                        f"({reason}); got {list(self.config.sizes)}"
                    ) from None

    def _views(self, batch: Batch, start: int) -> Iterator[Augmentation]:
        """Views of the images of every iteration's phase, ``(N, C, h, h)``."""
        for phase, iterations in enumerate(self.config.phases):
            side, rest = self._side(phase), range(max(start, iterations.start), iterations.stop)
            for view in self._views_of(batch, rest, side, side):
                yield partial(_corner_seen, side, view)

    def _side(self, phase: int) -> int:
        """Pixels."""
        return self.config.sizes[phase] or self.data.image_shape[1]
