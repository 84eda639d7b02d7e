"""Bundles: packed from a run, opened, trained on and verified; bad ones are refused by name."""

import csv
import gc
import hashlib
import inspect
import json
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkouts import ROOT, commands, tiny_checkout
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

import teddy
from teddy.core.errors import TeddyError
from teddy.core.files import read_json, write_json
from teddy.core.seeding import permutation
from teddy.core.tables import write_text
from teddy.data.distilled import DistilledSet, save_distilled
from teddy.objectives import mixed_cross_entropy, soft_label_loss
from teddy.settings.schema import read_yaml
from teddy.sharing import bundles, packing
from teddy.sharing.opening import load
from teddy.sharing.packing import pack, verify
from teddy.sharing.training_set import TrainingSet, accuracy, fit
from teddy.stages.commands import main
from teddy.students.labels import TrainingViews

PRIOR, RANDOM = "digits/main/ipc3/prior", "digits/main/ipc3/random"
ROWS = {"prepare": ["digits"], "train_teacher": ["digits/base"], "build_pool": ["digits/prior"]}
ROWS |= {stage: [PRIOR, RANDOM] for stage in ("synthesize", "relabel", "evaluate")}
SIZES = {
    "train_teacher__network__width": 8, "synthesize__iterations": 40, "relabel__epochs": 18,
    "evaluate__network__width": 8, "evaluate__batch_size": 10, "evaluate__eval_epochs": 6,
}  # fmt: skip
"""So that students differ, and there are several batches."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of a tiny checkout, one of them with two syntheses, with labels and records."""
    folder = tiny_checkout(tmp_path_factory.mktemp("run"), **SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TEDDY_WORKERS", "1")
        patch.setenv("TEDDY_DEVICE", "cpu")
        for stage, rows in ROWS.items():
            for row in rows:
                for arguments in commands(folder, stage, row):
                    main(arguments)
    return folder


@pytest.fixture(scope="module")
def packed(checkout: Path) -> dict[str, Path]:
    """Bundles of both syntheses of one set and of the other set."""
    made = {"prior": (PRIOR, 0), "again": (PRIOR, 1), "random": (RANDOM, 0)}
    return {
        name: pack(checkout / "data/distilled" / row, checkout / "bundles" / name, number)
        for name, (row, number) in made.items()
    }


@pytest.fixture
def bundle(packed: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(packed["prior"], tmp_path / "bundle"))


@pytest.fixture(scope="module")
def data(packed: dict[str, Path]) -> TrainingSet:
    return load(packed["prior"])


def copy_of(run: Path, folder: Path) -> Path:
    """Of a checkout, to damage."""
    ignored = shutil.ignore_patterns("bundles", "work", "logs")
    return Path(shutil.copytree(run, folder, ignore=ignored))


def zipped(folder: Path) -> Path:
    """A zip of a folder, as other programs make it."""
    out = folder.with_suffix(".zip")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name in bundles.files_in(folder):
            file.write(folder / name, name)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in bundles.files_in(folder)}


def line(error: pytest.ExceptionInfo[TeddyError], path: Path | str) -> str:
    """A message, which is one line and begins with a path."""
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text
    return text


# --------------------------------------------------------------------------------- what is in it


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_bundle_is_the_set_with_its_labels_and_recipe(
    checkout: Path, packed: dict[str, Path], tmp_path: Path, form: str
) -> None:
    path = packed["prior"]
    if form == "zip":
        path = pack(checkout / "data/distilled" / PRIOR, tmp_path / "prior.zip")
    own, made = load(path), load(checkout / "data/distilled" / PRIOR)
    assert torch.equal(own.images, made.images) and torch.equal(own.labels, made.labels)
    assert own.class_names == made.class_names and own.normalisation == made.normalisation
    assert own.provenance == made.provenance
    assert own.recipe == made.recipe
    labels = own.stored_labels(), made.stored_labels()
    for epoch in range(own.recipe.relabel.epochs):
        assert torch.equal(*(stored.epoch(epoch) for stored in labels))
    assert own.fixed_labels.shape == (30, 10) and own.fixed_labels.dtype == torch.float32
    assert own.facts["students"] == read_json(checkout / f"metrics/evaluations/{PRIOR}.json")
    assert own.facts["random"] == read_json(checkout / f"metrics/evaluations/{RANDOM}.json")


def test_fixed_labels_are_what_the_pool_says_of_the_images(
    checkout: Path, data: TrainingSet
) -> None:
    from teddy.teachers.pools import open_pool

    pool = open_pool(checkout / "models/digits/prior")
    inputs = data.normalisation.apply(data.images)
    with torch.no_grad():
        logits = [pool.member(i, torch.device("cpu"))(inputs) for i in range(len(pool))]
    mean = torch.stack(logits).mean(0)
    torch.testing.assert_close(data.fixed_labels, mean, rtol=1e-3, atol=1e-2)


def test_syntheses_are_packed_apart(packed: dict[str, Path], data: TrainingSet) -> None:
    again = load(packed["again"])
    assert not torch.equal(again.images, data.images)
    assert (data.recipe.seed, data.provenance["synthesis"]) == (0, 0)
    assert again.recipe.seed != 0 and again.provenance["synthesis"] == 1


def test_teachers_come_on_request(checkout: Path, tmp_path: Path) -> None:
    out = pack(checkout / "data/distilled" / PRIOR, tmp_path / "out", teachers=True)
    members = [name for name in bundles.files_in(out) if "/member" in name]
    assert len(members) == 3 == len(read_yaml(out / "recipe.yaml")["teachers"])
    (out / members[0]).write_bytes(b"")
    load(out).stored_labels()  # teachers are not read
    with pytest.raises(TeddyError, match=f"{members[0]} is altered"):
        verify(out)


def test_labels_that_were_not_stored_are_made(checkout: Path, tmp_path: Path, workplace: Path,
                                              data: TrainingSet) -> None:  # fmt: skip
    run = copy_of(checkout, tmp_path / "run")
    tiny_checkout(run, relabel__store=False, **SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        for arguments in commands(run, "relabel", PRIOR):
            main(arguments)
        made = load(pack(run / "data/distilled" / PRIOR, tmp_path / "out"))
    labels = data.stored_labels(), made.stored_labels()
    for epoch in range(18):
        assert torch.equal(*(stored.epoch(epoch) for stored in labels))
    with pytest.raises(TeddyError, match="has no soft labels beside it"):
        load(run / "data/distilled" / PRIOR).loader()


def test_equal_sets_give_equal_bytes(
    checkout: Path, packed: dict[str, Path], tmp_path: Path
) -> None:
    source = checkout / "data/distilled" / PRIOR
    assert files(pack(source, tmp_path / "folder")) == files(packed["prior"])
    one, other = (pack(source, tmp_path / name / "set.zip") for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    with zipfile.ZipFile(one) as opened:
        found = {name: opened.read(name) for name in opened.namelist()}
        assert {entry.date_time for entry in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert found == files(packed["prior"])


def test_checksums_are_those_of_sha256sum(packed: dict[str, Path]) -> None:
    lines = (packed["prior"] / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    content = files(packed["prior"])
    del content["SHA256SUMS"]
    assert lines == [
        f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in content.items()
    ]


def test_images_are_read_without_this_package(packed: dict[str, Path], data: TrainingSet) -> None:
    with (packed["prior"] / "images.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for number, entry in enumerate(lines):
        with Image.open(packed["prior"] / entry["file"]) as image:
            assert image.mode == "L"
            assert list(image.tobytes()) == data.images[number].flatten().tolist()
        assert int(entry["label"]) == data.labels[number]
    assert len(lines) == len(data)


def test_card_says_how_good_and_from_what(packed: dict[str, Path]) -> None:
    text = (packed["prior"] / "README.md").read_text(encoding="utf-8")
    for words in ("# scikit-learn digits, distilled to 3 per class by Teddy (prior)",
                  "30 images of 8×8 pixels", "Random real images", "CC BY 4.0", PRIOR):  # fmt: skip
        assert words in text


def test_names_of_classes_that_look_like_numbers_stay_text(bundle: Path) -> None:
    names = ["1e3", "0o17", "12", "off", "~", "+1.e5", ".5", "null", "0x1F", "ä: b"]
    rewrite(bundle, lambda record: record.update(classes=names))
    shutil.rmtree(bundle / "images")
    made = load_unchecked(bundle, tuple(names))
    bundles.write_images(bundle, made)
    manifest = read_json(bundle / "labels/manifest.json")
    content = bundles.content_digest(made)
    write_json(bundle / "labels/manifest.json", manifest | {"content": content})
    bundles.write_sums(bundle)
    assert load(bundle).class_names == tuple(names)


def load_unchecked(bundle: Path, names: tuple[str, ...]) -> Any:
    """A set of random images with other names of classes."""
    from teddy.data.images import Normalisation

    record = bundles.read_record(bundle, bundle)
    pixels = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8)
    normalisation = Normalisation(record.mean, record.std)
    return DistilledSet(pixels, torch.arange(30) % 10, names, normalisation, {})


# --------------------------------------------------------------------------------- trained on


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("place", ["checkout", "bundle"])
def test_fit_gives_the_students_of_evaluate_to_the_bit(
    checkout: Path, packed: dict[str, Path], place: str, kind: str
) -> None:
    students = read_json(checkout / f"metrics/evaluations/{PRIOR}.json")["labels"][kind]
    assert len({student["top1_last"] for student in students}) > 1, "they differ"
    for student in students:
        number, seed = student["synthesis"], student["seed"]
        opened = (
            load(checkout / "data/distilled" / PRIOR, number) if place == "checkout"
            else load(packed["again" if number else "prior"])
        )  # fmt: skip
        network = fit(opened.network(seed), opened, soft=kind == "soft", device="cpu", seed=seed)
        assert accuracy(network, checkout / "data/prepared/digits", opened) == student["top1_last"]


def of_epoch(
    data: TrainingSet, epoch: int, batch_size: int, **options: Any
) -> tuple[Tensor, Tensor]:
    """Views and targets of an epoch, in the order of the loader."""
    loader = data.loader(batch_size, device="cpu", **options)
    batches = list(loader.epoch(epoch))
    assert len(batches) == loader.steps == -(-len(data) // batch_size)
    assert max(len(targets) for _, targets in batches) <= batch_size
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


@pytest.mark.parametrize("soft", [True, False])
def test_every_batch_size_has_the_same_views_and_labels(data: TrainingSet, soft: bool) -> None:
    for epoch in (0, 17):
        inputs, targets = of_epoch(data, epoch, 30, soft=soft)
        assert inputs.shape == (30, 1, 8, 8) and targets.shape == (30, 10)
        for batch_size in (7, 10, 64):
            again = of_epoch(data, epoch, batch_size, soft=soft)
            assert torch.equal(again[0], inputs) and torch.equal(again[1], targets)
    assert not torch.equal(of_epoch(data, 0, 30, soft=soft)[0], inputs)


def test_other_seeds_see_the_same_views_in_another_order(data: TrainingSet) -> None:
    (one, of_one), (other, of_other) = (of_epoch(data, 3, 10, seed=seed) for seed in (0, 1))
    assert not torch.equal(one, other)
    places = [next(i for i in range(30) if torch.equal(one[i], view)) for view in other]
    assert sorted(places) == list(range(30))
    assert torch.equal(of_one[places], of_other)


def test_going_through_a_loader_again_gives_the_same(data: TrainingSet) -> None:
    loader = data.loader(device="cpu")
    assert (len(loader), loader.steps, loader.batch_size) == (18, 3, 10)
    once, again = ([[x for batch in epoch for x in batch] for epoch in loader] for _ in "12")
    assert len(once) == 18
    for one, other in zip(once, again, strict=True):
        assert all(map(torch.equal, one, other))


def test_soft_targets_are_the_stored_logits_at_the_temperature(data: TrainingSet) -> None:
    temperature, labels = data.recipe.evaluate.temperature, data.stored_labels()
    loader = data.loader(30, device="cpu")
    for epoch in (0, 11):
        order = permutation(30, data.recipe.student_seed(0), "student order", epoch)
        logits = labels.epoch(epoch)[order]
        ((_, targets),) = loader.epoch(epoch)
        assert torch.equal(targets, (logits.float() / temperature).softmax(1))
        outputs = torch.randn(30, 10)
        squared = data.recipe.evaluate.temperature_squared
        expected = soft_label_loss(outputs, logits, temperature, squared=squared)
        torch.testing.assert_close(loader.loss(outputs, targets), expected)


def test_hard_targets_are_classes_mixed_as_cutmix_mixes(data: TrainingSet) -> None:
    assert data.recipe.relabel.cutmix
    loader = data.loader(30, soft=False, device="cpu")
    views = TrainingViews(data.as_images(), data.normalisation, data.recipe.relabel, 0)
    for epoch in (0, 5):
        order = permutation(30, data.recipe.student_seed(0), "student order", epoch)
        (batch,) = views.batches(epoch, [order])
        ((inputs, targets),) = loader.epoch(epoch)
        assert torch.equal(inputs, batch.inputs)
        own, partner = (one_hot(y, 10) for y in (batch.labels, batch.partner_labels))
        torch.testing.assert_close(
            targets, own * batch.kept[:, None] + partner * (1 - batch.kept)[:, None]
        )
        torch.testing.assert_close(targets.sum(1), torch.ones(30))
        assert ((targets > 0).sum(1) == 2).any(), "some images are mixed of two classes"
        outputs = torch.randn(30, 10)
        expected = mixed_cross_entropy(outputs, batch.labels, batch.partner_labels, batch.kept)
        torch.testing.assert_close(loader.loss(outputs, targets), expected)


def test_fit_stops_where_it_is_told_and_keeps_the_schedule(
    data: TrainingSet, checkout: Path
) -> None:
    student = data.facts["students"]["labels"]["soft"][1]
    network = fit(data.network(1), data, device="cpu", seed=1, epochs=12)
    assert student["curve"][1]["epoch"] == 12 and not network.training
    assert accuracy(network, checkout / "data/prepared/digits") == student["curve"][1]["top1"]
    for wrong in (0, 19):
        with pytest.raises(TeddyError, match=f"epochs must be from 1 to 18, got {wrong}"):
            fit(data.network(), data, device="cpu", epochs=wrong)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda data: data.loader(0), "batch_size must be a whole number, 1 or more, got 0"),
        (lambda data: data.loader(2.5), "batch_size must be a whole number, 1 or more, got 2.5"),
        (lambda data: data.loader(device="abacus"), "device must be one of this machine, got 'aba"),
        (lambda data: next(data.loader().epoch(18)), "epoch must be from 0 to 17, got 18"),
        (lambda data: next(data.loader(soft=False).epoch(-1)), "from 0 to 17, got -1"),
        (lambda data: accuracy(data.network(), "nowhere"), "nowhere"),
        (lambda data: accuracy(data.network(), "", split="all"), "split must be .* got 'all'"),
    ],
)
def test_wrong_arguments_are_refused(
    data: TrainingSet, run: Callable[[TrainingSet], object], words: str
) -> None:
    with pytest.raises(TeddyError, match=words):
        run(data)


def test_a_set_alone_has_images_and_classes(checkout: Path, tmp_path: Path) -> None:
    alone = tmp_path / "set.safetensors"
    shutil.copy(checkout / f"data/distilled/{PRIOR}/0.safetensors", alone)
    opened = load(alone)
    assert len(opened) == 30
    for wanted in (lambda: opened.recipe, lambda: opened.loader(), lambda: opened.network()):
        with pytest.raises(TeddyError, match="has no recipe") as caught:
            wanted()
        line(caught, alone)
    with pytest.raises(TeddyError, match="has no soft labels"):
        opened.stored_labels()
    with pytest.raises(TeddyError, match="has no fixed labels"):
        opened.fixed_labels  # noqa: B018


def test_a_zip_is_unpacked_for_as_long_as_it_is_used(bundle: Path, monkeypatch: pytest.MonkeyPatch,
                                                     tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    labels = load(zipped(bundle)).stored_labels()
    gc.collect()
    assert labels.epoch(17).shape == (30, 10), "though the set is forgotten"
    assert list(tmp_path.glob("teddy-bundle-*"))
    del labels
    gc.collect()
    assert not list(tmp_path.glob("teddy-bundle-*"))


# --------------------------------------------------------------------------------- bad bundles


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the recipe of a bundle."""
    record = dict(read_yaml(bundle / "recipe.yaml"))
    change(record)
    bundles.write_record(bundle, record)


def edit(file: str, before: str, after: str) -> Callable[[Path], None]:
    """A change of a text file of a bundle."""

    def change(bundle: Path) -> None:
        text = (bundle / file).read_text(encoding="utf-8")
        assert before in text
        write_text(bundle / file, text.replace(before, after, 1))

    return change


def recipe(**changes: Any) -> Callable[[Path], None]:
    """A change of keys of the recipe; None removes one."""

    def change(record: dict[str, Any]) -> None:
        for key, value in changes.items():
            *parents, last = key.split("__")
            section = record
            for parent in parents:
                section = section[parent]
            section[last] = value
            if value is None:
                del section[last]

    return lambda bundle: rewrite(bundle, change)


def image(size: tuple[int, int] = (8, 8), mode: str = "L") -> Callable[[Path], None]:
    """The second image is another."""
    return lambda bundle: Image.new(mode, size).save(bundle / "images/0001_1/00000.png")


def images(size: tuple[int, int], mode: str) -> Callable[[Path], None]:
    """All images are others."""

    def change(bundle: Path) -> None:
        for path in (bundle / "images").rglob("*.png"):
            Image.new(mode, size).save(path)

    return change


def manifest(**changes: Any) -> Callable[[Path], None]:
    """A change of the labels' manifest."""

    def change(bundle: Path) -> None:
        path = bundle / "labels/manifest.json"
        write_json(path, read_json(path) | changes)

    return change


def remove(file: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / file).unlink()


def write(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda bundle: (bundle / file).write_bytes(content)


NOT_SUMMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no image": (remove("images/0003_3/00001.png"), "images/0003_3/00001.png is missing"),
    "no labels": (remove("labels/epochs0000-0001.safetensors"), "epochs0000-0001.* is missing"),
    "no card": (remove("README.md"), "README.md is missing"),
    "no sums": (remove("SHA256SUMS"), "there is no SHA256SUMS"),
    "other image": (image(), "images/0001_1/00000.png is altered"),
    "other order": (edit("images.csv", "0000_0/00000.png,0", "0000_0/00000.png,1"),
                    "images.csv is altered"),
    "other classes": (recipe(classes=list("1023456789")), "recipe.yaml is altered"),
    "other numbers": (edit("numbers.json", '"ipc": 3', '"ipc": 4'), "numbers.json is altered"),
    "other fixed": (write("labels/fixed.safetensors", b"x"), "fixed.safetensors is altered"),
    "foreign file": (write("images/0000_0/00003.png", b""), "00003.png does not belong"),
    "foreign labels": (write("labels/epochs0100-0101.safetensors", b""), "does not belong"),
    "line of sums": (write("SHA256SUMS", b"abc  README.md\n"), "SHA256SUMS: line 1 must be"),
    "sums outside": (write("SHA256SUMS", b"0" * 64 + b"  ../README.md\n"), "outside of the bundle"),
    "empty sums": (write("SHA256SUMS", b""), "recipe.yaml is missing"),
    "no text in sums": (write("SHA256SUMS", b"\xff\xfe"), "SHA256SUMS: cannot read"),
}  # fmt: skip
"""What a broken copy is like; checksums are as they were."""

SUMMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (remove("images.csv"), "images.csv is missing"),
    "no numbers": (remove("numbers.json"), "numbers.json is missing"),
    "no manifest": (remove("labels/manifest.json"), "labels/manifest.json is missing"),
    "no listed image": (remove("images/0003_3/00001.png"), "00001.png: expected a PNG image"),
    "damaged image": (write("images/0003_3/00001.png", b"\x89PNG\r\n\x1a\n"), "expected a PNG"),
    "another format": (lambda b: Image.new("L", (8, 8)).save(b / "images/0003_3/00001.png", "GIF"),
                       "expected a PNG image"),
    "palette": (image(mode="P"), "expected a grey or RGB image, got mode P"),
    "16 bits": (image(mode="I;16"), "expected a grey or RGB image"),
    "one of other size": (image((9, 8)), "image must be 1×8×8 as the first; got 1×8×9"),
    "one in colour": (image(mode="RGB"), "image must be 1×8×8 as the first; got 3×8×8"),
    "all of other size": (images((16, 16), "L"), "images must be 1×8×8, .* got 1×16×16"),
    "all in colour": (images((8, 8), "RGB"), "images must be 1×8×8, .* got 3×8×8"),
    "other columns": (edit("images.csv", "file,label", "name,class"), "expected the columns"),
    "no line": (write("images.csv", b"file,label\n"), "expected the columns file, label and lines"),
    "empty index": (write("images.csv", b""), "expected the columns file, label and lines"),
    "no text": (write("images.csv", b"\xff\xff"), "images.csv: cannot read"),
    "long line": (write("images.csv", b"file,label\n" + b"x" * 200_000), "images.csv: cannot read"),
    "no label": (edit("images.csv", "00000.png,0", "00000.png"), "line 2 must be a file and a lab"),
    "label of text": (edit("images.csv", "00000.png,0", "00000.png,-1"), "line 2 must be a file"),
    "huge label": (edit("images.csv", "00000.png,0", "00000.png,9999999999"), "line 2 must be"),
    "label too high": (edit("images.csv", "00000.png,0", "00000.png,10"), "must be below 10"),
    "label of another": (edit("images.csv", "0000_0/00000.png,0", "0000_0/00000.png,1"),
                         "images of class 1, '1' in recipe.yaml, must lie in images/0001_1"),
    "image outside": (edit("images.csv", "images/0000_0/00000.png", "../x.png"), "outside of the"),
    "classes in another order": (recipe(classes=list("1023456789")),
                                 "images of class 0, '1' in recipe.yaml, must lie in .*0000_1"),
    "a class less": (recipe(classes=list("012345678")), "labels must be below 9"),
    "missing key": (recipe(method=None), "recipe.yaml lacks the key 'method'"),
    "missing key below": (recipe(recipe__evaluate__temperature=None),
                          "recipe.yaml.recipe.evaluate lacks the key 'temperature'"),
    "unknown key": (recipe(colour="red"), "recipe.yaml: unknown key 'colour'"),
    "mistyped key": (recipe(recipe__relabel__cut_mix=True), "did you mean 'cutmix'"),
    "text for a number": (recipe(recipe__evaluate__temperature="warm"),
                          "temperature must be a number; got 'warm'"),
    "number for a list": (recipe(mean=0.5), "recipe.yaml.mean must be a list; got 0.5"),
    "other format": (recipe(format="teddy.bundle.v2"), "format must be .*teddy.bundle.v1; got"),
    "std of zero": (recipe(std=[0.0]), r"std\[0\] must be above 0; got 0.0"),
    "more means": (recipe(mean=[0.5, 0.5]), "mean and std must have as many entries"),
    "means of colours": (recipe(mean=[0.5] * 3, std=[0.5] * 3), "got 1×8×8 and 3 entries"),
    "one WordNet id": (recipe(wordnet=["n00000001"]), "wordnet as classes or none"),
    "no YAML": (write("recipe.yaml", b"a: [b"), "recipe.yaml: not valid YAML"),
    "no keys": (write("recipe.yaml", b"- a\n"), "recipe.yaml must be keys"),
    "key twice": (edit("recipe.yaml", "wordnet: []", "wordnet: []\nwordnet: []"), "there twice"),
    "no JSON": (write("numbers.json", b"{"), "numbers.json: expected JSON"),
    "labels of another seed": (manifest(seed=7), "labels must have the recipe's seed 0; got 7"),
    "labels of other views": (manifest(settings={}), "labels are of other relabel settings"),
}  # fmt: skip
"""What somebody has put together, checksums and all."""


def refused(path: Path) -> str:
    with pytest.raises(TeddyError) as caught:
        load(path)
    return line(caught, path)


@pytest.mark.parametrize("name", NOT_SUMMED)
def test_broken_copies_are_refused(bundle: Path, name: str) -> None:
    damage, words = NOT_SUMMED[name]
    damage(bundle)
    text = refused(bundle)
    with pytest.raises(TeddyError) as caught:
        verify(bundle)
    assert line(caught, bundle) == text
    as_zip = zipped(bundle)
    assert refused(as_zip).replace(str(as_zip), str(bundle)) == text
    assert_matches(words, text)


@pytest.mark.parametrize("name", SUMMED)
def test_parts_that_do_not_belong_together_are_refused(bundle: Path, name: str) -> None:
    damage, words = SUMMED[name]
    damage(bundle)
    bundles.write_sums(bundle)
    assert_matches(words, refused(bundle))
    as_zip = zipped(bundle)
    text = refused(as_zip)
    assert_matches(words, text)
    assert "teddy-bundle-" not in text, "where it was unpacked says nothing to its user"


def assert_matches(words: str, text: str) -> None:
    with pytest.raises(ValueError, match=words):
        raise ValueError(text)


def test_labels_of_another_set_are_refused(packed: dict[str, Path], bundle: Path) -> None:
    """A folder of labels, or their large files alone, exchanged for those of another bundle."""
    sums = (bundle / "SHA256SUMS").read_text()
    for other in ("random", "again"):
        shutil.rmtree(bundle / "labels")
        shutil.copytree(packed[other] / "labels", bundle / "labels")
        assert_matches("labels/.* is altered", refused(bundle))
        bundles.write_sums(bundle)
        assert_matches("labels: soft labels are of other images than these", refused(bundle))
        (bundle / "SHA256SUMS").write_text(sums)


@pytest.mark.parametrize("change", ["order", "twice", "pixel"])
def test_labels_belong_to_these_images_in_this_order(bundle: Path, change: str) -> None:
    """Though all checksums fit."""
    index = bundle / "images.csv"
    lines = index.read_text().splitlines()
    if change == "order":
        lines[1], lines[12] = lines[12], lines[1]
    elif change == "twice":
        lines.append(lines[-1])
    else:
        pixels = bundles.read_png(bundle / lines[1].split(",")[0])
        pixels[0, 0, 0] ^= 1
        bundles.write_png(bundle / lines[1].split(",")[0], pixels)
    index.write_text("\n".join(lines) + "\n")
    bundles.write_sums(bundle)
    assert_matches("soft labels are of other images than these, or of these in", refused(bundle))


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_large_files_of_labels_are_compared_before_they_are_used(
    packed: dict[str, Path], bundle: Path, form: str
) -> None:
    for path in (packed["random"] / "labels").glob("epochs*"):
        shutil.copy(path, bundle / "labels" / path.name)
    path = bundle if form == "folder" else zipped(bundle)
    opened = load(path)  # which is quick, whatever their size
    assert opened.loader(soft=False).steps == 3
    for use in (opened.stored_labels, opened.loader, lambda: fit(opened.network(), opened)):
        with pytest.raises(TeddyError, match=r"labels/epochs0000-0001\.saf.* is altered") as e:
            use()
        line(e, path)
    with pytest.raises(TeddyError, match="is altered"):
        verify(path)


@pytest.mark.parametrize("key", ["shards", "file"])
def test_labels_of_fewer_epochs_or_images_are_refused(bundle: Path, key: str) -> None:
    path = bundle / "labels/manifest.json"
    record = read_json(path)
    if key == "shards":
        record["shards"] = record["shards"][:-1]
        words = "labels of .* epochs, expected 18"
    else:
        record["shards"][0]["file"] = "fixed.safetensors"
        words = "fixed.safetensors: expected a teddy.labels.v1 file"
    write_json(path, record)
    bundles.write_sums(bundle)
    with pytest.raises(TeddyError, match=words):
        load(bundle).loader()


def test_fixed_labels_of_other_images_are_refused(bundle: Path) -> None:
    from teddy.core.artifacts import write_tensors

    half = {"logits": torch.zeros(15, 10).half()}
    write_tensors(bundle / bundles.FIXED, half, kind="teddy.fixed_labels.v1", record={})
    bundles.write_sums(bundle)
    with pytest.raises(TeddyError, match="'logits' must be F16 of 30 × 10; got F16 of 15 × 10"):
        load(bundle).fixed_labels  # noqa: B018


def test_a_synthesis_is_chosen_of_several_alone(checkout: Path, bundle: Path) -> None:
    for path in (bundle, zipped(bundle), checkout / "data/distilled" / PRIOR / "1.safetensors"):
        with pytest.raises(TeddyError, match="holds one synthesis; leave out synthesis 1") as error:
            load(path, synthesis=1)
        line(error, path)
    with pytest.raises(TeddyError, match="is one synthesis; leave out --synthesis"):
        pack(checkout / "data/distilled" / PRIOR / "1.safetensors", synthesis=1)


def test_a_zip_may_hold_the_bundles_folder(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as file:
        for name in bundles.files_in(bundle):
            file.write(bundle / name, f"bundle/{name}")
    assert torch.equal(load(tmp_path / "outer.zip").images, load(bundle).images)


def test_what_is_no_bundle_is_refused(tmp_path: Path, checkout: Path) -> None:
    folder, archive = tmp_path / "folder", tmp_path / "set.zip"
    folder.mkdir()
    assert_matches("expected a bundle .recipe.yaml. or a set .0.safetensors.", refused(folder))
    assert_matches("expected a bundle, found nothing there", refused(archive))
    archive.write_bytes(b"no zip")
    assert_matches("expected a .zip of a bundle, but cannot read it", refused(archive))
    with zipfile.ZipFile(archive, "w"):
        pass
    assert_matches("expected a bundle, but there is no SHA256SUMS", refused(archive))
    with pytest.raises(TeddyError, match="expected a bundle, but there is no SHA256SUMS"):
        verify(checkout / "data/distilled" / PRIOR)


def test_truncated_and_damaged_zips_are_refused(bundle: Path) -> None:
    path = zipped(bundle)
    whole, told = path.read_bytes(), 0
    for part in (whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(part)
        assert_matches("expected a .zip of a bundle, but cannot read it", refused(path))
    for at in range(60, 4000, 97):
        path.write_bytes(
            whole[:at] + bytes(b ^ 255 for b in whole[at : at + 16]) + whole[at + 16 :]
        )
        try:
            load(path)  # what it does not tell matters to nobody, as a date
        except TeddyError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path))
            told += 1
    assert told > 20


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "a/../../b", "a\\..\\b"])
def test_zips_with_an_entry_outside_are_refused(bundle: Path, name: str) -> None:
    path = zipped(bundle)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, "x")
    before = sorted(bundle.parent.rglob("*"))
    assert_matches("which lies outside of the bundle", refused(path))
    assert sorted(bundle.parent.rglob("*")) == before


# --------------------------------------------------------------------------------- packing


def test_what_is_there_is_not_overwritten(checkout: Path, tmp_path: Path) -> None:
    source = checkout / "data/distilled" / PRIOR
    for name in ("out", "out.zip"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
        with pytest.raises(TeddyError, match="is there already; remove it or name another") as e:
            pack(source, tmp_path / name)
        line(e, tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
    with pytest.raises(TeddyError, match="cannot write"):
        pack(source, tmp_path / "out" / "below" / "a file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.zip"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("killed")])
@pytest.mark.parametrize(
    ("step", "out"), [("write_png", "out"), ("write_sums", "out.zip"), ("_pack", "out.zip")]
)
def test_a_failure_half_way_leaves_nothing(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception,
    out: str,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        assert list(tmp_path.iterdir()), "something is half made"
        raise error

    monkeypatch.setattr(bundles, step, fail)
    expected = TeddyError if isinstance(error, OSError) else RuntimeError
    with pytest.raises(expected, match=r"No space left|killed"):
        pack(checkout / "data/distilled" / PRIOR, tmp_path / out)
    assert not list(tmp_path.iterdir())


def stale(**changes: Any) -> Callable[[Path], None]:
    """Labels whose manifest says something else."""

    def change(run: Path) -> None:
        path = run / f"data/labels/{PRIOR}/0/manifest.json"
        write_json(path, read_json(path) | changes)

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / f"metrics/evaluations/{PRIOR}.json").unlink(), "dvc repro evaluate@"),
        (lambda run: (run / f"inputs/evaluate/{PRIOR}.json").unlink(), "dvc repro evaluate@"),
        (lambda run: shutil.rmtree(run / f"data/distilled/{PRIOR}"), "expected the folder of a s"),
        (lambda run: shutil.rmtree(run / f"data/labels/{PRIOR}"), "dvc repro relabel@"),
        (lambda run: (run / f"data/labels/{PRIOR}/0/epochs0002-0003.safetensors").unlink(),
         "epochs0002-0003.safetensors: expected a teddy.labels.v1 file, found nothing"),
        (lambda run: shutil.rmtree(run / "models/digits/prior"), "models/digits/prior"),
        (stale(set="0"), "labels are of another set"),
        (stale(pool="0"), "labels are of another pool"),
        (stale(seed=3), "labels must have the recipe's seed 0; got 3"),
        (stale(settings={}), "labels are of other relabel settings"),
        (stale(shards=None), "shards must be a list; got None"),
    ],
)  # fmt: skip
def test_sets_that_are_not_finished_are_not_packed(
    checkout: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    run = copy_of(checkout, tmp_path / "run")
    damage(run)
    with pytest.raises(TeddyError, match=words) as caught:
        pack(run / "data/distilled" / PRIOR, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_only_sets_of_a_checkout_are_packed(checkout: Path, tmp_path: Path) -> None:
    alone = tmp_path / "0.safetensors"
    shutil.copy(checkout / f"data/distilled/{PRIOR}/0.safetensors", alone)
    with pytest.raises(TeddyError, match="expected the folder of a set"):
        pack(alone, tmp_path / "out")
    with pytest.raises(TeddyError, match=r"with 2\.safetensors"):
        pack(checkout / "data/distilled" / PRIOR, tmp_path / "out", synthesis=2)


@pytest.mark.parametrize("key", ["set", "seed", "settings"])
def test_stale_labels_of_a_checkout_are_not_opened(
    checkout: Path, tmp_path: Path, key: str
) -> None:
    run = copy_of(checkout, tmp_path / "run")
    stale(**{key: {} if key == "settings" else 9})(run)
    with pytest.raises(TeddyError, match=f"dvc repro relabel@{PRIOR}") as caught:
        load(run / "data/distilled" / PRIOR)
    line(caught, run / "data/labels" / PRIOR / "0")


# --------------------------------------------------------------------------------- verifying


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_bundle_holds_its_number(
    bundle: Path, checkout: Path, form: str, workplace: Path
) -> None:
    path = bundle if form == "folder" else zipped(bundle)
    recorded = read_json(checkout / f"metrics/evaluations/{PRIOR}.json")["labels"]["soft"][0]
    text = verify(path)  # on images that it prepares itself
    value = f"{recorded['top1_last']:.1f} %"
    assert text.startswith(f"the number holds: {value} after 18 of 18 epochs with soft labels; "
                           f"recorded {value}, ±")  # fmt: skip
    text = verify(path, checkout / "data/prepared/digits", soft=False)
    assert "after 18 of 18 epochs with hard labels" in text


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_quick_look_does_not_take_guessing_for_learning(bundle: Path, classes: int) -> None:
    """It goes on to the first recorded epoch that tells the one from the other."""
    least = 100 / classes + (100 - 100 / classes) / 4
    for second, epoch in ((least + 1.5, 6), (least + 0.5, 18)):
        values = ((1, least - 5), (6, second), (18, 90.0))
        curve = [{"epoch": after, "top1": top1} for after, top1 in values]
        student = {"synthesis": 0, "seed": 0, "curve": curve}
        own = packing._students({"students": {"labels": {"soft": [student]}}}, "soft", bundle)
        assert own[0].curve[packing._informative(own, own[0], classes)][0] == epoch


def test_another_number_does_not_hold(bundle: Path, checkout: Path) -> None:
    numbers = read_json(bundle / "numbers.json")
    for students in numbers["students"]["labels"].values():
        for student in students:
            student["curve"] = [{"epoch": 6, "top1": 99.0}]
    write_json(bundle / "numbers.json", numbers)
    bundles.write_sums(bundle)
    with pytest.raises(TeddyError, match=r"the number does not hold: .* recorded 99.0 %") as caught:
        verify(bundle, checkout / "data/prepared/digits")
    line(caught, bundle)


@pytest.mark.parametrize("students", [None, {}, {"labels": {"soft": [{}]}}, {"labels": {"soft": 1}},
                                      {"labels": {"soft": [{"seed": 0, "curve": []}]}},
                                      {"labels": {}}])  # fmt: skip
def test_numbers_without_students_are_refused(
    bundle: Path, checkout: Path, students: object
) -> None:
    write_json(bundle / "numbers.json", {"students": students})
    bundles.write_sums(bundle)
    with pytest.raises(TeddyError, match=r"numbers.json: (students|has no students)") as caught:
        verify(bundle, checkout / "data/prepared/digits")
    line(caught, bundle)


def test_other_real_images_are_refused(bundle: Path, checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(TeddyError, match="nowhere"):
        verify(bundle, tmp_path / "nowhere")
    other = Path(shutil.copytree(checkout / "data/prepared/digits", tmp_path / "other"))
    record = read_json(other / "manifest.json")
    write_json(other / "manifest.json", record | {"seed": 5})
    with pytest.raises(TeddyError, match="was prepared from other images or by other settings"):
        verify(bundle, other)
    names = list("0123456798")
    assert record["class_names"] == list("0123456789")
    write_json(other / "manifest.json", record | {"class_names": names})
    with pytest.raises(TeddyError, match="class 8 is '9', not '8'"):
        verify(bundle, other)
    rewrite(bundle, lambda own: own["source"]["prepare"].update(source="cifar10"))
    bundles.write_sums(bundle)
    with pytest.raises(TeddyError, match="name the folder with --data"):
        verify(bundle)


# --------------------------------------------------------------------------------- for its users


def test_commands_pack_and_verify(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    source = str(checkout / "data/distilled" / PRIOR)
    main(["pack", source, "--synthesis", "1"])
    said = capsys.readouterr().err
    assert "next: teddy verify digits-main-ipc3-prior\n" in said
    assert "pack wrote digits-main-ipc3-prior" in said
    assert load("digits-main-ipc3-prior").provenance["synthesis"] == 1
    main(["verify", "digits-main-ipc3-prior", "--quick"])
    assert "the number holds" in capsys.readouterr().err
    for option, value in (("--label-epochs", "0"), ("--label-top-k", "-1")):
        with pytest.raises(SystemExit):
            main(["pack", source, option, value])
        assert f"argument {option}: must be 1 or more, got {value}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pack", source, "--label-top-k", "10", "--out", "top"])
    assert "relabel.label_top_k must be less than 10" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pack", source, "--out", "set.tar.gz"])
    assert "set.tar.gz: expected a folder or a .zip to write" in capsys.readouterr().err
    assert not list(Path().glob("*set*")) and not Path("top").exists()
    with pytest.raises(SystemExit) as caught:
        main(["pack", source])
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: digits-main-ipc3-prior: is there already")
    assert error.count("\n") == 1


def test_what_is_public_says_what_it_does() -> None:
    public: list[Any] = [getattr(teddy, name) for name in teddy.__all__]
    for cls in filter(inspect.isclass, list(public)):
        own = [value for name, value in vars(cls).items() if not name.startswith("_")]
        public += [value for value in own if callable(value) or isinstance(value, property)]
    assert len(public) > 15
    for one in public:
        text = inspect.getdoc(one)
        assert text, one
        function = one.fget if isinstance(one, property) else one
        if inspect.isfunction(function):
            given = [name for name in inspect.signature(function).parameters if name != "self"]
            missing = [name for name in given if f"{name}:" not in text and len(given) > 1]
            assert not missing, (one, missing)
            if "raise TeddyError" in inspect.getsource(function):
                assert "Raises:\n    TeddyError: " in text, one


def test_records_of_bundles_are_plain(packed: dict[str, Path]) -> None:
    """Whoever reads them needs nothing of ours."""
    import yaml

    with (packed["prior"] / "recipe.yaml").open(encoding="utf-8") as file:
        record = yaml.safe_load(file)
    assert record == json.loads(json.dumps(read_yaml(packed["prior"] / "recipe.yaml")))
    assert record["classes"] == list("0123456789")


@pytest.mark.slow
def test_the_plain_script_of_the_docs_learns_as_evaluate_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop is the user's own, with PyTorch's AdamW, on students that learn something."""
    settings = {
        "train_teacher__epochs": 16, "train_teacher__network__width": 32, "pool__prior__first": 4,
        "pool__prior__last": 14, "relabel__epochs": 150, "evaluate__network__width": 32,
        "evaluate__batch_size": 10, "evaluate__eval_epochs": 150, "evaluate__seeds": [0, 1, 2],
    }  # fmt: skip
    folder = tiny_checkout(tmp_path / "run", **settings)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TEDDY_DEVICE", "cpu")
    for stage, rows in ROWS.items():
        for row in [name for name in rows if name != PRIOR]:
            for arguments in commands(folder, stage, row):
                main(arguments)
    students = read_json(folder / f"metrics/evaluations/{RANDOM}.json")["labels"]["soft"]
    values = [student["top1_last"] for student in students]
    assert statistics.fmean(values) > 75, "they have learnt"
    capsys.readouterr()
    script = ROOT / "examples/train_on_a_set.py"
    bundle = pack(folder / "data/distilled" / RANDOM, tmp_path / "bundle")
    monkeypatch.setattr(sys, "argv", [str(script), str(bundle), "data/prepared/digits"])
    runpy.run_path(str(script), run_name="__main__")
    found = float(capsys.readouterr().out.split()[0])
    assert abs(found - statistics.fmean(values)) <= max(1.0, statistics.stdev(values)), values
    body = [line for line in script.read_text().splitlines() if line.strip()]
    assert len(body) <= 17, "15 lines and two imports"


# --------------------------------------------------------------------------------- partitioned


def test_images_that_hold_smaller_ones_are_taken_apart_everywhere(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the pipeline, beside it and in a bundle, students see four images of each."""
    run = copy_of(checkout, tmp_path / "run")
    file = run / "data/distilled" / RANDOM / "0.safetensors"
    whole = load(file)
    save_distilled(file, DistilledSet(
        whole.images, whole.labels, whole.class_names, whole.normalisation, whole.provenance, 2
    ))  # fmt: skip
    monkeypatch.chdir(run)
    monkeypatch.setenv("TEDDY_WORKERS", "1")
    monkeypatch.setenv("TEDDY_DEVICE", "cpu")
    for folder in ("data/labels", "metrics/evaluations"):
        for path in run.glob(f"{folder}/{RANDOM}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for stage in ("relabel", "evaluate"):
        for arguments in commands(run, stage, RANDOM):
            main(arguments)
    record = read_json(run / f"metrics/evaluations/{RANDOM}.json")
    for opened in (load(file), load(pack(file.parent, tmp_path / "bundle"))):
        assert (len(opened), opened.seen, opened.partition) == (30, 120, 2)
        loader = opened.loader(soft=False, device="cpu")
        assert loader.steps == 12 and sum(len(x) for x, _ in loader.epoch(0)) == 120
        for kind in ("soft", "hard"):
            student = record["labels"][kind][0]
            network = fit(opened.network(), opened, soft=kind == "soft", device="cpu")
            assert accuracy(network, "data/prepared/digits", opened) == student["top1_last"]
    assert opened.fixed_labels.shape == (120, 10)


# --------------------------------------------------------------------------------- what a card says


def test_a_card_says_which_labels_are_left(checkout: Path, tmp_path: Path) -> None:
    kept = {"label_epochs": 7, "label_bits": 8, "label_top_k": 3}
    pack(checkout / "data/distilled" / PRIOR, tmp_path / "few", kept=kept)
    text = " ".join((tmp_path / "few/README.md").read_text().split())
    words = (
        "soft labels of every augmented view in 7 epochs, which come again until 18 are over, "
        "rounded to 8 bits, of the 3 largest classes of each.",
        "with all labels of the pipeline, of which fewer are kept here.",
    )
    assert all(own in text for own in words)
    pack(checkout / "data/distilled" / PRIOR, tmp_path / "all")
    text = " ".join((tmp_path / "all/README.md").read_text().split())
    assert "soft labels of every augmented view in 18 epochs. A network" in text
    assert not any(own in text for own in words)


def test_random_images_beside_a_set_are_as_many(checkout: Path, tmp_path: Path) -> None:
    run = copy_of(checkout, tmp_path / "run")
    path = run / f"metrics/evaluations/{RANDOM}.json"
    record, shown = read_json(path), "| Random real images"
    for name, ipc, there in (("other", 1, False), ("same", 3, True)):
        write_json(path, record | {"ipc": ipc})
        pack(run / "data/distilled" / PRIOR, tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        assert (shown in card) is there
        assert ("Random real images were not evaluated beside it." in card) is not there


def test_a_card_says_whether_files_were_edited(checkout: Path, tmp_path: Path) -> None:
    run = tmp_path / "own"
    run.mkdir()
    assert packing._commit(run) is None
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(run))
    (run / "file").write_text("1")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "first")):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert packing._commit(run) == head.stdout.strip()
    (run / "file").write_text("2")
    assert packing._commit(run) == f"{head.stdout.strip()}-dirty"
    (run / "inner").mkdir()
    assert packing._commit(run / "inner") is None, "which is another project's"
