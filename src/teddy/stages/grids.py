"""Draw images of several sets side by side, and each set alone (Figs 4, 6 and 7)."""

from collections.abc import Sequence

from teddy.core.console import parse, run_command
from teddy.core.files import check_writable
from teddy.report.image_grids import class_grid, method_grid
from teddy.report.records import read_grids, read_titles
from teddy.report.results import grouped
from teddy.settings.params import Params


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        "key of targets in params.yaml",
        sets="folder of the distilled sets",
        figures="folder to write: <dataset>.png, and <dataset>_<method>.png for each set",
    )

    def stage() -> str:
        params = Params(args.params)
        titles = read_titles(params)
        check_writable(args.figures / "x.png")
        grids = read_grids(params, args.sets, params.targets[args.name])
        for dataset, own in grouped(grids, "dataset").items():
            method_grid(args.figures / f"{dataset}.png", own, titles)
            for grid in own:
                class_grid(args.figures / f"{dataset}_{grid.method}.png", grid, titles)
        return f"{args.name}: {len(grids)} sets"

    run_command("grids", stage)


if __name__ == "__main__":
    main()
