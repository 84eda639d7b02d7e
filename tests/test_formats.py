"""Sets in formats of others, both ways: bit-exact where a format is lossless, refused in one line.

No GPU, no network; tests of Parquet need ``pyarrow`` and are skipped without it.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkouts import DIGITS, ROOT, command, tiny_checkout
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

import teddy
from teddy.core import user_code
from teddy.core.artifacts import WorkDir, write_tensors
from teddy.core.errors import TeddyError
from teddy.data.datasets import ImageDataset
from teddy.data.distilled import DistilledSet, save_distilled
from teddy.data.images import Images, Normalisation
from teddy.data.preparation import write_dataset
from teddy.settings.configs import SmallClasses
from teddy.settings.schema import from_json
from teddy.sharing import commands
from teddy.sharing.bundles import sha256 as sha256_of
from teddy.sharing.formats import converting, imagefolder, parquet, trajectories
from teddy.sharing.formats.classes import counted, in_order, labels_of, plain_folders
from teddy.sharing.formats.found import Wanted, by_index
from teddy.sharing.formats.pixels import psnr
from teddy.sharing.imported import Config, Imported
from teddy.sharing.training_set import FIXED_KIND, TrainingSet
from teddy.stages.commands import main
from teddy.stages.resolve import write_inputs
from teddy.synthesis.methods import Ingredients

NAMES = ("Zebra", "ant/eater", "cat")
UNSORTED = ("zebra", "ant/eater", "cat")
SIDE = 6


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Being in a folder of one's own, where logs go too."""
    monkeypatch.chdir(tmp_path)


def normalisation(channels: int) -> Normalisation:
    return Normalisation((0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels])


def distilled(
    channels: int = 1, counts: Sequence[int] = (3, 3, 3), names: tuple[str, ...] = NAMES
) -> DistilledSet:
    """Noise of every value, in the order of distilled sets."""
    generator = torch.Generator().manual_seed(channels)
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[by_index(labels)]
    shape = (len(labels), channels, SIDE, SIDE)
    images = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    return DistilledSet(images, labels, names, normalisation(channels), {"method": "noise"})


def real(
    channels: int = 1, names: tuple[str, ...] = NAMES, folder: Path = Path("real"), size: int = SIDE
) -> ImageDataset:
    """A prepared dataset of four images of a class, which is written."""
    labels = torch.arange(len(names)).repeat(4)
    images = torch.zeros(len(labels), channels, size, size, dtype=torch.uint8)
    train, val, test = (Images(images.clone(), labels.clone()) for _ in range(3))
    dataset = ImageDataset(train, val, test, names, normalisation(channels))
    write_dataset(folder, dataset, {})
    return dataset


def wanted(names: tuple[str, ...] = NAMES, order: str | None = None) -> Wanted:
    return Wanted(Path("real"), names, (1, SIDE, SIDE), normalisation(1), order=order)


def unread(read: Callable[[Path, Wanted], Any], path: str = "peer") -> str:
    """What a format says in one line of what it cannot read."""
    with pytest.raises(TeddyError) as error:
        read(Path(path), wanted())
    assert "\n" not in str(error.value)
    return str(error.value)


@cache
def parser() -> argparse.ArgumentParser:
    """The commands alone, made once: with all stages it takes longer than most tests."""
    own = argparse.ArgumentParser()
    commands.add_to(own.add_subparsers(required=True))
    return own


def run(arguments: list[str]) -> None:
    args = parser().parse_args(arguments)
    args.run(args)


def export(kind: str, *more: str, source: str = "set.safetensors", out: str = "out") -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    run(["export", source, "--format", kind, "--out", out, *more])


def import_(kind: str, *more: str, path: str = "out") -> DistilledSet:
    """Import for the dataset in ``real``."""
    run([
        "import", path, "--format", kind, "--out", "new.safetensors", "--classes-of", "real", *more,
    ])  # fmt: skip
    return teddy.load("new.safetensors")


def refused(capsys: pytest.CaptureFixture[str], kind: str, *more: str, path: str = "out") -> str:
    """What the import says that it refuses, having written nothing."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        import_(kind, *more, path=path)
    (line,) = capsys.readouterr().err.splitlines()
    assert not list(Path().glob("*new.safetensors*"))
    return line


# ---------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    ("channels", "counts", "names", "order"),
    [
        (1, (3, 3, 3), NAMES, ()),
        (3, (1, 4, 2), UNSORTED, ("--class-order=sorted",)),
        (3, (1, 4, 2), UNSORTED, ("--class-order=ours",)),
    ],
    ids=["in order", "sorted", "ours"],
)
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("imagefolder", ()),
        ("imagefolder", ("--layout", "sre2l")),
        ("imagefolder", ("--layout", "rded")),
        ("parquet", ()),
        ("pt", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_lossless_formats_give_back_the_same_set(
    kind: str, more: tuple[str, ...], channels: int, counts: Sequence[int],
    names: tuple[str, ...], order: tuple[str, ...],
) -> None:  # fmt: skip
    made = distilled(channels, counts, names)
    save_distilled(Path("set.safetensors"), made)
    real(channels, names)
    export(kind, *more, *order)
    back = import_(kind)  # what the export did is known
    assert torch.equal(back.images, made.images)
    assert torch.equal(back.labels, made.labels)
    assert back.class_names == names
    assert back.normalisation == normalisation(channels)
    assert back.provenance["method"] == "imported"
    assert back.provenance["format"] == kind
    for name, sha256 in back.provenance["files"].items():
        assert sha256_of(Path("out") / name) == sha256
    assert len(back.provenance["files"]) == {"imagefolder": sum(counts) + 1, "pt": 4}.get(kind, 1)
    if kind != "parquet":
        record = json.loads(Path("out/classes.json").read_text())
        assert record["class_order"] == ("sorted" if "--class-order=sorted" in order else "ours")
        Path("out/classes.json").unlink()  # without it the import has to be told
        Path("new.safetensors").unlink()
        path = "out/images" if kind == "imagefolder" else "out"
        again = import_(kind, *order, path=path)
        assert torch.equal(again.images, made.images)
        assert torch.equal(again.labels, made.labels)


@pytest.mark.parametrize("layout", imagefolder.LAYOUTS)
def test_class_folders_alone_tell_the_classes(layout: str) -> None:
    made = distilled(counts=(1, 4, 2))
    save_distilled(Path("set.safetensors"), made)
    real()
    export("imagefolder", "--layout", layout)
    assert [path.name for path in Path("out").iterdir() if path.is_dir()] == ["images"]
    back = import_("imagefolder", path="out/images")
    assert torch.equal(back.images, made.images)
    assert torch.equal(back.labels, made.labels)


def test_checksums_are_those_of_sha256sum() -> None:
    Path("file").write_bytes(b"abc")
    assert sha256_of(Path("file")).startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1
    with pytest.raises(TeddyError, match="gone"):
        sha256_of(Path("gone"))


def test_images_of_any_order_come_in_that_of_sets() -> None:
    labels = torch.tensor([2, 0, 0, 1, 0, 2])
    assert by_index(labels).tolist() == [1, 3, 0, 2, 5, 4]
    assert labels[by_index(labels)].tolist() == [0, 1, 2, 0, 2, 0]


# ---------------------------------------------------------------------------------- class folders


@pytest.mark.parametrize(
    ("layout", "first"),
    [
        ("plain", "0000_Zebra/00000.png"),
        ("sre2l", "new000/class000_id000.png"),
        ("rded", "00000/class00000_id00000.png"),
    ],
)
def test_torchvision_reads_class_folders_in_the_order_of_labels(layout: str, first: str) -> None:
    """More than ten classes and images, whose names sort in another order than their labels."""
    names = tuple(f"{chr(ord('z') - label)}{label}" for label in range(12))
    made = distilled(3, (11,) * 12, ("Zebra", *names[1:]))
    save_distilled(Path("set.safetensors"), made)
    export("imagefolder", "--layout", layout, "--class-order=ours")
    found = ImageFolder("out/images")
    assert Path(found.samples[0][0]) == Path("out/images", first)
    assert found.targets == made.labels.sort(stable=True).values.tolist()
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image, _ in found])
    assert torch.equal(pixels, made.images[made.labels.argsort(stable=True)])


@pytest.mark.parametrize("layout", imagefolder.LAYOUTS)
def test_more_numbers_than_a_layout_has_digits_keep_their_order(layout: str) -> None:
    classes = tuple(map(str, range(10_001)))
    labels = torch.cat([torch.arange(10_001), torch.zeros(1000, dtype=torch.int64)])
    folders, files = imagefolder.names_of(layout, classes, labels)
    assert folders == sorted(folders)
    first = [file for file, label in zip(files, labels.tolist(), strict=True) if label == 0]
    assert len(first) == 1001 and first == sorted(first)


def test_jpeg_says_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    made = distilled(3)
    save_distilled(Path("set.safetensors"), made)
    real(3)
    export("imagefolder", "--jpeg")
    text = capsys.readouterr().err
    back = import_("imagefolder")
    assert not torch.equal(back.images, made.images)
    costs = psnr(made.images, back.images)
    assert f"PSNR {costs.mean():.1f} dB on average, {costs.min():.1f} dB at worst" in text
    assert 20 < costs.min() < costs.mean() < 60
    said = f"JPEG of quality 95, which cost: PSNR {costs.mean():.1f} dB on average"
    assert said in capsys.readouterr().err
    assert back.provenance["jpeg_psnr_db"]["worst"] == pytest.approx(costs.min().item(), abs=0.01)


def test_psnr_is_that_of_its_definition() -> None:
    black = torch.zeros(2, 1, 2, 2)
    assert psnr(black, black).tolist() == [float("inf")] * 2
    one = black.clone()
    one[1, 0, 0, 0] = 10  # mean square of 25
    assert psnr(black, one)[1].item() == pytest.approx(10 * np.log10(255**2 / 25))


def test_options_of_other_formats_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    save_distilled(Path("set.safetensors"), distilled())
    for kind, option in (("pt", "--jpeg"), ("parquet", "--layout=rded"), ("imagefolder", "--lr=1")):
        with pytest.raises(SystemExit):
            main(["export", "set.safetensors", "--format", kind, "--out", "out", option])
        assert "belongs to --format" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export("pt", "--lr=0")
    assert "--lr must be above 0" in capsys.readouterr().err
    assert not Path("out").exists()


def test_sets_that_a_format_cannot_hold_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    save_distilled(Path("set.safetensors"), distilled(2))
    for kind in ("imagefolder", "parquet"):
        with pytest.raises(SystemExit):
            export(kind)
        assert "1 or 3 channels" in capsys.readouterr().err
    export("pt")
    save_distilled(Path("gap.safetensors"), distilled(1, (2, 0, 1)))
    with pytest.raises(SystemExit):
        export("imagefolder", source="gap.safetensors", out="gap")
    assert "class 'ant/eater' has no image" in capsys.readouterr().err
    assert not Path("gap").exists()
    with pytest.raises(SystemExit):
        export("pt")
    assert "out: is there already" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["new/x.zip", "x.tar.gz", "x.TGZ"])
def test_exports_are_folders(capsys: pytest.CaptureFixture[str], out: str) -> None:
    save_distilled(Path("set.safetensors"), distilled())
    with pytest.raises(SystemExit):
        export("pt", out=out)
    assert f"{out}: expected a folder to write, got the name of an" in capsys.readouterr().err
    assert not Path(out).exists() and not Path("new").exists()


@pytest.mark.parametrize("kind", commands.FORMATS)
def test_images_of_smaller_ones_are_refused(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    made = distilled()
    made.partition = 2
    save_distilled(Path("set.safetensors"), made)
    with pytest.raises(SystemExit):
        export(kind)
    (line,) = capsys.readouterr().err.splitlines()
    assert "set.safetensors: expected whole images, got 2×2 smaller ones in each" in line
    assert line.endswith("share it by: teddy pack")


def test_failures_leave_no_folders(capsys: pytest.CaptureFixture[str]) -> None:
    save_distilled(Path("set.safetensors"), distilled(2))
    with pytest.raises(SystemExit):
        export("imagefolder", out="a/b/out")
    assert "1 or 3 channels" in capsys.readouterr().err and not Path("a").exists()
    Path("there").mkdir()
    with pytest.raises(SystemExit):
        export("imagefolder", out="there/b/out")
    assert list(Path("there").iterdir()) == []  # it was there before
    real()
    Path("peer").mkdir()
    refused(capsys, "imagefolder", "--out=a/b/new.safetensors", path="peer")
    assert not Path("a").exists()


# ---------------------------------------------------------------------------------- whose classes


@pytest.mark.parametrize(
    ("found", "labels"),
    [
        (["b", "a", "c"], [1, 0, 2]),
        (["0", "1", "2"], [0, 1, 2]),
        (["00002", "00000", "00001"], [2, 0, 1]),
        (["new001", "new000", "new002"], [1, 0, 2]),
        (["0001_b", "0000_a", "0002_c"], [1, 0, 2]),
    ],
)
def test_folders_map_by_name_or_by_number(found: list[str], labels: list[int]) -> None:
    mapped, _ = labels_of(found, wanted(("a", "b", "c")), "here")
    assert [mapped[name] for name in found] == labels


@pytest.mark.parametrize(
    ("known", "found", "words"),
    [
        (("a", "b", "c"), ["a", "b"], "expected the 3 classes of real, .* got 2"),
        (("a", "b", "cat"), ["a", "b", "cats"], "got 'cats'; did you mean 'cat'"),
        (("a", "b", "c"), ["1", "2", "3"], "or the numbers 0 to 2; got '1'"),
        (("a", "b", "c"), ["0", "00", "1"], "got '0'"),
        (("1", "0", "2"), ["0", "1", "2"], "'0' may mean class 1 by its name, or class 0"),
        (
            tuple("abcdefghijk"), [str(i) for i in range(11)],
            "'10' may mean class 10 by its number, or class 2 by its place in sorted order",
        ),
    ],
)  # fmt: skip
def test_classes_that_cannot_be_told_are_refused(
    known: tuple[str, ...], found: list[str], words: str
) -> None:
    with pytest.raises(TeddyError, match=f"^here: .*{words}"):
        labels_of(found, wanted(known), "here")


def test_names_of_numbers_need_no_zeros() -> None:
    """They are their names, whatever torchvision makes of their order."""
    known = tuple(map(str, range(11)))
    assert labels_of(known, wanted(known), "here") == ({name: int(name) for name in known}, ())


def test_classes_in_order_are_those_of_the_dataset() -> None:
    known = wanted(("a", "b", "c"))
    assert in_order(["a", "b", "c"], known, "here") == ([0, 1, 2], "ours", ())
    assert in_order(["0", "1", "2"], known, "here").labels == [0, 1, 2]
    with pytest.raises(TeddyError, match=r"here: .*another order .* class 0 is 'b', not 'a'"):
        in_order(["b", "a", "c"], known, "here")
    with pytest.raises(TeddyError, match=r"here: .* got 'd'"):
        in_order(["a", "b", "d"], known, "here")
    with pytest.raises(TeddyError, match=r"here: .* got 4"):
        in_order(["a", "b", "c", "d"], known, "here")


def test_numbers_of_classes_count_what_is_said() -> None:
    """Tiny-ImageNet's ids are not sorted here, but in code that labels by torchvision."""
    names = ("n2", "n3", "n1")
    assert counted(names, "sorted", "here") == [2, 0, 1]
    assert counted(names, "ours", "here") == [0, 1, 2]
    assert counted(tuple(map(str, range(11))), None, "here") == list(range(11))
    assert counted(NAMES, None, "here") == counted(NAMES, "sorted", "here") == [0, 1, 2]
    with pytest.raises(
        TeddyError,
        match=r"here: expected --class-order, .* got none: .* sorted \(0 is 'n1'\) if .* "
        r"ours \(0 is 'n2'\)",
    ):
        counted(names, None, "here")
    for order, labels in (("sorted", [2, 0, 1]), ("ours", [0, 1, 2])):
        known = wanted(names, order)
        folders, notes = labels_of(["new000", "new001", "new002"], known, "here")
        assert list(folders.values()) == labels
        assert f"by their numbers in the order {order!r}: 0 is taken" in notes[0]
        assert in_order(["0", "1", "2"], known, "here").labels == labels
        by_name, notes = labels_of(["n1", "n2", "n3"], known, "here")
        assert by_name == {"n1": 2, "n2": 0, "n3": 1}
        assert notes == ("classes were told by name; --class-order had no use",)
    told = in_order(["n1", "n2", "n3"], wanted(names), "here")
    assert told[:2] == ([2, 0, 1], "sorted") and "sorted names there" in told.notes[0]
    for found in (["0", "1", "2"], ["000", "001", "002"]):
        with pytest.raises(TeddyError, match="--class-order"):
            labels_of(found, wanted(names), "here")


def test_folders_of_number_and_name_tell_their_order_by_themselves() -> None:
    names = ("n2", "n3", "n1")
    assert labels_of(["0000_n1", "0001_n2", "0002_n3"], wanted(names), "here")[0] == {
        "0000_n1": 2, "0001_n2": 0, "0002_n3": 1,
    }  # fmt: skip
    ours = labels_of(["0000_n2", "0001_n3", "0002_n1"], wanted(names), "here")[0]
    assert list(ours.values()) == [0, 1, 2]
    alike, found = ("a_b", "a b"), ["0000_a_b", "0001_a_b"]
    with pytest.raises(TeddyError, match="--class-order"):
        labels_of(found, wanted(alike), "here")
    assert list(labels_of(found, wanted(alike, "sorted"), "here")[0].values()) == [1, 0]
    assert list(labels_of(found, wanted(alike, "ours"), "here")[0].values()) == [0, 1]


@pytest.mark.parametrize(("kind", "more"), [
    ("imagefolder", "--layout=plain"), ("imagefolder", "--layout=rded"), ("pt", "--lr=1"),
])  # fmt: skip
def test_orders_that_are_not_said_are_refused(
    capsys: pytest.CaptureFixture[str], kind: str, more: str
) -> None:
    made = distilled(names=UNSORTED)
    save_distilled(Path("set.safetensors"), made)
    with pytest.raises(SystemExit):
        export(kind, more)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: set.safetensors: expected --class-order")
    assert "sorted (0 is 'ant/eater')" in line and "ours (0 is 'zebra')" in line
    assert not Path("out").exists()
    real(names=UNSORTED)
    export(kind, more, "--class-order=sorted")
    if kind == "imagefolder":  # as torchvision labels folders of the classes' names
        classes, labels = sorted(UNSORTED), [UNSORTED[label] for label in made.labels.tolist()]
        found = ImageFolder("out/images")
        assert found.targets == sorted(classes.index(name) for name in labels)
        first = np.array(Image.open(found.samples[0][0]))
        assert np.array_equal(first, made.images[labels.index("ant/eater"), 0].numpy())
    if more != "--layout=plain":  # whose names tell it
        Path("out/classes.json").unlink()
        path = "out/images" if kind == "imagefolder" else "out"
        assert "expected --class-order" in refused(capsys, kind, path=path)


def test_folders_of_numbers_say_whose_classes_they_are_taken_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_distilled(Path("set.safetensors"), distilled(names=UNSORTED))
    real(names=UNSORTED)
    export("imagefolder", "--layout", "rded", "--class-order=sorted")
    back = import_("imagefolder", "--class-order=sorted", path="out/images")
    assert back.provenance["class_order"] == "sorted"
    assert "0 is taken for 'ant/eater', 2 for 'zebra'" in capsys.readouterr().err
    record = json.loads(Path("out/classes.json").read_text()) | {"classes": ["0", "1", "2"]}
    Path("out/classes.json").write_text(json.dumps(record))
    Path("new.safetensors").unlink()
    assert "expected --class-order" in refused(capsys, "imagefolder")
    import_("imagefolder", "--class-order=ours")
    assert "0 is taken for 'zebra', 2 for 'cat'" in capsys.readouterr().err


def test_exports_of_another_order_of_classes_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_distilled(Path("set.safetensors"), distilled(names=UNSORTED))
    real(names=("cat", "ant/eater", "zebra"))
    for kind in ("imagefolder", "pt"):
        export(kind, "--class-order=ours", out=kind)
        assert "class 0 is 'zebra', not 'cat'" in refused(capsys, kind, path=kind)


# ---------------------------------------------------------------------------------- foreign images


def write_folders(mode: str = "L", size: tuple[int, int] = (SIDE, SIDE)) -> None:
    for label in range(3):
        Path(f"peer/{label:05d}").mkdir(parents=True)
        Image.new(mode, size, 80 * label).save(f"peer/{label:05d}/a.png")


@pytest.mark.parametrize(
    ("mode", "size", "words"),
    [
        ("RGB", (SIDE, SIDE), "a.png: image must be L, as real has 1 channel; got RGB"),
        ("LA", (SIDE, SIDE), "got LA"),
        ("P", (SIDE, SIDE), "got P"),
        ("I;16", (SIDE, SIDE), "got I;16"),
        ("L", (8, 8), "a.png: image must be 6×6 as those of real; got 8×8; --size 6 resizes it"),
        ("L", (6, 8), "a.png: image must be 6×6 as those of real; got 6×8"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], mode: str, size: tuple[int, int], words: str
) -> None:
    real()
    write_folders(mode, size)
    line = refused(capsys, "imagefolder", path="peer")
    assert line.startswith("error: peer/00000/a.png") and line.endswith(words)
    if size == (6, 8):
        assert "got 6×8" in refused(capsys, "imagefolder", "--size", str(SIDE), path="peer")


def test_size_resizes_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    real()
    write_folders(size=(12, 12))
    assert "--size must be 6" in refused(capsys, "imagefolder", "--size=12", path="peer")
    back = import_("imagefolder", "--size", str(SIDE), path="peer")
    assert back.images.shape == (3, 1, SIDE, SIDE)
    assert [int(image.unique()) for image in back.images] == [0, 80, 160]
    assert back.provenance["resized_from"] == [12]
    assert "resized from 12×12 to 6×6" in capsys.readouterr().err


def test_images_of_the_right_size_are_not_touched() -> None:
    """Also from 128 pixels on, where the package's own loader cuts a margin off."""
    real(size=160)
    Path("peer").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 160, 160), dtype=np.uint8)
    for label, own in enumerate(pixels):
        Path(f"peer/{label}").mkdir()
        Image.fromarray(own).save(f"peer/{label}/a.png")
    assert np.array_equal(import_("imagefolder", path="peer").images[:, 0].numpy(), pixels)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("damaged", "b.png: expected an image, but cannot read it"),
        ("text", "b.png: expected an image, one of PNG"),
        ("empty class", "every class of real must have images; got none of class 1 ('ant/eater')"),
        ("missing class", "got 2"),
        ("no folders", "expected the 3 classes of real"),
        ("a file", "expected a folder of class folders"),
    ],
)
def test_damaged_folders_are_refused(wrong: str, words: str) -> None:
    write_folders()
    if wrong == "damaged":
        noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(noise).save("peer/00001/b.png")
        content = Path("peer/00001/b.png").read_bytes()
        Path("peer/00001/b.png").write_bytes(content[:-40])
    elif wrong == "text":
        Path("peer/00001/b.png").write_text("no image")
    elif wrong == "empty class":
        Path("peer/00001/a.png").rename("peer/00001/a.txt")
    elif wrong == "missing class":
        shutil.rmtree("peer/00001")
    else:
        shutil.rmtree("peer")
    if wrong == "no folders":
        Path("peer").mkdir()
    if wrong == "a file":
        Path("peer").write_text("no folder")
    assert words in unread(imagefolder.read)


def test_other_outputs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    real()
    write_folders()
    arguments = ["import", "peer", "--format", "imagefolder", "--classes-of", "real", "--out"]
    assert "gone: expected a set to import" in refused(capsys, "imagefolder", path="gone")
    Path("there.safetensors").write_text("mine")
    for out in ("there.safetensors", "set.pt"):
        with pytest.raises(SystemExit):
            main([*arguments, out])
        assert f"{out}: expected a .safetensors file to write" in capsys.readouterr().err
    assert Path("there.safetensors").read_text() == "mine"


def test_records_of_classes_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    save_distilled(Path("set.safetensors"), distilled())
    real()
    export("imagefolder")
    record = json.loads(Path("out/classes.json").read_text())
    for key, value, words in (
        ("folders", record["folders"][:2], "folders as classes or none"),
        ("folders", ["..", *record["folders"][1:]], "names the folder '..', which is not there"),
        ("std", [0.0], "std[0] must be above 0"),
        ("classes", [1, 2, 3], "classes[0] must be text"),
        ("class_order", "any", "class_order must be"),
        ("jpeg_psnr_db", {"mean": 1.0}, "jpeg_psnr_db must have mean and worst, or nothing"),
    ):
        Path("out/classes.json").write_text(json.dumps(record | {key: value}))
        assert words in refused(capsys, "imagefolder")


# ------------------------------------------------------------------------------------- tensors


def test_tensors_are_what_evaluations_load() -> None:
    made = distilled(3, (1, 4, 2))
    save_distilled(Path("set.safetensors"), made)
    export("pt", "--lr", "0.05")
    images, labels, rate = (
        torch.load(f"out/{name}_best.pt", weights_only=True) for name in ("images", "labels", "lr")
    )
    order = made.labels.argsort(stable=True)
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 1, 1, 1, 1, 2, 2]
    assert images.dtype == torch.float32
    assert torch.equal(images, made.normalisation.apply(made.images[order]))
    assert float(rate) == pytest.approx(0.05) and rate.shape == ()


def with_fixed_labels(made: DistilledSet, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Let the set be opened with soft labels, some of whose largest entries are of others."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(len(made), made.num_classes, generator=generator).half()
    fixed = {"logits": logits}
    write_tensors(Path("fixed.safetensors"), fixed, kind=FIXED_KIND, record={})
    data = TrainingSet(made, Path("set"), fixed=Path("fixed.safetensors"))
    monkeypatch.setattr(converting, "load", lambda path, synthesis: data)
    assert logits.argmax(1).bincount().tolist() != made.labels.bincount().tolist()
    return logits.float()


def test_soft_labels_take_the_place_of_classes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = distilled(1, (1, 4, 2))
    logits = with_fixed_labels(made, monkeypatch)
    real()
    export("pt")
    labels = torch.load("out/labels_best.pt", weights_only=True)
    assert labels.dtype == torch.float32
    assert torch.equal(labels, logits[made.labels.argsort(stable=True)])
    back = import_("pt")
    assert torch.equal(back.images, made.images) and torch.equal(back.labels, made.labels)
    Path("new.safetensors").unlink()
    Path("out/classes_best.pt").unlink()
    line = refused(capsys, "pt")
    assert "out/labels_best.pt: classes cannot be told from these soft labels" in line
    assert "as classes_best.pt beside them" in line


@pytest.mark.parametrize("order", ["sorted", "ours"])
def test_soft_labels_have_the_order_of_classes(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    made = distilled(1, (1, 4, 2), UNSORTED)
    logits = with_fixed_labels(made, monkeypatch)
    real(names=UNSORTED)
    export("pt", f"--class-order={order}")
    names = sorted(UNSORTED) if order == "sorted" else list(UNSORTED)
    hard, soft, images = (
        torch.load(f"out/{name}_best.pt", weights_only=True)
        for name in ("classes", "labels", "images")
    )
    own = made.normalisation.apply(made.images)
    for label, row, pixels in zip(hard.tolist(), soft, images, strict=True):
        (place,) = [i for i, one in enumerate(own) if torch.equal(one, pixels)]
        assert UNSORTED[int(made.labels[place])] == names[label]
        assert row.tolist() == [float(logits[place, UNSORTED.index(name)]) for name in names]
    Path("out/classes.json").unlink()
    back = import_("pt", f"--class-order={order}")
    assert torch.equal(back.images, made.images) and torch.equal(back.labels, made.labels)
    Path("out/classes_best.pt").unlink()  # soft labels alone, whose largest entries tell
    Path("new.safetensors").unlink()
    chosen = torch.tensor([int((hard == label).nonzero()[0]) for label in range(3)])
    torch.save(images[chosen], "out/images_best.pt")
    torch.save(torch.eye(3)[hard[chosen]], "out/labels_best.pt")
    alone = import_("pt", f"--class-order={order}")
    first = torch.stack([made.images[made.labels == label][0] for label in range(3)])
    assert torch.equal(alone.images, first)


def write_tensors_of(images: Any, labels: Any, ending: str = "best.pt", before: str = "") -> None:
    Path("peer").mkdir(exist_ok=True)
    torch.save(images, f"peer/{before}images_{ending}")
    torch.save(labels, f"peer/{before}labels_{ending}")


def test_peers_tensors_are_denormalised_and_rounded(capsys: pytest.CaptureFixture[str]) -> None:
    real(3)
    levels = torch.rand(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 255
    levels[0, 0, 0, :3] = torch.tensor([-30.0, 300.0, 255.4])
    mean, std = (torch.tensor(v)[:, None, None] for v in
                 (normalisation(3).mean, normalisation(3).std))  # fmt: skip
    soft = torch.eye(3)[[1, 1, 0, 0, 2, 2]].requires_grad_()
    write_tensors_of((levels / 255 - mean) / std, soft, "5000.pt", "ema_")
    assert "name one of ema_images_5000.pt" in refused(capsys, "pt", path="peer")
    back = import_("pt", path="peer/ema_images_5000.pt")
    order = [2, 0, 4, 3, 1, 5]
    assert back.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(back.images, levels.round().clamp(0, 255).to(torch.uint8)[order])
    costs = psnr(levels, levels.round().clamp(0, 255))
    said = back.provenance["rounding_psnr_db"]
    assert said["mean"] == pytest.approx(costs.mean().item(), abs=0.02)
    assert said["worst"] == pytest.approx(costs.min().item(), abs=0.02)
    assert back.provenance["pixels_out_of_range"] == pytest.approx(2 / levels.numel())
    text = capsys.readouterr().err
    assert f"PSNR {costs.mean():.1f} dB on average" in text
    assert "classes were told by their numbers: 0 is taken for 'Zebra'" in text


def test_tensors_of_another_normalisation_are_denormalised_by_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = distilled()
    made.normalisation = Normalisation((0.1,), (0.7,))
    save_distilled(Path("set.safetensors"), made)
    real()
    export("pt")
    back = import_("pt")
    assert torch.equal(back.images, made.images)
    assert back.normalisation == normalisation(1)
    record = json.loads(Path("out/classes.json").read_text())
    record |= {"mean": [0.1] * 3, "std": [0.7] * 3}
    Path("out/classes.json").write_text(json.dumps(record))
    Path("new.safetensors").unlink()
    assert "classes.json: mean must have 1 entries" in refused(capsys, "pt")


def test_mean_and_std_of_peers_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """MTT's of CIFAR-100, which are not those of the prepared dataset."""
    real(3)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE)).to(torch.uint8)
    write_tensors_of(Normalisation(tuple(mean), tuple(std)).apply(pixels), torch.arange(3))
    given = ["--mean", *map(str, mean), "--std", *map(str, std)]
    back = import_("pt", *given, path="peer")
    assert torch.equal(back.images, pixels)
    assert back.normalisation == normalisation(3)
    assert back.provenance["denormalised_by"] == {"mean": mean, "std": std}
    said = f"denormalised by mean {mean} and standard deviation {std} of --mean and --std"
    assert said in capsys.readouterr().err
    Path("new.safetensors").unlink()
    assert not torch.equal(import_("pt", path="peer").images, pixels)
    text = capsys.readouterr().err
    assert "deviation [0.229, 0.224, 0.225] of real, as nothing else was named (--mean" in text
    Path("new.safetensors").unlink()
    for options, words in (
        (given[:4], "--mean and --std must both be said, with as many numbers; got 3 and 0"),
        (["--mean=1", "--std=1"], "--mean and --std: mean must have 3 entries"),
        (["--mean=1", "--std=0"], "--std must be above 0 and finite; got [0.0]"),
        (["--mean=nan", "--std=1"], "--mean must be finite; got [nan]"),
    ):
        assert words in refused(capsys, "pt", *options, path="peer")
    line = refused(capsys, "imagefolder", "--mean=1", "--std=1", path="peer")
    assert "--mean belongs to --format pt; got --format imagefolder" in line
    save_distilled(Path("set.safetensors"), distilled(3))
    export("pt")
    line = refused(capsys, "pt", *given)
    assert "expected no --mean and --std but [0.485, 0.456, 0.406] and" in line
    assert "of out/classes.json; got [0.4914" in line and line.endswith("leave them away")


def test_whitened_images_are_refused_and_the_others_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    real()
    write_tensors_of(torch.zeros(3, 1, SIDE, SIDE), torch.arange(3), "7.pt")
    torch.save(torch.full((3, 1, SIDE, SIDE), 0.2), "peer/images_zca_7.pt")
    line = refused(capsys, "pt", path="peer/images_7.pt")
    assert "whitened (ZCA)" in line and line.endswith("undone: images_zca_7.pt")
    assert import_("pt", path="peer/images_zca_7.pt").images.unique().tolist() == [51]


def test_tensors_of_another_size_are_resized() -> None:
    real()
    write_tensors_of(torch.zeros(3, 1, 12, 12), torch.arange(3))
    back = import_("pt", "--size", str(SIDE), path="peer")
    assert back.images.shape == (3, 1, SIDE, SIDE)
    assert back.images.unique().tolist() == [round(0.485 * 255)]
    assert back.provenance["resized_from"] == [12]


class Evil:
    """What runs code where pickles are loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


GOOD = torch.zeros(3, 1, SIDE, SIDE)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (Evil(), torch.arange(3), "images_best.pt: expected a plain tensor, but cannot load it"),
        ({"images": GOOD}, torch.arange(3), "images_best.pt: expected a plain tensor, got dict"),
        (GOOD.to("meta"), torch.arange(3), "images_best.pt: expected a plain tensor, got Tensor"),
        (GOOD.to_sparse(), torch.arange(3), "images_best.pt: expected a plain tensor, got Tensor"),
        ((GOOD / 0).to(torch.float8_e5m2), torch.arange(3), "images must be finite"),
        (GOOD.byte(), torch.arange(3), "expected float images (N, 1, H, W)"),
        (GOOD[:, 0], torch.arange(3), "got torch.float32 of 3 × 6 × 6"),
        (GOOD.expand(3, 3, SIDE, SIDE), torch.arange(3), "as real has 1 channel; got"),
        (GOOD[:0], torch.arange(0), "expected float images"),
        (GOOD[..., :5, :5], torch.arange(3), "images_best.pt: image must be 6×6"),
        (GOOD / 0, torch.arange(3), "images must be finite"),
        (torch.zeros(1).expand(10**6, 1, SIDE, SIDE), torch.arange(3), "larger than its file"),
        (GOOD, torch.arange(2), "labels_best.pt: expected labels of 3 images; got torch.int64 of"),
        (GOOD, torch.tensor(1), "got torch.int64 of no size"),
        (GOOD, torch.tensor([0, 1, 3]), "labels must be from 0 to 2"),
        (GOOD, torch.tensor([0, 1, -1]), "got -1 to 1"),
        (GOOD, torch.tensor([0, 1, 1]), "got none of class 2 ('cat')"),
        (GOOD, torch.zeros(3), "classes must be whole numbers; got torch.float32"),
        (GOOD, torch.zeros(3, 4), "expected soft labels of 3 classes, as real has; got 4"),
        (GOOD, torch.full((3, 3), torch.nan), "soft labels must be finite"),
        (GOOD, torch.ones(3, 3, dtype=torch.int64), "soft labels must be finite float"),
        (GOOD, torch.zeros(3, 3), "classes cannot be told from these soft labels"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(images: Any, labels: Any, words: str) -> None:
    write_tensors_of(images, labels)
    assert words in unread(trajectories.read)
    assert not Path("ran").exists()


def test_missing_and_damaged_tensors_are_refused() -> None:
    write_tensors_of(GOOD, torch.arange(3))
    content = Path("peer/labels_best.pt").read_bytes()
    Path("peer/labels_best.pt").write_bytes(content[:-30])
    assert "labels_best.pt: expected a plain tensor, but" in unread(trajectories.read)
    Path("peer/labels_best.pt").unlink()
    assert "labels_best.pt: expected a tensor, found nothing" in unread(trajectories.read)
    Path("peer/other.pt").touch()
    assert "expected a file images_<name>.pt" in unread(trajectories.read, "peer/other.pt")
    Path("peer/images_best.pt").unlink()
    assert "images_best.pt: expected a file of images" in unread(trajectories.read)


# ------------------------------------------------------------------------------------- parquet


def test_parquet_has_the_columns_that_datasets_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = pytest.importorskip("pyarrow.parquet")
    made = distilled(3, (1, 4, 2))
    logits = with_fixed_labels(made, monkeypatch)
    export("parquet")
    table = reader.read_table("out/data/train-00000-of-00001.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": list(NAMES), "_type": "ClassLabel"}
    assert features["soft_label_logits"]["feature"] == {"dtype": "float32", "_type": "Value"}
    assert table.column("label").to_pylist() == made.labels.tolist()
    assert torch.equal(torch.tensor(table.column("soft_label_logits").to_pylist()), logits)
    for row, pixels in zip(table.column("image").to_pylist(), made.images, strict=True):
        assert row["bytes"].startswith(b"\x89PNG")
        assert set(row) == {"bytes", "path"} and torch.equal(decoded(row["bytes"]), pixels)
    assert "data/train-*.parquet" in Path("out/README.md").read_text()


def decoded(content: bytes) -> Tensor:
    Path("one.png").write_bytes(content)
    return torch.from_numpy(np.atleast_3d(np.array(Image.open("one.png")))).permute(2, 0, 1)


def test_huggingface_opens_parquet(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    made = distilled(3, (1, 4, 2))
    logits = with_fixed_labels(made, monkeypatch)
    real(3)
    export("parquet")
    found = datasets.load_dataset("out", split="train", cache_dir="cache")
    assert tuple(found.features["label"].names) == NAMES
    assert found["label"][:] == made.labels.tolist()
    assert torch.equal(torch.tensor(found["soft_label_logits"][:]), logits)
    for row, pixels in zip(found, made.images, strict=True):
        assert np.array_equal(np.array(row["image"]).transpose(2, 0, 1), pixels.numpy())
    found.to_parquet("theirs.parquet")
    assert torch.equal(import_("parquet", path="theirs.parquet").images, made.images)


def write_parquet(columns: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table(columns)
    Path("peer/data").mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(
        table.replace_schema_metadata(metadata), "peer/data/train-0.parquet"
    )


def png(level: int) -> bytes:
    Image.new("L", (SIDE, SIDE), level).save("one.png")
    return Path("one.png").read_bytes()


def test_columns_of_peers_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    real()
    images = [{"bytes": png(level), "path": None} for level in (1, 2, 3)]
    write_parquet({"image": images, "label": [2, 0, 1]})
    assert import_("parquet", path="peer").images[:, 0, 0, 0].tolist() == [2, 3, 1]
    assert "classes were told by their numbers" in capsys.readouterr().err
    shutil.copy("peer/data/train-0.parquet", "peer/data/train-1.parquet")
    Path("new.safetensors").unlink()
    assert import_("parquet", path="peer").images[:, 0, 0, 0].tolist() == [2, 3, 1, 2, 3, 1]
    Path("peer/data/train-1.parquet").unlink()
    capsys.readouterr()
    Path("new.safetensors").unlink()
    write_parquet({"image": [png(1), png(2), png(3)], "label": ["cat", "Zebra", "ant/eater"]})
    assert import_("parquet", path="peer").images[:, 0, 0, 0].tolist() == [2, 3, 1]
    assert "by their numbers" not in capsys.readouterr().err
    Path("new.safetensors").unlink()
    features = {"img": {"_type": "Image"}, "fine": {"_type": "ClassLabel", "names": list(NAMES)}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    write_parquet({"img": images, "fine": [2, 0, 1]}, metadata)
    assert import_("parquet", path="peer").images[:, 0, 0, 0].tolist() == [2, 3, 1]


@pytest.mark.parametrize(
    ("names", "expected", "words"),
    [
        (["0", "1", "2"], [3, 1, 2], "by their numbers in the order 'sorted': 0 is taken for 'ant"),
        (["ant/eater", "cat", "zebra"], [3, 1, 2], "are in the order of their sorted names there"),
        (list(UNSORTED), [1, 2, 3], "--class-order had no use"),
        (None, [3, 1, 2], "by their numbers in the order 'sorted'"),
    ],
)
def test_tables_say_which_classes_numbers_are(
    names: list[str] | None, expected: list[int], words: str
) -> None:
    images = [{"bytes": png(level), "path": None} for level in (1, 2, 3)]
    features = {"label": {"_type": "ClassLabel", "names": names}} if names else {}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    write_parquet({"image": images, "label": [0, 1, 2]}, metadata)
    found = parquet.read(Path("peer"), wanted(UNSORTED, "sorted"))
    assert found.images[by_index(found.labels), 0, 0, 0].tolist() == expected
    assert words in found.notes[0]
    if names is None or names[0] == "0":
        with pytest.raises(TeddyError, match="expected --class-order"):
            parquet.read(Path("peer"), wanted(UNSORTED))


def test_folders_of_arrow_files_say_how_to_save_them() -> None:
    pytest.importorskip("pyarrow")
    Path("peer").mkdir()
    Path("peer/data-00000-of-00001.arrow").touch()
    for path in ("peer", "peer/data-00000-of-00001.arrow"):
        line = unread(parquet.read, path)
        assert line.startswith(f"{path}: expected .parquet files, got .arrow files")
        assert line.endswith("save one split by to_parquet")


@pytest.mark.parametrize(
    ("columns", "features", "words"),
    [
        ({"label": [0, 1, 2]}, None, "expected a column 'image', or one of type Image; got label"),
        ({"image": [b""] * 3}, None, "expected a column 'label'"),
        ({"image": ["a"] * 3, "label": [0, 1, 2]}, None, "row 0: image must have the bytes"),
        ({"image": [None] * 3, "label": [0, 1, 2]}, None, "row 0: image must have the bytes"),
        ({"image": [b"x"] * 3, "label": [0, 1, 2]}, None, "row 0: expected an image"),
        ({"image": "png", "label": [0, 1, 3]}, None, "labels must be from 0 to 2"),
        ({"image": "png", "label": [0, 1, None]}, None, "whole numbers or names; got None"),
        ({"image": "png", "label": [0.0, 1, 2]}, None, "whole numbers or names; got 0.0"),
        ({"image": "png", "label": ["a", "b", "c"]}, None, "expected the classes of real"),
        ({"image": "png", "label": [0, 1, 1]}, None, "got none of class 2"),
        ({"image": "png", "label": [0, 1, 2]}, ["cat", "Zebra", "ant/eater"], "another order"),
        ({"image": "png", "label": [0, 1, 2]}, "abc", "names of label must be a list of text"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    columns: dict[str, Any], features: Any, words: str
) -> None:
    if columns.get("image") == "png":
        columns = columns | {"image": [png(level) for level in (1, 2, 3)]}
    noted = {"label": {"_type": "ClassLabel", "names": features}}
    metadata = {"huggingface": json.dumps({"info": {"features": noted if features else {}}})}
    write_parquet(columns, metadata)
    line = unread(parquet.read)
    assert line.startswith("peer") and words in line


def test_folders_of_several_splits_and_no_tables_are_refused() -> None:
    pytest.importorskip("pyarrow")
    Path("peer").mkdir()
    assert "expected .parquet files, found none" in unread(parquet.read)
    Path("peer/test").mkdir()
    for name in ("train-0", "test/0"):
        Path(f"peer/{name}.parquet").write_text("no table")
    assert "one split, got test, train; name one" in unread(parquet.read)
    line = unread(parquet.read, "peer/train-0.parquet")
    assert "train-0.parquet: expected Parquet, but cannot read it" in line


def test_without_pyarrow_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(parquet, "import_module", missing)
    save_distilled(Path("set.safetensors"), distilled())
    real()
    with pytest.raises(SystemExit):
        main(["export", "set.safetensors", "--format", "parquet", "--out", "out"])
    assert "run: pip install pyarrow" in capsys.readouterr().err
    assert not Path("out").exists()
    Path("peer").mkdir()
    assert "run: pip install pyarrow" in refused(capsys, "parquet", path="peer")


# ------------------------------------------------------------------------------ in the pipeline


def made_by(
    file: str, sha256: str, ipc: int = 2, dataset: ImageDataset | None = None,
    small_classes: SmallClasses | None = None,
) -> DistilledSet:  # fmt: skip
    config = from_json(Config, {"file": file, "sha256": sha256}, "row")
    dataset = dataset or real()
    given = Ingredients(dataset, 0, torch.device("cpu"), small_classes=small_classes)
    made = Imported(config, given).make(ipc, WorkDir("synthesize", "test"))
    return DistilledSet(
        made.images, made.labels, dataset.class_names, dataset.normalisation, {}
    )  # fmt: skip


def test_imported_images_are_the_first_of_every_class() -> None:
    save_distilled(Path("set.safetensors"), distilled(1, (3, 4, 3)))
    back = made_by("set.safetensors", sha256_of(Path("set.safetensors")))
    assert torch.equal(back.images, distilled(1, (3, 4, 3)).images[:6])
    assert back.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_other_files_than_the_row_names_are_refused() -> None:
    path = Path("set.safetensors")
    save_distilled(path, distilled())
    sha256 = sha256_of(path)
    with pytest.raises(TeddyError, match=r"set\.safetensors: expected 4 images of .* got 3"):
        made_by(str(path), sha256, ipc=4)
    with pytest.raises(TeddyError, match="class 0 is 'Zebra', but 'cat' in the prepared"):
        made_by(str(path), sha256, dataset=real(names=("cat", "ant/eater", "Zebra")))
    with pytest.raises(TeddyError, match="has images of"):
        made_by(str(path), sha256, dataset=real(size=8))
    with pytest.raises(TeddyError, match="has classes 3"):
        made_by(str(path), sha256, dataset=real(names=(*NAMES, "dog")))
    save_distilled(path, distilled(1, (3, 3, 4)))
    with pytest.raises(TeddyError, match=rf"SHA-256 must be {sha256}, as the set's row says"):
        made_by(str(path), sha256)
    with pytest.raises(TeddyError, match="gone"):
        made_by("gone", sha256)


def test_classes_of_few_real_images_may_have_fewer() -> None:
    path = Path("set.safetensors")
    save_distilled(path, distilled(1, (5, 4, 6)))
    with pytest.raises(TeddyError, match="expected 5 images of class 'ant/eater', got 4"):
        made_by(str(path), sha256_of(path), ipc=5)
    back = made_by(str(path), sha256_of(path), ipc=5, small_classes="fewer")  # of 4 real ones each
    assert back.labels.bincount().tolist() == [5, 4, 5]
    save_distilled(path, distilled(1, (3, 3, 2)))
    back = made_by(str(path), sha256_of(path), ipc=2, small_classes="fewer")
    assert back.labels.bincount().tolist() == [2, 2, 2]
    with pytest.raises(TeddyError, match="expected 3 images of class 'cat', got 2"):
        made_by(str(path), sha256_of(path), ipc=3, small_classes="fewer")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"file": "a"}, "row lacks the key 'sha256'"),
        ({"file": "", "sha256": "0" * 64}, "file must be the path of a set"),
        ({"file": "a", "sha256": "0" * 63}, "sha256 must be 64 hexadecimal digits"),
        ({"file": "a", "sha256": "x" * 64}, "sha256 must be 64 hexadecimal digits"),
    ],
)
def test_rows_say_which_file(config: dict[str, str], words: str) -> None:
    with pytest.raises(TeddyError, match=words):
        from_json(Config, config, "row")


def test_printed_rows_give_a_set_to_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEDDY_WORKERS", "1")
    monkeypatch.setenv("TEDDY_DEVICE", "cpu")
    user_code.load.cache_clear()
    tiny_checkout(tmp_path)
    own = Path("src/teddy/sharing/imported.py")
    own.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / own, own)
    main(command(tmp_path, "prepare", "digits"))
    made = DistilledSet(
        torch.arange(20 * 64).reshape(20, 1, 8, 8).to(torch.uint8), torch.arange(10).repeat(2),
        tuple(map(str, range(10))), normalisation(1), {},
    )  # fmt: skip
    save_distilled(Path("set.safetensors"), made)
    export("imagefolder", "--layout", "sre2l")
    capsys.readouterr()
    main([
        "import", "out", "--format", "imagefolder", "--out", "data/Peer's.safetensors",
        "--classes-of", "data/prepared/digits",
    ])  # fmt: skip
    methods, method, sets, row = capsys.readouterr().out.splitlines()
    assert (methods, sets) == ("methods:", "sets:")
    text = Path(DIGITS).read_text().replace("\nsets:\n", f"\n{methods}\n{method}\n\nsets:\n")
    anchor = "  digits/main/ipc3/random: &random"
    before, _, after = text.partition(anchor)
    line, _, rest = after.partition("\n")
    Path(DIGITS).write_text(f"{before}{anchor}{line}\n{row}\n{rest}")
    write_inputs(tmp_path, tmp_path / "inputs")
    main(command(tmp_path, "synthesize", "digits/main/ipc2/imported-peer-s"))
    back = teddy.load("data/distilled/digits/main/ipc2/imported-peer-s")
    assert torch.equal(back.images, made.images) and torch.equal(back.labels, made.labels)
    assert back.provenance["settings"]["file"] == "data/Peer's.safetensors"
    user_code.load.cache_clear()


def test_commands_offer_what_the_formats_have() -> None:
    assert commands.FORMATS == tuple(converting._READ)
    assert imagefolder.LAYOUTS == ("plain", "sre2l", "rded")
    assert plain_folders(("b c", "a")) == ["0000_b_c", "0001_a"]
    assert trajectories.RATE == "lr_best.pt"
