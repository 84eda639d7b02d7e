"""Damaged files of our own: settings, labels, sets and pools; :mod:`trial` says how it is run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkouts import DIGITS, METHODS, tiny_checkout
from damage import Damage
from safetensors.torch import save_file
from trial import campaign

import teddy
from teddy.core.artifacts import read_tensors, write_tensors
from teddy.core.files import digest, read_json, write_json
from teddy.data.datasets import ARRAYS, MANIFEST, ImageDataset, read_dataset
from teddy.data.preparation import write_dataset
from teddy.settings.schema import read_yaml
from teddy.settings.stages import read_settings
from teddy.stages.commands import COMMANDS
from teddy.stages.resolve import write_inputs
from teddy.students.labels import _KIND as LABELS
from teddy.students.labels import StoredLabels
from teddy.teachers.networks import build, save_network
from teddy.teachers.pools import Pool, open_pool, training_views

pytestmark = pytest.mark.slow
SHAPE = (6, 4, 3)
"""Epochs, images and classes of the labels."""


def test_parameters(tmp_path: Path) -> None:
    """Through the stage resolve, with settings of the dataset beside or apart from the others."""
    root = tiny_checkout(tmp_path)
    params = json.loads(json.dumps(read_yaml(root / "params.yaml")))
    apart = {**params, "datasets": {}}
    whole = {
        name: json.loads(json.dumps(read_yaml(root / name)))
        for name in (DIGITS, METHODS, "dvc.yaml")
    }
    own = "params/digits.yaml"

    def attempt(damage: Damage) -> str:
        files = dict(whole)
        if damage.random.random() < 0.5:
            files |= {"params.yaml": apart, own: params["datasets"]["digits"]}
        else:
            files["params.yaml"] = params
            (root / own).unlink(missing_ok=True)
        hit = damage.random.choice(
            [name for name in files if name != "dvc.yaml"] * 3 + ["dvc.yaml"]
        )
        for name, tree in files.items():
            text = damage.as_yaml(tree) if name == hit else json.dumps(tree)
            (root / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        write_inputs(root, root / "inputs")
        return ""

    campaign("parameters", 0.13, attempt, tmp_path)


def test_settings_files(tmp_path: Path) -> None:
    """What stages are handed with ``--settings``."""
    root = tiny_checkout(tmp_path)
    modules = {"reevaluate": "evaluate", "table1": "target", "fig3d": "costs"}
    files = {
        stage: next(iter(sorted((root / "inputs" / stage).rglob("*.json"))))
        for stage in ("prepare", "train_teacher", "build_pool", "synthesize", "relabel", "evaluate",
                      "reevaluate", "continual", "measure_costs", "table1", "fig3d")
    }  # fmt: skip
    trees = {stage: read_json(path) for stage, path in files.items()}

    def attempt(damage: Damage) -> str:
        stage = damage.random.choice(list(files))
        text = damage.as_json(trees[stage])
        path = tmp_path / "settings.json"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        cls = COMMANDS[modules.get(stage, stage)].settings
        assert cls is not None
        read_settings(cls, path)
        return ""

    campaign("settings", 0.06, attempt, tmp_path)


def test_labels(tmp_path: Path) -> None:
    """Manifests and files of stored labels."""
    shards = []
    for first in range(0, SHAPE[0], 2):
        file = f"epochs{first}.safetensors"
        logits = torch.zeros(2, *SHAPE[1:], dtype=torch.float16)
        write_tensors(tmp_path / file, {"logits": logits}, kind=LABELS, record={})
        shards.append({"file": file, "first": first, "last": first + 1})
    contents = {shard["file"]: (tmp_path / str(shard["file"])).read_bytes() for shard in shards}

    def attempt(damage: Damage) -> str:
        for file, content in contents.items():
            (tmp_path / str(file)).write_bytes(content)
        write_json(tmp_path / "manifest.json", {"shards": shards})
        if damage.random.random() < 0.5:
            (tmp_path / "manifest.json").write_text(damage.as_json({"shards": shards}))
        else:
            path = tmp_path / str(damage.random.choice(list(contents)))
            path.write_bytes(damage.content(path.read_bytes()))
        labels = StoredLabels(tmp_path, read_json(tmp_path / "manifest.json"), "cpu", SHAPE)
        for epoch in range(SHAPE[0]):
            assert labels.epoch(epoch).shape == SHAPE[1:]
        return ""

    campaign("labels", 0.05, attempt, tmp_path)


def test_sets(tmp_path: Path) -> None:
    """Files of distilled sets: their bytes, their record, or their tensors."""
    path = tmp_path / "set.safetensors"
    tensors = {
        "images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "labels": torch.tensor([0, 1, 0, 1]),
    }  # fmt: skip
    record: dict[str, Any] = {
        "kind": "teddy.distilled.v1", "class_names": ["cat", "dog"], "mean": [0.5], "std": [0.25],
        "ipc": 2, "provenance": {"method": "random", "settings": {}},
    }  # fmt: skip
    others = (
        torch.zeros(4), torch.tensor([0, 1, 2, 3]), torch.tensor([-1, 0, 1, 0]), torch.tensor(0),
        torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.bool),
        torch.full((4,), torch.nan), torch.zeros(4, 1, 0, 8, dtype=torch.uint8),
    )  # fmt: skip

    def attempt(damage: Damage) -> str:
        made, text = dict(tensors), json.dumps(record)
        how = damage.random.choice(("bytes", "record", "tensors"))
        if how == "record":
            text = damage.as_json(record)
        elif how == "tensors":
            name = damage.random.choice(list(made))
            made[name] = damage.random.choice(others)
            if damage.random.random() < 0.3:
                del made[name]
        text = text.encode("utf-8", "replace").decode()
        save_file(made, path, metadata={"teddy": text.replace("\0", "")})
        if how == "bytes":
            path.write_bytes(damage.content(path.read_bytes()))
        dataset = teddy.load(path)
        assert str(dataset)
        for image, label in (dataset[index] for index in range(len(dataset))):
            assert image.ndim == 3 and 0 <= label < dataset.num_classes
        return ""

    campaign("sets", 0.05, attempt, tmp_path)


def test_pools(tmp_path: Path, pool: Pool, network_config: Any) -> None:
    """Manifests of pools, and the files of their members."""
    member = tmp_path / "member00.safetensors"
    network = build(network_config, (1, 8, 8), 3, seed=0)
    save_network(member, network, network_config, (1, 8, 8), 3)
    content = member.read_bytes()
    views = {"crop_scale": 0.5, "hflip": True, "roll": [0, 1]}
    entry = {"file": member.name, "sha256": digest(member), "epoch": 1, "val_top1": 50.0}
    manifest = {"members": [entry], "training_views": views}

    def attempt(damage: Damage) -> str:
        member.write_bytes(content)
        write_json(tmp_path / "manifest.json", manifest)
        if damage.random.random() < 0.6:
            (tmp_path / "manifest.json").write_text(damage.as_json(manifest))
        else:
            member.write_bytes(damage.content(content))
        opened = open_pool(tmp_path)
        training_views(tmp_path)
        opened.check((1, 8, 8), 3, tmp_path)
        for index in range(len(opened)):
            read_tensors(tmp_path / opened.entries[index]["file"], kind="teddy.network.v1")
        return ""

    campaign("pools", 0.04, attempt, tmp_path)


def test_prepared_images(tmp_path: Path, dataset: ImageDataset) -> None:
    """Manifests of prepared images, and the file that they are in."""
    write_dataset(tmp_path, dataset, {"source": "x"})
    manifest, content = read_json(tmp_path / MANIFEST), (tmp_path / ARRAYS).read_bytes()

    def attempt(damage: Damage) -> str:
        (tmp_path / ARRAYS).write_bytes(content)
        write_json(tmp_path / MANIFEST, manifest)
        if damage.random.random() < 0.7:
            (tmp_path / MANIFEST).write_text(damage.as_json(manifest))
        else:
            (tmp_path / ARRAYS).write_bytes(damage.content(content))
        read = read_dataset(tmp_path)
        channels = read.image_shape[0]
        fits = len(read.normalisation.mean) == len(read.normalisation.std) == channels
        if not fits or read.num_classes <= int(read.train.labels.max()):
            return f"{read.class_names} {read.normalisation}"
        return ""

    campaign("prepared", 0.04, attempt, tmp_path)
