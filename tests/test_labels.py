"""Views of students and their soft labels: stored equals online, whatever the batches.

No GPU, no downloads; the teachers are the tiny pool.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from teddy.core.artifacts import WorkDir, write_tensors
from teddy.core.errors import TeddyError
from teddy.data.augmentation import draw_cutmix, draw_views
from teddy.data.datasets import ImageDataset
from teddy.data.dsa import draw_dsa
from teddy.data.images import Images
from teddy.settings.configs import RelabelConfig, ViewConfig
from teddy.students import labels as module
from teddy.students.labels import (
    Batch,
    FixedLabels,
    OnlineLabels,
    StoredLabels,
    TrainingViews,
    store_labels,
)
from teddy.teachers.pools import Pool

CPU = torch.device("cpu")
FIELDS = ("inputs", "labels", "partner_labels", "kept")


@pytest.fixture(scope="session")
def teachers(pool: Pool) -> list[nn.Module]:
    """All members of the tiny pool."""
    return [pool.member(index, CPU) for index in range(len(pool))]


@pytest.fixture
def views(dataset: ImageDataset, relabel_config: RelabelConfig) -> TrainingViews:
    """Views of 12 images over five epochs."""
    few = Images(dataset.train.pick(torch.arange(12)), dataset.train.labels[:12])
    return TrainingViews(few, dataset.normalisation, relabel_config, seed=0)


def changed(old: TrainingViews, seed: int = 0, **changes: Any) -> TrainingViews:
    """The same images under other settings."""
    return TrainingViews(old.images, old.normalisation, replace(old.config, **changes), seed)


def forgetful(views: TrainingViews, monkeypatch: pytest.MonkeyPatch) -> TrainingViews:
    """The same views, drawn anew whenever they are asked for."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "_KEEP_BYTES", 0)
        fresh = changed(views)
    assert views._keep
    assert not fresh._keep
    return fresh


def joined(batches: Iterator[Batch]) -> Batch:
    """Batches as one."""
    every = list(batches)
    return Batch(*(torch.cat([getattr(batch, name) for batch in every]) for name in FIELDS))


def assert_equal(got: Batch, want: Batch) -> None:
    """All fields are equal bit for bit."""
    for name in FIELDS:
        assert torch.equal(getattr(got, name), getattr(want, name)), name


# ---------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("size", [1, 5, 7, 12])
def test_views_do_not_depend_on_the_batches(
    views: TrainingViews, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    everything = torch.arange(12)
    for other in (views, forgetful(views, monkeypatch)):
        whole = joined(other.batches(3, [everything]))
        assert_equal(joined(other.batches(3, everything.split(size))), whole)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(size))
        assert_equal(joined(other.batches(3, order.split(size))), whole[order])


@pytest.mark.parametrize("cutmix", [True, False])
def test_kept_and_redrawn_views_are_equal(
    views: TrainingViews, monkeypatch: pytest.MonkeyPatch, cutmix: bool
) -> None:
    kept = changed(views, cutmix=cutmix)
    redrawn = forgetful(kept, monkeypatch)
    parts = torch.arange(12).split(5)
    for epoch in (4, 0, 4):
        for a, b in zip(kept.batches(epoch, parts), redrawn.batches(epoch, parts), strict=True):
            assert_equal(a, b)


def test_views_are_cropped_mixed_images(views: TrainingViews, dataset: ImageDataset) -> None:
    batch = joined(views.batches(2, [torch.arange(12)]))
    pixels = dataset.normalisation.apply(views.images.images)
    plain = draw_views(views.config.views, 8, 8, 0, "student view", 2, indices=torch.arange(12))(
        pixels
    )
    mix = draw_cutmix(12, 8, 8, 0, "cutmix", 2, device="cpu")
    for i in range(12):
        top, left, bottom, right = mix.box[i].tolist()
        partner = int(mix.partner[i])
        want = plain[i].clone()
        want[:, top:bottom, left:right] = plain[partner, :, top:bottom, left:right]
        torch.testing.assert_close(batch.inputs[i], want)
        own = 1 - (bottom - top) * (right - left) / 64
        assert batch.kept[i].item() == pytest.approx(own)
        assert batch.partner_labels[i] == views.images.labels[partner]
    assert torch.equal(batch.labels, views.images.labels)
    assert len(set(mix.partner.tolist())) == 12, "partners are a permutation"


def test_views_differ_between_epochs_and_seeds(views: TrainingViews) -> None:
    everything = [torch.arange(12)]
    first = joined(views.batches(0, everything)).inputs
    assert not torch.equal(joined(views.batches(1, everything)).inputs, first)
    assert not torch.equal(joined(changed(views, seed=1).batches(0, everything)).inputs, first)


def test_without_cutmix_an_image_keeps_all_of_its_own(views: TrainingViews) -> None:
    whole = ViewConfig(crop_scale=1.0, hflip=False, roll=(0, 0))
    plain = changed(views, cutmix=False, views=whole)
    batch = joined(plain.batches(0, [torch.arange(12)]))
    assert batch.kept.tolist() == [1.0] * 12
    assert torch.equal(batch.partner_labels, batch.labels)
    assert batch.inputs.shape == (12, 1, 8, 8)


# --------------------------------------------------------------------------------------- labels


def stored(
    views: TrainingViews, teachers: list[nn.Module], name: str, shard_bytes: int
) -> tuple[StoredLabels, list[dict[str, Any]]]:
    """Labels written to files and opened again."""
    work = WorkDir("relabel", name)
    shards = store_labels(OnlineLabels(views, teachers), 3, work, shard_bytes)
    shape = (views.config.epochs, len(views), 3)
    return StoredLabels(work.path, {"shards": shards}, CPU, shape), shards


def test_dsa_draws_one_operation_per_batch_and_parameters_per_image(views: TrainingViews) -> None:
    augmented = changed(views, augmentation="dsa", cutmix=False)
    everything = torch.arange(12)
    inputs = views.normalisation.apply(views.images.images)
    found = set()
    for epoch in range(5):
        parts = torch.tensor([3, 0, 7]), torch.tensor([5, 11, 2, 9])
        batches = list(augmented.batches(epoch, parts))
        for step, (part, batch) in enumerate(zip(parts, batches, strict=True)):
            key = (augmented.config.dsa, 0, "student DSA", epoch)
            want = draw_dsa(*key, indices=everything, step=step)
            found.add(want.operation)
            assert torch.equal(batch.inputs, want[part](inputs[part]))
            assert torch.equal(batch.labels, views.images.labels[part])
            assert batch.kept.tolist() == [1.0] * len(part)
    assert len(found) > 2


@pytest.mark.parametrize("ensemble", ["logits", "probs"])
def test_stored_labels_equal_online_ones_bit_for_bit(
    views: TrainingViews, teachers: list[nn.Module], workplace: Path, ensemble: str
) -> None:
    views = changed(views, ensemble=ensemble)
    reader, _ = stored(views, teachers, "labels", 2**20)
    online = OnlineLabels(changed(views), teachers)
    for epoch in range(5):
        label = online.epoch(epoch)
        assert label.dtype == torch.float16
        assert label.shape == (12, 3)
        assert torch.equal(reader.epoch(epoch), label)


def test_labels_do_not_depend_on_whether_views_are_kept(
    views: TrainingViews, teachers: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    redrawn = OnlineLabels(forgetful(views, monkeypatch), teachers)
    kept = OnlineLabels(views, teachers)
    for epoch in (1, 0):
        assert torch.equal(kept.epoch(epoch), redrawn.epoch(epoch))


def test_label_is_the_mean_of_the_teachers_on_the_mixed_view(
    views: TrainingViews, teachers: list[nn.Module]
) -> None:
    batch = joined(views.batches(1, [torch.arange(12)]))
    logits = [teacher(batch.inputs).detach() for teacher in teachers]
    mean = (logits[0] + logits[1] + logits[2]) / 3
    torch.testing.assert_close(
        OnlineLabels(views, teachers).epoch(1).float(), mean, rtol=2e-3, atol=2e-3
    )
    probs = torch.stack([z.softmax(1) for z in logits]).mean(0)
    label = OnlineLabels(changed(views, ensemble="probs"), teachers).epoch(1).float()
    torch.testing.assert_close(label.softmax(1), probs, rtol=5e-3, atol=2e-3)


class Loud(nn.Module):
    """A teacher whose training has diverged."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, inputs: Tensor) -> Tensor:
        """The same logit for every class."""
        return torch.full((len(inputs), 4), self.logit)


@pytest.mark.parametrize("cutmix", [True, False])
def test_fixed_labels_are_those_of_whole_images_mixed_as_the_views_are(
    views: TrainingViews, teachers: list[nn.Module], dataset: ImageDataset, cutmix: bool
) -> None:
    own = changed(views, cutmix=cutmix)
    with torch.no_grad():
        inputs = dataset.normalisation.apply(own.images.images)
        logits = torch.stack([teacher(inputs) for teacher in teachers]).mean(0)
    probabilities = (logits / 4).softmax(1)
    mix = draw_cutmix(12, 8, 8, 0, "cutmix", 3, device="cpu")
    want = probabilities.clone()
    for i in range(12) if cutmix else ():
        kept, partner = float(mix.kept(8, 8)[i]), int(mix.partner[i])
        want[i] = kept * probabilities[i] + (1 - kept) * probabilities[partner]
    labels = FixedLabels(own, teachers, temperature=4.0)
    torch.testing.assert_close((labels.epoch(3) / 4).softmax(1), want, atol=1e-3, rtol=0)
    assert torch.equal(labels.epoch(3), labels.epoch(0)) == (not cutmix)


@pytest.mark.parametrize("logit", [2e5, torch.inf, torch.nan])
def test_labels_beyond_float16_are_refused(
    views: TrainingViews, logit: float, workplace: Path
) -> None:
    labels = OnlineLabels(views, [Loud(3.0), Loud(logit), Loud(-7.0)])
    with pytest.raises(TeddyError, match=r"labels of epoch . do not fit.* of teacher 1 reach"):
        store_labels(labels, 4, WorkDir("relabel", "loud"))
    assert OnlineLabels(views, [Loud(6e4)]).epoch(0).isfinite().all()


def test_labels_differ_between_epochs(views: TrainingViews, teachers: list[nn.Module]) -> None:
    online = OnlineLabels(views, teachers)
    assert not torch.equal(online.epoch(0), online.epoch(1))


@pytest.mark.parametrize("shard_bytes", [1, 2 * 2 * 12 * 3, 2**20])
def test_shards_of_any_size_hold_the_same_labels(
    views: TrainingViews, teachers: list[nn.Module], workplace: Path, shard_bytes: int
) -> None:
    reader, shards = stored(views, teachers, "shards", shard_bytes)
    lengths = [shard["last"] - shard["first"] + 1 for shard in shards]
    assert [e for s in shards for e in range(s["first"], s["last"] + 1)] == [0, 1, 2, 3, 4]
    assert max(lengths) * 2 * 12 * 3 <= max(shard_bytes, 2 * 12 * 3)
    assert len({shard["file"] for shard in shards}) == len(shards)
    online = OnlineLabels(views, teachers)
    for epoch in (4, 0, 3, 2, 1):
        assert torch.equal(reader.epoch(epoch), online.epoch(epoch))


def test_a_shard_holds_several_epochs_where_they_fit(
    views: TrainingViews, teachers: list[nn.Module], workplace: Path
) -> None:
    long = changed(views, epochs=40)
    reader, shards = stored(long, teachers, "long", 2**20)
    assert 1 < len(shards) < 40
    online = OnlineLabels(long, teachers)
    for epoch in (0, shards[0]["last"], shards[1]["first"], 39):
        assert torch.equal(reader.epoch(epoch), online.epoch(epoch))


def test_killed_relabelling_continues_with_the_next_shard(
    views: TrainingViews, teachers: list[nn.Module], workplace: Path
) -> None:
    undisturbed, _ = stored(views, teachers, "undisturbed", 1)
    work, asked = WorkDir("relabel", "killed"), []

    class Dies(OnlineLabels):
        def epoch(self, epoch: int) -> Tensor:
            asked.append(epoch)
            if asked == [0, 1, 2]:
                raise KeyboardInterrupt
            return super().epoch(epoch)

    with pytest.raises(KeyboardInterrupt):
        store_labels(Dies(views, teachers), 3, work, 1)
    shards = store_labels(Dies(views, teachers), 3, work, 1)
    assert asked == [0, 1, 2, 2, 3, 4]
    reader = StoredLabels(work.path, {"shards": shards}, CPU, (5, 12, 3))
    for epoch in range(5):
        assert torch.equal(reader.epoch(epoch), undisturbed.epoch(epoch))


def test_labels_of_another_kind_of_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "epochs.safetensors"
    write_tensors(path, {"logits": torch.zeros(1, 2, 3)}, kind="teddy.other.v1", record={})
    shards = [{"file": path.name, "first": 0, "last": 0}]
    with pytest.raises(TeddyError, match=r"epochs\.safetensors: expected a teddy\.labels"):
        StoredLabels(tmp_path, {"shards": shards}, CPU, (1, 2, 3))


SHARD = {"file": "a.safetensors", "first": 0, "last": 1}


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        (None, r"manifest\.json: shards must be a list; got None"),
        ("x", r"manifest\.json: shards must be a list; got 'x'"),
        ([], r"manifest\.json: labels of 0 epochs, expected 2"),
        (["x"], r"manifest\.json: shards\[0\] must be keys file, first, last; got 'x'"),
        ([{"file": "a.safetensors"}], r"shards\[0\] must be keys file, first, last"),
        ([SHARD | {"file": "../labels/a.safetensors"}], r"shards\[0\]\.file must be the name"),
        ([SHARD | {"file": 3}], r"shards\[0\]\.file must be the name of a file; got 3"),
        ([SHARD | {"first": "0"}], r"shards\[0\] must begin with epoch 0 .* got first '0'"),
        ([SHARD | {"first": 1}], r"shards\[0\] must begin with epoch 0 .* got first 1, last 1"),
        ([SHARD | {"last": -1}], r"shards\[0\] must begin with epoch 0 .* last -1"),
        ([SHARD | {"last": True}], r"shards\[0\] must begin with epoch 0 .* last True"),
        ([SHARD | {"last": 0}], r"a\.safetensors: the tensor 'logits' must be F16 of 1 × 4 × 3"),
        ([SHARD | {"file": "b.safetensors"}], r"b\.safetensors: expected a .* found nothing"),
        ([SHARD | {"file": "other"}], r"other: lacks the tensor 'logits'"),
        ([SHARD | {"file": "cut"}], r"cut: expected a teddy\.labels.* damaged"),
    ],
)
def test_damaged_stored_labels_are_refused_when_they_are_opened(
    tmp_path: Path, shards: Any, words: str
) -> None:
    logits = torch.zeros(2, 4, 3, dtype=torch.float16)
    write_tensors(tmp_path / "a.safetensors", {"logits": logits}, kind=module._KIND, record={})
    write_tensors(tmp_path / "other", {"probs": logits}, kind=module._KIND, record={})
    (tmp_path / "cut").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    assert StoredLabels(tmp_path, {"shards": [SHARD]}, CPU, (2, 4, 3)).epoch(1).shape == (4, 3)
    with pytest.raises(TeddyError, match=words) as caught:
        StoredLabels(tmp_path, {"shards": shards}, CPU, (2, 4, 3))
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)
