"""Teachers replayed as CUDA graphs: the processor launches a pass at once, not kernel by kernel.

For small images it is slower at launching a teacher's kernels than the GPU at running them. Each
teacher is recorded on its own, so that whichever are drawn replay, in any order and both modes of
the gradient. What is recorded is :class:`~teddy.synthesis.engine.passes.Eager`; no mathematics is
written twice.

Invariants:

- Whatever goes into or comes out of a recording lies in static tensors from outside its pool of
  memory. A pool holds nothing that outlives a pass but what ``observe`` keeps for ``backward``.
- So recordings share pools. Teachers of one slot take turns, ``backward`` directly after
  ``observe``, and k teachers by ``two_pass`` need the memory of one, as without recordings.
- No pass copies from the host or waits for the device; only the recording itself does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from teddy.core.memory import memory_watch
from teddy.core.runtime import graphs_wanted, log
from teddy.objectives import Moments
from teddy.settings.configs import SynthesizeConfig
from teddy.synthesis.engine.frozen import Teacher
from teddy.synthesis.engine.passes import Eager, MakePasses, Passes, eager

_WARM_UP = 3
"""Passes before a recording, in which libraries set themselves up (as many as PyTorch's
``make_graphed_callables`` takes)."""

_LEAST_REPLAYS = 200
"""Of a recording, for it to pay. It costs some ten passes (warm-up, recording, set-up), so that
saving a twentieth of a pass suffices. Estimated, not measured."""


def choose_passes(config: SynthesizeConfig, pool_size: int, device: torch.device) -> MakePasses:
    """Replayed passes on a GPU, where each is replayed ``_LEAST_REPLAYS`` times on average.

    Depends on settings alone, like the mode of the gradient: a batch that is continued after an
    interruption must be run as it was before.
    """
    if device.type != "cuda" or not graphs_wanted():
        return eager
    replays = replays_per_recording(config, pool_size)
    if replays >= _LEAST_REPLAYS:
        return Graphs()
    log(
        f"synthesize: teachers run without CUDA graphs, of which each would be replayed only "
        f"{replays:.0f} times"
    )
    return eager


def replays_per_recording(config: SynthesizeConfig, pool_size: int) -> float:
    """How often a batch replays each of its recordings, one per teacher and slot, on average."""
    places = 1 if config.gradient == "two_pass" else config.draw
    if config.draw_per == "index":
        recordings = config.draw
    else:  # ascending draws: a teacher's place is one of so many
        recordings = places * (pool_size + 1 - places)
    return config.iterations * config.draw / recordings


class Graphs:
    """Makes passes that replay recordings; makes those recordings when first asked for them.

    If one fails, all passes are eager from then on, and that is said once. For lack of memory it
    raises :class:`~teddy.core.memory.OutOfMemory` instead; it may be tried again after
    :meth:`clear`.
    """

    def __init__(self) -> None:
        self.on = True
        """Whether passes are replayed."""
        self._said = False
        self._recordings: dict[tuple[Any, ...], Recording] = {}
        self._views: dict[tuple[Any, ...], Tensor] = {}
        self._slots: dict[int, _Slot] = {}
        self._stream: torch.cuda.Stream | None = None

    def another(self) -> "Graphs":
        """As this one, with recordings of its own, for what runs beside it; says nothing again."""
        graphs = Graphs()
        graphs.on, graphs._said = self.on, self._said
        return graphs

    def clear(self) -> bool:
        """Drop all recordings and the memory that they hold; whether there were any."""
        held = bool(self._slots)
        for slot in self._slots.values():
            slot.observed = None  # a cycle would outlive this, and no graph may die in a recording
        for kept in (self._recordings, self._views, self._slots):
            kept.clear()
        return held

    def __call__(
        self,
        teacher: Teacher,
        target: Sequence[Moments],
        view: Tensor,
        config: SynthesizeConfig,
        slot: int,
    ) -> Passes:
        """A :data:`teddy.synthesis.engine.passes.MakePasses`."""
        if not self.on:
            return eager(teacher, target, view, config, slot)
        look = (view.device, view.dtype, view.shape, view.stride())
        key = (teacher, slot, look, config.precision, config.first_bn_weight, config.norm)
        failure = ""
        if key not in self._recordings:
            try:
                with memory_watch():
                    self._recordings[key] = self._record(teacher, target, view, config, slot, look)
            except RuntimeError as error:
                failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if failure:  # outside the handler, which holds on to the tensors of what failed
            log(f"synthesize: teachers run without CUDA graphs, recording one failed ({failure})")
            self.on = False
            self.clear()
            torch.cuda.empty_cache()
            return eager(teacher, target, view, config, slot)
        if not self._said:
            log("synthesize: teachers are replayed as CUDA graphs (TEDDY_GRAPHS=0 for without)")
            self._said = True
        return self._recordings[key].of(target, view)

    def _record(
        self,
        teacher: Teacher,
        target: Sequence[Moments],
        view: Tensor,
        config: SynthesizeConfig,
        slot: int,
        look: tuple[Any, ...],
    ) -> "Recording":
        with torch.cuda.device(view.device):
            if self._stream is None:
                self._stream = torch.cuda.Stream()
            if slot not in self._slots:
                self._slots[slot] = _Slot(self._stream)
            if look not in self._views:
                static = view.detach().clone().requires_grad_()
                static.grad = torch.zeros_like(static)
                self._views[look] = static
            return Recording(teacher, target, self._views[look], config, self._slots[slot])


class _Slot:
    """Memory that recordings take turns in.

    One stream for all warm-ups and recordings: libraries keep working memory per stream, and memory
    freed on one stream is not reused on another.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), stream
        self.observed: Recording | None = None
        """Whose observation the memory holds."""


class Recording:
    """The passes of one teacher as three graphs; a :class:`~teddy.synthesis.engine.passes.Passes`.

    Args:
        teacher: the teacher.
        target: first of the statistics that it is matched to.
        view: static leaf with a gradient, into which views are copied.
        config: conventions of the loss.
        slot: where to work.
    """

    def __init__(
        self,
        teacher: Teacher,
        target: Sequence[Moments],
        view: Tensor,
        config: SynthesizeConfig,
        slot: _Slot,
    ) -> None:
        self._view, self._slot, self._leaf = view, slot, view
        self._target = target
        self._static_target = [Moments(m.mean.clone(), m.var.clone()) for m in target]
        self._passes = passes = Eager(teacher, self._static_target, view, config)
        self._logits, self._observed, self._gap = _warmed_up(passes, slot.stream)
        self._grad = torch.zeros_like(self._observed)
        self._weight = torch.zeros_like(self._gap)

        def logits() -> None:
            self._logits.copy_(passes.logits())

        def observe() -> None:
            observed, gap = passes.observe()
            self._observed.copy_(observed)
            self._gap.copy_(gap)

        def backward() -> None:
            _grad_of(view).zero_()
            passes.backward(self._grad, self._weight)

        self._replay_logits = _record(logits, slot)
        self._replay_observe = _record(observe, slot)
        self._replay_backward = _record(backward, slot)

    def of(self, target: Sequence[Moments], view: Tensor) -> Passes:
        """Work on a view from now on, and match these statistics."""
        self._leaf = view
        if target is not self._target:
            for static, new in zip(self._static_target, target, strict=True):
                static.mean.copy_(new.mean)
                static.var.copy_(new.var)
            self._target = target
        return self

    def logits(self) -> Tensor:
        """See :class:`teddy.synthesis.engine.passes.Passes`; overwritten by the next call."""
        self._slot.observed = None
        self._fill()
        self._replay_logits()
        return self._logits

    def observe(self) -> tuple[Tensor, Tensor]:
        """See :class:`teddy.synthesis.engine.passes.Passes`; overwritten by the next call."""
        self._slot.observed = self
        self._fill()
        self._replay_observe()
        return self._observed, self._gap

    def backward(self, grad: Tensor, weight: Tensor) -> None:
        """See :class:`teddy.synthesis.engine.passes.Passes`."""
        assert self._slot.observed is self, "another pass has used this memory since"
        self._slot.observed = None
        self._grad.copy_(grad)
        self._weight.copy_(weight)
        self._replay_backward()
        found, leaf = _grad_of(self._view), self._leaf
        leaf.grad = found.clone() if leaf.grad is None else leaf.grad.add_(found)

    @torch.no_grad()
    def _fill(self) -> None:
        self._view.copy_(self._leaf)


def _grad_of(view: Tensor) -> Tensor:
    assert view.grad is not None, "static"
    return view.grad


def _warmed_up(passes: Passes, stream: torch.cuda.Stream) -> tuple[Tensor, Tensor, Tensor]:
    """Run all passes a few times on the stream of the recording.

    Returns:
        Tensors of their own memory like the logits of both passes and R_BN.
    """
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            logits = passes.logits()
            observed, gap = passes.observe()
            passes.backward(torch.zeros_like(observed), torch.zeros_like(gap))
    current.wait_stream(stream)
    return torch.empty_like(logits), torch.empty_like(observed), torch.empty_like(gap)


def _record(work: Callable[[], None], slot: _Slot) -> Callable[[], None]:
    """Record work instead of doing it; returns what does it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=slot.pool, stream=slot.stream):
        work()
    replay: Callable[[], None] = graph.replay
    return replay
