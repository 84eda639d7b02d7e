"""Draw images of several sets side by side, and each set alone (Figs 4, 6 and 7)."""

from collections.abc import Sequence

from teddy.core.console import parse, run_command
from teddy.core.files import check_writable
from teddy.report.image_grids import class_grid, method_grid
from teddy.report.records import read_grids
from teddy.report.results import grouped
from teddy.settings.stages import SetsSettings, read_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        sets="folder of the distilled sets",
        figures="folder to write: <dataset>.png, and <dataset>_<method>.png for each set",
    )

    def stage() -> str:
        settings = read_settings(SetsSettings, args.settings)
        catalogue = settings.catalogue
        check_writable(args.figures / "x.png")
        grids = read_grids(settings.sets, args.sets)
        for dataset, own in grouped(grids, "dataset").items():
            method_grid(args.figures / f"{dataset}.png", own, catalogue)
            for grid in own:
                class_grid(args.figures / f"{dataset}_{grid.method}.png", grid, catalogue)
        return f"{settings.target}: {len(grids)} sets"

    run_command("grids", stage)


if __name__ == "__main__":
    main()
