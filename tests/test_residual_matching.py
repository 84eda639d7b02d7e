"""FADRM: phases and blending by hand, its whole run by a plain loop, SRe2L in one phase, resuming.

No GPU, no downloads.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_synthesis import assert_equal, random_network, relative_error, result
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from teddy.core.errors import TeddyError
from teddy.data.augmentation import draw_views
from teddy.data.datasets import ImageDataset, select_random
from teddy.settings.baselines import ResidualMatchingConfig
from teddy.settings.configs import SynthesizeConfig, ViewConfig
from teddy.settings.schema import to_json
from teddy.synthesis.methods import Ingredients
from teddy.synthesis.residual_matching import ResidualMatching
from teddy.synthesis.teddy import Teddy
from teddy.teachers.pools import Pool

CPU = torch.device("cpu")


class AnySize(nn.Module):
    """A convolution, BatchNorm and a classifier of mean features."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        features = random_network(seed).get_submodule("features")
        assert isinstance(features, nn.Sequential)
        self.conv, self.norm = features[0], features[1]
        self.classifier = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(self.conv(images)).relu().mean((2, 3)))
        return logits


class Teachers(Pool):
    """Teachers that see images of any size."""

    def member(self, index: int, device: torch.device) -> nn.Module:
        """Always the same one for an index."""
        with torch.random.fork_rng():
            torch.manual_seed(index)
            return AnySize(index).eval().requires_grad_(False).to(device)


@pytest.fixture
def matcher(
    synthesis_config: SynthesizeConfig, dataset: ImageDataset, view_config: ViewConfig
) -> ResidualMatching:
    """A fresh matcher with three teachers, one of which has its turn at an iteration."""
    shared = {key: getattr(synthesis_config, key) for key in to_json(synthesis_config)}
    shared |= {"initialise": "real", "draw": 1, "draw_per": "iteration", "iterations": 12}
    config = ResidualMatchingConfig(**shared, sizes=(4, 0, 6, 8), crops=3)
    entries: Any = [{"file": f"member{i}"} for i in range(3)]
    given = Ingredients(dataset, 0, CPU, Teachers(Path(), entries), view_config)
    return ResidualMatching(config, given)


def changed(old: ResidualMatching, **changes: Any) -> ResidualMatching:
    """A fresh matcher that differs in some settings."""
    return ResidualMatching(replace(old.config, **changes), old.given)


def plain_loop(matcher: ResidualMatching, batch: Any) -> Tensor:
    """FADRM as published: a fresh Adam per phase, one cosine over all, resized and blended."""
    config, data = matcher.config, matcher.data
    low, high = data.normalisation.bounds(CPU)
    crops = matcher.initial_images(batch)
    sides = [size or 8 for size in config.sizes]
    x = interpolate(crops, size=(sides[0],) * 2, mode="bilinear", align_corners=False)
    done = 0
    for phase, side in enumerate(sides):
        x = x.detach().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=config.lr, betas=config.betas, eps=1e-8)
        for _ in range(config.iterations // len(sides)):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * done / config.iterations))
            (member,) = matcher.teachers_drawn(batch, done)
            network = matcher.pool.member(member, CPU)
            assert isinstance(network, AnySize)
            view = draw_views(
                config.views, side, side, 0, "synthesis view", batch.group, batch.chunk,
                indices=torch.tensor([done]),
            )(x)  # fmt: skip
            seen, norm = network.conv(view), network.norm
            gap = (seen.mean((0, 2, 3)) - norm.running_mean).norm()
            gap = gap + (seen.var((0, 2, 3), correction=0) - norm.running_var).norm()
            loss = cross_entropy(network(view), batch.labels()) + config.alpha_bn * 10 * gap
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            x.data = x.data.clamp(low, high)
            done += 1
        if done < config.iterations:
            size = (sides[phase + 1],) * 2
            x = interpolate(x.detach(), size=size, mode="bilinear", align_corners=False)
            patch = interpolate(crops, size=size, mode="bilinear", align_corners=False)
            x = config.alpha * x + (1 - config.alpha) * patch
    return x.detach()


def test_iterations_are_cut_into_equal_phases(matcher: ResidualMatching) -> None:
    assert changed(matcher, iterations=2000).config.phases == (
        range(0, 500), range(500, 1000), range(1000, 1500), range(1500, 2000),
    )  # fmt: skip
    assert changed(matcher, iterations=10).config.phases == (
        range(0, 2), range(2, 5), range(5, 7), range(7, 10),
    )  # fmt: skip


def test_between_phases_images_are_resized_and_blended_with_the_crops(
    matcher: ResidualMatching,
) -> None:
    quarter = changed(matcher, alpha=0.25)
    images = torch.full((2, 1, 8, 8), 2.0).requires_grad_()
    state = quarter.start(quarter.batches(1)[0], images)
    images.grad = torch.ones_like(images)
    state.update(0.1)
    with torch.no_grad():
        images[:, :, :4, :4] = 6.0
    for done in (1, 2, 4, 12):
        quarter.after(done, state)
        assert images[0, 0, 0, 0] == 6.0 and state.optimizer.state()[2] == 1, "within a phase"
    quarter.after(3, state)
    assert torch.equal(images, torch.full((2, 1, 8, 8), 0.25 * 6 + 0.75 * 2))
    assert not any(value.any() for value in state.optimizer.state()), "a fresh optimiser"
    row = torch.arange(8.0).expand(8, 8)  # halved bilinearly: the means of neighbours
    images.data[:] = row
    state.more["crops"][:] = row + 4
    half = changed(matcher, alpha=0.5, sizes=(8, 4, 8))
    half.after(4, state)
    assert images[0, 0, 0, :4].tolist() == [2.5, 4.5, 6.5, 8.5]
    assert images[0, 0, 0, 4:].tolist() == [4, 5, 6, 7], "no part of the smaller image"


def test_every_phase_has_its_resolution_from_the_start(
    matcher: ResidualMatching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, original = [], ResidualMatching._eq7

    def noting(self: ResidualMatching, view: Tensor, *rest: Any) -> Tensor:
        seen.append(tuple(view.shape[2:]))
        return original(self, view, *rest)

    monkeypatch.setattr(ResidualMatching, "_eq7", noting)
    batch = matcher.batches(2)[0]
    images = result(matcher, batch, tmp_path)["images"]
    assert seen == [(4, 4)] * 3 + [(8, 8)] * 3 + [(6, 6)] * 3 + [(8, 8)] * 3
    assert images.shape == (4, 1, 8, 8)
    first = matcher.initial_images(batch)
    small = interpolate(first, size=(4, 4), mode="bilinear", align_corners=False)
    state = matcher.start(batch, first.clone().requires_grad_())
    assert torch.equal(state.images[:, :, :4, :4], small)
    assert torch.equal(state.more["crops"], first)


@pytest.mark.parametrize("sizes", [(0, 0, 0, 0), (4, 0, 6, 8)])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 0.0])
def test_it_is_the_published_loop(
    matcher: ResidualMatching, tmp_path: Path, sizes: tuple[int, ...], alpha: float
) -> None:
    own = changed(matcher, sizes=sizes, alpha=alpha)
    batch = own.batches(2)[1]
    found = result(own, batch, tmp_path)
    assert relative_error(found["state.images"], plain_loop(own, batch)) < 1e-4
    assert len({own.teachers_drawn(batch, i)[0] for i in range(12)}) == 3


def test_one_phase_is_sre2l_from_the_same_start(
    matcher: ResidualMatching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = changed(matcher, sizes=(0,), alpha=0.0)
    batch = one.batches(2)[0]
    sre2l, start = Teddy(one.config, one.given), one.initial_images(batch)
    monkeypatch.setattr(sre2l, "initial_images", lambda batch: start.clone())
    expected, found = result(sre2l, batch, tmp_path), result(one, batch, tmp_path)
    assert torch.equal(found.pop("state.more.crops"), start)
    assert_equal(found, expected)


def test_a_crop_belongs_to_its_class_and_index_alone(
    matcher: ResidualMatching, dataset: ImageDataset
) -> None:
    (whole,) = changed(matcher, classes_per_batch=3, indices_per_batch=4).batches(4)
    expected = matcher.initial_images(whole)
    for batch in changed(matcher, classes_per_batch=1, indices_per_batch=2).batches(4):
        (label,) = batch.classes
        own = matcher.initial_images(batch)
        for place, index in enumerate(batch.indices):
            torch.testing.assert_close(own[place], expected[3 * index + label])
    uncut = replace(matcher.config.crop_views, crop_scale=1.0)
    chosen = select_random(dataset.train.labels, dataset.class_names, range(4), 0)
    real = dataset.normalisation.apply(dataset.train.pick(chosen.flatten()))
    torch.testing.assert_close(changed(matcher, crop_views=uncut).initial_images(whole), real)
    assert not torch.equal(real, expected)


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_a_killed_run_goes_on_to_the_same_bytes(
    matcher: ResidualMatching, tmp_path: Path, steps: int
) -> None:
    batch, resume = matcher.batches(2)[0], tmp_path / "killed.safetensors"
    whole = result(matcher, batch, tmp_path)
    killed = changed(matcher)
    state = killed.start(batch, killed.initial_images(batch).requires_grad_())
    way = killed.optimise(batch, state)
    for _ in range(steps):
        next(way)
    state.save(resume)
    again = changed(matcher).run(batch, resume, save_every_seconds=0)
    assert torch.equal(again["images"], whole["images"])
    assert torch.equal(again["curve"], whole["curve"])


def test_order_of_batches_does_not_change_their_images(
    matcher: ResidualMatching, tmp_path: Path
) -> None:
    batches = matcher.batches(4)
    in_order = [result(matcher, batch, tmp_path) for batch in batches]
    again = changed(matcher)
    for batch, expected in reversed(list(zip(batches, in_order, strict=True))):
        assert_equal(result(again, batch, tmp_path), expected)


def test_sizes_that_teachers_cannot_see_are_refused(matcher: ResidualMatching, pool: Pool) -> None:
    small = replace(matcher.config, sizes=(3, 8))
    other = ResidualMatching(small, replace(matcher.given, pool=pool))
    with pytest.raises(TeddyError, match=r"sizes .* member0.safetensors cannot see 3 × 3 pixels"):
        other.load(other.batches(1))
    changed(matcher).load(matcher.batches(1))
