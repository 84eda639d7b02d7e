"""``python -m tools.distill``: see :mod:`tools.distill`."""

import argparse
import contextlib
import itertools
import math
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from teddy.core.environment import check_environment
from teddy.core.errors import TeddyError
from teddy.core.files import read_json, write_json
from teddy.core.hardware import processor
from teddy.core.runtime import cores, log, pick_device, workers_for
from teddy.data.sources import load
from teddy.settings.configs import PrepareConfig
from teddy.settings.declared import Declared
from teddy.settings.schema import from_json, read_yaml
from teddy.stages import commands
from teddy.stages.resolve import write_inputs
from tools import by_hand
from tools.distill import parquet
from tools.distill.estimate import by_part, duration, measure, predict
from tools.distill.found import Survey, described, fingerprint, in_colour, recognise, survey
from tools.distill.plan import (
    ROOT,
    Machine,
    Wanted,
    check_folder,
    choose,
    joined,
    name_of,
    overrides,
    sets_of,
    write_checkout,
    write_record,
)
from tools.distill.results import write_results
from tools.repro import refuse_unfit

_MADE = Path("made.json")
_ASK_FROM = 1800.0
"""Seconds of a run that is asked about before it begins."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    start = time.monotonic()
    try:
        check_environment()
        files = distill(args)
    except TeddyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\ndistill: stopped; the same command continues from here", file=sys.stderr)
        raise SystemExit(130) from None
    table, sheet, bundle, prepared = files
    print(table.read_text(encoding="utf-8"))
    print(f"Table: {table}   Images: {sheet}   Bundle: {bundle}")
    print(next_step(bundle, prepared))
    log(f"distill: done in {duration(time.monotonic() - start)}")


def next_step(bundle: Path, prepared: Path) -> str:
    """What to do with a bundle, ready to be pasted into a shell, or into Python."""
    paths = f"{shlex.quote(str(bundle))} --data {shlex.quote(str(prepared))}"
    return f"Next: teddy verify {paths}\nor, in Python: teddy.load({str(bundle)!r})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.distill", description=sys.modules["tools.distill"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("data", type=Path, help="folder or file of the images")
    parser.add_argument(
        "--ipc", type=int, default=10, help="distilled images per class (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for everything that is made (default: distilled/<name>)"
    )
    parser.add_argument(
        "--quick", action="store_true",
        help="a quarter of the epochs and one student: to see whether everything works",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=int, default=0,
        help="of the base run, which the teachers come from (default: by the number of images)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=int, default=0,
        help="side of the squares that networks see, pixels (default: by the images' own size)",
    )  # fmt: skip
    parser.add_argument(
        "--syntheses", type=int, default=1,
        help="how often each set is made, labelled and learnt from (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="any setting of docs/parameters.md, such as prepare.on_unreadable=skip; may be "
        "given several times",
    )  # fmt: skip
    parser.add_argument(
        "--yes", action="store_true", help="do not ask before a run of more than half an hour"
    )
    return parser


def distill(args: argparse.Namespace) -> list[Path]:
    """Make everything; what a former run has made of the same is kept.

    Returns:
        The table, the contact sheet, the bundle and the prepared images.

    Raises:
        TeddyError: the images or the options are not what they should be.
    """
    for option, least in (("ipc", 1), ("syntheses", 1), ("epochs", 0), ("image_size", 0)):
        if getattr(args, option) < least:
            raise TeddyError(
                f"--{option.replace('_', '-')} must be at least {least}, got "
                f"{getattr(args, option)}"
            )
    home = args.data.parts[:1] == ("~",)  # quoted, so that no shell has seen it
    data = (args.data.expanduser() if home else args.data).resolve()
    named = name_of(data)
    out = (args.out or Path("distilled", named)).expanduser()
    wanted = Wanted(args.ipc, args.quick, args.epochs, args.image_size, args.syntheses)
    changes = overrides(args.changes)
    with leaving_nothing(out.absolute()):
        found, config = _look(data, out.absolute(), changes)
        settings = joined(_settings(data, found, config, wanted), changes)
        _check_ipc(found, args.ipc, settings)
        check_settings(named, found, settings, wanted)
        log(f"distill: {data}: {described(found)}")
        log(f"distill: {_colours_in_words(found, changes, settings)}")
        write_record(out, data)
        write_checkout(out, named, found, settings, wanted)
        with contextlib.chdir(out):
            files = _run(named, found, args.ipc, args.yes)
    return [out / file for file in files]


@contextlib.contextmanager
def leaving_nothing(out: Path) -> Iterator[None]:
    """Remove what a refused run has written, unless a stage has made something or did before.

    Args:
        out: folder of the run, absolute.
    """
    new = [path for path in (out, *out.parents) if not path.exists()]
    fresh = bool(new) or (out.is_dir() and not any(out.iterdir()))
    try:
        yield
    except (TeddyError, SystemExit) as error:
        stopped = isinstance(error, SystemExit) and error.code == 130  # by Ctrl-C, to go on later
        if fresh and not stopped and not (out / _MADE).exists():
            with contextlib.suppress(OSError):  # not there, or somebody else's by now
                for path in out.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                for path in new:
                    path.rmdir()
        raise


def check_settings(
    name: str, found: Survey, settings: Mapping[str, object], wanted: Wanted
) -> None:
    """Refuse settings in a folder for the purpose, so that a former run's are left alone.

    Raises:
        TeddyError: a setting is unknown, out of range, or does not fit the others.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_checkout(Path(), name, found, settings, wanted)
        try:
            write_inputs(Path(), Path("inputs"))
            refuse_unfit(call.name for call in _calls())
        except TeddyError as error:  # the rules' own settings fit
            reason = str(error).removeprefix(f"params/{name}.yaml: ")
            raise TeddyError(f"--set: {reason}") from None


def _calls() -> list[by_hand.Call]:
    """What is to be made in the current folder, in order."""
    return by_hand.Pipeline(Path()).needed(["fig4-6-7", "evaluate"])


def _look(data: Path, out: Path, changes: dict[str, object]) -> tuple[Survey, PrepareConfig]:
    """What the images are like, and how they are read."""
    found = recognise(data)
    check_folder(out, data)
    own = _own(changes)
    defaults = dict(read_yaml(ROOT / "params.yaml")["prepare"]) | {"val_fraction": 0.1}
    known: dict[str, object] = {"source": found.source, "root": str(found.root)}
    if found.source == "parquet":
        from_json(PrepareConfig, defaults | {"source": "list"} | own, "prepare")
        write_record(out, data)
        files = fingerprint(parquet.files_in(found.root))
        listed, classes = parquet.unpack(found.root, out / "unpacked", files)
        known = {"source": "list", "root": str(listed), "classes": classes}
    config = from_json(PrepareConfig, defaults | known | own, "prepare")
    raw = load(config)
    if raw.test is None and not config.test_fraction:
        config = replace(config, test_fraction=0.2)
    seen = survey(raw, config, Path(config.root), read_yaml(ROOT / "params.yaml")["seed"])
    return (replace(seen, channels=config.channels) if "channels" in own else seen), config


def _own(changes: Mapping[str, object]) -> dict[str, object]:
    """What ``--set`` says of preparing."""
    own = changes.get("prepare", {})
    assert isinstance(own, dict)
    return own


def _colours_in_words(
    found: Survey, changes: Mapping[str, object], settings: Mapping[str, object]
) -> str:
    plus = settings["plus"]
    assert isinstance(plus, dict)
    return in_colour(found, "channels" in _own(changes), plus["views"]["hflip"])


def _settings(
    data: Path, found: Survey, config: PrepareConfig, wanted: Wanted
) -> dict[str, object]:
    """Title, where the images are, and what their size says."""
    machine = Machine(pick_device().type != "cpu", cores())
    made = choose(found, wanted, machine)
    title = " ".join(data.name.split())
    made["prepare"] |= {
        "source": config.source, "root": config.root, "classes": list(config.classes),
    }  # fmt: skip
    return {"title": title if title.isprintable() and title else "own images", **made}


def _check_ipc(found: Survey, ipc: int, settings: dict[str, object]) -> None:
    prepare = settings["prepare"]
    assert isinstance(prepare, dict)
    few = prepare.get("small_classes", "refuse") == "refuse" and ipc > found.smallest
    if few:
        raise TeddyError(
            f"--ipc {ipc}: class {found.smallest_class!r} has {found.smallest} images to train on; "
            f"choose {found.smallest} or fewer, or --set prepare.small_classes=fewer"
        )


def _run(name: str, found: Survey, ipc: int, yes: bool) -> list[Path]:
    """Everything from settings to results, in the folder of the run."""
    commands.main(["resolve", "--out", "inputs"])
    declared, calls = Declared(Path()), _calls()
    made = read_json(_MADE) if _MADE.is_file() else {}
    left = list(itertools.dropwhile(lambda call: by_hand.is_made(call, made), calls))
    predicted = _predicted(declared, name, ipc, found, anew=bool(left))
    if left:
        _say(predicted, calls, left, _settings_in_words(declared, name, ipc))
        seconds = sum(_of_calls(predicted, calls, left).values())
        if not yes:
            ask(seconds)
    for call in left:
        log(f"[{calls.index(call) + 1}/{len(calls)}] {call.name}")
        by_hand.run([call], math.inf, _MADE)
    return write_results(name, ipc, predicted)


def ask(seconds: float) -> None:
    """Ask whether to begin a run that will take long, if somebody is there to answer.

    Raises:
        TeddyError: the answer is no.
    """
    if seconds <= _ASK_FROM or not sys.stdin.isatty():
        return
    try:
        answer = input("Go on? [Y/n] ").strip().lower()
    except EOFError:
        answer = "n"
    if answer not in ("", "y", "yes"):
        raise TeddyError("stopped before anything was made; --quick takes less time")


def _predicted(
    declared: Declared, name: str, ipc: int, found: Survey, anew: bool
) -> dict[str, float]:
    """Seconds of every stage: measured now, or what a former run has measured."""
    path = Path("work", f"predicted-ipc{ipc}.json")
    if anew or not path.is_file():
        rates = measure(declared, name, ipc, found)
        workers = workers_for(cores(), pick_device())
        write_json(path, predict(declared, name, ipc, found, rates, workers))
    return read_json(path)


def _of_calls(
    predicted: dict[str, float], calls: Sequence[by_hand.Call], left: Sequence[by_hand.Call]
) -> dict[str, float]:
    """Seconds of stages as far as they are not made yet; their rows take equal times."""
    rows, rest = (Counter(call.stage for call in some) for some in (calls, left))
    return {stage: value * rest[stage] / rows[stage] for stage, value in predicted.items()}


def _settings_in_words(declared: Declared, name: str, ipc: int) -> str:
    row = sets_of(name, ipc)["teddy-plus"]
    base, students = declared.train_teacher(f"{name}/base"), declared.evaluate(row)
    size = declared.prepare(name).image_size
    members = len(declared.prior_epochs(f"{name}/prior"))
    return (
        f"{size}×{size} pixels, {base.network.arch}, {base.epochs} epochs of teachers of which "
        f"{members} label, {declared.relabel(row).epochs} epochs of students, "
        f"{declared.syntheses(row)} × {len(students.seeds)} of each kind"
    )


def _say(
    predicted: dict[str, float], calls: Sequence[by_hand.Call], left: Sequence[by_hand.Call],
    chosen: str,
) -> None:  # fmt: skip
    device, seconds = pick_device(), by_part(_of_calls(predicted, calls, left))
    where = f"{cores()} cores of {processor()}"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    each = ", ".join(f"{part} {duration(own)}" for part, own in seconds.items() if own)
    rest = f" for the {len(left)} of {len(calls)} stages left" if len(left) < len(calls) else ""
    log(f"distill: {chosen}")
    log(f"distill: about {duration(sum(seconds.values()))}{rest} on {where}: {each}")


if __name__ == "__main__":
    main()
