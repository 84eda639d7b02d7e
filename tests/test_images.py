"""Images in memory: batches against one image at a time, normalisation. No data, no GPU."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from teddy.data.augmentation import draw_views
from teddy.data.images import Images, Normalisation
from teddy.settings.configs import ViewConfig

NORMALISATION = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
VIEWS = ViewConfig(crop_scale=0.08, hflip=True, roll=(-3, 4))


@pytest.fixture(scope="module", params=[9, 32])
def images(request: pytest.FixtureRequest) -> Images:
    """Noise; more of it than views are drawn at a time."""
    generator = torch.Generator().manual_seed(request.param)
    size = request.param
    pixels = torch.randint(0, 256, (4500, 3, size, size), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(4500) % 7)


def batches(images: Images, parts: list[Tensor], item: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(images.train_batches(parts, VIEWS, NORMALISATION, 3, "view", item))


def slow(images: Images, index: int) -> Tensor:
    """One image by torchvision."""
    size = images.shape[1]
    views = draw_views(VIEWS, size, size, 3, "view", 0, indices=torch.tensor([index]))
    image = reference.normalize(images.images[index] / 255, NORMALISATION.mean, NORMALISATION.std)
    image = reference.resized_crop(
        image, *views.box[0].tolist(), [size, size], InterpolationMode.BILINEAR, antialias=False
    )
    image = reference.hflip(image) if views.flip.item() else image
    return torch.roll(image, views.shift[0].tolist(), (1, 2))


def test_batches_are_those_of_one_image_at_a_time(images: Images) -> None:
    parts = [torch.tensor([7, 4499, 7]), torch.arange(100, 120)]
    for part, (pixels, labels) in zip(parts, batches(images, parts), strict=True):
        assert torch.equal(labels, images.labels[part])
        want = torch.stack([slow(images, index) for index in part.tolist()])
        torch.testing.assert_close(pixels, want, rtol=1e-5, atol=1e-5)


def test_an_image_has_the_same_bits_in_any_batch(images: Images) -> None:
    order = torch.randperm(4500, generator=torch.Generator().manual_seed(0))
    got = torch.cat([pixels for pixels, _ in batches(images, list(order.split(1000)))])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in (1, 2, 3, 17, 129):
            part = order[:count]
            assert torch.equal(batches(images, [part])[0][0], got[:count])
    assert not torch.equal(batches(images, [order], item=1)[0][0], got)


def test_order_of_parts_is_kept_across_draws(images: Images) -> None:
    order = torch.arange(4500)
    parts = [order[4000:], order[:3000], order[:0], order[3000:4000]]
    got = batches(images, parts)
    assert [len(labels) for _, labels in got] == [500, 3000, 0, 1000]
    for part, (pixels, labels) in zip(parts, got, strict=True):
        assert torch.equal(labels, images.labels[part])
        assert torch.equal(pixels[:5], batches(images, [part[:5]])[0][0])


def test_normalisation_is_the_textbook_one_and_leaves_its_input_alone() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    before = pixels.clone()
    got = NORMALISATION.apply(pixels)
    want = reference.normalize(pixels.double() / 255, NORMALISATION.mean, NORMALISATION.std)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=5e-7)
    assert got.dtype == torch.float32
    assert torch.equal(pixels, before)
    as_float = pixels.float()
    NORMALISATION.apply(as_float)
    assert torch.equal(as_float, before.float())


def test_normalised_pixels_return_to_themselves() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    assert torch.equal(NORMALISATION.to_uint8(NORMALISATION.apply(pixels)), pixels)
    low, high = NORMALISATION.bounds()
    got = NORMALISATION.apply(pixels)
    torch.testing.assert_close(got.amin((0, 2, 3)), low.flatten())
    torch.testing.assert_close(got.amax((0, 2, 3)), high.flatten())


def test_whole_images_come_in_order(images: Images) -> None:
    got = list(images.test_batches(2000))
    assert [len(labels) for _, labels in got] == [2000, 2000, 500]
    assert torch.equal(torch.cat([pixels for pixels, _ in got]), images.images)
    assert torch.equal(torch.cat([labels for _, labels in got]), images.labels)
    chosen = torch.tensor([3, 3, 0])
    assert torch.equal(images.pick(chosen), images.images[chosen])
    parts = list(images.whole_batches([chosen, chosen[:1]]))
    assert [len(part) for part in parts] == [3, 1]
    assert torch.equal(torch.cat(parts), images.images[[3, 3, 0, 3]])
