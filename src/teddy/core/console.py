"""How a command that computes nothing runs: refusals in one line, and how long it took.

What :func:`teddy.core.runtime.run_stage` is to stages that train, without PyTorch and its devices.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
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
        path = logs_folder() / f"{name}.jsonl"
        if path.is_file() or not path.exists():  # a pipe would wait for its other end
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def logs_folder() -> Path:
    """Where timings go, ``$TEDDY_LOGS`` or ``logs``; no stage reads them."""
    return Path(os.environ.get("TEDDY_LOGS") or "logs")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Parser that shows a module's docstring as help."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
