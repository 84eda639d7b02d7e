"""The synthesis benchmark: both sides do the same work, memory is counted right. No times."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import floor
from benchmarks import synthesis as bench
from benchmarks.__main__ import main
from benchmarks.engine import NORMALISATION, Batches, Workload, engine, frozen_network
from benchmarks.memory import peak_bytes, saved_bytes
from benchmarks.peers import FeatureHook, Mode, RecoverLoop, recover_loss
from benchmarks.synthesis import PLAIN
from teddy.core.errors import TeddyError
from teddy.core.files import read_json
from teddy.settings.configs import SynthesizeConfig, ViewConfig
from teddy.settings.schema import read_yaml
from teddy.synthesis.engine.frozen import Teacher
from teddy.synthesis.gradient import eq7_gradient
from teddy.teachers.networks import batchnorms

CPU = torch.device("cpu")
SMALL = Workload("small", "resnet18", 8, 10, 4)
MIB = 2**20


def test_the_plain_loop_has_our_gradient(synthesis_config: SynthesizeConfig) -> None:
    torch.manual_seed(0)
    view, labels = torch.randn(4, 3, 8, 8, requires_grad=True), torch.arange(4)
    ours = view.detach().clone().requires_grad_()
    network = frozen_network(SMALL, 0)
    hooks = [FeatureHook(layer) for layer in batchnorms(network)]
    config = replace(synthesis_config, alpha_bn=0.3)
    recover_loss(network, hooks, view, labels, 0.3, config.first_bn_weight).backward()
    teacher = Teacher(frozen_network(SMALL, 0), config.variance)
    eq7_gradient(ours, labels, [teacher], [teacher.running], config)
    assert view.grad is not None
    assert ours.grad is not None
    assert (view.grad - ours.grad).norm() < 1e-5 * view.grad.norm()


def test_an_iteration_of_the_plain_loop_changes_images_within_the_pixel_range(
    synthesis_config: SynthesizeConfig,
) -> None:
    config = replace(synthesis_config, views=ViewConfig(crop_scale=0.5, hflip=True, roll=(0, 2)))
    images, labels, network = torch.zeros(3, 3, 8, 8), torch.arange(3), frozen_network(SMALL, 0)
    low, high = bounds = NORMALISATION.bounds()
    run = RecoverLoop(network, 9 + images, labels, config, bounds, Mode())
    for _ in range(2):
        run.step()
    moved = run.images.detach()
    assert not moved.isnan().any()
    assert (moved >= low - 1e-6).all()
    assert (moved <= high + 1e-6).all()
    assert moved.unique().numel() > 3, "the gradient moved pixels away from the border"


@pytest.mark.parametrize("beside", [1, 2])
def test_a_step_of_the_engine_is_an_iteration_of_every_batch_by_every_network(
    beside: int, synthesis_config: SynthesizeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [frozen_network(SMALL, seed) for seed in range(2)]
    maker = engine(SMALL, networks, synthesis_config, CPU)
    seen = []

    def lr(base: float, iteration: int, iterations: int) -> float:
        seen.append(iteration)
        return 0.1

    monkeypatch.setattr("teddy.synthesis.teddy.cosine_lr", lr)
    batches = Batches(maker, SMALL.batch_of(4), beside)
    for _ in range(3):
        batches.step()
    assert seen == [turn for turn in range(3) for _ in range(beside)]
    assert maker.teachers_drawn(SMALL.batch_of(4), 0) == [0, 1]


def test_batches_that_do_not_fit_are_not_timed(
    synthesis_config: SynthesizeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    maker = engine(SMALL, [frozen_network(SMALL, 0)], synthesis_config, CPU)
    batches = Batches(maker, SMALL.batch_of(4), 2)
    monkeypatch.setattr("teddy.synthesis.teddy.losses_of_teachers", refuse)
    with pytest.raises(TeddyError, match="no memory for 2 batches at a time"):
        batches.step()


@pytest.mark.parametrize(("batch", "labels"), [(4, [0, 1, 2, 3]), (20, [*range(10)] * 2)])
def test_batches_have_as_many_images_of_every_class(batch: int, labels: list[int]) -> None:
    assert SMALL.batch_of(batch).labels().tolist() == labels


def test_a_batch_that_favours_a_class_is_refused() -> None:
    with pytest.raises(TeddyError, match="--batch: expected a multiple of 10 classes, got 25"):
        SMALL.batch_of(25)


@pytest.mark.parametrize("pruned", [0.0, 0.3])
def test_the_floor_has_every_convolution_and_its_input_gradient(pruned: float) -> None:
    network, images = frozen_network(replace(SMALL, pruned=pruned), 0), torch.randn(2, 3, 8, 8)
    wanted = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    found = floor.convolutions(network, images)
    assert {id(conv.layer) for conv in found} == {id(layer) for layer in wanted}
    alone = floor.Floor(network, images, torch.float32, torch.channels_last)
    assert len(alone) == len(wanted) == 20
    shapes = [tuple(gradient.shape) for gradient in reversed(alone.run())]
    assert shapes == [tuple(conv.shape) for conv in found]


def test_the_floor_gradient_is_that_of_autograd() -> None:
    network, images = (
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False)),
        torch.ones(1, 3, 5, 5),
    )
    alone = floor.Floor(network, images, torch.float32, torch.contiguous_format)
    ((image, weight, _),) = alone._calls
    leaf = image.clone().requires_grad_()
    output = nn.functional.conv2d(leaf, weight, padding=1)
    output.backward(output.detach())
    assert leaf.grad is not None
    torch.testing.assert_close(alone.run()[0], leaf.grad)


def test_statistics_of_random_networks_are_those_of_a_batch() -> None:
    layers = batchnorms(frozen_network(SMALL, 0))
    variances = [layer.running_var for layer in layers if layer.running_var is not None]
    assert len(variances) == 20
    assert all(0 < var.min() and (var - 1).abs().max() > 0.01 for var in variances)


# ------------------------------------------------------------------------------------------ memory


def test_saved_storages_count_once_while_they_are_kept() -> None:
    leaf, mib = torch.ones(MIB // 4, requires_grad=True), MIB

    def once() -> None:
        kept = leaf * 2  # saves a number
        (kept.exp() * kept).sum().backward()  # exp saves its result; the product both: 2 tensors
        leaf.grad = None

    def twice() -> None:
        once()
        once()

    assert saved_bytes(once) == 2 * mib
    assert saved_bytes(twice) == 2 * mib, "the first graph is gone when the second is made"


def test_what_lay_in_memory_before_is_not_saved_by_a_step() -> None:
    weight, leaf = torch.ones(MIB // 4), torch.ones(MIB // 4, requires_grad=True)
    assert saved_bytes(lambda: (leaf * weight).sum().backward()) == 0


def test_the_peak_counts_what_lives_together() -> None:
    def step() -> None:
        for _ in range(3):
            first = torch.zeros(MIB // 4)
            second = torch.zeros(MIB // 4)
            del first, second

    assert peak_bytes(step, CPU) == pytest.approx(2 * MIB, rel=0.01)


# ----------------------------------------------------------------------------------- the command


def test_the_papers_jobs_have_the_passes_of_the_specification() -> None:
    program = {"ms_per_pass": 36.0, "kind": "engine", "teachers": 3}
    plain = {"ms_per_pass": 72.0, "kind": "plain", "teachers": 1}
    found = {"batch": 10, "programs": {"engine": program, PLAIN: plain}}
    measured = dict.fromkeys(bench.WORKLOADS, found)
    jobs = bench._extrapolated(measured, read_yaml(Path("params.yaml")))
    passes = {job["job"]: job["passes_of_100_images"] for job in jobs}
    assert passes["Tiny-ImageNet IPC 50"] == 1.2e6
    assert passes["ImageNet-1K IPC 10"] == 1.8e6
    (hours,) = [job["hours"] for job in jobs if job["job"] == "ImageNet-1K IPC 10"]
    assert hours["engine"] == pytest.approx(1.8e6 * 0.36 / 3600), "a batch of 100 is ten of 10"
    assert hours[PLAIN] == pytest.approx(2 * hours["engine"])


def test_synthesis_writes_a_record_a_table_and_a_figure(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    monkeypatch.setitem(bench.WORKLOADS, "resnet18-64", SMALL)  # one with extrapolated jobs
    out = tmp_path / "synthesis.json"
    options = [
        "--workloads",
        "resnet18-64",
        "--repeats",
        "2",
        "--teachers",
        "1",
        "2",
        "--no-compile",
    ]
    main(["synthesis", *options, "--out", str(out)])
    record = read_json(out)
    found = record["workloads"]["resnet18-64"]
    assert found["batch"] == 4
    programs = found["programs"]
    assert {PLAIN, "engine, float32, k = 1", "engine, float32, k = 2"} <= programs.keys()
    assert "engine, bfloat16, k = 1" in programs
    floors = [name for name, entry in programs.items() if entry["kind"] == "floor"]
    assert any("bfloat16" in name for name in floors) == record["bfloat16"]["native"]
    assert found["floor"] in programs
    for name, program in programs.items():
        assert len(program["ms"]) == 2
        assert program["ms_per_pass"] == program["ms_per_iteration"] / program["teachers"]
        assert ("saved_bytes" in program) == (program["kind"] != "floor"), name
    assert programs[PLAIN]["times_plain_speed"] == 1
    assert programs[found["floor"]]["share_of_floor_speed"] == 1
    ours, theirs = programs["engine, float32, k = 1"], programs[PLAIN]
    assert ours["saved_bytes"] < theirs["saved_bytes"], "no copy for the variance"
    assert "Tiny-ImageNet IPC 50" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
