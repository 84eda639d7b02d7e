"""How a command that computes nothing runs: refusals in one line, and how long it took.

What :func:`teddy.core.runtime.run_stage` is to stages that train, without PyTorch and its devices.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from teddy.core.errors import TeddyError
from teddy.core.files import Json


def run_command(name: str, main: Callable[[], str]) -> None:
    """Run ``main``, which returns a summary; a timing goes to ``logs/``, which no stage reads."""
    start = time.perf_counter()
    try:
        summary = main()
    except TeddyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    seconds = time.perf_counter() - start
    print(f"{name} {summary} ({seconds:.1f} s)", file=sys.stderr)
    append_line(name, {"stage": name, "summary": summary, "seconds": round(seconds, 3)})


def append_line(name: str, record: Json) -> None:
    """Append a line to ``logs/<name>.jsonl``, if that can be written."""
    with contextlib.suppress(OSError):
        logs_folder().mkdir(parents=True, exist_ok=True)
        with (logs_folder() / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def logs_folder() -> Path:
    """Where timings go, ``$TEDDY_LOGS`` or ``logs``; no stage reads them."""
    return Path(os.environ.get("TEDDY_LOGS", "logs"))


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Parser that shows a module's docstring as help."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parse(
    doc: str | None,
    argv: Sequence[str] | None,
    *,
    split: bool = False,
    optional: Mapping[str, str] | None = None,
    **paths: str,
) -> argparse.Namespace:
    """Parse a stage's command line: ``--settings`` and paths.

    Args:
        doc: the stage's module docstring, shown as help.
        argv: arguments, or None for those of the process.
        split: whether there is an option for the split that accuracy is measured on.
        optional: path options that may be left out, and their help.
        paths: required path options and their help.
    """
    made = parser(doc)
    made.add_argument(
        "--settings", type=Path, required=True, metavar="FILE",
        help="what the stage reads of the parameters, written by the stage resolve",
    )  # fmt: skip
    for option, text in paths.items():
        made.add_argument(f"--{option}", type=Path, required=True, help=text)
    for option, text in (optional or {}).items():
        made.add_argument(f"--{option}", type=Path, help=text)
    if split:
        text = "real images that accuracy is measured on (default: %(default)s)"
        made.add_argument("--split", choices=("val", "test"), default="test", help=text)
    return made.parse_args(argv)
