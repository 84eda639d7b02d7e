"""Pictures of distilled images, pixel for pixel: methods side by side, and one set alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from teddy.report.drawing import DPI, drawn, looks, styled
from teddy.report.results import ImageGrid
from teddy.settings.stages import Catalogue

Pixels = NDArray[np.uint8]

IMAGES_COMPARED = 3
"""Images per class in the grid that compares methods."""
_GAP, _BLOCK_GAP, _PAD = 2, 12, 10
"""White between tiles, between blocks of tiles, and around the picture; pixels."""
_TEXT = 8
"""Size of text in pictures; points."""


def method_grid(path: Path, grids: Sequence[ImageGrid], catalogue: Catalogue) -> None:
    """The same classes of one dataset side by side: a block of rows per method."""
    own = looks(list(catalogue.methods), {grid.method for grid in grids})
    ipcs = sorted({grid.ipc for grid in grids})
    title = f"{catalogue.datasets[grids[0].dataset].title}{_shown_classes(grids[0])}, " + (
        f"IPC {ipcs[0]}" if len(ipcs) == 1 else "IPC differs"
    )
    names = [
        catalogue.methods[grid.method].title + (f", IPC {grid.ipc}" if len(ipcs) > 1 else "")
        for grid in grids
    ]
    colours = [own[grid.method].colour for grid in grids]
    blocks = [grid.images[:IMAGES_COMPARED] for grid in grids]
    _picture(path, title, blocks, names, colours, [_class(name) for name in grids[0].class_names])


def class_grid(path: Path, grid: ImageGrid, catalogue: Catalogue) -> None:
    """Images of one set: a row per class."""
    dataset, method = catalogue.datasets[grid.dataset], catalogue.methods[grid.method]
    title = f"{dataset.title}{_shown_classes(grid)}, {method.title}, IPC {grid.ipc}"
    names = [_class(name) for name in grid.class_names]
    blocks = [grid.images[:, index][None] for index in range(len(names))]
    _picture(path, title, blocks, names, ["black"] * len(names), [], block_gap=_GAP)


def _shown_classes(grid: ImageGrid) -> str:
    shown = len(grid.class_names)
    return "" if shown == grid.num_classes else f" ({shown} of {grid.num_classes} classes)"


def _class(name: str) -> str:
    """First of a class's comma-separated names, cut to what fits beside an image.

    A name without a letter is shown as it is, in quotes.
    """
    names = (" ".join(part.split()) for part in name.split(","))
    first = next((part for part in names if part), repr(name))
    first = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in first
    )
    return first if len(first) <= 22 else first[:21] + "…"


def _picture(
    path: Path,
    title: str,
    blocks: Sequence[Pixels],
    left: Sequence[str],
    colours: Sequence[str],
    top: Sequence[str],
    block_gap: int = _BLOCK_GAP,
) -> None:
    """Blocks of tiles below each other, pixel for pixel.

    Args:
        path: PNG to write.
        title: line above everything.
        blocks: ``(rows, columns, H, W, C)`` each, all with as many columns.
        left: name of each block.
        colours: of those names.
        top: name of each column, or none at all.
        block_gap: white between blocks; pixels.
    """
    with styled():  # which widths of text follow too
        widths = {text: _pixels(text) for text in (title, *left, *top)}
    mosaics = [_mosaic(block) for block in blocks]
    width = mosaics[0].shape[1]
    pitch = (width + _GAP) / blocks[0].shape[1]
    longest = max((widths[name] for name in top), default=0.0)
    slanted = longest > pitch - 4
    line = round(_TEXT * DPI / 72 * 1.5)
    header = _PAD + line + (round(longest * 0.64 + 0.8 * line) if slanted else line * bool(top))
    margin = _PAD + round(max(widths[name] for name in left)) + _PAD
    overhang = round(widths[top[-1]] * 0.77) if slanted else 0
    total_width = margin + max(width + overhang, round(widths[title]) + 1 - margin) + _PAD
    total_height = header + sum(m.shape[0] + block_gap for m in mosaics) - block_gap + _PAD
    canvas = np.full((total_height, total_width, 3), 255, np.uint8)
    with drawn(path, total_width / DPI, total_height / DPI, svg=False) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.text(_PAD, _PAD, title, va="top", fontsize=_TEXT + 0.5)
        y = header
        for mosaic, name, colour in zip(mosaics, left, colours, strict=True):
            height = mosaic.shape[0]
            canvas[y : y + height, margin : margin + width] = mosaic
            axes.text(margin - _PAD, y + height / 2, name, ha="right", va="center", color=colour)
            y += height + block_gap
        for index, name in enumerate(top):
            x = margin + pitch * (index + 0.5)
            place = {"rotation": 40, "ha": "left"} if slanted else {"ha": "center"}
            axes.text(x, header - 4, name, va="bottom", rotation_mode="anchor", **place)
        axes.imshow(canvas, interpolation="nearest", aspect="auto")
        axes.set_axis_off()


def _pixels(text: str) -> float:
    """Width of text in pixels, a little more than its outline because drawn text is hinted."""
    return float(TextPath((0, 0), text, size=_TEXT + 0.5).get_extents().width) * DPI / 72 * 1.06


def _mosaic(images: Pixels) -> Pixels:
    """``(rows, columns, H, W, C)`` as one RGB image with white between."""
    rows, columns = images.shape[:2]
    tiles = [[_tile(images[row, column]) for column in range(columns)] for row in range(rows)]
    height, width = tiles[0][0].shape[:2]
    size = rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3
    mosaic = np.full(size, 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            y, x = row * (height + _GAP), column * (width + _GAP)
            mosaic[y : y + height, x : x + width] = tiles[row][column]
    return mosaic


def _tile(image: Pixels) -> Pixels:
    """Small images repeated pixel by pixel to about 72, large ones averaged to at most 112."""
    height, width = image.shape[:2]
    colour = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3]
    times, parts = max(1, 72 // max(height, width)), -(-max(height, width) // 112)
    if parts > 1:
        cut = colour[: height // parts * parts, : width // parts * parts]
        blocks = cut.reshape(height // parts, parts, width // parts, parts, 3)
        colour = blocks.mean((1, 3)).round().astype(np.uint8)
    return colour.repeat(times, axis=0).repeat(times, axis=1)
