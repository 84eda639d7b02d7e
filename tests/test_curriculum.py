"""CDA: bounds of its crops by hand, its views by those of fixed bounds, resuming.

No GPU, no downloads.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_synthesis import result, with_config

from teddy.core.errors import TeddyError
from teddy.data.augmentation import Resampling, draw_views
from teddy.data.datasets import ImageDataset
from teddy.objectives import smallest_crop
from teddy.settings.configs import SynthesizeConfig, ViewConfig
from teddy.synthesis.methods import Ingredients
from teddy.synthesis.teddy import Teddy
from teddy.teachers.pools import Pool

CPU = torch.device("cpu")


@pytest.fixture
def plain(
    synthesis_config: SynthesizeConfig, pool: Pool, dataset: ImageDataset, view_config: ViewConfig
) -> Teddy:
    """A fresh synthesiser of the tiny settings, whose crops have half of the area at least."""
    config = replace(synthesis_config, iterations=12)
    return Teddy(config, Ingredients(dataset, 0, CPU, pool, view_config))


def crops(synthesiser: Teddy, start: int = 0) -> list[Resampling]:
    """Views of all iterations of the first batch."""
    views = list(synthesiser._views(synthesiser.batches(1)[0], start))
    assert len(views) == synthesiser.config.iterations - start
    return [view for view in views if isinstance(view, Resampling)]


def equal(one: Resampling, other: Resampling) -> bool:
    return torch.equal(one.rows, other.rows) and torch.equal(one.columns, other.columns)


@pytest.mark.parametrize(
    ("curriculum", "bounds"),
    [
        # 0.08 + 0.92·½(1 + cos πp), 0.08 + 0.92·(1 − p), and 1, of p = 0, ¼, ½, ¾; then 0.08
        ("cosine", [1, 0.865269, 0.54, 0.214731, 0.08, 0.08]),
        ("linear", [1, 0.77, 0.54, 0.31, 0.08, 0.08]),
        ("step", [1, 1, 1, 1, 0.08, 0.08]),
    ],
)
def test_smallest_crop_falls_from_the_whole_image_to_the_bound(
    curriculum: str, bounds: list[float]
) -> None:
    progress = torch.tensor([0, 0.25, 0.5, 0.75, 1, 1.25], dtype=torch.float64)
    found = smallest_crop(0.08, curriculum, progress)
    assert found.tolist() == pytest.approx(bounds, abs=1e-6)


@pytest.mark.parametrize("views_per", ["batch", "image"])
@pytest.mark.parametrize("milestone", [1.0, 0.5])
@pytest.mark.parametrize("curriculum", ["cosine", "linear", "step"])
def test_a_view_is_that_of_its_iterations_bound(
    plain: Teddy, curriculum: str, milestone: float, views_per: str
) -> None:
    cda = with_config(plain, curriculum=curriculum, milestone=milestone, views_per=views_per)
    (batch, *_), count = cda.batches(1), 4 if views_per == "image" else 1
    for i, found in enumerate(crops(cda)):
        progress = torch.tensor(i / (12 * milestone), dtype=torch.float64)
        bound = smallest_crop(0.5, curriculum, progress).item()
        expected = draw_views(
            replace(cda.config.views, crop_scale=bound), 8, 8, 0, "synthesis view", batch.group,
            batch.chunk, indices=torch.arange(i * count, (i + 1) * count),
        )  # fmt: skip
        assert equal(found, expected.resampling(8, 8))
        if i == 0:
            assert expected.box.tolist() == [[0, 0, 8, 8]] * count, "the whole image"


def test_from_the_milestone_on_views_are_sre2ls(plain: Teddy) -> None:
    usual = crops(plain)
    for curriculum in ("cosine", "linear", "step"):
        found = crops(with_config(plain, curriculum=curriculum, milestone=0.5))
        same = [equal(one, other) for one, other in zip(found, usual, strict=True)]
        assert all(same[6:])
        assert not all(same[:6])


def test_a_bound_for_each_view_is_a_bound_for_all() -> None:
    views, indices = ViewConfig(crop_scale=0.3, hflip=True, roll=(-1, 2)), torch.arange(50)
    scale = torch.full((50,), 0.3, dtype=torch.float64)
    whole = ViewConfig(crop_scale=1.0, hflip=True, roll=(-1, 2))
    one = draw_views(views, 8, 8, 0, "x", indices=indices)
    other = draw_views(whole, 8, 8, 0, "x", indices=indices, crop_scale=scale)
    assert torch.equal(one.box, other.box)


def test_a_curriculum_goes_on_where_it_was(plain: Teddy, tmp_path: Path) -> None:
    cda = with_config(plain, curriculum="cosine")
    for start in (0, 5, 11):
        assert all(map(equal, crops(cda, start), crops(cda)[start:]))
    batch, resume = cda.batches(1)[0], tmp_path / "killed.safetensors"
    whole = result(with_config(plain, curriculum="cosine"), batch, tmp_path)
    short = with_config(plain, curriculum="cosine")
    images = short.initial_images(batch).requires_grad_()
    state = short.start(batch, images)
    steps = short.optimise(batch, state)
    for _ in range(5):
        next(steps)
    state.save(resume)
    again = cda.run(batch, resume, save_every_seconds=0)
    assert torch.equal(again["images"], whole["images"])
    assert not torch.equal(again["images"], result(plain, batch, tmp_path)["images"])


def test_crops_that_are_not_there_have_no_curriculum(synthesis_config: SynthesizeConfig) -> None:
    with pytest.raises(TeddyError, match=r"curriculum must be none with augmentation dsa.* cosine"):
        replace(synthesis_config, curriculum="cosine", augmentation="dsa")
