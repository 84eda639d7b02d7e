"""FKD soft labels: written for SRe2L's trainer and read from it.

What their loader does is written down here once more, from the description of the format. No GPU,
no downloads.
"""

import dataclasses
import math
import os
import pickle
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as vision

import teddy
from teddy.core.errors import TeddyError
from teddy.core.files import read_json, write_json
from teddy.data.datasets import ImageDataset
from teddy.data.distilled import DistilledSet, save_distilled
from teddy.data.images import Normalisation
from teddy.data.preparation import write_dataset
from teddy.settings.configs import EvaluateConfig, NetworkConfig, OptimizerConfig, RelabelConfig
from teddy.settings.rows import Evaluation
from teddy.settings.schema import to_json
from teddy.settings.stages import EvaluateSettings, OwnLabels
from teddy.sharing import bundles, fkd
from teddy.sharing.fkd import Fkd, FkdBatch, export_fkd, fkd_bytes, mixed_views, read_fkd
from teddy.sharing.formats import fkd as fkd_folder
from teddy.sharing.formats.fkd import Options
from teddy.sharing.training_set import Recipe, TrainingSet
from teddy.stages.commands import main
from teddy.teachers.pools import Pool, open_pool

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
BATCH = 4
NORMALISATION = Normalisation((0.5,), (0.25,))


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEDDY_WORKERS", "1")
    monkeypatch.setenv("TEDDY_DEVICE", "cpu")


@pytest.fixture
def teachers(tmp_path: Path, pool: Pool) -> Path:
    """The pool with its manifest."""
    shutil.copytree(pool.folder, tmp_path / "pool")
    write_json(tmp_path / "pool" / "manifest.json", {"members": pool.entries})
    return tmp_path / "pool"


@pytest.fixture
def recipe(
    relabel_config: RelabelConfig, network_config: NetworkConfig, optimizer_config: OptimizerConfig
) -> Recipe:
    evaluate = EvaluateConfig(
        network=network_config, batch_size=4, optimizer=optimizer_config, temperature=7.0,
        temperature_squared=False, seeds=(0,), eval_epochs=1, precision="float32",
        divergence=False,
    )  # fmt: skip
    return Recipe(seed=3, relabel=relabel_config, evaluate=evaluate)


@pytest.fixture
def data(dataset: ImageDataset, recipe: Recipe) -> TrainingSet:
    """Ten images; the classes are not in order, and not equally many."""
    images = dataset.train.pick(torch.arange(10))
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 1, 0, 2, 2])
    made = DistilledSet(images, labels, dataset.class_names, dataset.normalisation, {})
    return TrainingSet(made, Path("set.safetensors"), recipe)


@pytest.fixture
def export(data: TrainingSet, teachers: Path, tmp_path: Path) -> Path:
    return export_fkd(data, teachers, tmp_path / "out", batch_size=BATCH)


# ------------------------------------------------------------------------- the labels of the views


def as_their_loader(export: Path, side: int = 8) -> Iterator[tuple[Tensor, Tensor, list[Any]]]:
    """Batches of every epoch as their trainer gets them: pixels in [0, 1], classes, file."""
    folder = ImageFolder(str(export / "images"))
    generator = torch.Generator().manual_seed(42)
    for epoch in sorted((export / "fkd").iterdir(), key=lambda path: int(path.name[6:])):
        order = list(RandomSampler(folder, generator=generator))
        for number in range(math.ceil(len(order) / BATCH)):
            config = torch.load(epoch / f"batch_{number}.tar")  # as it is: weights alone
            views, classes = [], []
            for place, index in enumerate(order[number * BATCH : (number + 1) * BATCH]):
                image, label = folder[index]
                top, left, tall, wide = (
                    share.item() * side for share in config[0][place]
                )  # fmt: skip
                view = vision.resized_crop(image, top, left, tall, wide, [side, side])
                view = vision.hflip(view) if config[1][place] else view
                views.append(vision.to_tensor(view))
                classes.append(label)
            images, (y1, x1, y2, x2) = torch.stack(views), config[4]
            images[:, :, y1:y2, x1:x2] = images[config[2], :, y1:y2, x1:x2]
            yield images, torch.tensor(classes), config


def ensemble(pool: Pool, data: TrainingSet, images: Tensor) -> Tensor:
    inputs = vision.normalize(
        images[:, :1], list(data.normalisation.mean), list(data.normalisation.std)
    )
    with torch.no_grad():
        return torch.stack([pool.member(i, CPU)(inputs) for i in range(len(pool))]).mean(0)


def test_labels_are_those_of_the_views_that_their_loader_makes(
    export: Path, data: TrainingSet, pool: Pool
) -> None:
    seen, flipped, boxes = 0, 0, set()
    for images, _, config in as_their_loader(export):
        assert config[5].dtype == torch.float16
        labels = config[5].float()
        torch.testing.assert_close(labels, ensemble(pool, data, images), rtol=2e-3, atol=2e-3)
        other = ensemble(pool, data, images.flip(3))
        assert (labels - other).abs().max() > 0.05, "any view would have done"
        seen, flipped = seen + len(labels), flipped + int(config[1].sum())
        boxes.add(tuple(config[4]))
    assert seen == 5 * 10
    assert 10 < flipped < 40
    assert len(boxes) > 8


def test_our_reader_makes_the_same_views(export: Path) -> None:
    read, theirs = read_fkd(export), as_their_loader(export)
    folder = ImageFolder(str(export / "images"))
    for epoch, order in enumerate(read.order()):
        for batch, places in zip(read.epoch(epoch), order, strict=True):
            pictures = [folder[place][0] for place in places.tolist()]
            images, _, config = next(theirs)
            assert torch.equal(mixed_views(pictures, batch, (8, 8)), images)
            assert torch.equal(batch.logits, config[5])
    assert next(theirs, None) is None


def test_classes_are_those_of_the_set(export: Path, data: TrainingSet) -> None:
    """As the folder of images numbers them, whatever the order of the set."""
    first = next(as_their_loader(export))
    folder = ImageFolder(str(export / "images"))
    assert [label for _, label in folder.samples] == sorted(data.labels.tolist())
    order = next(iter(read_fkd(export).order()))[0]
    assert first[1].tolist() == [folder.samples[place][1] for place in order.tolist()]
    own = data.images[data.labels.argsort(stable=True)]
    for (picture, _), pixels in zip(folder, own, strict=True):
        assert torch.equal(vision.pil_to_tensor(picture), pixels.expand(3, -1, -1))
    assert Path(folder.samples[0][0]).relative_to(export).as_posix() == (
        "images/new000/class000_id000.png"
    )


def test_classes_stay_in_order_beyond_a_thousand(tmp_path: Path) -> None:
    """Folders are sorted as text."""
    labels = torch.arange(1001)
    images = (labels[:, None, None, None] % 251).expand(-1, 1, 2, 2).to(torch.uint8)
    made = DistilledSet(images, labels, tuple(map(str, labels.tolist())), NORMALISATION, {})
    fkd._write_images(tmp_path, TrainingSet(made, Path("set")), labels)
    found = [vision.pil_to_tensor(picture)[0, 0, 0] for picture, _ in ImageFolder(str(tmp_path))]
    assert torch.equal(torch.stack(found), images[:, 0, 0, 0])


def test_without_cutmix_boxes_are_empty(data: TrainingSet, teachers: Path, tmp_path: Path) -> None:
    """Their loader needs a box and partners in any case."""
    out = export_fkd(
        data, teachers, tmp_path / "out", 1, BATCH, cutmix=False, hflip=False, crop_scale=1.0
    )
    whole = vision.to_tensor  # views are the images themselves
    folder = ImageFolder(str(out / "images"))
    for batch, places in zip(
        read_fkd(out).epoch(0), next(read_fkd(out).order()), strict=True
    ):  # fmt: skip
        assert (batch.box, batch.kept) == ((0, 0, 0, 0), 1.0)
        pictures = [folder[place][0] for place in places.tolist()]
        if (batch.crops == torch.tensor([0.0, 0.0, 1.0, 1.0])).all():
            images = torch.stack([whole(picture) for picture in pictures])
            assert torch.equal(mixed_views(pictures, batch, (8, 8)), images)


def test_box_has_the_share_that_was_drawn() -> None:
    for kept in (0.0, 0.3, 0.75, 0.9):
        top, left, bottom, right = fkd._box((400, 200), kept, 0.5, 0.5)
        area = (bottom - top) * (right - left)
        assert area == pytest.approx((1 - kept) * 400 * 200, rel=0.03)
        for y, x in ((0.0, 0.0), (0.999, 0.0), (0.2, 0.999)):
            top, left, bottom, right = fkd._box((40, 20), kept, y, x)
            assert 0 <= top < bottom <= 40
            assert 0 <= left < right <= 20
    assert fkd._box((40, 20), 1.0, 0.5, 0.5) == (20, 10, 20, 10)


def test_crops_are_whole_pixels_of_the_allowed_size(export: Path) -> None:
    crops = torch.cat([batch.crops for batch in read_fkd(export).epoch(0)]) * 8
    assert torch.equal(crops, crops.round())
    scale = read_json(export / "export.json")["crop_scale"]
    assert (crops[:, 2] * crops[:, 3] >= scale * 64 - 8).all()


# -------------------------------------------------------------------------- bytes, sizes, resuming


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_equal_calls_give_equal_bytes(
    export: Path, data: TrainingSet, teachers: Path, tmp_path: Path
) -> None:
    torch.manual_seed(77)  # of no concern
    again = export_fkd(data, teachers, tmp_path / "again", batch_size=BATCH)
    assert contents(again) == contents(export)
    other = export_fkd(data, teachers, tmp_path / "other", batch_size=BATCH, seed=4)
    assert (
        contents(other)["fkd/epoch_0/batch_0.tar"] != (contents(export)["fkd/epoch_0/batch_0.tar"])
    )


def test_global_random_numbers_are_left_alone(
    data: TrainingSet, teachers: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    export_fkd(data, teachers, tmp_path / "out", 1, BATCH)
    found = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(found, torch.rand(1))


def test_folders_of_labels_hold_nothing_else(export: Path) -> None:
    """Their reader counts what lies in them."""
    assert sorted(path.name for path in (export / "fkd").iterdir()) == [
        f"epoch_{i}" for i in range(5)
    ]
    for epoch in (export / "fkd").iterdir():
        assert sorted(path.name for path in epoch.iterdir()) == [f"batch_{i}.tar" for i in range(3)]


def test_stopped_export_continues(
    export: Path, data: TrainingSet, teachers: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, write, written = tmp_path / "stopped", fkd._write_batch, list[Path]()

    def until_the_fifth(path: Path, batch: FkdBatch) -> None:
        if len(written) == 5:
            (path.parent / f".{path.name}.ab.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.relative_to(out.with_name("stopped.partial")))
        write(path, batch)

    monkeypatch.setattr(fkd, "_write_batch", until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        export_fkd(data, teachers, out, batch_size=BATCH)
    assert not out.exists()
    partial = out.with_name("stopped.partial")
    before = [(partial / path).stat().st_mtime_ns for path in written]
    monkeypatch.setattr(fkd, "_write_batch", write)
    with pytest.raises(TeddyError, match=r"stopped\.partial: is an unfinished export of another"):
        export_fkd(data, teachers, out, batch_size=BATCH, seed=9)
    export_fkd(data, teachers, out, batch_size=BATCH)
    assert [(out / path).stat().st_mtime_ns for path in written] == before
    assert contents(out) == contents(export)
    assert not partial.exists()


def test_size_is_known_before(export: Path) -> None:
    found = read_fkd(export).total_bytes
    assert found == sum(p.stat().st_size for p in (export / "fkd").rglob("*.tar"))
    assert fkd_bytes(10, 3, BATCH, 5) == pytest.approx(found, rel=0.01)


def test_disk_that_is_too_small_is_refused(
    data: TrainingSet, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10_000

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(TeddyError, match=r"out: needs .* KB more, .* the disk has 10\.0 KB left"):
        export_fkd(data, teachers, tmp_path / "out", batch_size=BATCH)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool"]


# --------------------------------------------------------------------------- settings and refusals


def test_recipe_says_what_views_are(export: Path, recipe: Recipe) -> None:
    record = read_json(export / "export.json")
    assert (record["epochs"], record["seed"]) == (recipe.relabel.epochs, 3)
    assert record["crop_scale"] == recipe.relabel.views.crop_scale
    assert "-T 7" in (export / "README.md").read_text(encoding="utf-8")
    assert "--batch-size 4 --epochs 5" in (export / "README.md").read_text(encoding="utf-8")


def test_set_without_recipe_gets_views_of_theirs(
    data: TrainingSet, teachers: Path, tmp_path: Path
) -> None:
    bare = TrainingSet(data, data.path)
    record = read_json(export_fkd(bare, teachers, tmp_path / "out", 1) / "export.json")
    assert (record["crop_scale"], record["hflip"], record["cutmix"]) == (0.08, True, True)
    assert record["batch_size"] == len(data), "no more than there are"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"crop_scale": 1.5}, "crop_scale must be above 0 and at most 1, got 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    data: TrainingSet, teachers: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(TeddyError, match=words):
        export_fkd(data, teachers, tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool"]


def test_class_without_images_is_refused(data: TrainingSet, teachers: Path, tmp_path: Path) -> None:
    data.labels = data.labels.clamp(max=1)
    with pytest.raises(TeddyError, match=r"set\.safetensors: class 2, 'blob', has no image"):
        export_fkd(data, teachers, tmp_path / "out")


def test_teachers_of_other_images_are_refused(
    data: TrainingSet, teachers: Path, tmp_path: Path
) -> None:
    data.images = data.images.expand(-1, 3, -1, -1)
    with pytest.raises(TeddyError, match=r"member0\.safetensors: is a teacher of image_shape"):
        export_fkd(data, teachers, tmp_path / "out")


def test_labels_that_do_not_fit_are_refused(
    data: TrainingSet, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fkd, "ensemble_logits", lambda logits, how: 1e6 * logits.mean(0))
    with pytest.raises(TeddyError, match=r"pool: soft labels of epoch 1 do not fit into float16"):
        export_fkd(data, teachers, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written_to_is_named(
    data: TrainingSet, teachers: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(TeddyError, match=r"out\.partial/resume\.json: cannot write here"):
        export_fkd(data, teachers, tmp_path / "file" / "out")


def test_what_is_there_is_not_written_over(
    export: Path, data: TrainingSet, teachers: Path, tmp_path: Path
) -> None:
    with pytest.raises(TeddyError, match="out: is there already"):
        export_fkd(data, teachers, export)
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(TeddyError, match=r"mine\.partial: .* no unfinished export"):
        export_fkd(data, teachers, tmp_path / "mine")


# ------------------------------------------------------------------------------- files of peers


def entries(count: int = 4, classes: int = 3) -> list[Any]:
    """A batch as SRe2L's code saves it: the box has numbers of NumPy."""
    crops = torch.tensor([0.25, 0.0, 0.5, 0.75]).repeat(count, 1)
    box = [np.int64(1), np.int64(0), np.int64(6), np.int64(5)]
    logits = torch.arange(count * classes).view(count, classes).half()
    flips = torch.tensor([True, False] * (count // 2))
    return [crops, flips, torch.arange(count).flip(0), 0.3, box, logits]


def peer(folder: Path, batches: tuple[int, ...] = (4, 4, 2), epochs: int = 2) -> Path:
    for epoch in range(epochs):
        (folder / f"epoch_{epoch}").mkdir(parents=True)
        for number, count in enumerate(batches):
            torch.save(entries(count), folder / f"epoch_{epoch}" / f"batch_{number}.tar")
    return folder


def test_files_of_a_peer_are_read(tmp_path: Path) -> None:
    folder = peer(tmp_path / "FKD_cutmix_fp16")
    (folder / ".DS_Store").write_bytes(b"")
    read = read_fkd(folder)
    assert (read.epochs, read.batches, read.batch_size) == (2, 3, 4)
    assert (read.images, read.num_classes) == (10, 3)
    assert read.summary().startswith("2 epochs of 10 images in batches of 4, 3 classes, ")
    batch = read.batch(1, 0)
    assert batch.partners is not None
    assert (batch.box, batch.kept, batch.partners.tolist()) == ((1, 0, 6, 5), 0.3, [3, 2, 1, 0])
    assert [len(batch) for batch in read.epoch(0)] == [4, 4, 2]
    with pytest.raises(IndexError, match=r"epoch 2, batch 0 of 2 × 3"):
        read.batch(2, 0)


def test_numbers_of_numpy_are_why_theirs_need_more_than_weights(tmp_path: Path) -> None:
    folder = peer(tmp_path / "theirs")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(folder / "epoch_0" / "batch_0.tar")


def test_mixup_and_no_mixing_are_read(tmp_path: Path) -> None:
    folder = peer(tmp_path / "theirs", batches=(4,), epochs=1)
    given, path = entries(), folder / "epoch_0" / "batch_0.tar"
    torch.save([*given[:4], None, given[5]], path)
    batch = read_fkd(folder).batch(0, 0)
    pictures = [vision.to_pil_image(torch.full((3, 8, 8), i / 4)) for i in range(4)]
    plain = torch.stack([vision.to_tensor(picture) for picture in pictures])
    mixed = mixed_views(pictures, batch, (8, 8))
    torch.testing.assert_close(mixed, 0.3 * plain + 0.7 * plain.flip(0))
    torch.save([*given[:2], None, None, None, given[5], torch.arange(4)], path)  # G-VBSM's seventh
    batch = read_fkd(folder).batch(0, 0)
    assert (batch.partners, batch.kept, batch.box) == (None, None, None)
    assert torch.equal(mixed_views(pictures, batch, (8, 8)), plain)


class Trap:
    """Would make a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    folder = peer(tmp_path / "theirs")
    torch.save([*entries()[:5], Trap(tmp_path / "run")], folder / "epoch_0" / "batch_0.tar")
    with pytest.raises(TeddyError, match=r"batch_0\.tar: damaged, or not a list of tensors"):
        read_fkd(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, torch.zeros(4, 4), "crops must lie within their images"),
        (0, torch.full((4, 4), 0.6), "crops must lie within their images"),
        (0, torch.full((4, 4), math.nan), "crops must lie within their images"),
        (0, torch.ones(3, 4), "crops must be float32 of 4 × 4; got float32 of 3 × 4"),
        (0, None, "crops must be float32 of 4 × 4; got a NoneType"),
        (1, torch.zeros(4), "flips must be bool of n; got float32 of 4"),
        (1, torch.zeros(0, dtype=torch.bool), "flips must be bool of n; got bool of 0"),
        (2, torch.tensor([0, 1, 2, 4]), "partners must be positions in the batch, 0 to 3"),
        (2, torch.tensor([0, 1, 2, -1]), "partners must be positions in the batch, 0 to 3"),
        (2, torch.zeros(4), "partners must be int64 of 4; got float32 of 4"),
        (3, 1.5, "the share of an image must be from 0 to 1; got 1.5"),
        (3, math.nan, "the share of an image must be from 0 to 1; got nan"),
        (3, "half", "the share of an image must be from 0 to 1; got 'half'"),
        (4, [0, 0, 1], "the box must be top, left, bottom and right in pixels; got"),
        (4, [3, 0, 1, 1], "the box must be top, left, bottom and right in pixels; got"),
        (4, [-1, 0, 1, 1], "the box must be top, left, bottom and right in pixels; got"),
        (5, torch.zeros(4), "soft labels must be finite floats of 4 × K; got float32 of 4"),
        (5, torch.zeros(4, 0), "soft labels must be finite floats of 4 × K; got float32 of 4 × 0"),
        (5, torch.full((4, 3), math.inf), "4 × K; got float32 of 4 × 3, some of them not finite"),
        (5, torch.zeros(4, 3).long(), "soft labels must be finite floats of 4 × K; got int64"),
    ],
)
def test_damaged_batches_are_refused_in_one_line(
    tmp_path: Path, place: int, value: Any, words: str
) -> None:
    folder, given = peer(tmp_path / "theirs"), entries()
    given[place] = value
    torch.save(given, folder / "epoch_0" / "batch_0.tar")
    with pytest.raises(TeddyError) as caught:
        read_fkd(folder)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(folder / "epoch_0" / "batch_0.tar"))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_batches_are_refused(tmp_path: Path) -> None:
    folder = peer(tmp_path / "theirs")
    path = folder / "epoch_0" / "batch_0.tar"
    whole = path.read_bytes()
    for content in (b"", b"x" * 100, whole[:200], whole[:-300]):
        path.write_bytes(content)
        with pytest.raises(TeddyError, match=r"batch_0\.tar: damaged, or not a list"):
            read_fkd(folder)
    for saved in (entries()[:5], {"a": torch.zeros(1)}):
        torch.save(saved, path)
        with pytest.raises(TeddyError, match=r"batch_0\.tar: expected crops, flips, partners"):
            read_fkd(folder)


def without(name: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("epoch_0"), r"epoch_0: is missing, though FKD counts from 0 without a gap"),
        (without("epoch_0/batch_1.tar"), r"batch_1\.tar: is missing, though FKD counts from 0"),
        (without("epoch_1/batch_2.tar"), r"epoch_1: must have 3 batches as epoch_0; got 2"),
        (without(""), r"theirs: expected a folder with epoch_0, cannot read it: No such file"),
    ],
)
def test_gaps_are_refused(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    folder = peer(tmp_path / "theirs")
    damage(folder)
    with pytest.raises(TeddyError, match=words):
        read_fkd(folder)


def test_batch_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = peer(tmp_path / "theirs")
    torch.save(entries(4, classes=5), folder / "epoch_1" / "batch_1.tar")
    torch.save(entries(2), folder / "epoch_0" / "batch_1.tar")
    read: Fkd = read_fkd(folder)
    with pytest.raises(TeddyError, match=r"batch_1\.tar: soft labels must be 4 × 3 .* got 4 × 5"):
        list(read.epoch(1))
    with pytest.raises(TeddyError, match=r"batch_1\.tar: soft labels must be 4 × 3 .* got 2 × 3"):
        list(read.epoch(0))


def test_classes_are_compared_with_a_prepared_dataset(tmp_path: Path) -> None:
    folder, prepared = peer(tmp_path / "theirs"), tmp_path / "prepared"
    write_json(prepared / "manifest.json", {"class_names": ["a", "b", "c"]})
    assert read_fkd(folder, prepared).num_classes == 3
    write_json(prepared / "manifest.json", {"class_names": ["a", "b"]})
    with pytest.raises(TeddyError, match=r"theirs: .* have 3 classes, but .*prepared has 2"):
        read_fkd(folder, prepared)
    with pytest.raises(TeddyError, match="expected a prepared dataset"):
        read_fkd(folder, tmp_path / "nothing")


# ----------------------------------------------------------------------------------- the commands

ROW = "stripes/main/ipc3/mine"


@pytest.fixture
def prepared(tmp_path: Path, dataset: ImageDataset) -> Path:
    write_dataset(tmp_path / "prepared", dataset, {"source": "stripes"})
    return tmp_path / "prepared"


@pytest.fixture
def checkout(
    data: TrainingSet, teachers: Path, recipe: Recipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """A set of a checkout, without labels beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teachers, "models/stripes/prior")
    save_distilled(Path(f"data/distilled/{ROW}/0.safetensors"), data)
    evaluation = Evaluation(
        name=ROW, dataset="stripes", data="stripes", set=ROW, method="mine", ipc=3,
        pool="stripes/prior", members=0, labels=("soft",),
    )  # fmt: skip
    settings = EvaluateSettings(
        evaluation=evaluation, seed=recipe.seed, syntheses=1, relabel=recipe.relabel,
        own=OwnLabels(pool="stripes/prior", relabel=recipe.relabel), config=recipe.evaluate,
    )  # fmt: skip
    write_json(Path(f"inputs/evaluate/{ROW}.json"), to_json(settings))
    return tmp_path


def command(*arguments: str) -> None:
    """Of the stripes, whose names are not sorted."""
    main([*arguments, "--format", "fkd", "--class-order", "ours"])


def test_command_takes_teachers_and_recipe_of_the_checkout(
    checkout: Path, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("export", f"data/distilled/{ROW}", "--out", "mine")
    assert contents(Path("mine")) == contents(export)
    told = capsys.readouterr().err
    assert "5 epochs of 10 images in batches of 4, 3 classes" in told
    assert "labelled by 3 teachers of models/stripes/prior, views of the set's recipe" in told


def test_command_takes_options_first(
    checkout: Path, data: TrainingSet, capsys: pytest.CaptureFixture[str]
) -> None:
    save_distilled(Path("set.safetensors"), data)
    with pytest.raises(SystemExit):
        command("export", "set.safetensors", "--out", "mine")
    assert capsys.readouterr().err == (
        "error: set.safetensors: nothing beside it tells which teachers label its views; name them "
        "with --pool models/<pool>\n"
    )
    command(
        "export", "set.safetensors", "--out", "mine", "--pool", "pool", "--epochs", "2",
        "--batch-size", "5",
    )  # fmt: skip
    read = read_fkd("mine")
    assert (read.epochs, read.batch_size, read.batches) == (2, 5, 2)
    assert "views of SRe2L, for want of a recipe" in capsys.readouterr().err


def test_command_refuses_what_it_cannot_do(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, words in (
        ("--jpeg", "--jpeg belongs to --format imagefolder; got --format fkd"),
        ("--lr=1", "--lr belongs to --format pt; got --format fkd"),
        ("--epochs=0", "epochs must be 1 or more, got 0"),
        ("--pool=nothing", "nothing: expected a pool"),
        (
            "--out=mine.zip",
            "mine.zip: expected a folder to write, got the name of an",
        ),
    ):
        with pytest.raises(SystemExit):
            command("export", f"data/distilled/{ROW}", "--out", "mine", option)
        assert words in capsys.readouterr().err
    for option in ("--pool=pool", "--epochs=2", "--batch-size=5"):
        with pytest.raises(SystemExit):
            main(["export", "set", "--format", "pt", "--out", "mine", option])
        name = option.partition("=")[0]
        assert f"{name} belongs to --format fkd; got --format pt" in capsys.readouterr().err
    assert not list(Path().glob("mine*"))


def test_bundle_brings_its_teachers(data: TrainingSet, teachers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(teachers, folder / "teachers")
    (folder / "labels").mkdir()
    for name in ("recipe.yaml", "images.csv", "numbers.json", "labels/manifest.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    bundles.write_sums(folder)
    data.path, data._labels = folder, (folder / "labels", {})
    own = Options(epochs=1)
    assert f"3 teachers of {folder}, views" in fkd_folder.write(tmp_path / "out", data, own)
    (folder / "teachers" / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(TeddyError, match=r"bundle: teachers/manifest\.json is altered"):
        fkd_folder.write(tmp_path / "again", data, own)


@pytest.mark.parametrize("order", ["sorted", "ours"])
def test_classes_may_be_in_the_order_of_their_names(
    checkout: Path, data: TrainingSet, dataset: ImageDataset, order: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As a peer's validation numbers Tiny-ImageNet, whose ids are not sorted here."""
    names = ("n3", "n1", "n2")
    places = [1, 2, 0] if order == "sorted" else [0, 1, 2]
    data.class_names = names
    write_dataset(
        Path("prepared"), dataclasses.replace(dataset, class_names=names), {"source": "stripes"}
    )
    save_distilled(Path(f"data/distilled/{ROW}/0.safetensors"), data)
    with pytest.raises(SystemExit):
        main(["export", f"data/distilled/{ROW}", "--out", "mine", "--format", "fkd"])
    assert "expected --class-order" in capsys.readouterr().err
    main([
        "export", f"data/distilled/{ROW}", "--format", "fkd", "--out", "mine", "--epochs=1",
        "--batch-size=1", f"--class-order={order}",
    ])  # fmt: skip
    assert read_json(Path("mine/export.json"))["classes"] == [names[place] for place in places]
    own = list(read_fkd("mine").epoch(0))
    pool, folder = open_pool(Path("models/stripes/prior")), ImageFolder("mine/images")
    counts = data.labels.bincount()[places].tolist()
    assert [folder.targets.count(label) for label in range(3)] == counts
    for batch, where in zip(own, next(iter(read_fkd("mine").order())), strict=True):
        view = mixed_views([folder[int(where)][0]], batch, (8, 8))
        logits = ensemble(pool, data, view)[:, places]
        assert torch.allclose(batch.logits.float(), logits, atol=2e-3, rtol=2e-3)
    given = ["import", "mine", "--classes-of", "prepared", "--out", "new.safetensors"]
    main([*given, "--format", "fkd"])  # the record tells
    back, by_class = teddy.load("new.safetensors"), data.labels.argsort(stable=True)
    again = back.labels.argsort(stable=True)
    assert torch.equal(back.images[again], data.images[by_class])
    assert torch.equal(back.labels[again], data.labels[by_class])


def test_import_reads_images_and_checks_labels(
    export: Path, data: TrainingSet, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export.with_name("new.safetensors")
    given = ["import", str(export), "--classes-of", str(prepared), "--out", str(out)]
    command(*given)
    back, places = teddy.load(out), data.labels.argsort(stable=True)
    order = back.labels.argsort(stable=True)
    assert torch.equal(back.images[order], data.images[places])
    assert torch.equal(back.labels[order], data.labels[places])
    told = capsys.readouterr().err
    assert "5 epochs of 10 images in batches of 4" in told and "are sound; they are not" in told
    out.unlink()
    batch, record = export / "fkd" / "epoch_3" / "batch_1.tar", export / "export.json"
    whole, classes = batch.read_bytes(), record.read_bytes()

    def refused(words: str) -> None:
        with pytest.raises(SystemExit):
            command(*given)
        assert words in capsys.readouterr().err
        assert not out.exists()

    batch.write_bytes(whole[:-300])
    refused("epoch_3/batch_1.tar: damaged, or not a list")
    batch.write_bytes(whole)
    names = read_json(record)
    write_json(record, names | {"classes": [names["classes"][place] for place in (1, 0, 2)]})
    refused("export.json: classes are in another order")
    record.write_bytes(classes)
    next((export / "images").glob("*/class000_id001.png")).unlink()
    refused("has soft labels of 10 images, but")
    shutil.rmtree(export / "images")
    refused("expected images/ with class folders beside the soft labels, found none")


# --------------------------------------------------------------------------- the trainers of peers

LIKE_THEIR_READER = """
class RandomResizedCropWithCoords:
    def __init__(self, **given):
        self.given = given
"""
LIKE_THEIR_TRAINER = """
import sys, torch, torchvision, wandb
sys.path.append("..")
from torch import nn
from torchvision import transforms
from relabel.utils_fkd import RandomResizedCropWithCoords
from utils import mine

class Images:
    mode = "fkd_load"
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return index
    def load_batch_config(self, first):
        return torch.tensor([1, 0]), 0.5, [0, 0, 4, 4], torch.full((2, 3), float(first))

assert __name__ == "__main__" and torch.cuda.is_available() and mine
wandb.login(key=None)
wandb.init(project="mine", name="x")
assert RandomResizedCropWithCoords(size=224, scale=(0.08, 1)).given == {
    "size": [8, 8], "scale": (0.08, 1)
}
statistics = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
assert len(statistics.mean) == 3 and statistics.mean[0] == statistics.mean[2] != 0.485
assert transforms.Resize(256).size == transforms.CenterCrop(224).size == [8, 8]
model = nn.DataParallel(torchvision.models.__dict__["student"](pretrained=False)).cuda()
assert model(torch.zeros(2, 3, 8, 8).cuda()).shape == (2, 3)
for batch in torch.utils.data.DataLoader(Images(), batch_size=2, pin_memory=True):
    indices, partners, kept, box, labels = batch
    assert labels[0, 0] == indices[0]
assert sys.argv[-2:] == ["--adamw-lr", "0.01"], "what is not ours goes on"
given = " ".join(sys.argv)
assert "--batch-size 4 --epochs 5 -T 7.0" in given
folder = torchvision.datasets.ImageFolder(sys.argv[sys.argv.index("--val-dir") + 1])
assert [label for _, label in folder.samples] == [0] * 4 + [1] * 4 + [2] * 4
assert (sys.argv[sys.argv.index("--fkd-path") + 1] + "epoch_0").endswith("/fkd/epoch_0")
wandb.log({"val/top1": 12.5})
wandb.log({"train/loss": 1.0})
wandb.log({"val/top1": 11.0})
wandb.finish()
"""


def example(name: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since it changes others' modules."""
    command = [sys.executable, f"examples/{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_trainer_like_sre2ls_finds_what_it_needs(
    export: Path, prepared: Path, tmp_path: Path
) -> None:
    code = tmp_path / "peer" / "SRe2L"
    for name, text in {
        "relabel/__init__.py": "", "relabel/utils_fkd.py": LIKE_THEIR_READER,
        "validate/train_FKD.py": LIKE_THEIR_TRAINER, "validate/utils.py": "mine = True",
    }.items():  # fmt: skip
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(text, encoding="utf-8")
    done = example(
        "score_by_sre2l", tmp_path / "peer", export, "--data", prepared, "--width", 4,
        "--adamw-lr", "0.01",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        read_fkd(export).summary(),
        "SRe2L's trainer: 11.00 % on 12 images, best 12.50 %",
    ]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        (
            "score_by_sre2l",
            ["EXPORT"],
            r"train_FKD\.py: not found; expected a checkout of VILA-Lab",
        ),
        ("score_by_dd_ranking", ["--labels", "soft"], "--labels soft needs --pool, the teachers"),
        ("score_by_dd_ranking", ["--epochs", "10"], "--epochs must be 20 or more"),
    ],
)
def test_examples_say_what_they_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: list[str], words: str
) -> None:
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path), "--data", str(tmp_path), *given])
    main = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]
    with pytest.raises(TeddyError, match=words):
        main()


def test_missing_package_is_named_with_what_installs_it(
    data: TrainingSet, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.labels, data.images = torch.arange(9) % 3, data.images[:9]
    save_distilled(tmp_path / "set.safetensors", data)
    given = [str(tmp_path / "set.safetensors"), "--data", str(prepared)]
    monkeypatch.setattr(sys, "argv", ["score", *given])
    monkeypatch.setitem(sys.modules, "ddranking", None)
    main = runpy.run_path(str(ROOT / "examples" / "score_by_dd_ranking.py"))["main"]
    with pytest.raises(TeddyError, match="run: pip install --no-deps ddranking"):
        main()
