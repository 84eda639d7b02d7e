"""Images decoded from files: torchvision's bits, whatever the workers; refusals of bad files.

Files are generated: photographs are stood in for by smooth colours, in mixed sizes and modes.
"""

import io
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as reference

from teddy.core.errors import TeddyError
from teddy.data import lazy_images as streaming
from teddy.data.augmentation import draw_views
from teddy.data.decoding import centre_view
from teddy.data.images import Normalisation
from teddy.data.lazy_images import ImageFiles
from teddy.settings.configs import ViewConfig

SIZES = [(40, 30), (30, 40), (33, 33), (16, 64), (64, 16), (90, 71), (16, 16)]
COUNT = 75  # more than two chunks
NORMALISATION = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
VIEWS = ViewConfig(crop_scale=0.08, hflip=True, roll=(-2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG and PNG; RGB, grey, palette and RGBA."""
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(SIZES[index % 7], Image.Resampling.BICUBIC)
        jpeg = index % 2 == 0
        mode = ("RGB", "L")[index % 3 // 2] if jpeg else ("RGB", "L", "P", "RGBA")[index % 4]
        image.convert(mode).save(root / f"{index:03}.{'jpg' if jpeg else 'png'}")
    return root


def files(folder: Path, size: int, channels: int = 3) -> ImageFiles:
    """All of them, in the order of their numbers; the label of image ``i`` is ``10 i``."""
    paths = sorted(folder.iterdir())
    names, sizes = [path.name for path in paths], [path.stat().st_size for path in paths]
    return ImageFiles(folder, names, sizes, 10 * torch.arange(len(paths)), size, channels)


def original(folder: Path, index: int, mode: str = "RGB") -> Image.Image:
    """An image as the plainest program reads it."""
    with Image.open(sorted(folder.iterdir())[index]) as image:
        return image.convert(mode)


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.atleast_3d(np.asarray(image)).copy()).permute(2, 0, 1)


def epoch(images: ImageFiles, parts: list[Tensor], item: int = 0) -> Tensor:
    """Normalised pixels of all parts, concatenated."""
    batches = list(images.train_batches(parts, VIEWS, NORMALISATION, 3, "view", item))
    for part, (pixels, labels) in zip(parts, batches, strict=True):
        assert pixels.shape == (len(part), *images.shape)
        assert torch.equal(labels, images.labels[part])
    return torch.cat([pixels for pixels, _ in batches])


@pytest.fixture(params=[1, 2, 3])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """0, 1 or 2 processes that decode."""
    monkeypatch.setenv("TEDDY_WORKERS", str(request.param))
    return int(request.param) - 1


def expected_view(folder: Path, index: int, size: int, mode: str) -> Tensor:
    """By torchvision, the box drawn alone."""
    image = original(folder, index, mode)
    views = draw_views(
        VIEWS, image.height, image.width, 3, "view", 0, indices=torch.tensor([index])
    )
    cut = reference.resized_crop(image, *views.box[0].tolist(), [size, size])
    cut = reference.hflip(cut) if views.flip.item() else cut
    return torch.roll(tensor(cut), views.shift[0].tolist(), (1, 2))


def test_training_views_have_the_bits_of_torchvision_for_any_workers(
    folder: Path, workers: int
) -> None:
    images = files(folder, 24)
    got = epoch(images, list(torch.arange(COUNT).split(70)))
    want = torch.stack([expected_view(folder, index, 24, "RGB") for index in range(COUNT)])
    assert torch.equal(got, NORMALISATION.apply(want))


def test_order_and_size_of_parts_do_not_change_an_image(folder: Path, workers: int) -> None:
    images = files(folder, 24)
    plain = epoch(images, list(torch.arange(COUNT).split(70)))
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    parts = list(order.split([1, 40, 30, 4]))
    assert torch.equal(epoch(images, parts), plain[order])
    assert not torch.equal(epoch(images, parts, item=1), plain[order])


def test_grey_networks_see_grey_images(folder: Path) -> None:
    got = list(
        files(folder, 24, channels=1).train_batches(
            [torch.tensor([1, 4])], VIEWS, Normalisation((0.0,), (1 / 255,)), 3, "view", 0
        )
    )
    want = torch.stack([expected_view(folder, index, 24, "L") for index in (1, 4)])
    torch.testing.assert_close(got[0][0], want.float(), rtol=0, atol=1e-4)


def test_box_of_a_square_image_is_that_of_images_in_memory() -> None:
    indices, side = torch.arange(500), torch.full((500,), 33)
    here = draw_views(VIEWS, 33, 33, 3, "view", 0, indices=indices)
    there = draw_views(VIEWS, side, side, 3, "view", 0, indices=indices)
    for name in ("box", "flip", "shift"):
        assert torch.equal(getattr(here, name), getattr(there, name))


def test_training_does_not_touch_the_global_generator(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_WORKERS", "2")
    before = torch.get_rng_state()
    epoch(files(folder, 8), list(torch.arange(COUNT).split(40)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [24, 127, 128, 140])
def test_evaluation_sees_what_torchvision_would_show(folder: Path, size: int, workers: int) -> None:
    short = round(size * 256 / 224) if size >= 128 else size
    plain = transforms.Compose([transforms.Resize(short), transforms.CenterCrop(size)])
    want = torch.stack([tensor(plain(original(folder, index))) for index in range(COUNT)])
    images = files(folder, size)
    batches = list(images.test_batches(70))
    assert [len(labels) for _, labels in batches] == [70, 5]
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), want)
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    chosen = torch.tensor([74, 3, 3])
    assert torch.equal(images.pick(chosen), want[chosen])
    assert torch.equal(
        torch.cat(list(images.whole_batches([chosen, chosen[:1]])))[:3], want[chosen]
    )


def test_image_of_the_right_size_is_seen_as_it_is() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(centre_view(Image.fromarray(pixels), 24)), pixels)


def test_another_device_keeps_everything_else(folder: Path) -> None:
    moved = files(folder, 24).to("cpu")
    assert len(moved) == COUNT
    assert moved.shape == (3, 24, 24)
    assert torch.equal(moved.pick(torch.tensor([5])), files(folder, 24).pick(torch.tensor([5])))


def test_nothing_to_decode(folder: Path) -> None:
    assert files(folder, 24).pick(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 24, 24)


# ----------------------------------------------------------------------------------- refusals


def spoil(path: Path, how: str) -> None:
    if how in ("gone", "a pipe"):
        path.unlink()
    if how == "a pipe":
        os.mkfifo(path)
    elif how == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    elif how == "not an image":
        path.write_bytes(b"?" * path.stat().st_size)
    elif how == "damaged":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    elif how == "sixteen bits":
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(buffer, "png")
        path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("gone", "cannot read: No such file"),
        ("a pipe", "cannot read: not a regular file"),
        ("longer", "bytes, but had"),
        ("not an image", "cannot be decoded"),
        ("damaged", "cannot be decoded"),
        ("sixteen bits", "more than 8 bits"),
    ],
)
def test_bad_file_is_refused_by_name_in_one_line(
    tmp_path: Path, how: str, message: str, workers: int
) -> None:
    for index in range(80):
        Image.effect_noise((40, 40), 50).save(tmp_path / f"{index:02}.png")
    images = files(tmp_path, 8, channels=1)
    spoil(tmp_path / "50.png", how)
    if how == "sixteen bits":
        images = files(tmp_path, 8, channels=1)
    parts = list(torch.arange(80).split(40))
    batches = images.train_batches(parts, VIEWS, Normalisation((0.0,), (1.0,)), 0)
    assert len(next(batches)[0]) == 40
    with pytest.raises(TeddyError) as caught:
        next(batches)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "50.png"))
    assert message in text
    assert text.endswith("run the prepare stage again")
    assert ("prepare.on_unreadable: skip" in text) == ("decoded" in message or "bits" in message)
    assert "\n" not in text


def test_crops_of_wide_images_obey_their_bounds() -> None:
    height = torch.tensor([10, 300, 40, 500] * 500)
    width = torch.tensor([300, 10, 41, 375] * 500)
    box = draw_views(VIEWS, height, width, 0, "v", indices=torch.arange(2000)).box
    top, left, box_height, box_width = box.unbind(1)
    for start, length, side in ((top, box_height, height), (left, box_width, width)):
        assert ((start >= 0) & (length >= 1) & (start + length <= side)).all()
    wide = (width == 300) & (box_height == 10) & (box_width == 13)
    assert (left[wide] == math.floor((300 - 13) / 2)).sum() > 50, "torchvision's fallback"


def test_killed_worker_is_one_line_with_advice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: object, entries: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    assert hasattr(streaming._Decoder, "decode")
    monkeypatch.setattr(streaming._Decoder, "decode", die)
    monkeypatch.setattr(streaming, "cores", lambda: 2)
    with pytest.raises(TeddyError, match=r"one of 1 processes .* was killed.*TEDDY_WORKERS"):
        files(folder, 8).pick(torch.arange(COUNT))
