"""Random real images, the baseline that stands beside every method."""

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first
from teddy.data.datasets import select_random
from teddy.settings.configs import NoConfig
from teddy.synthesis.methods import Made, Method


class RandomReal(Method):
    """IPC random training images of every class, the same for any larger IPC."""

    Config = NoConfig
    real = True

    def make(self, ipc: int, work: WorkDir) -> Made:
        """Choose them."""
        leave_to_first()
        train, names = self.data.train, self.data.class_names
        chosen = select_random(
            train.labels, names, range(ipc), self.seed, self.given.small_classes
        ).flatten()
        return Made(train.pick(chosen), train.labels[chosen], [])
