"""DSA: each operation against a loop over pixels, siamese use, gradients, strengths. No GPU."""

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.data.dsa import DsaViews, draw_dsa, draw_shared_dsa
from teddy.settings.configs import DsaConfig
from teddy.settings.schema import from_json, to_json

Operation = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]
EVERY: tuple[Operation, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")
SIZES = [(8, 8), (9, 6), (5, 12)]


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal float64 numbers of their own stream."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def view(config: DsaConfig, operation: str, uniform: list[list[float]]) -> DsaViews:
    """A view of known parameters, shared if there is one."""
    return DsaViews(config, operation, torch.tensor(uniform).double(), shared=len(uniform) == 1)


# ----------------------------------------------------------------------- slow, obvious references


def slow_color(image: Tensor, u: list[float]) -> Tensor:
    """DSA's three colour operations with their published strengths, as its paper's code has them:
    x + (u − ½)·1, then a factor 2u about the grey image, then u + ½ about the mean.
    """
    image = image + (u[0] - 0.5)
    channels, height, width = image.shape
    for y in range(height):
        for x in range(width):
            grey = sum(image[c, y, x].item() for c in range(channels)) / channels
            image[:, y, x] = (image[:, y, x] - grey) * (2 * u[1]) + grey
    mean = image.flatten().tolist()
    middle = sum(mean) / len(mean)
    image = image - middle
    return torch.add(image * (u[2] + 0.5), middle)


def slow_crop(image: Tensor, u: list[float]) -> Tensor:
    """Pad with zeros by the largest shift, and cut at a random place."""
    _, height, width = image.shape
    most = [int(side * 0.125 + 0.5) for side in (height, width)]
    down, right = (int(u[axis] * (2 * most[axis] + 1)) - most[axis] for axis in (0, 1))
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                out[:, y, x] = image[:, y - down, x - right]
    return out


def slow_cutout(image: Tensor, u: list[float]) -> Tensor:
    """Indices of the hole are clamped to the image, as in DSA's code."""
    _, height, width = image.shape
    out = image.clone()
    length = [int(side * 0.5 + 0.5) for side in (height, width)]
    centre = [int(u[i] * (side + 1 - length[i] % 2)) for i, side in enumerate((height, width))]
    for dy in range(length[0]):
        for dx in range(length[1]):
            y = min(max(centre[0] - length[0] // 2 + dy, 0), height - 1)
            x = min(max(centre[1] - length[1] // 2 + dx, 0), width - 1)
            out[:, y, x] = 0
    return out


def slow_flip(image: Tensor, u: list[float]) -> Tensor:
    """Columns in reverse order, or not."""
    width = image.shape[2]
    columns = [width - 1 - x if u[0] < 0.5 else x for x in range(width)]
    return torch.stack([image[:, :, x] for x in columns], dim=2)


def slow_warp(image: Tensor, matrix: list[list[float]]) -> Tensor:
    """Pixel centres in units of half a side from the middle; bilinear, 0 outside."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            across, down = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1
            from_x = matrix[0][0] * across + matrix[0][1] * down
            from_y = matrix[1][0] * across + matrix[1][1] * down
            column, row = (from_x + 1) * width / 2 - 0.5, (from_y + 1) * height / 2 - 0.5
            for i in (math.floor(row), math.floor(row) + 1):
                for j in (math.floor(column), math.floor(column) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        weight = (1 - abs(row - i)) * (1 - abs(column - j))
                        out[:, y, x] += weight * image[:, i, j]
    return out


def slow_scale(image: Tensor, u: list[float]) -> Tensor:
    """Factors between 1/1.2 and 1.2."""
    across, down = (1 / 1.2 + value * (1.2 - 1 / 1.2) for value in u[:2])
    return slow_warp(image, [[across, 0], [0, down]])


def slow_rotate(image: Tensor, u: list[float]) -> Tensor:
    """Angles between −15 and 15 degrees."""
    angle = (u[0] - 0.5) * 2 * 15 / 180 * math.pi
    return slow_warp(
        image, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )


REFERENCES = {
    "color": slow_color, "crop": slow_crop, "cutout": slow_cutout,
    "flip": slow_flip, "scale": slow_scale, "rotate": slow_rotate,
}  # fmt: skip


# ------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("operation", EVERY)
@pytest.mark.parametrize(("height", "width"), SIZES)
@given(data=st.data())
def test_operation_is_that_of_a_loop_over_pixels(
    dsa_config: DsaConfig, operation: str, height: int, width: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 3))
    numbers = st.integers(0, 2**10 - 1).map(lambda n: n / 2**10)
    uniform = [[data.draw(numbers) for _ in range(3)] for _ in range(count)]
    images = normal(data.draw(st.integers(0, 99)), count, 3, height, width)
    before = images.clone()
    got = view(dsa_config, operation, uniform)(images)
    for i in range(count):
        want = REFERENCES[operation](images[i].clone(), uniform[i])
        torch.testing.assert_close(got[i], want, rtol=1e-9, atol=1e-9)
    assert torch.equal(images, before)


@pytest.mark.parametrize("operation", [name for name in EVERY if name != "flip"])
@pytest.mark.parametrize("count", [1, 4])
def test_zero_strength_leaves_images_as_they_are(
    dsa_config: DsaConfig, operation: str, count: int
) -> None:
    still = replace(
        dsa_config, scale=1.0, rotate=0.0, crop=0.0, cutout=0.0, brightness=0.0, saturation=0.0,
        contrast=0.0,
    )  # fmt: skip
    images = normal(0, count, 3, 8, 10)
    uniform = [[0.1 + 0.2 * i, 0.9, 0.3] for i in range(count)]
    torch.testing.assert_close(view(still, operation, uniform)(images), images)
    changed = view(dsa_config, operation, uniform)(images)
    assert not torch.allclose(changed, images, atol=1e-2), "so that the test can fail"


@pytest.mark.parametrize("operation", EVERY)
def test_shared_parameters_are_those_of_every_image(dsa_config: DsaConfig, operation: str) -> None:
    images, uniform = normal(1, 5, 3, 8, 8), [0.2, 0.7, 0.9]
    shared = view(dsa_config, operation, [uniform])(images)
    each = view(dsa_config, operation, [uniform] * 5)(images)
    torch.testing.assert_close(shared, each)


@pytest.mark.parametrize("operation", EVERY)
@pytest.mark.parametrize("count", [1, 2])
def test_gradient_equals_finite_differences(
    dsa_config: DsaConfig, operation: str, count: int
) -> None:
    uniform = [[0.3, 0.8, 0.6], [0.9, 0.1, 0.2]][:count]
    images = normal(2, count, 2, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(view(dsa_config, operation, uniform), images)


# ------------------------------------------------------------------------------------------ draws


def test_same_view_augments_two_batches_alike(dsa_config: DsaConfig) -> None:
    for operation in EVERY:
        one = replace(dsa_config, operations=(operation,))
        drawn = draw_shared_dsa(one, 0, "dm", 3, 7)
        real, synthetic = normal(3, 6, 3, 8, 8).float(), normal(4, 2, 3, 8, 8).float()
        together = drawn(torch.cat([real, synthetic]))
        torch.testing.assert_close(torch.cat([drawn(real), drawn(synthetic)]), together)
        again = draw_shared_dsa(one, 0, "dm", 3, 7)
        assert torch.equal(again(real), drawn(real))


def test_view_of_an_index_does_not_depend_on_the_others(dsa_config: DsaConfig) -> None:
    images = normal(5, 100, 3, 8, 8).float()
    every = draw_dsa(dsa_config, 0, "view", 4, indices=torch.arange(100), step=2)
    some = torch.tensor([70, 3, 99])
    few = draw_dsa(dsa_config, 0, "view", 4, indices=some, step=2)
    assert few.operation == every.operation
    assert torch.equal(few.uniform, every[some].uniform)
    assert torch.equal(every(images)[some], every[some](images[some]))
    assert len(every[torch.tensor([5])](images[:1])) == 1
    for other in (
        draw_dsa(dsa_config, 1, "view", 4, indices=some, step=2),
        draw_dsa(dsa_config, 0, "view", 5, indices=some, step=2),
    ):
        assert not torch.equal(other.uniform, few.uniform)
    step = draw_dsa(dsa_config, 0, "view", 4, indices=some, step=3)
    assert torch.equal(step.uniform, few.uniform), "a step chooses the operation alone"


def test_operations_are_equally_likely(dsa_config: DsaConfig) -> None:
    count = 6000
    index = torch.arange(1)
    drawn = [
        draw_dsa(dsa_config, 0, "v", indices=index, step=step).operation for step in range(count)
    ]
    frequencies = torch.tensor([float(drawn.count(name)) for name in EVERY])
    assert ((frequencies - 1000).square() / 1000).sum().item() < 26, "tail of 5 degrees of freedom"
    epochs = {draw_shared_dsa(dsa_config, 0, "v", epoch).operation for epoch in range(60)}
    assert epochs == set(EVERY)
    assert {draw_dsa(replace(dsa_config, operations=("crop",)), 0, indices=index).operation} == {
        "crop"
    }


def test_impossible_strengths_are_refused(dsa_config: DsaConfig) -> None:
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"operations": ()}, "dsa: operations must name at least one"),
        ({"scale": 0.5}, "dsa.scale must be at least 1; got 0.5"),
        ({"cutout": -0.1}, "dsa.cutout must be at least 0; got -0.1"),
    )
    for change, message in changes:
        with pytest.raises(TeddyError, match=message):
            from_json(DsaConfig, to_json(dsa_config) | change, "dsa")
