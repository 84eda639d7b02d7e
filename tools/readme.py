"""Write results into README.md and docs, so that no number there is typed by hand.

A block ``<!-- results of metrics/bench/targets.md … -->`` to ``<!-- /results -->`` gets what stands
before the file's tables and its first table.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from teddy.core.console import parser, run_command
from teddy.core.errors import TeddyError
from teddy.core.files import atomic_path

FILES = [
    Path("README.md"), Path("docs/experiments.md"), Path("docs/gpu.md"), Path("docs/sharing.md")
]  # fmt: skip
"""Those that have blocks."""
_BLOCK = re.compile(r"(<!-- results of ([^\s,]+)[^>]*-->\n).*?(<!-- /results -->)", re.DOTALL)


def with_results(file: Path, root: Path) -> str:
    """Text of a file with the first table of the file that each block names, its notes included.

    Args:
        file: that has blocks.
        root: what the blocks' paths are relative to.

    Raises:
        TeddyError: the file is not there or has no block, or a block's file is not there.
    """
    if not file.is_file():
        raise TeddyError(f"{file}: not found")
    text = file.read_text(encoding="utf-8")
    if not _BLOCK.search(text):
        raise TeddyError(f"{file}: expected <!-- results of FILE --> and <!-- /results -->")
    return _BLOCK.sub(lambda match: match[1] + _first_table(root / match[2]) + match[3], text)


def _first_table(path: Path) -> str:
    if not path.is_file():
        raise TeddyError(f"{path}: not found; run the pipeline first")
    before, first, *_ = path.read_text(encoding="utf-8").split("\n## ")
    title, table = first.split("\n", 1)
    lead = "".join(f"{line}\n" for line in before.splitlines()[1:] if line.strip())
    parts = [lead.rstrip(), f"**{title}**\n{table.rstrip()}"]
    return "\n" + "\n\n".join(part for part in parts if part) + "\n\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument(
        "files", nargs="*", type=Path, default=FILES, help=f"default: {' '.join(map(str, FILES))}"
    )
    args = options.parse_args(argv)

    def command() -> str:
        for path in args.files:
            text = with_results(path, Path())
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return f"wrote {', '.join(map(str, args.files))}"

    run_command("readme", command)


if __name__ == "__main__":
    main()
