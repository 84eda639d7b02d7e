"""The loops of peers, written anew from their description: what the benchmarks compare with.

:class:`RecoverLoop` is the leanest synthesis loop of the field, SRe2L's for Tiny-ImageNet: float32,
NCHW, one model, a hook on every BatchNorm layer that copies its input to take the variance, one
crop, flip and roll for the whole batch, ``torch.optim.Adam``, clipping channel by channel.
:class:`ResidualLoop` is FADRM's, which adds phases to it.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from teddy.settings.baselines import ResidualMatchingConfig
from teddy.settings.configs import SynthesizeConfig


class FeatureHook:
    """Distance of a BatchNorm layer's input statistics from its running ones, as peers take it."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self.distance = torch.zeros(())
        layer.register_forward_hook(self._look)

    def _look(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        var = x.permute(1, 0, 2, 3).contiguous().reshape(x.shape[1], -1).var(1, unbiased=False)
        self.distance = torch.norm(layer.running_var - var, 2) + torch.norm(
            layer.running_mean - mean, 2
        )


def recover_loss(
    network: nn.Module, hooks: Sequence[FeatureHook], view: Tensor, labels: Tensor,
    alpha: float, first_weight: float,
) -> Tensor:  # fmt: skip
    """Cross-entropy plus α times the hooks' distances, the first one weighted."""
    loss = cross_entropy(network(view), labels)
    weights = [first_weight] + [1.0] * (len(hooks) - 1)
    gaps = [weight * hook.distance for weight, hook in zip(weights, hooks, strict=True)]
    return loss + alpha * sum(gaps)


@dataclass(frozen=True, slots=True)
class Mode:
    """Settings that a peer's loop runs under; they differ on a GPU only."""

    tf32: bool = True
    """PyTorch's default for convolutions."""
    bfloat16: bool = False
    """Autocast."""
    compiled: bool = False
    """``torch.compile`` of the network and the loss, with its defaults."""


class RecoverLoop:
    """One batch of images being recovered.

    Args:
        network: teacher in eval mode, frozen, float32, NCHW.
        images: normalised start, float32 ``(N, C, H, W)``.
        labels: int64 ``(N,)``.
        config: rates, weights and ranges; only what the peer has is used.
        bounds: normalised black and white, ``(1, C, 1, 1)`` each.
        mode: precision on a GPU.
    """

    def __init__(
        self, network: nn.Module, images: Tensor, labels: Tensor, config: SynthesizeConfig,
        bounds: tuple[Tensor, Tensor], mode: Mode,
    ) -> None:  # fmt: skip
        self.network, self.labels, self.config, self.mode = network, labels, config, mode
        self.hooks = [
            FeatureHook(layer) for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)
        ]
        self.low, self.high = (bound.flatten().tolist() for bound in bounds)
        self._loss = torch.compile(recover_loss) if mode.compiled else recover_loss
        self._iteration = 0
        self.begin(images.clone())

    def begin(self, images: Tensor) -> None:
        """Go on with these images, with a fresh optimiser."""
        from torchvision import transforms

        config = self.config
        self.images = images.requires_grad_()
        self.optimizer = torch.optim.Adam(
            [self.images], lr=config.lr, betas=config.betas, eps=config.eps
        )
        self.augment = transforms.Compose([
            transforms.RandomResizedCrop(images.shape[-1], (config.views.crop_scale, 1.0)),
            transforms.RandomHorizontalFlip(0.5 if config.views.hflip else 0.0),
        ])  # fmt: skip

    def step(self) -> None:
        """One iteration, from images to updated images."""
        config = self.config
        for group in self.optimizer.param_groups:
            turn = math.pi * self._iteration / config.iterations
            group["lr"] = config.lr * 0.5 * (1 + math.cos(turn))
        self._iteration += 1
        with _under(self.mode, self.images.device):
            view = self.augment(self.images)
            low, high = config.views.roll
            offsets = torch.randint(low, high + 1, (2,)).tolist()
            view = torch.roll(view, shifts=offsets, dims=(2, 3))
            self.optimizer.zero_grad()
            with torch.autocast(
                view.device.type, torch.bfloat16, enabled=self.mode.bfloat16
            ):  # fmt: skip
                loss = self._loss(
                    self.network, self.hooks, view, self.labels, config.alpha_bn,
                    config.first_bn_weight,
                )  # fmt: skip
            loss.backward()
            self.optimizer.step()
        with torch.no_grad():
            for channel, (low_, high_) in enumerate(zip(self.low, self.high, strict=True)):
                self.images[:, channel] = self.images[:, channel].clamp(low_, high_)


class ResidualLoop(RecoverLoop):
    """A batch of images by FADRM: in phases, between which they are resized and blended.

    Args:
        network: as of :class:`RecoverLoop`.
        crops: normalised start, which images return to.
        labels: likewise.
        config: with FADRM's phases.
        bounds: likewise.
        mode: likewise.
    """

    def __init__(
        self, network: nn.Module, crops: Tensor, labels: Tensor, config: ResidualMatchingConfig,
        bounds: tuple[Tensor, Tensor], mode: Mode,
    ) -> None:  # fmt: skip
        super().__init__(network, crops, labels, config, bounds, mode)
        self._crops, self._phases = crops, config

    def run(self) -> None:
        """All phases."""
        config, images = self._phases, self._crops.clone()
        self._iteration = 0
        for phase, iterations in enumerate(config.phases):
            side = config.sizes[phase] or self._crops.shape[-1]
            images = interpolate(images, size=(side, side), mode="bilinear")
            if phase:
                crops = interpolate(self._crops, size=(side, side), mode="bilinear")
                images = config.alpha * images + (1 - config.alpha) * crops
            self.begin(images)
            for _ in iterations:
                self.step()
            images = self.images.detach()


@contextlib.contextmanager
def _under(mode: Mode, device: torch.device) -> Iterator[None]:
    """A peer's settings of a GPU: cuDNN chooses freely, and by measuring."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    with cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=mode.tf32):
        yield
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
