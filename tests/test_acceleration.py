"""Replayed teachers give what eager ones do. No GPU, but tests for one.

Without a GPU the graphs are fakes that keep to CUDA's rules. A recording is the list of PyTorch's
operations, with the very tensors that they read and wrote; a replay runs the list, not the Python
code that made it. Before it, whatever other recordings of the same pool left there is overwritten,
since the memory is shared.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_synthesis import random_network, random_teachers, with_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from teddy.core.errors import TeddyError
from teddy.data.datasets import ImageDataset
from teddy.objectives import Moments
from teddy.settings.configs import SynthesizeConfig, ViewConfig
from teddy.synthesis import teddy as synthesis
from teddy.synthesis.engine import cuda_graphs as acceleration
from teddy.synthesis.engine.cuda_graphs import Graphs, choose_passes, replays_per_recording
from teddy.synthesis.engine.frozen import Teacher
from teddy.synthesis.engine.passes import MakePasses, eager
from teddy.synthesis.gradient import Mode, losses_of_teachers
from teddy.synthesis.methods import Ingredients
from teddy.synthesis.teddy import Teddy
from teddy.teachers.pools import Pool

CPU = torch.device("cpu")
MODES: list[Mode] = ["two_pass", "joint"]
DRAWS = [(0, 1, 2), (1, 2, 3), (0, 3), (2,), (0, 1, 2), (1, 3)]


# ------------------------------------------------------------------------------------ fake graphs


def tensors_in(tree: Any) -> list[Tensor]:
    """Tensors of nested arguments."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def addresses(tree: Any) -> set[int]:
    """Where the memory of nested arguments begins."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_in(tree)}


class FakeGraph:
    """Stands for ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.scratch: list[Tensor] = []
        self.reads: set[int] = set()
        self.pool: Any = None

    def replay(self) -> None:
        """Do again what was recorded, in the same memory."""
        for other in self.pool.graphs:
            if other is not self and not addresses(other.scratch) & self.reads:
                for tensor in other.scratch:
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
        with torch.no_grad():
            for function, args, kwargs, out in self.calls:
                new = function(*args, **kwargs)
                for old, value in zip(tensors_in(out), tensors_in(new), strict=True):
                    old.copy_(value)
        self.pool.replays += 1


class FakePool:
    """Stands for what ``torch.cuda.graph_pool_handle`` returns."""

    def __init__(self) -> None:
        self.graphs: list[FakeGraph] = []
        self.replays = 0


class FakeCapture(TorchDispatchMode):
    """Stands for ``torch.cuda.graph``."""

    def __init__(self, graph: FakeGraph, pool: FakePool, stream: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, graph.pool = graph, pool
        pool.graphs.append(graph)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record an operation."""
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given, graph = addresses((args, kwargs)), self.graph
        graph.reads |= given - addresses(graph.scratch)
        graph.scratch += [t for t in tensors_in(out) if not addresses(t) & given]
        # Tensors without history: autograd is free to let go of its own.
        graph.calls.append(
            (func, *tree_map_only(Tensor, lambda t: t.detach(), (args, kwargs, out)))
        )
        return out


class FakeStream:
    """Stands for ``torch.cuda.Stream``."""

    def wait_stream(self, other: "FakeStream") -> None:
        """Nothing runs beside anything."""


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[FakePool]:
    """Fake graphs on the CPU; the pools that are made."""
    made: list[FakePool] = []

    def handle() -> FakePool:
        made.append(FakePool())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", handle)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", FakeCapture)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    return made


def recordings(pools: Sequence[FakePool]) -> int:
    """Teachers recorded, three graphs each."""
    return sum(len(pool.graphs) for pool in pools) // 3


def fresh_view(seed: int, count: int = 6, device: Any = CPU) -> tuple[Tensor, Tensor]:
    """Images, a leaf as the synthesiser makes it, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 8, 8, generator=generator).to(device)
    leaf = images.to(memory_format=torch.channels_last).requires_grad_()
    return leaf, torch.arange(count, device=device) % 3


def outcome(
    passes: MakePasses, teachers: list[Teacher], config: SynthesizeConfig, mode: Mode, **view: Any
) -> tuple[Tensor, Tensor]:
    """Losses, and the gradient in a view."""
    leaf, labels = fresh_view(**view)
    targets = [teacher.running for teacher in teachers]
    losses = losses_of_teachers(leaf, labels, teachers, targets, config, mode, passes)
    assert leaf.grad is not None
    return losses, leaf.grad


# ------------------------------------------------------------------------------------- bookkeeping


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replays_of_any_draw_give_the_eager_bits(
    synthesis_config: SynthesizeConfig, pools: list[FakePool], mode: Mode, precision: Any
) -> None:
    config = replace(synthesis_config, precision=precision)
    everyone, graphs = random_teachers([0, 1, 2, 3]), Graphs()
    for seed, draw in enumerate(DRAWS * 2):
        teachers = [everyone[member] for member in draw]
        got = outcome(graphs, teachers, config, mode, seed=seed)
        want = outcome(eager, teachers, config, mode, seed=seed)
        for new, old in zip(got, want, strict=True):
            assert torch.equal(new, old), (seed, draw)
        assert got[1].stride() == want[1].stride()
    assert graphs.on


def test_one_pool_serves_all_teachers_by_two_passes_and_one_each_jointly(
    synthesis_config: SynthesizeConfig, pools: list[FakePool]
) -> None:
    teachers = random_teachers([0, 1, 2])
    outcome(Graphs(), teachers, synthesis_config, "two_pass", seed=0)
    assert (len(pools), recordings(pools)) == (1, 3)
    assert pools[0].replays == 2 + 1 + 1 + 2 * 2, "2M − 1 forwards, M backwards"
    outcome(Graphs(), teachers, synthesis_config, "joint", seed=0)
    assert (len(pools[1:]), recordings(pools[1:])) == (3, 3)
    assert [pool.replays for pool in pools[1:]] == [2, 2, 2]


def test_what_was_recorded_is_only_replayed(
    synthesis_config: SynthesizeConfig, pools: list[FakePool]
) -> None:
    teachers, graphs = random_teachers([0, 1]), Graphs()
    for seed in range(3):
        outcome(graphs, teachers, synthesis_config, "two_pass", seed=seed)
        assert recordings(pools) == 2


@pytest.mark.parametrize(
    ("change", "view"),
    [({"precision": "bfloat16"}, {}), ({"first_bn_weight": 3.0}, {}),
     ({"norm": "l2_squared"}, {}), ({}, {"count": 9})],
)  # fmt: skip
def test_other_shapes_precisions_and_losses_are_recorded_anew(
    synthesis_config: SynthesizeConfig, pools: list[FakePool], change: Any, view: Any
) -> None:
    teachers, graphs = random_teachers([0]), Graphs()
    changed = replace(synthesis_config, **change)
    outcome(graphs, teachers, synthesis_config, "two_pass", seed=0)
    got = outcome(graphs, teachers, changed, "two_pass", seed=1, **view)
    assert recordings(pools) == 2
    want = outcome(eager, teachers, changed, "two_pass", seed=1, **view)
    assert torch.equal(got[1], want[1])
    outcome(graphs, teachers, synthesis_config, "two_pass", seed=2)
    assert recordings(pools) == 2, "the first is still there"


def test_alpha_and_statistics_may_change_between_replays(
    synthesis_config: SynthesizeConfig, pools: list[FakePool]
) -> None:
    (teacher,), graphs = random_teachers([0]), Graphs()
    others = [Moments(m.mean + 1, m.var * 2) for m in teacher.running]
    for alpha, target in [(0.1, teacher.running), (2.0, others), (0.3, teacher.running)]:
        config, found = replace(synthesis_config, alpha_bn=alpha), []
        ways: list[MakePasses] = [graphs, eager]
        for passes in ways:
            leaf, labels = fresh_view(0)
            losses = losses_of_teachers(
                leaf, labels, [teacher], [target], config, "two_pass", passes
            )
            found.append((losses, leaf.grad))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])  # type: ignore[arg-type]
    assert recordings(pools) == 1
    assert not torch.equal(teacher.running[0].mean, others[0].mean), "targets are left as they are"


def test_memory_that_was_used_since_is_not_trusted(
    synthesis_config: SynthesizeConfig, pools: list[FakePool]
) -> None:
    (first, second), graphs = random_teachers([0, 1]), Graphs()
    leaf, _ = fresh_view(0)
    one, two = (graphs(t, t.running, leaf, synthesis_config, 0) for t in (first, second))
    for disturb in (two.observe, two.logits):
        logits, gap = one.observe()
        disturb()
        with pytest.raises(AssertionError, match="another pass"):
            one.backward(torch.zeros_like(logits), torch.zeros_like(gap))


def test_cleared_graphs_are_recorded_again(
    synthesis_config: SynthesizeConfig, pools: list[FakePool], capfd: Any
) -> None:
    teachers, graphs = random_teachers([0]), Graphs()
    for _ in range(2):
        outcome(graphs, teachers, synthesis_config, "two_pass", seed=0)
        graphs.clear()
    assert recordings(pools) == 2
    assert len(pools) == 2, "memory of the first is not used again"
    assert capfd.readouterr().err.count("replayed as CUDA graphs") == 1


@pytest.mark.parametrize("mode", MODES)
def test_failure_to_record_falls_back_and_says_so_once(
    synthesis_config: SynthesizeConfig, pools: list[FakePool], monkeypatch: Any, capfd: Any,
    mode: Mode,
) -> None:  # fmt: skip
    teachers, graphs = random_teachers([0, 1, 2]), Graphs()
    count = iter(range(1000))
    begin: Any = FakeCapture.__enter__

    def refuse(self: FakeCapture) -> Any:
        if next(count) == 4:  # in the second teacher
            raise RuntimeError("CUDA error: operation not permitted\nCompile with TORCH_USE_CUDA_D")
        return begin(self)

    monkeypatch.setattr(FakeCapture, "__enter__", refuse)
    for seed in range(3):
        got = outcome(graphs, teachers, synthesis_config, mode, seed=seed)
        want = outcome(eager, teachers, synthesis_config, mode, seed=seed)
        assert torch.equal(got[1], want[1])
    assert not graphs.on
    (line,) = [ln for ln in capfd.readouterr().err.splitlines() if "without CUDA graphs" in ln]
    assert line.endswith("(RuntimeError: CUDA error: operation not permitted)")


# ------------------------------------------------------------------------------------- when used


def long(config: SynthesizeConfig, **changes: Any) -> SynthesizeConfig:
    """Settings of a batch that is worth recording for."""
    return replace(config, iterations=4000, **changes)


def test_graphs_are_taken_on_a_gpu_only(
    synthesis_config: SynthesizeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, cuda = long(synthesis_config), torch.device("cuda")
    assert choose_passes(config, 3, CPU) is eager
    assert isinstance(choose_passes(config, 3, cuda), Graphs)
    monkeypatch.setenv("TEDDY_GRAPHS", "0")
    assert choose_passes(config, 3, cuda) is eager
    monkeypatch.setenv("TEDDY_GRAPHS", "yes")
    with pytest.raises(TeddyError, match=r"\$TEDDY_GRAPHS must be 0 or 1, got 'yes'"):
        choose_passes(config, 3, cuda)


def test_graphs_are_not_taken_where_they_do_not_pay(
    synthesis_config: SynthesizeConfig, capfd: Any
) -> None:
    assert choose_passes(synthesis_config, 3, torch.device("cuda")) is eager
    assert "each would be replayed only 6 times" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"draw_per": "index", "draw": 3}, 4000),  # three teachers, always the same
        ({"draw_per": "iteration", "draw": 3, "gradient": "two_pass"}, 4000 * 3 / 20),
        ({"draw_per": "iteration", "draw": 3, "gradient": "auto"}, 4000 * 3 / (3 * 18)),
    ],
)
def test_replays_are_counted_per_teacher_and_slot(
    synthesis_config: SynthesizeConfig, changes: Any, expected: float
) -> None:
    assert replays_per_recording(long(synthesis_config, **changes), 20) == pytest.approx(expected)


@pytest.fixture
def synthesiser(
    synthesis_config: SynthesizeConfig, pool: Pool, dataset: ImageDataset, view_config: ViewConfig
) -> Teddy:
    """A fresh synthesiser of the tiny settings."""
    return Teddy(synthesis_config, Ingredients(dataset, 0, CPU, pool, view_config))


def test_cpu_never_records(
    synthesiser: Teddy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "_LEAST_REPLAYS", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: 1 / 0)
    cpu = with_config(synthesiser)
    cpu.run(cpu.batches(1)[0], tmp_path / "resume")
    assert cpu.facts["cuda_graphs"] is False


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"draw_per": "iteration"}, {"class_statistics": "per_class", "classes_per_batch": 1},
     {"class_statistics": "pooled"}],
)  # fmt: skip
def test_batches_have_the_same_bytes(
    synthesiser: Teddy, tmp_path: Path, pools: list[FakePool], mode: Mode, changes: Any
) -> None:
    plain = with_config(synthesiser, gradient=mode, **changes)
    replayed = with_config(synthesiser, gradient=mode, **changes)
    replayed._passes = {0: Graphs()}
    for number, batch in enumerate(plain.batches(1)[:2]):
        want = plain.run(batch, tmp_path / f"plain{number}")
        got = replayed.run(batch, tmp_path / f"replayed{number}")
        assert torch.equal(got["images"], want["images"])
        assert torch.equal(got["curve"], want["curve"])
    assert replayed.facts["cuda_graphs"] is True
    per_class = changes.get("classes_per_batch") == 1
    if changes.get("draw_per") != "iteration" and per_class:
        assert recordings(pools) == 2, "other targets are copied in, not recorded"


def test_exhausted_memory_drops_the_recordings(
    synthesiser: Teddy, tmp_path: Path, pools: list[FakePool], monkeypatch: Any
) -> None:
    want = with_config(synthesiser, gradient="two_pass")
    joint = with_config(synthesiser, gradient="joint")
    graphs = Graphs()
    joint._passes = {0: graphs}
    held: list[int] = []

    def limited(*arguments: Any) -> Tensor:
        if arguments[5] == "joint" and recordings(pools):
            raise torch.OutOfMemoryError("CUDA out of memory")
        held.append(len(graphs._recordings))
        return losses_of_teachers(*arguments)

    monkeypatch.setattr(synthesis, "losses_of_teachers", limited)
    batch = joint.batches(1)[0]
    got = joint.run(batch, tmp_path / "joint")
    assert held[:3] == [0, 0, 2], "joint, then two_pass from nothing"
    assert joint.facts["gradient"] == "two_pass"
    difference = got["images"].int() - want.run(batch, tmp_path / "want")["images"].int()
    assert difference.abs().max() <= 1, "the first iteration was joint, which rounds otherwise"


def test_exhausted_memory_of_the_smaller_mode_is_tried_without_graphs(
    synthesiser: Teddy, tmp_path: Path, pools: list[FakePool], monkeypatch: Any, capfd: Any
) -> None:
    plain = with_config(synthesiser, gradient="two_pass")
    replayed = with_config(synthesiser, gradient="two_pass")
    graphs = Graphs()
    replayed._passes = {0: graphs}

    def refuse(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "_record", refuse)
    batch = plain.batches(1)[0]
    got = replayed.run(batch, tmp_path / "replayed")
    assert torch.equal(got["images"], plain.run(batch, tmp_path / "plain")["images"])
    assert replayed.facts["cuda_graphs"] is False
    assert "which goes on without CUDA graphs" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------- CUDA


@pytest.fixture
def on_gpu(synthesiser: Teddy) -> Callable[..., Teddy]:
    """Synthesisers on the GPU that differ in how teachers are run, and in some settings."""

    def make(passes: MakePasses, **changes: Any) -> Teddy:
        given = replace(synthesiser.given, device=torch.device("cuda"))
        made = Teddy(replace(synthesiser.config, **changes), given)
        made._passes = {0: passes}
        return made

    return make


@pytest.mark.cuda
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_replays_on_a_gpu_give_the_eager_gradient(
    synthesis_config: SynthesizeConfig, mode: Mode, precision: Any, error: float
) -> None:
    config, graphs = replace(synthesis_config, precision=precision), Graphs()
    everyone = [Teacher(random_network(seed).to("cuda"), "biased") for seed in range(4)]
    for seed, draw in enumerate(DRAWS * 2):
        teachers = [everyone[member] for member in draw]
        got = outcome(graphs, teachers, config, mode, seed=seed, device="cuda", count=30)
        want = outcome(eager, teachers, config, mode, seed=seed, device="cuda", count=30)
        for new, old in zip(got, want, strict=True):
            assert (new - old).norm() <= error * old.norm(), (seed, draw)
    assert graphs.on, "nothing fell back"


@pytest.mark.cuda
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("draw_per", ["index", "iteration"])
def test_batches_on_a_gpu_are_those_without_graphs(
    on_gpu: Callable[..., Teddy], tmp_path: Path, mode: Mode, draw_per: str
) -> None:
    settings: dict[str, Any] = {"gradient": mode, "draw_per": draw_per, "iterations": 20}
    plain, replayed = on_gpu(eager, **settings), on_gpu(Graphs(), **settings)
    for number, batch in enumerate(plain.batches(1)):
        want = plain.run(batch, tmp_path / f"plain{number}")["images"].int()
        got = replayed.run(batch, tmp_path / f"replayed{number}")["images"].int()
        assert (got - want).abs().float().mean() < 0.1, "of 255"
    assert replayed.facts["cuda_graphs"] is True


@pytest.mark.cuda
@pytest.mark.parametrize("way", ["eager", "graphs"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient": "joint"}, {"precision": "bfloat16"}, {"views_per": "image"},
     {"augmentation": "dsa"}, {"class_statistics": "pooled"}],
)  # fmt: skip
def test_iterations_do_not_wait_for_the_gpu(
    on_gpu: Callable[..., Teddy], tmp_path: Path, monkeypatch: Any, way: str, changes: Any
) -> None:
    made = on_gpu(eager if way == "eager" else Graphs(), **{"iterations": 200, **changes})
    monkeypatch.setattr("teddy.synthesis.engine.runs.CHECK_EVERY", 10**6)
    batch, draw = made.batches(1)[0], made.teachers_drawn

    def watched(batch: Any, iteration: int) -> list[int]:
        if iteration in (3, 199):  # everything is set up; the last one ends in a look at the losses
            torch.cuda.set_sync_debug_mode("error" if iteration == 3 else "default")
        return draw(batch, iteration)

    monkeypatch.setattr(made, "teachers_drawn", watched)
    with sync_debug_mode_left_as_it_was():
        made.run(batch, tmp_path / "resume")


@contextlib.contextmanager
def sync_debug_mode_left_as_it_was() -> Iterator[None]:
    """Whatever happens within."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
