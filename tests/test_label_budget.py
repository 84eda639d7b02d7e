"""Soft labels in fewer bytes: what is kept, what is lost, and how many bytes that takes."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from teddy.core.artifacts import WorkDir
from teddy.core.errors import TeddyError
from teddy.data.datasets import ImageDataset
from teddy.data.images import Images
from teddy.settings.configs import RelabelConfig
from teddy.settings.schema import to_json
from teddy.students.label_budget import check_fits, decode, encode, form, label_bytes
from teddy.students.labels import OnlineLabels, StoredLabels, TrainingViews, store_labels
from teddy.teachers.pools import Pool

E, N, K = 3, 5, 7
CPU = torch.device("cpu")
SAFETENSORS = {torch.float16: "F16", torch.uint8: "U8", torch.int16: "I16"}


@pytest.fixture
def kept(relabel_config: RelabelConfig) -> Callable[..., RelabelConfig]:
    """Settings that keep labels in another way."""
    return lambda **changes: replace(relabel_config, **changes)


def logits(classes: int = K) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (6 * torch.randn(E, N, classes, generator=generator)).half()


Kept = Callable[..., RelabelConfig]


def test_labels_are_kept_to_the_bit_unless_asked_for(kept: Kept) -> None:
    assert torch.equal(decode(encode(logits(), kept()), K), logits())


def test_eight_bits_are_off_by_half_a_step_at_most(kept: Kept) -> None:
    exact = logits().float()
    found = decode(encode(logits(), kept(label_bits=8)), K).float()
    step = (exact.amax(2) - exact.amin(2)) / 255
    rounding = exact.abs().amax() * 2**-10  # of float16
    assert ((found - exact).abs() <= step[..., None] / 2 + rounding).all()
    assert not torch.equal(found, exact)


def test_labels_that_are_all_alike_survive_eight_bits(kept: Kept) -> None:
    alike = torch.full((1, 2, K), 1.5, dtype=torch.float16)
    assert torch.equal(decode(encode(alike, kept(label_bits=8)), K), alike)


def test_the_largest_classes_are_kept_and_the_others_share_their_mean(kept: Kept) -> None:
    exact, found = logits(), decode(encode(logits(), kept(label_top_k=3)), K)
    for own, got in zip(exact.view(-1, K), found.view(-1, K), strict=True):
        order = own.argsort(descending=True)
        assert torch.equal(got[order[:3]], own[order[:3]])
        expected = own[order[3:]].float().mean()
        assert torch.allclose(got[order[3:]].float(), expected.expand(K - 3), atol=0.01)


@pytest.mark.parametrize("classes", [7, 256, 257, 1000])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("top_k", [0, 3])
def test_sizes_and_forms_are_those_of_the_tensors(
    kept: Kept, bits: int, top_k: int, classes: int
) -> None:
    config = kept(label_bits=bits, label_top_k=top_k, epochs=E)
    tensors = encode(logits(classes), config)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert label_bytes(config, N, classes) == size
    found = {name: (SAFETENSORS[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    assert found == form(bits, top_k, (E, N, classes))


def test_classes_of_large_sets_are_not_confused(kept: Kept) -> None:
    wide = logits(1000)
    found = decode(encode(wide, kept(label_top_k=2)), 1000)
    assert torch.equal(found.argmax(2), wide.argmax(2))


def test_what_cannot_be_kept_is_refused_first(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TeddyError, match=r"label_epochs must be epochs at most, 3, .* got 4"):
        kept(epochs=3, label_epochs=4)
    with pytest.raises(TeddyError, match=r"relabel\.label_top_k must be less than 7, .* got 7"):
        check_fits(kept(label_top_k=7), N, K, tmp_path)
    config = kept(epochs=3)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Namespace(free=2 * 3 * N * K))
    check_fits(config, N, K, tmp_path / "not/there/yet")
    monkeypatch.setattr("shutil.disk_usage", lambda path: Namespace(free=2 * 3 * N * K - 1))
    with pytest.raises(TeddyError, match="yet: soft labels take 210 bytes, but 209 are left"):
        check_fits(config, N, K, tmp_path / "not/there/yet")


@pytest.mark.parametrize(("bits", "wrong"), [(8, 16), (16, 8)])
@pytest.mark.parametrize("top_k", [0, 2])
def test_stored_labels_are_those_that_are_computed_while_training(
    kept: Kept,
    dataset: ImageDataset,
    pool: Pool,
    workplace: Path,
    bits: int,
    wrong: int,
    top_k: int,
) -> None:
    config = kept(epochs=5, label_epochs=2, label_bits=bits, label_top_k=top_k)
    images = Images(dataset.train.pick(torch.arange(12)), dataset.train.labels[:12])
    views = TrainingViews(images, dataset.normalisation, config, seed=0)
    online = OnlineLabels(views, [pool.member(index, CPU) for index in range(len(pool))])
    work = WorkDir("relabel", f"budget {bits} {top_k}").claim()
    shards = store_labels(online, 3, work)
    assert shards[-1]["last"] == 1
    record = {"shards": shards, "settings": to_json(config)}
    stored = StoredLabels(work.path, record, CPU, (5, 12, 3))
    everything = torch.arange(12)
    for epoch in range(5):
        assert torch.equal(stored.epoch(epoch), online.epoch(epoch))
        (batch,), (first,) = (views.batches(e, [everything]) for e in (epoch, epoch % 2))
        assert torch.equal(batch.inputs, first.inputs)
    assert not torch.equal(stored.epoch(0), stored.epoch(1))
    other = {"shards": shards, "settings": to_json(config) | {"label_bits": wrong}}
    with pytest.raises(TeddyError, match=r"lacks the tensor|must be"):
        StoredLabels(work.path, other, CPU, (5, 12, 3))
