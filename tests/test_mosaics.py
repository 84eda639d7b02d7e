"""RDED: crops against torchvision's, choices and mosaics against loops, what is refused.

No GPU, no downloads.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from torchvision.transforms import functional

from teddy.core.artifacts import WorkDir
from teddy.core.errors import TeddyError
from teddy.data.datasets import ImageDataset
from teddy.data.images import Images
from teddy.settings.baselines import MosaicConfig
from teddy.synthesis import mosaics
from teddy.synthesis.methods import Ingredients
from teddy.synthesis.mosaics import Mosaics, mosaic, square_crops
from teddy.teachers.pools import Pool

CPU = torch.device("cpu")
SMALL = MosaicConfig(candidates=12, crops=4, crop_scale=0.2)


@pytest.fixture
def method(dataset: ImageDataset, pool: Pool) -> Mosaics:
    """Of a few images and crops."""
    return Mosaics(SMALL, Ingredients(dataset, 0, CPU, pool))


def changed(old: Mosaics, small_classes: Any = None, **changes: Any) -> Mosaics:
    """One that differs in some settings."""
    given = replace(old.given, small_classes=small_classes)
    return Mosaics(replace(old.config, **changes), given)


def made(method: Mosaics, ipc: int) -> Tensor:
    """The images of a set, ``(ipc, 3, C, H, W)``."""
    found = method.make(ipc, WorkDir("synthesize", "mosaics"))
    assert found.labels.tolist() == [0, 1, 2] * ipc and found.images.dtype == torch.uint8
    return found.images.view(ipc, 3, *found.images.shape[1:])


@pytest.mark.parametrize(("side", "factor"), [(8, 1), (64, 1), (65, 2), (224, 2)])
def test_the_paper_has_mosaics_of_large_images_alone(side: int, factor: int) -> None:
    assert MosaicConfig().factor_at(side) == factor
    assert MosaicConfig(factor=7).factor_at(side) == 7


def test_crops_are_square_inside_and_resized_as_by_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    images, u = torch.randn(200, 3, 16, 16, generator=generator), torch.rand(200, 3)
    u[0], u[1] = 0, 1 - 2**-24
    views = square_crops(u, 16, 0.08)
    top, left, height, width = views.box.unbind(1)
    assert torch.equal(height, width) and views.box[0].tolist() == [0, 0, 5, 5]
    assert int(top.min()) == int(left.min()) == 0 and views.box[1].tolist() == [0, 0, 16, 16]
    assert int((top + height).max()) == int((left + width).max()) == 16
    for index, found in enumerate(views(images)):
        box = views.box[index].tolist()
        want = functional.resized_crop(images[index], *box, [16, 16], antialias=False)
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


def test_crop_areas_are_uniform_from_the_smallest() -> None:
    u = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    areas = square_crops(u, 1000, 0.25).box[:, 2].double().square() / 1e6
    quantiles = areas.quantile(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert quantiles.tolist() == pytest.approx([0.25, 0.625, 1.0], abs=0.01)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_mosaic_has_its_tiles_in_their_places(factor: int) -> None:
    tiles = torch.randn(3 * factor**2, 2, 5, 4)
    found = mosaic(tiles, factor)
    assert found.shape == (3, 2, 5 * factor, 4 * factor)
    for number in range(3):
        for place in range(factor**2):
            top, left = 5 * (place // factor), 4 * (place % factor)
            tile = found[number, :, top : top + 5, left : left + 4]
            assert torch.equal(tile, tiles[3 * place + number])


@pytest.mark.parametrize("factor", [1, 2])
def test_images_are_mosaics_of_the_easiest_crops_of_the_easiest_images(
    factor: int, method: Mosaics, dataset: ImageDataset, pool: Pool, workplace: Path
) -> None:
    """By one image, one crop and one place at a time."""
    method, ipc, side = changed(method, factor=factor), 2, 8 // factor
    images, observer = made(method, ipc), pool.member(2, CPU)
    for label in range(3):
        easiest: list[tuple[float, Tensor]] = []
        members = method.candidates(label)
        assert len(set(members.tolist())) == 12
        assert dataset.train.labels[members].tolist() == [label] * 12
        for member in members:
            image = dataset.normalisation.apply(dataset.train.pick(member[None]))
            tried = []
            for number in range(4):
                tile = method.tiles(image, member[None], torch.tensor([number]))
                shown, start = torch.zeros(1, 1, 8, 8), (8 - side) // 2
                shown[:, :, start : start + side, start : start + side] = tile
                with torch.no_grad():
                    loss = cross_entropy(observer(shown), torch.tensor([label]))
                tried.append((float(loss), tile[0]))
            easiest.append(min(tried, key=lambda pair: pair[0]))
        easiest.sort(key=lambda pair: pair[0])
        for rank, (_, tile) in enumerate(easiest[: ipc * factor**2]):
            place, number = divmod(rank, ipc)
            top, left = side * (place // factor), side * (place % factor)
            found = images[number, label, :, top : top + side, left : left + side]
            assert torch.equal(found[None], dataset.normalisation.to_uint8(tile[None]))


def test_tiles_are_crops_in_small(method: Mosaics, dataset: ImageDataset) -> None:
    members = torch.arange(20)
    images = dataset.normalisation.apply(dataset.train.pick(members))
    whole, half = changed(method, factor=1), changed(method, factor=2)
    numbers = members % 4
    want = interpolate(whole.tiles(images, members, numbers), size=(4, 4), mode="area")
    torch.testing.assert_close(half.tiles(images, members, numbers), want)


def test_a_crop_does_not_depend_on_others(method: Mosaics, monkeypatch: pytest.MonkeyPatch) -> None:
    members = method.candidates(0)
    losses = method.losses(members, 0)
    more = changed(method, crops=6).losses(members, 0)
    torch.testing.assert_close(more[:, :4], losses)
    assert not torch.equal(losses[:, 0], losses[:, 1])
    order = torch.arange(12).flip(0)
    torch.testing.assert_close(method.losses(members[order], 0), losses[order])
    monkeypatch.setattr(mosaics, "_CHUNK", 5)
    torch.testing.assert_close(method.losses(members, 0), losses)


def test_order_of_classes_does_not_change_an_image(
    method: Mosaics, dataset: ImageDataset, workplace: Path
) -> None:
    images = made(method, 2)
    for label in range(3):
        assert torch.equal(method.of_class(label, 2), images[:, label])
    assert torch.equal(made(method, 2), images)
    other = Mosaics(SMALL, replace(method.given, seed=1))
    assert not torch.equal(made(other, 2), images)
    assert torch.equal(made(method, 3)[:2], images), "of more images these are the easiest"


def test_chunks_of_chosen_tiles_change_nothing(
    method: Mosaics, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = changed(method, factor=2)
    images = made(half, 3)
    monkeypatch.setattr(mosaics, "_CHUNK", 5)
    assert torch.equal(made(half, 3), images)


def test_too_few_images_are_refused_by_name_or_repeated(
    method: Mosaics, dataset: ImageDataset, workplace: Path
) -> None:
    with pytest.raises(TeddyError, match=r"candidates must be .* 16 with factor 2; got 12"):
        made(changed(method, factor=2), 4)
    with pytest.raises(TeddyError, match=r"factor must divide .* 8 pixels, .* got 3"):
        made(changed(method, factor=3), 1)
    with pytest.raises(TeddyError, match=r"expected 20 real images .* 'rows' has 16; .* factor"):
        made(changed(method, factor=2, candidates=300), 5)
    images = made(changed(method, "repeat", candidates=300), 20)
    assert torch.equal(images[16:], images[:4])
    few = Images(dataset.train.images[:9], dataset.train.labels[:9])  # type: ignore[union-attr]
    small = replace(method.given, data=replace(dataset, train=few), small_classes="fewer")
    assert made(Mosaics(replace(SMALL, factor=2), small), 2).shape == (2, 3, 1, 8, 8)


def test_a_pool_is_needed(method: Mosaics) -> None:
    with pytest.raises(TeddyError, match="mosaics need a pool"):
        Mosaics(SMALL, replace(method.given, pool=None))
