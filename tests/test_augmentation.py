"""Views against torchvision, their adjoint, their distribution; CutMix by hand.

`katNN` are the known-answer tests of the specification, by its numbering. No data, no GPU.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as reference

from teddy.data.augmentation import CutMix, Views, cutmix_box, draw_cutmix, draw_views
from teddy.settings.configs import ViewConfig

SIZES = [(8, 8), (9, 6), (16, 24), (64, 64)]


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal float32 numbers of their own stream."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def boxes(draw: st.DrawFn, height: int, width: int) -> list[int]:
    """Any box inside the image: top, left, height, width."""
    box_height, box_width = draw(st.integers(1, height)), draw(st.integers(1, width))
    top, left = draw(st.integers(0, height - box_height)), draw(st.integers(0, width - box_width))
    return [top, left, box_height, box_width]


def torchvision_view(image: Tensor, box: list[int], flip: bool, shift: list[int]) -> Tensor:
    """The same view by torchvision and torch.roll."""
    height, width = image.shape[-2:]
    out = reference.resized_crop(
        image, *box, [height, width], InterpolationMode.BILINEAR, antialias=False
    )
    out = reference.hflip(out) if flip else out
    return torch.roll(out, shift, dims=(-2, -1))


# ----------------------------------------------------------------------------------------- views


@pytest.mark.parametrize(("height", "width"), SIZES)
@given(data=st.data())
def test_view_is_that_of_torchvision(height: int, width: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    images = normal(data.draw(st.integers(0, 999)), count, 2, height, width)
    box = [data.draw(boxes(height, width)) for _ in range(count)]
    flip = [data.draw(st.booleans()) for _ in range(count)]
    shift = [[data.draw(st.integers(-70, 70)) for _ in range(2)] for _ in range(count)]
    got = Views(torch.tensor(box), torch.tensor(flip), torch.tensor(shift))(images)
    for i in range(count):
        want = torchvision_view(images[i : i + 1], box[i], flip[i], shift[i])[0]
        torch.testing.assert_close(got[i], want, rtol=1e-5, atol=1e-5)


def test_shared_view_is_the_same_for_every_image() -> None:
    images = normal(0, 5, 3, 8, 8)
    views = Views(torch.tensor([[1, 2, 5, 6]]), torch.tensor([True]), torch.tensor([[1, -2]]))
    for i in range(5):
        torch.testing.assert_close(views(images)[i], views(images[i : i + 1])[0])


def test_whole_image_comes_back_exactly() -> None:
    config = ViewConfig(crop_scale=1.0, hflip=False, roll=(0, 0))
    images = normal(1, 50, 1, 8, 8)
    views = draw_views(config, 8, 8, 0, "v", indices=torch.arange(50))
    assert torch.equal(views(images), images)


@given(data=st.data())
def test_gradient_of_a_view_is_its_adjoint(data: st.DataObject) -> None:
    box, flip = data.draw(boxes(5, 4)), data.draw(st.booleans())
    views = Views(torch.tensor([box]), torch.tensor([flip]), torch.tensor([[1, 2]]))
    x = normal(2, 1, 1, 5, 4).double().requires_grad_()
    y = normal(3, 1, 1, 5, 4).double()
    view = views(x)
    view.backward(y)
    assert x.grad is not None
    z = normal(4, 1, 1, 5, 4).double()  # <view(z), y> = <z, adjoint(y)>
    assert (views(z) * y).sum().item() == pytest.approx((z * x.grad).sum().item(), abs=1e-12)


def test_gradient_of_a_view_equals_finite_differences() -> None:
    views = Views(
        torch.tensor([[0, 1, 3, 2], [1, 0, 4, 4]]), torch.tensor([True, False]),
        torch.tensor([[1, -1], [0, 2]]),
    )  # fmt: skip
    assert torch.autograd.gradcheck(views, normal(5, 2, 1, 5, 4).double().requires_grad_())


def test_view_of_an_index_does_not_depend_on_the_others(view_config: ViewConfig) -> None:
    every = draw_views(view_config, 8, 8, 0, "v", indices=torch.arange(100))
    some = torch.tensor([70, 3, 99])
    few = draw_views(view_config, 8, 8, 0, "v", indices=some)
    for name in ("box", "flip", "shift"):
        assert torch.equal(getattr(few, name), getattr(every[some], name))
    other = draw_views(view_config, 8, 8, 0, "w", indices=torch.arange(100))
    assert not torch.equal(other.box, every.box)
    seeded = draw_views(view_config, 8, 8, 1, "v", indices=torch.arange(100))
    assert not torch.equal(seeded.box, every.box)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 24), (64, 64), (224, 224), (10, 40)])
@pytest.mark.parametrize("scale", [0.08, 0.5, 1.0])
def test_crops_obey_their_bounds(height: int, width: int, scale: float) -> None:
    config = ViewConfig(crop_scale=scale, hflip=False, roll=(0, 0))
    box = draw_views(config, height, width, 0, "v", indices=torch.arange(3000)).box
    top, left, box_height, box_width = box.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()
    # A side is rounded to whole pixels, which moves area and ratio by at most half a pixel each.
    largest, smallest = (
        (box_height + 0.5) * (box_width + 0.5),
        (box_height - 0.5) * (box_width - 0.5),
    )
    fallback = (4 / 3) * min(height, width) ** 2 if width != height else height * width
    assert (largest >= min(scale * height * width, fallback * 0.99)).all()
    assert (smallest <= height * width).all()
    assert ((box_width - 0.5) / (box_height + 0.5) <= 4 / 3 + 1e-6).all()
    assert ((box_width + 0.5) / (box_height - 0.5) >= 3 / 4 - 1e-6).all()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_crops_have_the_distribution_of_torchvision(height: int, width: int) -> None:
    config, count = ViewConfig(crop_scale=0.08, hflip=False, roll=(0, 0)), 4000
    ours = draw_views(config, height, width, 0, "v", indices=torch.arange(count)).box.double()
    image = torch.zeros(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [
            RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)
        ]
    theirs = torch.tensor(drawn).double()

    def facts(box: Tensor) -> Tensor:
        top, left, h, w = box.unbind(1)
        share = h * w / (height * width)
        return torch.stack([share, share.square(), (w / h).log(), top + h / 2, left + w / 2])

    a, b = facts(ours), facts(theirs)
    error = ((a.var(1) + b.var(1)) / count).sqrt()
    assert ((a.mean(1) - b.mean(1)).abs() < 4.5 * error).all()


def test_flips_and_shifts_are_uniform() -> None:
    config = ViewConfig(crop_scale=1.0, hflip=True, roll=(-2, 4))
    views = draw_views(config, 8, 8, 0, "v", indices=torch.arange(7000))
    assert abs(views.flip.float().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(7000)
    for axis in (0, 1):
        shift = views.shift[:, axis]
        assert [shift.min().item(), shift.max().item()] == [-2, 4]
        counts = (shift + 2).bincount(minlength=7)
        assert ((counts - 1000.0).square() / 1000).sum().item() < 28, "tail of 6 degrees of freedom"
    together = (views.shift[:, 0] + 2) * 7 + views.shift[:, 1] + 2
    assert len(together.unique()) == 49
    still = draw_views(replace(config, hflip=False), 8, 8, 0, "v", indices=torch.arange(50))
    assert not still.flip.any()


# ---------------------------------------------------------------------------------------- CutMix


def test_kat20_box_of_the_specification() -> None:
    box = cutmix_box(torch.tensor([0.75]), torch.tensor([[112, 112]]), 224, 224)
    assert box.tolist() == [[56, 56, 168, 168]]
    mix = CutMix(torch.tensor([0]), box)
    assert mix.kept(224, 224).item() == 0.75
    mixed = mix(torch.zeros(1, 1, 224, 224), torch.ones(1, 1, 224, 224))[0, 0]
    assert mixed.mean().item() == 0.25
    assert mixed[56:168, 56:168].all()


def test_kat20_box_is_cut_at_the_border() -> None:
    kept = torch.tensor([0.75, 0.75, 0.0, 1.0])
    centre = torch.tensor([[0, 223], [112, 0], [112, 112], [5, 5]])
    box = cutmix_box(kept, centre, 224, 224)
    assert box.tolist()[:3] == [[0, 167, 56, 224], [56, 0, 168, 56], [0, 0, 224, 224]]
    assert CutMix(torch.zeros(4).long(), box).kept(224, 224).tolist() == pytest.approx(
        [1 - 56 * 57 / 224**2, 1 - 112 * 56 / 224**2, 0, 1]
    )


def test_kat20_replay_from_stored_index_and_box_is_bit_exact() -> None:
    images, labels = normal(6, 12, 3, 16, 16), torch.arange(12) % 3
    before, labels_before = images.clone(), labels.clone()
    mix = draw_cutmix(12, 16, 16, 0, "cutmix", 4, device="cpu")
    mixed = mix(images, images[mix.partner])
    stored = CutMix(torch.tensor(mix.partner.tolist()), torch.tensor(mix.box.tolist()))
    assert torch.equal(stored(images, images[stored.partner]), mixed)
    again = draw_cutmix(12, 16, 16, 0, "cutmix", 4, device="cpu")
    assert torch.equal(again(images, images[again.partner]), mixed)
    some = torch.tensor([7, 2])
    assert torch.equal(mix[some](images[some], images[mix[some].partner]), mixed[some])
    assert not torch.equal(mixed, images)
    assert torch.equal(images, before)
    assert torch.equal(labels, labels_before)


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20))
def test_kept_is_exactly_the_share_of_own_pixels(seed: int, height: int, width: int) -> None:
    mix = draw_cutmix(9, height, width, seed, "cutmix", device="cpu")
    own, partners = torch.ones(9, 2, height, width), torch.zeros(9, 2, height, width)
    mixed = mix(own, partners)
    assert ((mixed == 0) | (mixed == 1)).all()
    counted = mixed[:, 0].double().sum((1, 2)) / (height * width)
    torch.testing.assert_close(mix.kept(height, width).double(), counted, rtol=0, atol=1e-7)


@given(st.floats(0, 1), st.integers(0, 31), st.integers(0, 23))
def test_box_is_that_of_the_loop(kept: float, row: int, column: int) -> None:
    box = cutmix_box(torch.tensor([kept]).double(), torch.tensor([[row, column]]), 32, 24)
    side = math.sqrt(1 - kept)
    half_height, half_width = int(32 * side) // 2, int(24 * side) // 2
    want = [
        max(row - half_height, 0), max(column - half_width, 0),
        min(row + half_height, 32), min(column + half_width, 24),
    ]  # fmt: skip
    assert box.tolist() == [want]


def test_partners_are_a_permutation_and_boxes_vary() -> None:
    mix = draw_cutmix(200, 32, 32, 0, "cutmix", 0, device="cpu")
    assert sorted(mix.partner.tolist()) == list(range(200))
    assert len(mix.box.unique(dim=0)) > 150
    other = draw_cutmix(200, 32, 32, 0, "cutmix", 1, device="cpu")
    assert not torch.equal(other.partner, mix.partner)
    assert not torch.equal(other.box, mix.box)


def test_mixing_ratio_is_uniform_where_boxes_are_not_cut() -> None:
    mix = draw_cutmix(4000, 1000, 1000, 0, "cutmix", device="cpu")
    top, left, bottom, right = mix.box.unbind(1)
    inside = (top > 0) & (left > 0) & (bottom < 1000) & (right < 1000)
    # A box of side s fits with probability (1 - s)^2 and lambda = 1 - s^2 is uniform, so the side
    # of those that fit has a density proportional to s (1 - s)^2.
    side = (bottom - top)[inside].double() / 1000
    square = side.square()
    error = square.std().item() / math.sqrt(len(square))
    expected = (1 / 4 - 2 / 5 + 1 / 6) / (1 / 2 - 2 / 3 + 1 / 4)
    assert abs(square.mean().item() - expected) < 4.5 * error + 2e-3
