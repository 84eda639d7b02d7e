"""Commands of ``teddy`` that are no stages: what to do with a set that is finished.

PyTorch is not imported before a command line is understood.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from teddy.core.console import run_command
from teddy.core.errors import TeddyError

NAMES = ("pack", "verify", "export", "import")
"""Of the commands."""
FORMATS = ("imagefolder", "parquet", "pt", "fkd")
_FORMATS_HELP = (
    "class folders of images, Parquet as Hugging Face's datasets reads it, tensors as "
    "trajectory-matching papers publish them, or SRe2L's FKD: images and soft labels of their views"
)


def add_to(commands: Any) -> None:
    """Add the commands to those of ``teddy``.

    Args:
        commands: what ``add_subparsers`` returned.
    """
    pack = _add(commands, "pack", _pack, "Pack a distilled set into one folder or .zip.")
    pack.add_argument("set", type=Path, help="data/distilled/<row>, or a bundle's file there")
    pack.add_argument("--out", type=Path, help="folder or .zip to write (default: the row's name)")
    pack.add_argument("--synthesis", type=int, help="which of the row's (default: the first)")
    pack.add_argument("--teachers", action="store_true", help="put the pool's weights into it")
    pack.add_argument(
        "--label-epochs", type=_positive, metavar="S",
        help="keep the soft labels of S epochs, whose views students then see again and again",
    )  # fmt: skip
    pack.add_argument(
        "--label-bits", type=int, choices=(8, 16), help="8 rounds soft labels to so many bits"
    )
    pack.add_argument(
        "--label-top-k", type=_positive, metavar="K",
        help="keep the K largest classes of a soft label; the others share one value",
    )  # fmt: skip

    verify = _add(
        commands, "verify", _verify,
        "Compare a bundle's checksums, train a student on it and compare its accuracy.",
    )  # fmt: skip
    verify.add_argument("bundle", type=Path, help="folder or .zip")
    verify.add_argument(
        "--data", type=Path,
        help="prepared real images to test on (default: those that a library ships, if there are)",
    )  # fmt: skip
    verify.add_argument("--quick", action="store_true", help="stop at the first recorded epoch")
    verify.add_argument("--hard", action="store_true", help="learn from classes, not soft labels")

    _add_export(commands)
    _add_import(commands)


def _add_export(commands: Any) -> None:
    own = _add(
        commands, "export", _export,
        "Write a distilled set in a format that other code reads.",
    )  # fmt: skip
    own.add_argument("set", type=Path, help="a bundle, data/distilled/<row>, or a set's file")
    own.add_argument("--format", choices=FORMATS, required=True, help=_FORMATS_HELP)
    own.add_argument("--out", type=Path, required=True, help="folder to write")
    own.add_argument("--synthesis", type=int, help="which of the row's (default: the first)")
    own.add_argument(
        "--layout", choices=("plain", "sre2l", "rded"), default="plain",
        help="names of class folders and files: ours, SRe2L's or RDED's; of imagefolder alone "
        "(default: %(default)s)",
    )  # fmt: skip
    own.add_argument(
        "--jpeg", action="store_true",
        help="JPEG of quality 95 instead of lossless PNG, and say what it costs; of imagefolder "
        "alone",
    )  # fmt: skip
    own.add_argument(
        "--lr", type=float, metavar="RATE",
        help="learning rate that lr_best.pt says, since sets of ours have none; of pt alone "
        "(default: 0.01, with which MTT and DATM begin)",
    )  # fmt: skip
    own.add_argument(
        "--pool", type=Path, metavar="FOLDER",
        help="teachers that label, models/<pool>; of fkd alone (default: those of the set, in the "
        "checkout or bundle that it lies in)",
    )  # fmt: skip
    _add_class_order(
        own,
        "which class number 0, 1, … is: sorted names, as torchvision's ImageFolder labels "
        "them, or the set's own order; to be said where these differ, but for parquet",
    )
    own.add_argument(
        "--epochs", type=int, metavar="S",
        help="epochs to label; of fkd alone (default: the recipe's, or 300 without one)",
    )  # fmt: skip
    own.add_argument(
        "--batch-size", type=int, metavar="N",
        help="images of a label file, which their trainer must have as --batch-size too; of fkd "
        "alone (default: the recipe's, or 1024 without one)",
    )  # fmt: skip


def _add_import(commands: Any) -> None:
    own = _add(
        commands, "import", _import,
        "Write a set's file from another format, and print the rows that give it our labels and "
        "students.",
    )  # fmt: skip
    own.add_argument("path", type=Path, help="folder or file to read")
    own.add_argument("--format", choices=FORMATS, required=True, help=_FORMATS_HELP)
    own.add_argument("--out", type=Path, required=True, help=".safetensors file to write")
    own.add_argument(
        "--classes-of", type=Path, required=True, metavar="FOLDER",
        help="prepared dataset, data/prepared/<row>, whose classes, size and normalisation the "
        "set must have",
    )  # fmt: skip
    own.add_argument(
        "--size", type=int,
        help="resize images of another size to this side, which must be the prepared dataset's "
        "(default: refuse them)",
    )  # fmt: skip
    _add_class_order(
        own,
        "what classes that are told by numbers count: sorted names, as torchvision's "
        "ImageFolder labels them, or classes as the prepared dataset has them; to be said where "
        "these differ",
    )
    for name, what in (("--mean", "mean"), ("--std", "standard deviation")):
        own.add_argument(
            name, type=float, nargs="+", metavar="M" if name == "--mean" else "S",
            help=f"{what} of each channel that images were normalised by, for pixels in [0, 1]; of "
            "pt without classes.json alone (default: the prepared dataset's)",
        )  # fmt: skip


def _add_class_order(own: argparse.ArgumentParser, about: str) -> None:
    own.add_argument("--class-order", choices=("sorted", "ours"), help=about)


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], str], about: str
) -> argparse.ArgumentParser:
    own: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about, allow_abbrev=False
    )
    own.set_defaults(run=lambda args: run_command(name, lambda: run(args)))
    return own


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def _pack(args: argparse.Namespace) -> str:
    from teddy.sharing.packing import pack

    options = ("label_epochs", "label_bits", "label_top_k")
    kept = {key: getattr(args, key) for key in options if getattr(args, key) is not None}
    out = pack(args.set, args.out, args.synthesis, args.teachers, kept)
    return f"wrote {out}"


def _verify(args: argparse.Namespace) -> str:
    from teddy.sharing.packing import verify

    return verify(args.bundle, args.data, quick=args.quick, soft=not args.hard)


def _export(args: argparse.Namespace) -> str:
    for option, used, needed in (
        ("--layout", args.layout != "plain", "imagefolder"),
        ("--jpeg", args.jpeg, "imagefolder"),
        ("--lr", args.lr is not None, "pt"),
        ("--pool", args.pool is not None, "fkd"),
        ("--epochs", args.epochs is not None, "fkd"),
        ("--batch-size", args.batch_size is not None, "fkd"),
    ):
        if used and args.format != needed:
            raise TeddyError(f"{option} belongs to --format {needed}; got --format {args.format}")
    rate = 0.01 if args.lr is None else args.lr
    if not 0 < rate < float("inf"):
        raise TeddyError(f"--lr must be above 0 and finite; got {rate:g}")
    from teddy.sharing.formats import fkd
    from teddy.sharing.formats.converting import export

    return export(
        args.set, args.out, args.format, synthesis=args.synthesis, layout=args.layout,
        jpeg=args.jpeg, rate=rate, views=fkd.Options(args.pool, args.epochs, args.batch_size),
        class_order=args.class_order,
    )  # fmt: skip


def _import(args: argparse.Namespace) -> str:
    given = [name for name in ("mean", "std") if getattr(args, name) is not None]
    if given and args.format != "pt":
        raise TeddyError(f"--{given[0]} belongs to --format pt; got --format {args.format}")
    if given:
        _check_statistics(args.mean or [], args.std or [])
    from teddy.data.images import Normalisation
    from teddy.sharing.formats.converting import import_set

    rows = import_set(
        args.path, args.format, args.out, args.classes_of, args.size,
        class_order=args.class_order,
        statistics=Normalisation(tuple(args.mean), tuple(args.std)) if given else None,
    )  # fmt: skip
    print(rows)
    return f"wrote {args.out}; next: put the lines above into the dataset's experiment file"


def _check_statistics(mean: list[float], std: list[float]) -> None:
    if len(mean) != len(std):
        raise TeddyError(
            f"--mean and --std must both be said, with as many numbers; got {len(mean)} and "
            f"{len(std)}"
        )
    if not all(abs(value) < float("inf") for value in mean):
        raise TeddyError(f"--mean must be finite; got {mean}")
    if not all(0 < value < float("inf") for value in std):
        raise TeddyError(f"--std must be above 0 and finite; got {std}")
