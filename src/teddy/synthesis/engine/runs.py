"""How batches are run, whatever the method: in turns, kept and restored, watched.

A method (:class:`Optimised`) says what a step is; everything else about a step is here: losses are
looked at now and then, resume points are written, progress is shown, and exhausted memory is
answered by :mod:`teddy.synthesis.engine.lanes`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from teddy.core.artifacts import WorkDir, read_tensors, write_tensors
from teddy.core.distributed import leave_to_first, world_size
from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.live import IMAGES_SHOWN, Live
from teddy.core.runtime import (
    append_log,
    for_each,
    peak_mib,
    progress,
    save_interval,
    workers_for,
)
from teddy.data.datasets import ImageDataset
from teddy.synthesis.engine.batches import Batch, join_batches
from teddy.synthesis.engine.lanes import Lane, Lanes
from teddy.synthesis.engine.state import State

CHECK_EVERY = 50
"""Steps between looks at the losses, each a host–device sync."""
LOOK_SECONDS = 30.0
"""Most seconds between them, where steps are slow."""

_KIND, _FINITE_KIND = "teddy.batch.v1", "teddy.batch-images.v1"
_CURVE_POINTS = 100


class Optimised(Protocol):
    """What is asked of a method; see :class:`teddy.synthesis.methods.OptimisedMethod`."""

    config: Any
    data: ImageDataset
    device: torch.device
    rate: ClassVar[str]
    size: ClassVar[str]
    terms: ClassVar[tuple[str, ...]]
    kept: Json
    facts: Json

    def batches(self, ipc: int) -> list[Batch]: ...  # noqa: D102
    def load(self, batches: Sequence[Batch]) -> None: ...  # noqa: D102
    def initial_images(self, batch: Batch) -> Tensor: ...  # noqa: D102
    def start(self, batch: Batch, images: Tensor) -> State: ...  # noqa: D102
    def optimise(self, batch: Batch, state: State) -> Iterator[None]: ...  # noqa: D102
    def free(self, lanes: Callable[[int], bool]) -> bool: ...  # noqa: D102
    def smaller(self, state: State) -> str: ...  # noqa: D102
    def combine(self, losses: Tensor) -> Tensor: ...  # noqa: D102
    def blame(self, batch: Batch, step: int, losses: Tensor) -> str: ...  # noqa: D102
    def how(self, state: State) -> Json: ...  # noqa: D102
    def record(self, batch: Batch, curve: Tensor, kept: Json) -> Json: ...  # noqa: D102


def optimise_all(method: Optimised, ipc: int, work: WorkDir) -> tuple[Tensor, list[Json]]:
    """All batches of a set, skipping those finished in ``work``; only the first process returns.

    Returns:
        uint8 images ``(ipc·K, C, H, W)`` ordered by index, then class; and per batch its name, loss
        curve and whatever else the method records.
    """
    batches, lanes = method.batches(ipc), Lanes(method.device)
    paths = [work / f"batch-{b.group:04d}-{b.chunk:04d}.safetensors" for b in batches]
    workers = workers_for(len(batches), method.device)

    def load() -> None:
        method.load([b for b, path in zip(batches, paths, strict=True) if not path.exists()])

    def place() -> Place:
        done = sum(path.exists() for path in paths)
        at_a_time = world_size() * (workers if workers > 1 else lanes.limit)
        return Place(done, len(batches), math.ceil((len(batches) - done) / at_a_time) - 1)

    def finish(run: BatchRun, path: Path) -> None:
        write_tensors(path, run.result(), kind=_KIND, record=method.kept)
        run.resume.unlink(missing_ok=True)
        append_log(
            "synthesize-batches", {"work": work.path.name, "batch": run.batch.name, **method.facts}
        )

    def together(indices: Sequence[int]) -> None:
        todo = [index for index in indices if not paths[index].exists()]
        lanes.run(
            BatchRun(method, batches[i], paths[i].with_suffix(".resume"), place, path=paths[i],
                     finish=finish)
            for i in todo
        )  # fmt: skip

    for_each(len(batches), lambda index: together([index]), method.device, load, together)
    leave_to_first()
    results = [read_tensors(path, kind=_KIND) for path in paths]
    images = join_batches(batches, [tensors["images"] for tensors, _ in results], ipc)
    records = [
        method.record(batch, tensors["curve"], kept)
        for batch, (tensors, kept) in zip(batches, results, strict=True)
    ]
    return images, records


def run_alone(
    method: Optimised, batch: Batch, resume: Path, save_every_seconds: float | None = None
) -> dict[str, Tensor]:
    """One batch to its end with nothing beside it, continuing from ``resume`` if it exists.

    Args:
        method: how.
        batch: what.
        resume: file for unfinished work.
        save_every_seconds: least time between two writes of it; None asks the environment.

    Returns:
        ``images`` uint8 ``(N, C, H, W)`` ordered by index, then class, and ``curve`` float32
        ``(points, 1 + T)``: iteration, terms of the loss.
    """
    run = BatchRun(method, batch, resume, save_every=save_every_seconds)
    Lanes(method.device, limit=1).run([run])
    return run.result()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch stands among those of a set, for who watches."""

    finished: int
    total: int
    ahead: int
    """Further batches that this process has to wait for."""

    def title(self, batch: Batch) -> str:
        """Label of the progress bar."""
        return f"synthesize {self.finished}/{self.total} batches, now {batch.name}"

    def show(
        self, bar: "tqdm[Any]", done: int, start: int, iterations: int, images: int, began: float
    ) -> None:
        """Move the bar; add images per second, and the time until all batches are finished."""
        rate = (done - start) / max(time.monotonic() - began, 1e-9)
        left = (iterations - done + self.ahead * iterations) / rate
        speed = f"{rate * images:.0f} images/s, all in {tqdm.format_interval(left)}"
        bar.set_postfix_str(speed, refresh=False)
        bar.update(done - bar.n)


class BatchRun:
    """A batch on its way to the end: a job of :class:`~teddy.synthesis.engine.lanes.Lanes`.

    Args:
        method: how.
        batch: what.
        resume: file for unfinished work.
        place: of the batch among others, for the progress bar; None for no bar.
        save_every: least seconds between two writes of the file; None asks the environment.
        path: where the result goes.
        finish: called with this and ``path`` when the batch is done.
    """

    def __init__(
        self,
        method: Optimised,
        batch: Batch,
        resume: Path,
        place: Callable[[], Place] | None = None,
        *,
        save_every: float | None = None,
        path: Path | None = None,
        finish: Callable[["BatchRun", Path], None] | None = None,
    ) -> None:
        self.method, self.batch, self.resume = method, batch, resume
        self._place, self._path, self._finish = place, path, finish
        self._save_every = save_interval() if save_every is None else save_every
        self._state: State | None = None
        self._result: dict[str, Tensor] = {}

    def result(self) -> dict[str, Tensor]:
        """See :func:`run_alone`; of a batch that is done."""
        return self._result

    # ------------------------------------------------------------------- what lanes ask of a job

    @property
    def name(self) -> str:
        """For messages."""
        return self.batch.name

    @property
    def size(self) -> str:
        """See :attr:`teddy.synthesis.methods.OptimisedMethod.size`."""
        return self.method.size

    @property
    def can_go_on(self) -> bool:
        """Whether exhausted memory left nothing half-done."""
        return self._state is None or self._state.whole

    def free(self, lanes: Callable[[int], bool]) -> bool:
        """See :meth:`teddy.synthesis.methods.OptimisedMethod.free`."""
        return self.method.free(lanes)

    def smaller(self) -> str:
        """See :meth:`teddy.synthesis.methods.OptimisedMethod.smaller`."""
        return "" if self._state is None else self.method.smaller(self._state)

    def steps(self, lane: Lane) -> Iterator[None]:
        """Begin, or go on where the state is; yields after every step.

        Raises:
            TeddyError: a loss is not finite; names the batch and the step, and where the last
                finite images are.
        """
        method, batch = self.method, self.batch
        if self._state is None:
            images = method.initial_images(batch).to(method.device).requires_grad_()
            state = method.start(batch, images)
            if self.resume.exists():
                state.restore(self.resume)
            self._watch = Watch(method, batch, state, self.resume, self._save_every)
            self._state = state
        state, watch = self._state, self._watch
        state.lane, state.images.grad = lane, None
        total, place = len(state.losses), self._place() if self._place else None
        with watch.bar(place) as bar:
            while state.done < total:
                for _ in method.optimise(batch, state):
                    watch.look(bar, place)
                    yield
        method.kept, method.facts = state.kept, {**method.how(state), **watch.speed()}
        pixels = method.data.normalisation.to_uint8(state.images.detach())
        curve = thin(method.combine(state.losses.cpu()))
        self._result = {"images": pixels.cpu(), "curve": curve}
        if self._finish and self._path:
            self._finish(self, self._path)


class Watch:
    """Looks at the losses of a batch now and then, saves it, and shows how it goes."""

    def __init__(
        self, method: Optimised, batch: Batch, state: State, resume: Path, save_every: float
    ) -> None:
        self._method, self._batch, self._state = method, batch, state
        self._resume, self._save_every = resume, save_every
        self._first = state.done
        self._finite, self._finite_at = state.images.detach().clone(), state.done
        self._began = self._saved = self._looked = time.monotonic()
        self._live = Live(resume, state.done)

    def bar(self, place: Place | None) -> "tqdm[Any]":
        """Progress bar of the batch."""
        state, title = self._state, place.title(self._batch) if place else ""
        return progress(
            len(state.losses), title, "it", state.done, state.lane.number, shown=place is not None
        )

    def look(self, bar: "tqdm[Any]", place: Place | None) -> None:
        """Called after every step.

        Raises:
            TeddyError: a loss or an image is not finite.
        """
        state, now = self._state, time.monotonic()
        due = state.done % CHECK_EVERY == 0 or now - self._looked >= LOOK_SECONDS
        if not due and state.done != len(state.losses):
            return
        self._looked = now
        bad = first_non_finite(state.losses[self._finite_at : state.done])
        if bad is not None:
            self._refuse(self._finite_at + bad)
        if not state.images.detach().isfinite().all():  # of a finite loss's gradient
            self._refuse(state.done - 1)
        if self._live:
            self._show(self._finite_at)
        self._finite.copy_(state.images.detach())
        self._finite_at = state.done
        if place:
            total, images = len(state.losses), len(state.images)
            place.show(bar, state.done, self._first, total, images, self._began)
        if time.monotonic() - self._saved >= self._save_every:
            state.save(self._resume)
            self._saved = time.monotonic()

    def _show(self, since: int) -> None:
        """Means of the loss's terms over the steps since a look; images ten times a batch."""
        state, method, live = self._state, self._method, self._live
        done, total = state.done, len(state.losses)
        terms = method.combine(state.losses[since:done].cpu()).mean(0).tolist()
        live.numbers(done, {"loss": sum(terms), **dict(zip(method.terms, terms, strict=True))})
        if 10 * done // total > 10 * since // total:
            images = state.images.detach()[:IMAGES_SHOWN].cpu()  # no memory of the device is taken
            live.images(done, method.data.normalisation.to_uint8(images), 10)
        if done == total:
            live.close()

    def speed(self) -> Json:
        """How the batch ran; steps of an earlier, interrupted run are not counted."""
        state, seconds = self._state, time.monotonic() - self._began
        steps = state.done - self._first
        rate = steps / seconds if seconds else 0.0
        return {
            "images": len(state.images),
            "iterations": steps,
            "ms_per_iteration": round(1e3 * seconds / max(1, steps), 3),
            "images_per_second": round(rate * len(state.images), 1),
            "peak_mib": round(peak_mib(), 1),
            "batches_at_a_time": state.lane.beside + 1,
        }

    def _refuse(self, at: int) -> NoReturn:
        """Refuse a loss that is not finite, or images after a finite one; leave the images of the
        last look beside the resume point.
        """
        row = self._state.losses[at].cpu()
        value, what, blame = float(self._method.combine(row).sum()), "images are not finite by", ""
        if not math.isfinite(value):
            what, blame = f"loss is {value} at", self._method.blame(self._batch, at, row)
        path = self._resume.with_suffix(".last-finite.safetensors")
        record = {"iterations": self._finite_at}
        write_tensors(path, {"images": self._finite}, kind=_FINITE_KIND, record=record)
        raise TeddyError(
            f"synthesize: {what} iteration {at + 1} of {self._batch.name}{blame}; the images "
            f"after iteration {self._finite_at} are in {path}; try a smaller {self._method.rate}"
        )


def thin(losses: Tensor) -> Tensor:
    """At most ``_CURVE_POINTS`` evenly spaced iterations (1-based), the last one included."""
    total = len(losses)
    kept = torch.linspace(0, total - 1, min(total, _CURVE_POINTS)).round().to(torch.int64)
    return torch.cat([(kept + 1)[:, None].float(), losses[kept]], dim=1)


def first_non_finite(losses: Tensor) -> int | None:
    """Row of the first loss that is not finite; the one host–device sync of so many steps."""
    bad = torch.nonzero(~losses.isfinite().all(1))[:1, 0].tolist()
    return bad[0] if bad else None
