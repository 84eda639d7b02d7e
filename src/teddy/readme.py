"""Write the report's results into README.md, so that no number there is typed by hand."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from teddy.artifacts import atomic_path
from teddy.errors import TeddyError

_MARKS = re.compile(r"(<!-- results:[^>]*-->\n).*?(<!-- /results -->)", re.DOTALL)


def with_results(readme: str, table: str) -> str:
    """README text with the first table of ``table1.md``, its notes included, between the marks.

    Raises:
        TeddyError: the README has no marks.
    """
    if not _MARKS.search(readme):
        raise TeddyError("README.md: expected <!-- results: … --> and <!-- /results -->")
    first = table.split("\n## ")[1].split("\n", 1)
    block = f"\n**{first[0]}**\n{first[1].rstrip()}\n\n"
    return _MARKS.sub(lambda match: match[1] + block + match[2], readme)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--table", type=Path, default=Path("metrics/tables/table1.md"))
    args = parser.parse_args(argv)
    text = with_results(args.readme.read_text("utf-8"), args.table.read_text("utf-8"))
    with atomic_path(args.readme) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
