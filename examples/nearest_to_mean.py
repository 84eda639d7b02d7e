"""A method in a file of its own: the real images that are nearest to the mean of their class.

One row of ``methods`` in an experiment file registers it; sets name it then, and its settings:

    methods:  # in experiments/digits.yaml
      nearest: {title: Nearest to the mean, labels: [hard, soft],
                algorithm: "examples/nearest_to_mean.py:NearestToMean"}
    sets:
      digits/main/ipc10/nearest: {<<: *random, method: nearest, ipc: 10, pixels: 4}
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch.nn.functional import adaptive_avg_pool2d

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first
from teddy.settings.schema import settings
from teddy.synthesis.methods import Made, Method


@settings
class Config:
    """Settings of the method; a row of a set may change them."""

    pixels: Annotated[int, Ge(1)] = 8
    """Side of the squares that images are compared at."""


class NearestToMean(Method):
    """IPC training images of every class, nearest to its mean first."""

    Config = Config
    real = True

    def make(self, ipc: int, work: WorkDir) -> Made:
        """Choose them."""
        leave_to_first()
        train, chosen = self.data.train, []
        for label in range(self.data.num_classes):
            members = torch.nonzero(train.labels == label)[:, 0]
            small = adaptive_avg_pool2d(train.pick(members).float(), self.config.pixels)
            distances = (small - small.mean(0)).flatten(1).norm(dim=1)
            chosen.append(members[distances.argsort(stable=True)[:ipc]])
        order = torch.stack(chosen, dim=1).flatten()  # by index, then class
        return Made(train.pick(order), train.labels[order], records=[])
