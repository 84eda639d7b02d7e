"""What all stage commands share: the argument parser and the fingerprints of inputs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from teddy.artifacts import digest


def parse(
    doc: str | None, argv: Sequence[str] | None, name: str, *, split: bool = False, **paths: str
) -> argparse.Namespace:
    """Parse a stage's command line.

    Args:
        doc: the stage's module docstring, shown as help.
        argv: arguments, or None for those of the process.
        name: what the positional argument names, "" for none.
        split: whether there is an option for the split that accuracy is measured on.
        paths: required path options and their help.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if name:
        parser.add_argument("name", help=name)
    for option, text in paths.items():
        parser.add_argument(f"--{option}", type=Path, required=True, help=text)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)"
    )
    if split:
        text = "real images that accuracy is measured on (default: %(default)s)"
        parser.add_argument("--split", choices=("val", "test"), default="test", help=text)
    return parser.parse_args(argv)


def manifest_digest(folder: Path) -> str:
    """Checksum that stands for a whole folder, since its manifest has those of its files."""
    return digest(folder / "manifest.json")
