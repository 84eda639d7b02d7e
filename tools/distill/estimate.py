"""How long a run will take here: steps of each kind are tried on noise, then multiplied."""

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from teddy.core.files import read_json, write_json
from teddy.core.runtime import cores, for_each, pick_device, use_threads, workers_for
from teddy.data.decoding import decode
from teddy.data.distilled import DistilledSet
from teddy.data.images import Images, Normalisation
from teddy.settings.declared import Declared
from teddy.sharing.training_set import Loader, Recipe, TrainingSet
from teddy.students.labels import OnlineLabels, TrainingViews
from teddy.teachers import training
from teddy.teachers.networks import build
from tools.distill.found import Survey
from tools.distill.plan import PARTS, sets_of

_SECONDS = 0.6
"""Of measuring each kind of step, at least."""
_FILES = 32  # that are decoded
_STAGE_SECONDS = 0.5
"""What a stage takes beside its work: reading, checking and writing."""
_POOL_SECONDS = 3.0
"""Of counting the operations of its members, for which a library is imported."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds per image on this machine."""

    decode: float
    """Of reading one, by all cores."""
    teach: float
    """Of a training step of the teachers' network, by all cores."""
    label: float
    """Of a view labelled by the whole pool, by one of the processes that share the work."""
    learn: float
    """Of a training step of a student, likewise."""


def measure(declared: Declared, name: str, ipc: int, found: Survey) -> Rates:
    """Take a few steps of each kind.

    Args:
        declared: settings of the run.
        name: of the dataset.
        ipc: images per class.
        found: what the images are like.
    """
    row = sets_of(name, ipc)["teddy-plus"]
    base, evaluate = declared.train_teacher(f"{name}/base"), declared.evaluate(row)
    prepare, relabel = declared.prepare(name), declared.relabel(row)
    device, classes = pick_device(), len(found.classes)
    shape = (prepare.channels, prepare.image_size, prepare.image_size)
    unit = Normalisation((0.5,) * shape[0], (0.25,) * shape[0])

    def noise(count: int) -> Images:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
        return Images(pixels, torch.arange(count) % classes)

    def teach() -> float:
        use_threads(device, shape)
        images = noise(min(base.batch_size, found.train)).to(device)
        batches = training.real_batches(images, unit, base.views, base.batch_size, 0)
        network = build(base.network, shape, classes, 0)
        return _step(network, base.optimizer, batches, base.precision) / len(images)

    count = min(classes * ipc, evaluate.batch_size)

    def learn() -> float:
        images = noise(count)
        names = tuple(map(str, range(classes)))
        made = DistilledSet(images.images, images.labels, names, unit, {})
        data = TrainingSet(made, Path(name), Recipe(seed=0, relabel=relabel, evaluate=evaluate))
        loader, network = Loader(data, None, False, device, 0), data.network()
        epochs = relabel.epochs
        steps = _step(
            network, evaluate.optimizer, lambda step: loader.steps_of(step % epochs),
            evaluate.precision,
        )  # fmt: skip
        return steps / len(images)

    def label() -> float:
        members = len(declared.prior_epochs(f"{name}/prior"))
        teachers = [
            build(base.network, shape, classes, i).to(device).eval() for i in range(members)
        ]
        views = TrainingViews(noise(count).to(device), unit, relabel, 0)
        labels = OnlineLabels(views, teachers)
        return _mean(lambda number: labels.epoch(number % relabel.epochs)) / count

    decoded = 0.0
    files = found.files[:_FILES]
    if files:
        start = time.perf_counter()
        decode(Path(files[0].anchor), [str(file) for file in files], shape[1], shape[0], "sample")
        decoded = (time.perf_counter() - start) / len(files)
    return Rates(decoded, teach(), *_side_by_side([label, learn]))


def _step(network: torch.nn.Module, optimizer: object, batches: object, precision: str) -> float:
    """Seconds of an epoch of one step, by the loop that trains everything."""
    times = list[float]()

    def after_epoch(_: int) -> dict[str, object]:
        times.append(time.perf_counter())
        return {}

    run = training.Run(
        name="measure", seed=0, epochs=10**6, steps_per_epoch=1, batches=batches,  # type: ignore[arg-type]
        after_epoch=after_epoch, precision=precision, resume=Path(os.devnull, "none"),
        save_every_seconds=math.inf,
        stop=lambda _: len(times) > 2 and times[-1] - times[0] >= _SECONDS,
    )  # fmt: skip
    training.fit(network, optimizer, run, pick_device())  # type: ignore[arg-type]
    return (times[-1] - times[0]) / (len(times) - 1)


def _mean(work: Callable[[int], object]) -> float:
    """Seconds of a call, but of the first."""
    work(0)
    start, calls = time.perf_counter(), 0
    while calls < 1 or time.perf_counter() - start < _SECONDS:
        calls += 1
        work(calls)
    return (time.perf_counter() - start) / calls


def _side_by_side(measures: Sequence[Callable[[], float]]) -> list[float]:
    """Each in as many processes as the stages use, which take memory's time from each other."""
    device, found = pick_device(), list[float]()
    workers = workers_for(cores(), device)
    with tempfile.TemporaryDirectory() as folder:
        for place, own in enumerate(measures):

            def task(index: int, place: int = place, own: Callable[[], float] = own) -> None:
                write_json(Path(folder) / f"{place}-{index}.json", {"seconds": own()})

            for_each(workers, task, device)
            files = [Path(folder) / f"{place}-{index}.json" for index in range(workers)]
            found.append(sum(float(read_json(file)["seconds"]) for file in files) / workers)
    return found


def predict(
    declared: Declared, name: str, ipc: int, found: Survey, rates: Rates, workers: int
) -> dict[str, float]:
    """Seconds of every stage, all its rows together.

    Args:
        declared: settings of the run.
        name: of the dataset.
        ipc: images per class.
        found: how many images there are.
        rates: of this machine.
        workers: processes that share the work of a stage.
    """
    row = sets_of(name, ipc)["teddy-plus"]
    base, evaluate = declared.train_teacher(f"{name}/base"), declared.evaluate(row)
    plus, relabel = declared.algorithm_config(row), declared.relabel(row)
    members = len(declared.prior_epochs(f"{name}/prior"))
    syntheses, classes = declared.syntheses(row), len(found.classes)
    images, look = classes * ipc, rates.label / members
    chunks = math.ceil(classes / plus.classes_per_batch)
    batch = math.ceil(classes / chunks) * ipc
    students = len(declared.evaluation(row).labels) * len(evaluate.seeds)
    tests = math.ceil(relabel.epochs / evaluate.eval_epochs) + 1
    real = found.train + members * min(found.train, classes * plus.real_images)
    seconds = {
        "prepare": rates.decode * found.images,
        "train_teacher": base.epochs * (found.train * rates.teach + found.val * look),
        "build_pool": _POOL_SECONDS,
        "synthesize": syntheses * (
            math.ceil(chunks / workers) * plus.iterations * batch * plus.views_per_image
            * rates.learn + real * look
        ),
        "relabel": 2 * syntheses * relabel.epochs * images * rates.label / workers,
        "evaluate": 2 * syntheses * math.ceil(students / workers) * (
            relabel.epochs * images * rates.learn + tests * found.test * look
        ),
    }  # fmt: skip
    return {stage: value + _STAGE_SECONDS for stage, value in seconds.items()}


def by_part(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of stages summed over what they are parts of."""
    found: dict[str, float] = {}
    for stage, part in PARTS.items():
        if stage in seconds:
            found[part] = found.get(part, 0.0) + seconds[stage]
    return found


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
