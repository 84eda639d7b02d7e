"""The command ``teddy``: one stage of the pipeline, by hand or by ``dvc.yaml``.

Neither PyTorch nor a stage is imported before its command line is understood.
"""

import argparse
import ast
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from teddy.core.ancestors import end_with_dvc
from teddy.core.console import run_command
from teddy.core.errors import TeddyError
from teddy.core.files import check_writable
from teddy.settings import stages
from teddy.settings.stages import read_settings
from teddy.sharing.commands import add_to

_TABLE = "folder to write the table, its rows and verdicts to"


@dataclass(frozen=True, slots=True)
class Command:
    """The command line of a stage, whose module has a function ``main`` of settings and options."""

    settings: type | None
    """Of its settings file; None if it has none."""
    reads: Mapping[str, str]
    """Options that name what it reads, and their help."""
    writes: Mapping[str, str]
    """Options that name what it writes, and their help; that of a folder begins with the word."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """More of the former that may be left out."""
    may_write: Mapping[str, str] = field(default_factory=dict)
    """More of the latter that may be left out."""
    computes: bool = True
    """Whether it needs PyTorch; if not, it starts in a fraction of a second."""
    parallel: bool = False
    """Whether all processes that torchrun has started work; otherwise the first does alone."""
    split: bool = False
    """Whether ``--split`` says what accuracy is measured on."""

    def check_outputs(self, args: argparse.Namespace) -> None:
        """Refuse what could not be written at the end, before hours are spent.

        Raises:
            TeddyError: an output cannot be written, or is an input or another output.
        """
        outputs = {**self.writes, **self.may_write}
        taken = {self._real(args, option): option for option in (*self.reads, *self.optional)}
        for option, text in outputs.items():
            path = getattr(args, option)
            if path is None:
                continue
            other = taken.setdefault(self._real(args, option), option)
            if other != option:
                raise TeddyError(
                    f"{path}: --{other} and --{option} are the same path; choose another for "
                    f"--{option}, which is written"
                )
            check_writable(path / "file" if text.startswith("folder") else path)

    @staticmethod
    def _real(args: argparse.Namespace, option: str) -> str | None:
        path = getattr(args, option)
        return None if path is None else os.path.realpath(path)


_DATA, _SET, _POOL = (
    {"data": "prepared dataset"},
    {"set": "folder of the distilled set's syntheses"},
    {"pool": "folder of the pool"},
)

COMMANDS = {
    "resolve": Command(
        None, {}, {"out": "folder to write"}, optional={"root": "folder of dvc.yaml (default: .)"},
        computes=False,
    ),
    "prepare": Command(stages.PrepareSettings, {}, {"out": "folder to write"}),
    "train_teacher": Command(
        stages.TrainTeacherSettings, _DATA,
        {"out": "folder for the checkpoints and their record",
         "curve": "JSON to write with the held-out accuracy of every checkpoint"},
        parallel=True,
    ),
    "build_pool": Command(
        stages.BuildPoolSettings,
        _DATA | {"base": "folder of the base run",
                 "curve": "record of the base run whose accuracies post members imitate"},
        {"out": "folder for the members and their manifest",
         "facts": "JSON to write with a copy of the manifest, for the report"},
        parallel=True,
    ),
    "train_experts": Command(
        stages.ExpertsSettings, _DATA,
        {"out": "folder for the experts, their trajectories and their manifest"}, parallel=True,
    ),
    "synthesize": Command(
        stages.SynthesizeSettings, _DATA | _POOL,
        {"out": "folder for the syntheses of the set, 0.safetensors and so on",
         "history": "JSON to write with the loss curve of every batch"},
        parallel=True,
    ),
    "relabel": Command(
        stages.RelabelSettings, _SET | _POOL,
        {"out": "folder for the labels of each synthesis and their manifest"},
        parallel=True,
    ),
    "evaluate": Command(
        stages.EvaluateSettings,
        _DATA | _SET | {"labels": "folder of the set's own soft labels",
                        "pool": "folder of the pool that labels, if not that of these"},
        {"out": "JSON to write with the accuracy of every student"},
        parallel=True, split=True,
    ),
    "train_step_teachers": Command(
        stages.StepTeachersSettings, _DATA,
        {"out": "folder for a folder of checkpoints per order and step, and their record"},
        parallel=True,
    ),
    "continual": Command(
        stages.ContinualSettings,
        _DATA | _SET | {"teachers": "folder of the pool, or of the teachers of each step"},
        {"out": "JSON to write with the accuracy of every order and step"},
        parallel=True, split=True,
    ),
    "target": Command(
        stages.TableSettings,
        {"evaluations": "folder of students' records", "paper": "the paper's numbers"},
        {"out": _TABLE}, may_write={"figure": "PNG to write, if any"}, computes=False,
    ),
    "measure_costs": Command(
        stages.MeasureCostsSettings,
        {"data": "folder of the prepared datasets", "pools": "folder of the pools"},
        {"out": "JSON to write"},
    ),
    "costs": Command(
        stages.SetsSettings, {"costs": "what was measured"},
        {"out": _TABLE, "figure": "PNG to write"}, computes=False,
    ),
    "learners": Command(
        stages.LearnersSettings, {"learners": "folder of the records of continual learning"},
        {"out": _TABLE, "figure": "PNG to write"}, computes=False,
    ),
    "grids": Command(
        stages.SetsSettings, {"sets": "folder of the distilled sets"},
        {"figures": "folder to write: <dataset>.png, and <dataset>_<method>.png for each set"},
        computes=False,
    ),
    "fig1": Command(
        stages.Fig1Settings, _DATA,
        {"out": "folder to write what was counted, the table and verdicts to",
         "figure": "PNG to write",
         "seconds": "JSON to write with what was timed, different in every run",
         "clock": "PNG to write with what was timed"},
    ),
    "fig5": Command(
        stages.Fig5Settings, _DATA,
        {"out": "folder to write all runs, the table and verdicts to", "figure": "PNG to write"},
        parallel=True,
    ),
    "theory": Command(
        stages.TheorySettings, {},
        {"report": "Markdown to write",
         "out": "folder to write a table of the number of checks to",
         "figures": "folder to write figures to"},
    ),
    "overview": Command(
        stages.OverviewSettings,
        {"teachers": "folder of the base runs' records", "pools": "folder of the pools' manifests",
         "syntheses": "folder of the loss curves of synthesis"},
        {"out": "folder to write the table and its rows to",
         "figures": "folder for figures and their points"},
        computes=False,
    ),
    "report": Command(
        stages.ReportSettings,
        {"evaluations": "folder of the students' records",
         "teachers": "folder of the base runs' records", "pools": "folder of the pools' manifests",
         "tables": "folder of the targets' tables and verdicts",
         "figures": "folder of their figures",
         "reference": "the paper's numbers and runs that are kept"},
        {"summary": "JSON to write with all metrics", "page": "HTML to write"},
        computes=False,
    ),
}  # fmt: skip
"""Stages in the order of ``dvc.yaml``."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage that the command line names."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if args.stage not in COMMANDS:
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.run(args)
        return
    name, command = args.stage, COMMANDS[args.stage]
    if rest and name != "resolve":  # which files are switched on; DVC runs it if these change
        parser.error(f"unrecognized arguments: {' '.join(rest)}")

    def stage() -> str:
        settings: object = command.settings and read_settings(command.settings, args.settings)
        command.check_outputs(args)
        return str(import_module(f"teddy.stages.{name}").main(settings, args))

    try:
        if command.computes:
            end_with_dvc(name)
            from teddy.core.runtime import run_stage

            run_stage(name, stage, parallel=command.parallel)
        else:
            run_command(name, stage)
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; the same command continues from here", file=sys.stderr)
        raise SystemExit(130) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="teddy",
        description="Run one stage of the pipeline (`dvc repro` runs all of them), or share a set.",
    )
    commands = parser.add_subparsers(dest="stage", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        about = _docstring(name)
        own = commands.add_parser(
            name, help=about.splitlines()[0], description=about, allow_abbrev=False
        )
        if command.settings:
            own.add_argument(
                "--settings", type=Path, required=True, metavar="FILE",
                help="what the stage reads of the parameters, written by the stage resolve",
            )  # fmt: skip
        optional = {**command.optional, **command.may_write}
        for option, text in {**command.reads, **command.writes, **optional}.items():
            required = option not in optional
            own.add_argument(f"--{option}", type=Path, required=required, metavar="PATH", help=text)
        if command.split:
            text = "real images that accuracy is measured on (default: %(default)s)"
            own.add_argument("--split", choices=("val", "test"), default="test", help=text)
    add_to(commands)
    return parser


def _docstring(stage: str) -> str:
    """Of a stage's module, which is not imported."""
    spec = find_spec(f"teddy.stages.{stage}")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""
