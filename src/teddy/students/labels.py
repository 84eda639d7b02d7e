"""Views that students train on, and their soft labels: computed, stored in few files, read back.

A view is a function of ``(seed, epoch, image)``; nothing but the labels needs storing, and a label
is the same whether it was stored or is computed while training (§4.3 of docs/method.md).

Dimensions: ``E`` epochs, ``N`` images, ``K`` classes, ``M`` pool members.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from teddy.core.artifacts import WorkDir, check_tensors, read_tensors, write_tensors
from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.runtime import autocast, for_each, progress
from teddy.data.augmentation import CutMix, Views, draw_cutmix, draw_views
from teddy.data.dsa import DsaViews, draw_dsa
from teddy.data.images import Images, Normalisation
from teddy.objectives import ensemble_logits
from teddy.settings.configs import RelabelConfig
from teddy.settings.schema import shown
from teddy.students.label_budget import decode, encode, form, stored_epochs

_KIND = "teddy.labels.v1"
MANIFEST = "manifest.json"
_SHARD_BYTES = 256 * 2**20  # a shard is a unit of resuming; few files, each quick to write
_LEAST_SHARDS = 16  # so that processes can share the work; fixed, as files must not depend on them
_KEEP_BYTES = 512 * 2**20  # views of all epochs are kept in memory up to this
_CHUNK = 256  # images per teacher forward, at most
_CPU_CHUNK_PIXELS = 2**16  # whose activations stay in a processor's cache: twice as fast at 32×32


@dataclass(frozen=True, slots=True)
class Batch:
    """Augmented, CutMixed images of one batch."""

    inputs: Tensor
    """Normalised float32 ``(n, C, H, W)``."""
    labels: Tensor
    """int64 ``(n,)``: classes of the images themselves."""
    partner_labels: Tensor
    """int64 ``(n,)``: classes of the images that boxes were pasted from."""
    kept: Tensor
    """float32 ``(n,)``: share of each image that is its own; 1 without CutMix."""

    def __getitem__(self, part: Tensor) -> "Batch":
        partner = self.partner_labels[part]
        return Batch(self.inputs[part], self.labels[part], partner, self.kept[part])


class TrainingViews:
    """The views of a distilled set in every epoch of student training.

    Args:
        images: of the set, on the device of training.
        normalisation: of the set.
        config: augmentation.
        seed: experiment seed. Sets of equal size see the same random views, so that a comparison
            of methods is paired.
    """

    def __init__(
        self, images: Images, normalisation: Normalisation, config: RelabelConfig, seed: int
    ) -> None:
        self.images, self.normalisation = images, normalisation
        self.config, self.seed = config, seed
        self._size = (images.images.shape[-2], images.images.shape[-1])
        # Several students see the same views: keep them where all epochs fit.
        fits = stored_epochs(config) * images.images.numel() * 4 <= _KEEP_BYTES
        self._keep = fits and config.augmentation == "views"
        self._kept: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, epoch: int, parts: Iterable[Tensor]) -> Iterator[Batch]:
        """Batches of the images ``parts``, index tensors, as they look in an epoch.

        An image looks the same in whatever part it comes, but for DSA's operation, which belongs
        to the position of the part. With ``label_epochs`` the views of the first epochs come again.
        """
        epoch %= stored_epochs(self.config)
        if self._keep:
            if epoch not in self._kept:
                self._kept[epoch] = self._whole(epoch)
            whole = self._kept[epoch]
            yield from (whole[part] for part in parts)
        else:
            yield from self._draw(epoch, parts)

    def mixes(self, epoch: int) -> CutMix | None:
        """Boxes and partners of the images in an epoch, if they have such."""
        if not self.config.cutmix:
            return None
        epoch, device = epoch % stored_epochs(self.config), self.images.labels.device
        return draw_cutmix(len(self), *self._size, self.seed, "cutmix", epoch, device=device)

    def forget(self) -> None:
        """Give up the views that are kept."""
        self._kept.clear()

    def _whole(self, epoch: int) -> Batch:
        everything = torch.arange(len(self), device=self.images.labels.device)
        (batch,) = self._draw(epoch, [everything])
        return batch

    def _draw(self, epoch: int, parts: Iterable[Tensor]) -> Iterator[Batch]:
        device = self.images.labels.device
        views = None if self.config.augmentation == "dsa" else self._views(epoch)
        cutmix = self.mixes(epoch)
        for step, part in enumerate(parts):
            view = self._dsa(epoch, step) if views is None else views
            labels = self.images.labels[part]
            if cutmix is None:
                kept = torch.ones(len(part), device=device)
                yield Batch(self._view(view, part), labels, labels, kept)
                continue
            mix = cutmix[part]
            own, partners = self._view(view, torch.cat([part, mix.partner])).chunk(2)
            partner_labels = self.images.labels[mix.partner]
            yield Batch(mix(own, partners), labels, partner_labels, mix.kept(*self._size))

    def _views(self, epoch: int) -> Views:
        everything = torch.arange(len(self), device=self.images.labels.device)
        key = ("student view", epoch)
        return draw_views(self.config.views, *self._size, self.seed, *key, indices=everything)

    def _dsa(self, epoch: int, step: int) -> DsaViews:
        everything = torch.arange(len(self), device=self.images.labels.device)
        key = ("student DSA", epoch)
        return draw_dsa(self.config.dsa, self.seed, *key, indices=everything, step=step)

    def _view(self, views: Views | DsaViews, part: Tensor) -> Tensor:
        return views[part](self.normalisation.apply(self.images.images[part]))


class SoftLabels(Protocol):
    """Soft labels of every view: stored or computed on demand."""

    def epoch(self, epoch: int) -> Tensor:
        """Ensemble logits of an epoch's views, float16 ``(N, K)`` in image order."""
        ...


class OnlineLabels:
    """Soft labels computed when an epoch asks for them."""

    def __init__(self, views: TrainingViews, teachers: Sequence[nn.Module]) -> None:
        self.views, self.teachers = views, teachers

    def epoch(self, epoch: int) -> Tensor:
        """Label an epoch: augment and mix first, then the mean of the pool (§4.3).

        Raises:
            TeddyError: a label does not fit into float16.
        """
        everything = torch.arange(len(self.views), device=self.views.images.labels.device)
        parts, largest = [], torch.zeros(len(self.teachers), device=everything.device)
        with torch.no_grad():
            for batch in self.views.batches(epoch, everything.split(_chunk(self.views.images))):
                inputs = batch.inputs.to(memory_format=torch.channels_last)
                with autocast(inputs.device, self.views.config.precision):
                    logits_MNK = torch.stack([teacher(inputs) for teacher in self.teachers])
                largest = torch.maximum(largest, logits_MNK.abs().amax(dim=(1, 2)))
                parts.append(ensemble_logits(logits_MNK, self.views.config.ensemble).half())
        labels = torch.cat(parts)
        if not labels.isfinite().all():
            teacher = int(largest.nan_to_num(torch.inf).argmax())
            raise TeddyError(
                f"soft labels of epoch {epoch + 1} do not fit into float16, whose largest number "
                f"is 65504: logits of teacher {teacher} reach {largest[teacher]:.3g}. Its training "
                "diverged; lower train_teacher.optimizer.lr or choose other epochs of the pool"
            )
        kept = encode(labels[None], self.views.config)  # as if they had been stored
        return decode(kept, labels.shape[1])[0]


def _chunk(images: Images) -> int:
    """Images per forward pass; fixed, so that stored and online labels are equal."""
    if images.labels.device.type != "cpu":
        return _CHUNK
    height, width = images.shape[1:]
    return max(8, min(_CHUNK, _CPU_CHUNK_PIXELS // (height * width)))


class FixedLabels:
    """One soft label for each image, whatever its view: that of the image as it is.

    CutMix mixes the probabilities of two images as it mixes hard labels.

    Args:
        views: of the images.
        teachers: whose ensemble labels.
        temperature: at which students compare probabilities.
    """

    def __init__(
        self, views: TrainingViews, teachers: Sequence[nn.Module], temperature: float
    ) -> None:
        parts = []
        for pixels in views.images.images.split(_chunk(views.images)):
            inputs = views.normalisation.apply(pixels).to(memory_format=torch.channels_last)
            with torch.no_grad(), autocast(inputs.device, views.config.precision):
                logits_MNK = torch.stack([teacher(inputs) for teacher in teachers])
            parts.append(ensemble_logits(logits_MNK, views.config.ensemble).half())
        self._views, self._temperature = views, temperature
        self._probabilities = (torch.cat(parts).float() / temperature).softmax(1)

    def epoch(self, epoch: int) -> Tensor:
        """Logits of an epoch's mixtures, float32 ``(N, K)`` in image order."""
        own, mix = self._probabilities, self._views.mixes(epoch)
        if mix is None:
            return self._temperature * own.log()
        kept = mix.kept(*self._views.images.shape[1:])[:, None]
        return self._temperature * (kept * own + (1 - kept) * own[mix.partner]).log()


class KeptLabels:
    """Soft labels kept in memory when they have been computed, for students that share them."""

    def __init__(self, labels: OnlineLabels) -> None:
        self._labels = labels
        self._kept: dict[int, Tensor] = {}

    def epoch(self, epoch: int) -> Tensor:
        """Labels of an epoch."""
        epoch %= stored_epochs(self._labels.views.config)
        if epoch not in self._kept:
            self._kept[epoch] = self._labels.epoch(epoch)
        return self._kept[epoch]


class StoredLabels:
    """Soft labels read from the files of :func:`store_labels`.

    Args:
        folder: of the files.
        record: their manifest, whose ``settings`` say how they are kept.
        device: that labels are asked for on.
        shape: epochs, images and classes that are asked for.

    Raises:
        TeddyError: a file of these epochs is missing, damaged or of other labels.
    """

    def __init__(
        self,
        folder: Path,
        record: Json,
        device: torch.device | str,
        shape: tuple[int, int, int],
    ) -> None:
        self._folder, self._device, self._classes = folder, device, shape[2]
        settings = record.get("settings") or {}
        bits, top_k = settings.get("label_bits", 16), settings.get("label_top_k", 0)
        self._epochs = settings.get("label_epochs") or shape[0]
        shape = (min(self._epochs, shape[0]), *shape[1:])
        self._shards = _checked_shards(folder, record.get("shards"), shape, bits, top_k)
        self._open: tuple[str, Tensor] | None = None

    def epoch(self, epoch: int) -> Tensor:
        """Labels of an epoch; shards are read as epochs reach them."""
        epoch %= self._epochs
        shard = next(s for s in self._shards if s["first"] <= epoch <= s["last"])
        if self._open is None or self._open[0] != shard["file"]:
            tensors, _ = read_tensors(self._folder / shard["file"], kind=_KIND)
            self._open = (shard["file"], decode(tensors, self._classes))
        return self._open[1][epoch - shard["first"]].to(self._device)


def _checked_shards(
    folder: Path, shards: Any, shape: tuple[int, int, int], bits: int, top_k: int
) -> list[Json]:
    """Shards of a manifest, which must be there and have all epochs; their headers alone are read.

    Raises:
        TeddyError: naming the manifest, or the first file that is not as it should be.
    """
    epochs, images, classes = shape
    where, again = folder / MANIFEST, "run the relabel stage again"
    if not isinstance(shards, list):
        raise TeddyError(f"{where}: shards must be a list; got {shown(shards)}; {again}")
    reached = 0
    for place, shard in enumerate(shards):
        if reached >= epochs:
            break
        key = f"{where}: shards[{place}]"
        if not isinstance(shard, dict) or not {"file", "first", "last"} <= shard.keys():
            raise TeddyError(f"{key} must be keys file, first, last; got {shown(shard)}; {again}")
        file, first, last = shard["file"], shard["first"], shard["last"]
        if type(file) is not str or Path(file).name != file or not file:
            raise TeddyError(f"{key}.file must be the name of a file; got {shown(file)}; {again}")
        if type(first) is not int or type(last) is not int or not reached == first <= last:
            raise TeddyError(
                f"{key} must begin with epoch {reached} and end at it or later; got first "
                f"{shown(first)}, last {shown(last)}; {again}"
            )
        expected = form(bits, top_k, (last - first + 1, images, classes))
        check_tensors(folder / file, expected, kind=_KIND, again=again)
        reached = last + 1
    if reached < epochs:
        raise TeddyError(f"{where}: labels of {reached} epochs, expected {epochs}; {again}")
    return shards


def store_labels(
    labels: OnlineLabels, num_classes: int, work: WorkDir, shard_bytes: int = _SHARD_BYTES
) -> list[Json]:
    """Compute the labels of all epochs into shards in ``work``, skipping finished ones.

    Returns:
        The shards: ``file`` and its 0-based ``first`` and ``last`` epoch.
    """
    config = labels.views.config
    epochs = stored_epochs(config)
    fitting = max(1, shard_bytes // (2 * len(labels.views) * num_classes))
    per_shard = min(fitting, -(-epochs // _LEAST_SHARDS))
    shards: list[Json] = []
    for first in range(0, epochs, per_shard):
        last = min(first + per_shard, epochs) - 1
        file = f"epochs{first:04d}-{last:04d}.safetensors"
        shards.append({"file": file, "first": first, "last": last})

    def finish(index: int) -> None:
        shard = shards[index]
        if not (work / shard["file"]).exists():
            stacked = _stack(labels.epoch, range(shard["first"], shard["last"] + 1))
            write_tensors(work / shard["file"], encode(stacked, config), kind=_KIND, record={})

    for_each(len(shards), finish, labels.views.images.labels.device)
    return shards


def _stack(epoch: Callable[[int], Tensor], epochs: range) -> Tensor:
    name = f"relabel epochs {epochs[0] + 1}-{epochs[-1] + 1}"
    with progress(len(epochs), name, "epoch") as bar:
        parts = []
        for index in epochs:
            parts.append(epoch(index).cpu())
            bar.update()
    return torch.stack(parts)
