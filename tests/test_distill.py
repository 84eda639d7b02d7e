"""Own images in one command: what is recognised, chosen, refused and said. No GPU, no downloads."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from raw_fixtures import (
    prepare_config,
    truncated,
    write_cifar,
    write_cifar100,
    write_classes,
    write_image,
    write_npz,
    write_tiny_imagenet,
)

import teddy
from teddy.core.errors import TeddyError
from teddy.core.files import digest
from teddy.data import sources
from teddy.settings.declared import Declared
from teddy.settings.schema import read_yaml
from tools.by_hand import Call, Pipeline, _fingerprint, is_made
from tools.distill import __main__ as command
from tools.distill import estimate, parquet
from tools.distill.estimate import Rates, by_part, duration, predict
from tools.distill.found import Found, Survey, in_colour, recognise, survey
from tools.distill.plan import (
    PARTS,
    ROOT,
    Machine,
    Wanted,
    check_folder,
    choose,
    image_size,
    joined,
    name_of,
    overrides,
    write_checkout,
    write_record,
)
from tools.distill.results import accuracies, last_seconds, times

CPU, GPU = Machine(gpu=False, cores=2), Machine(gpu=True, cores=8)
PHOTOS = Survey(
    classes=("ants", "bees"), train=54, smallest=27, smallest_class="ants", val=6, test=30,
    own_test=True, side=375, channels=3, looked=90, colour=90, files=(Path("a.jpg"),),
    sha256="0" * 64,
)  # fmt: skip
CIFAR = replace(
    PHOTOS, classes=tuple("abcdefghij"), train=45000, smallest=4500, val=5000, test=10000, side=32,
    files=(),
)  # fmt: skip
CHARACTERS = replace(CIFAR, side=28, channels=1, colour=0, own_test=False)


# ------------------------------------------------------------------------------ what lies there


def classes_in(folder: Path) -> Path:
    write_classes(folder, {"cat": 2, "dog": 2})
    return folder


def split_classes(folder: Path) -> Path:
    for split in ("train", "val"):
        write_classes(folder / split, {"cat": 2, "dog": 2})
    return folder


def as_unpacked(folder: Path) -> Path:
    classes_in(folder / "photos-master" / "photos")
    return folder


def cifar10(folder: Path) -> Path:
    write_cifar(folder / "cifar-10-batches-py")
    return folder / "cifar-10-batches-py"


def cifar100(folder: Path) -> Path:
    write_cifar100(folder / "cifar-100-python")
    return folder


def tiny_imagenet(folder: Path) -> Path:
    write_tiny_imagenet(folder / "tiny-imagenet-200")
    return folder


def file(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir()
        (folder / name).write_bytes(b"x")
        return folder / name

    return write


def arrow_splits(folder: Path) -> Path:
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        (folder / split / "data-00000-of-00001.arrow").write_bytes(b"x")
    (folder / "dataset_dict.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("make", "source", "below"),
    [
        (classes_in, "imagefolder", ""),
        (split_classes, "imagefolder", ""),
        (as_unpacked, "imagefolder", "photos-master/photos"),
        (cifar10, "cifar10", ""),
        (cifar100, "cifar100", ""),
        (tiny_imagenet, "tiny-imagenet", ""),
        (file("a.npz"), "npz", ""),
        (file("a.csv"), "list", ""),
        (file("a.TSV"), "list", ""),
    ],
)
def test_source_is_told_by_what_lies_there(
    tmp_path: Path, make: Callable[[Path], Path], source: str, below: str
) -> None:
    path = make(tmp_path / "data")
    assert recognise(path) == Found(source, path / below)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, "expected images, found nothing there"),
        (file("photos.zip"), "not known: unpack it first, or name one of these: class folders"),
        (file("photos.docx"), "not known: name one of these: class folders"),
        (lambda path: file("a.txt")(path).parent, "no images known to us there; expected one of"),
        (file("data-00000-of-00001.arrow"), "got .arrow files, as save_to_disk of"),
        (lambda path: file("a.arrow")(path).parent, r"save it by to_parquet, .*name that folder"),
        (arrow_splits, r"save it by to_parquet, .*name that folder"),
    ],
)
def test_what_is_not_known_is_refused_by_what_was_looked_for(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    path = make(tmp_path / "data")
    with pytest.raises(TeddyError, match=words) as caught:
        recognise(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def surveyed(root: Path, source: str = "imagefolder", **others: Any) -> Survey:
    config = prepare_config(source, root, **others)
    return survey(sources.load(config), config, root, seed=0)


def test_images_are_counted_as_prepare_will_split_them(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 20, "dog": 12}, size=(40, 30))
    found = surveyed(tmp_path, val_fraction=0.1, test_fraction=0.25)
    assert (found.train, found.val, found.test) == (32 - 3 - 8, 3, 8)
    assert (found.smallest, found.smallest_class) == (12 - 1 - 3, "dog")
    assert (found.side, found.channels, found.own_test) == (30, 3, False)
    assert len(found.files) == 21 + 3 + 8


def test_images_in_the_middle_say_how_large_and_whether_in_colour(tmp_path: Path) -> None:
    for number, side in enumerate((10, 20, 90)):
        for name in ("cat", "dog"):
            write_image(tmp_path / name / f"{number}.png", "L", (side, side + 5))
    found = surveyed(tmp_path)
    assert (found.side, found.channels) == (20, 1)
    write_image(tmp_path / "cat" / "3.png", "RGB", (20, 20))
    assert surveyed(tmp_path).channels == 3


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_one_colour_image_among_many_grey_ones_is_seen_wherever_it_is(
    tmp_path: Path, split: str
) -> None:
    source = write_image(tmp_path / "grey.png", "L", (4, 4)).read_bytes()
    lines = ["path,label,split"]
    for own in ("train", "val", "test"):
        for number in range(120):
            (tmp_path / f"{own}{number}.png").write_bytes(source)
            lines.append(f"{own}{number}.png,{'cat' if number % 2 else 'dog'},{own}")
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(lines), encoding="utf-8")
    found = surveyed(listed, "list")
    assert (found.channels, found.looked, found.colour) == (1, 360, 0)
    write_image(tmp_path / f"{split}41.png", "RGB", (4, 4))
    found = surveyed(listed, "list")
    assert (found.channels, found.looked, found.colour) == (3, 360, 1)


def test_of_very_many_images_some_of_every_split_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.distill.found._HEADERS", 6)
    for split, mode in (("train", "L"), ("val", "RGB")):
        for name in ("cat", "dog"):
            for number in range(6):
                write_image(tmp_path / split / name / f"{number}.png", mode, (4, 4))
    found = surveyed(tmp_path)
    assert (found.looked, found.colour, found.channels) == (6, 3, 3)
    assert len(found.files) == 3, "of training images"


@pytest.mark.parametrize(
    ("colour", "looked", "told", "line"),
    [
        (90, 90, None, "treated as colour images, mirrored, as all 90 images are"),
        (2, 90, None, "treated as colour images, mirrored, as 2 of 90 images are; otherwise --set "
                      "prepare.channels=1"),
        (0, 90, None, "treated as grey images, not mirrored, as all 90 images are; otherwise --set "
                      "prepare.channels=3"),
        (0, 50, None, "treated as grey images, not mirrored, as all 50 images of 90 that were "
                      "looked at are; otherwise --set prepare.channels=3"),
        (2, 90, 1, "treated as grey images, not mirrored, as --set says (2 of 90 images are in "
                   "colour)"),
    ],
)  # fmt: skip
def test_what_was_decided_on_colour_is_said(
    colour: int, looked: int, told: int | None, line: str
) -> None:
    found = replace(PHOTOS, looked=looked, colour=colour, channels=told or (3 if colour else 1))
    mirrored = choose(found, Wanted(10), CPU)["plus"]["views"]["hflip"]
    assert in_colour(found, told is not None, mirrored) == line


def test_arrays_are_counted_too(tmp_path: Path) -> None:
    found = surveyed(write_npz(tmp_path / "a.npz"), "npz", val_fraction=0.25)
    assert (found.train, found.val, found.test, found.own_test) == (18, 6, 6, True)
    assert (found.side, found.files) == (32, ())
    assert (found.channels, found.looked, found.colour) == (3, found.images, found.images)


def test_other_files_are_noticed(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    before = surveyed(tmp_path).sha256
    assert surveyed(tmp_path).sha256 == before
    write_image(tmp_path / "cat" / "0.png", seed=99)
    assert surveyed(tmp_path).sha256 != before


def one_class(folder: Path) -> None:
    write_classes(folder, {"cat": 4})


def too_few(folder: Path) -> None:
    write_classes(folder, {"cat": 9, "dog": 1})


def empty_class(folder: Path) -> None:
    write_classes(folder, {"cat": 4, "dog": 4})
    (folder / "eel").mkdir()


def damaged(folder: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(4):
            truncated(write_image(folder / name / f"{number}.png")).write_bytes(b"x")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (one_class, r"expected at least 2 classes, found \['cat'\]"),
        (too_few, "class dog has 1 images, too few for parts of"),
        (empty_class, "1 classes have no image to train on: eel"),
        (damaged, "none of 8 images can be read, such as cat/0.png"),
    ],
)
def test_folders_that_cannot_be_distilled_are_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "data")
    with pytest.raises(TeddyError, match=words) as caught:
        surveyed(tmp_path / "data", test_fraction=0.25)
    assert str(caught.value).startswith(str(tmp_path / "data"))


# --------------------------------------------------------------------------------- Parquet files


def test_parquet_without_its_library_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file("a.parquet")(tmp_path / "data")

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("teddy.sharing.formats.parquet.import_module", missing)
    for data in (path, path.parent):
        with pytest.raises(TeddyError, match=r"a\.parquet: .*pip install pyarrow"):
            recognise(data)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, rows: list[tuple[bytes, int]], names: list[str] | None) -> None:
    pa = pytest.importorskip("pyarrow")
    columns = {
        "image": [{"bytes": content, "path": None} for content, _ in rows],
        "label": [label for _, label in rows],
    }
    table = pa.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(table, path)


def test_parquet_images_become_files_and_a_list_in_their_order_of_classes(tmp_path: Path) -> None:
    data, out = tmp_path / "hub", tmp_path / "out"
    names = ["zebra", "T-shirt/top", "never seen"]
    train = [(png(i), i % 2) for i in range(8)]
    held_out = [(png(9), 0), (png(10), 1), (png(11), -1)]
    write_parquet(data / "data/train-00000-of-00001.parquet", train, names)
    write_parquet(data / "data/validation-00000-of-00001.parquet", held_out, names)
    assert recognise(data) == Found("parquet", data)
    listed, classes = parquet.unpack(data, out, "a")
    assert classes == ("zebra", "T-shirt/top")
    raw = sources.load(prepare_config("list", listed, classes=classes))
    assert raw.class_names == classes
    assert raw.train.labels.tolist() == [0, 1] * 4
    assert raw.test is not None and raw.test.labels.tolist() == [0, 1], "validation serves as test"
    assert isinstance(raw.train, sources.RawFiles)
    contents = [(raw.train.root / name).read_bytes() for name in raw.train.files]
    assert contents == [png(i) for i in range(8)]
    marker = out / "marker"
    marker.touch()
    parquet.unpack(data, out, "a")
    assert marker.exists(), "what is unpacked already is kept"
    parquet.unpack(data, out, "b")
    assert not marker.exists(), "other files are unpacked anew"


def test_parquet_without_names_has_classes_by_number(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    write_parquet(path, [(png(i), i % 3) for i in range(6)], None)
    assert recognise(path).source == "parquet"
    listed, classes = parquet.unpack(path, tmp_path / "out", "a")
    assert classes == ()
    assert sources.load(prepare_config("list", listed)).class_names == ("0", "1", "2")


def test_parquet_columns_are_found_by_what_datasets_has_noted(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "train.parquet"
    content = [{"bytes": png(i), "path": None} for i in range(4)]
    features = {"scan": {"_type": "Image"},
                "sort": {"_type": "ClassLabel", "names": ["x", "y"]}}  # fmt: skip
    table = pa.table({"scan": content, "sort": [0, 1, 0, 1], "age": [3, 3, 3, 3]})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    assert recognise(path).source == "parquet"
    _, classes = parquet.unpack(path, tmp_path / "out", "a")
    assert classes == ("x", "y")


def test_parquet_list_of_paths_is_a_list(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "list.parquet"
    table = pa.table({"image": ["a.png", "b.png"], "label": ["x", "y"]})
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    assert recognise(path).source == "list"


@pytest.mark.parametrize(
    ("rows", "names", "words"),
    [
        ([(png(0), 5)], ["a", "b"], "row 0: label must be below 2; got 5"),
        ([(png(0), -1)], ["a", "b"], "no images with labels to train on"),
    ],
)
def test_parquet_with_other_labels_is_refused(
    tmp_path: Path, rows: list[tuple[bytes, int]], names: list[str], words: str
) -> None:
    path = tmp_path / "train.parquet"
    write_parquet(path, rows, names)
    with pytest.raises(TeddyError, match=words):
        parquet.unpack(path, tmp_path / "out", "a")
    assert not (tmp_path / "out").exists(), "nothing half-written"


# -------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("side", "gpu", "size"),
    [(375, False, 64), (375, True, 224), (64, False, 64), (63, False, 48), (28, False, 28),
     (8, False, 8), (5, False, 8), (150, True, 128)],
)  # fmt: skip
def test_size_is_that_of_the_images_or_the_next_smaller_one(
    side: int, gpu: bool, size: int
) -> None:
    assert image_size(side, gpu) == size


def test_settings_follow_the_size_of_the_data() -> None:
    photos, cifar = choose(PHOTOS, Wanted(10), CPU), choose(CIFAR, Wanted(10), CPU)
    on_gpu = choose(PHOTOS, Wanted(10), GPU)
    networks = [own["train_teacher"]["network"] for own in (photos, cifar, on_gpu)]
    assert networks == [{"arch": "convnet3", "width": 32}, {"arch": "convnet3", "width": 64},
                        {"arch": "resnet18"}]  # fmt: skip
    assert photos["evaluate"]["network"]["norm"] == "group", "few images for BatchNorm"
    assert "norm" not in on_gpu["evaluate"]["network"], "torchvision's have BatchNorm"
    assert (photos["train_teacher"]["epochs"], cifar["train_teacher"]["epochs"]) == (100, 20)
    assert cifar["relabel"]["epochs"] == 400, "as CIFAR-10's preset"
    assert photos["relabel"]["epochs"] < 400 < choose(CIFAR, Wanted(1), CPU)["relabel"]["epochs"]
    assert (photos["prepare"]["test_fraction"], cifar["prepare"]["test_fraction"]) == (0, 0)
    assert choose(CHARACTERS, Wanted(10), CPU)["prepare"]["test_fraction"] == 0.2


def test_grey_images_are_not_mirrored() -> None:
    grey, colour = (choose(own, Wanted(10), CPU) for own in (CHARACTERS, CIFAR))
    for stage in ("train_teacher", "plus", "relabel"):
        assert not grey[stage]["views"]["hflip"]
        assert colour[stage]["views"]["hflip"]


def test_a_quick_run_does_a_quarter() -> None:
    whole, quick = (choose(CIFAR, Wanted(10, quick=own), CPU) for own in (False, True))
    for stage in ("train_teacher", "relabel"):
        assert quick[stage]["epochs"] * 4 == whole[stage]["epochs"]
    assert len(quick["evaluate"]["seeds"]) < len(whole["evaluate"]["seeds"])


def test_command_line_wins_over_the_rules() -> None:
    made = choose(PHOTOS, Wanted(10, quick=True, epochs=7, image_size=16), CPU)
    assert made["train_teacher"]["epochs"] == 7
    assert made["prepare"]["image_size"] == 16
    changed = joined(made, overrides(["evaluate.network.width=8", "evaluate.seeds=[4]"]))
    assert changed["evaluate"]["network"] == {"arch": "convnet3", "width": 8, "norm": "group"}
    assert changed["evaluate"]["seeds"] == [4]


@pytest.mark.parametrize("text", ["lr", "lr=3", "plus.lr=", "plus..lr=3", "=3"])
def test_settings_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(TeddyError, match=r"--set: expected stage\.key=value"):
        overrides([text])


def test_a_value_has_no_keys() -> None:
    with pytest.raises(
        TeddyError, match=r"--set: plus\.views\.hflip=true: views has a value already"
    ):
        overrides(["plus.views=3", "plus.views.hflip=true"])


FEW = replace(PHOTOS, side=5, train=2)


@pytest.mark.parametrize(
    ("found", "ipc", "quick", "machine"),
    [  # every two values together
        (PHOTOS, 1, False, CPU), (PHOTOS, 10, True, GPU), (PHOTOS, 27, False, GPU),
        (CIFAR, 1, True, GPU), (CIFAR, 10, False, CPU), (CIFAR, 27, True, CPU),
        (CHARACTERS, 1, True, CPU), (CHARACTERS, 10, False, GPU), (CHARACTERS, 27, False, GPU),
        (FEW, 1, False, GPU), (FEW, 10, True, CPU), (FEW, 27, True, CPU),
    ],
)  # fmt: skip
def test_any_choice_is_a_whole_checkout(
    tmp_path: Path, found: Survey, ipc: int, quick: bool, machine: Machine
) -> None:
    wanted = Wanted(ipc, quick)
    write_checkout(
        tmp_path, "mine", found, {"title": "mine", **choose(found, wanted, machine)}, wanted
    )
    declared = Declared(tmp_path)
    assert not declared.unfit
    assert declared.syntheses(f"mine/main/ipc{ipc}/plus") == 1
    calls = [call.name for call in Pipeline(tmp_path).needed(["fig4-6-7", "evaluate"])]
    assert [name.split("@")[0] for name in calls] == [
        "prepare", "train_teacher", "build_pool", "synthesize", "synthesize", "relabel", "relabel",
        "evaluate", "evaluate", "fig4-6-7",
    ]  # fmt: skip
    config = declared.algorithm_config(f"mine/main/ipc{ipc}/plus")
    assert config.views == declared.relabel(f"mine/main/ipc{ipc}/plus").views


def test_other_raw_files_rerun_the_preparation(tmp_path: Path) -> None:
    settings = {"title": "mine", **choose(PHOTOS, Wanted(10), CPU)}
    write_checkout(tmp_path, "mine", PHOTOS, settings, Wanted(10))
    (call,) = Pipeline(tmp_path).needed(["prepare"])
    assert "raw.json" in call.deps
    before = digest(tmp_path / "raw.json")
    write_checkout(tmp_path, "mine", replace(PHOTOS, sha256="1"), settings, Wanted(10))
    assert digest(tmp_path / "raw.json") != before


@pytest.mark.parametrize(
    ("path", "name"),
    [("My photos (2).d", "My-photos-2-d"), ("methods", "methods-images"), ("äöü", "images"),
     ("123", "123")],
)  # fmt: skip
def test_any_folder_gives_a_name_for_rows(tmp_path: Path, path: str, name: str) -> None:
    (tmp_path / path).mkdir()
    assert name_of(tmp_path / path) == name
    settings = {"title": "x", **choose(PHOTOS, Wanted(10), CPU)}
    write_checkout(tmp_path / "out", name, PHOTOS, settings, Wanted(10))
    Declared(tmp_path / "out")


def test_files_are_named_without_their_suffix(tmp_path: Path) -> None:
    assert name_of(tmp_path / "blood.mnist.npz") == "blood-mnist"


def test_folder_of_other_images_is_refused(tmp_path: Path) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    check_folder(out, data)
    write_record(out, data)
    check_folder(out, data)
    with pytest.raises(TeddyError, match=f"{out}: holds what was made of {data}, not of "):
        check_folder(out, tmp_path / "other")
    (tmp_path / "else").mkdir()
    check_folder(tmp_path / "else", data)
    (tmp_path / "else" / "thesis.tex").touch()
    with pytest.raises(TeddyError, match=r"else: is there already; .*--out"):
        check_folder(tmp_path / "else", data)
    data.mkdir()
    with pytest.raises(TeddyError, match="lies among the images"):
        check_folder(data / "distilled" / "data", data)


# ----------------------------------------------------------------------------- how long, and what


@pytest.fixture
def declared(tmp_path: Path) -> Declared:
    """A run on CIFAR-10's size."""
    settings = {"title": "mine", **choose(CIFAR, Wanted(10), CPU)}
    write_checkout(tmp_path, "mine", CIFAR, settings, Wanted(10))
    return Declared(tmp_path)


def test_prediction_counts_steps(declared: Declared) -> None:
    def seconds(**rates: float) -> dict[str, float]:
        own = Rates(**{"decode": 0.0, "teach": 0.0, "label": 0.0, "learn": 0.0} | rates)
        none = predict(declared, "mine", 10, CIFAR, Rates(0, 0, 0, 0), 2)
        made = predict(declared, "mine", 10, CIFAR, own, 2)
        return {stage: made[stage] - none[stage] for stage in made}

    assert seconds(teach=1.0)["train_teacher"] == pytest.approx(20 * 45000)
    assert seconds(decode=1.0)["prepare"] == pytest.approx(60000)
    assert seconds(label=1.0)["relabel"] == pytest.approx(2 * 400 * 100 / 2)
    learn = seconds(learn=1.0)
    assert learn["evaluate"] == pytest.approx(2 * 5 * 400 * 100), "nine students, two at a time"
    assert learn["synthesize"] == pytest.approx(150 * 50 * 2), "two batches side by side"
    assert learn["relabel"] == learn["prepare"] == pytest.approx(0)


def test_stages_that_are_made_take_no_time() -> None:
    calls = [Call(stage, row, (), (), ()) for stage in ("prepare", "relabel") for row in "ab"]
    seconds = {"prepare": 10.0, "relabel": 30.0}
    assert command._of_calls(seconds, calls, calls) == seconds
    assert command._of_calls(seconds, calls, calls[3:]) == {"prepare": 0.0, "relabel": 15.0}
    assert by_part({**seconds, "build_pool": 1.0, "train_teacher": 2.0, "fig4-6-7": 9.0}) == {
        "preparing the images": 10.0, "soft labels": 30.0, "teachers": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (200, "3 min"), (7200, "2.0 h")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def student(synthesis: int, top1: float) -> dict[str, float]:
    return {"synthesis": synthesis, "top1_last": top1}


def test_table_sets_distilled_beside_random_and_all_real_images(declared: Declared) -> None:
    record = {"epochs": 400, "arch": "convnet3", "bytes": {"images": 100 * 3 * 32 * 32}}
    plus = record | {"labels": {"hard": [student(0, 40), student(0, 44)],
                                "soft": [student(0, 50), student(0, 50)]}}  # fmt: skip
    random = record | {"labels": {"hard": [student(0, 20)], "soft": [student(0, 30)]}}
    manifest = {
        "images_per_class": {"train": [4500] * 10, "val": [500] * 10, "test": [900] + [100] * 9},
        "image_shape": [3, 32, 32],
    }
    table = accuracies({"Plus": plus, "Random": random}, 81.25, declared, "mine", manifest)
    assert [column.name for column in table.columns] == [
        "trained on", "images", "hard labels", "soft labels", "n",
    ]  # fmt: skip
    assert table.rows == (
        ("Plus", 100, "42.0 ± 2.8", "50.0 ± 0.0", "1 × 2"),
        ("Random", 100, "20.0", "30.0", "1 × 1"),
        ("All real images", 45000, "81.2", None, "1"),
    )
    assert "always saying the most frequent class has 50.0 %" in " ".join(table.notes)


def test_times_are_those_of_the_last_run(tmp_path: Path) -> None:
    lines = [{"summary": "a: 3 images", "seconds": 5.0}, {"summary": "b: 1", "seconds": 2.0},
             {"summary": "a: 3 images", "seconds": 7.0}]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "prepare.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "synthesize-batches.jsonl").write_text('{"batch": 1}\n', encoding="utf-8")
    assert last_seconds(tmp_path) == {"prepare": {"a": 7.0, "b": 2.0}}
    assert last_seconds(tmp_path / "none") == {}
    table = times({"students": 61.0}, {"students": 30.0, "images": 2.0})
    assert table.rows == (("students", "30 s", "61 s"), ("images", "2 s", "0 s"),
                          ("all", "32 s", "61 s"))  # fmt: skip


def test_made_stages_are_known_by_outputs_settings_and_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = Call("prepare", "a", ("prepare",), ("in",), ("out",))
    Path("in").write_text("1", encoding="utf-8")
    made = {call.name: _fingerprint(call)}
    assert not is_made(call, made), "no output"
    Path("out").touch()
    assert is_made(call, made)
    assert not is_made(call, {})
    Path("in").write_text("2", encoding="utf-8")
    assert not is_made(call, made), "another input"


# ----------------------------------------------------------------------------- the command itself


def write_blobs(folder: Path, count: int = 12) -> Path:
    """Two classes that a network tells apart at once: bright above, or below."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("above", "below")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 80, (12, 14, 3))
            pixels[6 * label : 6 * label + 6] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        command.main([str(argument) for argument in arguments])
    assert caught.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object) -> Rates:
        return Rates(0.0, 0.0, 0.0, 0.0)

    monkeypatch.setattr(command, "measure", measure)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ipc", "0"], "--ipc must be at least 1, got 0"),
        (["--epochs", "-1"], "--epochs must be at least 0, got -1"),
        (["--image-size", "-8"], "--image-size must be at least 0, got -8"),
        (["--syntheses", "0"], "--syntheses must be at least 1, got 0"),
        (["--set", "plus.lr"], "--set: expected stage.key=value, got 'plus.lr'"),
        (
            ["--set", "evaluate.netwrk=3"],
            "error: --set: evaluate: unknown key 'netwrk'; did you mean",
        ),
        (["--ipc", "10"], "--ipc 10: class 'above' has 4 images to train on; choose 4 or fewer"),
        (["--set", "prepare.val_fraction=2"], "prepare.val_fraction must be below 1; got 2"),
        (["--set", "prepare.classes=[above]"], "expected at least 2 classes, found ['above']"),
        (["--set", "train_teacher.epochs=3"], "reaches epoch 80, but the base run"),
    ],
)
def test_options_are_refused_in_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    data, out = write_blobs(tmp_path / "data", 6), tmp_path / "new" / "out"
    line = refused(capsys, data, "--out", out, "--ipc", 2, *options)
    assert words in line and not out.parent.exists()


def test_refused_options_leave_a_former_run_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], went: type[Exception]
) -> None:
    data, out = write_blobs(tmp_path / "data", 6), tmp_path / "out"
    with pytest.raises(went):
        command.main([str(data), "--out", str(out), "--ipc", "2"])
    before = digest(out)
    assert "did you mean" in refused(
        capsys, data, "--out", out, "--ipc", 2, "--set", "evaluate.seeeds=1"
    )
    assert digest(out) == before


def test_refused_parquet_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "mine.parquet", tmp_path / "out"
    write_parquet(path, [(png(i), i % 2) for i in range(20)], ["a", "b"])
    for change in ("prepare.chanels=1", "evaluate.seds=[1]", "prepare.val_fraction=2"):
        refused(capsys, path, "--out", out, "--ipc", 2, "--set", change)
        assert not out.exists()
    out.mkdir()
    write_parquet(path, [(b"GIF89a", i % 2) for i in range(4)], ["a", "b"])
    refused(capsys, path, "--out", out, "--ipc", 2)
    assert not any(out.iterdir()), "a folder that was there stays"


def test_what_is_left_of_a_refusal(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"

    def refuse(error: BaseException, *made: str) -> None:
        with pytest.raises(type(error)), command.leaving_nothing(out):
            for name in ("params/x.yaml", *made):
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (out / name).touch()
            raise error

    refuse(TeddyError("no"))
    assert not (tmp_path / "a").exists()
    refuse(SystemExit(1))
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    refuse(TeddyError("no"))
    assert not out.exists() and (tmp_path / "a").exists()
    refuse(SystemExit(130))
    assert out.exists(), "stopped by Ctrl-C, to go on later"
    refuse(TeddyError("no"))
    assert out.exists(), "of a former run"
    shutil.rmtree(out)
    refuse(TeddyError("no"), "made.json")
    assert out.exists(), "a stage has made something"


@pytest.fixture
def went(monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """What is raised where the first stage would run."""
    return stop_at_the_first_stage(monkeypatch)


def stop_at_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """Raise what is returned there, and predict a long time."""

    class Went(Exception):
        pass

    def run(*_: object) -> None:
        raise Went

    monkeypatch.setattr(command, "measure", lambda *_: Rates(0.0, 1000.0, 0.0, 0.0))
    monkeypatch.setattr("tools.by_hand.run", run)
    return Went


@pytest.mark.parametrize(
    ("answer", "goes_on"), [("\n", True), ("y\n", True), ("n\n", False), ("", False)]
)
def test_a_long_run_is_asked_about_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, answer: str, goes_on: bool
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    command.ask(1e9)  # nobody is there to answer
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    command.ask(1800.0)
    assert sys.stdin.tell() == 0, "no question on a short run"
    if goes_on:
        command.ask(1801.0)
    else:
        with pytest.raises(TeddyError, match="stopped before anything was made; --quick"):
            command.ask(1801.0)


def test_the_question_is_of_the_predicted_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, went: type[Exception]
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(command, "ask", asked.append)
    arguments = [str(write_blobs(tmp_path / "data", 6)), "--out", str(tmp_path / "out")]
    for options in (["--ipc", "2", "--yes"], ["--ipc", "2"]):
        with pytest.raises(went):
            command.main([*arguments, *options])
    assert len(asked) == 1 and asked[0] > 1800


def test_next_step_is_ready_to_be_pasted() -> None:
    said = command.next_step(Path("my sets/it's/bundle"), Path("my sets/data/prepared/x"))
    shell, python = said.splitlines()
    assert shlex.split(shell.removeprefix("Next: ")) == [
        "teddy", "verify", "my sets/it's/bundle", "--data", "my sets/data/prepared/x",
    ]  # fmt: skip
    assert python == """or, in Python: teddy.load("my sets/it's/bundle")"""


@pytest.mark.usefixtures("no_measuring")
def test_unreadable_images_are_named_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_blobs(tmp_path / "data", 6), tmp_path / "out"
    truncated(data / "above" / "3.png")
    line = refused(capsys, data, "--out", out, "--ipc", 2)
    assert "1 images are unreadable: above/3.png" in line
    assert not out.exists()


def test_what_is_no_image_is_named_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], went: type[Exception]
) -> None:
    data, out = write_blobs(tmp_path / "data", 6), tmp_path / "out"
    (data / "above" / "3.png").write_bytes(b"x")
    line = refused(capsys, data, "--out", out, "--ipc", 2)
    assert line == (
        f"error: {data}: 1 of 12 images cannot be read: above/3.png; mend or remove them, or leave "
        "them out by --set prepare.on_unreadable=skip"
    )
    assert not out.exists()
    with pytest.raises(went):
        command.main([*map(str, (data, "--out", out, "--ipc", 2)), "--set",
                      "prepare.on_unreadable=skip"])  # fmt: skip


QUICK = (
    "--quick", "--ipc", "2", "--image-size", "8", "--epochs", "20",
    "--set", "train_teacher.network.width=8", "--set", "evaluate.network.width=8",
    "--set", "relabel.epochs=10", "--set", "evaluate.eval_epochs=10", "--set", "plus.iterations=2",
)  # fmt: skip


@pytest.mark.slow
def test_whole_command_on_a_tiny_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORKERS", "1"), ("DEVICE", "cpu")):
        monkeypatch.setenv(f"TEDDY_{name}", value)
    for name in ("TEDDY_LOGS", "TEDDY_WORK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(estimate, "_SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)
    data, out = write_blobs(tmp_path / "data"), Path("distilled/data")
    command.main([str(data), *QUICK])
    said = capsys.readouterr()
    assert "distill: about " in said.err and " s on 1 cores of " in said.err
    for part in dict.fromkeys(PARTS.values()):
        assert part in said.err
    table = (out / "ipc2" / "results.md").read_text(encoding="utf-8")
    assert table in said.out
    for line in ("| Teddy plus (ours)  |      4 |", "| Random real images |      4 |",
                 "| All real images    |     18 |"):  # fmt: skip
        assert line in table
    real = next(line for line in table.splitlines() if line.startswith("| All real"))
    assert float(real.split("|")[3]) > 70, "mirrored or not"
    with Image.open(out / "ipc2" / "images.png") as sheet:
        assert sheet.width > sheet.height > 72
    bundle = teddy.load(out / "ipc2" / "bundle")
    assert len(bundle) == 4 and bundle.class_names == ("above", "below")
    assert bundle.images.shape == (4, 3, 8, 8)
    assert bundle.facts["random"]["method"] == "random"
    assert bundle.facts["seconds"]["teachers"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "distilled"]

    kept = {path: path.stat().st_mtime_ns for path in files_of(out)}
    command.main([str(data), *QUICK])
    again = capsys.readouterr()
    assert "[" not in again.err, "nothing is made twice"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert again.out.split("## Time")[0] == said.out.split("## Time")[0]

    went = stop_at_the_first_stage(monkeypatch)  # what would run is known now
    shutil.rmtree(out / "data" / "labels")
    with pytest.raises(went):
        command.main([str(data), *QUICK])
    said = capsys.readouterr()
    assert "for the 5 of 10 stages left" in said.err
    assert "[6/10] relabel@data/main/ipc2/plus" in said.err

    write_image(data / "above" / "more.png", size=(14, 12))
    with pytest.raises(went):
        command.main([str(data), *QUICK])
    said = capsys.readouterr()
    assert "25 images of 2 classes" in said.err and "[1/10] prepare@data" in said.err
    assert {path: path.stat().st_mtime_ns for path in files_of(out)}.items() <= kept.items()

    line = refused(capsys, write_blobs(tmp_path / "other"), "--out", out)
    assert f"holds what was made of {data}" in line


def files_of(out: Path) -> list[Path]:
    """What stages have made."""
    return [path for name in ("data", "models", "metrics/evaluations", "plots")
            for path in (out / name).rglob("*") if path.is_file()]  # fmt: skip


def test_settings_are_those_of_the_checkout(declared: Declared, tmp_path: Path) -> None:
    own = read_yaml(tmp_path / "params.yaml")
    theirs = read_yaml(ROOT / "params.yaml")
    assert own["plus"] == theirs["plus"] and own["datasets"] == {}
    assert own.keys() == theirs.keys() - {"fig1", "fig5", "theory"}
    assert declared.seed == theirs["seed"]


def test_measuring_takes_steps_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_SECONDS", 0.0)
    monkeypatch.setenv("TEDDY_WORKERS", "1")
    monkeypatch.setenv("TEDDY_DEVICE", "cpu")
    data = write_blobs(tmp_path / "data")
    found = surveyed(data, test_fraction=0.25)
    settings = joined(
        {"title": "mine", **choose(found, Wanted(2, image_size=8), CPU)},
        overrides(["train_teacher.network.width=4", "evaluate.network.width=4"]),
    )
    write_checkout(tmp_path / "out", "mine", found, settings, Wanted(2))
    threads = torch.get_num_threads()
    rates = estimate.measure(Declared(tmp_path / "out"), "mine", 2, found)
    torch.set_num_threads(threads)
    for rate in (rates.decode, rates.teach, rates.label, rates.learn):
        assert 0 < rate < 1


def test_threads_sleep_while_they_wait() -> None:
    """OpenMP reads the variable once, when PyTorch is imported."""
    said = "os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules"
    code = f"import os, sys, tools.distill; print({said})"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert run.stdout.split() == ["passive", "False"]
