"""Hours and bytes of a table before it is run, counted from its settings alone.

``python -m tools.predict recipes@imagenet-1k --train 1281167 --test 50000 --tflops 100`` counts the
multiply-accumulates of everything that the table needs of a dataset that is switched on: training
of teachers, images, labels and students. The hours are those of one device that keeps up so many
floating-point operations; what waits for disks, data or other processes is not in them.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from teddy.core.console import parser, run_command
from teddy.core.errors import TeddyError
from teddy.core.tables import Column, Table, write_text
from teddy.settings.baselines import MosaicConfig
from teddy.settings.configs import CoresetConfig, NetworkConfig, PlusConfig, SynthesizeConfig
from teddy.settings.declared import Declared
from teddy.settings.schema import suggest
from teddy.students.label_budget import label_bytes
from teddy.teachers.networks import build
from teddy.teachers.pruning import count_macs

_TRAINING = 3
"""Passes of an image's step: forward, and backward twice, to weights and to activations."""
_TO_PIXELS = 2
"""Forward, and backward to activations alone."""
_SHARE = 0.5
"""Of the epochs that a post teacher may have, which end when its accuracy is reached: a guess."""


class Part(NamedTuple):
    """What a row costs."""

    stage: str
    name: str
    macs: float
    """Multiply-accumulates of all its syntheses and students."""
    bytes: int = 0
    """What it leaves on the disk."""


class Prediction:
    """Costs of a dataset's rows.

    Args:
        declared: all parameter files.
        train: real training images.
        test: real test images.
    """

    def __init__(self, declared: Declared, train: int, test: int) -> None:
        self._declared, self._train, self._test = declared, train, test
        self._known: dict[tuple[NetworkConfig, str], int] = {}

    def of_target(self, target: str, dataset: str) -> list[Part]:
        """Everything that a table needs, each row once, in the order of the pipeline.

        Raises:
            TeddyError: it shows a method whose cost is not known here.
        """
        declared, names = self._declared, self._declared.shown(target, dataset)
        rows = [declared.evaluation(name) for name in names]
        sets = dict.fromkeys(row.set for row in rows)
        for name in sets:
            if (known := declared.sets[name]).pool not in declared.pools:
                raise TeddyError(_unknown(name, known.method))
        pools = dict.fromkeys(
            [*(declared.sets[name].pool for name in sets), *(row.pool for row in rows)]
        )
        bases = dict.fromkeys(
            base for pool in pools for base in (declared.pools[pool].base, self._curve(pool))
        )
        return [
            *map(self._base, bases), *map(self._pool, pools), *map(self._set, sets),
            *(part for name in names for part in self._students(name)),
        ]  # fmt: skip

    def _curve(self, pool: str) -> str:
        row = self._declared.pools[pool]
        return row.curve if row.kind == "post" else row.base

    def _base(self, name: str) -> Part:
        config, data = self._declared.train_teacher(name), self._declared.bases[name].data
        epochs = 0 if config.checkpoint else config.epochs
        passes = epochs * self._train * _TRAINING
        return Part("train_teacher", name, passes * self._macs(config.network, data))

    def _pool(self, name: str) -> Part:
        post, passes = self._declared.pool(name).post, 0.0
        if self._declared.pools[name].kind == "post" and post is not None:
            epochs = post.size * post.max_epochs * _SHARE
            passes = epochs * self._train * _TRAINING * (1 - post.pruning_ratio)
        return Part("build_pool", name, passes * self._of_pool(name))

    def _set(self, name: str) -> Part:
        declared, row = self._declared, self._declared.sets[name]
        config, images = declared.algorithm_config(name), declared.prepare(row.data)
        made, passes = row.ipc * images.num_classes, 0.0
        if isinstance(config, SynthesizeConfig):  # residual images are smaller for a while
            passes = made * config.iterations * config.draw * _TO_PIXELS
        elif isinstance(config, PlusConfig):
            real = config.real_images * images.num_classes
            passes = config.iterations * (made * config.views_per_image * _TO_PIXELS + real)
        elif isinstance(config, CoresetConfig):
            passes = self._train * declared.pool_size(row.pool)
        elif isinstance(config, MosaicConfig):
            passes = config.candidates * config.crops * images.num_classes
        elif row.method != "random":
            raise TeddyError(_unknown(name, row.method))
        syntheses, pixels = declared.syntheses(name), images.channels * images.image_size**2
        work = syntheses * passes * self._of_pool(row.pool)
        return Part("synthesize", name, work, syntheses * made * pixels)

    def _students(self, name: str) -> Iterator[Part]:
        declared, row = self._declared, self._declared.evaluation(name)
        relabel, config = declared.relabel(name), declared.evaluate(name)
        syntheses, classes = declared.syntheses(row.set), declared.prepare(row.data).num_classes
        images = row.ipc * classes
        if set(row.labels) - {"hard"}:
            members = row.members or declared.pool_size(row.pool)
            epochs = relabel.label_epochs or relabel.epochs
            work = syntheses * images * epochs * members * self._of_pool(row.pool)
            size = syntheses * label_bytes(relabel, images, classes) if relabel.store else 0
            yield Part("relabel", name, work, size)
        looks = -(-relabel.epochs // config.eval_epochs)
        passes = images * relabel.epochs * _TRAINING + self._test * looks
        students = syntheses * len(config.seeds) * len(row.labels)
        yield Part("evaluate", name, students * passes * self._macs(config.network, row.data))

    def _of_pool(self, pool: str) -> int:
        row = self._declared.pools[pool]
        return self._macs(self._declared.train_teacher(row.base).network, row.data)

    def _macs(self, network: NetworkConfig, data: str) -> int:
        if (network, data) not in self._known:
            images = self._declared.prepare(data)
            shape = (images.channels, images.image_size, images.image_size)
            built = build(network, shape, images.num_classes, seed=0)
            self._known[network, data] = count_macs(built, shape)
        return self._known[network, data]


def _unknown(name: str, method: str) -> str:
    return f"sets.{name}: what {method} costs is not known before it runs; predict another table"


def table(title: str, found: Sequence[Part], tflops: float) -> Table:
    """Hours and bytes by stage, and of everything."""
    columns = (
        Column("stage", text=True), Column("rows"), Column("hours", spec=".2f"),
        Column("largest", spec=".2f"), Column("bytes", spec=","),
    )  # fmt: skip
    per_hour = tflops * 1e12 / 2 * 3600
    stages = dict.fromkeys(part.stage for part in found)
    groups = [(stage, [part for part in found if part.stage == stage]) for stage in stages]
    rows = [
        (
            name, len(own), sum(p.macs for p in own) / per_hour,
            max(p.macs for p in own) / per_hour, sum(p.bytes for p in own),
        )
        for name, own in [*groups, ("all", list(found))]
    ]  # fmt: skip
    note = (
        f"Counted from the settings, not measured: hours of one device at {tflops:g} TFLOP/s "
        "throughout, the most of a row under largest; bytes of images (uint8) and stored labels."
    )
    return Table(title, columns, tuple(rows), (note,))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("target", metavar="TARGET@DATASET", help="such as recipes@tiny-imagenet")
    options.add_argument("--train", type=int, required=True, help="training images")
    options.add_argument("--test", type=int, required=True, help="test images")
    options.add_argument(
        "--tflops", type=float, default=100.0,
        help="floating-point operations a second that the device keeps up, in 10^12 (default: "
        "%(default)g)",
    )  # fmt: skip
    options.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    args = options.parse_args(argv)
    run_command("predict", lambda: _predict(args))


def _predict(args: argparse.Namespace) -> str:
    target, _, dataset = args.target.partition("@")
    declared = Declared(Path())
    known = [f"{name}@{of}" for name, rows in declared.targets.items() for of in rows]
    if args.target not in known:
        raise TeddyError(
            f"no target {args.target!r} of a dataset that is switched on; "
            f"{suggest(args.target, known)}"
        )
    found = Prediction(declared, args.train, args.test).of_target(target, dataset)
    text = table(f"What {args.target} takes", found, args.tflops).markdown()
    if args.out:
        write_text(args.out, f"# What a table takes\n\n{text}")
    print(text)
    return f"{len(found)} parts counted"


if __name__ == "__main__":
    main()
