"""Check the parameter files as a whole, and write what every stage and row reads of them.

Every other stage depends on its own file alone, so an edit of the parameters reruns what reads it.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from teddy.core.console import parser, run_command
from teddy.core.files import check_writable, write_json
from teddy.settings.inputs import stage_files
from teddy.settings.params import Params
from teddy.settings.schema import to_json


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    options = parser(__doc__)
    options.add_argument("--params", type=Path, default=Path("params.yaml"))
    options.add_argument("--out", type=Path, required=True, help="folder to write")
    args = options.parse_args(argv)

    def stage() -> str:
        check_writable(args.out / "x.json")
        files = dict(stage_files(Params(args.params)))
        new = args.out.with_name(f".{args.out.name}.{os.getpid()}.tmp")
        for name, settings in files.items():
            write_json(new / f"{name}.json", to_json(settings), in_order=True)
        shutil.rmtree(args.out, ignore_errors=True)
        new.rename(args.out)
        return f"{len(files)} files in {args.out}"

    run_command("resolve", stage)


if __name__ == "__main__":
    main()
